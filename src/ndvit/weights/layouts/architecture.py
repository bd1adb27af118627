"""Infer the config of a network from the shapes of its tensors, under our names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ndvit.config import SIZES, ViTConfig, stem_stride
from ndvit.network.positions import sincos_positions
from ndvit.weights.layouts.layout import Converted

_HEADS = {row["embed_dim"]: row["num_heads"] for name, row in SIZES.items() if name not in ("pico", "nano")}
_HEADS |= {1152: 16, 1408: 16, 1536: 24, 1664: 16}  # So400m, ViT-g (CLIP), DINOv2-g, ViT-bigG
_ROPE_HEADS = {1280: 20, 4096: 32}  # DINOv3 H+ and 7B
_CLASSLESS_HEADS = {1536: 16}  # SigLIP 2 giant


@dataclass
class Inferred:
    """The config of a checkpoint, and a line for each field that was assumed."""

    config: ViTConfig
    tensors: dict[str, Tensor]
    assumed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def infer(
    converted: Converted, stated: Mapping[str, Any], where: object, size_hint: Sequence[int] | int | None = None
) -> Inferred:
    """Infer the config of a converted checkpoint.

    Fields in `stated`, from config.json or the zoo table, do not contradict the tensors. The input size `size_hint` is
    used only where nothing else determines it, because there are no positions or their grid is not square. Messages
    call the file `where`.

    Raises:
        ValueError: if tensors that every network has are missing, or a needed field cannot be inferred.
    """
    tensors = {name: tensor for name, tensor in converted.tensors.items() if tensor.numel()}  # zero registers
    needed = ("patch_embed.proj", "blocks.0.norm1", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
    for name in (f"{module}.weight" for module in needed):
        if name not in tensors:
            raise ValueError(f"{where}: the {converted.format.name} layout lacks {name}: the file is not complete")
    patch = tensors["patch_embed.proj.weight"]
    if not 3 <= patch.ndim <= 5:
        raise ValueError(
            f"{where}: patch_embed.proj.weight has shape {tuple(patch.shape)}; expected (width, channels, *patch) "
            "in one to three dimensions"
        )
    if size_hint is not None:
        size_hint = (size_hint,) * (patch.ndim - 2) if isinstance(size_hint, int) else tuple(size_hint)
    usual = dict(converted.format.usual)
    facts = usual | dict(stated) | converted.certain
    values: dict[str, Any] = _encoder(tensors) | _stem(tensors) | _tokens(tensors)
    values["patch_size"] = tuple(patch.shape[2:])
    result = Inferred(ViTConfig(), tensors, notes=list(converted.notes))
    _register_of(values, result)
    values["num_heads"] = facts.get("num_heads") or _heads(tensors, facts, result, where)
    values["pooling"] = _pooling(tensors, values["embed_dim"])
    if values["pooling"] == "token" and facts.get("pooling") in ("token", "avg", "norm_avg"):
        values["pooling"] = facts["pooling"]  # tensors tell the other poolings
    if values["pooling"] == "avg" and "norm.weight" in tensors:
        values["pooling"] = "norm_avg"
    for name in ("norm_eps", "activation", "rope_base", "stem_numerics"):
        if name in facts:
            values[name] = facts[name]
        matters = name in ("norm_eps", "activation") or (name == "stem_numerics" and "stem" in values)
        if matters and name not in {**stated, **converted.certain}:
            layout = converted.format.name
            result.assumed[name] = f"{name} {values.get(name)}, usual in the {layout} layout; set {name}="
    fc1, fc2 = tensors["blocks.0.mlp.fc1.weight"], tensors["blocks.0.mlp.fc2.weight"]
    if len(fc1) == 2 * fc2.shape[1]:
        values["activation"] = "swiglu"
        if "activation" in result.assumed:
            result.assumed["activation"] = "activation swiglu, as the first layer of the MLP is gated"
    values |= _positions(tensors, values, facts, size_hint, result, where)
    result.config = ViTConfig(**values)
    return result


def contradiction(stated: Mapping[str, Any], converted: Converted) -> str | None:
    """How stated fields contradict the tensors, in words; None if they agree."""
    tensors = converted.tensors
    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or "patch_embed.backbone.stem.conv.weight" in tensors:
        return None
    actual = {
        "embed_dim": len(patch),
        "in_channels": patch.shape[1],
        "patch_size": tuple(patch.shape[2:]),
        "depth": _depth(tensors),
    }
    if "num_heads" in converted.certain:
        actual["num_heads"] = converted.certain["num_heads"]
    for name, value in actual.items():
        if (claim := stated.get(name, value)) != value:
            return f"{name} is {claim} there, and {value} by the tensors"
    return None


def _depth(tensors: Mapping[str, Tensor]) -> int:
    # The blocks are counted: a number in a name could ask for a billion of them.
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})


def _encoder(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width, hidden = len(tensors["patch_embed.proj.weight"]), tensors["blocks.0.mlp.fc2.weight"].shape[1]
    ratio = hidden / width
    if int(width * ratio) != hidden:  # the quotient is rounded down
        ratio = math.nextafter(ratio, math.inf)
    return {
        "embed_dim": width,
        "depth": _depth(tensors),
        "mlp_ratio": ratio,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "patch_norm": "patch_embed.norm.weight" in tensors,
        "pre_norm": "norm_pre.weight" in tensors,
    }


def _stem(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    root = tensors.get("patch_embed.backbone.stem.conv.weight")
    if root is None:
        return {"in_channels": tensors["patch_embed.proj.weight"].shape[1]}
    units: dict[str, set[str]] = {}
    for name in tensors:
        if found := re.match(r"patch_embed\.backbone\.stages\.(\d)\.blocks\.(\d+)\.", name):
            units.setdefault(found[1], set()).add(found[2])
    return {
        "stem": "resnet",
        "stem_width": len(root),
        "stem_depths": tuple(len(units[stage]) for stage in sorted(units)),
        "in_channels": root.shape[1],
    }


def _tokens(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    registers, representation = tensors.get("reg_token"), tensors.get("pre_logits.fc.weight")
    head = tensors.get("head.weight")
    return {
        "class_token": "cls_token" in tensors,
        "distilled": "dist_token" in tensors,
        "num_registers": 0 if registers is None else registers.shape[1],
        "representation_size": None if representation is None else len(representation),
        "num_classes": 0 if head is None else len(head),
    }


def _register_of(values: dict[str, Any], result: Inferred) -> None:
    """Turn a distillation token without a head into a register, as it only takes part in attention."""
    tensors = result.tensors
    heads = {name for name in ("head.weight", "head_dist.weight", "pre_logits.fc.weight") if name in tensors}
    if not values["distilled"] or not heads or "head_dist.weight" in heads:
        return
    assert "reg_token" not in tensors, "no layout has both"
    tensors["reg_token"] = tensors.pop("dist_token")
    values |= {"distilled": False, "num_registers": 1}
    result.notes.append("the distillation token has no head in this file, and is kept as a register")


def _heads(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], result: Inferred, where: object) -> int:
    width = len(tensors["patch_embed.proj.weight"])
    if "blocks.0.attn.q_norm.weight" in tensors:
        return width // len(tensors["blocks.0.attn.q_norm.weight"])
    if "rope_periods" in tensors:  # one for each pair of a head's values along each axis
        return width // (2 * len(tensors["rope_periods"]) * (tensors["patch_embed.proj.weight"].ndim - 2))
    usual = _HEADS | (_ROPE_HEADS if facts.get("pos_embed") == "rope" else {})
    usual |= {} if "cls_token" in tensors else _CLASSLESS_HEADS
    if width not in usual and width % 64:
        raise ValueError(
            f"{where}: the number of heads cannot be inferred from the tensors, and a width of {width} has no usual "
            "one: set num_heads= (--num-heads for `ndvit info`, `convert` and `train`)"
        )
    heads = usual.get(width, width // 64)
    result.assumed["num_heads"] = f"num_heads {heads}, usual at width {width}; set num_heads="
    return heads


def _pooling(tensors: Mapping[str, Tensor], width: int) -> str:
    if "attn_pool.latent" in tensors:
        return "map"
    if "fc_norm.weight" in tensors:
        return "avg"
    if "cls_token" not in tensors:
        return "norm_avg"
    read = tensors.get("pre_logits.fc.weight", tensors.get("head.weight"))
    return "token_avg" if read is not None and read.shape[1] == 2 * width else "token"


def _positions(
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    facts: Mapping[str, Any],
    size_hint: tuple[int, ...] | None,
    result: Inferred,
    where: object,
) -> dict[str, Any]:
    """The input size and how positions are embedded, from the number of positions."""
    patch = values["patch_size"]
    stride = stem_stride(values.get("stem", "none"), values.get("stem_depths", ()))
    token = tuple(p * stride for p in patch)
    prefix = values["class_token"] + values["distilled"] + values["num_registers"]
    stated = facts.get("input_size")
    stated = (stated,) * len(patch) if isinstance(stated, int) else stated
    if "pos_embed" not in tensors:
        if facts.get("pos_embed") not in ("rope", "sincos"):
            raise ValueError(f"{where} has no positions (pos_embed), which its layout stores: the file is not complete")
        if stated is None and size_hint is not None and len(size_hint) == len(token):
            stated = size_hint
        if stated is None:
            stated = tuple(round(224 / t) * t for t in token)
            result.assumed["input_size"] = f"input_size {stated}: no tensor depends on it; set input_size="
        if facts.get("pos_embed") == "rope":
            return {"pos_embed": "rope", "pos_embed_prefix": False, "input_size": stated}
        # The fixed positions of big_vision are not stored, and have other frequencies than those of MAE.
        grid = tuple(s // t for s, t in zip(stated, token))
        tensors["pos_embed"] = sincos_positions(grid, values["embed_dim"], endpoint=True)[None]
        result.notes.append("the file has no positions: big_vision's fixed sines and cosines were computed")
        return {"pos_embed_prefix": False, "input_size": stated}
    count = tensors["pos_embed"].shape[1]
    # Checkpoints do not store the grid. Published grids are squares (cubes in 3-D), so only here the side is computed
    # as a root of the number of tokens.
    squares = {w: round(max(count - prefix * w, 0) ** (1 / len(patch))) for w in (True, False)}
    guesses = [(w, tuple(side * t for t in token)) for w, side in squares.items()]
    guesses = [(w, tuple(stated)) for w in squares if stated is not None] + guesses
    guesses += [(w, size_hint) for w in squares if size_hint is not None]
    for with_prefix, size in guesses:
        grid = tuple(s // t for s, t in zip(size, token))
        if len(size) == len(token) and math.prod(grid) == count - prefix * with_prefix > 0:
            covered = tuple(g * t for g, t in zip(grid, token))
            if covered != size:
                result.notes.append(
                    f"trained at {size}, of which whole patches cover {covered}, which is the input size here"
                )
            return {"pos_embed_prefix": with_prefix, "input_size": covered}
    raise ValueError(
        f"{where} has {count} positions for {prefix} prefix tokens and a grid that is not square: set input_size= to "
        f"the size of its training, a multiple of {token}"
    )
