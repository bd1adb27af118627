"""Embeddings: the features before the head of a network, as a table, and how well they separate the classes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ndvit.config.bounds import BatchSize, checked, counted
from ndvit.config.reading import FileOptions, ReadingOptions, file_options
from ndvit.config.recipe import Device
from ndvit.data.channels import check_channels
from ndvit.data.examples import Examples, Source
from ndvit.data.fitting import fit_to_weights
from ndvit.data.loading import Inputs
from ndvit.data.messages import printable, warn_of_doubts
from ndvit.data.preprocess import check_kind, describe_fit, describe_resampling, warn_if_unlike_training
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.files import medium
from ndvit.data.sources.hub import is_hub
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.shards import is_shards
from ndvit.data.splits import hold_out
from ndvit.evaluation.base import Evaluation
from ndvit.files import refuse_existing, replace_file
from ndvit.inference.batches import pick_device, predict_features
from ndvit.inference.evaluate import Split, check_split, chosen_splits, past_reading
from ndvit.inference.predict import Log
from ndvit.network.vit import HEADS
from ndvit.parts import ModelParts
from ndvit.tasks import Classification
from ndvit.tasks.base import Probe, Task
from ndvit.weights.building import build
from ndvit.weights.file import Checkpoint

FORMATS = (".npz", ".parquet")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Embeddings of examples, with their names, targets and splits.

    Attributes:
        vectors: (n, width) float32.
        names: (n,) of the examples: paths below the source's folder, or numbers.
        splits: (n,) "train", "val" or "test"; empty for examples without targets.
        targets: encoded targets, one row for each example; None without targets.
        task: what the targets mean; None without targets.
    """

    vectors: np.ndarray
    names: np.ndarray
    splits: np.ndarray
    targets: np.ndarray | None
    task: Task | None

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def labels(self) -> np.ndarray:
        """(n,) targets as text or numbers, such as class names; empty texts without targets."""
        if self.task is None or self.targets is None:
            return np.full(len(self), "")
        return np.array(self.task.decode(self.targets))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none for other tasks and without targets."""
        return getattr(self.task, "classes", ())

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write a table, whole or not at all.

        An .npz has the arrays embeddings, names, labels, splits and classes, numbers and texts without any pickle. A
        .parquet has the columns embeddings, names, labels and splits, and the classes as JSON in its metadata.

        Raises:
            FileExistsError: if the file exists and `force` is not set.
            ValueError: for another file extension, or for .parquet without the pyarrow package.
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
        columns = {name: pa.array(values.tolist()) for name, values in table.items()}
        content = pa.table({**columns, "embeddings": vectors}, metadata={"classes": json.dumps(self.classes)})
        replace_file(path, lambda target: parquet.write_table(content, target))

    def score(self, method: Probe, seed: int = 0) -> Evaluation:
        """Predict the test split from the embeddings of the training split. The network is not trained.

        Args:
            method: "knn", a vote of the 20 nearest neighbours, or "linear", a logistic regression on standardised
                embeddings, see `tasks.solvers`.
            seed: seed of the examples that the regularisation of the logistic regression is chosen on.

        Raises:
            ValueError: for another method, or without examples with targets in both splits.
        """
        if method not in ("knn", "linear"):
            raise ValueError(f"embeddings are scored by knn or linear, got {method!r}")
        known, queries = self.splits == "train", self.splits == "test"
        if self.task is None or self.targets is None or not known.any() or not queries.any():
            raise ValueError(
                f"scores need labelled examples to learn from and others to test on, got {known.sum():,} of the train "
                f"split and {queries.sum():,} of the test split: use labelled data, at least two examples a class"
            )
        answers = self.task.probe(method, (self.vectors[known], self.targets[known]), self.vectors[queries], seed)
        return self.task.evaluate(answers, self.targets[queries], self.names[queries].tolist())


def embed(
    model: ModelParts,
    source: Any,
    *,
    output: str | Path | None = None,
    force: bool = False,
    split: Split = "auto",
    seed: int | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    log: Log = print,
    **reading: Any,
) -> Embeddings:
    """Embed the examples of a source; arguments and errors as in `Model.embed`."""
    check_split(split)
    checked("batch_size", BatchSize, batch_size)
    if output is not None:
        check_output(Path(output), force)
    pick_device(device)
    model.warn_of_assumptions()
    past = past_reading(model, source, reading)
    data = _load(source, model, split, reading, past.options, progress)
    if data.train.targets is not None and not len(data.test):
        own = past.same_source or "test_fraction" in reading
        fraction = past.options.test_fraction if own else ReadingOptions.test_fraction
        data = _mark_test(data, fraction, seed if seed is not None else past.seed if past.same_source else 0)
    model = _ready(model, data, log)
    assert model.preprocess is not None
    check_kind(data.kind, model.preprocess, data.name)
    check_channels(data.channels, () if reading.get("channels") else model.channel_names, data.name)
    for note in data.decisions:
        log(note)
    preprocess = model.preprocess.admitting(past.options.resample_long)
    parts = chosen_splits(data, split)
    if longer := describe_resampling(list(parts.values()), preprocess):
        log(longer)
    warn_if_unlike_training(list(parts.values()), model.preprocess)
    known = data.train.targets is not None
    vectors = [
        predict_features(model.network, Inputs(part, preprocess), batch_size, device, progress, log)
        for part in parts.values()
    ]
    embeddings = Embeddings(
        vectors=np.concatenate(vectors),
        names=np.array([str(name) for part in parts.values() for name in part.names]),
        splits=np.array([name if known else "" for name, part in parts.items() for _ in range(len(part))]),
        targets=np.concatenate([part.targets for part in parts.values() if part.targets is not None])
        if known
        else None,
        task=data.task if known else None,
    )
    if output is not None:
        embeddings.save(output, force)
    return embeddings


def check_output(path: Path, force: bool) -> None:
    """Raise if embeddings cannot be written to this file, before they are computed."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"embeddings are written as {' or '.join(FORMATS)}, got {path}")
    refuse_existing(path, force)
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(".parquet needs a package that is not installed: pip install 'ndvit[parquet]', or use .npz")


