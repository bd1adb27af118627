"""What the other rooms see of data: the examples of a split, a source of train and test sets, and splitting one off."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from ndvit.data.preprocess.base import Raw

Kind = Literal["signal", "image"]


class Encoded(ABC):
    """A picture that lies in a table as the bytes of its file; `str` names it."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Return the bytes as an open file."""

    def block(self) -> int | None:
        """What it is fetched together with, where it lies elsewhere and is not kept; None where it lies here."""
        return None


def are_streamed(items: Sequence[Any]) -> bool:
    """Whether items lie elsewhere, and are fetched anew whenever they are asked for."""
    return len(items) > 0 and isinstance(items[0], Encoded) and items[0].block() is not None


class Examples:
    """The examples of one split. Those of a folder are paths, read one by one when asked for; it can be pickled.

    Args:
        items: The examples, or what `read` reads them from.
        labels: (n,) indices into the source's classes, or None.
        names: How messages and tables call each example; numbered where None.
        read: A module-level function from an item to an example; None where the items are the examples.
    """

    def __init__(
        self,
        items: Sequence[Any],
        labels: Sequence[int] | np.ndarray | None = None,
        names: Sequence[str] | None = None,
        read: Callable[[Any], Raw] | None = None,
    ) -> None:
        self.items = items
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.names = [f"[{i}]" for i in range(len(items))] if names is None else names
        self.read = read

    @property
    def in_memory(self) -> bool:
        """Whether the examples are held, not read when asked for."""
        return self.read is None

    @property
    def streamed(self) -> bool:
        """See `are_streamed`."""
        return are_streamed(self.items)

    def blocks(self) -> np.ndarray | None:
        """(n,) which of them are fetched together; None for all that are not streamed."""
        return np.array([item.block() for item in self.items]) if self.streamed else None

    def sample(self, count: int) -> list[int]:
        """Indices of at most so many examples, drawn with a fixed seed; of a stream, from a few whole blocks."""
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

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """Return the examples at these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Examples([self.items[i] for i in chosen], labels, [self.names[i] for i in chosen], self.read)


@dataclass(frozen=True)
class Source:
    """A data set for classification, ready to train on."""

    name: str
    """What it is called in reports."""
    kind: Kind
    """"signal" for values (with any number of axes), "image" for pictures."""
    classes: tuple[str, ...]
    """Names of the classes, sorted; by value where all are numbers."""
    train: Examples
    """What is learned from, and all that preprocessing may be computed on."""
    test: Examples
    """What the result is measured on."""
    val: Examples | None
    """What may be used to choose, where the data has train, val and test."""
    notes: tuple[str, ...]
    """Every decision that the user should hear of."""


def hold_out(
    labels: np.ndarray | None,
    fraction: float,
    seed: int,
    classes: Sequence[str],
    where: str = "the data",
    both_sides: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random, each class for itself: at least one example of it on both sides.

    Args:
        labels: (n,) indices into `classes`.
        fraction: The part of each class to hold out.
        seed: Of the random choice.
        classes: Names, for the message.
        where: How the message calls the data.
        both_sides: Whether a class with a single example is an error; else that one is kept.

    Returns:
        The sorted indices that are kept and those that are held out.

    Raises:
        ValueError: a class with a single example.
    """
    assert labels is not None
    random = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2 and both_sides:
            raise ValueError(
                f"{where}: class {classes[label]} has a single example, and some are to be held out; "
                "add examples, remove the class, or give the set that is to be held out yourself"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held += random.permutation(members)[:count].tolist()
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)
