"""Measure a GPU in one call of about eight minutes: training steps beside timm, share of the card's peak, pictures.

`python benchmarks/gpu.py` compares logits of the GPU with those of the CPU, times training steps of ViT-L, B and S
(bfloat16, torch.compile, fused AdamW) of ndvit and timm in turns, what augmentation on the GPU and the channels-last
layout cost or save, and how many pictures the CPU decodes and crops in a second. Every row is printed and written to
`--output` when it is there, and nothing begins after `--minutes`, so that nothing is lost if the time of the card is
over; what matters most comes first. `--tiny --device cpu` is a trial.
"""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import ndvit._torchvision  # noqa: F401

# isort: split
import numpy as np
import torch
from cyclopts import App
from image_results import git_commit
from PIL import Image
from speed import in_process
from speed_case import model_of, timed, transformer_of
from speed_parties import named, whole_cost
from speed_work import Case
from torch import Tensor, nn

from ndvit.data.augment.batches import random_crop_resize
from ndvit.data.augment.pictures import Variation
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.load import load_source
from ndvit.files import replace_file
from ndvit.network.cost import count_cost

app = App(help=__doc__)
LARGE, BASE, SMALL = ("vit_large_patch16_224", 128), ("vit_base_patch16_224", 256), ("vit_small_patch16_224", 512)
PARTIES = ("timm, torch.compile", "ours, torch.compile")
PEAKS = {
    "H200 NVL": 835,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "4090": 165,
}
"""Dense bfloat16 TFLOP/s by the makers' data sheets, without sparsity; the first name that a card's name contains."""
GOALS = {"beside timm": 1.1, "share of the peak, ViT-L": 0.45}
TINY = {"input_size": (32, 32), "patch_size": 8, "num_classes": 10, "depth": 2}


def peak(name: str) -> float | None:
    """TFLOP/s of a card; None if it is not listed."""
    return next((value for part, value in PEAKS.items() if part in name), None)


Rows = Iterator[dict[str, Any]]


def steps(size: tuple[str, int], device: str, seconds: float, tiny: bool, best: float | None, end: float) -> Rows:
    """Training steps of ours and timm's: pictures a second, and the share of the card's peak.

    Args:
        size: name of the network, and pictures in a batch; half as many are tried if they do not fit.
        device: "cuda" or "cpu".
        seconds: longest measurement.
        tiny: a small network for a trial.
        best: peak of the card in TFLOP/s.
        end: when to give up, by time.monotonic().
    """
    network, batch = size
    more = tuple(TINY.items()) if tiny else ()
    case = Case("GPU", network, 4 if tiny else batch, PARTIES, "training", more, device=device, seconds=seconds)
    found = None
    while found is None:
        try:
            found = in_process(replace(case, precision="bfloat16"), end - time.monotonic())["rows"]
        except RuntimeError as error:
            if "out of memory" not in str(error) or case.batch < 2:
                raise
            case = replace(case, batch=case.batch // 2)
    config = model_of(case).config
    costs = {"ours": count_cost(config)[1], "timm": whole_cost(config)}
    for party, values in found.items():
        # two operations for a multiply-add, and three passes: the backward pass costs two
        operations = 6 * costs[named(party)[0]] * case.batch
        yield {
            "network": network,
            "batch": case.batch,
            "party": party,
            "ms": values["ms"],
            "quartiles": [values["low"], values["high"]],
            "rounds": values["rounds"],
            "pictures a second": 1e3 * case.batch / values["ms"],
            "beside timm": values["ratio"],
            "share of the peak": None if best is None else operations / (values["ms"] * 1e9 * best),
        }


def variants(device: str, rounds: int, tiny: bool) -> Rows:
    """Steps of ViT-B as they are, with a stem in channels-last, and with crops and mixing on the GPU."""
    network, batch = BASE
    case = Case("GPU", network, 4 if tiny else batch, PARTIES, "training", tuple(TINY.items()) if tiny else ())
    size = model_of(case).config.input_size
    x = torch.randn(case.batch, 3, *size, device=device)
    labels = torch.randint(10, (case.batch,), device=device)

    def augmented(x: Tensor) -> Tensor:
        x, _ = random_crop_resize(x, None, 0.5)
        share = torch.rand((), device=device)
        return share * x + (1 - share) * x.flip(0)

    def step_of(prepare: Callable[[Tensor], Tensor], layout: torch.memory_format) -> Callable[[], None]:
        own: Any = transformer_of(model_of(case)).to(device).train().to(memory_format=layout)
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
        compiled: Any = torch.compile(own)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            prepared = prepare(x).contiguous(memory_format=layout)
            with torch.autocast(device, torch.bfloat16):
                loss = nn.functional.cross_entropy(compiled(prepared), labels)
            loss.backward()
            optimizer.step()

        return step

    usual, last = torch.contiguous_format, torch.channels_last
    calls = {
        "as it is": step_of(lambda x: x, usual),
        "channels-last": step_of(lambda x: x, last),
        "crop and mixing on the GPU": step_of(augmented, usual),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name in [*calls] * 2:
        timed(calls[name], device)
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call, device))
    base = times["as it is"]
    for name, found in times.items():
        yield {
            "step of ViT-B": name,
            "ms": 1e3 * statistics.median(found),
            "beside as it is": statistics.median(s / b for b, s in zip(base, found, strict=True)),
            "rounds": rounds,
        }


