"""The progress bar of a training."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar over all steps. In a log file it is printed about ten times."""

    def __init__(self, steps: int) -> None:
        super().__init__(refresh_rate=max(1, steps // (200 if sys.stderr.isatty() else 10)))

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Replace Lightning's title "Epoch 0", because one Lightning epoch is the whole run."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")
