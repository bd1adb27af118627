"""Random convolutions beside the transformer: features that need no training, and a linear head solved at once.

MiniRocket (Dempster, Schmidt & Webb, 2021) over the signal and its differences. With tens of examples such features
know what a network cannot learn yet, with thousands the network knows more; both answers together beat either.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = 84  # all ways to place three weights of 2 among nine of -1
TAPS = 9
_MOST_DILATIONS = 32
_GOLDEN = (math.sqrt(5) + 1) / 2
_MOST_PLACES = 4096  # of a long output are enough to take quantiles from
_ROUNDING = 1e-5  # of the largest value: some ten times what nine products of float32 may be off
_CHUNK = 2**22  # values of one convolution at a time: what a cache or two hold


class Rocket(nn.Module):
    """Random convolution features of signals and a linear head over them.

    Kernels are MiniRocket's 84 of nine taps, under dilations that grow exponentially until one spans the signal; each
    kernel sees a random choice of channels. A feature is the share of a kernel's output above a bias, and biases are
    quantiles of outputs on training examples (`draw`). Before the head is solved (`training.rocket`) it says that all
    classes are equally likely.

    Args:
        channels: of the signal.
        length: of the signal, at least 3.
        features: wanted, rounded down to as many for each kernel; at least `smallest`.
        classes: outputs of the head.
    """

    smallest = 2 * KERNELS  # one for each kernel on the signal, and on its differences

    def __init__(self, channels: int, length: int, features: int, classes: int) -> None:
        super().__init__()
        self.channels = channels
        # what is convolved: the signal itself and its differences; for each, (dilation, biases for each kernel)
        self.plans = [_dilations(length - i, features // self.smallest) for i in range(2)]
        count = KERNELS * sum(biases for plan in self.plans for _, biases in plan)
        self.register_buffer("kernels", _kernels())  # (84, 9)
        self.register_buffer("chosen", torch.ones(sum(map(len, self.plans)), KERNELS, channels))
        self.register_buffer("biases", torch.zeros(count))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.head = nn.Linear(count, classes)
        self.head.requires_grad_(False)  # solved, not descended
        self.init_weights()

    kernels: Tensor
    chosen: Tensor
    biases: Tensor
    mean: Tensor
    scale: Tensor

    def init_weights(self) -> None:
        """Forget what was drawn and solved."""
        with torch.no_grad():
            self.kernels.copy_(_kernels())
            self.chosen.fill_(1)
            self.biases.zero_()
            self.mean.zero_()
            self.scale.fill_(1)
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class scores (B, classes) of signals (B, C, L); mask (B, L) is True where a value was observed."""
        features = self.features(x, mask)
        with _exact(x):
            return self.head((features - self.mean) * self.scale)

    @torch.no_grad()
    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, F) of signals (B, C, L), as `forward` standardises them. What the mask hides is not counted."""
        rows = max(1, _CHUNK // (KERNELS * x.shape[2]))
        masks = [None] * len(x) if mask is None else mask.split(rows)
        return torch.cat([self._features(part, shown) for part, shown in zip(x.split(rows), masks)])

    @torch.no_grad()
    def draw(self, x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        """Choose channels and biases by training examples x (n, C, L), with their mask (n, L) or None.

        A bias is a quantile of one kernel's output on one random example, where that was observed; quantiles follow the
        golden ratio, which spreads any number of them evenly.
        """
        for kernel in self.chosen.view(-1, self.channels):  # few channels are likelier than many, as in MiniRocket
            most = math.log2(min(self.channels, TAPS) + 1)
            count = int(2 ** (torch.rand((), generator=generator).item() * most))
            kernel.zero_()[torch.randperm(self.channels, generator=generator)[: max(count, 1)]] = 1
        start, made = 0, 0
        for number, part in enumerate(self._parts(x, mask)):
            picked = torch.randint(len(x), (KERNELS,), generator=generator)
            step = max(1, part.values.shape[2] // _MOST_PLACES)
            shown = None if part.mask is None else part.mask[picked, ::step]
            outputs = self._convolve_each(part.values[picked], part.dilation, number, step)
            places = torch.arange(made + 1, made + KERNELS * part.biases + 1, dtype=torch.float64)
            quantiles = (places * _GOLDEN % 1).view(KERNELS, part.biases)
            biases = _quantiles(outputs.double(), shown, quantiles.to(outputs.device))
            # A bias is an output itself where signals have few levels: that one, or 0 where a signal stands still, must
            # not be above or below as another batch size or device rounds it.
            biases += _ROUNDING * part.values[picked].double().abs().amax((1, 2))[:, None]
            made += biases.numel()
            self.biases[start:made] = biases.T.flatten().to(self.biases)
            start = made

    def _features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        made, start = [], 0
        for number, part in enumerate(self._parts(x, mask)):
            biases = self.biases[start : start + KERNELS * part.biases].view(part.biases, KERNELS, 1)
            start += KERNELS * part.biases
            outputs = self._convolve(part.values, part.dilation, number)
            made.append(_shares_above(outputs, biases, part.dilation, part.mask))
        return torch.cat(made, dim=1)

    def _parts(self, x: Tensor, mask: Tensor | None) -> list["_Part"]:
        inputs = [(x, mask), (x.diff(dim=2), None if mask is None else mask[:, 1:] & mask[:, :-1])]
        return [_Part(*both, *rest) for both, plan in zip(inputs, self.plans) for rest in plan]

    def _convolve(self, x: Tensor, dilation: int, number: int) -> Tensor:
        """(B, C, L) -> (B, 84, L)."""
        weight = self._weight(number)
        # Biases and head are of outputs in float32, and coarser ones lie on the other side of many a bias.
        with _exact(x):
            return F.conv1d(x.to(weight), weight, padding=TAPS // 2 * dilation, dilation=dilation)

    def _convolve_each(self, x: Tensor, dilation: int, number: int, step: int) -> Tensor:
        """Signals (84, C, L), one for each kernel -> (84, L / step), at every step-th place."""
        weight, length = self._weight(number), x.shape[2]
        padded = F.pad(x.to(weight), (TAPS // 2 * dilation,) * 2)
        taps = (weight[:, :, i, None] * padded[:, :, i * dilation :][:, :, :length:step] for i in range(TAPS))
        return torch.stack([tap.sum(1) for tap in taps]).sum(0)

    def _weight(self, number: int) -> Tensor:
        return self.chosen[number, :, :, None] * self.kernels[:, None]  # (84, C, 9)


class _Part(NamedTuple):
    """What kernels of one dilation see: the signal or its differences (n, C, L), and where observed (n, L) or None."""

    values: Tensor
    mask: Tensor | None
    dilation: int
    biases: int


@contextmanager
def _exact(x: Tensor) -> Iterator[None]:
    """Compute in float32 on the device of x: without autocast and, on a GPU, without TF32, which is cuDNN's default."""
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(x.device.type):
            stack.enter_context(torch.autocast(x.device.type, enabled=False))
        if x.is_cuda:
            now = torch.backends.cudnn
            stack.enter_context(now.flags(now.enabled, now.benchmark, now.deterministic, allow_tf32=False))
        yield


