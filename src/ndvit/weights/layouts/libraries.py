"""Our networks in other libraries: the arguments that build them there, and the names of their tensors."""

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

from ndvit.config import ViTConfig
from ndvit.network import VisionTransformer
from ndvit.weights.layouts.formats import FORMATS
from ndvit.weights.layouts.layout import Tensors
from ndvit.weights.reading.sidecars import TIMM, TRANSFORMERS

Library = Literal["timm", "transformers", "torchvision"]

# Fields of `ViTConfig` that a library can set, beside those that matter in training or to a stem only. Every other
# field must have its default; further conditions are in the functions _*_lacks.
_EVERYWHERE = {"input_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps", "num_classes"}
_EVERYWHERE |= {"representation_size", "pos_embed", "weight_init", "drop_rate", "attn_drop_rate", "drop_path_rate"}
_EVERYWHERE |= {"patch_drop_rate", "rope_base", "stem_depths", "stem_width", "stem_strides", "stem_kernel"}
_EVERYWHERE |= {"stem_dilations", "stem_numerics", "head_drop"}
_TRANSFORMERS = {"in_channels", "qkv_bias", "layer_scale", "num_registers", "pos_embed_prefix", "pooling", "distilled"}
_TRANSFORMERS |= {"activation"}
_FIELDS: dict[Library, set[str]] = {
    "timm": _EVERYWHERE | _TRANSFORMERS | {"qk_norm", "class_token", "pre_norm", "stem"},
    "transformers": _EVERYWHERE | _TRANSFORMERS,
    "torchvision": _EVERYWHERE,
}
_REMEDIES = {
    "merge_tokens": " (load the weights with merge_tokens=0)",
    "stem_head": " (used in training only: load the weights with stem_head=False)",
}
_HF_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def library_arguments(network: VisionTransformer, library: Library) -> dict[str, Any]:
    """The arguments that build the same network in another library.

    Returns:
        For timm, arguments of `create_model`; for transformers, the config of the class that "architectures" names; for
        torchvision, arguments of `VisionTransformer` (with "norm_eps", which its `norm_layer` has).

    Raises:
        ValueError: if the library has no network that computes the same.
    """
    if library not in get_args(Library):
        raise ValueError(f"library must be one of {', '.join(get_args(Library))}; got {library!r}")
    config = network.config
    arguments = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}[library]
    lacks = {"timm": _timm_lacks, "transformers": _transformers_lacks, "torchvision": _torchvision_lacks}[library]
    default, ours = ViTConfig().to_dict(), config.to_dict()
    missing = [
        f"{n}={ours[n]!r}{_REMEDIES.get(n, '')}" for n in ours if n not in _FIELDS[library] and ours[n] != default[n]
    ]
    if len(config.input_size) != 2:
        missing.append(f"networks of {len(config.input_size)} dimensions")
    if config.pos_embed == "rope":
        missing.append("rope under these names")
    missing += [what for what, applies in lacks(config) if applies]
    bias = network.patch_embed.proj.bias
    if config.pre_norm and library == "timm" and bias is not None and bias.detach().any():
        missing.append("a bias of patches before pre_norm")
    if missing:
        raise ValueError(f"{library} has no such Vision Transformer: it lacks {', '.join(missing)}")
    return arguments(config)


def rename(config: ViTConfig, tensors: Tensors, library: Library) -> Tensors:
    """Tensors of a network of this config under the names of a library that has it."""
    return {"timm": _to_timm, "transformers": _to_transformers, "torchvision": _to_torchvision}[library](
        config, tensors
    )


# ---- timm


def _timm_lacks(config: ViTConfig) -> Iterator[tuple[str, bool]]:
    resnet, gated = config.stem == "resnet", config.activation == "swiglu"
    units = config.stem_depths not in _HYBRIDS or config.stem_width != 64
    special = [config.stem != "none", config.distilled, gated, config.norm_eps == 1e-5]
    yield "a representation layer before the head", config.representation_size is not None
    yield f"pooling={config.pooling!r}", config.pooling in ("token_avg", "stem_tokens")
    hint = "load with norm_eps=1e-06: outputs change in the sixth digit"
    yield f"norm_eps {config.norm_eps} ({hint})", config.norm_eps not in (1e-6, 1e-5)
    yield f"the {config.stem} stem", config.stem in ("inception", "residual")
    yield f"a stem of {config.stem_depths} units", resnet and units
    hint = "load the weights with stem_numerics='timm'"
    yield f"Google's numerics in the stem ({hint})", resnet and config.stem_numerics != "timm"
    yield "swiglu without layer scale", gated and config.layer_scale is None
    yield "stem, distillation, swiglu and norm_eps 1e-05 in one network", sum(special) > 1


