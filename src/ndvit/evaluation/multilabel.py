"""Evaluation of several labels: rankings, decisions at the thresholds, and calibration of the probabilities.

Metrics come from scikit-learn where it has them. A metric that is undefined for a label is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.evaluation.base import Evaluation, aligned, decimal, interval_text, percent, plain, wilson_interval
from ndvit.evaluation.bootstrap import Interval, mean_of_defined
from ndvit.evaluation.classification import MAX_ROWS
from ndvit.evaluation.ranking import areas, resampled_areas
from ndvit.evaluation.reliability import ConfidenceBin, calibration_error, reliability_bins
from ndvit.evaluation.words import amount, translated

if TYPE_CHECKING:
    from markupsafe import Markup

    from ndvit.evaluation.maps import FeatureMap, Method


class LabelRow(NamedTuple):
    """Metrics of one label; None where they are undefined."""

    name: str
    examples: int
    """Examples that have the label."""
    average_precision: float | None
    recall: float | None
    precision: float | None
    f1: float | None
    threshold: float
    auroc: float | None = None
    recall_interval: Interval | None = None
    """95 % interval of the recall by Wilson."""


def average_precisions(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each column of 0 and 1 (n, labels); NaN for a label that no example has."""
    from sklearn.metrics import average_precision_score

    return np.array(
        [average_precision_score(t, s) if t.any() else np.nan for t, s in zip(truth.T, scores.T)], dtype=np.float64
    )


def f1_scores(truth: np.ndarray, decided: np.ndarray) -> tuple[float, float]:
    """F1 of all decisions together (micro), and the mean of the labels that occur or are predicted (macro)."""
    truth, decided = truth.astype(bool), decided.astype(bool)
    hits, both = (truth & decided).sum(0), truth.sum(0) + decided.sum(0)
    micro = 2 * hits.sum() / both.sum() if both.sum() else 1.0
    each = 2 * hits[both > 0] / both[both > 0]
    return float(micro), float(each.mean()) if len(each) else 1.0


