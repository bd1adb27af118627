"""Why a model answered as it did: the relevance of each sample, pixel or voxel of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndvit.config.recipe import Device
from ndvit.data.examples import Recording
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.base import Extent
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.explain.bands import Bands, band_relevance, octaves
from ndvit.explain.coordinates import to_raw
from ndvit.explain.methods import METHODS, SIGNED, Method, Options, default_method, relevance
from ndvit.inference.batches import Log, check_finite, pick_device, predict_answers, to_answers
from ndvit.inference.predict import check_ready, check_tensors, read_inputs
from ndvit.inference.recordings import WholeRecordings, mean_answers, recording_of
from ndvit.network.committee import Committee, members
from ndvit.parts import ModelParts
from ndvit.tasks import Classification
from ndvit.tasks.base import Task

Target = int | str | Sequence[int | str] | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """Relevance of each sample, pixel or voxel of one example for one output.

    Attributes:
        name: file or number of the example.
        target: index of the output.
        label: name of the output, such as a class.
        predicted: the answer in words: for classes the most probable one.
        answers: (outputs,) answers of the model; for classification, the probabilities.
        method: how the relevance was computed; "default" for a committee whose members were explained in several ways.
        signed: whether negative values speak against the output; otherwise no value is negative.
        relevance: (channels, *grid) in the coordinates of the example; 1 channel if the method does not tell channels
            apart. Methods whose values are in units of the output keep their sum, up to what was cropped or padded.
        values: (channels, *grid) the example itself; of pictures, upright and of 8 bits.
        rate: samples per second of a recording; None for other examples.
        bands: relevance by frequency; None if it was not requested.
        exclusive: answers are probabilities of classes of which one is true.
        channels: names of the channels of `values`; empty if unknown.
        of_number: the output is a number in the units of a target, which relevance raises or lowers.
    """

    name: str
    target: int
    label: str
    predicted: str
    answers: np.ndarray
    method: str
    signed: bool
    relevance: np.ndarray
    values: np.ndarray
    rate: float | None = None
    bands: Bands | None = None
    exclusive: bool = True
    channels: tuple[str, ...] = ()
    of_number: bool = False

    @property
    def total(self) -> np.ndarray:
        """(*grid) the sum over channels."""
        summed: np.ndarray = self.relevance.sum(axis=0)
        return summed

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays of the example's size, as plain values for JSON."""
        bands = self.bands and {"edges": self.bands.edges.tolist(), "relevance": self.bands.relevance.tolist()}
        plain = {name: getattr(self, name) for name in ("name", "target", "label", "predicted", "method", "signed")}
        return plain | {"answers": self.answers.tolist(), "rate": self.rate, "bands": bands}


@dataclass(frozen=True)
class _Question:
    """What is explained, and how."""

    target: Target
    method: Method | None
    options: Options
    bands: int | tuple[float, ...] | None


def explain(
    model: ModelParts,
    *inputs: Any,
    mask: Tensor | None = None,
    target: Target = None,
    method: Method | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    steps: int = 50,
    occlude: int | Sequence[int] | None = None,
    bands: int | Sequence[float] | None = None,
    batch_size: int = 16,
    device: Device = "auto",
    progress: bool = False,
    log: Log = print,
    **reading: Any,
) -> list[Explanation]:
    """Explain the answers for examples; arguments and errors as in `Model.explain`."""
    _check_method(method)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    task = check_ready(model, batch_size, device, log, raw=not any(isinstance(one, Tensor) for one in inputs))
    options = Options(
        layers=None if layers is None else tuple(layers),
        heads=None if heads is None else tuple(heads),
        steps=steps,
        window=(occlude,) if isinstance(occlude, int) else None if occlude is None else tuple(occlude),
        batch_size=max(batch_size, 64),
        exclusive=isinstance(task, Classification),
    )
    target = int(target) if isinstance(target, np.integer) else target
    question = _Question(target, method, options, bands if isinstance(bands, int) or bands is None else tuple(bands))
    if bands is not None and not reads_signals(model):
        raise ValueError(f"frequency bands exist for signals of one axis, and inputs are {model.input_shape}")
    model.network.to(pick_device(device)).eval()
    if any(isinstance(one, Tensor) for one in inputs):
        x, observed = check_tensors(model, inputs, mask)
        return _explain_tensors(model, task, x, observed, question, batch_size)
    if mask is not None:
        raise ValueError("a mask belongs to a tensor; missing values of raw examples are NaN")
    found: list[Explanation] = []
    for read in read_inputs(model, inputs, reading, log):
        explained = _explain_inputs if read.examples.places is None else _explain_recordings
        found += explained(model, task, read, question, len(found), batch_size, progress)
    if isinstance(target, Sequence) and not isinstance(target, str) and len(target) != len(found):
        raise ValueError(f"target must be one output, or one for each of {len(found)} examples, got {len(target)}")
    return found


