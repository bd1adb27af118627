"""Fit the tensors of one config to another, and say what was done to each.

Grids are compared, not numbers of tokens. Resampling is separable, so one function of one axis serves every number of
dimensions, and patches follow FlexiViT: the kernel whose response to a resized patch is closest to the old one's.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ndvit.config import ViTConfig, check_field_names, rocket_reads
from ndvit.network import VisionTransformer
from ndvit.network.grid import linear_matrix, resample, resize_matrix
from ndvit.network.vit import HEADS
from ndvit.weights.load_report import Change

ChannelRule = Literal["sum", "mean", "repeat"]

# Fields that shape tensors which cannot be made of others: a network that differs here is another network.
_FIXED = [
    *("embed_dim", "mlp_ratio", "qk_norm", "pre_norm", "patch_norm", "patch_overlap"),
    *("stem", "stem_depths", "stem_width", "stem_strides", "stem_kernel", "stem_dilations"),
]


@dataclass
class Fitted:
    """Tensors that fit the new config where the old ones could be made to, and what was done."""

    tensors: dict[str, Tensor]
    adapted: list[Change] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()

    def change(self, name: str, tensor: Tensor, how: str) -> None:
        """Put a changed tensor in the place of the old one; what was done before stays told."""
        before = tuple(self.tensors[name].shape)
        earlier = next((c for c in self.adapted if c.name == name), None)
        if earlier is not None:
            self.adapted.remove(earlier)
            before, how = earlier.before, f"{earlier.how}; {how}"
        self.adapted.append(Change(name, before, tuple(tensor.shape), how))
        self.tensors[name] = tensor

    def drop(self, name: str, why: str) -> None:
        """Take a tensor out, and say why."""
        self.ignored[name] = why
        del self.tensors[name]


def target_config(old: ViTConfig, overrides: dict[str, Any]) -> ViTConfig:
    """The config that is wanted: the old one with overrides.

    An int for `input_size` is the same along every axis that the old network has.

    Raises:
        ValueError: for a field that does not exist or that would need other weights.
    """
    check_field_names(ViTConfig, overrides)
    for name in _FIXED:
        wanted = overrides.get(name, getattr(old, name))
        if (tuple(wanted) if isinstance(wanted, list) else wanted) != getattr(old, name):
            raise ValueError(
                f"{name} is {getattr(old, name)} in these weights and cannot be made {wanted}: "
                "no tensor of theirs would fit. Leave it out, or train a new network"
            )
    values = {f.name: getattr(old, f.name) for f in fields(old)} | overrides
    size = values["input_size"]
    size = tuple(size) if isinstance(size, tuple | list) else (size,) * len(old.input_size)
    values["input_size"] = size
    if "patch_size" not in overrides and 0 < len(size) != len(old.patch_size):
        values["patch_size"] = _axes(old.patch_size, len(size))
    if "rocket_features" not in overrides and not rocket_reads(size):
        values["rocket_features"] = 0
    new = ViTConfig(**values)
    if (new.activation == "swiglu") != (old.activation == "swiglu"):
        raise ValueError(f"activation is {old.activation} in these weights, and {new.activation} has other tensors")
    if (new.layer_scale is None) != (old.layer_scale is None):
        has = "no layer scale" if old.layer_scale is None else "a layer scale in every block"
        raise ValueError(f"these weights have {has}, and would compute something else with {new.layer_scale}")
    if old.relative_bias and not new.relative_bias:
        raise ValueError("these weights have a relative_bias, and would compute something else without it")
    if _input_layers(new) != _input_layers(old):
        raise ValueError(
            f"in_channels is {old.in_channels} in these weights and cannot be made {new.in_channels}: a stem of width "
            f"{old.stem_width} reads so many by other layers. Train a new network"
        )
    if new.depth > old.depth:
        raise ValueError(f"these weights have {old.depth} blocks; depth={new.depth} would need more of them")
    return new


def fit_tensors(tensors: dict[str, Tensor], old: ViTConfig, new: ViTConfig, channels: ChannelRule | None) -> Fitted:
    """Make tensors of the old config into tensors of the new one.

    Args:
        tensors: the state dict of a network of `old`.
        old: what they are.
        new: what they shall be.
        channels: how the kernels of old input channels become those of new ones: `sum` (each has the sum of the old,
            divided by the number of the new), `mean` (each has the mean) or `repeat` (the old in turn, scaled by their
            number over the new one's). None is sum for one new channel and repeat otherwise.

    Raises:
        ValueError: for an unknown rule.
    """
    if channels is not None and channels not in get_args(ChannelRule):
        raise ValueError(f"channels must be one of {', '.join(get_args(ChannelRule))}; got {channels!r}")
    # BatchNorm counts its batches in whole numbers
    fitted = Fitted({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    _fit_input(fitted, old, new, channels)
    _fit_positions(fitted, old, new)
    _fit_relative(fitted, old, new)
    _fit_tokens(fitted, old, new)
    _fit_ends(fitted, old, new)
    with torch.device("meta"):
        network = VisionTransformer(new)
    wanted, parameters = network.state_dict(), dict(network.named_parameters())
    for name in [name for name in fitted.tensors if name not in wanted]:
        fitted.drop(name, _why_not(name, new))
    for name, like in wanted.items():
        if name in fitted.tensors and fitted.tensors[name].shape != like.shape:
            shape = tuple(fitted.tensors[name].shape)
            fitted.drop(name, f"has shape {shape} where {tuple(like.shape)} is needed")
    fitted.new = tuple(name for name in parameters if name not in fitted.tensors)  # buffers are computed
    return fitted


def _axes(sizes: tuple[int, ...], dims: int) -> tuple[int, ...]:
    """Sizes along another number of axes: the last ones stay, the first is repeated in front."""
    return (sizes[0],) * (dims - len(sizes)) + sizes[-dims:]


def _fit_input(fitted: Fitted, old: ViTConfig, new: ViTConfig, rule: ChannelRule | None) -> None:
    dims, had = len(new.input_size), len(old.input_size)
    stem = [n for n, t in fitted.tensors.items() if n.startswith("patch_embed.backbone.") and t.ndim == had + 2]
    for name in [*stem, "patch_embed.proj.weight"]:
        kernel = fitted.tensors[name]
        while kernel.ndim > dims + 2:
            kernel = kernel.sum(2)
        while kernel.ndim < dims + 2:
            count = kernel.shape[2]
            kernel = kernel.unsqueeze(2).expand(-1, -1, count, *[-1] * (kernel.ndim - 2)) / count
        if dims < had:
            fitted.change(name, kernel, f"{had} axes to {dims}: summed along {_first(had - dims)}")
        elif dims > had:
            fitted.change(name, kernel, f"{had} axes to {dims}: spread evenly along {_first(dims - had)} new")
    patch = tuple(fitted.tensors["patch_embed.proj.weight"].shape[2:])
    if patch != new.patch_kernel:
        # FlexiViT: w' with <w', resize(x)> closest to <w, x> for every x is the pseudo-inverse of the transpose
        matrices = [torch.linalg.pinv(resize_matrix(p, q).T) for p, q in zip(patch, new.patch_kernel)]
        kernel = resample(fitted.tensors["patch_embed.proj.weight"], matrices)
        what = "overlapping patch" if new.patch_overlap else "patch"
        how = f"{what} {_by(patch)} to {_by(new.patch_kernel)} by the pseudo-inverse of resizing (FlexiViT)"
        fitted.change("patch_embed.proj.weight", kernel, how)
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
    """The convolutions that read the input, by their names inside of `patch_embed`."""
    if config.stem == "none":
        return ["proj"]
    if config.stem == "resnet":
        return ["backbone.stem.conv"]
    first = "backbone.stages.0.blocks.0."
    if config.stem == "residual":
        same = config.stem_strides[0] == 1 and config.in_channels == config.stem_width
        return [first + "conv1"] + ([] if same else [first + "shortcut.conv"])
    branches = ["reduce"] if config.in_channels > config.stem_width else None
    branches = branches or [f"branches.{i}" for i in range(len(config.stem_dilations))]
    return [first + branch for branch in branches] + ["backbone.stages.0.shortcut.conv"]


def _fit_positions(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """The positions of the patches; those of the prefix tokens are seen to by `_fit_tokens`."""
    if old.pos_embed == "rope" and new.pos_embed == "rope":
        if len(old.input_size) != len(new.input_size):
            fitted.drop("rope_periods", "another number of axes has other periods; they are computed")
        elif old.rope_base != new.rope_base:
            fitted.drop("rope_periods", f"computed anew from rope_base {new.rope_base:g}")
        return
    if "pos_embed" not in fitted.tensors or new.pos_embed != "learned":
        if "pos_embed" in fitted.tensors and (old.pos_embed, old.grid) != (new.pos_embed, new.grid):
            theirs = "rotations in the new network" if new.pos_embed == "rope" else "computed for the new grid"
            fitted.drop("pos_embed", f"positions are {theirs}")
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
        matrices = [resize_matrix(n, m) for n, m in zip(grid, new.grid)]
        patches = resample(patches, matrices)
        steps.append("resampled bicubically per axis")
    patches = patches.flatten(2).transpose(1, 2)
    how = f"grid {_by(old.grid)} to {_by(new.grid)}: {'; '.join(steps)}"
    fitted.change("pos_embed", torch.cat([prefix, patches], dim=1), how)


def _fit_relative(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """The weights of the offsets between patches, which are summed over patches: more of them weigh less each."""
    for name in [f"blocks.{i}.attn.relative_bias" for i in range(new.depth if new.relative_bias else 0)]:
        zeros = torch.zeros(new.num_heads, math.prod(2 * n - 1 for n in new.grid))
        if name not in fitted.tensors:
            shape = tuple(zeros.shape)
            fitted.tensors[name] = zeros
            fitted.adapted.append(Change(name, shape, shape, "zeros, as the weights have no relative positions"))
        elif len(old.grid) != len(new.grid):
            fitted.change(name, zeros, f"zeros, as offsets along {len(old.grid)} axes are none along {len(new.grid)}")
        elif old.grid != new.grid:
            table = fitted.tensors[name].unflatten(1, [2 * n - 1 for n in old.grid])
            matrices = [linear_matrix(2 * n - 1, 2 * m - 1) for n, m in zip(old.grid, new.grid)]
            table = resample(table, matrices).flatten(1) * old.num_patches / new.num_patches
            fitted.change(name, table, f"grid {_by(old.grid)} to {_by(new.grid)}: offsets resampled linearly per axis")


def _fit_tokens(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """Class, distillation and register tokens, with the positions that belong to them."""
    had = {"cls_token": int(old.class_token), "dist_token": int(old.distilled), "reg_token": old.num_registers}
    want = {"cls_token": int(new.class_token), "dist_token": int(new.distilled), "reg_token": new.num_registers}
    learned = "pos_embed" in fitted.tensors and new.pos_embed == "learned"
    if had == want and (not learned or old.pos_embed_prefix == new.pos_embed_prefix or not any(had.values())):
        return
    rows: dict[str, Tensor] = {}
    if learned:
        positions = fitted.tensors["pos_embed"]
        patches = positions[:, -new.num_patches :]
        if old.pos_embed_prefix:
            parts = positions[:, : -new.num_patches].split(list(had.values()), dim=1)
            rows = dict(zip(had, parts))
    for name in had:
        if had[name] and not want[name]:
            fitted.drop(name, "the new network has no such token")
            rows.pop(name, None)
        elif had[name] and want[name] != had[name]:
            fitted.drop(name, f"{had[name]} of them, where {want[name]} should be")
            rows.pop(name, None)
        elif had[name] and learned and old.pos_embed_prefix and not new.pos_embed_prefix:
            fitted.change(name, fitted.tensors[name] + rows[name], "its position was added to it")
    if not learned:
        return
    prefix = []
    if new.pos_embed_prefix:
        width = patches.shape[2]
        for name, count in want.items():
            there = rows[name] if rows.get(name) is not None and rows[name].shape[1] == count else None
            prefix.append(torch.zeros(1, count, width, dtype=patches.dtype) if there is None else there)
    positions = torch.cat([*prefix, patches], dim=1)
    if not torch.equal(positions, fitted.tensors["pos_embed"]):
        fitted.change("pos_embed", positions, "rows of the prefix tokens fitted")


def _fit_ends(fitted: Fitted, old: ViTConfig, new: ViTConfig) -> None:
    """What stands behind the encoder: the final norm and the heads; and biases that were left out."""
    after, before = ("norm", "fc_norm") if new.pooling == "avg" else ("fc_norm", "norm")
    for leaf in ("weight", "bias"):
        moved = f"{after}.{leaf}"
        if moved in fitted.tensors:
            to = f"{before}.{leaf}"
            fitted.tensors[to] = fitted.tensors.pop(moved)
            shape = tuple(fitted.tensors[to].shape)
            fitted.adapted.append(Change(to, shape, shape, f"was {after}: the final norm changes its place"))
    if new.qkv_bias and not old.qkv_bias:
        for name in [f"blocks.{i}.attn.qkv.bias" for i in range(new.depth)]:
            fitted.tensors[name] = zeros = torch.zeros(3 * new.embed_dim)
            shape = tuple(zeros.shape)
            fitted.adapted.append(Change(name, shape, shape, "zeros, as the weights have no bias"))
    why = dict[str, str]()
    if _read_by_head(old) != _read_by_head(new):
        other = "the head would read other features than it was trained on"
        why = dict.fromkeys(("head", "head_dist", "head_norm"), other)
    if new.num_classes != old.num_classes:
        why |= dict.fromkeys(HEADS, f"{old.num_classes} outputs, where {new.num_classes} should be")
    if _read_by_rocket(old) != _read_by_rocket(new):
        why["rocket"] = "random convolution features are chosen and solved for one input"
    for name in [n for n in fitted.tensors if n.partition(".")[0] in why]:
        fitted.drop(name, why[name.partition(".")[0]])


def _read_by_rocket(config: ViTConfig) -> tuple[Any, ...]:
    return config.input_size, config.in_channels, config.rocket_features


def _read_by_head(config: ViTConfig) -> tuple[Any, ...]:
    """What the head reads; whether token or mean is left open, as users may state what no tensor of a file tells."""
    special = config.pooling if config.pooling in ("map", "stem_tokens") else ""
    return config.representation_size, config.pooled_dim, special, config.head_norm


def _why_not(name: str, new: ViTConfig) -> str:
    if name.startswith("blocks.") and int(name.split(".")[1]) >= new.depth:
        return f"depth is {new.depth}"
    return "the new network has no such part"


def _first(axes: int) -> str:
    return "the first axis" if axes == 1 else f"the first {axes} axes"


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
