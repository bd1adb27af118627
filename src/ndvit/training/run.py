"""A run: from a source to a folder with a model and a report.

`ndvit train` and `ndvit.train` are the same function, and so are `ndvit pretrain` and `ndvit.pretrain`.
"""

from __future__ import annotations

import json
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
import yaml

from ndvit import __version__
from ndvit.config.options import split_options
from ndvit.config.presets import check_preset
from ndvit.config.pretraining import IDLE, Objective, take_pretraining_options
from ndvit.data.loading import Inputs
from ndvit.data.sources.load import builtin_sources
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.pretraining import PretrainingEvaluation
from ndvit.evaluation.report import Report, write_report
from ndvit.files import contents, make_folder, refuse_busy, refuse_existing, replace_file, sole_process
from ndvit.inference.batches import predict_answers
from ndvit.model import Model
from ndvit.network.committee import first_transformer, transformers
from ndvit.tasks.base import Task, task_class
from ndvit.training.fit import FitResult, Trained, fit
from ndvit.training.isolation import isolated
from ndvit.training.plan import Plan, Request, plan, source_name
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.opening import split_part
from ndvit.weights.structure import describe_weights

CONFIG_FILE, RESULTS_FILE, REPORT_FILE = "config.yaml", "results.json", "report.html"
_HEAD = "# ndvit "  # first characters of every config.yaml
_CONFIG_BYTES = 1_000_000
_IN_MEMORY = "in memory: "  # marks a teacher that config.yaml cannot name
_SETTINGS: dict[str, Any] = {  # settings of a run beside the options, with their types
    "source": str | None,
    "task": str,
    "preset": str,
    "model": str | None,
    "weights": str | None,
    "ema": bool | None,
    "members": int,
    "teacher": str | None,
    "test_fraction": float | int,
    "skip_bad": bool,
    "literal_labels": bool,
    "drop_copies": bool,
}
_DEFAULTS = {"task": "classification", "preset": "basic", "weights": None, "ema": None, "members": 1, "teacher": None}
_DEFAULTS |= {"literal_labels": False, "drop_copies": False, "encoder": False, "solved_weight": "usual"}
"""Settings that runs of earlier versions lack."""
_DRAWN = 8  # examples in the report of a pretraining
_KEPT = ("source", "test_fraction", "literal_labels", "drop_copies")
"""Settings that travel in the model file, so that the source can be read again as in the training."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or interrupted training run.

    Attributes:
        folder: the run folder with model.safetensors, config.yaml, report.html, results.json, metrics.csv and
            checkpoints/; the members of an ensemble have theirs in members/0, members/1, ...
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
    test_fraction: float = 0.2,
    skip_bad: bool = False,
    literal_labels: bool = False,
    drop_copies: bool = False,
    progress: bool = True,
    log: Callable[[str], Any] = print,
    **options: Any,
) -> Run:
    """Train a model on a source, test it, and write a run folder.

    Args:
        source: a built-in name, `ucr:NAME`, `hf:owner/name`, a path, or arrays (X, y) or (X_train, y_train, X_test,
            y_test).
        task: what is learned; "classification", or a subclass of `Task`.
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
        test_fraction: share of the examples held out for testing if the source has no test set.
        skip_bad: leave unreadable files, and examples without a label, out instead of raising an error.
        literal_labels: take every label as the name of a class, also NA, null and the like, which otherwise stand for
            missing labels, and numbers with fractions, which otherwise are refused as continuous.
        drop_copies: leave out exact copies of examples: those of test examples leave the training set, and equal
            examples with different labels are all left out. By default, copies are only reported.
        progress: show progress bars.
        log: receives each line about the run.
        **options: fields of `Recipe` (seed, steps, learning_rate, ...), of `ViTConfig` (patch_size, depth, ...) or of
            `SolvedOptions`.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy.
        FileExistsError: if `output` exists and `force` is not set.
    """
    if not task_class(task).learns_from_targets:
        raise ValueError(
            f"{task_class(task).name} learns without labels: use ndvit pretrain SOURCE --objective "
            f"{task_class(task).name} (ndvit.pretrain), then train with --weights RUN"
        )
    settings = {
        "source": _as_written(source),
        "task": task_class(task).name,
        "preset": preset,
        "model": model,
        "weights": _as_written(weights, weights=True),
        "ema": ema,
        "members": members,
        "teacher": _teacher_as_written(teacher),
        "test_fraction": test_fraction,
        "skip_bad": skip_bad,
        "literal_labels": literal_labels,
        "drop_copies": drop_copies,
    }
    request = Request(
        source=source,
        task=task,
        preset=preset,
        model=model,
        weights=weights,
        ema=ema,
        members=members,
        teacher=teacher,
        test_fraction=test_fraction,
        skip_bad=skip_bad,
        literal_labels=literal_labels,
        drop_copies=drop_copies,
        options=options,
        progress=progress,
    )
    return _start_run(request, settings, output, force, log)


def pretrain(
    source: Any,
    *,
    objective: Objective | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    ema: bool | None = None,
    output: str | Path | None = None,
    force: bool = False,
    skip_bad: bool = False,
    literal_labels: bool = False,
    drop_copies: bool = False,
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
        skip_bad: leave unreadable files out instead of raising an error.
        literal_labels: as in `train`.
        drop_copies: leave out exact copies of examples.
        progress: show progress bars.
        log: receives each line about the run.
        **options: fields of `PretrainingOptions` (mask_ratio, ...), of `Recipe` (seed, steps, ...) or of `ViTConfig`.

    Raises:
        ValueError: for data, options or combinations that cannot work, with the remedy.
        FileExistsError: if `output` exists and `force` is not set.
    """
    objective = objective or "contrastive"
    settings = {
        "source": _as_written(source),
        "objective": objective,
        "model": model,
        "weights": _as_written(weights, weights=True),
        "ema": ema,
        "skip_bad": skip_bad,
        "literal_labels": literal_labels,
        "drop_copies": drop_copies,
    }
    request = Request(
        source=source,
        task=_pretraining_task(objective),
        model=model,
        weights=weights,
        ema=ema,
        test_fraction=0.0,
        skip_bad=skip_bad,
        literal_labels=literal_labels,
        drop_copies=drop_copies,
        options=options,
        progress=progress,
    )
    return _start_run(request, settings, output, force, log)


