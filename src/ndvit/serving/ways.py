"""Ways to run a model: PyTorch at once, and the fastest exact one as soon as it is found.

Building a graph takes many seconds of Python, which would delay every request: another process does it, and this one
only measures the result. That process is `python -m ndvit.serving.ways PATH FOLDER MASK`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ndvit.exporting.comparison import needs_mask, random_data
from ndvit.exporting.compiling import GRAPHS, measure, write_graph
from ndvit.exporting.formats import ENDINGS, PACKAGES, open_graph, require
from ndvit.exporting.graphs import frozen_copy
from ndvit.exporting.runtimes import GraphOptions, Runtime
from ndvit.inference.batches import pick_device, to_answers
from ndvit.model import Model, load_model
from ndvit.network.committee import transformers
from ndvit.serving.batching import Compute

LOG = logging.getLogger("ndvit.serving")
EQUAL = 1e-5
"""Largest difference of answers between a faster way and the model itself, relative to answers above 1."""
PLAIN = "pytorch"
_ROUNDS, _SECONDS = 5, 4.0  # of measuring
_PATIENCE = 600.0  # seconds for the other process
_ONE_AT_A_TIME = threading.Lock()


def plain_way(model: Model, device: str = "auto") -> tuple[Compute, str]:
    """The function from inputs to answers that needs no preparation, and its name."""
    if isinstance(model.network, Runtime):
        return _answering(model, model.network, model.network.device), model.network.name
    place = pick_device(device)
    return _answering(model, frozen_copy(model).to(place), place), PLAIN


def optimizable(model: Model, device: str = "auto") -> bool:
    """Whether there may be a faster way than the plain one."""
    return not isinstance(model.network, Runtime) and pick_device(device) == "cpu" and bool(_installed())


def warm(model: Model, compute: Compute, most: int) -> None:
    """Compute batches of several sizes, because a runtime allocates memory and chooses kernels at the first time."""
    for size in sorted({*(2**i for i in range(most.bit_length())), most}):
        compute(random_data(model, size, mask=False).x, None)


class Search(threading.Thread):
    """Looks for the fastest way to run a model whose answers are equal, in the background.

    Args:
        model: the model in memory.
        path: where it was loaded from.
        plain: the way that is compared with.
        batch_size: number of examples that the ways are measured at.
        found: receives the fastest way and its name, unless it is the plain one.
    """

    def __init__(
        self, model: Model, path: str, plain: Compute, batch_size: int, found: Callable[[Compute, str], None]
    ) -> None:
        super().__init__(name="ndvit-search", daemon=True)
        self._model, self._path, self._plain, self._batch_size, self._found = model, path, plain, batch_size, found
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> None:
        """Build the graphs in another process, and choose."""
        mask = needs_mask(self._model)
        try:
            with _ONE_AT_A_TIME, TemporaryDirectory(prefix="ndvit-", ignore_cleanup_errors=True) as folder:
                self._build(folder, mask)
                way = None if self._stopped else choose(self._model, self._plain, Path(folder), mask, self._batch_size)
            if way is not None and not self._stopped:
                self._found(*way)
        except Exception as error:  # the plain way remains
            LOG.warning("no faster way", extra={"facts": {"reason": str(error)[:300]}})

    def stop(self) -> None:
        """End the search."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _build(self, folder: str, mask: bool) -> None:
        if self._stopped:
            return
        command = [sys.executable, "-m", "ndvit.serving.ways", self._path, folder, str(int(mask))]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as self._process:
            self._process.wait(_PATIENCE)


def choose(model: Model, plain: Compute, folder: Path, mask: bool, batch_size: int) -> tuple[Compute, str] | None:
    """The fastest of the graphs in a folder with the model's answers; None if PyTorch is faster.

    Complete examples are computed by a graph; those with missing values, where it has no mask, by PyTorch.
    """
    options = GraphOptions(mask=mask)
    config = model.config if transformers(model.network) else None
    data, batch = random_data(model, 4, mask), random_data(model, batch_size, mask)
    expected = plain(data.x, data.mask)
    ways = {PLAIN: plain}
    for name, format in GRAPHS.items():
        path = folder / f"model{ENDINGS[format]}"
        if not path.is_file():
            continue
        run = open_graph(format, path)
        way = _graph_way(model, Runtime(name, run, model.input_shape, config, options), plain)
        if _difference(expected, way(data.x, data.mask)) <= EQUAL:
            ways[name] = way
    if len(ways) == 1:
        return None
    times = measure(ways, (batch.x, batch.mask), _ROUNDS, _SECONDS)
    best = min(times, key=times.__getitem__)
    if best == PLAIN:
        return None
    warm(model, ways[best], batch_size)
    return ways[best], best


def _graph_way(model: Model, runtime: Runtime, plain: Compute) -> Compute:
    fast = _answering(model, runtime, "cpu")

    def either(x: Tensor, mask: Tensor | None) -> Tensor:
        if runtime.options.mask:
            return fast(x, mask)
        return fast(x, None) if mask is None or bool(mask.all()) else plain(x, mask)

    return either


def _answering(model: Model, network: Callable[[Tensor, Tensor | None], Tensor], place: str) -> Compute:
    def compute(x: Tensor, mask: Tensor | None) -> Tensor:
        with torch.inference_mode():
            outputs = network(x.to(place), None if mask is None else mask.to(place)).float().cpu()
            return to_answers(model, outputs)

    return compute


def _difference(expected: Tensor, found: Tensor) -> float:
    gap = ((expected - found).abs() / expected.abs().clamp(min=1.0)).max()
    return float(gap) if gap == gap else float("inf")


def _installed() -> list[str]:
    names = []
    for name, format in GRAPHS.items():
        try:
            require(format, *PACKAGES[format])
        except ValueError:
            continue
        names.append(name)
    return names


def _write(path: str, folder: Path, mask: bool) -> None:
    """Write the graphs that can be written, each under another name until it is whole."""
    model = load_model(path)
    for format in GRAPHS.values():
        target = folder / f"model{ENDINGS[format]}"
        inner = folder / f"{format}-unfinished"
        inner.mkdir()
        try:
            write_graph(model, GraphOptions(mask=mask), format, inner / target.name)
        except Exception:  # every exporter has its own exceptions
            continue
        for made in sorted(inner.iterdir(), key=lambda made: made.name == target.name):
            made.rename(folder / made.name)


if __name__ == "__main__":
    import os

    os.nice(10)
    _write(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1")
