"""A run: from a source to a folder with a model and a report.

`ndvit train` and `ndvit.train` are the same function, and so are `ndvit pretrain` and `ndvit.pretrain`.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ndvit import __version__
from ndvit.config.options import split_options
from ndvit.config.presets import check_preset
from ndvit.config.pretraining import Objective, take_pretraining_options
from ndvit.config.reading import take_reading_options
from ndvit.data.examples import Examples, Source
from ndvit.data.loading import Inputs
from ndvit.data.messages import warn
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.sources.split_files import write_split
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.pretraining import PretrainingEvaluation
from ndvit.evaluation.relevance import Reason
from ndvit.evaluation.report import Report, write_report
from ndvit.explain.bands import usual_bands
from ndvit.explain.explain import explain_inputs, reads_signals
from ndvit.explain.page import reason
from ndvit.files import contents, csv_text, make_folder, refuse_busy, refuse_existing, replace_file, sole_process
from ndvit.inference.answers import answer_rows
from ndvit.inference.batches import predict_answers
from ndvit.inference.recordings import WholeRecordings, evaluate_answers, recording_of
from ndvit.model import Model
from ndvit.network.committee import first_transformer, transformers
from ndvit.tasks.base import Task, task_class
from ndvit.training.fit import FitResult, Trained, fit
from ndvit.training.isolation import isolated
from ndvit.training.plan import Plan, Request, plan, source_name
from ndvit.training.settings import (
    CONFIG_FILE,
    HEAD,
    command_of,
    parse_config,
    read_text,
    request_of,
    settings_of,
    settings_text,
)
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.structure import describe_weights

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"
SPLIT_FILE, PREDICTIONS_FILE = "split.csv", "predictions.csv"
_DRAWN = 8  # examples in the report of a pretraining
_MISTAKES, _CORRECT = 6, 3  # examples or recordings whose answers the report explains
_MOST_WINDOWS = 256  # of these recordings
_MOST_BANDED = 2**14  # values of a signal up to which the report has bands: each takes a forward pass


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        folder: the run folder with model.safetensors, config.yaml, report.html, results.json, predictions.csv (the
            answers for the test set), split.csv, metrics.csv and checkpoints/; the members of an ensemble have theirs
            in members/0, members/1, ...
        model: the trained model.
        evaluation: its answers on the test set, or of a pretraining the loss and the probes; None if the run was
            interrupted.
        fit: steps, seconds and history of the training; for an ensemble see `Trained.fit`.
    """

    folder: Path
    model: Model
    evaluation: Evaluation | None
    fit: FitResult

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training; `resume(run.folder)` continues it."""
        return self.fit.interrupted

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / REPORT_FILE


def train(
    source: Any,
    *,
    task: str | type[Task] = "classification",
    preset: str = "auto",
    model: str | None = None,
    weights: str | Path | None = None,
    ema: bool | None = None,
    members: int = 1,
    teacher: Any = None,
    output: str | Path | None = None,
    force: bool = False,
    write_split: str | Path | None = None,
    progress: bool = True,
    log: Callable[[str], Any] = print,
    **options: Any,
) -> Run:
    """Train a model on a source, test it, and write a run folder.

    Args:
        source: a built-in name, `ucr:NAME`, `hf:owner/name`, a path, or arrays (X, y) or (X_train, y_train, X_test,
            y_test).
        task: what is learned: "classification", "multilabel" (several labels for each example), "regression" (numbers),
            or a subclass of `Task`.
        preset: a network and a recipe that belong together: "signal", "fast", "finetune", ...; "auto" chooses by the
            model or the data. Every other argument replaces the preset's value.
        model: a name that `create_model` knows. `vit_SIZE` and `signal_SIZE` take dimensions and patch from the data.
            None is the preset's network, or that of the weights.
        weights: trained weights to start from, as in `load_model`: a file, a run, a published name, `hf:...`.
        ema: which weights of a file with several copies of a network, as in `load_model`.
        members: networks in an ensemble, trained one after the other from the seeds seed, seed + 1, ...
        teacher: what the networks also learn from, see `make_teacher`: "minirocket", "multirocket", an earlier run or
            anything that `load_model` takes, a torch module, or a classifier with the interface of scikit-learn.
        output: the run folder; None creates a new one under `runs/`.
        force: replace an existing run folder.
        write_split: a .csv to write the split of each example to, before the training; `split_file` reads it. The run
            folder has the same as split.csv.
        progress: show progress bars.
        log: receives each line about the run.
        **options: fields of `ReadingOptions` (test_fraction, group_by, skip_bad, ...), of `Recipe` (seed, steps, ...),
            of `ViTConfig` (patch_size, depth, ...) or of `SolvedOptions`.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy.
        FileExistsError: if `output` exists and `force` is not set.
    """
    if not task_class(task).learns_from_targets:
        raise ValueError(
            f"{task_class(task).name} learns without labels: use ndvit pretrain SOURCE --objective "
            f"{task_class(task).name} (ndvit.pretrain), then train with --weights RUN"
        )
    reading, options = take_reading_options(options)
    request = Request(
        source=source,
        task=task,
        preset=preset,
        model=model,
        weights=weights,
        ema=ema,
        members=members,
        teacher=teacher,
        write_split=write_split,
        reading=reading,
        options=options,
        progress=progress,
    )
    return start_run(request, output, force, log)


def pretrain(
    source: Any,
    *,
    objective: Objective | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    ema: bool | None = None,
    output: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    log: Callable[[str], Any] = print,
    **options: Any,
) -> Run:
    """Train the encoder of a network on a source without using labels, and write a run folder.

    The model in it has features and no outputs; `train(..., weights=run.folder)` starts from it. Labels, where the
    source has them, are used by probes only: they classify labelled training examples from their features while the
    training runs. Only training examples are read, never validation and test sets.

    Args:
        source: as in `train`; also a folder of files without class folders, or an array X without labels. Examples in a
            folder called unlabelled/ beside the class folders are used, too.
        objective: "contrastive" (two augmented views of an example have similar features, those of different examples
            have not), or "masked" (patches are predicted from the others); None is contrastive.
        model: as in `train`; None chooses one for the data.
        weights: trained weights to continue from, as in `train`.
        ema: as in `train`.
        output: the run folder; None creates a new one under `runs/`.
        force: replace an existing run folder.
        progress: show progress bars.
        log: receives each line about the run.
        **options: fields of `ReadingOptions` (skip_bad, drop_copies, ...), of `PretrainingOptions` (mask_ratio, ...),
            of `Recipe` (seed, steps, ...) or of `ViTConfig`.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy.
        FileExistsError: if `output` exists and `force` is not set.
    """
    reading, options = take_reading_options({**options, "test_fraction": 0.0})
    request = Request(
        source=source,
        task=_pretraining_task(objective or "contrastive"),
        model=model,
        weights=weights,
        ema=ema,
        reading=reading,
        options=options,
        progress=progress,
    )
    return start_run(request, output, force, log)


def _pretraining_task(objective: str) -> type[Task]:
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}")
    return task_class(objective)


def start_run(request: Request, output: str | Path | None, force: bool, log: Callable[[str], Any]) -> Run:
    """Plan, train and write a new run."""
    folder = new_folder(request, output, force)
    if request.write_split is not None:
        refuse_existing(request.write_split, force)
    started = time.perf_counter()
    settings = settings_of(request)
    planned = _planned(request, settings, None, log)
    chosen = {name: value for name, value in (("preset", planned.preset), ("model", planned.model)) if name in settings}
    if planned.reading.window is not None:
        settings = {**settings, "window": planned.reading.window}
    text = settings_text({**settings, **chosen}, planned)
    with ExitStack() as held:  # the folder is taken when everything that can be refused has been checked

        def begin() -> None:
            make_folder(folder)
            held.enter_context(sole_process(folder))
            begin_folder(folder, text, force)
            if request.write_split is not None:
                write_split_of(planned.data, Path(request.write_split))

        return _run(planned, request, folder, text, started, resume=False, log=log, begin=begin)


def describe_plan(source: Any, *, output: str | Path | None = None, force: bool = False, **arguments: Any) -> str:
    """What `train`, or with an `objective` `pretrain`, would do with the same arguments.

    The text has the data with every class, the split, network, steps, time and memory.

    Raises:
        ValueError, FileExistsError: as `train` before it starts.
    """
    fields = {name: arguments.pop(name) for name in Request.__dataclass_fields__ if name in arguments}
    if "objective" in arguments:
        fields["task"] = _pretraining_task(arguments.pop("objective"))
        arguments["test_fraction"] = 0.0
    reading, options = take_reading_options(arguments)
    request = Request(source=source, reading=reading, options=options, **fields)
    folder = new_folder(request, output, force)
    planned, written = plan(request), "trained or written"
    text = str(planned)
    if request.write_split is not None:
        refuse_existing(request.write_split, force)
        write_split_of(planned.data, Path(request.write_split))
        written = f"trained; the split is in {request.write_split}"
    return f"{text}\n\nNothing was {written}; without --dry-run, the run would be in {folder}."


def resume(
    folder: str | Path,
    *,
    source: Any = None,
    teacher: Any = None,
    progress: bool = True,
    log: Callable[[str], Any] = print,
) -> Run:
    """Continue an interrupted run to the result of the unbroken run.

    Args:
        folder: the run folder.
        source: the same arrays again, for a run that was trained on arrays; None reads what config.yaml names.
        teacher: the same teacher again, if it was a module or a classifier in memory.
        progress: show progress bars.
        log: receives each line about the run.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if the run is finished, or its data or settings have changed.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: it has no {CONFIG_FILE}")
    with sole_process(folder):
        return _resume(folder, source, teacher, progress, log)


