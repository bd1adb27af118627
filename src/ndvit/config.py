"""What a Vision Transformer is made of: one frozen config, the table of sizes, and the names built from it.

Nothing here imports torch, so the command line can list, check and explain models at once.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

PositionEmbedding = Literal["learned", "sincos", "rope"]
Pooling = Literal["token", "avg", "norm_avg", "token_avg", "map"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Stem = Literal["none", "resnet"]
StemNumerics = Literal["google", "timm"]
WeightInit = Literal["article", "balanced"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that describes a Vision Transformer in any number of dimensions.

    `len(input_size)` is the number of dimensions: (time,) is a signal, (height, width) an image, (depth, height, width)
    a volume. A bare int for `input_size` is a length, that is one dimension; a bare int for `patch_size` is the same
    along every axis. (A *named 2-D model* reads an int as the side of a square, see `named_config`.)

    Raises:
        ValueError: for any value or combination that makes no network, saying how to mend it.
    """

    input_size: tuple[int, ...] = (224, 224)
    """Samples or pixels along each axis; its length is the number of dimensions. An int is a 1-D length."""
    in_channels: int = 3
    """Channels of the input: 3 for colour pictures, the number of sensors for signals."""
    patch_size: tuple[int, ...] = (16,)
    """Extent of a patch along each axis; a single number serves every axis. Must divide input_size. Behind a stem a
    patch is cut from the stem's output, so that a token stands for patch_size x stem_stride samples of the input."""
    stem: Stem = "none"
    """What stands before the patches: none, or resnet (the hybrids of the ViT paper: R50+ViT-B/16 is patch_size 1)."""
    stem_depths: tuple[int, ...] = (3, 4, 9)
    """Residual units in each stage of the resnet stem (R50's by default); none at all leaves the root convolution."""
    stem_width: int = 64
    """Channels of the resnet stem's root; a multiple of 32. Stage i gives 4 x 2^i times as many."""
    stem_numerics: StemNumerics = "google"
    """Epsilons of the resnet stem's weight standardisation and GroupNorm: google's own, or those of timm's port."""
    embed_dim: int = 768
    """Width D of a token."""
    depth: int = 12
    """Number of encoder blocks."""
    num_heads: int = 12
    """Attention heads; must divide embed_dim."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of embed_dim (of each of the two halves for swiglu)."""
    qkv_bias: bool = True
    """Whether the linear layer for queries, keys and values has a bias."""
    qk_scale: float | None = None
    """Factor on the attention logits; none means head_dim ** -0.5."""
    qk_norm: bool = False
    """LayerNorm over queries and keys of each head (ViT-22B)."""
    activation: Activation = "gelu"
    """Of the MLP: exact gelu, its tanh form (Google's checkpoints), quick_gelu (x sigmoid(1.702 x), OpenAI's CLIP), or
    swiglu (a gated MLP, as DINOv2-g)."""
    num_classes: int = 1000
    """Outputs of the head; 0 gives the pooled features themselves."""
    representation_size: int | None = None
    """Width of a linear + tanh layer before the head (`pre_logits`); none leaves it out."""
    distilled: bool = False
    """A second token with a head of its own (DeiT); training returns both outputs, evaluation their mean."""
    class_token: bool = True
    """Whether a learned token stands before the patches."""
    num_registers: int = 0
    """Register tokens after the class token ("Vision Transformers Need Registers")."""
    pos_embed: PositionEmbedding = "learned"
    """Positions: learned, fixed sines and cosines per axis (MAE), or rope (queries and keys of patches rotated by their
    place, as DINOv3; nothing is added to tokens)."""
    rope_base: float = 100.0
    """Longest over shortest period of rope, in units of which the whole axis is 2."""
    pos_embed_prefix: bool = True
    """Whether positions are added to the prefix tokens, too (not in DeiT-III and DINOv2 with registers)."""
    pooling: Pooling = "token"
    """What the head sees: the class token; the mean of the patch tokens, with the final norm after it (avg, MAE's
    fine-tuning) or before it (norm_avg, big_vision); class token and mean side by side (token_avg, DINOv2's linear
    head); or attention pooling (map, SigLIP)."""
    layer_scale: float | None = None
    """Initial value of a learned scale per channel on each residual branch (CaiT); none leaves it out."""
    patch_norm: bool = False
    """LayerNorm after the patch embedding (the article; published ViTs have none)."""
    pre_norm: bool = False
    """LayerNorm over all tokens before the first block (CLIP)."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    weight_init: WeightInit = "article"
    """Initial weights: article (linear layers std .01, tokens and positions .02), or balanced (linear layers by fan-in,
    tokens and positions as strong as patches), which learns from little data in far fewer steps."""
    drop_rate: float = 0.0
    """Dropout after the position embedding and in every projection and MLP."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; rates rise linearly from 0 over the depth."""

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        size = _whole_numbers("input_size", self.input_size)
        patch = _whole_numbers("patch_size", self.patch_size)
        if len(size) > 3:
            raise ValueError(
                f"input_size {size} has {len(size)} axes: networks of one, two or three dimensions can be built"
            )
        if len(patch) == 1:
            patch *= len(size)
        depths = self.stem_depths
        depths = _whole_numbers("stem_depths", depths) if depths not in ((), []) else ()
        if len(depths) > 4:
            raise ValueError(f"stem_depths {depths} has {len(depths)} stages: a resnet stem has at most four")
        object.__setattr__(self, "stem_depths", depths)
        object.__setattr__(self, "input_size", size)
        object.__setattr__(self, "patch_size", patch)
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        for name in ("in_channels", "embed_dim", "depth", "num_heads", "stem_width"):
            _require_whole(name, getattr(self, name), at_least=1)
        for name in ("num_classes", "num_registers"):
            _require_whole(name, getattr(self, name), at_least=0)
        if self.representation_size is not None:
            _require_whole("representation_size", self.representation_size, at_least=1)
        for name in ("mlp_ratio", "norm_eps", "qk_scale", "layer_scale", "rope_base"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name} is a probability: it must be at least 0 and below 1, got {value!r}")
        for name in ("qkv_bias", "qk_norm", "distilled", "class_token", "pos_embed_prefix", "patch_norm", "pre_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        choices = {
            "pos_embed": PositionEmbedding,
            "pooling": Pooling,
            "activation": Activation,
            "stem": Stem,
            "stem_numerics": StemNumerics,
            "weight_init": WeightInit,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")

    def _check_combinations(self) -> None:
        size, patch = self.input_size, self.patch_size
        if len(patch) != len(size):
            raise ValueError(
                f"patch_size {patch} has {len(patch)} axes but input_size {size} has {len(size)}: "
                "give one number for every axis, or a single number for all"
            )
        for axis, (s, p) in enumerate(zip(size, self.token_size)):
            if s % p:
                near = sorted({max(p, s // p * p), (s // p + 1) * p})
                behind = f" behind a stem of stride {self.stem_stride}" if self.stem != "none" else ""
                other = f", or a patch of {_divisors_near(s, p)}" if self.stem == "none" else ""
                raise ValueError(
                    f"input_size {size} is not divisible by patch_size {patch}{behind} along axis {axis} ({s} = "
                    f"{s // p} x {p} + {s % p}): use an input of {' or '.join(map(str, near))}{other}"
                )
        if self.stem != "none" and self.stem_width % 32:
            raise ValueError(f"stem_width {self.stem_width} is not a multiple of 32: GroupNorm has 32 groups")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}: "
                f"use {_divisors_near(self.embed_dim, self.num_heads)} heads"
            )
        if self.pos_embed == "sincos" and self.embed_dim % (2 * len(size)):
            raise ValueError(
                f"sin-cos positions in {len(size)} dimensions need embed_dim divisible by {2 * len(size)}, got "
                f"{self.embed_dim}: change the width or use pos_embed='learned'"
            )
        if self.pos_embed == "rope" and (self.embed_dim // self.num_heads) % (2 * len(size)):
            raise ValueError(
                f"rope in {len(size)} dimensions needs a head width divisible by {2 * len(size)}, got embed_dim "
                f"{self.embed_dim} / {self.num_heads} heads: change either or use pos_embed='learned'"
            )
        if self.distilled and self.representation_size is not None:
            raise ValueError(
                "distilled and representation_size exclude each other: the distillation head reads its token directly. "
                "Set representation_size=None or distilled=False"
            )
        if self.distilled and not (self.class_token and self.pooling == "token"):
            raise ValueError("distilled needs class_token=True and pooling='token': its two heads read two tokens")
        if self.pooling in ("token", "token_avg") and not self.class_token:
            raise ValueError(
                f"pooling={self.pooling!r} reads the class token: set class_token=True, or pooling='avg' or 'map'"
            )

    @property
    def stem_stride(self) -> int:
        """Samples of the input along each axis that one sample of the stem's output stands for."""
        return stem_stride(self.stem, self.stem_depths)

    @property
    def token_size(self) -> tuple[int, ...]:
        """Samples of the input along each axis that one patch token stands for."""
        return tuple(p * self.stem_stride for p in self.patch_size)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(s // p for s, p in zip(self.input_size, self.token_size))

    @property
    def pooled_dim(self) -> int:
        """Width of what pooling yields."""
        return 2 * self.embed_dim if self.pooling == "token_avg" else self.embed_dim

    @property
    def num_patches(self) -> int:
        """Patch tokens, that is the product of the grid."""
        return math.prod(self.grid)

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens, which stand before the patches in this order."""
        return int(self.class_token) + int(self.distilled) + self.num_registers

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of lists, numbers, strings and booleans, ready for JSON or YAML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ViTConfig":
        """The config that `to_dict` described; missing fields take their defaults.

        Raises:
            ValueError: for an unknown field, naming the nearest known one.
        """
        check_field_names(cls, values)
        return cls(**values)


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
_NAME = re.compile(r"vit_(?P<size>[a-z]+)(?:_patch(?P<patch>[1-9]\d*)_(?P<input>[1-9]\d*))?")
_LISTED_INPUTS = {8: (224, 384), 14: (224, 518), 16: (224, 384), 32: (224, 384)}

# Most patch tokens along an axis when the patch is chosen from the data: 64 time steps, a 14 x 14 picture (ViT/16 at
# 224), an 8 x 8 x 8 volume. Attention costs the square of the product.
_TOKENS_PER_AXIS = {1: 64, 2: 14, 3: 8}


def list_models() -> list[str]:
    """Names that `create_model` knows.

    `vit_SIZE` has no dimensions of its own: it takes them from `input_size` or, in training, from the data.
    `vit_SIZE_patchP_S` is the 2-D network for S x S pictures; any P that divides S is understood, the usual are listed.
    """
    published = [s for s in SIZES if s not in ("pico", "nano")]
    return [f"vit_{size}" for size in SIZES] + [
        f"vit_{size}_patch{patch}_{side}"
        for size in published
        for patch, sides in _LISTED_INPUTS.items()
        for side in sides
    ]


def named_config(name: str, **overrides: Any) -> ViTConfig:
    """The config of a named model, with any field of `ViTConfig` overridden.

    An int for `input_size` follows the name: in `vit_base_patch16_224`, a 2-D model, it is the side of a square; in
    `vit_base`, which has no dimensions of its own, it is a length, as in `ViTConfig`. A tuple is always taken as it is.
    Without `patch_size`, `vit_base` takes the one that `plan_grid` chooses for `input_size`.

    Raises:
        ValueError: for an unknown name or field (naming the nearest known), or values that make no network.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["size"] not in SIZES:
        near = difflib.get_close_matches(name, list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown model {name!r}.{hint} Names are vit_SIZE or vit_SIZE_patchP_S with SIZE one of "
            f"{', '.join(SIZES)}, for example vit_tiny or vit_base_patch16_224; `ndvit models` lists them"
        )
    check_field_names(ViTConfig, overrides)
    values = SIZES[match["size"]] | overrides
    if match["input"]:
        side = values.get("input_size", int(match["input"]))
        values["input_size"] = (side, side) if isinstance(side, int) else side
        values.setdefault("patch_size", int(match["patch"]))
    elif "input_size" in values and "patch_size" not in values:
        size = _whole_numbers("input_size", values["input_size"])
        patch, whole = plan_grid(size)
        # nothing here pads: a length that the planned patch does not divide, as a prime one, goes by single samples
        values["patch_size"] = patch if whole == size else 1
    return ViTConfig(**values)


def stem_stride(stem: Stem, depths: tuple[int, ...]) -> int:
    """Samples of the input that one sample of a stem's output stands for."""
    if stem == "none":
        return 1
    return 4 * 2 ** max(len(depths) - 1, 0)  # root and pooling halve the grid, then every stage but the first


def plan_grid(
    size: tuple[int, ...], patch_size: tuple[int, ...] | int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose a patch for inputs of this size and round the size up to whole patches.

    The patch is the smallest that keeps the grid within 64 (1-D), 14 x 14 (2-D) or 8 x 8 x 8 (3-D) tokens, or up to
    half as large again where that divides the size and so needs no padding. It has two samples along an axis at least,
    unless there are fewer than eight: a token of one sample has nothing to tell but its position.

    Args:
        size: samples or pixels along each axis.
        patch_size: the patch, if it is given already.

    Returns:
        The patch and the size, each along every axis.
    """
    if patch_size is None:
        least = max(math.ceil(s / _TOKENS_PER_AXIS[len(size)]) for s in size)
        least = max(least, 2 if max(size) >= 8 else 1)
        exact = [p for p in range(least, least + least // 2 + 1) if all(s % min(p, s) == 0 for s in size)]
        patch_size = tuple(min(exact[0] if exact else least, s) for s in size)
    patch = _whole_numbers("patch_size", patch_size)
    patch = patch * len(size) if len(patch) == 1 else patch
    if len(patch) != len(size):
        raise ValueError(f"patch_size {patch} has {len(patch)} axes but the data has {len(size)}: {size}")
    return patch, tuple(math.ceil(s / p) * p for s, p in zip(size, patch))


def check_field_names(cls: type, names: Iterable[str]) -> None:
    """Raise a ValueError that names the nearest known field for each name that `cls`, a dataclass, does not have."""
    known = [f.name for f in fields(cls)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{cls.__name__} has no field {name!r}: {hint}")


def unwrap_numbers(config: Any) -> None:
    """Turn numpy's scalars among the fields of a frozen dataclass into Python's, which JSON and YAML can hold."""
    for field in fields(config):
        value = getattr(config, field.name)
        if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
            object.__setattr__(config, field.name, value.item())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_whole(name: str, value: Any, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not numbers:
        raise ValueError(f"{name} is empty: give one whole number for every axis")
    for number in numbers:
        _require_whole(name, number, at_least=1)
    return numbers


def _divisors_near(value: int, wanted: int) -> str:
    """Up to four divisors of a value, the nearest to the wanted one, as words."""
    small = [d for d in range(1, min(math.isqrt(value), 100_000) + 1) if value % d == 0]
    divisors = sorted({*small, *(value // d for d in small)})
    near = sorted(sorted(divisors, key=lambda d: (abs(d - wanted), d))[:4])
    return ", ".join(map(str, near[:-1])) + (" or " if len(near) > 1 else "") + str(near[-1])
