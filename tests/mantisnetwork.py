"""Mantis and MantisV2 written down from their description, in float64, with tensors under their published names.

Feofanov et al., "Mantis" (2025) and "MantisV2" (2026). The package mantis-tsfm agrees with these functions to 1e-5 at
random weights; it needs other versions of libraries than the tests, so it is not among them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4])
WINDOW, HEADS = 16, 8

Tensors = dict[str, Tensor]


def make_tensors(
    values: Callable[[str, tuple[int, ...]], Tensor],
    version: int = 1,
    *,
    width: int = 64,
    patches: int = 8,
    depth: int = 2,
    head_dim: int = 16,
    kernel: int = 17,
    unit: str = "transf_unit",
) -> Tensors:
    """Tensors of a small network; `values` makes one from its name and shape."""
    statistics, hidden, inner = width // 8, 2 * width, HEADS * head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        shapes[f"tokgen_unit.convs.{i}.conv.weight"] = (width, 1, kernel)
        shapes[f"tokgen_unit.convs.{i}.conv.bias"] = (width,)
        shapes |= _norm(f"tokgen_unit.layer_norms.{i}", width)
        for k in range(len(SCALES)):
            encoder = f"tokgen_unit.scalar_encoders.{i}.encoders.{k}"
            shapes |= {f"{encoder}.{leaf}": (1, statistics) for leaf in "wb"}
            shapes |= _norm(f"{encoder}.layer_norm", statistics)
    shapes |= _linear("tokgen_unit.linear_encoder.linear", 2 * (width + statistics), width)
    shapes |= _norm("tokgen_unit.linear_encoder.layer_norm", width)
    shapes[f"{unit}.cls_token"] = (width,)
    if version == 1:
        shapes[f"{unit}.pos_encoder.pe"] = (patches + 1, 1, width)
    for i in range(depth):
        block = f"{unit}.transformer.layers.{i}"
        if version == 1:
            shapes |= _norm(f"{block}.0.norm", width) | _norm(f"{block}.1.norm", width)
            shapes[f"{block}.0.fn.to_qkv.weight"] = (3 * inner, width)
            shapes |= _linear(f"{block}.0.fn.to_out.0", inner, width)
            shapes |= _linear(f"{block}.1.fn.net.0", width, hidden) | _linear(f"{block}.1.fn.net.3", hidden, width)
        else:
            shapes |= {f"{block}.norm{j}.scale": (width,) for j in (1, 2)}
            shapes |= _linear(f"{block}.attention.wQKV", width, 3 * inner)
            shapes |= _linear(f"{block}.attention.wO", inner, width)
            shapes |= _linear(f"{block}.mlp.0", width, 2 * hidden) | _linear(f"{block}.mlp.2", hidden, width)
    shapes |= _norm("prj.0", width) | _linear("prj.1", width, width)
    tensors = {name: values(name, shape) for name, shape in shapes.items()}
    return tensors | {f"tokgen_unit.scalar_encoders.{i}.scales": SCALES.clone() for i in range(2)}


def answer(tensors: Tensors, x: Tensor, mean: bool = False) -> Tensor:
    """The class token after the last block, (B, 1, time) -> (B, width); with `mean`, and the mean of the others."""
    t = {name.replace("vit_unit", "transf_unit"): tensor.double() for name, tensor in tensors.items()}
    first = any(".to_qkv." in name for name in t)
    tokens, token = _tokens(t, x[:, 0].double()), t["transf_unit.cls_token"].expand(len(x), 1, -1)
    tokens = torch.cat([token, tokens] if first else [tokens, token], dim=1)
    if first:
        tokens = tokens + t["transf_unit.pos_encoder.pe"][:, 0]
    depth = 1 + max(int(name.split(".")[3]) for name in t if ".transformer.layers." in name)
    for i in range(depth):
        tokens = (_block if first else _block_v2)(t, f"transf_unit.transformer.layers.{i}", tokens)
    if "transf_unit.norm.weight" in t:  # UTICA
        tokens = _normed(t, "transf_unit.norm", tokens)
    token, others = (tokens[:, 0], tokens[:, 1:]) if first else (tokens[:, -1], tokens[:, :-1])
    return (torch.cat([token, others.mean(1)], dim=1) if mean else token).float()


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _apply(t: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))


def _normed(t: Tensors, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)


def _tokens(t: Tensors, x: Tensor) -> Tensor:
    change = torch.cat([x[:, 1:] - x[:, :-1], torch.zeros_like(x[:, :1])], dim=1)
    parts = []
    for i, signal in enumerate((change, x)):
        signal = (signal - signal.mean(1, keepdim=True)) / (signal.std(1, keepdim=True) + 1e-5)
        kernel = t[f"tokgen_unit.convs.{i}.conv.weight"]
        y = F.conv1d(signal[:, None], kernel, t[f"tokgen_unit.convs.{i}.conv.bias"], padding=kernel.shape[2] // 2)
        y = _normed(t, f"tokgen_unit.layer_norms.{i}", y.mT)
        parts.append(y.unflatten(1, (-1, WINDOW)).mean(2))
    windows = x.unflatten(1, (-1, WINDOW))
    for i, number in enumerate((windows.mean(2), windows.std(2))):
        nearness = [1 / torch.log(number.abs() / float(k) + 1.1) for k in SCALES]
        encoded = []
        for j, k in enumerate(SCALES):
            name = f"tokgen_unit.scalar_encoders.{i}.encoders.{j}"
            y = number[:, :, None] * t[f"{name}.w"] + float(k) * t[f"{name}.b"]
            encoded.append(_normed(t, f"{name}.layer_norm", y, 1e-15) * (nearness[j] / sum(nearness))[:, :, None])
        parts.append(torch.stack(encoded).sum(0))
    y = _apply(t, "tokgen_unit.linear_encoder.linear", torch.cat(parts, dim=2))
    return _normed(t, "tokgen_unit.linear_encoder.layer_norm", y, 1e-15)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT / q.shape[3] ** 0.5).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(2)


def _block(t: Tensors, name: str, x: Tensor) -> Tensor:
    qkv = _apply(t, f"{name}.0.fn.to_qkv", _normed(t, f"{name}.0.norm", x))
    q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    x = x + _apply(t, f"{name}.0.fn.to_out.0", _attend(q, k, v))
    y = F.gelu(_apply(t, f"{name}.1.fn.net.0", _normed(t, f"{name}.1.norm", x)))
    return x + _apply(t, f"{name}.1.fn.net.3", y)


def _block_v2(t: Tensors, name: str, x: Tensor) -> Tensor:
    qkv = _apply(t, f"{name}.attention.wQKV", _rms(x) * t[f"{name}.norm1.scale"])
    q, k, v = qkv.unflatten(2, (3, -1, HEADS)).permute(2, 0, 4, 1, 3)  # stored as (qkv, head_dim, heads)
    x = x + _apply(t, f"{name}.attention.wO", _attend(_rotated(q, 1), _rotated(k, -1), v))
    gate, value = _apply(t, f"{name}.mlp.0", _rms(x) * t[f"{name}.norm2.scale"]).chunk(2, dim=2)
    return x + _apply(t, f"{name}.mlp.2", F.silu(gate) * value)


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-8).sqrt()


def _rotated(x: Tensor, sign: int) -> Tensor:
    """Pairs of neighbours turn as complex numbers; the decay of value j is that of pair j, counted round."""
    width, places = x.shape[3], torch.arange(x.shape[2], dtype=torch.float64)
    pairs = torch.view_as_complex(x.unflatten(3, (-1, 2)).contiguous())
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = places[:, None] * frequency
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(3)
    decay = (torch.arange(0, width, 2, dtype=torch.float64) + 0.4 * width) / (1.4 * width)
    power = (places - places[-1] // 2)[:, None] / 512
    return turned * decay.tile(2) ** (sign * power)
