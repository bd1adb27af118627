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

from ndvit.weights.errors import some
from ndvit.weights.structure import below

# Modules of our networks, in which every name must fit; and modules of training programs that may stand beside them.
_OURS = {
    "patch_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "rope_periods",
    "blocks",
    "norm_pre",
    "norm",
    "xpos_decay",
}
_OURS |= {"fc_norm", "pre_logits", "attn_pool", "head_norm", "head", "head_dist", "stem_head"}
_HEAD_NAMES = {"fc", "heads", "classifier", "linear", "cls_head"}  # of a head that replaces timm's
_SPARE = re.compile(
    r"(?i)(?!maphead).*(head|classifier|projector|predictor|prototypes|criterion|loss|metric|accuracy).*|(fc|linear|acc|auroc)[_\d]*"
)

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
    certain: Mapping[str, Any] = field(default_factory=dict)  # `ViTConfig` of every file of this layout
    preprocess: Mapping[str, Any] | None = None  # fields of `ImagePreprocess`, likewise
    signal: Mapping[str, Any] | None = None  # fields of `SignalPreprocess` of a network that reads arrays of values
    class_position: bool = False  # every file has a position for the class token; others may have none
    without_bias: tuple[str, ...] = ()  # our modules that may lack their bias; it is zero then
    prepare: Callable[[Tensors], Tensors] = dict  # applied to all tensors before names are converted
    finish: Callable[[Tensors], Tensors] = dict  # applied to all tensors afterwards

    def matches(self, names: Iterable[str]) -> bool:
        """Whether these are names of this layout."""
        return self.marked(names) and not self.refuses(names)

    def marked(self, names: Iterable[str]) -> bool:
        """Whether every mark of this layout is among the names."""
        return all(self._has(pattern, names) for pattern in self.marks)

    def refuses(self, names: Iterable[str]) -> bool:
        """Whether the names have a mark of another network that is like this layout."""
        return any(self._has(pattern, names) for pattern in self.absent)

    def _has(self, pattern: str, names: Iterable[str]) -> bool:
        prefix = f"({'|'.join(map(re.escape, self.prefixes))})?"
        whole = re.compile(f"{prefix}({pattern})")
        return any(map(whole.fullmatch, names))


@dataclass(frozen=True)
class Converted:
    """A checkpoint under our names, and the fields of `ViTConfig` that its layout makes certain."""

    format: Format
    tensors: Tensors
    ignored: dict[str, str]
    certain: dict[str, Any]
    assumed: dict[str, str] = field(default_factory=dict)  # as in `Checkpoint`
    lost_head: str = ""  # why the head cannot be used, though the file has one
    notes: tuple[str, ...] = ()


def convert(tensors: Tensors, format: Format) -> Converted:
    """Convert the names of a checkpoint.

    Of a head that is not one linear layer nothing is kept, and neither are second heads and losses. Any other name
    without a row is kept, and refused later as unexpected.
    """
    certain = dict(format.certain)
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
    out = format.finish(out)
    heads = _read_heads(out, format)
    ignored |= heads.ignored
    return Converted(format, heads.tensors, ignored, certain, heads.assumed, heads.lost, (*notes, *heads.notes))


@dataclass(frozen=True)
class _Heads:
    tensors: Tensors
    ignored: dict[str, str]
    assumed: dict[str, str]
    lost: str
    notes: list[str]


def _read_heads(tensors: Tensors, format: Format) -> _Heads:
    """Find the one linear layer of each head, and leave out what is no part of the network."""
    out, ignored, assumed, lost, notes = dict(tensors), dict[str, str](), dict[str, str](), "", list[str]()
    others = {name.partition(".")[0] for name in out if _SPARE.fullmatch(name.partition(".")[0])} - _OURS
    aliases = sorted(others & _HEAD_NAMES)
    if len(aliases) == 1 and format.prefixes == ("",) and not any(name.startswith("head.") for name in out):
        out = {re.sub(rf"^{aliases[0]}\.", "head.", name): tensor for name, tensor in out.items()}
        assumed["head"] = f"{aliases[0]} is the head of the network; set classes= or num_classes= for a new one"
        others.remove(aliases[0])
    for head in ("head", "head_dist"):
        parts = below(out, f"{head}.")
        layers = {name.rpartition(".")[0] for name in parts}
        layer = next(iter(layers), "")
        weight, bias = (f"{layer}.{leaf}".strip(".") for leaf in ("weight", "bias"))
        if len(layers) == 1 and parts.keys() == {weight, bias} and parts[weight].ndim == 2:
            out = {name: tensor for name, tensor in out.items() if not name.startswith(f"{head}.")}
            out |= {f"{head}.weight": parts[weight], f"{head}.bias": parts[bias]}
            if layer and not re.fullmatch("0+", layer):
                assumed[head] = (
                    f"{head} is the linear layer {head}.{layer}, and what comes before it has no effect in evaluation, "
                    "as dropout; set classes= or num_classes= for a new head"
                )
            elif layer:
                notes.append(f"{head} is the linear layer {head}.{layer}")
        elif parts:
            lost = f"{head} is not one linear layer with a bias: it has {some(sorted(parts))}"
    for name in list(out):
        module = name.partition(".")[0]
        if lost and module in ("head", "head_dist"):
            ignored[name] = "of a head that is not one linear layer"
            del out[name]
        elif module in others:
            ignored[name] = "beside the Vision Transformer: a loss or another head"
            del out[name]
    return _Heads(out, ignored, assumed, lost, notes)


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
