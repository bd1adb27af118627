"""What every preprocessing does: turn raw examples into standardised tensors of one fixed size.

A preprocessing is computed on training data only and is stored in the model file as a plain dict.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ndvit.data.examples import Raw


@dataclass(frozen=True)
class Preprocess(ABC):
    """Turns a raw example into the input tensor of a network; each kind is a subclass.

    Raises:
        ValueError: for a size below 1, no or unequal numbers of means and stds, or a std that is not positive.
    """

    kind: ClassVar[str]

    size: tuple[int, ...]
    """Grid of every tensor, one number for each axis. A single number means one axis, or a square for pictures."""
    mean: tuple[float, ...]
    """Mean of each channel over the training data; of pictures, over pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""

    def __post_init__(self) -> None:
        size, mean, std = self.size, self.mean, self.std
        if not size or any(not isinstance(n, int | np.integer) or n < 1 for n in size):
            raise ValueError(f"size must be whole numbers of at least 1, one for each axis; got {tuple(size)}")
        if any(not isinstance(value, tuple | list | np.ndarray) for value in (mean, std)):
            raise ValueError(f"mean and std need a list of one number for each channel; got mean={mean}, std={std}")
        if not len(mean) or len(mean) != len(std) or any(not s > 0 for s in std):
            raise ValueError(f"mean and std need one number for each channel, std above 0; got mean={mean}, std={std}")
        for name, value in (("size", map(int, size)), ("mean", map(float, mean)), ("std", map(float, std))):
            object.__setattr__(self, name, tuple(value))

    @property
    def channels(self) -> int:
        """Channels of every tensor."""
        return len(self.mean)

    @abstractmethod
    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, *size) float32; raises a ValueError for an example that is not fully observed."""

    def masked(self, raw: Raw) -> tuple[Tensor, Tensor | None]:
        """Return the tensor and a mask (*size) bool, True = observed in any channel; None = all observed."""
        return self(raw), None

    def fits(self, item: Any) -> bool:
        """Whether an example, or a file by its header, is not longer than `size`; True for pictures of any size."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for `preprocess_from_dict`, with `kind`, and with lists as YAML's safe loader has no tuples."""
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


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
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        # below the resolution of float32, the deviation is rounding, which the division would magnify
        return tuple(np.where(std > 1e-7 * np.abs(self.centre), std, 1.0).tolist())
