"""Position embeddings of grids in any number of dimensions: sines and cosines, rotations, relative offsets.

Learned positions are parameters of `VisionTransformer`, which also says where each kind is applied.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(grid: tuple[int, ...], dim: int, endpoint: bool = False) -> Tensor:
    """Fixed sine and cosine position embedding of a grid ("Attention Is All You Need", per axis as in MAE).

    The width is shared equally by the axes, the last axis first; each share is sin(w p) for dim / (2 axes) frequencies
    w = 10000^(-2 i axes / dim), then cos(w p). In two dimensions this is MAE's embedding, value for value.

    `dim` is divisible by twice the number of axes. With `endpoint`, the exponents are spread so that the last frequency
    is exactly 1 / 10000, as big_vision does.

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
    """Cosines and sines that rotate queries and keys by the position of their patch ("RoFormer"; as in DINOv3).

    Positions run from -1 to 1 along each axis for any number of patches, so that one set of weights serves every grid.
    The first `prefix` tokens have no position and are not rotated. For `periods` see `rope_periods`.

    Returns:
        cos and sin, each (prefix + patches, head_dim).
    """
    axes = [(torch.arange(n, device=periods.device) + 0.5) / n * 2 - 1 for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (N, axes)
    angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)  # (N, head_dim)
    angles = F.pad(angles, (0, 0, prefix, 0))
    return angles.cos(), angles.sin()


def xpos_decay(head_dim: int, dims: int) -> Tensor:
    """Base of the decay of each value of a head over 512 patches, see `xpos_table`: (head_dim,), float32."""
    share = head_dim // dims
    base = (torch.arange(0, share, 2, dtype=torch.float32) + 0.4 * share) / (1.4 * share)
    return base.tile(2 * dims)


def xpos_table(grid: tuple[int, ...], periods: Tensor, decay: Tensor, prefix: int) -> tuple[Tensor, ...]:
    """Rotations whose products also decay with the distance ("A Length-Extrapolatable Transformer", xPos, 2022).

    Patches are numbered from 0 along each axis. Queries at place n are multiplied by decay^(n / 512) and keys by its
    inverse, so that a logit depends on differences of places alone. The `prefix` tokens stand behind the last patch.

    Args:
        grid: patches along each axis.
        periods: of the rotations, in patches, (head_dim / (2 axes),).
        decay: (head_dim,), see `xpos_decay`.
        prefix: number of prefix tokens.

    Returns:
        cos and sin for queries, then cos and sin for keys, each (prefix + patches, head_dim).
    """
    axes = [torch.arange(n, device=periods.device, dtype=periods.dtype) for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (N, axes)
    end = torch.tensor(grid, device=periods.device, dtype=periods.dtype)
    places = torch.cat([end.expand(prefix, -1), places])[:, :, None]  # (T, axes, 1)
    angles = (2 * math.pi * places / periods).flatten(1).tile(2)  # (T, head_dim)
    power = (places - end[:, None] // 2).expand(-1, -1, len(periods)).flatten(1).tile(2) / 512  # (T, head_dim)
    cos, sin, scale = angles.cos(), angles.sin(), decay**power
    return cos * scale, sin * scale, cos / scale, sin / scale


def relative_offsets(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Index of the offset between each two patches of a grid in a table of all offsets: (N, N), int64.

    The table is row-major over the 2 g - 1 offsets of each axis, from -(g - 1) to g - 1; entry (i, j) belongs to the
    offset of patch j from patch i.
    """
    places = torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij"), dim=-1)
    places = places.flatten(0, -2)  # (N, axes)
    offsets = places[None] - places[:, None]  # (N, N, axes)
    index = offsets.new_zeros(offsets.shape[:2])
    for axis, n in enumerate(grid):
        index = index * (2 * n - 1) + offsets[..., axis] + n - 1
    return index
