"""Ways to run a model: PyTorch at once, and the fastest exact one as soon as it is found.

Building a graph takes many seconds of Python, which would delay every request: another process does it, and this one
only measures the result. That process is `python -m ndvit.serving.ways PATH FOLDER MASK`.

A graph computes several batches at one time, each in a part of the threads (a stream). One batch in all threads waits
for the slowest of them at every layer; and a thread that reads a request slows one stream down instead of all of them.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ndvit.exporting.comparison import Batch, needs_mask, random_data
from ndvit.exporting.compiling import GRAPHS, measure, write_graph
from ndvit.exporting.formats import ENDINGS, PACKAGES, Format, Run, open_graph, require
from ndvit.exporting.graphs import frozen_copy
from ndvit.exporting.runtimes import GraphOptions, Runtime
from ndvit.inference.batches import pick_device, to_answers
from ndvit.model import Model, load_model
from ndvit.network.committee import transformers
from ndvit.serving.batching import Compute, Way

LOG = logging.getLogger("ndvit.serving")
EQUAL = 1e-5
"""Largest difference of answers between a faster way and the model itself, relative to answers above 1."""
PLAIN = "pytorch"
_ROUNDS, _SECONDS = 5, 4.0  # of measuring
_STREAMS = 4  # at most, as a lone example in a stream has only a part of the threads
_FEWEST = 4  # examples in the smallest batch that is tried
_PATIENCE = 600.0  # seconds for the other process
_ONE_AT_A_TIME = threading.Lock()


def plain_way(model: Model, device: str = "auto") -> Way:
    """The way that needs no preparation."""
    if isinstance(model.network, Runtime):
        return Way(model.network.name, _answering(model, model.network, model.network.device))
    place = pick_device(device)
    return Way(PLAIN, _answering(model, frozen_copy(model).to(place), place))


def optimizable(model: Model, device: str = "auto") -> bool:
    """Whether there may be a faster way than the plain one."""
    return not isinstance(model.network, Runtime) and pick_device(device) == "cpu" and bool(_installed())


def warm(model: Model, way: Way, most: int) -> None:
    """Compute batches of several sizes, because a runtime allocates memory and chooses kernels at the first time."""
    with ThreadPoolExecutor(way.streams) as streams:
        for size in sorted({*(2**i for i in range(most.bit_length())), most}):
            x = random_data(model, size, mask=False).x
            list(streams.map(lambda _, x=x: way.compute(x, None), range(way.streams)))
    if way.alone is not None:
        way.alone(random_data(model, 1, mask=False).x, None)


class Search(threading.Thread):
    """Looks for the fastest way to run a model whose answers are equal, in the background.

    Args:
        model: the model in memory.
        path: where it was loaded from.
        plain: the way that is compared with.
        batch_size: number of examples that the ways are measured at.
        found: receives the fastest way, unless it is the plain one.
    """

    def __init__(self, model: Model, path: str, plain: Way, batch_size: int, found: Callable[[Way], None]) -> None:
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
                self._found(way)
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


def choose(model: Model, plain: Way, folder: Path, mask: bool, batch_size: int) -> Way | None:
    """The fastest of the graphs in a folder with the model's answers; None if PyTorch is faster.

    Complete examples are computed by a graph; those with missing values, where it has no mask, by PyTorch.
    """
    streams = max(1, min(_STREAMS, torch.get_num_threads()))
    data, batch = random_data(model, 4, mask), random_data(model, batch_size, mask)
    expected = plain.compute(data.x, data.mask)

    def opened(format: Format, streams: int) -> Compute:
        run = open_graph(format, folder / f"model{ENDINGS[format]}", streams=streams)
        return _graph_way(model, format, run, mask, plain)

    ways = {PLAIN: plain.compute}
    found: dict[str, Compute] = {}
    with ThreadPoolExecutor(streams) as pool:
        for name, format in GRAPHS.items():
            if (folder / f"model{ENDINGS[format]}").is_file():
                compute = opened(format, streams)
                if _difference(expected, compute(data.x, data.mask)) <= EQUAL:
                    found[name], ways[name] = compute, _in_streams(compute, streams, pool)
        times = measure(ways, (batch.x, batch.mask), _ROUNDS, _SECONDS) if found else {PLAIN: 0.0}
        best = min(times, key=times.__getitem__)
        if best == PLAIN:
            return None
        rows = _best_size(found[best], streams, pool, (batch.x, batch.mask))
    way = Way(best, found[best], streams, rows=rows)
    if streams > 1:
        one = batch.x[:1], None if batch.mask is None else batch.mask[:1]
        lone = {"stream": way.compute, "alone": opened(GRAPHS[best], 1)}
        times = measure(lone, one, _ROUNDS, _SECONDS)
        if times["alone"] < times["stream"]:
            way = replace(way, alone=lone["alone"])
    warm(model, way, rows)
    return way


def _in_streams(compute: Compute, streams: int, pool: ThreadPoolExecutor, rows: int = 0) -> Compute:
    """A function that computes parts of a batch, of `rows` examples or one for each stream, at one time."""

    def spread(x: Tensor, mask: Tensor | None) -> Tensor:
        size = rows or -(-len(x) // streams)
        masks = [None] * len(x.split(size)) if mask is None else mask.split(size)
        return torch.cat(list(pool.map(compute, x.split(size), masks)))

    return spread


def _best_size(compute: Compute, streams: int, pool: ThreadPoolExecutor, batch: Batch) -> int:
    """The number of examples with which the streams compute most: large batches do not fit into a cache."""
    most = len(batch[0])
    x, mask = (None if part is None else torch.cat([part] * streams) for part in batch)
    assert x is not None
    sizes = sorted({most, *(2**i for i in range(most.bit_length()) if _FEWEST <= 2**i < most)})
    ways = {str(size): _in_streams(compute, streams, pool, size) for size in sizes}
    times = measure(ways, (x, mask), _ROUNDS, _SECONDS)
    return int(min(times, key=times.__getitem__))


def _graph_way(model: Model, name: str, run: Run, mask: bool, plain: Way) -> Compute:
    config = model.config if transformers(model.network) else None
    fast = _answering(model, Runtime(name, run, model.input_shape, config, GraphOptions(mask=mask)), "cpu")

    def either(x: Tensor, mask_of_x: Tensor | None) -> Tensor:
        if mask:
            return fast(x, mask_of_x)
        return fast(x, None) if mask_of_x is None or bool(mask_of_x.all()) else plain.compute(x, mask_of_x)

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
