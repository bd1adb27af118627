"""What all tasks without targets share: labels are used by probes only, which score the features while they learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from ndvit.config.bounds import counted
from ndvit.config.recipe import Recipe
from ndvit.tasks.base import Metrics, Task
from ndvit.tasks.classification import Classification

UNLABELLED = -1
_FOLDS = 5
_FEWEST = 10  # labelled examples with which probes mean something
_FEATURES = "a pretrained encoder has features and no answers: train it (ndvit train SOURCE --weights RUN)"


class SelfSupervised(Task):
    """A task whose loss needs no targets. Encoded targets are labels for probes, -1 where there is none.

    Args:
        labels: meaning of the labels of the examples that have one; None without probes.
    """

    learns_from_targets = False

    def __init__(self, labels: Classification | None = None) -> None:
        self.labels = labels

    @classmethod
    def from_targets(cls, targets: Mapping[str, Sequence[Any]], where: str, *, to_train: bool = True) -> Self:
        """The classes of the labels, if there are at least ten of at least two classes; else the task has no probes.

        Labels that are no classes, such as continuous numbers, are not used.
        """
        known = [value for value in targets.get("train", ()) if value is not None]
        if len(known) < _FEWEST:
            return cls()
        try:
            return cls(Classification.from_targets({"train": known}, where))
        except ValueError:  # continuous, or of a single class
            return cls()

    @property
    def num_outputs(self) -> int:
        """None: the network ends with its features."""
        return 0

    def encode(self, targets: Sequence[Any]) -> np.ndarray:
        """Labels -> integers (n,), -1 for a missing one."""
        codes = np.full(len(targets), UNLABELLED, dtype=np.int64)
        if self.labels is not None:
            known = [i for i, value in enumerate(targets) if value is not None]
            codes[known] = self.labels.encode([targets[i] for i in known])
        return codes

    def decode(self, targets: np.ndarray) -> list[Any]:
        """Integers -> labels, None for a missing one."""
        return [None if self.labels is None or i < 0 else self.labels.classes[i] for i in targets.tolist()]

    def summary(self, targets: Mapping[str, np.ndarray]) -> list[str]:
        """Which labels the probes use."""
        return [self.brief(targets)]

    def brief(self, targets: Mapping[str, np.ndarray]) -> str:
        """Which labels the probes use."""
        count = len(targets["train"])
        if self.labels is None:
            return f"{counted(count, 'example')}, no labels for probes: judge the pretraining by its loss"
        labelled = int((targets["train"] != UNLABELLED).sum())
        return (
            f"{counted(count, 'example')}; the labels of {labelled:,} "
            f"({counted(len(self.labels.classes), 'class', 'classes')}) are used by probes only, never by the training"
        )

    def to_dict(self) -> dict[str, Any]:
        """The classes of the labels."""
        return {"labels": None if self.labels is None else self.labels.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The task that `to_dict` described."""
        labels = values.get("labels")
        return cls(None if labels is None else Classification.from_dict(labels))

    def criterion(self, recipe: Recipe, targets: Tensor | None = None) -> NoReturn:
        """There is none: `objective` has the loss."""
        raise ValueError(f"{self.name} learns without targets, by its objective")

    def metrics(self) -> Metrics:
        """Probes on the features of labelled examples."""
        return Metrics() if self.labels is None else Probes(self.labels)

    def predictions(self, answers: np.ndarray, names: Sequence[str]) -> NoReturn:
        """There are none.

        Raises:
            ValueError: always.
        """
        raise ValueError(_FEATURES)

    def evaluate(self, answers: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> NoReturn:
        """There is no test.

        Raises:
            ValueError: always.
        """
        raise ValueError(_FEATURES)


class Probes(Metrics):
    """Scores of two simple classifiers on frozen features: nearest neighbours, and a solved linear head.

    Each of five stratified parts of the examples is classified from the other four, on features standardised by
    those. The network never sees the labels, but it has seen these examples.

    Args:
        labels: the classes.
    """

    prefix: ClassVar[str] = "probe"

    def __init__(self, labels: Classification) -> None:
        super().__init__()
        self.labels = labels
        self.rows: list[tuple[Tensor, Tensor]] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add features (B, width) with their labels (B,)."""
        self.rows.append((outputs.float().cpu(), targets.cpu()))

    def compute(self) -> dict[str, Tensor]:
        """The accuracy of both classifiers."""
        features, targets = (torch.cat(parts) for parts in zip(*self.rows, strict=True))
        self.rows.clear()
        if not features.isfinite().all():
            return {"linear_accuracy": torch.tensor(torch.nan), "knn_accuracy": torch.tensor(torch.nan)}
        place = torch.empty(len(targets), dtype=torch.int64)
        place[targets.argsort(stable=True)] = torch.arange(len(targets))
        right = torch.zeros(2)
        for fold in range(_FOLDS):  # sorted by class, every fifth example is a stratified part
            held = place % _FOLDS == fold
            x, mean, std = features, features[~held].mean(0), features[~held].std(0, correction=0)
            x = (x - mean) / torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.inf)
            known, truth = (x[~held], targets[~held]), targets[held]
            ridge = self.labels.solve_ridge(*known, Recipe(), targets[~held])
            linear = x[held] @ ridge.weight.T + ridge.bias.to(x)
            votes = self.labels.probe("knn", (known[0].numpy(), known[1].numpy()), x[held].numpy())
            right += torch.stack(
                [(linear.argmax(1) == truth).sum(), (torch.from_numpy(votes).argmax(1) == truth).sum()]
            )
        linear_accuracy, knn_accuracy = right / len(targets)
        return {"linear_accuracy": linear_accuracy, "knn_accuracy": knn_accuracy}
