"""The thread that runs OpenVINO keeps its signal stack; otherwise a signal would crash it once OpenVINO is gone."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ndvit.exporting.comparison import ComparisonData
from ndvit.exporting.quantize import QUANTIZE
from ndvit.exporting.runtimes import open_exported
from ndvit.exporting.signalstack import _Stack, preserve_signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this problem")

DATA = Path(__file__).parent / "data"
GONE_IN_A_THREAD = """
import signal, sys, threading
import ndvit._torchvision
from ndvit.exporting.runtimes import open_exported

signal.signal(signal.SIGUSR1, lambda *_: print("a signal"))
held = [open_exported(sys.argv[1])]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGUSR1)
"""


def stack() -> tuple:
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.sp, found.flags, found.size


def test_it_is_restored():
    memory, before = ctypes.create_string_buffer(1 << 16), stack()
    with preserve_signal_stack():
        other = _Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert stack() == (ctypes.addressof(memory), 0, 1 << 16)
    assert stack() == before


@pytest.mark.parametrize(
    ("format", "name", "size"), [("onnx", "signal.onnx", (24,)), ("openvino", "network.xml", (8, 8))]
)
def test_exported_files_and_their_quantisation_preserve_it(format, name, size, tmp_path):
    before, data = stack(), ComparisonData(torch.randn(6, 1, *size), None, None, "noise")
    runtime, _ = open_exported(DATA / name)
    assert stack() == before
    QUANTIZE["onnx" if name.endswith("onnx") else "openvino"](DATA / name, runtime, data, tmp_path / name, "{}")
    assert stack() == before
    del runtime
    assert stack() == before


def test_signals_arrive_after_a_model_ended_in_another_thread():
    arguments = [sys.executable, "-c", GONE_IN_A_THREAD, str(DATA / "network.xml")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a signal\n"), done.stderr  # -11 is a segmentation fault
