"""Edge bundles: a folder with a model that answers raw files without ndvit and torch."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from ndvit import __version__
from ndvit.config.reading import Span, file_options, listed
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.exporting.export import MIN_AGREEMENT, MIN_SAVING, ExportReport, export
from ndvit.exporting.formats import OPSET
from ndvit.exporting.onnx_nodes import FLOAT, INT, Array, name_values
from ndvit.exporting.raw_inputs import prepared, raw_input, reads_rate
from ndvit.exporting.selftest import Sample, write_samples
from ndvit.files import contents, refuse_existing, writing
from ndvit.inference.predict import Log, check_ready
from ndvit.parts import ModelParts
from ndvit.tasks import Multilabel, Regression
from ndvit.weights.file import MODEL_FILE, write_model

GRAPH, DESCRIPTION, TESTS = "model.onnx", "model.json", "self-test"
TOLERANCE = 1e-4
"""Largest difference of an answer of a float32 bundle from the model's; of numbers, in standard deviations."""
_MARK = "ndvit_bundle"  # key of ONNX's metadata
_OWN = {GRAPH, DESCRIPTION, "predict.py"}  # by which an earlier bundle is known that may be replaced
_OTHERS = {"README.md", TESTS, "service", "web", "__pycache__"}  # what it has besides


@dataclass(frozen=True)
class BundleReport:
    """What a bundle has, and how its answers differ from the model's."""

    path: Path
    network: ExportReport
    difference: float  # largest of an answer of the self-test; of numbers, in standard deviations
    size: int  # of the graph, in bytes
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = str(self.network).splitlines()[1:]
        return "\n".join(
            [
                f"{self.path}: {GRAPH}, {self.network.kind}, {self.size / 1e6:.1f} MB, reads raw examples; try "
                f"python {self.path / 'predict.py'} --self-test",
                *lines,
                f"largest difference of the self-test's answers from the model's: {self.difference:.2g}",
                *self.notes,
            ]
        )


def export_bundle(
    model: ModelParts,
    folder: str | Path,
    *,
    data: Any = None,
    int8: bool = False,
    fp16: bool = False,
    opset: int = OPSET,
    min_agreement: float = MIN_AGREEMENT,
    min_saving: float = MIN_SAVING,
    force: bool = False,
    log: Log = print,
) -> BundleReport:
    """Write a folder with everything that answers raw files on a device without ndvit and torch.

    The graph reads a picture (height, width, 3) of 8 bits, or a signal (channels, ..., time) with NaN for missing
    values; resizing, resampling, spectrogram, standardisation, mask and the activation of the task are inside. Beside
    it are a description in JSON, a program in Python (numpy and ONNX Runtime only) and one for browsers, a Dockerfile
    of the service, and three real inputs with the model's answers, which the Python program must reproduce before the
    folder appears.

    Args:
        model: a trained model.
        folder: the bundle, a new folder.
        data: examples for comparisons and for the self-test; by default the test set of the run, if it can be read.
        int8: quantise to 8-bit integers, see `export`.
        fp16: store the weights as 16-bit floating-point numbers, see `export`.
        opset: opset of the graph.
        min_agreement: see `export`.
        min_saving: see `export`.
        force: replace an earlier bundle; other folders are never replaced.
        log: receives lines about the progress.

    Raises:
        ValueError: for a model without classes or numbers to answer with, without real inputs, or whose bundle answers
            otherwise than the model; nothing is written then.
        FileExistsError: if the folder exists and has contents.
        OSError: if it cannot be written.
    """
    target = Path(folder)
    _refuse(target, force)
    task = check_ready(model, 1, "cpu", log)
    model = replace(model, task=task)
    assert model.preprocess is not None
    with writing(target), TemporaryDirectory(dir=target.absolute().parent, prefix=".bundle-") as temporary:
        made = Path(temporary) / "bundle"
        (made / TESTS).mkdir(parents=True)
        samples = write_samples(model, data, made / TESTS)
        network = Path(temporary) / "network.onnx"
        exported = export(
            model,
            network,
            int8=int8,
            fp16=fp16,
            opset=opset,
            data=data,
            softmax=True,
            mask=not isinstance(model.preprocess, ImagePreprocess),
            min_agreement=min_agreement,
            min_saving=min_saving,
            log=log,
        )
        _join(network, made / GRAPH, model)
        _write_json(made / DESCRIPTION, describe(model))
        _write_programs(made, model)
        difference = _check(made, model, samples, exact=not (int8 or fp16))
        size = (made / GRAPH).stat().st_size
        _move(made, target)
    return BundleReport(target, exported, difference, size)


