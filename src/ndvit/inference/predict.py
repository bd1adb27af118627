"""Answers for new examples: files, folders or arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ndvit.config.bounds import BatchSize, checked
from ndvit.config.recipe import Device
from ndvit.data.loading import Inputs
from ndvit.data.messages import Doubt, warn_of_doubts
from ndvit.data.preprocess import check_kind, describe_resampling, warn_if_unlike_training
from ndvit.data.sources.load import load_examples
from ndvit.inference.batches import Log, answer_tensors, pick_device, predict_answers
from ndvit.parts import ModelParts
from ndvit.tasks import Classification
from ndvit.tasks.base import Prediction, Task
from ndvit.tasks.imagenet import imagenet_classes, like_imagenet


def predict(
    model: ModelParts,
    *inputs: Any,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    log: Log = print,
) -> list[Prediction]:
    """Predict new examples; arguments and errors as in `Model.predict`."""
    task = check_ready(model, batch_size, device, log)
    predictions: list[Prediction] = []
    for names, answers in _answer(model, task, inputs, skip_bad, batch_size, device, progress, log):
        predictions += task.predictions(answers, names)
    return predictions


def predict_proba(
    model: ModelParts,
    *inputs: Any,
    mask: Tensor | None = None,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = False,
    log: Log = print,
) -> Tensor | np.ndarray:
    """Answers of new examples or tensors; arguments and errors as in `Model.predict_proba`."""
    if not any(isinstance(source, Tensor) for source in inputs):
        if mask is not None:
            raise ValueError("a mask belongs to a tensor; missing values of raw examples are NaN")
        task = check_ready(model, batch_size, device, log)
        return np.concatenate(
            [rows for _, rows in _answer(model, task, inputs, skip_bad, batch_size, device, progress, log)]
        )
    x, *rest = inputs
    if len(rest) > 1 or (rest and mask is not None) or not all(isinstance(part, Tensor) for part in inputs):
        raise ValueError("pass one tensor of inputs and perhaps its mask, predict_proba(x, mask), or raw examples only")
    task = check_ready(model, batch_size, device, log, raw=False)
    return answer_tensors(replace(model, task=task), x, rest[0] if rest else mask, batch_size, device)


def _answer(
    model: ModelParts,
    task: Task,
    inputs: tuple[Any, ...],
    skip_bad: bool,
    batch_size: int,
    device: Device,
    progress: bool,
    log: Log,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and answers (n, outputs) of the examples of each input."""
    if not inputs:
        raise ValueError("nothing to predict: pass files, folders or arrays")
    preprocess = model.preprocess
    assert preprocess is not None
    dims = len(preprocess.size) if preprocess.kind == "signal" else None
    for source in inputs:
        if isinstance(source, Tensor):
            warn_of_doubts(
                [
                    Doubt(
                        "X is a torch tensor and taken as raw values, which the preprocessing standardises: pass "
                        "x.numpy() if it is; predict_proba(x) takes tensors as inputs of the network"
                    )
                ]
            )
        loaded = load_examples(source, skip_bad=skip_bad, dims=dims, channels=preprocess.channels)
        check_kind(loaded.kind, preprocess, str(source) if isinstance(source, str | Path) else "X")
        for note in loaded.notes:
            if not isinstance(note, Doubt):  # those were raised as warnings
                log(note)
        if longer := describe_resampling([loaded.examples], preprocess):
            log(longer)
        warn_if_unlike_training([loaded.examples], preprocess)
        answers = predict_answers(model, Inputs(loaded.examples, preprocess), batch_size, device, progress, task, log)
        yield list(map(str, loaded.examples.names)), answers


def check_ready(model: ModelParts, batch_size: int, device: str, log: Log, *, raw: bool = True) -> Task:
    """Check that the model can answer, and return its task. Raw examples need its preprocessing, tensors do not.

    Raises:
        ValueError: for a batch size out of bounds, a missing device, newly initialised weights, or a model without a
            task or preprocessing.
    """
    checked("batch_size", BatchSize, batch_size)
    pick_device(device)
    if model.untrained:
        some = ", ".join(model.untrained[:4]) + (", ..." if len(model.untrained) > 4 else "")
        raise ValueError(
            f"{len(model.untrained)} tensors of the model ({some}) are newly initialised, so its answers would be "
            "random: train it first (ndvit train SOURCE --weights FILE), or set model.untrained = () if you have"
        )
    if model.load_report is not None and model.load_report.no_task:
        raise ValueError(model.load_report.no_task)
    model.warn_of_assumptions()
    task = model.task
    own_layout = model.load_report is None or model.load_report.kind == "ndvit"  # for others, loading has assumed it
    if task is None and own_layout and like_imagenet(model.config):
        task = Classification(imagenet_classes())
        log("assumed: the classes are those of ImageNet-1k, as there are 1000 outputs")
    if task is None or (raw and model.preprocess is None):
        needed = {"task": task} | ({"preprocess": model.preprocess} if raw else {})
        lacking = [name for name, value in needed.items() if value is None]
        words = {"task": "classes", "preprocess": "preprocessing"}
        raise ValueError(
            f"the model does not know its {' and '.join(words[name] for name in lacking)}: train it, or set "
            f"{' and '.join(f'model.{name}' for name in lacking)} in Python"
        )
    return task
