"""Data, model and recipe through Lightning's Trainer: checkpoints, metrics, interruption and exact resuming."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import csv
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ndvit.data.loading import Inputs
from ndvit.network import VisionTransformer
from ndvit.training.inference import pick_device
from ndvit.training.recipe import Recipe
from ndvit.training.supervised import SupervisedTask

METRIC_ROWS = 200  # rows of training metrics over a run: enough for a curve, few enough to read
CHECKPOINTS = 20  # and validations, over a run


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves beside the trained model.

    Attributes:
        steps: optimiser steps done.
        interrupted: whether Ctrl-C ended it early; a checkpoint of that step is there to resume from.
        seconds: wall time of this call, without what came before a resume.
        history: rows of metrics, each with its "step".
        device: where it ran.
    """

    steps: int
    interrupted: bool
    seconds: float
    history: list[dict[str, float]]
    device: str


def fit(
    model: VisionTransformer,
    train: Inputs,
    val: Inputs | None,
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a model in place and leave checkpoints and metrics.csv in a folder.

    With `resume`, the newest checkpoint of the folder is continued to the result of an unbroken run (bit for bit on a
    CPU with the same number of threads). Ctrl-C finishes the step, writes a checkpoint and returns.

    Raises:
        ValueError: if the checkpoint is damaged or of another run.
    """
    assert val is not None or not recipe.early_stop
    steps = recipe.total_steps(len(train))
    every = recipe.val_every or max(1, math.ceil(steps / CHECKPOINTS))
    task = SupervisedTask(model, recipe, steps, log_every=max(1, math.ceil(steps / METRIC_ROWS)))
    if recipe.compile:
        model.compile()
    model.grad_checkpointing = recipe.grad_checkpointing

    checkpoints = folder / "checkpoints"
    latest = latest_checkpoint(folder) if resume else None
    metrics = MetricsFile(folder / "metrics.csv", up_to=step_of(latest) if latest else 0)
    newest = Checkpoints(checkpoints, every, validates=val is not None)
    keep_best = ModelCheckpoint(checkpoints, "best", monitor="val_loss", enable_version_counter=False)
    same = SameRun(task, train)
    if latest:
        same.check(_read_checkpoint(latest))
    callbacks: list[Callback] = [same]
    if recipe.ema_decay:
        callbacks.append(MovingAverage(recipe.ema_decay))
    if recipe.early_stop:
        callbacks += [EarlyStopping("val_loss", patience=recipe.early_stop), keep_best]
    if progress:
        callbacks.append(ProgressBar(steps))
    callbacks.append(newest)  # after all others (Lightning runs checkpoints last, in this order), to hold what they did

    with _quiet():
        trainer = pl.Trainer(
            accelerator=pick_device(recipe.device),
            devices=1,
            precision=_precision(recipe),
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=recipe.accumulate,
            val_check_interval=every * recipe.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=1,  # else it warns of short runs; the task itself logs a mean every few steps
            logger=[metrics, *_trackers(recipe, folder)],
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        # one Lightning epoch is the whole run: a stream of batches that can start at any step
        done = step_of(latest) * recipe.accumulate if latest else 0
        stream = train.stream(recipe.batch_size, steps * recipe.accumulate, recipe.seed, done, recipe.workers)
        watch = None if val is None else val.loader(recipe.batch_size, recipe.workers)
        start = time.perf_counter()
        with newest.listening():
            try:
                trainer.fit(task, stream, watch, ckpt_path=latest, weights_only=True)
            except SystemExit as stop:  # what Lightning makes of a second Ctrl-C
                raise KeyboardInterrupt from stop
        seconds = time.perf_counter() - start
    if recipe.early_stop and keep_best.best_model_path and not newest.requested:
        _load_weights(model, Path(keep_best.best_model_path))
    elif latest and step_of(latest) == steps:  # nothing was left to do, and Lightning does not do its end either
        _load_weights(model, latest)
    device = str(trainer.strategy.root_device)
    return FitResult(trainer.global_step, newest.requested, seconds, metrics.rows, device)


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


class MetricsFile(Logger):
    """Metrics as rows in memory and in a CSV file that is replaced whole at each write, so it is never half-written.

    Lightning's CSVLogger deletes what an interrupted run had logged; a resumed run here keeps the rows up to the
    checkpoint it goes on from.
    """

    def __init__(self, path: Path, up_to: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, float]] = []
        if up_to and path.is_file():
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
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)


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
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            n = float(updates)
            return torch.lerp(current, mean, min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, avg_fn=average)


class SameRun(Callback):
    """Writes into checkpoints what they belong to, and refuses to resume one that belongs to something else."""

    def __init__(self, task: SupervisedTask, train: Inputs) -> None:
        said, preprocess = train.examples, train.preprocess.to_dict()
        labels = [] if said.labels is None else said.labels.tolist()
        self.facts: dict[str, Any] = {
            "recipe": task.recipe.to_dict(),
            "config": task.model.config.to_dict(),
            "examples": len(train),
            "labels": zlib.crc32(repr((list(said.names), labels)).encode()),
            "moments": [*preprocess["mean"], *preprocess["std"]],
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values, so that checkpoints load with weights_only=True."""
        return self.facts

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Compare, before anything is loaded, and name every difference."""
        state_dict, differing = checkpoint["callbacks"][self.state_key], []
        for part in ("recipe", "config"):
            for name, now in self.facts[part].items():
                if state_dict[part].get(name) != now:
                    differing.append(f"{name} was {state_dict[part].get(name)!r}, is {now!r}")
        if state_dict["examples"] != self.facts["examples"]:
            differing.append(f"training examples were {state_dict['examples']}, are {self.facts['examples']}")
        elif state_dict["labels"] != self.facts["labels"]:
            differing.append("training examples have other names or labels")
        then, now = state_dict["moments"], self.facts["moments"]  # not to the last bit, which differs between machines
        if len(then) == len(now) and not np.allclose(then, now, rtol=1e-3):
            differing.append("training examples have another mean or standard deviation")
        if differing:
            raise ValueError("cannot resume, the run has changed since its checkpoint: " + "; ".join(differing))


class Checkpoints(Checkpoint):
    """The newest checkpoint, `step=N.ckpt`: every few steps, and where Ctrl-C ends the fit; a second one kills it.

    It is written when all of a step is done, with the validation where one is due, so that a run that goes on from it
    has heard of that validation. (Lightning's ModelCheckpoint would write it before, and once more amid the next step.)
    """

    def __init__(self, folder: Path, every: int, validates: bool) -> None:
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
        if self.requested or trainer.global_step % self.every == 0:
            path = self.folder / f"step={trainer.global_step}.ckpt"
            temporary = path.with_suffix(".tmp")
            trainer.save_checkpoint(temporary, weights_only=False)
            os.replace(temporary, path)
            for old in set(self.folder.glob("step=*.ckpt")) - {path}:
                old.unlink()
        if self.requested:
            trainer.limit_val_batches = 0  # else Lightning would validate once more at the stop
            trainer.should_stop = True


def _load_weights(model: VisionTransformer, checkpoint: Path) -> None:
    """The weights that a checkpoint would give as a result: the average, where there is one."""
    state = _read_checkpoint(checkpoint)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or cut off: remove it, and --resume starts the run anew") from error
    return checkpoint


def _precision(recipe: Recipe) -> Any:
    if recipe.precision != "auto":
        return recipe.precision
    on_gpu = recipe.device in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _trackers(recipe: Recipe, folder: Path) -> list[Logger]:
    """The extra logger that the recipe asks for; its package is an optional dependency."""
    try:
        if recipe.tracker == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return [TensorBoardLogger(folder, name="", version="tensorboard")]
        if recipe.tracker == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            return [WandbLogger(name=folder.name, save_dir=folder, project="ndvit")]
    except ImportError as error:  # lightning raises its ModuleNotFoundError for a missing package
        raise ValueError(f"tracker {recipe.tracker} needs a package: pip install 'ndvit[track]' ({error})") from error
    return []


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and advice about settings that are chosen on purpose out of a user's terminal."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")  # small data has none to spare
            warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # ours starts where it should
            warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        log.setLevel(level)
