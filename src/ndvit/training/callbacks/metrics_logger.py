"""Lightning's logger of the metrics of a run."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
from typing import Any

from lightning.pytorch.loggers import Logger

from ndvit.processes import is_first
from ndvit.training.metrics import MetricRows


class MetricsLogger(Logger):
    """Logger that adds to `MetricRows`.

    Lightning's CSVLogger deletes what an interrupted run has logged. Here a resumed run keeps the rows up to the
    checkpoint that it continues from.
    """

    def __init__(self, metrics: MetricRows) -> None:
        super().__init__()
        self.metrics = metrics

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
        """Add a row, or add the values to the row of the same step."""
        self.metrics.add(metrics, step or 0)

    def save(self) -> None:
        """Write the file. This happens with each checkpoint, because a resumed run needs the rows before it."""
        if is_first():
            self.metrics.write()

    def finalize(self, status: str) -> None:
        """Write the rows since the last checkpoint, also when a run fails."""
        self.save()
