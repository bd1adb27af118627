"""Micro-batching: examples of several requests are computed together, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ndvit.serving.errors import Busy
from ndvit.serving.metrics import Metrics

Compute = Callable[[Tensor, Tensor | None], Tensor]
"""From x (B, C, *size) and mask (B, *size) or None to answers (B, outputs)."""
_MEMORY = 0.8  # weight of earlier batches in the mean time of an example


@dataclass(eq=False)
class _Job:
    """Examples of one request: those from `taken` on still wait, and `answers` are those of the others."""

    x: Tensor
    mask: Tensor | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Tensor]
    taken: int = 0
    answers: list[Tensor] = field(default_factory=list)

    def finish(self, result: Tensor | Exception) -> None:
        """Deliver the result to the event loop, where the request may have ended."""

        def deliver() -> None:
            if self.future.done():
                return
            if isinstance(result, Exception):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        self.loop.call_soon_threadsafe(deliver)


class Batcher:
    """Computes examples of concurrent requests in batches of at most `most`.

    While a batch is computed, other examples wait and make up the next one. An idle network starts at once unless other
    requests are being read: then it waits for them, for at most `wait` seconds. A lone client therefore never waits.

    Args:
        compute: the network; it is called from one thread only.
        most: largest batch.
        wait: longest wait for other requests, in seconds.
        limit: examples that may wait.
        name: name of the model, for metrics.
        metrics: counters of the service.

    Attributes:
        compute: may be replaced at any time by one with the same answers.
    """

    def __init__(
        self, compute: Compute, *, most: int, wait: float, limit: int, name: str, metrics: Metrics | None = None
    ) -> None:
        self.compute, self._most, self._wait, self._limit = compute, most, wait, limit
        self.name, self._metrics = name, metrics
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._waiting = self._reading = 0
        self._closed = False
        self._pace = 0.0  # seconds for an example
        self._thread = threading.Thread(target=self._run, name=f"ndvit-{name}", daemon=True)
        self._thread.start()

    @contextmanager
    def expected(self) -> Iterator[Callable[[], None]]:
        """Count a request whose examples are being read, until its end or until the function is called."""
        arrived = False

        def arrive() -> None:
            nonlocal arrived
            with self._changed:
                self._reading -= not arrived
                arrived = True
                self._changed.notify()

        with self._changed:
            self._reading += 1
        try:
            yield arrive
        finally:
            arrive()

    def seconds_to_wait(self) -> int:
        """Whole seconds until the waiting examples are computed, at least 1, for Retry-After."""
        return max(1, min(60, round(self._waiting * self._pace)))

    def submit(self, x: Tensor, mask: Tensor | None) -> asyncio.Future[Tensor]:
        """The future answers (n, outputs) of n examples, for the running event loop.

        Raises:
            Busy: if too many examples wait already.
            RuntimeError: if the batcher was closed.
        """
        loop = asyncio.get_running_loop()
        job = _Job(x, mask, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise RuntimeError("the model was closed")
            if self._jobs and self._waiting + len(x) > self._limit:
                raise Busy(f"{self._waiting:,} examples wait for the network: try again later", self.seconds_to_wait())
            self._jobs.append(job)
            self._count(len(x))
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Compute what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _count(self, change: int) -> None:
        self._waiting += change
        if self._metrics is not None:
            self._metrics.waiting.labels(self.name).set(self._waiting)

    def _run(self) -> None:
        while (parts := self._take()) is not None:
            if not parts:
                continue
            try:
                started = time.perf_counter()
                answers = self.compute(*_joined(parts))
                seconds = time.perf_counter() - started
            except Exception as error:  # the requests of this batch fail, the thread lives on
                self._drop({id(job): job for job, _ in parts}, error)
                continue
            self._pace = _MEMORY * (self._pace or seconds / len(answers)) + (1 - _MEMORY) * seconds / len(answers)
            if self._metrics is not None:
                self._metrics.batch_examples.labels(self.name).observe(len(answers))
                self._metrics.batch_seconds.labels(self.name).observe(seconds)
            for (job, rows), part in zip(parts, answers.split([rows.stop - rows.start for _, rows in parts])):
                job.answers.append(part)
                if rows.stop == len(job.x):
                    job.finish(torch.cat(job.answers))

    def _drop(self, jobs: dict[int, _Job], error: Exception) -> None:
        """End jobs by an error, with the examples of theirs that still wait."""
        with self._changed:
            for job in jobs.values():
                if job in self._jobs:
                    self._jobs.remove(job)
                    self._count(job.taken - len(job.x))
        for job in jobs.values():
            job.finish(error)

    def _take(self) -> list[tuple[_Job, slice]] | None:
        """Wait for examples, and take those of the next batch; None at the end."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            last = time.monotonic() + self._wait
            while self._waiting < self._most and self._reading and not self._closed:
                if (left := last - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            parts, room = list[tuple[_Job, slice]](), self._most
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
            return parts  # empty if the requests of all jobs had ended


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
