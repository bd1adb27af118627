"""Input and output of a fit of the image benchmark: plain values that are passed between processes."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """Arguments of a fit.

    Attributes:
        library: library that trains, a key of `FITS`.
        source: for ndvit, a folder of classes or the name of a built-in set.
        weights: trained weights: a file for ndvit, a folder in the format of the library for the others; or None.
        options: keyword arguments of `ndvit.train`, or of the fit of the library.
        seed: seed of everything random, and of the split.
        size: (height, width) of the input for the other libraries; ndvit chooses it.
        steps, batch: optimizer steps and images per step for the other libraries; ndvit has its own.
        workers: worker processes that read images.
        device: cpu, cuda or mps.
        threads: threads of torch.
        classes: number of classes.
        train, test: files and class indices for the other libraries; ndvit makes the same split.
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
        """Write the arguments as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Work":
        """Read a file that `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"size": tuple(values["size"])})


@dataclass(frozen=True)
class Fitted:
    """Result of a fit.

    Attributes:
        probabilities: one row per test image.
        names: names of the test images, for ndvit; empty for the other libraries, which get a list of files.
        train_seconds, steps, batch, size: training time in seconds, and the values that were used.
        megabytes: peak memory of the process in MiB.
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
        """Read the result of a process."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def peak_megabytes() -> int:
    """Peak memory of this process in MiB; 0 if the system does not report it.

    On Linux, getrusage is not used, because a process starts there with the peak of its parent.
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
