"""From examples to batches: preprocessing, an endless shuffled stream that can start anywhere, and loaders."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ndvit.data.examples import Examples
from ndvit.data.preprocess.base import Preprocess, Raw
from ndvit.data.sources.streams import LANES, shuffled

_MOST_BYTES = 2**30  # of preprocessed examples that are kept
_FEW = 64  # files that are read without worker processes


class Batch(NamedTuple):
    """Preprocessed examples: x (B, C, *size), mask (B, *size) or None where all is observed, labels (B,) or None."""

    x: Tensor
    mask: Tensor | None
    labels: Tensor | None


Vary = Callable[[Raw, int], Tensor]
"""An example and a seed -> the tensor that is learned from."""


class UnusableExample(ValueError):
    """An example that cannot be read or preprocessed, by name.

    torch makes an error of a worker process anew with the worker's whole traceback as its text; what the user needs is
    the end of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class Inputs(Dataset[Batch]):
    """Examples seen through a preprocessing, read whole batches at a time.

    Examples in memory are preprocessed once, if the result takes at most a gigabyte: one long example makes all others
    as long. Files, and what would be larger, are preprocessed each time they are asked for.

    Args:
        examples: what is read.
        preprocess: what makes tensors of it.
        vary: what makes tensors of it in training, of an example and a seed; None for the preprocessing itself.
    """

    def __init__(self, examples: Examples, preprocess: Preprocess, vary: Vary | None = None) -> None:
        self.examples = examples
        self.preprocess = preprocess
        self.vary = vary
        self.labels = None if examples.labels is None else torch.from_numpy(np.asarray(examples.labels, dtype=np.int64))
        size = 4 * len(examples) * preprocess.channels * math.prod(preprocess.size)  # bytes of float32
        self._all = self._read(range(len(examples))) if examples.in_memory and 0 < size <= _MOST_BYTES else None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int] | Sequence[tuple[int, int]]) -> Batch:
        """The batch of these examples, varied by the seed that stands beside each index, if one does.

        torch's DataLoader calls this once for a whole batch.
        """
        if isinstance(indices[0], tuple):
            chosen, seeds = zip(*indices, strict=True)  # all are pairs, or none
            return self._read(chosen, seeds)
        if self._all is None:
            return self._read(indices)  # type: ignore[arg-type]
        x, mask, labels = self._all
        index = torch.as_tensor(indices)
        return Batch(x[index], None if mask is None else mask[index], None if labels is None else labels[index])

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
        return Batch(x, mask, None if self.labels is None else self.labels[torch.as_tensor(indices)])

    def loader(self, batch_size: int, workers: int | None = None, chosen: Sequence[int] | None = None) -> "TimedLoader":
        """All examples once, in order, or those that are chosen."""
        order = range(len(self)) if chosen is None else chosen
        return self._loader([list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)], workers)

    def stream(
        self, batch_size: int, batches: int, seed: int, start: int, workers: int | None, repeats: int = 1
    ) -> "TimedLoader":
        """The training stream, see `ShuffledStream`."""
        varied, blocks = self.vary is not None, self.examples.blocks()
        order = ShuffledStream(len(self), batch_size, batches, seed, start, repeats, varied, blocks)
        return self._loader(order, workers)

    def _loader(self, batches: Any, workers: int | None) -> "TimedLoader":
        if workers is None:
            few = self.examples.in_memory or len(self) <= _FEW  # starting a process costs more than reading a few files
            workers = 0 if few else min(4, max(1, (os.cpu_count() or 2) - 1))
            if self.examples.streamed and workers == 3:  # which would fetch each other's blocks, see `shuffled`
                workers = LANES // 2
        return TimedLoader(
            self,
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts,
        )


class TimedLoader(DataLoader[Batch]):
    """A DataLoader that knows how long each batch was waited for.

    Attributes:
        waited: seconds that whoever iterates spent waiting for the newest batch.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited = 0.0

    def __iter__(self) -> Any:
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited = time.perf_counter() - start
            yield batch


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    """`__getitems__` gives whole batches, so there is nothing left to collate."""
    return batch


class ShuffledStream(Sampler[list[Any]]):
    """Batches cut from an endless sequence of shuffled passes over n examples.

    Batch b is a function of (seed, b) alone, so a run can go on from any batch. A batch may span two passes, and every
    batch is full even if it is larger than the data set. It is a list of indices, or of (index, seed).

    Args:
        n: examples.
        batch_size: indices in a batch.
        batches: length of the stream, counted from batch 0.
        seed: of the shuffling.
        start: the batch that iteration begins with; the length does not change with it.
        repeats: how often each example of a pass comes, one time after the other ("Augment Your Batch", Hoffer et al.,
            2020).
        seeded: whether each index has a seed beside it, another one at every place of the stream.
        blocks: (n,) which examples are fetched together, see `shuffled`; None where it makes no difference.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        batches: int,
        seed: int,
        start: int = 0,
        repeats: int = 1,
        seeded: bool = False,
        blocks: np.ndarray | None = None,
    ) -> None:
        self.n, self.batch_size, self.batches, self.seed, self.start = n, batch_size, batches, seed, start
        self.repeats, self.seeded, self.blocks = repeats, seeded, blocks

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Any]]:
        order, current = np.empty(0, dtype=np.int64), -1
        for batch in range(self.start, self.batches):
            indices: list[int] = []
            position = batch * self.batch_size
            while len(indices) < self.batch_size:
                turn, offset = divmod(position + len(indices), self.n * self.repeats)
                if turn != current:
                    order, current = self._pass(turn).repeat(self.repeats), turn
                indices += order[offset : offset + self.batch_size - len(indices)].tolist()
            if self.seeded:
                seeds = np.random.SeedSequence((self.seed, batch)).generate_state(self.batch_size).tolist()
                yield list(zip(indices, seeds, strict=True))
            else:
                yield indices

    def _pass(self, turn: int) -> np.ndarray:
        """The order of the examples in one pass."""
        random = np.random.default_rng((self.seed, turn))
        if self.blocks is None:
            return random.permutation(self.n)
        return shuffled(self.blocks, self.batch_size / self.repeats, turn * self.n, random)
