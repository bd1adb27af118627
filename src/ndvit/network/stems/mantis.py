"""The token generator of Mantis ("Mantis: Lightweight Calibrated Foundation Model for Time Series Classification",
Feofanov et al., 2025), in any number of dimensions.

It describes each window of a signal by its shape, which convolutions see in the standardised signal, and by its level
and amplitude, which standardising removes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.network.checkpointing import checkpointed
from ndvit.network.grid import patchify
from ndvit.network.stems.resnet import CONVOLUTIONS

SCALES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
"""Orders of magnitude of the means and standard deviations that `ScalarEncoder` tells apart."""
_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_SPREAD_FLOOR = 1e-5  # added to standard deviations, so that a constant signal stays finite
_LEAST_VARIANCE = 1e-30  # far below any variance that matters: the gradient of a root is infinite at 0


class MantisStem(nn.Module):
    """Convolutions of a signal and its differences, averaged over windows, beside each window's mean and deviation.

    (B, 1, *size) -> (B, config.stem_channels, *size / config.stem_stride). The channels are the windows' means of the
    convolved differences along each axis, of the convolved input, and the encodings of mean and standard deviation.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dims = len(config.input_size)
        self.window, self.grid = (config.stem_stride,) * dims, tuple(s // config.stem_stride for s in config.input_size)
        self.branches = nn.ModuleList(
            WindowedConvolution(dims, config.stem_width, config.stem_kernel, self.window) for _ in range(dims + 1)
        )
        self.scalars = nn.ModuleList(ScalarEncoder(config.stem_width // 8) for _ in range(2))

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        windows = patchify(x[:, 0], self.window)  # (B, N, samples)
        statistics = windows.mean(2), _deviation(windows, (2,)).squeeze(2)  # each (B, N)
        inputs = [_difference(x, axis) for axis in range(2, x.ndim)] + [x]
        parts = [checkpointed(b, y) if recompute else b(y) for b, y in zip(self.branches, inputs)]  # (B, W, *grid)
        encoded = [encode(values).mT.unflatten(2, self.grid) for encode, values in zip(self.scalars, statistics)]
        return torch.cat([*parts, *encoded], dim=1)


class WindowedConvolution(nn.Module):
    """Standardise each example, convolve, normalise each position, average over windows.

    (B, 1, *size) -> (B, width, *size / window).
    """

    def __init__(self, dims: int, width: int, kernel: int, window: tuple[int, ...]) -> None:
        super().__init__()
        self.window = window
        self.conv = CONVOLUTIONS[dims - 1](1, width, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        x = (x - x.mean(axes, keepdim=True)) / (_deviation(x, axes) + _SPREAD_FLOOR)
        x = self.norm(self.conv(x).movedim(1, -1)).movedim(-1, 1)  # (B, width, *size)
        return _POOLS[len(axes) - 1](x, self.window)


class ScalarEncoder(nn.Module):
    """A vector for a number of any order of magnitude ("NuTime", Lin et al., 2023): (B, N) -> (B, N, width).

    For each of nine scales k, the number is encoded as norm(x slope + k shift). Scales near the number have the most
    weight in the sum of these encodings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.empty(len(SCALES), width))
        self.shift = nn.Parameter(torch.empty(len(SCALES), width))
        self.norm_weight = nn.Parameter(torch.empty(len(SCALES) * width))  # flat, as norms are exempt from weight decay
        self.norm_bias = nn.Parameter(torch.empty(len(SCALES) * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill slope and shift with uniform values of 0 to 1, as Mantis does."""
        nn.init.uniform_(self.slope)
        nn.init.uniform_(self.shift)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)

    def forward(self, x: Tensor) -> Tensor:
        scales = self.slope.new_tensor(SCALES)
        x = x[..., None]  # (B, N, 1)
        weight = (x.abs() / scales + 1.1).log().reciprocal()  # (B, N, 9)
        weight = weight / weight.sum(-1, keepdim=True)
        width = self.slope.shape[1]
        y = F.layer_norm(x[..., None] * self.slope + scales[:, None] * self.shift, (width,), eps=1e-15)
        y = y * self.norm_weight.view(-1, width) + self.norm_bias.view(-1, width)  # (B, N, 9, width)
        return (y * weight[..., None]).sum(-2)


def _deviation(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Standard deviation along axes, which stay with length 1. Of equal values its gradient is 0."""
    return (x.var(axes, keepdim=True) + _LEAST_VARIANCE).sqrt()


def _difference(x: Tensor, axis: int) -> Tensor:
    """The change from each sample to the next along an axis; 0 for the last one."""
    change = x.diff(dim=axis)
    return torch.cat([change, torch.zeros_like(x.narrow(axis, 0, 1))], axis)
