"""Measure a GPU in one call of about eight minutes: training steps beside timm, share of the card's peak, pictures.

`python benchmarks/gpu.py` times training steps of ViT-S, B and L (bfloat16, torch.compile, fused AdamW) of ndvit and
timm in turns, then what augmentation on the GPU and the channels-last layout cost or save, then how many pictures the
CPU decodes and crops in a second, and compares logits of the GPU with those of the CPU. Every part is written to
`--output` when it is done, so that nothing is lost if the time of the card is over. `--tiny --device cpu` is a trial.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
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
STEPS = (("vit_small_patch16_224", 512), ("vit_base_patch16_224", 256), ("vit_large_patch16_224", 128))
PARTIES = ("timm, torch.compile", "ours, torch.compile")
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70, "A10": 125, "4090": 165}
"""Dense bfloat16 TFLOP/s by the makers' data sheets, without sparsity; the first name that a card's name contains."""
GOALS = {"beside timm": 1.1, "share of the peak, ViT-L": 0.45}
TINY = {"input_size": (32, 32), "patch_size": 8, "num_classes": 10, "depth": 2}


def peak(name: str) -> float | None:
    """TFLOP/s of a card; None if it is not listed."""
    return next((value for part, value in PEAKS.items() if part in name), None)


def steps(device: str, seconds: float, tiny: bool, best: float | None) -> list[dict[str, Any]]:
    """Training steps of ours and timm's: pictures a second, and the share of the card's peak."""
    rows = []
    for network, batch in STEPS[: 1 if tiny else None]:
        more = tuple(TINY.items()) if tiny else ()
        case = Case("GPU", network, 4 if tiny else batch, PARTIES, "training", more, device=device, seconds=seconds)
        found = None
        while found is None:
            try:
                found = in_process(replace(case, precision="bfloat16"))["rows"]
            except RuntimeError as error:
                if "out of memory" not in str(error) or case.batch < 2:
                    raise
                case = replace(case, batch=case.batch // 2)
        operations = 6 * count_cost(model_of(case).config)[1] * case.batch  # two for a multiply-add, three passes
        for party, values in found.items():
            rows.append(
                {
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
            )
    return rows


def variants(device: str, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Steps of ViT-B as they are, with a stem in channels-last, and with crops and mixing on the GPU."""
    network, batch = STEPS[1]
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
    return [
        {
            "step of ViT-B": name,
            "ms": 1e3 * statistics.median(found),
            "beside as it is": statistics.median(s / b for b, s in zip(base, found, strict=True)),
            "rounds": rounds,
        }
        for name, found in times.items()
    ]


def pictures(seconds: float, side: int) -> list[dict[str, Any]]:
    """JPEG pictures of 500 x 375 that are decoded, cropped and resized in a second, by the number of processes."""
    random = np.random.default_rng(0)
    rows = []
    with TemporaryDirectory() as name:
        for i in range(256):
            small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            path = Path(name) / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        examples = load_source(name, test_fraction=0, progress=False).train
        preprocess = ImagePreprocess((side, side), (0.5,) * 3, (0.5,) * 3)
        inputs = Inputs(examples, preprocess, Variation(preprocess, crop=0.35, flip=0.5))
        for workers in sorted({1, os.cpu_count() or 1}):
            count, start = 0, None
            for batch in inputs.stream(64, 1_000_000, 0, 0, workers):
                start = start or time.perf_counter()  # the first batch waits for the processes, and is not counted
                if time.perf_counter() - start > seconds:
                    break
                count += len(batch[0])
            rate = count / seconds
            rows.append({"processes that read": workers, "pictures a second": rate, "each": rate / workers})
    return rows


def same_numbers(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Largest differences of logits on the GPU from those on the CPU, in float32, relative to the largest logit."""
    case = Case("GPU", STEPS[1][0], 2, PARTIES, "forward", tuple(TINY.items()) if tiny else ())
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
    return [{"logits in": name, "difference": float((y - expected).abs().max() / scale)} for name, y in found.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "–" if value is None else str(value)

    keys = [key for key in rows[0] if key != "quartiles"]
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    return "\n".join([*lines, *("| " + " | ".join(cell(row[key]) for key in keys) + " |" for row in rows)])


@app.default
def main(
    *,
    device: Literal["cuda", "cpu"] = "cuda",
    seconds: float = 40,
    tiny: bool = False,
    output: Path = Path("gpu.json"),
) -> None:
    """Measure everything; about eight minutes on a fast card, most of them for torch.compile.

    Args:
        device: cpu is for trials.
        seconds: Longest measurement of the steps of a network.
        tiny: Small networks and few rounds, to try the script.
        output: JSON of all results; it is written after each part.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here (torch.cuda.is_available() is False); --tiny --device cpu is a trial")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    best, rounds = peak(name), 5 if tiny else 31
    result: dict[str, Any] = {
        "device": name,
        "peak in TFLOP/s": best,
        "commit": git_commit(("gpu.py", "speed_case.py", "speed_parties.py")),
        "goals": GOALS,
    }
    result["software"] = {package: version(package) for package in ("torch", "timm")}
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "numbers": lambda: same_numbers(device, tiny),
        "training steps": lambda: steps(device, seconds, tiny, best),
        "ways": lambda: variants(device, rounds, tiny),
        "pictures": lambda: pictures(2 if tiny else 10, 32 if tiny else 224),
    }
    for part, measure in parts.items():
        began = time.perf_counter()
        try:
            result[part] = measure()
        except (RuntimeError, OSError) as error:  # the other parts are measured nevertheless
            result[part] = [{"failed": str(error)[-300:]}]
        replace_file(output, json.dumps(result, indent=1))
        print(f"\n{part} ({time.perf_counter() - began:.0f} s)\n\n{table(result[part])}", flush=True)


if __name__ == "__main__":
    app()
