"""One model is one .safetensors file: tensors, and in its header the config, the classes and the preprocessing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ndvit.config import ViTConfig
from ndvit.data.preprocess import Preprocess, preprocess_from_dict
from ndvit.files import replace_file
from ndvit.network import VisionTransformer
from ndvit.weights.complaints import some

FORMAT = "1"  # of the header; raised when an older reader could not make sense of a newer file
MODEL_FILE = "model.safetensors"


def save_model(model: VisionTransformer, path: str | Path) -> None:
    """Write a model with its config, `classes`, `preprocess` and `provenance` into one file.

    The file appears whole or not at all. It holds plain tensors and JSON: nothing in it can run.
    """
    path = Path(path)
    header = {
        "ndvit": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "classes": json.dumps(list(model.classes)),
        "preprocess": json.dumps(None if model.preprocess is None else model.preprocess.to_dict()),
        "provenance": json.dumps(dict(model.provenance)),
        "untrained": json.dumps(list(model.untrained)),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    replace_file(path, save(tensors, metadata=header))


@dataclass(kw_only=True)
class Described:
    """A model as its file describes it: tensors under our names, the config they fit, and what else is known."""

    kind: str
    config: ViTConfig
    tensors: dict[str, Tensor]
    source: str = ""
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    ignored: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def describe(path: Path, header: Mapping[str, str], tensors: dict[str, Tensor]) -> Described:
    """Read the header that `save_model` wrote.

    Raises:
        ValueError: if it is of another version, or does not describe a model.
    """
    if header["ndvit"] != FORMAT:
        raise ValueError(f"{path} has file format {header['ndvit']}, this ndvit reads {FORMAT}: update ndvit")
    try:
        parts = {name: json.loads(header[name]) for name in ("config", "classes", "preprocess", "provenance")}
        described = Described(
            kind="ndvit",
            config=ViTConfig.from_dict(parts["config"]),
            tensors=tensors,
            classes=tuple(map(str, parts["classes"])),
            preprocess=None if parts["preprocess"] is None else preprocess_from_dict(parts["preprocess"]),
            provenance=dict(parts["provenance"]),
            untrained=tuple(map(str, json.loads(header.get("untrained", "[]")))),
        )
        if described.classes and len(described.classes) != described.config.num_classes:
            raise ValueError(f"{len(described.classes)} classes for {described.config.num_classes} outputs")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header does not describe a model: {error}") from error
    return described


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that shows both sides where names or shapes of tensors differ."""
    problems = []
    for title, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {title} ({some(sorted(names))})")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, the config needs {tuple(expected[name].shape)}")
    if problems:
        raise ValueError(f"{path}: tensors do not fit the config: " + "; ".join(problems))
