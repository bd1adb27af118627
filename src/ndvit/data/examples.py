"""What the rest of the library sees of data: raw examples, the examples of a split, and a complete data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from ndvit.config.spectrogram import SpectrogramOptions
from ndvit.data.messages import Doubt

if TYPE_CHECKING:
    from ndvit.tasks.base import Task

Kind = Literal["signal", "image"]


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


class EncodedPicture(ABC):
    """A picture in a table, as the bytes of its file; `str` names it."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Return the bytes as an open file."""

    def block(self) -> int | None:
        """Number of the block that a remote picture is fetched with; None for local data."""
        return None


def are_streamed(items: Sequence[Any]) -> bool:
    """Whether the items are remote and fetched each time they are read."""
    return len(items) > 0 and isinstance(items[0], EncodedPicture) and items[0].block() is not None


class Part(NamedTuple):
    """A split as a source holds it.

    `targets` are raw, with None for a missing one; None if there are none at all. `columns` are the columns that
    `ReadingOptions.columns` names, with a raw value for each example.
    """

    items: list[Any]
    targets: list[Any] | None
    names: list[str]
    columns: dict[str, list[Any]] = {}  # noqa: RUF012 (a default that nothing changes)

    def take(self, indices: Sequence[int]) -> Part:
        """Return the examples at these indices."""
        targets = None if self.targets is None else [self.targets[i] for i in indices]
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Part([self.items[i] for i in indices], targets, [self.names[i] for i in indices], columns)


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
    """

    left_out: tuple[str, ...] = ()

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
        return np.array([item.block() for item in self.items]) if self.streamed else None

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
        items, names = [self.items[i] for i in chosen], [self.names[i] for i in chosen]
        places = None if self.places is None else [self.places[i] for i in chosen]
        return Examples(items, targets, names, self.read, copies, groups, weights, places)


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
