"""One run from a source to a report: what the command line and the Python functions of the same names both do."""

import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ndvit import __version__
from ndvit.config import ViTConfig, named_config, plan_grid
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import Preprocess
from ndvit.data.source import Examples, Source, fit_preprocess, load_examples, load_source
from ndvit.evaluation import Evaluation
from ndvit.network import VisionTransformer
from ndvit.report import Report, write_report
from ndvit.training.fit import FitResult, fit
from ndvit.training.inference import predict_probabilities
from ndvit.training.recipe import Recipe
from ndvit.weights.file import MODEL_FILE, load_model, model_path, save_model

DEFAULT_MODEL = "vit_nano"
CONFIG_FILE = "config.yaml"
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
        return self.folder / "report.html"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example: its name, the class, and the probability of every class."""

    name: str
    label: str
    probabilities: dict[str, float]


def train(
    source: Any,
    *,
    model: str = DEFAULT_MODEL,
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
        model: a name that `create_model` knows. `vit_SIZE` takes its dimensions and patch from the data.
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
    name = source_name(source)
    folder = _new_folder(output, f"{name}-{model}", force)
    settings = {
        "source": str(source) if isinstance(source, str | Path) else None,
        "model": model,
        "test_fraction": test_fraction,
        "skip_bad": skip_bad,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in overrides.items()},
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
    settings = read_config(folder / CONFIG_FILE)
    source = settings["source"] if source is None else source
    if source is None:
        raise ValueError(f"{folder} was trained on arrays: resume it from Python with source= the same arrays")
    return _run(source, settings, folder, resume=True, progress=progress, say=say)


def evaluate(
    run: str | Path | VisionTransformer,
    source: Any,
    *,
    split: str = "test",
    skip_bad: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
    say: Say = print,
) -> Evaluation:
    """Test a trained model on labelled data.

    Args:
        run: a run folder, a model file or a loaded model.
        source: as in `train`.
        split: "test", "train" or "all". A source without a test set of its own is split as it was in training, so that
            "test" holds nothing that the model has learnt from.
        skip_bad: leave unreadable files out.
        batch_size: examples at a time.
        device: where to compute.
        progress: show a progress bar.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: if the source's classes are not the model's, or the data is of another kind.
    """
    model = run if isinstance(run, VisionTransformer) else load_model(run)
    classes, preprocess = _labels_of(model)
    split_seed = {"test_fraction": model.provenance.get("test_fraction", 0.2), "seed": model.provenance.get("seed", 0)}
    data = load_source(source, skip_bad=skip_bad, progress=progress, **split_seed)
    parts = {"train": [data.train], "test": [data.test], "all": [data.train, data.val, data.test]}
    if split not in parts:
        raise ValueError(f"split must be one of {', '.join(parts)}; got {split!r}")
    if unknown := [c for c in data.classes if c not in classes]:
        raise ValueError(
            f"{data.name} has classes the model does not know: {', '.join(unknown[:10])}. It knows {', '.join(classes)}"
        )
    for note in data.notes:
        say(note)
    to_model = np.array([classes.index(c) for c in data.classes])
    chosen = [examples for examples in parts[split] if examples is not None]
    probabilities = [_answers(model, examples, preprocess, batch_size, device, progress) for examples in chosen]
    labels = [to_model[examples.labels] for examples in chosen]
    names = tuple(name for examples in chosen for name in examples.names)
    return Evaluation(classes, np.concatenate(labels), np.concatenate(probabilities), names)


def predict(
    run: str | Path | VisionTransformer,
    *paths: str | Path,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
    say: Say = print,
) -> list[Prediction]:
    """Name the class of new examples.

    Args:
        run: a run folder, a model file or a loaded model.
        paths: pictures, recordings or files of arrays (one file may hold many examples), or folders of such files.
        skip_bad: leave unreadable files out.
        batch_size: examples at a time.
        device: where to compute.
        progress: show a progress bar.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: if a file cannot be read or is not of the kind that the model was trained on.
    """
    model = run if isinstance(run, VisionTransformer) else load_model(run)
    classes, preprocess = _labels_of(model)
    if not paths:
        raise ValueError("nothing to predict: give files or folders")
    predictions = []
    for path in paths:
        kind, examples, notes = load_examples(path, skip_bad=skip_bad)
        if kind != preprocess.kind:
            raise ValueError(f"{path} holds {kind}s, the model was trained on {preprocess.kind}s")
        for note in notes:
            say(note)
        for name, row in zip(
            examples.names, _answers(model, examples, preprocess, batch_size, device, progress), strict=True
        ):
            said = dict(zip(classes, map(float, row), strict=True))
            predictions.append(Prediction(str(name), max(said, key=said.__getitem__), said))
    return predictions


def split_options(options: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Sort keyword options into a recipe and overrides of the model's config; an unknown one is a ValueError."""
    recipe_fields = {f.name for f in fields(Recipe)}
    model_fields = {f.name for f in fields(ViTConfig)} - {"num_classes", "in_channels"} - recipe_fields
    for name in options:
        if name in ("num_classes", "in_channels"):
            raise ValueError(f"{name} follows from the data and cannot be set")
        if name not in recipe_fields | model_fields:
            import difflib

            near = difflib.get_close_matches(name, recipe_fields | model_fields, n=1)
            hint = f": did you mean {near[0]!r}?" if near else "; options are the fields of Recipe and ViTConfig"
            raise ValueError(f"unknown option {name!r}{hint}")
    recipe = Recipe.from_dict({k: v for k, v in options.items() if k in recipe_fields})
    return recipe, {k: v for k, v in options.items() if k in model_fields}


