"""Protection of a thread's signal stack from OpenVINO.

OpenVINO's CPU plugin gives the thread that creates it a signal stack of its own (sigaltstack; AMX needs a large one)
and unmaps that memory at the end. If another thread destroys the plugin, as garbage collection may, or a later plugin
exists, the thread keeps a stack that is gone, and the next signal (Ctrl-C, the end of a child process) is a
segmentation fault. The plugin does not touch a thread whose former stack was restored.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def preserve_signal_stack() -> Iterator[None]:
    """Restore the calling thread's signal stack at the end. OpenVINO changes it on Linux only."""
    if sys.platform != "linux":
        yield
        return
    before, libc = _Stack(), ctypes.CDLL(None)
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
