"""Preprocessing of signals and other arrays with any number of axes."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ndvit.data.examples import Examples, Raw, Recording
from ndvit.data.preprocess.base import (
    MOST_RESAMPLED,
    Extent,
    Moments,
    Preprocess,
    is_list,
    is_number,
    is_whole,
    short,
    usual_length,
)
from ndvit.data.sources.arrays import numbers, value_fault, with_channels
from ndvit.data.sources.files import header_of, headers_of

_SAMPLE = 2_000  # files for mean and standard deviation
_RATES = (1e-3, 1e9)  # Hz: from a sample in a quarter of an hour to a fast oscilloscope
_MOST_VALUES = 2**29  # of a resampled recording: 2 GiB


@dataclass(frozen=True)
class SignalPreprocess(Preprocess):
    """Values with any number of axes -> standardised tensor of one size, and a mask of missing values.

    Length. An axis shorter than `size` is padded at its end with missing values. An axis longer than `size` is
    resampled down to it, linearly and antialiased, one axis at a time. With `resize="resample"` every axis is
    resampled to `size`, and nothing is padded. What is more than twice as long as `size`, or with "resample" as
    `longest`, is refused unless `any_length`, because it would be played too fast.

    Missing values (NaN). A position is observed if any channel is. Missing values are interpolated linearly along the
    last axis between the observed neighbours of the same channel; before the first and after the last, they repeat it.
    A channel (with more axes, a line along the last one) without observed values becomes the training mean, 0 after
    standardising. So the network can mask a patch without observed values, and a partly observed patch has no
    artificial zeros. After resampling, a position is observed if any value in its interval was.

    Unused channels, which were constant or never observed in training, hold the mean whatever an example has there, and
    do not make a position observed.

    Rate. A `Recording` at another rate is resampled to `sample_rate` (polyphase filter), and averaged over its channels
    if `mono`; a plain array is assumed to be at `sample_rate`.
    """

    kind: ClassVar[str] = "signal"

    sample_rate: float | None = None
    """Samples per second (Hz) of recordings; None for plain arrays."""
    mono: bool = False
    """Average the channels of recordings."""
    resize: Literal["pad", "resample"] = "pad"
    """Treatment of an axis shorter than `size`."""
    longest: tuple[int, ...] | None = field(default=None, kw_only=True)
    """Length of each axis of the longest training example, with "resample"; None if it is not known."""
    any_length: bool = field(default=False, kw_only=True)
    """Resample signals of any length."""

    def __post_init__(self) -> None:
        if is_whole(self.size):
            object.__setattr__(self, "size", (self.size,))
        super().__post_init__()
        if self.resize not in ("pad", "resample"):
            raise ValueError(f'resize is "pad" or "resample"; got {short(self.resize)}')
        if self.sample_rate is not None and not is_number(self.sample_rate, *_RATES):
            raise ValueError(
                f"sample_rate must be above 0 ({_RATES[0]:g} to {_RATES[1]:g} Hz), or None for plain arrays; got "
                f"{short(self.sample_rate)}"
            )
        for name in ("mono", "any_length"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {short(getattr(self, name))}")
        if self.longest is not None:
            if not is_list(self.longest) or any(not is_whole(n) or n < 1 for n in self.longest):
                raise ValueError(f"longest must be whole numbers of at least 1; got {short(self.longest)}")
            if len(self.longest) != len(self.size):
                raise ValueError(f"longest has {len(self.longest)} axes, size has {len(self.size)}")
            object.__setattr__(self, "longest", tuple(map(int, self.longest)))
        if self.mono and self.channels != 1:
            raise ValueError(f"mono means 1 channel; got {self.channels} means")

    @classmethod
    def fit(cls, examples: Examples, size: int | Sequence[int] | None = None) -> "SignalPreprocess":
        """Compute everything from training examples: rate, size, mean and standard deviation.

        Size and rate come from all of them; mean and standard deviation from at most 2,000 files drawn with a fixed
        seed (from all examples if they are in memory).

        Args:
            examples: the training examples.
            size: one number for each axis, to which every example is then resampled; None takes the usual length of
                each axis, see `usual_length`, and pads.

        Raises:
            ValueError: for examples with different numbers of axes or channels, a size that does not fit them, or if no
                channel varies.
        """
        headers = headers_of(examples.items)
        rates = Counter(header.rate for header in headers if header.rate is not None)
        rate = max(rates, key=lambda r: (rates[r], r)) if rates else None  # the most frequent, the higher of two
        channels = {header.channels for header in headers}
        axes = {len(header.grid) for header in headers}
        if len(axes) != 1 or (len(channels) != 1 and rate is None):
            raise ValueError(f"all examples need the same axes and channels; got {axes} axes, {channels} channels")
        grids = [tuple(_length(n, header.rate, rate) for n in header.grid) for header in headers]
        grid = (size,) if isinstance(size, int) else tuple(size or map(usual_length, zip(*grids)))
        if len(grid) != len(grids[0]):
            raise ValueError(f"size {grid} has {len(grid)} axes, the examples have {len(grids[0])}")
        mono = len(channels) > 1
        moments = Moments(1 if mono else channels.pop())
        for i in range(len(examples)) if examples.in_memory else examples.sample(_SAMPLE):
            moments.add(_values(examples[i], rate, mono))
        unused = moments.constant()
        if len(unused) == len(moments.mean()):
            raise ValueError(
                f"{'the only channel is' if len(unused) == 1 else f'all {len(unused)} channels are'} constant or never "
                "observed in the training set, so that there is nothing to learn from: look at the values (in float32, "
                "small variations around a large value are lost: subtract the mean first)"
            )
        resize: Literal["pad", "resample"] = "pad" if size is None else "resample"
        longest = None if size is None else tuple(map(max, zip(*grids)))
        return cls(grid, moments.mean(), moments.std(), rate, mono, resize, longest=longest, unused_channels=unused)

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, *size) float32; raises the errors of `masked`, and a ValueError for missing values."""
        tensor, mask = self.masked(raw)
        if mask is not None:
            missing = int((~mask).sum())
            raise ValueError(
                f"{missing} of {mask.numel()} positions are not observed (missing, or padding of a short example); "
                "use masked(), which returns the mask as well"
            )
        return tensor

    def masked(self, raw: Raw) -> tuple[Tensor, Tensor | None]:
        """Return (channels, *size) float32 and the mask (*size) bool, True = observed in any channel; None = all are.

        Raises:
            ValueError: for values that are infinite or not numbers, nothing observed, another number of axes or
                channels, or a recording if the training data are plain arrays.
        """
        values = self._checked(raw)
        if fault := self._length_fault(values.shape[1:]):
            raise ValueError(fault)
        observed = (~np.isnan(values[self.used])).any(axis=0, keepdims=True).astype(np.float32)
        per_channel = (-1,) + (1,) * len(self.size)
        mean, std = np.reshape(self.mean, per_channel), np.reshape(self.std, per_channel)
        x = filled(((values - mean) / std).astype(np.float32))
        x[list(self.unused_channels)] = 0
        for axis, new in enumerate(self.size, start=1):
            if x.shape[axis] > new or (x.shape[axis] < new and self.resize == "resample"):
                x, observed = _along(axis, x, linear, new), _along(axis, observed, F.adaptive_max_pool1d, new)
        mask = observed[0] > 0
        if x.shape[1:] != self.size:
            short = [(0, new - old) for old, new in zip(x.shape[1:], self.size)]
            along_last = [(0, 0)] * len(short) + [short[-1]]
            x = np.pad(x, along_last, mode="edge")  # as in `filled`, a line repeats its last observed value
            x = np.pad(x, [(0, 0), *short[:-1], (0, 0)])  # whole lines of padding are the mean
            mask = np.pad(mask, short)
        return torch.from_numpy(np.ascontiguousarray(x)), None if mask.all() else torch.from_numpy(mask)

    def fits(self, item: Any) -> bool:
        """Whether no axis of an example, or of a file by its header, is longer than `size`."""
        header = header_of(item)
        return all(_length(n, header.rate, self.sample_rate) <= new for n, new in zip(header.grid, self.size))

    def misfit(self, item: Any) -> str | None:
        """Why the header of an example shows that it cannot be an input; None if it may be one."""
        header = header_of(item)
        if len(header.grid) != len(self.size):
            return f"has {len(header.grid)} axes, expected {len(self.size)}"
        if header.rate is not None and self.sample_rate is None:
            return f"is a recording at {header.rate:g} Hz, and the training data have no sample rate"
        mixed = self.mono and header.rate is not None
        if header.channels != self.channels and not mixed:
            return f"has {header.channels} channels, expected {self.channels}: choose or average channels to match"
        return self.too_long(item)

    def too_long(self, item: Any) -> str | None:
        """How much an example, or a file by its header, is too long to be resampled; None if it is not."""
        header = header_of(item)
        return self._length_fault([_length(n, header.rate, self.sample_rate) for n in header.grid])

    def admitting(self, long: bool) -> "SignalPreprocess":
        """The same preprocessing; with `long`, one that resamples signals of any length."""
        return replace(self, any_length=True) if long else self

    def _length_fault(self, grid: Sequence[int]) -> str | None:
        """How much longer than those of the training an example of this grid is, if that is too much."""
        if self.any_length or (self.resize == "resample" and self.longest is None) or len(grid) != len(self.size):
            return None
        known = self.size if self.longest is None else self.longest
        times = [n / usual for n, usual in zip(grid, known)]
        if max(times) <= MOST_RESAMPLED:
            return None
        n, usual = grid[worst := int(np.argmax(times))], known[worst]
        seconds = "" if self.sample_rate is None else f" ({n / self.sample_rate:.3g} s)"
        return (
            f"has {n:,} samples{seconds}, {times[worst]:.3g} times as many as the {usual:,} that the model takes, and "
            f"would be played too fast. Cut it into windows (--window {usual}, window={usual}), or resample it all "
            "the same (--resample-long, resample_long=True)"
        )

    def unlike_training(self, examples: Sequence[Raw]) -> list[str]:
        """Describe channels that were constant or never observed in training and are not so here."""
        doubts = []
        for channel in self.unused_channels:
            usual = self.mean[channel]
            rows = (_values(raw, self.sample_rate, self.mono) for raw in examples)
            if any(_differs(values[channel], usual) for values in rows if len(values) == self.channels):
                doubts.append(
                    f"channel {channel} was constant or never observed in training, differs here, and is not used"
                )
        return doubts

    def extents(self, raw: Raw) -> tuple[Extent, ...]:
        """Where each axis of the tensor lies in an example, as in `Preprocess`; a recording counts its own samples."""
        read = self._checked(raw).shape[1:]
        grid = self.upright(raw).shape[1:]
        resampled = [old > new or self.resize == "resample" for old, new in zip(read, self.size)]
        ends = [n if all_of_it else n * new / old for n, old, new, all_of_it in zip(grid, read, self.size, resampled)]
        return tuple(Extent(0.0, float(end), n) for end, n in zip(ends, grid))

    def upright(self, raw: Raw) -> np.ndarray:
        """Return the values (channels, *grid) of an example, of recordings at their own rate."""
        values = numbers(raw.values if isinstance(raw, Recording) else raw, "the example")
        return values[None] if values.ndim == len(self.size) else values

    def view(self, raw: Raw) -> Raw:
        """Return the values that the network reads, NaN where nothing was observed; of recordings, in Hz and channels.

        The rate of a recording that was resampled to `size` is that of the result.
        """
        x, mask = self.masked(raw)
        per_channel = (-1,) + (1,) * len(self.size)
        values = x.numpy() * np.reshape(self.std, per_channel) + np.reshape(self.mean, per_channel)
        values = np.where(True if mask is None else mask.numpy(), values, np.nan).astype(np.float32)
        if not isinstance(raw, Recording) or self.sample_rate is None:
            return values
        length = _length(raw.values.shape[-1], raw.rate, self.sample_rate)
        resampled = length > self.size[0] or self.resize == "resample"
        return Recording(values, self.sample_rate * (self.size[0] / length if resampled else 1))

    def _checked(self, raw: Raw) -> np.ndarray:
        if isinstance(raw, Recording) and self.sample_rate is None:
            raise ValueError(
                f"got a recording at {raw.rate:g} Hz, expected a plain array: the training data have no sample rate"
            )
        values = _values(raw, self.sample_rate, self.mono)
        axes = len(self.size)
        if values.ndim == axes and self.channels == 1:
            values = values[None]
        if values.ndim != axes + 1 or values.size == 0:
            expected = f"({self.channels} channels, {axes} {'axis' if axes == 1 else 'axes'}), nothing empty"
            raise ValueError(f"got an example of shape {values.shape}, expected {expected}")
        if len(values) != self.channels:
            raise ValueError(
                f"got {len(values)} channels, expected {self.channels} (shape {values.shape}): choose or average "
                "channels to match, or train on data with this number"
            )
        if fault := value_fault(values):
            raise ValueError(fault)
        if self.unused_channels and np.isnan(values[self.used]).all():
            unused = ", ".join(map(str, self.unused_channels))
            raise ValueError(f"nothing is observed in the channels that varied in training (unused: {unused})")
        return values