def _refuse(target: Path, force: bool) -> None:
    """Refuse a folder with contents, unless an earlier bundle may be replaced."""
    names = {path.name for path in contents(target)} if target.is_dir() else set()
    if force and names >= _OWN and (foreign := sorted(names - _OWN - _OTHERS)):
        raise FileExistsError(f"{target} has files beside the earlier bundle, such as {foreign[0]}: move them first")
    if not (force and names >= _OWN):
        refuse_existing(target, kind="folder")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.absolute().parent} for the bundle: make it first")


def _move(made: Path, target: Path) -> None:
    """Put the finished folder in its place; an earlier bundle stays until then."""
    made.chmod(0o755)
    earlier = made.with_name("earlier")
    if target.exists():
        os.rename(target, earlier)
    try:
        os.rename(made, target)
    except OSError:
        if earlier.exists():
            os.rename(earlier, target)
        raise


def _join(network: Path, path: Path, model: ModelParts) -> None:
    """Write the graph of a network with the preprocessing before it, and the intervals of numbers behind it."""
    assert model.preprocess is not None
    whole = ir.load(network)
    graph, tape, kind = whole.graph, Tape(), raw_input(model.preprocess)
    raw = ir.val("raw", kind.type, kind.shape)
    ratio = ir.val("ratio", INT, (2,)) if reads_rate(model.preprocess) else None
    made = prepared(Array(tape, raw, kind.type), None if ratio is None else Array(tape, ratio, INT), model.preprocess)
    for value, array in zip(list(graph.inputs), made):
        assert array is not None
        value.replace_all_uses_with(array.value)
    graph.inputs[:] = [raw] if ratio is None else [raw, ratio]
    graph.insert_before(graph[0], tape.nodes)
    after, (answers,) = Tape(), graph.outputs
    found = _with_intervals(Array(after, answers, FLOAT), model).value
    graph.extend(after.nodes)
    graph.outputs[:] = [found]
    found.name, found.dtype, found.shape = "answers", FLOAT, None
    name_values(graph, "value_")
    whole.metadata_props.clear()
    whole.metadata_props[_MARK] = __version__
    ir.save(whole, path)


def _with_intervals(answers: Array, model: ModelParts) -> Array:
    """Numbers followed by the lower, then the upper bounds of their intervals; other answers as they are."""
    task = model.task
    if not isinstance(task, Regression) or (task.margins is None and not task.quantiles):
        return answers
    count = len(task.targets)
    margins = np.array(task.margins or [0.0] * count, dtype=np.float32)
    middle = answers.take(np.arange(count), 1)
    low, high = (
        answers.take(np.arange(k * count, (k + 1) * count) if task.quantiles else np.arange(count), 1) for k in (1, 2)
    )
    return middle.node("Concat", (low - margins).at_most(middle), (high + margins).at_least(middle), axis=1)


