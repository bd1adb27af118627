"""Answers for new examples: files, folders or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndvit.config.bounds import BatchSize, checked, counted
from ndvit.config.reading import FileOptions, file_options
from ndvit.config.recipe import Device
from ndvit.data.channels import check_channels
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.messages import Doubt, listing, warn_of_doubts
from ndvit.data.preprocess import Preprocess, check_kind, describe_resampling, find_unfit, warn_if_unlike_training
from ndvit.data.sources.load import LoadedExamples, load_examples
from ndvit.inference.batches import Log, answer_tensors, pick_device, predict_answers
from ndvit.inference.recordings import mean_answers, window_predictions
from ndvit.parts import ModelParts
from ndvit.tasks import Classification
from ndvit.tasks.base import Prediction, Task
from ndvit.tasks.imagenet import imagenet_classes, like_imagenet


def predict(
    model: ModelParts,
    *inputs: Any,
    per_window: bool = False,
    on_fault: Log | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = True,
    log: Log = print,
    **reading: Any,
) -> list[Prediction]:
    """Predict new examples; arguments and errors as in `Model.predict`."""
    task = check_ready(model, batch_size, device, log)
    predictions: list[Prediction] = []
    for examples, answers in _answer(model, task, inputs, reading, batch_size, device, progress, log, on_fault):
        if per_window:
            predictions += window_predictions(task, answers, examples)
        else:
            names, means = mean_answers(answers, examples)
            predictions += task.predictions(means, names)
    return predictions


def predict_proba(
    model: ModelParts,
    *inputs: Any,
    mask: Tensor | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    progress: bool = False,
    log: Log = print,
    **reading: Any,
) -> Tensor | np.ndarray:
    """Answers of new examples or tensors; arguments and errors as in `Model.predict_proba`."""
    if not any(isinstance(source, Tensor) for source in inputs):
        if mask is not None:
            raise ValueError("a mask belongs to a tensor; missing values of raw examples are NaN")
        task = check_ready(model, batch_size, device, log)
        return np.concatenate(
            [
                mean_answers(rows, examples)[1]
                for examples, rows in _answer(model, task, inputs, reading, batch_size, device, progress, log)
            ]
        )
    x, mask = check_tensors(model, inputs, mask)
    task = check_ready(model, batch_size, device, log, raw=False)
    return answer_tensors(replace(model, task=task), x, mask, batch_size, device)


def check_tensors(model: ModelParts, inputs: tuple[Any, ...], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The inputs of the network among the arguments of a call, and their mask, which may be the second argument.

    Raises:
        ValueError: for a tensor together with raw examples, or of another shape than the network's input.
    """
    x, *rest = inputs
    if len(rest) > 1 or (rest and mask is not None) or not all(isinstance(part, Tensor) for part in inputs):
        raise ValueError("pass one tensor of inputs and perhaps its mask, f(x, mask), or raw examples only")
    mask, shape = rest[0] if rest else mask, model.input_shape
    if tuple(x.shape[1:]) != shape or not x.is_floating_point():
        raise ValueError(
            f"tensors are inputs of the network, floating point {('n', *shape)}, and this one is {tuple(x.shape)} of "
            f"{str(x.dtype).removeprefix('torch.')}: preprocess each example, "
            "torch.stack([model.preprocess(example), ...]), or pass raw examples as arrays, PIL images or paths"
        )
    if mask is not None and (mask.shape != (len(x), *shape[1:]) or mask.dtype != torch.bool):
        raise ValueError(f"expected a boolean mask {(len(x), *shape[1:])}, got {tuple(mask.shape)} of {mask.dtype}")
    return x, mask


def _answer(
    model: ModelParts,
    task: Task,
    inputs: tuple[Any, ...],
    reading: Mapping[str, Any],
    batch_size: int,
    device: Device,
    progress: bool,
    log: Log,
    on_fault: Log | None = None,
) -> Iterator[tuple[Examples, np.ndarray]]:
    """The examples of each input, or their windows, and answers (n, outputs)."""
    for read in read_inputs(model, inputs, reading, log, on_fault):
        yield read.examples, predict_answers(model, read, batch_size, device, progress, task, log)


def read_inputs(
    model: ModelParts,
    inputs: tuple[Any, ...],
    reading: Mapping[str, Any],
    log: Log,
    on_fault: Log | None = None,
) -> Iterator[Inputs]:
    """The preprocessed examples of each input: files, folders or arrays without targets; `reading` as in `predict`.

    With `on_fault`, faults are reported to it, and the other examples are read.

    Raises:
        ValueError: if there is no input, or one cannot be read or is of another kind than the training data.
    """
    if not inputs:
        raise ValueError("nothing to read: pass files, folders or arrays")
    preprocess = model.preprocess
    assert preprocess is not None
    options = file_options(model.provenance, reading)
    if on_fault is not None:
        options = replace(options, skip_bad=True)
    preprocess = preprocess.admitting(options.resample_long)
    names = () if reading.get("channels") else model.channel_names
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
        try:
            loaded = load_fitting(source, preprocess, options, log, names)
        except (ValueError, OSError) as error:
            if on_fault is None:
                raise
            on_fault(str(error))
            continue
        if on_fault is not None:
            for fault in loaded.examples.left_out:
                on_fault(fault)
        if not len(loaded.examples):
            if on_fault is None:
                raise ValueError(f"no example fits the model; the last: {loaded.examples.left_out[-1]}")
            continue
        warn_if_unlike_training([loaded.examples], preprocess)
        yield Inputs(loaded.examples, preprocess)


def load_fitting(
    source: Any, preprocess: Preprocess, options: FileOptions, log: Log, channels: Sequence[str] = ()
) -> LoadedExamples:
    """The examples of one input that the model can answer; with `skip_bad`, those that do not fit it are left out.

    `channels` are the names of those of the training, with which those of the input are compared.

    Raises:
        ValueError: if the input cannot be read, or is of another kind than the training data.
    """
    dims = len(preprocess.raw_size) if preprocess.kind == "signal" else None
    loaded = load_examples(source, dims=dims, in_channels=preprocess.raw_channels, reading=options)
    where = str(source) if isinstance(source, str | Path) else "X"
    check_kind(loaded.kind, preprocess, where)
    check_channels(loaded.examples.channels, channels, where)
    unfit = find_unfit(loaded.examples, preprocess) if options.skip_bad else {}
    notes = [note for note in loaded.notes if not isinstance(note, Doubt)]  # those were raised as warnings
    if unfit:
        fitting = [i for i in range(len(loaded.examples)) if i not in unfit]
        kept = loaded.examples.subset(fitting)
        kept.left_out = (*loaded.examples.left_out, *unfit.values())
        loaded = loaded._replace(examples=kept)
        notes.append(
            f"{counted(len(unfit), 'example')} left out as unfit for the model: {listing(list(unfit.values()))}"
        )
    if longer := describe_resampling([loaded.examples], preprocess):
        notes.append(longer)
    for note in notes:
        log(note)
    return loaded


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
