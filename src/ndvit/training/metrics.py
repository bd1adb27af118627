"""Metrics as rows in memory and in metrics.csv, and what the training of one network leaves beside its weights."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ndvit.files import replace_file
from ndvit.tasks.base import Objective

METRICS_FILE = "metrics.csv"


class MetricRows:
    """Rows of metrics, in memory and in a CSV file that is replaced as a whole at each write.

    Args:
        path: the CSV file; None keeps the rows in memory only.
        up_to: the optimizer step up to which existing rows are kept, because a resumed run continues from there.
    """

    def __init__(self, path: Path | None, up_to: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        if up_to and path is not None and path.is_file():
            with path.open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            self.rows = [row | {"step": int(row["step"])} for row in rows if row["step"] <= up_to]

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a row, or add the values to the row of the same step. Steps are counted from 0, rows from 1."""
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        if not values:
            return
        if self.rows and self.rows[-1]["step"] == step + 1:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": step + 1} | values)

    def write(self) -> None:
        """Write the file, if there are rows."""
        if self.path is None or not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        replace_file(self.path, text.getvalue().encode())  # bytes, because the csv module sets its own line ends


@dataclass(frozen=True)
class FitResult:
    """What the training of one network leaves beside its weights.

    Attributes:
        steps: optimizer steps done.
        interrupted: whether Ctrl-C ended it early; a checkpoint of that step exists to resume from.
        seconds: wall time of this call, without what came before a resume.
        history: rows of metrics, each with its "step".
        device: where it ran.
        note: advice on speed, see `ReadingWatch`; None without.
        objective: what was trained beside the network of a task without targets; None for all other tasks.
    """

    steps: int
    interrupted: bool
    seconds: float
    history: list[dict[str, float]]
    device: str
    note: str | None = None
    objective: Objective | None = None