def describe(model: ModelParts) -> dict[str, Any]:
    """What the programs of a bundle need to know: the task, and how files are read."""
    preprocess, task, reading = model.preprocess, model.task, file_options(model.provenance, {})
    assert preprocess is not None
    assert task is not None
    found: dict[str, Any] = {"made_by": f"ndvit {__version__}", "task": task.name, "outputs": task.output_names()}
    if isinstance(task, Multilabel):
        found["thresholds"] = list(task.thresholds)
    if isinstance(task, Regression):
        found["outputs"] = list(task.targets)
    if isinstance(preprocess, ImagePreprocess):
        return {**found, "input": {"kind": "picture", "levels": list(preprocess.levels)}}
    waves = preprocess.waves if isinstance(preprocess, SpectrogramPreprocess) else preprocess
    assert isinstance(waves, SignalPreprocess)
    channels, listed_names = waves.channels, listed(reading.channels)
    numbered = [int(name) for name in listed_names] if all(name.isdecimal() for name in listed_names) else []
    names = model.channel_names or (() if numbered else listed_names)
    names = names if len(names) == channels and not reading.mono else ()
    used = preprocess.used_inputs if isinstance(preprocess, SpectrogramPreprocess) else preprocess.used
    known = waves.longest or waves.size
    unlimited = waves.any_length or reading.resample_long or (waves.resize == "resample" and waves.longest is None)
    return found | {
        "input": {
            "kind": "signal",
            "axes": len(waves.size),
            "channels": channels,
            "channel_names": list(names),
            "chosen": [] if names else numbered,  # of arrays and sounds
            "many": channels == 1 and not (reading.mono or reading.channels),  # rows of arrays are examples
            "mixed": bool(waves.mono or reading.mono),
            "used": used,
            "rate": waves.sample_rate,
            "longest": None if unlimited else list(known),
            **{name: _span(getattr(reading, name)) for name in ("window", "hop")},
        }
    }


def _span(length: int | str | None) -> list[Any] | None:
    return None if length is None else list(Span.parse(length))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_programs(made: Path, model: ModelParts) -> None:
    """Copy the programs, fill in the texts, and write the model file for the service."""
    import jinja2

    facts = {"version": __version__, "description": describe(model), "task": model.task}
    for name, content in _package_files(resources.files("ndvit.exporting") / "bundled"):
        path = made / name.removesuffix(".jinja")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jinja"):
            template = jinja2.Template(content, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
            content = template.render(facts)
        path.write_text(content, encoding="utf-8")
    write_model(model, made / "service" / MODEL_FILE)


def _package_files(folder: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if not entry.name.startswith("__"):
                yield from _package_files(entry, f"{prefix}{entry.name}/")
        elif not entry.name.endswith(".pyc"):
            yield prefix + entry.name, entry.read_text(encoding="utf-8")


def _check(made: Path, model: ModelParts, samples: list[Sample], exact: bool) -> float:
    """Compare the answers of the bundle's program with the model's, and store these with what they may differ by.

    Returns:
        The largest difference; of numbers, in standard deviations of the target.

    Raises:
        ValueError: if an answer of a float32 bundle differs.
    """
    program = runpy.run_path(str(made / "predict.py"))
    task, answers, worst = model.task, dict[str, list[float]](), 0.0
    scale = np.ones(1)
    for sample in samples:
        expected = sample.answer.astype(np.float64)
        if isinstance(task, Regression):
            scale, bounds = np.array(task.std), task.intervals(expected[None])
            expected = expected[: len(scale)]
            if bounds is not None:
                scale, expected = np.tile(scale, 3), np.concatenate([expected, bounds[0][0], bounds[1][0]])
        examples, rate = program["read"](made / TESTS / sample.file)
        found = program["answer"](examples[0], rate)
        worst = max(worst, float(np.max(np.abs(found - expected) / scale)))
        answers[sample.file] = expected.tolist()
    if exact and not worst <= TOLERANCE:
        raise ValueError(
            f"the bundle's answers differ from the model's by {worst:.2g}, more than {TOLERANCE:g}: nothing is "
            "written. Please report it with `ndvit info` of the model"
        )
    allowed = TOLERANCE if exact else max(TOLERANCE, 2 * worst)
    tolerance = (allowed * np.broadcast_to(scale, len(next(iter(answers.values()))))).tolist()
    _write_json(made / TESTS / "expected.json", {"answers": answers, "tolerance": tolerance})
    return worst
