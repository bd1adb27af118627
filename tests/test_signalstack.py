"""The thread that runs OpenVINO keeps its signal stack: else a signal would crash it once OpenVINO is gone."""

import ctypes
import subprocess
import sys

import pytest

import ndvit
from ndvit.exporting.runtimes import load_exported
from ndvit.exporting.signalstack import _Stack, signal_stack_kept
from test_export import network
from tinyruns import toy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")

GONE_IN_A_THREAD = """
import signal, sys, threading
import ndvit._torchvision
from ndvit.exporting.runtimes import load_exported

signal.signal(signal.SIGUSR1, lambda *_: print("a signal"))
held = [load_exported(sys.argv[1])]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGUSR1)
"""


def stack() -> tuple:
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.sp, found.flags, found.size


def test_it_is_given_back():
    memory, before = ctypes.create_string_buffer(1 << 16), stack()
    with signal_stack_kept():
        other = _Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert stack() == (ctypes.addressof(memory), 0, 1 << 16)
    assert stack() == before


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exports_leave_it(format, tmp_path):
    before, data = stack(), toy(60, (2, 24), classes=3)
    path = tmp_path / ("model.onnx" if format == "onnx" else "model.xml")
    report = ndvit.export(network("signal"), path, format=format, int8=True, data=data, min_agreement=0)
    assert report.how.int8
    assert stack() == before
    exported = load_exported(path)
    assert stack() == before
    del exported
    assert stack() == before


def test_signals_come_through_when_a_model_ended_in_another_thread(tmp_path):
    ndvit.export(network("signal"), tmp_path / "model.xml", format="openvino")
    given = [sys.executable, "-c", GONE_IN_A_THREAD, str(tmp_path / "model.xml")]
    done = subprocess.run(given, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a signal\n"), done.stderr  # it was -11, of a segmentation fault
