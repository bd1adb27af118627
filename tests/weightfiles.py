"""Networks written to model files and loaded again, for tests of weights."""

import json
import struct
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from ndvit.parts import ModelParts
from ndvit.tasks.classification import Classification
from ndvit.weights.building import build
from ndvit.weights.file import write_model
from ndvit.weights.opening import open_weights


class Loaded(ModelParts):
    """The parts of a model, which also have the attributes of their network."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["network"], name)

    def __call__(self, *inputs: Any) -> Any:
        return self.network(*inputs)


def as_model(network: nn.Module, classes: Any = (), **parts: Any) -> Loaded:
    """A model of a network in memory."""
    return Loaded(network, Classification(classes) if classes else None, **parts)


def save_model(model: Any, path: Path) -> None:
    """Write a model or a bare network."""
    write_model(as_model(model) if isinstance(model, nn.Module) else model, path)


def load_model(
    source: Any, device: Any = "cpu", classes: Any = None, ema: bool | None = None, **options: Any
) -> Loaded:
    """Open and build; `options` are those of `build`, and overrides."""
    own = {name: options.pop(name) for name in ("channels", "preprocess", "new_head") if name in options}
    checkpoint = open_weights(source, options, ema=ema)
    return Loaded(**vars(build(checkpoint, device, task=classes, overrides=options, **own)))


def header_of(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def rewrite(path: Path, tensors: Any = None, **header: str | None) -> None:
    """Save a file again with other tensors or other entries of the header; an entry of None is left out.

    With other tensors it has no checksum.
    """
    if tensors is not None:
        header = {"crc32": None, **header}
    new = {name: value for name, value in (header_of(path) | header).items() if value is not None}
    save_file(load_file(path) if tensors is None else tensors, path, metadata=new)
