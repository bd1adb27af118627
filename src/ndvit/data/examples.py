"""What the rest of the library sees of data: raw examples, the examples of a split, and a complete data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from ndvit.config.spectrogram import SpectrogramOptions
from ndvit.data.messages import Doubt

if TYPE_CHECKING:
    from ndvit.tasks.base import Task

Kind = Literal["signal", "image"]
_EQUAL = 1e-9  # relative difference of weights that are the same but for rounding


class Recording(NamedTuple):
    """Decoded sound: `values` (channels, time) float32, `rate` in samples per second (Hz)."""

    values: np.ndarray
    rate: float


class Place(NamedTuple):
    """Where a window stands: samples `start` to `stop` of a recording, at `rate` (Hz) if that is known."""

    recording: str
    start: int
    stop: int
    rate: float | None

    @property
    def span(self) -> tuple[float, float]:
        """Start and end, in seconds if the rate is known, else in samples."""
        return (self.start, self.stop) if self.rate is None else (self.start / self.rate, self.stop / self.rate)

    @property
    def name(self) -> str:
        """The name of the window."""
        unit = "" if self.rate is None else "s"
        start, end = (f"{value:.10g}" for value in self.span)
        return f"{self.recording}[{start}{unit}:{end}{unit}]"


Raw = np.ndarray | Image.Image | Recording
"""One raw example. Arrays are (channels, *grid) float32, with NaN for missing values."""


class Stored(ABC):  # noqa: B024 (its two kinds have nothing else in common)
    """An example in a table, or in a shard; `str` names it."""

    def block(self) -> int | None:
        """Number of the block that a streamed example is fetched with; None for other data."""
        return None


class EncodedPicture(Stored):
    """A picture as the bytes of its file."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Return the bytes as an open file."""


class StoredSignal(Stored):
    """An array of values, or a recording.

    Attributes:
        channels: number of channels.
        grid: length of each axis.
        rate: samples per second (Hz); None for an array.
    """

    channels: int
    grid: tuple[int, ...]
    rate: float | None

    @abstractmethod
    def load(self) -> np.ndarray | Recording:
        """Return the values."""


