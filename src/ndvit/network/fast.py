"""Faster and leaner ways to compute the same network on today's hardware, by public interfaces of PyTorch only.

`layers` is the reference. `install` replaces the classes of a network's modules by the subclasses below; parameters,
state dict and results stay the same, up to rounding where the docstring mentions it.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.network import layers
from ndvit.network.checkpointing import is_checkpointing

LINEAR = "NDVIT_LINEAR"
"""Environment variable that selects how linear layers are computed on CPUs: auto (default), matmul or convolution."""
_LEAST_SPEEDUP = 1.25
"""From which speedup on "auto" selects the convolution: so high that noise does not change the choice between runs."""
_LEAST_ROWS, _LEAST_WORK = 128, 2**23
"""Rows, and multiply-adds, from which on a convolution is worth its overhead."""
_MOST_TOKENS = 600
"""Number of tokens up to which the attention weights stay in a CPU's cache, see `Attention`."""

_LOCK = threading.Lock()
_USERS: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
"""Networks in `only_read_tokens`: the number of contexts, and the value of `skip_unread_tokens` before the first."""


def install(network: nn.Module) -> None:
    """Replace the classes of blocks, attention and linear layers in a new network by those of this module."""
    by_convolution = linear_by_convolution()
    for module in list(network.modules()):
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]
        if by_convolution and isinstance(module, layers.Block | layers.AttentionPool):
            for layer in module.modules():
                if type(layer) is nn.Linear:
                    layer.__class__ = Linear


@contextmanager
def only_read_tokens(module: nn.Module) -> Iterator[None]:
    """Set `skip_unread_tokens` of every `VisionTransformer` in a module, and restore it at the end.

    Several threads may do so with the same network: the last one restores it.
    """
    networks: list[Any] = [m for m in module.modules() if hasattr(m, "skip_unread_tokens")]
    with _LOCK:
        for network in networks:
            users, before = _USERS.get(network, (0, network.skip_unread_tokens))
            _USERS[network] = users + 1, before
            network.skip_unread_tokens = True
    try:
        yield
    finally:
        with _LOCK:
            for network in networks:
                users, before = _USERS.pop(network)
                if users > 1:
                    _USERS[network] = users - 1, before
                else:
                    network.skip_unread_tokens = before


# --------------------------------------------------------------------------- linear layers by a convolution on CPUs


