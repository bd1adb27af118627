"""The model file: one .safetensors file with the tensors, and in its header everything else as JSON.

Format 3 has the entries of `model_metadata`, and a checksum of the tensors. Formats 1 (a transformer, with or without
random convolutions) and 2 (an ensemble of those) have config, classes and members in place of network and task; they
are read as format 3.
"""

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ndvit.config import ViTConfig, split_legacy
from ndvit.config.bounds import brief
from ndvit.data.preprocess import preprocess_from_dict
from ndvit.data.preprocess.base import Preprocess, short
from ndvit.files import replace_file
from ndvit.parts import ModelParts
from ndvit.tasks.base import Task, task_from_dict, task_to_dict
from ndvit.weights.errors import some
from ndvit.weights.structure import (
    Structure,
    below,
    check_structure,
    configs_in,
    inputs_of,
    networks_in,
    outputs_of,
    structure_of,
)

FORMAT = "3"
MODEL_FILE = "model.safetensors"
_ENTRIES = ("task", "network", "preprocess", "provenance", "untrained", "temperature")
_OLD_ENTRIES = ("config", "classes", "members", "preprocess", "provenance", "untrained", "temperature")
_BESIDE = {"ndvit", "crc32", "format"}  # entries of a header that describe no model; other libraries write "format"
_ENTRY_BYTES = 10_000_000  # of one entry of a header; the classes of ImageNet-21k take 1 MB
_FACTS: dict[str, Any] = {  # types of the provenance that is read again; the rest is only printed
    "source": str | None,
    "test_fraction": int | float,
    "seed": int,
    "steps": int,
    "members": int,
    "member": int,
    "test_accuracy": int | float,
    "licence": str | None,
    "model": str | None,
    "weights": str | None,
    "estimator": dict,
}


@dataclass(kw_only=True)
class Checkpoint:
    """Weights that were read from a source, before a network is built for them."""

    layout: str  # of the source: "ndvit", "timm", "google", ...
    structure: Structure  # of the network that the tensors belong to, see `weights.structure`
    tensors: dict[str, Tensor]  # by their names in the state dict of that network; empty for an exported graph
    source: str = ""  # its name in messages and reports
    task: Task | None = None  # meaning of the outputs; None if unknown
    preprocess: Preprocess | None = None  # None if unknown
    provenance: dict[str, Any] = field(default_factory=dict)  # facts about the training
    untrained: tuple[str, ...] = ()  # names of tensors that are not trained
    temperature: float = 1.0  # the outputs are divided by it before the task's activation
    ignored: dict[str, str] = field(default_factory=dict)  # tensors that the network does not use, and why
    assumed: dict[str, str] = field(default_factory=dict)  # by the name of an assumed field, a line on how to set it
    notes: tuple[str, ...] = ()  # what else was changed or left out while reading
    lost_head: str = ""  # why the head of the source cannot be used; the network has none then
    no_task: str = ""  # why the outputs belong to no task of ndvit
    random_features: int = 0  # random convolution features beside the transformer in its source, see `transformers`

    @classmethod
    def from_model(cls, model: ModelParts, source: str = "a model in memory") -> "Checkpoint":
        """A model in memory as a checkpoint, to adapt it or to train it further."""
        return cls(
            layout="ndvit",
            structure=structure_of(model.network),
            tensors={name: tensor.detach().cpu() for name, tensor in model.network.state_dict().items()},
            source=source,
            task=model.task,
            preprocess=model.preprocess,
            provenance=dict(model.provenance),
            untrained=tuple(model.untrained),
            temperature=model.temperature,
        )

    @property
    def config(self) -> ViTConfig:
        """The config of the first transformer.

        Raises:
            ValueError: if there is none.
        """
        self.check_transformer()
        return configs_in(self.structure)[0]

    def check_transformer(self) -> None:
        """Raise a ValueError if nothing inside was trained by descent."""
        if not configs_in(self.structure):
            raise ValueError(
                f"{self.source} holds random convolutions and a frozen encoder at most, and no Vision Transformer that "
                "was trained: train it again with --preset signal (preset='signal'), which trains one"
            )

    def transformers(self) -> list["Checkpoint"]:
        """Each transformer inside as a checkpoint of its own, without the solved networks beside it.

        Random convolutions are counted in `random_features`. Members have the temperature 1, as theirs belongs to the
        whole network.
        """
        found: list[Checkpoint] = []
        for prefix, part in networks_in(self.structure):
            if part["kind"] == "random_convolutions" and found:
                found[-1].random_features = part["features"]
            elif part["kind"] == "vit":
                tensors, untrained = below(self.tensors, prefix), tuple(below(dict.fromkeys(self.untrained), prefix))
                temperature = 1.0 if prefix else self.temperature
                found.append(
                    replace(self, structure=part, tensors=tensors, untrained=untrained, temperature=temperature)
                )
        return found


