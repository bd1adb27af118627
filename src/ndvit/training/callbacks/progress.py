"""The progress of a training: a bar, or lines of text."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from ndvit.inference.batches import Log
from ndvit.inference.progress import ProgressLines


class ProgressBar(TQDMProgressBar):
    """Lightning's bar over all steps. In a log file it is printed about ten times."""

    def __init__(self, steps: int) -> None:
        super().__init__(refresh_rate=max(1, steps // (200 if sys.stderr.isatty() else 10)))

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Replace Lightning's title "Epoch 0", because one Lightning epoch is the whole run."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")


class PlainProgress(Callback):
    """Logs step, loss and the expected end of a long training, see `ProgressLines`.

    Args:
        log: receives the lines.
        steps: optimizer steps of the whole run.
        done: steps before a resume.
    """

    def __init__(self, log: Log, steps: int, done: int) -> None:
        self.receive, self.steps, self.done = log, steps, done  # Lightning replaces an attribute `log`
        self.lines = ProgressLines(log, "", steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self.lines = ProgressLines(self.receive, "step {done:,} of {total:,}", self.steps, self.done)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Log a line if one is due."""
        self.lines.update(trainer.global_step, lambda: f", loss {pl_module.recent_loss():.4g}")

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Log a line if one is due."""
        self.lines.update(trainer.global_step, lambda: ", validating")