def _quantiles(outputs: Tensor, shown: Tensor | None, quantiles: Tensor) -> Tensor:
    """Quantiles (rows, q) of each row of outputs (rows, L) where it is shown; 0 of a row of which nothing is."""
    if shown is None:
        shown = torch.ones_like(outputs, dtype=torch.bool)
    last = (shown.sum(1, keepdim=True) - 1).clamp(min=0)
    ordered = outputs.masked_fill(~shown, torch.inf).sort(1).values  # what is hidden comes last
    at = quantiles * last
    below = at.long()
    low, high = ordered.gather(1, below), ordered.gather(1, torch.minimum(below + 1, last))
    return torch.where(shown.any(1, keepdim=True), torch.lerp(low, high, at - below), 0)


def _shares_above(outputs: Tensor, biases: Tensor, dilation: int, mask: Tensor | None) -> Tensor:
    """Share of each output above each of its biases: (B, 84, L) and (count, 84, 1) -> (B, count * 84).

    Every other one counts only what no padding touches, where there is such.
    """
    length, edge = outputs.shape[2], TAPS // 2 * dilation
    shares = outputs.new_empty(len(biases), *outputs.shape[:2])
    weight = None if mask is None else mask[:, None].to(outputs.dtype)  # (B, 1, L)
    above = torch.empty_like(outputs)  # comparing into numbers is ten times faster than the mean of a boolean tensor
    for i, bias in enumerate(biases):
        part = slice(edge, length - edge) if i % 2 and length > 2 * edge else slice(None)
        higher = torch.gt(outputs[:, :, part], bias, out=above[:, :, part])
        if weight is None:
            torch.mean(higher, 2, out=shares[i])
        else:
            shown = weight[:, :, part]
            shares[i] = (higher * shown).sum(2) / shown.sum(2).clamp(min=1)
    return shares.transpose(0, 1).flatten(1)


def _kernels() -> Tensor:
    kernels = torch.full((KERNELS, TAPS), -1.0)
    for row, places in zip(kernels, itertools.combinations(range(TAPS), 3)):
        row[list(places)] = 2
    return kernels


def _dilations(length: int, biases: int) -> list[tuple[int, int]]:
    """Dilations of kernels over a signal, and how many of each kernel's biases belong to each: MiniRocket's choice."""
    most = math.log2(max((length - 1) / (TAPS - 1), 1))
    steps = min(biases, _MOST_DILATIONS)
    whole = (np.logspace(0, most, steps, base=2) + 1e-9).astype(int)  # 2.9999999999999996 is 3 on any machine
    dilations, times = np.unique(whole, return_counts=True)
    counts = times * biases // steps
    for i in range(biases - int(counts.sum())):
        counts[i % len(counts)] += 1
    return [(int(d), int(n)) for d, n in zip(dilations, counts) if n]
