"""What an example is, and what every preprocessing does: raw example in, standardised tensor of one fixed size out.

Preprocessing is computed on training data only and travels in the model file, as a plain dict.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor


class Recording(NamedTuple):
    """Sound as read: `values` (channels, time) float32, `rate` in samples a second (Hz)."""

    values: np.ndarray
    rate: float


Raw = np.ndarray | Image.Image | Recording
"""One example as read. Arrays are (channels, *grid) float32, NaN where a value is missing."""


class Preprocess(Protocol):
    """Turns a raw example into the tensor a network takes; each kind is a frozen dataclass."""

    kind: ClassVar[str]

    @property
    def size(self) -> tuple[int, ...]:
        """The grid of every tensor, one number an axis."""

    @property
    def channels(self) -> int:
        """The channels of every tensor."""

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, *size) float32; ValueError where the example is not fully observed."""

    def masked(self, raw: Raw) -> tuple[Tensor, Tensor | None]:
        """Return the tensor and a mask (*size) bool, True = observed in any channel; None = all observed."""

    def fits(self, raw: Raw) -> bool:
        """Say whether the example keeps its resolution: False where it is longer than `size` and will be resampled."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON and YAML can hold, with `kind`."""


class Moments:
    """Mean and standard deviation of each channel over any number of examples, in one pass (Chan et al., 1979)."""

    def __init__(self, channels: int) -> None:
        self.count, self.centre, self.squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """Take in one example, (channels, *grid); NaN is left out."""
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
        """Return the mean of each channel; 0 for one that was never observed."""
        return tuple(self.centre.tolist())

    def std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel; 1 for a constant one, so that dividing by it is harmless."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        # Below the resolution of float32 a spread is rounding, and dividing by it would blow the rounding up.
        return tuple(np.where(std > 1e-7 * np.abs(self.centre), std, 1.0).tolist())


def check_fields(preprocess: Preprocess, size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
    """Check size, mean and std, and set them as tuples of plain numbers on a frozen dataclass.

    Raises:
        ValueError: a size below 1, no or unequal numbers of means and stds, a std that is not positive.
    """
    if not size or any(not isinstance(n, int | np.integer) or n < 1 for n in size):
        raise ValueError(f"size must be whole numbers of at least 1, one an axis; got {tuple(size)}")
    if any(not isinstance(value, tuple | list | np.ndarray) for value in (mean, std)):
        raise ValueError(f"mean and std need a list of one number a channel; got mean={mean}, std={std}")
    if not len(mean) or len(mean) != len(std) or any(not s > 0 for s in std):
        raise ValueError(f"mean and std need one number a channel, std above 0; got mean={mean}, std={std}")
    for name, value in (("size", map(int, size)), ("mean", map(float, mean)), ("std", map(float, std))):
        object.__setattr__(preprocess, name, tuple(value))


def to_dict(preprocess: Any) -> dict[str, Any]:
    """Return the fields of a preprocessing and its kind, tuples as lists (YAML's safe loader knows no tuples)."""
    fields = dataclasses.asdict(preprocess)
    return {"kind": preprocess.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def preprocess_from_dict(d: dict[str, Any]) -> Preprocess:
    """Build the preprocessing that `to_dict` described.

    Raises:
        ValueError: an unknown kind, fields that are missing or unknown, or values that do not fit.
    """
    from ndvit.data.preprocess.images import ImagePreprocess
    from ndvit.data.preprocess.signals import SignalPreprocess

    kinds: dict[Any, Any] = {SignalPreprocess.kind: SignalPreprocess, ImagePreprocess.kind: ImagePreprocess}
    given = {k: v for k, v in d.items() if k != "kind"}
    if d.get("kind") not in kinds:
        raise ValueError(f"preprocessing of kind {d.get('kind')!r} is unknown; expected one of {', '.join(kinds)}")
    known = dataclasses.fields(kinds[d["kind"]])
    unknown = sorted(set(given) - {f.name for f in known})
    missing = [f.name for f in known if f.default is dataclasses.MISSING and f.name not in given]
    if unknown or missing:
        wrong = [f"{what}: {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"{d['kind']} preprocessing has fields {'; '.join(wrong)}")
    try:
        made: Preprocess = kinds[d["kind"]](**given)
    except TypeError as error:
        raise ValueError(f"{d['kind']} preprocessing has a field of the wrong type: {error}") from error
    return made


def same_kind(kind: str, preprocess: Preprocess, where: str) -> None:
    """Raise a ValueError where data are not of the kind that a model reads."""
    if kind != preprocess.kind:
        called = {"signal": "signals or other arrays of values", "image": "images"}
        raise ValueError(f"{where} holds {called[kind]}, and the model was trained on {called[preprocess.kind]}")
