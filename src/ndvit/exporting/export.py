"""Export of a trained model to a file that runs without ndvit, after a comparison with the model."""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.exporting.comparison import BATCH, Comparison, ComparisonData, compare, load_comparison_data, needs_mask
from ndvit.exporting.formats import ENDINGS, OPSET, OPSETS, PACKAGES, WRITERS, Format, halve_weights, require
from ndvit.exporting.graphs import Deployed, frozen_copy, quiet
from ndvit.exporting.quantize import QUANTIZE, estimate_saving
from ndvit.exporting.runtimes import GraphOptions, open_exported, sums_in_32_bits
from ndvit.files import refuse_existing, replace_file, writing
from ndvit.inference.batches import to_answers
from ndvit.inference.predict import Log
from ndvit.network.committee import network_shape
from ndvit.parts import ModelParts
from ndvit.tasks import Classification, Regression, Task
from ndvit.weights.file import MODEL_FILE, model_metadata

MIN_AGREEMENT = 0.98
"""Default of the least share of examples for which int8 must predict the model's class."""
MIN_SAVING = 0.25
"""Default of the least share of the file, and of the work, for which int8 is worth its minutes."""
_LEAST_SAVED = 1_000_000
"""Bytes that int8 must save at least, as small networks are no faster with it."""
_MOST_FP16 = 0.1
"""Largest difference of an output with weights of 16 bits, relative to the spread of the outputs."""
_VNNI_NOTE = (
    "its 8-bit weights are for CPUs with VNNI, like this one, and for ARM: for others, export it on one of them"
)


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares with the model."""

    path: Path  # OpenVINO's file has a .bin beside it
    format: Format
    options: GraphOptions
    runtime: str  # the library that ran the file, with its version
    comparison: Comparison  # with the model in float32
    inputs: str  # description of the examples that were compared
    size: int  # of the file or files, in bytes
    seconds: float  # for export and comparison
    notes: tuple[str, ...] = ()
    classifies: bool = True  # whether the model names one class for each example
    opset: int = OPSET  # of an ONNX file
    fp16: bool = False  # the weights are stored as 16-bit floating-point numbers

    @property
    def kind(self) -> str:
        """Opset, precision, and whether there is a mask."""
        kind = "int8" if self.options.int8 else "float32, weights of 16 bits" if self.fp16 else "float32"
        kind += ", with a mask" * self.options.mask
        return f"opset {self.opset}, {kind}" if self.format == "onnx" else kind

    def __str__(self) -> str:
        c, values = self.comparison, "answers" if self.options.softmax else "outputs"
        batches = " and ".join(map(str, c.batches))
        lines = [
            f"{self.path}: {self.format}, {self.kind}, {self.size / 1e6:.1f} MB",
            f"run by {self.runtime} on {c.examples:,} examples at batch {batches}: {self.inputs}",
            f"largest difference of {values} {c.difference:.2g}, whose spread is {c.spread:.2g}",
        ]
        if self.classifies:
            lines.append(f"same class as the model's in {100 * c.agreement:.2f} %")
        if c.scores is not None:
            lines.append(f"score {c.scores[1]:.4f}, the model's {c.scores[0]:.4f}")
        return "\n".join([*lines, *self.notes, f"{self.seconds:.0f} s"])


def export(
    model: ModelParts,
    path: str | Path | None = None,
    *,
    format: Format = "onnx",
    int8: bool = False,
    fp16: bool = False,
    opset: int | None = None,
    data: Any = None,
    dynamic_batch: bool = True,
    softmax: bool = False,
    preprocess: Literal["beside", "inside"] = "beside",
    mask: bool | None = None,
    force: bool = False,
    min_agreement: float = MIN_AGREEMENT,
    min_saving: float = MIN_SAVING,
    log: Log = print,
) -> ExportReport:
    """Write a model to a file that runs without ndvit, after its outputs were compared with the model's.

    The file contains the metadata of the model file (structure, task, preprocessing, temperature, provenance) as one
    JSON text, "ndvit": in ONNX's metadata, in OpenVINO's rt_info, in torch's extra file ndvit.json.

    Args:
        model: a trained model.
        path: the file, .onnx, .xml (OpenVINO, with a .bin beside it), .pt2 or .ts; by default beside the weights.
        format: "onnx", "openvino", "pt2" for torch.export, or "torchscript" for torch before pt2 and for C++.
        int8: static quantisation to 8-bit integers, for onnx and openvino. It needs `data`. A file made on a CPU with
            VNNI (Intel from 2019, AMD from 2022 on) is for such CPUs, as the report says.
        fp16: store the weights of an ONNX file as 16-bit floating-point numbers, so that it is half as large. They are
            computed with in float32.
        opset: opset of an ONNX file, 18 to 23; None is 20.
        data: a source as in `train`, or files without labels as in `predict`. int8 is calibrated on 300 examples of its
            training set, and outputs are compared on its test set; by default on the test set of the run if that can
            be read, else on random inputs. The report says which.
        dynamic_batch: whether the graph accepts any batch size, not only 1.
        softmax: whether the graph returns answers instead of outputs: probabilities, of logits divided by the model's
            temperature; of several labels, each by itself; of a regression, numbers in the units of the targets.
        preprocess: "inside" puts mean and standard deviation into the graph, which then reads raw values of the
            network's size: pixels from 0 to 255, signals as recorded. "beside" leaves the preprocessing to the caller.
        mask: whether the graph has a second input, boolean (B, *size), True where a value was observed. Without it,
            `predict` refuses examples with missing values or padding. By default models whose preprocessing pads
            signals have one, as signals are seldom exactly as long as the network's input.
        force: replace an existing file.
        min_agreement: the least share of examples for which int8 or fp16 must predict the same class as the model.
        min_saving: the least share of the file, and of the multiply-adds, that int8 must save, by an estimate before
            anything is computed. Networks of mainly convolutions, random ones or a stem, have less, and so are those
            that it makes less than 1 MB smaller. 0 quantises every network.
        log: receives the estimate of what int8 saves.

    Raises:
        ValueError: if the outputs differ by more than rounding, or int8 or fp16 agree or save too little; nothing is
            written then. Also for options that do not fit together, and for packages that are not installed.
        FileExistsError: if the file exists and `force` is False.
        OSError: if the file cannot be written, for example on a full disk; an existing file stays as it is.
    """
    start = time.perf_counter()
    _check_options(model, format, int8, data, softmax, preprocess, min_agreement, min_saving)
    _check_onnx_options(format, int8, fp16, opset)
    target = _target(model, path, format, int8, force)
    options = GraphOptions(
        softmax=softmax,
        inside=preprocess == "inside",
        mask=needs_mask(model) if mask is None else mask,
        batch=0 if dynamic_batch else 1,
    )
    network = Deployed(model, options)
    if int8:
        _check_saving(network, min_saving, log)
    examples, calibration = load_comparison_data(model, data, mask=options.mask, int8=int8)
    with _folder_beside(target, network) as folder, quiet():
        file = folder / f"model{target.suffix}"
        inputs = network.example_inputs(dynamic_batch)
        more = {"opset": opset or OPSET} if format == "onnx" else {}
        WRITERS[format](network, inputs, dynamic_batch, file, _metadata(model, options), **more)
        if fp16:
            halve_weights(file)
        if calibration is not None:
            unquantized, (runtime, _) = file, open_exported(file)
            options = replace(options, int8=True, vnni=sums_in_32_bits())
            file = folder / f"int8{target.suffix}"
            QUANTIZE[format](unquantized, runtime, calibration, file, _metadata(model, options))
        comparison = _compare(model, file, examples, (1, BATCH) if dynamic_batch else (1,))
        _refuse_differences(comparison, examples, "int8" if int8 else "fp16" if fp16 else "", min_agreement)
        parts = sorted(folder.glob(f"{file.stem}.*"))  # .bin comes before .xml, which needs it
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            replace_file(target.with_suffix(part.suffix), part.replace)
    package = PACKAGES.get(format, ("torch",))[0]
    return ExportReport(
        path=target,
        format=format,
        options=options,
        runtime=f"{package} {version(package)}",
        comparison=comparison,
        inputs=examples.source,
        size=size,
        seconds=time.perf_counter() - start,
        notes=(*examples.notes, *_note_units(model, softmax), *[_VNNI_NOTE] * options.vnni),
        classifies=model.task is None or model.task.name == "classification",
        opset=opset or OPSET,
        fp16=fp16,
    )


def _note_units(model: ModelParts, softmax: bool) -> list[str]:
    """A note for graphs whose outputs are not in the units of the targets."""
    if softmax or not isinstance(model.task, Regression):
        return []
    return ["the graph returns standardised numbers; with --softmax (softmax=True) it returns them in their units"]


def _check_options(
    model: ModelParts,
    format: Format,
    int8: bool,
    data: Any,
    softmax: bool,
    preprocess: str,
    min_agreement: float,
    min_saving: float,
) -> None:
    if format not in ENDINGS:
        raise ValueError(f"format must be one of {', '.join(ENDINGS)}, got {format!r}")
    if preprocess not in ("beside", "inside"):
        raise ValueError(f'preprocess must be "beside" or "inside", got {preprocess!r}')
    if preprocess == "inside" and model.preprocess is None:
        raise ValueError("the model has no preprocessing to put inside: set model.preprocess, or leave it beside")
    if preprocess == "inside" and isinstance(model.preprocess, SpectrogramPreprocess):
        raise ValueError(
            "the spectrogram is computed beside the graph, which takes the standardised one: leave preprocess out, "
            "and model.preprocess makes the inputs from recordings"
        )
    answers = network_shape(model.network) != (model.input_shape, 0)
    if softmax and not (answers and (model.task is None or type(model.task).deactivate is not Task.deactivate)):
        raise ValueError(
            "softmax is for networks with answers such as probabilities, and this one has none: leave it out"
        )
    if int8 and not (answers and (model.task is None or model.task.name == "classification")):
        raise ValueError("int8 is for networks that classify, and this one does not: leave it out")
    if int8 and format not in QUANTIZE:
        raise ValueError(f"int8 exists for {' and '.join(QUANTIZE)}, not for {format}: choose one of them, or no int8")
    if int8 and data is None:
        raise ValueError("int8 needs examples to find the ranges of values: pass --data SOURCE, best the training data")
    for name, share in (("min_agreement", min_agreement), ("min_saving", min_saving)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, got {share}")
    require(f"export to {format}", *PACKAGES.get(format, ()), *(("nncf",) if int8 else ()))


def _check_onnx_options(format: Format, int8: bool, fp16: bool, opset: int | None) -> None:
    if format != "onnx" and (fp16 or opset is not None):
        raise ValueError(f"{'fp16' if fp16 else 'opset'} is for ONNX files, and the format is {format}: leave it out")
    if fp16 and int8:
        raise ValueError("fp16 and int8 are two sizes of weights: choose one of them")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be from {OPSETS[0]} to {OPSETS[1]}, got {opset}")


def _check_saving(network: Deployed, min_saving: float, log: Log) -> None:
    """Log what int8 can save, or raise a ValueError if it is too little."""
    saving = estimate_saving(network)
    if min_saving and (min(saving.share, saving.work) < min_saving or saving.saved < _LEAST_SAVED):
        raise ValueError(
            f"{saving}: too little to be faster or much smaller, as only the linear layers of attention and MLPs are "
            "quantised, and convolutions are not. Export without --int8, or quantise anyway with --min-saving 0"
        )
    log(f"{saving}; the quantisation takes minutes")


@contextmanager
def _folder_beside(target: Path, network: Deployed) -> Iterator[Path]:
    """A temporary folder on the disk of the target, whose files can be renamed to it.

    Every library has its own errors for a disk that is full, such as OpenVINO's "basic_ios::clear: iostream error". So
    space is checked before, and an error of a library counts as one of the disk if there is too little space after it.

    Raises:
        OSError: if the file cannot be written, with its name and a remedy.
    """
    needed = sum(t.numel() * t.element_size() for t in network.state_dict().values())

    def free() -> int:
        return shutil.disk_usage(target.parent).free

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with writing(target), TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        if free() < needed:
            raise full
        try:
            yield Path(folder)
        except (FileNotFoundError, FileExistsError, ValueError):
            raise
        except Exception as error:
            if not isinstance(error, OSError) and free() < needed:
                raise full from error
            raise


def _target(model: ModelParts, path: str | Path | None, format: Format, int8: bool, force: bool) -> Path:
    """The path of the file, checked; by default beside the weights that the model was loaded from."""
    ending = ENDINGS[format]
    if path is None:
        if model.load_report is None:
            raise ValueError(f"the model was not loaded from a file: pass the path of the {ending} file to write")
        path = Path(model.load_report.source)
        if path.is_dir():
            path = path / MODEL_FILE
        elif not path.is_file():  # the name of published weights, whose last part becomes the file's name
            path = Path(model.load_report.source.replace(":", "/").rpartition("/")[2] + ".weights")
        path = path.with_name(f"{path.stem}{'-int8' if int8 else ''}{ending}")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: pass the name of the {ending} file, such as {path / f'model{ending}'}")
    if path.suffix != ending:
        raise ValueError(f"{format} files end in {ending}, got {path}: change the name, or the format")
    for part in (path, path.with_suffix(".bin")) if format == "openvino" else (path,):
        refuse_existing(part, force)
    return path


def _metadata(model: ModelParts, options: GraphOptions) -> str:
    return json.dumps({**model_metadata(model), "export": asdict(options)})


def _compare(model: ModelParts, file: Path, data: ComparisonData, batches: tuple[int, ...]) -> Comparison:
    """Compare the file with the model's own network on the CPU."""
    network, (runtime, _) = frozen_copy(model).cpu(), open_exported(file)
    softmax, task = runtime.options.softmax, model.task or Classification(())

    @torch.inference_mode()
    def reference(x: Tensor, mask: Tensor | None) -> Tensor:
        outputs: Tensor = network(x, mask)
        return to_answers(model, outputs, task) if softmax else outputs

    def score(values: Tensor) -> float:
        assert data.targets is not None
        answers = values if softmax else to_answers(model, values, task)
        return task.evaluate(answers.numpy(), data.targets, [""] * len(answers)).score

    scored = None if data.targets is None else score
    if not (softmax and isinstance(task, Regression)):
        return compare(reference, runtime.compute, data, batches, scored)
    # Targets of different units are compared by their deviations.
    return compare(
        lambda x, mask: task.deactivate(reference(x, mask)),
        lambda x, mask: task.deactivate(runtime.compute(x, mask)),
        data,
        batches,
        scored and (lambda values: score(task.activate(values))),
    )


