"""What runs exported files: one face for ONNX Runtime, OpenVINO, torch.export and TorchScript."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ndvit.data.loading import Inputs
from ndvit.exporting.signalstack import signal_stack_kept
from ndvit.network.committee import Model
from ndvit.weights.file import FORMAT, Described, describe

Format = Literal["onnx", "openvino", "pt2", "torchscript"]
Precision = Literal["float32", "bfloat16"]
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "torchscript": ".ts"}
"""How the file of each format ends; OpenVINO's .xml has a .bin beside it."""
HARMLESS: tuple[Format, ...] = ("onnx", "openvino")
"""Formats that hold no code: a stranger's file can give wrong answers, and nothing else."""
NOTE = "ndvit"
"""Where a file has what ndvit knows of it, as one JSON: in ONNX's metadata, OpenVINO's rt_info, and torch's extra
files, as NOTE.json."""

_NEEDED: dict[Format, tuple[str, ...]] = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
_NOTE_FILE = f"{NOTE}.json"

Answer = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class How:
    """How a file was exported, as it says itself.

    Attributes:
        softmax: it answers with probabilities, of logits divided by the temperature; else with logits.
        inside: it standardises itself, so that a caller without ndvit gives raw values.
        mask: it has a second input, what was observed.
        int8: it computes with 8-bit integers where most of the work is.
        vnni: its weights fill all 8 bits, for CPUs that sum products of integers in 32 bits, see `sums_in_32_bits`.
        batch: the only batch size that it takes; 0 for any.
    """

    softmax: bool = False
    inside: bool = False
    mask: bool = False
    int8: bool = False
    vnni: bool = False
    batch: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type or value < 0:
                raise ValueError(f"{field.name} cannot be {value!r}")


class Runner:
    """A network that was made ready to answer, by whatever runs it.

    Called with x (B, C, *size), as `preprocess` gives it, and a boolean mask (B, *size) or None, it returns logits
    (B, classes), or probabilities where `how.softmax`.

    Attributes:
        name: what complaints call it.
        how: what it takes and gives.
        run: computes answers of what `feeds` yields.
        device: where it computes.
        config, classes, preprocess, provenance, untrained, temperature: those of the model.
        load_report: None; it is run as it is.
    """

    load_report = None

    def __init__(self, name: str, told: Described | Model, how: How, run: Answer, device: str = "cpu") -> None:
        self.name, self.how, self.device, self.run = name, how, device, run
        self.config, self.classes, self.preprocess = told.config, told.classes, told.preprocess
        self.provenance, self.untrained, self.temperature = told.provenance, told.untrained, told.temperature

    @torch.inference_mode()
    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits or probabilities (B, classes), float32.

        Raises:
            ValueError: if x has another shape than the config's, or not all was observed and it takes no mask.
        """
        answers = torch.cat([self.run(*given) for given in self.feeds(x, mask)])
        if answers.ndim != 2 or len(answers) != len(x):
            raise ValueError(f"{self.name} answers with shape {tuple(answers.shape)} for {len(x)} examples")
        return answers

    def feeds(self, x: Tensor, mask: Tensor | None = None, rows: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What it is given for x and mask, at most `rows` examples at a time where it takes any number.

        Errors as above.
        """
        expected = (self.config.in_channels, *self.config.input_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"expected an input of shape {('batch', *expected)}, got {tuple(x.shape)}")
        if mask is not None and not self.how.mask:
            incomplete = int((~mask.flatten(1).all(1)).sum())
            if incomplete:
                raise ValueError(
                    f"{incomplete} of {len(x)} examples have missing values or padding, and {self.name} was made for "
                    "complete ones: ask the run itself, or make it with a mask (--mask, mask=True)"
                )
            mask = None
        if mask is None and self.how.mask:
            mask = torch.ones(len(x), *expected[1:], dtype=torch.bool)
        x = x.float().to(self.device)
        if self.how.inside:  # raw values, computed back from x, so that x is the same for all
            mean, std = statistics(self.preprocess, x.ndim)
            x = (x.double() * std + mean).float()
        rows = self.how.batch or rows or max(len(x), 1)
        for start in range(0, len(x), rows):
            shown = None if mask is None else mask[start : start + rows].to(self.device).contiguous()
            yield x[start : start + rows].contiguous(), shown

    def probabilities(self, inputs: Inputs, batch_size: int = 64, progress: bool = False) -> np.ndarray:
        """Class probabilities (n, classes), float32, of every example in order."""
        from tqdm import tqdm

        loader = inputs.loader(batch_size)
        bar = tqdm(loader, desc="predicting", leave=False, disable=not progress or len(loader) < 10)
        rows = [self(batch.x, batch.mask).cpu() for batch in bar]
        answers = torch.cat(rows) if rows else torch.empty(0, self.config.num_classes)
        return (answers if self.how.softmax else (answers / self.temperature).softmax(1)).numpy()


class Exported(Runner):
    """An exported file that runs, on the CPU.

    Attributes:
        path: the file.
        format: "onnx", "openvino", "pt2" or "torchscript".
    """

    def __init__(self, path: Path, format: Format, told: Described, how: How, run: Answer) -> None:
        super().__init__(path.name, told, how, run)
        self.path, self.format = path, format


