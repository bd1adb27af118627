"""Classification: every example belongs to one of several classes.

Loss, and the metrics of training and validation curves; those of a test are in `evaluation/classification.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.evaluation.calibration import Calibration, calibrate
from ndvit.evaluation.classification import ClassificationEvaluation
from ndvit.tasks.base import Criterion, Linear, Metrics, Prediction, Probe, Ridge, Task, Translate
from ndvit.tasks.class_names import (
    ClassName,
    ClassTask,
    by_value,
    check_class_names,
    check_classes,
    class_name,
    joined_names,
    known_names,
    refuse_unknown,
)
from ndvit.tasks.imagenet import match_classes
from ndvit.tasks.solvers import logistic_regression, nearest_neighbours, ridge_classifier

if TYPE_CHECKING:
    from ndvit.config.recipe import Recipe

_TOP = 3  # classes in the one-line text of a prediction
_LISTED = 20  # classes in the one-line text of a data set
_WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The most probable class of an example, and the probability of every class."""

    name: str
    label: str
    probabilities: dict[str, float]

    def text(self) -> str:
        """The most probable classes in percent."""
        best = sorted(self.probabilities.items(), key=lambda item: -item[1])[:_TOP]
        return "  ".join(f"{label} {100 * value:.1f} %" for label, value in best)

    def row(self) -> list[tuple[str, Any]]:
        """Name, class, and one column for each class."""
        return [("name", self.name), ("class", self.label), *self.probabilities.items()]

    def to_dict(self) -> dict[str, Any]:
        """Name, class and probabilities."""
        return {"name": self.name, "class": self.label, "probabilities": self.probabilities}


