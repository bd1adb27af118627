"""The reference, generated from the code: functions without arguments that return Markdown.

Nothing here is copied by hand: docstrings, annotations, presets, tables and messages are read from `ndvit` itself.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from inspect import get_annotations, getdoc
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import ndvit
from ndvit.cli.app import app
from ndvit.cli.options import field_docs, option_groups
from ndvit.config import Recipe, SolvedOptions, ViTConfig, list_models, named_config
from ndvit.config.bounds import Cap, Options
from ndvit.config.options import DERIVED
from ndvit.config.presets import AUTO, PRESETS
from ndvit.config.pretraining import PRETRAINING_PRESETS as PRETRAINING
from ndvit.config.pretraining import PretrainingOptions
from ndvit.config.reading import ReadingOptions
from ndvit.config.serving import ServingOptions

SOURCE = Path(ndvit.__file__).parent
TITLES = {
    "training": "Training",
    "model": "Models",
    "estimator": "scikit-learn",
    "network": "Networks",
    "config": "Configuration",
    "data": "Data",
    "tasks": "Tasks",
    "weights": "Weights",
    "checking": "Checking data",
    "serving": "Serving",
    "load_report": "Warnings",
}
BARE = {"ViTConfig", "Recipe"}  # classes whose fields are on the page of options


# -- Python ----------------------------------------------------------------------------------------------------------


def api() -> str:
    """Every name of `ndvit.__all__`, by the room that it comes from."""
    rooms: dict[str, list[str]] = {}
    for name in ndvit.__all__:
        rooms.setdefault(ndvit._HOMES[name].split(".")[1], []).append(name)
    text = ""
    for room in sorted(rooms, key=lambda room: (list(TITLES).index(room) if room in TITLES else 99, room)):
        text += f"\n## {TITLES.get(room, room)}\n"
        for name in sorted(rooms[room], key=lambda name: (isinstance(getattr(ndvit, name), type), name)):
            text += f"\n### {name}\n{_directive(name)}"
    return text


def _directive(name: str) -> str:
    value = getattr(ndvit, name)
    if not isinstance(value, type):
        return f"\n```{{eval-rst}}\n.. autofunction:: ndvit.{name}\n```\n"
    members = "" if name in BARE else "   :members:\n"
    return f"\n```{{eval-rst}}\n.. autoclass:: ndvit.{name}\n{members}```\n"


# -- Command line ----------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and flags, by cyclopts from the same docstrings as `--help`."""
    text = ""
    for name in app:
        if name.startswith("-"):
            continue
        page = app[name].generate_docs(output_format="markdown", heading_level=2)
        page = re.sub(r"^#+ .*\n", f"## ndvit {name}\n", page, count=1)
        page = page.replace(f"```console\n{name} ", f"```console\nndvit {name} ")
        page = re.sub(r"^\* `(.*?)`: ", _flag, page, flags=re.M)
        text += f"\n{page}\n"
    return text


def _flag(found: re.Match[str]) -> str:
    """A flag without `--empty-...` and the upper-case type that cyclopts adds."""
    names = [part for part in found[1].split(", ") if not part.startswith("--empty-")]
    return f"* `{', '.join(names)}`: "


# -- Options ---------------------------------------------------------------------------------------------------------


def options() -> str:
    """Every field of the classes of options, by group."""
    kinds: list[tuple[str, type[Options], str]] = [
        ("Reading data", ReadingOptions, "Fields of `ReadingOptions`: how a source is read and split."),
        ("Network", ViTConfig, "Fields of `ndvit.ViTConfig`: everything that describes a Vision Transformer."),
        ("Solved networks", SolvedOptions, "Networks that are solved in closed form, beside the Vision Transformer."),
        ("Recipe", Recipe, "Fields of `ndvit.Recipe`: how a network is trained."),
        ("Pretraining", PretrainingOptions, "Fields of `PretrainingOptions`, of `ndvit pretrain`."),
        ("Serving", ServingOptions, "Fields of `ServingOptions`, of `ndvit serve`."),
    ]
    text = ""
    for title, cls, about in kinds:
        text += f"\n## {title}\n\n{about}\n"
        docs, hints = field_docs(cls), get_type_hints(cls, include_extras=True)
        defaults = {field.name: field.default for field in fields(cls)}
        for group in option_groups(cls):
            heading = str(getdoc(group)).splitlines()[0].rstrip(".").removeprefix("Data: ")
            text += f"\n### {title}: {heading[0].lower() + heading[1:]}\n\n" if heading != title else "\n"
            text += "{.ndvit}\n"
            for name in get_annotations(group):
                flag = "" if name in DERIVED else f" · `--{name.replace('_', '-')}`"
                text += f"`{name}`{flag} · {_kind(hints[name])} · default {_default(defaults[name])}\n"
                text += f": {escape(docs[name])}\n\n"
    return text


def _default(value: Any) -> str:
    if value is MISSING or value is None:
        return "as described"
    return f"`{value!r}`"


def _kind(hint: Any) -> str:
    """A type with its bounds, in words."""
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    if hasattr(hint, "__metadata__"):
        bounds = [b for b in hint.__metadata__ if not isinstance(b, Cap)]
        signs = [f"{sign} {getattr(b, name)}" for b in bounds for name, sign in words.items() if hasattr(b, name)]
        texts = [b.documentation for b in bounds if hasattr(b, "documentation")]
        return texts[0] if texts else " ".join([_kind(hint.__origin__), ", ".join(signs)]).strip()
    arguments = get_args(hint)
    if str(get_origin(hint)) == "typing.Literal":
        return " or ".join(f"`{choice}`" for choice in arguments)
    if get_origin(hint) is tuple:
        return f"tuple of {_kind(arguments[0])}"
    if arguments:
        return " or ".join(_kind(argument) for argument in arguments)
    return "none" if hint is type(None) else f"{getattr(hint, '__name__', hint)}"


