"""Names of models, the tables of sizes behind them, and the patch that fits an input."""

import difflib
import math
import re
from typing import Any

from ndvit.config.bounds import SHORTEST_ROCKET, check_field_names, whole_numbers
from ndvit.config.network import ViTConfig, stem_stride

SIZES: dict[str, dict[str, Any]] = {
    # A size is a row. tiny to huge are the field's (ViT, DeiT); pico and nano are ours, for little data on a CPU.
    "pico": {"embed_dim": 64, "depth": 4, "num_heads": 4},
    "nano": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
SIGNAL_SIZES: dict[str, dict[str, Any]] = {
    # For signals: convolutions see the short patterns, a few wide tokens the whole, and one head reads both.
    "tiny": {"embed_dim": 96, "depth": 2, "stem_depths": (3,), "stem_width": 32},
    "small": {"embed_dim": 96, "depth": 3, "stem_depths": (3, 3), "stem_width": 32},
    "base": {"embed_dim": 192, "depth": 6, "stem_depths": (3, 3), "stem_width": 64},
}
_SIGNAL: dict[str, Any] = {
    # what they have in common; without a size from the user or the data they read 512 samples of one channel
    "input_size": (512,),
    "in_channels": 1,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "stem": "inception",
    "stem_dilations": (1, 2, 4),
    "patch_overlap": True,
    "pooling": "stem_tokens",
    "head_norm": "batch",
    "head_drop": 0.2,
    "stem_head": True,
    "rocket_features": 10_000,
}
COMPACT_SIZES: dict[str, dict[str, Any]] = {
    # For little data of two and three axes: the same idea with small kernels, without the random convolutions.
    "small": {"embed_dim": 96, "depth": 3, "stem_depths": (2, 2), "stem_width": 16},
    "base": {"embed_dim": 192, "depth": 6, "stem_depths": (3, 3), "stem_width": 32},
}
_COMPACT: dict[str, Any] = {
    "input_size": (64, 64),
    "num_heads": 4,
    "stem": "inception",
    "stem_kernel": 3,
    "stem_dilations": (1, 2),
    "stem_strides": (2, 2),
    "pooling": "stem_tokens",
    "head_norm": "batch",
    "stem_head": True,
}
_LIGHT: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    # names without dimensions whose networks have a light stem: what the sizes have in common, and the sizes
    "signal": (_SIGNAL, SIGNAL_SIZES),
    "compact": (_COMPACT, COMPACT_SIZES),
}
_NAME = re.compile(r"vit_(?P<size>[a-z]+)(?:_patch(?P<patch>[1-9]\d*)_(?P<input>[1-9]\d*))?")
_LIGHT_NAME = re.compile(r"(?P<family>signal|compact)_(?P<size>[a-z]+)")
_LISTED_INPUTS = {8: (224, 384), 14: (224, 518), 16: (224, 384), 32: (224, 384)}

# Most patch tokens along an axis when the patch is chosen from the data: 64 time steps, a 14 x 14 picture (ViT/16 at
# 224), an 8 x 8 x 8 volume. Attention costs the square of the product.
_TOKENS_PER_AXIS = {1: 64, 2: 14, 3: 8}


def list_models() -> list[str]:
    """Names that `create_model` knows.

    `vit_SIZE` has no dimensions of its own: it takes them from `input_size` or, in training, from the data.
    `signal_SIZE` and `compact_SIZE` do, too: a light stem of convolutions and few tokens, the one for signals above
    all, the other for little data of two or three axes.
    `vit_SIZE_patchP_S` is the 2-D network for S x S pictures; any P that divides S is understood, the usual are listed.
    """
    published = [s for s in SIZES if s not in ("pico", "nano")]
    return [
        *(f"vit_{size}" for size in SIZES),
        *(f"{family}_{size}" for family, (_, sizes) in _LIGHT.items() for size in sizes),
        *(
            f"vit_{size}_patch{patch}_{side}"
            for size in published
            for patch, sides in _LISTED_INPUTS.items()
            for side in sides
        ),
    ]


