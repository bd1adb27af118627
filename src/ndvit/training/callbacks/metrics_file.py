"""Metrics as rows in memory and in metrics.csv."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from ndvit.files import replace_file

METRICS_FILE = "metrics.csv"


class MetricsFile(Logger):
    """Logger that keeps rows of metrics, and replaces a CSV file as a whole at each write.

    Lightning's CSVLogger deletes what an interrupted run has logged. Here a resumed run keeps the rows up to the
    checkpoint that it continues from.

    Args:
        path: the CSV file; None keeps the rows in memory only.
        up_to: the optimizer step up to which existing rows are kept.
    """

    def __init__(self, path: Path | None, up_to: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, float]] = []
        if up_to and path is not None and path.is_file():
            with path.open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            self.rows = [row | {"step": int(row["step"])} for row in rows if row["step"] <= up_to]

    @property
    def name(self) -> str:
        """Name that Lightning requires."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version that Lightning requires."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the options."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or add the values to the row of the same step. Lightning counts steps from 0, rows from 1."""
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        if not values:
            return
        number = (step or 0) + 1
        if self.rows and self.rows[-1]["step"] == number:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": number} | values)

    def save(self) -> None:
        """Write the file. This happens with each checkpoint, because a resumed run needs the rows before it."""
        if self.path is None or not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        replace_file(self.path, text.getvalue().encode())  # bytes, because the csv module sets its own line ends

    def finalize(self, status: str) -> None:
        """Write the rows since the last checkpoint, also when a run fails."""
        self.save()
