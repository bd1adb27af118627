"""From outputs of the network to the body of an answer."""

from __future__ import annotations

import json
from heapq import nlargest
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from ndvit.config.serving import ServingOptions
from ndvit.data.messages import printable
from ndvit.explain.explain import explain_inputs
from ndvit.inference.batches import check_finite
from ndvit.inference.recordings import WholeRecordings, mean_answers, window_predictions
from ndvit.serving import drawing
from ndvit.serving.errors import Invalid, Refused, TooLarge
from ndvit.serving.models import Loaded, ServedModel
from ndvit.serving.reading import Read, reading
from ndvit.tasks.base import Task


def unusable(read: Read) -> Invalid:
    """The error for a request of which nothing can be answered."""
    faults = _faults(read)
    more = f" (and {len(faults) - 1:,} more)" if len(faults) > 1 else ""
    return Invalid(faults[0]["error"] + more if faults else "there is no example", faults)


def predictions(
    task: Task, read: Read, outputs: np.ndarray, *, per_window: bool = False, top: int | None = None
) -> list[dict[str, Any]]:
    """Plain values of the predictions of all uploads, in order; files without finite answers become faults.

    Raises:
        Invalid: if nothing is left, or `per_window` is set for examples that are no windows.
    """
    found: list[dict[str, Any]] = []
    start = 0
    for inputs in read.inputs:
        rows = outputs[start : start + len(inputs)]
        start += len(inputs)
        examples = inputs.examples
        try:
            check_finite(torch.from_numpy(rows), examples.names, "the answer")
            if per_window:
                made = window_predictions(task, rows, examples)
            else:
                names, means = mean_answers(rows, examples)
                made = list(task.predictions(means, names))
        except ValueError as error:
            read.faults.append((str(examples.names[0]), str(error)))
            continue
        found += [one.to_dict() for one in made]
    if not found:
        raise unusable(read)
    if top is not None:
        for one in found:
            if "probabilities" in one:
                one["probabilities"] = dict(nlargest(top, one["probabilities"].items(), key=itemgetter(1)))
    return found


def body(loaded: Loaded, read: Read, **content: Any) -> bytes:
    """An answer as JSON, with the model that gave it, faults and notes."""
    values = {"model": loaded.batcher.name, "version": str(loaded.version), **content}
    if read.faults:
        values["faults"] = _faults(read)
    if read.notes:
        values["notes"] = [printable(note) for note in dict.fromkeys(read.notes)]
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def explained(
    loaded: Loaded, uploads: list[Any], options: ServingOptions, target: str | None, method: str | None
) -> bytes:
    """Explanations of uploads as JSON.

    Raises:
        Refused: for an exported model (501), an unknown output or method, or too many examples.
    """
    if not loaded.explains:
        raise Refused(501, "this model is an exported file, whose answers cannot be explained: serve its run folder")
    index = int(target) if target is not None and target.isdecimal() and target not in loaded.model.classes else target
    found: list[dict[str, Any]] = []
    with reading(loaded.model, uploads, options) as read:
        if not read.inputs:
            raise unusable(read)
        count = sum(map(len, read.inputs))
        if count > options.max_explained:
            raise TooLarge(f"{count:,} examples or windows to explain, at most {options.max_explained:,} are accepted")
        for inputs in read.inputs:
            try:
                explanations = explain_inputs(loaded.model, inputs, target=index, method=method)  # type: ignore[arg-type]
            except (ValueError, ImportError) as error:
                raise Invalid(str(error)) from None
            examples, preprocess = inputs.examples, inputs.preprocess
            as_whole = examples.places is not None and preprocess.kind == "signal" and len(explanations) < len(examples)
            raws = WholeRecordings(examples) if as_whole else examples
            picture = preprocess.kind == "image"
            for one, number in zip(explanations, range(len(raws))):
                seen = raws[number] if as_whole else preprocess.view(raws[number])
                found.append({**drawing.relevance(one, picture), "view": drawing.drawing(seen)})
        return body(loaded, read, explanations=found)


def facts(model: ServedModel) -> dict[str, Any]:
    """What a client needs to know of a model; more of one that is loaded."""
    values: dict[str, Any] = {"name": model.name, "state": model.state}
    loaded = model.loaded
    if loaded is None or loaded.model.preprocess is None:
        return values
    preprocess = loaded.model.preprocess
    return {
        **values,
        "version": str(loaded.version),
        "task": loaded.task.name,
        "outputs": list(loaded.task.output_names()),
        "kind": preprocess.kind if preprocess.kind == "image" else "signal",
        "channels": preprocess.raw_channels,
        "size": list(preprocess.raw_size),
        "rate": getattr(preprocess, "sample_rate", None),
        "runtime": loaded.way,
        "searching": loaded.search is not None and loaded.search.is_alive(),
        "explains": loaded.explains,
    }


def _faults(read: Read) -> list[dict[str, str]]:
    return [{"name": name, "error": printable(message)} for name, message in read.faults]
