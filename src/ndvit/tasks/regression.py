"""Regression: every example has one or several numbers.

The network learns standardised targets; answers, errors and intervals are in the units of the targets.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.config.bounds import brief, counted
from ndvit.evaluation.amounts import quantity
from ndvit.evaluation.regression import RegressionEvaluation, r2_scores
from ndvit.tasks.base import Criterion, Linear, Metrics, Prediction, Probe, Ridge, Task, Translate
from ndvit.tasks.class_names import check_class_names
from ndvit.tasks.solvers import linear_regression, neighbour_means, ridge_regression

if TYPE_CHECKING:
    from ndvit.config.recipe import Recipe

_SEPARATORS = re.compile(r"[;|]")
_BINS, _BIN = 10, 20  # strata at most, and examples in one at least
_KINDS = 10  # quantities count as so many classes where the number of examples for each decides what is trained
_FEW_VALUES = 2  # different targets up to which they look like classes
_USUAL = "target"  # name of a target without one


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """The predicted numbers of an example by target, and the interval of each; no intervals if none were fitted."""

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def value(self) -> float:
        """The first number, for a regression of one target."""
        return next(iter(self.values.values()))

    def text(self) -> str:
        """The numbers with their intervals."""
        parts = []
        for target, value in self.values.items():
            label = f"{target} " * (len(self.values) > 1)
            low_high = self.intervals.get(target)
            parts.append(f"{label}{value:.6g}{f' ({low_high[0]:.6g} to {low_high[1]:.6g})' if low_high else ''}")
        return "  ".join(parts)

    def row(self) -> list[tuple[str, Any]]:
        """Name, and for each target one column, or three with the bounds of its interval."""
        row: list[tuple[str, Any]] = [("name", self.name)]
        for target, value in self.values.items():
            row.append((target, value))
            if low_high := self.intervals.get(target):
                row += [(f"{target}_low", low_high[0]), (f"{target}_high", low_high[1])]
        return row

    def to_dict(self) -> dict[str, Any]:
        """Name, values and intervals."""
        intervals = {target: list(low_high) for target, low_high in self.intervals.items()}
        return {"name": self.name, "values": self.values} | ({"intervals": intervals} if intervals else {})


class Regression(Task):
    """One or several numbers for each example, with prediction intervals.

    Raw targets are numbers, also as text; or rows of them, as a tuple, as a mapping from names to numbers, or as text
    with semicolons or vertical bars between. Encoded targets are (n, targets) float32 in their own units.

    Answers are (n, outputs): the predicted numbers; with `quantiles` then their lower quantiles, then the upper ones.

    Args:
        targets: names of the targets in the order of the outputs.
        mean: of each target in the training set; None is 0.
        std: standard deviation of each target in the training set; None is 1.
        quantiles: whether the outputs are the median and the two quantiles that bound the interval.
        level: share of new targets that an interval should contain.
        margins: what is added to each side of the interval of each target, in its units; the interval starts at the
            quantiles, or without them at the predicted number. None without examples to find them on.
        measured: number of those examples.

    Example:
        >>> from ndvit import Regression
        >>> task = Regression(("speed", "load"))
        >>> task.encode([(3.5, 10), "4;20"]).tolist()
        [[3.5, 10.0], [4.0, 20.0]]
    """

    name = "regression"
    known_losses = ("l2", "huber", "quantile")
    # The box of another example says nothing about its share in a number, and a factor on the input may change it.
    preset_changes: ClassVar[Mapping[str, Any]] = {"loss": None, "cutmix": 0.0, "scale": 0.0}

    def __init__(
        self,
        targets: Sequence[str] = (_USUAL,),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        quantiles: bool = False,
        level: float = 0.9,
        margins: Sequence[float] | None = None,
        measured: int = 0,
    ) -> None:
        self.targets = tuple(map(str, targets))
        self.mean = tuple(map(float, mean or [0.0] * len(self.targets)))
        self.std = tuple(map(float, std or [1.0] * len(self.targets)))
        self.quantiles, self.level, self.measured = quantiles, float(level), int(measured)
        self.margins = None if margins is None else tuple(map(float, margins))

    # ------------------------------------------------------------------ targets

    @classmethod
    def read(cls, targets: Sequence[Any], where: str) -> list[Any]:
        """Numbers, tuples of them, or dicts from names to numbers; None stays None."""
        read: list[Any] = []
        for i, value in enumerate(targets):
            try:
                read.append(_numbers(value))
            except (TypeError, ValueError):
                raise ValueError(
                    f"{where}: regression needs numbers as targets, and the one of example {i} is {brief(value)}: for "
                    "names of classes set --task classification, for several labels --task multilabel (task=... in "
                    "Python)"
                ) from None
        kinds = {(type(value).__name__, _names(value)) for value in read if value is not None}
        if len(kinds) > 1:
            some = " and ".join(f"{len(names)} ({', '.join(names[:5])})" for _, names in sorted(kinds)[:2])
            raise ValueError(f"{where}: every example needs the same targets, got {some}")
        return read

    @classmethod
    def from_targets(cls, targets: Mapping[str, Sequence[Any]], where: str, *, to_train: bool = True) -> Regression:
        """The names, and the mean and standard deviation of the training set, or of all splits where there is none.

        Raises:
            ValueError: for targets that are no numbers, not finite, or of another number in another split, and for a
                training set of a single example.
        """
        read = {split: cls.read(values, where) for split, values in targets.items()}
        known = read.get("train") or [value for values in read.values() for value in values]
        if not known:
            raise ValueError(f"{where}: has no targets")
        names = _names(known[0])
        made = cls(names)
        rows = {split: made._encode(values, where) for split, values in read.items()}
        if to_train and len(known) < 2:
            raise ValueError(f"{where}: the training set has a single example; regression needs at least two")
        return made._standardised(rows["train"] if "train" in rows else np.concatenate(list(rows.values())))

    @classmethod
    def doubts(cls, targets: Mapping[str, Sequence[Any]]) -> list[str]:
        """Targets of one or two different values, which may be classes, and those that float32 rounds."""
        values = cls.read([value for of_split in targets.values() for value in of_split], "the targets")
        rows = np.array([_row(value) for value in values], dtype=np.float64)
        found = []
        if rows.shape[1] == 1 and len(distinct := np.unique(rows)) <= _FEW_VALUES < len(rows):
            listed = " and ".join(f"{value:g}" for value in distinct)
            found.append(
                f"the targets of a regression have only the value{'s' * (len(distinct) > 1)} {listed}: if they are "
                "classes, set --task classification (task='classification')"
            )
        with np.errstate(all="ignore"):
            lost = np.abs(rows - rows.astype(np.float32)).max(0)
        if (lost > 0.01 * rows.std(0)).any() and (rows.std(0) > 0).all():
            found.append(
                "the targets vary little around large values, and float32 rounds that off by more than a hundredth of "
                "their standard deviation: subtract a constant first"
            )
        return found

    def prepared(self, recipe: Recipe, targets: np.ndarray) -> Regression:
        """The task with mean and standard deviation of the training set, and the quantiles that the loss needs."""
        super().prepared(recipe, targets)
        made = self._standardised(targets)
        made.quantiles, made.level, made.margins, made.measured = recipe.loss == "quantile", recipe.interval, None, 0
        return made

    def _standardised(self, targets: np.ndarray) -> Regression:
        values = targets.astype(np.float64)
        mean, std = values.mean(0), values.std(0)
        constant = std <= 1e-9 * np.abs(mean).clip(1e-30)
        return Regression(self.targets, mean.tolist(), np.where(constant, 1.0, std).tolist())

    @property
    def num_outputs(self) -> int:
        """One output for each target, or three with quantiles."""
        return len(self.targets) * (3 if self.quantiles else 1)

    @property
    def num_kinds(self) -> int:
        """As many as ten classes have."""
        return _KINDS

    def encode(self, targets: Sequence[Any]) -> np.ndarray:
        """Raw targets -> (n, targets) float32 in their units."""
        return self._encode(self.read(targets, "the targets"), "the targets")

    def _encode(self, read: Sequence[Any], where: str) -> np.ndarray:
        for value in read:
            if value is None or len(names := _names(value)) != len(self.targets):
                found = "none" if value is None else f"{len(names)}"
                raise ValueError(f"{where}: every example needs {len(self.targets)} numbers as targets, got {found}")
        with np.errstate(over="ignore"):
            rows = np.array([_row(value) for value in read], dtype=np.float32).reshape(len(read), len(self.targets))
        if (bad := np.flatnonzero(~np.isfinite(rows).all(1))).size:
            raise ValueError(
                f"{where}: targets must be finite numbers, the one of example {bad[0]} is {brief(read[bad[0]])} "
                f"({bad.size} such examples): leave these examples out"
            )
        return rows

    def decode(self, targets: np.ndarray) -> list[Any]:
        """(n, targets) -> numbers, or lists of them for several targets."""
        values: list[Any] = targets.tolist()
        return [row[0] for row in values] if len(self.targets) == 1 else values

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Ten ranges with equal numbers of examples of the first target; fewer for less than 200 examples."""
        count = len(targets)
        bins = min(_BINS, max(1, count // _BIN))
        ranks = np.empty(count, dtype=np.int64)
        ranks[np.argsort(targets[:, 0], kind="stable")] = np.arange(count)
        return ranks * bins // max(1, count)

    def stratum_name(self, stratum: int) -> str:
        """The range by its number."""
        return f"range {stratum + 1} of the targets"

    def summary(self, targets: Mapping[str, np.ndarray]) -> list[str]:
        """A table of mean, standard deviation and range of each target in each split."""
        width = max(len("target"), *map(len, self.targets))
        lines = [f"{'target':{width}}  split        mean         std         min         max"]
        for j, name in enumerate(self.targets):
            for split, values in targets.items():
                numbers = [getattr(values[:, j].astype(np.float64), how)() for how in ("mean", "std", "min", "max")]
                lines.append(f"{name:{width}}  {split:5}" + "".join(f"  {number:>10.5g}" for number in numbers))
        return lines

    def brief(self, targets: Mapping[str, np.ndarray]) -> str:
        """Mean, standard deviation and range of each training target, and the number of examples in each split."""
        first = next(iter(targets.values())).astype(np.float64)
        parts = [
            f"{name} {column.mean():.4g} +- {column.std():.4g} ({column.min():.4g} to {column.max():.4g})"
            for name, column in zip(self.targets[:10], first.T)
        ]
        more = f" and {len(self.targets) - 10:,} more" * (len(self.targets) > 10)
        counts = [f"{split}: {counted(len(values), 'example')}" for split, values in targets.items()]
        return f"{', '.join(parts)}{more}; {', '.join(counts)}"

    def align(self, other: Task, where: str) -> tuple[Translate | None, tuple[str, ...]]:
        """Match targets by name, or by their order where the data do not name them as the model does."""
        if not isinstance(other, Regression) or len(other.targets) != len(self.targets):
            found = f"{len(other.targets)} targets" if isinstance(other, Regression) else f"targets of {other.name}"
            raise ValueError(f"{where} has {found}, and the model predicts {len(self.targets)} numbers")
        if other.targets == self.targets:
            return None, ()
        if set(other.targets) == set(self.targets):
            order = [other.targets.index(name) for name in self.targets]
            return lambda targets: targets[:, order], ()
        usual = usual_names(len(self.targets))
        if usual in (self.targets, other.targets):
            return None, ("the targets are taken in the order of the model's, which have other names",)
        raise ValueError(
            f"{where} has the targets {', '.join(other.targets)}, and the model predicts {', '.join(self.targets)}: "
            "rename them"
        )

    def kept_outputs(self, other: Task) -> list[int | None] | None:
        """All outputs of a regression with the same targets, mean and standard deviation; no others."""
        same = isinstance(other, Regression) and (other.targets, other.mean, other.std, other.quantiles) == (
            self.targets,
            self.mean,
            self.std,
            self.quantiles,
        )
        return list(range(self.num_outputs)) if same else None

    def from_teacher(self, outputs: Tensor, teacher: Task) -> Tensor:
        """Outputs of another mean and standard deviation in this task's."""
        return self.deactivate(teacher.activate(outputs)) if isinstance(teacher, Regression) else outputs

    def output_names(self) -> list[str]:
        """The targets, and with quantiles their bounds."""
        bounds = [f"{name} {side}" for side in ("low", "high") for name in self.targets] if self.quantiles else []
        return [*self.targets, *bounds]

    def to_dict(self) -> dict[str, Any]:
        """Everything that the constructor takes."""
        return {
            "targets": list(self.targets),
            "mean": list(self.mean),
            "std": list(self.std),
            "quantiles": self.quantiles,
            "level": self.level,
            "margins": None if self.margins is None else list(self.margins),
            "measured": self.measured,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Regression:
        """The task that `to_dict` described."""
        made = dict(values)
        if set(made) != set(cls().to_dict()):
            raise ValueError(f"a regression task has {', '.join(cls().to_dict())}, got {str(sorted(made))[:80]}")
        names, mean, std, margins = (made[name] for name in ("targets", "mean", "std", "margins"))
        if not isinstance(names, list | tuple) or not names:
            raise ValueError(f"a regression task has a list of targets, got {brief(names)}")
        check_class_names(names)
        for what, numbers in (("mean", mean), ("std", std), ("margins", margins)):
            if what == "margins" and numbers is None:
                continue
            if not isinstance(numbers, list | tuple) or len(numbers) != len(names) or not all(map(_finite, numbers)):
                raise ValueError(
                    f"{what} must be {len(names)} finite numbers, one for each target; got {brief(numbers)}"
                )
        if min(std) <= 0:
            raise ValueError(f"standard deviations must be above 0, got {brief(std)}")
        level, measured = made["level"], made["measured"]
        if not _finite(level) or not 0 < level < 1:
            raise ValueError(f"the level of intervals is between 0 and 1, got {brief(level)}")
        if type(measured) is not int or measured < 0 or type(made["quantiles"]) is not bool:
            raise ValueError(f"measured is a number of examples, and quantiles true or false: got {str(made)[:80]}")
        return cls(names, mean, std, quantiles=made["quantiles"], level=level, margins=margins, measured=measured)

    # ----------------------------------------------------------------- training

    def criterion(self, recipe: Recipe, targets: Tensor | None = None) -> RegressionCriterion:
        """Squared, Huber or quantile loss of standardised targets.

        Raises:
            ValueError: for class weights.
        """
        if recipe.class_weight is not None:
            raise ValueError("class_weight weighs classes, and a regression has none: leave it out")
        return RegressionCriterion(self, recipe.loss or "l2")

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of standardised targets, or the quantile loss, of each example."""
        loss = "quantile" if self.quantiles else "l2"
        return _losses(loss, outputs, self._standard(targets).to(outputs), self.level).mean(1)

    def metrics(self) -> Metrics:
        """R2 and the root mean squared error of standardised targets."""
        return _Errors(self)

    def solve_head(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        recipe: Recipe,
        val: tuple[np.ndarray, np.ndarray] | None = None,
        weights: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Linear:
        """Ridge regression of standardised targets."""
        known, *held = (self._standard(torch.from_numpy(t)).numpy() for t in (targets, *([val[1]] if val else [])))
        held_out = (val[0], held[0]) if val else None
        return linear_regression(features, known, weights=weights, groups=groups, val=held_out)

    def solve_ridge(
        self,
        features: Tensor,
        targets: Tensor,
        recipe: Recipe,
        population: Tensor,
        groups: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Ridge:
        """Ridge regression of standardised targets; the quantiles are those of the errors of leaving one out."""
        standard = self._standard(targets)
        ridge = ridge_regression(features, standard, groups, weights)
        error = ridge.left_out - standard
        r2 = 1 - (error.square().sum(0) / (standard - standard.mean(0)).square().sum(0).clamp(min=1e-12)).mean()
        facts = {**ridge.facts, "r2": r2.item()}
        if not self.quantiles:
            return ridge._replace(facts=facts)
        shifts = [torch.zeros_like(error[0]), *(torch.quantile(-error, q, 0) for q in self._bounds)]
        return Ridge(
            ridge.weight.repeat(3, 1),
            torch.cat([ridge.bias + shift for shift in shifts]),
            facts,
            torch.cat([ridge.left_out + shift for shift in shifts], 1),
        )

    def probe(
        self, method: Probe, known: tuple[np.ndarray, np.ndarray], features: np.ndarray, seed: int = 0
    ) -> np.ndarray:
        """Answers by the mean of the 20 nearest neighbours, or by ridge regression on standardised features."""
        if method == "knn":
            return neighbour_means(known[0], known[1].astype(np.float64), features)
        standard = self._standard(torch.from_numpy(known[1])).numpy()
        outputs = torch.from_numpy(linear_regression(known[0], standard).outputs(features))
        return self.activate(outputs).numpy()

    # ------------------------------------------------------------------ answers

    def activate(self, outputs: Tensor) -> Tensor:
        """Standardised outputs -> numbers in the units of the targets; quantiles are sorted."""
        if not self.quantiles:
            return outputs * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)
        values = outputs.unflatten(1, (3, len(self.targets)))
        values = values * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)
        low, high = values.amin(1), values.amax(1)
        return torch.cat([values.sum(1) - low - high, low, high], 1)

    def deactivate(self, answers: Tensor) -> Tensor:
        """Numbers -> standardised outputs."""
        repeat = 3 if self.quantiles else 1
        mean, std = (answers.new_tensor(values).repeat(repeat) for values in (self.mean, self.std))
        return (answers - mean) / std

    def adjusted(self, outputs: Tensor, targets: Tensor) -> Regression:
        """The task with margins of intervals from examples that were not trained on (split conformal prediction).

        The interval of a new example of the same kind then contains its target with the probability `level` at least
        ("Distribution-free predictive inference for regression", Lei et al., 2018). With quantiles, their interval is
        widened or narrowed ("Conformalized quantile regression", Romano, Patterson & Candes, 2019).
        """
        count = len(targets)
        rank = math.ceil((count + 1) * self.level)
        if rank > count:
            return self
        truth, answers = targets.double().cpu().numpy(), self.activate(outputs.double().cpu()).numpy()
        low, high = self._bounds_of(answers, np.zeros(len(self.targets)))
        scores = np.sort(np.maximum(low - truth, truth - high), axis=0)
        made = copy.copy(self)
        made.margins, made.measured = tuple(scores[rank - 1].tolist()), count
        return made

    def facts(self) -> dict[str, str]:
        """How the intervals were found."""
        if self.margins is None:
            why = "not adjusted" if self.quantiles else "none"
            return {"intervals": f"{why}: no or too few examples were held out"}
        margins = "; ".join(map(quantity, self.margins[:10]))
        return {
            "intervals": f"{100 * self.level:g} %, {'quantiles widened by' if self.quantiles else '±'} {margins}, by "
            f"the errors on {counted(self.measured, 'example')} that were held out"
        }

    def intervals(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper bounds (n, targets) of the intervals of answers; None without any."""
        if self.margins is None and not self.quantiles:
            return None
        return self._bounds_of(answers, np.array(self.margins or [0.0] * len(self.targets)))

    def _bounds_of(self, answers: np.ndarray, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.targets)
        middle = answers[:, :count]
        low, high = (answers[:, count : 2 * count], answers[:, 2 * count :]) if self.quantiles else (middle, middle)
        # A negative margin narrows quantiles that are too wide, but never past the median.
        return np.minimum(low - margins, middle), np.maximum(high + margins, middle)

    def predictions(self, answers: np.ndarray, names: Sequence[str]) -> list[NumberPrediction]:
        """The numbers of each example, with their intervals."""
        bounds = self.intervals(answers)
        made = []
        for i, name in enumerate(names):
            values = dict(zip(self.targets, map(float, answers[i])))
            found = {} if bounds is None else dict(zip(self.targets, zip(bounds[0][i].tolist(), bounds[1][i].tolist())))
            made.append(NumberPrediction(str(name), values, found))
        return made

    def evaluate(self, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> RegressionEvaluation:
        """Numbers compared with targets."""
        predicted = answers[:, : len(self.targets)]
        return RegressionEvaluation(
            self.targets, targets, predicted, self.intervals(answers), self.level, tuple(map(str, names))
        )

    # ------------------------------------------------------------------- shared

    @property
    def _bounds(self) -> tuple[float, float]:
        """Levels of the two quantiles that bound the interval."""
        return (1 - self.level) / 2, (1 + self.level) / 2

    def _standard(self, targets: Tensor) -> Tensor:
        """Standardised targets (n, targets), float64."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        if targets.device.type == "mps":  # has no float64
            mean, std = mean.float(), std.float()
            return (targets - mean.to(targets.device)) / std.to(targets.device)
        return (targets.double() - mean.to(targets.device)) / std.to(targets.device)


class RegressionCriterion(Criterion):
    """Squared, Huber or quantile loss of standardised targets, the mean over targets.

    Args:
        task: has mean, standard deviation and level.
        loss: "l2", "huber" or "quantile".
    """

    def __init__(self, task: Regression, loss: str) -> None:
        super().__init__()
        self.task, self.kind = task, loss

    def prepare(self, targets: Tensor) -> Tensor:
        """Targets (B, targets) in their units -> standardised (B, outputs), repeated for the quantiles."""
        return self.task._standard(targets).float().repeat(1, self.task.num_outputs // len(self.task.targets))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of outputs (B, outputs) against prepared targets (B, outputs)."""
        return _losses(self.kind, outputs.float(), targets, self.task.level).mean()


class _Errors(Metrics):
    """R2, the mean over targets, and root mean squared error of standardised targets."""

    def __init__(self, task: Regression) -> None:
        super().__init__()
        self.task = task
        self.rows: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        answers = outputs.float().cpu()
        self.rows.append((answers, self.task._standard(targets.cpu()).float()))

    def compute(self) -> dict[str, Tensor]:
        """Both metrics."""
        outputs, truth = (torch.cat(parts) for parts in zip(*self.rows, strict=True))
        self.rows.clear()
        error = outputs[:, : truth.shape[1]] - truth
        r2 = torch.from_numpy(r2_scores(truth.numpy(), (truth + error).numpy())).mean()
        return {"r2": r2.float(), "standardised_rmse": error.square().mean().sqrt()}


def _losses(kind: str, outputs: Tensor, targets: Tensor, level: float) -> Tensor:
    """Loss of each output (n, outputs); targets (n, outputs), or (n, targets) for quantiles, too."""
    if kind == "huber":
        return F.huber_loss(outputs, targets, reduction="none")
    if kind == "l2":
        return (outputs - targets).square()
    if targets.shape != outputs.shape:
        targets = targets.repeat(1, 3)
    share = outputs.new_tensor([0.5, (1 - level) / 2, (1 + level) / 2]).repeat_interleave(outputs.shape[1] // 3)
    error = targets - outputs
    return 2 * torch.maximum(share * error, (share - 1) * error)  # twice, so that that of the median is |error|


def usual_names(count: int) -> tuple[str, ...]:
    """Names of targets without names."""
    return (_USUAL,) if count == 1 else tuple(f"{_USUAL}_{i}" for i in range(count))


def _names(value: Any) -> tuple[str, ...]:
    """Names of the targets in a raw target that was read."""
    if isinstance(value, dict):
        return tuple(value)
    return usual_names(len(value) if isinstance(value, tuple) else 1)


def _row(value: Any) -> tuple[float, ...]:
    return tuple(value.values()) if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)


def _numbers(value: Any) -> Any:
    """A raw target as a number, a tuple of numbers, or a dict from names to numbers; None for a missing one."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(name): _number(inner) for name, inner in value.items()}
    if isinstance(value, str) and _SEPARATORS.search(value):
        return tuple(map(_number, _SEPARATORS.split(value)))
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_number, value))
    return _number(value)


def _number(value: Any) -> float:
    if not isinstance(value, Real | str | np.generic) and not hasattr(value, "__float__"):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
