"""The parts of the encoder. Leaves take plain numbers; a block takes the config. Names follow timm's state dicts."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.network.fast import Linear
from ndvit.network.stems.convolutional import ConvStem
from ndvit.network.stems.resnet import CONVOLUTIONS, ResNetStem
from ndvit.network.tokens import merge_tokens

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of rope, each (T, head_dim), see `grid.rotary_table`, or (B, 1, T, head_dim)."""
_FEW_TOKENS = 600
"""Up to so many, the weights of attention stay in a CPU's cache, see `attend`."""


class PatchEmbed(nn.Module):
    """Patches to tokens by a convolution whose stride is the patch, and whose kernel is the patch or reaches into its
    neighbours; a stem before and a LayerNorm behind it are optional.

    (B, C, *size) -> (B, N, D), patches in row-major order; `stem` and `tokens` are its two halves.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch, kernel, dim = config.patch_size, config.patch_kernel, config.embed_dim
        self.backbone = nn.Identity() if config.stem == "none" else _STEMS[config.stem](config)
        padding = tuple((k - p) for k, p in zip(kernel, patch))
        conv = CONVOLUTIONS[len(patch) - 1]
        self.proj = conv(config.stem_channels, dim, kernel, patch, padding)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.stem(x))

    def stem(self, x: Tensor, recompute: bool = False) -> Tensor:
        """(B, C, *size) -> (B, config.stem_channels, *size / config.stem_stride); x itself where there is no stem."""
        return x if isinstance(self.backbone, nn.Identity) else self.backbone(x, recompute)

    def tokens(self, x: Tensor) -> Tensor:
        """What the stem gave -> (B, N, D)."""
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


_STEMS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    "resnet": ResNetStem,
    "inception": ConvStem,
    "residual": ConvStem,
}


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T scale) v, then a projection (Vaswani et al., 2017).

    (B, T, D) -> (B, T, D), or (B, n, D) where the `first` n tokens are all that is asked for. `visible` (B, 1, 1, T)
    tells which keys may be seen, see `attention_mask`; a rotation turns queries and keys by their place. With a `grid`
    there is a learned bias for each offset between two of its patches, which are the last tokens; it is added to the
    weights after the softmax (eRPE, "ConvTran"), where `offsets` are the grid's, see `grid.relative_offsets`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        scale: float | None = None,
        qk_norm_eps: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        grid: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5 if scale is None else scale
        self.attn_drop = attn_drop
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.Identity() if qk_norm_eps is None else nn.LayerNorm(head_dim, eps=qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else nn.LayerNorm(head_dim, eps=qk_norm_eps)
        table = None if grid is None else torch.zeros(num_heads, math.prod(2 * n - 1 for n in grid))
        self.relative_bias = None if table is None else nn.Parameter(table)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        visible: Tensor | None = None,
        rotation: Rotation | None = None,
        offsets: Tensor | None = None,
        first: int | None = None,
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (B, T, 3, heads, head_dim)
        # split along its own axis, which gives the three gradients back as one without a second copy
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, heads, T, head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        drop, mask = self.attn_drop if self.training else 0.0, attention_mask(visible, q)
        x = attend(q[:, :, :first], k, v, mask, drop, self.scale)
        if self.relative_bias is not None:
            assert offsets is not None
            x = x + relative_values(v, self.relative_bias, offsets, visible)[:, :, :first]
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # (B, T, D)

    @torch.no_grad()
    def mean_keys(self, x: Tensor) -> Tensor:
        """Keys, before a norm of theirs, averaged over the heads: (B, T, D) -> (B, T, head_dim), without a gradient."""
        if not isinstance(self.qkv, nn.Linear):  # with adapters
            return self.qkv(x).unflatten(2, (3, self.num_heads, -1))[:, :, 1].mean(2)
        # the mean of linear maps is one, a head wide
        weight = self.qkv.weight.unflatten(0, (3, self.num_heads, -1))[1].mean(0)  # (head_dim, D)
        bias = None if self.qkv.bias is None else self.qkv.bias.unflatten(0, (3, self.num_heads, -1))[1].mean(0)
        return F.linear(x, weight, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: float, scale: float) -> Tensor:
    """Values summed under softmax(q k^T * scale): (B, heads, T, d), mask and the rest as torch's fused kernel has them.

    On CPUs that kernel is no faster in bfloat16 than in float32. Two matrix products are, three times in training,
    while the weights between them stay in the cache. Training keeps these: 6 bytes each under autocast.
    """
    few = q.shape[2] * k.shape[2] <= _FEW_TOKENS**2
    if not (few and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, scale=scale)
    logits = (q * scale) @ k.transpose(2, 3)
    if mask is None:
        return F.dropout(logits.softmax(3), drop) @ v
    hidden = ~mask if mask.dtype == torch.bool else mask.isneginf()
    if mask.dtype != torch.bool:
        logits = logits + mask
    # not to -inf: where all keys are hidden, softmax and its gradient were not numbers
    logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    return (F.dropout(logits.softmax(3), drop) @ v).masked_fill(hidden.all(3, keepdim=True), 0)


def attention_mask(visible: Tensor | None, like: Tensor) -> Tensor | None:
    """What attention shall know of its keys: (B, 1, 1, T) as `scaled_dot_product_attention` takes it, in like's dtype.

    `visible` is boolean, True where a key may be seen, or tells how many patches each key stands for, 0 for one that is
    hidden: the logarithms, added to the logits, make it count as often (the proportional attention of "ToMe").
    """
    if visible is None or visible.dtype == torch.bool:
        return visible
    return visible.log().to(like.dtype)


def relative_values(v: Tensor, table: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
    """Values of the patches summed under the weights of their offsets: (B, heads, T, d) -> (B, heads, T, d).

    Args:
        v: values; the last N tokens are the patches. The others have no place, and neither give nor get anything.
        table: (heads, number of offsets).
        offsets: (N, N), as `grid.relative_offsets` gives them.
        mask: (B, 1, 1, T) boolean, True where a token may be seen.
    """
    patches = len(offsets)
    bias = table.index_select(1, offsets.flatten()).unflatten(1, offsets.shape)  # (heads, N, N)
    v, prefix = v[:, :, -patches:], v.shape[2] - patches
    if mask is not None:
        v = v * mask[..., -patches:].mT
    return F.pad(bias @ v, (0, 0, prefix, 0))


def visible_mean(x: Tensor, visible: Tensor | None) -> Tensor:
    """Mean over places: (B, N, D) -> (B, D), of those that `visible` (B, N) tells; 0 where there are none.

    Where `visible` is no boolean, it tells how often each place counts.
    """
    if visible is None:
        return x.mean(1)
    weight = visible[:, :, None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def mean_and_max(x: Tensor, visible: Tensor | None) -> Tensor:
    """Mean and maximum over places side by side: (B, N, D) -> (B, 2 D), of those that `visible` (B, N) tells."""
    largest = x if visible is None else x.masked_fill(~visible[:, :, None], -torch.inf)
    largest = largest.amax(1)
    if visible is not None:  # an example of which nothing was observed
        largest = largest.masked_fill(~visible.any(1)[:, None], 0)
    return torch.cat([visible_mean(x, visible), largest], dim=1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x_i, x_(i + d/2)) of (B, heads, T, d) by the angle of its token and frequency."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class AttentionPool(nn.Module):
    """Pool tokens by one learned query, then a residual MLP (the MAP head of "Scaling Vision Transformers", SigLIP).

    (B, T, D) -> (B, D). `visible` (B, 1, 1, T) tells which tokens may be seen, see `attention_mask`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp.from_config(config)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        q = self.q(self.latent).expand(x.shape[0], -1, -1).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = attention_mask(visible, q)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, 1, head_dim)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x))).squeeze(1)


