"""What other libraries can express of our networks: the arguments that build them there, and their names of tensors."""

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

from ndvit.config import ViTConfig
from ndvit.network import VisionTransformer
from ndvit.weights.layouts.formats import FORMATS
from ndvit.weights.layouts.layout import Format, Tensors

Library = Literal["timm", "transformers", "torchvision"]

_HF_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def library_arguments(model: VisionTransformer, library: Library) -> dict[str, Any]:
    """What builds the same network in another library.

    Returns:
        For timm, arguments of `create_model`; for transformers, the config of the class that "architectures" names; for
        torchvision, arguments of `VisionTransformer` (with "norm_eps", which it takes inside of `norm_layer`).

    Raises:
        ValueError: if the library has no network that computes the same.
    """
    if library not in get_args(Library):
        raise ValueError(f"library must be one of {', '.join(get_args(Library))}; got {library!r}")
    config = model.config
    describe = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}[library]
    lacking = {"timm": _timm_lacks, "transformers": _transformers_lack, "torchvision": _torchvision_lacks}[library]
    missing = list(lacking(config))
    bias = model.patch_embed.proj.bias
    if config.pre_norm and library == "timm" and bias is not None and bias.detach().any():
        missing.append("a bias of patches before pre_norm")
    if missing:
        raise ValueError(f"{library} has no such Vision Transformer: it lacks {', '.join(missing)}")
    return describe(config)


def rename(config: ViTConfig, tensors: Tensors, library: Library) -> Tensors:
    """Tensors of a network of this config under the names of a library that has it."""
    return {"timm": _to_timm, "transformers": _to_transformers, "torchvision": _to_torchvision}[library](
        config, tensors
    )


# ---- timm


def _timm_lacks(config: ViTConfig) -> Iterator[str]:
    yield from _common_lacks(config)
    if config.representation_size is not None:
        yield "a representation layer before the head"
    if config.pooling == "token_avg":
        yield "pooling='token_avg'"
    if config.norm_eps not in (1e-6, 1e-5):
        yield f"norm_eps {config.norm_eps} (load with norm_eps=1e-06: outputs change in the sixth digit)"
    if config.stem == "resnet" and (config.stem_depths not in _HYBRIDS or config.stem_width != 64):
        yield f"a stem of {config.stem_depths} units"
    if config.stem == "resnet" and config.stem_numerics != "timm":
        yield "Google's numerics in the stem (load the weights with stem_numerics='timm')"
    if config.activation == "swiglu" and config.layer_scale is None:
        yield "swiglu without layer scale"
    special = [config.stem != "none", config.distilled, config.activation == "swiglu", config.norm_eps == 1e-5]
    if sum(special) > 1:
        yield "stem, distillation, swiglu and norm_eps 1e-05 in one network"


