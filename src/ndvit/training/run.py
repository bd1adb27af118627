"""One run from a source to a report: what the command line and the Python functions of the same names both do."""

import json
import platform
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ndvit import __version__
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.sources.load import builtin_sources, load_source
from ndvit.evaluation.calibration import calibrate
from ndvit.evaluation.metrics import Evaluation, unbalanced
from ndvit.evaluation.report import MAX_CARDS, Report, write_report
from ndvit.files import replace_file
from ndvit.inference.batches import pick_device, predict_probabilities
from ndvit.network.committee import Model
from ndvit.training.fit import FitResult, check_tracker
from ndvit.training.learn import Adapted, Say, open_to_train, prepare, source_name
from ndvit.training.plan import split_options
from ndvit.training.presets import check_preset, choose
from ndvit.weights.file import MODEL_FILE, Described, save_model

CONFIG_FILE, RESULTS_FILE, REPORT_FILE = "config.yaml", "results.json", "report.html"
_HEAD = "# ndvit "  # how the config.yaml of a run begins
_IN_MEMORY = "in memory: "  # a teacher that config.yaml cannot name
_SETTINGS: dict[str, Any] = {  # of a run, beside the fields of Recipe and ViTConfig
    "source": str | None,
    "preset": str,
    "model": str | None,
    "weights": str | None,
    "members": int,
    "teacher": str | None,
    "test_fraction": float | int,
    "skip_bad": bool,
}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished (or interrupted) training run.

    Attributes:
        folder: where its files are: model.safetensors, config.yaml, report.html, results.json, and what the training
            left, metrics.csv and checkpoints/; that of an ensemble is in members/0, members/1, ...
        model: the trained network or ensemble in eval mode, with `classes` and `preprocess`.
        evaluation: its answers on the test set; None if the run was interrupted.
        fit: steps, seconds and history of the training; of an ensemble, see `Learned.fit`.
    """

    folder: Path
    model: Model
    evaluation: Evaluation | None
    fit: FitResult

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training; `resume(run.folder)` goes on."""
        return self.fit.interrupted

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / REPORT_FILE


def train(
    source: Any,
    *,
    preset: str = "auto",
    model: str | None = None,
    weights: str | Path | None = None,
    members: int = 1,
    teacher: Any = None,
    output: str | Path | None = None,
    force: bool = False,
    test_fraction: float = 0.2,
    skip_bad: bool = False,
    progress: bool = True,
    say: Say = print,
    **options: Any,
) -> Run:
    """Train a classifier on a source and leave a run folder behind.

    Args:
        source: a built-in name, `ucr:NAME`, a path, or arrays (X, y) or (X_train, y_train, X_test, y_test).
        preset: a network and a recipe that belong together, see `PRESETS`: "signal", "fast", "finetune", ...; "auto"
            chooses by the model or the data. What is given besides takes the place of the preset's.
        model: a name that `create_model` knows; `vit_SIZE` and `signal_SIZE` take dimensions and patch from the data.
            None is the preset's, or the network of the weights.
        weights: trained weights to begin with, as `load_model` takes them: a file, a run, a published name, `hf:...`.
        members: networks in an ensemble, trained one after the other from the seeds seed, seed + 1, ...; 1 is a network
            alone.
        teacher: whom the networks learn from beside the labels, see `make_teacher`: minirocket, multirocket, an earlier
            run or anything that `load_model` takes, a torch module, or a classifier of scikit-learn's kind.
        output: the run folder; none makes a new one under `runs/`.
        force: replace an existing run folder.
        test_fraction: share of the examples held out where the source has no test set of its own.
        skip_bad: leave unreadable files out (and say so) instead of stopping.
        progress: show progress bars.
        say: what is done with each line that tells what happens.
        **options: any field of `Recipe` (seed, steps, learning_rate, ...) or of `ViTConfig` (patch_size, depth, ...).

    Raises:
        ValueError: for data, options or combinations that cannot work, saying how to mend them.
        FileExistsError: if `output` exists and `force` is not set.
    """
    split_options(options)  # refused before anything is read
    check_preset(preset)
    if weights is not None and model is not None:
        raise ValueError(f"weights bring their own network: give model={model!r} or weights, not both")
    chosen = preset if weights is None else source_name(weights)
    folder = _new_folder(output, f"{source_name(source)}-{model or chosen}", force)
    settings = {
        "source": _written(source),
        "preset": preset,
        "model": model,
        "weights": _written(weights, weights=True),
        "members": members,
        "teacher": _teacher_name(teacher),
        "test_fraction": test_fraction,
        "skip_bad": skip_bad,
        **options,
    }
    return _run(source, teacher, settings, folder, resume=False, progress=progress, say=say)


