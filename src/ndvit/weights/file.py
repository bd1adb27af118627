"""One model is one .safetensors file: tensors, and in its header the config, the classes and the preprocessing."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ndvit.config import ViTConfig
from ndvit.data.preprocess.base import Preprocess, preprocess_from_dict
from ndvit.files import replace_file
from ndvit.network.committee import MEMBERS, Ensemble, Model, member_name
from ndvit.weights.errors import some

# Of the header, of a network and of an ensemble; raised when an older reader could not make sense of a newer file.
FORMAT, ENSEMBLE_FORMAT = "1", "2"
MODEL_FILE = "model.safetensors"


def save_model(model: Model, path: str | Path) -> None:
    """Write a network or an ensemble with config, `classes`, `preprocess`, `provenance` and so on into one file.

    The file appears whole or not at all. It holds plain tensors and JSON: nothing in it can run.

    Raises:
        ValueError: if the temperature cannot divide logits.
    """
    path = Path(path)
    header = {"ndvit": FORMAT}
    if isinstance(model, Ensemble):
        header = {"ndvit": ENSEMBLE_FORMAT, "members": str(len(model.members))}
    told = facts(model)
    if told["temperature"] == 1:  # without it, files are as they always were
        del told["temperature"]
    header |= {name: json.dumps(value) for name, value in told.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    replace_file(path, save(tensors, metadata=header))


def facts(model: Model) -> dict[str, Any]:
    """All that is known of a model beside its tensors, as JSON can hold it; `describe` reads it back.

    Raises:
        ValueError: if the temperature cannot divide logits.
    """
    return {
        "config": model.config.to_dict(),
        "classes": list(model.classes),
        "preprocess": None if model.preprocess is None else model.preprocess.to_dict(),
        "provenance": dict(model.provenance),
        "untrained": list(model.untrained),
        "temperature": _checked_temperature(model.temperature),
    }


_MEMBER = re.compile(rf"{re.escape(MEMBERS)}(0|[1-9][0-9]{{0,8}})\.(.+)")  # a number and the tensor's own name


@dataclass(kw_only=True)
class Described:
    """A model as its file describes it: tensors under our names, the config they fit, and what else is known.

    Of an ensemble it has the tensors of all members, under the names of `member_name`.
    """

    kind: str
    config: ViTConfig
    tensors: dict[str, Tensor]
    source: str = ""
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    temperature: float = 1.0
    ignored: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def members(self) -> list["Described"]:
        """The networks of an ensemble, each by itself; none of a network alone."""
        parts: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if match := _MEMBER.fullmatch(name):
                parts.setdefault(int(match[1]), {})[match[2]] = tensor
        untrained = set(self.untrained)
        told = {name: value for name, value in self.provenance.items() if name not in ("members", "test_accuracy")}
        return [
            replace(
                self,
                tensors=parts[i],
                untrained=tuple(name for name in parts[i] if member_name(i, name) in untrained),
                provenance=told | {"member": i},
                temperature=1.0,  # the file's is of their mean
            )
            for i in sorted(parts)
        ]


def describe(path: Path, header: Mapping[str, str], tensors: dict[str, Tensor]) -> Described:
    """Read the header that `save_model` wrote.

    Raises:
        ValueError: if it is of another version, or does not describe a model.
    """
    if header["ndvit"] not in (FORMAT, ENSEMBLE_FORMAT):
        known = f"{FORMAT} and {ENSEMBLE_FORMAT}"
        raise ValueError(f"{path} has file format {header['ndvit']}, this ndvit reads {known}: update ndvit")
    try:
        if header["ndvit"] == ENSEMBLE_FORMAT:
            _check_members(header.get("members", ""), tensors)
        elif any(map(_MEMBER.fullmatch, tensors)):
            raise ValueError("it is of a network alone, and has tensors of members of an ensemble")
        parts = {name: json.loads(header[name]) for name in ("config", "classes", "preprocess", "provenance")}
        described = Described(
            kind="ndvit",
            config=ViTConfig.from_dict(parts["config"]),
            tensors=tensors,
            classes=tuple(map(str, parts["classes"])),
            preprocess=None if parts["preprocess"] is None else preprocess_from_dict(parts["preprocess"]),
            provenance=dict(parts["provenance"]),
            untrained=tuple(map(str, json.loads(header.get("untrained", "[]")))),
            temperature=_checked_temperature(json.loads(header.get("temperature", "1"))),
        )
        if described.classes and len(described.classes) != described.config.num_classes:
            raise ValueError(f"{len(described.classes)} classes for {described.config.num_classes} outputs")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header does not describe a model: {error}") from error
    return described


def _checked_temperature(value: object) -> float:
    """A temperature that logits can be divided by without overflow: not just finite and above 0, but far from both."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-3 <= value <= 1e3:  # NaN is neither
        raise ValueError(
            f"temperature must be a finite number above 0, from 0.001 to 1000, got {str(value)[:20]}: "
            "1 leaves probabilities as they are"
        )
    return float(value)


def _check_members(said: str, names: Iterable[str]) -> None:
    """Compare the number of members that a header gives, and it may be anything, with the tensors."""
    matches = {name: _MEMBER.fullmatch(name) for name in names}
    if alone := sorted(name for name, match in matches.items() if match is None):
        raise ValueError(f"{len(alone)} tensors are of no member of the ensemble ({some(alone)})")
    found = sorted({int(match[1]) for match in matches.values() if match})
    if said != str(len(found)) or found != list(range(len(found))):
        raise ValueError(f"it says {said[:20]!r} members, and there are tensors of {some(list(map(str, found)))}")


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
