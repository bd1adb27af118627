"""Results of a cross-validation: the metrics of each fold, their means, and intervals of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ndvit.evaluation.base import Evaluation


class Mean(NamedTuple):
    """Mean of a metric over folds, and its 95 % interval."""

    mean: float
    low: float
    high: float


class NumberTable(NamedTuple):
    """A table of the report: its title, the names of its columns, and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    about: str


def corrected_interval(values: Sequence[float], tested: Sequence[int], examples: int) -> Mean:
    """Mean over folds with a 95 % interval by the corrected resampled t-test.

    The training sets of folds overlap, so that their results vary less than those of independent data; the variance of
    the mean is therefore multiplied by 1/folds + tested/trained instead of 1/folds ("Inference for the Generalization
    Error", Nadeau & Bengio, 2003).

    Args:
        values: the metric of each fold, two or more.
        tested: test examples of each fold.
        examples: number of all examples.
    """
    from scipy.stats import t

    held = float(np.mean(tested))
    spread = float(np.std(values, ddof=1)) * (1 / len(values) + held / (examples - held)) ** 0.5
    mean, half = float(np.mean(values)), float(t.ppf(0.975, len(values) - 1)) * spread
    return Mean(mean, mean - half, mean + half)


@dataclass
class FoldScores:
    """Metrics of the folds of a cross-validation.

    Attributes:
        examples: number of all examples.
        rows: "repeat", "fold", "examples" and the metrics of each fold.
        whole: out-of-fold answers of all examples, once they are complete.
    """

    examples: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    whole: Evaluation | None = None

    def add(self, repeat: int, fold: int, evaluation: Evaluation) -> None:
        """Add the results of a fold."""
        numbers = {name: value for name, value in evaluation.numbers().items() if isinstance(value, int | float)}
        self.rows.append({"repeat": repeat, "fold": fold, "examples": len(evaluation), **numbers})

    def drop(self, repeat: int) -> None:
        """Take out the results of the folds of a repeat."""
        self.rows = [row for row in self.rows if row["repeat"] != repeat]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every fold has as a finite number."""
        names = [name for name in self.rows[0] if name not in ("repeat", "fold", "examples")]
        return [name for name in names if all(np.isfinite(row.get(name, np.nan)) for row in self.rows)]

    def mean(self, metric: str) -> Mean:
        """Mean of a metric over the folds."""
        values = [row[metric] for row in self.rows]
        return corrected_interval(values, [row["examples"] for row in self.rows], self.examples)

    def means(self) -> dict[str, float]:
        """Mean of each metric over the folds."""
        return {metric: self.mean(metric).mean for metric in self.metrics}

    def lines(self) -> list[str]:
        """The means with their intervals, one line each."""
        return [f"mean over folds: {name} {text}" for name, text in self.summary().items()]

    def summary(self) -> dict[str, str]:
        """The means with their intervals in words, by metric."""
        found = {metric: self.mean(metric) for metric in self.metrics}
        return {
            metric.replace("_", " "): f"{mean:.4f} ± {high - mean:.4f} (95 %)"
            for metric, (mean, _, high) in found.items()
        }

    def table(self) -> NumberTable:
        """One row a fold."""
        repeated = any(row["repeat"] for row in self.rows)
        columns = [*(["repeat"] if repeated else []), "fold", "examples", *self.metrics]
        rows = [[_cell(row[column], column in ("repeat", "fold")) for column in columns] for row in self.rows]
        last = ["mean"] + [""] * (len(columns) - len(self.metrics) - 1)
        rows.append([*last, *(f"{self.mean(metric).mean:.4f}" for metric in self.metrics)])
        about = (
            "Each fold was tested by a model that was trained on the others. Intervals of the means allow for the "
            "overlap of the training sets (Nadeau & Bengio, 2003)."
        )
        return NumberTable("Folds", [column.replace("_", " ") for column in columns], rows, about)

    def to_dict(self) -> dict[str, Any]:
        """Folds, means with intervals, and the out-of-fold results as plain values for JSON."""
        means = {metric: self.mean(metric)._asdict() for metric in self.metrics}
        return {
            "folds": self.rows,
            "means": means,
            "out_of_fold": None if self.whole is None else self.whole.to_dict(),
        }


def _cell(value: Any, counts: bool) -> str:
    if counts:
        return str(value + 1)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
