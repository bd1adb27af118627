"""The network that a set of tensors belongs to, inferred from their shapes under our names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ndvit.config import SIZES, ViTConfig, stem_stride
from ndvit.network.grid import sincos_positions
from ndvit.weights.layouts.layout import Converted

_HEADS = {row["embed_dim"]: row["num_heads"] for name, row in SIZES.items() if name not in ("pico", "nano")}
_HEADS |= {1152: 16, 1408: 16, 1536: 24, 1664: 16}  # So400m, ViT-g (CLIP), DINOv2-g, ViT-bigG
_ROPE_HEADS = {1280: 20, 4096: 32}  # DINOv3 H+ and 7B
_CLASSLESS_HEADS = {1536: 16}  # SigLIP 2 giant


@dataclass
class Inferred:
    """The config of a checkpoint, and what of it no tensor tells: a line for each field that was assumed."""

    config: ViTConfig
    tensors: dict[str, Tensor]
    assumed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def infer(
    converted: Converted, told: Mapping[str, Any], where: object, size_hint: Sequence[int] | int | None = None
) -> Inferred:
    """Infer the config of a converted checkpoint.

    Args:
        converted: tensors under our names.
        told: fields that config.json or the table of weights states and that `refute` did not find wrong.
        where: the file, for messages.
        size_hint: the input size, believed only where nothing else tells it and the positions, if there are any, are of
            no square grid.

    Raises:
        ValueError: if tensors that every network has are missing, or the shapes leave open what they must not.
    """
    tensors = {name: tensor for name, tensor in converted.tensors.items() if tensor.numel()}  # no registers are none
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
    facts = usual | dict(told) | converted.certain
    values: dict[str, Any] = _encoder(tensors) | _stem(tensors) | _tokens(tensors)
    values["patch_size"] = tuple(patch.shape[2:])
    result = Inferred(ViTConfig(), tensors, notes=list(converted.notes))
    _register_of(values, result)
    values["num_heads"] = facts.get("num_heads") or _heads(tensors, facts, result, where)
    values["pooling"] = _pooling(tensors, values["embed_dim"])
    if values["pooling"] in ("token", "norm_avg") and facts.get("pooling") in ("token", "avg", "norm_avg"):
        values["pooling"] = facts["pooling"] if values["class_token"] else values["pooling"]  # tensors tell the rest
    if values["pooling"] == "avg" and "norm.weight" in tensors:
        values["pooling"] = "norm_avg"
    for name in ("norm_eps", "activation", "rope_base", "stem_numerics"):
        if name in facts:
            values[name] = facts[name]
        matters = name in ("norm_eps", "activation") or (name == "stem_numerics" and "stem" in values)
        if matters and name not in {**told, **converted.certain}:
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


def refute(told: Mapping[str, Any], converted: Converted) -> str | None:
    """Say how stated fields contradict the tensors, or None where they agree."""
    tensors = converted.tensors
    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or "patch_embed.backbone.stem.conv.weight" in tensors:
        return None
    is_so = {
        "embed_dim": len(patch),
        "in_channels": patch.shape[1],
        "patch_size": tuple(patch.shape[2:]),
        "depth": _depth(tensors),
    }
    for name, value in is_so.items():
        said = told.get(name, value)
        if name == "patch_size":
            said = (said,) * len(patch.shape[2:]) if isinstance(said, int) else tuple(said)
        if said != value:
            return f"it says {name} {said}, the tensors {value}"
    heads = converted.certain.get("num_heads")
    if heads is not None and told.get("num_heads", heads) != heads:
        return f"it says num_heads {told['num_heads']}, the tensors {heads}"
    return None


def _depth(tensors: Mapping[str, Tensor]) -> int:
    # counted: the highest number stands in a name alone, and could ask for a billion blocks
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})


def _encoder(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width, hidden = len(tensors["patch_embed.proj.weight"]), tensors["blocks.0.mlp.fc2.weight"].shape[1]
    ratio = hidden / width
    if int(width * ratio) != hidden:  # the quotient was rounded down
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
    """A distillation token without a head of its own is a register: it only takes part in attention."""
    tensors = result.tensors
    heads = {name for name in ("head.weight", "head_dist.weight", "pre_logits.fc.weight") if name in tensors}
    if not values["distilled"] or not heads or "head_dist.weight" in heads:
        return
    registers = [tensors.pop("dist_token")] + ([tensors["reg_token"]] if "reg_token" in tensors else [])
    assert len(registers) == 1, "no layout has both"
    tensors["reg_token"] = registers[0]
    values |= {"distilled": False, "num_registers": 1}
    result.notes.append("the distillation token has no head of its own here, and is kept as a register")


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
            f"{where}: the tensors do not tell the number of heads, and a width of {width} has no usual one: "
            "say num_heads= (--num-heads for `ndvit info`, `convert` and `train`)"
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
    told = facts.get("input_size")
    told = (told,) * len(patch) if isinstance(told, int) else told
    if "pos_embed" not in tensors:
        if facts.get("pos_embed") not in ("rope", "sincos"):
            raise ValueError(f"{where} has no positions (pos_embed), which its layout keeps: the file is not complete")
        if told is None and size_hint is not None and len(size_hint) == len(token):
            told = size_hint
        if told is None:
            told = tuple(round(224 / t) * t for t in token)
            result.assumed["input_size"] = f"input_size {told}: no tensor depends on it; set input_size="
        if facts.get("pos_embed") == "rope":
            return {"pos_embed": "rope", "pos_embed_prefix": False, "input_size": told}
        # big_vision's fixed positions are not saved with its weights, and differ from MAE's in their frequencies
        grid = tuple(s // t for s, t in zip(told, token))
        tensors["pos_embed"] = sincos_positions(grid, values["embed_dim"], endpoint=True)[None]
        result.notes.append("the file has no positions: big_vision's fixed sines and cosines were computed")
        return {"pos_embed_prefix": False, "input_size": told}
    count = tensors["pos_embed"].shape[1]
    # Checkpoints do not hold the grid. Published ones are squares (a line in 1-D, a cube in 3-D), so this is the one
    # place where a root of a number of tokens is taken.
    squares = {w: round(max(count - prefix * w, 0) ** (1 / len(patch))) for w in (True, False)}
    guesses = [(w, tuple(side * t for t in token)) for w, side in squares.items()]
    guesses = [(w, tuple(told)) for w in squares if told is not None] + guesses
    guesses += [(w, size_hint) for w in squares if size_hint is not None]
    for with_prefix, size in guesses:
        grid = tuple(s // t for s, t in zip(size, token))
        if len(size) == len(token) and math.prod(grid) == count - prefix * with_prefix > 0:
            covered = tuple(g * t for g, t in zip(grid, token))
            if covered != size:
                result.notes.append(
                    f"trained at {size}, of which whole patches cover {covered}: that is the input here"
                )
            return {"pos_embed_prefix": with_prefix, "input_size": covered}
    raise ValueError(
        f"{where} has {count} positions for {prefix} prefix tokens and a grid that is not square: say the size that it "
        f"was trained at, a multiple of {token}, by input_size="
    )