@dataclass(frozen=True, eq=False)
class MultilabelEvaluation(Evaluation):
    """Probabilities of labels compared with the labels of the same examples.

    Attributes:
        classes: names of the labels, in the order of the columns.
        truth: (n, labels) of 0 and 1.
        probabilities: (n, labels) from 0 to 1.
        thresholds: (labels,) probabilities from which on an example is taken to have the label, or (n, labels) those of
            each example, which differ between the folds of a cross-validation.
        names: one name per example.

    Raises:
        ValueError: if there are no examples, shapes disagree, or values are out of range.
    """

    classes: tuple[str, ...]
    truth: np.ndarray
    probabilities: np.ndarray
    thresholds: Sequence[float] | np.ndarray
    names: tuple[str, ...]
    template: ClassVar[str] = "multilabel.html.jinja"
    labels_of: ClassVar[Mapping[str, str]] = {
        "mean_average_precision": "mean average precision",
        "auroc": "mean AUROC",
        "f1_micro": "F1, micro",
        "f1_macro": "F1, macro",
        "subset_accuracy": "every label right",
        "hamming_loss": "hamming loss",
        "log_loss": "log loss",
        "ece": "ECE",
    }

    def __post_init__(self) -> None:
        shape = len(self.names), len(self.classes)
        if not self.names:
            raise ValueError("an evaluation needs at least one example, got none: is the test set empty?")
        for what, values in (("labels", self.truth), ("probabilities", self.probabilities)):
            if np.shape(values) != shape:
                raise ValueError(f"{what} must have the shape {shape}, got {np.shape(values)}")
        if (bad := np.flatnonzero(~((self.probabilities >= 0) & (self.probabilities <= 1)).all(1))).size:
            raise ValueError(
                f"probabilities must be numbers from 0 to 1, and those of {bad.size} of {shape[0]} examples are not "
                f"(the first is {self.names[bad[0]]!r}): training may have diverged, try a smaller learning rate"
            )
        object.__setattr__(self, "truth", np.asarray(self.truth).astype(np.int64))
        object.__setattr__(self, "probabilities", np.asarray(self.probabilities, dtype=np.float64))

    @cached_property
    def decided(self) -> np.ndarray:
        """Whether each label is predicted, (n, labels)."""
        decided: np.ndarray = self.probabilities >= np.array(self.thresholds)
        return decided

    @cached_property
    def per_class(self) -> list[LabelRow]:
        """Metrics of each label."""
        rows = []
        thresholds = np.asarray(self.thresholds)
        thresholds = thresholds.mean(0) if thresholds.ndim > 1 else thresholds  # the mean over folds
        precisions = average_precisions(self.truth, self.probabilities)
        for j, name in enumerate(self.classes):
            truth, decided = self.truth[:, j] > 0, self.decided[:, j]
            hits, there, taken = (truth & decided).sum(), truth.sum(), decided.sum()
            rows.append(
                LabelRow(
                    name=name,
                    examples=int(there),
                    average_precision=None if np.isnan(precisions[j]) else float(precisions[j]),
                    recall=float(hits / there) if there else None,
                    precision=float(hits / taken) if taken else None,
                    f1=float(2 * hits / (there + taken)) if there + taken else None,
                    threshold=float(thresholds[j]),
                    auroc=areas(truth, self.probabilities[:, j])[0],
                    recall_interval=wilson_interval(int(hits), int(there)) if there else None,
                )
            )
        return rows

    @property
    def mean_average_precision(self) -> float:
        """Mean average precision of the labels that occur (mAP); NaN if none does."""
        found = [row.average_precision for row in self.per_class if row.average_precision is not None]
        return float(np.mean(found)) if found else float("nan")

    score = mean_average_precision

    @property
    def auroc(self) -> float | None:
        """Mean area under the ROC curve of the labels that some examples have and some lack; None if there are none."""
        found = [row.auroc for row in self.per_class if row.auroc is not None]
        return float(np.mean(found)) if found else None

    @property
    def f1_micro(self) -> float:
        """F1 of all decisions together."""
        return f1_scores(self.truth, self.decided)[0]

    @property
    def f1_macro(self) -> float:
        """Mean F1 of the labels that occur or are predicted."""
        return f1_scores(self.truth, self.decided)[1]

    @property
    def subset_accuracy(self) -> float:
        """Share of examples of which every label is decided correctly."""
        return float((self.decided == self.truth).all(1).mean())

    @property
    def hamming_loss(self) -> float:
        """Share of wrong decisions."""
        return float((self.decided != self.truth).mean())

    @property
    def log_loss(self) -> float:
        """Mean log loss of a decision in nats; probabilities are clipped, so that it is finite."""
        right = np.where(self.truth > 0, self.probabilities, 1 - self.probabilities)
        return float(-np.log(right.clip(np.finfo(np.float32).eps)).mean())

    @cached_property
    def _two_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Every decision as a classification of two classes: probabilities (n labels, 2) and labels (n labels,)."""
        there = self.probabilities.ravel()
        return np.stack([1 - there, there], 1), self.truth.ravel()

    @property
    def ece(self) -> float:
        """Expected calibration error of all decisions, each one of two classes."""
        return calibration_error(*self._two_classes)

    @property
    def reliability(self) -> list[ConfidenceBin]:
        """Bins of `ece` that have decisions."""
        return reliability_bins(*self._two_classes)

    def numbers(self) -> dict[str, float]:
        """Metrics of the whole set."""
        return {name: value for name in self.labels_of if (value := getattr(self, name)) is not None}

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The same metrics of weighted examples, but for the calibration error."""
        columns = range(len(self.classes))
        ranked = [resampled_areas(self.truth[:, j] > 0, self.probabilities[:, j], weights) for j in columns]
        truth, decided = self.truth.astype(np.float32), self.decided.astype(np.float32)
        hits, both = (truth * decided).T @ weights, (truth + decided).T @ weights
        total = weights.sum(axis=0)
        with np.errstate(all="ignore"):
            f1, micro = 2 * hits / both, 2 * hits.sum(0) / both.sum(0)
        right = np.where(self.truth > 0, self.probabilities, 1 - self.probabilities)
        losses = -np.log(right.clip(np.finfo(np.float32).eps)).mean(1)
        wrong = truth != decided
        return {
            "mean_average_precision": mean_of_defined(np.array([one.average_precision for one in ranked])),
            "auroc": mean_of_defined(np.array([one.auroc for one in ranked])),
            "f1_micro": micro,
            "f1_macro": mean_of_defined(f1),
            "subset_accuracy": (~wrong.any(1)).astype(np.float32) @ weights / total,
            "hamming_loss": wrong.mean(1).astype(np.float32) @ weights / total,
            "log_loss": losses @ weights / total,
        }

    def per_example(self) -> tuple[str, np.ndarray]:
        """Whether every label of an example is decided correctly."""
        return "every label right", (self.decided == self.truth).all(1)

    def to_dict(self) -> dict[str, Any]:
        """Metrics of the whole set and of each label."""
        return super().to_dict() | {"per_class": [plain(row) for row in self.per_class]}

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """Mean average precision and F1."""
        return (
            f"mAP {self.mean_average_precision:.4f}, F1 micro {self.f1_micro:.4f}, macro {self.f1_macro:.4f} on "
            f"{counted(len(self), 'example')}, {100 * self.subset_accuracy:.1f} % of them with every label right"
        )

    def table(self) -> str:
        """Metrics of the whole set and of each label."""
        columns = ("label", self.units, "average precision", "AUROC", "recall", "95 % interval", "precision")
        words = [translated(word) for word in (*columns, "f1", "threshold")]
        cells = []
        for row in self.per_class:
            first = [row.name, f"{row.examples:,}", *map(decimal, (row.average_precision, row.auroc, row.recall))]
            rest = map(decimal, (row.precision, row.f1, row.threshold))
            cells.append([*first, interval_text(row.recall_interval), *rest])
        notes = {"ece": translated("(expected calibration error of decisions, 15 bins)")}
        lines = [*self.lines(notes), "", *aligned(words, cells)]
        return "\n".join([*lines, *self.group_lines()])

    def metadata(self) -> dict[str, Any]:
        """Mean average precision and micro F1."""
        found = {"test_mean_average_precision": self.mean_average_precision, "test_f1_micro": self.f1_micro}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def worst(self) -> list[int]:
        """Examples with a wrong decision, those with the highest log loss first."""
        right = np.where(self.truth > 0, self.probabilities, 1 - self.probabilities)
        losses = -np.log(right.clip(np.finfo(np.float32).eps)).sum(1)
        wrong = np.flatnonzero((self.decided != self.truth).any(1))
        return [int(i) for i in wrong[np.argsort(-losses[wrong], kind="stable")]]

    def caption(self, index: int) -> dict[str, str]:
        """The true and the predicted labels."""
        rows = {"true": self.truth[index] > 0, "predicted": self.decided[index]}
        return {
            what: "; ".join(name for name, there in zip(self.classes, row) if there) or "(none)"
            for what, row in rows.items()
        }

    def references(self, index: int) -> np.ndarray:
        """Examples with the same labels, every one of which is decided correctly."""
        found = np.flatnonzero((self.truth == self.truth[index]).all(1) & (self.decided == self.truth).all(1))
        return found[found != index]

    def draw_map(self, found: FeatureMap, method: Method) -> tuple[Markup, dict[str, str]]:
        """The embedding map by the number of labels, with wrong decisions marked."""
        from ndvit.evaluation.maps import draw_map

        counts = self.truth[found.indices].sum(1)
        names = [amount(n, "label") for n in range(int(counts.max(initial=0)) + 1)]
        return draw_map(found, counts, names, (self.decided != self.truth).any(1)[found.indices], method)

    def report_values(self) -> dict[str, Any]:
        """Rows of labels and the reliability diagram."""
        from ndvit.evaluation.charts import FEW, ranking, reliability_diagram

        rows = self.per_class
        if len(rows) > MAX_ROWS:  # the lowest average precision first, labels without examples last
            rows = sorted(rows, key=lambda row: 2.0 if row.average_precision is None else row.average_precision)
        share = self.truth.mean(0)
        return {
            "rows": rows,
            "max_rows": MAX_ROWS,
            "labels_each": float(self.truth.sum(1).mean()),
            "chance": percent(float(share[share > 0].mean()) if share.any() else 0.0),
            "reliability": reliability_diagram(self.reliability),
            "few": FEW,
            **ranking({name: (self.truth[:, j] > 0, self.probabilities[:, j]) for j, name in enumerate(self.classes)}),
        }
