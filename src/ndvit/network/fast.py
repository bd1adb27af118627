"""Linear layers by the faster of the two libraries that multiply on a CPU."""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_ROWS, _LEAST_WORK = 128, 2**23
"""Rows, and multiply-adds, from which on a convolution is worth its overhead."""


def mkl_lags() -> bool:
    """Whether this is a CPU of AMD with AVX-512, unless ATEN_CPU_CAPABILITY forbids PyTorch to use it."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512") or not torch.backends.mkldnn.is_available():
        return False
    told = Path("/proc/cpuinfo")
    if not told.is_file():
        return "AuthenticAMD" in platform.processor()
    with told.open(errors="replace") as lines:  # the first of many processors, as each takes a while to tell
        return "AuthenticAMD" in lines.read(256)


MKL_LAGS = mkl_lags()  # a constant, which torch.compile can read


class Linear(nn.Linear):
    """`nn.Linear`, (..., in) -> (..., out), with the same parameters and, but for rounding, the same numbers.

    PyTorch multiplies matrices of float32 by MKL, which leaves half of AMD's AVX-512 unused, and computes convolutions
    by oneDNN, which does not. There a 1 x 1 convolution over all rows, which is the same product, is up to twice as
    fast, and its gradients with it. Everywhere else, for few rows, and in files of graphs, this is `nn.Linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if not (MKL_LAGS and self._by_convolution(x)):
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, in, rows, 1), channels last
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def _by_convolution(self, x: Tensor) -> bool:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # graphs are for other machines, too
            return False
        rows = x.numel() // self.in_features
        return (
            rows >= _LEAST_ROWS
            and rows * self.in_features * self.out_features >= _LEAST_WORK
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            # by one thread PyTorch takes MKL for such convolutions, too; torch.compile does not read how many there are
            and (torch.compiler.is_compiling() or torch.get_num_threads() > 1)
            and bool(torch.backends.mkldnn.enabled)
        )
