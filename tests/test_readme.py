"""What the README shows is run: its Python as it stands, its commands as far as the parser, its files as links."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


NAMES = ("estimator", "signal", "image", "weights", "compile", "network")
PYTHON = dict(zip(NAMES, re.findall(r"```python\n(.*?)```", TEXT, re.S), strict=True))


@pytest.mark.parametrize("code", PYTHON.values(), ids=PYTHON)
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if "accuracy" in code or ".score(" in code:
        accuracy = re.search(r"test accuracy (\d\.\d+)" if "accuracy" in code else r"^(\d\.\d+)$", printed, re.M)
        assert accuracy is not None
        assert float(accuracy[1]) > 0.9


@pytest.mark.parametrize("line", re.findall(r"^ndvit (.*?)(?: +#.*)?$", TEXT, re.M))
def test_commands_parse(line):
    from ndvit.cli.commands import app

    tokens = shlex.split(line)
    if "--help" not in tokens:
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert command.__name__ == tokens[0]
        assert len(bound.arguments) >= len([t for t in tokens[1:] if not t.startswith("-")]) - 1


def test_make_targets_and_links_exist():
    assert "DEMO_" not in TEXT  # figures that were still to be filled in
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
    for name in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), link
    for name in re.findall(r"\b(\w+\.py)\b", TEXT.partition("## The map of the code")[2]):
        assert list((ROOT / "src/ndvit").rglob(name)), name
