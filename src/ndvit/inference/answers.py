"""What a trained model says of examples: tested on labelled data, or asked for the classes of new files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ndvit.config.recipe import Device
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.base import Preprocess, same_kind
from ndvit.data.preprocess.signals import note_longer
from ndvit.data.sources.load import builtin_sources, load_examples, load_source
from ndvit.evaluation.metrics import Evaluation
from ndvit.exporting.runtimes import ENDINGS, HARMLESS, Runner, is_exported, load_exported
from ndvit.inference.batches import pick_device, predict_probabilities
from ndvit.network.committee import Model
from ndvit.weights.imagenet import imagenet_classes, like_imagenet, match_classes
from ndvit.weights.loading import load_model

Split = Literal["auto", "test", "train", "all"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example: its name, the class, and the probability of every class."""

    name: str
    label: str
    probabilities: dict[str, float]


def evaluate(
    run: str | Path | Model | Runner,
    source: Any,
    *,
    split: Split = "auto",
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    say: Any = print,
) -> Evaluation:
    """Test a trained model on labelled data.

    Args:
        run: a run folder, a model file or a loaded model; or what `export` wrote, see `load_exported`,
            or `compile` made.
        source: as in `train`.
        split: "test", "train" or "all". "auto" is the test set where the source has one or where the model was trained
            on this very source (which is then split as it was in training); other data is tested whole.
        skip_bad: leave unreadable files out.
        batch_size: examples at a time.
        device: where to compute.
        progress: show a progress bar.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: if the source's classes are not the model's, or the data is of another kind.
    """
    if split not in ("auto", "test", "train", "all"):
        raise ValueError(f"split must be one of auto, test, train, all; got {split!r}")
    model, classes, preprocess = _trained(run, batch_size, device, say)
    told = model.provenance
    known = same_source(source, told.get("source"))
    held = told.get("test_fraction", 0.2) if split in ("test", "train") or (split == "auto" and known) else 0
    seed = told.get("seed", 0)
    data = load_source(source, test_fraction=held, seed=seed, skip_bad=skip_bad, progress=progress, to_train=False)
    same_kind(data.kind, preprocess, data.name)
    try:
        index, assumed = match_classes(data.classes, classes)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error
    for note in assumed:
        say(f"{data.name}: {note}")
    if split == "auto":
        split = "test" if len(data.test) else "all"
    for note in data.notes:
        say(note)
    parts = {"train": data.train, "val": data.val, "test": data.test}
    chosen = [e for name, e in parts.items() if e is not None and len(e) and split in (name, "all")]
    if not chosen:
        raise ValueError(f"{data.name} has no examples of the {split} set")
    say(f"{data.name}: {sum(map(len, chosen)):,} examples ({'all' if split == 'all' else f'the {split} set'})")
    if longer := note_longer(chosen, preprocess):
        say(longer)
    answers = [_ask(model, Inputs(examples, preprocess), batch_size, device, progress) for examples in chosen]
    to_model = np.array([index[c] for c in data.classes])
    labels = [to_model[examples.labels] for examples in chosen]
    names = tuple(name for examples in chosen for name in examples.names)
    return Evaluation(classes, np.concatenate(labels), np.concatenate(answers), names)


def predict(
    run: str | Path | Model | Runner,
    *paths: Any,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    say: Any = print,
) -> list[Prediction]:
    """Name the class of new examples.

    Args:
        run: a run folder, a model file or a loaded model; or what `export` wrote, see `load_exported`,
            or `compile` made.
        paths: pictures, recordings or files of arrays (one file may hold many examples), or folders of such files;
            or arrays (n, time) or (n, channels, time, ...), lists of arrays, lists of PIL images.
        skip_bad: leave unreadable files out.
        batch_size: examples at a time.
        device: where to compute.
        progress: show a progress bar.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: if a file cannot be read or is not of the kind that the model was trained on.
    """
    model, classes, preprocess = _trained(run, batch_size, device, say)
    if not paths:
        raise ValueError("nothing to predict: give files or folders")

    dims = len(preprocess.size) if preprocess.kind == "signal" else None

    def answers() -> Iterator[Prediction]:
        for path in paths:
            kind, examples, notes = load_examples(path, skip_bad=skip_bad, dims=dims, channels=preprocess.channels)
            same_kind(kind, preprocess, str(path) if isinstance(path, str | Path) else "X")
            for note in notes:
                say(note)
            if longer := note_longer([examples], preprocess):
                say(longer)
            rows = _ask(model, Inputs(examples, preprocess), batch_size, device, progress)
            for name, row in zip(examples.names, rows, strict=True):
                said = dict(zip(classes, map(float, row), strict=True))
                yield Prediction(str(name), max(said, key=said.__getitem__), said)

    return list(answers())


def _ask(model: Model | Runner, inputs: Inputs, batch_size: int, device: str, progress: bool) -> np.ndarray:
    if isinstance(model, Runner):
        return model.probabilities(inputs, batch_size, progress)
    return predict_probabilities(model, inputs, batch_size, device, progress)


def _open(run: str | Path | Model | Runner, device: str) -> Model | Runner:
    """The model that is meant; an exported file only if nothing in it can run."""
    if not isinstance(run, Model | Runner):
        if not is_exported(run):
            return load_model(run)
        if not str(run).endswith(tuple(ENDINGS[format] for format in HARMLESS)):
            raise ValueError(
                f"{run} is not opened here, as such files can run code of whoever made them: export to onnx or "
                "openvino, or, if it is your own, in Python: predict(ndvit.exporting.runtimes.load_exported(FILE), ...)"
            )
        run = load_exported(run)
    if isinstance(run, Runner) and device not in ("auto", run.device, run.device.partition(":")[0]):
        raise ValueError(f"{run.name} runs on the {run.device}: leave device {device} out, or give the run itself")
    return run


def _trained(
    run: str | Path | Model | Runner, batch_size: int, device: str, say: Any
) -> tuple[Model | Runner, tuple[str, ...], Preprocess]:
    """The model, its classes and its preprocessing, after a look at how it shall be asked."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size}")
    pick_device(device)
    model = _open(run, device)
    if model.untrained:
        some = ", ".join(model.untrained[:4]) + (", ..." if len(model.untrained) > 4 else "")
        raise ValueError(
            f"{len(model.untrained)} tensors of the model ({some}) are newly initialised, so its answers would mean "
            "nothing: train it first (ndvit train SOURCE --weights FILE), or set model.untrained = () if you have"
        )
    classes: tuple[str, ...] = model.classes
    own = model.load_report is None or model.load_report.kind == "ndvit"  # of other layouts it was asked before
    if not classes and own and like_imagenet(model.config):
        classes = imagenet_classes()
        say("assumed: the classes are those of ImageNet-1k, as there are 1000 outputs")
    if not classes or model.preprocess is None:
        lacking = [n for n, v in (("classes", classes), ("preprocessing", model.preprocess)) if not v]
        raise ValueError(f"the model does not know its {' and '.join(lacking)}: train it, or in Python set them on it")
    if model is not run and model.load_report is not None and model.load_report.assumed:
        say(f"assumed of these weights (`ndvit info` says more): {'; '.join(model.load_report.assumed)}")
    return model, classes, model.preprocess


def same_source(source: Any, told: str | None) -> bool:
    """Whether a source is the one that a model says it was trained on, however either is written."""
    if told is None or not isinstance(source, str | Path):
        return False
    if str(source).lower() in builtin_sources():
        return str(source).lower() == told.lower()
    return str(source) == told or Path(source).expanduser().resolve() == Path(told).expanduser().resolve()