def _pretraining_task(objective: str) -> type[Task]:
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}")
    return task_class(objective)


def _start_run(
    request: Request, settings: dict[str, Any], output: str | Path | None, force: bool, log: Callable[[str], Any]
) -> Run:
    """Plan, train and write a new run; `settings` are those of config.yaml beside the options."""
    folder = _new_folder(request, output, force)
    started = time.perf_counter()
    planned = _planned(request, settings, None, log)
    chosen = {name: value for name, value in (("preset", planned.preset), ("model", planned.model)) if name in settings}
    text = _settings_text({**settings, **chosen}, planned)
    with ExitStack() as held:  # the folder is taken when everything that can be refused has been checked

        def begin() -> None:
            make_folder(folder)
            held.enter_context(sole_process(folder))
            _start(folder, text, force)

        return _run(planned, request, folder, text, started, resume=False, log=log, begin=begin)


def describe_plan(source: Any, *, output: str | Path | None = None, force: bool = False, **arguments: Any) -> str:
    """What `train`, or with an `objective` `pretrain`, would do with the same arguments.

    The text has the data with every class, the split, network, steps, time and memory.

    Raises:
        ValueError, FileExistsError: as `train` before it starts.
    """
    fields = {name: arguments.pop(name) for name in Request.__dataclass_fields__ if name in arguments}
    if "objective" in arguments:
        fields |= {"task": _pretraining_task(arguments.pop("objective")), "test_fraction": 0.0}
    request = Request(source=source, options=arguments, **fields)
    folder = _new_folder(request, output, force)
    return f"{plan(request)}\n\nNothing was trained or written; without --dry-run, the run would be in {folder}."


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
    text = _read_text(folder / CONFIG_FILE)
    settings = _DEFAULTS | _parse_config(text, folder / CONFIG_FILE)
    if "objective" in settings:
        settings |= {"task": settings.pop("objective"), "test_fraction": 0.0}
    for name, kind in _SETTINGS.items():
        if name not in settings or not isinstance(settings[name], kind):
            raise ValueError(
                f"{folder / CONFIG_FILE} has been changed since the run wrote it: {name} is {settings.get(name)!r}"
            )
    if (settings["model"] is None) == (settings["weights"] is None):
        raise ValueError(f"{folder / CONFIG_FILE} has been changed: it must have either model or weights")
    source = settings["source"] if source is None else source
    if source is None:
        raise ValueError(f"{folder} was trained on arrays: resume it from Python with source= the same arrays")
    teacher = settings["teacher"] if teacher is None else teacher
    if isinstance(teacher, str) and teacher.startswith(_IN_MEMORY):
        kind = teacher.removeprefix(_IN_MEMORY)
        raise ValueError(f"the teacher of this run was a {kind} in memory: from Python, pass teacher= the same again")
    options = {name: value for name, value in settings.items() if name not in _SETTINGS}
    settings = {name: settings[name] for name in _SETTINGS}
    request = Request(**{**settings, "source": source, "teacher": teacher}, options=options, progress=progress)
    planned = _planned(request, settings, folder, log)
    return _run(planned, request, folder, text, started, resume=True, log=log)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config.yaml: flat values and lists of them, without the aliases and objects of YAML.

    Raises:
        ValueError: if it is not that, with the file.
    """
    return _parse_config(_read_text(path), path)


def _read_text(path: Path) -> str:
    if path.stat().st_size > _CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, at most {_CONFIG_BYTES:,} are read as settings")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error


class _FlatLoader(yaml.SafeLoader):
    """YAML without aliases, from which a few lines can make billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"aliases (*name) are not read, line {mark.line + 1} has one")
        return super().compose_node(parent, index)