def reads_signals(model: ModelParts) -> bool:
    """Whether inputs are signals of one axis, whose frequencies can be taken out: no spectrograms."""
    preprocess = model.preprocess
    waves = preprocess is None or (preprocess.kind == "signal" and not isinstance(preprocess, SpectrogramPreprocess))
    return waves and len(model.input_shape) == 2


def explain_inputs(
    model: ModelParts,
    inputs: Inputs,
    bands: int | None = None,
    *,
    target: Target = None,
    method: Method | None = None,
    progress: bool = False,
) -> list[Explanation]:
    """Explain answers for examples, or recordings in windows, that are read already; arguments as in `explain`.

    Raises:
        ValueError: for a model without a task, and as `methods.relevance`.
    """
    if model.task is None:
        raise ValueError("the model does not know what its outputs mean: set model.task")
    _check_method(method)
    question = _Question(target, method, Options(exclusive=isinstance(model.task, Classification)), bands)
    explained = _explain_inputs if inputs.examples.places is None else _explain_recordings
    return explained(model, model.task, inputs, question, batch_size=4, progress=progress)


def _explain_recordings(
    model: ModelParts,
    task: Task,
    inputs: Inputs,
    question: _Question,
    first: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Explanation]:
    """Explanations of recordings that were cut into windows: the mean of the windows, as their answers are averaged.

    Spectrograms of windows do not fit together, so that each window is explained by itself.
    """
    examples = inputs.examples
    if isinstance(inputs.preprocess, SpectrogramPreprocess):
        alone = _explain_inputs(model, task, inputs, question, first, batch_size, progress)
        return [replace(one, name=place.name) for one, place in zip(alone, examples.places or ())]
    places, whole = examples.places, WholeRecordings(examples)
    assert places is not None
    answers = predict_answers(model, inputs, batch_size, model.device.type, task=task)
    (names, means), numbers = mean_answers(answers, examples), recording_of(places)
    some, labels = _part(question, first, len(names)), task.output_names()
    targets = _targets(_usual(some.target, task), torch.from_numpy(means), labels).tolist()
    each = replace(question, target=[targets[number] for number in numbers])
    windows = _explain_inputs(model, task, inputs, each, 0, batch_size, progress)
    found = []
    for number, (name, mean, text) in enumerate(zip(names, means, _words(task, means))):
        chosen = np.flatnonzero(numbers == number)
        values = inputs.preprocess.upright(whole[number])
        relevance = np.zeros((len(windows[chosen[0]].relevance), *values.shape[1:]), dtype=np.float32)
        for i in chosen:
            relevance[..., places[i].start : places[i].stop] += windows[i].relevance / len(chosen)
        bands = [one.bands for i in chosen if (one := windows[i]).bands is not None]
        mean_bands = Bands(bands[0].edges, np.mean([one.relevance for one in bands], axis=0)) if bands else None
        words: dict[str, Any] = {"name": name, "predicted": text, "answers": mean, "bands": mean_bands}
        found.append(replace(windows[chosen[0]], relevance=relevance, values=values, **words))
    return found


def _explain_inputs(
    model: ModelParts,
    task: Task,
    inputs: Inputs,
    question: _Question,
    first: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Explanation]:
    """Explanations in the coordinates of the examples; `first` is the number of the first one in the question."""
    from tqdm import tqdm

    examples, preprocess = inputs.examples, inputs.preprocess
    starts, found = range(0, len(examples), batch_size), list[Explanation]()
    for start in tqdm(starts, desc="explaining", leave=False, disable=not progress or len(starts) < 2):
        chosen = list(range(start, min(start + batch_size, len(examples))))
        batch, raw = inputs.__getitems__(chosen), [examples[i] for i in chosen]
        extents = [preprocess.extents(one) for one in raw]
        as_waves = not isinstance(preprocess, SpectrogramPreprocess)  # whose frames are no samples
        rates = [one.rate if isinstance(one, Recording) and as_waves else None for one in raw]
        some = _part(question, first + start, len(raw))
        names = [str(examples.names[i]) for i in chosen]
        explained = _explain_batch(model, task, batch.x, batch.mask, some, names, extents, rates)
        for one, example, extent, rate in zip(explained, raw, extents, rates):
            where = to_raw(one.relevance, extent)
            values = preprocess.upright(example)
            found.append(replace(one, relevance=where, values=values, rate=rate))
    return found


def _explain_tensors(
    model: ModelParts, task: Task, x: Tensor, mask: Tensor | None, question: _Question, batch_size: int
) -> list[Explanation]:
    found: list[Explanation] = []
    extents = tuple(Extent(0.0, n, n) for n in x.shape[2:])
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size]
        observed = None if mask is None else mask[start : start + batch_size]
        some = _part(question, start, len(part))
        names = [f"[{start + i}]" for i in range(len(part))]
        spread = [extents] * len(part), [None] * len(part)
        explained = _explain_batch(model, task, part, observed, some, names, *spread)
        found += [replace(one, values=values) for one, values in zip(explained, part.cpu().numpy())]
    return found


