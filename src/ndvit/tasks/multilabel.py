"""Several labels: every example belongs to any number of classes, each decided by itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.config.bounds import brief, counted
from ndvit.evaluation.calibration import Calibration, calibrate
from ndvit.evaluation.multilabel import MultilabelEvaluation, average_precisions, f1_scores
from ndvit.tasks.base import Criterion, Linear, Metrics, Prediction, Probe, Ridge, Task, Translate
from ndvit.tasks.class_names import (
    ClassName,
    ClassTask,
    check_class_names,
    class_name,
    known_names,
    refuse_unknown,
)
from ndvit.tasks.solvers import logistic_regression, neighbour_means, ridge_of_labels

if TYPE_CHECKING:
    from ndvit.config.recipe import Recipe

_SEPARATORS = re.compile(r"[;|]")
_TOP = 5  # labels in the one-line text of a prediction
_LISTED = 20  # labels in the one-line text of a data set
_FEWEST = 3  # examples with a label, and without it, from which on its threshold is chosen
_COMMON = 10  # examples from which on a set of labels is a stratum
_EPSILON = 1e-7


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """The labels of an example, and the probability of every label."""

    name: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]

    def text(self) -> str:
        """The labels, and the most probable ones in percent."""
        best = sorted(self.probabilities.items(), key=lambda item: -item[1])[:_TOP]
        return f"{';'.join(self.labels) or '(none)'}  {'  '.join(f'{n} {100 * value:.1f} %' for n, value in best)}"

    def row(self) -> list[tuple[str, Any]]:
        """Name, labels with semicolons between, and one column for each probability."""
        return [("name", self.name), ("labels", ";".join(self.labels)), *self.probabilities.items()]

    def to_dict(self) -> dict[str, Any]:
        """Name, labels and probabilities."""
        return {"name": self.name, "labels": list(self.labels), "probabilities": self.probabilities}


class Multilabel(ClassTask):
    """Any number of classes for each example. Encoded targets are (n, classes) of 0 and 1.

    Raw targets are text with semicolons or vertical bars between labels; a list of labels; a row of 0 and 1, of equal
    length for all examples; or a mapping from labels to 0 and 1. None is an example without a label.

    Args:
        classes: names of the classes in the order of the outputs.
        thresholds: probabilities from which on an example belongs to each class; None is 0.5 for all.
        measured: number of examples that the thresholds were chosen on.

    Example:
        >>> from ndvit import Multilabel
        >>> task = Multilabel(("rain", "wind"))
        >>> task.encode(["rain;wind", "", "wind"]).tolist()
        [[1, 1], [0, 0], [0, 1]]
    """

    name = "multilabel"
    known_losses = ("sigmoid",)
    has_temperature = True
    may_be_empty = True
    preset_changes: ClassVar[Mapping[str, Any]] = {"loss": None}

    def __init__(self, classes: Sequence[str], thresholds: Sequence[float] | None = None, measured: int = 0) -> None:
        self.classes = tuple(map(str, classes))
        self.thresholds: tuple[float, ...] | np.ndarray = tuple(map(float, thresholds or [0.5] * len(self.classes)))
        self.measured = int(measured)

    # ------------------------------------------------------------------ targets

    @classmethod
    def read(cls, targets: Sequence[Any], where: str) -> list[Any]:
        """Tuples of names; columns of 0 and 1 have the numbers of the columns as names."""
        rows = [value for value in targets if value is not None]
        if rows and all(_is_indicator(value) for value in rows) and len({len(value) for value in rows}) == 1:
            return [_Labels() if value is None else _Indicator(map(int, value)) for value in targets]
        read: list[Any] = []
        for i, value in enumerate(targets):
            try:
                read.append(_labels(value))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{where}: labels are text with ; or | between, lists of names, or rows of 0 and 1; the target of "
                    f"example {i} is {brief(value)}{f' ({error})' if str(error) else ''}. For numbers set --task "
                    "regression (task='regression')"
                ) from None
        return read

    @classmethod
    def from_targets(cls, targets: Mapping[str, Sequence[Any]], where: str, *, to_train: bool = True) -> Multilabel:
        """The labels of the training set, or of all splits where there is none, sorted; by value if all are numbers.

        Raises:
            ValueError: for targets of other kinds, and labels that the training set lacks.
        """
        read = {split: _read_once(values, where) for split, values in targets.items()}
        indicators = {len(value) for values in read.values() for value in values if isinstance(value, _Indicator)}
        if len(indicators) > 1:
            raise ValueError(f"{where}: rows of 0 and 1 have {' and '.join(map(str, sorted(indicators)))} columns")
        if indicators:
            return cls([str(i) for i in range(indicators.pop())])
        columns = [value.columns for values in read.values() for value in values if isinstance(value, _Row)]
        if columns:
            return cls(columns[0])
        names = {split: {name for value in values for name in value} for split, values in read.items()}
        classes = known_names(names)
        if not classes:
            raise ValueError(f"{where}: no training example has a label")
        refuse_unknown(names, classes, "labels", where)
        return cls(classes)

    @classmethod
    def doubts(cls, targets: Mapping[str, Sequence[Any]]) -> list[str]:
        """Examples that all have one label, which may be classes."""
        values = _read_once([value for of_split in targets.values() for value in of_split], "the targets")
        counts = {sum(value) if isinstance(value, _Indicator) else len(value) for value in values}
        if counts != {1} or len(set(values)) < 2:
            return []
        return [
            "every example has exactly one label: if labels exclude each other, set --task classification "
            "(task='classification'), which is more accurate then"
        ]

    def encode(self, targets: Sequence[Any]) -> np.ndarray:
        """Labels -> (n, classes) of 0 and 1."""
        index = {name: i for i, name in enumerate(self.classes)}
        codes = np.zeros((len(targets), len(self.classes)), dtype=np.int64)
        for row, value in zip(codes, _read_once(targets, "the targets")):
            if isinstance(value, _Indicator):
                if len(value) != len(row):
                    raise ValueError(f"rows of 0 and 1 have {len(value)} columns, and there are {len(row)} classes")
                row[:] = value
                continue
            for name in value:
                if name not in index:
                    raise ValueError(f"unknown label {name!r}: there are {', '.join(self.classes[:20])}")
                row[index[name]] = 1
        return codes

    def decode(self, targets: np.ndarray) -> list[str]:
        """0 and 1 -> labels with semicolons between."""
        return [";".join(name for name, there in zip(self.classes, row) if there) for row in targets.tolist()]

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Sets of labels that at least ten examples have; the other examples by their rarest label.

        So that each stratum has at least two examples, what is left is one stratum, or part of the largest.
        """
        count = len(targets)
        _, sets, sizes = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
        codes = sets.reshape(-1).astype(np.int64)
        rare = sizes[codes] < _COMMON
        frequency = targets.sum(0)
        rarest = np.where(targets > 0, frequency, count + 1).argmin(1)
        codes[rare] = len(sizes) + np.where(targets[rare].any(1), rarest[rare], targets.shape[1])
        for _ in range(2):  # a stratum of the rest may have a single example, too
            values, place, sizes = np.unique(codes, return_inverse=True, return_counts=True)
            single = sizes[place.reshape(-1)] < 2
            if not single.any() or len(values) == 1:
                break
            codes[single] = values[sizes.argmax()] if single.sum() == 1 else values.max() + 1
        return np.unique(codes, return_inverse=True)[1].reshape(-1)

    def stratum_name(self, stratum: int) -> str:
        """The set of labels by its number."""
        return f"set {stratum + 1} of labels"

    def absent(self, known: np.ndarray, there: np.ndarray) -> list[str]:
        """Labels."""
        lacking = (known.max(0, initial=0) > there.max(0, initial=0)).tolist()
        return [f"label {name}" for name, lacks in zip(self.classes, lacking) if lacks]

    def summary(self, targets: Mapping[str, np.ndarray]) -> list[str]:
        """A table with the number of examples with each label in each split."""
        width = max(len("(all examples)"), *map(len, self.classes))
        lines = [f"{'label':{width}}" + "".join(f"  {split:>10}" for split in targets)]
        for i, name in enumerate(self.classes):
            lines.append(f"{name:{width}}" + "".join(f"  {values[:, i].sum():>10,}" for values in targets.values()))
        return [*lines, f"{'(all examples)':{width}}" + "".join(f"  {len(v):>10,}" for v in targets.values())]

    def brief(self, targets: Mapping[str, np.ndarray]) -> str:
        """The number of examples with each label in each split, in one line; of more than 20 labels the first."""
        counts = np.stack([values.sum(0) for values in targets.values()], 1)
        rows = [f"{name} ({' + '.join(f'{n:,}' for n in row)})" for name, row in zip(self.classes, counts.tolist())]
        more = f" and {len(rows) - _LISTED:,} more" * (len(rows) > _LISTED)
        sizes = " + ".join(f"{len(values):,}" for values in targets.values())
        mean = np.concatenate(list(targets.values())).sum(1).mean()
        return (
            f"{len(rows):,} labels, {mean:.2g} of them per example, examples in {' + '.join(targets)} ({sizes}): "
            f"{', '.join(rows[:_LISTED])}{more}"
        )

    def align(self, other: Task, where: str) -> tuple[Translate | None, tuple[str, ...]]:
        """Translate labels by name, or columns without names by their order."""
        if not isinstance(other, Multilabel):
            raise ValueError(f"{where} has targets of {other.name}, the model those of {self.name}")
        if other.classes == self.classes:
            return None, ()
        numbered = tuple(str(i) for i in range(len(self.classes)))
        if other.classes == numbered:
            return None, ("the columns of the targets are taken in the order of the model's labels",)
        index = {name: i for i, name in enumerate(self.classes)}
        if unknown := [name for name in other.classes if name not in index]:
            raise ValueError(
                f"{where}: the model does not know the labels {', '.join(unknown[:10])}; it knows "
                f"{', '.join(self.classes[:20])}"
            )
        places = [index[name] for name in other.classes]

        def translate(targets: np.ndarray) -> np.ndarray:
            made = np.zeros((len(targets), len(self.classes)), dtype=targets.dtype)
            made[:, places] = targets
            return made

        return translate, ()

    def match_outputs(self, labels: Sequence[Any], where: str) -> list[int] | None:
        """Match labels by name."""
        index = {str(label): i for i, label in enumerate(labels)}
        if missing := [name for name in self.classes if name not in index]:
            raise ValueError(
                f"{where} does not know the labels {', '.join(missing[:10])}: rename them, or train it on them"
            )
        return [index[name] for name in self.classes]

    def to_dict(self) -> dict[str, Any]:
        """Labels and thresholds."""
        return {"classes": list(self.classes), "thresholds": list(self.thresholds), "measured": self.measured}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Multilabel:
        """The task that `to_dict` described."""
        classes, thresholds, measured = (values.get(name) for name in ("classes", "thresholds", "measured"))
        if set(values) != {"classes", "thresholds", "measured"} or not isinstance(classes, list | tuple):
            raise ValueError(f"a multilabel task has classes, thresholds and measured, got {str(dict(values))[:80]}")
        numbers = thresholds if isinstance(thresholds, list | tuple) else ()
        if len(numbers) != len(classes) or not all(type(t) in (int, float) and 0 <= t <= 1 for t in numbers):
            raise ValueError(f"thresholds are {len(classes)} numbers from 0 to 1, got {brief(thresholds)}")
        if type(measured) is not int or measured < 0:
            raise ValueError(f"measured is a number of examples, got {brief(measured)}")
        return cls(check_class_names(classes), numbers, measured)

    # ----------------------------------------------------------------- training

    def criterion(self, recipe: Recipe, targets: Tensor | None = None) -> MultilabelCriterion:
        """Binary cross-entropy of each label, with smoothing and class weights."""
        weight = None if targets is None else self._weights(recipe, targets)
        share = None if targets is None else targets.float().mean(0)
        return MultilabelCriterion(recipe.label_smoothing, share, weight)

    def _weights(self, recipe: Recipe, targets: Tensor) -> Tensor | None:
        """Weight of the examples that have each label, (classes,); None for equal ones.

        Raises:
            ValueError: if the number of weights is not the number of labels.
        """
        if recipe.class_weight is None:
            return None
        if recipe.class_weight == "balanced":
            with_it = targets.double().sum(0)
            return ((len(targets) - with_it) / with_it.clamp(min=1)).clamp(1e-3, 1e3).float()
        if len(recipe.class_weight) != len(self.classes):
            raise ValueError(
                f"class_weight has {len(recipe.class_weight)} numbers for {len(self.classes)} labels: pass one for "
                "each label, or balanced"
            )
        return torch.tensor(recipe.class_weight, dtype=torch.float32)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Log loss of each example, the mean over labels."""
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none").mean(1)

    def metrics(self) -> Metrics:
        """Mean average precision and micro F1."""
        return _Scores()

    def initial_bias(self, recipe: Recipe) -> float | None:
        """A low probability of every label."""
        return -float(np.log(max(1, len(self.classes))))

    def solve_head(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        recipe: Recipe,
        val: tuple[np.ndarray, np.ndarray] | None = None,
        weights: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Linear:
        """A logistic regression for each label."""
        rows = []
        of_labels = self._weights(recipe, torch.from_numpy(targets))
        options: dict[str, Any] = {"weights": weights, "groups": groups, "seed": recipe.seed}
        for i, column in enumerate(targets.T):
            held = None if val is None else (val[0], val[1][:, i])
            weight = None if of_labels is None else np.array([1.0, float(of_labels[i])])
            found = logistic_regression(features, column, 2, class_weights=weight, val=held, **options)
            rows.append((found.weight[1] - found.weight[0], found.bias[1] - found.bias[0]))
        return Linear(np.stack([weight for weight, _ in rows]), np.array([bias for _, bias in rows]))

    def solve_ridge(
        self,
        features: Tensor,
        targets: Tensor,
        recipe: Recipe,
        population: Tensor,
        groups: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Ridge:
        """Ridge regression on targets of -1 and 1 for each label; class weights shift the logits."""
        ridge = ridge_of_labels(features, targets, groups, weights)
        truth, scores = targets.cpu().numpy(), ridge.left_out.cpu().numpy()
        facts = {**ridge.facts, "mean_average_precision": float(np.nanmean(average_precisions(truth, scores)))}
        weight = self._weights(recipe, population)
        if weight is None:
            return ridge._replace(facts=facts)
        shift = weight.clamp(min=1e-6).log().to(ridge.bias)
        return Ridge(ridge.weight, ridge.bias + shift, facts, ridge.left_out + shift)

    def probe(
        self, method: Probe, known: tuple[np.ndarray, np.ndarray], features: np.ndarray, seed: int = 0
    ) -> np.ndarray:
        """Probabilities by a vote of the 20 nearest neighbours, or by logistic regressions on standardised features."""
        if method == "knn":
            return neighbour_means(known[0], known[1].astype(np.float64), features).clip(0, 1)
        from ndvit.config.recipe import Recipe

        outputs = self.solve_head(*known, Recipe(seed=seed)).outputs(features)
        return self.activate(torch.from_numpy(outputs)).numpy()

    # ------------------------------------------------------------------ answers

    def activate(self, outputs: Tensor) -> Tensor:
        """Logits -> probabilities, each by itself."""
        return outputs.sigmoid()

    def deactivate(self, answers: Tensor) -> Tensor:
        """Probabilities -> logits."""
        return answers.clamp(_EPSILON, 1 - _EPSILON).logit()

    def calibrate(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Calibration:
        """Fit one temperature to the decisions on all labels of validation data, each one of two classes."""
        logits = torch.stack([torch.zeros_like(outputs), outputs], 2).flatten(0, 1)
        return replace(calibrate(logits, targets.flatten().long()), examples=len(targets))

    def adjusted(self, outputs: Tensor, targets: Tensor) -> Multilabel:
        """The task with the threshold of each label that has the highest F1 on examples that were not trained on.

        Labels with or without which there are fewer than three examples keep theirs.
        """
        truth, probabilities = targets.cpu().numpy(), self.activate(outputs.double().cpu()).numpy()
        made = copy.copy(self)
        found = [_threshold(t, p, usual) for t, p, usual in zip(truth.T, probabilities.T, self.thresholds)]
        made.thresholds, made.measured = tuple(found), len(truth)
        return made

    def decided_by(self, answers: np.ndarray, targets: np.ndarray) -> Multilabel:
        """The task with thresholds as in `adjusted`."""
        return self.adjusted(self.deactivate(torch.from_numpy(answers).double()), torch.from_numpy(targets))

    def out_of_fold(self, answers: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> Multilabel:
        """The task with thresholds (n, classes) of each example, those of its fold."""
        thresholds = np.empty(answers.shape)
        for fold in np.unique(folds):
            others = folds != fold
            thresholds[~others] = self.decided_by(answers[others], targets[others]).thresholds
        made = copy.copy(self)
        made.thresholds, made.measured = thresholds, len(folds)
        return made

    def of_rows(self, rows: np.ndarray) -> Multilabel:
        """The task with the thresholds of these examples."""
        made = copy.copy(self)
        if isinstance(self.thresholds, np.ndarray):
            made.thresholds = self.thresholds[rows]
        return made

    def facts(self) -> dict[str, str]:
        """How the thresholds were found."""
        if not self.measured:
            return {"thresholds": "0.5 for every label: no examples were held out"}
        thresholds = np.reshape(self.thresholds, (-1, len(self.classes))).mean(0)  # over folds
        listed = "; ".join(f"{n} {t:.3g}" for n, t in zip(self.classes[:_LISTED], thresholds))
        more = ", ..." if len(self.classes) > _LISTED else ""
        held_out = f"{counted(self.measured, 'example')} that were held out"
        return {"thresholds": f"{listed}{more}, for the highest F1 on {held_out}"}

    def predictions(self, answers: np.ndarray, names: Sequence[str]) -> list[LabelsPrediction]:
        """The labels whose probabilities reach their thresholds."""
        made = []
        thresholds = np.broadcast_to(self.thresholds, answers.shape).tolist()
        for name, row, least in zip(names, answers.tolist(), thresholds, strict=True):
            labels = tuple(n for n, value, at in zip(self.classes, row, least) if value >= at)
            made.append(LabelsPrediction(str(name), labels, dict(zip(self.classes, row))))
        return made

    def evaluate(self, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> MultilabelEvaluation:
        """Probabilities compared with labels."""
        return MultilabelEvaluation(self.classes, targets, answers, self.thresholds, tuple(map(str, names)))


class MultilabelCriterion(Criterion):
    """Binary cross-entropy of each label, the mean over labels and examples.

    Args:
        smoothing: share of each target that is replaced by the share of the examples with the label, so that its mean
            stays the same.
        share: (classes,) of the training examples with each label; None smooths towards 1/2.
        weight: (classes,) of the examples that have the label, against 1 for those that have not; None is 1.
    """

    weight: Tensor | None
    share: Tensor | None

    def __init__(self, smoothing: float, share: Tensor | None = None, weight: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def prepare(self, targets: Tensor) -> Tensor:
        """0 and 1 (B, classes) -> smoothed targets (B, classes)."""
        towards = 0.5 if self.share is None else self.share
        return targets.float() * (1 - self.smoothing) + self.smoothing * towards

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (B, classes) against prepared targets (B, classes)."""
        return F.binary_cross_entropy_with_logits(outputs.float(), targets, pos_weight=self.weight)

    def validation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss without smoothing."""
        return self.loss(outputs, targets.float())

    def distillation_loss(self, outputs: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy against the probabilities of the teacher."""
        return F.binary_cross_entropy_with_logits(outputs.float(), teacher.float().sigmoid(), pos_weight=self.weight)


