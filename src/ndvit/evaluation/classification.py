"""Evaluation of a classifier: the metrics of tests, reports and `ndvit evaluate`.

Metrics come from scikit-learn where it has them. A metric that is undefined for a class without examples or predictions
is None. The metrics during training are those of `tasks/classification.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ndvit.evaluation.base import Evaluation, aligned, decimal, interval_text, percent, plain, wilson_interval
from ndvit.evaluation.bootstrap import Interval, mean_of_defined
from ndvit.evaluation.ranking import areas, resampled_areas
from ndvit.evaluation.reliability import ConfidenceBin, calibration_error, reliability_bins
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup

    from ndvit.evaluation.maps import FeatureMap, Method

MAX_ABSENT = 20  # classes without examples that the table prints a row for
MAX_CONFUSION = 20  # classes up to which the report prints the confusion matrix as a table of counts
MAX_PAIRS = 15  # of confused classes in the report
MAX_ROWS = 50  # classes in the report before the rest are folded away


class ClassRow(NamedTuple):
    """Metrics of one class; None where the denominator is 0."""

    name: str
    examples: int
    recall: float | None
    precision: float | None
    f1: float | None
    recall_interval: Interval | None = None
    """95 % interval of the recall by Wilson."""
    specificity: float | None = None
    """Share of the examples of other classes that are not taken for this one."""
    auroc: float | None = None
    average_precision: float | None = None


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
    labels_of: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "majority_share": "majority class",
        "macro_f1": "macro F1",
        "mcc": "MCC",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "auroc": "AUROC",
        "average_precision": "average precision",
        "log_loss": "log loss",
        "ece": "ECE",
    }

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
    def accuracy_interval(self) -> Interval:
        """95 % interval of the accuracy: Wilson's; with groups, that of the bootstrap over groups where it is wider.

        With a single group it is Wilson's, which says nothing about other groups, see `caveats`.
        """
        low, high = wilson_interval(len(self) - len(self.mistakes), len(self))
        if self.groups is not None and (ends := self._bootstrap.get("accuracy")):
            low, high = min(low, ends[0]), max(high, ends[1])
        return low, high

    @property
    def intervals_95(self) -> dict[str, Interval]:
        """As in every evaluation; that of the accuracy is `accuracy_interval`."""
        return self._bootstrap | {"accuracy": self.accuracy_interval}

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
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have examples or predictions."""
        return float(np.mean([row.f1 for row in self.per_class if row.f1 is not None]))

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient of true and predicted classes; 0 is no better than chance."""
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(self.labels, self.predicted))

    @property
    def positive(self) -> str | None:
        """Of two classes the second one, whose sensitivity, specificity and areas are those of all; None of more."""
        return self.classes[1] if len(self.classes) == 2 else None

    def _of_classes(self, name: str) -> float | None:
        """A metric of the positive class of two, or the mean over the classes that have examples."""
        rows = [self.per_class[1]] if self.positive else [row for row in self.per_class if row.examples]
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        return float(np.mean(values)) if values else None

    @property
    def sensitivity(self) -> float | None:
        """Recall of the positive class of two; of more classes, the mean of each against the rest."""
        return self._of_classes("recall")

    @property
    def specificity(self) -> float | None:
        """Share of other examples that are not taken for the positive class; of more classes, their mean."""
        return self._of_classes("specificity")

    @property
    def auroc(self) -> float | None:
        """Area under the ROC curve of the positive class of two; of more, the mean of each against the rest."""
        return self._of_classes("auroc")

    @property
    def average_precision(self) -> float | None:
        """Area under the precision-recall curve, likewise."""
        return self._of_classes("average_precision")

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
        hits, n = self.confusion.diagonal(), len(self)
        others, wrong = n - self.confusion.sum(axis=1), self.confusion.sum(axis=0) - hits
        rows = []
        for i, name in enumerate(self.classes):
            found, right, both = (None if np.isnan(v[i]) else float(v[i]) for v in (recall, precision, f1))
            interval = wilson_interval(int(hits[i]), int(examples[i])) if examples[i] else None
            specificity = float(1 - wrong[i] / others[i]) if others[i] else None
            ranked = areas(self.labels == i, self.probabilities[:, i])
            rows.append(ClassRow(name, int(examples[i]), found, right, both, interval, specificity, *ranked))
        return rows

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Accuracy, the metrics of decisions, areas and log loss of weighted examples."""
        from scipy.sparse import csr_matrix

        n, width = len(self), len(self.classes)

        def by_class(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            shape = (width, n)
            summed: np.ndarray = csr_matrix((chosen.astype(np.float32), (classes, np.arange(n))), shape=shape) @ weights
            return summed.astype(np.float64)

        every, right = np.ones(n), self.predicted == self.labels
        true, taken, hits = by_class(self.labels, every), by_class(self.predicted, every), by_class(self.labels, right)
        total = weights.sum(axis=0, dtype=np.float64)
        with np.errstate(all="ignore"):
            recall, f1 = hits / true, 2 * hits / (true + taken)
            specificity = np.where(true > 0, 1 - (taken - hits) / (total - true), np.nan)
            spread = (total**2 - (true**2).sum(0)) * (total**2 - (taken**2).sum(0))
            mcc = (hits.sum(0) * total - (true * taken).sum(0)) / np.sqrt(spread)
        chosen = [1] if self.positive else np.unique(self.labels)
        ranked = [resampled_areas(self.labels == i, self.probabilities[:, i], weights) for i in chosen]
        true_class = self.probabilities[np.arange(n), self.labels].astype(np.float64)
        losses = -np.log(true_class.clip(np.finfo(self.probabilities.dtype).eps, 1))
        return {
            "accuracy": hits.sum(0) / total,
            "balanced_accuracy": mean_of_defined(recall),
            "macro_f1": mean_of_defined(f1),
            "mcc": np.where(spread > 0, mcc, 0.0),
            "sensitivity": mean_of_defined(recall[chosen]),
            "specificity": mean_of_defined(specificity[chosen]),
            "auroc": mean_of_defined(np.array([one.auroc for one in ranked])),
            "average_precision": mean_of_defined(np.array([one.average_precision for one in ranked])),
            "log_loss": losses @ weights / total,
        }

    def per_example(self) -> tuple[str, np.ndarray]:
        """Accuracy: whether each prediction is correct."""
        return "accuracy", self.predicted == self.labels

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """Accuracy with its 95 % interval, and balanced accuracy if the test set or the training set is unbalanced."""
        correct, (low, high) = len(self) - len(self.mistakes), self.accuracy_interval
        line = f"accuracy {self.accuracy:.4f} ({correct:,} of {len(self):,}; 95 % interval {low:.4f} to {high:.4f})"
        if self.unbalanced or (train_targets is not None and unbalanced(train_targets)):
            line += f", balanced accuracy {self.balanced_accuracy:.4f}"
        return line

    def table(self) -> str:
        """Metrics of the whole set, of each class and of each group."""
        rows = [row for row in self.per_class if row.examples]
        absent = len(self.per_class) - len(rows)
        if absent <= MAX_ABSENT:
            rows, absent = self.per_class, 0
        correct, of = f"{len(self) - len(self.mistakes):,}", f"{len(self):,}"
        positive = "" if self.positive is None else translated("(of the class {name})", name=self.positive)
        notes = dict.fromkeys(("sensitivity", "specificity", "average_precision"), positive)
        notes["accuracy"] = translated("({correct} of {n})", correct=correct, n=of)
        notes["ece"] = translated("(expected calibration error, 15 bins)")
        columns = ("class", self.units, "recall", "95 % interval", "precision", "f1", "AUROC", "average precision")
        cells = []
        for row in rows:
            values = (row.precision, row.f1, row.auroc, row.average_precision)
            first = [row.name, f"{row.examples:,}", decimal(row.recall), interval_text(row.recall_interval)]
            cells.append([*first, *map(decimal, values)])
        lines = [*self.lines(notes), "", *aligned(list(map(translated, columns)), cells)]
        if absent:
            lines.append(translated("and {n} classes without examples here", n=f"{absent:,}"))
        return "\n".join([*lines, *self.group_lines()])

    def numbers(self) -> dict[str, float]:
        """Metrics of the whole set, without those that are undefined."""
        return {name: value for name in self.labels_of if (value := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Metrics of the whole set and of each class, and the confusion matrix."""
        return super().to_dict() | {
            "accuracy_interval_95": list(self.accuracy_interval),
            "positive": self.positive,
            "mistakes": len(self.mistakes),
            "per_class": [plain(row) for row in self.per_class],
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

    def references(self, index: int) -> np.ndarray:
        """Correctly answered examples of the same class."""
        found = np.flatnonzero((self.labels == self.labels[index]) & (self.predicted == self.labels))
        return found[found != index]

    def draw_map(self, found: FeatureMap, method: Method) -> tuple[Markup, dict[str, str]]:
        """The embedding map by true class, with mistakes marked."""
        from ndvit.evaluation.maps import draw_map

        labels = self.labels[found.indices]
        return draw_map(found, labels, self.classes, self.predicted[found.indices] != labels, method)

    def report_values(self) -> dict[str, Any]:
        """The confusion matrix, rows of classes, ranking curves and the reliability diagram."""
        from ndvit.evaluation.charts import FEW, matrix, ranking, reliability_diagram
        from ndvit.evaluation.figures import are_saved

        many = len(self.classes) > MAX_CONFUSION
        shares = self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
        wrong = self.confusion * (1 - np.eye(len(self.classes), dtype=int))
        found = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
        pairs = [pair for pair in np.transpose(np.unravel_index(found, wrong.shape)).tolist() if wrong[*pair]]
        if are_saved() and not many:  # a table on the page
            matrix(self.classes, shares, self.confusion)
        ranked = [1] if self.positive else range(len(self.classes))
        rows = self.per_class
        if many:  # the lowest recall first, classes without examples last
            rows = sorted(rows, key=lambda row: 2.0 if row.recall is None else row.recall)
        return {
            "many": many,
            "shares": shares,
            "matrix": matrix(self.classes, shares) if many else "",
            "confused": [(self.classes[i], self.classes[j], int(wrong[i, j]), float(shares[i, j])) for i, j in pairs],
            "rows": rows,
            "max_rows": MAX_ROWS,
            "chance_loss": log(len(self.classes)),
            "reliability": reliability_diagram(self.reliability),
            "few": FEW,
            **ranking({self.classes[i]: (self.labels == i, self.probabilities[:, i]) for i in ranked}),
        }