def statistics(preprocess: Any, axes: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation that a preprocessing standardises raw values by, float64, for tensors of so many axes.

    Raw values of signals are as they are read; those of pictures are from 0 to 255.
    """
    most = 255.0 if preprocess.kind == "image" else 1.0
    both = torch.tensor([preprocess.mean, preprocess.std], dtype=torch.float64) * most
    mean, std = both.reshape(2, 1, -1, *[1] * (axes - 2))
    return mean, std


def is_exported(source: object) -> bool:
    """Whether a source of weights is a file that `load_exported` reads, by its ending."""
    return isinstance(source, str | Path) and Path(source).suffix in ENDINGS.values() and Path(source).is_file()


def load_exported(path: str | Path, threads: int | None = None, precision: Precision = "float32") -> Exported:
    """Load a file that `ndvit.export` wrote, to be run on the CPU.

    .onnx and .xml (OpenVINO) hold no code, so anybody's may be loaded. .pt2 and .ts can run their maker's code when
    they are loaded or called (torch unpickles the one, and the other is a program, which may write files): load only
    your own.

    Args:
        path: a .onnx, .xml, .pt2 or .ts file.
        threads: of ONNX Runtime and OpenVINO; None for as many as torch has. The other two run in torch, with its own.
        precision: what OpenVINO computes in. "bfloat16" is about twice as fast on CPUs that have it (AVX-512 BF16 or
            AMX), and float32 on others; answers differ by a few hundredths of their spread.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ndvit did not write it, it is damaged, the package that runs it is not installed, or it does not
            run in this precision.
    """
    path = Path(path)
    formats = {ending: format for format, ending in ENDINGS.items()}
    if path.suffix not in formats:
        raise ValueError(f"exported files end in {', '.join(formats)}, got {path.name}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    format = formats[path.suffix]
    need(path.suffix, *_NEEDED.get(format, ()))
    if precision not in get_args(Precision) or (precision != "float32" and format != "openvino"):
        raise ValueError(f"{path.name} runs in float32, and .xml files in bfloat16, too; got {precision!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that it would rather load another format
            run, note = _OPEN[format](path, threads or torch.get_num_threads(), precision)
    except Exception as error:  # each runtime has errors of its own
        raise ValueError(f"{path} cannot be read as {format}: {str(error)[:300]}") from error
    if not note:
        raise ValueError(f"{path} was not written by ndvit export: it says nothing of its classes and preprocessing")
    try:
        parts = json.loads(note)
        how = How(**parts.pop("export"))
        told = {name: json.dumps(value) for name, value in parts.items()}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say how it was exported: {error}") from error
    described = describe(path, {**told, "ndvit": FORMAT}, {})
    if how.inside and described.preprocess is None:
        raise ValueError(f"{path} standardises inside, and does not say by what")
    if how.vnni and not sums_in_32_bits():
        warnings.warn(
            f"{path.name} has 8-bit weights for CPUs with VNNI, and this one has none: sums may overflow, and answers "
            "be wrong. Export it here",
            stacklevel=2,
        )
    return Exported(path, format, described, how, run)


def sums_in_32_bits() -> bool:
    """Whether this CPU sums products of 8-bit integers without overflow: with VNNI, or not of x86."""
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return can.get("architecture", "x86_64") != "x86_64" or any(can.get(n, False) for n in ("avx512_vnni", "avx_vnni"))


def need(what: str, *packages: str) -> None:
    """Raise a ValueError where a package is not installed."""
    if any(find_spec(name) is None for name in packages):
        raise ValueError(f"{what} needs a package that is not installed: pip install 'ndvit[export]'")


def open_graph(format: Format, path: Path, precision: Precision = "float32") -> Answer:
    """What runs a file of this format, which needs no note; precision as in `load_exported`."""
    return _OPEN[format](path, torch.get_num_threads(), precision)[0]


def _open_onnx(path: Path, threads: int, precision: Precision) -> tuple[Answer, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # By its path, so that ONNX Runtime refuses tensors that a file would read from outside its folder.
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        given = [x.numpy()] if mask is None else [x.numpy(), mask.numpy()]
        return torch.from_numpy(session.run(None, dict(zip(names, given, strict=True)))[0])

    return run, session.get_modelmeta().custom_metadata_map.get(NOTE, "")


def _open_openvino(path: Path, threads: int, precision: Precision) -> tuple[Answer, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    note = model.get_rt_info(NOTE).astype(str) if model.has_rt_info(NOTE) else ""
    # else machines with bfloat16 would compute in it unasked
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": _HINTS[precision]}
    with signal_stack_kept():
        compiled = core.compile_model(model, "CPU", options)

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        given = [x.numpy()] if mask is None else [x.numpy(), mask.numpy()]
        return torch.from_numpy(np.array(compiled(given)[0]))  # a copy: the next call overwrites its memory

    return run, note


def _open_pt2(path: Path, threads: int, precision: Precision) -> tuple[Answer, str]:
    found = {_NOTE_FILE: ""}
    return _in_torch(torch.export.load(path, extra_files=found).module()), found[_NOTE_FILE]


def _open_torchscript(path: Path, threads: int, precision: Precision) -> tuple[Answer, str]:
    found = {_NOTE_FILE: ""}
    network = torch.jit.load(path, map_location="cpu", _extra_files=found)
    note: str | bytes = found[_NOTE_FILE]
    return _in_torch(network), note if isinstance(note, str) else note.decode()


def _in_torch(network: Any) -> Answer:
    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        answers: Tensor = network(x) if mask is None else network(x, mask)
        return answers

    return run


_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
_OPEN: dict[Format, Callable[[Path, int, Precision], tuple[Answer, str]]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "pt2": _open_pt2,
    "torchscript": _open_torchscript,
}
