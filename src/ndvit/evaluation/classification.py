"""Evaluation of a classifier: the metrics of tests, reports and `ndvit evaluate`.

Metrics come from scikit-learn where it has them. A metric that is undefined for a class without examples or predictions
is None. The metrics during training are those of `tasks/classification.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ndvit.evaluation.base import Evaluation, percent, wilson_interval
from ndvit.evaluation.figures import ConfidenceBin

ECE_BINS = 15  # of equal width, as in Guo et al. (2017), so that values can be compared with published ones
MAX_ABSENT = 20  # classes without examples that the table prints a row for
MAX_CONFUSION = 20  # classes up to which the report prints the confusion matrix as a table of counts
MAX_ROWS = 50  # classes in the report before the rest are folded away


class ClassRow(NamedTuple):
    """Metrics of one class; None where the denominator is 0."""

    name: str
    examples: int
    recall: float | None
    precision: float | None
    f1: float | None


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error: the mean difference between confidence and accuracy, over 15 bins of equal width.

    It takes the predicted class only ("On Calibration of Modern Neural Networks", Guo et al., 2017). It depends on the
    bins, and few examples bias it upwards: even perfect probabilities then have an error above 0.

    Args:
        probabilities: (n, classes).
        labels: (n,) integers from 0.
        weights: (n,) weights of the examples; None weighs all equally.

    Returns:
        A number from 0 to 1.
    """
    places, gaps = calibration_gaps(probabilities, labels)
    weights = np.ones(len(gaps)) if weights is None else weights
    return float(abs(np.bincount(places, weights * gaps)).sum() / weights.sum())


