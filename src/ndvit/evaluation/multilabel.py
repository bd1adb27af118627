"""Evaluation of several labels: rankings, decisions at the thresholds, and calibration of the probabilities.

Metrics come from scikit-learn where it has them. A metric that is undefined for a label is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ndvit.evaluation.base import Evaluation, percent
from ndvit.evaluation.classification import MAX_ROWS, calibration_error, reliability_bins
from ndvit.evaluation.figures import ConfidenceBin


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
        thresholds: (labels,) probabilities from which on an example is taken to have the label.
        names: one name per example.

    Raises:
        ValueError: if there are no examples, shapes disagree, or values are out of range.
    """

    classes: tuple[str, ...]
    truth: np.ndarray
    probabilities: np.ndarray
    thresholds: Sequence[float]
    names: tuple[str, ...]
    template: ClassVar[str] = "multilabel.html.jinja"

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
                    threshold=float(self.thresholds[j]),
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
        names = ("mean_average_precision", "f1_micro", "f1_macro", "subset_accuracy", "hamming_loss", "log_loss", "ece")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Metrics of the whole set and of each label."""
        return super().to_dict() | {"per_class": [row._asdict() for row in self.per_class]}

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """Mean average precision and F1."""
        return (
            f"mAP {self.mean_average_precision:.4f}, F1 micro {self.f1_micro:.4f}, macro {self.f1_macro:.4f} on "
            f"{len(self):,} examples, {100 * self.subset_accuracy:.1f} % of them with every label right"
        )

    def table(self) -> str:
        """Metrics of the whole set and of each label."""
        width = max(5, *map(len, self.classes))
        lines = [
            f"mean average precision  {self.mean_average_precision:.4f}",
            f"F1 micro, macro         {self.f1_micro:.4f}, {self.f1_macro:.4f}",
            f"every label right       {self.subset_accuracy:.4f}  (of {len(self):,} examples)",
            f"hamming loss            {self.hamming_loss:.4f}",
            f"log loss                {self.log_loss:.4f}",
            f"ECE                     {self.ece:.4f}  (expected calibration error of decisions, 15 bins)\n",
            f"{'label':{width}}  examples     AP  recall  precision     f1  threshold",
        ]
        for name, examples, *values, threshold in self.per_class:
            ap, recall, precision, f1 = ("–" if value is None else f"{value:.3f}" for value in values)
            lines.append(
                f"{name:{width}}  {examples:>8,}  {ap:>5}  {recall:>6}  {precision:>9}  {f1:>5}  {threshold:>9.3f}"
            )
        return "\n".join(lines)

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
            what: ", ".join(name for name, there in zip(self.classes, row) if there) or "(none)"
            for what, row in rows.items()
        }

    def report_values(self) -> dict[str, Any]:
        """Rows of labels and the reliability diagram."""
        from ndvit.evaluation.figures import FEW, reliability_diagram

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
        }
