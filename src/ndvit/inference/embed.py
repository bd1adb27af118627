"""Embeddings: what a network makes of examples before its head, as a table, and what it is worth as it is."""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ndvit.config.recipe import Device, Recipe
from ndvit.data.examples import Examples, Source, hold_out
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.base import same_kind
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.folders import medium, printable
from ndvit.data.sources.hub import is_hub
from ndvit.data.sources.load import load_examples, load_source
from ndvit.evaluation.metrics import Evaluation
from ndvit.files import replace_file
from ndvit.inference.answers import Split, same_source
from ndvit.inference.batches import pick_device, predict_features
from ndvit.network.committee import Ensemble, Model
from ndvit.network.vit import HEADS
from ndvit.training.plan import plan_fine_tuning
from ndvit.training.probe import logistic_regression, vote
from ndvit.weights.file import Described
from ndvit.weights.loading import build_model, load_model

FORMATS = (".npz", ".parquet")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of examples, with what is known of them.

    Attributes:
        vectors: (n, width) float32.
        names: (n,) of the examples: files below the folder that was given (or beside the file), or numbers.
        labels: (n,) names of their classes; empty texts where they are not known.
        splits: (n,) train, val or test; empty texts for examples without labels.
        classes: names of the data's classes; none without labels.
    """

    vectors: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write a table, whole or not at all.

        An .npz has the arrays embeddings, names, labels, splits and classes, numbers and texts without any pickle; a
        .parquet has the columns embeddings, names, labels and splits, and the classes as JSON in its metadata.

        Raises:
            FileExistsError: if the file exists and `force` is not set.
            ValueError: for another ending, or for .parquet without the pyarrow package.
        """
        path = Path(path)
        check_output(path, force)
        table = {"names": self.names, "labels": self.labels, "splits": self.splits}
        if path.suffix.lower() == ".npz":
            file = io.BytesIO()
            classes = np.array(self.classes, dtype=np.str_)
            np.savez(file, embeddings=self.vectors, classes=classes, **table)  # type: ignore[arg-type]
            replace_file(path, file.getvalue())
            return
        import pyarrow as pa
        from pyarrow import parquet

        vectors = pa.FixedSizeListArray.from_arrays(self.vectors.ravel(), self.vectors.shape[1])
        columns = {name: pa.array(values.tolist(), pa.string()) for name, values in table.items()}
        made = pa.table({**columns, "embeddings": vectors}, metadata={"classes": json.dumps(self.classes)})
        replace_file(path, lambda target: parquet.write_table(made, target))

    def score(self, how: Literal["knn", "linear"], seed: int = 0) -> Evaluation:
        """Classify the test split by the embeddings of the training split; the network learns nothing.

        Args:
            how: knn is a vote of the 20 nearest neighbours, see `vote`; linear is a logistic regression on standardised
                embeddings, see `logistic_regression`.
            seed: of what the logistic regression is chosen on.

        Raises:
            ValueError: for another `how`, or without labelled examples of both splits.
        """
        if how not in ("knn", "linear"):
            raise ValueError(f"embeddings are scored by knn or linear, got {how!r}")
        known, asked = self.splits == "train", self.splits == "test"
        if not known.any() or not asked.any():
            raise ValueError(
                f"scores need labelled examples to learn from and others to test on, got {known.sum():,} of the train "
                f"split and {asked.sum():,} of the test split: give labelled data, two examples of a class at least"
            )
        index = {name: i for i, name in enumerate(self.classes)}
        labels = np.array([index.get(name, 0) for name in self.labels])
        x, y, width = self.vectors[known], labels[known], len(self.classes)
        if how == "knn":
            probabilities = vote(x, y, self.vectors[asked], width)
        else:
            logits = logistic_regression(x, y, width, seed=seed).logits(self.vectors[asked])
            probabilities = np.exp(logits - logits.max(1, keepdims=True))
            probabilities /= probabilities.sum(1, keepdims=True)
        return Evaluation(self.classes, labels[asked], probabilities, tuple(self.names[asked].tolist()))


def embed(
    run: str | Path | Model,
    source: Any,
    *,
    output: str | Path | None = None,
    force: bool = False,
    split: Split = "auto",
    test_fraction: float | None = None,
    seed: int | None = None,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    say: Callable[[str], Any] = print,
) -> Embeddings:
    """Embed the examples of a source: what the head of the network reads of them; of an ensemble, all its heads'.

    Args:
        run: a run folder, a model file, a published name, `hf:...` or a loaded model; its head may be new, or none.
        source: labelled data as in `train`, or files and folders as in `predict`.
        output: an .npz or .parquet file to write, see `Embeddings.save`.
        force: replace that file if it exists.
        split: "train" or "test", or "all" of labelled data; "auto" is all, with labels or without.
        test_fraction: share of each class that counts as test split where the data has none of its own; None is the
            model's own where it was trained on this source, else 0.2.
        seed: of that split; None is the model's own, or 0, likewise.
        skip_bad: leave unreadable files out.
        batch_size: examples at a time.
        device: where to compute.
        progress: show a progress bar.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: for data that the network cannot read, or weights that lack more than a head.
        FileExistsError: if the output exists and `force` is not set.
    """
    if split not in ("auto", "test", "train", "all"):
        raise ValueError(f"split must be one of auto, test, train, all; got {split!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size}")
    if output is not None:
        check_output(Path(output), force)
    pick_device(device)
    model = run if isinstance(run, Model) else load_model(run)
    told = model.provenance if same_source(source, model.provenance.get("source")) else {}
    held = told.get("test_fraction", 0.2) if test_fraction is None else test_fraction
    data = _load(source, model, split, skip_bad, progress)
    if data.classes and not len(data.test):
        data = _split(data, held, told.get("seed", 0) if seed is None else seed)
    if model is not run and model.load_report.assumed:
        say(f"assumed of these weights (`ndvit info` says more): {'; '.join(model.load_report.assumed)}")
    model = _ready(model, data, say)
    same_kind(data.kind, model.preprocess, data.name)
    for note in data.notes:
        say(note)
    parts = {"train": data.train, "val": data.val, "test": data.test}
    chosen = {name: e for name, e in parts.items() if e is not None and len(e) and split in (name, "auto", "all")}
    if not chosen:
        raise ValueError(f"{data.name} has no examples of the {split} split")
    vectors, names, labels, splits = [], list[str](), list[str](), list[str]()
    for name, examples in chosen.items():
        vectors.append(predict_features(model, Inputs(examples, model.preprocess), batch_size, device, progress))
        names += map(str, examples.names)
        labels += [""] * len(examples) if examples.labels is None else [data.classes[i] for i in examples.labels]
        splits += ["" if examples.labels is None else name] * len(examples)
    made = Embeddings(np.concatenate(vectors), np.array(names), np.array(labels), np.array(splits), data.classes)
    if output is not None:
        made.save(output, force)
    return made


