"""What tests of networks share: weights of ordinary scale, and a batch that fits."""

import torch


def spread(model):
    """Weights of ordinary scale: at the initial .01 every branch is nearly nothing, and a test would see nothing."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.5)
    return model


def batch(model, n=3):
    return torch.randn(n, model.config.in_channels, *model.config.input_size)
