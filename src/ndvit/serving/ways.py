"""Ways to run a model: PyTorch at once, and the fastest exact one as soon as it is found.

Building a graph takes many seconds of Python, which would delay every request: another process does it, and this one
only measures the result. That process is `python -m ndvit.serving.ways PATH FOLDER MASK`.

A graph computes several batches at one time, each in a part of the threads (a stream). One batch in all threads waits
for the slowest of them at every layer; and a thread that reads a request slows one stream down instead of all of them.
"""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import Tensor

from ndvit.exporting.comparison import Batch, needs_mask, random_data
from ndvit.exporting.compiling import GRAPHS, write_graph
from ndvit.exporting.formats import ENDINGS, PACKAGES, Run, open_graph, require
from ndvit.exporting.graphs import frozen_copy
from ndvit.exporting.runtimes import GraphOptions, Runtime
from ndvit.inference.batches import pick_device, to_answers
from ndvit.model import Model, load_model
from ndvit.network.committee import transformers
from ndvit.serving.batching import Compute, Way

K = TypeVar("K")
LOG = logging.getLogger("ndvit.serving")
EQUAL = 1e-5
"""Largest difference of answers between a faster way and the model itself, relative to answers above 1."""
PLAIN = "pytorch"
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 7, 3, 8.0  # of measuring
_SHORT = 0.1  # seconds of a call, below which the following ones are measured
_MOST_CALLS = 20
_ABOUT = 1.07  # times as much work is about as much: measurements hardly tell it apart
_STREAMS = 4  # at most, as a lone example in a stream has only a part of the threads
_FEWEST, _MOST = 4, 256  # examples in the smallest and largest batch that is tried
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
    streams, batch_size = max(1, min(_STREAMS, torch.get_num_threads())), min(batch_size, _MOST)
    data, batch = random_data(model, 4, mask), random_data(model, streams * batch_size, mask)
    expected = plain.compute(data.x, data.mask)

    def opened(name: str, streams: int) -> Compute:
        run = open_graph(GRAPHS[name], folder / f"model{ENDINGS[GRAPHS[name]]}", streams=streams)
        return _graph_way(model, name, run, mask, plain)

    there = [name for name, format in GRAPHS.items() if (folder / f"model{ENDINGS[format]}").is_file()]
    graphs = {name: opened(name, streams) for name in there}
    equal = {n: run for n, run in graphs.items() if _difference(expected, run(data.x, data.mask)) <= EQUAL}
    if not equal:
        return None
    sizes = sorted({batch_size, *(2**i for i in range(batch_size.bit_length()) if _FEWEST <= 2**i < batch_size)})
    with ThreadPoolExecutor(streams) as pool:
        runs = {
            (name, size): _in_streams(run, pool, _first(batch.x, batch.mask, streams * size), size)
            for name, run in equal.items()
            for size in sizes
        }
        runs[PLAIN, batch_size] = partial(plain.compute, *_first(batch.x, batch.mask, batch_size))
        work = _costs(runs, time.process_time)
    least = min(work, key=work.__getitem__)
    if least[0] == PLAIN:
        return None
    enough = {name: _ABOUT * min(work[name, size] for size in sizes) for name in equal}
    rows = {name: max(size for size in sizes if work[name, size] <= enough[name]) for name in equal}
    # of those that need about as little work, the one that answers a lone example soonest
    one = _first(batch.x, batch.mask, 1)
    lone = {(n, streams): run for n, run in equal.items() if enough[n] <= _ABOUT**2 * work[least]}
    lone |= {(name, 1): opened(name, 1) for name, _ in lone if streams > 1}
    waits = _costs({key: partial(run, *one) for key, run in lone.items()}, time.perf_counter)
    name, threads = min(waits, key=waits.__getitem__)
    way = Way(name, equal[name], streams, rows[name], lone[name, 1] if threads < streams else None)
    warm(model, way, way.rows)
    return way


def _first(x: Tensor, mask: Tensor | None, count: int) -> Batch:
    return x[:count], None if mask is None else mask[:count]


def _in_streams(compute: Compute, pool: ThreadPoolExecutor, batch: Batch, size: int) -> Callable[[], Tensor]:
    """A function that computes a batch in parts of `size` examples, several of them at one time."""
    x, mask = batch
    parts = x.split(size)
    masks = [None] * len(parts) if mask is None else mask.split(size)
    return lambda: torch.cat(list(pool.map(compute, parts, masks)))


def _costs(runs: Mapping[K, Callable[[], Tensor]], clock: Callable[[], float]) -> dict[K, float]:
    """The median time of each function for an example, where all take turns.

    By `time.process_time` that is the work of all processors, which limits a service that is never idle; by
    `time.perf_counter`, how long one waits.
    """
    spent: dict[K, list[float]] = {key: [] for key in runs}
    start = time.perf_counter()
    for count in range(_ROUNDS):
        if count >= _LEAST_ROUNDS and time.perf_counter() - start > _SECONDS:
            break
        for key, run in runs.items():
            before = clock()
            rows = len(run())
            seconds = clock() - before
            if seconds < _SHORT:  # waking the threads would be a large part of the first one
                calls = range(min(_MOST_CALLS, max(3, int(_SHORT / max(seconds, 1e-9)))))
                before = clock()
                rows = sum(len(run()) for _ in calls)
                seconds = clock() - before
            spent[key].append(seconds / rows)
    return {key: statistics.median(found) for key, found in spent.items()}


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
