"""Grids in any number of dimensions: patches of an array, their positions, and resampling."""

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


def observed_patches(mask: Tensor, patch_size: tuple[int, ...], step: tuple[int, ...]) -> Tensor:
    """Whether any value of each patch was observed: (B, *size) boolean -> (B, N), patches in row-major order.

    Patches are `step` apart; where that is less than `patch_size`, they overlap.
    """
    if step == patch_size:
        return patchify(mask, patch_size).any(2)
    for patch, stride in zip(patch_size, step):
        mask = mask.unfold(1, patch, stride).any(-1).movedim(1, -1)  # the next axis of the grid moves to the front
    return mask.flatten(1)


def linear_matrix(old: int, new: int) -> Tensor:
    """The (new, old) matrix that resamples one axis linearly. Ends map to ends, a single value to the middle."""
    if new == 1:
        return F.one_hot(torch.tensor([old // 2]), old).double()
    rows = torch.eye(old, dtype=torch.float64)[:, None]
    return F.interpolate(rows, size=new, mode="linear", align_corners=True)[:, 0].T


def resize_matrix(old: int, new: int) -> Tensor:
    """The (new, old) matrix that resamples one axis, float64: bicubic, antialiased when it shrinks (PIL's filter)."""
    # The shape is (1, N), because antialiased interpolation of an (N, 1) grid is silently wrong in PyTorch.
    rows = torch.eye(old, dtype=torch.float64)[None, :, None]
    resized = F.interpolate(rows, size=(1, new), mode="bicubic", antialias=True, align_corners=False)
    return resized[0, :, 0].T


def resample(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one matrix to each of the last axes of x; the result is in x's dtype, or float32 if that is narrower."""
    out = x.double()  # computed once, so precision matters more than speed
    for i, matrix in enumerate(reversed(matrices)):
        axis = x.ndim - 1 - i
        out = torch.tensordot(out, matrix, dims=([axis], [1])).movedim(-1, axis)
    return out.to(torch.promote_types(x.dtype, torch.float32))
