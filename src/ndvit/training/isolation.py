"""One training at a time: what a training shares with the other threads of its process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def isolated() -> Iterator[None]:
    """Keep other threads out, and restore the state of torch's global random generators at the end.

    Initialisation, dropout and the transforms of torchvision draw from generators that belong to the process, and
    Lightning, matplotlib and the filters of warnings have global state, too. With two trainings at the same time, each
    would draw numbers that the other one needs to be repeatable. So a second thread waits until the first has left the
    context. The same thread may enter it again.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with _LOCK, torch.random.fork_rng(devices):
        yield
