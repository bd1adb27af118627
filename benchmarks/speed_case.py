"""One case of the speed benchmark in its own process: `python speed_case.py CASE.json RESULT.json`."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speed_parties import FLOAT32, NETWORKS, OTHER_WEIGHTS, WAYS, named, whole_cost
from speed_work import CEILING, PEER, Case

# isort: split
import torch
from torch import Tensor, nn

import ndvit
from ndvit import Model, create_model, load_model
from ndvit.exporting.comparison import compare, load_comparison_data
from ndvit.exporting.formats import ENDINGS, Format
from ndvit.model import load_exported
from ndvit.network import VisionTransformer
from ndvit.network.cost import count_cost
from ndvit.network.fast import Linear, linear_by_convolution

PAUSE = 0.1
"""Seconds before each call. ONNX Runtime's threads spin for about 0.05 s after a call and would slow the next party."""
SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices in the matrix product."""
LEAST_ROUNDS, MEMORY_STEPS = 5, 5


def main(job: Path, result: Path) -> None:
    """Measure the case and write its result."""
    case = Case.read(job)
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    found = KINDS[case.kind](case)
    result.write_text(json.dumps(found), encoding="utf-8")


def model_of(case: Case, **more: Any) -> Model:
    """Our model. The other libraries get the weights of its network."""
    if case.run:
        model = load_model(case.run, **more)
    else:
        torch.manual_seed(0)
        model = Model(create_model(case.network, **dict(case.arguments), **more))
    # As `fast.only_read_tokens` does in training and prediction; here for all calls, also those of compiled copies.
    transformer_of(model).skip_unread_tokens = True
    return model


def transformer_of(model: Model) -> VisionTransformer:
    """The network of a model that is one Vision Transformer."""
    assert isinstance(model.network, VisionTransformer)
    return model.network


def forward(case: Case) -> dict[str, Any]:
    """Measure forward passes of all parties in turn."""
    model = model_of(case).to(case.device)
    x = torch.randn(case.batch, model.config.in_channels, *model.config.input_size, device=case.device)
    with torch.no_grad():
        expected = model.network(x).float()
    spread = (expected - expected.mean(1, keepdim=True)).square().mean().sqrt().item()
    calls: dict[str, Callable[[], Any]] = {}
    costs: dict[str, int] = {}
    differences: dict[str, float] = {}
    more: dict[str, dict[str, Any]] = {}
    for party in case.parties:
        print(f"  {party}", flush=True)
        answer, costs[party], more[party] = forward_party(case, party, model, x)
        calls[party] = in_numbers(case, party, lambda answer=answer: answer(x))
        other = named(party)[0] in OTHER_WEIGHTS
        gap = (calls[party]().float().cpu() - expected.cpu()).abs().max().item()
        differences[party] = -1.0 if other else gap / spread
        rough = case.precision != "float32" and named(party)[1] != FLOAT32
        exact = not (other or rough or "merged" in party or "int8" in party or "bfloat16" in party)
        if exact and gap > 1e-3 * spread:
            raise RuntimeError(
                f"the outputs of {party} differ from ours by {gap:.2g}; the standard deviation of ours is {spread:.2g}"
            )
    return summary(case, calls, costs, differences, more)


def forward_party(
    case: Case, party: str, model: Model, x: Tensor
) -> tuple[Callable[[Tensor], Tensor], int, dict[str, Any]]:
    """The function to measure, its multiply-adds per example, and other results."""
    library, way = named(party)
    whole, own = whole_cost(model.config), count_cost(model.config)[1]
    if way.endswith("merged"):
        merging = model_of(case, merge_tokens=int(way.split()[0])).to(case.device)
        return merging.network, count_cost(merging.config)[1], accuracy(case, merging)
    if way.startswith(("int8", "bfloat16")):
        exported, more = narrow(case, model, way)
        return exported, own, more
    if way == "ndvit.compile":
        compiled: Any = ndvit.compile(model, batch_size=case.batch).network
        return compiled, own, {"way": compiled.way}
    network = NETWORKS[library](transformer_of(model)).eval().to(case.device)
    more = accuracy(case, model) if party == "ours" else {}
    return WAYS[way](network, x, case.precision), own if library == "ours" else whole, more


def narrow(case: Case, model: Model, way: str) -> tuple[Any, dict[str, Any]]:
    """Export a trained model in int8 or bfloat16, and compare its predictions on the test set with the model's.

    8-bit integers are calibrated on the training set.
    """
    kind, _, runtime = way.partition(" ")
    format: Format = "openvino" if runtime == "OpenVINO" else "onnx"
    path = Path(tempfile.mkdtemp()) / f"model{ENDINGS[format]}"  # the runtime keeps reading this file
    if kind == "int8":
        found = model.export(path, format=format, int8=True, data=case.data, min_agreement=0).comparison
        exported = load_exported(path)
    else:
        model.export(path, format=format)
        exported = load_exported(path, precision="bfloat16")
        data, _ = load_comparison_data(model, case.data, mask=False, int8=True)
        targets = data.targets

        def score(outputs: Tensor) -> float:
            assert targets is not None
            return float((outputs.argmax(1).numpy() == targets).mean())

        with torch.no_grad():
            found = compare(model, exported, data, (case.batch,), None if targets is None else score)
    more = {"agreement": found.agreement, "examples": found.examples}
    if found.scores and "test_fraction" in model.provenance:  # otherwise the classes differ from those of the data
        more["accuracy"] = found.scores[1]
    return exported.network, more


def accuracy(case: Case, model: Model) -> dict[str, Any]:
    """Accuracy on the test set, if the model was trained on this data."""
    if not case.data or "test_fraction" not in model.provenance:
        return {}
    result: Any = model.evaluate(case.data, split="test", progress=False, log=lambda line: None)
    return {"accuracy": result.accuracy, "examples": len(result)}


def training(case: Case) -> dict[str, Any]:
    """Measure training steps of all parties in turn."""
    model = model_of(case)
    own, whole = count_cost(model.config)[1], whole_cost(model.config)
    # the backward pass costs twice as much as the forward pass
    costs = {party: 3 * (own if named(party)[0] == "ours" else whole) for party in case.parties}
    if model.config.patch_drop_rate or model.config.drop_path_rate:
        costs = {}  # not all parties skip the computation of dropped parts
    steps = {party: step_of(case, party, model) for party in case.parties}
    return summary(case, steps, costs, {}, {})


def step_of(case: Case, party: str, model: Model) -> Callable[[], Any]:
    """A training step of one party: forward, backward, and torch's fused AdamW."""
    library, way = named(party)
    network: nn.Module = NETWORKS[library](transformer_of(model)).to(case.device).train()
    config = model.config
    x = torch.randn(case.batch, config.in_channels, *config.input_size, device=case.device)
    labels = torch.randint(config.num_classes, (case.batch,), device=case.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    answer = WAYS[way](network, x, case.precision)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with in_precision(case, party):
            loss = nn.functional.cross_entropy(answer(x), labels)
        loss.backward()
        optimizer.step()

    return step


def memory(case: Case) -> dict[str, Any]:
    """Peak memory of one party for its network and a few steps: of the process, and of tensors."""
    (party,) = case.parties
    step_of(case, party, model_of(replace(case, network="vit_pico", arguments=())))()  # imports, and buffers of torch
    resting = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    steps(case, party)
    taken = {"MB": round((status("VmHWM") - resting) / 1024, 1), "live": live_megabytes(lambda: steps(case, party))}
    return {"rows": {party: {"more": taken}}}


def steps(case: Case, party: str) -> None:
    """Make the network and run a few training steps."""
    step = step_of(case, party, model_of(case))  # for other libraries, our network is freed after this line
    for _ in range(MEMORY_STEPS):
        step()


def live_megabytes(call: Callable[[], None]) -> float:
    """Peak memory of torch's tensors during a call, in MiB."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    now = most = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return round(most / 2**20, 1)


def status(name: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def in_numbers(case: Case, party: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """Wrap a call: no gradients, and the precision of the case."""

    def run() -> Any:
        with torch.no_grad(), in_precision(case, party):
            return call()

    return run


def in_precision(case: Case, party: str) -> torch.autocast:
    """Autocast for the precision of the case; disabled for a party that stays in float32."""
    rough = case.precision == "bfloat16" and named(party)[1] != FLOAT32
    return torch.autocast(case.device, torch.bfloat16, enabled=rough)


def summary(
    case: Case,
    calls: dict[str, Callable[[], Any]],
    costs: dict[str, int],
    differences: dict[str, float],
    more: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Measure all calls and summarise the times."""
    side = SIDE[case.device]
    kind = getattr(torch, case.precision)
    layer = Linear if linear_by_convolution() else nn.Linear
    product = layer(side, side, bias=False, device=case.device, dtype=kind).requires_grad_(False)
    matrix = torch.randn(side, side, device=case.device, dtype=kind)
    times = measure({**calls, CEILING: lambda: product(matrix)}, case)
    ceiling = [side**3 / seconds for seconds in times.pop(CEILING)]  # multiply-adds per second
    base = times.get(PEER) or next(iter(times.values()))
    rows = {}
    for party, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        work = costs.get(party, 0) * case.batch
        rows[party] = {
            "ms": 1e3 * middle,
            "low": 1e3 * low,
            "high": 1e3 * high,
            "rounds": len(seconds),
            "ratio": statistics.median(b / s for b, s in zip(base, seconds, strict=True)),
            "share": statistics.median(work / s / c for s, c in zip(seconds, ceiling, strict=True)),
            "difference": differences.get(party, -1.0),
            "more": more.get(party, {}),
        }
    return {"rows": rows, "ceiling": 2 * statistics.median(ceiling) / 1e9}


def measure(calls: dict[str, Callable[[], Any]], case: Case) -> dict[str, list[float]]:
    """Seconds of every call. Calls take turns, so that noise of the machine affects all of them."""
    names, times = list(calls), {name: [] for name in calls}  # type: dict[str, list[float]]
    for name in names * 2:  # not counted: memory is allocated, and kernels are chosen
        timed(calls[name], case.device)
    start = time.perf_counter()
    for count in range(case.rounds):
        if count >= LEAST_ROUNDS and time.perf_counter() - start > case.seconds:
            break
        for name in turned(names, count):
            time.sleep(PAUSE)
            times[name].append(timed(calls[name], case.device))
    return times


def turned(names: Sequence[str], count: int) -> list[str]:
    """The names, rotated by `count`."""
    first = count % len(names)
    return [*names[first:], *names[:first]]


def timed(call: Callable[[], Any], device: str) -> float:
    """Wall time of a call in seconds, until its result is available."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


KINDS: dict[str, Callable[[Case], dict[str, Any]]] = {"forward": forward, "training": training, "memory": memory}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
