"""Compare the speed of reading images with torchvision's ImageFolder, transforms and DataLoader.

`python benchmarks/reading.py --data FOLDER` reads a folder of classes repeatedly, with the transforms of testing and of
training and with 0 to `--workers` worker processes. Both libraries take turns. The script writes a table of medians.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ndvit._torchvision  # noqa: F401

# isort: split
import torch
from cyclopts import App
from image_results import git_commit
from torch.utils.data import DataLoader, Subset

from ndvit.data.augment.pictures import Variation
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.images import ImagePreprocess, median_size
from ndvit.data.sources.load import load_source
from ndvit.files import replace_file

app = App(help=__doc__)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP, FLIP = 0.5, 0.5
WAYS = {
    "test": "resize the shorter side, centre crop, standardise",
    "training": f"random crop of {CROP} to 1 of the area, resize, flip with probability {FLIP}, standardise",
}


@dataclass(frozen=True)
class Reader:
    """Batches whose first element is x, which can be iterated repeatedly."""

    way: str
    who: str
    batches: Iterable[Any]

    def seconds(self) -> tuple[float, int]:
        """Wall time of one pass in seconds, and the number of images."""
        start = time.perf_counter()
        count = sum(len(batch[0]) for batch in self.batches)
        return time.perf_counter() - start, count


def ours(data: Path, size: int, batch: int, limit: int) -> dict[str, Callable[[int], Any]]:
    """For "test" and "training": a function from a number of worker processes to ndvit's loader."""
    examples = load_source(str(data), test_fraction=0, progress=False).train
    examples = examples.subset(range(min(limit, len(examples)) if limit else len(examples)))
    preprocess = ImagePreprocess((size, size), MEAN, STD)
    test = Inputs(examples, preprocess)
    training = Inputs(examples, preprocess, Variation(preprocess, crop=CROP, flip=FLIP))
    steps = max(1, len(examples) // batch)
    return {
        "test": lambda workers: test.loader(batch, workers),
        "training": lambda workers: training.stream(batch, steps, 0, 0, workers),
    }


def theirs(data: Path, size: int, batch: int, limit: int) -> dict[str, Callable[[int], Any]]:
    """The same for torchvision."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    cubic = InterpolationMode.BICUBIC
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    chains = {
        "test": [v2.Resize(size, cubic), v2.CenterCrop(size), *end],
        "training": [v2.RandomResizedCrop(size, (CROP, 1.0), interpolation=cubic), v2.RandomHorizontalFlip(FLIP), *end],
    }

    def make(way: str) -> Callable[[int], Any]:
        pictures: Any = ImageFolder(data, v2.Compose(chains[way]))
        pictures = Subset(pictures, range(limit)) if 0 < limit < len(pictures) else pictures
        learns = way == "training"
        return lambda workers: DataLoader(
            pictures,
            batch,
            shuffle=learns,
            drop_last=learns and len(pictures) > batch,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    return {way: make(way) for way in chains}


def measure(readers: list[Reader], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Images per second of each reader. Readers take turns, so that noise of the machine affects all of them."""
    rates: dict[tuple[str, str], list[float]] = {(reader.way, reader.who): [] for reader in readers}
    for reader in readers:  # not counted: workers start, and the system caches the files
        reader.seconds()
    for _ in range(rounds):
        for reader in readers:
            seconds, count = reader.seconds()
            rates[reader.way, reader.who].append(count / seconds)
    return rates


def table_of(found: dict[int, dict[tuple[str, str], list[float]]]) -> list[str]:
    """A Markdown table of medians, and of the median over rounds of the ratio within a round."""
    lines = [
        "| transforms | workers | ours, images/s | torchvision, images/s | ratio (range) |",
        "|---|---:|---:|---:|---:|",
    ]
    for way in WAYS:
        for workers, rates in found.items():
            mine, other = rates[way, "ours"], rates[way, "torchvision"]
            ratios = [a / b for a, b in zip(mine, other, strict=True)]
            middle = statistics.median(ratios)
            lines.append(
                f"| {way} | {workers} | {statistics.median(mine):,.0f} | {statistics.median(other):,.0f} "
                f"| {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )
    return lines


@app.default
def main(
    *,
    data: Path,
    size: int = 224,
    batch: int = 32,
    workers: int = 2,
    rounds: int = 5,
    limit: int = 0,
    out: Path = Path("docs/reading.md"),
) -> None:
    """Measure and write the table.

    Args:
        data: folder of images with one folder per class.
        size: height and width of the output.
        batch: images per batch.
        workers: largest number of worker processes; 0 reads in the main process.
        rounds: measured passes of each reader.
        limit: number of images of the folder to read; 0 reads all.
        out: the Markdown file.
    """
    if not data.is_dir():
        raise SystemExit(f"--data {data}: no such folder")
    if min(size, batch, rounds) < 1 or min(workers, limit) < 0:
        raise SystemExit(
            "size, batch and rounds must be at least 1, and workers and limit at least 0; got "
            f"{size}, {batch}, {rounds}, {workers}, {limit}"
        )
    torch.set_num_threads(1)  # otherwise the main process would have several threads, and the workers one
    parties = {"ours": ours(data, size, batch, limit), "torchvision": theirs(data, size, batch, limit)}
    found = {}
    for count in range(workers + 1):
        found[count] = measure(
            [Reader(way, who, make[way](count)) for way in WAYS for who, make in parties.items()], rounds
        )
        print(*table_of({count: found[count]})[2:], sep="\n", flush=True)
    cores = os.cpu_count() or 0
    examples = load_source(str(data), test_fraction=0, progress=False).train
    read, (high, wide) = min(limit or len(examples), len(examples)), median_size(examples)
    usual = {"size": 224, "batch": 32, "workers": 2, "rounds": 5, "limit": 0}
    chosen = {"size": size, "batch": batch, "workers": workers, "rounds": rounds, "limit": limit}
    flags = "".join(f" --{name} {value}" for name, value in chosen.items() if value != usual[name])
    text = [
        "# Reading images: comparison with torchvision",
        "",
        f"Images per second from files ({read:,} images, median size {high:.0f} x {wide:.0f} pixels) to batches of "
        f"{batch} x 3 x {size} x {size}. Medians of {rounds} passes; both libraries take turns. Above a ratio of 1, "
        "ours is faster.",
        "",
        *table_of(found),
        "",
        *(f"- {way}: {about}; bicubic; ours has one seed per image." for way, about in WAYS.items()),
        f"- {cores} cores, torch {version('torch')}, torchvision {version('torchvision')}, "
        f"Pillow {version('pillow')}; by `python benchmarks/reading.py --data FOLDER{flags}` at commit "
        f"{git_commit(['reading.py'])}.",
    ]
    replace_file(out, "\n".join(text) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    app()