def _explain_batch(
    model: ModelParts,
    task: Task,
    x: Tensor,
    mask: Tensor | None,
    question: _Question,
    names: Sequence[str],
    extents: Sequence[Sequence[Extent]],
    rates: Sequence[float | None],
) -> list[Explanation]:
    """Explanations in the coordinates of the network, without the examples themselves.

    Raises:
        ValueError: for an answer or a relevance that is not finite, with the name of its example.
    """
    x, mask = x.to(model.device), None if mask is None else mask.to(model.device)
    network, labels = model.network, task.output_names()
    with torch.no_grad():
        outputs = network(x, mask).float()
        answers = to_answers(model, outputs, task).cpu()
    check_finite(answers, names, "the answer")
    targets = _targets(_usual(question.target, task), outputs, labels)
    found = relevance(network, x, mask, targets, question.method, question.options).float().cpu()
    check_finite(found, names, "the explanation")
    name, signed = _description(model, question.method)
    bands: list[Bands | None] = [None] * len(x)
    if question.bands is not None:
        bands = list(_bands(model, x, mask, targets, question.bands, [axes[0] for axes in extents], rates))
    return [
        Explanation(
            name=example,
            target=target,
            label=labels[target],
            predicted=text,
            answers=row,
            method=name,
            signed=signed,
            relevance=values,
            values=values,
            bands=band,
            exclusive=isinstance(task, Classification),
            channels=model.channel_names,
            of_number=has_numbers(task),
        )
        for example, target, row, text, values, band in zip(
            names, targets.tolist(), answers.numpy(), _words(task, answers.numpy()), found.numpy(), bands
        )
    ]


def _bands(
    model: ModelParts,
    x: Tensor,
    mask: Tensor | None,
    targets: Tensor,
    wanted: int | tuple[float, ...],
    extents: Sequence[Extent],
    rates: Sequence[float | None],
) -> list[Bands]:
    """Relevance of frequency bands; edges are counted in Hz, or cycles per sample of the example."""
    # Frequencies of the example per frequency of x: fewer samples of x for the same stretch have higher frequencies.
    units = [x.shape[2] / (axis.end - axis.begin) * (rate or 1.0) for axis, rate in zip(extents, rates)]
    if isinstance(wanted, int):
        if wanted < 1:
            raise ValueError(f"bands must be at least 1, or the edges of bands; got {wanted}")
        edges = [octaves(wanted, unit / 2) for unit in units]
    else:
        if len(wanted) < 2 or any(low >= high for low, high in pairwise(wanted)) or wanted[0] < 0:
            raise ValueError(f"edges of bands are two or more rising frequencies, from 0 on; got {wanted}")
        edges = [list(wanted) for _ in units]
    scaled = [[edge / unit for edge in row] for row, unit in zip(edges, units)]
    falls = band_relevance(model.network, x, mask, targets, scaled).float().cpu().numpy()
    return [Bands(np.array(row), fall) for row, fall in zip(edges, falls)]


def _words(task: Task, answers: np.ndarray) -> list[str]:
    """Answers (n, outputs) in words."""
    if isinstance(task, Classification):
        return [task.classes[i] for i in answers.argmax(1)]
    return [one.text() for one in task.predictions(answers, [""] * len(answers))]


def _check_method(method: str | None) -> None:
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, or None for the default; got {method!r}")


def _usual(target: Target, task: Task) -> Target:
    """What is explained by default: None, the highest output, for classes, and otherwise the first output."""
    return 0 if target is None and has_numbers(task) else target


def has_numbers(task: Task) -> bool:
    """Whether outputs are numbers in units of targets, not scores of classes or labels."""
    return not getattr(task, "classes", ())


def _targets(target: Target, outputs: Tensor, labels: Sequence[str]) -> Tensor:
    """Indices of the outputs that are explained, (B,); by default the highest ones."""
    if target is None:
        return outputs.argmax(1)
    chosen = [target] * len(outputs) if isinstance(target, int | str) else list(target)
    known = {label: i for i, label in enumerate(labels)}
    for one in chosen:
        if not (one in known if isinstance(one, str) else 0 <= one < len(labels)):
            some = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
            raise ValueError(f"target must be an output from 0 to {len(labels) - 1} or its name ({some}), got {one!r}")
    return torch.tensor([known[one] if isinstance(one, str) else int(one) for one in chosen], device=outputs.device)


def _part(question: _Question, start: int, count: int) -> _Question:
    """The same question about the examples from `start` on."""
    target = question.target
    if target is None or isinstance(target, int | str):
        return question
    part = target[start : start + count]
    if len(part) != count:
        raise ValueError(f"target must be one output, or one for each example; got {len(target)}")
    return replace(question, target=part)


def _description(model: ModelParts, method: Method | None) -> tuple[str, bool]:
    """Name of the method, and whether its values are signed."""
    if method is not None:
        return method, method in SIGNED
    used = {default_method(member) for member in members(model.network)}
    name = " + ".join(sorted(used))
    return name, isinstance(model.network, Committee) or bool(used & SIGNED)
