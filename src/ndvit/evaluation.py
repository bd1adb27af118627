"""What a classifier's answers are worth: one object that holds them and the numbers that follow from them.

Plain numpy: every number here is a line of arithmetic on the confusion matrix, so classes that never occur or are never
predicted are decided here, and not by a library's warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, NamedTuple

import numpy as np


class ClassRow(NamedTuple):
    """How one class fared; a number that would divide by zero examples is None."""

    name: str
    examples: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True, eq=False)  # eq: comparing arrays gives no single truth value
class Evaluation:
    """The answers of a classifier on labelled examples.

    Raises:
        ValueError: The set is empty, shapes disagree, a label is no class, or the rows are not probabilities.
    """

    classes: tuple[str, ...]
    """Class names; their order is that of the columns of `probabilities`."""
    labels: np.ndarray
    """The true class of each example, (n,) integers from 0."""
    probabilities: np.ndarray
    """What the classifier said, (n, classes); every row sums to 1."""
    names: tuple[str, ...]
    """A name for each example: its file, or its number."""

    def __post_init__(self) -> None:
        labels, probabilities = np.asarray(self.labels), np.asarray(self.probabilities)
        n, width = len(self.names), len(self.classes)
        if labels.size == 0:
            raise ValueError("an evaluation needs at least one example, got none: is the test set empty?")
        if len(set(self.classes)) != width:
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise ValueError(
                f"class names must differ from each other, got more than one {', '.join(map(repr, twice))}"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be (n,) integers, got shape {labels.shape} of {labels.dtype}")
        if n != len(labels):
            raise ValueError(f"every example needs one name, got {n} names for {len(labels)} labels")
        if probabilities.shape != (n, width) or probabilities.dtype.kind != "f":
            raise ValueError(
                f"probabilities must be floats of shape {(n, width)} for {n} labels and {width} classes, "
                f"got shape {probabilities.shape} of {probabilities.dtype}"
            )
        if (bad := np.flatnonzero((labels < 0) | (labels >= width))).size:
            raise ValueError(
                f"labels must lie in 0 to {width - 1} for {width} classes, "
                f"got {labels[bad[0]]} for {self.names[bad[0]]!r} ({bad.size} such labels)"
            )
        if (bad := np.flatnonzero(~np.isfinite(probabilities).all(axis=1))).size:
            raise ValueError(
                f"probabilities must be finite, got NaN or infinity for {bad.size} of {n} examples "
                f"(the first is {self.names[bad[0]]!r}): the training may have diverged, try a smaller learning rate"
            )
        probabilities = probabilities.astype(np.promote_types(probabilities.dtype, np.float32))
        total = probabilities.sum(axis=1, dtype=np.float64)
        # The tolerance admits rows rounded to half precision, and no logits.
        if (bad := np.flatnonzero((probabilities < 0).any(axis=1) | (abs(total - 1) > 1e-2))).size:
            raise ValueError(
                f"probabilities must not be negative and must sum to 1 for each example, got "
                f"{np.array2string(probabilities[bad[0]], precision=3, threshold=8, edgeitems=3)} "
                f"for {self.names[bad[0]]!r}: take the softmax of the network's output"
            )
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "probabilities", probabilities)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each example, (n,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability given to the predicted class, (n,)."""
        return self.probabilities.max(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts, (classes, classes): the row is the true class, the column the predicted one."""
        width = len(self.classes)
        return np.bincount(self.labels * width + self.predicted, minlength=width * width).reshape(width, width)

    @property
    def accuracy(self) -> float:
        """The share of examples that were predicted rightly."""
        return float(np.mean(self.predicted == self.labels))

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy by Wilson's score, which stays inside 0 to 1 (Wilson, 1927)."""
        z, n, p = 1.959964, len(self), self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' recalls, over the classes that have examples."""
        return float(np.mean([row.recall for row in self.per_class if row.recall is not None]))

    @property
    def majority_share(self) -> float:
        """The accuracy of always naming the commonest class, below which nothing was learnt."""
        return float(self.confusion.sum(axis=1).max() / len(self))

    @property
    def log_loss(self) -> float:
        """The mean of -log p(true class) in nats; p is clipped at the number type's resolution, so it stays finite."""
        true = self.probabilities[np.arange(len(self)), self.labels]
        return float(-np.log(np.clip(true, np.finfo(true.dtype).eps, 1.0), dtype=np.float64).mean())

    @cached_property
    def per_class(self) -> list[ClassRow]:
        """One row a class, in the order of `classes`."""
        right, true, said = self.confusion.diagonal(), self.confusion.sum(axis=1), self.confusion.sum(axis=0)

        def share(part: int, whole: int) -> float | None:
            return float(part / whole) if whole else None

        return [
            ClassRow(name, int(t), share(r, t), share(r, s), share(2 * r, t + s))
            for name, r, t, s in zip(self.classes, right, true, said)
        ]

    @cached_property
    def mistakes(self) -> np.ndarray:
        """Indices of the wrongly predicted examples, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values that JSON takes."""
        return {
            "examples": len(self),
            "accuracy": self.accuracy,
            "accuracy_interval_95": list(self.accuracy_interval),
            "balanced_accuracy": self.balanced_accuracy,
            "majority_share": self.majority_share,
            "log_loss": self.log_loss,
            "mistakes": len(self.mistakes),
            "per_class": [row._asdict() for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }
