"""Answers of recordings that were cut into windows: the mean of their windows, or the track over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ndvit.data.examples import Examples, Place, Raw, Recording
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.recordings import RecordingEvaluation, Track
from ndvit.tasks.base import Prediction, Task

_TRACKS = 12  # recordings whose answers over time an evaluation keeps for the report, the worst first


@dataclass(frozen=True)
class WindowPrediction(Prediction):
    """The answer for one window.

    It has the attributes of `prediction`, too, such as `label` and `probabilities` of a class.

    Attributes:
        name: name of the recording.
        start: beginning of the window, in seconds where the sample rate is known, else in samples.
        end: its end, likewise.
        prediction: the answer.
    """

    name: str
    start: float
    end: float
    prediction: Prediction

    def __getattr__(self, name: str) -> Any:
        if name == "prediction":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.prediction, name)

    def text(self) -> str:
        """Start, end and answer in one line."""
        return f"{self.start:10.10g} to {self.end:<10.10g}  {self.prediction.text()}"

    def row(self) -> list[tuple[str, Any]]:
        """Name, start, end and the answer as pairs of a table."""
        return [("name", self.name), ("start", self.start), ("end", self.end), *self.prediction.row()[1:]]

    def to_dict(self) -> dict[str, Any]:
        """Name, start, end and the answer as plain values."""
        values = {"name": self.name, "start": self.start, "end": self.end}
        return values | {name: value for name, value in self.prediction.to_dict().items() if name != "name"}


def window_predictions(task: Task, answers: np.ndarray, examples: Examples) -> list[Prediction]:
    """One prediction for each window, in order.

    Raises:
        ValueError: for whole examples.
    """
    places = examples.places
    if places is None:
        raise ValueError(
            "per_window needs recordings that are cut into windows: set --window (window=), which a model that was "
            "trained with windows does by itself"
        )
    found = task.predictions(answers, [place.name for place in places])
    return [WindowPrediction(place.recording, *place.span, one) for place, one in zip(places, found)]


def mean_answers(answers: np.ndarray, examples: Examples) -> tuple[list[str], np.ndarray]:
    """Names and answers (n, outputs) of the recordings: means of the windows; of whole examples, their own."""
    if examples.places is None:
        return list(map(str, examples.names)), answers
    order = recording_of(examples.places)
    names = list(dict.fromkeys(place.recording for place in examples.places))
    sums = np.zeros((len(names), answers.shape[1]), dtype=np.float64)
    np.add.at(sums, order, answers)
    return names, (sums / np.bincount(order)[:, None]).astype(answers.dtype)


def recording_of(places: Sequence[Place]) -> np.ndarray:
    """(n,) number of the recording of each window, counted in the order in which they first occur."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(place.recording, len(numbers)) for place in places], dtype=np.int64)


class WholeRecordings:
    """The recordings of windows in the order of `mean_answers`, each joined from its windows when it is indexed."""

    def __init__(self, windows: Examples) -> None:
        assert windows.places is not None
        self._windows, self._places, self._numbers = windows, windows.places, recording_of(windows.places)

    def __len__(self) -> int:
        return int(self._numbers.max()) + 1

    def __getitem__(self, index: int) -> Raw:
        chosen = np.flatnonzero(self._numbers == index)
        raws = [self._windows[i] for i in chosen]
        parts = [raw.values if isinstance(raw, Recording) else np.asarray(raw) for raw in raws]
        length = max(self._places[i].stop for i in chosen)
        whole = np.full((*parts[0].shape[:-1], length), np.nan, dtype=np.float32)
        for i, part in zip(chosen, parts):
            whole[..., self._places[i].start : self._places[i].stop] = part
        return raws[0]._replace(values=whole) if isinstance(raws[0], Recording) else whole


def evaluate_answers(
    task: Task, answers: Sequence[np.ndarray], parts: Sequence[Examples], targets: np.ndarray | None = None
) -> Evaluation:
    """Compare answers with targets; those of windows in both ways, for each window and for each recording.

    Args:
        task: meaning of the targets.
        answers: (n, outputs) of the examples of each part.
        parts: the examples.
        targets: their encoded targets, one after the other; None are those of the examples.
    """
    if targets is None:
        targets = np.concatenate([part.targets for part in parts if part.targets is not None])
    names = [name for part in parts for name in part.names]
    each = task.evaluate(np.concatenate(answers), targets, names).grouped(_groups(parts))
    if any(part.places is None for part in parts):
        return each
    means, recordings, offset = list[np.ndarray](), list[str](), 0
    members: list[np.ndarray] = []  # of each recording, its windows, counted over all parts
    for part, rows in zip(parts, answers):
        assert part.places is not None
        found, mean = mean_answers(rows, part)
        numbers = recording_of(part.places)
        members += [offset + np.flatnonzero(numbers == i) for i in range(len(found))]
        means.append(mean)
        recordings += found
        offset += len(part)
    firsts = [windows[0] for windows in members]
    whole = task.of_rows(np.array(firsts)).evaluate(np.concatenate(means), targets[firsts], recordings)
    if each.groups is not None and len(set(each.groups[firsts])) < len(firsts):  # not just the recordings
        whole = whole.grouped(each.groups[firsts])
    places = [place for part in parts for place in part.places or ()]
    all_answers, outputs, worst = np.concatenate(answers), tuple(task.output_names()), list(whole.worst())
    tracks: list[Track] = []
    for i in dict.fromkeys([*worst, *range(len(recordings))]):
        if len(tracks) < _TRACKS and len(members[i]) > 1:
            own = [places[j] for j in members[i]]
            spans = np.array([place.span for place in own])
            tracks.append(Track(recordings[i], spans, all_answers[members[i]], outputs, own[0].rate is not None))
    return RecordingEvaluation(whole, each, tuple(tracks))


def _groups(parts: Sequence[Examples]) -> np.ndarray | None:
    """The groups of the examples of all parts, one after the other; None unless each part has groups."""
    found = [part.groups for part in parts if part.groups is not None]
    return np.concatenate(found) if len(found) == len(parts) else None