def write_model(model: ModelParts, path: str | Path) -> None:
    """Write a model to one file, whole or not at all. The file holds tensors and JSON: nothing in it can run.

    Raises:
        ValueError: if the temperature is not a positive number, or the network is an exported graph.
    """
    metadata = model_metadata(model)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.network.state_dict().items()}
    header = {"ndvit": FORMAT, "crc32": checksum(tensors), **{name: json.dumps(metadata[name]) for name in _ENTRIES}}
    replace_file(Path(path), save(tensors, metadata=header))


def model_metadata(model: ModelParts) -> dict[str, Any]:
    """Everything about a model except its tensors, as values for JSON; `checkpoint_from_metadata` reads them.

    Raises:
        ValueError: as for `write_model`.
    """
    structure = structure_of(model.network)
    preprocess = None if model.preprocess is None else model.preprocess.to_dict()
    if preprocess is not None and tuple(preprocess["size"]) == inputs_of(structure)[1]:
        del preprocess["size"]  # stored once, in the network
    return {
        "ndvit": FORMAT,
        "task": None if model.task is None else task_to_dict(model.task),
        "network": structure,
        "preprocess": preprocess,
        "provenance": dict(model.provenance),
        "untrained": list(model.untrained),
        "temperature": check_temperature(model.temperature),
    }


def checkpoint_from_header(path: Path, header: Mapping[str, str], tensors: dict[str, Tensor]) -> Checkpoint:
    """Read the header of a model file of any format.

    Raises:
        ValueError: if the format is newer than this ndvit, the header does not describe a model, or the tensors are not
            those that were written. Files of earlier versions have no checksum.
    """
    _check_format(header["ndvit"], path)
    with header_errors(path):
        for name, text in header.items():
            if len(text) > _ENTRY_BYTES:
                raise ValueError(f"{brief(name)} has {len(text):,} letters, at most {_ENTRY_BYTES:,} are read")
        metadata = {name: json.loads(text) for name, text in header.items() if name not in _BESIDE}
    checkpoint = checkpoint_from_metadata(metadata | {"ndvit": header["ndvit"]}, path, tensors)
    if "crc32" in header and header["crc32"] != checksum(tensors):
        raise ValueError(
            f"{path} is damaged: its tensors do not have their checksum. Copy or download it again; if you have "
            "changed them on purpose, write the file without the entry crc32 of its header"
        )
    return checkpoint


def checkpoint_from_metadata(
    metadata: Mapping[str, Any], where: object, tensors: dict[str, Tensor] | None = None
) -> Checkpoint:
    """Read what `model_metadata` returned, in this version or an earlier one; an exported graph has no tensors.

    Raises:
        ValueError: as for `checkpoint_from_header`.
    """
    version = metadata.get("ndvit", "1")  # exports of formats 1 and 2 do not name it
    _check_format(version, where)
    with header_errors(where):
        _check_entries(metadata, _ENTRIES if version == FORMAT else _OLD_ENTRIES)
        if version != FORMAT:
            metadata, tensors = _upgrade(metadata, tensors)
        structure = check_structure(metadata["network"])
        task = None if metadata["task"] is None else task_from_dict(metadata["task"])
        if task is not None and task.num_outputs != outputs_of(structure):
            raise ValueError(f"the task has {task.num_outputs} outputs, the network {outputs_of(structure)}")
        preprocess = metadata["preprocess"]
        if preprocess is not None:
            channels, size = inputs_of(structure)
            preprocess = preprocess_from_dict({"size": list(size), **preprocess})
            if (preprocess.channels, preprocess.size) != (channels, size):
                raise ValueError(
                    f"its preprocessing makes {preprocess.channels} channels of {short(preprocess.size)}, and its "
                    f"network reads {channels} of {short(size)}"
                )
        return Checkpoint(
            layout="ndvit",
            structure=structure,
            tensors=tensors or {},
            task=task,
            preprocess=preprocess,
            provenance=_check_provenance(metadata["provenance"]),
            untrained=_check_untrained(metadata.get("untrained", [])),
            temperature=check_temperature(metadata.get("temperature", 1)),
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """The CRC-32 of names, types, shapes and values of tensors, as 8 hexadecimal digits."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _check_format(version: Any, where: object) -> None:
    if version not in ("1", "2", FORMAT):
        raise ValueError(f"{where} has file format {str(version)[:20]}, this ndvit reads 1 to {FORMAT}: update ndvit")


def _check_entries(metadata: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse entries that this format does not have, which somebody may take for those that are read."""
    if unknown := sorted(metadata.keys() - {*known, *_BESIDE}):
        raise ValueError(f"this format has no {some(unknown)}, it has {', '.join(known)}: write the file by ndvit")


def _check_numbers(value: Any) -> None:
    """Refuse NaN and infinity, which Python reads although they are no JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it has the number {value}, expected finite numbers")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(inner)


def _check_provenance(values: Any) -> dict[str, Any]:
    _check_numbers(values)
    if not isinstance(values, dict):
        raise ValueError(f"the provenance is a {type(values).__name__}, expected an object of facts")
    for name, kind in _FACTS.items():
        value = values.get(name)
        if name in values and (not isinstance(value, kind) or isinstance(value, bool)):
            expected = str(getattr(kind, "__name__", kind)).replace(" | None", "")
            raise ValueError(f"the provenance has {brief(value)} as {name}, expected {expected}")
    return values


def _check_untrained(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"untrained is a list of names of tensors, got {brief(names)}")
    return tuple(names)


@contextmanager
def header_errors(where: object) -> Iterator[None]:
    """Report any error that the values of a header cause as one ValueError with the name of the file."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: the header does not describe a model: {reason}") from error