def _timm(config: ViTConfig) -> dict[str, Any]:
    name = "vit_base_patch16_224"
    if config.stem != "none":
        name = _HYBRIDS[config.stem_depths]
    elif config.distilled:
        name = "deit_base_distilled_patch16_224"
    elif config.activation == "swiglu":
        name = "vit_giant_patch14_dinov2"  # the only way to a gated MLP whose arguments are plain values
    elif config.norm_eps == 1e-5:
        name = "vit_base_patch16_clip_224"
    pooling, after = {"norm_avg": ("avg", False), "avg": ("avg", True)}.get(config.pooling, (config.pooling, False))
    arguments: dict[str, Any] = {
        "model_name": name,
        "img_size": list(config.input_size),
        "in_chans": config.in_channels,
        "num_classes": config.num_classes,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio * (2 if config.activation == "swiglu" else 1),  # theirs counts both halves
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
    if config.stem == "none":
        arguments["patch_size"] = config.patch_size[0] if len(set(config.patch_size)) == 1 else list(config.patch_size)
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
        out.pop("patch_embed.proj.bias")  # zero, as `library_arguments` made sure
    if config.stem == "resnet" and not config.stem_depths:
        out = {name.replace("backbone.stem.", "backbone."): tensor for name, tensor in out.items()}
    return out


# ---- transformers


def _transformers_lack(config: ViTConfig) -> Iterator[str]:
    yield from _common_lacks(config)
    kind = _hf_kind(config)
    if config.stem != "none":
        yield "a stem"
    if config.qk_norm:
        yield "qk_norm"
    if config.pre_norm:
        yield "pre_norm"
    if not config.class_token:
        yield "a network without class token"
    if kind == "dinov2":
        if config.layer_scale is None:
            yield "registers without layer scale"
        if config.pooling != ("token_avg" if config.num_classes else "token"):
            yield f"pooling={config.pooling!r} with {config.num_classes} classes (token for 0, token_avg for more)"
        if config.distilled or config.representation_size is not None:
            yield "a distillation token or a representation layer beside layer scale"
        if config.num_registers == 0 and not config.pos_embed_prefix:
            yield "a class token without position"
        if config.num_registers and config.pos_embed_prefix:
            yield "registers with positions"
        if config.activation == "swiglu" or not float(config.mlp_ratio).is_integer():
            yield "swiglu or a fractional mlp_ratio in its DINOv2"
        return
    if config.pooling != "token":
        yield f"pooling={config.pooling!r}"
    if not config.pos_embed_prefix:
        yield "a class token without position"
    if config.activation == "swiglu":
        yield "swiglu"
    if config.distilled and not config.num_classes:
        yield "a distilled network without heads"
    if config.representation_size is not None and (
        config.num_classes or config.representation_size != config.embed_dim
    ):
        yield "a representation layer before a head, or of another width"


def _hf_kind(config: ViTConfig) -> str:
    if config.layer_scale is not None or config.num_registers:
        return "dinov2"
    return "deit" if config.distilled else "vit"


def _transformers(config: ViTConfig) -> dict[str, Any]:
    kind = _hf_kind(config)
    size, patch = (v[0] if len(set(v)) == 1 else list(v) for v in (config.input_size, config.patch_size))
    out: dict[str, Any] = {
        "model_type": kind,
        "image_size": size,
        "patch_size": patch,
        "num_channels": config.in_channels,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": _HF_ACTIVATION[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }
    if kind == "dinov2":
        out |= {"mlp_ratio": int(config.mlp_ratio), "layerscale_value": config.layer_scale}
        if config.num_registers:
            out |= {"model_type": "dinov2_with_registers", "num_register_tokens": config.num_registers}
        name = "Dinov2WithRegisters" if config.num_registers else "Dinov2"
        out["architectures"] = [f"{name}ForImageClassification" if config.num_classes else f"{name}Model"]
        return out
    out["intermediate_size"] = int(config.embed_dim * config.mlp_ratio)
    if kind == "deit":
        out["architectures"] = ["DeiTForImageClassificationWithTeacher"]
    else:
        out["architectures"] = ["ViTForImageClassification" if config.num_classes else "ViTModel"]
    return out


def _to_transformers(config: ViTConfig, tensors: Tensors) -> Tensors:
    kind = _hf_kind(config)
    name = {"vit": "transformers ViT", "deit": "transformers DeiT", "dinov2": "transformers DINOv2"}[kind]
    tensors = dict(tensors)
    prefix = f"{kind}." if config.num_classes else ""
    if kind == "dinov2" and config.num_registers:
        prefix = "dinov2_with_registers." if config.num_classes else ""
        row = torch.zeros(1, 1, config.embed_dim)  # its class token has a position, added to the token here
        tensors["pos_embed"] = torch.cat([row, tensors["pos_embed"]], dim=1)
    out = _rename(tensors, _format(name), prefix)
    if kind == "deit":  # two classifiers, the first of which has a name of its own beside the other
        out = {re.sub("^classifier", "cls_classifier", name): tensor for name, tensor in out.items()}
    if kind == "dinov2":
        out[f"{prefix}embeddings.mask_token"] = torch.zeros(1, config.embed_dim)  # there, and used in pretraining only
    return out


# ---- torchvision


def _torchvision_lacks(config: ViTConfig) -> Iterator[str]:
    yield from _common_lacks(config)
    sizes = {"input_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps", "num_classes"}
    sizes |= {"representation_size", "pos_embed"}
    no_matter = {"weight_init", "drop_rate", "attn_drop_rate", "drop_path_rate", "patch_drop_rate"}
    no_matter |= {"rope_base", "stem_depths", "stem_width", "stem_strides", "stem_kernel", "stem_dilations"}
    no_matter |= {"stem_numerics", "head_drop"}
    theirs, ours = ViTConfig().to_dict(), config.to_dict()
    yield from (f"{n}={ours[n]!r}" for n in ours if n not in sizes | no_matter and ours[n] != theirs[n])
    if len(set(config.input_size)) > 1 or len(set(config.patch_size)) > 1:
        yield "inputs or patches that are not square"
    if not config.num_classes:
        yield "a network without head"


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
    renamed = _rename(tensors, _format("torchvision"), "")
    return {name.replace("in_proj.", "in_proj_"): tensor for name, tensor in renamed.items()}


# ---- what they share


def _common_lacks(config: ViTConfig) -> Iterator[str]:
    if len(config.input_size) != 2:
        yield f"networks of {len(config.input_size)} dimensions"
    if config.pos_embed == "rope":
        yield "rope under these names"
    if config.merge_tokens:
        yield f"merge_tokens={config.merge_tokens} (load the weights with merge_tokens=0)"
    if config.qk_scale is not None:
        yield "qk_scale"
    if config.patch_norm:
        yield "a norm after the patches"
    if config.stem in ("inception", "residual"):
        yield f"the {config.stem} stem"
    if config.patch_overlap:
        yield "overlapping patches"
    if config.relative_bias:
        yield "relative positions after the softmax"
    if config.pooling == "stem_tokens":
        yield "pooling='stem_tokens'"
    if config.head_norm != "none":
        yield f"head_norm={config.head_norm!r}"
    if config.rocket_features:
        yield "random convolution features"
    if config.stem_head:
        yield "a second head over the stem (it is for training only: load the weights with stem_head=False)"


def _format(name: str) -> Format:
    return next(f for f in FORMATS if f.name == name)


def _rename(tensors: Tensors, format: Format, prefix: str) -> Tensors:
    """Read a format's table backwards: the first of their names for each of ours. Heads stand outside the prefix."""
    out: Tensors = {}
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
