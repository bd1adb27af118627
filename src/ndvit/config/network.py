"""What a Vision Transformer is made of: one frozen config."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ndvit.config.bounds import check_combinations, check_field_names, check_values, unwrap_numbers, whole_numbers

PositionEmbedding = Literal["learned", "sincos", "rope"]
Pooling = Literal["token", "avg", "norm_avg", "token_avg", "map", "stem_tokens"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Stem = Literal["none", "resnet", "inception", "residual"]
StemNumerics = Literal["google", "timm"]
HeadNorm = Literal["none", "batch"]
WeightInit = Literal["article", "balanced"]

# Depths and width that a stem has if nobody says: R50's; InceptionTime's two groups of three; Wang's three blocks.
_STEM_DEFAULTS = {"resnet": ((3, 4, 9), 64), "inception": ((3, 3), 32), "residual": ((1, 1, 1), 64)}


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
    """What stands before the patches: none; resnet (the hybrids of the ViT paper: R50+ViT-B/16 is patch_size 1); or a
    light one with BatchNorm, for signals above all: inception (parallel dilated convolutions in residual groups, after
    InceptionTime) or residual (units of convolutions 9-5-3, Wang's ResNet for time series)."""
    stem_depths: tuple[int, ...] = None  # type: ignore[assignment]  # by kind of stem, see __post_init__
    """Units in each stage of the stem; by default R50's (3, 4, 9) for resnet, (3, 3) for inception, (1, 1, 1) for
    residual. None at all leaves the root convolution of a resnet."""
    stem_width: int = None  # type: ignore[assignment]  # by kind of stem, see __post_init__
    """Channels: of the resnet stem's root (64 by default, a multiple of 32; stage i gives 4 x 2^i times as many), of
    each parallel convolution of inception (32), of the first stage of residual (64; later ones have twice as many)."""
    stem_strides: tuple[int, ...] = ()
    """Stride of the first unit in each stage of a light stem, along every axis; a missing one is 1. (A resnet stem
    halves its grid twice at its root and once at every later stage.)"""
    stem_kernel: int = 9
    """Taps along each axis of inception's convolutions; odd. Where a stride would skip samples there are more."""
    stem_dilations: tuple[int, ...] = (1, 2, 4)
    """Dilations of inception's parallel convolutions, one convolution for each: a kernel of 9 at (1, 2, 4) sees 9, 17
    and 33 samples, as InceptionTime's kernels of 10, 20 and 40 do, for a third of the cost."""
    patch_overlap: bool = False
    """Whether a patch reaches into its neighbours: a kernel of 2p - 1 at stride p (CvT, PVT v2, ConvTran). There are as
    many tokens as without."""
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
    relative_bias: bool = False
    """A learned weight for each head and offset between two patches, added to the attention weights after the softmax,
    in every block (ConvTran's eRPE); besides the positions of `pos_embed`. Starts at zero."""
    pos_embed_prefix: bool = True
    """Whether positions are added to the prefix tokens, too (not in DeiT-III and DINOv2 with registers)."""
    pooling: Pooling = "token"
    """What the head sees: the class token; the mean of the patch tokens, with the final norm after it (avg, MAE's
    fine-tuning) or before it (norm_avg, big_vision); class token and mean side by side (token_avg, DINOv2's linear
    head); attention pooling (map, SigLIP); or, side by side, mean and maximum of the stem's output, class token if
    there is one, and mean (stem_tokens)."""
    head_norm: HeadNorm = "none"
    """Norm over the pooled features before the head: none, or batch (BatchNorm, as features of a stem and of tokens
    have unlike scales; Mantis)."""
    head_drop: float = 0.0
    """Dropout before the head."""
    stem_head: bool = False
    """A second, auxiliary head over mean and maximum of the stem's output; training returns both outputs, evaluation
    the first alone."""
    rocket_features: int = 0
    """Random convolution features beside the network, for signals of one axis (MiniRocket), with a linear head of their
    own that is solved, not descended. 10,000 is usual; 0 leaves them out."""
    rocket_weight: float = 0.5
    """Weight of their logits in the answer, from 0 to 1; the network's have the rest. `train` gives them more than half
    where there are fewer than ten examples a class."""
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
    patch_drop_rate: float = 0.0
    """Share of the patches that training leaves out, others for each example ("PatchDropout", Liu et al., 2022)."""
    merge_tokens: int = 0
    """Patch tokens that each block merges into others like them, at most half of those left (ToMe, "Token Merging: Your
    ViT But Faster", 2022); 0 merges none. A network that was trained without can be told to, load_model(file,
    merge_tokens=8): it answers faster, for a little accuracy."""

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        size = whole_numbers("input_size", self.input_size)
        patch = whole_numbers("patch_size", self.patch_size)
        if len(size) > 3:
            raise ValueError(
                f"input_size {size} has {len(size)} axes: networks of one, two or three dimensions can be built"
            )
        if len(patch) == 1:
            patch *= len(size)
        default_depths, default_width = _STEM_DEFAULTS.get(self.stem, _STEM_DEFAULTS["resnet"])
        depths = default_depths if self.stem_depths is None else self.stem_depths
        depths = whole_numbers("stem_depths", depths, empty=True)
        light = self.stem in ("inception", "residual")
        if len(depths) > 4 and not light:
            raise ValueError(f"stem_depths {depths} has {len(depths)} stages: a resnet stem has at most four")
        strides = whole_numbers("stem_strides", self.stem_strides, empty=True)
        if light:
            strides = (*strides, *[1] * (len(depths) - len(strides)))
        settled = {
            "input_size": size,
            "patch_size": patch,
            "stem_depths": depths,
            "stem_width": default_width if self.stem_width is None else self.stem_width,
            "stem_strides": strides,
            "stem_dilations": whole_numbers("stem_dilations", self.stem_dilations),
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        check_values(self)
        check_combinations(self)

    @property
    def stem_stride(self) -> int:
        """Samples of the input along each axis that one sample of the stem's output stands for."""
        return stem_stride(self.stem, self.stem_depths, self.stem_strides)

    @property
    def stem_channels(self) -> int:
        """Channels of the stem's output; of the input where there is no stem."""
        if self.stem == "none":
            return self.in_channels
        if self.stem == "inception":
            return len(self.stem_dilations) * self.stem_width
        if self.stem == "residual":
            return self.stem_width * min(len(self.stem_depths), 2)
        return self.stem_width * (4 * 2 ** (len(self.stem_depths) - 1) if self.stem_depths else 1)

    @property
    def patch_kernel(self) -> tuple[int, ...]:
        """Extent along each axis of the convolution that makes the tokens."""
        return tuple(2 * p - 1 if self.patch_overlap else p for p in self.patch_size)

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
        if self.pooling == "stem_tokens":
            return 2 * self.stem_channels + (1 + self.class_token) * self.embed_dim
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


def stem_stride(stem: Stem, depths: tuple[int, ...] | None, strides: tuple[int, ...] = ()) -> int:
    """Samples of the input along each axis that one sample of a stem's output stands for.

    Raises:
        ValueError: if depths or strides are no whole numbers.
    """
    if stem in ("inception", "residual"):
        return math.prod(whole_numbers("stem_strides", strides, empty=True))
    if stem == "none":
        return 1
    depths = whole_numbers("stem_depths", _STEM_DEFAULTS["resnet"][0] if depths is None else depths, empty=True)
    return 4 * 2 ** max(len(depths) - 1, 0)  # root and pooling halve the grid, then every stage but the first
