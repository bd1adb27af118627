"""Exported files as networks: one class for ONNX Runtime, OpenVINO, torch.export and TorchScript."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ndvit.config import ViTConfig
from ndvit.data.preprocess.base import Preprocess
from ndvit.exporting.formats import ENDINGS, PACKAGES, READERS, Graph, Precision, Run, require
from ndvit.tasks import Classification, Task
from ndvit.weights.file import Checkpoint, checkpoint_from_metadata
from ndvit.weights.structure import configs_in, inputs_of, outputs_of


@dataclass(frozen=True)
class GraphOptions:
    """What a graph reads and returns; stored in the file's metadata."""

    softmax: bool = False  # it ends with the activation of the task: probabilities, or numbers in their units
    inside: bool = False  # it standardises its input, so that a program without ndvit can pass raw values
    mask: bool = False  # it has a second input, True where a value was observed
    int8: bool = False  # it computes most of the work with 8-bit integers
    vnni: bool = False  # its weights use all 8 bits, for CPUs that sum products in 32 bits, see `sums_in_32_bits`
    batch: int = 0  # the only batch size that it accepts; 0 for any

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type or value < 0:
                raise ValueError(f"{field.name} cannot be {value!r}")


class Runtime(nn.Module):
    """A network without parameters of its own: a graph, and the library that runs it.

    It is called like a network, with x (B, C, *size) as the preprocessing returns it and a boolean mask (B, *size) or
    None, and returns float32 outputs (B, outputs). Where the graph ends in the activation of the task, the outputs are
    such that the activation gives the same answers again: after a softmax, the logarithms of its probabilities. The
    model around it then has the temperature 1.

    Args:
        name: name in error messages.
        run: computes the graph.
        input_shape: channels and size of an input.
        config: config of the network, or of its first transformer, if it has one.
        options: what the graph reads and returns.
        preprocess: holds the mean and standard deviation that are part of the graph with `options.inside`.
        device: where the graph computes.
        task: the one whose activation the graph ends with, with `options.softmax`; None is a classification.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        input_shape: tuple[int, ...],
        config: ViTConfig | None,
        options: GraphOptions,
        preprocess: Preprocess | None = None,
        device: str = "cpu",
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.name, self.run, self.input_shape = name, run, input_shape
        self.config, self.options = config, options
        self.device, self._preprocess = device, preprocess
        self.task = task or Classification(())
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs); a ValueError for a wrong shape, or for incomplete examples if the graph has no mask."""
        values = self.compute(x, mask)
        return self.task.deactivate(values) if self.options.softmax else values

    @torch.inference_mode()
    def compute(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the graph returns: outputs, or answers with `options.softmax`. Errors as in `forward`."""
        values = torch.cat([self.run(*inputs) for inputs in self.inputs(x, mask)])
        if values.ndim != 2 or len(values) != len(x):
            raise ValueError(f"{self.name} returns the shape {tuple(values.shape)} for {len(x)} examples")
        return values

    def inputs(self, x: Tensor, mask: Tensor | None = None, rows: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inputs of the graph for x and mask, in batches of its own size, else of `rows` examples; errors as above."""
        shape = self.input_shape
        if tuple(x.shape[1:]) != shape:
            raise ValueError(f"expected an input of shape {('batch', *shape)}, got {tuple(x.shape)}")
        if mask is not None and not self.options.mask:
            incomplete = int((~mask.flatten(1).all(1)).sum())
            if incomplete:
                raise ValueError(
                    f"{incomplete} of {len(x)} examples have missing values or padding, and {self.name} was made for "
                    "complete ones: use the trained model, or make it with a mask (--mask, mask=True)"
                )
            mask = None
        if mask is None and self.options.mask:
            mask = torch.ones(len(x), *shape[1:], dtype=torch.bool)
        x = x.float().to(self.device)
        if self.options.inside:  # The graph takes raw values, but every network is called with standardised ones.
            mean, std = standardisation(self._preprocess)
            x = (x.double() * std + mean).float()
        rows = self.options.batch or rows or max(len(x), 1)
        for start in range(0, len(x), rows):
            part = None if mask is None else mask[start : start + rows].to(self.device).contiguous()
            yield x[start : start + rows].contiguous(), part


def standardisation(preprocess: Preprocess | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float64 (1, C, 1, ...), of raw values: those of a signal, and 0 to 255 of images."""
    assert preprocess is not None
    scale = 255.0 if preprocess.kind == "image" else 1.0
    both = torch.tensor([preprocess.mean, preprocess.std], dtype=torch.float64) * scale
    mean, std = both.reshape(2, 1, -1, *[1] * len(preprocess.size))
    return mean, std


def open_exported(
    path: str | Path, threads: int | None = None, precision: Precision = "float32"
) -> tuple[Runtime, Checkpoint]:
    """Open a file that `ndvit.export` wrote, to run it on the CPU.

    Args:
        path: a .onnx, .xml, .pt2 or .ts file. The last two can run code when they are opened: open only your own.
        threads: number of threads of ONNX Runtime and OpenVINO; None is torch's. The other formats run in torch.
        precision: precision that OpenVINO computes in.

    Returns:
        The network, and its model as the metadata describe it, without tensors. The temperature is 1 if the graph
        divides by the temperature itself.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or was not written by ndvit, the package that runs it is not installed, or it does
            not run in this precision.
    """
    path = Path(path)
    formats = {ending: format for format, ending in ENDINGS.items()}
    if path.suffix not in formats:
        raise ValueError(f"exported files end in {', '.join(formats)}, got {path.name}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    format = formats[path.suffix]
    require(path.suffix, *PACKAGES.get(format, ())[:1])
    if precision not in get_args(Precision) or (precision != "float32" and format != "openvino"):
        raise ValueError(f"{path.name} runs in float32, and only .xml files also in bfloat16; got {precision!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends other formats
            graph = READERS[format](path, threads or torch.get_num_threads(), precision)
    except Exception as error:  # every runtime has its own exceptions
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as {format}: {reason}") from error
    if not graph.metadata:
        raise ValueError(
            f"{path} was not written by ndvit export: it has no metadata with classes and preprocessing. The graph of "
            "a bundle is run by the predict.py beside it, and service/model.safetensors there is its model"
        )
    try:
        metadata = json.loads(graph.metadata)
        options = GraphOptions(**metadata.pop("export"))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the metadata does not describe an export: {str(error)[:300]}") from error
    checkpoint = checkpoint_from_metadata(metadata, path)
    _check_shapes(path, graph, options, checkpoint)
    if options.inside and checkpoint.preprocess is None:
        raise ValueError(f"{path}: the graph standardises its input, but the metadata has no mean and deviation")
    if options.vnni and not sums_in_32_bits():
        warnings.warn(
            f"{path.name} has 8-bit weights for CPUs with VNNI, and this one has none: sums may overflow and outputs "
            "may be wrong. Export the model on this machine",
            stacklevel=2,
        )
    if options.softmax:
        checkpoint = replace(checkpoint, temperature=1.0)
    channels, size = inputs_of(checkpoint.structure)
    config = next(iter(configs_in(checkpoint.structure)), None)
    shape, preprocess, task = (channels, *size), checkpoint.preprocess, checkpoint.task
    return Runtime(path.name, graph.run, shape, config, options, preprocess, task=task), checkpoint


def _check_shapes(path: Path, graph: Graph, options: GraphOptions, checkpoint: Checkpoint) -> None:
    """Raise a ValueError if a graph takes or returns other shapes than its metadata and its preprocessing describe."""
    channels, size = inputs_of(checkpoint.structure)
    batch = options.batch or -1
    inputs = [(batch, channels, *size), *[(batch, *size)] * options.mask]
    for name, found, expected in (
        ("takes", graph.inputs, inputs),
        ("returns", graph.outputs, [(batch, outputs_of(checkpoint.structure))]),
    ):
        shapes = found is not None and [shape[1:] for shape in found] != [shape[1:] for shape in expected]
        batches = found is not None and any(shape[:1] not in ((batch,), (-1,)) for shape in found)
        if shapes or batches:
            raise ValueError(
                f"{path}: the graph {name} the shapes {str(found)[:100]}, and its metadata describe {expected}: the "
                "file is damaged, or was changed after `ndvit export`"
            )
    preprocess = checkpoint.preprocess
    if preprocess is not None and (preprocess.channels, tuple(preprocess.size)) != (channels, size):
        raise ValueError(
            f"{path}: its preprocessing yields inputs of {(preprocess.channels, *preprocess.size)}, and the graph "
            f"takes {(channels, *size)}: the file is damaged, or was changed after `ndvit export`"
        )


def sums_in_32_bits() -> bool:
    """Whether this CPU sums products of 8-bit integers without overflow: it has VNNI, or is not an x86."""
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return can.get("architecture", "x86_64") != "x86_64" or any(can.get(n, False) for n in ("avx512_vnni", "avx_vnni"))
