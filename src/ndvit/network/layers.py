"""The parts of the encoder, as the papers describe them. Names follow timm's state dicts.

`fast` replaces some of these classes by faster or leaner ones that compute the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.network.draws import for_each
from ndvit.network.stems.convolutional import ConvStem
from ndvit.network.stems.difference import DifferenceStem
from ndvit.network.stems.mantis import MantisStem
from ndvit.network.stems.resnet import CONVOLUTIONS, ResNetStem
from ndvit.network.token_reduction import merge_tokens

Rotation = tuple[Tensor, ...]
"""Cosines and sines of rope, each (T, head_dim), see `positions.rotary_table`, or (B, 1, T, head_dim).

Of xpos, those of queries and those of keys, see `positions.xpos_table`.
"""


@dataclass(eq=False)
class BlockTrace:
    """How a block mixed its tokens, filled in by the block itself; see `VisionTransformer.stages`.

    Attributes:
        attention: (B, heads, queries, T), the softmax of queries and keys; rows sum to 1. It is part of the graph of
            autograd. A relative bias, which is added after the softmax, and dropout are not part of it.
        key_mask: (B, 1, 1, T) of the tokens that were attended to, see `attention_mask`; None if all count once.
        merged: (B, fewer, T), the shares of the block's tokens in those that it returns; None if none were merged.
    """

    attention: Tensor | None = None
    key_mask: Tensor | None = None
    merged: Tensor | None = None


def make_norm(config: ViTConfig) -> nn.Module:
    """The norm of the tokens, see `ViTConfig.norm`."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.embed_dim, eps=config.norm_eps)


class PatchEmbed(nn.Module):
    """Patch embedding: an optional stem, a convolution whose stride is the patch, and an optional LayerNorm.

    (B, C, *size) -> (B, N, D), patches in row-major order. The kernel is as large as the patch, or with
    `ViTConfig.patch_overlap` reaches into its neighbours; its stride is the patch or `ViTConfig.patch_stride`. `stem`
    and `tokens` are the two halves of `forward`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch, kernel, dim = config.patch_size, config.patch_kernel, config.embed_dim
        stems = {
            "none": lambda _: nn.Identity(),
            "resnet": ResNetStem,
            "difference": DifferenceStem,
            "mantis": MantisStem,
        }
        self.backbone = stems.get(config.stem, ConvStem)(config)
        padding = tuple((k - p) for k, p in zip(kernel, patch))
        conv = CONVOLUTIONS[len(patch) - 1]
        stride = config.patch_stride or patch
        self.proj = conv(config.stem_channels, dim, kernel, stride, padding)  # type: ignore[arg-type]
        eps = config.patch_norm_eps or config.norm_eps
        self.norm = nn.LayerNorm(dim, eps=eps) if config.patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.stem(x))

    def stem(self, x: Tensor, recompute: bool = False) -> Tensor:
        """(B, C, *size) -> (B, config.stem_channels, *size / config.stem_stride); x itself if there is no stem."""
        return x if isinstance(self.backbone, nn.Identity) else self.backbone(x, recompute)

    def tokens(self, x: Tensor) -> Tensor:
        """Output of the stem -> (B, N, D)."""
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T scale) v, then a projection (Vaswani et al., 2017).

    With `relative_bias`, a learned bias for each offset between two patches is added to the weights after the softmax
    (eRPE, "ConvTran"); the patches of the grid are the last tokens.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.num_heads, head_dim = config.embed_dim, config.num_heads, config.head_width
        inner = self.num_heads * head_dim
        self.scale = head_dim**-0.5 if config.qk_scale is None else config.qk_scale
        self.attn_drop = config.attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * inner, bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.relative_bias = None
        if config.relative_bias:
            offsets = math.prod(2 * n - 1 for n in config.grid)
            self.relative_bias = nn.Parameter(torch.zeros(self.num_heads, offsets))
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(config.drop_rate)

    def forward(
        self,
        x: Tensor,
        key_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        offsets: Tensor | None = None,
        num_queries: int | None = None,
        trace: BlockTrace | None = None,
    ) -> Tensor:
        """Attend from each token to all tokens: (B, T, D) -> (B, T, D), or (B, num_queries, D).

        Args:
            x: (B, T, D).
            key_mask: (B, 1, 1, T), see `attention_mask`.
            rotation: of queries and keys, for `ViTConfig.pos_embed` "rope" and "xpos".
            offsets: (N, N) of the grid, see `positions.relative_offsets`; needed for `relative_bias`.
            num_queries: compute the output of this many leading tokens only; None computes all.
            trace: takes the attention weights, which are then computed without dropout; None computes no weights.
        """
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (B, T, 3, heads, head_dim)
        # unbind before transpose: its backward pass joins the three gradients without a second copy
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, heads, T, head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation[:2]), rotate(k, rotation[-2:])  # the same two of rope, others of xpos
        q, mask = q[:, :, :num_queries], attention_mask(key_mask, q.dtype)
        if trace is None:
            x = self.attend(q, k, v, mask)  # (B, heads, T, head_dim)
        else:
            trace.attention, trace.key_mask = attention_weights(q, k, mask, self.scale), key_mask  # (B, heads, T, T)
            x = trace.attention @ v
        if self.relative_bias is not None:
            assert offsets is not None
            x = x + relative_values(v, self.relative_bias, offsets, key_mask)[:, :, :num_queries]
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # (B, T, D)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T scale) v, each (B, heads, T, head_dim); mask as in `F.scaled_dot_product_attention`."""
        drop = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, scale=self.scale)

    @torch.no_grad()
    def mean_keys(self, x: Tensor) -> Tensor:
        """Keys before `k_norm`, averaged over the heads, without a gradient: (B, T, D) -> (B, T, head_dim)."""
        if not isinstance(self.qkv, nn.Linear):  # a wrapper with adapters
            return self.qkv(x).unflatten(2, (3, self.num_heads, -1))[:, :, 1].mean(2)
        # The mean of linear maps is a linear map, of the width of one head.
        weight = self.qkv.weight.unflatten(0, (3, self.num_heads, -1))[1].mean(0)  # (head_dim, D)
        bias = None if self.qkv.bias is None else self.qkv.bias.unflatten(0, (3, self.num_heads, -1))[1].mean(0)
        return F.linear(x, weight, bias)


