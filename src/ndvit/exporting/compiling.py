"""The fastest way to run a model on this machine with the same numbers, found by measuring."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ndvit.exporting.comparison import Batch, compare, needs_mask, random_data
from ndvit.exporting.formats import ENDINGS, PACKAGES, WRITERS, Format, Precision, Run, open_graph, require
from ndvit.exporting.graphs import Deployed, frozen_copy, quiet
from ndvit.exporting.runtimes import GraphOptions, Runtime
from ndvit.network.committee import transformers
from ndvit.parts import ModelParts

PAUSE = 0.1
"""Seconds before each measured call, as ONNX Runtime's threads spin for half as long after a call."""
_LEAST_ROUNDS = 3
_NO_LIMIT = 1_000_000
_BFLOAT16 = " in bfloat16"
_LARGEST_BFLOAT16 = 0.3  # A larger difference, relative to the spread of the outputs, is not rounding to bfloat16.
GRAPHS: dict[str, Format] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The runtimes that run a graph, and the format of its file."""


class CompiledRuntime(Runtime):
    """A network run in the way that was fastest on this machine."""

    way: str  # "eager", "torch.compile", "onnxruntime" or "openvino", perhaps with " in bfloat16"
    batch_size: int  # the measured batch size; others work, too
    seconds: dict[str, float]  # median time for a batch, of each measured way
    differences: dict[str, float]  # largest difference from the model's outputs, relative to their spread, of each way
    left_out: dict[str, str]  # reasons why other ways were not measured

    def __str__(self) -> str:
        width = max(map(len, [*self.seconds, *self.left_out]))
        lines = [f"{self.way} is the fastest at batch {self.batch_size} (median, times as fast as eager):"]
        for way, seconds in sorted(self.seconds.items(), key=lambda item: item[1]):
            line = f"  {way:<{width}} {1e3 * seconds:9.2f} ms  {self.seconds['eager'] / seconds:5.2f}×"
            if way.endswith(_BFLOAT16):
                line += f"  outputs within {100 * self.differences[way]:.2g} % of their spread"
            lines.append(line)
        return "\n".join([*lines, *(f"  {way:<{width}} left out: {why}" for way, why in self.left_out.items())])


def fastest(
    model: ModelParts,
    *,
    batch_size: int = 1,
    precision: Precision = "float32",
    mask: bool | None = None,
    ways: Sequence[str] | None = None,
    rounds: int = 15,
    seconds: float = 10.0,
    log: Callable[[str], Any] = print,
) -> CompiledRuntime:
    """Measure the ways to run a model on this machine with the same numbers, and return the fastest.

    On a CPU the ways are PyTorch without a compiler ("eager"), torch.compile with frozen weights, ONNX Runtime and
    OpenVINO; on another device, where the model is, the first two. A way is left out if its outputs differ from the
    model's on random inputs by more than rounding, if it cannot be built, or if its package is missing. The others take
    turns at batches of `batch_size`, and the least median time wins. This takes a minute or two.

    Args:
        model: a model in float32. It does not change, and later changes of it have no effect on the result.
        batch_size: batch size to optimise for. Others work, too; torch.compile runs them in eager mode.
        precision: "float32", or "bfloat16" to measure the ways in bfloat16, too (except ONNX Runtime, which has none on
            CPUs). It is about twice as fast on CPUs that have it (AVX-512 BF16, AMX), and outputs differ by a few
            hundredths of their spread: check the accuracy with `evaluate`.
        mask: whether examples may have missing values or padding, as in `export`.
        ways: which of "torch.compile", "onnxruntime" and "openvino" to try beside eager; None for all.
        rounds: largest number of turns for each way.
        seconds: time after which no new round starts; there are at least three.
        log: receives each line of progress.

    Raises:
        ValueError: if batch_size or rounds is less than 1, a precision or way is unknown or not available on the
            device, or the model is not in float32 or returns numbers that are not finite.
    """
    if batch_size < 1 or rounds < 1:
        raise ValueError(f"batch_size and rounds must be at least 1, got {batch_size} and {rounds}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    network = frozen_copy(model)
    device = next(network.parameters()).device
    chosen = _choose(ways, device.type)
    if types := {str(p.dtype).removeprefix("torch.") for p in network.parameters()} - {"float32"}:
        found = ", ".join(sorted(types))
        raise ValueError(f"compile needs a model in float32, and this one has {found}: model.network.float()")
    options = GraphOptions(mask=needs_mask(model) if mask is None else mask)
    config = model.config if transformers(model.network) else None
    data = random_data(model, 2 * batch_size, options.mask)

    def build(name: str) -> Runtime:
        way, bfloat16 = name.removesuffix(_BFLOAT16), name.endswith(_BFLOAT16)
        if way in GRAPHS:
            run = _graph(model, options, GRAPHS[way], "bfloat16" if bfloat16 else "float32")
        elif way == "torch.compile":
            run = _torch_compile(network, batch, bfloat16)
        else:
            run = _autocast(network, device.type, bfloat16)
        return Runtime(name, run, model.input_shape, config, options, device=str(device))

    eager = build("eager")
    batch = data.batches(batch_size, batch_size)[0]
    if not eager(*batch).isfinite().all():
        raise ValueError(
            "the model returns numbers that are not finite for random inputs, so nothing can be compared with it: its "
            "weights are damaged, or were never trained on inputs of mean 0 and deviation 1"
        )
    runtimes, differences, left_out = {"eager": eager}, {"eager": 0.0}, dict[str, str]()
    if precision == "bfloat16":
        chosen += [f"{way}{_BFLOAT16}" for way in ["eager", *chosen] if way != "onnxruntime"]
    for name in chosen:
        log(f"trying {name} ...")
        try:
            with quiet():
                runtime = build(name)
                comparison = compare(eager, runtime, data, (1 if batch_size > 1 else 2, batch_size))
        except Exception as error:  # every runtime has its own exceptions
            left_out[name] = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            continue
        if comparison.same or (
            name.endswith(_BFLOAT16) and comparison.difference <= _LARGEST_BFLOAT16 * comparison.spread
        ):
            runtimes[name], differences[name] = runtime, comparison.difference / max(comparison.spread, 1e-30)
        else:
            left_out[name] = (
                f"differs by up to {comparison.difference:.2g}, and the spread of outputs is {comparison.spread:.2g}"
            )
    medians = measure(runtimes, batch, rounds, seconds)
    way = min(medians, key=medians.__getitem__)
    run = runtimes[way].run
    compiled = CompiledRuntime(
        f"the model compiled by {way}", run, model.input_shape, config, options, device=str(device)
    )
    compiled.way, compiled.batch_size, compiled.seconds = way, batch_size, medians
    compiled.differences, compiled.left_out = differences, left_out
    log(str(compiled))
    return compiled


def _choose(ways: Sequence[str] | None, device: str) -> list[str]:
    """The ways to try on a device beside eager."""
    available = ["torch.compile", *(GRAPHS if device == "cpu" else ())]
    wanted = available if ways is None else list(ways)
    if isinstance(ways, str) or not set(wanted) <= {"eager", *available}:
        raise ValueError(f"ways must be a list of {', '.join(available)} on {device}, got {ways!r}")
    return [way for way in available if way in wanted]


def measure(runtimes: Mapping[str, Run], batch: Batch, rounds: int, seconds: float) -> dict[str, float]:
    """Median seconds for a batch of each runtime, in rounds that begin with another runtime each time."""
    names = list(runtimes)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names * 2:  # The first calls allocate memory and choose kernels.
        runtimes[name](*batch).cpu()
    start = time.perf_counter()
    for count in range(rounds):
        if count >= _LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for i in range(len(names)):
            name = names[(count + i) % len(names)]
            time.sleep(PAUSE)
            before = time.perf_counter()
            runtimes[name](*batch).cpu()  # waits for a GPU
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(found) for name, found in times.items()}


def _autocast(network: Run, device: str, bfloat16: bool) -> Run:
    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            return network(x, mask).float()

    return run


def _torch_compile(network: nn.Module, batch: Batch, bfloat16: bool) -> Run:
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    x, mask = batch
    device = next(network.parameters()).device
    compiled = torch.compile(network, dynamic=False)

    def run_either(inputs: Tensor, mask: Tensor | None) -> Tensor:
        # Another batch size would be compiled again.
        outputs: Tensor = (compiled if len(inputs) == len(x) else network)(inputs, mask)
        return outputs

    run = _autocast(run_either, device.type, bfloat16)
    # Past the limit on models of one class in a process, torch.compile silently runs them in eager mode.
    limits = dynamo.patch(recompile_limit=_NO_LIMIT, accumulated_recompile_limit=_NO_LIMIT)
    # Compiled in inference mode, because a guard on the mode would compile again at the first call.
    with limits, inductor.patch(freezing=device.type == "cpu"), torch.inference_mode():
        run(x.to(device), None if mask is None else mask.to(device))
    return run


def write_graph(model: ModelParts, options: GraphOptions, format: Format, path: Path) -> None:
    """Write the graph of a model, without metadata, for `open_graph`.

    Raises:
        ValueError: if a package that this needs is not installed.
    """
    require(format, *PACKAGES[format])
    network = Deployed(model, options)
    WRITERS[format](network, network.example_inputs(dynamic=True), True, path, "{}")


def _graph(model: ModelParts, options: GraphOptions, format: Format, precision: Precision) -> Run:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows does not delete files in use.
        path = Path(folder) / f"model{ENDINGS[format]}"
        write_graph(model, options, format, path)
        return open_graph(format, path, precision)
