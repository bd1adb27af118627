"""Google's .npz checkpoints without JAX: their arrays by the published naming, and what they compute by definition.

The forward pass is written from the papers and from Flax's documented defaults, on Google's own axis orders and in
float64, and shares nothing with ndvit or timm: (B, H, W, C) pictures, kernels (..., in, out), heads on their own axis.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Arrays = dict[str, np.ndarray]
Values = Callable[[str, tuple[int, ...]], np.ndarray]

OLD = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
"""Modules of a block as Flax counted them once: over all classes."""
NEW = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
"""As it counts them since: per class."""


def make_arrays(
    values: Values,
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    hidden: int = 128,
    patch: int = 16,
    tokens: int = 17,
    classes: int = 7,
    names: tuple[str, ...] = OLD,
    positions: str | None = "Transformer/posembed_input/pos_embedding",
    token: bool = True,
    representation: int = 0,
    units: tuple[int, ...] | None = None,
    map_head: bool = False,
) -> Arrays:
    """The arrays of a checkpoint, named as in facts/manifests/google_npz.json and big_vision's vit.py.

    `units` are the stem's residual units in each block; () is the root alone and None no stem.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    if units is not None:
        shapes |= {"conv_root/kernel": (7, 7, 3, 64)} | _scale_and_bias("gn_root", (1, 1, 1, 64))
        channels = 64
        for b, count in enumerate(units, start=1):
            features = 64 * 2 ** (b - 1)
            for u in range(1, count + 1):
                unit = f"block{b}/unit{u}"
                if u == 1:
                    shapes[f"{unit}/conv_proj/kernel"] = (1, 1, channels, 4 * features)
                    shapes |= _scale_and_bias(f"{unit}/gn_proj", (1, 1, 1, 4 * features))
                sides = (1, channels, features), (3, features, features), (1, features, 4 * features)
                for i, (side, before, after) in enumerate(sides, start=1):
                    shapes[f"{unit}/conv{i}/kernel"] = (side, side, before, after)
                    shapes |= _scale_and_bias(f"{unit}/gn{i}", (1, 1, 1, after))
                channels = 4 * features
    shapes |= {"embedding/kernel": (patch, patch, channels, width), "embedding/bias": (width,)}
    if token:
        shapes["cls"] = (1, 1, width)
    if positions:
        shapes[positions] = (1, tokens, width)
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        shapes |= _scale_and_bias(f"{block}/{names[0]}", (width,)) | _scale_and_bias(f"{block}/{names[2]}", (width,))
        shapes |= _attention(f"{block}/{names[1]}", width, heads) | _mlp(f"{block}/{names[3]}", width, hidden)
    shapes |= _scale_and_bias("Transformer/encoder_norm", (width,))
    if map_head:
        shapes |= {"MAPHead_0/probe": (1, 1, width)} | _scale_and_bias("MAPHead_0/LayerNorm_0", (width,))
        shapes |= _attention("MAPHead_0/MultiHeadDotProductAttention_0", width, heads)
        shapes |= _mlp("MAPHead_0/MlpBlock_0", width, hidden)
    if representation:
        shapes |= {"pre_logits/kernel": (width, representation), "pre_logits/bias": (representation,)}
    if classes:
        shapes |= {"head/kernel": (representation or width, classes), "head/bias": (classes,)}
    return {name: values(name, shape) for name, shape in shapes.items()}