def _timm(config: ViTConfig) -> dict[str, Any]:
    name = "vit_base_patch16_224"
    if config.stem != "none":
        name = _HYBRIDS[config.stem_depths]
    elif config.distilled:
        name = "deit_base_distilled_patch16_224"
    elif config.activation == "swiglu":
        name = "vit_giant_patch14_dinov2"  # its gated MLP is the only one that plain values can choose
    elif config.norm_eps == 1e-5:
        name = "vit_base_patch16_clip_224"
    pooling, after = {"norm_avg": ("avg", False), "avg": ("avg", True)}.get(config.pooling, (config.pooling, False))
    arguments: dict[str, Any] = {
        **_renamed(config, TIMM),
        "model_name": name,
        "img_size": list(config.input_size),
        "num_classes": config.num_classes,
        "mlp_ratio": config.mlp_ratio * (2 if config.activation == "swiglu" else 1),  # timm counts both halves
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "class_token": config.class_token,
        "no_embed_class": not config.pos_embed_prefix,
        "reg_tokens": config.num_registers,
        "pre_norm": config.pre_norm,
        "fc_norm": after,
        "global_pool": pooling,
    }
    if config.stem != "none":
        del arguments["patch_size"]
    if config.activation in ("gelu_tanh", "quick_gelu"):
        arguments["act_layer"] = config.activation  # under the same names
    elif name == "vit_base_patch16_clip_224":
        arguments["act_layer"] = "gelu"
    if config.distilled:
        for fixed in ("class_token", "no_embed_class", "reg_tokens", "fc_norm", "global_pool"):
            del arguments[fixed]
    return arguments


def _to_timm(config: ViTConfig, tensors: Tensors) -> Tensors:
    out = dict(tensors)
    if config.pre_norm:
        out.pop("patch_embed.proj.bias")  # zero, as `library_arguments` checks
    if config.stem == "resnet" and not config.stem_depths:
        out = {name.replace("backbone.stem.", "backbone."): tensor for name, tensor in out.items()}
    return out


# ---- transformers


def _transformers_lacks(config: ViTConfig) -> Iterator[tuple[str, bool]]:
    gated = config.activation == "swiglu"
    if _hf_kind(config) == "dinov2":
        pooling = "token_avg" if config.num_classes else "token"
        wrong = f"pooling={config.pooling!r} with {config.num_classes} classes (token for 0, token_avg for more)"
        layers = config.distilled or config.representation_size is not None
        yield "registers without layer scale", config.layer_scale is None
        yield wrong, config.pooling != pooling
        yield "a distillation token or a representation layer beside layer scale", layers
        yield "a class token without position", config.num_registers == 0 and not config.pos_embed_prefix
        yield "registers with positions", bool(config.num_registers) and config.pos_embed_prefix
        yield "swiglu or a fractional mlp_ratio in its DINOv2", gated or not float(config.mlp_ratio).is_integer()
        return
    pooler = config.representation_size == config.embed_dim and not config.num_classes
    other = config.representation_size is not None and not pooler
    yield f"pooling={config.pooling!r}", config.pooling != "token"
    yield "a class token without position", not config.pos_embed_prefix
    yield "swiglu", gated
    yield "a distilled network without heads", config.distilled and not config.num_classes
    yield "a representation layer before a head, or of another width", other


def _hf_kind(config: ViTConfig) -> str:
    if config.layer_scale is not None or config.num_registers:
        return "dinov2"
    return "deit" if config.distilled else "vit"


