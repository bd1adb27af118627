"""The cost of a network: its parameters, and the multiply-adds of one example."""

import os
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from ndvit.config import ViTConfig
from ndvit.network.fast import only_read_tokens
from ndvit.network.vit import VisionTransformer


def count_cost(config: ViTConfig) -> tuple[int, int]:
    """Parameters, and multiply-adds (MACs, which papers call FLOPs) of one forward pass of one example.

    Counts the matrix products, convolutions and attention that PyTorch dispatches on the meta device, so that nothing
    is computed or allocated. As in training and prediction, the last block computes only the tokens that the heads
    read (`skip_unread_tokens`), so that the number is a little lower than in papers.
    """
    if config.merge_tokens:
        return _count(config)
    # All blocks but the last cost the same unless tokens are merged: networks of depth 1 and 2 tell the slope.
    (p1, m1), (p2, m2) = (_count(replace(config, depth=depth)) for depth in (1, 2))
    return p1 + (config.depth - 1) * (p2 - p1), m1 + (config.depth - 1) * (m2 - m1)


def check_memory(config: ViTConfig) -> None:
    """Refuse a network whose weights alone are larger than the memory of this machine, before they are made.

    Raises:
        ValueError: with the number of its parameters.
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    with torch.device("meta"):
        one, two = (
            sum(p.numel() for p in VisionTransformer(replace(config, depth=depth)).parameters()) for depth in (1, 2)
        )
    parameters, memory = (
        one + (config.depth - 1) * (two - one),
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )
    if 4 * parameters > memory:
        raise ValueError(
            f"the network would have {parameters:,} parameters ({4 * parameters / 2**30:,.0f} GiB), and this machine "
            f"has {memory / 2**30:,.0f} GiB of memory: use a smaller embed_dim ({config.embed_dim:,}), depth "
            f"({config.depth:,}) or input_size"
        )


def _count(config: ViTConfig) -> tuple[int, int]:
    with torch.device("meta"):
        network = VisionTransformer(config).eval()
        x = torch.empty(1, config.in_channels, *config.input_size)
        with torch.no_grad(), only_read_tokens(network), FlopCounterMode(display=False) as counter:
            network(x)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2
