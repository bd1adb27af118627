"""Gradient checkpointing of one module ("Training Deep Nets with Sublinear Memory Cost", Chen et al., 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

is_checkpointing: ContextVar[bool] = ContextVar("is_checkpointing", default=False)
"""Whether a module is being computed under `checkpointed`, in the forward or the backward pass."""


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """Apply a module to inputs, and compute it again in the backward pass instead of keeping its activations."""
    if torch.compiler.is_compiling():  # torch.compile takes no contexts, and its second pass has no side effects
        return checkpoint(module, *inputs, use_reentrant=False)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: (_checkpointing(), _second_pass(module)))


@contextmanager
def _checkpointing() -> Iterator[None]:
    token = is_checkpointing.set(True)
    try:
        yield
    finally:
        is_checkpointing.reset(token)


@contextmanager
def _second_pass(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm, because the first pass over the same batch has updated them."""
    # Statistics stay switched on: the second pass must save as many tensors as the first.
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        with _checkpointing():
            yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
