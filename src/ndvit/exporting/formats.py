"""The file formats of exports: how each is written and read. A new format is one row in each table of this file, and a
name in `cli/export.py`, which cannot import torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ndvit.exporting.signalstack import preserve_signal_stack

Format = Literal["onnx", "openvino", "pt2", "torchscript"]
Precision = Literal["float32", "bfloat16"]
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "torchscript": ".ts"}
"""The file ending of each format; OpenVINO's .xml has a .bin beside it."""
HARMLESS: tuple[Format, ...] = ("onnx", "openvino")
"""Formats that hold no code: a file from an untrusted source can give wrong outputs, and nothing worse."""
PACKAGES: dict[Format, tuple[str, ...]] = {"onnx": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}
"""Packages that a format needs besides torch: the first one runs files, all of them together write files."""
METADATA = "ndvit"
"""Key of the JSON text that describes the model; in torch's extra files, its name without .json."""

Run = Callable[[Tensor, Tensor | None], Tensor]
"""Computes the outputs of inputs and their mask."""
Inputs = tuple[Tensor, ...]
"""x alone, or x and the mask."""
OPSET = 20
"""Opset of the ONNX files: the first one with GELU as one operator, and torch's default."""
OPSETS = (18, 23)
"""The first and the last opset that files can have."""
MOST_BYTES = 2**31 - 2**24
"""Limit for the tensors of an ONNX file, as protobuf ends at 2 GiB."""
_LEAST_HALVED = 1024  # numbers of a tensor


def is_exported(source: object) -> bool:
    """Whether a source of weights is an exported file, by its ending."""
    return isinstance(source, str | Path) and Path(source).suffix in ENDINGS.values() and Path(source).is_file()


def require(what: str, *packages: str) -> None:
    """Raise a ValueError if a package is not installed."""
    if any(find_spec(name) is None for name in packages):
        raise ValueError(f"{what} needs a package that is not installed: pip install 'ndvit[export]'")


def to_program(network: nn.Module, examples: Inputs, dynamic: bool) -> ExportedProgram:
    """Trace a network with torch.export, for any batch size or for that of the examples."""
    batch = Dim("batch") if dynamic else None
    with torch.no_grad():
        program = torch.export.export(network, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # It contains paths of this machine.
    return program


def write_onnx(
    network: nn.Module, examples: Inputs, dynamic: bool, path: Path, metadata: str, opset: int = OPSET
) -> None:
    """Write an .onnx that contains its tensors."""
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(f"an ONNX file holds 2 GB, and the tensors take {size / 1e9:.1f}: use another format, as pt2")
    exported = torch.onnx.export(
        to_program(network, examples, dynamic),
        dynamo=True,
        opset_version=opset,
        input_names=["x", "mask"][: len(examples)],
        output_names=[_output_name(network)],
        verbose=False,
    )
    assert exported is not None
    graph = exported.model.graph
    if dynamic:
        exported.rename_axes({graph.inputs[0].shape[0]: "batch"})  # type: ignore[index, dict-item]
    for node in graph:
        node.metadata_props.clear()  # The exporter's remarks are twice as long as the graph.
    exported.model.metadata_props[METADATA] = metadata
    exported.save(path, external_data=False)


def halve_weights(path: Path) -> None:
    """Store the large tensors of an .onnx as 16-bit floating-point numbers, which are computed with as float32.

    Runtimes convert them once, when they open the file. So the file is half as large, and no layer overflows.

    Raises:
        ValueError: for a weight beyond the range of 16 bits.
    """
    import onnx_ir as ir

    model = ir.load(path)
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST_HALVED:
            continue
        numbers = tensor.numpy()
        if np.abs(numbers).max() > np.finfo(np.float16).max:
            raise ValueError(f"{name} has weights beyond the range of 16-bit numbers: leave fp16 out")
        half = ir.val(f"{name}_half", const_value=ir.tensor(numbers.astype(np.float16), name=f"{name}_half"))
        node = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value})
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(half)
        graph.insert_before(graph[0], node)
    ir.save(model, path)


def _output_name(network: nn.Module) -> str:
    return "probabilities" if network.softmax else "logits"


def write_openvino(network: nn.Module, examples: Inputs, dynamic: bool, path: Path, metadata: str) -> None:
    """Write an .xml and its .bin in float32."""
    # openvino.convert_model would send telemetry unless the user has opted out.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = to_program(network, examples, dynamic)
    if any(node.target is torch.ops.aten.index_add.default for node in program.graph.nodes):  # from merged tokens
        program = program.run_decompositions({torch.ops.aten.index_add.default: _index_add})
    decoder = TorchFXPythonDecoder.from_exported_program(program)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    for value, name in zip(model.inputs, ("x", "mask")):
        value.get_tensor().set_names({name})
    model.reshape({i: [-1 if dynamic else 1, *example.shape[1:]] for i, example in enumerate(examples)})
    model.outputs[0].get_tensor().set_names({_output_name(network)})
    save_openvino(model, path, metadata)


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Compute torch's index_add by scatter_add, which OpenVINO has."""
    places = index.view([-1 if axis == dim else 1 for axis in range(x.ndim)]).expand_as(source)
    return x.scatter_add(dim, places, alpha * source)