class Classification(ClassTask):
    """One class for each example. Raw targets are class names; encoded targets are integers from 0.

    Args:
        classes: names of the classes in the order of the outputs.

    Example:
        >>> from ndvit import Classification
        >>> task = Classification(("cat", "dog"))
        >>> task.encode(["dog", "cat", "dog"])
        array([1, 0, 1])
        >>> task.num_outputs
        2
    """

    name = "classification"
    combine = "probabilities"
    known_losses = ("softmax", "sigmoid")
    has_temperature = True

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(map(str, classes))

    @classmethod
    def from_targets(cls, targets: Mapping[str, Sequence[Any]], where: str, *, to_train: bool = True) -> Classification:
        """The classes of the training set, or of all splits where there is none, sorted; by value if all are numbers.

        Raises:
            ValueError: for numbers with fractions, fewer than two classes to train on, or classes that the training set
                lacks.
        """
        check_classes([value for values in targets.values() for value in values], where)
        names = {split: {class_name(value) for value in values} for split, values in targets.items()}
        classes = known_names(names)
        if to_train and len(classes) < 2:
            raise ValueError(f"{where}: the training set has one class only ({classes[0]}); at least two are needed")
        refuse_unknown(names, classes, "classes", where)
        return cls(classes)

    @classmethod
    def doubts(cls, targets: Mapping[str, Sequence[Any]]) -> list[str]:
        """Texts of several labels, and whole numbers of nearly as many different values as examples, or quantities."""
        values = [value for of_split in targets.values() for value in of_split]
        names = {class_name(value) for value in values}
        if several := joined_names(values):
            return [
                f"{len(several):,} classes are others with {several[0][1]!r} between, such as {several[0][0]!r}: if an "
                "example may have several labels, set --task multilabel (task='multilabel')"
            ]
        whole = all(_WHOLE.fullmatch(class_name(value)) and not isinstance(value, ClassName) for value in values)
        if not whole or len(names) < 10 or 2 * len(names) < len(values):
            return []
        return [
            f"the labels are whole numbers with {len(names):,} different values in {len(values):,} examples, and each "
            "value is a class. If they are quantities, the targets are continuous: set --task regression "
            "(task='regression')"
        ]

    def encode(self, targets: Sequence[Any]) -> np.ndarray:
        """Class names -> integers (n,) from 0."""
        index = {name: i for i, name in enumerate(self.classes)}
        try:
            return np.array([index[class_name(value)] for value in targets], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"unknown class {error}: there are {', '.join(self.classes[:20])}") from None

    def decode(self, targets: np.ndarray) -> list[str]:
        """Integers -> class names."""
        return [self.classes[i] for i in targets]

    def strata(self, targets: np.ndarray) -> np.ndarray | None:
        """The classes themselves."""
        return targets

    def stratum_name(self, stratum: int) -> str:
        """The class."""
        return f"class {self.classes[stratum]}"

    def absent(self, known: np.ndarray, there: np.ndarray) -> list[str]:
        """Classes."""
        return [self.stratum_name(i) for i in sorted({*known.tolist()} - {*there.tolist()})]

    def summary(self, targets: Mapping[str, np.ndarray]) -> list[str]:
        """A table with the number of examples of each class in each split."""
        width = max(5, *map(len, self.classes))
        counts = {split: np.bincount(values, minlength=len(self.classes)) for split, values in targets.items()}
        lines = [f"{'class':{width}}" + "".join(f"  {split:>10}" for split in counts)]
        for i, name in enumerate(self.classes):
            lines.append(f"{name:{width}}" + "".join(f"  {count[i]:>10,}" for count in counts.values()))
        return lines

    def brief(self, targets: Mapping[str, np.ndarray]) -> str:
        """The number of examples of each class in each split, in one line; of more than 20 classes the first."""
        counts = np.stack([np.bincount(values, minlength=len(self.classes)) for values in targets.values()], 1)
        rows = [f"{name} ({' + '.join(f'{n:,}' for n in row)})" for name, row in zip(self.classes, counts.tolist())]
        line = f"{len(rows):,} classes, examples in {' + '.join(targets)}: {', '.join(rows[:_LISTED])}"
        if len(rows) <= _LISTED:
            return line
        total = counts[_LISTED:].sum(1)
        return f"{line} and {len(rows) - _LISTED:,} more of {total.min():,} to {total.max():,} examples each"

    def align(self, other: Task, where: str) -> tuple[Translate, tuple[str, ...]]:
        """Translate the classes of data by name; for ImageNet's classes also by WordNet id or index."""
        if not isinstance(other, Classification):
            raise ValueError(f"{where} has targets of {other.name}, the model those of {self.name}")
        try:
            outputs, notes = match_classes(other.classes, self.classes)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        index = np.array([outputs[name] for name in other.classes], dtype=np.int64)
        return index.__getitem__, notes

    def match_outputs(self, labels: Sequence[Any], where: str) -> list[int]:
        """Match class names, or their values if they are numbers (1.0 is 1)."""
        for spelling in (str, by_value):
            index = {spelling(label): i for i, label in enumerate(labels)}
            missing = [name for name in self.classes if spelling(name) not in index]
            if not missing:
                return [index[spelling(name)] for name in self.classes]
        few = [", ".join(map(str, names[:10])) + ", ..." * (len(names) > 10) for names in (missing, list(labels))]
        raise ValueError(
            f"{where} does not know the classes {few[0]}; it knows {few[1]}: rename them, or train it on them"
        )

    def to_dict(self) -> dict[str, Any]:
        """The classes."""
        return {"classes": list(self.classes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Classification:
        """The task that `to_dict` described."""
        classes = values.get("classes")
        if set(values) != {"classes"} or not isinstance(classes, list | tuple):
            raise ValueError(f"a classification task has a list of classes, got {str(dict(values))[:80]}")
        return cls(check_class_names(classes))

    def criterion(self, recipe: Recipe, targets: Tensor | None = None) -> ClassificationCriterion:
        """Cross-entropy over all classes, or of each class by itself, with label smoothing and class weights."""
        assert targets is not None or recipe.class_weight is None
        weight = None if targets is None else class_weights(recipe, targets, len(self.classes))
        return ClassificationCriterion(recipe, len(self.classes), weight)

    def example_weights(self, recipe: Recipe, targets: Tensor, population: Tensor) -> Tensor | None:
        """The weight of each example's class."""
        weight = class_weights(recipe, population, len(self.classes))
        return None if weight is None else weight[targets]

    def metrics(self) -> Metrics:
        """Accuracy and balanced accuracy."""
        return _Accuracies(len(self.classes))

    def initial_bias(self, recipe: Recipe) -> float | None:
        """For the sigmoid loss, the bias under which a class has probability 1 / classes (AugReg)."""
        return -float(np.log(len(self.classes))) if recipe.loss == "sigmoid" else None

    def solve_head(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        recipe: Recipe,
        val: tuple[np.ndarray, np.ndarray] | None = None,
        weights: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Linear:
        """Logistic regression."""
        weight = class_weights(recipe, torch.from_numpy(targets), len(self.classes))
        by_class = None if weight is None else weight.numpy().astype(np.float64)
        options: dict[str, Any] = {"weights": weights, "groups": groups, "val": val, "seed": recipe.seed}
        return logistic_regression(features, targets, len(self.classes), class_weights=by_class, **options)

    def solve_ridge(
        self,
        features: Tensor,
        targets: Tensor,
        recipe: Recipe,
        population: Tensor,
        groups: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Ridge:
        """Ridge regression on targets of -1 and 1, see `ridge_classifier`."""
        weight = class_weights(recipe, population, len(self.classes))
        if weight is not None:  # the sample holds another share of a class than the training set does
            ours, all_ = (torch.bincount(labels.cpu(), minlength=len(weight)) for labels in (targets, population))
            weight = weight * all_ / ours.clamp(min=1)
        each = None if weight is None else weight.to(features.device)[targets]
        if weights is not None:
            each = weights if each is None else each * weights
        return ridge_classifier(features, targets, len(self.classes), each, groups)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Log loss of each example."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def probe(
        self,
        method: Probe,
        known: tuple[np.ndarray, np.ndarray],
        features: np.ndarray,
        seed: int = 0,
    ) -> np.ndarray:
        """Probabilities by a vote of the 20 nearest neighbours, or by logistic regression on standardised features."""
        if method == "knn":
            return nearest_neighbours(*known, features, len(self.classes))
        logits = logistic_regression(*known, len(self.classes), seed=seed).outputs(features)
        probabilities: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
        return probabilities / probabilities.sum(1, keepdims=True)

    def activate(self, outputs: Tensor) -> Tensor:
        """Logits -> probabilities."""
        return outputs.softmax(1)

    def deactivate(self, answers: Tensor) -> Tensor:
        """Probabilities -> their logarithms."""
        return answers.log()

    def calibrate(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Calibration:
        """Fit one temperature to validation data ("On Calibration of Modern Neural Networks", Guo et al., 2017)."""
        return calibrate(outputs, targets, weights)

    def predictions(self, answers: np.ndarray, names: Sequence[str]) -> list[ClassPrediction]:
        """The most probable class of each example."""
        rows = [dict(zip(self.classes, map(float, row), strict=True)) for row in answers]
        return [ClassPrediction(str(name), max(row, key=row.__getitem__), row) for name, row in zip(names, rows)]

    def evaluate(self, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> ClassificationEvaluation:
        """Probabilities compared with labels."""
        return ClassificationEvaluation(self.classes, targets, answers, tuple(names))


def class_weights(recipe: Recipe, labels: Tensor, classes: int) -> Tensor | None:
    """The recipe's weight of each class, (classes,), scaled to a mean of 1 over the labels (n,); None for no weights.

    Raises:
        ValueError: if the number of weights is not the number of classes, or if no label has a positive weight.
    """
    weights = recipe.class_weight
    if weights is None:
        return None
    count = torch.bincount(labels, minlength=classes).double()
    if weights == "balanced":
        weight = len(labels) / (classes * count.clamp(min=1))
    elif len(weights) == classes:
        weight = torch.tensor(weights, dtype=torch.float64)
    else:
        raise ValueError(
            f"class_weight has {len(weights)} numbers for {classes} classes: pass one for each class, or balanced"
        )
    mean = (weight * count).sum() / count.sum()
    if not mean > 0:
        raise ValueError(f"class_weight {weights} leaves no training example: all classes with a weight are empty")
    return (weight / mean).float()


class ClassificationCriterion(Criterion):
    """Cross-entropy against label distributions, over all classes (softmax) or of each class by itself (sigmoid).

    A prepared target is the smoothed distribution of an example times the weight of its label, so its sum is the weight
    of the example. Mixing averages distributions and weights alike. (Weights of the classes in the sum over the
    classes, as in `torch.nn.CrossEntropyLoss`, would also multiply the smoothed part: a rare class would get its large
    weight from the examples of all other classes.)

    Args:
        recipe: loss, label smoothing and distillation.
        classes: number of classes.
        class_weight: (classes,) weights of the examples by their labels, or None.
    """

    class_weight: Tensor | None

    def __init__(self, recipe: Recipe, classes: int, class_weight: Tensor | None = None) -> None:
        super().__init__()
        self.recipe, self.classes = recipe, classes
        self.register_buffer("class_weight", class_weight, persistent=False)

    def prepare(self, targets: Tensor) -> Tensor:
        """Labels (B,) -> smoothed distributions over the classes, times the weight of the label: (B, classes)."""
        smoothing = self.recipe.label_smoothing
        smoothed = F.one_hot(targets, self.classes) * (1 - smoothing) + smoothing / self.classes
        return smoothed if self.class_weight is None else smoothed * self.class_weight[targets, None]

    def weights(self, targets: Tensor) -> Tensor:
        """Weights (B,) of examples with these prepared targets."""
        return targets.sum(1)

    def unsmoothed(self, targets: Tensor) -> Tensor:
        """Weighted shares of the labels (B, classes) in examples with these prepared targets."""
        smoothing = self.recipe.label_smoothing
        return (targets - self.weights(targets)[:, None] * (smoothing / self.classes)) / (1 - smoothing)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (B, classes) against weighted distributions (B, classes).

        For the sigmoid loss, a class is a positive if a label of the example is of it: both classes of a mixed example
        are (DeiT III). The loss of an example is the sum over the classes (AugReg), times its weight.
        """
        outputs = outputs.float()
        if self.recipe.loss != "sigmoid":
            return F.cross_entropy(outputs, targets)
        smoothing, weights = self.recipe.label_smoothing, self.weights(targets)
        positive = (self.unsmoothed(targets) > 1e-6 * weights[:, None]).to(outputs.dtype)
        positive = positive * (1 - smoothing) + smoothing / self.classes
        losses = F.binary_cross_entropy_with_logits(outputs, positive, reduction="none").sum(1)
        return (losses if self.class_weight is None else losses * weights).mean()

    def validation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits and labels, weighed as in training, without smoothing."""
        losses = F.cross_entropy(outputs.float(), targets, reduction="none")
        return (losses if self.class_weight is None else losses * self.class_weight[targets]).mean()

    def distillation_loss(self, outputs: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Distance of a student from its teacher ("Training data-efficient image transformers & distillation", 2021).

        Hard: cross-entropy against the teacher's decisions. Soft: T^2 KL(teacher || student) of both softmaxes at
        temperature T; the factor keeps gradients independent of T (Hinton et al., 2015). An example has the weight of
        its own label, whatever the teacher takes it for.
        """
        if self.recipe.distillation == "hard":
            losses = F.cross_entropy(outputs, teacher.argmax(1), reduction="none")
        else:
            temperature = self.recipe.temperature
            student, target = ((logits / temperature).log_softmax(1) for logits in (outputs, teacher))
            losses = temperature**2 * F.kl_div(student, target, reduction="none", log_target=True).sum(1)
        return (losses if self.class_weight is None else losses * self.weights(targets)).mean()

    def batch_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Accuracy. The class of a mixed example is the larger part's, and examples without weight do not count."""
        if self.class_weight is None:
            return {"accuracy": (outputs.argmax(1) == targets.argmax(1)).float().mean()}
        shares = torch.where(self.class_weight > 0, self.unsmoothed(targets) / self.class_weight, 0)
        right, counts = outputs.argmax(1) == shares.argmax(1), self.weights(targets) > 0
        return {"accuracy": (right & counts).sum() / counts.sum().clamp(min=1)}


class _Accuracies(Metrics):
    """Accuracy, and balanced accuracy: the mean recall of the classes that occur in the validation set.

    torchmetrics' macro average would also count a class that does not occur, with recall 0, once it is predicted.
    """

    def __init__(self, classes: int) -> None:
        import ndvit._torchvision  # noqa: F401  (torchmetrics imports torchvision)

        # isort: split
        from torchmetrics.classification import MulticlassStatScores

        super().__init__()
        self.counts = MulticlassStatScores(max(2, classes), average="none", validate_args=False)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count true positives and examples of each class."""
        self.counts.update(outputs.argmax(1), targets)

    def compute(self) -> dict[str, Tensor]:
        """Both accuracies."""
        counts = self.counts.compute().float()  # (classes, 5)
        self.counts.reset()
        right, there = counts[:, 0], counts[:, 4]
        return {"accuracy": right.sum() / there.sum(), "balanced_accuracy": (right / there)[there > 0].mean()}
