"""Batches of examples: preprocessing, a shuffled stream that can start at any batch, and loaders."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ndvit.data.examples import Examples, Raw
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.sources.streams import LANES, shuffled

_MOST_BYTES = 2**30  # of preprocessed examples in memory
_MOST_KEPT = 2**28  # of preprocessed files
_FEW = 64  # files that are read without worker processes


class Batch(NamedTuple):
    """Preprocessed examples: x (B, C, *size), mask (B, *size) or None if all is observed, encoded targets (B, ...)."""

    x: Tensor
    mask: Tensor | None
    targets: Tensor | None


Vary = Callable[[Raw, int], Tensor]
"""Random augmentation of one example: (raw example, seed) -> tensor."""


class UnusableExample(ValueError):
    """An example that cannot be read or preprocessed, with its name.

    torch raises an error of a worker process again with the traceback as its text, of which only the end is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class Inputs(Dataset[Batch]):
    """Preprocessed examples, read in whole batches.

    Examples in memory are preprocessed once, if the result has at most 1 GiB: one long example makes all others as
    long; so are files with a costly preprocessing, up to 256 MiB. Other files and larger results are preprocessed each
    time they are read.

    Args:
        examples: the raw examples.
        preprocess: turns them into tensors.
        vary: augments and preprocesses each training example with a seed; None uses `preprocess` for training, too.
    """

    def __init__(self, examples: Examples, preprocess: Preprocess, vary: Vary | None = None) -> None:
        self.examples = examples
        self.preprocess = preprocess
        self.vary = vary
        self.targets = None if examples.targets is None else torch.from_numpy(examples.targets)
        size = 4 * len(examples) * preprocess.channels * math.prod(preprocess.size)  # bytes of float32
        most = _MOST_BYTES if examples.in_memory else _MOST_KEPT if preprocess.costly and not examples.streamed else 0
        self._all = self._read(range(len(examples))) if 0 < size <= most else None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | Sequence[tuple[int, int]]) -> Batch:
        """The batch of these examples, augmented if the indices are pairs (index, seed).

        The DataLoader of torch calls this once for a whole batch.
        """
        if isinstance(indices[0], tuple):
            chosen, seeds = zip(*indices, strict=True)  # all are pairs, or none
            return self._read(chosen, seeds)
        if self._all is None:
            return self._read(indices)  # type: ignore[arg-type]
        index = torch.as_tensor(indices)
        return Batch(*(None if values is None else values[index] for values in self._all))  # type: ignore[arg-type]

    def _read(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for place, i in enumerate(indices):
            try:
                example = self.examples[i]
                if seeds is None or self.vary is None:
                    pairs.append(self.preprocess.masked(example))
                else:
                    pairs.append((self.vary(example, seeds[place]), None))
            except (ValueError, OSError) as error:
                raise UnusableExample(f"{self.examples.names[i]}: {error}") from error
        x = torch.stack([x for x, _ in pairs])
        mask = None
        if any(m is not None for _, m in pairs):
            full = torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool)
            mask = torch.stack([full[0] if m is None else m for _, m in pairs])
        return Batch(x, mask, None if self.targets is None else self.targets[torch.as_tensor(indices)])

    def loader(self, batch_size: int, workers: int | None = None, chosen: Sequence[int] | None = None) -> "TimedLoader":
        """Load all examples once in order, or those with the indices `chosen`."""
        order = range(len(self)) if chosen is None else chosen
        return self._loader([list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)], workers)

    def batches(self, batches: Sequence[Sequence[int]], workers: int | None = None) -> "TimedLoader":
        """Load batches of the examples with these indices."""
        return self._loader(batches, workers)

    def stream(
        self,
        batch_size: int,
        batches: int,
        seed: int,
        start: int,
        workers: int | None,
        repeats: int = 1,
        dealt: "Dealt | None" = None,
    ) -> "TimedLoader":
        """Load the training stream, see `ShuffledStream`."""
        varied, blocks = self.vary is not None, self.examples.blocks()
        weights = self.examples.weights
        order = ShuffledStream(len(self), batch_size, batches, seed, start, repeats, varied, blocks, weights, dealt)
        return self._loader(order, workers)

    def _loader(self, batches: Any, workers: int | None) -> "TimedLoader":
        if workers is None:
            # starting a process takes longer than reading few files
            few = self.examples.in_memory or self._all is not None or len(self) <= _FEW
            workers = 0 if few else min(4, max(1, (os.cpu_count() or 2) - 1))
            if self.examples.streamed and workers == 3:  # they would fetch the same blocks, see `shuffled`
                workers = LANES // 2
        return TimedLoader(
            self,
            batch_sampler=batches,
            collate_fn=_whole_batch,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # otherwise each iterator draws a seed from torch's global generator
        )


