"""Infer the config of a network from the shapes of its tensors, under our names."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ndvit.config import SIZES, ViTConfig, stem_stride
from ndvit.network.positions import sincos_positions
from ndvit.weights.layouts.layout import Converted
from ndvit.weights.structure import times

_HEADS = {row["embed_dim"]: row["num_heads"] for name, row in SIZES.items() if name not in ("pico", "nano")}
_HEADS |= {1152: 16, 1408: 16, 1536: 24, 1664: 16}  # So400m, ViT-g (CLIP), DINOv2-g, ViT-bigG
_ROPE_HEADS = {1280: 20, 4096: 32}  # DINOv3 H+ and 7B
_CLASSLESS_HEADS = {1536: 16}  # SigLIP 2 giant


_STEM_FIELDS: dict[str, Any] = {"stem": "none", "stem_depths": (), "stem_strides": ()}  # that its stride depends on


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

    Fields in `stated`, from config.json or the zoo table, do not contradict the tensors. `size_hint` is the input size
    that the user wants: it is that of the training if the positions fit it exactly and nothing stated does. Messages
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
    values: dict[str, Any] = _encoder(tensors) | _stem(tensors, facts) | _tokens(tensors)
    values["patch_size"] = tuple(patch.shape[2:])
    result = Inferred(ViTConfig(), tensors, notes=list(converted.notes))
    _register_of(values, result)
    values["num_heads"] = facts.get("num_heads") or _heads(tensors, facts, result, where)
    proj = tensors.get("blocks.0.attn.proj.weight")
    if proj is not None and proj.shape[1] != values["embed_dim"]:
        values["head_dim"] = proj.shape[1] // values["num_heads"]
    values["pooling"] = _pooling(tensors, values["embed_dim"])
    if values["pooling"] == "token" and facts.get("pooling") in ("token", "avg", "norm_avg", "prefix_avg"):
        values["pooling"] = facts["pooling"]  # tensors tell the other poolings
    if values["pooling"] == "avg" and "norm.weight" in tensors:
        values["pooling"] = "norm_avg"
    values["final_norm"] = facts.get("final_norm", True) or "norm.weight" in tensors
    for name in ("norm_eps", "activation", "rope_base", "stem_numerics", "norm", "patch_norm_eps", "patch_stride"):
        if name in facts:
            values[name] = facts[name]
        matters = name in ("norm_eps", "activation") or (name == "stem_numerics" and values.get("stem") == "resnet")
        if matters and name not in {**stated, **converted.certain}:
            layout = converted.format.name
            result.assumed[name] = f"{name} {values.get(name)}, usual in the {layout} layout; set {name}="
    if "head_norm.weight" in tensors:
        values["head_norm"] = facts.get("head_norm", "none")
    fc1, fc2 = tensors["blocks.0.mlp.fc1.weight"], tensors["blocks.0.mlp.fc2.weight"]
    if len(fc1) == 2 * fc2.shape[1]:
        values["activation"] = "swiglu"
        if "activation" in result.assumed:
            result.assumed["activation"] = "activation swiglu, as the first layer of the MLP is gated"
    values |= _positions(tensors, values, facts, size_hint, result, converted, where)
    result.config = ViTConfig(**values)
    return result


def determined(converted: Converted) -> dict[str, Any]:
    """Fields of `ViTConfig` that the tensors of a plain ViT determine; of one with a stem outputs and heads."""
    tensors, head = converted.tensors, converted.tensors.get("head.weight")
    actual: dict[str, Any] = {"num_classes": 0 if head is None or not head.ndim else len(head)}
    actual |= {name: converted.certain[name] for name in ("num_heads",) if name in converted.certain}
    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or any(name.startswith("patch_embed.backbone.") for name in tensors):
        return actual
    actual |= {"embed_dim": len(patch), "in_channels": patch.shape[1], "patch_size": tuple(patch.shape[2:])}
    return actual | {"depth": _depth(tensors)}


def contradiction(stated: Mapping[str, Any], actual: Mapping[str, Any]) -> str | None:
    """How stated fields contradict those that the tensors determine, in words; None if they agree."""
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


def _stem(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    windowed = tensors.get("patch_embed.backbone.branches.0.conv.weight")
    if windowed is not None:
        return {
            "stem": "mantis",
            "stem_depths": (1,),
            "stem_strides": facts["stem_strides"],
            "stem_width": windowed.shape[0],
            "in_channels": windowed.shape[1],
            "stem_kernel": windowed.shape[2],
        }
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
    converted: Converted,
    where: object,
) -> dict[str, Any]:
    """The input size and how positions are embedded, from the number of positions."""
    patch = values["patch_size"]
    stride = stem_stride(*(values.get(name, usual) for name, usual in _STEM_FIELDS.items()))
    token = tuple(p * stride for p in patch)
    step = tuple(p * stride for p in values.get("patch_stride", patch))
    prefix = values["class_token"] + values["distilled"] + values["num_registers"]
    stated = facts.get("input_size")
    stated = (stated,) * len(patch) if isinstance(stated, int) else stated
    if "pos_embed" not in tensors:
        if facts.get("pos_embed") not in ("rope", "xpos", "sincos"):
            raise ValueError(f"{where} has no positions (pos_embed), which its layout stores: the file is not complete")
        if stated is None and size_hint is not None and len(size_hint) == len(token):
            stated = size_hint
        if stated is None:
            stated = tuple(round(224 / t) * t for t in token)
            result.assumed["input_size"] = f"input_size {stated}: no tensor depends on it; set input_size="
        if facts["pos_embed"] in ("rope", "xpos"):
            return {"pos_embed": facts["pos_embed"], "pos_embed_prefix": False, "input_size": stated}
        # The fixed positions of big_vision are not stored, and have other frequencies than those of MAE.
        grid = _grid(stated, token, step)
        tensors["pos_embed"] = sincos_positions(grid, values["embed_dim"], endpoint=True)[None]
        result.notes.append("the file has no positions: big_vision's fixed sines and cosines were computed")
        return {"pos_embed_prefix": False, "input_size": stated}
    count = tensors["pos_embed"].shape[1]
    leading, usual = _leading(values, converted)
    fits = list(_fitting(count, leading, usual, token, step, stated, size_hint))
    if not fits:
        raise ValueError(
            f"{where} has {count} positions for {prefix} prefix tokens and a grid that is not square: set input_size= "
            f"to the size of its training, a multiple of {token}"
        )
    chosen = fits[0]
    if chosen.doubtful or (len({(fit.leading, fit.grid) for fit in fits}) > 1 and chosen.size != stated):
        others = [fit.text(prefix) for fit in fits if (fit.leading, fit.grid) != (chosen.leading, chosen.grid)]
        also = f" ({' or '.join(dict.fromkeys(others))} would fit, too)" if others else ""
        result.assumed["grid"] = (
            f"a grid of {chosen.text(prefix)} for {count} positions{also}; set input_size= to the size of the training"
        )
    covered = chosen.size if step != token else tuple(g * t for g, t in zip(chosen.grid, token))
    if covered != chosen.size:
        result.notes.append(
            f"trained at {chosen.size}, of which whole patches cover {covered}, which is the input size here"
        )
    if chosen.leading and chosen.leading != prefix:  # a position for the class token alone, before registers
        tensors["cls_token"] = tensors["cls_token"].float() + tensors["pos_embed"][:, :1].float()
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    return {"pos_embed_prefix": chosen.leading == prefix, "input_size": covered}


@dataclass(frozen=True)
class _Fit:
    """One way to read the positions of a file."""

    leading: int  # positions before those of the patches
    size: tuple[int, ...]
    grid: tuple[int, ...]
    doubtful: bool  # whether nothing but the number of positions says so, and another shape is as possible

    def text(self, prefix: int) -> str:
        """The grid in words; whether prefix tokens have positions, if there are such tokens."""
        tokens = ("with" if self.leading else "without") + " a position for the class token"
        return times(self.grid) + (f" {tokens}" if prefix else "")


def _leading(values: Mapping[str, Any], converted: Converted) -> tuple[tuple[int, ...], bool]:
    """Possible numbers of positions before those of the patches, the likeliest first, and whether it is the rule."""
    prefix: int = values["class_token"] + values["distilled"] + values["num_registers"]
    if not prefix:
        return (0,), True
    if "dist_token" in converted.tensors:
        return (prefix,), True
    registers = values["num_registers"] > 0
    if converted.format.class_position:
        return (1 if registers else prefix,), True
    if not values["class_token"]:
        return (0, prefix), False
    # timm gives no positions to registers and, in DeiT III (with layer scale), to the class token; the releases of
    # DINOv2 have one for the class token alone.
    return ((0, 1, prefix), False) if registers else ((prefix, 0), values["layer_scale"] is None)


def _fitting(
    count: int,
    leading: tuple[int, ...],
    usual: bool,
    token: tuple[int, ...],
    step: tuple[int, ...],
    stated: tuple[int, ...] | None,
    hint: tuple[int, ...] | None,
) -> Iterator[_Fit]:
    """Every way to read a number of positions, the likeliest first.

    A stated size comes first, then the size that the user wants, then a square (in 3-D a cube): published grids are
    squares. Of a network whose class token has a position by the rule, a square with it comes before a wanted size
    without it: otherwise weights of 7 x 7 patches could not be adapted to 5 x 10. Along one axis any number fits.
    """

    def sizes(first: int, kind: str) -> Iterator[_Fit]:
        patches = count - first
        if kind == "square":
            guesses = _regular(patches, token, step)
        else:
            guesses = [size for size in (stated if kind == "stated" else hint,) if size is not None]
        for size in guesses:
            grid = _grid(size, token, step)
            exact = kind == "stated" or all((s - t) % n == 0 for s, t, n in zip(size, token, step))
            if len(size) == len(token) and exact and math.prod(grid) == patches > 0:
                yield _Fit(first, tuple(size), grid, kind == "square" and len(token) > 1)

    first, *others = leading
    order = [(n, "stated") for n in leading] + [(first, "hint")]
    if usual and len(token) > 1:
        order += [(first, "square")] + [(n, kind) for kind in ("hint", "square") for n in others]
    else:
        order += [(n, "hint") for n in others] + [(n, "square") for n in leading]
    for number, kind in order:
        yield from sizes(number, kind)


def _grid(size: Sequence[int], token: tuple[int, ...], step: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each axis, of so many samples at such steps."""
    return tuple((s - t) // n + 1 for s, t, n in zip(size, token, step))


def _regular(patches: int, token: tuple[int, ...], step: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Square inputs of so many patches, and inputs with a square grid, which are others if a patch is not square."""
    axes = len(token)
    side = round(max(patches * math.prod(token), 0) ** (1 / axes))
    whole = [(side,) * axes] if step == token and all(side % t == 0 for t in token) else []
    square = tuple((round(max(patches, 0) ** (1 / axes)) - 1) * n + t for t, n in zip(token, step))
    return [*whole, square]
