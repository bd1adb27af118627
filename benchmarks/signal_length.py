"""Measure time and memory for signals of increasing length: a training step, random convolutions, a prediction.

`python benchmarks/signal_length.py [--out docs]` measures each length in its own process, and writes a table and a
figure: signal_length.md and signal_length.png.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from cyclopts import App

LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
BATCH, CHANNELS, CLASSES, STEPS = 4, 3, 10, 7

app = App(help=__doc__)


@app.command
def step(length: int) -> None:
    """Measure one length in this process and print a line of JSON."""
    from ndvit.config import named_config, plan_strides
    from ndvit.config.solved import default_features
    from ndvit.network import VisionTransformer
    from ndvit.network.committee import Committee
    from ndvit.network.random_convolutions import RandomConvolutions

    resting = _peak()
    strides = plan_strides((length,), 2)
    config = named_config(
        "signal_small", input_size=(length,), in_channels=CHANNELS, num_classes=CLASSES, stem_strides=strides
    )
    model = VisionTransformer(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x, labels = torch.randn(BATCH, CHANNELS, length), torch.arange(BATCH) % CLASSES
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss = sum(torch.nn.functional.cross_entropy(logits, labels) for logits in model(x))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    row = {"length": length, "strides": strides, "tokens": config.num_patches}
    row |= {"seconds": statistics.median(seconds[2:]), "bytes": _peak() - resting}
    convolutions = RandomConvolutions(CHANNELS, length, default_features("signal_small", (length,)), CLASSES)
    start = time.perf_counter()
    convolutions.draw(x, None, torch.Generator().manual_seed(0))
    drawn, answers = time.perf_counter() - start, []
    both = Committee([model, convolutions])
    for i in range(BATCH):
        start = time.perf_counter()
        with torch.no_grad():
            both(x[i : i + 1])
        answers.append(time.perf_counter() - start)
    row |= {"draw": drawn, "answer": statistics.median(answers[1:]), "all_bytes": _peak() - resting}
    print(json.dumps(row))


@app.default
def main(*, out: Path = Path("docs")) -> None:
    """Measure every length, and write the table and the figure."""
    rows = []
    for length in LENGTHS:
        command = [sys.executable, __file__, "step", str(length)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(
            f"{length:6,} samples: {rows[-1]['seconds']:.3f} s per step, {rows[-1]['bytes'] / 2**20:,.0f} MiB",
            flush=True,
        )
    out.mkdir(parents=True, exist_ok=True)
    _draw(rows, out / "signal_length.png")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# The cost of long signals",
        "",
        f"The first columns are for a training step (forward, backward, AdamW) of `signal_small` on {BATCH} signals "
        f"with {CHANNELS} channels, with the strides that `train` chooses: the median of {STEPS - 2} steps after 2 "
        "warm-up steps. Each length is measured in its own process. Memory is the peak above that of the process "
        "after all imports. The other columns include the random convolutions. Their biases are drawn once per "
        "training. Their features are computed once per training example and in each prediction. A prediction is "
        f"that of the whole model for one signal: the median of {BATCH - 1}.",
        "",
        f"`python benchmarks/signal_length.py`, commit {commit}, {os.cpu_count()} cores ({platform.machine()}), torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads.",
        "",
        "| samples | strides of the stem | tokens | seconds per step | per 1,000 samples | peak memory | drawing of "
        "biases | prediction | peak memory with random convolutions |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        strides = " x ".join(map(str, row["strides"]))
        per = 1e6 * row["seconds"] / row["length"]
        lines.append(
            f"| {row['length']:,} | {strides} | {row['tokens']} | {row['seconds']:.3f} | {per:.2f} ms | "
            f"{row['bytes'] / 2**20:,.0f} MiB | {row['draw']:.1f} s | {row['answer']:.3f} s | "
            f"{row['all_bytes'] / 2**20:,.0f} MiB |"
        )
    lines += [
        "",
        "Time and memory do not grow with the square of the length. After the strides of the stem at most 128 "
        "positions remain, and the patches form at most 32 tokens, so the cost of attention is constant. The first "
        "stage of the stem and the random convolutions have no strides, and grow in proportion to the length "
        "(`rocket_features=0` switches random convolutions off).",
        "",
        "![Seconds and memory of a training step against the length of the signals](signal_length.png)",
        "",
    ]
    (out / "signal_length.md").write_text("\n".join(lines), encoding="utf-8")


def _peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _draw(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    lengths = [row["length"] for row in rows]
    parts = (("seconds", 1, "seconds per step"), ("bytes", 2**20, "peak memory (MiB)"))
    for axes, (name, unit, label) in zip(figure.subplots(1, 2), parts):
        values = [row[name] / unit for row in rows]
        axes.loglog(lengths, values, "o-", color="#2a6fb0", label="measured")
        axes.loglog(lengths, [values[-1] * n / lengths[-1] for n in lengths], "--", color="#999999", label="linear")
        axes.set_xlabel("samples")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app()
