"""The config of a Vision Transformer: groups of fields, the rules between fields, and what follows from them."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from ndvit.config.bounds import Cap, Counts, Lengths, Options, Rate, Whole, checked

PositionEmbedding = Literal["learned", "sincos", "rope", "xpos"]
Pooling = Literal["token", "avg", "norm_avg", "token_avg", "prefix_avg", "map", "stem_tokens"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Stem = Literal["none", "resnet", "inception", "residual", "difference", "mantis"]
StemNumerics = Literal["google", "timm"]
Norm = Literal["layer", "rms"]
HeadNorm = Literal["none", "batch", "layer"]
WeightInit = Literal["article", "balanced"]

Width = Annotated[int, Ge(1), Cap(2**16)]
Factor = Annotated[float, Gt(0), Cap(1000)]
# Larger inputs and grids fit into no memory, and their sizes would overflow the integers of torch.
_MOST_VALUES, _MOST_PATCHES, _MOST_UNITS = 2**36, 2**22, 1000

_LIGHT_STEMS = ("inception", "residual", "difference", "mantis")
# Default depths and width by kind of stem: R50, two groups of InceptionTime, the three blocks of Wang's ResNet, the two
# convolutions of our encoder of signals, Mantis.
_STEM_DEFAULTS = {
    "resnet": ((3, 4, 9), 64),
    "inception": ((3, 3), 32),
    "residual": ((1, 1, 1), 64),
    "difference": ((1, 1), 48),
    "mantis": ((1,), 256),
}


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """Input and patches."""

    input_size: Lengths = (224, 224)
    """Samples or pixels along each axis; its length is the number of dimensions. An int is a 1-D length."""
    in_channels: Annotated[int, Ge(1), Cap(2**20)] = 3
    """Channels of the input: 3 for colour images, the number of sensors for signals."""
    patch_size: Lengths = (16,)
    """Size of a patch along each axis; a single number applies to every axis. Must divide input_size. With a stem,
    patches are cut from its output: a token covers patch_size x stem_stride samples of the input."""
    patch_overlap: bool = False
    """Let patches overlap: a kernel of 2p - 1 at stride p (CvT, PVT v2, ConvTran). The number of tokens is the same."""
    patch_stride: Counts = ()
    """Step from a patch to the next along each axis; the default is the size of a patch. A smaller step gives more,
    overlapping patches, and samples at the end that fill no patch are not read (AST)."""


@dataclass(frozen=True, kw_only=True)
class StemOptions(Options):
    """Stem."""

    stem: Stem = "none"
    """Convolutions before the patches: none; resnet (the ViT paper's hybrids: R50+ViT-B/16 has patch_size 1); or light
    stems, mainly for signals: inception (parallel dilated convolutions in residual groups, after InceptionTime),
    residual (units of convolutions of 9, 5 and 3 taps, Wang's ResNet for time series), difference (convolutions over
    the input and its differences, beside local means and standard deviations of both), or mantis (one channel: means
    over windows of convolutions of the input and its differences, and each window's mean and standard deviation)."""
    stem_depths: Counts = None  # type: ignore[assignment]  # ViTConfig replaces None by the default of the stem
    """Units in each stage; by default (3, 4, 9) for resnet (R50), (3, 3) for inception, (1, 1, 1) for residual, (1, 1)
    for difference, (1,) for mantis. A resnet without stages is its root convolution."""
    stem_width: Width = None  # type: ignore[assignment]  # likewise
    """Channels: of the resnet stem's root (default 64, a multiple of 32; stage i has 4 x 2^i times as many), of each
    parallel convolution of inception (32), of the first stage of residual (64) and difference (48), whose later stages
    have twice as many, of each convolution of mantis (256, a multiple of 8)."""
    stem_strides: Counts = ()
    """Stride of the first unit in each stage of a light stem, along every axis; a missing one is 1. Of mantis it is the
    side of a window, at least 2."""
    stem_kernel: Width = 9
    """Taps along each axis of the convolutions of inception, difference and mantis; odd. Kernels of the first two grow
    where a stride would skip samples."""
    stem_dilations: Lengths = (1, 2, 4)
    """Dilations of inception's parallel convolutions, one per convolution: kernels of 9 at (1, 2, 4) span 9, 17 and 33
    samples, like InceptionTime's kernels of 10, 20 and 40, at a third of the cost."""
    stem_numerics: StemNumerics = "google"
    """Epsilons of the resnet stem's weight standardisation and GroupNorm: Google's, or those of timm's port."""


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(Options):
    """Encoder."""

    embed_dim: Width = 768
    """Width D of a token."""
    depth: Annotated[int, Ge(1), Cap(1000)] = 12
    """Number of encoder blocks."""
    num_heads: Annotated[int, Ge(1), Cap(4096)] = 12
    """Attention heads; must divide embed_dim if there is no head_dim."""
    head_dim: Width | None = None
    """Width of a head; the default is embed_dim / num_heads."""
    mlp_ratio: Factor = 4.0
    """Hidden width of the MLP as a multiple of embed_dim (of each of the two halves for swiglu)."""
    qkv_bias: bool = True
    """Bias in the linear layer of queries, keys and values."""
    qk_scale: Factor | None = None
    """Factor on the attention logits; the default is head_dim ** -0.5."""
    qk_norm: bool = False
    """LayerNorm over queries and keys of each head (ViT-22B)."""
    activation: Activation = "gelu"
    """Activation of the MLP: exact gelu, its tanh approximation (Google), quick_gelu (x sigmoid(1.702 x), OpenAI's
    CLIP), or swiglu (a gated MLP, as DINOv2-g)."""
    layer_scale: Factor | None = None
    """Initial value of a learned scale per channel on each residual branch (CaiT); by default there is none."""
    patch_norm: bool = False
    """LayerNorm after the patch embedding (the article; published ViTs have none)."""
    patch_norm_eps: Annotated[float, Gt(0), Cap(1)] | None = None
    """Epsilon of patch_norm; the default is norm_eps."""
    pre_norm: bool = False
    """LayerNorm over all tokens before the first block (CLIP)."""
    norm: Norm = "layer"
    """Norm of the tokens before, in and after the blocks: LayerNorm (layer), or RMSNorm (rms), which subtracts no mean
    and has no bias ("Root Mean Square Layer Normalization", 2019). Other norms are LayerNorms."""
    norm_eps: Annotated[float, Gt(0), Cap(1)] = 1e-6
    """Epsilon of every LayerNorm and RMSNorm."""
    final_norm: bool = True
    """Norm after the last block, or for pooling avg after the pooling (Mantis has none)."""
    weight_init: WeightInit = "article"
    """Initial weights: article (linear layers std .01, tokens and positions .02), or balanced (linear layers by fan-in,
    tokens and positions as strong as patches), which learns from little data in far fewer steps."""


@dataclass(frozen=True, kw_only=True)
class PositionOptions(Options):
    """Positions."""

    pos_embed: PositionEmbedding = "learned"
    """Position embedding: learned, fixed sines and cosines per axis (sincos, MAE), or rope (rotation of the patches'
    queries and keys, as DINOv3; nothing is added to tokens), or xpos (rotation by the number of the patch along each
    axis, where logits also decay with the distance; "A Length-Extrapolatable Transformer", 2022; as MantisV2)."""
    rope_base: Annotated[float, Gt(0), Cap(10**9)] = 100.0
    """Longest over shortest period of rope, where the whole axis has length 2, and of xpos (MantisV2: 10000)."""
    relative_bias: bool = False
    """A learned weight per head and offset between two patches, added to the attention weights after the softmax in
    every block (ConvTran's eRPE), in addition to pos_embed. Starts at zero."""
    pos_embed_prefix: bool = True
    """Add positions to the prefix tokens, too (not in DeiT III and DINOv2 with registers)."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions(Options):
    """Tokens."""

    class_token: bool = True
    """Prepend a learned class token to the patches."""
    num_registers: Annotated[int, Ge(0), Cap(10_000)] = 0
    """Register tokens after the class token ("Vision Transformers Need Registers")."""
    merge_tokens: Whole = 0
    """Patch tokens that each block merges into similar ones, at most half of the remaining tokens (ToMe, "Token
    Merging: Your ViT But Faster", 2022); 0 merges none. It also applies to a network that was trained without it,
    load_model(file, merge_tokens=8): inference is faster, at a small loss of accuracy."""


@dataclass(frozen=True, kw_only=True)
class HeadOptions(Options):
    """Pooling and heads."""

    num_classes: Annotated[int, Ge(0), Cap(10**7)] = 1000
    """Outputs of the head; with 0 the network returns the pooled features."""
    representation_size: Width | None = None
    """Width of a linear layer with tanh before the head (`pre_logits`); by default there is none."""
    distilled: bool = False
    """A second token with its own head (DeiT); training returns both outputs, evaluation their mean."""
    pooling: Pooling = "token"
    """Input of the head: the class token; the mean of the patch tokens, before the final norm (avg, MAE's fine-tuning)
    or after it (norm_avg, big_vision); class token and mean concatenated (token_avg, DINOv2's linear head); the mean of
    class token and registers (prefix_avg, AST); attention pooling (map, SigLIP); or, concatenated, mean and maximum of
    the stem's output, class token if there is one, and mean (stem_tokens)."""
    head_norm: HeadNorm = "none"
    """Norm over the pooled features before the head: none, batch (BatchNorm, because features of a stem and of tokens
    have different scales; Mantis) or layer (LayerNorm, AST)."""
    stem_head: bool = False
    """A second, auxiliary head over mean and maximum of the stem's output; only training returns its output."""


@dataclass(frozen=True, kw_only=True)
class RegularisationOptions(Options):
    """Regularisation."""

    drop_rate: Rate = 0.0
    """Dropout after the position embedding and in every projection and MLP."""
    attn_drop_rate: Rate = 0.0
    """Dropout of attention weights."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth of the last block; rates rise linearly from 0 over the depth."""
    patch_drop_rate: Rate = 0.0
    """Share of the patches left out in training, drawn for each example ("PatchDropout", Liu et al., 2022)."""
    head_drop: Rate = 0.0
    """Dropout before the head."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig(
    RegularisationOptions, HeadOptions, TokenOptions, PositionOptions, EncoderOptions, StemOptions, InputOptions
):
    """Everything that describes a Vision Transformer in any number of dimensions.

    `len(input_size)` is the number of dimensions: (time,) is a signal, (height, width) an image, (depth, height, width)
    a volume. An int for `input_size` is a length, that is one dimension; an int for `patch_size` applies to every axis.
    (In a *named 2-D model* an int is the side of a square, see `named_config`.)

    Raises:
        ValueError: for a value or a combination that does not describe a network, with the remedy.

    Example:
        >>> from ndvit import ViTConfig
        >>> config = ViTConfig(input_size=(150,), patch_size=10, in_channels=1, embed_dim=48, num_heads=4)
        >>> config.grid, config.num_patches
        ((15,), 15)
        >>> ViTConfig(input_size=(150,), patch_size=16)
        Traceback (most recent call last):
        ...
        ValueError: ...
    """

    def __post_init__(self) -> None:
        defaults = _STEM_DEFAULTS.get(self.stem, _STEM_DEFAULTS["resnet"])
        for name, default in zip(("stem_depths", "stem_width"), defaults):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()
        for name in ("patch_size", "patch_stride"):
            if len(getattr(self, name)) == 1:
                object.__setattr__(self, name, getattr(self, name) * len(self.input_size))
        if self.stem in _LIGHT_STEMS:
            missing = len(self.stem_depths) - len(self.stem_strides)
            object.__setattr__(self, "stem_strides", (*self.stem_strides, *[1] * missing))
        for check in (_check_stem, _check_input, _check_exclusions, _check_width, _check_tokens):
            check(self)

    @property
    def stem_stride(self) -> int:
        """Samples of the input along each axis per sample of the stem's output."""
        return stem_stride(self.stem, self.stem_depths, self.stem_strides)

    @property
    def stem_channels(self) -> int:
        """Channels of the stem's output; those of the input without a stem."""
        if self.stem == "none":
            return self.in_channels
        if self.stem == "inception":
            return len(self.stem_dilations) * self.stem_width
        if self.stem in ("residual", "difference"):
            channels = self.stem_width * min(len(self.stem_depths), 2)
            inputs = self.in_channels * (1 + len(self.input_size))  # of difference: the input, and along each axis
            return channels + (2 * inputs if self.stem == "difference" else 0)
        if self.stem == "mantis":  # the input, its difference along each axis, and two statistics
            return (1 + len(self.input_size)) * self.stem_width + 2 * (self.stem_width // 8)
        return self.stem_width * (4 * 2 ** (len(self.stem_depths) - 1) if self.stem_depths else 1)

    @property
    def patch_kernel(self) -> tuple[int, ...]:
        """Kernel size along each axis of the convolution that embeds the patches."""
        return tuple(2 * p - 1 if self.patch_overlap else p for p in self.patch_size)

    @property
    def token_size(self) -> tuple[int, ...]:
        """Samples of the input along each axis that a patch token covers."""
        return tuple(p * self.stem_stride for p in self.patch_size)

    @property
    def token_step(self) -> tuple[int, ...]:
        """Samples of the input along each axis from a patch token to the next."""
        return tuple(p * self.stem_stride for p in self.patch_stride or self.patch_size)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple((s - p) // step + 1 for s, p, step in zip(self.input_size, self.token_size, self.token_step))

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled features."""
        if self.pooling == "stem_tokens":
            return 2 * self.stem_channels + (1 + self.class_token) * self.embed_dim
        return 2 * self.embed_dim if self.pooling == "token_avg" else self.embed_dim

    @property
    def num_patches(self) -> int:
        """Number of patch tokens: the product of the grid."""
        return math.prod(self.grid)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class, distillation and register tokens, which precede the patches in this order."""
        return int(self.class_token) + int(self.distilled) + self.num_registers


def stem_stride(stem: Stem, depths: tuple[int, ...] | None, strides: tuple[int, ...] = ()) -> int:
    """Samples of the input along each axis per sample of a stem's output.

    A light stem depends on the stride of each stage only, a resnet stem on its depths only; None are the default ones.

    Raises:
        ValueError: if depths or strides are not whole numbers of at least 1.
    """
    if stem == "none":
        return 1
    if stem in _LIGHT_STEMS:
        return math.prod(checked("stem_strides", Counts, strides))
    depths = checked("stem_depths", Counts, _STEM_DEFAULTS["resnet"][0] if depths is None else depths)
    return 4 * 2 ** max(len(depths) - 1, 0)  # root and pooling halve the grid, then every stage but the first


def _check_stem(c: ViTConfig) -> None:
    depths, strides, light = c.stem_depths, c.stem_strides, c.stem in _LIGHT_STEMS
    if strides and not light:
        why = "halves its grid by itself" if c.stem == "resnet" else "is no stem"
        raise ValueError(
            f"stem_strides {strides} apply to the {', '.join(_LIGHT_STEMS)} stems, but stem={c.stem!r} {why}: "
            "leave them out, or set stem='inception'"
        )
    if light and not depths:
        raise ValueError(f"stem_depths is empty: the {c.stem} stem needs at least one group, for example (3,)")
    if sum(depths) > _MOST_UNITS:
        raise ValueError(f"stem_depths have {sum(depths):,} units in all: at most {_MOST_UNITS:,} make sense")
    if len(depths) > 4 and not light:
        raise ValueError(f"stem_depths {depths} has {len(depths)} stages: a resnet stem has at most four")
    if len(strides) > len(depths):
        raise ValueError(
            f"stem_strides {strides} has {len(strides)} strides for {len(depths)} groups (stem_depths {depths}): "
            "give at most one per group; a missing one is 1"
        )
    if len(c.stem_dilations) > 8:
        raise ValueError(f"stem_dilations has {len(c.stem_dilations)} branches: a module has at most eight")
    if c.stem_kernel % 2 == 0:
        raise ValueError(f"stem_kernel {c.stem_kernel} must be odd: use {c.stem_kernel - 1} or {c.stem_kernel + 1}")
    if c.stem == "resnet" and c.stem_width % 32:
        raise ValueError(f"stem_width {c.stem_width} is not a multiple of 32: GroupNorm has 32 groups")
    if c.stem == "mantis":
        _check_mantis(c)
    if c.stem == "none" and (c.pooling == "stem_tokens" or c.stem_head):
        name = "pooling='stem_tokens'" if c.pooling == "stem_tokens" else "stem_head=True"
        remedy = "set stem='inception', 'residual', 'difference' or 'resnet', or leave it out"
        raise ValueError(f"{name} reads the output of a stem, and there is none: {remedy}")


def _check_mantis(c: ViTConfig) -> None:
    if c.in_channels != 1:
        raise ValueError(
            f"in_channels is {c.in_channels}, but the mantis stem reads one channel: train on one channel of the data, "
            "or use another network, such as signal_small"
        )
    if c.stem_depths != (1,):
        raise ValueError(f"stem_depths is {c.stem_depths}, but the mantis stem has one unit: leave it out")
    if c.stem_stride < 2:
        raise ValueError("a window of the mantis stem has a standard deviation from 2 samples on: set stem_strides=16")
    if c.stem_width % 8:
        raise ValueError(f"stem_width {c.stem_width} is not a multiple of 8: statistics have an eighth of it")


def _check_input(c: ViTConfig) -> None:
    size, patch, stride = c.input_size, c.patch_size, c.stem_stride
    if len(size) > 3:
        raise ValueError(f"input_size {size} has {len(size)} axes: networks have one, two or three dimensions")
    if math.prod(size) * c.in_channels > _MOST_VALUES:
        raise ValueError(
            f"input_size {size} with {c.in_channels:,} channels has {math.prod(size) * c.in_channels:,} values: "
            f"at most {_MOST_VALUES:,} make sense"
        )
    if len(patch) != len(size):
        raise ValueError(
            f"patch_size {patch} has {len(patch)} axes but input_size {size} has {len(size)}: "
            "give one number for every axis, or a single number for all"
        )
    if c.patch_stride:
        _check_steps(c)
        return
    for axis, (s, p) in enumerate(zip(size, c.token_size)):
        if s % p:
            near = sorted({max(p, s // p * p), (s // p + 1) * p})
            stem = f" behind a stem of stride {stride}" if stride > 1 else ""
            other = f", or a patch of {_divisors_near(s, p)}" if stride == 1 else ""
            raise ValueError(
                f"input_size {size} is not divisible by patch_size {patch}{stem} along axis {axis} ({s} = "
                f"{s // p} x {p} + {s % p}): use an input of {' or '.join(map(str, near))}{other}"
            )
    _check_patches(c)


def _check_patches(c: ViTConfig) -> None:
    if c.num_patches > _MOST_PATCHES:
        raise ValueError(
            f"input_size {c.input_size} has {c.num_patches:,} patches of {c.token_size}, and attention compares each "
            f"with each: at most {_MOST_PATCHES:,} make sense, use a larger patch_size"
        )


def _check_steps(c: ViTConfig) -> None:
    size, patch, step = c.input_size, c.patch_size, c.patch_stride
    if len(step) != len(size):
        raise ValueError(
            f"patch_stride {step} has {len(step)} axes but input_size {size} has {len(size)}: give one number for "
            "every axis, or a single number for all"
        )
    if any(n > p for n, p in zip(step, patch)):
        raise ValueError(
            f"patch_stride {step} is larger than patch_size {patch}: samples between patches would be lost"
        )
    if any(s < p for s, p in zip(size, c.token_size)):
        raise ValueError(f"input_size {size} is smaller than a patch of {c.token_size}: use a larger input")
    _check_patches(c)


def _check_exclusions(c: ViTConfig) -> None:
    for conflict, one, other, reason in (
        (c.relative_bias and c.patch_drop_rate, "patch_drop_rate", "relative_bias", "the bias needs a complete grid"),
        (
            c.merge_tokens and c.pos_embed in ("rope", "xpos"),
            "merge_tokens",
            "pos_embed",
            "merged tokens have no position",
        ),
        (c.patch_overlap and c.patch_stride, "patch_overlap", "patch_stride", "both let patches overlap"),
        (c.merge_tokens and c.relative_bias, "merge_tokens", "relative_bias", "merged tokens have no position"),
        (c.distilled and c.representation_size, "distilled", "representation_size", "both heads read one token"),
        (c.distilled and c.head_norm != "none", "distilled", "head_norm", "both heads read one token"),
        (c.distilled and c.stem_head, "distilled", "stem_head", "training returns one pair of outputs"),
    ):
        if conflict:
            found, remedies = (
                [f"{f.name}={getattr(owner, f.name)!r}" for f in fields(c) if f.name in (one, other)]
                for owner in (c, ViTConfig)
            )
            raise ValueError(f"{' and '.join(found)} exclude each other: {reason}. Set {' or '.join(remedies)}")


def _check_width(c: ViTConfig) -> None:
    if int(c.embed_dim * c.mlp_ratio) < 1:
        raise ValueError(
            f"mlp_ratio {c.mlp_ratio:g} of embed_dim {c.embed_dim} is a hidden width of 0: use at least "
            f"{1 / c.embed_dim:g}"
        )
    if c.embed_dim % c.num_heads and (c.head_dim is None or c.pooling == "map"):
        raise ValueError(
            f"embed_dim {c.embed_dim} is not divisible by num_heads {c.num_heads}: "
            f"use {_divisors_near(c.embed_dim, c.num_heads)} heads"
        )
    name, found, width = "embed_dim", f"{c.embed_dim}", c.embed_dim
    if c.pos_embed in ("rope", "xpos"):
        found = f"embed_dim {found} / {c.num_heads} heads" if c.head_dim is None else f"head_dim {c.head_dim}"
        name, width = "a head width", c.head_width
    waves = 2 * len(c.input_size)  # a sine and a cosine per axis
    if c.pos_embed != "learned" and width % waves:
        raise ValueError(
            f"{c.pos_embed} in {len(c.input_size)} dimensions needs {name} divisible by {waves}, got {found}: "
            "change the width or use pos_embed='learned'"
        )


def _check_tokens(c: ViTConfig) -> None:
    if c.distilled and not (c.class_token and c.pooling == "token"):
        raise ValueError("distilled needs class_token=True and pooling='token': its two heads read two tokens")
    if c.pooling == "prefix_avg" and not c.num_prefix_tokens:
        raise ValueError("pooling='prefix_avg' reads class token and registers: set class_token=True or num_registers")
    if c.pooling in ("token", "token_avg") and not c.class_token:
        raise ValueError(
            f"pooling={c.pooling!r} reads the class token: set class_token=True, or pooling='avg' or 'map'"
        )


def _divisors_near(value: int, wanted: int) -> str:
    """Up to four divisors of a value, the nearest to the wanted one, as words."""
    small = [d for d in range(1, min(math.isqrt(value), 100_000) + 1) if value % d == 0]
    divisors = sorted({*small, *(value // d for d in small)})
    near = sorted(sorted(divisors, key=lambda d: (abs(d - wanted), d))[:4])
    return ", ".join(map(str, near[:-1])) + (" or " if len(near) > 1 else "") + str(near[-1])
