"""README.md and the pages of docs/ are correct: Python blocks run, command lines are parsed, links and files exist."""

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ndvit

ROOT = Path(__file__).parents[1]
GENERATED = ("weights_checked.md", "performance.md", "reading.md", "signal_length.md", "report.md")
SITE = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = [ROOT / "README.md", ROOT / "examples/README.md", *SITE]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in LINKED}
WRITTEN = {name: text for name, text in TEXTS.items() if Path(name).name not in GENERATED}
PYTHON = {name: blocks for name, text in WRITTEN.items() if (blocks := re.findall(r"```python\n(.*?)```", text, re.S))}
COMMANDS = sorted({line for text in WRITTEN.values() for line in re.findall(r"^ndvit (.*?)(?: +#.*)?$", text, re.M)})
QUICKER = {"train": {"steps": 3}, "compile": {"ways": ("onnxruntime",), "rounds": 1}}  # defaults that save time
ACCURATE = ("docs/signals.md", "docs/images.md")  # each of their blocks prints an accuracy first


def make_pictures(folder):
    """Two folders of pictures, `photos/cat` and `photos/dog`, and a picture `new.jpg`."""
    rng = np.random.default_rng(0)
    for name, colour in {"cat": (200, 60, 40), "dog": (40, 60, 200)}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(rng.normal(colour, 30, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.jpg")
    Image.fromarray(pixels).save(folder / "new.jpg")


@pytest.mark.parametrize("page", PYTHON)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page run one after the other, each with names of its own."""
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path)
    for name, defaults in QUICKER.items():
        function = getattr(ndvit, name)

        def quicker(*args, f=function, d=defaults, **options):
            return f(*args, **({} if options.get("preset") == "fast" else d) | options)

        monkeypatch.setattr(ndvit, name, quicker)
    for code in PYTHON[page]:
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
        printed = capsys.readouterr().out
        if page in ACCURATE:
            accuracy = re.search(r"^(?:test accuracy )?([01]\.\d+)\b", printed, re.M)
            assert accuracy is not None, printed
            assert float(accuracy[1]) > 0.9


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    from ndvit.cli.app import app

    tokens = shlex.split(line)
    if "--config" in tokens:  # it belongs to every command, and is read before it
        at = tokens.index("--config")
        del tokens[at : at + 2]
    if "--help" not in tokens:
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert command.__name__ == tokens[0]
        values = [value for value in bound.arguments.values() if not isinstance(value, dict)]
        options = [value for group in bound.arguments.values() if isinstance(group, dict) for value in group.values()]
        assert len(values) + len(options) >= len([t for t in tokens[1:] if not t.startswith("-")]) - 1


def anchors(text):
    """The anchors that GitHub makes of headings, and those that a page sets itself."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    own = set(re.findall(r'^<a id="([\w-]+)"></a>$', text, re.M))
    return own | {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_exist(page):
    for link in re.findall(r"\]\((?!http)([^)\s]*)\)", TEXTS[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_readme_is_one_screen_and_names_existing_make_targets():
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 120
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_files_on_the_map_exist():
    """Each path `room/file.py` or `src/ndvit/...` of docs/architecture.md."""
    paths = re.findall(r"`((?:src/ndvit/)?[a-z_]+/[\w./]*)(?:: [\w ]+)?`", TEXTS["docs/architecture.md"])
    assert len(paths) > 40
    for path in paths:
        assert (ROOT / "src/ndvit" / path.removeprefix("src/ndvit/")).exists() or (ROOT / path).exists(), path


def test_the_drawing_is_of_the_rooms(tmp_path):
    """docs/architecture.svg was drawn from docs/rooms.txt."""
    subprocess.run([sys.executable, ROOT / "docs/architecture.py", tmp_path / "new.svg"], check=True)
    new, old = (path.read_text() for path in (tmp_path / "new.svg", ROOT / "docs/architecture.svg"))
    comments = partial(re.findall, r"<!-- (.*?) -->")  # matplotlib writes each text as a comment beside its outlines
    assert comments(new) == comments(old)


def test_every_page_is_in_the_table_of_contents_of_the_site():
    listed = ["index"]
    for page in SITE:
        for entries in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            lines = [line for line in entries.splitlines() if line and not line.startswith(":")]
            names = [re.sub(r".* <(.*)>", r"\1", line) for line in lines]  # a page, or a title and <a page>
            listed += [str((page.parent / name).resolve().relative_to(ROOT / "docs")) for name in names]
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs").with_suffix("")) for page in SITE)
