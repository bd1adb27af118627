"""Random convolutions of signals: features that need no training, and a linear head that is solved in closed form.

MiniRocket (Dempster, Schmidt & Webb, 2021) over the signal and its differences. With tens of examples its answers are
better than those of a trained network, with thousands of examples worse; the mean of both is better than either.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.network.solved import SolvedNetwork, exactly

KERNELS = 84  # all ways to place three weights of 2 among nine weights, the others being -1
TAPS = 9
_MOST_DILATIONS = 32
_WIDEST = 12  # bands of frequency in a mean
_DIFFERENCES = 0.6  # share of kernels that read a difference of bands, before those beside the last ones
_GOLDEN = (math.sqrt(5) + 1) / 2
_MOST_PLACES = 4096  # samples of an output that quantiles are taken from
_ROUNDING = 1e-5  # of the largest value: some ten times the error of nine products in float32
_COMPARED = 2**18  # values up to which all comparisons of a dilation are made at once
_CHUNK = 2**20  # values of one convolution at a time, so that they stay in the cache


class RandomConvolutions(SolvedNetwork):
    """Random convolution features of signals and a linear head: (B, C, L) -> (B, outputs).

    The kernels are MiniRocket's 84 of nine taps, with dilations that grow exponentially until one spans the signal;
    each kernel reads a random choice of channels. A feature is the share of a kernel's output above a bias; biases are
    quantiles of outputs on training examples, see `draw`.

    Channels that are bands of frequency are not read in a random choice: each kernel reads the mean of neighbouring
    bands, or its difference from the mean of as many bands beside them. So it reads edges of the spectrum, which are
    at about the same place for every speaker, and are not moved by the loudness of a room or a microphone.

    Args:
        channels: channels of the signal.
        length: samples of the signal, at least 3.
        features: number of features, rounded down to as many for each kernel; at least 168.
        outputs: outputs of the head.

    Attributes:
        bands: number of bands of each signal, if the channels are bands of frequency, all of the first signal first; 1
            for other channels. It is read by `draw` only, and not stored.

    Raises:
        ValueError: if the signal is too short, or there are too few features.
    """

    smallest = 2 * KERNELS  # one feature for each kernel, on the signal and on its differences
    kernels: Tensor
    chosen: Tensor
    biases: Tensor

    def __init__(self, channels: int, length: int, features: int, outputs: int) -> None:
        if length < 3:
            raise ValueError(
                f"random convolutions need signals of at least 3 samples, got {length}: set rocket_features to 0"
            )
        if features < self.smallest:
            raise ValueError(
                f"rocket_features must be 0 or at least {self.smallest}, one for each of {KERNELS} kernels on the "
                f"signal and on its differences; got {features}: 10,000 is usual"
            )
        # of the signal itself and of its differences: (dilation, biases for each kernel)
        self.plans = [_dilations(length - i, features // self.smallest) for i in range(2)]
        super().__init__(KERNELS * sum(biases for plan in self.plans for _, biases in plan), outputs)
        self.channels, self.length, self.bands = channels, length, 1
        self.register_buffer("kernels", _kernels())  # (84, 9)
        self.register_buffer("chosen", torch.empty(sum(map(len, self.plans)), KERNELS, channels))  # 1 or 0
        self.register_buffer("biases", torch.empty(self.num_features))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Reset everything that `draw` chooses and training solves."""
        self.kernels.copy_(_kernels())
        self.chosen.fill_(1)
        self.biases.zero_()
        self.reset_head()

    @torch.no_grad()
    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, F) of signals (B, C, L) before standardisation; only observed values are counted."""
        rows = max(1, _CHUNK // (KERNELS * x.shape[2]))
        masks = [None] * len(x) if mask is None else mask.split(rows)
        with exactly(x):
            return torch.cat([self._features(*part) for part in zip(x.split(rows), masks)])

    @torch.no_grad()
    def contributions(self, x: Tensor, mask: Tensor | None, targets: Tensor) -> Tensor:
        """Exact shares of the places of signals (B, C, L) in one output of each, (B, L) float32.

        A feature is a mean over places of whether a kernel's output is above a bias. So the output is a sum over
        places, and over their kernels, of `weight * (above - mean) / places`, beside the bias of the head, which is the
        output for the mean features of the training examples. A kernel of nine taps counts at its centre, and a
        difference half at each of its two samples.

        Args:
            x: (B, C, L).
            mask: (B, L), True where a value was observed; None if all were.
            targets: (B,) indices of the outputs.
        """
        weights = self.head.weight[targets] * self.scale  # (B, F)
        rows = max(1, _CHUNK // (KERNELS * x.shape[2]))
        masks = [None] * len(x) if mask is None else mask.split(rows)
        with exactly(x):
            return torch.cat([self._contributions(*part) for part in zip(x.split(rows), masks, weights.split(rows))])

    def _contributions(self, x: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
        total, start = x.new_zeros(len(x), x.shape[2], dtype=torch.float32), 0
        for part in self._parts(x, mask):
            outputs, edge = _convolve(part), TAPS // 2 * part.dilation
            length, observed = outputs.shape[2], None if part.mask is None else part.mask.to(total)
            at_place = x.new_zeros(len(x), length, dtype=torch.float32)
            for i in range(part.biases):
                features = slice(start, start := start + KERNELS)
                places = _counted(i, length, edge)
                above = (outputs[:, :, places] > self.biases[features, None]).to(total)  # (B, 84, places)
                weight = weights[:, None, features]  # (B, 1, 84)
                shares = (weight @ above - weight @ self.mean[features, None])[:, 0]  # (B, places)
                if observed is None:
                    at_place[:, places] += shares / shares.shape[1]
                    continue
                there = observed[:, places]
                count = there.sum(1, keepdim=True)
                # Without observed places the feature is 0, which belongs to no place: it is spread over all of them.
                nowhere = -(weight @ self.mean[features, None])[:, 0] / there.shape[1]
                at_place[:, places] += torch.where(count > 0, shares * there / count.clamp(min=1), nowhere)
            halves = length < x.shape[2]  # differences
            total[:, :length] += at_place / 2 if halves else at_place
            total[:, x.shape[2] - length :] += at_place / 2 if halves else 0
        return total

    @torch.no_grad()
    def draw(self, x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        """Choose channels and biases from training examples x (n, C, L), with their mask (n, L) or None.

        A bias is a quantile of one kernel's output on one random example, over its observed values. The quantiles are
        multiples of the golden ratio modulo 1, which are spread evenly for any number of them.
        """
        for kernel in self.chosen.view(-1, self.channels):  # few channels are more likely than many, as in MiniRocket
            kernel.zero_()
            if self.bands > 1:
                signal = int(torch.randint(self.channels // self.bands, (), generator=generator)) * self.bands
                _choose_bands(kernel[signal : signal + self.bands], generator)
                continue
            most = math.log2(min(self.channels, TAPS) + 1)
            count = int(2 ** (torch.rand((), generator=generator).item() * most))
            kernel[torch.randperm(self.channels, generator=generator)[: max(count, 1)]] = 1
        start, made = 0, 0
        for part in self._parts(x, mask):
            picked = torch.randint(len(x), (KERNELS,), generator=generator)
            step = max(1, part.values.shape[2] // _MOST_PLACES)
            observed = None if part.mask is None else part.mask[picked, ::step]
            outputs = _convolve_each(part, picked, step)
            places = torch.arange(made + 1, made + KERNELS * part.biases + 1, dtype=torch.float64)
            quantiles = (places * _GOLDEN % 1).view(KERNELS, part.biases)
            biases = _quantiles(outputs.double(), observed, quantiles.to(outputs.device))
            # In signals of few levels a bias equals many outputs. A small offset keeps the comparison independent of
            # how another batch size or device rounds these outputs.
            biases += _ROUNDING * part.values[picked].double().abs().amax((1, 2))[:, None]
            made += biases.numel()
            self.biases[start:made] = biases.T.flatten().to(self.biases)
            start = made

    def _features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        made, start = [], 0
        for part in self._parts(x, mask):
            biases = self.biases[start : start + KERNELS * part.biases].view(part.biases, KERNELS, 1)
            start += KERNELS * part.biases
            made.append(_shares_above(_convolve(part), biases, part.dilation, part.mask))
        return torch.cat(made, dim=1)

    def _parts(self, x: Tensor, mask: Tensor | None) -> list["_Part"]:
        weights = iter(self.chosen[..., None] * self.kernels[:, None])  # each (84, C, 9)
        inputs = [(x, mask), (x.diff(dim=2), None if mask is None else mask[:, 1:] & mask[:, :-1])]
        return [_Part(*both, *rest, next(weights)) for both, plan in zip(inputs, self.plans) for rest in plan]


def _choose_bands(weights: Tensor, generator: torch.Generator) -> None:
    """Let weights (bands,) of 0 read a mean of neighbouring bands, or its difference from that of bands beside them."""
    bands = len(weights)
    draws: list[float] = torch.rand(4, generator=generator).tolist()
    width = min(int((min(bands, _WIDEST) + 1) ** draws[0]), bands)
    start = int(draws[1] * (bands - width + 1))
    weights[start : start + width] = 1 / width
    beside = start + width if draws[3] < 0.5 else start - width
    if draws[2] < _DIFFERENCES and 0 <= beside <= bands - width:
        weights[beside : beside + width] = -1 / width


class _Part(NamedTuple):
    """Kernels of one dilation and their input: the signal or its differences (n, C, L), and the mask (n, L) or None."""

    values: Tensor
    mask: Tensor | None
    dilation: int
    biases: int  # of each kernel
    weight: Tensor  # (84, C, 9)


def _convolve(part: _Part) -> Tensor:
    """(n, 84, L). Biases were drawn from outputs in float32: lower precision would move outputs across biases."""
    padding = TAPS // 2 * part.dilation
    return F.conv1d(part.values.to(part.weight), part.weight, padding=padding, dilation=part.dilation)


def _convolve_each(part: _Part, picked: Tensor, step: int) -> Tensor:
    """Outputs of one signal for each kernel, picked (84,), at every step-th sample: (84, L / step)."""
    values = part.values[picked].to(part.weight)  # (84, C, L)
    length, padded = values.shape[2], F.pad(values, (TAPS // 2 * part.dilation,) * 2)
    taps = (part.weight[:, :, i, None] * padded[:, :, i * part.dilation :][:, :, :length:step] for i in range(TAPS))
    return torch.stack([tap.sum(1) for tap in taps]).sum(0)


def _quantiles(outputs: Tensor, mask: Tensor | None, quantiles: Tensor) -> Tensor:
    """Quantiles (rows, q) of each row of outputs (rows, L) where the mask is True; 0 for a row without such values."""
    if mask is None:
        mask = torch.ones_like(outputs, dtype=torch.bool)
    last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
    ordered = outputs.masked_fill(~mask, torch.inf).sort(1).values  # masked values come last
    at = quantiles * last
    below = at.long()
    low, high = ordered.gather(1, below), ordered.gather(1, torch.minimum(below + 1, last))
    return torch.where(mask.any(1, keepdim=True), torch.lerp(low, high, at - below), 0)


def _shares_above(outputs: Tensor, biases: Tensor, dilation: int, mask: Tensor | None) -> Tensor:
    """Share of each output above each of its biases: (B, 84, L) and (count, 84, 1) -> (B, count * 84).

    Outputs of few values are compared with all biases at once, because calls would take most of the time; others with
    one after the other, so that the comparisons stay in the cache.
    """
    length, edge = outputs.shape[2], TAPS // 2 * dilation
    shares = outputs.new_empty(len(biases), *outputs.shape[:2])
    weight = None if mask is None else mask[:, None].to(outputs.dtype)  # (B, 1, L)
    few = len(biases) * outputs.numel() <= _COMPARED
    for first in range(2):  # biases of odd index count other places
        places = _counted(first, length, edge)
        counted, observed = outputs[:, :, places], None if weight is None else weight[:, :, places]
        pairs = biases[first::2, None], shares[first::2]  # (n, 1, 84, 1) and (n, B, 84)
        groups = [pairs] if few else list(zip(*(tensor.unbind() for tensor in pairs)))
        # a mean of floats is ten times as fast as one of booleans
        above = outputs.new_empty(*(pairs[1] if few else outputs[..., 0]).shape, counted.shape[2])
        for bias, into in groups:
            torch.gt(counted, bias, out=above)
            if observed is None:
                torch.mean(above, -1, out=into)
            else:
                torch.div((above * observed).sum(-1), observed.sum(2).clamp(min=1), out=into)
    return shares.transpose(0, 1).flatten(1)


def _counted(index: int, length: int, edge: int) -> slice:
    """Places of an output that count for the bias of this index.

    Every other bias counts only the part of the output that does not depend on padding, if there is such a part.
    """
    return slice(edge, length - edge) if index % 2 and length > 2 * edge else slice(None)


def _kernels() -> Tensor:
    kernels = torch.full((KERNELS, TAPS), -1.0)
    for row, places in zip(kernels, itertools.combinations(range(TAPS), 3)):
        row[list(places)] = 2
    return kernels


def _dilations(length: int, biases: int) -> list[tuple[int, int]]:
    """MiniRocket's dilations for a signal, each with its number of biases for each kernel."""
    most = math.log2(max((length - 1) / (TAPS - 1), 1))
    steps = min(biases, _MOST_DILATIONS)
    whole = (np.logspace(0, most, steps, base=2) + 1e-9).astype(int)  # 2.9999999999999996 is 3
    dilations, times = np.unique(whole, return_counts=True)
    counts = times * biases // steps
    for i in range(biases - int(counts.sum())):
        counts[i % len(counts)] += 1
    return [(int(d), int(n)) for d, n in zip(dilations, counts) if n]