class Linear(nn.Linear):
    """`nn.Linear`, (..., in) -> (..., out), as a 1 x 1 convolution over all rows; sums are rounded in another order.

    PyTorch multiplies float32 matrices by MKL and computes convolutions by oneDNN. On some CPUs of AMD with AVX-512 MKL
    reaches half the rate of oneDNN, forward and backward. Few rows, other dtypes and devices, exported graphs and a
    single thread (for which PyTorch computes convolutions by MKL, too) take the matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if not self._suits(x):
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, in, rows, 1), channels last
        out = F.conv2d(rows, self.weight[:, :, None, None], self.bias)  # (1, out, rows, 1)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def _suits(self, x: Tensor) -> bool:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # the graph will run on other machines
            return False
        rows = x.numel() // self.in_features
        return (
            rows >= _LEAST_ROWS
            and rows * self.in_features * self.out_features >= _LEAST_WORK
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and (torch.compiler.is_compiling() or torch.get_num_threads() > 1)  # torch.compile cannot read the number
            and bool(torch.backends.mkldnn.enabled)
        )


def linear_by_convolution() -> bool:
    """Whether linear layers of a new network are computed by a convolution on this CPU.

    Raises:
        ValueError: for an unknown value of the environment variable NDVIT_LINEAR.
    """
    choice = os.environ.get(LINEAR, "auto")
    if choice not in ("auto", "matmul", "convolution"):
        raise ValueError(f"the environment variable {LINEAR} must be auto, matmul or convolution, got {choice!r}")
    if choice != "auto":
        return choice == "convolution"
    can_matter = (
        torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkldnn.is_available()
        and torch.get_num_threads() > 1
        and type(torch.empty(0, device="cpu")) is Tensor  # not under a mode of fake tensors, which compute nothing
    )
    return can_matter and convolution_speedup() >= _LEAST_SPEEDUP


@cache
def convolution_speedup() -> float:
    """How many times as fast as matrix products convolutions are on this CPU, measured once in some 30 ms.

    Both take turns, and the lesser of the ratios of medians and of minima counts: other programs on the machine disturb
    medians, and a fast minimum alone can be an exception.
    """
    shapes = ((1024, 192, 768), (1024, 768, 192))  # rows, inputs, outputs: the MLP of a tiny ViT at batch 5
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    matmul: list[float] = []
    convolution: list[float] = []
    with torch.inference_mode():
        tensors = [(torch.ones(n, i, **options), torch.ones(o, i, **options)) for n, i, o in shapes]
        for _ in range(7):
            start = time.perf_counter()
            for x, weight in tensors:
                F.linear(x, weight)
            middle = time.perf_counter()
            for x, weight in tensors:
                F.conv2d(x.view(1, len(x), 1, -1).permute(0, 3, 1, 2), weight[:, :, None, None])
            matmul.append(middle - start)
            convolution.append(time.perf_counter() - middle)
    matmul, convolution = matmul[2:], convolution[2:]  # without the first calls, which choose kernels
    return min(statistics.median(matmul) / statistics.median(convolution), min(matmul) / min(convolution))


# ------------------------------------------------------------------------------------- attention in bfloat16 on CPUs


class Attention(layers.Attention):
    """`layers.Attention` with two matrix products instead of the fused kernel for bfloat16 on CPUs.

    There the fused kernel is no faster in bfloat16 than in float32. Two matrix products are twice as fast, and three
    times in training, as long as the weights between them stay in the cache. Training keeps the weights, which take
    6 bytes each under autocast.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """As `layers.Attention.attend`."""
        few = q.shape[2] * k.shape[2] <= _MOST_TOKENS**2
        if not (few and q.device.type == "cpu" and q.dtype == torch.bfloat16):
            return super().attend(q, k, v, mask)
        drop = self.attn_drop if self.training else 0.0
        logits = (q * self.scale) @ k.transpose(2, 3)  # (B, heads, T, T)
        if mask is None:
            return F.dropout(logits.softmax(3), drop) @ v
        masked = ~mask if mask.dtype == torch.bool else mask.isneginf()
        if mask.dtype != torch.bool:
            logits = logits + mask
        # The least number instead of -inf: if all keys are masked, softmax and its gradient of -inf would be NaN.
        logits = logits.masked_fill(masked, torch.finfo(logits.dtype).min)
        return (F.dropout(logits.softmax(3), drop) @ v).masked_fill(masked.all(3, keepdim=True), 0)


# ------------------------------------------------------------------ outputs of norms, recomputed in the backward pass


class _RecomputedNorms(nn.Module):
    """Do not keep the outputs of a block's norms for the backward pass: an eighth of the block's memory.

    They cost little to compute again from the norm's input, which is kept anyway.
    """

    def apply_normed(self, layer: nn.Module, norm: nn.Module, x: Tensor, *context: Any) -> Tensor:
        """As `layers.Block.apply_normed`."""
        y: Tensor = norm(x)
        if not y.requires_grad or not y.numel() or torch.compiler.is_compiling() or is_checkpointing.get():
            return layer(y, *context)
        with ExitStack() as stack:
            with suppress(RuntimeError):  # torch.func allows no hooks, and its tensors have no address
                stack.enter_context(_recomputed(y, norm, x))
            return layer(y, *context)


def _recomputed(y: Tensor, norm: nn.Module, x: Tensor) -> torch.autograd.graph.saved_tensors_hooks:
    """Hooks that make autograd compute y = norm(x) again instead of keeping it."""
    address, count = y.data_ptr(), y.numel()

    def pack(saved: Tensor) -> Any:
        if saved.data_ptr() == address and saved.numel() == count:
            return saved.shape, saved.stride()
        return saved.detach()  # a result that an operation saves for itself would otherwise never be freed

    def unpack(packed: Any) -> Tensor:
        return norm(x.detach()).as_strided(*packed) if isinstance(packed, tuple) else packed

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class Block(_RecomputedNorms, layers.Block):
    """`layers.Block` with less memory in training."""


class MergingBlock(_RecomputedNorms, layers.MergingBlock):
    """`layers.MergingBlock` with less memory in training."""


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    layers.Attention: Attention,
    layers.Block: Block,
    layers.MergingBlock: MergingBlock,
}