def _differs(values: np.ndarray, usual: float) -> bool:
    """Whether an observed value differs from a constant by more than float32's rounding."""
    return bool((np.abs(values - usual) > 1e-5 * max(abs(usual), 1e-30)).any())


def _length(n: int, rate: float | None, target: float | None) -> int:
    """Length of n samples after resampling from one rate to another."""
    return n if rate is None or target is None else math.ceil(n * _ratio(rate, target))


def _ratio(rate: float, target: float) -> Fraction:
    return (Fraction(target) / Fraction(rate)).limit_denominator(100_000)


def _values(raw: Raw, rate: float | None, mono: bool) -> np.ndarray:
    """Values of an example as float32; a recording is averaged if `mono`, and resampled to `rate`."""
    if not isinstance(raw, Recording):
        return numbers(raw, "the example")
    values = with_channels(numbers(raw.values, "the recording"), "the recording")
    values = values.mean(axis=0, keepdims=True) if mono else values
    if rate is None or raw.rate == rate or values.size == 0:
        return values
    if not np.isfinite(values).all():
        raise ValueError("a recording with infinite or missing samples cannot be resampled; repair it first")
    from scipy.signal import resample_poly

    ratio = _ratio(raw.rate, rate)
    if values.size * ratio > _MOST_VALUES:
        raise ValueError(
            f"{values.shape[-1]:,} samples at {raw.rate:g} Hz would become {int(values.shape[-1] * ratio):,} at "
            f"{rate:g} Hz: more than fit into memory"
        )
    # padtype "line": without steps at the ends, a constant stays constant
    resampled = resample_poly(values, ratio.numerator, ratio.denominator, axis=-1, padtype="line")
    return np.asarray(resampled, dtype=np.float32)


