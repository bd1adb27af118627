"""Tokens of chosen blocks, as rows or as grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ndvit.config.recipe import Device
from ndvit.explain.attention import origins
from ndvit.inference.batches import Log, pick_device
from ndvit.inference.predict import check_tensors, read_inputs
from ndvit.network.committee import first_transformer, transformers
from ndvit.network.vit import VisionTransformer
from ndvit.parts import ModelParts

Tokens = Tensor | tuple[Tensor, Tensor]


def features(
    model: ModelParts,
    *inputs: Any,
    mask: Tensor | None = None,
    layers: int | Sequence[int] | None = None,
    grid: bool = False,
    prefix: bool = False,
    norm: bool = True,
    batch_size: int = 64,
    device: Device = "auto",
    log: Log = print,
    **reading: Any,
) -> Tensor | list[Any]:
    """Tokens of blocks; arguments and errors as in `Model.features`."""
    network = first_transformer(model.network)
    if (count := len(transformers(model.network))) > 1:
        raise ValueError(f"this model has {count} transformers, which may differ: use model.members[i].features(...)")
    blocks = None if layers is None else chosen_blocks(layers, network.config.depth)
    if any(isinstance(one, Tensor) for one in inputs):
        x, mask = check_tensors(model, inputs, mask)
        x, mask = x.to(model.device), None if mask is None else mask.to(model.device)
        if blocks is None:
            return network.features(x, mask)
        return block_tokens(network, x, mask, blocks, grid, prefix, norm)
    if mask is not None:
        raise ValueError("a mask belongs to a tensor; missing values of raw examples are NaN")
    if model.preprocess is None:
        raise ValueError("the model does not know its preprocessing: pass tensors, or set model.preprocess")
    model.network.to(pick_device(device)).eval()
    found: list[Any] = []
    with torch.inference_mode():
        for read in read_inputs(model, inputs, reading, log):
            for batch in read.loader(batch_size):
                x, observed = batch.x.to(model.device), None if batch.mask is None else batch.mask.to(model.device)
                if blocks is None:
                    found.append(network.features(x, observed).cpu())
                    continue
                made = block_tokens(network, x, observed, blocks, grid, prefix, norm)
                found.append([_map(one, lambda part: part.cpu()) for one in made])
    if blocks is None:
        return torch.cat(found)
    return [_joined(parts) for parts in zip(*found)]


def chosen_blocks(layers: int | Sequence[int], depth: int) -> list[int]:
    """Indices of blocks from 0, see `Model.features`.

    Raises:
        ValueError: for blocks that do not exist.
    """
    if isinstance(layers, int):
        if not 0 < layers <= depth:
            raise ValueError(f"layers is the number of last blocks, 1 to {depth}, or a list of blocks; got {layers}")
        return list(range(depth - layers, depth))
    if not layers or any(not -depth <= i < depth for i in layers):
        raise ValueError(f"the network has blocks 0 to {depth - 1}, got layers {list(layers)}")
    return [i % depth for i in layers]


def block_tokens(
    network: VisionTransformer,
    x: Tensor,
    mask: Tensor | None,
    blocks: Sequence[int],
    grid: bool = False,
    prefix: bool = False,
    norm: bool = True,
) -> list[Tokens]:
    """Tokens after these blocks; arguments and result as in `Model.features`."""
    config, first = network.config, network.num_prefix_tokens
    merging = bool(config.merge_tokens)
    stages = network.stages(x, mask, blocks=set(blocks), traced=range(max(blocks) + 1) if merging and grid else ())
    made: list[Tokens] = []
    for i in blocks:
        tokens = network.norm(stages.blocks[i]) if norm else stages.blocks[i]  # (B, T, D)
        if not grid:
            made.append(tokens if prefix else tokens[:, first:])
            continue
        merges = origins(stages.traces, range(i + 1))
        if merges is not None:
            tokens = (merges > 0).to(tokens).mT @ tokens  # (B, all tokens, D): each has the token that stands for it
        patches = tokens[:, first:].mT.unflatten(2, config.grid)  # (B, D, *grid)
        made.append((patches, tokens[:, :first]) if prefix else patches)
    return made


def _map(tokens: Tokens, change: Any) -> Tokens:
    return tuple(map(change, tokens)) if isinstance(tokens, tuple) else change(tokens)


def _joined(parts: Sequence[Tokens]) -> Tokens:
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(some) for some in zip(*parts))  # type: ignore[return-value]
    return torch.cat(parts)  # type: ignore[arg-type]