class StoredItems(Sequence[Any]):
    """Streamed examples that are made when they are indexed, so that a million of them need little memory."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> StoredItems:
        """Return the items at these indices."""

    @abstractmethod
    def blocks(self) -> np.ndarray:
        """(n,) number of the block that each item is fetched with."""

    @abstractmethod
    def shapes(self) -> np.ndarray:
        """(n,) integers that items of the same shape share."""

    def places(self) -> list[Place] | None:
        """The windows of recordings that the items are; None if they are whole."""
        return None


def are_streamed(items: Sequence[Any]) -> bool:
    """Whether the items are fetched in blocks each time they are read."""
    return len(items) > 0 and isinstance(items[0], Stored) and items[0].block() is not None


def taken(values: Sequence[Any], indices: Sequence[int] | np.ndarray) -> Sequence[Any]:
    """The values at these indices, in this order."""
    take = getattr(values, "take", None)
    return [values[i] for i in indices] if take is None else take(np.asarray(indices, dtype=np.int64))


class Part(NamedTuple):
    """A split as a source holds it.

    `targets` are raw, with None for a missing one; None if there are none at all. `columns` are the columns that
    `ReadingOptions.columns` names, with a raw value for each example. `channels` are the names of the channels, if the
    data have names.
    """

    items: Sequence[Any]
    targets: list[Any] | None
    names: Sequence[str]
    columns: dict[str, list[Any]] = {}  # noqa: RUF012 (a default that nothing changes)
    channels: tuple[str, ...] = ()

    def take(self, indices: Sequence[int]) -> Part:
        """Return the examples at these indices."""
        targets = None if self.targets is None else [self.targets[i] for i in indices]
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Part(taken(self.items, indices), targets, taken(self.names, indices), columns, self.channels)


class Examples:
    """The examples of one split, in memory or read from files one by one. It can be pickled.

    Args:
        items: the examples, or the arguments of `read`.
        targets: (n, ...) targets encoded by the task, or None.
        names: names of the examples in messages and tables; the default is their numbers.
        read: module-level function from an item to an example; None if the items are the examples.
        copies: (n,) integers that examples with equal content share, see `hold_out`; None if all differ.
        groups: (n,) names of the groups, such as patients, that no split divides; None without groups.
        weights: (n,) weights of the examples in training, with a mean of 1; None if all are equal.
        places: (n,) the windows of recordings that the examples are; None if they are whole.

    Attributes:
        left_out: faults of the examples that were left out as they were read.
        channels: names of the channels of examples as they were read, if the data have names.
    """

    left_out: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def __init__(
        self,
        items: Sequence[Any],
        targets: Sequence[int] | np.ndarray | None = None,
        names: Sequence[str] | None = None,
        read: Callable[[Any], Raw] | None = None,
        copies: np.ndarray | None = None,
        groups: Sequence[str] | np.ndarray | None = None,
        weights: np.ndarray | None = None,
        places: Sequence[Place] | None = None,
    ) -> None:
        self.items = items
        self.targets = None if targets is None else np.asarray(targets)
        if self.targets is not None and self.targets.dtype.kind in "iu":
            self.targets = self.targets.astype(np.int64)  # the only integers that torch takes as class indices
        self.names = [f"[{i}]" for i in range(len(items))] if names is None else names
        self.read = read
        self.copies = copies
        self.groups = None if groups is None else np.asarray(groups, dtype=np.str_)
        self.weights = weights
        self.places = places
        self.in_memory = read is None
        self.streamed = are_streamed(items)

    def blocks(self) -> np.ndarray | None:
        """(n,) number of the block that each streamed example is fetched with; None if they are not streamed."""
        if not self.streamed:
            return None
        return self.items.blocks() if isinstance(self.items, StoredItems) else np.array([i.block() for i in self.items])

    def sample(self, count: int) -> list[int]:
        """Draw sorted indices of at most `count` examples with a fixed seed; of a stream, from few whole blocks."""
        random, blocks = np.random.default_rng(0), self.blocks()
        order = random.permutation(len(self))
        if blocks is not None:
            order = np.argsort(random.permutation(blocks.max() + 1)[blocks], kind="stable")
        return sorted(order[:count].tolist())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Raw:
        item: Raw = self.items[i] if self.read is None else self.read(self.items[i])
        return item

    def __iter__(self) -> Iterator[Raw]:
        return (self[i] for i in range(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Return the examples at these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        targets = None if self.targets is None else self.targets[chosen]
        copies = None if self.copies is None else self.copies[chosen]
        groups = None if self.groups is None else self.groups[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        items, names = taken(self.items, chosen), taken(self.names, chosen)
        places = None if self.places is None else [self.places[i] for i in chosen]
        return Examples(items, targets, names, self.read, copies, groups, weights, places)

    def at_speed(self, factor: float) -> Examples:
        """Return the recordings at a speed that is `factor` times theirs, so that pitch and formants are, too."""
        read = partial(_read_at_speed, self.read, factor)
        return Examples(self.items, self.targets, self.names, read, self.copies, self.groups, self.weights, self.places)

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Return the examples of several splits of one source, one after the other, without their copies.

        Groups, targets and windows are kept if all parts have them, weights if any has.
        """

        def together(values: list[Any]) -> Any:
            return None if any(value is None for value in values) else [one for value in values for one in value]

        targets, groups, places = (
            together([getattr(part, name) for part in parts]) for name in ("targets", "groups", "places")
        )
        weights = None
        if any(part.weights is not None for part in parts):
            weights = np.concatenate([np.ones(len(part)) if part.weights is None else part.weights for part in parts])
        items, names = [item for part in parts for item in part.items], [name for part in parts for name in part.names]
        return cls(items, targets, names, parts[0].read, None, groups, weights, places)

    def counted(self) -> Examples:
        """Return the examples with a weight above 0; without weights if those of all are equal."""
        if self.weights is None or (self.weights > 0).all():
            return self
        found = self.subset(np.flatnonzero(self.weights > 0))
        assert found.weights is not None
        equal = np.ptp(found.weights) < _EQUAL * found.weights.max()
        found.weights = None if equal else found.weights / found.weights.mean()
        return found


def _read_at_speed(read: Callable[[Any], Raw] | None, factor: float, item: Any) -> Recording:
    raw = item if read is None else read(item)
    if not isinstance(raw, Recording):
        raise ValueError("has no sample rate and cannot be read at another speed: set --speeds 1 (speeds=1)")
    return Recording(raw.values, raw.rate * factor)  # preprocessing resamples it to the rate of the others


@dataclass(frozen=True)
class Source:
    """A data set that is ready for training.

    Attributes:
        name: name in reports.
        kind: "signal" for arrays of values, "image" for pictures.
        dims: number of axes of an example, without its channels: 1 for a time series, 2 for a picture.
        task: meaning of the targets.
        train: training examples. Preprocessing is computed on them only.
        test: test examples.
        val: validation examples, if the data set has them.
        notes: decisions that the user should know of; those of the type `Doubt` were also raised as warnings.
        spectrogram: how a network reads the signals as spectrograms; None if it reads them as they are.
        channels: names of the channels, if the data have names.
    """

    name: str
    kind: Kind
    dims: int
    task: Task
    train: Examples
    test: Examples
    val: Examples | None
    notes: tuple[str, ...]
    spectrogram: SpectrogramOptions | None = None
    channels: tuple[str, ...] = ()

    @property
    def input_dims(self) -> int:
        """Number of axes of the inputs of a network."""
        if self.spectrogram is None:
            return self.dims
        return 1 if self.spectrogram.bands_as == "channels" else 2

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs; empty for other tasks."""
        return getattr(self.task, "classes", ())

    @property
    def decisions(self) -> tuple[str, ...]:
        """The notes that were not raised as warnings."""
        return tuple(note for note in self.notes if not isinstance(note, Doubt))
