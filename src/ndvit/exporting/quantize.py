"""Static quantisation to 8-bit integers after training, by NNCF, for ONNX and OpenVINO.

Integers replace float32 in the encoder's matrix products, which are nearly all the work of a transformer, except for
those that are added to the tokens: the projection of attention and the second product of each MLP cause much of the
error. Stems, patches, heads and random convolutions cost little, are sensitive, and stay in float32, too.

On DeiT-Tiny, the error of the logits is 3 to 4 % of their spread this way, 4 to 6 % with the projections, up to 19 %
with the second products, and 8 to 14 % by ONNX Runtime's quantize_static, which does not smooth outliers. CPUs without
VNNI sum products in 16 bits, which 8-bit weights overflow: their weights have 7 bits, at nearly twice the error.
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ndvit.exporting.comparison import ComparisonData
from ndvit.exporting.formats import METADATA, Format, save_openvino, to_numpy
from ndvit.exporting.graphs import Deployed
from ndvit.exporting.runtimes import Runtime, sums_in_32_bits
from ndvit.exporting.signalstack import preserve_signal_stack
from ndvit.network.committee import transformers


@dataclass(frozen=True)
class Saving:
    """What 8-bit weights can save, from the shapes of a network."""

    saved: int  # bytes
    size: int  # bytes of all tensors in float32
    work: float  # share of the multiply-adds that 8-bit weights take part in; only those can be faster

    @property
    def share(self) -> float:
        """Share of the file."""
        return self.saved / max(self.size, 1)

    def __str__(self) -> str:
        return (
            f"int8 can save {self.saved / 1e6:.1f} of {self.size / 1e6:.1f} MB ({100 * self.share:.0f} %), and "
            f"{100 * self.work:.0f} % of the multiply-adds have 8-bit weights"
        )


def estimate_saving(network: Deployed) -> Saving:
    """Estimate what `quantize_onnx` and `quantize_openvino` can save: they have the same rule for layers."""
    from torch.utils.flop_counter import FlopCounterMode

    layers = {
        id(layer)
        for transformer in transformers(network.network)
        for layer in transformer.blocks.modules()
        if isinstance(layer, nn.Linear) and layer.out_features != transformer.config.embed_dim
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*network.example_inputs(dynamic=False))
    counts, root = counter.get_flop_counts(), type(network).__name__
    work = {
        name: sum(counts.get(f"{root}.{name}", {}).values()) for name, m in network.named_modules() if id(m) in layers
    }
    saved = sum(3 * m.weight.numel() for m in network.modules() if id(m) in layers and isinstance(m, nn.Linear))
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return Saving(saved, size, sum(work.values()) / max(counter.get_total_flops(), 1))


def quantize_onnx(source: Path, runtime: Runtime, data: ComparisonData, path: Path, metadata: str) -> None:
    """Write the .onnx `source`, which `runtime` runs, with 8-bit products that are calibrated on the data."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")  # NNCF needs constants folded
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(str(prepared))
    prepared.unlink()
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    ignored = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and weights[node.input[1]][1] == _width(runtime)
    ]
    inputs = [dict(zip(("x", "mask"), arrays)) for arrays in _calibration_inputs(runtime, data)]
    types = ["Conv", "AveragePool", "Resize", "GreaterOrEqual", "Gemm"]  # Gemm: a head
    quantized = _quantize(model, inputs, ignored, types)
    onnx.helper.set_model_props(quantized, {METADATA: metadata})
    onnx.save(quantized, str(path))


def quantize_openvino(source: Path, runtime: Runtime, data: ComparisonData, path: Path, metadata: str) -> None:
    """Write the .xml `source`, which `runtime` runs, with 8-bit products that are calibrated on the data."""
    import openvino

    model = openvino.Core().read_model(source)
    width, ignored = _width(runtime), []
    for product in model.get_ops():
        if product.get_type_name() == "MatMul":
            shape = product.get_output_partial_shape(0)
            added = shape.rank.get_length() == 3 and shape[-1].is_static and shape[-1].get_length() == width
            if shape.rank.get_length() == 2 or added:
                ignored.append(product.get_friendly_name())
    types = ["Convolution", "AvgPool", "Interpolate", "GreaterEqual"]
    save_openvino(_quantize(model, _calibration_inputs(runtime, data), ignored, types), path, metadata)


def _width(runtime: Runtime) -> int:
    """Width of the tokens of the network; 0 without a transformer."""
    return 0 if runtime.config is None else runtime.config.embed_dim


def _quantize(model: Any, inputs: list[Any], ignored: list[str], types: list[str]) -> Any:
    """Quantise all nodes except those of these names and types."""
    os.environ.setdefault("NNCF_CI", "1")  # turns off telemetry
    # NNCF prints progress bars, and its copy of OpenVINO changes the signal stack.
    with contextlib.redirect_stdout(io.StringIO()), preserve_signal_stack():
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=ignored, types=types, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE if sums_in_32_bits() else nncf.OverflowFix.ENABLE
            ),
        )


def _calibration_inputs(runtime: Runtime, data: ComparisonData) -> list[tuple[Any, ...]]:
    """Inputs of the graph, example by example."""
    return [to_numpy(*inputs) for inputs in runtime.inputs(data.x, data.mask, rows=1)]


QUANTIZE: dict[Format, Callable[[Path, Runtime, ComparisonData, Path, str], None]] = {
    "onnx": quantize_onnx,
    "openvino": quantize_openvino,
}