def scan(arrays: Arrays) -> Arrays:
    """Blocks stacked along a leading axis, as big_vision saves them from scanned layers."""
    depth = len({name.split("/")[1] for name in arrays if "encoderblock_" in name})
    out = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    for name in [name for name in arrays if "encoderblock_0/" in name]:
        layers = [arrays[name.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(depth)]
        out[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return out


def _scale_and_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": shape, f"{name}/bias": shape}


def _attention(name: str, width: int, heads: int) -> dict[str, tuple[int, ...]]:
    each = width // heads
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("query", "key", "value"):
        shapes |= {f"{name}/{part}/kernel": (width, heads, each), f"{name}/{part}/bias": (heads, each)}
    return shapes | {f"{name}/out/kernel": (heads, each, width), f"{name}/out/bias": (width,)}


def _mlp(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    first = {f"{name}/Dense_0/kernel": (width, hidden), f"{name}/Dense_0/bias": (hidden,)}
    return first | {f"{name}/Dense_1/kernel": (hidden, width), f"{name}/Dense_1/bias": (width,)}


def forward(arrays: Arrays, x: Tensor, pooling: str, names: tuple[str, ...] = OLD, late_token: bool = False) -> Tensor:
    """What Google's code computes for (B, 3, H, W): the head's outputs, or what it would read.

    `late_token`: the class token joins after positions are added, as in big_vision, and has none itself.
    """
    a = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    x = x.double().permute(0, 2, 3, 1)
    if "conv_root/kernel" in a:
        x = _stem(a, x)
    x = _convolve(x, a["embedding/kernel"], a["embedding/kernel"].shape[0], same=False) + a["embedding/bias"]
    grid = x.shape[1:3]
    x = x.flatten(1, 2)  # (B, N, D)
    token = a["cls"].expand(len(x), -1, -1) if "cls" in a else x[:, :0]
    if not late_token:
        x = torch.cat([token, x], dim=1)
    stored = [name for name in a if name.endswith("pos_embedding")]
    x = x + (a[stored[0]] if stored else _sincos(*grid, x.shape[2]))
    if late_token:
        x = torch.cat([token, x], dim=1)
    for i in range(len({name.split("/")[1] for name in a if "encoderblock_" in name})):
        norm1, attention, norm2, mlp = (f"Transformer/encoderblock_{i}/{name}" for name in names)
        y = _layer_norm(a, norm1, x)
        x = x + _attend(a, attention, y, y)
        x = x + _feed_forward(a, mlp, _layer_norm(a, norm2, x))
    x = _layer_norm(a, "Transformer/encoder_norm", x)
    if pooling == "map":
        y = _attend(a, "MAPHead_0/MultiHeadDotProductAttention_0", a["MAPHead_0/probe"].expand(len(x), -1, -1), x)
        x = (y + _feed_forward(a, "MAPHead_0/MlpBlock_0", _layer_norm(a, "MAPHead_0/LayerNorm_0", y)))[:, 0]
    else:
        x = x[:, 0] if pooling == "token" else x.mean(dim=1)
    if "pre_logits/kernel" in a:
        x = torch.tanh(x @ a["pre_logits/kernel"] + a["pre_logits/bias"])
    return x @ a["head/kernel"] + a["head/bias"] if "head/kernel" in a else x


def _layer_norm(a: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * a[f"{name}/scale"] + a[f"{name}/bias"]


def _attend(a: dict[str, Tensor], name: str, queries: Tensor, keys: Tensor) -> Tensor:
    q, k, v = (
        torch.einsum("btd,dhe->bthe", x, a[f"{name}/{part}/kernel"]) + a[f"{name}/{part}/bias"]
        for part, x in (("query", queries), ("key", keys), ("value", keys))
    )
    weights = (torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    mixed = torch.einsum("bhqk,bkhe->bqhe", weights, v)
    return torch.einsum("bqhe,hed->bqd", mixed, a[f"{name}/out/kernel"]) + a[f"{name}/out/bias"]


def _feed_forward(a: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = x @ a[f"{name}/Dense_0/kernel"] + a[f"{name}/Dense_0/bias"]
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # Flax's gelu
    return x @ a[f"{name}/Dense_1/kernel"] + a[f"{name}/Dense_1/bias"]


def _sincos(height: int, width: int, dim: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    omega = 1 / 10000 ** (torch.arange(dim // 4).double() / (dim // 4 - 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None]


def _stem(a: dict[str, Tensor], x: Tensor) -> Tensor:
    x = _group_norm(a, "gn_root", _convolve(x, _standardised(a["conv_root/kernel"]), 2)).relu()
    x = _same(x, 3, 2, -math.inf).permute(0, 3, 1, 2)
    x = F.max_pool2d(x, 3, 2).permute(0, 2, 3, 1)
    blocks = sorted({name.split("/")[0] for name in a if name.startswith("block")})
    for block in blocks:
        for u in range(1, 1 + len({name.split("/")[1] for name in a if name.startswith(f"{block}/")})):
            unit = f"{block}/unit{u}"
            stride = 2 if u == 1 and block != "block1" else 1
            y = x
            if f"{unit}/conv_proj/kernel" in a:
                y = _convolve(x, _standardised(a[f"{unit}/conv_proj/kernel"]), stride)
                y = _group_norm(a, f"{unit}/gn_proj", y)
            for i, step in enumerate((1, stride, 1), start=1):
                x = _group_norm(a, f"{unit}/gn{i}", _convolve(x, _standardised(a[f"{unit}/conv{i}/kernel"]), step))
                x = x.relu() if i < 3 else (x + y).relu()
    return x


def _standardised(kernel: Tensor) -> Tensor:
    mean, std = kernel.mean((0, 1, 2)), kernel.std((0, 1, 2), correction=0)
    return (kernel - mean) / (std + 1e-5)


def _group_norm(a: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    groups = x.unflatten(3, (32, -1))  # (B, H, W, 32, C / 32)
    groups = groups - groups.mean((1, 2, 4), keepdim=True)
    groups = groups / (groups.square().mean((1, 2, 4), keepdim=True) + 1e-6).sqrt()
    return groups.flatten(3) * a[f"{name}/scale"] + a[f"{name}/bias"]


def _convolve(x: Tensor, kernel: Tensor, stride: int, same: bool = True) -> Tensor:
    """(B, H, W, C) by (h, w, C, D): every window times the kernel."""
    x = _same(x, kernel.shape[0], stride, 0.0) if same else x
    windows = x.unfold(1, kernel.shape[0], stride).unfold(2, kernel.shape[1], stride)  # (B, H', W', C, h, w)
    return torch.einsum("bijchw,hwcd->bijd", windows, kernel)


def _same(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """TensorFlow's SAME: as many outputs as strides begin in the input, the odd sample at the end."""
    pads = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[1:3]]
    (top, left), (bottom, right) = ([p // 2 for p in pads], [p - p // 2 for p in pads])
    return F.pad(x, (0, 0, left, right, top, bottom), value=value)
