"""From tokens to samples of the network's input, and from these to samples of the raw example; sums are preserved."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.config import ViTConfig
from ndvit.data.preprocess.base import Extent


def to_samples(values: Tensor, size: Sequence[int], token_size: Sequence[int], step: Sequence[int]) -> Tensor:
    """Spread the value of each token evenly over the samples that it covers: (B, *grid) -> (B, *size).

    Tokens are `step` samples apart. Samples that belong to several tokens get the sum, samples of none get 0.
    """
    for axis, (length, width, stride) in enumerate(zip(size, token_size, step), start=1):
        moved = values.movedim(axis, -1)
        lines = moved.reshape(-1, 1, moved.shape[-1])
        lines = F.conv_transpose1d(lines, lines.new_full((1, 1, width), 1 / width), stride=stride)
        lines = F.pad(lines, (0, length - lines.shape[-1]))
        values = lines.view(*moved.shape[:-1], length).movedim(-1, axis)
    return values


def tokens_to_samples(values: Tensor, config: ViTConfig) -> Tensor:
    """Spread values of all patches (B, N) over the samples that they cover: (B, 1, *input_size)."""
    grid = values.unflatten(1, config.grid)
    return to_samples(grid, config.input_size, config.token_size, config.token_step)[:, None]


def blurred(values: Tensor, width: int) -> Tensor:
    """Spread each value evenly over the `width` samples around it that exist: (B, C, L) -> (B, C, L)."""
    length, left = values.shape[2], width // 2
    places = torch.arange(length, device=values.device)
    count = (places + width - left).clamp(max=length) - (places - left).clamp(min=0)
    total = F.pad((values / count).double().cumsum(2), (1, 0))  # sums of all values before each place
    first, last = (places - width + left + 1).clamp(min=0), (places + left + 1).clamp(max=length)
    return (total[:, :, last] - total[:, :, first]).to(values.dtype)


def to_raw(values: np.ndarray, extents: Sequence[Extent]) -> np.ndarray:
    """Spread each value of the network's input over the samples of the raw example that it was computed from.

    Where the example was reduced, a value is divided evenly; where it was enlarged, the values of one sample are added.
    Values of padding are dropped, and samples that were cropped away get 0.

    Args:
        values: (channels, *size).
        extents: where each axis of the input lies in the example.

    Returns:
        (channels, *lengths of the example), float32.
    """
    out = values.astype(np.float64)
    for axis, (begin, end, length) in enumerate(extents, start=1):
        if (begin, end) == (0, length) and out.shape[axis] == length:
            continue
        lines = np.moveaxis(out, axis, -1)
        edges = np.linspace(begin, end, lines.shape[-1] + 1)
        total = np.concatenate([np.zeros((*lines.shape[:-1], 1)), lines.cumsum(-1)], axis=-1)
        # The sum up to each edge between two samples of the example, interpolated between the edges of the values.
        at = np.interp(np.arange(length + 1), edges, np.arange(len(edges)))
        low = np.minimum(at.astype(int), len(edges) - 2)
        up_to = total[..., low] + (at - low) * (total[..., low + 1] - total[..., low])
        out = np.moveaxis(np.diff(up_to, axis=-1), -1, axis)
    return out.astype(np.float32)


def normalised(values: Tensor) -> Tensor:
    """Values (B, ...) divided by the sum of their absolute values; zeros stay zeros."""
    total = values.abs().flatten(1).sum(1)
    return values / torch.where(total > 0, total, 1).view(-1, *[1] * (values.ndim - 1))