def resume(
    folder: str | Path, *, source: Any = None, teacher: Any = None, progress: bool = True, say: Say = print
) -> Run:
    """Continue an interrupted run to the result that it would have had unbroken.

    Args:
        folder: the run folder.
        source: the same arrays again, for a run that was given arrays; else what config.yaml names is read.
        teacher: the same again, where it was a module or a classifier in memory.
        progress: show progress bars.
        say: what is done with each line that tells what happens.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if the run is finished, or its data or settings have changed.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: it has no {CONFIG_FILE}")
    if (folder / MODEL_FILE).is_file():
        raise ValueError(f"{folder} is finished: it has a {MODEL_FILE}. Train anew with another output folder")
    lacking = {"preset": "basic", "weights": None, "members": 1, "teacher": None}  # in older runs
    settings = lacking | read_config(folder / CONFIG_FILE)
    for name, kind in _SETTINGS.items():
        if name not in settings or not isinstance(settings[name], kind):
            raise ValueError(f"{folder / CONFIG_FILE} is not as the run wrote it: {name} is {settings.get(name)!r}")
    if (settings["model"] is None) == (settings["weights"] is None):
        raise ValueError(f"{folder / CONFIG_FILE} is not as the run wrote it: it must have either model or weights")
    source = settings["source"] if source is None else source
    if source is None:
        raise ValueError(f"{folder} was trained on arrays: resume it from Python with source= the same arrays")
    teacher = settings["teacher"] if teacher is None else teacher
    return _run(source, teacher, settings, folder, resume=True, progress=progress, say=say)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config.yaml."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings as `name: value` lines, got {type(settings).__name__}")
    return settings


def _run(
    source: Any, teacher: Any, settings: dict[str, Any], folder: Path, *, resume: bool, progress: bool, say: Say
) -> Run:
    """The run that `settings` describe; config.yaml will have them, with the values that were left open."""
    started = time.perf_counter()
    about = {name: settings[name] for name in _SETTINGS}
    recipe, overrides = split_options({name: value for name, value in settings.items() if name not in _SETTINGS})
    if not about["test_fraction"]:
        raise ValueError("test_fraction must be above 0: a run ends with a test")
    if isinstance(teacher, str) and teacher.startswith(_IN_MEMORY):
        kind = teacher.removeprefix(_IN_MEMORY)
        raise ValueError(f"the teacher of this run was a {kind} in memory: from Python, give teacher= the same again")
    pick_device(recipe.device)  # before anything is read or written
    check_tracker(recipe)
    weights: Adapted | Described | None = Adapted.read(folder) if resume else None
    if about["weights"] is not None and weights is None:
        weights = open_to_train(about["weights"], overrides)  # before a large source is read
    data = load_source(
        source, test_fraction=about["test_fraction"], seed=recipe.seed, skip_bad=about["skip_bad"], progress=progress
    )
    if not resume:
        given = {name: value for name, value in settings.items() if name not in _SETTINGS}
        trained = weights.config if isinstance(weights, Described) else None
        choice = choose(about["preset"], data, about["model"], given, trained)
        for note in choice.notes:
            say(note)
        about |= {"preset": choice.preset, "model": choice.model}
        recipe, overrides = split_options(choice.options)
    told = {name: about[name] for name in ("source", "test_fraction")}
    plan = {name: about[name] for name in ("model", "members")}
    prepared = prepare(data, recipe, overrides, **plan, weights=weights, teacher=teacher, told=told, say=say)
    if not resume:
        _write_settings(folder, {**about, **overrides, **recipe.to_dict()})
    learned = prepared.learn(folder, resume=resume, progress=progress, say=say)
    model, result = learned.model, learned.fit
    if learned.interrupted:
        say(f"stopped at step {learned.fits[-1].steps:,}; go on with: ndvit train --resume {shlex.quote(str(folder))}")
        return Run(folder, model, None, result)

    val = None if learned.data.val is None else Inputs(learned.data.val, model.preprocess)
    calibration = calibrate(model, val, recipe.batch_size, recipe.device, progress)
    if calibration.examples:
        say(str(calibration))
    inputs = Inputs(data.test, model.preprocess)
    answers = predict_probabilities(model, inputs, recipe.batch_size, recipe.device, progress)
    assert data.test.labels is not None
    evaluation = Evaluation(data.classes, data.test.labels, answers, tuple(data.test.names))
    model.provenance["test_accuracy"] = evaluation.accuracy
    last_seed = recipe.seed + about["members"] - 1
    facts = learned.facts | {
        "probabilities": str(calibration),
        "time": f"{result.seconds:.0f} s of training{' since the run was resumed' if resume else ''}, "
        f"{time.perf_counter() - started:.0f} s in all",
        "device": f"{result.device}, threads: {torch.get_num_threads()}",
        "versions": f"ndvit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": f"{recipe.seed}" if last_seed == recipe.seed else f"{recipe.seed} to {last_seed}",
    }
    run = Run(folder, model.cpu(), evaluation, result)
    _write_results(run, learned.data, facts)
    right = len(evaluation) - len(evaluation.mistakes)
    uneven = any(unbalanced(part.labels) for part in (data.train, data.test) if part.labels is not None)
    balanced = f", balanced accuracy {evaluation.balanced_accuracy:.4f}," if uneven else ""
    say(
        f"test accuracy {evaluation.accuracy:.4f} ({right:,} of {len(evaluation):,}){balanced} "
        f"after {result.seconds:.0f} s of training"
    )
    say(f"report: {run.report}")
    return run


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a run folder with its config.yaml, and by force lose the run that was there."""
    again = f"ndvit train --config {CONFIG_FILE} --output NEW_FOLDER"
    if settings["source"] is None:
        again = "the source was arrays; in Python, train(arrays, **settings)"
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}  # as YAML has them
    text = f"{_HEAD}{__version__}. Rerun: {again}\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}"
    if folder.is_dir() and any(folder.iterdir()):  # not before all that can be refused was refused
        shutil.rmtree(folder)
    _claim(folder, text)


