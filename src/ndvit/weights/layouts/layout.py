"""What a layout of checkpoints is, and how a checkpoint is brought from its names to ours.

Our names are timm's. A row of a table is (ours, theirs, theirs in another version, ...): a module or a bare tensor. In
a block, names are relative to the block. `name[i]` is the i-th part of a tensor of ours that they keep in pieces,
joined along its first axis: a fused qkv, a gated fc1. Read backwards, the same tables write files for other libraries.
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
    """One layout: what marks it, its table, and what its files usually mean where their tensors cannot tell.

    `marks` are patterns of names that must be there, `absent` of names that must not. `without_bias` are modules of
    ours that may lack their bias here; it is zero then.
    """

    name: str
    marks: tuple[str, ...]
    absent: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    top: Rows = ()
    blocks: tuple[str, ...] = ("blocks.{}.",)
    inner: Rows = ()
    ignore: tuple[tuple[str, str], ...] = ()
    usual: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] | None = None
    without_bias: tuple[str, ...] = ()
    prepare: Callable[[Tensors], Tensors] = dict
    finish: Callable[[Tensors], Tensors] = dict

    def matches(self, names: Iterable[str]) -> bool:
        """Whether these are names of this layout."""

        def there(pattern: str) -> bool:
            return any(re.fullmatch(pattern, name) for name in names)

        return all(map(there, self.marks)) and not any(map(there, self.absent))


@dataclass(frozen=True)
class Converted:
    """A checkpoint under our names, and what its layout says of the network."""

    format: Format
    tensors: Tensors
    ignored: dict[str, str]
    certain: dict[str, Any]
    notes: tuple[str, ...] = ()


def convert(tensors: Tensors, format: Format) -> Converted:
    """Bring a checkpoint of this layout under our names; a name without a row is kept, to be complained of later."""
    certain: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if re.search(r"Transformer/.*query/kernel$", name):  # Google keeps heads apart: (..., D, heads, head_dim)
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
    """Join `name[0]`, `name[1]`, ... along the first axis; the bias of keys, which changes nothing, may be missing.

    Where another part is missing the rest stays in pieces, to be complained of later.
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