def named_config(name: str, **overrides: Any) -> ViTConfig:
    """The config of a named model, with any field of `ViTConfig` overridden.

    An int for `input_size` follows the name: in `vit_base_patch16_224`, a 2-D model, it is the side of a square; in
    `vit_base`, `signal_base` and `compact_base`, which have no dimensions of their own, it is a length, as in
    `ViTConfig`. A tuple is always taken as it is. Without `patch_size`, they take the one that `plan_grid` chooses for
    `input_size`, or for what a light stem leaves of it; behind a resnet stem it is 1.

    Raises:
        ValueError: for an unknown name or field (naming the nearest known), or values that make no network.
    """
    match, light = _NAME.fullmatch(name), _LIGHT_NAME.fullmatch(name)
    if match is not None and match["size"] in SIZES:
        row = SIZES[match["size"]]
    elif light is not None and light["size"] in _LIGHT[light["family"]][1]:
        common, sizes = _LIGHT[light["family"]]
        row = common | sizes[light["size"]]
    else:
        near = difflib.get_close_matches(name, list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown model {name!r}.{hint} Names are vit_SIZE or vit_SIZE_patchP_S with SIZE one of "
            f"{', '.join(SIZES)}, for example vit_tiny or vit_base_patch16_224, signal_SIZE with SIZE one of "
            f"{', '.join(SIGNAL_SIZES)}, and compact_SIZE with SIZE one of {', '.join(COMPACT_SIZES)}; `ndvit models` "
            "lists them"
        )
    check_field_names(ViTConfig, overrides)
    values = row | overrides
    if "rocket_features" not in overrides and not rocket_reads(values.get("input_size")):
        values.pop("rocket_features", None)
    if match is not None and match["input"]:
        side = values.get("input_size", int(match["input"]))
        values["input_size"] = (side, side) if isinstance(side, int) else side
        values.setdefault("patch_size", int(match["patch"]))
    elif "input_size" in values and "patch_size" not in values:
        values["patch_size"] = _plan_patch(values)
    return ViTConfig(**values)


def rocket_reads(size: Any) -> bool:
    """Whether random convolution features can be had of inputs of this size: of signals, but not of the shortest.

    What is no size at all is left for `ViTConfig` to refuse.
    """
    axes = size if isinstance(size, tuple | list) else (size,)
    return len(axes) == 1 and not (isinstance(axes[0], int) and axes[0] < SHORTEST_ROCKET)


def _plan_patch(values: dict[str, Any]) -> tuple[int, ...] | int:
    """The patch that `plan_grid` chooses for what the stem leaves of the input; 1 where that would need padding."""
    stem = values.get("stem", "none")
    size = whole_numbers("input_size", values["input_size"])
    if stem == "resnet":  # a hybrid has made patches already
        return 1
    stride = stem_stride(stem, None, values.get("stem_strides", ()))
    size = tuple(math.ceil(s / stride) for s in size)
    patch, whole = plan_grid(size, behind_stem=stem != "none")
    # nothing here pads: a length that the planned patch does not divide, as a prime one, goes by single samples
    return patch if whole == size else 1


def plan_strides(size: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """Choose the strides of a light stem's stages for inputs of this size.

    For signals: full resolution below 64 samples, half of it below 512, then as many halvings as leave at most 128
    places: convolutions cost nearly all of the time, in proportion to the places they are computed at. Patterns are
    best seen before places are left out, so the second stage makes the stride where the first can afford the full
    length (below 150), and more of the halvings than the first where they are many.

    For pictures and volumes: as many halvings as leave 16 to 31 places along the longest axis, most of them at once, as
    the cost goes with the product of the axes.
    """
    length = max(size)
    if len(size) > 1:
        halvings = max(0, math.floor(math.log2(length / 16)))
        first, second = 2 ** math.ceil(halvings / 2), 2 ** (halvings // 2)
    elif length < 64:
        first, second = 1, 1
    elif length < 150:
        first, second = 1, 2
    elif length < 512:
        first, second = 2, 1
    else:
        halvings = math.ceil(math.log2(length / 128))
        first, second = 2 ** (halvings // 2), 2 ** math.ceil(halvings / 2)
    return (first * second,) if stages == 1 else (first, second, *[1] * (stages - 2))


def plan_grid(
    size: tuple[int, ...], patch_size: tuple[int, ...] | int | None = None, behind_stem: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose a patch for inputs of this size and round the size up to whole patches.

    The patch is the smallest that keeps the grid within 64 (1-D), 14 x 14 (2-D) or 8 x 8 x 8 (3-D) tokens, or up to
    half as large again where that divides the size and so needs no padding. It has two samples along an axis at least,
    unless there are fewer than eight: a token of one sample has nothing to tell but its position. Behind a stem it has,
    and as the stem has seen what is near, 32 tokens are enough in 1-D.

    Args:
        size: samples or pixels along each axis.
        patch_size: the patch, if it is given already.
        behind_stem: whether the size is that of a light stem's output.

    Returns:
        The patch and the size, each along every axis.
    """
    if patch_size is None:
        most = 32 if behind_stem and len(size) == 1 else _TOKENS_PER_AXIS[len(size)]
        least = max(math.ceil(s / most) for s in size)
        least = max(least, 2 if max(size) >= 8 and not behind_stem else 1)
        exact = [p for p in range(least, least + least // 2 + 1) if all(s % min(p, s) == 0 for s in size)]
        patch_size = tuple(min(exact[0] if exact else least, s) for s in size)
    patch = whole_numbers("patch_size", patch_size)
    patch = patch * len(size) if len(patch) == 1 else patch
    if len(patch) != len(size):
        raise ValueError(f"patch_size {patch} has {len(patch)} axes but the data has {len(size)}: {size}")
    return patch, tuple(math.ceil(s / p) * p for s, p in zip(size, patch))
