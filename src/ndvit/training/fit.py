"""`fit`: from a plan to a trained model. What is descended is in `descent`, which is imported only where needed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ndvit import processes
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.evaluation.calibration import Calibration
from ndvit.files import make_folder
from ndvit.inference.batches import Log, pick_device, predict_outputs
from ndvit.model import Model, load_model
from ndvit.network.committee import Committee, first_transformer, pruned, transformers
from ndvit.processes import is_first
from ndvit.training.adapters import only_trainable
from ndvit.training.closed_form import check_solvers, left_out_outputs, solve_beside, solve_head, weigh_networks
from ndvit.training.devices import refuse_without_others, share_solved
from ndvit.training.distillation import Teacher, make_teacher
from ndvit.training.isolation import isolated
from ndvit.training.metrics import METRICS_FILE, FitResult, MetricRows
from ndvit.training.plan import Plan
from ndvit.weights.file import MODEL_FILE

_FINAL_FOLDER = "final"  # in that of a run or member: checkpoints and metrics of the steps on all training examples
_FINAL_RATE = 0.3  # of the learning rate


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
            objective=self.fits[0].objective,
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

    Processes that have joined call it together, and the first one writes the files.

    Raises:
        ValueError: if a teacher cannot teach, the task has no solver for a part that is solved, or a checkpoint is
            damaged or belongs to another run; also if the recipe has several devices and there is one process.
    """
    if plan.recipe.replicas > 1 and processes.size() == 1 and not resume:
        refuse_without_others(plan.recipe.to_dict())
    check_solvers(plan.task, plan.recipe, plan.first.network)
    train, val = plan.inputs()
    teacher = None
    if plan.teacher is not None:
        teacher = make_teacher(plan.teacher, plan.first, train, plan.recipe)
    if begin is not None:
        begin()
    if folder is not None and plan.weights is not None and not resume and is_first():
        plan.weights.write(folder)
    members: list[Model] = []
    fits: list[FitResult] = []
    homes = [
        folder if folder is None or plan.members == 1 else folder / "members" / str(i) for i in range(plan.members)
    ]
    for i, home in enumerate(homes):
        if plan.members > 1:
            log(f"member {i + 1} of {plan.members}")
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
    if not plan.task.learns_from_targets:
        return trained
    calibration = _calibrate(model, train, val, plan.recipe, progress, log)
    if calibration.examples:
        log(str(calibration))
    if plan.held_out_of is not None:  # the examples held out for validation help in the end
        whole = Inputs(plan.held_out_of, plan.preprocess, plan.augmentation.per_example)
        for i, member in enumerate(members):
            recipe = replace(plan.recipe, seed=plan.recipe.seed + i)
            if plan.final_steps:
                if plan.members > 1:
                    log(f"member {i + 1} of {plan.members}")
                fits[i] = _train_on_all(plan, member, whole, recipe, homes[i], resume, progress, log, teacher, fits[i])
                if fits[i].interrupted:
                    return trained
            if is_first():
                solve_beside(member.network, whole, plan.task, recipe, *plan.weighing, log, progress)
            share_solved(member.network)
        if plan.members > 1:
            model.network = Committee([one.network for one in members], combine=plan.task.combine)
        model.provenance["steps"] = fits[0].steps
    model.network = pruned(model.network)
    return replace(trained, calibration=calibration)


