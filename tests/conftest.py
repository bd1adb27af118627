"""Shared by all tests: torchvision made importable before timm or lightning ask for it, one thread a process."""

import os
import signal
import sys
from contextlib import suppress

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs one process a core
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # else aeon gives torch more threads, too
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes that outlive its test

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that runs the tests in the background ignores Ctrl-C
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)

import ndvit._torchvision  # noqa: F401

# isort: split
import pytest
import torch
from markupsafe import Markup

from ndvit.evaluation import figures

DRAW = figures.draw


@pytest.fixture(autouse=True, scope="session")
def _undrawn():
    """Reports have empty figures, because drawing takes ten times as long as the training of a tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *arguments, **panels: Markup("<svg></svg>"))
        yield


@pytest.fixture
def _drawn(monkeypatch):
    """Reports with figures."""
    monkeypatch.setattr(figures, "draw", DRAW)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Past eight networks in a process, torch.compile would refuse the ninth."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
