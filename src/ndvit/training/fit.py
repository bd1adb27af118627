"""Data, model and recipe through Lightning's Trainer: checkpoints, metrics, interruption and exact resuming."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.inference.batches import pick_device
from ndvit.network import VisionTransformer
from ndvit.training.adapters import learning_part
from ndvit.training.callbacks import (
    METRICS_FILE,
    BestWeights,
    Checkpoints,
    MetricsFile,
    MovingAverage,
    ProgressBar,
    ReadingWatch,
    SameRun,
    latest_checkpoint,
    read_checkpoint,
    step_of,
)
from ndvit.training.distillation import Teacher
from ndvit.training.module import SupervisedTask, class_weights
from ndvit.training.probe import solve_head
from ndvit.training.ridge import solve_rocket

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
        note: what the user should hear of it, see `ReadingWatch`; None for nothing.
    """

    steps: int
    interrupted: bool
    seconds: float
    history: list[dict[str, float]]
    device: str
    note: str | None = None


def fit(
    model: VisionTransformer,
    train: Inputs,
    val: Inputs | None,
    recipe: Recipe,
    folder: Path | None,
    *,
    resume: bool = False,
    progress: bool = True,
    teacher: Teacher | None = None,
) -> FitResult:
    """Train a model in place, and leave checkpoints and metrics.csv in a folder; without a folder, write nothing.

    With `resume`, the newest checkpoint of the folder is continued to the result of an unbroken run (bit for bit on a
    CPU with the same number of threads). Ctrl-C finishes the step, writes a checkpoint and returns.

    Raises:
        ValueError: if the checkpoint is damaged or of another run.
    """
    if recipe.head == "solved":
        return _solve(model, train, val, recipe, folder, progress)
    with learning_part(model, recipe) as still:
        return _descend(model, train, val, recipe, folder, resume, progress, teacher, still)


def _solve(
    model: VisionTransformer, train: Inputs, val: Inputs | None, recipe: Recipe, folder: Path | None, progress: bool
) -> FitResult:
    """`fit` where only the head learns, and is solved: there are no steps, and nothing to resume."""
    start, device = time.perf_counter(), pick_device(recipe.device)
    assert train.labels is not None
    weight = class_weights(recipe, train.labels, model.config.num_classes)
    if model.rocket is not None:
        solve_rocket(model.rocket, train, recipe.seed, weight, recipe.workers)
    found = solve_head(
        model,
        train,
        val,
        class_weight=weight,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        device=recipe.device,
        progress=progress,
    )
    metrics = MetricsFile(folder and folder / METRICS_FILE)
    metrics.log_metrics(found, 0)
    metrics.save()
    return FitResult(0, False, time.perf_counter() - start, metrics.rows, device)


