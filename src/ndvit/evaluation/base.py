"""What an evaluation is: the answers of a model compared with the targets of the same examples, for any task."""

from __future__ import annotations

import copy
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from ndvit.config.bounds import counted
from ndvit.evaluation.bootstrap import Interval, intervals
from ndvit.evaluation.words import several, translated

if TYPE_CHECKING:
    from markupsafe import Markup

    from ndvit.evaluation.maps import FeatureMap, Method


FEW_GROUPS = 5  # tested, below which intervals over groups are rough
MAX_GROUPS = 50  # groups in tables before the rest are folded away or left out


class GroupRow(NamedTuple):
    """The result of one group of examples."""

    name: str
    examples: int
    value: float
    """Mean over the examples of the group, see `Evaluation.per_example`."""
    interval: Interval | None
    """95 % interval by Wilson of a share; None for other means."""


class Evaluation(ABC):
    """Answers of a model compared with the targets.

    A subclass needs `names`, `score` and usually `numbers`. `worst` and `caption` add examples to the report. A task
    whose report needs more than a table of numbers names its own `template` and returns `report_values` for it.

    Attributes:
        names: one name per example: its file or its number.
        groups: (n,) names of the groups of the examples, such as patients; None without groups. See `grouped`.
        unit: what is counted: "example", or "recording" or "window" of recordings that were cut into windows.
        template: file in ndvit/evaluation that extends `report.html.jinja`, the default page.
        labels_of: how `numbers` are called on pages.
    """

    names: tuple[str, ...]
    groups: np.ndarray | None = None
    unit: str = "example"
    template: ClassVar[str] = "report.html.jinja"
    labels_of: ClassVar[Mapping[str, str]] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    @abstractmethod
    def score(self) -> float:
        """The main metric; higher is better."""

    def numbers(self) -> dict[str, float]:
        """Metrics by name."""
        return {"score": self.score}

    def grouped(self, groups: Sequence[str] | np.ndarray | None) -> Self:
        """The same with groups of examples: intervals then resample whole groups, and each group has a result.

        Raises:
            ValueError: unless there is one name for each example.
        """
        if groups is None:
            return self
        if len(groups) != len(self):
            raise ValueError(
                f"groups must have one name for each of {counted(len(self), 'example')}, got {len(groups)}"
            )
        made = copy.copy(self)
        made.__dict__.pop("_bootstrap", None)
        object.__setattr__(made, "groups", np.asarray(groups, dtype=np.str_))
        return made

    def counting(self, unit: str) -> Self:
        """The same with another word for its examples, see `unit`."""
        made = copy.copy(self)
        object.__setattr__(made, "unit", unit)
        return made

    @property
    def units(self) -> str:
        """The plural of `unit`."""
        return f"{self.unit}s"

    def caveats(self) -> list[str]:
        """What the intervals do not cover, in the language of the page; nothing unless there are very few groups."""
        names = [] if self.groups is None or self.unit == "window" else [str(name) for name in np.unique(self.groups)]
        if len(names) == 1:
            only = (
                "All {units} tested are of one group, {name}: the intervals describe the result for this group only, "
                "not for other groups; a cross-validation with groups tests all of them."
            )
            return [translated(only, units=several(self.unit), name=names[0])]
        if 1 < len(names) < FEW_GROUPS:
            few = (
                "Only {n} groups are tested, so that the intervals are rough, and other groups may differ by more; a "
                "cross-validation with groups tests all of them."
            )
            return [translated(few, n=len(names))]
        return []

    def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of weighted examples, for `intervals_95`: from (n, resamples) to (resamples,) by name."""
        return {}

    @property
    def intervals_95(self) -> dict[str, Interval]:
        """95 % intervals of metrics by the bootstrap over examples, or over whole groups where there are groups."""
        return self._bootstrap

    @cached_property
    def _bootstrap(self) -> dict[str, Interval]:
        return intervals(self.resampled, len(self), len(getattr(self, "classes", ())) or 1, self.groups)

    def per_example(self) -> tuple[str, np.ndarray] | None:
        """A metric that is a mean over examples, by name: (n,) of booleans or numbers; None if there is none."""
        return None

    def by_group(self) -> list[GroupRow]:
        """The metric of `per_example` in each group, the worst first; none without groups."""
        found = self.per_example()
        if self.groups is None or found is None:
            return []
        values, rows = found[1], list[GroupRow]()
        for name in np.unique(self.groups):
            own = values[self.groups == name]
            interval = wilson_interval(int(own.sum()), len(own)) if values.dtype == bool else None
            rows.append(GroupRow(str(name), len(own), float(own.mean()), interval))
        return sorted(rows, key=lambda row: row.value if values.dtype == bool else -row.value)

    def to_dict(self) -> dict[str, Any]:
        """The results as plain values for JSON."""
        found: dict[str, Any] = {"examples": len(self), **self.numbers()}
        if self.intervals_95:
            of = "examples" if self.groups is None else "groups"
            found |= {"intervals_95": {name: list(ends) for name, ends in self.intervals_95.items()}, "resampled": of}
        if rows := self.by_group():
            found["by_group"] = [plain(row) for row in rows]
        return found | ({"caveats": caveats} if (caveats := self.caveats()) else {})

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """The main result as part of the line that is printed after training.

        Args:
            train_targets: encoded targets of the training set, for a task whose line depends on them.
        """
        return f"score {self.score:.4f} on {counted(len(self), 'example')}"

    def table(self) -> str:
        """The results as lines of text, printed by `ndvit evaluate`."""
        return "\n".join(self.lines({}))

    def lines(self, notes: Mapping[str, str]) -> list[str]:
        """The number of examples and `numbers` with their intervals, one line each; `notes` stand behind them."""
        rows = [(translated(self.units), f"{len(self):,}", "", notes.get("examples", ""))]
        for name, value in self.numbers().items():
            ends = self.intervals_95.get(name)
            text = "" if ends is None else translated("{low} to {high}", low=f"{ends[0]:.4f}", high=f"{ends[1]:.4f}")
            rows.append((self.label(name), f"{value:.4f}", text, notes.get(name, "")))
        if self.intervals_95:
            rows.insert(0, ("", "", translated("95 % interval"), ""))
        widths = [max(width_of(row[i]) for row in rows) for i in range(3)]
        return [
            f"{padded(name, widths[0])}  {padded(value, widths[1])}  {padded(ends, widths[2])}  {note}".rstrip()
            for name, value, ends, note in rows
        ]

    def label(self, name: str) -> str:
        """How a number is called on pages."""
        per_window = name.removesuffix("_per_window")
        return translated(self.labels_of.get(name, self.labels_of.get(per_window, name)))

    def group_lines(self) -> list[str]:
        """The results of the groups, one line each, and the caveats, each after an empty line; none without groups."""
        found, rows = self.per_example(), self.by_group()
        caveats = [line for caveat in self.caveats() for line in ("", caveat)]
        if not rows or found is None:
            return caveats
        header = [translated(word) for word in ("group", self.units, found[0], "95 % interval")]
        cells = [
            [row.name, f"{row.examples:,}", f"{row.value:.4f}", interval_text(row.interval)]
            for row in rows[:MAX_GROUPS]
        ]
        lines = ["", *aligned(header, cells)]
        if len(rows) > MAX_GROUPS:
            lines.append(translated("and {n} groups with better results", n=f"{len(rows) - MAX_GROUPS:,}"))
        return [*lines, *caveats]

    def metadata(self) -> dict[str, Any]:
        """Results that are saved in the provenance of the model."""
        return {"test_score": self.score}

    def worst(self) -> Sequence[int]:
        """Indices of the examples for the report, the worst first."""
        return ()

    def caption(self, index: int) -> dict[str, str]:
        """Target, answer and what else the report prints beside an example, by name."""
        return {}

    def references(self, index: int) -> np.ndarray:
        """Indices of correctly answered examples of the same target as an example, for comparison; none by default."""
        return np.zeros(0, dtype=np.int64)

    def draw_map(self, found: FeatureMap, method: Method) -> tuple[Markup, dict[str, str]] | None:
        """The embedding map and its legend; None if the targets have no colours.

        Args:
            found: features of some of the examples.
            method: how they are placed.
        """
        return None

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


def plain(row: Any) -> dict[str, Any]:
    """A named tuple as plain values for JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in row._asdict().items()}


def width_of(text: str) -> int:
    """Columns of a terminal that a text takes: letters of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def padded(text: str, width: int) -> str:
    """A text with spaces up to this width."""
    return text + " " * (width - width_of(text))


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: the first column to the left, the others to the right, at least five letters wide."""
    table = [header, *rows]
    widths = [max(5, *(width_of(row[i]) for row in table)) for i in range(len(header))]
    return [
        "  ".join([padded(row[0], widths[0]), *(" " * (w - width_of(c)) + c for c, w in zip(row[1:], widths[1:]))])
        for row in table
    ]


def interval_text(ends: Interval | None) -> str:
    """An interval of numbers; None is a dash."""
    return "–" if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def decimal(value: float | None) -> str:
    """A number of three digits behind the point; None is a dash."""
    return "–" if value is None else f"{value:.3f}"


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """95 % confidence interval of a share by Wilson's score (1927), which stays inside 0 to 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