def check_output(path: Path, force: bool) -> None:
    """Raise where embeddings cannot be written to such a file, before they are computed."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"embeddings are written as {' or '.join(FORMATS)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    if path.exists() and (path.is_dir() or not force):
        raise FileExistsError(f"{path} exists: choose another output, or replace it with --force (force=True)")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(".parquet needs a package that is not installed: pip install 'ndvit[parquet]', or use .npz")


def _load(source: Any, model: Model, split: Split, skip_bad: bool, progress: bool) -> Source:
    """Labelled data with nothing held out, or else examples without labels in the place of a training set."""
    arrays = not isinstance(source, str | Path | tuple | dict)
    why = ""
    try:
        if not arrays:
            return load_source(source, test_fraction=0, skip_bad=skip_bad, progress=progress)
        if split != "auto":
            raise ValueError(f"split {split!r} is of labelled data: give (X, y), or leave split out")
    except ValueError as error:
        if split != "auto" or isinstance(source, tuple | dict) or _has_folders(source):
            raise
        reason, why = error, f"embedded without labels; if some were meant: {error}"
    size, channels = model.config.input_size, model.config.in_channels
    dims = None if isinstance(model.preprocess, ImagePreprocess) else len(size)
    try:
        kind, examples, notes = load_examples(source, skip_bad=skip_bad, dims=dims, channels=channels)
    except (ValueError, FileNotFoundError):
        if arrays:
            raise
        raise reason from None
    if arrays:
        return Source("X", kind, (), examples, Examples([]), None, notes)
    folder = Path(source).expanduser().is_dir()
    if not folder and medium(source) not in ("images", "sound files"):  # where nobody expects labels
        notes = (*notes, why)
    # names as labelled examples have them
    above = printable(os.path.join(source if folder or is_hub(str(source)) else os.path.dirname(source), ""))
    named = Examples(examples.items, None, [name.removeprefix(above) for name in examples.names], examples.read)
    return Source(str(source), kind, (), named, Examples([]), None, notes)


def _has_folders(source: Any) -> bool:
    """Whether a source is a folder of folders, whose names are labels."""
    path = Path(source).expanduser()
    return path.is_dir() and any(inner.is_dir() and not inner.name.startswith(".") for inner in path.iterdir())


def _split(data: Source, fraction: float, seed: int) -> Source:
    """Call a part of each class the test set, the same that `load_source` holds out; a single example is none."""
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {fraction}")
    keep, held = hold_out(data.train.labels, fraction, seed, data.classes, data.name, both_sides=False)
    note = f"no split given: {fraction:.0%} of each class are called test ({len(held):,} examples), seed {seed}"
    train, test = data.train.subset(keep), data.train.subset(held)
    return replace(data, train=train, test=test, notes=(*data.notes, note))


def _ready(model: Model, data: Source, say: Callable[[str], Any]) -> Model:
    """The model with a preprocessing: its own, or with one that is planned as training would plan it."""
    _refuse_new(model)
    if model.preprocess is not None:
        return model
    if isinstance(model, Ensemble):
        raise ValueError("the ensemble does not know its preprocessing: in Python, set it on the model")
    weights = Described(kind="network", config=model.config, tensors=model.state_dict(), provenance=model.provenance)
    preprocess, fitting = plan_fine_tuning(data, weights, Recipe(), {})
    fitted = build_model(weights, overrides=fitting)
    _refuse_new(fitted)
    fitted.preprocess = preprocess
    changed = "; ".join(f"{change.name}: {change.how}" for change in fitted.load_report.adapted)
    say(
        f"the weights bring no preprocessing: mean and standard deviation are those of {data.name}, input "
        f"{' x '.join(map(str, preprocess.size))}{f' ({changed})' if changed else ''}"
    )
    return fitted


def _refuse_new(model: Model) -> None:
    """Raise a ValueError where anything is untrained that embeddings come from; heads are not."""
    networks: list[Any] = list(model.members) if isinstance(model, Ensemble) else [model]
    new = [name for network in networks for name in network.untrained if name.partition(".")[0] not in HEADS]
    if new:
        some = ", ".join(new[:4]) + (", ..." if len(new) > 4 else "")
        raise ValueError(
            f"{len(new)} tensors before the head ({some}) are newly initialised, so embeddings would mean nothing: "
            "train the model first, or load it as it was published"
        )
