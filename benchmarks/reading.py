"""How fast pictures are read: ours against torchvision's ImageFolder, transforms and DataLoader doing the same work.

`python benchmarks/reading.py --data FOLDER` reads a folder of classes again and again, as for a test and as for the
training, with 0 to `--workers` processes, turn by turn, and writes a table of medians.
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
    "test": "resized until they cover, the centre cut out, standardised",
    "training": f"random crops of {CROP} to 1 resized, mirrored with probability {FLIP}, standardised",
}


@dataclass(frozen=True)
class Reader:
    """Something that yields batches, x first, and can be iterated over again."""

    way: str
    who: str
    batches: Iterable[Any]

    def seconds(self) -> tuple[float, int]:
        """Wall time of one pass, and the pictures in it."""
        start = time.perf_counter()
        count = sum(len(batch[0]) for batch in self.batches)
        return time.perf_counter() - start, count


def ours(data: Path, size: int, batch: int, limit: int) -> dict[str, Callable[[int], Any]]:
    """By way: what makes a loader with so many processes."""
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
    """The same of torchvision."""
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
    """Pictures a second of each, in turns: what slows the machine for a while slows all of them."""
    rates: dict[tuple[str, str], list[float]] = {(reader.way, reader.who): [] for reader in readers}
    for reader in readers:  # not counted: processes start, and files come into the system's cache
        reader.seconds()
    for _ in range(rounds):
        for reader in readers:
            seconds, count = reader.seconds()
            rates[reader.way, reader.who].append(count / seconds)
    return rates


def table_of(found: dict[int, dict[tuple[str, str], list[float]]]) -> list[str]:
    """Markdown: medians, and the median over rounds of the ratio within a round."""
    lines = [
        "| pictures | processes | ours, pictures/s | torchvision | ratio, and its range |",
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
    """Measure, and write the table.

    Args:
        data: folder of pictures, a folder in it for each class.
        size: height and width of what comes out.
        batch: pictures in a batch.
        workers: the most processes that read; 0 is the main one alone.
        rounds: passes of each reader that are counted.
        limit: pictures of the folder that are read; 0 is all.
        out: the Markdown file.
    """
    if not data.is_dir():
        raise SystemExit(f"--data {data}: there is no such folder")
    if min(size, batch, rounds) < 1 or min(workers, limit) < 0:
        raise SystemExit(
            "size, batch and rounds must be at least 1, workers and limit at least 0: "
            f"{size}, {batch}, {rounds}, {workers}, {limit}"
        )
    torch.set_num_threads(1)  # else the main process would have threads, and those that read none
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
    said = "".join(f" --{name} {value}" for name, value in chosen.items() if value != usual[name])
    text = [
        "# Reading pictures: ours and torchvision's",
        "",
        f"Pictures a second from files ({read:,} pictures, {high:.0f} x {wide:.0f} pixels at the median) to batches of "
        f"{batch} x 3 x {size} x {size}; medians of {rounds} passes, turn by turn. A ratio above 1 means that ours is "
        "faster.",
        "",
        *table_of(found),
        "",
        *(f"- {way}: {about}, bicubic, one seed a picture in ours." for way, about in WAYS.items()),
        f"- On {cores} cores, torch {version('torch')}, torchvision {version('torchvision')}, "
        f"Pillow {version('pillow')}; by `python benchmarks/reading.py --data FOLDER{said}` at commit "
        f"{git_commit(['reading.py'])}.",
    ]
    replace_file(out, "\n".join(text) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    app()
