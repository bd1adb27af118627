"""What every preprocessing does: turn raw examples into standardised tensors of one fixed size.

A preprocessing is computed on training data only and is stored in the model file as a plain dict.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from ndvit.data.examples import Raw

_MOST_VALUES = 2**30  # of one tensor: 4 GiB
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # what float32 holds in full


class Extent(NamedTuple):
    """Where one axis of a tensor lies in the raw example, in samples or pixels of the example.

    It begins after 0 and ends before `length` where the example is cropped, and reaches beyond where it is padded.
    """

    begin: float
    end: float
    length: int
    """Samples or pixels of the example along the axis."""


@dataclass(frozen=True)
class Preprocess(ABC):
    """Turns a raw example into the input tensor of a network; each kind is a subclass.

    A model's file is untrusted, so every value is checked here.

    Raises:
        ValueError: for a size below 1 or of more than 2^30 values, no or unequal numbers of means and stds, values that
            are not finite or that float32 does not hold, a std that is not positive, or channels that do not exist.
    """

    kind: ClassVar[str]
    costly: ClassVar[bool] = False
    """Whether making a tensor may take longer than training on it."""

    size: tuple[int, ...]
    """Grid of every tensor, one number for each axis. A single number means one axis, or a square for pictures."""
    mean: tuple[float, ...]
    """Mean of each channel over the training data; of pictures, over pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    unused_channels: tuple[int, ...] = field(default=(), kw_only=True)
    """Channels, counted from 0, that were constant or never observed in training: every tensor holds their mean, 0."""

    def __post_init__(self) -> None:
        size, mean, std = self.size, self.mean, self.std
        if not is_list(size) or not len(size) or any(not is_whole(n) or n < 1 for n in size):
            raise ValueError(f"size must be whole numbers of at least 1, one for each axis; got {short(size)}")
        if not is_list(mean) or not is_list(std):
            raise ValueError(
                f"mean and std need a list of one number for each channel; got mean={short(mean)}, std={short(std)}"
            )
        if not len(mean) or len(mean) != len(std):
            raise ValueError(f"mean and std need one number for each channel; got mean={short(mean)}, std={short(std)}")
        if any(not is_number(m, -_MOST, _MOST) for m in mean) or any(not is_number(s, _LEAST, _MOST) for s in std):
            raise ValueError(
                f"mean and std must be finite numbers that float32 holds, std above 0 (at least {_LEAST:.3g}, at most "
                f"{_MOST:.3g}); got mean={short(mean)}, std={short(std)}"
            )
        if len(mean) * math.prod(map(int, size)) > _MOST_VALUES:
            raise ValueError(
                f"size {short(tuple(size))} with {len(mean)} channels has more than {_MOST_VALUES:,} values an example"
            )
        unused = self.unused_channels
        if not is_list(unused) or any(not is_whole(c) or not 0 <= c < len(mean) for c in unused):
            raise ValueError(f"unused_channels are numbers from 0 to {len(mean) - 1}; got {short(unused)}")
        if len(set(unused)) >= len(mean):
            raise ValueError(f"unused_channels are all {len(mean)} channels, so that nothing would be read")
        converted: dict[str, Iterable[float]] = {
            "size": map(int, size),
            "mean": map(float, mean),
            "std": map(float, std),
        }
        converted["unused_channels"] = sorted(set(map(int, unused)))
        for name, value in converted.items():
            object.__setattr__(self, name, tuple(value))

    @property
    def channels(self) -> int:
        """Channels of every tensor."""
        return len(self.mean)

    @property
    def raw_size(self) -> tuple[int, ...]:
        """Size of raw examples that are read as they are, one number for each axis."""
        return self.size

    @property
    def raw_channels(self) -> int:
        """Channels of raw examples."""
        return self.channels

    @abstractmethod
    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, *size) float32; raises a ValueError for an example that is not fully observed."""

    def masked(self, raw: Raw) -> tuple[Tensor, Tensor | None]:
        """Return the tensor and a mask (*size) bool, True = observed in any channel; None = all observed."""
        return self(raw), None

    def fits(self, item: Any) -> bool:
        """Whether an example, or a file by its header, is not longer than `size`; True for pictures of any size."""
        return True

    def misfit(self, item: Any) -> str | None:
        """Why an example, or a file by its header, cannot be an input; None if it may be one."""
        return None

    @property
    def headers_decide(self) -> bool:
        """Whether headers decide what is too long; otherwise they raise a suspicion, and the example is read for it."""
        return True

    def too_long(self, item: Any) -> str | None:
        """How much an example, or a file by its header, is too long to be resampled to `size`; None if it is not."""
        return None

    def admitting(self, long: bool) -> "Preprocess":
        """The same preprocessing; with `long`, one that resamples signals of any length."""
        return self

    def unlike_training(self, examples: Sequence[Raw]) -> list[str]:
        """Describe how new examples differ from the training data in a way that makes answers doubtful."""
        return []

    @abstractmethod
    def extents(self, raw: Raw) -> tuple[Extent, ...]:
        """Where each axis of the tensor lies in an example; raises the errors of a call."""

    @abstractmethod
    def upright(self, raw: Raw) -> np.ndarray:
        """Return the values of an example as `extents` counts them: (channels, *grid), in the units of the example."""

    def view(self, raw: Raw) -> Raw:
        """Return the example as the network reads it, in the units of the raw one."""
        return raw

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for `preprocess_from_dict`, with `kind`, and with lists as YAML's safe loader has no tuples.

        Fields that came after the first format are left out at their defaults, so that earlier versions read the rest.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {k: v for k, v in values.items() if k not in _LATER or v != getattr(type(self), k)}
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    @property
    def used(self) -> list[int]:
        """The channels that the network reads."""
        return [channel for channel in range(self.channels) if channel not in self.unused_channels]


_LATER = ("unused_channels", "levels", "longest", "any_length")
MOST_RESAMPLED = 2.0
"""How many times longer than the training examples a signal may be. What is longer would be played too fast."""
LONG = 4096
"""Samples of an axis up to which the longest example decides the length of the input."""
USUAL = 95
"""Percentile of the lengths that decides where examples are longer."""


def usual_length(lengths: Sequence[int]) -> int:
    """The length of a network's input axis for examples of these lengths: that of the longest, if it is short.

    Otherwise it is the 95th percentile, because a single long recording would make every step as expensive; but at
    least two thirds of the longest, so that new examples may be a third longer than it before they are refused for
    being resampled by more than 2.
    """
    longest = max(lengths)
    if longest <= LONG:
        return longest
    return max(math.ceil(np.percentile(lengths, USUAL)), math.ceil(longest * 2 / 3))


def short(value: object) -> str:
    """The value in at most 80 characters, for messages about untrusted files."""
    text = repr(value[:10] if isinstance(value, str | tuple | list) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_number(value: object, least: float, most: float) -> bool:
    """Whether a value is a finite number (no bool) within these bounds; NaN is not."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and least <= value <= most  # type: ignore[operator]


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_list(value: object) -> bool:
    """Whether a value is a sequence of values, as JSON, Python or numpy hold it."""
    return isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim == 1)


