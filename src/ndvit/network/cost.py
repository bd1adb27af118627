"""What a network costs: its parameters and the multiply-adds of one example, counted, not estimated."""

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from ndvit.config import ViTConfig
from ndvit.network.vit import VisionTransformer


def count_cost(config: ViTConfig) -> tuple[int, int]:
    """Parameters, and multiply-adds (MACs, which papers call FLOPs) of one forward pass of one example.

    Counts matrix products, convolutions and attention as torch's dispatcher sees them, on the meta device: no memory is
    taken and nothing is computed, whatever the size. Blocks are alike, so networks of depth 1 and 2 tell the rest,
    except where each has fewer tokens than the one before. Where the heads read a token or two the network computes no
    others in its last block, so that this is a little less than papers count.
    """
    if config.merge_tokens:
        return _count(config)
    (p1, m1), (p2, m2) = (_count(replace(config, depth=depth)) for depth in (1, 2))
    return p1 + (config.depth - 1) * (p2 - p1), m1 + (config.depth - 1) * (m2 - m1)


def _count(config: ViTConfig) -> tuple[int, int]:
    with torch.device("meta"):
        model = VisionTransformer(config).eval()
        x = torch.empty(1, config.in_channels, *config.input_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