class TimedLoader(DataLoader[Batch]):
    """A DataLoader that measures the time to wait for each batch.

    Attributes:
        waited: seconds of waiting for the newest batch.
    """

    waited = 0.0

    def __iter__(self) -> Any:
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited = time.perf_counter() - start
            yield batch


def _ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes: the main one ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the handler of the main process, if it was forked


def _whole_batch(batch: Any) -> Any:
    """`__getitems__` returns whole batches, so there is nothing to collate."""
    return batch


class Dealt(NamedTuple):
    """How the batches of a stream are dealt to processes: each has an equal part of every batch.

    Attributes:
        parts: number of processes.
        part: number of this process.
        lane: rows that a lane of streamed data takes at a time, see `shuffled`. It is part of the order, so a run keeps
            its value when it continues with other processes.
    """

    parts: int
    part: int
    lane: int


@dataclass(eq=False)
class ShuffledStream(Sampler[list[Any]]):
    """Batches from an endless sequence of shuffled passes over n examples.

    Batch b is a function of (seed, b) alone, so a run can be resumed at any batch. A batch may span two passes, and
    every batch is full even if it is larger than the data set. It is a list of indices, or of (index, seed).

    Attributes:
        n: number of examples.
        batch_size: indices in a batch.
        batches: length of the stream, counted from batch 0.
        seed: seed of the shuffling.
        start: first batch of an iteration; the length does not depend on it.
        repeats: consecutive repetitions of each example in a pass ("Augment Your Batch", Hoffer et al., 2020).
        seeded: whether each index has a seed, a different one at every place of the stream.
        blocks: (n,) block of each example, see `shuffled`; None for local data.
        weights: (n,) how often examples are drawn, relative to each other; None draws each once in a pass.
        dealt: the part of each batch that this process gets; None for all of it.
    """

    n: int
    batch_size: int
    batches: int
    seed: int
    start: int = 0
    repeats: int = 1
    seeded: bool = False
    blocks: np.ndarray | None = None
    weights: np.ndarray | None = None
    dealt: Dealt | None = None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Any]]:
        order, current = np.empty(0, dtype=np.int64), -1
        parts, part = (1, 0) if self.dealt is None else self.dealt[:2]
        size = self.batch_size // parts
        for batch in range(self.start, self.batches):
            indices: list[int] = []
            position = batch * self.batch_size + part * size
            while len(indices) < size:
                turn, offset = divmod(position + len(indices), self.n * self.repeats)
                if turn != current:
                    order, current = self._pass(turn).repeat(self.repeats), turn
                indices += order[offset : offset + size - len(indices)].tolist()
            if self.seeded:
                seeds = np.random.SeedSequence((self.seed, batch)).generate_state(self.batch_size)
                yield list(zip(indices, seeds[part * size : (part + 1) * size].tolist(), strict=True))
            else:
                yield indices

    def _pass(self, turn: int) -> np.ndarray:
        """The order of the examples in one pass."""
        random = np.random.default_rng((self.seed, turn))
        if self.weights is not None:
            return random.permutation(_drawn(self.weights, random.random()))
        if self.blocks is None:
            return random.permutation(self.n)
        lane = self.batch_size if self.dealt is None else self.dealt.lane
        return shuffled(self.blocks, lane / self.repeats, turn * self.n, random)


def _drawn(weights: np.ndarray, start: float) -> np.ndarray:
    """As many indices as there are weights, each in proportion to its weight, rounded up or down.

    This is systematic sampling: points at equal distances, the first of which is `start` (0 to 1) of a distance from
    the beginning, on a line in which every example has a stretch as long as its weight.
    """
    ends = np.cumsum(weights / weights.sum()) * len(weights)
    points = np.arange(len(weights)) + start
    return np.searchsorted(ends, points, side="right").clip(max=int(np.flatnonzero(weights)[-1]))
