"""A run: from a source to a folder with a model and a report.

`ndvit train` and `ndvit.train` are the same function, and so are `ndvit pretrain` and `ndvit.pretrain`.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ndvit import processes
from ndvit.config.options import split_options
from ndvit.config.presets import check_preset
from ndvit.config.pretraining import Objective, take_pretraining_options
from ndvit.config.reading import take_reading_options
from ndvit.config.recipe import Recipe, Strategy
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.words import check_language
from ndvit.files import contents, csv_text, make_folder, refuse_busy, refuse_existing, replace_file, sole_process
from ndvit.inference.answers import answer_rows
from ndvit.model import Model
from ndvit.processes import Started, first_on_node, is_first, joined, was_restarted
from ndvit.tasks.base import Task, task_class
from ndvit.training.devices import device_of, needs_others, refuse_without_others, resumed_devices, settle_devices
from ndvit.training.fit import FitResult, fit
from ndvit.training.plan import Plan, Request, plan, source_name
from ndvit.training.results import PREDICTIONS_FILE, REPORT_FILE, pretrained, tested, write_results, write_split_of
from ndvit.training.settings import (
    CONFIG_FILE,
    HEAD,
    command_of,
    parse_config,
    read_config,
    read_text,
    request_of,
    settings_of,
    settings_text,
)
from ndvit.weights.file import MODEL_FILE

_LONG = 15.0  # seconds of a run from which on a line says what happens after the test


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        folder: the run folder with model.safetensors, config.yaml, report.html, report.npz (what `ndvit report` writes
            the page again from), results.json, predictions.csv (the answers for the test set), split.csv, metrics.csv
            and checkpoints/; the members of an ensemble have theirs in members/0, members/1, ...
        model: the trained model.
        evaluation: its answers on the test set, or of a pretraining the loss and the probes; None if the run was
            interrupted, and in all processes but the first.
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
    language: str = "en",
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
        language: the language of the report's words: "en" or "zh".
        progress: show progress bars.
        log: receives each line about the run.
        **options: fields of `ReadingOptions` (test_fraction, group_by, skip_bad, ...), of `Recipe` (seed, steps, ...),
            of `ViTConfig` (patch_size, depth, ...) or of `SolvedOptions`.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy.
        FileExistsError: if `output` exists and `force` is not set.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> run = ndvit.train((X, y), preset="fast", output="runs/train", progress=False, log=str)
        >>> run.model.classes, len(run.evaluation)
        (('high', 'low'), 8)
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
        language=language,
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
    language: str = "en",
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
        language: the language of the report's words: "en" or "zh".
        progress: show progress bars.
        log: receives each line about the run.
        **options: fields of `ReadingOptions` (skip_bad, drop_copies, ...), of `PretrainingOptions` (mask_ratio, ...),
            of `Recipe` (seed, steps, ...) or of `ViTConfig`.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy.
        FileExistsError: if `output` exists and `force` is not set.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 64))
        >>> run = ndvit.pretrain(X, model="vit_pico", steps=2, output="runs/encoder", progress=False, log=str)
        >>> ndvit.load_model("runs/encoder").embed(X, progress=False).vectors.shape[0]
        40
    """
    reading, options = take_reading_options({**options, "test_fraction": 0.0})
    request = Request(
        source=source,
        task=_pretraining_task(objective or "contrastive"),
        model=model,
        weights=weights,
        ema=ema,
        language=language,
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
    """Plan, train and write a new run; or continue it, if torchrun or SLURM has started this command again."""
    device = device_of(request.options)
    place, options = settle_devices(request.options, device)
    if needs_others(place, options):
        refuse_without_others(options)
    request = replace(request, options=options)
    with joined(place, device, options.get("device_timeout", Recipe.device_timeout)):
        if output is not None and processes.broadcast(was_restarted() and _is_unfinished(Path(output))):
            return _resume(Path(output), place, options, None, request.teacher, request.progress, log)
        folder = processes.broadcast(new_folder(request, output, force) if is_first() else Path())
        return _start(request, folder, place, force, log)


def _start(request: Request, folder: Path, place: Started | None, force: bool, log: Callable[[str], Any]) -> Run:
    """`start_run` in processes that have joined."""
    if request.write_split is not None and is_first():
        refuse_existing(request.write_split, force)
    started = time.perf_counter()
    request, log = _of_this_process(request, log)
    settings = settings_of(request)
    planned = _planned(request, settings, None, place, log)
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

        return _run(planned, request, folder, text, started, resume=False, log=log, begin=begin if is_first() else None)


def _of_this_process(request: Request, log: Callable[[str], Any]) -> tuple[Request, Callable[[str], Any]]:
    """The request and the log of this process: of several, the first one alone shows progress."""
    return (request, log) if is_first() else (replace(request, progress=False), _ignore)


def _ignore(line: str) -> None:
    """Print nothing."""


def next_folder(command: str, source: Any, **arguments: Any) -> Path:
    """The folder under `runs/` that `train` or `pretrain` would write with the same arguments."""
    request, _, force = _request_of_arguments(source, arguments, pretrains=command == "pretrain")
    return new_folder(request, None, force)


def describe_plan(source: Any, *, output: str | Path | None = None, force: bool = False, **arguments: Any) -> str:
    """What `train`, or with an `objective` `pretrain`, would do with the same arguments.

    The text has the data with every class, the split, network, steps, time and memory.

    Raises:
        ValueError, FileExistsError: as `train` before it starts.
    """
    request, _, _ = _request_of_arguments(source, arguments, pretrains="objective" in arguments)
    _, options = settle_devices(request.options, device_of(request.options))
    request = replace(request, options=options)
    folder = new_folder(request, output, force)
    planned, written = plan(request), "trained or written"
    text = str(planned)
    if request.write_split is not None:
        refuse_existing(request.write_split, force)
        write_split_of(planned.data, Path(request.write_split))
        written = f"trained; the split is in {request.write_split}"
    return f"{text}\n\nNothing was {written}; without --dry-run, the run would be in {folder}."


def _request_of_arguments(source: Any, arguments: dict[str, Any], pretrains: bool) -> tuple[Request, Any, bool]:
    """The request that the arguments of `train` or `pretrain` make, with the output, and whether it may be replaced."""
    arguments = dict(arguments)
    output, force = arguments.pop("output", None), arguments.pop("force", False)
    fields = {name: arguments.pop(name) for name in Request.__dataclass_fields__ if name in arguments}
    if pretrains:
        fields["task"] = _pretraining_task(arguments.pop("objective", None) or "contrastive")
        arguments["test_fraction"] = 0.0
    reading, options = take_reading_options(arguments)
    return Request(source=source, reading=reading, options=options, **fields), output, force


def resume(
    folder: str | Path,
    *,
    source: Any = None,
    teacher: Any = None,
    progress: bool = True,
    log: Callable[[str], Any] = print,
    devices: int | Literal["auto"] | None = None,
    nodes: int | None = None,
    strategy: Strategy | None = None,
    device_timeout: float | None = None,
) -> Run:
    """Continue an interrupted run to the result of the unbroken run.

    On another number of devices, the steps have the same examples, so that each is seen once in a pass; the result is
    that of the unbroken run up to the precision of its numbers and to what is random in augmentation.

    Args:
        folder: the run folder.
        source: the same arrays again, for a run that was trained on arrays; None reads what config.yaml names.
        teacher: the same teacher again, if it was a module or a classifier in memory.
        progress: show progress bars.
        log: receives each line about the run.
        devices: devices on each node, which may be others than in the beginning, see `Recipe`.
        nodes: likewise.
        strategy: likewise.
        device_timeout: likewise.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if the run is finished, or its data or settings have changed.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> run = ndvit.train((X, y), model="vit_pico", steps=2, output="runs/done", progress=False, log=str)
        >>> ndvit.resume("runs/done", source=(X, y))
        Traceback (most recent call last):
        ...
        ValueError: ... is finished...
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: it has no {CONFIG_FILE}")
    settings = {"devices": devices, "nodes": nodes, "strategy": strategy, "device_timeout": device_timeout}
    settings = {name: value for name, value in settings.items() if value is not None}
    wanted = resumed_devices(read_config(folder / CONFIG_FILE), settings)
    device = device_of(wanted)
    place, options = settle_devices(wanted, device)
    if needs_others(place, options):
        refuse_without_others(options)
    with joined(place, device, options.get("device_timeout", Recipe.device_timeout)):
        return _resume(folder, place, options, source, teacher, progress, log)


def _is_unfinished(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and not (folder / MODEL_FILE).is_file()


def _resume(
    folder: Path,
    place: Started | None,
    device_options: dict[str, Any],
    source: Any,
    teacher: Any,
    progress: bool,
    log: Callable[[str], Any],
) -> Run:
    """`resume` in processes that have joined; the first one keeps others out of the folder."""
    with sole_process(folder) if is_first() else nullcontext():
        if processes.broadcast((folder / MODEL_FILE).is_file()):
            raise ValueError(f"{folder} is finished: it has a {MODEL_FILE}. Train again with another output folder")
        started = time.perf_counter()
        text = read_text(folder / CONFIG_FILE)
        settings = parse_config(text, folder / CONFIG_FILE)
        # the numbers of devices and nodes are those of the beginning, which decide how many examples a step has
        settings |= {name: device_options[name] for name in ("strategy", "device_timeout") if name in device_options}
        request = request_of(settings, folder / CONFIG_FILE, source, teacher, progress)
        if (request.model is None) == (request.weights is None):
            raise ValueError(f"{folder / CONFIG_FILE} has been changed: it must have either model or weights")
        request, log = _of_this_process(request, log)
        planned = _planned(request, settings, folder, place, log)
        return _run(planned, request, folder, text, started, resume=True, log=log)


def _planned(
    request: Request, settings: dict[str, Any], resumed: Path | None, place: Started | None, log: Callable[[str], Any]
) -> Plan:
    with first_on_node(place):
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
        broken = next(result for result in trained.fits if result.interrupted)
        log(f"stopped at step {broken.steps:,}; continue with: {command}")
        return Run(folder, trained.model, None, trained.fit)
    data, model = planned.data, trained.model
    if data.task.learns_from_targets:
        evaluation, answers = tested(planned, model, request.progress, log)
        if not is_first():
            return Run(folder, model.to("cpu"), None, trained.fit)
        replace_file(folder / PREDICTIONS_FILE, csv_text(answer_rows(model.task or data.task, answers, data.test)))
    else:
        if not is_first():
            return Run(folder, model.to("cpu"), None, trained.fit)
        evaluation = pretrained(planned, trained)
    model.provenance |= evaluation.metadata()
    run = Run(folder, model.to("cpu"), evaluation, trained.fit)
    seconds = time.perf_counter() - started
    if seconds > _LONG:  # explaining examples for the page then takes long, too
        log("tested; explaining some of the answers for the report")
    in_all = f"{seconds:.0f} s in all{' since the run was resumed' * resume}"
    write_results(folder, evaluation, planned, trained, in_all, config, request.language, request.progress)
    test = "test " if data.task.learns_from_targets else ""
    for caveat in evaluation.caveats():
        log(caveat)
    log(f"{test}{evaluation.headline(data.train.targets)} after {trained.fit.seconds:.0f} s of training")
    log(f"report: {run.report}")
    return run


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
    check_language(request.language)
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
