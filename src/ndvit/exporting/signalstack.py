"""The stack that a thread runs its signal handlers on, kept as it was.

OpenVINO's CPU plugin gives the thread that creates it a signal stack of its own (sigaltstack; AMX needs a large one)
and unmaps it when it goes. Where it goes in another thread, as garbage does, or while a later plugin is there, the
thread is left with a stack that is no more, and the next signal (Ctrl-C, the end of a child process) ends the process
by a segmentation fault. The plugin leaves a thread alone that has its former stack back.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the calling thread its signal stack back at the end; on Linux, where alone OpenVINO changes it."""
    if sys.platform != "linux":
        yield
        return
    before, libc = _Stack(), ctypes.CDLL(None)
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
