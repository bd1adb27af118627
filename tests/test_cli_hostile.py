"""Hostile files and absurd options at the command line: exit status 2, one readable line, no command to a terminal."""

import csv
import io
import json
import os
import sys

import numpy as np
import pytest

from ndvit.cli.printing import Plain, error_line, out, print_csv, print_json, remark, shortened
from ndvit.config import ViTConfig
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.files import cell
from ndvit.network import VisionTransformer
from tinyruns import command
from weightfiles import as_model, header_of, rewrite, save_model

CONFIG = ViTConfig(input_size=16, patch_size=4, in_channels=1, embed_dim=16, depth=1, num_heads=2, num_classes=2)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a model and one example."""
    preprocess = SignalPreprocess((16,), (0.0,), (1.0,))
    model = as_model(VisionTransformer(CONFIG), ("a", "b"), preprocess=preprocess, provenance={"seed": 0})
    save_model(model, tmp_path / "m.safetensors")
    np.save(tmp_path / "one.npy", np.sin(np.arange(16)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys, *arguments):
    assert command(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("ndvit: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("ndvit: ")
    assert lines[-1].isprintable()
    assert len(lines[-1]) < 2000
    return lines[-1]


def classes(*names):
    return {"task": json.dumps({"name": "classification", "classes": list(names)})}


HEADERS = {
    "equal classes": (classes("a", "a"), "different names, got 'a' twice"),
    "an empty class": (
        classes("", "b"),
        "classes must be texts of 1 to 1,000 letters without control characters, got ''",
    ),
    "numbers": (classes(1, 2), "classes must be texts"),
    "escapes": (classes("\x1b]0;pwned\x07", "b"), r"got '\x1b]0;pwned\x07'"),
    "a megabyte": (classes("x" * 10**6, "b"), "got 'xxx"),
    "text for classes": ({"task": '{"name": "classification", "classes": "ab"}'}, "has a list of classes"),
    "entries of format 1": ({"classes": '["a", "b"]'}, "this format has no classes, it has task, network"),
    "another entry": ({"x\x1by": "1"}, r"this format has no"),
    "no numbers": ({"provenance": '{"note": NaN}'}, "it has the number nan, expected finite numbers"),
    "facts of a wrong type": ({"provenance": '{"source": 3}'}, "the provenance has 3 as source, expected str"),
    "no facts": ({"provenance": "[]"}, "the provenance is a list, expected an object"),
    "names in one text": ({"untrained": '"head"'}, "untrained is a list of names"),
    "another format": ({"ndvit": "\x1b[2J" * 1000}, r"has file format \x1b[2J"),
    "a huge entry": ({"provenance": '"' + "x" * 10_000_001 + '"'}, "at most 10,000,000 are read"),
    "a network with more": (
        {"network": json.dumps({"kind": "vit", "config": CONFIG.to_dict(), "code": 1})},
        "a vit has no code, it has config",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(home, capsys, name):
    header, message = HEADERS[name]
    rewrite(home / "m.safetensors", **header)
    assert message in refusal(capsys, "predict", "m.safetensors", "one.npy")


def test_names_of_a_file_are_not_commands(home, capsys):
    rewrite(home / "m.safetensors", provenance=json.dumps({"source": "\x1b[2J", "note\x9b": "\u202eevil\r"}))
    assert command("info", "m.safetensors") == 0
    printed = capsys.readouterr().out
    assert r"\x1b[2J" in printed
    assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(printed)


@pytest.mark.parametrize("door", ["predict", "evaluate", "embed"])
def test_answers_that_are_not_finite_are_refused(home, capsys, door):
    from safetensors.torch import load_file

    tensors = load_file(home / "m.safetensors")
    tensors["norm.weight"][:] = 3e38
    tensors["norm.bias"][:] = 3e38
    tensors["head.weight"][:] = 3e38
    rewrite(home / "m.safetensors", tensors)
    assert header_of(home / "m.safetensors")["ndvit"] == "3"
    np.savez(home / "set.npz", X=np.random.default_rng(0).normal(size=(4, 16)), y=np.array(["a", "b"] * 2))
    source = "one.npy" if door == "predict" else "set.npz"
    more = ["--output", "e.npz"] if door == "embed" else []
    assert "is NaN or infinite: its values" in refusal(capsys, door, "m.safetensors", source, *more)
    assert not (home / "e.npz").exists()


ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
SETTINGS = {
    "aliases": (ALIASES, "aliases (*name) are not read, line 2 has one"),
    "depth": ("a: " + "[" * 100_000, "its values nest too deep"),
    "a mapping": ("steps: {a: 1}", "steps must be a value or a list of values, got a dict"),
    "lists of lists": ("steps: [[1]]", "steps must be a value or a list of values, got a list"),
    "a name that is no text": ("1: 2", "the name of a setting is text, got 1"),
    "no date": ("steps: 2020-13-45", "is not readable YAML: month must be in 1..12"),
    "a long number": ("steps: " + "9" * 5000, "is not readable YAML"),
    "code": ("steps: !!python/object/apply:os.system [ls]", "is not readable YAML"),
    "a megabyte": ("# " + "x" * 10**6, "bytes, at most 1,000,000 are read as settings"),
    "escapes": ('"\\e[2J": 1', r"\x1b[2J"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(home, capsys, name):
    text, message = SETTINGS[name]
    (home / "c.yaml").write_text(text)
    assert message in refusal(capsys, "train", "--config", "c.yaml")
    (home / "run").mkdir()
    (home / "run" / "config.yaml").write_text(text)
    if name != "escapes":  # an unknown setting, which only the command line knows
        assert message in refusal(capsys, "train", "--resume", "run")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_and_devices_are_not_opened(home, capsys):
    os.mkfifo(home / "pipe")
    for path in ("pipe", "/dev/zero"):
        assert f"no settings at {path}" in refusal(capsys, "train", "--config", path)
        assert f"{path} is neither a file nor a folder" in refusal(capsys, "info", path)


OPTIONS = {
    "batch_size": (10**18, "batch_size must be at most 1,048,576, got 1000000000000000000"),
    "workers": (100_000, "workers must be at most 256, got 100000"),
    "steps": (10**30, "steps must be at most 1,000,000,000"),
    "members": (10**9, "members must be at most 1,000, got 1000000000"),
    "depth": (10**9, "depth must be at most 1,000, got 1000000000"),
    "learning_rate": (1e300, "learning_rate must be at most 1,000,000, got 1e+300"),
    "model": ("x" * 10**5, "unknown model"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(home, capsys, name):
    value, message = OPTIONS[name]
    assert message in refusal(capsys, "train", "gunpoint", f"--{name.replace('_', '-')}", value)


def test_a_network_larger_than_the_memory(home, capsys):
    text = refusal(capsys, "train", "gunpoint", "--embed-dim", 65536, "--num-heads", 8, "--depth", 1000)
    assert "of memory: use a smaller embed_dim (65,536), depth (1,000)" in text


@pytest.mark.parametrize("door", ["predict", "embed"])
def test_batches(home, capsys, door):
    more = ["--output", "e.npz"] if door == "embed" else []
    text = refusal(capsys, door, "m.safetensors", "one.npy", "--batch-size", 10**18, *more)
    assert "batch_size must be at most 1,048,576" in text


def test_streams_escape_all_but_progress_bars():
    stream = io.StringIO()
    plain = Plain(stream)
    for text in ("a\x1b[2J\x07\r\n", "\rbar 10 %", "\x1b[A", "\x1b[A\x1b[A", "\rbar\x1b[2J", "\ud800\ttab"):
        plain.write(text)
    assert stream.getvalue() == (
        "a\\x1b[2J\\x07\\r\n" + "\rbar 10 %" + "\x1b[A" + "\x1b[A\x1b[A" + "\rbar\\x1b[2J" + "\\ud800\ttab"
    )


def test_a_terminal_that_lacks_letters():
    raw = io.BytesIO()
    plain = Plain(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    plain.write("50 – 60\n")
    assert raw.getvalue() == b"50 \\u2013 60\n"


def test_lines_are_shortened_in_their_middle(capsys):
    error_line("begin " + "x" * 10**6 + "\n  end: the remedy")
    remark("\x1b[2J\nsecond")
    out("\rname\nnext")
    printed = capsys.readouterr()
    first, second, third = printed.err.splitlines()
    assert first.startswith("ndvit: begin xxx")
    assert first.endswith("xxx end: the remedy")
    assert len(first) < 2000
    assert (second, third) == ("\\x1b[2J", "second")
    assert printed.out == "\\rname\nnext\n"
    assert shortened("short") == "short"


def test_json_stays_json(capsys):
    values = {"\x1b[2J": "\x9b\u202e", "ß": ["\x7f", 0.5]}
    print_json(values)
    printed = capsys.readouterr().out
    assert json.loads(printed) == values
    assert "ß" in printed
    assert not {"\x1b", "\x9b", "\u202e", "\x7f"} & set(printed)


CELLS = {"=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0", "+1+1": "'+1+1", "-2+3": "'-2+3", "@SUM(1)": "'@SUM(1)"}
CELLS |= {"\t=1": "'\t=1", "＝1": "'＝1", "-1": "-1", "+2.5e-3": "+2.5e-3", "-": "'-", "a=1": "a=1"}


@pytest.mark.parametrize("text", CELLS)
def test_cells_are_no_formulas(text):
    assert cell(text) == CELLS[text]


def test_numbers_of_a_table_are_untouched(capsys):
    print_csv([["name", "=a"], ["-x", -0.123456789]])
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [["name", "'=a"], ["'-x", "-0.123457"]]


def test_streams_are_put_back(home, capsys):
    before = sys.stdout, sys.stderr
    command("info", "nowhere")
    assert (sys.stdout, sys.stderr) == before
