"""One run from a source to a report: what the command line and the Python functions of the same names both do."""

import json
import platform
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ndvit import __version__
from ndvit.config import ViTConfig
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import preprocess_from_dict
from ndvit.data.source import builtin_sources, load_source
from ndvit.evaluation import Evaluation
from ndvit.files import replace_file
from ndvit.network import VisionTransformer
from ndvit.report import MAX_CARDS, Report, write_report
from ndvit.training.fit import FitResult, check_tracker, fit
from ndvit.training.inference import pick_device, predict_probabilities
from ndvit.training.plan import plan_fine_tuning, plan_model, split_options, with_validation
from ndvit.training.recipe import Recipe
from ndvit.weights.file import MODEL_FILE, Described, save_model
from ndvit.weights.loading import build_model
from ndvit.weights.opening import open_weights
from ndvit.weights.report import LoadReport

DEFAULT_MODEL = "vit_pico"
CONFIG_FILE, RESULTS_FILE, REPORT_FILE = "config.yaml", "results.json", "report.html"
_NETWORK_FILE = "checkpoints/network.json"  # what weights were adapted to: a run that is resumed needs them no more
_HEAD = "# ndvit "  # how the config.yaml of a run begins
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished (or interrupted) training run.

    Attributes:
        folder: where its files are: model.safetensors, config.yaml, metrics.csv, report.html, checkpoints/.
        model: the trained network in eval mode, with `classes` and `preprocess`.
        evaluation: its answers on the test set; None if the run was interrupted.
        fit: steps, seconds and history of the training.
    """

    folder: Path
    model: VisionTransformer
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
    model: str | None = None,
    weights: str | Path | None = None,
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
        model: a name that `create_model` knows; `vit_SIZE` takes its dimensions and patch from the data. None is
            `vit_pico`, or the network of the weights.
        weights: trained weights to begin with, as `load_model` takes them: a file, a run, a published name, `hf:...`.
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
    recipe, overrides = split_options(options)
    if weights is None:
        model = model or DEFAULT_MODEL
    elif model is not None:
        raise ValueError(f"weights bring their own network: give model={model!r} or weights, not both")
    folder = _new_folder(output, f"{source_name(source)}-{model or source_name(weights)}", force)
    settings = {
        "source": _written(source),
        "model": model,
        "weights": _written(weights, weights=True),
        "test_fraction": test_fraction,
        "skip_bad": skip_bad,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in overrides.items()},  # as YAML has them
        **recipe.to_dict(),
    }
    return _run(source, settings, folder, resume=False, progress=progress, say=say)


def resume(folder: str | Path, *, source: Any = None, progress: bool = True, say: Say = print) -> Run:
    """Continue an interrupted run to the result that it would have had unbroken.

    Args:
        folder: the run folder.
        source: the same arrays again, for a run that was given arrays; else what config.yaml names is read.
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
    settings = {"weights": None} | read_config(folder / CONFIG_FILE)  # runs before there were weights lack the line
    kinds = {
        "source": str | None,
        "model": str | None,
        "weights": str | None,
        "test_fraction": float | int,
        "skip_bad": bool,
    }
    for name, kind in kinds.items():
        if name not in settings or not isinstance(settings[name], kind):
            raise ValueError(f"{folder / CONFIG_FILE} is not as the run wrote it: {name} is {settings.get(name)!r}")
    if (settings["model"] is None) == (settings["weights"] is None):
        raise ValueError(f"{folder / CONFIG_FILE} is not as the run wrote it: it must have either model or weights")
    source = settings["source"] if source is None else source
    if source is None:
        raise ValueError(f"{folder} was trained on arrays: resume it from Python with source= the same arrays")
    return _run(source, settings, folder, resume=True, progress=progress, say=say)


def source_name(source: Any) -> str:
    """A short name for a source of data or of weights, fit for a folder."""
    if not isinstance(source, str | Path):
        return "arrays"
    text = str(source)
    if not Path(text).exists() and text.startswith(("ucr:", "hf:")):
        return text.partition(":")[2].replace("/", "-").lower()
    path = Path(text).resolve()
    name = path.stem if path.suffix and (path.exists() or "/" in text) else path.name
    return name.removesuffix("_TRAIN").lower() or "data"


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config.yaml."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold settings as `name: value` lines, got {type(settings).__name__}")
    return settings


