"""A trained model to a file that runs without ndvit; it is run and compared with the model before it is there."""

import json
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from ndvit.exporting.graphs import OPSET, PACKAGES, WRITERS, Deployed, quiet
from ndvit.exporting.quantize import QUANTIZE
from ndvit.exporting.runtimes import ENDINGS, Format, How, load_exported, need, sums_in_32_bits
from ndvit.exporting.trials import BATCH, Comparison, Trial, compare, gather
from ndvit.files import replace_file
from ndvit.network.committee import Model
from ndvit.weights.file import MODEL_FILE, facts
from ndvit.weights.loading import load_model

MIN_AGREEMENT = 0.98
"""The least share of examples for which int8 must name the model's class, unless told otherwise."""
_FOR_VNNI = "its 8-bit weights are for CPUs with VNNI, as this one, and for ARM's: for others, export it on one of them"


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares.

    Attributes:
        path: the file; OpenVINO's has a .bin beside it.
        format: "onnx", "openvino", "pt2" or "torchscript".
        how: softmax, preprocessing, mask, int8 and batch.
        runtime: what ran it, with its version.
        comparison: with the model in float32.
        inputs: what both were given.
        size: of the file or files, in bytes.
        seconds: that exporting and comparing took.
        notes: what else there is to know.
    """

    path: Path
    format: Format
    how: How
    runtime: str
    comparison: Comparison
    inputs: str
    size: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        c, what = self.comparison, "probabilities" if self.how.softmax else "logits"
        kind = ("int8" if self.how.int8 else "float32") + (
            ", with a mask of what was observed" if self.how.mask else ""
        )
        opset = f"opset {OPSET}, " if self.format == "onnx" else ""
        batches = " and ".join(map(str, c.batches))
        lines = [
            f"{self.path}: {self.format}, {opset}{kind}, {self.size / 1e6:.1f} MB",
            f"run by {self.runtime} on {c.examples:,} examples at batch {batches}: {self.inputs}",
            f"largest difference of {what} {c.difference:.2g}, whose spread is {c.spread:.2g}",
            f"same class as the model's in {100 * c.agreement:.2f} %",
        ]
        if c.accuracies is not None:
            lines.append(f"accuracy {c.accuracies[1]:.4f}, the model's {c.accuracies[0]:.4f}")
        return "\n".join([*lines, *self.notes, f"{self.seconds:.0f} s"])


def export(
    model_or_path: Model | str | Path,
    path: str | Path | None = None,
    *,
    format: Format = "onnx",
    int8: bool = False,
    data: Any = None,
    dynamic_batch: bool = True,
    softmax: bool = False,
    preprocess: Literal["beside", "inside"] = "beside",
    mask: bool | None = None,
    force: bool = False,
    min_agreement: float = MIN_AGREEMENT,
) -> ExportReport:
    """Write a model as a file that runs without ndvit, after its answers were compared with the model's.

    Config, classes, preprocessing, temperature and provenance travel in the file as one JSON, "ndvit": in ONNX's
    metadata, OpenVINO's rt_info, and torch's extra file ndvit.json. `load_exported` runs the file, and `predict` and
    `evaluate` take .onnx and .xml wherever they take a model.

    Args:
        model_or_path: a run folder, weights as `load_model` takes them, or a loaded model.
        path: the file, .onnx, .xml (OpenVINO, with a .bin beside it), .pt2 or .ts; None puts it beside the weights.
        format: "onnx"; "openvino"; "pt2" for torch.export; "torchscript", for torch before pt2 and for C++.
        int8: static quantisation to 8-bit integers, of onnx and openvino. It takes `data`. Made on a CPU with VNNI
            (Intel from 2019, AMD from 2022 on) the file is for such CPUs, as the report says.
        data: a source as in `train`, or files without labels as in `predict`. int8 is calibrated on 300 examples of its
            training set, and comparisons are on its test set. None compares on the test set of the run where that is at
            hand, else on random inputs, and the report says so.
        dynamic_batch: take any batch size; else only 1.
        softmax: answer with probabilities, of logits divided by the model's temperature; else with logits.
        preprocess: "inside" makes mean and standard deviation part of the graph, which then takes raw values of the
            network's size: pictures from 0 to 255, signals as they are. "beside" takes what the preprocessing gives.
        mask: a second input, boolean (B, *size), True where a value was observed. Without it, the file is for examples
            without missing values or padding, and `predict` refuses others. None gives one to models of signals whose
            preprocessing pads, as it usually does: theirs are seldom as long as the network is wide.
        force: replace a file that exists.
        min_agreement: the least share of examples for which int8 must name the same class as the model.

    Raises:
        ValueError: if the answers differ by more than rounding, or int8 agrees too little; nothing is written then.
            Also for options that do not fit together, and for packages that are not installed.
        FileExistsError: if the file exists, and not by force.
    """
    start = time.perf_counter()
    _check(format, int8, data, preprocess, min_agreement)
    model = model_or_path if isinstance(model_or_path, Model) else load_model(model_or_path)
    if preprocess == "inside" and model.preprocess is None:
        raise ValueError("the model does not know its preprocessing: set model.preprocess, or leave it beside")
    if softmax and not model.config.num_classes:
        raise ValueError("softmax is of classes, and this network has none")
    if mask is None:
        mask = model.preprocess is not None and model.preprocess.resize == "pad"
    target = _target(model_or_path, path, format, int8, force)
    trial, calibration = gather(model, model_or_path, data, mask, int8)
    how = How(softmax=softmax, inside=preprocess == "inside", mask=mask, batch=0 if dynamic_batch else 1)
    network = Deployed(model, how)
    with TemporaryDirectory(dir=target.parent, prefix=".export-") as folder, quiet():
        made = Path(folder) / f"model{target.suffix}"
        WRITERS[format](network, network.examples(dynamic_batch), dynamic_batch, made, _note(model, how))
        if calibration is not None:
            how, whole = replace(how, int8=True, vnni=sums_in_32_bits()), load_exported(made)
            made = Path(folder) / f"int8{target.suffix}"
            QUANTIZE[format](whole, calibration, made, _note(model, how))
        exported = load_exported(made)

        def reference(x: Tensor, mask: Tensor | None) -> Tensor:
            with torch.inference_mode():
                logits: Tensor = asked(x, mask)
                return (logits / model.temperature).softmax(1) if softmax else logits

        # the model itself, and not the copy whose parts were replaced
        device, training = next(model.parameters()).device, model.training
        asked = model.cpu().eval()
        try:
            found = compare(reference, exported, trial, (1, BATCH) if dynamic_batch else (1,))
        finally:
            model.to(device).train(training)
        _refuse(found, trial, how, min_agreement)
        parts = sorted(Path(folder).glob(f"{made.stem}.*"))  # .bin before .xml, which needs it
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            replace_file(target.with_suffix(part.suffix), part.replace)
    return ExportReport(
        path=target,
        format=format,
        how=how,
        runtime=_runtime(format),
        comparison=found,
        inputs=trial.name,
        size=size,
        seconds=time.perf_counter() - start,
        notes=(*trial.notes, *[_FOR_VNNI] * how.vnni),
    )


def _check(format: Format, int8: bool, data: Any, preprocess: str, min_agreement: float) -> None:
    if format not in ENDINGS:
        raise ValueError(f"format must be one of {', '.join(ENDINGS)}, got {format!r}")
    if preprocess not in ("beside", "inside"):
        raise ValueError(f'preprocess must be "beside" or "inside", got {preprocess!r}')
    if int8 and format not in QUANTIZE:
        raise ValueError(f"int8 is of {' and '.join(QUANTIZE)}: choose one of them, or leave int8 out for {format}")
    if int8 and data is None:
        raise ValueError(
            "int8 needs examples, to find the ranges of values: give --data SOURCE, best what was trained on"
        )
    if not 0 <= min_agreement <= 1:
        raise ValueError(f"min_agreement is a share from 0 to 1, got {min_agreement}")
    need(f"export to {format}", *PACKAGES.get(format, ()), *(("nncf",) if int8 else ()))


def _target(source: Any, path: str | Path | None, format: Format, int8: bool, force: bool) -> Path:
    """Where the file shall be."""
    ending = ENDINGS[format]
    if path is None:
        if isinstance(source, Model):
            raise ValueError(f"where to? Give the path of a {ending} file, as the model is of no file")
        given = Path(source)
        if given.is_dir():
            path = given / MODEL_FILE
        else:
            path = given if given.is_file() else Path(str(source).replace(":", "/").rpartition("/")[2] + ".weights")
        path = path.with_name(f"{path.stem}{'-int8' if int8 else ''}{ending}")
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"{format} files end in {ending}, got {path}: change the name, or the format")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    for part in (path, path.with_suffix(".bin")) if format == "openvino" else (path,):
        if part.exists() and (part.is_dir() or not force):
            raise FileExistsError(f"{part} exists: choose another output, or replace it with --force (force=True)")
    return path


def _note(model: Model, how: How) -> str:
    return json.dumps({**facts(model), "export": asdict(how)})


def _refuse(found: Comparison, trial: Trial, how: How, min_agreement: float) -> None:
    """Raise a ValueError where answers are too far from the model's."""
    if how.int8 and found.agreement < min_agreement:
        accuracies = ""
        if found.accuracies is not None:
            accuracies = f" (accuracy {found.accuracies[1]:.4f}, the model's {found.accuracies[0]:.4f})"
        raise ValueError(
            f"int8 names the model's class for {100 * found.agreement:.2f} % of {found.examples} examples of "
            f"{trial.name}{accuracies}, less than {100 * min_agreement:g} %: nothing is written. Calibrate on "
            "data like those of the training, take the other format, or allow it with --min-agreement"
        )
    if not how.int8 and not found.same:
        raise ValueError(
            f"the exported file differs from the model by up to {found.difference:.2g}, and the spread of its answers "
            f"is {found.spread:.2g}: nothing is written. Please report it with `ndvit info` of the model; another "
            "format may serve meanwhile"
        )


def _runtime(format: Format) -> str:
    name = {"onnx": "onnxruntime", "openvino": "openvino"}.get(format, "torch")
    return f"{name} {version(name)}"