def _resume(folder: Path, source: Any, teacher: Any, progress: bool, log: Callable[[str], Any]) -> Run:
    """`resume` in a folder that no other process uses."""
    if (folder / MODEL_FILE).is_file():
        raise ValueError(f"{folder} is finished: it has a {MODEL_FILE}. Train again with another output folder")
    started = time.perf_counter()
    text = read_text(folder / CONFIG_FILE)
    settings = parse_config(text, folder / CONFIG_FILE)
    request = request_of(settings, folder / CONFIG_FILE, source, teacher, progress)
    if (request.model is None) == (request.weights is None):
        raise ValueError(f"{folder / CONFIG_FILE} has been changed: it must have either model or weights")
    planned = _planned(request, settings, folder, log)
    return _run(planned, request, folder, text, started, resume=True, log=log)


def _planned(request: Request, settings: dict[str, Any], resumed: Path | None, log: Callable[[str], Any]) -> Plan:
    planned = plan(request, resumed=resumed)
    if planned.task.learns_from_targets:
        planned.provenance.update({"source": settings["source"], "reading": planned.reading.set_options()})
    else:  # under names of its own, because the data of a later training and its split are others
        planned.provenance.update({"pretraining": planned.task.name, "pretrained_on": settings["source"]})
    for line in planned.lines():
        log(line)
    return planned


