"""Fit tensors to another network, and record every change.

Grids are compared, not numbers of tokens. Resampling is separable, so one function of one axis serves every number of
dimensions. Patches follow FlexiViT (Beyer et al., 2023): the response of the new kernel to a resized patch is as close
as possible to that of the old kernel to the patch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ndvit.config import ViTConfig, check_field_names, reads_signals
from ndvit.data.messages import listing
from ndvit.load_report import Change
from ndvit.network import VisionTransformer
from ndvit.network.grid import linear_matrix, resample, resize_matrix
from ndvit.network.vit import HEADS
from ndvit.weights.structure import Structure, below, inputs_of, times

ChannelRule = Literal["sum", "mean", "repeat"]

# Fields that shape tensors which cannot be computed from others, or that give the same tensors another meaning.
_FIXED = [
    *("embed_dim", "num_heads", "head_dim", "mlp_ratio", "norm", "qk_norm", "pre_norm"),
    *("patch_norm", "patch_overlap", "patch_stride"),
    *("stem", "stem_depths", "stem_width", "stem_strides", "stem_kernel", "stem_dilations"),
]
_OTHER_TASK = "its outputs have another meaning"


@dataclass
class Fitted:
    """Tensors for the new network, and what was done to those of the old one."""

    tensors: dict[str, Tensor]
    adapted: list[Change] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()  # parameters of the new network that have no tensor yet
    untrained: tuple[str, ...] = ()  # these, and tensors that were not trained before

    def change(self, name: str, tensor: Tensor, how: str) -> None:
        """Replace or add a tensor; if it was changed before, the report keeps both steps."""
        before = tuple(self.tensors.get(name, tensor).shape)
        earlier = next((c for c in self.adapted if c.name == name), None)
        if earlier is not None:
            self.adapted.remove(earlier)
            before, how = earlier.before, f"{earlier.how}; {how}"
        self.adapted.append(Change(name, before, tuple(tensor.shape), how))
        self.tensors[name] = tensor

    def drop(self, names: Iterable[str], why: str) -> None:
        """Leave tensors out, for a reason."""
        for name in list(names):
            if self.tensors.pop(name, None) is not None:
                self.ignored[name] = why

    def finish(self, parameters: Iterable[str], untrained: Iterable[str]) -> None:
        """Note which parameters of the new network are new, and which tensors are not trained."""
        self.new = tuple(name for name in parameters if name not in self.tensors)
        self.untrained = (*(name for name in untrained if name in self.tensors), *self.new)

    def merge(self, part: "Fitted", was: str, becomes: str) -> None:
        """Take over a member whose names had the prefix `was` in the old network and have `becomes` in the new one."""
        self.tensors |= {becomes + name: tensor for name, tensor in part.tensors.items()}
        self.adapted += [Change(becomes + c.name, c.before, c.after, c.how) for c in part.adapted]
        self.ignored |= {was + name: why for name, why in part.ignored.items()}
        self.new += tuple(becomes + name for name in part.new)
        self.untrained += tuple(becomes + name for name in part.untrained)


@dataclass(frozen=True)
class Kept:
    """Outputs that heads keep although their task changes.

    Attributes:
        places: for each output of the new task, that of the old one with the same meaning, or None for a new one.
        names: names of the new task's outputs.
        others: names of the old task's outputs.
    """

    places: tuple[int | None, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def how(self) -> str:
        """What is kept, in words."""
        kept = [name for name, place in zip(self.names, self.places) if place is not None]
        new = [name for name, place in zip(self.names, self.places) if place is None]
        gone = [name for i, name in enumerate(self.others) if i not in self.places]
        rest = [f"new at 0 {listing(new)}", f"left out {listing(gone)}"]
        return "; ".join(
            [f"outputs by name: kept {listing(kept)}", *(r for r, there in zip(rest, (new, gone)) if there)]
        )

    def apply(self, tensors: dict[str, Tensor], heads: Iterable[str]) -> tuple[dict[str, Tensor], list[Change]]:
        """Move the rows of these tensors, (outputs, ...), to their new places; rows of new outputs are 0."""
        tensors, changes = dict(tensors), list[Change]()
        for name in heads:
            old = tensors[name]
            tensors[name] = old.new_zeros(len(self.places), *old.shape[1:])
            for row, place in zip(tensors[name], self.places):
                if place is not None:
                    row.copy_(old[place])
            changes.append(Change(name, tuple(old.shape), tuple(tensors[name].shape), self.how))
        return tensors, changes

    def finish(self, fitted: Fitted, changes: Iterable[Change]) -> None:
        """Record the changes of tensors that the new network has; with new outputs, they are not trained."""
        made = {change.name: change for change in changes if change.name in fitted.tensors}
        fitted.adapted += made.values()
        if None in self.places:
            fitted.untrained = (*(name for name in made if name not in fitted.untrained), *fitted.untrained)


@dataclass(frozen=True)
class Target:
    """What a network is adapted to."""

    overrides: Mapping[str, Any]  # fields of `ViTConfig`
    channels: ChannelRule | None = None  # how kernels are fitted to other input channels, see `fit_tensors`
    new_heads: bool = False  # whether the outputs will have another meaning, so that every head is new
    kept: Kept | None = None  # outputs that the heads keep although the task changes


def fit_structure(
    structure: Structure, tensors: dict[str, Tensor], untrained: Iterable[str], target: Target
) -> tuple[Structure | None, Fitted]:
    """Adapt every network of a structure.

    What was solved is new where the input or the outputs change, and left out where it cannot read the input or there
    are no outputs. A committee of which one member is left becomes that member.

    Returns:
        The structure of the new network, None if nothing is left of it; and its tensors.

    Raises:
        ValueError: for options that do not exist, or that the tensors cannot be fitted to.
    """
    if structure["kind"] not in ("vit", "committee"):
        return _fit_solved(structure, tensors, untrained, target)
    if structure["kind"] == "vit":
        old = ViTConfig.from_dict(structure["config"])
        new, changes = target_config(old, target.overrides), list[Change]()
        heads = [name for name in sorted(tensors, reverse=True) if name.partition(".")[0] in HEADS]
        if target.new_heads:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in heads}
        elif target.kept is not None:
            tensors, changes = target.kept.apply(tensors, heads)
            old = replace(old, num_classes=new.num_classes)
        fitted = fit_tensors(tensors, old, new, target.channels, untrained)
        if target.new_heads:
            fitted.ignored |= dict.fromkeys(heads, _OTHER_TASK)
        elif target.kept is not None:
            target.kept.finish(fitted, changes)
        return {"kind": "vit", "config": new.to_dict()}, fitted
    parts, members, weights = [], list[Structure](), list[float]()
    for i, member in enumerate(structure["members"]):
        was = f"members.{i}."
        names = below(dict.fromkeys(untrained), was)
        fitted_member, fitted = fit_structure(member, below(tensors, was), names, target)
        parts.append((fitted, was, f"members.{len(members)}."))
        if fitted_member is not None:
            members.append(fitted_member)
            weights.append(structure["weights"][i])
    alone = len(members) == 1 < len(parts)
    whole = Fitted({})
    for fitted, was, becomes in parts:
        whole.merge(fitted, was, "" if alone else becomes)
    if alone or not members:
        return (members[0] if alone else None), whole
    if len(members) < len(parts):
        weights = [weight / sum(weights) for weight in weights]
    return structure | {"weights": weights, "members": members}, whole


def _fit_solved(
    old: Structure, tensors: dict[str, Tensor], untrained: Iterable[str], target: Target
) -> tuple[Structure | None, Fitted]:
    check_field_names(ViTConfig, target.overrides)
    fitted, changes = Fitted(dict(tensors)), list[Change]()
    solved = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
    size = target.overrides.get("input_size", old["length"])
    size = tuple(size) if isinstance(size, list | tuple) else (size,)
    channels = target.overrides.get("in_channels", old["channels"])
    outputs = target.overrides.get("num_classes", old["outputs"])
    if (channels, size) != inputs_of(old):
        fitted.drop(solved, "features are chosen and solved for one input")
    elif target.kept is not None:
        fitted.tensors, changes = target.kept.apply(tensors, ("head.weight", "head.bias"))
    elif outputs != old["outputs"]:
        fitted.drop(solved, f"{old['outputs']} outputs, where {outputs} are needed")
    elif target.new_heads:
        fitted.drop(solved, _OTHER_TASK)
    if not outputs or not reads_signals(size):
        return None, fitted
    fitted.finish(("head.weight", "head.bias"), untrained)
    if target.kept is not None:
        target.kept.finish(fitted, changes)
    return old | {"channels": channels, "length": size[0], "outputs": outputs}, fitted


def target_config(old: ViTConfig, overrides: Mapping[str, Any]) -> ViTConfig:
    """The old config with overrides. An int for `input_size` is the same along every axis of the old network.

    Raises:
        ValueError: for a field that does not exist or that would need other weights.
    """
    check_field_names(ViTConfig, overrides)
    for name in _FIXED:
        wanted = overrides.get(name, getattr(old, name))
        if (tuple(wanted) if isinstance(wanted, list) else wanted) != getattr(old, name):
            raise ValueError(
                f"{name} is {getattr(old, name)} in these weights and cannot be {wanted}: the tensors would not fit, "
                "or the network would compute something else. Leave it out, or train a new network"
            )
    values = {f.name: getattr(old, f.name) for f in fields(old)} | dict(overrides)
    size = values["input_size"]
    size = tuple(size) if isinstance(size, tuple | list) else (size,) * len(old.input_size)
    values["input_size"] = size
    if "patch_size" not in overrides and 0 < len(size) != len(old.patch_size):
        # the last axes keep their patches; the patch of the first one is repeated along new axes in front
        patch = old.patch_size
        values["patch_size"] = patch[:1] * (len(size) - len(patch)) + patch[-len(size) :]
    new = ViTConfig(**values)
    other = "the network would compute something else"
    refused = {
        f"activation is {old.activation} in these weights, and {new.activation} has other tensors": (
            (new.activation == "swiglu") != (old.activation == "swiglu")
        ),
        f"layer_scale is {old.layer_scale} in these weights; with {new.layer_scale} {other}": (
            (new.layer_scale is None) != (old.layer_scale is None)
        ),
        f"the mantis stem of these weights reads {len(old.input_size)} axes, and has other layers for another number": (
            old.stem == "mantis" and len(new.input_size) != len(old.input_size)
        ),
        f"relative_bias is True in these weights; without it {other}": old.relative_bias and not new.relative_bias,
        f"in_channels is {old.in_channels} in these weights and cannot be {new.in_channels}: a stem of width "
        f"{old.stem_width} reads {new.in_channels} channels by other layers. Train a new network": (
            _input_layers(new) != _input_layers(old)
        ),
        f"these weights have {old.depth} blocks; depth={new.depth} needs more of them": new.depth > old.depth,
    }
    for message, applies in refused.items():
        if applies:
            raise ValueError(message)
    return new


def fit_tensors(
    tensors: Mapping[str, Tensor],
    old: ViTConfig,
    new: ViTConfig,
    channels: ChannelRule | None,
    untrained: Iterable[str] = (),
) -> Fitted:
    """Fit the tensors of a transformer to another config.

    Args:
        tensors: the state dict of a network of `old`.
        old: the config of the tensors.
        new: the config of the new network.
        channels: how the kernels of `old` input channels give those of `new` ones: `sum` (each is the sum of the old
            ones, divided by the number of new ones), `mean` (each is their mean) or `repeat` (the old ones in turn,
            scaled by old / new). None is sum for one new channel and repeat otherwise.
        untrained: names of tensors that were not trained before.

    Raises:
        ValueError: for an unknown rule.
    """
    if channels is not None and channels not in get_args(ChannelRule):
        raise ValueError(f"channels must be one of {', '.join(get_args(ChannelRule))}; got {channels!r}")
    # BatchNorm counts its batches in integers, which stay integers.
    fitted = Fitted({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    _fit_input(fitted, old, new, channels)
    _fit_positions(fitted, old, new)
    _fit_relative(fitted, old, new)
    _fit_tokens(fitted, old, new)
    _fit_ends(fitted, old, new)
    with torch.device("meta"):
        network = VisionTransformer(new)
    wanted = network.state_dict()
    for name, tensor in list(fitted.tensors.items()):
        if name not in wanted:
            deep = name.startswith("blocks.") and int(name.split(".")[1]) >= new.depth
            fitted.drop([name], f"depth is {new.depth}" if deep else "the new network has no such part")
        elif tensor.shape != wanted[name].shape:
            fitted.drop([name], f"has shape {tuple(tensor.shape)} where {tuple(wanted[name].shape)} is needed")
    fitted.finish(dict(network.named_parameters()), untrained)  # buffers are computed
    return fitted


def _fit_input(fitted: Fitted, old: ViTConfig, new: ViTConfig, rule: ChannelRule | None) -> None:
    """Kernels of the stem and of the patches: other numbers of axes, other patches, other channels."""
    dims, before = len(new.input_size), len(old.input_size)
    patches = "patch_embed.proj.weight"
    stem = [n for n, t in fitted.tensors.items() if n.startswith("patch_embed.backbone.") and t.ndim == before + 2]
    for name in [*stem, patches]:
        kernel = fitted.tensors[name]
        while kernel.ndim > dims + 2:
            kernel = kernel.sum(2)
        while kernel.ndim < dims + 2:
            count = kernel.shape[2]
            kernel = kernel.unsqueeze(2).expand(-1, -1, count, *[-1] * (kernel.ndim - 2)) / count
        if dims < before:
            fitted.change(name, kernel, f"{before} axes to {dims}: summed along {_first(before - dims)}")
        elif dims > before:
            fitted.change(name, kernel, f"{before} axes to {dims}: spread evenly along {_first(dims - before)} new")
    patch = tuple(fitted.tensors[patches].shape[2:])
    if patch != new.patch_kernel:
        # FlexiViT: w' with <w', resize(x)> closest to <w, x> for every x is the pseudo-inverse of the transpose
        matrices = [torch.linalg.pinv(resize_matrix(p, q).T) for p, q in zip(patch, new.patch_kernel)]
        kernel = resample(fitted.tensors[patches], matrices)
        what = "overlapping patch" if new.patch_overlap else "patch"
        how = f"{what} {times(patch)} to {times(new.patch_kernel)} by the pseudo-inverse of resizing (FlexiViT)"
        fitted.change(patches, kernel, how)
    if new.in_channels != old.in_channels:
        rule = rule or ("sum" if new.in_channels == 1 else "repeat")
        for first in (f"patch_embed.{layer}.weight" for layer in _input_layers(new)):
            kernel = fitted.tensors[first]
            if rule == "repeat":
                turns = [i % old.in_channels for i in range(new.in_channels)]
                kernel = kernel[:, turns] * old.in_channels / new.in_channels
            else:
                whole = kernel.sum(1, keepdim=True) / (new.in_channels if rule == "sum" else old.in_channels)
                kernel = whole.expand(-1, new.in_channels, *[-1] * (kernel.ndim - 2))
            fitted.change(first, kernel, f"{old.in_channels} channels to {new.in_channels} by {rule}")


def _input_layers(config: ViTConfig) -> list[str]:
    """The convolutions that read the input, by their names in `patch_embed`."""
    if config.stem == "none":
        return ["proj"]
    if config.stem == "resnet":
        return ["backbone.stem.conv"]
    if config.stem == "mantis":
        return [f"backbone.branches.{i}.conv" for i in range(1 + len(config.input_size))]
    first = "backbone.stages.0.blocks.0."
    if config.stem == "residual":
        same = config.stem_strides[0] == 1 and config.in_channels == config.stem_width
        return [first + "conv1"] + ([] if same else [first + "shortcut.conv"])
    branches = ["reduce"] if config.in_channels > config.stem_width else None
    branches = branches or [f"branches.{i}" for i in range(len(config.stem_dilations))]
    return [first + branch for branch in branches] + ["backbone.stages.0.shortcut.conv"]


def _fit_positions(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """The positions of the patches; `_fit_tokens` fits those of the prefix tokens."""
    rotations = ["rope_periods", "xpos_decay"]
    if old.pos_embed == new.pos_embed and old.pos_embed in ("rope", "xpos"):
        if len(old.input_size) != len(new.input_size):
            fitted.drop(rotations, "another number of axes has other periods; they are computed")
        elif old.rope_base != new.rope_base:
            fitted.drop(rotations[:1], f"computed from rope_base {new.rope_base:g}")
        return
    fitted.drop(rotations, f"positions are {new.pos_embed} in the new network")
    if "pos_embed" not in fitted.tensors or new.pos_embed != "learned":
        if (old.pos_embed, old.grid) != (new.pos_embed, new.grid):
            rotated = new.pos_embed in ("rope", "xpos")
            theirs = "rotations in the new network" if rotated else "computed for the new grid"
            fitted.drop(["pos_embed"], f"positions are {theirs}")
        return
    if old.grid == new.grid:
        return
    positions = fitted.tensors["pos_embed"]
    prefix, patches = positions[:, : -old.num_patches], positions[:, -old.num_patches :]
    grid, added = old.grid, len(new.grid) - len(old.grid)
    patches = patches.transpose(1, 2).unflatten(2, grid)  # (1, D, *grid)
    steps = []
    if added < 0:
        patches = patches.mean(tuple(range(2, 2 - added)))
        grid = grid[-added:]
        steps.append(f"mean along {_first(-added)}")
    elif added > 0:
        grid = (*new.grid[:added], *grid)
        patches = patches[(..., *[None] * added, *[slice(None)] * len(old.grid))].expand(-1, -1, *grid)
        steps.append(f"repeated along {_first(added)} new")
    if grid != new.grid:
        patches = resample(patches, [resize_matrix(n, m) for n, m in zip(grid, new.grid)])
        steps.append("resampled bicubically per axis")
    patches = patches.flatten(2).transpose(1, 2)
    how = f"grid {times(old.grid)} to {times(new.grid)}: {'; '.join(steps)}"
    fitted.change("pos_embed", torch.cat([prefix, patches], dim=1), how)


def _fit_relative(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """The weights of offsets between patches. They are summed over patches, so more patches have smaller weights."""
    for name in [f"blocks.{i}.attn.relative_bias" for i in range(new.depth if new.relative_bias else 0)]:
        zeros = torch.zeros(new.num_heads, math.prod(2 * n - 1 for n in new.grid))
        if name not in fitted.tensors:
            fitted.change(name, zeros, "zeros, as the weights have no relative positions")
        elif len(old.grid) != len(new.grid):
            fitted.change(name, zeros, f"zeros, as offsets along {len(old.grid)} axes are none along {len(new.grid)}")
        elif old.grid != new.grid:
            table = fitted.tensors[name].unflatten(1, [2 * n - 1 for n in old.grid])
            matrices = [linear_matrix(2 * n - 1, 2 * m - 1) for n, m in zip(old.grid, new.grid)]
            table = resample(table, matrices).flatten(1) * old.num_patches / new.num_patches
            how = f"grid {times(old.grid)} to {times(new.grid)}: offsets resampled linearly per axis"
            fitted.change(name, table, how)


def _fit_tokens(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """Class, distillation and register tokens, and their positions."""
    before, after = (
        {"cls_token": int(config.class_token), "dist_token": int(config.distilled), "reg_token": config.num_registers}
        for config in (old, new)
    )
    learned = "pos_embed" in fitted.tensors and new.pos_embed == "learned"
    rows: dict[str, Tensor] = {}  # positions of the prefix tokens
    if learned:
        positions = fitted.tensors["pos_embed"]
        patches = positions[:, -new.num_patches :]
        if old.pos_embed_prefix:
            rows = dict(zip(before, positions[:, : -new.num_patches].split(list(before.values()), dim=1)))
    for name, count in before.items():
        if count and count != after[name]:
            needed = f"{count} of them, where {after[name]} are needed"
            fitted.drop([name], needed if after[name] else "the new network has no such token")
            rows.pop(name, None)
        elif count and rows and not new.pos_embed_prefix:
            fitted.change(name, fitted.tensors[name] + rows[name], "its position was added to it")
    if not learned:
        return
    prefix = []
    for name, count in after.items() if new.pos_embed_prefix else ():
        zeros = torch.zeros(1, count, patches.shape[2], dtype=patches.dtype)
        kept = rows.get(name, zeros)
        prefix.append(kept if kept.shape[1] == count else zeros)
    positions = torch.cat([*prefix, patches], dim=1)
    if not torch.equal(positions, fitted.tensors["pos_embed"]):
        fitted.change("pos_embed", positions, "rows of the prefix tokens fitted")


def _fit_ends(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """The final norm, the heads, and biases that the old network does not have."""
    after, before = ("norm", "fc_norm") if new.pooling == "avg" else ("fc_norm", "norm")
    for leaf in ("weight", "bias"):
        if f"{after}.{leaf}" in fitted.tensors:
            moved = fitted.tensors.pop(f"{after}.{leaf}")
            fitted.change(f"{before}.{leaf}", moved, f"was {after}: the final norm changes its place")
    if new.qkv_bias and not old.qkv_bias:
        for name in (f"blocks.{i}.attn.qkv.bias" for i in range(new.depth)):
            fitted.change(name, torch.zeros(3 * new.embed_dim), "zeros, as the weights have no bias")
    why = dict[str, str]()
    if _read_by_head(old) != _read_by_head(new):
        why = dict.fromkeys(("head", "head_dist", "head_norm"), "the head would read other features than in training")
    if new.num_classes != old.num_classes:
        why |= dict.fromkeys(HEADS, f"{old.num_classes} outputs, where {new.num_classes} are needed")
    for name in list(fitted.tensors):
        if reason := why.get(name.partition(".")[0]):
            fitted.drop([name], reason)


def _read_by_head(config: ViTConfig) -> tuple[Any, ...]:
    """Features that the head reads. Token and mean count as equal, as users may correct an assumed pooling."""
    special = config.pooling if config.pooling in ("map", "stem_tokens") else ""
    return config.representation_size, config.pooled_dim, special, config.head_norm


def _first(axes: int) -> str:
    return "the first axis" if axes == 1 else f"the first {axes} axes"