def _claim(folder: Path, text: str) -> None:
    """Write config.yaml into a folder that no other run writes into."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / CONFIG_FILE).touch(exist_ok=False)
    except FileExistsError:
        raise FileExistsError(f"another run has just begun in {folder}: choose another output") from None
    replace_file(folder / CONFIG_FILE, text)


def _write_results(run: Run, data: Source, facts: dict[str, str]) -> None:
    """The files that a finished run leaves; the model comes last, because a folder with a model is a finished run."""
    evaluation, config = run.evaluation, run.folder / CONFIG_FILE
    assert evaluation is not None
    command = f"ndvit train --config {shlex.quote(str(config))} --output NEW_FOLDER"
    page = Report(
        title=f"{data.name} · {run.model.provenance['model']}",
        summary=facts,
        notes=data.notes,
        history=run.fit.history,
        evaluation=evaluation,
        mistakes=[(int(i), data.test[int(i)]) for i in evaluation.mistakes[:MAX_CARDS]],
        config=config.read_text(encoding="utf-8"),
        command=command if run.model.provenance["source"] else "# in Python, on the same arrays: train(arrays, ...)",
    )
    write_report(page, run.report)
    replace_file(run.folder / RESULTS_FILE, json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False))
    save_model(run.model, run.folder / MODEL_FILE)


def _written(source: Any, weights: bool = False) -> str | None:
    """A source as config.yaml has it: paths absolute, to be found from anywhere; None for arrays."""
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    named = (
        not weights
        and isinstance(source, str)
        and (source.lower() in builtin_sources() or source.lower().startswith("ucr:"))
    )
    return str(path.resolve()) if path.exists() and not named else str(source)


def _teacher_name(teacher: Any) -> str | None:
    if teacher is None or isinstance(teacher, str | Path):
        return _written(teacher, weights=True)
    return f"{_IN_MEMORY}{type(teacher).__name__}"


def _new_folder(output: str | Path | None, name: str, force: bool) -> Path:
    if output is None:
        numbered = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
        return next(folder for folder in numbered if not folder.exists())
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not force:
            raise FileExistsError(f"{folder} exists: choose another output, or replace it with --force (force=True)")
        config = folder / CONFIG_FILE
        if not config.is_file() or not config.read_text(encoding="utf-8", errors="replace").startswith(_HEAD):
            raise FileExistsError(f"{folder} exists and is no run of ndvit's, so it is not replaced even by force")
    return folder