class Moments:
    """Mean and standard deviation of each channel over any number of examples, in one pass (Chan et al., 1979)."""

    def __init__(self, channels: int) -> None:
        self.count, self.centre, self.squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """Add one example, (channels, *grid); NaN is ignored."""
        flat = values.reshape(len(values), -1).astype(np.float64)
        observed = ~np.isnan(flat)
        count = observed.sum(axis=1)
        mean = np.where(observed, flat, 0).sum(axis=1) / np.maximum(count, 1)
        squares = np.where(observed, (flat - mean[:, None]) ** 2, 0).sum(axis=1)
        total, delta = np.maximum(self.count + count, 1), mean - self.centre
        self.squares += squares + delta**2 * self.count * count / total
        self.centre += delta * count / total
        self.count += count

    def mean(self) -> tuple[float, ...]:
        """Return the mean of each channel; 0 for one without observed values."""
        return tuple(self.centre.tolist())

    def std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel; 1 for a constant one, which can then be divided by it."""
        return tuple(np.where(self._constant(), 1.0, self._std()).tolist())

    def constant(self, noise: float = 0.0) -> tuple[int, ...]:
        """Return the channels without information: never observed, or with a std of at most `noise` or of rounding."""
        return tuple(np.flatnonzero(self._constant(noise)).tolist())

    def _std(self) -> np.ndarray:
        return np.sqrt(self.squares / np.maximum(self.count, 1))

    def _constant(self, noise: float = 0.0) -> np.ndarray:
        # below the resolution of float32, the deviation is rounding, which the division would magnify
        return self._std() <= np.maximum(noise, np.finfo(np.float32).eps * np.abs(self.centre))
