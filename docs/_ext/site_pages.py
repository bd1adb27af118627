"""A Sphinx extension that fills in the parts of pages that come from elsewhere in the repository.

A page may hold these marks, which GitHub does not show:

- `<!-- generate: NAME -->`: Markdown that the function NAME of `reference.py` makes from the code.
- `<!-- script: NAME.py -->`: a script of examples/, cell by cell, executed. The script is the only copy.
- `<!-- file: PATH -->`: a Markdown file outside docs/, such as the changelog.
- `<!-- only in the checkout -->` ... `<!-- end -->`: text about what only the site has; the site leaves it out.

Links to files outside docs/ lead to the repository, or to the page that has their contents. Each executed page can be
downloaded as a notebook.
"""

import ast
import os
import re
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import jupytext
import reference
from nbformat.v4 import new_code_cell
from scripts import myst_of_script
from search import SearchBoth
from sphinx.application import Sphinx
from sphinx.util import logging

import ndvit

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MARK = re.compile(r"^<!-- (generate|script|file): (\S+) -->$", re.M)
CHECKOUT = re.compile(r"^<!-- only in the checkout -->\n.*?^<!-- end -->\n+", re.M | re.S)
LINK = re.compile(r"(!?)\[([^\[\]]*(?:\[[^\]]*\])?[^\[\]]*)\]\((?!https?:|#|<)([^)\s#]*)(#[^)\s]*)?\)")
INCLUDE = re.compile(r"^```\{literalinclude\} (\S+)\n(.*?)^```$", re.M | re.S)
NOTEBOOK = "file_format: mystnb"
# Pages of the site that have the contents of files outside docs/.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "examples/README.md": "tutorials/index.md",
}
TUTORIALS = {"five_minutes": DOCS / "start" / "five_minutes.md"}  # other places of the pages of scripts
TWINS = "zh"  # folder of the Chinese pages; pages of the same name have the same code


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replace the marks of a page, then its links out of docs/."""
    path = Path(app.env.doc2path(docname))
    content[0] = CHECKOUT.sub("", content[0])
    text = MARK.sub(lambda found: _fill(app, found[1], found[2], path), content[0])
    text = _links(app, text, path.parent, path)
    if docname == "reference/messages":
        _check_fragments(docname, content[0], text)
    if NOTEBOOK in text:
        text = _with_download(app, docname, text)
        _compare_with_twin(docname, content[0])
    content[0] = text


def _fill(app: Sphinx, kind: str, name: str, page: Path) -> str:
    """Markdown for a mark."""
    if kind == "generate":
        for path in sorted((ROOT / "src").rglob("*.py")):
            app.env.note_dependency(str(path))
        return getattr(reference, name)()
    source = ROOT / ("examples" if kind == "script" else "") / name
    app.env.note_dependency(str(source))
    text = source.read_text(encoding="utf-8")
    if kind == "script":
        return _links(app, myst_of_script(source.name, text), source.parent, page)
    return _links(app, text, source.parent, page)


def _links(app: Sphinx, text: str, base: Path, page: Path) -> str:
    """Rewrite relative links of Markdown that was written in the folder `base`, for the file `page`."""

    def rewritten(found: re.Match[str]) -> str:
        image, label, link, anchor = found[1], found[2], found[3], found[4] or ""
        target = Path(os.path.normpath(base / link))
        if not target.is_relative_to(ROOT) or not target.exists():
            return found[0]  # a mistake, which Sphinx reports
        inside = str(target.relative_to(ROOT))
        tutorial = TUTORIALS.get(target.stem, DOCS / "tutorials" / f"{target.stem}.md")
        if inside.startswith("examples/") and tutorial.exists() and tutorial != page:
            inside = str(tutorial.relative_to(ROOT))
        elif inside in PAGES:
            inside = f"docs/{PAGES[inside]}"
        if inside.startswith("docs/") and not (ROOT / inside).is_dir():
            return f"{image}[{label}]({os.path.relpath(ROOT / inside, page.parent)}{anchor})"
        if app.config.repository:
            kind = "tree" if target.is_dir() else "blob"
            return f"{image}[{label}]({app.config.repository}/{kind}/main/{inside}{anchor})"
        return label if label.startswith("`") or " " in label else f"`{label}`"

    parts = re.split(r"(^(?:```|~~~|:::).*?^(?:```|~~~|:::)$)", text, flags=re.M | re.S)
    return "".join(part if at % 2 else LINK.sub(rewritten, part) for at, part in enumerate(parts))


def _check_fragments(docname: str, table: str, text: str) -> None:
    """Warn if a part of a message in the table written by hand is in no message of the code."""
    for row in re.findall(r"^\| (`.*?) \|", table, re.M):
        for fragment in re.findall(r"`(.*?)`", row):
            if text.count(fragment) + text.count(reference.escape(fragment)) < 2 and not hasattr(ndvit, fragment):
                logger.warning("no message of the code has the words %r", fragment, location=docname)


def _with_download(app: Sphinx, docname: str, text: str) -> str:
    """Write the page as a notebook, and put a line with its links under the title."""
    if "measured(" in text:
        return text  # it reads tables of the repository
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    name = docname.replace("/", "-") + ".ipynb"
    notebook = jupytext.reads(INCLUDE.sub(partial(_included, DOCS / docname), text), fmt="md:myst")
    package = f"git+{app.config.repository}" if app.config.repository else "ndvit"
    cells = [new_code_cell(f"%pip install --quiet {package}")]
    for module in dict.fromkeys(re.findall(r"^(?:from|import) (\w+)", text, re.M)):  # modules that ndvit does not ship
        for path in (DOCS / "_ext" / f"{module}.py", ROOT / "examples" / f"{module}.py"):
            if path.exists():
                cells.append(new_code_cell(f"%%writefile {path.name}\n{path.read_text(encoding='utf-8')}"))
    notebook.cells = cells + notebook.cells
    jupytext.write(notebook, folder / name, fmt="ipynb")
    here = "../" * docname.count("/")
    links = f'<a href="{here}notebooks/{name}" download>notebook</a>'
    if app.config.repository:
        address = app.config.repository.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{address}/blob/gh-pages/{app.config.site_version}"
        links += f' · <a href="{colab}/notebooks/{name}">open in Colab</a>'
    word = "本页可下载为" if docname.startswith(TWINS) else "This page as a"
    line = f'\n```{{raw}} html\n<p class="notebook-links">{word} {links}</p>\n```\n'
    return re.sub(r"^# .*\n", lambda title: title[0] + line, text, count=1, flags=re.M)


def _included(page: Path, found: re.Match[str]) -> str:
    """The code that a literalinclude names, for notebooks, which do not know this directive."""
    text = (page.parent / found[1]).resolve().read_text(encoding="utf-8")
    name = re.search(r"^:pyobject: (\S+)", found[2], re.M)
    if name is not None:
        node: ast.AST = ast.parse(text)
        for part in name[1].split("."):
            node = next(child for child in node.body if getattr(child, "name", None) == part)  # type: ignore[attr-defined]
        text = dedent("\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]))  # type: ignore[attr-defined]
    return f"```python\n{text}\n```"


def _compare_with_twin(docname: str, text: str) -> None:
    """Warn if a Chinese page and its English twin execute different code."""
    twin = DOCS / f"{docname.removeprefix(TWINS + '/')}.md"
    if not docname.startswith(TWINS + "/") or not twin.exists():
        return
    ours, theirs = (code_cells(page) for page in (text, twin.read_text(encoding="utf-8")))
    for at, (one, other) in enumerate(zip(ours, theirs), 1):
        if one != other:
            logger.warning("code cell %d differs from that of %s", at, twin.relative_to(DOCS), location=docname)
    if len(ours) != len(theirs):
        message = "%d code cells and includes, but %s has %d"
        logger.warning(message, len(ours), twin.relative_to(DOCS), len(theirs), location=docname)


def code_cells(text: str) -> list[str]:
    """Code cells and included code of a page, without comments and captions, which are translated."""
    blocks = re.findall(r"^```\{(?:code-cell|literalinclude)\}.*?^```$", text, re.M | re.S)
    return [re.sub(r"(^:caption:.*\n)|(\.\./)|( *(?<!['\"])# .*$)", "", block, flags=re.M) for block in blocks]


def escape_stars(app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escape the star of shapes such as (B, C, *size), which reStructuredText takes as the start of emphasis."""
    for at, line in enumerate(lines):
        if ">>>" not in line:
            lines[at] = re.sub(r"(?<=[(, ])\*(?=\w+[,) ])", r"\\*", line)


def skip_foreign(app: Sphinx, kind: str, name: str, value: object, skip: bool, options: object) -> bool | None:
    """Leave methods out that scikit-learn adds to estimators; its documentation describes them."""
    return True if str(getattr(value, "__module__", "")).startswith("sklearn.") else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("repository", "", "env")
    app.add_config_value("site_version", "latest", "env")
    app.add_search_language(SearchBoth)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("autodoc-skip-member", skip_foreign)
    return {"version": "1", "parallel_read_safe": True}
