"""The result of a pretraining: its loss, the scores of the probes, and examples as the objective changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ndvit.evaluation.base import Evaluation, percent
from ndvit.evaluation.cards import draw_change

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, eq=False)
class PretrainingEvaluation(Evaluation):
    """Loss, probes and drawn examples of a pretraining. There is no test, because there are no answers.

    Attributes:
        names: names of the training examples.
        history: rows of metrics, see `learning_curves`.
        original: (n, channels, *grid) some examples as the network read them, in the units of the data.
        made: (n, channels, *grid) the same, as the objective or the network made them.
        marked: (n, *grid) where `made` was predicted; None without masks.
        about: a sentence on what is drawn.
    """

    names: tuple[str, ...]
    history: list[dict[str, float]]
    original: np.ndarray
    made: np.ndarray
    marked: np.ndarray | None
    about: str
    template: ClassVar[str] = "pretraining.html.jinja"

    @property
    def score(self) -> float:
        """The accuracy of the last solved linear probe; without probes the negative loss."""
        numbers = self.numbers()
        return numbers.get("linear_accuracy", -numbers.get("loss", float("nan")))

    def numbers(self) -> dict[str, float]:
        """The last loss and the last scores of the probes."""
        return dict(self._numbers)

    @cached_property
    def _numbers(self) -> dict[str, float]:
        last: dict[str, float] = {}
        for row in self.history:
            found = [name for name in row if name == "train_loss" or name.startswith("probe_")]
            last |= {name.partition("_")[2]: row[name] for name in found}
        return last

    def first(self, name: str) -> float | None:
        """The first score of a probe; None without probes."""
        return next((row[f"probe_{name}"] for row in self.history if f"probe_{name}" in row), None)

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """The loss and the probes."""
        numbers = self.numbers()
        parts = [f"loss {numbers['loss']:.4g}"] if "loss" in numbers else []
        parts += [
            f"{name} probe {percent(numbers[key])}"
            for name, key in (("linear", "linear_accuracy"), ("nearest neighbours", "knn_accuracy"))
            if key in numbers
        ]
        return ", ".join(parts)

    def metadata(self) -> dict[str, Any]:
        """The last loss and the last scores of the probes."""
        return {f"pretraining_{name}": value for name, value in self.numbers().items() if np.isfinite(value)}

    def report_values(self) -> dict[str, Any]:
        """The drawn examples."""
        return {"changes": self._changes()}

    def _changes(self) -> Sequence[Markup | str]:
        marked = [None] * len(self.original) if self.marked is None else list(self.marked)
        triples = zip(self.original, self.made, marked, strict=True)
        return [draw_change(*triple, figure=f"change {i}") for i, triple in enumerate(triples)]