def source_name(source: Any) -> str:
    """A short name for a source, fit for a folder."""
    if not isinstance(source, str | Path):
        return "arrays"
    name = str(source).removeprefix("ucr:") if str(source).startswith("ucr:") else Path(source).resolve().stem
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
    started = time.perf_counter()
    settings = dict(settings)
    name = settings.pop("model")
    test_fraction, skip_bad = settings.pop("test_fraction"), settings.pop("skip_bad")
    said_source = settings.pop("source")
    recipe, overrides = split_options(settings)

    data = load_source(source, test_fraction=test_fraction, seed=recipe.seed, skip_bad=skip_bad, progress=progress)
    data = _with_validation(data, recipe)
    preprocess, config = plan_model(data, name, recipe, overrides)
    torch.manual_seed(recipe.seed)
    model = VisionTransformer(config)
    model.classes, model.preprocess = data.classes, preprocess
    model.provenance = {
        "source": said_source,
        "model": name,
        "seed": recipe.seed,
        "test_fraction": test_fraction,
        "ndvit": __version__,
    }
    notes = data.notes + _resampled(data, preprocess)
    for note in notes:
        say(note)
    parameters = sum(p.numel() for p in model.parameters())
    size = " x ".join(map(str, config.input_size))
    say(
        f"{name}: {parameters:,} parameters, {config.in_channels} x {size} in patches of "
        f"{' x '.join(map(str, config.patch_size))}; {len(data.train):,} training and {len(data.test):,} test examples, "
        f"{len(data.classes)} classes, {recipe.total_steps(len(data.train)):,} steps"
    )

    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        everything = {"source": said_source, "model": name, "test_fraction": test_fraction, "skip_bad": skip_bad}
        _write_config(folder / CONFIG_FILE, everything | overrides | recipe.to_dict())
    val = None if data.val is None else Inputs(data.val, preprocess)
    result = fit(model, Inputs(data.train, preprocess), val, recipe, folder, resume=resume, progress=progress)
    model.eval()
    if result.interrupted:
        say(f"stopped at step {result.steps}; go on with: ndvit train --resume {shlex.quote(str(folder))}")
        return Run(folder, model, None, result)

    probabilities = _answers(model, data.test, preprocess, recipe.batch_size, recipe.device, progress)
    assert data.test.labels is not None
    evaluation = Evaluation(data.classes, data.test.labels, probabilities, tuple(data.test.names))
    model.provenance |= {"steps": result.steps, "test_accuracy": evaluation.accuracy}
    model = model.cpu()
    summary = {
        "model": f"{name}, {parameters:,} parameters",
        "input": f"{config.in_channels} x {size}, patches of {' x '.join(map(str, config.patch_size))}",
        "examples": f"{len(data.train):,} training, {len(data.val) if data.val else 0:,} validation, {len(data.test):,} test",
        "classes": f"{len(data.classes)}",
        "steps": f"{result.steps:,} of {recipe.batch_size * recipe.accumulate} examples",
        "time": f"{result.seconds:.0f} s of training, {time.perf_counter() - started:.0f} s in all"
        + (" (since the run was resumed)" if resume else ""),
        "device": f"{result.device}, {torch.get_num_threads()} threads",
        "versions": f"ndvit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": f"{recipe.seed}",
    }
    worst = [(int(i), data.test[int(i)]) for i in evaluation.mistakes[:24]]
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    command = f"ndvit train --config {shlex.quote(str(folder / CONFIG_FILE))} --output NEW_FOLDER"
    page = Report(f"{data.name} · {name}", summary, notes, result.history, evaluation, worst, text, command)
    write_report(page, folder / "report.html")
    _write_text(folder / "results.json", json.dumps(evaluation.to_dict(), indent=1))
    save_model(model, folder / MODEL_FILE)  # last: a folder with a model is a finished run
    right = round(evaluation.accuracy * len(data.test))
    say(
        f"test accuracy {evaluation.accuracy:.4f} ({right} of {len(data.test)}) after {result.seconds:.0f} s of training"
    )
    say(f"report: {folder / 'report.html'}")
    return Run(folder, model, evaluation, result)


