"""Training by gradient descent: one member of a plan, through Lightning's Trainer, with exact resuming."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ndvit import processes
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Batch, Dealt, Inputs
from ndvit.inference.batches import Log, pick_device
from ndvit.model import Model
from ndvit.network.committee import first_transformer, output_committees
from ndvit.network.fast import only_read_tokens
from ndvit.training.callbacks.averaging import MovingAverage
from ndvit.training.callbacks.best_weights import BestWeights
from ndvit.training.callbacks.checkpoints import (
    Checkpoints,
    latest_checkpoint,
    read_checkpoint,
    rename_legacy,
    step_of,
)
from ndvit.training.callbacks.metrics_logger import MetricsLogger
from ndvit.training.callbacks.progress import PlainProgress, ProgressBar
from ndvit.training.callbacks.reading_watch import ReadingWatch
from ndvit.training.callbacks.same_run import SameRun
from ndvit.training.closed_form import solve_beside
from ndvit.training.devices import deal, share_solved
from ndvit.training.distillation import Teacher
from ndvit.training.metrics import METRICS_FILE, FitResult, MetricRows
from ndvit.training.module import TrainingModule
from ndvit.training.optim import pick_precision
from ndvit.training.plan import Plan
from ndvit.training.strategies import ShardedModule, check_sharding, distributed_settings, whole_state
from ndvit.training.synchronised import synchronised
from ndvit.training.trackers import make_trackers
from ndvit.weights.file import model_metadata

METRIC_ROWS = 200  # rows of training metrics over a run


def descend(
    plan: Plan,
    model: Model,
    inputs: tuple[Inputs, Inputs | None],
    recipe: Recipe,
    folder: Path | None,
    resume: bool,
    progress: bool,
    log: Log,
    teacher: Teacher | None,
    frozen: Sequence[nn.Module],
) -> FitResult:
    """Train a member of a plan by gradient descent, in place; its recipe has the seed of the member."""
    check_sharding(recipe)
    start = time.perf_counter()
    # before the training mode is set, because a new model puts its network in eval mode
    objective = plan.objective()
    stored = replace(model, untrained=(), provenance=plan.provenance, task=model.task if objective is None else None)
    metadata = model_metadata(stored)
    network, task, (train, val) = model.network, model.task, inputs
    assert task is not None
    assert val is not None or not recipe.early_stop
    steps = recipe.total_steps(len(train))
    every, validate = recipe.checkpoint_interval(steps), 0
    if val is not None:
        validate = recipe.validation_interval(steps, len(val))
    unit = 1 if task.learns_from_targets else recipe.repeats  # views of one example stay together
    dealing, parts = deal(recipe, processes.size(), unit), processes.size()
    own = replace(recipe, batch_size=dealing.batch_size, accumulate=dealing.accumulate)
    watch, val_batches = (None, []) if val is None else _validation(val, recipe)
    transformer = first_transformer(network)
    sharded = recipe.strategy == "fsdp"
    module = (ShardedModule if sharded else TrainingModule)(
        network,
        task,
        own,
        steps,
        log_every=max(1, math.ceil(plan.steps / METRIC_ROWS)),  # final steps are as dense in a curve as the others
        targets=train.targets,
        augment=plan.augmentation.per_batch,
        teacher=teacher,
        frozen=frozen,
        pretrained=model.load_report is not None,
        objective=objective,
        val_batches=val_batches,
    )
    if recipe.compile:
        transformer.compile()
    transformer.grad_checkpointing = recipe.grad_checkpointing
    module.train()  # networks come in eval mode, which Lightning would keep

    same_run = SameRun(recipe, network, train, None if objective is None else plan.pretraining.to_dict())
    latest = processes.broadcast(latest_checkpoint(folder) if resume and folder else None)
    if latest:
        same_run.check(read_checkpoint(latest))
    if val is not None:  # for the loss of the whole; also to resume, as a checkpoint has no weights of a committee
        if processes.is_first():
            solve_beside(network, train, task, recipe, False, plan.encoder_weight, log, progress)
        share_solved(network)
    done = step_of(latest) if latest else 0
    metrics = MetricRows(folder and folder / METRICS_FILE, up_to=done)
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
        own.batch_size * parts,
        steps * own.accumulate,
        recipe.seed,
        done * own.accumulate,
        recipe.workers,
        recipe.repeats,
        Dealt(parts, processes.rank(), recipe.batch_size),
    )
    reading = ReadingWatch(stream, train)
    callbacks += [reading, newest]  # checkpoints last, so that they contain what the others did

    # An objective may read tokens that no head reads.
    read = only_read_tokens(network) if objective is None else nullcontext()
    with _quiet_lightning(), read, synchronised(network):
        trainer = pl.Trainer(
            accelerator=pick_device(recipe.device),
            **distributed_settings(recipe.strategy),
            precision=pick_precision(recipe),  # type: ignore[arg-type]
            max_steps=steps,
            accumulate_grad_batches=own.accumulate,
            val_check_interval=(validate or every) * own.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=1,  # Lightning warns of short runs otherwise; the module logs means itself
            logger=[MetricsLogger(metrics), *(make_trackers(recipe, folder) if processes.is_first() else [])],
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        with newest.listening():
            try:
                trainer.fit(module, stream, watch, ckpt_path=latest, weights_only=True)
            except SystemExit as stop:  # Lightning's reaction to a second Ctrl-C
                raise KeyboardInterrupt from stop
        seconds = time.perf_counter() - start
    if sharded:
        model.network = network = _unsharded(plan, module, recipe)
        objective = plan.objective() if objective is not None else None
        if objective is not None:
            assert module.objective is not None
            objective.load_state_dict(whole_state(module.objective))
    if best is not None and best.weights and not newest.requested:
        network.load_state_dict(best.weights)
    elif latest and done == steps:  # no step was left, so Lightning did not load the averaged weights at the end
        network.load_state_dict(_final_weights(latest))
    device = str(trainer.strategy.root_device)
    result = FitResult(trainer.global_step, newest.requested, seconds, metrics.rows, device, reading.note)
    return result if objective is None else replace(result, objective=objective.to("cpu").eval())


def _unsharded(plan: Plan, module: TrainingModule, recipe: Recipe) -> nn.Module:
    """A new network with the weights of one that is in parts."""
    state = whole_state(module.model)
    network = plan.build(recipe.seed).network
    network.load_state_dict(state)
    for one, other in zip(output_committees(network), output_committees(module.model), strict=True):
        one.weights = other.weights
    return network


def _validation(val: Inputs, recipe: Recipe) -> tuple[DataLoader[Batch], list[int]]:
    """The batches of a validation set, and the numbers of examples in them if the processes share each batch.

    If there are fewer examples than processes, each process validates on all of them.
    """
    parts, part = processes.size(), processes.rank()
    if parts == 1 or len(val) < parts:
        return val.loader(recipe.batch_size, recipe.workers), []
    count = math.ceil(len(val) / (recipe.batch_size * parts))
    batches = [processes.dealt(len(val), count, i) for i in range(count)]
    own = [[batch[i] for i in processes.dealt(len(batch), parts, part)] for batch in batches]
    return val.batches(own, recipe.workers), [len(batch) for batch in batches]


def check_same_run(folder: Path, network: nn.Module, recipe: Recipe, train: Inputs) -> None:
    """Compare a run with the newest checkpoint in its folder, if there is one.

    Raises:
        ValueError: if the checkpoint belongs to another run, with every difference.
    """
    if latest := latest_checkpoint(folder):
        SameRun(recipe, network, train).check(read_checkpoint(latest))


def _final_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights that a run ends with if this checkpoint is of its last step: averaged, if it averages."""
    content = read_checkpoint(checkpoint)
    rename_legacy(content)
    return {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}


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
                "returned a view tensor",  # FSDP2's warning of operations in place, of which there are none
                "Grad strides do not match bucket view",  # in a batch of one example, where DDP copies a gradient
                "sync_dist=True",  # each process computes the metrics of the whole validation set
            ):
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        logger.setLevel(level)
