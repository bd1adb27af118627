"""`fit`: from a plan to a trained model, through Lightning's Trainer, with exact resuming."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn

from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.evaluation.calibration import Calibration
from ndvit.files import make_folder
from ndvit.inference.batches import Log, pick_device, predict_outputs
from ndvit.model import Model, load_model
from ndvit.network.committee import Committee, first_transformer, random_convolutions
from ndvit.network.fast import only_read_tokens
from ndvit.training.adapters import only_trainable
from ndvit.training.callbacks.averaging import MovingAverage
from ndvit.training.callbacks.best_weights import BestWeights
from ndvit.training.callbacks.checkpoints import (
    Checkpoints,
    latest_checkpoint,
    read_checkpoint,
    rename_legacy,
    step_of,
)
from ndvit.training.callbacks.metrics_file import METRICS_FILE, MetricsFile
from ndvit.training.callbacks.progress import PlainProgress, ProgressBar
from ndvit.training.callbacks.reading_watch import ReadingWatch
from ndvit.training.callbacks.same_run import SameRun
from ndvit.training.closed_form import check_solvers, solve_head, solve_random_convolutions
from ndvit.training.distillation import Teacher, make_teacher
from ndvit.training.isolation import isolated
from ndvit.training.module import Augment, TrainingModule
from ndvit.training.optim import pick_precision
from ndvit.training.plan import Plan
from ndvit.training.trackers import make_trackers
from ndvit.weights.file import MODEL_FILE, model_metadata

METRIC_ROWS = 200  # rows of training metrics over a run


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
    """

    steps: int
    interrupted: bool
    seconds: float
    history: list[dict[str, float]]
    device: str
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of `fit`.

    Attributes:
        model: the trained model, on the CPU; an ensemble for more than one member. If the training was interrupted, it
            has the members that were started.
        fits: results of the members.
        calibration: the temperature that was fitted on validation data.
    """

    model: Model
    fits: list[FitResult]
    calibration: Calibration

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return any(result.interrupted for result in self.fits)

    @property
    def fit(self) -> FitResult:
        """All members as one: the most steps, the sum of seconds, and the mean of each row of metrics."""
        rows: dict[int, list[dict[str, float]]] = {}
        for result in self.fits:
            for row in result.history:
                rows.setdefault(int(row["step"]), []).append(row)
        return FitResult(
            steps=max(result.steps for result in self.fits),
            interrupted=self.interrupted,
            seconds=sum(result.seconds for result in self.fits),
            history=[_mean(rows[step]) for step in sorted(rows)],
            device=self.fits[-1].device,
            note=next((result.note for result in reversed(self.fits) if result.note), None),
        )


@isolated()
def fit(
    plan: Plan,
    folder: Path | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    log: Log = print,
    begin: Callable[[], None] | None = None,
) -> Trained:
    """Train what a plan describes, one member after the other.

    In the folder of an ensemble each member has a run folder of its own, `members/0` and so on. A member whose model is
    there is finished and not trained again. Ctrl-C finishes the step, writes a checkpoint and returns.

    Args:
        plan: what to train.
        folder: where checkpoints and metrics.csv are written; None writes nothing.
        resume: continue from the newest checkpoint in the folder to the result of an unbroken run (bit for bit on a CPU
            with the same number of threads).
        progress: show progress bars.
        log: receives each line about the training.
        begin: called when everything that can be refused has been checked, before the first file is written.

    Raises:
        ValueError: if a teacher cannot teach, the task has no solver for a part that is solved, or a checkpoint is
            damaged or belongs to another run.
    """
    check_solvers(plan.task, plan.recipe, plan.first.network)
    train, val = plan.inputs()
    teacher = None
    if plan.teacher is not None:
        teacher = make_teacher(plan.teacher, plan.first, train, plan.recipe)
    if begin is not None:
        begin()
    if folder is not None and plan.weights is not None and not resume:
        plan.weights.write(folder)
    members: list[Model] = []
    fits: list[FitResult] = []
    for i in range(plan.members):
        if plan.members > 1:
            log(f"member {i + 1} of {plan.members}")
        home = folder if folder is None or plan.members == 1 else folder / "members" / str(i)
        member, result = _fit_member(plan, i, (train, val), teacher, home, resume, progress, log)
        members.append(member.to("cpu"))
        fits.append(result)
        if result.interrupted:
            break
    model = members[0]
    if plan.members > 1:
        model = model.with_network(Committee([one.network for one in members], combine=plan.task.combine))
        model.provenance = plan.provenance | {"members": len(members), "steps": fits[0].steps}
    trained = Trained(model, fits, Calibration())
    if note := trained.fit.note:  # once, not for each member
        log(note)
    if trained.interrupted:
        return trained
    calibration = _calibrate(model, train, val, plan.recipe, progress, log)
    if calibration.examples:
        log(str(calibration))
    return replace(trained, calibration=calibration)


def _fit_member(
    plan: Plan,
    number: int,
    inputs: tuple[Inputs, Inputs | None],
    teacher: Teacher | None,
    home: Path | None,
    resume: bool,
    progress: bool,
    log: Log,
) -> tuple[Model, FitResult]:
    """Train one member, or load it from its folder if it is finished."""
    recipe = replace(plan.recipe, seed=plan.recipe.seed + number)
    alone = plan.members == 1  # the model of a run without members is written last, by the caller
    if resume and not alone and home is not None and (home / MODEL_FILE).is_file():
        model = load_model(home / MODEL_FILE)
        if latest := latest_checkpoint(home):
            _same_run(model.network, recipe, inputs[0]).check(read_checkpoint(latest))
        steps = model.provenance["steps"]
        rows = MetricsFile(home / METRICS_FILE, up_to=steps).rows
        return model, FitResult(steps, False, 0.0, rows, "cpu")
    model = plan.build(recipe.seed)  # also the first, so that the plan is unchanged and can be used again
    if home is not None:
        make_folder(home)
    if recipe.head == "solved":
        result = _solve(model, inputs, recipe, home, progress, log)
    else:
        with only_trainable(first_transformer(model.network), recipe) as frozen:
            augment = plan.augmentation.per_batch
            parts = (augment, teacher, frozen, plan.provenance)
            result = _descend(model, inputs, recipe, home, resume, progress, log, *parts)
    model.network.eval()
    model.untrained = ()
    if model.load_report is not None:  # the training has settled what was assumed of the weights
        model.load_report = replace(model.load_report, assumed=(), no_task="")
    model.provenance = {**plan.provenance, **({} if alone else {"member": number}), "steps": result.steps}
    if home is not None and not alone and not result.interrupted:
        model.save(home / MODEL_FILE)
    return model, result


def _solve(
    model: Model, inputs: tuple[Inputs, Inputs | None], recipe: Recipe, folder: Path | None, progress: bool, log: Log
) -> FitResult:
    """Solve the head on frozen features: there are no steps and nothing to resume."""
    start, device, task = time.perf_counter(), pick_device(recipe.device), model.task
    assert task is not None
    convolutions = random_convolutions(model.network)
    if convolutions is not None:
        solve_random_convolutions(convolutions, inputs[0], task, recipe, None if progress else log)
    row = solve_head(first_transformer(model.network), task, recipe, *inputs, progress, log)
    metrics = MetricsFile(folder and folder / METRICS_FILE)
    metrics.log_metrics(row, 0)
    metrics.save()
    return FitResult(0, False, time.perf_counter() - start, metrics.rows, device)


def _descend(
    model: Model,
    inputs: tuple[Inputs, Inputs | None],
    recipe: Recipe,
    folder: Path | None,
    resume: bool,
    progress: bool,
    log: Log,
    augment: Augment,
    teacher: Teacher | None,
    frozen: Sequence[nn.Module],
    facts: dict[str, Any],
) -> FitResult:
    """Train by gradient descent, in place. Checkpoints hold `facts`, the provenance."""
    start = time.perf_counter()
    # before the training mode is set, because a new model puts its network in eval mode
    metadata = model_metadata(replace(model, untrained=(), provenance=facts))
    network, task, (train, val) = model.network, model.task, inputs
    assert task is not None
    assert val is not None or not recipe.early_stop
    steps = recipe.total_steps(len(train))
    every, validate = recipe.checkpoint_interval(steps), 0
    if val is not None:
        validate = recipe.validation_interval(steps, len(val))
    transformer, convolutions = first_transformer(network), random_convolutions(network)
    module = TrainingModule(
        network,
        task,
        recipe,
        steps,
        log_every=max(1, math.ceil(steps / METRIC_ROWS)),
        targets=train.targets,
        augment=augment,
        teacher=teacher,
        frozen=frozen,
        pretrained=model.load_report is not None,
    )
    if recipe.compile:
        transformer.compile()
    transformer.grad_checkpointing = recipe.grad_checkpointing
    module.train()  # networks come in eval mode, which Lightning would keep

    same_run = _same_run(network, recipe, train)
    latest = latest_checkpoint(folder) if resume and folder else None
    if latest:
        same_run.check(read_checkpoint(latest))
    elif convolutions is not None:
        solve_random_convolutions(convolutions, train, task, recipe, None if progress else log)
    done = step_of(latest) if latest else 0
    metrics = MetricsFile(folder and folder / METRICS_FILE, up_to=done)
    newest = Checkpoints(folder and folder / "checkpoints", every, validates=validate, metadata=metadata)
    callbacks: list[Callback] = [same_run]
    best = None
    if recipe.early_stop:
        best = BestWeights()
        callbacks += [EarlyStopping("val_loss", patience=recipe.early_stop), best]
    if recipe.ema_decay:
        callbacks.append(MovingAverage(recipe.ema_decay))
    callbacks.append(ProgressBar(steps) if progress else PlainProgress(log, steps, done))
    # One Lightning epoch is the whole run: a stream of batches that can start at any step.
    stream = train.stream(
        recipe.batch_size,
        steps * recipe.accumulate,
        recipe.seed,
        done * recipe.accumulate,
        recipe.workers,
        recipe.repeats,
    )
    reading = ReadingWatch(stream, train)
    callbacks += [reading, newest]  # checkpoints last, so that they contain what the others did

    with _quiet_lightning(), only_read_tokens(network):
        trainer = pl.Trainer(
            accelerator=pick_device(recipe.device),
            devices=1,
            precision=pick_precision(recipe),  # type: ignore[arg-type]
            max_steps=steps,
            accumulate_grad_batches=recipe.accumulate,
            val_check_interval=(validate or every) * recipe.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=1,  # Lightning warns of short runs otherwise; the module logs means itself
            logger=[metrics, *make_trackers(recipe, folder)],
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        watch = None if val is None else val.loader(recipe.batch_size, recipe.workers)
        with newest.listening():
            try:
                trainer.fit(module, stream, watch, ckpt_path=latest, weights_only=True)
            except SystemExit as stop:  # Lightning's reaction to a second Ctrl-C
                raise KeyboardInterrupt from stop
        seconds = time.perf_counter() - start
    if best is not None and best.weights and not newest.requested:
        network.load_state_dict(best.weights)
    elif latest and done == steps:  # no step was left, so Lightning did not load the averaged weights at the end
        network.load_state_dict(_final_weights(latest))
    device = str(trainer.strategy.root_device)
    return FitResult(trainer.global_step, newest.requested, seconds, metrics.rows, device, reading.note)


def _calibrate(
    model: Model, train: Inputs, val: Inputs | None, recipe: Recipe, progress: bool, log: Log
) -> Calibration:
    """Fit the temperature of a model to validation data, if the task has one."""
    if val is None or val.targets is None:
        return Calibration()
    assert model.task is not None
    outputs = predict_outputs(model.network, val, recipe.batch_size, recipe.device, progress, log)
    assert train.targets is not None
    weights = model.task.example_weights(recipe, val.targets, train.targets)
    calibration = model.task.calibrate(outputs, val.targets, weights) or Calibration()
    model.temperature = calibration.temperature
    return calibration


def _same_run(network: nn.Module, recipe: Recipe, train: Inputs) -> SameRun:
    convolutions = random_convolutions(network)
    features = 0 if convolutions is None else convolutions.num_features
    return SameRun(recipe, first_transformer(network).config, features, train)


def _final_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights that a run ends with if this checkpoint is of its last step: averaged, if it averages."""
    content = read_checkpoint(checkpoint)
    rename_legacy(content)
    return {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of several rows of the same step, for the metrics that all of them have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: rows[0][name] if name == "step" else sum(row[name] for row in rows) / len(rows) for name in names}


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's advice about settings that are chosen on purpose."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "does not have many workers",
                "have no `val_dataloader`",  # small data has no validation set
                "dataloader is not resumable",  # the stream starts at the right step by itself
                "in eval mode at the start of training",  # frozen modules
                "isinstance\\(treespec, LeafSpec\\)",
            ):
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        logger.setLevel(level)