# -- Tables ----------------------------------------------------------------------------------------------------------


def presets() -> str:
    """Every preset: purpose, source, rules, and the values that differ from the defaults."""
    text = f"\n## auto\n\n{AUTO[0].upper() + AUTO[1:]}\n"
    docs = field_docs(ViTConfig) | field_docs(Recipe) | field_docs(PretrainingOptions)
    for title, table in (("", PRESETS), (" (pretraining)", PRETRAINING)):
        for name, preset in table.items():
            about = preset.about
            text += f"\n## {name}{title}\n\n{about[0].upper() + about[1:]}.\n\n"
            text += f"- source: {getattr(preset, 'source', '') or 'measured by ndvit'}\n"
            text += f"- network: {_code(preset.model) if preset.model else 'that of the trained weights'}\n"
            text += "".join(f"- {rule}\n" for rule in (preset.rules() if hasattr(preset, "rules") else ()))
            values = {**preset.network, **preset.recipe}
            if values:
                text += "\n| option | value | meaning |\n|---|---|---|\n"
                for field, value in values.items():
                    meaning = re.split(r"[.;](?: |$)(?![^(]*\))", docs[field])[0]
                    written = f"{value:.6g}" if isinstance(value, float) else str(value)
                    text += f"| `{field}` | {_code(written)} | {escape(meaning)} |\n"
    return text


def _code(text: str) -> str:
    return f"`{text}`"


def models() -> str:
    """The named models: input, parameters, multiply-adds."""
    from ndvit.network import count_cost

    text = "| name | input | patch | parameters | GMACs |\n|---|---|---|---:|---:|\n"
    for name in list_models():
        config = named_config(name)
        parameters, macs = count_cost(config)
        size, patch = ("×".join(map(str, values)) for values in (config.input_size, config.patch_size))
        text += f"| `{name}` | {config.in_channels} × {size} | {patch} | {parameters:,} | {macs / 1e9:.3f} |\n"
    return text


def published() -> str:
    """The published weights: input, accuracy, classes, licence."""
    from ndvit.weights.reading.zoo import find_weights, list_weights

    text = "| name | input | top-1, % | classes | licence |\n|---|---|---:|---|---|\n"
    for row in filter(None, map(find_weights, list_weights())):
        size, top1 = "×".join(map(str, row.input_size)), f"{row.top1:.1f}" if row.top1 else "–"
        text += f"| `{row.name}` | {size} | {top1} | {row.classes or '–'} | {row.licence} |\n"
    return text


# -- Messages --------------------------------------------------------------------------------------------------------


def messages() -> str:
    """Every error and warning of the code, by room, with the function that raises it."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        where = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for kind, text in _raised(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(room, {}).setdefault(text, []).append(f"{kind} in `{where}`")
    text = ""
    for room, table in found.items():
        if room.startswith("_"):
            continue
        text += f"\n## {TITLES.get(room, room)}\n\n"
        for message, places in table.items():
            text += f"- {escape(message)} — {places[0]}\n"
    return text


KINDS = {
    "ValueError": "error",
    "FileExistsError": "error",
    "FileNotFoundError": "error",
    "TypeError": "error",
    "ImportError": "error",
    "Doubt": "warning",
    "warn": "warning",
}


def _raised(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Kind and text of every message: of errors, doubts and warnings, and of functions that return such texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            kind, least = KINDS.get(name, ""), 4
            text = _template(node.args[0])
        elif isinstance(node, ast.Return) and node.value is not None:
            kind, least = "part of a message", 9
            text = _template(node.value)
        else:
            continue
        if kind and text and len(re.findall(r"[a-z]{2,}", text)) >= least:
            yield kind, text


def _template(node: ast.expr) -> str:
    """The text of a message, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + (_template(node.right) or "…")
    return ""


def escape(text: str) -> str:
    """Text as Markdown."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    return re.sub(r"([*_<>\[\]#|`$])", r"\\\1", text)


# -- Packages --------------------------------------------------------------------------------------------------------

FOR = {
    "export": "ONNX, OpenVINO, 8-bit integers",
    "check": "suspected label errors (`ndvit check --labels`)",
    "serve": "`ndvit serve`",
    "bench": "the libraries of the benchmarks",
    "datasets": "data sets of the Hugging Face hub",
    "explain": "integrated gradients and occlusion",
    "lora": "low-rank adapters",
    "parquet": "`.parquet` tables",
    "stream": "data larger than a disk, and prepared shards",
    "hdf5": "`.h5` files and MATLAB 7.3",
    "edf": "`.edf` and `.bdf` recordings",
    "tables": "tables and recordings: Parquet, HDF5, EDF",
    "track": "TensorBoard and Weights & Biases",
    "docs": "building this site",
    "dev": "tests and tools of developers",
}


def extras() -> str:
    """The optional dependencies of pyproject.toml."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "| extra | for | packages |\n|---|---|---|\n"
    for name, packages in project["optional-dependencies"].items():
        names = ", ".join(re.split(r"[<>=\[]", package)[0] for package in packages)
        text += f"| `{name}` | {FOR.get(name, '')} | {names} |\n"
    return text