class _Scores(Metrics):
    """Mean average precision, and micro F1 at thresholds of 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        self.rows.append((outputs.float().cpu(), targets.cpu()))

    def compute(self) -> dict[str, Tensor]:
        """Both metrics."""
        outputs, truth = (torch.cat(parts).numpy() for parts in zip(*self.rows, strict=True))
        self.rows.clear()
        finite = np.nan_to_num(outputs)
        precisions = average_precisions(truth, finite)
        mean = float(np.nanmean(precisions)) if np.isfinite(precisions).any() else float("nan")
        return {"mean_average_precision": torch.tensor(mean), "f1_micro": torch.tensor(f1_scores(truth, finite > 0)[0])}


class _Indicator(tuple[int, ...]):
    """A raw target of 0 and 1, one for each class, that has been read."""


class _Row(tuple[str, ...]):
    """Labels of a mapping that has been read, and the names of all its columns."""

    columns: tuple[str, ...]


class _Labels(tuple[str, ...]):
    """Labels that have been read."""


def _read_once(values: Sequence[Any], where: str) -> list[Any]:
    """`Multilabel.read` of targets that it has not read yet."""
    if all(isinstance(value, _Indicator | _Row | _Labels) for value in values):
        return list(values)
    return Multilabel.read(values, where)


def _is_indicator(value: Any) -> bool:
    """Whether a raw target is a row of 0 and 1."""
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) > 0
        and all(isinstance(one, Real | np.generic) and one in (0, 1) for one in value)
    )


def _labels(value: Any) -> tuple[str, ...]:
    """The labels of a raw target, without repetition; empty for None."""
    if value is None:
        return _Labels()
    if isinstance(value, _Row | _Labels):
        return value
    if isinstance(value, Mapping):
        row = _Row(str(name) for name, there in value.items() if _flag(name, there))
        row.columns = tuple(map(str, value))
        return row
    if isinstance(value, ClassName):
        return _Labels((str(value),))
    if isinstance(value, str):
        names = [name.strip() for name in _SEPARATORS.split(value)]
        return _Labels(dict.fromkeys(name for name in names if name))
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple | np.ndarray):
        if any(isinstance(one, float) and one % 1 for one in value):
            raise ValueError("it has fractions")
        return _Labels(dict.fromkeys(class_name(one) for one in value if one is not None))
    if isinstance(value, Real) and value % 1 == 0:
        return _Labels((class_name(value),))
    raise TypeError


def _flag(name: Any, there: Any) -> bool:
    if there not in (0, 1, "0", "1"):
        raise ValueError(f"column {name} has {brief(there)}, expected 0 or 1")
    return there in (1, "1")


def _threshold(truth: np.ndarray, probabilities: np.ndarray, usual: float) -> float:
    """The threshold with the highest F1, in the middle between two probabilities; of several the nearest to 0.5."""
    positives = int(truth.sum())
    if min(positives, len(truth) - positives) < _FEWEST or not np.isfinite(probabilities).all():
        return usual
    order = np.argsort(-probabilities, kind="stable")
    sorted_p, hits = probabilities[order], np.cumsum(truth[order])
    taken = np.arange(1, len(truth) + 1)
    f1 = 2 * hits / (taken + positives)
    last = np.append(sorted_p[1:] < sorted_p[:-1], True)  # a threshold cannot part equal probabilities
    middle = (sorted_p + np.append(sorted_p[1:], 0.0)) / 2
    best = np.flatnonzero(last & (f1 >= f1[last].max() - 1e-12))
    return float(min(middle[best], key=lambda at: abs(at - 0.5)))