def _train_on_all(
    plan: Plan,
    model: Model,
    whole: Inputs,
    recipe: Recipe,
    home: Path | None,
    resume: bool,
    progress: bool,
    log: Log,
    teacher: Teacher | None,
    before: FitResult,
) -> FitResult:
    """Train the final steps of a member on all training examples, and return the result of both trainings."""
    if not transformers(pruned(model.network)):  # the trained network has no weight
        return before
    from ndvit.training.descent import descend

    steps = math.ceil(recipe.final_share * before.steps)  # fewer than planned after an early stop
    log(f"{steps:,} further steps on all {len(whole):,} training examples, including those held out")
    transformer = first_transformer(model.network)
    peak = recipe.peak_learning_rate(transformer.config.embed_dim, pretrained=plan.weights is not None)
    recipe = replace(
        recipe,
        steps=steps,
        epochs=None,
        learning_rate=_FINAL_RATE * peak,
        early_stop=None,
        tracker="none",  # its curves are those of the steps before
    )
    final = None if home is None else home / _FINAL_FOLDER
    if final is not None and is_first():
        make_folder(final)
    torch.manual_seed(recipe.seed)  # of new adapters, whatever was trained or resumed before
    with only_trainable(transformer, recipe) as frozen:
        result = descend(plan, model, (whole, None), recipe, final, resume, progress, log, teacher, frozen)
    model.to("cpu")
    model.network.eval()
    rows = [row | {"step": before.steps + row["step"]} for row in result.history]
    return replace(
        result,
        steps=before.steps + result.steps,
        seconds=before.seconds + result.seconds,
        history=[*before.history, *rows],
        note=before.note or result.note,
    )


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
        from ndvit.training.descent import check_same_run

        check_same_run(home, model.network, recipe, inputs[0])
        steps = model.provenance["steps"]
        rows = MetricRows(home / METRICS_FILE, up_to=steps).rows
        return model, FitResult(steps, False, 0.0, rows, "cpu")
    model = plan.build(recipe.seed)  # also the first, so that the plan is unchanged and can be used again
    if home is not None and is_first():
        make_folder(home)
    if recipe.head == "solved":
        result = _solve(model, inputs, recipe, plan.weighing, home, progress, log)
    else:
        from ndvit.training.descent import descend  # Lightning takes seconds to import

        with only_trainable(first_transformer(model.network), recipe) as frozen:
            result = descend(plan, model, inputs, recipe, home, resume, progress, log, teacher, frozen)
        if not result.interrupted and plan.task.learns_from_targets:
            train, val = inputs
            if is_first():  # the others wait
                if val is None:
                    solve_beside(model.network, train, plan.task, recipe, *plan.weighing, log, progress)
                elif plan.weigh:
                    weigh_networks(model.network, val, plan.task, recipe, train, log)
            share_solved(model.network)
    model.network.eval()
    model.untrained = ()
    if not plan.task.learns_from_targets:
        model.task = None  # the encoder has features, and no outputs that would mean anything
    if model.load_report is not None:  # the training has settled what was assumed of the weights
        model.load_report = replace(model.load_report, assumed=(), no_task="")
    model.provenance = {**plan.provenance, **({} if alone else {"member": number}), "steps": result.steps}
    if home is not None and not alone and not result.interrupted and is_first():
        model.save(home / MODEL_FILE)
    return model, result


def _solve(
    model: Model,
    inputs: tuple[Inputs, Inputs | None],
    recipe: Recipe,
    weighing: tuple[bool, float],
    folder: Path | None,
    progress: bool,
    log: Log,
) -> FitResult:
    """Solve the head on frozen features: there are no steps and nothing to resume."""
    start, device, task = time.perf_counter(), pick_device(recipe.device), model.task
    assert task is not None
    solved = solve_beside(model.network, inputs[0], task, recipe, *weighing, log, progress)
    if transformers(model.network):
        row = solve_head(first_transformer(model.network), task, recipe, *inputs, progress, log)
    else:  # what leaving one example out shows of the first network
        beside = ("examples", "penalty", "sharpness")
        row = {f"train_{name}": value for name, value in solved[0].ridge.facts.items() if name not in beside}
        model.task = task.adjusted(left_out_outputs(model.network, solved), solved[0].targets)
    metrics = MetricRows(folder and folder / METRICS_FILE)
    metrics.add(row, 0)
    metrics.write()
    return FitResult(0, False, time.perf_counter() - start, metrics.rows, device)


def _calibrate(
    model: Model, train: Inputs, val: Inputs | None, recipe: Recipe, progress: bool, log: Log
) -> Calibration:
    """Fit to validation data what the task has: a temperature, thresholds, margins of intervals."""
    if val is None or val.targets is None:
        return Calibration()
    assert model.task is not None
    outputs = predict_outputs(model.network, val, recipe.batch_size, recipe.device, progress, log, shared=True)
    assert train.targets is not None
    weights = model.task.example_weights(recipe, val.targets, train.targets)
    calibration = model.task.calibrate(outputs, val.targets, weights) or Calibration()
    model.temperature = calibration.temperature
    model.task = model.task.adjusted(outputs / model.temperature, val.targets)
    return calibration


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of several rows of the same step, for the metrics that all of them have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: rows[0][name] if name == "step" else sum(row[name] for row in rows) / len(rows) for name in names}
