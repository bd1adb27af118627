"""Light stems, mainly for signals: convolutions with BatchNorm in residual groups, in any number of dimensions.

Early convolutions find short patterns that a transformer learns only from much data ("Early Convolutions Help
Transformers See Better", 2021).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.network.stems.resnet import CONVOLUTIONS, run_stages

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ConvStem(nn.Module):
    """Stages of convolutions, each with its own stride and a shortcut.

    (B, C, *size) -> (B, config.stem_channels, *size / config.stem_stride).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dims, width, channels = len(config.input_size), config.stem_width, config.in_channels
        self.stages = nn.ModuleList()
        for index, (units, stride) in enumerate(zip(config.stem_depths, config.stem_strides)):
            if config.stem == "inception":
                kernel, dilations = config.stem_kernel, config.stem_dilations
                self.stages.append(InceptionGroup(dims, channels, width, units, stride, kernel, dilations))
                channels = len(dilations) * width
            else:
                out = 2 * width if index else width
                firsts = [(channels, stride)] + [(out, 1)] * (units - 1)
                blocks = nn.Sequential(*(ResidualUnit(dims, before, out, step) for before, step in firsts))
                self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
                channels = out

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        return run_stages(self.stages, x, recompute)


class InceptionGroup(nn.Module):
    """Inception modules with a shortcut (InceptionTime, Ismail Fawaz et al., 2020).

    (B, in_channels, *size) -> (B, len(dilations) width, *size / stride).
    """

    def __init__(
        self, dims: int, in_channels: int, width: int, units: int, stride: int, kernel: int, dilations: tuple[int, ...]
    ) -> None:
        super().__init__()
        out = len(dilations) * width
        firsts = [(in_channels, stride)] + [(out, 1)] * (units - 1)
        self.blocks = nn.ModuleList(Inception(dims, c, width, step, kernel, dilations) for c, step in firsts)
        self.shortcut = _shortcut(dims, in_channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](x)
        for block in self.blocks[1:]:
            y = block(F.gelu(y))
        return F.gelu(y + self.shortcut(x))


class Inception(nn.Module):
    """Parallel convolutions of one kernel size and several dilations, concatenated, then BatchNorm; no activation.

    (B, in_channels, *size) -> (B, len(dilations) width, *size / stride). If there are more channels than `width`, a
    convolution of width 1 reduces them to `width` first.
    """

    # Dilations, as in MiniRocket, replace InceptionTime's long kernels: on CPUs (oneDNN) a kernel of 39 taps runs at a
    # third of the rate of a matrix product, dilated kernels of 9 taps with a multiple of 16 channels at the full rate.
    # There is no branch of max pooling, which takes eight times as long as a convolution there.
    def __init__(
        self, dims: int, in_channels: int, width: int, stride: int, kernel: int, dilations: tuple[int, ...]
    ) -> None:
        super().__init__()
        inner = min(in_channels, width)
        self.reduce = _conv(dims, in_channels, inner, 1) if in_channels > width else nn.Identity()
        self.branches = nn.ModuleList(_conv(dims, inner, width, kernel, stride, dilation) for dilation in dilations)
        self.norm = BATCH_NORMS[dims - 1](len(dilations) * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.norm(torch.cat([branch(x) for branch in self.branches], dim=1))


class ResidualUnit(nn.Module):
    """Convolutions 9-5-3 beside a shortcut: (B, in_channels, *size) -> (B, channels, *size / stride).

    The ResNet of "Time Series Classification from Scratch" (Wang, Yan & Oates, 2017), whose kernels are 8, 5 and 3.
    """

    def __init__(self, dims: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        norm = BATCH_NORMS[dims - 1]
        self.conv1, self.norm1 = _conv(dims, in_channels, channels, 9, stride), norm(channels)
        self.conv2, self.norm2 = _conv(dims, channels, channels, 5), norm(channels)
        self.conv3, self.norm3 = _conv(dims, channels, channels, 3), norm(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = norm(channels) if same else _shortcut(dims, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _conv(dims: int, before: int, after: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    """A convolution without bias to ceil(size / stride); its kernel grows with the stride, to skip no samples."""
    if kernel > 1:
        kernel = max(kernel, 2 * stride - 1)
    padding = kernel // 2 * dilation
    return CONVOLUTIONS[dims - 1](before, after, kernel, stride, padding, dilation, bias=False)


def _shortcut(dims: int, before: int, after: int, stride: int) -> nn.Sequential:
    conv, norm = _conv(dims, before, after, 1, stride), BATCH_NORMS[dims - 1](after)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm))
