"""Checkpoints of ndvit's own unfinished trainings, `step=N.ckpt`, as models."""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ndvit.weights.file import Checkpoint, checkpoint_from_metadata
from ndvit.weights.reading.files import TensorFile
from ndvit.weights.structure import below

METADATA = "model"  # name of `model_metadata`, as JSON, in the state of the callback `Checkpoints`


def is_unfinished(file: TensorFile) -> bool:
    """Whether a file is a checkpoint of ndvit's training."""
    return "config" in _state(file.values, "SameRun") or METADATA in _state(file.values, "Checkpoints")


def read_unfinished(file: TensorFile, ema: bool | None) -> Checkpoint:
    """The model at a step of a training. It has no temperature, which is fitted at the end of a training.

    Args:
        file: a checkpoint of ndvit's training.
        ema: the moving average of the weights, or the newest weights; None is the average, if there is one.

    Raises:
        ValueError: if the training averages no weights though `ema` is True, or the file does not describe a model.
    """
    averages = any(name.startswith("current_model_state.") for name in file.tensors)
    if ema and not averages:
        raise ValueError(f"{file.path} has no averaged weights: leave ema={ema} out")
    newest = averages and ema is False
    tensors = below(file.tensors, ("current_model_state" if newest else "state_dict") + ".model.")
    step = file.values.get("global_step")
    stored = _state(file.values, "Checkpoints").get(METADATA)
    if isinstance(stored, str):
        checkpoint = checkpoint_from_metadata(_parsed(stored, file), file.path, tensors)
    else:
        checkpoint = _without_metadata(file, tensors)
    checkpoint.provenance["steps"] = step
    averaged = f", the {'newest' if newest else 'averaged'} weights (ema={newest} reads the others)" if averages else ""
    checkpoint.notes = (*checkpoint.notes, f"an unfinished training at step {step}{averaged}")
    return checkpoint


def _parsed(text: str, file: TensorFile) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.path}: the metadata of the model is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file.path}: the metadata of the model is a {type(values).__name__}, not an object")
    return values


def _without_metadata(file: TensorFile, tensors: dict[str, Tensor]) -> Checkpoint:
    """A checkpoint of ndvit 0.1 knows its network, and neither classes nor preprocessing."""
    config = _state(file.values, "SameRun").get("config")
    # The names of that version, which `checkpoint_from_metadata` updates.
    old = {re.sub(r"^members\.1\.", "rocket.", name).removeprefix("members.0."): t for name, t in tensors.items()}
    metadata: dict[str, Any] = {"ndvit": "1", "config": config, "classes": [], "preprocess": None, "provenance": {}}
    checkpoint = checkpoint_from_metadata(metadata, file.path, old)
    checkpoint.notes = ("this checkpoint of an earlier version holds neither classes nor preprocessing",)
    return checkpoint


def _state(values: Mapping[str, Any], callback: str) -> Mapping[str, Any]:
    """The state of a callback; its values are apart if another callback has tensors."""
    callbacks = values.get("callbacks")
    state = callbacks.get(callback) if isinstance(callbacks, Mapping) else values.get(f"callbacks.{callback}")
    return state if isinstance(state, Mapping) else {}
