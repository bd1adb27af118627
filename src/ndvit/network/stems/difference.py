"""A stem that reads the input together with its differences and local statistics, for signals of any scale.

Standardising a signal removes its level and amplitude, and convolutions with few taps see neither slow trends nor the
size of fast changes. Mantis (Feofanov et al., 2025) therefore makes its tokens of the signal, of its differences, and
of the mean and standard deviation in each patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.network.stems.resnet import CONVOLUTIONS, run_stages

_MOST = 8.0  # standard deviations at which differences are clipped: a jump is no larger than that
_FLOOR = 1e-3  # added to standard deviations, so that a constant input stays finite
_LEAST = 1e-2  # added to local standard deviations before their logarithm
_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class DifferenceStem(nn.Module):
    """Convolutions over the input and its differences, beside local means and standard deviations of both.

    (B, C, *size) -> (B, config.stem_channels, *size / config.stem_stride). The differences are those along each axis,
    in units of their standard deviation in the example. The last channels are, over the samples of each output place,
    the mean and the logarithm of the standard deviation of the input and of the differences.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dims, self.stride = len(config.input_size), config.stem_stride
        self.stages = nn.ModuleList()
        channels = config.in_channels * (1 + self.dims)
        for index, (units, stride) in enumerate(zip(config.stem_depths, config.stem_strides)):
            out, stage = config.stem_width * min(index + 1, 2), nn.Sequential()
            for unit in range(units):
                step = 1 if unit else stride
                kernel = max(config.stem_kernel, 2 * step - 1)
                stage.append(CONVOLUTIONS[self.dims - 1](channels, out, kernel, step, kernel // 2))
                stage.append(nn.ReLU())
                channels = out
            self.stages.append(stage)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        axes = tuple(range(2, x.ndim))
        inputs = [x]
        for axis in axes:
            first = torch.zeros_like(x.narrow(axis, 0, 1))
            change = torch.cat(
                [first, x.narrow(axis, 1, x.shape[axis] - 1) - x.narrow(axis, 0, x.shape[axis] - 1)], axis
            )
            inputs.append((change / (_spread(change, axes) + _FLOOR)).clamp(-_MOST, _MOST))
        both = torch.cat(inputs, dim=1)  # (B, (1 + dims) C, *size)
        pool = _POOLS[self.dims - 1]
        mean = pool(both, self.stride)
        # The mean of squares minus the squared mean would be rounding where the input is nearly constant.
        level = F.interpolate(mean, scale_factor=float(self.stride), mode="nearest")
        variance = pool((both - level).square(), self.stride)
        # The root of variance + 1e-8, as the gradient of a root is infinite at 0. The exporter of ONNX files takes a
        # summand of 1e-8 for 0 and removes it, which changes the spread of constant samples.
        spread = 0.1 * (100 * variance + 1e-6).sqrt()
        return torch.cat([run_stages(self.stages, both, recompute), mean, (spread + _LEAST).log()], dim=1)


def _spread(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Standard deviation of each channel of each example: (B, C, 1, ...)."""
    return x.var(axes, correction=0, keepdim=True).add(1e-12).sqrt()