def pictures(seconds: float, side: int) -> Rows:
    """JPEG pictures of 500 x 375 that are decoded, cropped and resized in a second, by the number of processes."""
    random = np.random.default_rng(0)
    with TemporaryDirectory() as name:
        for i in range(256):
            small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            path = Path(name) / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        examples = load_source(name, test_fraction=0, progress=False).train
        preprocess = ImagePreprocess((side, side), (0.5,) * 3, (0.5,) * 3)
        inputs = Inputs(examples, preprocess, Variation(preprocess, crop=0.35, flip=0.5))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for workers in sorted({1, cores}):
            count, start = 0, None
            for batch in inputs.stream(64, 1_000_000, 0, 0, workers):
                start = start or time.perf_counter()  # the first batch waits for the processes, and is not counted
                if time.perf_counter() - start > seconds:
                    break
                count += len(batch[0])
            rate = count / seconds
            yield {"processes that read": workers, "pictures a second": rate, "each": rate / workers}


def same_numbers(device: str, tiny: bool) -> Rows:
    """Largest differences of logits on the GPU from those on the CPU, in float32, relative to the largest logit."""
    case = Case("GPU", BASE[0], 2, PARTIES, "forward", tuple(TINY.items()) if tiny else ())
    own = transformer_of(model_of(case)).eval()
    torch.nn.init.normal_(own.head.weight, std=0.02)
    x = torch.randn(2, 3, *own.config.input_size)
    with torch.inference_mode():
        expected = own(x)
        own, x = own.to(device), x.to(device)
        found = {"float32": own(x).cpu()}
        with torch.autocast(device, torch.bfloat16):
            found["bfloat16"] = own(x).float().cpu()
    scale = expected.abs().max()
    for name, y in found.items():
        yield {"logits in": name, "difference": float((y - expected).abs().max() / scale)}


def line(values: list[Any]) -> str:
    """A row of a table in Markdown."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "–" if value is None else str(value)

    return "| " + " | ".join(map(cell, values)) + " |"


def measured(part: str, rows: Rows) -> Rows:
    """The rows of a part, printed as they come; what fails is a row, and the other parts go on."""
    began, keys = time.perf_counter(), None
    try:
        for row in rows:
            if keys is None:
                keys = [key for key in row if key != "quartiles"]
                print(f"\n{part}\n\n{line(keys)}\n|{'---|' * len(keys)}", flush=True)
            print(line([row[key] for key in keys]), flush=True)
            yield row
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        print(f"\n{part} failed: {str(error)[-300:]}", flush=True)
        yield {"failed": str(error)[-300:]}
    print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


@app.default
def main(
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    seconds: float = 30,
    minutes: float = 8,
    tiny: bool = False,
    output: Path = Path("gpu.json"),
) -> None:
    """Measure everything; most of the time is that of torch.compile.

    Args:
        device: cpu is for trials.
        seconds: Longest measurement of the steps of a network.
        minutes: Nothing begins after this time, and a network whose steps are being measured is ended.
        tiny: Small networks and few rounds, to try the script.
        output: JSON of all results; it is written after each row.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here (torch.cuda.is_available() is False); --tiny --device cpu is a trial")
    end = time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    best, rounds = peak(name), 5 if tiny else 31
    result: dict[str, Any] = {
        "device": name,
        "peak in TFLOP/s": best,
        "commit": git_commit(("gpu.py", "speed_case.py", "speed_parties.py")),
        "goals": GOALS,
    }
    result["software"] = {package: version(package) for package in ("torch", "timm")}

    def steps_of(size: tuple[str, int]) -> Callable[[], Rows]:
        return lambda: steps(size, device, seconds, tiny, best, end)

    parts: list[tuple[str, Callable[[], Rows]]] = [
        ("numbers", lambda: same_numbers(device, tiny)),
        ("training steps", steps_of(LARGE)),
        ("training steps", steps_of(BASE)),
        ("pictures", lambda: pictures(2 if tiny else 10, 32 if tiny else 224)),
        ("ways", lambda: variants(device, rounds, tiny)),
        ("training steps", steps_of(SMALL)),
    ]
    for part, measure in parts:
        rows = result.setdefault(part, [])
        if time.monotonic() > end:
            rows.append({"left out": f"{minutes:g} minutes were over"})
            print(f"\n{part} left out: {minutes:g} minutes are over", flush=True)
        else:
            for row in measured(part, measure()):
                rows.append(row)
                replace_file(output, json.dumps(result, indent=1))
    replace_file(output, json.dumps(result, indent=1))


if __name__ == "__main__":
    app()