def save_openvino(model: Any, path: Path, metadata: str) -> None:
    """Write an OpenVINO model with its metadata, without a change of precision."""
    import openvino

    model.set_rt_info(metadata, METADATA)
    openvino.save_model(model, path, compress_to_fp16=False)


def write_pt2(network: nn.Module, examples: Inputs, dynamic: bool, path: Path, metadata: str) -> None:
    """Write a file for torch.export.load."""
    torch.export.save(to_program(network, examples, dynamic), path, extra_files={f"{METADATA}.json": metadata})


def write_torchscript(network: nn.Module, examples: Inputs, dynamic: bool, path: Path, metadata: str) -> None:
    """Write a file for torch.jit.load, which accepts any batch size."""
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(network, examples, check_trace=False).eval())
    torch.jit.save(traced, path, _extra_files={f"{METADATA}.json": metadata})


WRITERS: dict[Format, Callable[..., None]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "pt2": write_pt2,
    "torchscript": write_torchscript,
}


class Graph(NamedTuple):
    """An opened file: what runs it, its metadata, and the shapes that it declares, with -1 for any batch size."""

    run: Run
    metadata: str
    inputs: list[tuple[int, ...]] | None = None  # None for torch's formats, which are the user's own
    outputs: list[tuple[int, ...]] | None = None


def open_graph(format: Format, path: Path, precision: Precision = "float32", streams: int = 0) -> Run:
    """Open a file of this format that may lack metadata; precision as in `open_exported`.

    Graphs of ONNX Runtime and OpenVINO may be called from several threads. They use torch's number of threads in all.

    Args:
        format: a key of `READERS`.
        path: the file.
        precision: precision that OpenVINO computes in.
        streams: calls at one time, each with its part of the threads, in a process that also does other work: threads
            are not bound to processors and do not spin while they wait. 0 is for one call at a time that has all
            processors to itself.
    """
    return READERS[format](path, torch.get_num_threads(), precision, streams).run


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a runtime, which has its own exceptions, into one line.

    Raises:
        ValueError: for any error.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path.name} cannot be computed: {reason}") from error


def _open_onnx(path: Path, threads: int, precision: Precision, streams: int = 0) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads - max(0, streams - 1))  # of which each call brings one
    options.log_severity_level = 4  # errors are raised, not printed
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(not streams)))
    # Opened by its path, so that ONNX Runtime refuses tensors that a file refers to outside its own folder.
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        with _readable_errors(path):
            return torch.from_numpy(session.run(None, dict(zip(names, to_numpy(x, mask), strict=True)))[0])

    inputs, outputs = (
        [tuple(size if isinstance(size, int) else -1 for size in value.shape) for value in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return Graph(run, session.get_modelmeta().custom_metadata_map.get(METADATA, ""), inputs, outputs)


def _open_openvino(path: Path, threads: int, precision: Precision, streams: int = 0) -> Graph:
    import openvino
    from openvino.frontend import FrontEndManager

    # Core.read_model would try the readers of TensorFlow, Paddle and others on a file that is no OpenVINO model.
    frontend, core = FrontEndManager().load_by_framework("ir"), openvino.Core()
    model = frontend.convert(frontend.load(str(path)))
    text = model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else ""
    # The precision is explicit because OpenVINO's default is bfloat16 on CPUs that have it.
    hint = "bf16" if precision == "bfloat16" else "f32"
    with preserve_signal_stack():
        options = {"INFERENCE_NUM_THREADS": max(threads, streams), "INFERENCE_PRECISION_HINT": hint}
        options |= {"NUM_STREAMS": streams, "ENABLE_CPU_PINNING": False} if streams else {}
        compiled = core.compile_model(model, "CPU", options)
    free = [compiled.create_infer_request()]  # a request computes one call at a time

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        try:
            request = free.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            with _readable_errors(path):  # a copy, because the next call overwrites the memory
                return torch.from_numpy(np.array(request.infer(to_numpy(x, mask), share_inputs=True)[0]))
        finally:
            free.append(request)

    inputs, outputs = (
        [tuple(size.get_length() if size.is_static else -1 for size in value.partial_shape) for value in values]
        for values in (model.inputs, model.outputs)
    )
    return Graph(run, text, inputs, outputs)


def _open_pt2(path: Path, threads: int, precision: Precision, streams: int = 0) -> Graph:
    files = {f"{METADATA}.json": ""}
    module = torch.export.load(path, extra_files=files).module()
    return Graph(_run_module(module), files[f"{METADATA}.json"])


def _open_torchscript(path: Path, threads: int, precision: Precision, streams: int = 0) -> Graph:
    files: dict[str, Any] = {f"{METADATA}.json": ""}
    module = torch.jit.load(path, map_location="cpu", _extra_files=files)
    text = files[f"{METADATA}.json"]
    return Graph(_run_module(module), text if isinstance(text, str) else text.decode())


def _run_module(module: Callable[..., Tensor]) -> Run:
    return lambda x, mask: module(x) if mask is None else module(x, mask)


def to_numpy(x: Tensor, mask: Tensor | None) -> tuple[np.ndarray, ...]:
    """The inputs of a graph as arrays; without a mask, x alone."""
    return (x.numpy(),) if mask is None else (x.numpy(), mask.numpy())


READERS: dict[Format, Callable[..., Graph]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "pt2": _open_pt2,
    "torchscript": _open_torchscript,
}