def _run(
    planned: Plan,
    request: Request,
    folder: Path,
    config: str,
    started: float,
    *,
    resume: bool,
    log: Callable[[str], Any],
    begin: Callable[[], None] | None = None,
) -> Run:
    """Train, test and write everything. `config` is the content of config.yaml."""
    trained = fit(planned, folder, resume=resume, progress=request.progress, log=log, begin=begin)
    if trained.interrupted:
        command = f"ndvit {command_of(planned)} --resume {shlex.quote(str(folder))}"
        log(f"stopped at step {trained.fits[-1].steps:,}; continue with: {command}")
        return Run(folder, trained.model, None, trained.fit)
    data, model = planned.data, trained.model
    if data.task.learns_from_targets:
        evaluation, answers = tested(planned, model, request.progress, log)
        replace_file(folder / PREDICTIONS_FILE, csv_text(answer_rows(model.task or data.task, answers, data.test)))
    else:
        evaluation = _pretrained(planned, trained)
    model.provenance |= evaluation.metadata()
    run = Run(folder, model.to("cpu"), evaluation, trained.fit)
    seconds = time.perf_counter() - started
    _write_results(run, planned, trained, f"{seconds:.0f} s in all{' since the run was resumed' * resume}", config)
    test = "test " if data.task.learns_from_targets else ""
    log(f"{test}{evaluation.headline(data.train.targets)} after {trained.fit.seconds:.0f} s of training")
    log(f"report: {run.report}")
    return run