def _parse_config(text: str, path: Path) -> dict[str, Any]:
    try:
        settings = yaml.load(text, _FlatLoader)
    except RecursionError:
        raise ValueError(f"{path} is not readable YAML: its values nest too deep") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, OverflowError) as error:  # the last: values of a tag
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings as `name: value` lines, got {type(settings).__name__}")
    if "rocket_weight" in settings:  # of earlier versions
        settings["solved_weight"] = settings.pop("rocket_weight")
    for name, value in settings.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name of a setting is text, got {name!r}")
        for one in value if isinstance(value, list) else [value]:
            if one is not None and type(one) not in (bool, int, float, str):
                raise ValueError(f"{path}: {name} must be a value or a list of values, got a {type(one).__name__}")
    return settings


def _planned(request: Request, settings: dict[str, Any], resumed: Path | None, log: Callable[[str], Any]) -> Plan:
    planned = plan(request, resumed=resumed)
    if planned.task.learns_from_targets:
        planned.provenance.update({name: settings[name] for name in _KEPT})
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
        command = f"ndvit {_command(planned)} --resume {shlex.quote(str(folder))}"
        log(f"stopped at step {trained.fits[-1].steps:,}; continue with: {command}")
        return Run(folder, trained.model, None, trained.fit)
    data, model = planned.data, trained.model
    if data.task.learns_from_targets:
        evaluation = _tested(planned, model, request.progress, log)
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


def _command(planned: Plan) -> str:
    return "train" if planned.task.learns_from_targets else "pretrain"


def _tested(planned: Plan, model: Model, progress: bool, log: Callable[[str], Any]) -> Evaluation:
    """The answers of a trained model on the test set."""
    data, recipe = planned.data, planned.recipe
    inputs = Inputs(data.test, planned.preprocess)
    answers = predict_answers(model, inputs, recipe.batch_size, recipe.device, progress, log=log)
    assert data.test.targets is not None
    return data.task.evaluate(answers, data.test.targets, data.test.names)


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


def _settings_text(settings: dict[str, Any], planned: Plan) -> str:
    """The content of config.yaml."""
    command = _command(planned)
    rerun = f"ndvit {command} --config {CONFIG_FILE} --output NEW_FOLDER"
    if settings["source"] is None:
        rerun = f"the source was arrays; in Python, {command}(arrays, **settings)"
    recipe = planned.recipe.to_dict()
    if not planned.task.learns_from_targets:
        recipe = {name: value for name, value in recipe.items() if name not in IDLE} | planned.pretraining.to_dict()
    settings = {**settings, **planned.options, **recipe}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
    return f"{_HEAD}{__version__}. Rerun: {rerun}\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}"


def _start(folder: Path, config: str, force: bool) -> None:
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
    command = f"ndvit {_command(planned)} --config {shlex.quote(str(config))} --output NEW_FOLDER"
    facts = planned.facts()
    if data.task.learns_from_targets:
        facts |= {"answer": describe_weights(run.model.network), "probabilities": str(trained.calibration)}
        if not (transformers(run.model.network) or trained.calibration.examples):
            facts["probabilities"] = "calibrated by leaving one training example out"
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
    page = Report(
        title=f"{data.name} · {run.model.provenance['model']}",
        summary=facts,
        notes=data.notes,
        history=history,
        evaluation=evaluation,
        examples=data.test,
        view=planned.preprocess.view,
        config=settings,
        command=command if written else f"# in Python, on the same arrays: {_command(planned)}(arrays, ...)",
    )
    write_report(page, run.report)
    replace_file(run.folder / RESULTS_FILE, json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False))
    run.model.save(run.folder / MODEL_FILE)


def _as_written(source: Any, weights: bool = False) -> str | None:
    """A source as config.yaml stores it: paths are absolute; None for arrays."""
    if not isinstance(source, str | Path):
        return None
    source, part = split_part(source) if weights else (source, None)
    path = Path(source).expanduser()
    is_name = isinstance(source, str) and (source.lower() in builtin_sources() or source.lower().startswith("ucr:"))
    written = str(path.resolve()) if path.exists() and (weights or not is_name) else str(source)
    return written if part is None else f"{written}#{part}"


def _teacher_as_written(teacher: Any) -> str | None:
    if teacher is None or isinstance(teacher, str | Path):
        return _as_written(teacher, weights=True)
    return f"{_IN_MEMORY}{type(teacher).__name__}"


def _new_folder(request: Request, output: str | Path | None, force: bool) -> Path:
    """The folder to write, which does not exist, is empty, or holds a run that may be replaced.

    Requests that cannot work are refused as far as possible without reading data.
    """
    options, pretrains = request.options, not task_class(request.task).learns_from_targets
    if pretrains:
        _, options = take_pretraining_options(options)
    split_options(options)
    check_preset(request.preset)
    if not request.test_fraction and not pretrains:
        raise ValueError("test_fraction must be above 0: a run ends with a test")
    if output is None:
        preset = f"pretrained-{task_class(request.task).name}" if pretrains else request.preset
        network = source_name(request.weights) if request.weights else preset
        name = f"{source_name(request.source)}-{request.model or network}"[:100]
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
        head = file.read(len(_HEAD))
    return head == _HEAD or (not head and contents(folder) == [config])  # earlier versions first wrote an empty one
