"""The command line: flags from the fields, settings from YAML, one readable message for every error."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml

from datafiles import pictures
from ndvit import DataWarning, __version__, list_models, load_model
from ndvit.cli import main
from ndvit.config import Recipe, SolvedOptions, ViTConfig
from ndvit.config.reading import ReadingOptions
from tinyruns import TINY, command, flags, run_tiny, tensors, toy

COMMANDS = "train evaluate predict embed models presets weights convert export push info".split()  # noqa: SIM905
TINY_FLAGS = [*flags(TINY), "--no-progress"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with toy.npz, new.npz, a folder of images and a run trained on toy.npz."""
    home = tmp_path_factory.mktemp("home")
    pictures(home / "pictures")
    x, y = toy(60, classes=3)
    np.savez(home / "toy.npz", X=x, y=np.array(["a", "b", "c, d"])[y])
    np.savez(home / "new.npz", X=x[:5])
    run_tiny(home / "toy.npz", home / "run", steps=5, val_fraction=0.25)
    return home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def refusal(capsys, *arguments):
    """The one message of a command that must fail."""
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("ndvit: ")
    return error.removeprefix("ndvit: ").strip()


# help


def output(capsys, *arguments):
    """The standard output of a command that must succeed without remarks."""
    assert command(*arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_help_lists_the_commands(capsys):
    for arguments in ([], ["--help"]):
        text = output(capsys, *arguments)
        assert all(re.search(rf"\b{name}\b", text) for name in COMMANDS)
        assert "--config" in text
        assert "--debug" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_commands(capsys, name):
    text = output(capsys, name, "--help")
    assert f"Usage: ndvit {name}" in text


def test_every_option_is_a_flag_with_a_help_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = output(capsys, "train", "--help")
    elsewhere = {"num_classes", "in_channels"}
    for field in (*fields(ReadingOptions), *fields(Recipe), *fields(ViTConfig), *fields(SolvedOptions)):
        flag = f"--{field.name.replace('_', '-')}"
        row = re.search(rf"[│ ]{flag}\b(?!-).*?(?=│\n)", text)
        assert (row is None) == (field.name in elsewhere), flag
        if row is not None:  # a name, perhaps a type, and words
            assert len(row[0].split()) > 5, flag
    assert text.count("--drop-path-rate") == 1
    panels = [re.search(r"─ (.*?) ─", line)[1] for line in text.splitlines() if line.startswith("╭")]
    assert panels[0] == "Parameters"
    assert {"Network: Stem", "Recipe: Augmentation"} < set(panels)
    groups = sum(len(options.__bases__) for options in (ReadingOptions, ViTConfig, Recipe))
    assert len(panels) == len(set(panels)) == 2 + groups + 1  # and the network and weights, the solved networks
    assert re.search(r"--batch-size INT +Examples in one forward pass of each device\. \[default: 32\]", text)


def test_the_command_exports_every_format():
    from ndvit.cli.export import export
    from ndvit.exporting.formats import Format

    assert get_args(get_type_hints(export)["format"]) == get_args(Format)


def test_help_loads_nothing_heavy():
    code = "import sys, ndvit.cli\ntry: ndvit.cli.main(['train', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    loaded = done.stdout.splitlines()[-1].split()
    assert "ndvit.config" in loaded
    assert not {"torch", "lightning", "sklearn", "matplotlib", "numpy"} & set(loaded)


def test_version(capsys):
    assert output(capsys, "--version").strip() == __version__


# train


def test_flags_arrive(capsys, at_home, tmp_path):
    options = ["--steps", 2, "--betas", 0.8, 0.95, "--input-size", 8, "--patch-size", 4, "--no-qkv-bias", "--seed", 7]
    more = ["--drop-path-rate", 0.3, "--qk-norm", "--pooling", "avg", "--test-fraction", 0.5]
    assert command("train", "toy.npz", *TINY_FLAGS, "--output", tmp_path / "run", *options, *more) == 0
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["betas"] == [0.8, 0.95]
    assert (settings["steps"], settings["seed"], settings["test_fraction"]) == (2, 7, 0.5)
    config = load_model(tmp_path / "run").config
    assert (config.input_size, config.patch_size) == ((8,), (4,))
    assert (config.qkv_bias, config.qk_norm, config.pooling, config.drop_path_rate) == (False, True, "avg", 0.3)
    out = capsys.readouterr().out
    assert "30 training, 0 validation, 30 test" in out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out


def test_the_command_does_what_the_function_does(at_home, tmp_path):
    assert command("train", "toy.npz", *TINY_FLAGS, "--output", tmp_path / "a", "--steps", 3, "--seed", 1) == 0
    run_tiny("toy.npz", tmp_path / "b", steps=3, seed=1)
    assert (tmp_path / "a" / "config.yaml").read_text() == (tmp_path / "b" / "config.yaml").read_text()
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all((a[name] == b[name]).all() for name in a)


def settings_file(path, **settings):
    path.write_text(yaml.safe_dump({**TINY, "source": "toy.npz", "steps": 2, "progress": False} | settings))
    return path


def test_flags_override_the_config_file(at_home, tmp_path):
    file = settings_file(tmp_path / "a.yaml", seed=3, betas=[0.5, 0.6], input_size=[8], patch_size=2)
    for i, before in enumerate((True, False)):
        output = tmp_path / str(i)
        where = ["--config", file, "train"] if before else ["train", "--config", file]
        assert command(*where, "--output", output, "--seed", 4) == 0
        settings = yaml.safe_load((output / "config.yaml").read_text())
        assert (settings["seed"], settings["betas"], settings["steps"]) == (4, [0.5, 0.6], 2)
        assert load_model(output).config.input_size == (8,)


def test_a_config_file_is_forgotten_after_its_command(capsys, at_home, tmp_path):
    assert command("train", "--config", settings_file(tmp_path / "a.yaml"), "--output", tmp_path / "a") == 0
    capsys.readouterr()
    assert refusal(capsys, "train").startswith("no data to train on: give a SOURCE")


CONFIGS = {
    "unknown key": ("stepz: 3\nsource: toy.npz", r'Unknown option: "\[stepz\]" from .*bad\.yaml'),
    "wrong type": ("steps: many\nsource: toy.npz", r"\[steps\] from .*bad\.yaml: unable to convert \"many\" into int"),
    "no choice": ("optimizer: adam\nsource: toy.npz", r"optimizer.*adam"),
    "value": ("steps: -2\nsource: toy.npz", "steps must be a whole number of at least 1, got -2"),
    "YAML": ("steps: [1", r"bad\.yaml is not readable YAML"),
    "tabs": ("steps:\n\t- 1", r"bad\.yaml is not readable YAML"),
    "a word": ("steps", r"bad\.yaml must hold settings as `name: value` lines, got str"),
    "a list": ("- 1", r"bad\.yaml must hold settings as `name: value` lines, got list"),
    "nothing": ("", r"bad\.yaml must hold settings as `name: value` lines, got NoneType"),
    "no source": ("steps: 3", "no data to train on"),
    "arrays": ("source: null\nsteps: 3", "no data to train on"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_config_files(capsys, at_home, tmp_path, name):
    text, message = CONFIGS[name]
    (tmp_path / "bad.yaml").write_text(text)
    assert re.search(message, refusal(capsys, "train", "--config", tmp_path / "bad.yaml"))
    assert not (at_home / "runs").exists()


def test_config_files_that_are_no_text(capsys, at_home, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "bad.yaml is not readable YAML" in refusal(capsys, "train", "--config", tmp_path / "bad.yaml")
    assert refusal(capsys, "train", "--config", tmp_path) == f"no settings at {tmp_path}"
    assert refusal(capsys, "train", "--config", "nowhere.yaml") == "no settings at nowhere.yaml"


REFUSED = {
    "no source": (["train"], r"no data to train on: give a SOURCE, for example: ndvit train gunpoint"),
    "unknown command": (["trian", "toy.npz"], r'Unknown command "trian"\. Did you mean "train"\?'),
    "unknown flag": (["train", "toy.npz", "--stepz", "3"], r"Unknown option: --stepz\. Did you mean --steps\?"),
    "classes": (["train", "toy.npz", "--num-classes", "3"], "num_classes follows from the data and cannot be set"),
    "channels": (["train", "toy.npz", "--in-channels=3"], "in_channels follows from the data and cannot be set"),
    "text for a number": (["train", "toy.npz", "--steps", "ten"], 'Invalid value for --steps: unable to convert "ten"'),
    "value": (["train", "toy.npz", "--steps", "0"], "steps must be a whole number of at least 1, got 0"),
    "choice": (["train", "toy.npz", "--pooling", "max"], 'Invalid value "max" for --pooling. Choose from: "token"'),
    "no value": (["train", "toy.npz", "--steps"], "--steps"),
    "one beta": (["train", "toy.npz", "--betas", "0.9"], "--betas"),
    "model": (["train", "toy.npz", "--model", "vit_pica"], "unknown model 'vit_pica'. Did you mean 'vit_pico'"),
    "2-D model": (["train", "toy.npz", "--model", "vit_tiny_patch16_224"], "use vit_tiny, which takes its dimensions"),
    "data": (["train", "gunpiont"], "no such file or folder, and no built-in source. Did you mean gunpoint"),
    "two sources": (["train", "toy.npz", "new.npz"], "new.npz"),
    "existing": (
        ["train", "toy.npz", "--output", "run"],
        "run exists: choose another output, or replace it with --force",
    ),
    "no run": (["train", "toy.npz", "--output", ".", "--force"], "so it is not replaced even"),
    "resume nothing": (["train", "--resume", "nowhere"], "nowhere holds no run to resume: it has no config.yaml"),
    "resume finished": (["train", "--resume", "run"], "run is finished: it has a model.safetensors"),
    "resume with a source": (
        ["train", "toy.npz", "--resume", "run"],
        "--resume takes every setting from .*: give it alone",
    ),
    "resume with a setting": (["train", "--resume", "run", "--steps", "9"], "give it alone"),
    "resume with a model option": (["train", "--resume", "run", "--depth", "3"], "give it alone"),
    "resume elsewhere": (["train", "--resume", "run", "--output", "other"], "give it alone"),
    "resume by force": (["train", "--resume", "run", "--force"], "give it alone"),
    "dry run of a resumed run": (["train", "--resume", "run", "--dry-run"], "give it alone"),
    "task": (["train", "toy.npz", "--task", "tea"], "unknown task 'tea': there are classification"),
    "embed without output": (["embed", "run", "toy.npz"], r"no output: give --output FILE\.npz \(or \.parquet\)"),
    "score of one split": (["embed", "run", "toy.npz", "--knn", "--split", "test"], "leave --split test out"),
    "convert to what": (["convert", "run", "out.safetensors"], "--to"),
    "convert to the wrong file": (["convert", "run", "out.pth", "--to", "ndvit"], r"\.safetensors files, got out\.pth"),
    "member of a single network": (["convert", "run", "o.pth", "--to", "timm", "--member", "0"], "no ensemble. Leave"),
    "no such weights": (["weights", "nonsense"], "no published weights with nonsense in their name"),
    "no such preset": (["presets", "fest"], "unknown preset 'fest'. Did you mean 'fast'"),
    "resume another model": (["train", "--resume", "run", "--model", "vit_tiny"], "give it alone"),
    "evaluate nothing": (["evaluate"], "run.*|RUN"),
    "evaluate without data": (["evaluate", "run"], "source|SOURCE"),
    "evaluate no model": (
        ["evaluate", "nowhere", "toy.npz"],
        "no model at nowhere: ",
    ),
    "evaluate a folder": (["evaluate", ".", "toy.npz"], r"\. holds 2 weights files; .*: new\.npz, toy\.npz"),
    "evaluate what is no model": (
        ["evaluate", "toy.npz", "toy.npz"],
        r"toy\.npz is no Vision Transformer that ndvit can read: with 1 tensors such as X it has no layout",
    ),
    "split": (["evaluate", "run", "toy.npz", "--split", "half"], '"half" for --split. Choose from: "auto"'),
    "format": (["evaluate", "run", "toy.npz", "--format", "xml"], '"xml" for --format. Choose from'),
    "pictures": (["evaluate", "run", "pictures"], "pictures holds images, and the model was trained on signals"),
    "predict nothing": (["predict"], "run|RUN"),
    "predict no files": (["predict", "run"], "files|FILES"),
    "predict what is not there": (["predict", "run", "nowhere.npy"], r"nowhere\.npy: no such file or folder"),
    "predict pictures": (["predict", "run", "pictures/cat"], "pictures/cat holds images, and the model was trained on"),
    "csv": (["predict", "run", "new.npz", "--format", "tsv"], '"tsv" for --format. Choose from'),
    "batch": (
        ["predict", "run", "new.npz", "--batch-size", "0"],
        "batch_size must be a whole number .*at least 1, got 0",
    ),
    "batch of evaluate": (["evaluate", "run", "toy.npz", "--batch-size", "-1"], "batch_size must be .*got -1"),
    "device": (["predict", "run", "new.npz", "--device", "mps"], "device mps .*use auto or cpu"),
    "no such device": (["predict", "run", "new.npz", "--device", "tpu"], '"tpu" for --device. Choose from'),
    "info of nothing": (["info", "nowhere"], "no model at nowhere"),
    "models of something": (["models", "vit_tiny"], "vit_tiny"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_errors_are_one_message(capsys, at_home, name):
    arguments, message = REFUSED[name]
    text = refusal(capsys, *arguments)
    assert re.search(message, text), text
    assert not (at_home / "runs").exists()


def test_resume_names_the_command_for_a_broken_run(capsys, at_home, tmp_path):
    (tmp_path / "broken run" / "checkpoints").mkdir(parents=True)
    text = refusal(capsys, "evaluate", tmp_path / "broken run", "toy.npz")
    assert f"the run has not finished: ndvit train --resume '{tmp_path}/broken run'" in text


def test_debug_shows_the_traceback(at_home):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        main(["train", "nowhere", "--debug"])
    with pytest.raises(ValueError, match="steps must be"):
        main(["--debug", "train", "toy.npz", "--steps", "0"])


def test_as_a_process(at_home):
    program = [sys.executable, "-m", "ndvit.cli", "info"]
    done = subprocess.run([*program, "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"ndvit: no model at nowhere: .*`ndvit weights` lists\n", done.stderr)


def test_a_reader_that_closes_the_pipe(at_home):
    program = f"set -o pipefail; {sys.executable} -m ndvit.cli presets | true"  # `true` ends before the first line
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_outside_training(monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ndvit.model.load_features", interrupt)
    assert command("info", "anything") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_ends_a_command_with_a_line(monkeypatch, capsys):
    monkeypatch.setattr("ndvit.model.load_features", lambda *a, **b: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert command("info", "anything") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_warning_is_printed_once_in_a_command(monkeypatch, capsys):
    def doubt(*args, **options):
        for text in ("a", "b", "a"):
            warnings.warn(text, DataWarning, stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("ndvit.model.load_features", doubt)
    for _ in range(2):
        command("info", "anything")
        assert capsys.readouterr().err == "warning: a\nwarning: b\ninterrupted\n"


# evaluate and predict


def test_evaluate_prints_a_table(capsys, at_home):
    assert command("evaluate", "run", at_home / "toy.npz") == 0
    printed = capsys.readouterr()
    assert "toy: 12 examples (the test set)" in printed.err  # although the path of the training was another
    stored = json.loads((at_home / "run" / "results.json").read_text())
    lines = printed.out.splitlines()
    right = 12 - stored["mistakes"]
    accuracy = next(line.split() for line in lines if line.startswith("accuracy"))
    low, to, high = (f"{v:.4f}" if v != "to" else v for v in _interval(stored))
    assert accuracy == ["accuracy", f"{stored['accuracy']:.4f}", low, to, high, f"({right}", "of", "12)"]
    assert [line.split()[0] for line in lines[-3:-1]] == ["a", "b"]
    assert lines[-1].startswith("c, d")
    assert lines[-2].split()[1] == "4"


def _interval(stored):
    low, high = stored["accuracy_interval_95"]
    return low, "to", high


def test_evaluate_as_json(capsys, at_home):
    assert command("evaluate", "run", at_home / "toy.npz", "--format", "json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((at_home / "run" / "results.json").read_text())
    assert printed.err


@pytest.mark.parametrize(("split", "count"), [("train", 48), ("all", 60)])
def test_evaluate_splits(capsys, at_home, split, count):
    assert command("evaluate", "run", at_home / "toy.npz", "--split", split, "--format", "json", "--no-progress") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == count


def test_predict_prints_a_table(capsys, at_home):
    assert command("predict", "run", "new.npz") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    shares = [[float(part) for part in re.findall(r"([\d.]+) %", line)] for line in lines]
    assert all(share == sorted(share, reverse=True) for share in shares)
    assert all(sum(share) == pytest.approx(100, abs=0.2) for share in shares)
    assert "new.npz[0]" in lines[0]


def test_csv_and_json_have_the_same_content(capsys, at_home):
    assert command("predict", "run", "new.npz", "--format", "csv") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["name", "class", "a", "b", "c, d"]
    assert command("predict", "run", "new.npz", "--format", "json") == 0
    predictions = json.loads(capsys.readouterr().out)
    assert len(rows) - 1 == len(predictions) == 5
    for row, one in zip(rows[1:], predictions):
        assert row[:2] == [one["name"], one["class"]]
        assert [float(v) for v in row[2:]] == pytest.approx(list(one["probabilities"].values()), rel=1e-4)
        assert sum(map(float, row[2:])) == pytest.approx(1, abs=1e-4)


def test_notes_do_not_disturb_the_output(capsys, at_home, tmp_path):
    np.savez(tmp_path / "both.npz", X_train=toy(4)[0], X_test=toy(6)[0])
    assert command("predict", "run", tmp_path / "both.npz", "--format", "json") == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 6
    assert re.search("both.npz .* train and test", printed.err)


def test_files_whose_names_begin_with_a_dash(capsys, at_home, tmp_path, monkeypatch):
    np.save(tmp_path / "-1.npy", toy(1)[0][0])
    monkeypatch.chdir(tmp_path)
    assert command("predict", at_home / "run", "--format", "csv", "--", "-1.npy") == 0
    assert "-1.npy" in capsys.readouterr().out.splitlines()[1]


# models and info


def test_models_lists_every_name(capsys):
    out = output(capsys, "models")
    rows = {
        line.split()[0]: line.split()[1:]
        for line in out.splitlines()
        if re.match(r"(vit|signal|encoder|compact)_[a-z]", line)
    }
    assert list(rows) == list_models()
    assert rows["vit_base_patch16_224"] == ["3x224x224", "86,567,656", "16.464"]
    assert rows["vit_large_patch14_518"][0] == "3x518x518"


@pytest.mark.parametrize("path", ["run", "run/model.safetensors"])
def test_info(capsys, at_home, path):
    out = output(capsys, "info", path)
    parameters = sum(p.numel() for p in load_model("run").network.parameters())
    lines = dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())
    assert lines["weights"] == f"{path}: ndvit layout"
    assert lines["size"].startswith(f"{parameters:,} parameters")
    assert lines["classes"] == "3: a, b, c, d"
    values = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert values["input_size"] == "[16]"
    assert values["embed_dim"] == "16"
    assert values["kind"] == "signal"
    assert values["model"] == "vit_pico"
    assert values["steps"] == "5"
    assert float(values["test_accuracy"]) == load_model("run").provenance["test_accuracy"]


@pytest.mark.parametrize(
    "flag", [["--steps", "1.5"], ["--patch-size", "2.5"], ["--depth=3.2"], ["--steps", "2", "--seed", "0.5"]]
)
def test_fractions_are_not_rounded(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "gunpoint", *flag])
    assert stop.value.code == 2
    name, value = re.split(" |=", " ".join(flag[-2:]))
    assert f"{name} must be a whole number, got {value}" in capsys.readouterr().err


def test_fractions_in_yaml_are_not_rounded(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("source: gunpoint\nsteps: 1.5\nlearning_rate: 0.5\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "c.yaml")])
    assert "--steps must be a whole number, got 1.5" in capsys.readouterr().err


def test_out_of_memory(monkeypatch, capsys):
    from ndvit.training import run

    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(run, "train", full)
    with pytest.raises(SystemExit) as stop:
        main(["train", "gunpoint"])
    assert stop.value.code == 2
    assert "out of memory: use a smaller --batch-size" in capsys.readouterr().err


def test_a_run_is_repeated_from_another_folder(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "toy.npz", X=rng.standard_normal((12, 16)), y=np.arange(12) % 2)
    monkeypatch.chdir(tmp_path)
    assert command("train", "toy.npz", "--output", "a", "--steps", 1, "--depth", 1, "--no-progress") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("train", "--config", "../a/config.yaml", "--output", "b", "--no-progress") == 0
    assert (tmp_path / "elsewhere" / "b" / "model.safetensors").is_file()
    capsys.readouterr()