def _descend(
    model: VisionTransformer,
    train: Inputs,
    val: Inputs | None,
    recipe: Recipe,
    folder: Path | None,
    resume: bool,
    progress: bool,
    teacher: Teacher | None,
    still: Sequence[nn.Module],
) -> FitResult:
    """`fit`, of whatever has gradients; the modules that stand still do not learn."""
    start = time.perf_counter()
    assert val is not None or not recipe.early_stop
    steps = recipe.total_steps(len(train))
    every = min(steps, recipe.val_every or math.ceil(steps / CHECKPOINTS))
    log_every = max(1, math.ceil(steps / METRIC_ROWS))
    task = SupervisedTask(
        model,
        recipe,
        steps,
        log_every,
        labels=train.labels,
        teacher=teacher,
        varied=train.vary is not None,
        still=still,
    )
    if recipe.compile:
        model.compile()
    model.grad_checkpointing = recipe.grad_checkpointing
    task.train()  # loaded networks come in eval mode, which Lightning would keep

    latest = latest_checkpoint(folder) if resume and folder else None
    if latest:
        SameRun(recipe, model.config, train).check(read_checkpoint(latest))
    elif model.rocket is not None:
        solve_rocket(model.rocket, train, recipe.seed, task.class_weight, recipe.workers)
    done = step_of(latest) if latest else 0
    metrics = MetricsFile(folder and folder / METRICS_FILE, up_to=done)
    newest = Checkpoints(folder and folder / "checkpoints", every, validates=val is not None)
    callbacks: list[Callback] = [SameRun(recipe, model.config, train)]
    best = None
    if recipe.early_stop:
        best = BestWeights()
        callbacks += [EarlyStopping("val_loss", patience=recipe.early_stop), best]
    if recipe.ema_decay:
        callbacks.append(MovingAverage(recipe.ema_decay))
    if progress:
        callbacks.append(ProgressBar(steps))
    # one Lightning epoch is the whole run: a stream of batches that can start at any step
    first = done * recipe.accumulate
    stream = train.stream(
        recipe.batch_size, steps * recipe.accumulate, recipe.seed, first, recipe.workers, recipe.repeats
    )
    reading = ReadingWatch(stream, train)
    # checkpoints after all others (Lightning runs them last, in this order), to hold what they did
    callbacks += [reading, newest]

    with _quiet():
        trainer = pl.Trainer(
            accelerator=pick_device(recipe.device),
            devices=1,
            precision=_precision(recipe),
            max_steps=steps,
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
        watch = None if val is None else val.loader(recipe.batch_size, recipe.workers)
        with newest.listening():
            try:
                trainer.fit(task, stream, watch, ckpt_path=latest, weights_only=True)
            except SystemExit as stop:  # what Lightning makes of a second Ctrl-C
                raise KeyboardInterrupt from stop
        seconds = time.perf_counter() - start
    if best is not None and best.weights and not newest.requested:
        model.load_state_dict(best.weights)
    elif latest and done == steps:  # nothing was left to do, and Lightning does not do its end either
        model.load_state_dict(_weights(latest))
    device = str(trainer.strategy.root_device)
    return FitResult(trainer.global_step, newest.requested, seconds, metrics.rows, device, reading.note)


def check_same_run(model: VisionTransformer, train: Inputs, recipe: Recipe, folder: Path) -> None:
    """Raise a ValueError if the newest checkpoint of a folder, where there is one, is of another run than this."""
    latest = latest_checkpoint(folder)
    if latest:
        SameRun(recipe, model.config, train).check(read_checkpoint(latest))


def result_of(folder: Path, steps: int) -> FitResult:
    """What is left of a fit of this many steps that a folder has the metrics of."""
    return FitResult(steps, False, 0.0, MetricsFile(folder / METRICS_FILE, up_to=steps).rows, "cpu")


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint would give as a result: the average, where there is one."""
    state = read_checkpoint(checkpoint)["state_dict"]
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


def _precision(recipe: Recipe) -> Any:
    if recipe.precision != "auto":
        return recipe.precision
    on_gpu = recipe.device in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def check_tracker(recipe: Recipe) -> None:
    """Raise a ValueError where the recipe's tracker needs a package that is not there."""
    if recipe.tracker != "none" and importlib.util.find_spec(recipe.tracker) is None:
        raise ValueError(f"tracker {recipe.tracker} needs a package that is not installed: pip install 'ndvit[track]'")


def _trackers(recipe: Recipe, folder: Path | None) -> list[Logger]:
    """The extra logger that the recipe asks for; its package is an optional dependency."""
    if recipe.tracker == "none":
        return []
    if folder is None:
        raise ValueError(f"tracker {recipe.tracker} writes into a run folder, and there is none: use `train`, or none")
    if recipe.tracker == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    from lightning.pytorch.loggers import WandbLogger

    of_member = folder.parent.name == "members"
    name = f"{folder.parents[1].name}-{folder.name}" if of_member else folder.name
    return [WandbLogger(name=name, save_dir=folder, project="ndvit")]


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
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what is frozen
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        log.setLevel(level)