def _load(
    source: Any, model: ModelParts, split: Split, changed: Mapping[str, Any], options: ReadingOptions, progress: bool
) -> Source:
    """Data with targets and nothing held out; else examples without targets in the place of the training set.

    `options` are those for data with targets, and `changed` those of them that the call has set.
    """
    in_memory = not isinstance(source, str | Path | tuple | dict)
    task: Any = "classification" if model.task is None else type(model.task)
    reason = ""
    try:
        if not in_memory:
            return load_source(source, task=task, progress=progress, **options.to_dict() | {"test_fraction": 0})
        if split != "auto":
            raise ValueError(f"split {split!r} needs labelled data: pass (X, y), or leave split out")
    except ValueError as error:
        if split != "auto" or isinstance(source, tuple | dict) or _has_folders(source):
            raise
        labelled_error, reason = error, f"embedded without labels; if the source has labels: {error}"
    channels, *size = model.input_shape
    if model.preprocess is not None:
        channels, size = model.preprocess.raw_channels, list(model.preprocess.raw_size)
    dims = None if isinstance(model.preprocess, ImagePreprocess) else len(size)
    try:
        own = {name: value for name, value in changed.items() if name in FileOptions.__dataclass_fields__}
        how = file_options(model.provenance, own).to_dict()
        kind, axes, examples, notes = load_examples(source, dims=dims, in_channels=channels, **how)
    except (ValueError, FileNotFoundError):
        if in_memory:
            raise
        raise labelled_error from None
    name, named = "X" if in_memory else str(source), examples.channels
    if not in_memory:
        folder = Path(source).expanduser().is_dir()
        if not folder and medium(source) not in ("images", "sound files"):  # such files could have held labels
            notes = (*notes, reason)
        # names below the source's folder, as labelled examples have them
        above = printable(os.path.join(source if folder or is_hub(str(source)) else os.path.dirname(source), ""))
        names = [name.removeprefix(above) for name in examples.names]
        examples = Examples(examples.items, None, names, examples.read, places=examples.places)
    task_of_none = model.task or Classification(())
    return Source(name, kind, axes, task_of_none, examples, Examples([]), None, notes, channels=named)


def _has_folders(source: Any) -> bool:
    """Whether a source is a folder of folders, whose names are labels."""
    path = Path(source).expanduser()
    return (
        path.is_dir()
        and not is_shards(path)
        and any(inner.is_dir() and not inner.name.startswith(".") for inner in path.iterdir())
    )


def _mark_test(data: Source, fraction: float, seed: int) -> Source:
    """Call a part of the training set the test set, the same that `load_source` holds out."""
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction must be above 0 and below 1, got {fraction}")
    kept, held = hold_out(data.train, data.task, fraction, seed, data.name, both_sides=False)
    share = f"{fraction:.0%} of each class"
    note = f"the source has no split: {share} are the test split ({counted(len(held), 'example')}), seed {seed}"
    return replace(data, train=data.train.subset(kept), test=data.train.subset(held), notes=(*data.notes, note))


def _ready(model: ModelParts, data: Source, log: Log) -> ModelParts:
    """The model, or a copy of it with a preprocessing fitted to the data where it has none.

    Raises:
        ValueError: if anything before the heads is newly initialised.
    """
    _refuse_untrained(model)
    if model.preprocess is not None:
        return model
    preprocess, overrides = fit_to_weights(data, model.config, None, {})
    warn_of_doubts(describe_fit(data, preprocess))
    adapted = build(Checkpoint.from_model(model), overrides=overrides)
    adapted.preprocess = preprocess
    _refuse_untrained(adapted)
    assert adapted.preprocess is not None
    assert adapted.load_report is not None
    changes = "; ".join(f"{change.name}: {change.how}" for change in adapted.load_report.adapted)
    log(
        f"the weights have no preprocessing: mean and standard deviation are those of {data.name}, input "
        f"{' x '.join(map(str, adapted.preprocess.size))}{f' ({changes})' if changes else ''}"
    )
    return adapted


def _refuse_untrained(model: ModelParts) -> None:
    new = [name for name in model.untrained if not any(part in HEADS for part in name.split("."))]
    if new:
        some = ", ".join(new[:4]) + (", ..." if len(new) > 4 else "")
        raise ValueError(
            f"{len(new)} tensors before the head ({some}) are newly initialised, so embeddings would be random: train "
            "the model first, or load it as it was published"
        )
