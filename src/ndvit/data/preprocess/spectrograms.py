"""Preprocessing of signals of one axis to spectrograms: the logarithm of the power in bands of frequency over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ndvit.config.reading import Span
from ndvit.config.spectrogram import BandsAs, Scale, SpectrogramOptions
from ndvit.data.examples import Examples, Raw, Recording
from ndvit.data.preprocess.base import MOST_RESAMPLED, Extent, Moments, Preprocess, is_number, is_whole, short
from ndvit.data.preprocess.signals import SignalPreprocess, filled, linear

_SAMPLE = 2_000  # files for mean and standard deviation
_BANDS = 40
RANGE = 80.0
"""Decibels below the loudest band and frame of an example, where its floor is unless `silence` is set."""
ABOVE_SILENCE = 5.0
"""Decibels above the noise of `silence` from which a frame is no silence."""
_LEAST_FLOOR = -300.0  # dB: 80 below it is the smallest power that float32 holds
_SOUND = 4_000.0  # Hz: signals at this rate and above are taken for sound
_FRAME, _STEP = 0.032, 0.016  # s, of sound: pitch periods are shorter, phones longer
_MOST_FRAMES = 256  # by default
_FEWEST_FRAMES = 9  # after silence was cut off: taps of random convolutions
_USUAL_FRAMES = 75  # percentile of the frames of examples without silence, to which all are resampled
_MOST_FILTERS = 2**26  # numbers in the filters of all bands
_MOST_VALUES = 2**28  # of one Fourier transform of a whole example: 2 GiB


class Spectrogram(NamedTuple):
    """A spectrogram in decibels: `values` (channels, bands, frames), NaN where nothing was observed.

    `step` is the distance of frames in seconds, and `frequencies` (bands,) are the centres of the bands in Hz. Without
    a sample rate, both count in samples. 0 dB is a sine wave of amplitude 1, or the loudest place if `relative`.
    """

    values: np.ndarray
    step: float
    frequencies: np.ndarray
    relative: bool
    rate: float | None


class _Waves(SignalPreprocess):
    """Checks raw examples, resamples recordings to one rate, and averages their channels."""

    def values(self, raw: Raw) -> np.ndarray:
        """(channels, samples) float32, NaN for missing values; raises the errors of `masked`."""
        values = self._checked(raw)
        if fault := self._length_fault(values.shape[1:]):
            raise ValueError(fault)
        return values


@dataclass(frozen=True)
class SpectrogramPreprocess(Preprocess):
    """Signal of one axis -> standardised spectrogram of one size, and a mask of unobserved frames.

    Frame k is a Hann window of `window` samples around the middle of the samples k * step to (k + 1) * step, so that a
    signal of n samples has ceil(n / step) frames, and zeros beyond its ends. The power of each frame is summed in
    triangular bands that overlap by half, and taken in decibels, down to 80 dB below the loudest place of the example.
    The mean of the signal is subtracted before.

    Silence. With `silence`, noise that far below the loudest place is added to the power instead, and the frames at
    both ends of an example that are less than 5 dB above this noise in all bands are cut off. So neither the noise of a
    room nor the moment at which a recording was started matters much.

    Length. A signal with fewer frames than `size` is padded with unobserved frames of no power, one with more frames is
    resampled down to it, linearly and antialiased. With `resize="resample"` every signal is resampled to `size`.

    Missing values (NaN) are interpolated before the transform. A frame is observed if any value of its step is, in any
    channel. Missing values at the end count as a shorter signal.
    """

    kind: ClassVar[str] = "signal"
    costly: ClassVar[bool] = True

    window: int
    """Length of a frame in samples."""
    step: int
    """Distance between the starts of two frames in samples, at most `window`."""
    length: int
    """Samples of the usual longest signal in training."""
    inputs: int = 1
    """Channels of the signal."""
    bands_as: BandsAs = "picture"
    """picture: (inputs, bands, frames); channels: (inputs * bands, frames), all bands of the first channel first."""
    scale: Scale = "linear"
    """Whether bands have equal widths in mel (O'Shaughnessy, 1987) or in Hz."""
    sample_rate: float | None = None
    """Samples per second (Hz) of recordings; None for plain arrays."""
    mono: bool = False
    """Average the channels of recordings."""
    relative: bool = False
    """Measure decibels against the loudest place of each example, so that loudness and distance do not matter."""
    floor: float = -100.0
    """Least power in dB that the loudest place of an example counts as, so that silence is no loud noise."""
    resize: Literal["pad", "resample"] = "pad"
    """Treatment of signals with fewer frames than `size`."""
    silence: float | None = field(default=None, kw_only=True)
    """Noise to add, in decibels below the loudest place of an example; None adds none and keeps both ends."""
    any_length: bool = field(default=False, kw_only=True)
    """Resample signals of any length; otherwise those over twice as long as `length`, without their silence, are
    refused."""

    def __post_init__(self) -> None:
        if is_whole(self.size):
            object.__setattr__(self, "size", (self.size,))
        super().__post_init__()
        for name in ("window", "step", "length", "inputs"):
            if not is_whole(value := getattr(self, name)) or not 1 <= value < 2**31:
                raise ValueError(f"{name} must be a whole number of at least 1; got {short(value)}")
            object.__setattr__(self, name, int(value))
        for name, known in (("bands_as", BandsAs), ("scale", Scale), ("resize", Literal["pad", "resample"])):
            if getattr(self, name) not in (names := known.__args__):  # type: ignore[attr-defined]
                raise ValueError(f"{name} is {' or '.join(names)}; got {short(getattr(self, name))}")
        for name in ("mono", "relative", "any_length"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {short(getattr(self, name))}")
        if not is_number(self.floor, _LEAST_FLOOR, -_LEAST_FLOOR):
            raise ValueError(f"floor must be decibels from -300 to 300; got {short(self.floor)}")
        if self.silence is not None and not is_number(self.silence, 6, 80):
            raise ValueError(f"silence must be decibels from 6 to 80; got {short(self.silence)}")
        if self.step > self.window:
            raise ValueError(f"step {self.step} is longer than window {self.window}: samples between would be lost")
        if len(self.size) != self.axes_of(self.bands_as):
            raise ValueError(f"bands as {self.bands_as} need {self.axes_of(self.bands_as)} axes, size is {self.size}")
        if self.channels % self.inputs or (self.bands_as == "picture" and self.channels != self.inputs):
            raise ValueError(f"{self.channels} means do not fit {self.inputs} channels with bands as {self.bands_as}")
        if self.scale == "mel" and self.sample_rate is None:
            raise ValueError("mel needs a sample_rate")
        if self.bands * (self.window + 1) > _MOST_FILTERS:
            raise ValueError(f"{self.bands:,} bands of windows of {self.window:,} samples do not fit into memory")
        assert self.waves  # which checks rate and channels

    @staticmethod
    def axes_of(bands_as: BandsAs | None) -> int:
        """Number of axes of the tensors."""
        return 1 if bands_as == "channels" else 2

    @classmethod
    def fit(
        cls, examples: Examples, options: SpectrogramOptions, size: int | Sequence[int] | None = None
    ) -> "SpectrogramPreprocess":
        """Compute everything from training examples: rate, length, frames, mean and standard deviation.

        Args:
            examples: the training examples.
            options: what was chosen; `spectrogram` and `bands_as` are set.
            size: bands and frames of a picture, or frames alone, to which every example is then resampled; None keeps
                the bands of the options and the frames of the longest signal.

        Raises:
            ValueError: for signals that `SignalPreprocess` refuses, frames longer than the signals, seconds or mel
                without a sample rate.
        """
        waves = SignalPreprocess.fit(examples)
        rate, inputs, (length, *more) = waves.sample_rate, waves.channels, waves.size
        if more:
            raise ValueError(f"a spectrogram needs signals of one axis; these have {len(waves.size)}")
        if options.spectrogram == "mel" and rate is None:
            raise ValueError(
                "mel is a scale of Hz, and these signals have no sample rate: set --spectrogram linear "
                "(spectrogram='linear')"
            )
        window, step = plan_frames(options, rate, length)
        picture = options.bands_as != "channels"
        grid = (size,) if isinstance(size, int) else tuple(size or ())
        bands = grid[0] if picture and grid else options.bands or min(_BANDS, max(2, window // 2))
        grid = grid or ((bands,) if picture else ()) + (math.ceil(length / step),)
        channels = inputs if picture else inputs * bands
        unused = (
            [c for c in waves.unused_channels]
            if picture
            else [c * bands + band for c in waves.unused_channels for band in range(bands)]
        )
        made = cls(
            grid,
            (0.0,) * channels,
            (1.0,) * channels,
            window,
            step,
            length,
            inputs,
            "picture" if picture else "channels",
            "mel" if options.spectrogram == "mel" else "linear",
            rate,
            waves.mono,
            relative=rate is not None,
            resize="pad" if size is None else "resample",
            unused_channels=tuple(unused),
            silence=options.silence or None,
        )
        moments, quietest, counts = Moments(channels), math.inf, list[int]()
        for i in range(len(examples)) if examples.in_memory else examples.sample(_SAMPLE):
            power, observed = made._power(examples[i])
            if loudest := float(power.max()):
                quietest = min(quietest, 10 * math.log10(loudest))
            counts.append(len(observed))
            values = made._decibels(power)[..., observed]
            moments.add((values if picture else values.reshape(channels, -1)).numpy())
        floor = made.floor if math.isinf(quietest) else quietest - (RANGE if made.relative else 0)
        floor = min(max(floor, _LEAST_FLOOR), -_LEAST_FLOOR)
        if made.silence is not None and size is None:
            frames = max(_FEWEST_FRAMES, round(float(np.percentile(counts, _USUAL_FRAMES))))
            made = replace(made, size=(*made.size[:-1], frames), resize="resample")
        return replace(made, mean=moments.mean(), std=moments.std(), floor=floor)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.size[0] if self.bands_as == "picture" else self.channels // self.inputs

    @property
    def raw_size(self) -> tuple[int, ...]:
        """Samples of the usual longest signal."""
        return (self.length,)

    @property
    def raw_channels(self) -> int:
        """Channels of the signals."""
        return self.inputs

    @property
    def analysis(self) -> tuple[Any, ...]:
        """What the numbers of a spectrogram depend on, beside its mean and standard deviation."""
        return (
            *(self.window, self.step, self.scale, self.bands_as, self.bands, self.sample_rate, self.relative),
            self.silence,
        )

    def options(self) -> SpectrogramOptions:
        """The options that make the same frames and bands."""
        return SpectrogramOptions(
            spectrogram=self.scale,
            bands_as=self.bands_as,
            bands=self.bands,
            frame=self.window,
            frame_step=self.step,
            silence=self.silence or 0.0,
        )

    @cached_property
    def waves(self) -> _Waves:
        """Preprocessing of the signals before the transform."""
        neither = (0.0,) * self.inputs, (1.0,) * self.inputs
        any_length = self.any_length or self.silence is not None  # silence is cut off before the length is checked
        return _Waves((self.length,), *neither, self.sample_rate, self.mono, any_length=any_length)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """(bands,) centres of the bands in Hz, or in cycles a sample."""
        return self._edges[1:-1]

    @cached_property
    def _edges(self) -> np.ndarray:
        """Centres of the bands with the ends before the first and after the last, in Hz or cycles a sample."""
        if self.scale == "linear":
            return np.linspace(0, (self.sample_rate or 1.0) / 2, self.bands + 2)
        assert self.sample_rate is not None
        mel = np.linspace(0, 2595 * math.log10(1 + self.sample_rate / 2 / 700), self.bands + 2)
        return np.asarray(700 * (10 ** (mel / 2595) - 1))

    @cached_property
    def filters(self) -> Tensor:
        """(bands, bins) triangles around each band, at least as wide as the distance of two bins."""
        bins = np.linspace(0, (self.sample_rate or 1.0) / 2, self.points // 2 + 1)
        low, centre, high = (self._edges[i : i + self.bands, None] for i in range(3))
        rising = (centre - bins) / np.maximum(centre - low, bins[1])
        falling = (bins - centre) / np.maximum(high - centre, bins[1])
        return torch.from_numpy((1 - np.maximum(rising, falling)).clip(0).astype(np.float32))

    @property
    def points(self) -> int:
        """Points of the Fourier transform: the next power of two."""
        return max(2, 1 << (self.window - 1).bit_length())

    def _power(self, raw: Raw) -> tuple[Tensor, np.ndarray]:
        """Power (inputs, bands, frames), and which frames (frames,) are observed."""
        values = self.waves.values(raw)
        observed = ~np.isnan(values[self.used_inputs]).all(axis=0)
        if not observed.any():
            raise ValueError("nothing is observed in the channels that varied in training")
        n = int(np.flatnonzero(observed)[-1]) + 1
        frames = math.ceil(n / self.step)
        if len(values) * frames * (self.points // 2 + 1) > _MOST_VALUES:
            raise ValueError(
                f"{n:,} samples have {frames:,} frames of {self.points:,} points, more than fit into memory: cut them "
                "into windows"
            )
        values, observed = filled(values[:, :n].copy()), observed[:n]
        values -= values.mean(axis=1, keepdims=True)
        left = (self.points - self.step) // 2
        padded = F.pad(torch.from_numpy(values), (left, (frames - 1) * self.step + self.points - left - n))
        hann = torch.hann_window(self.window)
        waves = torch.stft(
            padded, self.points, self.step, self.window, hann, center=False, return_complex=True
        )  # (inputs, bins, frames)
        power = self.filters @ (waves.abs() / max(float(hann.sum()) / 2, 1e-12)) ** 2
        steps = np.pad(observed, (0, frames * self.step - n)).reshape(frames, self.step)
        power, observed = self._sounding(power, np.asarray(steps.any(axis=1)))
        if not self.any_length and len(observed) > MOST_RESAMPLED * math.ceil(self.length / self.step):
            raise ValueError(self._too_long(len(observed)))
        return power, observed

    def _too_long(self, frames: int) -> str:
        """The fault of a signal with so many frames besides silence at its ends."""
        at = 1 if self.sample_rate is None else self.sample_rate
        unit = " samples" if self.sample_rate is None else " s"
        return (
            f"has {frames * self.step / at:.3g}{unit} without the silence at its ends, over {MOST_RESAMPLED:g} times "
            f"the {self.length / at:.3g}{unit} that the model takes, and would be played too fast. Cut it into windows "
            f"(--window {self.length}, window={self.length}), or resample it all the same (--resample-long, "
            "resample_long=True)"
        )

    def _sounding(self, power: Tensor, observed: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Power (inputs, bands, frames) and observed frames (frames,) without the silence at both ends."""
        if self.silence is None:
            return power, observed
        frames = power.amax((0, 1)) * torch.from_numpy(observed)
        loud = (frames >= frames.max() * 10 ** ((ABOVE_SILENCE - self.silence) / 10)).nonzero()[:, 0]
        kept = slice(int(loud[0]), int(loud[-1]) + 1)
        return power[..., kept], observed[kept]

    def _decibels(self, power: Tensor) -> Tensor:
        """Decibels of power (inputs, bands, frames), down to the floor below the loudest place."""
        loudest = max(10 * math.log10(max(float(power.max()), 1e-300)), self.floor)
        if self.silence is None:
            power = power.clamp_min(10 ** ((loudest - RANGE) / 10))
        else:
            power = power + 10 ** ((loudest - self.silence) / 10)
        decibels = 10 * power.log10()
        return decibels - loudest if self.relative else decibels

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, *size) float32; raises the errors of `masked`, and a ValueError for unobserved frames."""
        tensor, mask = self.masked(raw)
        if mask is not None:
            missing = int((~mask).flatten(0, -2).any(0).sum() if mask.ndim > 1 else (~mask).sum())
            raise ValueError(
                f"{missing} of {self.size[-1]} frames are not observed (missing, or padding of a short example); use "
                "masked(), which returns the mask as well"
            )
        return tensor

    def masked(self, raw: Raw) -> tuple[Tensor, Tensor | None]:
        """Return (channels, *size) float32 and the mask (*size) bool, True = observed frames; None = all are.

        Raises:
            ValueError: for the examples that `SignalPreprocess.masked` refuses.
        """
        decibels, observed, _ = self._sized(raw)
        shape = (-1,) + (1,) * len(self.size)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        x = (decibels.reshape(self.channels, *self.size) - mean) / std
        x[list(self.unused_channels)] = 0
        mask = None if observed.all() else observed.expand(self.size).contiguous()
        return x.contiguous(), mask

    def _sized(self, raw: Raw) -> tuple[Tensor, Tensor, float]:
        """Decibels (inputs, bands, frames of `size`), which frames are observed, and the steps from one to the next."""
        power, seen = self._power(raw)
        decibels, observed, frames, steps = self._decibels(power), torch.from_numpy(seen), self.size[-1], 1.0
        if decibels.shape[-1] > frames or self.resize == "resample":
            steps = decibels.shape[-1] / frames
            decibels = linear(decibels.reshape(1, -1, decibels.shape[-1]), frames).view(*decibels.shape[:2], frames)
            observed = F.adaptive_max_pool1d(observed.float().view(1, 1, -1), frames).view(-1) > 0
        missing = frames - decibels.shape[-1]
        return F.pad(decibels, (0, missing), value=float(decibels.min())), F.pad(observed, (0, missing)), steps

    def fits(self, item: Any) -> bool:
        """Whether an example, or a file by its header, is not longer than the longest in training."""
        return self.waves.fits(item)

    def misfit(self, item: Any) -> str | None:
        """Why the header of an example shows that it cannot be an input; None if it may be one."""
        return self.waves.misfit(item) or self.too_long(item)

    @property
    def headers_decide(self) -> bool:
        """With `silence`, only the example itself has what remains of it."""
        return self.silence is None

    def too_long(self, item: Any) -> str | None:
        """How much an example, or a file by its header, is too long to be resampled; None if it is not.

        With `silence`, a header only shows that an example may be too long; the example itself decides.
        """
        if self.any_length or (fault := replace(self.waves, any_length=False).too_long(item)) is None:
            return None
        if self.silence is None or not isinstance(item, np.ndarray | Recording):
            return fault
        try:
            self._power(item)
        except ValueError as error:
            return str(error)
        return None

    def admitting(self, long: bool) -> "SpectrogramPreprocess":
        """The same preprocessing; with `long`, one that resamples signals of any length."""
        return replace(self, any_length=True) if long else self

    def extents(self, raw: Raw) -> tuple[Extent, ...]:
        """Where each axis of the tensor lies in the spectrogram of an example, in bands and frames."""
        frames = self.upright(raw).shape[-1]
        resampled = frames > self.size[-1] or self.resize == "resample"
        time = Extent(0.0, float(frames if resampled else self.size[-1]), frames)
        return (time,) if self.bands_as == "channels" else (Extent(0.0, float(self.bands), self.bands), time)

    def upright(self, raw: Raw) -> np.ndarray:
        """Return the decibels of an example, (channels, bands, frames) or (channels * bands, frames)."""
        decibels = self._decibels(self._power(raw)[0])
        return decibels.reshape(self.channels, *self.size[:-1], decibels.shape[-1]).numpy()

    def view(self, raw: Raw) -> Any:
        """Return the `Spectrogram` that the network reads."""
        decibels, observed, steps = self._sized(raw)
        values = torch.where(observed, decibels, torch.nan).numpy()
        step = self.step * steps / (self.sample_rate or 1)
        return Spectrogram(values, step, self.frequencies, self.relative, self.sample_rate)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for `preprocess_from_dict`."""
        return super().to_dict() | {"kind": "spectrogram"}

    @property
    def used_inputs(self) -> list[int]:
        """The channels of signals that the network reads."""
        bands = 1 if self.bands_as == "picture" else self.bands
        return sorted({channel // bands for channel in self.used})


def plan_frames(options: SpectrogramOptions, rate: float | None, length: int) -> tuple[int, int]:
    """Samples of a frame and of the step between two, for signals of at most this length.

    Raises:
        ValueError: for seconds without a sample rate, a frame longer than the signals, or a step longer than the frame.
    """
    sound = rate is not None and rate >= _SOUND
    window = round(_FRAME * rate) if sound and rate else 2 ** round(math.log2(4 * math.sqrt(length)))
    chosen = _samples("frame", options.frame, rate)
    window = min(window, length) if chosen is None else chosen
    step = _samples("frame_step", options.frame_step, rate, window)
    if step is None:
        step = max(1, round(_STEP * rate) if sound and rate else window // 4, math.ceil(length / _MOST_FRAMES))
        window = max(window, min(2 * step, length)) if chosen is None else window
        step = min(step, window)
    if window > length:
        raise ValueError(f"frame is {window:,} samples, and the longest signal has {length:,}: choose a shorter one")
    if step > window:
        raise ValueError(f"frame_step is {step:,} samples, and a frame {window:,}: a step is at most a frame")
    return window, step


def _samples(name: str, length: int | str | None, rate: float | None, whole: int | None = None) -> int | None:
    """A length in samples; `whole` is what shares are of."""
    if length is None:
        return None
    value, unit = Span.parse(length)
    if unit == "seconds":
        if rate is None:
            raise ValueError(f"{name} {length} is in seconds, and these signals have no sample rate: set samples")
        value *= rate
    elif unit == "share":
        if whole is None:
            raise ValueError(f"{name} {length} is a share, and a frame is part of nothing: set samples or seconds")
        value *= whole
    return max(1, round(value))
