"""Names of models, the tables of sizes behind them, and the patch that fits an input."""

import math
import re
from typing import Any, Literal

from ndvit.config.bounds import Lengths, check_field_names, checked, nearest
from ndvit.config.network import Stem, ViTConfig, stem_stride

Language = Literal["en", "zh"]
"""Languages of the words on pages: English and Chinese."""
SIZES: dict[str, dict[str, Any]] = {
    # A size is a row. tiny to huge are those of ViT and DeiT; pico and nano are ours, for little data on a CPU.
    "pico": {"embed_dim": 64, "depth": 4, "num_heads": 4},
    "nano": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
SIGNAL_SIZES: dict[str, dict[str, Any]] = {
    # For signals: convolutions read short patterns, a few wide tokens the whole, and one head reads both.
    "tiny": {"embed_dim": 96, "depth": 2, "stem_depths": (3,), "stem_width": 32},
    "small": {"embed_dim": 96, "depth": 3, "stem_depths": (3, 3), "stem_width": 32},
    "base": {"embed_dim": 192, "depth": 6, "stem_depths": (3, 3), "stem_width": 64},
}
_SIGNAL: dict[str, Any] = {
    # common to all of them; the default input is 512 samples of one channel
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
}
ENCODER_SIZES: dict[str, dict[str, Any]] = {
    # For one channel of any signal, whose features others combine: pretrained on synthetic signals, then frozen.
    "small": {"embed_dim": 128, "depth": 3},
    "base": {"embed_dim": 192, "depth": 4},
}
_ENCODER: dict[str, Any] = {
    "input_size": (256,),
    "in_channels": 1,
    "num_heads": 4,
    "mlp_ratio": 3.0,
    "stem": "difference",
    "stem_strides": (2, 4),
    "patch_size": 2,
    "patch_overlap": True,
    "patch_norm": True,
    "weight_init": "balanced",
    "num_classes": 0,
}
COMPACT_SIZES: dict[str, dict[str, Any]] = {
    # For little data of two and three axes: the same idea with small kernels.
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
_FAMILIES = {
    "vit": SIZES,
    "signal": {size: _SIGNAL | row for size, row in SIGNAL_SIZES.items()},
    "encoder": {size: _ENCODER | row for size, row in ENCODER_SIZES.items()},
    "compact": {size: _COMPACT | row for size, row in COMPACT_SIZES.items()},
}
_NAME = re.compile(
    r"(?P<family>vit|signal|encoder|compact)_(?P<size>[a-z]+)(?:_patch(?P<patch>[1-9]\d*)_(?P<input>[1-9]\d*))?"
)
_LISTED_INPUTS = {8: (224, 384), 14: (224, 518), 16: (224, 384), 32: (224, 384)}

# Most patch tokens along an axis when the patch is chosen from the data: 64 time steps, a 14 x 14 image (ViT/16 at
# 224), an 8 x 8 x 8 volume. The cost of attention grows with the square of the product.
_TOKENS_PER_AXIS = {1: 64, 2: 14, 3: 8}


def list_models() -> list[str]:
    """Names of models that `create_model` accepts.

    `vit_SIZE`, `signal_SIZE`, `encoder_SIZE` and `compact_SIZE` take their dimensions from `input_size` or, in
    training, from the data. The latter three have a light stem of convolutions and few tokens: `signal_SIZE` for
    signals, `encoder_SIZE` for pretraining on signals, `compact_SIZE` for little data of two or three axes.
    `vit_SIZE_patchP_S` is the 2-D network for S x S images; any P that divides S is accepted, the usual ones are
    listed.

    Example:
        >>> from ndvit import list_models
        >>> "vit_base_patch16_224" in list_models()
        True
    """
    published = [size for size in SIZES if size not in ("pico", "nano")]
    return [
        *(f"{family}_{size}" for family, rows in _FAMILIES.items() for size in rows),
        *(f"vit_{size}_patch{p}_{side}" for size in published for p, sides in _LISTED_INPUTS.items() for side in sides),
    ]


def named_config(name: str, **overrides: Any) -> ViTConfig:
    """The config of a named model.

    Without `patch_size`, a model whose name contains none takes the patch that `plan_grid` chooses for `input_size` (or
    for the output of a light stem); behind a resnet stem it is 1.

    Args:
        name: one of `list_models()`, or any `vit_SIZE_patchP_S`.
        **overrides: fields of `ViTConfig`. An int for `input_size` is the side of a square in `vit_SIZE_patchP_S`, and
            a length, that is one dimension, in all other models; a tuple has one size per axis.

    Raises:
        ValueError: for an unknown name or field, with the most similar known one, or values that describe no network.
    """
    match = _NAME.fullmatch(name)
    row = _FAMILIES[match["family"]].get(match["size"]) if match else None
    if match is None or row is None or (match["patch"] and match["family"] != "vit"):
        near = nearest(name, list_models())
        hint = f" Did you mean {near!r}?" if near else ""
        sizes = [f"{family}_SIZE with SIZE one of {', '.join(rows)}" for family, rows in _FAMILIES.items()]
        raise ValueError(
            f"unknown model {name!r}.{hint} Names are {sizes[0]} (or vit_SIZE_patchP_S), {', '.join(sizes[1:])}; "
            "`ndvit models` lists them"
        )
    check_field_names(ViTConfig, overrides)
    values = row | overrides
    if match["input"]:
        side = values.get("input_size", int(match["input"]))
        values["input_size"] = (side, side) if isinstance(side, int) else side
        values.setdefault("patch_size", int(match["patch"]))
    elif "input_size" in values and "patch_size" not in values:
        stem, size = values.get("stem", "none"), checked("input_size", Lengths, values["input_size"])
        patch, padded = plan_grid(size, None, stem, stem_stride(stem, None, values.get("stem_strides", ())))
        # networks do not pad: a length that the planned patch does not divide, such as a prime, has patches of 1 sample
        values["patch_size"] = patch if padded == size else 1
    return ViTConfig(**values)


def plan_strides(size: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """Choose the strides of a light stem's stages for inputs of this size.

    Signals have full resolution below 64 samples, half of it below 512, and then at most 128 positions, because the
    time for convolutions is proportional to their positions. Patterns are recognised best at full resolution: where it
    is affordable (below 150), and where there are many halvings, the second stage has more of them than the first.

    Images and volumes have 16 to 31 positions along the longest axis, with most halvings in the first stage, because
    the cost grows with the product of the axes.
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
    size: tuple[int, ...], patch_size: tuple[int, ...] | int | None = None, stem: Stem = "none", stride: int = 1
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose a patch for inputs of this size and round the size up to whole patches.

    The patch is the smallest that keeps the grid within 64 (1-D), 14 x 14 (2-D) or 8 x 8 x 8 (3-D) tokens, or up to
    half as large again if that avoids padding. It has at least two samples along an axis of eight or more, because a
    token of one sample carries little but its position. The output of a light stem already describes a neighbourhood:
    behind it, one sample is enough, and so are 32 tokens in 1-D. A resnet stem leaves one token per position.

    Args:
        size: samples or pixels along each axis of the input.
        patch_size: a fixed patch; None chooses one.
        stem: kind of stem, from whose output the patches are cut.
        stride: stride of the stem.

    Returns:
        The patch in samples of the stem's output, and the rounded size of the input, each along every axis.

    Raises:
        ValueError: for a patch that is not of whole numbers, or that has another number of axes.
    """
    output = tuple(math.ceil(s / stride) for s in size)
    if patch_size is None and stem == "resnet":
        patch_size = 1
    elif patch_size is None:
        most = 32 if stem != "none" and len(size) == 1 else _TOKENS_PER_AXIS.get(len(size), 8)
        least = max(math.ceil(s / most) for s in output)
        least = max(least, 2 if max(output) >= 8 and stem == "none" else 1)
        exact = [p for p in range(least, least + least // 2 + 1) if all(s % min(p, s) == 0 for s in output)]
        patch_size = tuple(min(exact[0] if exact else least, s) for s in output)
    patch = checked("patch_size", Lengths, patch_size)
    patch = patch * len(size) if len(patch) == 1 else patch
    if len(patch) != len(size):
        raise ValueError(f"patch_size {patch} has {len(patch)} axes but the data has {len(size)}: {size}")
    return patch, tuple(math.ceil(s / p) * p * stride for s, p in zip(output, patch))