class Mlp(nn.Module):
    """Linear, activation, dropout, linear, dropout; for swiglu the first layer is a value and its gate side by side.

    SwiGLU is Shazeer's "GLU Variants Improve Transformer": silu(x W1) * (x W2), packed in one matrix product.
    """

    def __init__(self, dim: int, hidden: int, activation: str = "gelu", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden if activation == "swiglu" else hidden)
        self.act = _ACTIVATIONS[activation]()
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    @classmethod
    def from_config(cls, config: ViTConfig) -> "Mlp":
        """The MLP of a block of this config."""
        hidden = int(config.embed_dim * config.mlp_ratio)
        return cls(config.embed_dim, hidden, config.activation, config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwiGLU(nn.Module):
    """(..., 2 H) -> (..., H): silu of the first half times the second."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""

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
    """Stochastic depth: in training, leave out a sample's residual branch with the given rate and scale the others up.

    Per sample, so that the expectation is the branch itself ("Deep Networks with Stochastic Depth"). The branch is
    computed for the samples that keep it, and for no others (as in DINOv2); in evaluation for all.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Add the branch of these inputs to x where it is kept.

        Args:
            x: (B, T, D).
            branch: what is added to x.
            inputs: what the branch reads. Tensors of three axes and more have a row for each sample.
        """
        if not self.training or self.rate == 0:
            return x + branch(*inputs)  # not in place: autograd needs the x that each branch saw
        keep = 1 - self.rate
        if torch.compiler.is_compiling():  # a compiled graph needs shapes that are known
            return x + branch(*inputs) * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)
        kept = torch.empty(len(x)).bernoulli_(keep).nonzero().flatten()  # on the CPU: a GPU would be waited for
        if len(kept) == len(x):
            return torch.add(x, branch(*inputs), alpha=1 / keep)
        kept = kept.to(x.device, non_blocking=x.is_cuda)  # Metal may read what was freed
        y = branch(*(_take_samples(given, kept) for given in inputs))
        dtype = torch.promote_types(x.dtype, y.dtype)
        return x.to(dtype).index_add(0, kept, y.to(dtype), alpha=1 / keep)


def _take_samples(given: Any, samples: Tensor) -> Any:
    """What belongs to these samples; what has no rows for samples, as it is."""
    if isinstance(given, tuple):
        return tuple(_take_samples(part, samples) for part in given)
    return given.index_select(0, samples) if isinstance(given, Tensor) and given.ndim > 2 else given


_NOTHING = nullcontext()


def made_anew(y: Tensor, function: Callable[[Tensor], Tensor], x: Tensor) -> AbstractContextManager[Any]:
    """Within, autograd does not keep y = function(x) for the backward pass, which computes it again.

    For what costs little to compute from an x that is kept anyway: an eighth of a block's memory are outputs of norms.
    Where others decide what is kept, theirs is done: compilers, checkpoints, `save_on_cpu`, and torch.func, which
    forbids hooks.
    """
    if not y.requires_grad or not y.numel():  # all empty tensors are at one place
        return _NOTHING
    hooks: Any = torch._C._autograd
    if (
        torch.compiler.is_compiling()
        or not hooks._saved_tensors_hooks_is_enabled()
        or hooks._top_saved_tensors_default_hooks(True) is not None  # ours alone would be asked
    ):
        return _NOTHING
    place, count = y.data_ptr(), y.numel()

    def pack(kept: Tensor) -> Any:
        if kept.data_ptr() == place and kept.numel() == count:
            return kept.shape, kept.stride()
        return kept.detach()  # else what keeps its own result would keep itself for ever

    def unpack(kept: Any) -> Tensor:
        return function(x.detach()).as_strided(*kept) if isinstance(kept, tuple) else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class Block(nn.Module):
    """A pre-norm encoder block: attention, then MLP, each a residual branch under layer scale and drop path.

    Between the two it merges tokens, where the config wants that.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, eps = config.embed_dim, config.norm_eps
        self.merge_tokens, self.num_prefix_tokens = config.merge_tokens, config.num_prefix_tokens
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(
            dim,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            scale=config.qk_scale,
            qk_norm_eps=eps if config.qk_norm else None,
            attn_drop=config.attn_drop_rate,
            proj_drop=config.drop_rate,
            grid=config.grid if config.relative_bias else None,
        )
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp.from_config(config)
        scaled = config.layer_scale is not None
        self.ls1 = LayerScale(dim, config.layer_scale) if scaled else nn.Identity()  # type: ignore[arg-type]
        self.ls2 = LayerScale(dim, config.layer_scale) if scaled else nn.Identity()  # type: ignore[arg-type]
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        visible: Tensor | None = None,
        rotation: Rotation | None = None,
        offsets: Tensor | None = None,
        first: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """All tokens, or the first ones alone, and what `visible` is after merging.

        Args:
            x: (B, T, D).
            visible: (B, 1, 1, T), see `attention_mask`.
            rotation: of queries and keys, where positions are rope.
            offsets: of the grid, where there is a relative bias.
            first: how many of the first tokens are asked for; they see all others, and none are merged.
        """
        merging = self.merge_tokens and first is None
        keys = self.attn.mean_keys(self.norm1(x)) if merging else None
        x = self.drop_path(x[:, :first], self._attend, x, visible, rotation, offsets, first)
        if keys is not None:
            x, visible = merge_tokens(x, visible, keys, self.merge_tokens, self.num_prefix_tokens)
        return self.drop_path(x, self._transform, x), visible

    def _attend(self, x: Tensor, *seen: Any) -> Tensor:
        y = self.norm1(x)
        with made_anew(y, self.norm1, x):
            y = self.attn(y, *seen)
        return self.ls1(y)

    def _transform(self, x: Tensor) -> Tensor:
        y = self.norm2(x)
        with made_anew(y, self.norm2, x):
            y = self.mlp(y)
        return self.ls2(y)
