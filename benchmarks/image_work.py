"""What a fit of the bench of images is told, and what comes out: plain values, which travel between processes."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """What is to be fitted.

    Attributes:
        library: who trains, a name in `FITS`.
        source: a folder of classes or a built-in name, for ours.
        weights: trained weights: for ours a file, for the others a folder that their loaders take; or None.
        options: keyword arguments: of `ndvit.train`, or of the library's fit below.
        seed: of everything random, and of the split.
        size: (height, width) of what the network of others sees; ours chooses by itself.
        steps, batch: optimiser steps and pictures in each, for others; ours has its own, or those in the options.
        workers: processes that read pictures.
        device: cpu, cuda or mps.
        threads: of torch.
        classes: how many there are.
        train, test: files and the numbers of their classes, for others; ours makes the same split.
    """

    library: str
    source: str
    weights: str | None
    options: dict[str, Any]
    seed: int
    size: tuple[int, ...]
    steps: int
    batch: int
    workers: int
    device: str
    threads: int
    classes: int
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Work":
        """What `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"size": tuple(values["size"])})


@dataclass(frozen=True)
class Fitted:
    """What came out.

    Attributes:
        probabilities: a row for each test picture.
        names: what ours calls the test pictures; empty for others, who were given them.
        train_seconds, steps, batch, size: as they came to be.
        megabytes: the most memory that the process had at a time.
    """

    probabilities: list[list[float]]
    names: list[str]
    train_seconds: float
    steps: int
    batch: int
    size: tuple[int, ...]
    megabytes: int = 0

    @classmethod
    def read(cls, path: Path) -> "Fitted":
        """What the process wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def peak_megabytes() -> int:
    """The most memory that this process has had at a time; 0 where the system does not tell.

    On Linux not by getrusage: a process begins there with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
