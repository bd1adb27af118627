"""Test a trained model on data with targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.config.reading import ReadingOptions, stored_reading
from ndvit.config.recipe import Device
from ndvit.data.channels import check_channels
from ndvit.data.examples import Examples, Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import check_kind, describe_resampling, warn_if_unlike_training
from ndvit.data.sources.finding import builtin_sources
from ndvit.data.sources.load import load_source
from ndvit.evaluation.base import Evaluation
from ndvit.files import csv_text, refuse_existing, replace_file
from ndvit.inference.answers import answer_rows
from ndvit.inference.batches import Log, predict_answers
from ndvit.inference.predict import check_ready
from ndvit.inference.recordings import evaluate_answers
from ndvit.parts import ModelParts

Split = Literal["auto", "test", "train", "all"]


def evaluate(
    model: ModelParts,
    source: Any,
    *,
    split: Split = "auto",
    predictions: str | Path | None = None,
    force: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    log: Log = print,
    **reading: Any,
) -> Evaluation:
    """Test a model; arguments and errors as in `Model.evaluate`."""
    check_split(split)
    if predictions is not None:
        refuse_existing(predictions, force)
    task = check_ready(model, batch_size, device, log)
    preprocess = model.preprocess
    assert preprocess is not None
    past = past_reading(model, source, reading)
    options = past.options.to_dict()
    if split == "all" or (split == "auto" and not past.same_source and "test_fraction" not in reading):
        options["test_fraction"] = 0
    data = load_source(source, task=type(task), seed=past.seed, progress=progress, to_train=False, **options)
    preprocess = preprocess.admitting(past.options.resample_long)
    check_kind(data.kind, preprocess, data.name)
    check_channels(data.channels, () if reading.get("channels") else model.channel_names, data.name)
    translate, assumed = task.align(data.task, data.name)
    for note in assumed:
        log(f"{data.name}: {note}")
    if split == "auto":
        split = "test" if len(data.test) else "all"
    for note in data.decisions:
        log(note)
    chosen = list(chosen_splits(data, split).values())
    log(f"{data.name}: {counted(sum(map(len, chosen)), 'example')} ({'all' if split == 'all' else f'the {split} set'})")
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
    targets = targets if translate is None else translate(targets)
    if predictions is not None:
        rows, grouped, begin = list[list[Any]](), all(part.groups is not None for part in chosen), 0
        for part, own in zip(chosen, answers):
            mine = targets[begin : begin + len(part)]
            rows += answer_rows(task, own, part, targets=mine, grouped=grouped)[1 if rows else 0 :]
            begin += len(part)
        replace_file(Path(predictions), csv_text(rows))
    return evaluate_answers(task, answers, chosen, targets)


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


class PastReading(NamedTuple):
    """How to read a source for a trained model.

    Attributes:
        same_source: whether the model was trained on this very source.
        options: as in its training where that applies, with the options of the call in their place.
        seed: seed of the split.
    """

    same_source: bool
    options: ReadingOptions
    seed: int


_OF_THE_SOURCE = ("skip_bad", "drop_copies", "group_by", "label_file", "drop_suspected")
"""Options of the training that another source does not inherit."""


def past_reading(model: ModelParts, source: Any, changed: Mapping[str, Any]) -> PastReading:
    """The options of the model's training, and seed 0 where it is not known.

    Raises:
        ValueError: if the training used a split file, and `changed` has none for the same source.
    """
    facts = model.provenance
    same = same_source(source, facts.get("source"))
    kept = stored_reading(facts)
    by_file = bool(kept.pop("split_file", None))
    if same and by_file and not {"split_file", "test_fraction"} & changed.keys():
        raise ValueError(
            "the model was trained with a split file, which it does not hold: pass it again (--split-file FILE, "
            "split_file= in Python), for example the split.csv in its run folder"
        )
    if not same:
        kept = {name: value for name, value in kept.items() if name not in _OF_THE_SOURCE}
    return PastReading(same, ReadingOptions.from_dict({**kept, **changed}), facts.get("seed", 0))


def same_source(source: Any, trained_on: str | None) -> bool:
    """Whether a source is the one that a model was trained on, however either is written."""
    if trained_on is None or not isinstance(source, str | Path):
        return False
    if str(source).lower() in builtin_sources():
        return str(source).lower() == trained_on.lower()
    resolved = (Path(path).expanduser().resolve() for path in (source, trained_on))
    return str(source) == trained_on or len(set(resolved)) == 1