def calibration_gaps(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each example by its confidence, (n,), and 1 or 0 for right or wrong minus the confidence, (n,)."""
    confidence = _confidence(probabilities.max(1))
    return _bins(confidence), (probabilities.argmax(1) == labels) - confidence.astype(np.float64)


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray) -> list[ConfidenceBin]:
    """The bins of `calibration_error` that have examples, with their mean confidence and accuracy."""
    edges, confidence = _edges(), _confidence(probabilities.max(1))
    place = _bins(confidence)
    sums = [np.bincount(place, values) for values in (confidence, probabilities.argmax(1) == labels)]
    return [
        ConfidenceBin(float(edges[i]), float(edges[i + 1]), int(n), float(sums[0][i] / n), float(sums[1][i] / n))
        for i, n in enumerate(np.bincount(place))
        if n
    ]


def _confidence(values: np.ndarray) -> np.ndarray:
    """Confidences in the number type of the bins, without rounding above 1."""
    return values.astype(np.float32).clip(max=1)


def _edges() -> np.ndarray:
    return np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)


def _bins(confidence: np.ndarray) -> np.ndarray:
    """Numbers of the bins of confidences (n,). A confidence of 1 is in the last bin."""
    return np.digitize(confidence, _edges()[1:-1])


def unbalanced(labels: np.ndarray) -> bool:
    """Whether the largest class of labels (n,) has at least twice the examples of the smallest one that has any."""
    counts = np.bincount(labels)
    return bool(counts.max() >= 2 * counts[counts > 0].min())


@dataclass(frozen=True, eq=False)  # comparing arrays gives no single truth value
class ClassificationEvaluation(Evaluation):
    """Class probabilities compared with the labels of the same examples.

    Attributes:
        classes: class names, in the order of the columns of `probabilities`.
        labels: true class of each example, (n,) integers from 0.
        probabilities: (n, classes) floating point; every row sums to 1.
        names: one name per example: its file or its number.

    Raises:
        ValueError: if there are no examples, shapes disagree, a label is not a class, or rows are not probabilities.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]
    template: ClassVar[str] = "classification.html.jinja"

    def __post_init__(self) -> None:
        labels, probabilities = np.asarray(self.labels), np.asarray(self.probabilities)
        n, width = len(self.names), len(self.classes)
        if labels.size == 0:
            raise ValueError("an evaluation needs at least one example, got none: is the test set empty?")
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise ValueError(f"class names must be unique, got more than one {', '.join(map(repr, twice))}")
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be {n} integers, one per name, got shape {labels.shape} of {labels.dtype}")
        if probabilities.shape != (n, width) or probabilities.dtype.kind != "f":
            raise ValueError(
                f"probabilities must be floating point of shape {(n, width)} for {n} labels and {width} classes, "
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
                f"(the first is {self.names[bad[0]]!r}): training may have diverged, try a smaller learning rate"
            )
        probabilities = probabilities.astype(np.promote_types(probabilities.dtype, np.float32))
        total = probabilities.sum(axis=1, dtype=np.float64)
        # The tolerance admits rows rounded to half precision, and rejects logits.
        if (bad := np.flatnonzero((probabilities < 0).any(axis=1) | (abs(total - 1) > 1e-2))).size:
            raise ValueError(
                f"probabilities must not be negative and must sum to 1 for each example, got "
                f"{np.array2string(probabilities[bad[0]], precision=3, threshold=8, edgeitems=3)} "
                f"for {self.names[bad[0]]!r}: apply softmax to the outputs of the network"
            )
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "probabilities", probabilities)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Most probable class of each example, (n,)."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, (n,)."""
        return self.probabilities.max(axis=1)

    @cached_property
    def mistakes(self) -> np.ndarray:
        """Indices of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts, (classes, classes): rows are true classes, columns are predicted classes."""
        from sklearn.metrics import confusion_matrix

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A single label was found")  # a test set may have one class only
            return confusion_matrix(self.labels, self.predicted, labels=np.arange(len(self.classes)))

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(self.labels, self.predicted))

    score = accuracy

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(len(self) - len(self.mistakes), len(self))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have examples."""
        from sklearn.metrics import recall_score

        # balanced_accuracy_score is the same number, but warns if a class without examples was predicted.
        return float(recall_score(self.labels, self.predicted, labels=np.unique(self.labels), average="macro"))

    @property
    def unbalanced(self) -> bool:
        """Whether class sizes differ so much that accuracy alone is misleading, see the function of this name."""
        return unbalanced(self.labels)

    @property
    def majority_share(self) -> float:
        """Accuracy of a classifier that always predicts the most frequent class."""
        return float(self.confusion.sum(axis=1).max() / len(self))

    @property
    def log_loss(self) -> float:
        """Mean of -log(probability of the true class) in nats; probabilities are clipped, so that it is finite."""
        from sklearn.metrics import log_loss

        # Taking all other classes together saves the memory of one column per class.
        true = self.probabilities[np.arange(len(self)), self.labels].clip(max=1)
        return float(log_loss(np.ones(len(self), dtype=int), np.stack([1 - true, true], axis=1), labels=[0, 1]))

    @cached_property
    def ece(self) -> float:
        """Expected calibration error, see `calibration_error`."""
        return calibration_error(self.probabilities, self.labels)

    @cached_property
    def reliability(self) -> list[ConfidenceBin]:
        """Bins of `ece` that have examples: `ece` is their mean of |accuracy - confidence|, weighted by examples."""
        return reliability_bins(self.probabilities, self.labels)

    @cached_property
    def per_class(self) -> list[ClassRow]:
        """Metrics of each class, in the order of `classes`."""
        from sklearn.metrics import precision_recall_fscore_support

        precision, recall, f1, examples = precision_recall_fscore_support(
            self.labels, self.predicted, labels=np.arange(len(self.classes)), zero_division=np.nan
        )
        return [
            ClassRow(name, int(n), *(None if np.isnan(value) else float(value) for value in values))
            for name, n, *values in zip(self.classes, examples, recall, precision, f1)
        ]

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """Accuracy with its 95 % interval, and balanced accuracy if the test set or the training set is unbalanced."""
        correct, (low, high) = len(self) - len(self.mistakes), self.accuracy_interval
        line = f"accuracy {self.accuracy:.4f} ({correct:,} of {len(self):,}; 95 % interval {low:.4f} to {high:.4f})"
        if self.unbalanced or (train_targets is not None and unbalanced(train_targets)):
            line += f", balanced accuracy {self.balanced_accuracy:.4f}"
        return line

    def table(self) -> str:
        """Metrics of the whole set and of each class."""
        low, high = self.accuracy_interval
        rows = [row for row in self.per_class if row.examples]
        absent = len(self.per_class) - len(rows)
        if absent <= MAX_ABSENT:
            rows, absent = self.per_class, 0
        width = max(5, *(len(row.name) for row in rows))
        lines = [
            f"accuracy           {self.accuracy:.4f}  ({len(self) - len(self.mistakes):,} of {len(self):,})",
            f"95 % interval      {low:.4f} to {high:.4f}",
            f"balanced accuracy  {self.balanced_accuracy:.4f}",
            f"log loss           {self.log_loss:.4f}",
            f"ECE                {self.ece:.4f}  (expected calibration error, 15 bins)\n",
            f"{'class':{width}}  examples  recall  precision      f1",
        ]
        for name, examples, *values in rows:
            recall, precision, f1 = ("–" if value is None else f"{value:.3f}" for value in values)
            lines.append(f"{name:{width}}  {examples:>8,}  {recall:>6}  {precision:>9}  {f1:>6}")
        return "\n".join([*lines, f"and {absent:,} classes without examples here"] if absent else lines)

    def numbers(self) -> dict[str, float]:
        """Metrics of the whole set."""
        names = ("accuracy", "balanced_accuracy", "majority_share", "log_loss", "ece")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Metrics of the whole set and of each class, and the confusion matrix."""
        return super().to_dict() | {
            "accuracy_interval_95": list(self.accuracy_interval),
            "mistakes": len(self.mistakes),
            "per_class": [row._asdict() for row in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    def metadata(self) -> dict[str, Any]:
        """The accuracy."""
        return {"test_accuracy": self.accuracy}

    def worst(self) -> list[int]:
        """The mistakes, the most confident first."""
        return [int(i) for i in self.mistakes]

    def caption(self, index: int) -> dict[str, str]:
        """The true class, the predicted class and its probability."""
        true, predicted = self.classes[self.labels[index]], self.classes[self.predicted[index]]
        return {"true": true, "predicted": predicted, "confidence": percent(float(self.confidence[index]))}

    def report_values(self) -> dict[str, Any]:
        """The confusion matrix, rows of classes and the reliability diagram."""
        from ndvit.evaluation.figures import FEW, matrix, reliability_diagram

        many = len(self.classes) > MAX_CONFUSION
        shares = self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
        wrong = self.confusion * (1 - np.eye(len(self.classes), dtype=int))
        pairs = np.transpose(np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:10], wrong.shape))
        rows = self.per_class
        if many:  # the lowest recall first, classes without examples last
            rows = sorted(rows, key=lambda row: 2.0 if row.recall is None else row.recall)
        return {
            "many": many,
            "shares": shares,
            "matrix": matrix(self.classes, shares) if many else "",
            "confused": [(self.classes[i], self.classes[j], wrong[i, j]) for i, j in pairs if wrong[i, j]],
            "rows": rows,
            "max_rows": MAX_ROWS,
            "chance_loss": log(len(self.classes)),
            "reliability": reliability_diagram(self.reliability),
            "few": FEW,
        }
