"""Random numbers for the examples of a batch, also of a batch that several processes share.

What is drawn for each example follows from the seed of the step and the place of the example in the whole batch, so
several processes draw together what one process with all their examples would draw. Each draws for the whole batch and
keeps its rows. Where that would take longer than what it is for, such as dropout of all activations of a large
network, each process draws for itself, from a seed of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ndvit.network.checkpointing import is_checkpointing

_MOST = 2**20  # numbers that each process draws for a whole batch


@dataclass
class _Share:
    """Part `rank` of `size` equal parts of a batch, and the states of the generators that all parts have in common."""

    rank: int
    size: int
    states: dict[torch.Generator, Tensor]


_SHARE: ContextVar[_Share | None] = ContextVar("share", default=None)


@contextmanager
def sharing(rank: int, size: int, generators: list[torch.Generator]) -> Iterator[None]:
    """Inside the context, a batch is one of `size` equal parts of a larger batch.

    The generators, torch's default ones, are in the same state in all processes. What is drawn in common continues from
    this state; everything else continues from the state that the caller sets inside the context.
    """
    token = _SHARE.set(_Share(rank, size, {one: one.get_state() for one in generators}))
    try:
        yield
    finally:
        _SHARE.reset(token)


def shares() -> int:
    """Number of processes that share a batch and draw in common; 1 without others."""
    share = _share()
    return 1 if share is None else share.size


def _share() -> _Share | None:
    """The share, where the draws of the processes can be the same.

    A compiled graph takes no states of generators, and a recomputed module must repeat its draws, which `checkpoint`
    arranges for the default generators alone.
    """
    if torch.compiler.is_compiling() or is_checkpointing.get():
        return None
    return _SHARE.get()


def in_common(draw: Callable[[], Tensor]) -> Tensor:
    """What a function draws from torch's default generators, the same in all processes that share a batch."""
    share = _share()
    if share is None:
        return draw()
    own = {one: one.get_state() for one in share.states}
    for generator, state in share.states.items():
        generator.set_state(state)
    drawn = draw()
    for generator, state in own.items():
        share.states[generator] = generator.get_state()
        generator.set_state(state)
    return drawn


def for_each(draw: Callable[[int], Tensor], count: int, axis: int = 0) -> Tensor:
    """What a function draws for this number of examples, which stand along an axis of the result."""
    share = _share()
    if share is None:
        return draw(count)
    return in_common(lambda: draw(count * share.size)).narrow(axis, share.rank * count, count)


def noise_like(x: Tensor) -> Tensor:
    """Standard normal noise for x (B, ...)."""
    if _is_too_much(x):
        return torch.randn_like(x)
    return for_each(lambda n: torch.randn(n, *x.shape[1:], dtype=x.dtype, device=x.device), len(x))


class Dropout(nn.Dropout):
    """torch.nn.Dropout of (B, ...), whose masks several processes draw in common if they are small.

    It is not for branches that `DropPath` computes for some of the examples, of which each process has other numbers.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Replace values by 0 with probability p in training, and divide the others by 1 - p."""
        if not self.training or not 0 < self.p < 1 or _is_too_much(input):
            return super().forward(input)
        keep = 1 - self.p
        kept = for_each(lambda n: input.new_empty(n, *input.shape[1:]).bernoulli_(keep), len(input))
        return input * kept.div_(keep)


def _is_too_much(x: Tensor) -> bool:
    """Whether processes do not draw in common a number for each value of x; also if there are no others."""
    share = _share()
    return share is None or x.numel() * share.size > _MOST