def filled(values: np.ndarray) -> np.ndarray:
    """Fill NaN along the last axis: interpolate, repeat the edges; 0 for a line without observed values."""
    lines = values.reshape(-1, values.shape[-1])
    time = np.arange(lines.shape[1])
    for i in np.flatnonzero(np.isnan(lines).any(axis=1)):
        observed = ~np.isnan(lines[i])
        lines[i] = np.interp(time, time[observed], lines[i][observed]) if observed.any() else 0
    return lines.reshape(values.shape)


def _along(axis: int, values: np.ndarray, change: Callable[[Tensor, int], Tensor], new: int) -> np.ndarray:
    """Change the length of one axis with a function of (1, lines, length)."""
    last = np.moveaxis(values, axis, -1)
    lines = torch.from_numpy(np.ascontiguousarray(last)).reshape(1, -1, last.shape[-1])
    return np.moveaxis(change(lines, new).reshape(*last.shape[:-1], new).numpy(), -1, axis)


def linear(lines: Tensor, new: int) -> Tensor:
    """Resample lines, linear and antialiased, as pictures of height 1: torch is silently wrong for those of width 1."""
    pictures = lines.unsqueeze(2)
    return F.interpolate(pictures, size=(1, new), mode="bilinear", antialias=True, align_corners=False).squeeze(2)
