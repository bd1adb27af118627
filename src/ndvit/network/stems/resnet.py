"""The ResNet stem of the ViT paper's hybrids, in any number of dimensions.

BiT's ResNet-v2 root with ResNet-v1 units: weight-standardised convolutions, GroupNorm, TensorFlow's SAME padding
("An Image is Worth 16x16 Words", "Big Transfer"). Names follow timm's state dicts.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.config import StemNumerics, ViTConfig
from ndvit.network.checkpointing import checkpointed

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class ResNetStem(nn.Module):
    """A convolution of width 7, max pooling, stages of bottleneck units; every stage but the first halves the grid.

    (B, C, *size) -> (B, config.stem_channels, *size / config.stem_stride).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dims, width, numerics = len(config.input_size), config.stem_width, config.stem_numerics
        self.stem = nn.Sequential(
            OrderedDict(
                conv=StdConv(dims, config.in_channels, width, kernel=7, stride=2, numerics=numerics),
                norm=_group_norm(width, numerics),
                act=nn.ReLU(),
                pool=MaxPoolSame(),
            )
        )
        self.stages, channels = nn.ModuleList(), width
        for stage, units in enumerate(config.stem_depths):
            features, blocks = width * 2**stage, []
            for unit in range(units):
                stride = 2 if stage > 0 and unit == 0 else 1
                blocks.append(Bottleneck(dims, channels, features, stride, numerics))
                channels = 4 * features
            self.stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        return run_stages(self.stages, self.stem(x), recompute)  # the root gives (B, width, *size / 4)


def run_stages(stages: nn.ModuleList, x: Tensor, recompute: bool) -> Tensor:
    """Apply the stages in order; with `recompute` each is computed again in the backward pass, to save memory."""
    for stage in stages:
        x = checkpointed(stage, x) if recompute else stage(x)
    return x


class Bottleneck(nn.Module):
    """Convolutions 1-3-1 beside a shortcut: (B, in_channels, *size) -> (B, 4 features, *size / stride)."""

    def __init__(self, dims: int, in_channels: int, features: int, stride: int, numerics: StemNumerics) -> None:
        super().__init__()
        out = 4 * features
        self.conv1 = StdConv(dims, in_channels, features, kernel=1, stride=1, numerics=numerics)
        self.norm1 = _group_norm(features, numerics)
        self.conv2 = StdConv(dims, features, features, kernel=3, stride=stride, numerics=numerics)
        self.norm2 = _group_norm(features, numerics)
        self.conv3 = StdConv(dims, features, out, kernel=1, stride=1, numerics=numerics)
        self.norm3 = _group_norm(out, numerics)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out:
            conv = StdConv(dims, in_channels, out, kernel=1, stride=stride, numerics=numerics)
            self.downsample = nn.Sequential(OrderedDict(conv=conv, norm=_group_norm(out, numerics)))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


class StdConv(nn.Module):
    """A convolution without bias whose kernels have mean 0 and deviation 1 ("Weight Standardization"), SAME padding."""

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, *, kernel: int, stride: int, numerics: StemNumerics
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.numerics = kernel, stride, numerics
        self.convolve = _CONVOLVE[dims - 1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *[kernel] * dims))

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_same(x, self.kernel, self.stride)
        return self.convolve(x, self.standardised(), stride=self.stride)

    def standardised(self) -> Tensor:
        """The standardised kernels."""
        flat = self.weight.float().flatten(1)  # bfloat16 has too few digits for a variance
        variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
        if self.numerics == "google":
            flat = (flat - mean) / (variance.sqrt() + 1e-5)
        else:
            flat = (flat - mean) * torch.rsqrt(variance + 1e-8)
        return flat.view_as(self.weight).to(self.weight.dtype)


class MaxPoolSame(nn.Module):
    """Max pooling of width 3 and stride 2 with SAME padding, for values of at least 0."""

    def forward(self, x: Tensor) -> Tensor:
        # Padding by 0 is the same as padding by -inf after a ReLU.
        return _MAX_POOL[x.ndim - 3](_pad_same(x, 3, 2), kernel_size=3, stride=2)


def _group_norm(channels: int, numerics: StemNumerics) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6 if numerics == "google" else 1e-5)  # the defaults of Flax and PyTorch


def _pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad every axis by zeros so that there are ceil(size / stride) windows; an odd zero goes to the end."""
    pads: list[int] = []
    for size in reversed(x.shape[2:]):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads) if any(pads) else x
