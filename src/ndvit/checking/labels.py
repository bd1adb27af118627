"""Suspected label errors by the probabilities of models that were trained without the examples.

Confident learning ("Confident Learning: Estimating Uncertainty in Dataset Labels", Northcutt et al., 2021), by
cleanlab, decides how many labels are suspected; the probability of the label ranks them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.data.examples import Source
from ndvit.data.messages import listing, printable
from ndvit.data.sources.packages import needed
from ndvit.data.sources.split_files import named_rows
from ndvit.files import cell, csv_text, replace_file

SUSPECTS_FILE = "suspects.csv"
_WINDOW = re.compile(r"\[[^\[\]]*:[^\[\]]*\]$")  # the end of the name of a window, see `Place`
_SLACK = 1e-3  # of sums of probabilities that were written with six digits


class Suspect(NamedTuple):
    """An example whose label may be wrong.

    Attributes:
        place: its place among all examples.
        name: its name.
        split: its split.
        label: its class by the source.
        suggested: the most probable class.
        score: probability of `label`, from 0 to 1; the lower, the more suspicious.
        probability: probability of `suggested`.
        group: its group; "" without groups.
    """

    place: int
    name: str
    split: str
    label: str
    suggested: str
    score: float
    probability: float
    group: str


@dataclass(frozen=True, eq=False)
class Labelled:
    """Examples with their labels and out-of-sample probabilities.

    Attributes:
        classes: names of the classes.
        names: (n,) names of the examples.
        splits: (n,) their splits.
        labels: (n,) their classes, as integers.
        groups: (n,) their groups; "" without groups.
        probabilities: (n, classes); NaN where no model has answered that was trained without the example.
        by: which models answered, in words.
    """

    classes: tuple[str, ...]
    names: Sequence[str]
    splits: Sequence[str]
    labels: np.ndarray
    groups: Sequence[str]
    probabilities: np.ndarray
    by: str

    @property
    def answered(self) -> np.ndarray:
        """(n,) whether there are probabilities."""
        return np.isfinite(self.probabilities).all(axis=1)

    @property
    def scores(self) -> np.ndarray:
        """(n,) probability of the label of each example; NaN where none is known."""
        found: np.ndarray = self.probabilities[np.arange(len(self.labels)), self.labels]
        return found

    def example_of(self, label: int, besides: int, coarse: np.ndarray | None) -> int | None:
        """An example of a class that the models took for it, to compare another one with; None if there is none.

        Args:
            label: the class.
            besides: the example that is compared.
            coarse: (n, values) coarse pictures, of which the most similar one is chosen; None takes the example with
                the highest probability.
        """
        right = self.answered & (self.labels == label) & (self.probabilities.argmax(axis=1) == label)
        chosen = np.flatnonzero(right & (np.arange(len(right)) != besides))
        if not len(chosen):
            return None
        rank = self.scores[chosen] if coarse is None else coarse[chosen] @ coarse[besides]
        return int(chosen[rank.argmax()])


def check_cleanlab() -> None:
    """Raise a ValueError unless cleanlab is installed."""
    needed("cleanlab", "check", "suspected label errors")


def find_suspects(labelled: Labelled) -> list[Suspect]:
    """The suspected label errors, the most suspicious first.

    Raises:
        ValueError: without cleanlab, or probabilities.
    """
    check_cleanlab()
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rows = np.flatnonzero(labelled.answered)
    if not len(rows):
        raise ValueError("no example has an answer of a model that was trained without it")
    present = np.unique(labelled.labels[rows])  # cleanlab wants examples of each class
    if len(present) < 2:
        raise ValueError("the examples with answers have one class only, and their labels cannot be compared")
    probabilities = labelled.probabilities[rows][:, present].astype(np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True).clip(min=1e-12)
    labels = np.searchsorted(present, labelled.labels[rows])
    wrong = find_label_issues(labels, probabilities, n_jobs=1)
    scores = get_label_quality_scores(labels, probabilities)
    answers = labelled.probabilities[rows].argmax(axis=1)
    wrong &= answers != labelled.labels[rows]  # a class that no label has is never suggested by cleanlab itself
    found = []
    for place in np.argsort(scores, kind="stable")[wrong[np.argsort(scores, kind="stable")]].tolist():
        i, answer = int(rows[place]), int(answers[place])
        found.append(
            Suspect(
                place=i,
                name=str(labelled.names[i]),
                split=labelled.splits[i],
                label=labelled.classes[labelled.labels[i]],
                suggested=labelled.classes[answer],
                score=float(labelled.scores[i]),
                probability=float(labelled.probabilities[i, answer]),
                group=str(labelled.groups[i]),
            )
        )
    return found


def write_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Write suspects as a table that `ReadingOptions.label_file` reads: users change its column label."""
    grouped = any(one.group for one in suspects)
    rows: list[list[Any]] = [["name", "label", "suggested", "score", "probability", "split", *["group"] * grouped]]
    for one in suspects:
        row = [one.name, one.label, one.suggested, one.score, one.probability, one.split]
        rows.append([*row, *([one.group] if grouped else [])])
    replace_file(path, csv_text(rows))


def stored_probabilities(path: Path, names: Sequence[str], data: Source, labels: np.ndarray) -> np.ndarray:
    """The probabilities in a predictions.csv, (n, classes), with NaN for examples that it lacks.

    Those of the windows of a recording are averaged.

    Args:
        path: the file.
        names: names of the examples.
        data: their source, with the classes.
        labels: (n,) their classes.

    Raises:
        ValueError: for a file of other data, or of another task.
    """
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in places:
            raise ValueError(f"several examples have the name {name!r}, so that {path} does not tell them apart")
        places[name] = i
    written = {cell(name): i for name, i in places.items()}
    columns = {name: cell(name) for name in data.classes}
    sums, counts = np.zeros((len(names), len(data.classes))), np.zeros(len(names))
    unknown: list[str] = []
    differing: list[str] = []
    for number, row in named_rows(path, ("name", "true")):
        if absent := [name for name, column in columns.items() if column not in row]:
            raise ValueError(f"{path} has no column for the class {printable(listing(absent))} of the source")
        found = place_of(row["name"], written)
        if found is None:
            unknown.append(row["name"])
            continue
        if row["true"] not in (data.classes[labels[found]], columns[data.classes[labels[found]]]):
            differing.append(row["name"])
        try:
            values = np.array([float(row[column]) for column in columns.values()])
        except ValueError:
            raise ValueError(f"{path}, line {number}: the probabilities are no numbers") from None
        if not np.isfinite(values).all() or (values < 0).any() or abs(values.sum() - 1) > _SLACK:
            raise ValueError(f"{path}, line {number}: the columns of the classes are no probabilities")
        sums[found] += values
        counts[found] += 1
    if unknown:
        raise ValueError(
            f"{path} has {counted(len(unknown), 'example')} that the source lacks "
            f"({printable(listing(unknown))}): check the source that "
            "the run was trained on, with the same options of reading"
        )
    if differing and len(differing) > counts.sum() / 2:
        raise ValueError(f"{path} has other labels than the source ({printable(listing(differing))})")
    with np.errstate(invalid="ignore"):
        return np.where(counts[:, None] > 0, sums / counts[:, None], np.nan)


def place_of(name: str, written: Mapping[str, int]) -> int | None:
    """The example with a name, or the recording of the window with that name."""
    found = written.get(name)
    return written.get(_WINDOW.sub("", name)) if found is None else found
