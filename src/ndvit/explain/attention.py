"""Where a transformer looked: attention, rollout, and rollout weighted by gradients, on the tokens of any grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.explain.coordinates import blurred
from ndvit.network.layers import BlockTrace
from ndvit.network.vit import Stages, VisionTransformer

_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)  # by number of axes, less one


def attention(
    network: VisionTransformer,
    x: Tensor,
    mask: Tensor | None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """What the tokens that the head reads attend to, (B, N): the mean over the chosen blocks and heads.

    Without `layers`, it is that of the last block. The sum is 1 without the attention to prefix tokens.
    """
    chosen = [network.config.depth - 1] if layers is None else layers
    with torch.no_grad():
        stages = network.stages(x, mask, traced=_traced(network, chosen))
        total: Tensor | float = 0.0
        for i in chosen:
            weights = _mean_heads(_attention(stages.traces[i]), heads)  # (B, queries, T)
            attended = _readers_of(network, stages, i) @ weights  # (B, 1, T)
            merges = origins(stages.traces, range(i))
            total = total + (attended if merges is None else attended @ merges)[:, 0]
    return _patches(network, total / len(chosen))  # type: ignore[arg-type]


def rollout(
    network: VisionTransformer,
    x: Tensor,
    mask: Tensor | None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Attention multiplied through all blocks ("Quantifying Attention Flow in Transformers", Abnar & Zuidema, 2020).

    Half of each block's output is its input, which the residual connection adds. (B, N), with the sum 1 without
    prefix tokens. Blocks outside `layers` are treated as the identity.
    """
    with torch.no_grad():
        return _rolled_out(network, network.stages(x, mask, traced=_traced(network, layers)), layers, heads)


