"""The order in which examples of a batch meet for mixing, also in a batch that several processes share."""

import torch
from torch import Tensor

from ndvit.network.draws import in_common, shares
from ndvit.processes import any_of, fetched_rows


class Mixing:
    """A random order of the examples of a batch, in which each example meets another one of the whole batch.

    Args:
        count: examples in the batch of this process.
        device: device of the batch.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._shared = shares() > 1
        self._order = in_common(lambda: torch.randperm(count * shares(), device=device))

    def others(self, values: Tensor) -> Tensor:
        """The rows of values (B, ...) that the examples meet."""
        return fetched_rows(values, self._order) if self._shared else values[self._order]

    def masks(self, mask: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """A mask (B, *size) and that of the others; None if everything is observed in all processes."""
        if self._shared and any_of(mask is not None) and mask is None:
            mask = torch.ones(len(like), *like.shape[2:], dtype=torch.bool, device=like.device)
        return None if mask is None else (mask, self.others(mask))
