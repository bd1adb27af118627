"""Evaluation of recordings that were cut into windows: per recording, by the mean of its windows, and per window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.bootstrap import Interval
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup

    from ndvit.evaluation.maps import FeatureMap, Method

_LONGEST_NAME = 44  # letters of a recording above its chart


class Track(NamedTuple):
    """The answers of the windows of one recording over time."""

    name: str
    spans: np.ndarray
    """(n, 2) start and end of each window."""
    answers: np.ndarray
    """(n, outputs)."""
    outputs: tuple[str, ...]
    in_seconds: bool
    """Whether `spans` are seconds; else samples."""


@dataclass(frozen=True, eq=False)
class RecordingEvaluation(Evaluation):
    """The evaluation of recordings beside that of their windows.

    Everything that it lacks itself, such as `accuracy` and `confusion`, is that of the recordings.

    Attributes:
        recordings: one answer for each recording, the mean of its windows.
        windows: one answer for each window.
        tracks: answers over time of some recordings, for the report.
    """

    recordings: Evaluation
    windows: Evaluation
    tracks: tuple[Track, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "recordings", self.recordings.counting("recording"))
        object.__setattr__(self, "windows", self.windows.counting("window"))

    def __getattr__(self, name: str) -> Any:
        if name in ("recordings", "windows"):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.recordings, name)

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the recordings."""
        return self.recordings.names

    @property
    def template(self) -> str:  # type: ignore[override]
        """The page of the recordings' evaluation."""
        return self.recordings.template

    @property
    def unit(self) -> str:  # type: ignore[override]
        """Recording."""
        return self.recordings.unit

    def caveats(self) -> list[str]:
        """As of the recordings."""
        return self.recordings.caveats()

    @property
    def groups(self) -> np.ndarray | None:  # type: ignore[override]
        """The groups of the recordings."""
        return self.recordings.groups

    @property
    def intervals_95(self) -> dict[str, Interval]:
        """The intervals of both, with the names of `numbers`."""
        per_window = {f"{name}_per_window": ends for name, ends in self.windows.intervals_95.items()}
        return self.recordings.intervals_95 | per_window

    def per_example(self) -> tuple[str, np.ndarray] | None:
        """As of the recordings."""
        return self.recordings.per_example()

    @property
    def score(self) -> float:
        """The main metric per recording."""
        return self.recordings.score

    def numbers(self) -> dict[str, float]:
        """Metrics per recording, and per window with the ending _per_window."""
        per_window = {f"{name}_per_window": value for name, value in self.windows.numbers().items()}
        return self.recordings.numbers() | per_window

    def to_dict(self) -> dict[str, Any]:
        """The results per recording, and under "per_window" those of the windows."""
        return self.recordings.to_dict() | {"per_window": self.windows.to_dict()}

    def headline(self, train_targets: np.ndarray | None = None) -> str:
        """Both results in one line."""
        whole, each = self.recordings.headline(train_targets), self.windows.headline(train_targets)
        return f"per recording: {whole}; per window: {each}"

    def table(self) -> str:
        """Both results as lines of text."""
        both = (len(self.recordings), "per recording ({n}, the mean of their windows)", self.recordings)
        each = (len(self.windows), "per window ({n})", self.windows)
        return "\n\n".join(f"{translated(title, n=f'{n:,}')}\n\n{one.table()}" for n, title, one in (both, each))

    def metadata(self) -> dict[str, Any]:
        """Both results, for the provenance of the model."""
        per_window = {f"{name}_per_window": value for name, value in self.windows.metadata().items()}
        return self.recordings.metadata() | per_window

    def worst(self) -> Sequence[int]:
        """The worst recordings."""
        return self.recordings.worst()

    def caption(self, index: int) -> dict[str, str]:
        """What the report prints beside a recording."""
        return self.recordings.caption(index)

    def references(self, index: int) -> np.ndarray:
        """As of the recordings."""
        return self.recordings.references(index)

    def draw_map(self, found: FeatureMap, method: Method) -> tuple[Markup, dict[str, str]] | None:
        """As of the recordings."""
        return self.recordings.draw_map(found, method)

    def report_values(self) -> dict[str, Any]:
        """Values for the template, the result per window, and pictures of answers over time with their legend."""
        charts, legend = self._charts()
        values = {"per_window": self.windows.headline(), "tracks": charts, "track_legend": legend}
        return self.recordings.report_values() | values

    def _charts(self) -> tuple[list[Markup], dict[str, str]]:
        """A chart of each track with the outputs that are the largest anywhere, and the colour of each output."""
        from ndvit.evaluation.figures import CURVES, INKS, MAX_CURVES, chart

        if not self.tracks:
            return [], {}
        highest = np.max([track.answers.max(axis=0) for track in self.tracks], axis=0)
        drawn = sorted(np.argsort(-highest, kind="stable")[:MAX_CURVES].tolist())
        outputs, charts = self.tracks[0].outputs, []
        for number, track in enumerate(self.tracks):
            centre = track.spans.mean(axis=1)
            series = [(CURVES[i], centre, track.answers[:, output]) for i, output in enumerate(drawn)]
            label = translated("time (s)" if track.in_seconds else "sample")
            name = track.name if len(track.name) <= _LONGEST_NAME else f"…{track.name[1 - _LONGEST_NAME :]}"
            description = translated("answers of the windows of {name} against {axis}", name=track.name, axis=label)
            charts.append(chart(series, (360, 170), label, name, f"track {number}", description, mark_steps=False))
        return charts, {outputs[output]: INKS[CURVES[i]] for i, output in enumerate(drawn)}