def tested(planned: Plan, model: Model, progress: bool, log: Callable[[str], Any]) -> tuple[Evaluation, np.ndarray]:
    """The results of a trained model on the test set, and its answers (n, outputs)."""
    data, recipe = planned.data, planned.recipe
    inputs = Inputs(data.test, planned.preprocess)
    answers = predict_answers(model, inputs, recipe.batch_size, recipe.device, progress, log=log)
    assert model.task is not None
    return evaluate_answers(model.task, [answers], [data.test]), answers


@isolated()
def _pretrained(planned: Plan, trained: Trained) -> PretrainingEvaluation:
    """Loss and probes of a pretraining, and what its objective does to the first training examples."""
    network, objective, preprocess = first_transformer(trained.model.network), trained.fit.objective, planned.preprocess
    assert objective is not None
    torch.manual_seed(planned.recipe.seed)
    train, _ = planned.inputs()
    rows = min(_DRAWN * planned.recipe.repeats, planned.recipe.batch_size)
    stream = train.stream(rows, 1, planned.recipe.seed, 0, 0, planned.recipe.repeats)
    x, mask, _ = next(iter(stream))
    x, mask, _ = planned.augmentation.per_batch(x, mask, x.new_zeros(len(x), 0))
    with torch.no_grad():
        drawn = objective.show(network.cpu().eval(), x, mask)
    shape = (-1, *[1] * len(preprocess.size))
    mean, std = np.reshape(preprocess.mean, shape), np.reshape(preprocess.std, shape)
    return PretrainingEvaluation(
        names=tuple(planned.data.train.names),
        history=trained.fit.history,
        original=drawn.original.numpy() * std + mean,
        made=drawn.made.numpy() * std + mean,
        marked=None if drawn.marked is None else drawn.marked.numpy(),
        about=drawn.about,
    )


def begin_folder(folder: Path, config: str, force: bool) -> None:
    """Begin a run in a folder that this process holds, by its config.yaml; an earlier run is removed only now.

    The old model goes first and the old config.yaml last, so that what a killed process leaves is an unfinished run.
    """
    old = contents(folder)
    if old and not (force and _is_run(folder)):
        raise FileExistsError(f"another run has just started in {folder}: choose another output")
    for path in sorted(old, key=lambda path: path.name != MODEL_FILE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != CONFIG_FILE:
            path.unlink()
    replace_file(folder / CONFIG_FILE, config)


@isolated()  # matplotlib, which draws the report, is not made for several threads
def _write_results(run: Run, planned: Plan, trained: Trained, time_in_words: str, settings: str) -> None:
    """Write the files of a finished run. The model comes last, because a folder with a model is a finished run."""
    evaluation, data, recipe = run.evaluation, planned.data, planned.recipe
    assert evaluation is not None
    config = run.folder / CONFIG_FILE
    make_folder(run.folder)
    if not config.is_file():  # somebody has removed it
        replace_file(config, settings)
    last_seed = recipe.seed + planned.members - 1
    written = planned.provenance.get("source") or planned.provenance.get("pretrained_on")
    command = f"ndvit {command_of(planned)} --config {shlex.quote(str(config))} --output NEW_FOLDER"
    facts = planned.facts()
    if data.task.learns_from_targets:
        facts |= {"answer": describe_weights(run.model.network)}
        if data.task.has_temperature:
            solved = not (transformers(run.model.network) or trained.calibration.examples)
            by_one = "calibrated by leaving one training example out"
            facts["probabilities"] = by_one if solved else str(trained.calibration)
        facts |= {} if run.model.task is None else run.model.task.facts()
    history = run.fit.history
    if not planned.steps and not transformers(planned.first.network):  # a single row is no curve
        found = [f"{k.removeprefix('train_')} {v:.3g}" for row in history for k, v in row.items() if k != "step"]
        facts["one left out"] = f"{', '.join(found)}, of the first part of the answer"
        history = []
    facts |= {
        "time": f"{run.fit.seconds:.0f} s of training, {time_in_words}",
        "device": f"{run.fit.device}, threads: {torch.get_num_threads()}",
        "versions": f"ndvit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": f"{recipe.seed}" if last_seed == recipe.seed else f"{recipe.seed} to {last_seed}",
    }
    reasons, method = _reasons(run.model, evaluation, data.test, planned.preprocess)
    page = Report(
        title=f"{data.name} · {run.model.provenance['model']}",
        summary=facts,
        notes=data.notes,
        history=history,
        evaluation=evaluation,
        examples=data.test if data.test.places is None else WholeRecordings(data.test),
        view=planned.preprocess.view if data.test.places is None else None,
        reasons=reasons,
        method=method,
        config=settings,
        command=command if written else f"# in Python, on the same arrays: {command_of(planned)}(arrays, ...)",
    )
    write_report(page, run.report)
    if data.task.learns_from_targets:
        write_split_of(data, run.folder / SPLIT_FILE)
    replace_file(run.folder / RESULTS_FILE, json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False))
    run.model.save(run.folder / MODEL_FILE)


