"""Test a trained model on data with targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ndvit.config.recipe import Device
from ndvit.data.examples import Examples, Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import check_kind, describe_resampling, warn_if_unlike_training
from ndvit.data.sources.load import builtin_sources, load_source
from ndvit.evaluation.base import Evaluation
from ndvit.inference.batches import Log, predict_answers
from ndvit.inference.predict import check_ready
from ndvit.parts import ModelParts

Split = Literal["auto", "test", "train", "all"]


def evaluate(
    model: ModelParts,
    source: Any,
    *,
    split: Split = "auto",
    skip_bad: bool = False,
    literal_labels: bool | None = None,
    drop_copies: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    log: Log = print,
) -> Evaluation:
    """Test a model; arguments and errors as in `Model.evaluate`."""
    check_split(split)
    task = check_ready(model, batch_size, device, log)
    preprocess = model.preprocess
    assert preprocess is not None
    past = past_split(model, source)
    held_out = past.test_fraction if split in ("test", "train") or (split == "auto" and past.same_source) else 0
    data = load_source(
        source,
        task=type(task),
        test_fraction=held_out,
        seed=past.seed,
        skip_bad=skip_bad,
        literal_labels=past.literal_labels if literal_labels is None else literal_labels,
        drop_copies=drop_copies or past.drop_copies,
        progress=progress,
        to_train=False,
    )
    check_kind(data.kind, preprocess, data.name)
    index, assumed = task.align(data.task, data.name)
    for note in assumed:
        log(f"{data.name}: {note}")
    if split == "auto":
        split = "test" if len(data.test) else "all"
    for note in data.decisions:
        log(note)
    chosen = list(chosen_splits(data, split).values())
    log(f"{data.name}: {sum(map(len, chosen)):,} examples ({'all' if split == 'all' else f'the {split} set'})")
    if (weights := model.provenance.get("class_weight")) is not None:
        log(
            f"the model was trained with class_weight {weights}, so its probabilities are those of data in which the "
            "classes have their weighted shares; log loss and ECE compare them with the shares here"
        )
    if longer := describe_resampling(chosen, preprocess):
        log(longer)
    warn_if_unlike_training(chosen, preprocess)
    answers = [
        predict_answers(model, Inputs(part, preprocess), batch_size, device, progress, task, log) for part in chosen
    ]
    targets = np.concatenate([part.targets for part in chosen if part.targets is not None])
    names = [name for part in chosen for name in part.names]
    return task.evaluate(np.concatenate(answers), targets if index is None else index[targets], names)


def check_split(split: str) -> None:
    """Raise a ValueError for an unknown split."""
    if split not in ("auto", "test", "train", "all"):
        raise ValueError(f"split must be one of auto, test, train, all; got {split!r}")


def chosen_splits(data: Source, split: str) -> dict[str, Examples]:
    """The non-empty splits of this name; "all" and "auto" are all of them.

    Raises:
        ValueError: if there is none.
    """
    parts = {"train": data.train, "val": data.val, "test": data.test}
    wanted = tuple(parts) if split in ("all", "auto") else (split,)
    chosen = {name: part for name, part in parts.items() if part is not None and len(part) and name in wanted}
    if not chosen:
        raise ValueError(f"{data.name} has no examples of the {split} set")
    return chosen


@dataclass(frozen=True)
class PastSplit:
    """How the training of a model read and split its source, and whether a source is that one.

    `drop_copies` is False for another source.
    """

    same_source: bool
    test_fraction: float
    seed: int
    literal_labels: bool
    drop_copies: bool


def past_split(model: ModelParts, source: Any) -> PastSplit:
    """The split of the model's training, with 0.2 and seed 0 where it is not known."""
    facts = model.provenance
    same = same_source(source, facts.get("source"))
    literal, dropped = facts.get("literal_labels") is True, same and facts.get("drop_copies") is True
    return PastSplit(same, facts.get("test_fraction", 0.2), facts.get("seed", 0), literal, dropped)


def same_source(source: Any, trained_on: str | None) -> bool:
    """Whether a source is the one that a model was trained on, however either is written."""
    if trained_on is None or not isinstance(source, str | Path):
        return False
    if str(source).lower() in builtin_sources():
        return str(source).lower() == trained_on.lower()
    resolved = (Path(path).expanduser().resolve() for path in (source, trained_on))
    return str(source) == trained_on or len(set(resolved)) == 1
