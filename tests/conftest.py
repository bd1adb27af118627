"""Shared by all tests: torchvision made importable before timm or lightning ask for it, one thread a process."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs one process a core
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # else aeon gives torch more threads, too
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes that outlive its test

import ndvit._torchvision  # noqa: F401

# isort: split
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Past eight networks in a process, torch.compile would refuse the ninth."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
