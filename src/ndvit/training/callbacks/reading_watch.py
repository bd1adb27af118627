"""A warning if reading examples, not computing, limits the speed of training."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import os
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from ndvit.data.loading import Batch, Inputs, TimedLoader


class ReadingWatch(Callback):
    """Measures the share of the training time that is spent waiting for batches.

    The first steps, in which worker processes start, validations and checkpoints are not counted. A GPU still computes
    while the next batch is awaited; so each measured step ends with a synchronisation, and because that costs time,
    only 20 of every 200 steps are measured.

    Args:
        loader: the training batches.
        train: the examples in them.
    """

    SKIPPED, LEAST, EVERY = 10, 20, 200  # steps
    SHARE = 1 / 3  # share of the time below which there is no note

    def __init__(self, loader: TimedLoader, train: Inputs) -> None:
        self.loader, self.train = loader, train
        self.steps = self.examples = self._batch = 0
        self.waiting = self.working = self._start = 0.0
        self._on_cpu = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note the device."""
        self._on_cpu = trainer.strategy.root_device.type == "cpu"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Start the clock of a step."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add the step if it is measured."""
        step, self._batch = self._batch, self._batch + 1
        if not self._on_cpu and (self._is_measured(step) or self._is_measured(step + 1)):
            torch.accelerator.synchronize()
        if self._is_measured(step):
            self.steps += 1
            self.examples += len(batch.x)
            self.waiting += self.loader.waited
            self.working += time.perf_counter() - self._start

    def _is_measured(self, step: int) -> bool:
        place = step if self._on_cpu else step % self.EVERY
        return place >= self.SKIPPED and (self._on_cpu or place < self.SKIPPED + self.LEAST)

    @property
    def note(self) -> str | None:
        """Advice, if reading took more than a third of the time; else None."""
        total = self.waiting + self.working
        if self.steps < self.LEAST or self.waiting <= self.SHARE * total:
            return None
        preprocess, workers = self.train.preprocess, self.loader.num_workers
        remedies = [f"more --workers (now {workers})"] if workers < (os.cpu_count() or 1) else []
        if not self.train.examples.in_memory:
            remedies.append(f"smaller files (the network takes {' x '.join(map(str, preprocess.size))})")
        if getattr(self.train.vary, "policy", "none") != "none":
            remedies.append("a lighter --policy")
        what = "pictures" if preprocess.kind == "image" else "examples"
        return (
            f"reading limited the speed: {100 * self.waiting / total:.0f} % of the training time waited for {what} "
            f"({self.examples / total:,.0f} {what}/s)" + (f": try {', or '.join(remedies)}" if remedies else "")
        )
