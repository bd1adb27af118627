"""The fastest way to run a model on this machine with the same numbers, found by measuring."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from torch import Tensor

from ndvit.exporting.graphs import PACKAGES, WRITERS, Deployed, quiet
from ndvit.exporting.runtimes import ENDINGS, Answer, Format, How, Precision, Runner, need, open_graph
from ndvit.exporting.trials import Trial, compare, random_trial
from ndvit.network.committee import Model
from ndvit.weights.loading import load_model

PAUSE = 0.1
"""Seconds before each call that is measured: ONNX Runtime's threads spin for half as long after one of theirs."""
_LEAST_ROUNDS = 3
_MANY = 1_000_000
_ROUGHLY = " in bfloat16"
_ROUGH = 0.3
"""How far answers in bfloat16 may be from the model's, in parts of their spread: more is no rounding."""


class Compiled(Runner):
    """A model run in the way that was fastest here; called as the model is, and taken by `predict` and `evaluate`.

    Attributes:
        way: "eager", "torch.compile", "onnxruntime" or "openvino", or one of them "in bfloat16".
        batch_size: that was measured; any other is answered, too.
        seconds: median of each way that was measured, for a batch.
        differences: the largest difference of each way's answers to the model's on random inputs, in parts of their
            spread.
        left_out: why other ways were not.
    """

    def __init__(
        self,
        runner: Runner,
        model: Model,
        batch_size: int,
        seconds: dict[str, float],
        differences: dict[str, float],
        left_out: dict[str, str],
    ) -> None:
        super().__init__(f"the model compiled by {runner.name}", model, runner.how, runner.run, runner.device)
        self.load_report = model.load_report
        self.way, self.batch_size, self.seconds = runner.name, batch_size, seconds
        self.differences, self.left_out = differences, left_out

    def __str__(self) -> str:
        wide = max(map(len, [*self.seconds, *self.left_out]))
        lines = [f"{self.way} is the fastest at batch {self.batch_size} (median, times as fast as eager):"]
        for way, seconds in sorted(self.seconds.items(), key=lambda item: item[1]):
            line = f"  {way:<{wide}} {1e3 * seconds:9.2f} ms  {self.seconds['eager'] / seconds:5.2f}×"
            rough = f"  answers within {100 * self.differences[way]:.2g} % of their spread" if _is_rough(way) else ""
            lines.append(line + rough)
        return "\n".join([*lines, *(f"  {way:<{wide}} left out: {why}" for way, why in self.left_out.items())])