def write_split_of(data: Source, path: Path) -> None:
    """Write the split of a source, with the validation set that was held out."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    write_split(path, {name: part for name, part in splits.items() if part is not None})


def _reasons(
    model: Model, evaluation: Evaluation, test: Examples, preprocess: Preprocess
) -> tuple[tuple[Reason, ...], str]:
    """What decided the worst mistakes and some correct answers, and the method; nothing where it cannot be computed."""
    if model.task is None or not model.task.learns_from_targets or not len(test):
        return (), ""
    if test.places is not None and preprocess.kind != "signal":  # spectrograms of windows do not fit together
        return (), ""
    owner = np.arange(len(test)) if test.places is None else recording_of(test.places)  # a recording has many windows
    mistakes = list(evaluation.worst())
    others = sorted(set(owner.tolist()) - set(mistakes))
    wanted = mistakes[:_MISTAKES] + others[:: max(1, len(others) // _CORRECT)][:_CORRECT]
    order = [np.flatnonzero(owner == i) for i in wanted]
    kept = np.cumsum([len(windows) for windows in order]) <= _MOST_WINDOWS
    chosen = [i for i, fits in zip(wanted, kept) if fits]
    if not chosen:
        return (), ""
    some = Inputs(test.subset(np.concatenate([windows for windows, fits in zip(order, kept) if fits])), preprocess)
    try:
        banded = reads_signals(model) and math.prod(model.input_shape) <= _MOST_BANDED
        found = explain_inputs(model, some, bands=usual_bands(model.input_shape[1]) if banded else None)
    except (ValueError, RuntimeError) as error:  # such as too little memory: the run is finished all the same
        warn(f"the report does not explain the answers: {error}", RuntimeWarning)
        return (), ""
    return tuple(reason(one, evaluation.caption(i)) for i, one in zip(chosen, found)), found[0].method


def new_folder(request: Request, output: str | Path | None, force: bool, ending: str = "") -> Path:
    """The folder to write, which does not exist, is empty, or holds a run that may be replaced.

    Requests that cannot work are refused as far as possible without reading data. `ending` is that of a name that is
    made here.
    """
    options, pretrains = request.options, not request.learns_from_targets
    if pretrains:
        _, options = take_pretraining_options(options)
    split_options(options)
    check_preset(request.preset)
    if not request.reading.test_fraction and not pretrains:
        raise ValueError("test_fraction must be above 0: a run ends with a test")
    if output is None:
        preset = f"pretrained-{task_class(request.task).name}" if pretrains else request.preset
        network = source_name(request.weights) if request.weights else preset
        name = f"{source_name(request.source)}-{request.model or network}{ending}"[:100]
        numbered = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
        return next(folder for folder in numbered if not folder.exists())
    folder = Path(output)
    refuse_existing(folder, force, kind="run")
    empty = not folder.exists() or (folder.is_dir() and not contents(folder))
    refuse_busy(folder)
    if not empty and not _is_run(folder):
        raise FileExistsError(f"{folder} exists and is not a run of ndvit, so it is not replaced even with force")
    return folder


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run of any version, or what a killed process has left of one."""
    config = folder / CONFIG_FILE
    if not config.is_file():
        return False
    with config.open(encoding="utf-8", errors="replace") as file:
        head = file.read(len(HEAD))
    return head == HEAD or (not head and contents(folder) == [config])  # earlier versions first wrote an empty one
