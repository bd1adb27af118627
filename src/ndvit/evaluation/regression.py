"""Evaluation of a regression: errors in the units of the targets, and the coverage of prediction intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.evaluation.amounts import quantity
from ndvit.evaluation.base import Evaluation, aligned, percent, wilson_interval
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup

    from ndvit.evaluation.maps import FeatureMap, Method

MAX_FIGURES = 6  # targets whose predictions the report draws


class TargetRow(NamedTuple):
    """Metrics of one target, in its units; coverage and width are None without intervals."""

    name: str
    r2: float
    rmse: float
    mae: float
    std: float
    """Standard deviation of the targets, the error of always predicting their mean."""
    coverage: float | None
    width: float | None
    """Mean width of the intervals."""


def r2_scores(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """R2 of each column (n, targets): the share of the variance that is explained.

    For a constant column it is 1 if all errors are 0 and else 0, as in scikit-learn.
    """
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    error = np.square(truth - predicted).sum(0)
    total = np.square(truth - truth.mean(0)).sum(0)
    with np.errstate(all="ignore"):
        scores: np.ndarray = np.where(total > 0, 1 - error / total, np.where(error > 0, 0.0, 1.0))
    return scores


@dataclass(frozen=True, eq=False)
class RegressionEvaluation(Evaluation):
    """Predicted numbers compared with the targets of the same examples.

    Attributes:
        targets: names of the targets.
        truth: (n, targets) in their units.
        predicted: (n, targets).
        intervals: lower and upper bounds, each (n, targets); None without.
        level: share of targets that intervals should contain.
        names: one name per example.

    Raises:
        ValueError: if there are no examples, shapes disagree or values are not finite.
    """

    targets: tuple[str, ...]
    truth: np.ndarray
    predicted: np.ndarray
    intervals: tuple[np.ndarray, np.ndarray] | None
    level: float
    names: tuple[str, ...]
    template: ClassVar[str] = "regression.html.jinja"
    labels_of: ClassVar[Mapping[str, str]] = {
        "r2": "R2",
        "rmse": "RMSE",
        "mae": "MAE",
        "coverage": "coverage",
        "interval_level": "level of the intervals",
        "interval_width": "interval width",
    }

    def __post_init__(self) -> None:
        shape = len(self.names), len(self.targets)
        if not self.names:
            raise ValueError("an evaluation needs at least one example, got none: is the test set empty?")
        for what, values in (("targets", self.truth), ("predictions", self.predicted)):
            if np.shape(values) != shape:
                raise ValueError(f"{what} must have the shape {shape}, got {np.shape(values)}")
            if (bad := np.flatnonzero(~np.isfinite(values).all(1))).size:
                raise ValueError(
                    f"{what} must be finite, got NaN or infinity for {bad.size} of {shape[0]} examples (the first is "
                    f"{self.names[bad[0]]!r})"
                )
        object.__setattr__(self, "truth", np.asarray(self.truth, dtype=np.float64))
        object.__setattr__(self, "predicted", np.asarray(self.predicted, dtype=np.float64))

    @cached_property
    def errors(self) -> np.ndarray:
        """Predicted minus true numbers, (n, targets)."""
        return self.predicted - self.truth

    @cached_property
    def covered(self) -> np.ndarray | None:
        """Whether each target is in its interval, (n, targets); None without intervals."""
        if self.intervals is None:
            return None
        low, high = self.intervals
        found: np.ndarray = (low <= self.truth) & (self.truth <= high)
        return found

    @cached_property
    def per_target(self) -> list[TargetRow]:
        """Metrics of each target."""
        r2 = r2_scores(self.truth, self.predicted)
        rows = []
        for j, name in enumerate(self.targets):
            error, coverage, width = self.errors[:, j], None, None
            if self.intervals is not None and self.covered is not None:
                coverage = float(self.covered[:, j].mean())
                width = float((self.intervals[1][:, j] - self.intervals[0][:, j]).mean())
            rmse, mae = float(np.sqrt(np.square(error).mean())), float(np.abs(error).mean())
            rows.append(TargetRow(name, float(r2[j]), rmse, mae, float(self.truth[:, j].std()), coverage, width))
        return rows

    @property
    def r2(self) -> float:
        """R2, the mean over the targets."""
        return float(np.mean([row.r2 for row in self.per_target]))

    score = r2

    @property
    def rmse(self) -> float:
        """Root mean squared error, the mean over the targets."""
        return float(np.mean([row.rmse for row in self.per_target]))

    @property
    def relative_rmse(self) -> float:
        """Root mean squared error divided by the standard deviation, the mean over the targets that vary."""
        found = [row.rmse / row.std for row in self.per_target if row.std > 0]
        return float(np.mean(found)) if found else float("nan")

    @property
    def mae(self) -> float:
        """Mean absolute error, the mean over the targets."""
        return float(np.mean([row.mae for row in self.per_target]))

    @property
    def coverage(self) -> float | None:
        """Share of the targets that are in their intervals; None without intervals."""
        return None if self.covered is None else float(self.covered.mean())

    @property
    def coverage_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the coverage."""
        return None if self.covered is None else wilson_interval(int(self.covered.sum()), self.covered.size)

    def numbers(self) -> dict[str, float]:
        """Metrics of the whole set."""
        found = {"r2": self.r2, "rmse": self.rmse, "mae": self.mae}
        if self.coverage is not None:
            found |= {"coverage": self.coverage, "interval_level": self.level}
            found |= {"interval_width": float(np.mean([row.width for row in self.per_target if row.width is not None]))}
        return found

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """R2, RMSE, MAE and coverage of weighted examples."""
        total = weights.sum(axis=0, dtype=np.float64)
        centred = self.truth - self.truth.mean(0)
        squares, errors = np.square(self.errors).T @ weights, np.abs(self.errors).T @ weights  # (targets, resamples)
        variance = np.square(centred).T @ weights - np.square(centred.T @ weights) / total
        with np.errstate(all="ignore"):
            r2 = np.where(variance > 0, 1 - squares / variance, np.nan)
        found = {"r2": r2.mean(0), "rmse": np.sqrt(squares / total).mean(0), "mae": (errors / total).mean(0)}
        if self.covered is not None:
            found["coverage"] = self.covered.mean(1) @ weights / total
        return found

    def per_example(self) -> tuple[str, np.ndarray] | None:
        """Absolute error of each example; None for several targets, whose units differ."""
        return ("MAE", np.abs(self.errors[:, 0])) if len(self.targets) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Metrics of the whole set and of each target."""
        return super().to_dict() | {"per_target": [row._asdict() for row in self.per_target]}

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """R2, RMSE, MAE and the coverage of the intervals."""
        errors = f"RMSE {quantity(self.rmse)}, MAE {quantity(self.mae)}"
        if len(self.targets) > 1:  # a mean over other units says nothing
            errors = f"RMSE {self.relative_rmse:.3f} standard deviations, mean of {len(self.targets)} targets,"
        line = f"R2 {self.r2:.4f}, {errors} on {counted(len(self), 'example')}"
        if self.coverage is not None:
            line += f", {100 * self.level:g} % intervals contain {100 * self.coverage:.1f} %"
        return line

    def table(self) -> str:
        """Metrics of the whole set and of each target."""
        notes = {}
        if self.coverage is not None:
            notes["coverage"] = translated(
                "(of the targets are in their {level} % intervals)", level=f"{100 * self.level:g}"
            )
        columns = ("target", "R2", "RMSE", "MAE", "std of targets", "coverage", "interval width")
        cells = []
        for row in self.per_target:
            first = [row.name, f"{row.r2:.4f}", *(quantity(value, 5) for value in (row.rmse, row.mae, row.std))]
            cells.append([*first, *("–" if value is None else quantity(value) for value in (row.coverage, row.width))])
        lines = [*self.lines(notes), "", *aligned(list(map(translated, columns)), cells)]
        return "\n".join([*lines, *self.group_lines()])

    def metadata(self) -> dict[str, Any]:
        """R2, RMSE and coverage."""
        found = {"test_r2": self.r2, "test_rmse": self.rmse}
        return found if self.coverage is None else found | {"test_coverage": self.coverage}

    def worst(self) -> list[int]:
        """The examples with the largest errors, in standard deviations of the targets."""
        scale = self.truth.std(0)
        errors = np.abs(self.errors / np.where(scale > 0, scale, 1)).max(1)
        return [int(i) for i in np.argsort(-errors, kind="stable")]

    def caption(self, index: int) -> dict[str, str]:
        """The true and the predicted number, of several targets those of the largest error."""
        scale = self.truth.std(0)
        j = int(np.argmax(np.abs(self.errors[index]) / np.where(scale > 0, scale, 1)))
        found = {"target": self.targets[j]} if len(self.targets) > 1 else {}
        found |= {"true": quantity(self.truth[index, j], 5), "predicted": quantity(self.predicted[index, j], 5)}
        if self.intervals is not None:
            found["interval"] = " to ".join(quantity(bound[index, j], 5) for bound in self.intervals)
        return found

    def draw_map(self, found: FeatureMap, method: Method) -> tuple[Markup, dict[str, str]]:
        """The embedding map by the first target."""
        from ndvit.evaluation.maps import draw_target_map

        return draw_target_map(found, self.truth[found.indices, 0], self.targets[0], method), {}

    def report_values(self) -> dict[str, Any]:
        """Pictures of predictions and residuals."""
        from ndvit.evaluation.charts import residuals

        drawn = min(MAX_FIGURES, len(self.targets))
        return {
            "figures": [
                (self.targets[j], residuals(self.truth[:, j], self.predicted[:, j], self.targets[j], f"residuals {j}"))
                for j in range(drawn)
            ],
            "level": percent(self.level),
            "of_number": True,
        }
