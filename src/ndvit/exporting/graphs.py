"""Networks as graphs, and the files of each format that hold them."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ndvit.exporting.runtimes import NOTE, Format, How, statistics
from ndvit.network import VisionTransformer
from ndvit.network.committee import Model
from ndvit.network.random_convolutions import KERNELS, TAPS, Rocket

OPSET = 20
"""Of the ONNX files: the first with GELU as one operator, and torch's own default."""
MOST_BYTES = 2**31 - 2**24
"""What the tensors of an ONNX file may take: protobuf ends at 2 GiB."""


class Deployed(nn.Module):
    """A copy of a model as it is exported: on the CPU, in float32, with what shall be inside before and behind it.

    (B, C, *size) -> (B, classes), see `How`. `model` itself stays as it is.
    """

    def __init__(self, model: Model, how: How) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().requires_grad_(False)
        for module in list(self.model.modules()):
            if isinstance(module, VisionTransformer) and module.rocket is not None:
                module.rocket = PlainRocket(module.rocket)  # type: ignore[assignment]
        self.softmax, self.inside, self.mask, self.temperature = how.softmax, how.inside, how.mask, model.temperature
        if how.inside:
            mean, std = statistics(model.preprocess, 2 + len(model.config.input_size))
            self.register_buffer("mean", mean.float())
            self.register_buffer("std", std.float())
        self.eval()

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits or probabilities."""
        if self.inside:
            x = (x - self.mean) / self.std
        logits: Tensor = self.model(x, mask)
        return (logits / self.temperature).softmax(1) if self.softmax else logits

    def examples(self, dynamic: bool) -> tuple[Tensor, ...]:
        """Inputs by which a graph is drawn: of one example, or of two where it shall take any number."""
        config, count = self.model.config, 2 if dynamic else 1
        x = torch.zeros(count, config.in_channels, *config.input_size)
        return (x, torch.ones(count, *config.input_size, dtype=torch.bool)) if self.mask else (x,)


class PlainRocket(nn.Module):
    """`Rocket` in few operations that every format knows: all biases of one convolution at once.

    Biases that count the whole output come before those that leave its edges out, so features stand in another order,
    and what reads them is reordered with them.
    """

    def __init__(self, rocket: Rocket) -> None:
        super().__init__()
        self.parts: list[tuple[int, int, list[int]]] = []  # (0 signal or 1 differences, dilation, biases of each group)
        order, made = [], 0
        for differences, plan in enumerate(rocket.plans):
            for dilation, count in plan:
                groups = [list(range(made, made + count, 2)), list(range(made + 1, made + count, 2))]
                self.parts.append((differences, dilation, [len(group) for group in groups]))
                order += groups[0] + groups[1]
                made += count
        weights = rocket.chosen[:, :, :, None] * rocket.kernels[None, :, None]  # (parts, 84, C, 9)
        tensors = {"weights": weights, "biases": rocket.biases.view(-1, KERNELS, 1)[order]}
        tensors |= {name: getattr(rocket, name).view(-1, KERNELS)[order].flatten() for name in ("mean", "scale")}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.head = rocket.head
        self.head.weight.data = rocket.head.weight.data.unflatten(1, (-1, KERNELS))[:, order].flatten(1)

    weights: Tensor
    biases: Tensor
    mean: Tensor
    scale: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class scores (B, classes) of signals (B, C, L)."""
        both = (x, mask), (x[:, :, 1:] - x[:, :, :-1], None if mask is None else mask[:, 1:] & mask[:, :-1])
        shares, start = [], 0
        for part, (differences, dilation, groups) in enumerate(self.parts):
            values, shown = both[differences]
            edge, length = TAPS // 2 * dilation, values.shape[2]
            outputs = F.conv1d(values, self.weights[part], padding=edge, dilation=dilation)[:, None]  # (B, 1, 84, L)
            for inner, count in enumerate(groups):
                seen = slice(edge, length - edge) if inner and length > 2 * edge else slice(None)
                above = (outputs[..., seen] > self.biases[start : start + count]).to(values.dtype)  # (B, count, 84, L)
                shares.append(_share(above, None if shown is None else shown[:, None, None, seen]).flatten(1))
                start += count
        return self.head((torch.cat(shares, dim=1) - self.mean) * self.scale)