def compile(
    model_or_path: Model | str | Path,
    *,
    batch_size: int = 1,
    precision: Precision = "float32",
    mask: bool | None = None,
    ways: Sequence[str] | None = None,
    rounds: int = 15,
    seconds: float = 10.0,
    say: Callable[[str], Any] = print,
) -> Compiled:
    """Find the fastest way to run a model on this machine that gives the same numbers, by trying them.

    On a CPU the ways are torch as it is ("eager"), torch.compile with frozen weights, ONNX Runtime and OpenVINO; on
    another device, where the model is, the first two. Each is compared with the model on random inputs, and left out
    where it differs by more than rounding, cannot be built, or lacks its package. Those that are left take turns at
    batches of `batch_size`, and the one with the least median is taken. This takes a minute or two.

    Args:
        model_or_path: a model, a run folder, or weights as `load_model` takes them. A model stays as it is.
        batch_size: examples at a time that it shall be fast for. Others are answered, too, by torch.compile in eager.
        precision: "float32", or "bfloat16" to let the ways compete in bfloat16, too (ONNX Runtime has none on CPUs).
            That is about twice as fast where the CPU has it (AVX-512 BF16, AMX), and its answers differ by some
            hundredths of their spread: see with `evaluate` what that does to your accuracy.
        mask: whether examples with missing values or padding will come, as in `export`.
        ways: "torch.compile", "onnxruntime" and "openvino", or some of them, to try beside eager; None for all that the
            device has.
        rounds: the most turns of each.
        seconds: time for them, after which no round begins; there are three at least.
        say: what is done with each line that tells what happens.

    Raises:
        ValueError: if batch_size or rounds is less than 1, a precision or a way is not known or not of the device, or
            the model is not in float32 or answers with numbers that are not finite.
    """
    if batch_size < 1 or rounds < 1:
        raise ValueError(f"batch_size and rounds must be at least 1, got {batch_size} and {rounds}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    # a copy, as the runtimes have theirs: what is trained on after this is another model
    model = copy.deepcopy(model_or_path) if isinstance(model_or_path, Model) else load_model(model_or_path)
    model.eval().requires_grad_(False)
    if mask is None:
        mask = model.preprocess is not None and model.preprocess.resize == "pad"
    how, device = How(mask=mask), next(model.parameters()).device
    chosen = _chosen(ways, device.type)
    trial = random_trial(model, 2 * batch_size, mask)  # under a mask, every second one has a part hidden
    runners = {"eager": _eager(model, how, trial, batch_size, str(device))}
    differences = {"eager": 0.0}
    left_out: dict[str, str] = {}
    todo: list[tuple[str, Precision]] = [(way, "float32") for way in chosen]
    if precision == "bfloat16":
        todo += [(way, precision) for way in ["eager", *chosen] if way != "onnxruntime"]
    for way, kind in todo:
        name = way if kind == "float32" else f"{way}{_ROUGHLY}"
        say(f"trying {name} ...")
        try:
            with quiet():
                runner = Runner(name, model, how, WAYS[way](way, model, how, batch_size, kind), str(device))
                found = compare(runners["eager"], runner, trial, (1 if batch_size > 1 else 2, batch_size))
        except Exception as error:  # each runtime has errors of its own
            left_out[name] = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            continue
        if found.same or (kind == "bfloat16" and found.difference <= _ROUGH * found.spread):
            runners[name], differences[name] = runner, found.difference / max(found.spread, 1e-30)
        else:
            left_out[name] = f"differs by up to {found.difference:.2g}, where answers spread by {found.spread:.2g}"
    medians = _measure(runners, trial, batch_size, rounds, seconds)
    way = min(medians, key=medians.__getitem__)
    compiled = Compiled(runners[way], model, batch_size, medians, differences, left_out)
    say(str(compiled))
    return compiled


def _chosen(ways: Sequence[str] | None, device: str) -> list[str]:
    """The ways to try on a device, beside eager."""
    there = [way for way, build in WAYS.items() if way != "eager" and (device == "cpu" or build is not _in_graph)]
    wanted = there if ways is None else list(ways)
    if isinstance(ways, str) or not set(wanted) <= {"eager", *there}:
        raise ValueError(f"ways must be a list of {', '.join(there)} on {device}, got {ways!r}")
    return [way for way in there if way in wanted]


def _eager(model: Model, how: How, trial: Trial, batch_size: int, device: str) -> Runner:
    """The model as it is, which all others are compared with."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"}
    if kinds:
        raise ValueError(f"compile takes models in float32, and this one has {', '.join(sorted(kinds))}: model.float()")
    runner = Runner("eager", model, how, _in_eager("eager", model, how, batch_size, "float32"), device)
    rows = slice(0, batch_size)
    if not runner(trial.x[rows], None if trial.mask is None else trial.mask[rows]).isfinite().all():
        raise ValueError(
            "the model answers with numbers that are not finite to random inputs, so nothing can be compared with it: "
            "its weights are damaged, or were never trained on inputs of mean 0 and deviation 1"
        )
    return runner


def _measure(
    runners: dict[str, Runner], trial: Trial, batch_size: int, rounds: int, seconds: float
) -> dict[str, float]:
    """Median seconds of each for a batch, in turns that begin with another each round."""
    names, x = list(runners), trial.x[:batch_size]
    mask = None if trial.mask is None else trial.mask[:batch_size]
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names * 2:  # not counted: memory is taken, and kernels are chosen
        runners[name](x, mask).cpu()
    began = time.perf_counter()
    for count in range(rounds):
        if count >= _LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for i in range(len(names)):
            name = names[(count + i) % len(names)]
            time.sleep(PAUSE)
            start = time.perf_counter()
            runners[name](x, mask).cpu()  # which waits for a GPU
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def _is_rough(way: str) -> bool:
    """Whether it computes in bfloat16."""
    return way.endswith(_ROUGHLY)


def _in_eager(way: str, model: Model, how: How, batch_size: int, precision: Precision) -> Answer:
    return _in_precision(model, next(model.parameters()).device.type, precision)


def _in_precision(answer: Answer, device: str, precision: Precision) -> Answer:
    if precision == "float32":
        return answer

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return answer(x, mask).float()

    return run


def _in_compile(way: str, model: Model, how: How, batch_size: int, precision: Precision) -> Answer:
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    device = next(model.parameters()).device
    compiled: Answer = torch.compile(model, dynamic=False)

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        return (compiled if len(x) == batch_size else model)(x, mask)  # it would compile anew for another size

    answer = _in_precision(run, device.type, precision)
    x, *mask = (given[:1].repeat(batch_size, *[1] * (given.ndim - 1)) for given in Deployed(model, how).examples(False))
    # past so many models of a class in a process it would run them in eager, and say nothing
    limits = dynamo.patch(recompile_limit=_MANY, accumulated_recompile_limit=_MANY)
    with limits, inductor.patch(freezing=device.type == "cpu"), torch.inference_mode():  # as it will be called
        answer(x.to(device), mask[0].to(device) if mask else None)
    return answer


def _in_graph(way: str, model: Model, how: How, batch_size: int, precision: Precision) -> Answer:
    format = _FORMATS[way]
    need(way, *PACKAGES[format])
    network = Deployed(model, how)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps files that are in use
        path = Path(folder) / f"model{ENDINGS[format]}"
        WRITERS[format](network, network.examples(dynamic=True), True, path, "{}")
        return open_graph(format, path, precision)


_FORMATS: dict[str, Format] = {"onnxruntime": "onnx", "openvino": "openvino"}
WAYS: dict[str, Callable[[str, Model, How, int, Precision], Answer]] = {
    "eager": _in_eager,
    "torch.compile": _in_compile,
    "onnxruntime": _in_graph,
    "openvino": _in_graph,
}
"""How each way is made ready, by its name, the model, what it takes, the batch size and the precision."""
