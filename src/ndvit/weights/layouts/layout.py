"""The layout of a checkpoint, and the conversion of its names to ours.

Our names are timm's. A row of a table is (ours, theirs, theirs in another version, ...), each a module or a tensor.
Names inside a block are relative to the block. `name[i]` is the i-th part of one of our tensors that the other library
stores in pieces, joined along its first axis: a fused qkv, a gated fc1. Read backwards, the same tables write files for
other libraries.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One layout."""

    name: str  # in messages and reports
    marks: tuple[str, ...]  # patterns of which every one must match a name, with or without a prefix
    absent: tuple[str, ...] = ()  # patterns of which none may match a name, likewise
    prefixes: tuple[str, ...] = ("",)  # prefixes of names, the first match is removed
    top: Rows = ()  # the table of names outside the blocks
    blocks: tuple[str, ...] = ("blocks.{}.",)  # beginnings of names in block {}
    inner: Rows = ()  # the table of names inside a block
    ignore: tuple[tuple[str, str], ...] = ()  # patterns of names that are not used, and the reasons
    usual: Mapping[str, Any] = field(default_factory=dict)  # `ViTConfig` where neither tensors nor config.json tell it
    preprocess: Mapping[str, Any] | None = None  # fields of `ImagePreprocess`, likewise
    without_bias: tuple[str, ...] = ()  # our modules that may lack their bias; it is zero then
    prepare: Callable[[Tensors], Tensors] = dict  # applied to all tensors before names are converted
    finish: Callable[[Tensors], Tensors] = dict  # applied to all tensors afterwards

    def matches(self, names: Iterable[str]) -> bool:
        """Whether these are names of this layout."""
        prefix = f"({'|'.join(map(re.escape, self.prefixes))})?"

        def found(pattern: str) -> bool:
            whole = re.compile(f"{prefix}({pattern})")
            return any(map(whole.fullmatch, names))

        return all(map(found, self.marks)) and not any(map(found, self.absent))


@dataclass(frozen=True)
class Converted:
    """A checkpoint under our names, and the fields of `ViTConfig` that its layout makes certain."""

    format: Format
    tensors: Tensors
    ignored: dict[str, str]
    certain: dict[str, Any]
    notes: tuple[str, ...] = ()


def convert(tensors: Tensors, format: Format) -> Converted:
    """Convert the names of a checkpoint. A name without a row is kept, and refused later as unexpected."""
    certain: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if re.search(r"Transformer/.*query/kernel$", name):  # heads have their own axis: (..., D, heads, head_dim)
            certain["num_heads"] = tensor.shape[-2]
    ignored, out = {}, {}
    for name, tensor in format.prepare(tensors).items():
        why = next((why for pattern, why in format.ignore if re.search(pattern, name)), None)
        if why is not None:
            ignored[name] = why
            continue
        ours = _translate(name, format)
        if ours in out:
            raise ValueError(f"{name} and another tensor of the file are both {ours} in the {format.name} layout")
        out[ours] = tensor
    out = join_parts(out)
    notes = []
    for module in format.without_bias:
        if f"{module}.weight" in out and f"{module}.bias" not in out:
            out[f"{module}.bias"] = torch.zeros(len(out[f"{module}.weight"]))
            notes.append(f"{module} has no bias in this layout: it is zero here")
    return Converted(format, format.finish(out), ignored, certain, tuple(notes))


def join_parts(tensors: Tensors) -> Tensors:
    """Join `name[0]`, `name[1]`, ... along the first axis.

    The bias of keys may be missing, as softmax cancels it. If another part is missing, the rest stays in pieces, which
    are refused later as unexpected.
    """
    out: Tensors = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\[(\d)\](.*)", name)
        if match is None:
            out[name] = tensor
        else:
            parts.setdefault(match[1] + match[3], {})[int(match[2])] = tensor
    for name, found in parts.items():
        wanted = range(3 if ".qkv" in name else 2)
        if name.endswith("attn.qkv.bias") and {0, 2} <= found.keys():
            found.setdefault(1, torch.zeros_like(found[0]))
        if all(i in found for i in wanted):
            out[name] = torch.cat([found[i] for i in wanted])
        else:
            module, _, leaf = name.rpartition(".")
            out |= {f"{module}[{i}].{leaf}": part for i, part in found.items()}
    return out


def _translate(name: str, format: Format) -> str:
    for prefix in format.prefixes:
        if not name.startswith(prefix):
            continue
        rest = name[len(prefix) :]
        for block in format.blocks:
            match = re.match(re.escape(block).replace(r"\{\}", r"(\d+)"), rest)
            if match:
                ours = _lookup(rest[match.end() :], format.inner)
                return f"blocks.{match[1]}.{ours or rest[match.end() :]}"
        ours = _lookup(rest, format.top)
        if ours is not None:
            return ours
    return name


def _lookup(name: str, rows: Rows) -> str | None:
    for ours, *theirs in rows:
        for their in theirs:
            if name == their:
                return ours
            if name.startswith(their + "."):
                return ours + name[len(their) :]
    return None
