"""Micro-batching: examples of several requests are computed together, in threads of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ndvit.serving.errors import Busy
from ndvit.serving.metrics import Metrics

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""From x (B, C, *size) and mask (B, *size) or None to answers (B, outputs)."""
_MEMORY = 0.8  # weight of earlier batches in the mean time of an example


@dataclass(frozen=True)
class Way:
    """How a network is run.

    Attributes:
        name: what computes.
        compute: the network; several threads call it at one time, `streams` at most.
        streams: batches that are computed at one time.
        rows: largest batch of one call that is worth it; 0 for any.
        alone: computes fewer examples than there are streams sooner, while nothing else is computed; None if nothing
            does.
    """

    name: str
    compute: Compute
    streams: int = 1
    rows: int = 0
    alone: Compute | None = None


@dataclass(eq=False)
class _Job:
    """Examples of one request: those from `taken` on still wait, and `answers` are those that were computed."""

    x: Tensor
    mask: Tensor | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Tensor]
    taken: int = 0
    gathered: bool = False  # others have been waited for
    answers: dict[int, Tensor] = field(default_factory=dict)  # by the place of the first of them

    def add(self, start: int, part: Tensor) -> Tensor | None:
        """Add answers, and return those of all examples as soon as they are there."""
        self.answers[start] = part
        if sum(map(len, self.answers.values())) < len(self.x):
            return None
        return torch.cat([self.answers[start] for start in sorted(self.answers)])

    def finish(self, result: Tensor | Exception) -> None:
        """Deliver the result in the event loop, where the request may have ended."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


def _deliver(results: list[tuple[_Job, Tensor | Exception]]) -> None:
    """Deliver results of jobs to their event loops, each of which is woken once."""
    for loop in {job.loop for job, _ in results}:

        def deliver(loop: asyncio.AbstractEventLoop = loop) -> None:
            for job, result in results:
                if job.loop is loop:
                    job.finish(result)

        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(deliver)


class Batcher:
    """Computes examples of concurrent requests in batches of at most `most`, several of them at one time.

    Each stream of a way has a thread. One that is free takes its share of the examples that wait: all of them divided
    by the number of free streams. Others wait and make up the next batches. A free stream starts at once unless other
    requests are being read: then it waits for them, for at most `wait` seconds. A lone client therefore never waits.

    Args:
        way: the network, and how it is run.
        most: largest batch.
        wait: longest wait for other requests, in seconds.
        limit: examples that may wait.
        name: name of the model, for metrics.
        metrics: counters of the service.
    """

    def __init__(
        self, way: Way, *, most: int, wait: float, limit: int, name: str, metrics: Metrics | None = None
    ) -> None:
        self._way, self._most, self._wait, self._limit = way, most, wait, limit
        self.name, self._metrics = name, metrics
        self._jobs: deque[_Job] = deque()
        lock = threading.RLock()
        self._work = threading.Condition(lock)  # for free streams: examples have come
        self._more = threading.Condition(lock)  # for the one that waits for the rest of its batch
        self._waiting = self._reading = self._computing = 0
        self._gathering = self._closed = False
        self._pace = 0.0  # seconds for an example
        self._threads: list[threading.Thread] = []
        self.use(way)

    @property
    def way(self) -> Way:
        """How the network is run."""
        return self._way

    def use(self, way: Way) -> None:
        """Run the network in a way with the same answers, from the next batches on."""
        with self._work:
            self._way = way
            while len(self._threads) < way.streams and not self._closed:
                name = f"ndvit-{self.name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    @contextmanager
    def expected(self) -> Iterator[Callable[[], None]]:
        """Count a request whose examples are being read, until its end or until the function is called."""
        arrived = False

        def arrive() -> None:
            nonlocal arrived
            with self._work:
                self._reading -= not arrived
                arrived = True
                self._more.notify()

        with self._work:
            self._reading += 1
        try:
            yield arrive
        finally:
            arrive()

    def seconds_to_wait(self) -> int:
        """Whole seconds until the waiting examples are computed, at least 1, for Retry-After."""
        return max(1, min(60, round(self._waiting * self._pace / self._way.streams)))

    def submit(self, x: Tensor, mask: Tensor | None) -> asyncio.Future[Tensor]:
        """The future answers (n, outputs) of n examples, for the running event loop.

        Raises:
            ValueError: for no examples.
            Busy: if too many examples wait already.
            RuntimeError: if the batcher was closed.
        """
        if not len(x):
            raise ValueError("there is no example")
        loop = asyncio.get_running_loop()
        job = _Job(x, mask, loop, loop.create_future())
        with self._work:
            if self._closed:
                raise RuntimeError("the model was closed")
            if self._jobs and self._waiting + len(x) > self._limit:
                raise Busy(f"{self._waiting:,} examples wait for the network: try again later", self.seconds_to_wait())
            self._jobs.append(job)
            self._count(len(x))
            (self._more if self._gathering else self._work).notify()
        return job.future

    def close(self) -> None:
        """Compute what waits, then end the threads."""
        with self._work:
            self._closed = True
            self._work.notify_all()
            self._more.notify_all()
        for thread in self._threads:
            thread.join()

    def _count(self, change: int) -> None:
        self._waiting += change
        if self._metrics is not None:
            self._metrics.waiting.labels(self.name).set(self._waiting)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            compute, parts = taken
            if not parts:
                continue
            try:
                started = time.perf_counter()
                answers = compute(*_joined(parts))
                answered = answers.split([rows.stop - rows.start for _, rows in parts])
                seconds = time.perf_counter() - started
            except Exception as error:  # the requests of this batch fail, the thread lives on
                self._drop({id(job): job for job, _ in parts}, error)
                continue
            if self._metrics is not None:
                self._metrics.batch_examples.labels(self.name).observe(len(answers))
                self._metrics.batch_seconds.labels(self.name).observe(seconds)
            results: list[tuple[_Job, Tensor | Exception]] = []
            with self._work:
                self._computing -= 1
                self._pace = _MEMORY * (self._pace or seconds / len(answers)) + (1 - _MEMORY) * seconds / len(answers)
                for (job, rows), part in zip(parts, answered):
                    if (whole := job.add(rows.start, part)) is not None:
                        results.append((job, whole))
            _deliver(results)

    def _drop(self, jobs: dict[int, _Job], error: Exception) -> None:
        """End jobs by an error, with the examples of theirs that still wait."""
        with self._work:
            self._computing -= 1
            for job in jobs.values():
                if job in self._jobs:
                    self._jobs.remove(job)
                    self._count(job.taken - len(job.x))
        _deliver([(job, error) for job in jobs.values()])

    def _take(self) -> tuple[Compute, list[tuple[_Job, slice]]] | None:
        """Wait for examples, and take those of the next batch, with what computes it; None at the end."""
        with self._work:
            while not self._jobs or self._gathering:
                if self._closed and not self._jobs:
                    return None
                self._work.wait()
            if not self._jobs[0].gathered:
                self._gather()
            way = self._way
            free = max(1, way.streams - self._computing)
            alone = way.alone is not None and not self._computing and self._waiting < way.streams
            share = self._waiting if alone else -(-self._waiting // free)
            parts = self._first(min(share, self._most, way.rows or self._most))
            self._computing += bool(parts)
            if self._closed:
                self._work.notify_all()
            elif self._jobs:
                self._work.notify()
            return (way.alone if alone and way.alone is not None else way.compute), parts

    def _gather(self) -> None:
        """Wait for requests that are being read, but not long."""
        last = time.monotonic() + self._wait
        enough = min(self._most, self._way.rows or self._most)
        self._gathering = True
        while self._waiting < enough and self._reading and not self._closed:
            if (left := last - time.monotonic()) <= 0:
                break
            self._more.wait(left)
        self._gathering = False
        for job in self._jobs:
            job.gathered = True

    def _first(self, room: int) -> list[tuple[_Job, slice]]:
        """Take the first examples that wait; none if the requests of all jobs had ended."""
        parts = list[tuple[_Job, slice]]()
        while self._jobs and room:
            job = self._jobs[0]
            if job.future.cancelled():  # the client has gone, or the time is over
                self._count(job.taken - len(job.x))
                self._jobs.popleft()
                continue
            rows = slice(job.taken, min(len(job.x), job.taken + room))
            parts.append((job, rows))
            room -= rows.stop - rows.start
            self._count(rows.start - rows.stop)
            job.taken = rows.stop
            if job.taken == len(job.x):
                self._jobs.popleft()
        return parts


def _joined(parts: list[tuple[_Job, slice]]) -> tuple[Tensor, Tensor | None]:
    """The examples of several jobs as one batch. Those without a mask are observed completely."""
    x = torch.cat([job.x[rows] for job, rows in parts])
    if all(job.mask is None for job, _ in parts):
        return x, None
    masks = [
        torch.ones(rows.stop - rows.start, *x.shape[2:], dtype=torch.bool) if job.mask is None else job.mask[rows]
        for job, rows in parts
    ]
    return x, torch.cat(masks)