def plan_model(data: Source, name: str, recipe: Recipe, overrides: Mapping[str, Any]) -> tuple[Preprocess, ViTConfig]:
    """Fit the preprocessing to the training data and the named model to both.

    `input_size` is the user's, or the one in the model's name, or the data's own, rounded up to whole patches. One
    number for data of several dimensions is the side of a square or cube.
    """
    named = named_config(name, **{k: v for k, v in overrides.items() if k not in ("input_size", "patch_size")})
    dims = len(fit_dims(data))
    size, patch = overrides.get("input_size"), overrides.get("patch_size")
    if "_patch" in name:
        if len(named.input_size) != dims:
            raise ValueError(
                f"{name} reads pictures, but {data.name} has {dims} dimension{'s' * (dims > 1)}: "
                f"use {name.partition('_patch')[0]}, which takes its dimensions from the data"
            )
        size, patch = size or named.input_size, patch or named.patch_size
    if size is not None:
        size = tuple(size) if isinstance(size, list | tuple) else (size,)
        size = size * dims if len(size) == 1 else size
        if len(size) != dims:
            raise ValueError(f"input_size {size} has {len(size)} axes, but the examples of {data.name} have {dims}")
    preprocess = fit_preprocess(data, size=size)
    patch, whole = plan_grid(preprocess.size, patch)
    if size is not None and whole != tuple(size):
        raise ValueError(f"input_size {tuple(size)} is not divisible by patch_size {patch}: use {whole}")
    preprocess = replace(preprocess, size=whole)  # type: ignore[type-var]  # every Preprocess is a dataclass
    # the article's weights need more steps than little data deserves, see ViTConfig.weight_init
    values = {"weight_init": "balanced", **overrides} | {
        "input_size": whole,
        "patch_size": patch,
        "in_channels": preprocess.channels,
        "num_classes": len(data.classes),
        "drop_path_rate": recipe.drop_path_rate,
    }
    return preprocess, named_config(name, **values)


def fit_dims(data: Source) -> tuple[int, ...]:
    """The grid of the first training example."""
    example = data.train[0]
    if hasattr(example, "values"):
        return example.values.shape[1:]
    return example.shape[1:] if isinstance(example, np.ndarray) else example.size


def _with_validation(data: Source, recipe: Recipe) -> Source:
    """Hold a validation set out of the training set, where the recipe wants one and the source has none."""
    if data.val is not None:
        return data
    fraction = recipe.val_fraction
    if fraction is None:
        fraction = 0.1 if len(data.train) >= 2000 else 0.0
    if not fraction:
        return data
    from ndvit.data.source import hold_out

    keep, held = hold_out(data.train.labels, fraction, recipe.seed, data.classes)
    train, val = data.train.subset(keep), data.train.subset(held)
    note = f"validation: {len(val):,} of the {len(data.train):,} training examples, stratified, seed {recipe.seed}"
    return replace(data, train=train, val=val, notes=(*data.notes, note))


def _resampled(data: Source, preprocess: Preprocess) -> tuple[str, ...]:
    """Say how many test examples in memory are longer than the network's input and so lose resolution."""
    if not data.test.in_memory:
        return ()
    long = sum(not preprocess.fits(data.test[i]) for i in range(len(data.test)))
    size = " x ".join(map(str, preprocess.size))
    return (f"{long} of {len(data.test)} test examples are longer than {size} and are resampled to it",) if long else ()


def _answers(
    model: VisionTransformer, examples: Examples, preprocess: Preprocess, batch_size: int, device: str, progress: bool
) -> np.ndarray:
    return predict_probabilities(model, Inputs(examples, preprocess), batch_size, device, progress)


def _labels_of(model: VisionTransformer) -> tuple[tuple[str, ...], Preprocess]:
    if not model.classes or model.preprocess is None:
        raise ValueError("the model does not know its classes or its preprocessing: train it, or set both on it")
    return model.classes, model.preprocess


def _new_folder(output: str | Path | None, name: str, force: bool) -> Path:
    if output is None:
        numbered = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
        return next(folder for folder in numbered if not folder.exists())
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not force:
            raise FileExistsError(f"{folder} exists: choose another output, or replace it with --force (force=True)")
        if not (folder / CONFIG_FILE).is_file():
            raise FileExistsError(f"{folder} exists and is no run of ndvit's, so it is not replaced even by force")
        shutil.rmtree(folder)
    return folder


def _write_config(path: Path, settings: Mapping[str, Any]) -> None:
    head = f"# ndvit {__version__}. Rerun: ndvit train --config {CONFIG_FILE} --output NEW_FOLDER\n"
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    _write_text(path, head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
