"""Grids in any number of dimensions: patches of an array and where they stand.

Shapes and grids are tuples that travel; nothing here asks how many axes there are.
"""

import torch
from torch import Tensor


def patchify(x: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Cut the grid of (B, *size) into patches: (B, N, samples in a patch), patches and samples in row-major order."""
    for axis, patch in enumerate(patch_size):
        x = x.unflatten(2 * axis + 1, (-1, patch))  # (B, g0, p0, ..., gi, pi, size[i + 1], ...)
    dims = len(patch_size)
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2))  # (B, *grid, *patch)
    return x.flatten(1, dims).flatten(2)


def sincos_positions(grid: tuple[int, ...], dim: int) -> Tensor:
    """Fixed sine and cosine position embedding of a grid ("Attention Is All You Need", per axis as in MAE).

    The width is shared equally by the axes, the last axis first; each share is sin(w p) for dim / (2 axes) frequencies
    w = 10000^(-2 i axes / dim), then cos(w p). In two dimensions this is MAE's embedding, value for value.

    Args:
        grid: patches along each axis.
        dim: width of the embedding, divisible by twice the number of axes.

    Returns:
        (number of patches, dim), float32.
    """
    share = dim // len(grid)
    # float64 while computing: at position 1000, float32 sines are off by 1e-4
    frequency = 10000.0 ** -torch.arange(0, 1, 2 / share, dtype=torch.float64)[: share // 2]
    positions = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [p.reshape(-1, 1) * frequency for p in reversed(positions)]  # one (N, share / 2) for each axis
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()
