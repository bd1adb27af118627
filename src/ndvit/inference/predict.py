"""Answers for new examples: files, folders or arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndvit.config.recipe import Device
from ndvit.data.loading import Inputs
from ndvit.data.messages import Doubt
from ndvit.data.preprocess import check_kind, describe_resampling
from ndvit.data.sources.load import load_examples
from ndvit.inference.batches import pick_device, predict_answers
from ndvit.parts import ModelParts
from ndvit.tasks import Classification
from ndvit.tasks.base import Prediction, Task
from ndvit.tasks.imagenet import imagenet_classes, like_imagenet

Log = Callable[[str], Any]


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
    if not inputs:
        raise ValueError("nothing to predict: pass files, folders or arrays")
    preprocess = model.preprocess
    assert preprocess is not None
    dims = len(preprocess.size) if preprocess.kind == "signal" else None
    predictions: list[Prediction] = []
    for source in inputs:
        loaded = load_examples(source, skip_bad=skip_bad, dims=dims, channels=preprocess.channels)
        check_kind(loaded.kind, preprocess, str(source) if isinstance(source, str | Path) else "X")
        for note in loaded.notes:
            if not isinstance(note, Doubt):  # those were raised as warnings
                log(note)
        if longer := describe_resampling([loaded.examples], preprocess):
            log(longer)
        answers = predict_answers(model, Inputs(loaded.examples, preprocess), batch_size, device, progress, task)
        predictions += task.predictions(answers, list(map(str, loaded.examples.names)))
    return predictions


def check_ready(model: ModelParts, batch_size: int, device: str, log: Log) -> Task:
    """Check that the model can answer, and return its task.

    Raises:
        ValueError: for a batch size below 1, a missing device, newly initialised weights, or a model without a task or
            preprocessing.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size}")
    pick_device(device)
    if model.untrained:
        some = ", ".join(model.untrained[:4]) + (", ..." if len(model.untrained) > 4 else "")
        raise ValueError(
            f"{len(model.untrained)} tensors of the model ({some}) are newly initialised, so its answers would be "
            "random: train it first (ndvit train SOURCE --weights FILE), or set model.untrained = () if you have"
        )
    task = model.task
    own_layout = model.load_report is None or model.load_report.kind == "ndvit"  # for others, loading has assumed it
    if task is None and own_layout and like_imagenet(model.config):
        task = Classification(imagenet_classes())
        log("assumed: the classes are those of ImageNet-1k, as there are 1000 outputs")
    if task is None or model.preprocess is None:
        lacking = [name for name, value in (("task", task), ("preprocess", model.preprocess)) if value is None]
        words = {"task": "classes", "preprocess": "preprocessing"}
        raise ValueError(
            f"the model does not know its {' and '.join(words[name] for name in lacking)}: train it, or set "
            f"{' and '.join(f'model.{name}' for name in lacking)} in Python"
        )
    return task