def _upgrade(old: Mapping[str, Any], tensors: dict[str, Tensor] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of formats 1 and 2 in terms of format 3."""
    values, options = split_legacy(dict(old["config"]))
    config, features = ViTConfig.from_dict(values), options.get("rocket_features", 0)
    network: Structure = {"kind": "vit", "config": config.to_dict()}
    paired = bool(features and config.num_classes)
    if paired:
        sizes = {"channels": config.in_channels, "length": config.input_size[0], "features": features}
        random, weight = {"kind": "random_convolutions", **sizes}, options.get("rocket_weight", 0.5)
        members = [network, random | {"outputs": config.num_classes}]
        network = {"kind": "committee", "combine": "outputs", "weights": [1 - weight, weight], "members": members}
    count = old.get("members") if old.get("ndvit") == "2" else None
    if count is not None:
        if type(count) is not int or not 1 <= count <= len(tensors or ()):
            raise ValueError(f"it has {str(count)[:20]} members and {len(tensors or ())} tensors")
        weights = [1 / count] * count
        network = {"kind": "committee", "combine": "probabilities", "weights": weights, "members": [network] * count}

    def rename(name: str) -> str:
        match = re.match(r"members\.\d+\.", name) if count is not None else None
        start, rest = (match[0], name[match.end() :]) if match else ("", name)
        part = f"members.{int(rest.startswith('rocket.'))}." if paired else ""
        return start + part + rest.removeprefix("rocket.")

    return {
        "network": network,
        "task": {"name": "classification", "classes": old["classes"]} if old["classes"] else None,
        "preprocess": old["preprocess"],
        "provenance": old["provenance"],
        "untrained": [rename(name) for name in _check_untrained(old.get("untrained", []))],
        "temperature": old.get("temperature", 1),
    }, {rename(name): tensor for name, tensor in (tensors or {}).items()}


def check_temperature(value: object) -> float:
    """A temperature that outputs can be divided by without overflow.

    Raises:
        ValueError: for anything but a number from 0.001 to 1000.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-3 <= value <= 1e3:  # NaN is neither
        raise ValueError(
            f"temperature must be a finite number above 0, from 0.001 to 1000, got {brief(value)}: "
            "1 leaves outputs unchanged"
        )
    return float(value)


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a file with those of its network.

    Raises:
        ValueError: if names, shapes or kinds of numbers differ, with both sides.
    """
    problems = []
    for title, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {title} ({some(sorted(names))})")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, the config needs {tuple(expected[name].shape)}")
    if problems:
        raise ValueError(f"{path}: tensors do not fit the config: {'; '.join(problems)}")
    wrong = [
        f"{name} ({found[name].dtype})"
        for name, tensor in expected.items()
        if tensor.is_floating_point() != found[name].is_floating_point()
    ]
    if wrong:
        raise ValueError(f"{path}: weights must be floating-point numbers, got {', '.join(wrong[:4])}")
