"""The models of a service: each is loaded once, run in the fastest exact way, and replaced when its run is."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ndvit.config.reading import file_options
from ndvit.config.serving import ServingOptions
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.exporting.runtimes import Runtime
from ndvit.inference.predict import check_ready
from ndvit.model import Model, load_model
from ndvit.serving.batching import Batcher, Way
from ndvit.serving.errors import NotReady
from ndvit.serving.metrics import Metrics
from ndvit.serving.ways import Search, optimizable, plain_way, warm
from ndvit.tasks.base import Task
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.reading.zoo import find_weights

LOG = logging.getLogger("ndvit.serving")
_FEW_VALUES = 2**13
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Mark(NamedTuple):
    """What changes when another model is written to a path."""

    modified: int
    size: int
    number: int


@dataclass(eq=False)
class Loaded:
    """A model in memory that answers. A newer version is another object, so that no request sees two.

    Attributes:
        model: the model, whose network is used for explanations only.
        task: meaning of the answers.
        version: 1 for the first model of a run, and one more after each reload.
        mark: state of the file that it was read from.
        batcher: computes answers.
        quick: whether a few numbers are read in about a millisecond.
        users: requests that use it now.
        search: looks for a faster way in the background.
    """

    model: Model
    task: Task
    version: int
    mark: Mark | None
    batcher: Batcher
    quick: bool = False
    users: int = 0
    search: Search | None = None

    @property
    def way(self) -> str:
        """What runs the network."""
        return self.batcher.way.name

    def use_way(self, way: Way) -> None:
        """Run the network in another way, from the next batch on."""
        self.batcher.use(way)
        _settle()
        facts = {"model": self.batcher.name, "way": way.name, "streams": way.streams, "batch": way.rows}
        LOG.info("model runs faster", extra={"facts": facts})

    def close(self) -> None:
        """Compute what waits, and end the threads."""
        if self.search is not None:
            self.search.stop()
        self.batcher.close()
        self.search = None  # which refers to this object, and a frozen circle would stay in memory

    @property
    def explains(self) -> bool:
        """Whether answers can be explained: an exported network has no insides."""
        return not isinstance(self.model.network, Runtime)


class ServedModel:
    """One model of a service, which is loaded at its first request.

    Args:
        name: name in addresses.
        path: a run folder, or anything that `load_model` reads.
        options: of the service.
        metrics: of the service.
        device: where the network computes.
    """

    def __init__(self, name: str, path: str, options: ServingOptions, metrics: Metrics, device: str = "auto") -> None:
        self.name, self.path, self.options, self.metrics, self.device = name, path, options, metrics, device
        self.fault = ""
        self.loaded: Loaded | None = None
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"ndvit-load-{name}")
        self._failed: Mark | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def state(self) -> str:
        """ready, loading, failed, or unloaded."""
        if self.loaded is not None:
            return "ready"
        return "loading" if self._lock.locked() else "failed" if self.fault else "unloaded"

    def check_exists(self) -> None:
        """Raise the error of a path without a model, or of unknown weights, before the service starts.

        Raises:
            FileNotFoundError: if there is neither a path nor published weights of this name.
        """
        path = Path(self.path).expanduser()
        if path.is_dir():
            if self.mark() is None and not (path / "config.json").is_file():
                raise FileNotFoundError(f"{self.path}: no {MODEL_FILE} in this folder; train it first")
        elif self.mark() is None and not self.path.startswith("hf:") and find_weights(self.path) is None:
            raise FileNotFoundError(f"{self.path}: no such run, file or published weights")

    def file(self) -> Path | None:
        """The file of the weights; None for published weights."""
        path = Path(self.path).expanduser()
        return path / MODEL_FILE if path.is_dir() else path if path.is_file() else None

    def mark(self) -> Mark | None:
        """State of the file of the weights; None if there is none at the moment."""
        file = self.file()
        with suppress(OSError):
            if file is not None:
                found = os.stat(file)
                return Mark(found.st_mtime_ns, found.st_size, found.st_ino)
        return None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Loaded]:
        """The model for one request, loaded if it is not; it stays in memory until the request ends.

        Raises:
            NotReady: if it cannot be loaded.
        """
        if self.loaded is None:
            await asyncio.shield(self._start(self._load_first()))
        loaded = self.loaded
        if loaded is None:
            raise NotReady(f"the model {self.name} could not be loaded; the log of the service says why", 30)
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            if loaded is not self.loaded and not loaded.users:
                self._start(self._retire(loaded))

    async def reload(self) -> bool:
        """Load the model again if its file has changed, and return whether it was.

        Requests use the old model until the new one is warm. A file that cannot be read is tried again when it changes.
        """
        mark = self.mark()
        if self.loaded is None or mark is None or mark in (self.loaded.mark, self._failed):
            return False
        async with self._lock:
            old = self.loaded
            if not await self._load(old.version + 1):
                self._failed = mark
                return False
            if not old.users:
                self._start(self._retire(old))
            return True

    async def close(self) -> None:
        """Compute what waits, and end the threads."""
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            await self._retire(loaded)
        self._thread.shutdown(wait=False)

    async def _load_first(self) -> None:
        async with self._lock:
            mark = self.mark()
            known = self.loaded is not None or (self.fault and mark is not None and mark == self._failed)
            if not known and not await self._load(1):
                self._failed = mark

    async def _load(self, version: int) -> bool:
        """Load the model and take it into use; return whether that worked."""
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(self._thread, self._read, version)
        except Exception as error:  # files and runtimes raise any error; the service goes on with what it has
            self.fault = str(error) or type(error).__name__
            self.metrics.loads.labels(self.name, "failed").inc()
            LOG.error("model not loaded", extra={"facts": {"model": self.name, "reason": self.fault}})
            return False
        self.loaded, self.fault, self._failed = loaded, "", None
        self.metrics.loads.labels(self.name, "loaded").inc()
        LOG.info("model loaded", extra={"facts": {"model": self.name, "version": loaded.version, "way": loaded.way}})
        return True

    async def _retire(self, loaded: Loaded) -> None:
        await asyncio.get_running_loop().run_in_executor(None, loaded.close)

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._tasks.discard)
        return task

    def _read(self, version: int) -> Loaded:
        """Load, prepare and warm up the model."""
        mark = self.mark()
        model = load_model(self.path)
        task = check_ready(model, 1, "cpu", _silent)
        if model.preprocess is None:
            raise ValueError("the model has no preprocessing")
        model = replace(model, task=task)
        way = plain_way(model, self.device)
        warm(model, way, self.options.batch_size)
        batcher = Batcher(
            way,
            most=self.options.batch_size,
            wait=self.options.max_wait / 1000,
            limit=self.options.queue,
            name=self.name,
            metrics=self.metrics,
        )
        loaded = Loaded(model, task, version, mark, batcher, _quick(model))
        _settle(renewed=version > 1)
        if self.options.optimize and optimizable(model, self.device):
            loaded.search = Search(model, self.path, way, self.options.batch_size, loaded.use_way)
            loaded.search.start()
        return loaded


def _quick(model: Model) -> bool:
    """Whether a few arrays are read in about a millisecond: they are not cut, and the network reads few values."""
    preprocess = model.preprocess
    few = isinstance(preprocess, SignalPreprocess) and preprocess.channels * math.prod(preprocess.size) <= _FEW_VALUES
    return few and file_options(model.provenance, {}).window is None


def _settle(*, renewed: bool = False) -> None:
    """Leave what exists now out of later garbage collections.

    Libraries and models make up a million objects, and to look through all of them takes a tenth of a second, in which
    no request is answered. With `renewed`, what was left out earlier may be garbage now, and is collected first.
    """
    if renewed:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


def named_runs(runs: Sequence[str]) -> dict[str, str]:
    """Names of models and their paths, from arguments PATH or NAME=PATH.

    Raises:
        ValueError: for a name that cannot be part of an address, or two equal ones.
    """
    found: dict[str, str] = {}
    for run in runs:
        name, equals, path = run.partition("=")
        if not equals or "/" in name:
            path = run
            name = Path(run).name if Path(run).is_dir() else Path(run).stem
            name = Path(run).resolve().parent.name if name == Path(MODEL_FILE).stem else name
            name = name or Path(run).resolve().name
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a model: use letters, digits, _, . and -, as in mine={path}")
        if name in found:
            raise ValueError(f"two models are called {name}: name them, as in {name}-2={path}")
        found[name] = path
    return found


def _silent(line: str) -> None:
    """Messages of loading are facts of the model, which `ndvit info` prints."""
