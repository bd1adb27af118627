"""Signals, and arrays with any number of axes: reading sound, and the preprocessing that makes values tensors."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ndvit.data.examples import Examples
from ndvit.data.preprocess import base as preprocess
from ndvit.data.preprocess.base import Moments, Raw, Recording
from ndvit.data.sources.arrays import npy_shape, numbers

SOUNDS = (".wav", ".flac", ".ogg")
_SAMPLE = 2_000  # files that mean and standard deviation are taken from, where there are more


def read_audio(path: str | Path) -> Recording:
    """Read a sound file completely.

    Raises:
        soundfile.LibsndfileError: no sound file, or damaged. ValueError: cut off, or with infinite or missing samples.
    """
    import soundfile

    with soundfile.SoundFile(path) as file:
        expected, rate = file.frames, file.samplerate
        values = file.read(dtype="float32", always_2d=True).T
        # libsndfile quietly shortens a WAV that is cut off, and tells only in its log. Programs that write WAV into a
        # pipe cannot know the length and state 2 or 4 GiB: those are whole.
        cut = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if len(values.T) < expected or (cut and int(cut[2]) < int(cut[1]) < 2**31 - 2**16):
        raise ValueError("sound file is cut off")
    if not np.isfinite(values).all():
        raise ValueError("sound file holds infinite or missing samples")
    return Recording(values, float(rate))


def signal_header(item: Any) -> tuple[int, tuple[int, ...], float | None]:
    """Return channels, grid and sample rate (None for arrays) of an example, or of a file from its header alone."""
    if isinstance(item, Recording):
        return len(item.values), item.values.shape[1:], item.rate
    if isinstance(item, np.ndarray):
        return len(item), item.shape[1:], None
    if str(item).lower().endswith(SOUNDS):
        import soundfile

        info = soundfile.info(item)
        return info.channels, (info.frames,), float(info.samplerate)
    channels, *grid = npy_shape(item)
    return channels, tuple(grid), None


@dataclass(frozen=True)
class SignalPreprocess:
    """Values with any number of axes -> tensor of one size, standardised, missing values told apart.

    Length. An axis shorter than `size` is padded at its end with missing values. An axis longer than `size` is
    resampled down to it, linearly and antialiased, one axis at a time. With `resize="resample"` every axis is
    resampled to `size`, and nothing is padded.

    Missing values (NaN). A position is observed where any channel is; the mask says so. What is missing is filled by
    linear interpolation along the last axis between the observed neighbours of the same channel, and before the first
    and after the last holds that value; where a channel (or, with more axes, a line along the last one) has nothing
    observed, it is the training mean, 0 after standardising. So a patch with nothing observed can be masked by the
    network, and no zeros slip into a patch that is partly observed. After resampling, a position counts as observed
    where any value in the stretch that it stands for was.

    Rate. A `Recording` at another rate is resampled to `sample_rate` (polyphase filter), and averaged over its channels
    if `mono`; a plain array is taken to be at `sample_rate` already.
    """

    kind: ClassVar[str] = "signal"

    size: tuple[int, ...]
    """The grid, one number an axis; one number alone means one axis."""
    mean: tuple[float, ...]
    """Mean of each channel over the training data."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training data."""
    sample_rate: float | None = None
    """Samples a second (Hz) of recordings; None for plain arrays."""
    mono: bool = False
    """Average the channels of recordings."""
    resize: Literal["pad", "resample"] = "pad"
    """What happens to an axis shorter than `size`."""

    def __post_init__(self) -> None:
        size = (self.size,) if isinstance(self.size, int) else self.size
        preprocess.check_fields(self, size, self.mean, self.std)
        if self.resize not in ("pad", "resample"):
            raise ValueError(f'resize is "pad" or "resample"; got {self.resize!r}')
        if self.sample_rate is not None and not self.sample_rate > 0:
            raise ValueError(f"sample_rate must be above 0 (Hz), or None for plain arrays; got {self.sample_rate}")
        if self.mono and self.channels != 1:
            raise ValueError(f"mono means 1 channel; got {self.channels} means")

    @property
    def channels(self) -> int:
        """The channels that an example must have."""
        return len(self.mean)

    @classmethod
    def fit(cls, examples: Examples, size: int | Sequence[int] | None = None) -> "SignalPreprocess":
        """Compute everything from training examples: rate, size, mean and standard deviation.

        Size and rate come from all of them; mean and standard deviation from at most 2,000 files drawn with a fixed
        seed (from all examples where they are in memory).

        Args:
            examples: The training examples.
            size: One number an axis, to which every example is then resampled; None takes the longest of each axis, and
                pads.

        Raises:
            ValueError: examples that differ in their number of axes or channels, or a size that does not fit them.
        """
        headers = [signal_header(item) for item in examples.items]
        rates = Counter(rate for _, _, rate in headers if rate is not None)
        rate = max(rates, key=lambda r: (rates[r], r)) if rates else None  # the commonest, the higher of two
        channels = {count for count, _, _ in headers}
        axes = {len(grid) for _, grid, _ in headers}
        if len(axes) != 1 or (len(channels) != 1 and rate is None):
            raise ValueError(f"all examples need the same axes and channels; got {axes} axes, {channels} channels")
        grids = [tuple(_length(n, own, rate) for n in grid) for _, grid, own in headers]
        asked = (size,) if isinstance(size, int) else tuple(size or np.max(grids, axis=0).tolist())
        if len(asked) != len(grids[0]):
            raise ValueError(f"size {asked} has {len(asked)} axes, the examples have {len(grids[0])}")
        mono = len(channels) > 1
        drawn: Sequence[int] = range(len(examples))
        if not examples.in_memory:
            drawn = np.sort(np.random.default_rng(0).permutation(len(examples))[:_SAMPLE]).tolist()
        moments = Moments(1 if mono else channels.pop())
        for i in drawn:
            moments.add(_values(examples[i], rate, mono))
        return cls(asked, moments.mean(), moments.std(), rate, mono, "pad" if size is None else "resample")

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, *size) float32.

        Raises:
            ValueError: the example is not fully observed after padding, or does not fit (see `masked`).
        """
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
            ValueError: no numbers, infinite values, nothing observed, another number of axes or channels, or a
                recording where plain arrays were trained on.
        """
        values = self._checked(raw)
        seen = (~np.isnan(values)).any(axis=0, keepdims=True).astype(np.float32)
        per_channel = (-1,) + (1,) * len(self.size)
        mean, std = np.reshape(self.mean, per_channel), np.reshape(self.std, per_channel)
        x = _filled(((values - mean) / std).astype(np.float32))
        for axis, new in enumerate(self.size, start=1):
            if x.shape[axis] > new or (x.shape[axis] < new and self.resize == "resample"):
                x, seen = _along(axis, x, linear, new), _along(axis, seen, F.adaptive_max_pool1d, new)
        short = [(0, new - old) for old, new in zip(x.shape[1:], self.size)]
        along_last = [(0, 0)] * len(short) + [short[-1]]
        x = np.pad(x, along_last, mode="edge")  # as _filled does: a line holds its last observed value
        x = np.pad(x, [(0, 0), *short[:-1], (0, 0)])  # whole lines of padding hold the mean
        observed = np.pad(seen[0] > 0, short)
        return torch.from_numpy(np.ascontiguousarray(x)), None if observed.all() else torch.from_numpy(observed)

    def fits(self, raw: Raw | str) -> bool:
        """Say whether no axis is longer than `size`, so that nothing is lost by resampling; of a file by its header."""
        rate = raw.rate if isinstance(raw, Recording) else None
        if isinstance(raw, str):
            _, shape, rate = signal_header(raw)
        else:
            shape = np.shape(raw.values if isinstance(raw, Recording) else np.asarray(raw))
        return all(_length(n, rate, self.sample_rate) <= new for n, new in zip(shape[-len(self.size) :], self.size))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for `preprocess_from_dict`."""
        return preprocess.to_dict(self)

    def _checked(self, raw: Raw) -> np.ndarray:
        if isinstance(raw, Recording) and self.sample_rate is None:
            raise ValueError(
                f"got a recording at {raw.rate:g} Hz, expected a plain array: no sample rate was trained on"
            )
        values = _values(raw, self.sample_rate, self.mono)
        if values.ndim == len(self.size) and self.channels == 1:
            values = values[None]
        axes = len(self.size)
        if values.ndim != axes + 1 or values.size == 0:
            expected = f"({self.channels} channels, {axes} {'axis' if axes == 1 else 'axes'}), nothing empty"
            raise ValueError(f"got an example of shape {values.shape}, expected {expected}")
        if len(values) != self.channels:
            raise ValueError(
                f"got {len(values)} channels, expected {self.channels} (shape {values.shape}): choose or average "
                "channels to match, or train on data with this number"
            )
        if np.isinf(values).any():
            raise ValueError("the example holds infinite values; mend them, or mark them as missing (NaN)")
        if np.isnan(values).all():
            raise ValueError("nothing is observed in the example: all its values are missing (NaN)")
        return values


def _length(n: int, rate: float | None, target: float | None) -> int:
    """The length of n samples after resampling from one rate to another."""
    return n if rate is None or target is None else math.ceil(n * _ratio(rate, target))


def _ratio(rate: float, target: float) -> Fraction:
    return (Fraction(target) / Fraction(rate)).limit_denominator(100_000)


def _values(raw: Raw, rate: float | None, mono: bool) -> np.ndarray:
    """The numbers of an example as float32, a recording averaged if `mono` and brought to `rate`."""
    if not isinstance(raw, Recording):
        return numbers(raw, "the example")
    values = numbers(raw.values, "the recording")
    values = values[None] if values.ndim == 1 else values
    values = values.mean(axis=0, keepdims=True) if mono else values
    if rate is None or raw.rate == rate or values.size == 0:
        return values
    if not np.isfinite(values).all():
        raise ValueError(
            "a recording with infinite or missing samples cannot be brought to another rate; mend it first"
        )
    from scipy.signal import resample_poly

    ratio = _ratio(raw.rate, rate)
    # padtype "line": the filter sees no step at either end, so a constant stays a constant
    resampled = resample_poly(values, ratio.numerator, ratio.denominator, axis=-1, padtype="line")
    return np.asarray(resampled, dtype=np.float32)


def _filled(values: np.ndarray) -> np.ndarray:
    """Fill NaN along the last axis: interpolate, hold the edges, 0 where a line has nothing."""
    lines = values.reshape(-1, values.shape[-1])
    time = np.arange(lines.shape[1])
    for i in np.flatnonzero(np.isnan(lines).any(axis=1)):
        seen = ~np.isnan(lines[i])
        lines[i] = np.interp(time, time[seen], lines[i][seen]) if seen.any() else 0
    return lines.reshape(values.shape)


def _along(axis: int, values: np.ndarray, change: Callable[[Tensor, int], Tensor], new: int) -> np.ndarray:
    """Change the length of one axis by a function of (1, lines, length)."""
    last = np.moveaxis(values, axis, -1)
    lines = torch.from_numpy(np.ascontiguousarray(last)).reshape(1, -1, last.shape[-1])
    return np.moveaxis(change(lines, new).reshape(*last.shape[:-1], new).numpy(), -1, axis)


def linear(lines: Tensor, new: int) -> Tensor:
    """Linear and antialiased; laid out as pictures of height 1, because torch is silently wrong on those of width 1."""
    pictures = lines.unsqueeze(2)
    return F.interpolate(pictures, size=(1, new), mode="bilinear", antialias=True, align_corners=False).squeeze(2)


def note_longer(parts: Sequence[Examples], preprocess: Any) -> str:
    """How many examples lose resolution, "" for none; pictures are always resized, and nobody wonders."""
    if not isinstance(preprocess, SignalPreprocess):
        return ""
    longer = sum(not preprocess.fits(item) for part in parts for item in part.items)
    size, count = " x ".join(map(str, preprocess.size)), f"{longer:,} of {sum(map(len, parts)):,} examples"
    return f"{count} {'is' if longer == 1 else 'are'} longer than {size}, and resampled to it" if longer else ""