def attention_mask(key_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask (B, 1, 1, T) that `F.scaled_dot_product_attention` takes.

    Args:
        key_mask: (B, 1, 1, T). Boolean: True if the key takes part in attention. Floating point, after tokens were
            merged: the number of observed patches that the token stands for. The logarithm of that size is added to the
            logits, so that the token counts as often as its patches would ("proportional attention" of ToMe); the
            logarithm of 0 is -inf, which masks the key.
        dtype: of the queries.
    """
    if key_mask is None or key_mask.dtype == torch.bool:
        return key_mask
    return key_mask.log().to(dtype)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T scale) of q and k (B, heads, T, head_dim); 0 if all keys of a query are masked.

    `mask` is that of `attention_mask`.
    """
    logits = q * scale @ k.mT
    if mask is None:
        return logits.softmax(3)
    masked = ~mask if mask.dtype == torch.bool else mask.isneginf()
    if mask.dtype != torch.bool:
        logits = logits + mask
    # The least number instead of -inf: if all keys are masked, softmax and its gradient of -inf would be NaN.
    return logits.masked_fill(masked, torch.finfo(logits.dtype).min).softmax(3).masked_fill(masked, 0)


def relative_values(v: Tensor, table: Tensor, offsets: Tensor, key_mask: Tensor | None) -> Tensor:
    """Sum the values of the patches, weighted by a bias for each offset: (B, heads, T, d) -> (B, heads, T, d).

    Args:
        v: values; the last N tokens are the patches. Prefix tokens have no place: they are left out of the sums, and
            their own sums are 0.
        table: (heads, number of offsets).
        offsets: (N, N), see `positions.relative_offsets`.
        key_mask: (B, 1, 1, T) boolean, True if the token takes part in attention.
    """
    patches = len(offsets)
    bias = table.index_select(1, offsets.flatten()).unflatten(1, offsets.shape)  # (heads, N, N)
    v, prefix = v[:, :, -patches:], v.shape[2] - patches
    if key_mask is not None:
        v = v * key_mask[..., -patches:].mT
    return F.pad(bias @ v, (0, 0, prefix, 0))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x_i, x_(i + d/2)) of (B, heads, T, d) by the angle of its token and frequency."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def masked_mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean over tokens, (B, N, D) -> (B, D); weight (B, N) is a mask or a count, and 0 everywhere gives 0."""
    if weight is None:
        return x.mean(1)
    weight = weight[:, :, None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def mean_and_max(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean and maximum over places side by side, (B, N, D) -> (B, 2 D), where the mask (B, N) is True."""
    largest = x if mask is None else x.masked_fill(~mask[:, :, None], -torch.inf)
    largest = largest.amax(1)
    if mask is not None:  # an example without any observed value
        largest = largest.masked_fill(~mask.any(1)[:, None], 0)
    return torch.cat([masked_mean(x, mask), largest], dim=1)


class AttentionPool(nn.Module):
    """Attention from one learned query to all tokens, then a residual MLP: (B, T, D) -> (B, D).

    The MAP head of "Scaling Vision Transformers" and SigLIP. `key_mask` (B, 1, 1, T): see `attention_mask`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x)
        mask = attention_mask(key_mask, q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, 1, head_dim)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, 1, D)
        return (x + self.mlp(self.norm(x))).squeeze(1)

    def weights(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """How much the latent query attends to each token, (B, heads, 1, T)."""
        q, k, _ = self._project(x)
        return attention_weights(q, k, attention_mask(key_mask, q.dtype), q.shape[-1] ** -0.5)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, heads, 1, head_dim), keys and values, each (B, heads, T, head_dim)."""
        q = self.q(self.latent).expand(x.shape[0], -1, -1).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class Mlp(nn.Module):
    """Linear, activation, dropout, linear, dropout: (..., D) -> (..., D).

    For "swiglu" the first layer gives a gate and a value side by side ("GLU Variants Improve Transformer", Shazeer).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(dim, 2 * hidden if config.activation == "swiglu" else hidden)
        self.act = _ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwiGLU(nn.Module):
    """silu of the first half times the second half: (..., 2 H) -> (..., H)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "swiglu": SwiGLU,
}


class LayerScale(nn.Module):
    """A learned factor on each channel of a residual branch ("Going deeper with Image Transformers")."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: training skips a residual branch for some samples ("Deep Networks with Stochastic Depth").

    The branch is skipped for each sample with probability `rate`, and divided by 1 - rate for the others, so that the
    expectation is the branch itself. Skipped samples are not computed (as in DINOv2). Evaluation skips none.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Compute x + branch(*inputs), of shape (B, T, D).

        Inputs that are tensors of three or more axes have one row for each sample.
        """
        if not self.training or self.rate == 0:
            return x + branch(*inputs)  # not in place: autograd needs the x that each branch read
        keep = 1 - self.rate
        if torch.compiler.is_compiling():  # a compiled graph needs static shapes
            return x + branch(*inputs) * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)
        drawn = for_each(lambda n: torch.empty(n).bernoulli_(keep), len(x))  # on the CPU, to not synchronise with a GPU
        kept = drawn.nonzero().flatten()
        if len(kept) == len(x):
            return torch.add(x, branch(*inputs), alpha=1 / keep)
        kept = kept.to(x.device, non_blocking=x.is_cuda)  # Metal could read memory that is already freed
        y = branch(*(_take_samples(value, kept) for value in inputs))
        dtype = torch.promote_types(x.dtype, y.dtype)
        return x.to(dtype).index_add(0, kept, y.to(dtype), alpha=1 / keep)


def _take_samples(value: Any, samples: Tensor) -> Any:
    """The rows of these samples; values without rows for samples are returned unchanged."""
    if isinstance(value, tuple):
        return tuple(_take_samples(part, samples) for part in value)
    return value.index_select(0, samples) if isinstance(value, Tensor) and value.ndim > 2 else value


class Block(nn.Module):
    """A pre-norm encoder block: attention, then MLP, each a residual branch with layer scale and drop path."""

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp = Mlp(config)
        scale = config.layer_scale
        self.ls1 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.ls2 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        key_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        offsets: Tensor | None = None,
        num_queries: int | None = None,
        trace: BlockTrace | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), or (B, num_queries, D). Arguments as in `Attention.forward`."""
        x = self.drop_path(x[:, :num_queries], self.attention, x, key_mask, rotation, offsets, num_queries, trace)
        return self.drop_path(x, self.feed_forward, x)

    def attention(self, x: Tensor, *context: Any) -> Tensor:
        """The first residual branch."""
        return self.ls1(self.apply_normed(self.attn, self.norm1, x, *context))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second residual branch."""
        return self.ls2(self.apply_normed(self.mlp, self.norm2, x))

    def apply_normed(self, layer: nn.Module, norm: nn.Module, x: Tensor, *context: Any) -> Tensor:
        """layer(norm(x), *context)."""
        return layer(norm(x), *context)


class MergingBlock(Block):
    """A block that merges tokens between attention and MLP, see `tokens.merge_tokens`.

    It returns the tokens left, (B, fewer, D), and their `key_mask`, which holds the sizes of merged tokens. With
    `num_queries`, no tokens are merged.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__(config, drop_path)
        self.merge_tokens, self.num_prefix_tokens = config.merge_tokens, config.num_prefix_tokens

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        key_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        offsets: Tensor | None = None,
        num_queries: int | None = None,
        trace: BlockTrace | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        keys = None if num_queries else self.attn.mean_keys(self.norm1(x))  # (B, T, head_dim)
        x = self.drop_path(x[:, :num_queries], self.attention, x, key_mask, rotation, offsets, num_queries, trace)
        if keys is not None:
            how = key_mask, keys, self.merge_tokens, self.num_prefix_tokens
            if trace is not None:  # merging is linear in the tokens: that of one-hot tokens gives its matrix
                one_hot = torch.eye(x.shape[1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
                trace.merged = merge_tokens(one_hot.expand(len(x), -1, -1), *how)[0]
            x, key_mask = merge_tokens(x, *how)
        return self.drop_path(x, self.feed_forward, x), key_mask
