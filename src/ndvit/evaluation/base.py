"""What an evaluation is: the answers of a model compared with the targets of the same examples, for any task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np


class Evaluation(ABC):
    """Answers of a model compared with the targets.

    A subclass needs `names`, `score` and usually `numbers`. `worst` and `caption` add examples to the report. A task
    whose report needs more than a table of numbers names its own `template` and returns `report_values` for it.

    Attributes:
        names: one name per example: its file or its number.
        template: file in ndvit/evaluation that extends `report.html.jinja`, the default page.
    """

    names: tuple[str, ...]
    template: ClassVar[str] = "report.html.jinja"

    def __len__(self) -> int:
        return len(self.names)

    @property
    @abstractmethod
    def score(self) -> float:
        """The main metric; higher is better."""

    def numbers(self) -> dict[str, float]:
        """Metrics by name."""
        return {"score": self.score}

    def to_dict(self) -> dict[str, Any]:
        """The results as plain values for JSON."""
        return {"examples": len(self), **self.numbers()}

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """The main result as part of the line that is printed after training.

        Args:
            train_targets: encoded targets of the training set, for a task whose line depends on them.
        """
        return f"score {self.score:.4f} on {len(self):,} examples"

    def table(self) -> str:
        """The results as lines of text, printed by `ndvit evaluate`."""
        rows = {"examples": f"{len(self):,}"} | {name: f"{value:.4f}" for name, value in self.numbers().items()}
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())

    def metadata(self) -> dict[str, Any]:
        """Results that are saved in the provenance of the model."""
        return {"test_score": self.score}

    def worst(self) -> Sequence[int]:
        """Indices of the examples for the report, the worst first."""
        return ()

    def caption(self, index: int) -> dict[str, str]:
        """Target, answer and what else the report prints beside an example, by name."""
        return {}

    def report_values(self) -> dict[str, Any]:
        """Values for `template`, beside `evaluation` and those of the default page."""
        return {}


def percent(share: float | None) -> str:
    """A share as a percentage. It is rounded to 0 % or 100 % only where it is exactly that; None is a dash."""
    if share is None:
        return "–"
    text = f"{100 * share:.1f}"
    if 0 < share < 1 and text in ("0.0", "100.0"):
        text = "<\N{NBSP}0.1" if share < 0.5 else ">\N{NBSP}99.9"
    return f"{text}\N{NBSP}%"


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """95 % confidence interval of a share by Wilson's score (1927), which stays inside 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
