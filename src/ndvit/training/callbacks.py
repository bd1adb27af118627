"""What runs beside the training: metrics, progress, the moving average, checkpoints and what they belong to."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import csv
import io
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ndvit.config import ViTConfig
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Batch, Inputs, TimedLoader
from ndvit.files import replace_file

METRICS_FILE = "metrics.csv"


class MetricsFile(Logger):
    """Metrics as rows in memory and in a CSV file that is replaced whole at each write, so it is never half-written.

    Without a path they are in memory only.

    Lightning's CSVLogger deletes what an interrupted run had logged; a resumed run here keeps the rows up to the
    checkpoint it goes on from.
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
        """Lightning asks for it."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for it."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or the values to the row of the same step. Lightning counts steps from 0; rows from 1."""
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        if not values:
            return
        number = (step or 0) + 1
        if self.rows and self.rows[-1]["step"] == number:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": number} | values)

    def save(self) -> None:
        """Write the file: with each checkpoint and validation, as a run that goes on from there needs its rows."""
        if self.path is None or not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        replace_file(self.path, text.getvalue().encode())  # bytes: csv's line ends are its own

    def finalize(self, status: str) -> None:
        """The rows since the last checkpoint, also of a run that fails."""
        self.save()


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, under a name that is true here, and ten lines in all where nobody watches (a log file)."""

    def __init__(self, steps: int) -> None:
        super().__init__(refresh_rate=max(1, steps // (200 if sys.stderr.isatty() else 10)))

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Lightning would say `Epoch 0`: one of its epochs is the whole run."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")


class MovingAverage(WeightAveraging):
    """Exponential moving average whose decay starts low: min(decay, (1 + n) / (10 + n)) at the n-th update.

    A fixed decay of .998 still holds a third of the initial weights after 500 steps, which is the whole of a short run.
    BatchNorm's statistics are averaged as the weights are: those of the newest weights would belong to another network.
    """

    def __init__(self, decay: float) -> None:
        def average(means: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
            n = float(updates)
            if means[0].is_floating_point():  # they come by type
                torch._foreach_lerp_(means, current, 1 - min(decay, (1 + n) / (10 + n)))
            else:  # BatchNorm's count of batches
                torch._foreach_copy_(means, current)

        super().__init__(use_buffers=True, multi_avg_fn=torch.no_grad()(average))  # all tensors in one call


class SameRun(Callback):
    """Writes into checkpoints what they belong to, and refuses to resume one that belongs to something else."""

    def __init__(self, recipe: Recipe, config: ViTConfig, train: Inputs) -> None:
        said, preprocess = train.examples, train.preprocess.to_dict()
        labels = [] if said.labels is None else said.labels.tolist()
        self.facts: dict[str, Any] = {
            # where and how fast it runs may change, what it computes may not
            "recipe": {k: v for k, v in recipe.to_dict().items() if k not in ("device", "workers", "tracker")},
            "config": config.to_dict(),
            "examples": len(train),
            "labels": zlib.crc32(repr((list(said.names), labels)).encode()),
            "moments": [*preprocess["mean"], *preprocess["std"]],
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values, so that checkpoints load with weights_only=True."""
        return self.facts

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Compare, before anything is loaded, and name every difference."""
        before, differing = checkpoint["callbacks"][self.state_key], []
        for part in ("recipe", "config"):
            for name, now in self.facts[part].items():
                if before[part].get(name) != now:
                    differing.append(f"{name} was {before[part].get(name)!r}, is {now!r}")
        if before["examples"] != self.facts["examples"]:
            differing.append(f"training examples were {before['examples']}, are {self.facts['examples']}")
        elif before["labels"] != self.facts["labels"]:
            differing.append("training examples have other names or labels")
        then, now = before["moments"], self.facts["moments"]  # not to the last bit, which differs between machines
        if len(then) == len(now) and not np.allclose(then, now, rtol=1e-3):
            differing.append("training examples have another mean or standard deviation")
        if differing:
            raise ValueError("cannot resume, the run has changed since its checkpoint: " + "; ".join(differing))


class BestWeights(Callback):
    """The weights of the lowest validation loss, in memory and in checkpoints.

    It stands before the moving average, which lends its weights for the validation and takes them back at its end.
    """

    def __init__(self) -> None:
        self.loss = float("inf")
        self.weights: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Compare, and keep a copy of what is better."""
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            state = pl_module.model.state_dict()
            self.loss, self.weights = loss, {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.loss, self.weights = state_dict["loss"], state_dict["weights"]


class ReadingWatch(Callback):
    """Measures how much of the training goes into waiting for batches, and says so where that is too much.

    The first steps are not counted, in which worker processes start. Validations and checkpoints are not, either. A GPU
    still works while its next batch is waited for, so there each step that is measured ends when the GPU is done; and
    as that costs time, they are 20 in every 200.

    Args:
        loader: the training batches.
        train: the examples in them.
    """

    SKIPPED, LEAST, EVERY = 10, 20, 200  # steps
    SHARE = 1 / 3  # of the time; what is less is not worth a word

    def __init__(self, loader: TimedLoader, train: Inputs) -> None:
        self.loader, self.train = loader, train
        self.steps = self.examples = self._batch = 0
        self.waiting = self.working = self._start = 0.0
        self._on_cpu = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Find out where it runs."""
        self._on_cpu = trainer.strategy.root_device.type == "cpu"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """A batch has come."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """A batch is done, and the next one will be asked for."""
        step, self._batch = self._batch, self._batch + 1
        if not self._on_cpu and (self._counts(step) or self._counts(step + 1)):
            torch.accelerator.synchronize()
        if self._counts(step):
            self.steps += 1
            self.examples += len(batch.x)
            self.waiting += self.loader.waited
            self.working += time.perf_counter() - self._start

    def _counts(self, step: int) -> bool:
        """Whether the step is measured."""
        place = step if self._on_cpu else step % self.EVERY
        return place >= self.SKIPPED and (self._on_cpu or place < self.SKIPPED + self.LEAST)

    @property
    def note(self) -> str | None:
        """What the user should hear, if reading was the brake."""
        total = self.waiting + self.working
        if self.steps < self.LEAST or self.waiting <= self.SHARE * total:
            return None
        preprocess, workers = self.train.preprocess, self.loader.num_workers
        cures = [f"more --workers (now {workers})"] if workers < (os.cpu_count() or 1) else []
        if not self.train.examples.in_memory:
            cures.append(f"smaller files (the network sees {' x '.join(map(str, preprocess.size))})")
        if getattr(self.train.vary, "policy", "none") != "none":
            cures.append("a lighter --policy")
        what = "pictures" if preprocess.kind == "image" else "examples"
        return (
            f"reading was the brake: {100 * self.waiting / total:.0f} % of the training time waited for {what} "
            f"({self.examples / total:,.0f} {what}/s)" + (f": try {', or '.join(cures)}" if cures else "")
        )


class Checkpoints(Checkpoint):
    """The newest checkpoint, `step=N.ckpt`: every few steps, and where Ctrl-C ends the fit; a second one kills it.

    Without a folder none is written, and Ctrl-C ends the fit all the same.

    It is written when all of a step is done, with the validation where one is due, so that a run that goes on from it
    has heard of that validation. (Lightning's ModelCheckpoint would write it before, and once more amid the next step.)
    """

    def __init__(self, folder: Path | None, every: int, validates: bool) -> None:
        self.folder = folder
        self.every = every
        self.validates = validates
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGINT while this lasts; outside the main thread, where signals cannot be caught, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def request(*_: Any) -> None:
            self.requested = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """The end of a step, unless its gradients still accumulate or a validation follows."""
        validation_follows = self.validates and trainer.global_step % self.every == 0
        if not trainer.fit_loop._should_accumulate() and not validation_follows:
            self._end_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """The end of a step with a validation."""
        self._end_step(trainer)

    def _end_step(self, trainer: pl.Trainer) -> None:
        if trainer.should_stop:  # early: going on from here would miss it
            return
        if self.folder is not None and (self.requested or trainer.global_step % self.every == 0):
            path = self.folder / f"step={trainer.global_step}.ckpt"
            self.folder.mkdir(exist_ok=True)
            for logger in trainer.loggers:
                logger.save()
            replace_file(path, partial(trainer.save_checkpoint, weights_only=False))
            for old in set(self.folder.glob("step=*.ckpt")) - {path}:
                old.unlink()
        if self.requested:
            trainer.limit_val_batches = 0  # else Lightning would validate once more at the stop
            trainer.should_stop = True


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a run folder, or None."""
    found = [p for p in (folder / "checkpoints").glob("step=*.ckpt") if _STEP.search(p.name)]
    return max(found, key=step_of, default=None)


_STEP = re.compile(r"step=(\d+)")


def step_of(checkpoint: Path) -> int:
    """The optimiser steps done at a checkpoint, from its name."""
    match = _STEP.search(checkpoint.name)
    assert match is not None
    return int(match[1])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The tensors and plain values of a checkpoint on the CPU; a damaged one is a ValueError that says what to do."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or cut off: remove it, and --resume starts the run anew") from error
    return checkpoint
