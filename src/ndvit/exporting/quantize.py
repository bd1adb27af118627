"""8-bit integers instead of float32: static quantisation after training, by NNCF, for ONNX and OpenVINO alike.

Integers take the place of the encoder's matrix products, where nearly all the work of a transformer is, but for those
whose result is added to the tokens: attention's projection and the second product of each MLP. Values behind a GELU
have long tails, the projection is little work, and both do much of the harm. What stands before and behind the encoder
costs little, answers are sensitive to it, and it stays in float32: stems, patches, heads, random convolutions.

On DeiT-Tiny, the error of the logits on photographs is 3.0 to 3.9 % of their spread this way, 3.9 to 5.6 % with the
projections, and up to 19 % with the second products; 8 to 14 % by ONNX Runtime's own quantize_static, which does not
smooth the outliers of transformers. Weights alone in 8 bits make 2.5 to 3.0 %. CPUs without VNNI sum products in 16
bits, which weights of 8 bits overflow: there they have 7, at nearly twice the error.
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndvit.exporting.graphs import save_openvino
from ndvit.exporting.runtimes import NOTE, Exported, Format, sums_in_32_bits
from ndvit.exporting.signalstack import signal_stack_kept
from ndvit.exporting.trials import Trial


def quantize_onnx(exported: Exported, trial: Trial, path: Path, note: str) -> None:
    """Write an .onnx of 8-bit products, calibrated on the examples of the trial."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")  # with what is computed of weights alone, as NNCF takes nothing else
    quant_pre_process(str(exported.path), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(str(prepared))
    prepared.unlink()
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    spared = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and weights[node.input[1]][1] == exported.config.embed_dim
    ]
    feeds = [dict(zip(("x", "mask"), given)) for given in _feeds(exported, trial)]
    made = _quantized(model, feeds, spared, ["Conv", "Gemm"])  # Gemm is a layer of vectors, not of tokens: a head
    onnx.helper.set_model_props(made, {NOTE: note})
    onnx.save(made, str(path))


def quantize_openvino(exported: Exported, trial: Trial, path: Path, note: str) -> None:
    """Write an .xml of 8-bit products, calibrated on the examples of the trial."""
    import openvino

    model = openvino.Core().read_model(exported.path)
    width, spared = exported.config.embed_dim, []
    for product in model.get_ops():
        if product.get_type_name() == "MatMul":
            made = product.get_output_partial_shape(0)
            added = made.rank.get_length() == 3 and made[-1].is_static and made[-1].get_length() == width
            if made.rank.get_length() == 2 or added:
                spared.append(product.get_friendly_name())
    save_openvino(_quantized(model, _feeds(exported, trial), spared, ["Convolution"]), path, note)


def _quantized(model: Any, feeds: list[Any], spared: list[str], types: list[str]) -> Any:
    """The model in integers but for nodes of these names and types."""
    os.environ.setdefault("NNCF_CI", "1")  # else it would report to its maker's servers
    with contextlib.redirect_stdout(io.StringIO()), signal_stack_kept():  # its progress bars; its own OpenVINO
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(names=spared, types=types, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE if sums_in_32_bits() else nncf.OverflowFix.ENABLE
            ),
        )


def _feeds(exported: Exported, trial: Trial) -> list[tuple[Any, ...]]:
    """What the file is given, example by example."""
    feeds = exported.feeds(trial.x, trial.mask, rows=1)
    return [tuple(part.numpy() for part in given if part is not None) for given in feeds]


QUANTIZE: dict[Format, Callable[[Exported, Trial, Path, str], None]] = {
    "onnx": quantize_onnx,
    "openvino": quantize_openvino,
}
