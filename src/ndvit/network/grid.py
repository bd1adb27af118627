"""Grids in any number of dimensions: patches of an array, where they stand, and how a grid is resampled.

Shapes and grids are tuples that travel; nothing here asks how many axes there are.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def patchify(x: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Cut the grid of (B, *size) into patches: (B, N, samples in a patch), patches and samples in row-major order."""
    for axis, patch in enumerate(patch_size):
        x = x.unflatten(2 * axis + 1, (-1, patch))  # (B, g0, p0, ..., gi, pi, size[i + 1], ...)
    dims = len(patch_size)
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2))  # (B, *grid, *patch)
    return x.flatten(1, dims).flatten(2)


def sincos_positions(grid: tuple[int, ...], dim: int, endpoint: bool = False) -> Tensor:
    """Fixed sine and cosine position embedding of a grid ("Attention Is All You Need", per axis as in MAE).

    The width is shared equally by the axes, the last axis first; each share is sin(w p) for dim / (2 axes) frequencies
    w = 10000^(-2 i axes / dim), then cos(w p). In two dimensions this is MAE's embedding, value for value.

    Args:
        grid: patches along each axis.
        dim: width of the embedding, divisible by twice the number of axes.
        endpoint: spread the exponents so that the last frequency is exactly 1 / 10000, as big_vision does.

    Returns:
        (number of patches, dim), float32.
    """
    count = dim // len(grid) // 2
    # float64 while computing: at position 1000, float32 sines are off by 1e-4
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / (count - endpoint))
    positions = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [p.reshape(-1, 1) * frequency for p in reversed(positions)]  # one (N, share / 2) for each axis
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def rope_periods(head_dim: int, dims: int, base: float) -> Tensor:
    """Periods of the rotations of one axis, base^(2 i dims / head_dim): (head_dim / (2 dims),), float32 (DINOv3)."""
    share = head_dim // (2 * dims)
    return base ** (torch.arange(share, dtype=torch.float32) / share)


def rotary_table(grid: tuple[int, ...], periods: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines that rotate queries and keys by the place of their patch ("RoFormer"; per axis as in DINOv3).

    An axis runs from -1 to 1 whatever its number of patches, so one set of weights serves every grid. Prefix tokens
    stand nowhere and are rotated by nothing.

    Args:
        grid: patches along each axis.
        periods: as `rope_periods` gives them.
        prefix: tokens before the patches.

    Returns:
        cos and sin, each (prefix + patches, head_dim).
    """
    axes = [(torch.arange(n, device=periods.device) + 0.5) / n * 2 - 1 for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (N, axes)
    angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)  # (N, head_dim)
    angles = F.pad(angles, (0, 0, prefix, 0))
    return angles.cos(), angles.sin()


def relative_offsets(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Where the offset between two patches of a grid stands in a table of all offsets: (N, N), int64.

    The table runs row-major through the 2 g - 1 offsets of each axis, from -(g - 1) to g - 1; entry (i, j) is the place
    of j's offset from i.
    """
    places = torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij"), dim=-1)
    places = places.flatten(0, -2)  # (N, axes)
    offsets = places[None] - places[:, None]  # (N, N, axes)
    index = offsets.new_zeros(offsets.shape[:2])
    for axis, n in enumerate(grid):
        index = index * (2 * n - 1) + offsets[..., axis] + n - 1
    return index


def linear_matrix(old: int, new: int) -> Tensor:
    """The (new, old) matrix that resamples one axis linearly, ends on ends, float64; one new value is the middle."""
    if new == 1:
        return F.one_hot(torch.tensor([old // 2]), old).double()
    rows = torch.eye(old, dtype=torch.float64)[:, None]
    return F.interpolate(rows, size=new, mode="linear", align_corners=True)[:, 0].T


def resize_matrix(old: int, new: int) -> Tensor:
    """The (new, old) matrix that resamples one axis: bicubic, antialiased where it shrinks (PIL's filter), float64."""
    # shape (1, N): antialiased interpolation of an (N, 1) grid is silently wrong in torch
    rows = torch.eye(old, dtype=torch.float64)[None, :, None]
    resized = F.interpolate(rows, size=(1, new), mode="bicubic", antialias=True, align_corners=False)
    return resized[0, :, 0].T


def resample(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix to each of the last axes of x; the result is in x's dtype, or float32 if that is narrower."""
    out = x.double()  # the values are computed once: exactness is worth more than speed
    for i, matrix in enumerate(reversed(matrices)):
        axis = x.ndim - 1 - i
        out = torch.tensordot(out, matrix, dims=([axis], [1])).movedim(-1, axis)
    return out.to(torch.promote_types(x.dtype, torch.float32))