def _share(above: Tensor, shown: Tensor | None) -> Tensor:
    """Mean over time, where it is shown: (B, count, 84, L) and (B, 1, 1, L) -> (B, count, 84)."""
    if shown is None:
        return above.mean(3)
    weight = shown.to(above.dtype)
    return (above * weight).sum(3) / weight.sum(3).clamp(min=1)


def to_program(network: Deployed, examples: tuple[Tensor, ...], dynamic: bool) -> ExportedProgram:
    """The graph of a network as torch sees it, for any batch size or for that of the examples."""
    batch = Dim("batch") if dynamic else None
    with torch.no_grad():
        program = torch.export.export(network, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the source code lay on this machine
    return program


def write_onnx(network: Deployed, examples: tuple[Tensor, ...], dynamic: bool, path: Path, note: str) -> None:
    """Write an .onnx with its tensors in it."""
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(f"an ONNX file holds 2 GB, and the tensors take {size / 1e9:.1f}: use another format, as pt2")
    exported = torch.onnx.export(
        to_program(network, examples, dynamic),
        dynamo=True,
        opset_version=OPSET,
        input_names=["x", "mask"][: len(examples)],
        output_names=["probabilities" if network.softmax else "logits"],
        verbose=False,
    )
    assert exported is not None
    graph = exported.model.graph
    if dynamic:
        exported.rename_axes({graph.inputs[0].shape[0]: "batch"})  # type: ignore[index, dict-item]
    for node in graph:
        node.metadata_props.clear()  # the exporter's own remarks, twice as long as the graph
    exported.model.metadata_props[NOTE] = note
    exported.save(path, external_data=False)


def write_openvino(network: Deployed, examples: tuple[Tensor, ...], dynamic: bool, path: Path, note: str) -> None:
    """Write an .xml with its .bin, in float32."""
    # Its own way, openvino.convert_model, would report to its maker's servers unless the user had opted out.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = to_program(network, examples, dynamic)
    if any(node.target is torch.ops.aten.index_add.default for node in program.graph.nodes):  # merged tokens
        program = program.run_decompositions({torch.ops.aten.index_add.default: _index_add})
    decoder = TorchFXPythonDecoder.from_exported_program(program)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    for given, name in zip(model.inputs, ("x", "mask")):
        given.get_tensor().set_names({name})
    model.reshape({i: [-1 if dynamic else 1, *example.shape[1:]] for i, example in enumerate(examples)})
    model.outputs[0].get_tensor().set_names({"probabilities" if network.softmax else "logits"})
    save_openvino(model, path, note)


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """The index_add of torch by its scatter_add, which OpenVINO has."""
    places = index.view([-1 if axis == dim else 1 for axis in range(x.ndim)]).expand_as(source)
    return x.scatter_add(dim, places, alpha * source)


def save_openvino(model: Any, path: Path, note: str) -> None:
    """Write OpenVINO's model with the note, in the precision that it has."""
    import openvino

    model.set_rt_info(note, NOTE)
    openvino.save_model(model, path, compress_to_fp16=False)


def write_pt2(network: Deployed, examples: tuple[Tensor, ...], dynamic: bool, path: Path, note: str) -> None:
    """Write what torch.export.load reads."""
    torch.export.save(to_program(network, examples, dynamic), path, extra_files={f"{NOTE}.json": note})


def write_torchscript(network: Deployed, examples: tuple[Tensor, ...], dynamic: bool, path: Path, note: str) -> None:
    """Write what torch.jit.load reads; it takes any batch size."""
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(network, examples, check_trace=False).eval())
    torch.jit.save(traced, path, _extra_files={f"{NOTE}.json": note})


Writer = Callable[[Deployed, tuple[Tensor, ...], bool, Path, str], None]
WRITERS: dict[Format, Writer] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "pt2": write_pt2,
    "torchscript": write_torchscript,
}
PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}
"""What writing and running a format needs besides torch."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own warnings, of what they do not find and mean to change."""
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)