def _refuse_differences(comparison: Comparison, data: ComparisonData, rounded: str, min_agreement: float) -> None:
    """Raise a ValueError if the outputs are too far from the model's; `rounded` names what rounds the weights."""
    if rounded and comparison.agreement < min_agreement:
        scores = ""
        if comparison.scores is not None:
            scores = f" (score {comparison.scores[1]:.4f}, the model's {comparison.scores[0]:.4f})"
        raise ValueError(
            f"{rounded} predicts the model's class for {100 * comparison.agreement:.2f} % of {comparison.examples} "
            f"examples of {data.source}{scores}, less than {100 * min_agreement:g} %: nothing is written. Calibrate on "
            "data like those of the training, take the other format, or lower --min-agreement"
        )
    if rounded == "fp16" and comparison.difference > _MOST_FP16 * comparison.spread:
        raise ValueError(
            f"with weights of 16 bits, answers differ by up to {comparison.difference:.2g} of a spread of "
            f"{comparison.spread:.2g}: nothing is written. Leave --fp16 out"
        )
    if not rounded and not comparison.same:
        raise ValueError(
            f"the exported file differs from the model by up to {comparison.difference:.2g}, and the spread of its "
            f"outputs is {comparison.spread:.2g}: nothing is written. Please report it with `ndvit info` of the model; "
            "another format may work"
        )
