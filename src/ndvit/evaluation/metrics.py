"""What a classifier's answers are worth: one object that holds them and the numbers that follow from them.

The numbers are scikit-learn's, and torchmetrics' where scikit-learn has none; a number that a class without examples or
predictions leaves undefined is None here.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

ECE_BINS = 15  # of equal width, as in Guo et al. (2017), whose numbers others report


class ClassRow(NamedTuple):
    """How one class fared; a number that would divide by zero examples is None."""

    name: str
    examples: int
    recall: float | None
    precision: float | None
    f1: float | None


class ConfidenceBin(NamedTuple):
    """The examples whose predicted class was given a probability from `low` to below `high`; the last has 1, too."""

    low: float
    high: float
    examples: int
    confidence: float
    """The mean of those probabilities."""
    accuracy: float
    """The share of them that were predicted rightly."""


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error: how far confidence lies from accuracy, 0 to 1, on average over 15 equal bins.

    It is of the predicted class ("On Calibration of Modern Neural Networks", Guo et al., 2017). It depends on the bins,
    and of few examples it is too large: even perfect probabilities have some by chance.

    Args:
        probabilities: (n, classes).
        labels: (n,) integers from 0.
    """
    if probabilities.shape[1] == 1:  # torchmetrics asks for two classes
        return 0.0
    import ndvit._torchvision  # noqa: F401  (torchmetrics imports torchvision)

    # isort: split
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    said, true = torch.from_numpy(_below_one(probabilities)), torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return float(multiclass_calibration_error(said, true, probabilities.shape[1], n_bins=ECE_BINS))


def unbalanced(labels: np.ndarray) -> bool:
    """Whether the largest class has at least twice the examples of the smallest that has any; labels (n,) from 0."""
    counts = np.bincount(labels)
    return bool(counts.max() >= 2 * counts[counts > 0].min())


def _below_one(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities for binning: torchmetrics has a bin of its own for 1, and takes what is above 1 for logits.

    Above it are some of rows that were rounded to half precision.
    """
    return probabilities.astype(np.float32).clip(0, np.nextafter(np.float32(1), np.float32(0)))


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
        from sklearn.metrics import confusion_matrix

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A single label was found")  # there may be one class only
            return confusion_matrix(self.labels, self.predicted, labels=np.arange(len(self.classes)))

    @property
    def accuracy(self) -> float:
        """The share of examples that were predicted rightly."""
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(self.labels, self.predicted))

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy by Wilson's score, which stays inside 0 to 1 (Wilson, 1927)."""
        from scipy.stats import binomtest

        interval = binomtest(len(self) - len(self.mistakes), len(self)).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' recalls, over the classes that have examples."""
        from sklearn.metrics import recall_score

        # balanced_accuracy_score is the same number, with a warning where a class that is not there was predicted.
        return float(recall_score(self.labels, self.predicted, labels=np.unique(self.labels), average="macro"))

    @property
    def unbalanced(self) -> bool:
        """Whether the classes differ so much in size that accuracy alone misleads, see the function of this name."""
        return unbalanced(self.labels)

    @property
    def majority_share(self) -> float:
        """The accuracy of always naming the commonest class, below which nothing was learnt."""
        return float(self.confusion.sum(axis=1).max() / len(self))

    @property
    def log_loss(self) -> float:
        """The mean of -log p(true class) in nats; p is clipped at the number type's resolution, so it stays finite."""
        from sklearn.metrics import log_loss

        # As the true class against the others together, which spares the memory of one column a class.
        true = self.probabilities[np.arange(len(self)), self.labels].clip(max=1)
        return float(log_loss(np.ones(len(self), dtype=int), np.stack([1 - true, true], axis=1), labels=[0, 1]))

    @cached_property
    def ece(self) -> float:
        """The expected calibration error, see `calibration_error`."""
        return calibration_error(self.probabilities, self.labels)

    @cached_property
    def reliability(self) -> list[ConfidenceBin]:
        """The bins of `ece` that have examples: the mean of |accuracy - confidence|, weighted by examples, is it."""
        edges = np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)  # the type in which torchmetrics has them
        confidence = _below_one(self.confidence)
        place = np.digitize(confidence, edges[1:-1])
        right = self.predicted == self.labels
        bins = []
        for i in np.unique(place):
            here = place == i
            low, high, examples = float(edges[i]), float(edges[i + 1]), int(here.sum())
            bins.append(ConfidenceBin(low, high, examples, float(confidence[here].mean()), float(right[here].mean())))
        return bins

    @cached_property
    def per_class(self) -> list[ClassRow]:
        """One row a class, in the order of `classes`."""
        from sklearn.metrics import precision_recall_fscore_support

        precision, recall, f1, examples = precision_recall_fscore_support(
            self.labels, self.predicted, labels=np.arange(len(self.classes)), zero_division=np.nan
        )

        def known(value: float) -> float | None:
            return None if np.isnan(value) else float(value)

        return [
            ClassRow(name, int(n), known(r), known(p), known(f))
            for name, n, r, p, f in zip(self.classes, examples, recall, precision, f1)
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
            "ece": self.ece,
            "mistakes": len(self.mistakes),
            "per_class": [row._asdict() for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }
