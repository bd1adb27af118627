"""Helpers for tests of networks: weights of ordinary scale, and inputs that fit."""

import torch

from ndvit import Model


def spread(model):
    """Give all weights an ordinary scale: with the initial .01, every branch is nearly zero and would hide errors."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim > 1 else 0.5)
    return model


def batch(model, n=3):
    if isinstance(model, Model):
        return torch.randn(n, *model.input_shape)
    return torch.randn(n, model.config.in_channels, *model.config.input_size)


def patches_to_mask(model, patches):
    """Mask of patches (B, N) -> mask of values (B, *input_size)."""
    mask = patches.view(len(patches), *model.config.grid)
    for axis, size in enumerate(model.config.token_size, start=1):
        mask = mask.repeat_interleave(size, axis)
    return mask
