"""The cost of a network: its parameters, and the multiply-adds of one example."""

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


def _count(config: ViTConfig) -> tuple[int, int]:
    with torch.device("meta"):
        network = VisionTransformer(config).eval()
        x = torch.empty(1, config.in_channels, *config.input_size)
        with torch.no_grad(), only_read_tokens(network), FlopCounterMode(display=False) as counter:
            network(x)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2