def _run(source: Any, settings: dict[str, Any], folder: Path, *, resume: bool, progress: bool, say: Say) -> Run:
    """The run that `settings`, the content of config.yaml, describes."""
    started = time.perf_counter()
    test_fraction = settings["test_fraction"]
    about_data = ("source", "model", "weights", "test_fraction", "skip_bad")
    recipe, overrides = split_options({k: v for k, v in settings.items() if k not in about_data})
    if not test_fraction:
        raise ValueError("test_fraction must be above 0: a run ends with a test")
    pick_device(recipe.device)  # before anything is read or written
    check_tracker(recipe)
    kept = folder / _NETWORK_FILE if resume and (folder / _NETWORK_FILE).is_file() else None
    fresh = settings["weights"] is not None and kept is None
    weights = open_weights(settings["weights"], overrides) if fresh else None  # before a large source is read
    data = load_source(
        source, test_fraction=test_fraction, seed=recipe.seed, skip_bad=settings["skip_bad"], progress=progress
    )
    data = with_validation(data, recipe)
    torch.manual_seed(recipe.seed)
    model, name = _make_model(data, settings, recipe, overrides, weights, kept)
    config, preprocess = model.config, model.preprocess
    if model.load_report is not None:
        say(str(model.load_report))
    licence = model.provenance.get("licence")  # of the weights, which the trained model inherits
    model.provenance = {
        "source": settings["source"],
        "model": name,
        "seed": recipe.seed,
        "test_fraction": test_fraction,
        "ndvit": __version__,
    }
    facts = {"model": f"{name}, {sum(p.numel() for p in model.parameters()):,} parameters"}
    if model.load_report is not None:
        model.provenance |= {"weights": model.load_report.source, "adapted": model.load_report.to_dict()["adapted"]}
        model.provenance |= {"licence": licence} if licence else {}
        facts["weights"] = _in_short(model.load_report)
    peak = recipe.peak_learning_rate(config.embed_dim, pretrained=model.load_report is not None)
    facts |= {
        "input": f"{preprocess.channels} x {_by(config.input_size)}, in patches of {_by(config.patch_size)}",
        "examples": f"{len(data.train):,} training, {len(data.val or ()):,} validation, {len(data.test):,} test",
        "classes": f"{len(data.classes)}",
        "steps": f"{recipe.total_steps(len(data.train)):,} of {recipe.batch_size * recipe.accumulate} examples, "
        f"peak learning rate {peak:.2g}",
    }
    for line in (*data.notes, "; ".join(f"{k}: {v}" for k, v in facts.items())):
        say(line)

    inputs = {part: Inputs(e, preprocess) for part, e in (("train", data.train), ("val", data.val)) if e is not None}
    if not resume:
        again = f"ndvit train --config {CONFIG_FILE} --output NEW_FOLDER"
        if settings["source"] is None:
            again = "the source was arrays; in Python, train(arrays, **settings)"
        text = f"{_HEAD}{__version__}. Rerun: {again}\n"
        text += yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        if folder.is_dir() and any(folder.iterdir()):  # by force; not before all that can be refused was refused
            shutil.rmtree(folder)
        _claim(folder, text)
        if model.load_report is not None:
            (folder / _NETWORK_FILE).parent.mkdir(exist_ok=True)
            known = {
                "config": config.to_dict(),
                "preprocess": preprocess.to_dict(),
                "provenance": {"licence": licence} if licence else {},
                "report": asdict(model.load_report),
            }
            replace_file(folder / _NETWORK_FILE, json.dumps(known, indent=1))
    result = fit(model, inputs["train"], inputs.get("val"), recipe, folder, resume=resume, progress=progress)
    if result.interrupted:
        say(f"stopped at step {result.steps:,}; go on with: ndvit train --resume {shlex.quote(str(folder))}")
        return Run(folder, model.eval(), None, result)

    answers = predict_probabilities(model, Inputs(data.test, preprocess), recipe.batch_size, recipe.device, progress)
    assert data.test.labels is not None
    evaluation = Evaluation(data.classes, data.test.labels, answers, tuple(data.test.names))
    model.untrained = ()
    model.provenance |= {"steps": result.steps, "test_accuracy": evaluation.accuracy}
    facts |= {
        "time": f"{result.seconds:.0f} s of training{' since the run was resumed' if resume else ''}, "
        f"{time.perf_counter() - started:.0f} s in all",
        "device": f"{result.device}, threads: {torch.get_num_threads()}",
        "versions": f"ndvit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": f"{recipe.seed}",
    }
    run = Run(folder, model.cpu(), evaluation, result)
    _write_results(run, data, facts)
    right = len(evaluation) - len(evaluation.mistakes)
    say(
        f"test accuracy {evaluation.accuracy:.4f} ({right:,} of {len(evaluation):,}) "
        f"after {result.seconds:.0f} s of training"
    )
    say(f"report: {run.report}")
    return run


def _make_model(
    data: Source,
    settings: dict[str, Any],
    recipe: Recipe,
    overrides: dict[str, Any],
    weights: Described | None,
    kept: Path | None,
) -> tuple[VisionTransformer, str]:
    """The network that is to be trained, new or with trained weights, and its name.

    A run that is resumed has the weights in its checkpoint, and what network they were adapted to in `kept`.
    """
    if settings["weights"] is None:
        preprocess, config = plan_model(data, settings["model"], recipe, overrides)
        model, name = VisionTransformer(config), settings["model"]
    else:
        name = source_name(settings["weights"])
        if weights is not None:
            preprocess, fitting = plan_fine_tuning(data, weights, recipe, overrides)
            model = build_model(weights, classes=data.classes, overrides=fitting, new_head=True)
        else:
            assert kept is not None
            facts = json.loads(kept.read_text(encoding="utf-8"))
            model = VisionTransformer(ViTConfig.from_dict(facts["config"]))
            preprocess = preprocess_from_dict(facts["preprocess"])
            model.provenance = facts["provenance"]
            model.load_report = LoadReport.from_json(facts["report"])
    model.classes, model.preprocess = data.classes, preprocess
    return model, name


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


def _in_short(report: LoadReport) -> str:
    counts = {"adapted": len(report.adapted), "new": len(report.new), "ignored": len(report.ignored)}
    rest = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"{report.source} ({report.kind} layout): {len(report.loaded)} tensors unchanged{rest}"


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


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