def _transformers(config: ViTConfig) -> dict[str, Any]:
    kind = _hf_kind(config)
    activation = _HF_ACTIVATION[config.activation]
    out = _renamed(config, TRANSFORMERS) | {"model_type": kind, "hidden_act": activation, "qkv_bias": config.qkv_bias}
    if kind == "dinov2":
        out |= {"mlp_ratio": int(config.mlp_ratio), "layerscale_value": config.layer_scale}
        if config.num_registers:
            out |= {"model_type": "dinov2_with_registers", "num_register_tokens": config.num_registers}
        name = "Dinov2WithRegisters" if config.num_registers else "Dinov2"
        out["architectures"] = [f"{name}ForImageClassification" if config.num_classes else f"{name}Model"]
        return out
    out["intermediate_size"] = int(config.embed_dim * config.mlp_ratio)
    name = "ViTForImageClassification" if config.num_classes else "ViTModel"
    out["architectures"] = ["DeiTForImageClassificationWithTeacher" if kind == "deit" else name]
    return out


def _to_transformers(config: ViTConfig, tensors: Tensors) -> Tensors:
    kind = _hf_kind(config)
    name = {"vit": "transformers ViT", "deit": "transformers DeiT", "dinov2": "transformers DINOv2"}[kind]
    prefix = f"{kind}." if config.num_classes else ""
    if kind == "dinov2" and config.num_registers:
        prefix = "dinov2_with_registers." if config.num_classes else ""
        row = torch.zeros(1, 1, config.embed_dim)  # a position of its class token, which ours has added to the token
        tensors = tensors | {"pos_embed": torch.cat([row, tensors["pos_embed"]], dim=1)}
    out = _rename(tensors, name, prefix)
    if kind == "deit":  # the first of two classifiers has another name
        out = {re.sub("^classifier", "cls_classifier", name): tensor for name, tensor in out.items()}
    if kind == "dinov2":
        out[f"{prefix}embeddings.mask_token"] = torch.zeros(1, config.embed_dim)  # used in pretraining only
    return out


# ---- torchvision


def _torchvision_lacks(config: ViTConfig) -> Iterator[tuple[str, bool]]:
    square = len(set(config.input_size)) == 1 == len(set(config.patch_size))
    yield "inputs or patches that are not square", not square
    yield "a network without head", not config.num_classes


def _torchvision(config: ViTConfig) -> dict[str, Any]:
    return {
        "image_size": config.input_size[0],
        "patch_size": config.patch_size[0],
        "num_layers": config.depth,
        "num_heads": config.num_heads,
        "hidden_dim": config.embed_dim,
        "mlp_dim": int(config.embed_dim * config.mlp_ratio),
        "num_classes": config.num_classes,
        "representation_size": config.representation_size,
        "norm_eps": config.norm_eps,
    }


def _to_torchvision(config: ViTConfig, tensors: Tensors) -> Tensors:
    renamed = _rename(tensors, "torchvision", "")
    return {name.replace("in_proj.", "in_proj_"): tensor for name, tensor in renamed.items()}


# ---- shared


def _renamed(config: ViTConfig, names: dict[str, str]) -> dict[str, Any]:
    """Fields of a config under the names of a library; sizes that are the same along every axis are one number."""
    values = {theirs: getattr(config, ours) for theirs, ours in names.items()}
    sizes = {name: v[0] if len(set(v)) == 1 else list(v) for name, v in values.items() if isinstance(v, tuple)}
    return values | sizes


def _rename(tensors: Tensors, layout: str, prefix: str) -> Tensors:
    """Read the table of a layout backwards: the first of their names for each of ours. Heads have no prefix."""
    format, out = next(f for f in FORMATS if f.name == layout), Tensors()
    for name, tensor in tensors.items():
        rows, inside, block = format.top, name, ""
        if name.startswith("blocks."):
            _, index, inside = name.split(".", 2)
            rows, block = format.inner, format.blocks[0].format(index)
        before = "" if name.startswith("head") else prefix + block
        for module, *theirs in rows:
            base, bracket, part = module.partition("[")
            if inside != base and not inside.startswith(base + "."):
                continue
            piece = tensor
            if bracket:
                count = sum(row[0].startswith(f"{base}[") and row[0].endswith("]") for row in rows)
                piece = tensor.chunk(count)[int(part[0])]
            out[before + theirs[0] + inside[len(base) :]] = piece
            if not bracket:
                break
    return out