def midpoint_rollout(
    network: VisionTransformer,
    x: Tensor,
    mask: Tensor | None,
    score: Callable[[Any], Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Rollout times the sum over each patch of gradient times input, both half-way from 0 to the input: (B, N), signed.

    The gradient half-way is integrated gradients with one step: where the network is sure of its answer, the gradient
    at the input itself is small and noisy. Gradients know the answer that they explain, and attention does not; noise
    that one of them marks is seldom marked by the other.
    """
    with torch.enable_grad():
        half = (x / 2).detach().requires_grad_()
        stages = network.stages(half, mask, traced=_traced(network, layers))
        (gradient,) = torch.autograd.grad(score(network.outputs(stages)).sum(), half)
    with torch.no_grad():
        return _sums_of_patches(network, gradient * x) * _rolled_out(network, stages, layers, heads)


def gradient_rollout(
    network: VisionTransformer,
    x: Tensor,
    mask: Tensor | None,
    score: Callable[[Any], Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Attention that increases the score, multiplied through all blocks (Chefer, Gur & Wolf, 2021): (B, N), at least 0.

    The attention of each head is multiplied by its gradient, and what is negative is left out ("Generic
    Attention-model Explainability", equations 5 and 6). The paper reads the class token. Here each token of the last
    block counts by the share of the score that its product with its gradient has, so that any pooling is covered.
    """
    with torch.enable_grad():
        stages = network.stages(x, mask, traced=_traced(network, layers))
        weighted = [stages.encoded, *(_attention(trace) for trace in stages.traces.values())]
        gradients = torch.autograd.grad(score(network.outputs(stages)).sum(), weighted, allow_unused=True)
    with torch.no_grad():
        return _weighted_by_gradients(network, stages, gradients, layers, heads)


def midpoint_gradient_rollout(
    network: VisionTransformer,
    x: Tensor,
    mask: Tensor | None,
    score: Callable[[Any], Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Midpoint rollout times gradient rollout, for networks of many blocks: (B, N), signed.

    All is computed half-way from 0 to the input. Gradient times input of each patch is spread over it and its
    neighbours, because in networks of many blocks its sign may change from patch to patch. What gradients at the
    attention of such networks mark besides the reason for the answer, the other two seldom mark.
    """
    with torch.enable_grad():
        half = (x / 2).detach().requires_grad_()
        stages = network.stages(half, mask, traced=_traced(network, layers))
        weighted = [half, stages.encoded, *(_attention(trace) for trace in stages.traces.values())]
        total = score(network.outputs(stages)).sum()
        gradient, *gradients = torch.autograd.grad(total, weighted, allow_unused=True)
    with torch.no_grad():
        sums = _sums_of_patches(network, gradient * x).unflatten(1, network.config.grid)
        for axis in range(1, sums.ndim):
            lines = sums.movedim(axis, -1)
            near = blurred(lines.reshape(len(lines), -1, lines.shape[-1]), 3)
            sums = near.view(lines.shape).movedim(-1, axis)
        flow = _weighted_by_gradients(network, stages, gradients, layers, heads)
        return sums.flatten(1) * flow * _rolled_out(network, stages, layers, heads)


def origins(traces: dict[int, BlockTrace], blocks: Sequence[int]) -> Tensor | None:
    """Shares of the first tokens in those that these blocks left, (B, T, first tokens); None if none were merged."""
    shares: Tensor | None = None
    for i in blocks:
        merged = traces[i].merged if i in traces else None
        if merged is not None:
            shares = merged if shares is None else merged @ shares
    return shares


def _sums_of_patches(network: VisionTransformer, values: Tensor) -> Tensor:
    """Sums of values (B, C, *size) over the channels and samples of each patch: (B, N)."""
    config = network.config
    pool = _POOLS[len(config.input_size) - 1]
    means = pool(values.sum(1, keepdim=True), config.token_size, config.token_step)  # (B, 1, *grid)
    return means.flatten(1) * math.prod(config.token_size)


def _weighted_by_gradients(
    network: VisionTransformer,
    stages: Stages,
    gradients: Sequence[Tensor | None],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> Tensor:
    """Gradient rollout (B, N) by the gradients at the last tokens and at the attention of each traced block."""
    of_tokens, *of_attention = gradients
    products = {
        id(trace): torch.zeros_like(_attention(trace)) if gradient is None else (_attention(trace) * gradient).relu()
        for trace, gradient in zip(stages.traces.values(), of_attention)
    }

    def mix(shares: Tensor, trace: BlockTrace) -> Tensor:
        return shares + shares @ _mean_heads(products[id(trace)], heads)

    shares = torch.zeros_like(stages.encoded[:, :, 0], dtype=torch.float32)  # (B, T)
    if of_tokens is not None:
        shares += (stages.encoded * of_tokens).sum(2)
    up = shares.relu()
    readers = torch.where(up.any(1, keepdim=True), up, shares.abs())
    return _patches(network, _back_through_blocks(stages, readers[:, None], layers, mix)[:, 0])


def _rolled_out(
    network: VisionTransformer, stages: Stages, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> Tensor:
    """Rollout of the traced blocks, see `rollout`."""

    def mix(shares: Tensor, trace: BlockTrace) -> Tensor:
        return (shares + shares @ _mean_heads(_attention(trace), heads)) / 2

    return _patches(network, _back_through_blocks(stages, _readers(network, stages), layers, mix)[:, 0])


def _back_through_blocks(
    stages: Stages,
    shares: Tensor,
    layers: Sequence[int] | None,
    mix: Callable[[Tensor, BlockTrace], Tensor],
) -> Tensor:
    """Shares (B, 1, T) of the last tokens, as shares of those before the first block, (B, 1, tokens).

    From the last block to the first, a block costs the product of a vector and a matrix; from the first to the last it
    would be one of two matrices.
    """
    for i, trace in sorted(stages.traces.items(), reverse=True):
        if trace.merged is not None:
            shares = shares @ trace.merged.to(shares)
        if layers is None or i in layers:
            unread = _attention(trace).shape[-2] - shares.shape[-1]  # tokens that the last block need not compute
            shares = mix(F.pad(shares, (0, unread)), trace)
    return shares


def _traced(network: VisionTransformer, layers: Sequence[int] | None) -> Sequence[int]:
    """Blocks whose traces are needed: those of `layers`, and all of a network that merges tokens."""
    return range(network.config.depth) if layers is None or network.config.merge_tokens else sorted(layers)


def _attention(trace: BlockTrace) -> Tensor:
    assert trace.attention is not None
    return trace.attention


def _mean_heads(weights: Tensor, heads: Sequence[int] | None) -> Tensor:
    """(B, heads, queries, T) -> (B, queries, T), float32."""
    return (weights if heads is None else weights[:, list(heads)]).mean(1).float()


def _readers_of(network: VisionTransformer, stages: Stages, block: int) -> Tensor:
    """Weights (B, 1, T) of the queries of a block; of the last block, those by which the head reads them."""
    trace = stages.traces[block]
    if block < network.config.depth - 1:
        return _pooled(network, _attention(trace)[:, 0], trace.key_mask)
    readers = _readers(network, stages)
    return readers if trace.merged is None else readers @ trace.merged


def _readers(network: VisionTransformer, stages: Stages) -> Tensor:
    """Weights (B, 1, T) of the last tokens by which the head reads them; for `pooling="map"` the pooling's attention.

    The sum is 1. Patches without observed values do not count.
    """
    if network.attn_pool is None:
        return _pooled(network, stages.encoded, stages.key_mask)
    prefix = network.num_prefix_tokens
    key_mask = None if stages.key_mask is None else stages.key_mask[..., prefix:]
    weights = network.attn_pool.weights(stages.encoded[:, prefix:], key_mask).mean((1, 2))
    return F.pad(weights, (prefix, 0))[:, None]


def _pooled(network: VisionTransformer, tokens: Tensor, key_mask: Tensor | None) -> Tensor:
    """Equal weights (B, 1, T) of those of the tokens (B, T, ...) that the pooling reads: prefix tokens, or patches."""
    config, prefix = network.config, network.num_prefix_tokens
    read = {"token": slice(1 + config.distilled), "prefix_avg": slice(prefix)}.get(config.pooling, slice(prefix, None))
    weights = tokens.new_zeros(tokens.shape[:2], dtype=torch.float32)
    weights[:, read] = 1
    if key_mask is not None:
        weights = weights * key_mask[:, 0, 0]
    return (weights / weights.sum(1, keepdim=True).clamp(min=1e-12))[:, None]


def _patches(network: VisionTransformer, tokens: Tensor) -> Tensor:
    return tokens[:, network.num_prefix_tokens :]
