"""Data, model and recipe through Lightning's Trainer: checkpoints, metrics, interruption and exact resuming."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from ndvit.data.loading import Inputs
from ndvit.network import VisionTransformer
from ndvit.training.callbacks import (
    Checkpoints,
    MetricsFile,
    MovingAverage,
    ProgressBar,
    SameRun,
    latest_checkpoint,
    read_checkpoint,
    step_of,
)
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
    every = min(steps, recipe.val_every or math.ceil(steps / CHECKPOINTS))
    task = SupervisedTask(model, recipe, steps, log_every=max(1, math.ceil(steps / METRIC_ROWS)))
    if recipe.compile:
        model.compile()
    model.grad_checkpointing = recipe.grad_checkpointing
    model.train()  # loaded networks come in eval mode, which Lightning would keep

    checkpoints = folder / "checkpoints"
    latest = latest_checkpoint(folder) if resume else None
    metrics = MetricsFile(folder / "metrics.csv", up_to=step_of(latest) if latest else 0)
    newest = Checkpoints(checkpoints, every, validates=val is not None)
    keep_best = ModelCheckpoint(checkpoints, "best", monitor="val_loss", enable_version_counter=False)
    same = SameRun(task, train)
    if latest:
        same.check(read_checkpoint(latest))
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


def _load_weights(model: VisionTransformer, checkpoint: Path) -> None:
    """The weights that a checkpoint would give as a result: the average, where there is one."""
    state = read_checkpoint(checkpoint)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})


def _precision(recipe: Recipe) -> Any:
    if recipe.precision != "auto":
        return recipe.precision
    on_gpu = recipe.device in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def check_tracker(recipe: Recipe) -> None:
    """Raise a ValueError where the recipe's tracker needs a package that is not there."""
    if recipe.tracker != "none" and importlib.util.find_spec(recipe.tracker) is None:
        raise ValueError(f"tracker {recipe.tracker} needs a package that is not installed: pip install 'ndvit[track]'")


def _trackers(recipe: Recipe, folder: Path) -> list[Logger]:
    """The extra logger that the recipe asks for; its package is an optional dependency."""
    if recipe.tracker == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    if recipe.tracker == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(name=folder.name, save_dir=folder, project="ndvit")]
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
