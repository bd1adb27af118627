"""The tables of published layouts, one `Format` each, and what other networks look like."""

import math
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ndvit.network.positions import rope_periods, xpos_decay
from ndvit.network.stems.mantis import SCALES
from ndvit.weights.errors import some
from ndvit.weights.layouts.layout import Format, Rows, Tensors
from ndvit.weights.reading.zoo import STATISTICS

_IMAGENET, _HALF, _CLIP = (dict(zip(("mean", "std"), STATISTICS[name])) for name in ("imagenet", "half", "clip"))
_COVER = {"interpolation": "bicubic", "crop_fraction": 0.875, "resize": "cover"}
_COVER_WHOLE = {"interpolation": "bicubic", "crop_fraction": 1.0, "resize": "cover"}
_STRETCH = {"interpolation": "bilinear", "crop_fraction": 1.0, "resize": "stretch"}

_PRETRAINING = "used in pretraining only"
_DECODER = "the decoder of masked pretraining; only the encoder is used"
_TEXT = "the text side of an image-text model"


def unknown_layout(names: Iterable[str], where: object) -> str:
    """The message for tensors among which no layout is found; it names what the file looks like."""
    names = list(names)
    likeness = next((what for marks, what in _FOREIGN if any(re.search(marks, name) for name in names)), None)
    what = f"looks like {likeness}" if likeness else "has no layout that ndvit knows"
    return (
        f"{where} is no Vision Transformer that ndvit can read: with {len(names)} tensors such as "
        f"{some(sorted(names)[:4])} it {what}. Known layouts: {', '.join(f.name for f in FORMATS)}"
    )


# ---- timm, and the layouts like it: releases of DeiT, MAE, DINOv2 and DINOv3, and the article


def _zero_key_biases(tensors: Tensors) -> Tensors:
    """Set the biases of keys to zero: DINOv3 masks them, and its files hold arbitrary values for them."""
    out = dict(tensors)
    for name in out:
        if name.endswith("attn.qkv.bias"):
            query, _key, value = out[name].chunk(3)
            out[name] = torch.cat([query, torch.zeros_like(query), value])
    return out


_TIMM_TOP: Rows = (
    ("patch_embed.backbone.stem.conv", "patch_embed.backbone.conv"),  # R+ViT-Ti/16 has a root and no stages
    ("patch_embed.backbone.stem.norm", "patch_embed.backbone.norm"),
    ("reg_token", "register_tokens", "storage_tokens"),
    ("rope_periods", "rope_embed.periods"),
)
_TIMM_INNER: Rows = (
    ("ls1.gamma", "gamma_1"),
    ("ls2.gamma", "gamma_2"),
    ("attn.qkv[0].bias", "attn.q_bias"),
    ("attn.qkv[2].bias", "attn.v_bias"),
    ("mlp.fc1", "mlp.w12"),
    ("mlp.fc1[0]", "mlp.w1", "mlp.fc1_g"),
    ("mlp.fc1[1]", "mlp.w2", "mlp.fc1_x"),
    ("mlp.fc2", "mlp.w3"),
)
_TIMM_MARKS = (r"patch_embed\.proj\.weight", r"blocks\.0\.norm1\.weight", r"blocks\.0\.attn\.qkv\.weight")
_DINO3_MARK = r"(storage_tokens|rope_embed\.periods)"
_MAE_MARK, _MASK_MARK, _ARTICLE_MARK = r"decoder_blocks\..*", r"mask_token", r"patch_embed\.norm\.weight"
_CLIP_MARK = r"norm_pre\.weight"
# Networks with rotary positions, some of which no tensor shows.
_EVA = (r"blocks\.0\.attn\.q_bias", r"blocks\.0\.mlp\.fc1_g\.weight", r"rope\..*")
_BEIT = (r"blocks\.0\.attn\.(relative_position_bias_table|rel_pos_h)", r"rel_pos_bias\..*", r"head\.fc\..*")
_TIMM_USUAL = {"norm_eps": 1e-6, "activation": "gelu", "stem_numerics": "timm"}
_DINO3_USUAL = {"norm_eps": 1e-5, "activation": "gelu", "pos_embed": "rope"}


def _timm(name: str, marks: tuple[str, ...] = (), absent: tuple[str, ...] = (), **rest: Any) -> Format:
    rest = {"usual": _TIMM_USUAL, "preprocess": _IMAGENET | _COVER} | rest
    return Format(name=name, marks=_TIMM_MARKS + marks, absent=_BEIT + absent, top=_TIMM_TOP, inner=_TIMM_INNER, **rest)


# ---- Google's .npz: kernels are (..., in, out), heads have their own axis, norms may be (1, 1, 1, C)

_GOOGLE_TOP: Rows = (
    ("cls_token", "cls"),
    ("pos_embed", "Transformer.posembed_input.pos_embedding", "pos_embedding"),
    ("patch_embed.proj", "embedding"),
    ("patch_embed.backbone.stem.conv", "conv_root"),
    ("patch_embed.backbone.stem.norm", "gn_root"),
    ("norm", "Transformer.encoder_norm"),
    ("pre_logits.fc", "pre_logits"),
    ("attn_pool.latent", "MAPHead_0.probe"),
    ("attn_pool.q", "MAPHead_0.MultiHeadDotProductAttention_0.query"),
    ("attn_pool.kv[0]", "MAPHead_0.MultiHeadDotProductAttention_0.key"),
    ("attn_pool.kv[1]", "MAPHead_0.MultiHeadDotProductAttention_0.value"),
    ("attn_pool.proj", "MAPHead_0.MultiHeadDotProductAttention_0.out"),
    ("attn_pool.norm", "MAPHead_0.LayerNorm_0"),
    ("attn_pool.mlp.fc1", "MAPHead_0.MlpBlock_0.Dense_0"),
    ("attn_pool.mlp.fc2", "MAPHead_0.MlpBlock_0.Dense_1"),
    ("head", "head"),
)
# Flax first counted modules over all classes, later per class.
_OLD, _NEW = "MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"
_GOOGLE_INNER: Rows = (
    ("norm1", "LayerNorm_0"),
    ("attn.qkv[0]", f"{_OLD}.query", f"{_NEW}.query"),
    ("attn.qkv[1]", f"{_OLD}.key", f"{_NEW}.key"),
    ("attn.qkv[2]", f"{_OLD}.value", f"{_NEW}.value"),
    ("attn.proj", f"{_OLD}.out", f"{_NEW}.out"),
    ("norm2", "LayerNorm_2", "LayerNorm_1"),
    ("mlp.fc1", "MlpBlock_3.Dense_0", "MlpBlock_0.Dense_0"),
    ("mlp.fc2", "MlpBlock_3.Dense_1", "MlpBlock_0.Dense_1"),
)
_GOOGLE_PREFIX = r"(opt/target/|params/img/|params/)?"


def _from_jax(tensors: Tensors) -> Tensors:
    """Axes in the order of torch, dots for slashes, and numbered blocks in place of a scanned axis of depth."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        name = re.sub(f"^{_GOOGLE_PREFIX}", "", name)
        if name.startswith("txt/"):
            out[name.replace("/", ".")] = tensor
            continue
        layers = [(name, tensor)]
        if tensor.numel() and (scanned := re.fullmatch(r"Transformer/encoderblock/(.+)", name)):
            layers = [(f"Transformer/encoderblock_{i}/{scanned[1]}", layer) for i, layer in enumerate(tensor)]
        for path, value in layers:
            stage = re.match(r"block(\d+)/unit(\d+)/(.+)", path)
            if stage:
                block, unit, rest = int(stage[1]) - 1, int(stage[2]) - 1, stage[3]
                rest = rest.replace("conv_proj", "downsample/conv").replace("gn_proj", "downsample/norm")
                rest = re.sub(r"^gn(\d)", r"norm\1", rest)
                path = f"patch_embed/backbone/stages/{block}/blocks/{unit}/{rest}"
            path, leaf = path.rpartition("/")[::2]
            value = _to_torch(path, leaf, value)
            leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
            out[f"{path}/{leaf}".strip("/").replace("/", ".")] = value
    return out


def _to_torch(path: str, leaf: str, value: Tensor) -> Tensor:
    if leaf in ("scale", "bias"):
        return value.flatten()
    if leaf != "kernel":
        return value
    if path.endswith("/out"):
        return _transposed(value.flatten(0, 1))  # (heads, head_dim, D) -> (D, D)
    if path.endswith(("/query", "/key", "/value")):
        return _transposed(value.flatten(1))  # (D, heads, head_dim) -> (D, D)
    return value.permute(-1, -2, *range(value.ndim - 2))  # (..., in, out) -> (out, in, ...)


def _transposed(value: Tensor) -> Tensor:
    """The tensor with its axes reversed: of a matrix the transpose. A damaged file may have any number of them."""
    return value.permute(*range(value.ndim - 1, -1, -1))


_GOOGLE_USUAL: dict[str, Any] = {"norm_eps": 1e-6, "activation": "gelu_tanh", "stem_numerics": "google"}


_google = partial(
    Format,
    top=_GOOGLE_TOP,
    blocks=("Transformer.encoderblock_{}.",),
    inner=_GOOGLE_INNER,
    preprocess=_HALF | _STRETCH,
    usual=_GOOGLE_USUAL,
    prepare=_from_jax,
)


# ---- transformers: first the names of version 5's modules, then those of its files and of older versions

_HF_BLOCK: Rows = (
    ("attn.qkv[0]", "attention.q_proj", "attention.attention.query", "self_attn.q_proj"),
    ("attn.qkv[1]", "attention.k_proj", "attention.attention.key", "self_attn.k_proj"),
    ("attn.qkv[2]", "attention.v_proj", "attention.attention.value", "self_attn.v_proj"),
    ("attn.proj", "attention.o_proj", "attention.output.dense", "self_attn.out_proj"),
    ("mlp.fc1", "mlp.fc1", "intermediate.dense", "mlp.weights_in"),
    ("mlp.fc2", "mlp.fc2", "output.dense", "mlp.weights_out", "mlp.down_proj"),
)
_HF_INNER: Rows = (*_HF_BLOCK, ("norm1", "layernorm_before"), ("norm2", "layernorm_after"))
_HF_TOP: Rows = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection", "embeddings.patch_embeddings"),
    ("dist_token", "embeddings.distillation_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("norm", "layernorm", "norm"),
    ("pre_logits.fc", "pooler.dense"),
    ("head", "classifier", "cls_classifier"),
    ("head_dist", "distillation_classifier"),
)
_HF_DINO_INNER: Rows = (
    *_HF_BLOCK,
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("mlp.fc1[0]", "mlp.gate_proj"),
    ("mlp.fc1[1]", "mlp.up_proj"),
)
_HF_TOWER_TOP: Rows = (  # CLIP and SigLIP
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding.weight"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("norm_pre", "pre_layrnorm"),  # their spelling
    ("norm", "post_layernorm"),
    ("head", "visual_projection", "classifier"),
    ("attn_pool.latent", "head.probe"),
    ("attn_pool.qkv", "head.attention.in_proj"),
    ("attn_pool.proj", "head.attention.out_proj"),
    ("attn_pool.norm", "head.layernorm"),
    ("attn_pool.mlp", "head.mlp"),
)
_HF_TEXT = ((r"^(text_model|text_projection|logit_)", _TEXT), (r"position_ids$", "only counts positions"))


def _in_proj(tensors: Tensors) -> Tensors:
    """Separate the names of torch's MultiheadAttention by a dot in place of an underscore."""
    return {re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", name): tensor for name, tensor in tensors.items()}


def _tower(tensors: Tensors) -> Tensors:
    """Reshape the vectors of CLIP, and split the fused projection of the pooling into query and key with value."""
    out = dict(tensors)
    for name in ("cls_token", "pos_embed"):
        if name in out:
            out[name] = out[name].reshape(1, -1, out[name].shape[-1])
    for leaf in ("weight", "bias"):
        if f"attn_pool.qkv.{leaf}" in out:
            fused = out.pop(f"attn_pool.qkv.{leaf}")
            third = len(fused) // 3
            out[f"attn_pool.q.{leaf}"], out[f"attn_pool.kv.{leaf}"] = fused[:third], fused[third:]
    return out


_hf = partial(
    Format,
    top=_HF_TOP,
    blocks=("layers.{}.", "encoder.layer.{}."),
    inner=_HF_INNER,
    usual={"norm_eps": 1e-12, "activation": "gelu"},
    preprocess=_IMAGENET | _COVER,
    ignore=((r"mask_token$", _PRETRAINING),),
    class_position=True,
)
_hf_tower = partial(
    Format,
    prefixes=("vision_model.", ""),
    top=_HF_TOWER_TOP,
    blocks=("encoder.layers.{}.",),
    inner=(*_HF_BLOCK, ("norm1", "layer_norm1"), ("norm2", "layer_norm2")),
    usual={"norm_eps": 1e-6, "activation": "gelu_tanh"},
    preprocess=_HALF | _COVER_WHOLE | {"resize": "stretch"},
    ignore=_HF_TEXT,
    prepare=_in_proj,
    finish=_tower,
    class_position=True,
)
_SIGLIP = (
    r"embeddings\.patch_embedding\.weight",
    r"encoder\.layers\.0\.layer_norm1\.weight",
    r"embeddings\.position_embedding\.weight",
)


def _plain_up(tensors: Tensors) -> Tensors:
    """Rename up_proj in DINOv3 without a gate, where it is the whole first layer and not one half of it."""
    if any("gate_proj" in name for name in tensors):
        return dict(tensors)
    return {name.replace("mlp.up_proj", "mlp.fc1"): tensor for name, tensor in tensors.items()}


# ---- torchvision

_TORCHVISION_TOP: Rows = (
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj", "conv_proj"),
    ("norm", "encoder.ln"),
    ("pre_logits.fc", "heads.pre_logits"),
    ("head", "heads.head", "heads"),  # as built, and as users replace it
)
_TORCHVISION_INNER: Rows = (
    ("norm1", "ln_1"),
    ("attn.qkv", "self_attention.in_proj"),
    ("attn.proj", "self_attention.out_proj"),
    ("norm2", "ln_2"),
    ("mlp.fc1", "mlp.0", "mlp.linear_1"),
    ("mlp.fc2", "mlp.3", "mlp.linear_2"),
)

# ---- Mantis, whose first version also has the weights of UTICA: networks of one channel of a signal

_MANTIS_TOP: Rows = (
    ("patch_embed.backbone.branches.0.conv", "tokgen_unit.convs.0.conv"),
    ("patch_embed.backbone.branches.1.conv", "tokgen_unit.convs.1.conv"),
    ("patch_embed.backbone.branches.0.norm", "tokgen_unit.layer_norms.0"),
    ("patch_embed.backbone.branches.1.norm", "tokgen_unit.layer_norms.1"),
    ("patch_embed.backbone.scalars", "tokgen_unit.scalar_encoders"),
    ("patch_embed.proj", "tokgen_unit.linear_encoder.linear"),
    ("patch_embed.norm", "tokgen_unit.linear_encoder.layer_norm"),
    ("cls_token", "transf_unit.cls_token", "vit_unit.cls_token"),
    ("pos_embed", "transf_unit.pos_encoder.pe", "vit_unit.pos_encoder.pe"),
    ("norm", "transf_unit.norm", "vit_unit.norm"),  # UTICA
)
_MANTIS_SCALARS = {  # tensors of the encoder of each scale, and the rows of ours that they become
    "w": "slope",
    "b": "shift",
    "layer_norm.weight": "norm_weight",
    "layer_norm.bias": "norm_bias",
}
_MANTIS_USUAL = {"num_heads": 8, "stem_strides": (16,), "input_size": (512,)}
_MANTIS_CERTAIN = {"activation": "gelu", "norm_eps": 1e-5, "patch_norm_eps": 1e-15}


def _join_scales(tensors: Tensors) -> Tensors:
    """Join the encoders of the scales, and leave the scales out, which are constants."""
    out, parts = Tensors(), dict[str, dict[int, Tensor]]()
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(tokgen_unit\.scalar_encoders\.\d)\.encoders\.(\d)\.(.+)", name):
            leaf = _MANTIS_SCALARS.get(match[3], match[3])
            parts.setdefault(f"{match[1]}.{leaf}", {})[int(match[2])] = tensor
        elif not name.endswith(".scales"):
            out[name] = tensor
        elif tensor.shape != (len(SCALES),) or not torch.allclose(tensor.float(), torch.tensor(SCALES)):
            raise ValueError(f"{name} is {tensor.tolist()[:10]}: ndvit has Mantis with the scales {SCALES} only")
    return out | {name: torch.cat([found[i] for i in sorted(found)]) for name, found in parts.items()}


def _mantis_tokens(tensors: Tensors) -> Tensors:
    """Give the linear layer of the patches a kernel of one place, and class token and positions a batch axis."""
    out = dict(tensors)
    if "patch_embed.proj.weight" in out:
        out["patch_embed.proj.weight"] = out["patch_embed.proj.weight"].unsqueeze(-1)
    for name in ("cls_token", "pos_embed"):
        if name in out:
            out[name] = out[name].reshape(1, -1, out[name].shape[-1])
    return out


def _mantis_v2_heads(tensors: Tensors) -> Tensors:
    """Reorder the values of the heads, and compute the rotations, which are not in the file.

    MantisV2 stores them as (qkv, head_dim, heads), and rotates the values 2i and 2i + 1 of a head together, where ours
    rotates i and i + head_dim / 2. Its decay has the order of ours, so value j there has that of place j here.
    """
    out, heads = _mantis_tokens(tensors), _MANTIS_USUAL["num_heads"]
    for name in [name for name in out if ".attn.qkv." in name]:
        parts = out[name].unflatten(0, (3, -1, heads)).transpose(1, 2)  # (3, heads, head_dim, ...)
        rotated = torch.cat([parts[:2, :, 0::2], parts[:2, :, 1::2]], dim=2)
        out[name] = torch.cat([rotated, parts[2:]]).flatten(0, 2)
        head_dim = parts.shape[2]
        decay = xpos_decay(head_dim, 1)
        out["xpos_decay"] = torch.cat([decay[0::2], decay[1::2]])
        out["rope_periods"] = 2 * math.pi * rope_periods(head_dim, 1, 10_000.0)
    return out


_mantis = partial(
    Format,
    top=_MANTIS_TOP,
    ignore=((r"(^|\.)prj\.", _PRETRAINING), (r"\.mask_token$", _PRETRAINING)),
    signal={"resize": "resample"},
    prepare=_join_scales,
)
_MANTIS_MARK = r"tokgen_unit\.linear_encoder\.linear\.weight"

FORMATS: tuple[Format, ...] = (
    _timm("timm", (r"pos_embed",), (_DINO3_MARK, _MAE_MARK, _MASK_MARK, _ARTICLE_MARK, _CLIP_MARK, *_EVA)),
    _timm(
        "timm CLIP",
        (r"pos_embed", _CLIP_MARK),
        (_MAE_MARK, _MASK_MARK, _ARTICLE_MARK, r"attn_pool\..*", *_EVA),  # with attention pooling: Perception Encoder
        usual=_TIMM_USUAL | {"norm_eps": 1e-5},
        without_bias=("patch_embed.proj",),
        preprocess=_CLIP | _COVER_WHOLE,
    ),
    _timm(
        "timm DINOv3", ("cls_token", "reg_token", r"blocks\.0\.gamma_1"), (_DINO3_MARK, "pos_embed"), usual=_DINO3_USUAL
    ),
    _timm("article", (_ARTICLE_MARK, "pos_embed"), (_DINO3_MARK, _MAE_MARK, _MASK_MARK), preprocess=None),
    _timm("MAE", (_MAE_MARK,), class_position=True, ignore=((r"^(decoder_.*|mask_token)$", _DECODER),)),
    _timm(
        "DINOv2",
        (_MASK_MARK,),
        (_DINO3_MARK, _MAE_MARK),
        class_position=True,
        ignore=((r"^mask_token$", _PRETRAINING),),
    ),
    _timm(
        "DINOv3",
        (_DINO3_MARK,),
        ignore=((r"^(mask_token$|local_cls_norm|projectors\.)", _PRETRAINING), (r"\.bias_mask$", "zeroes key biases")),
        usual=_DINO3_USUAL,
        finish=_zero_key_biases,
    ),
    _google(
        name="google",
        class_position=True,
        marks=(_GOOGLE_PREFIX + "embedding/kernel", ".*Transformer/posembed_input/pos_embedding"),
        ignore=((r"^opt\.state\.", "the state of the optimiser"),),
    ),
    _google(
        name="big_vision",
        marks=(_GOOGLE_PREFIX + "embedding/kernel", ".*Transformer/encoder_norm/scale"),
        absent=(".*Transformer/posembed_input/pos_embedding",),
        usual=_GOOGLE_USUAL | {"pos_embed": "sincos"},  # used where the file has no positions
        ignore=((r"^(txt\.|t$|b$)", _TEXT),),
    ),
    Format(
        name="torchvision",
        class_position=True,
        marks=(r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight"),
        top=_TORCHVISION_TOP,
        blocks=("encoder.layers.encoder_layer_{}.",),
        inner=_TORCHVISION_INNER,
        usual={"norm_eps": 1e-6, "activation": "gelu"},
        preprocess=_IMAGENET | _COVER | {"interpolation": "bilinear"},
        prepare=_in_proj,
    ),
    _hf(
        name="transformers ViT",
        marks=(r"embeddings\.patch_embeddings\.projection\.weight", r".*\.0\.layernorm_before\.weight"),
        absent=(r".*distillation_token", r"decoder\..*", r".*(lambda_1|relative_position.*)"),
        prefixes=("vit.", ""),
        preprocess=_HALF | _STRETCH,
    ),
    _hf(
        name="transformers DeiT",
        marks=(r"embeddings\.distillation_token",),
        absent=(r"classifier\.dense\.weight",),
        prefixes=("deit.", ""),
        preprocess=_IMAGENET | _COVER | {"resize": "stretch"},
    ),
    _hf(
        name="transformers ViTMAE",
        marks=(r"decoder\.decoder_embed\.weight", r"vit\.embeddings\.cls_token"),
        prefixes=("vit.",),
        ignore=((r"^decoder\.", _DECODER),),
    ),
    _hf(
        name="transformers DINOv2",
        marks=(r"embeddings\.patch_embeddings\.projection\.weight", r".*\.0\.layer_scale1\.lambda1"),
        prefixes=("dinov2.", "dinov2_with_registers.", ""),
        blocks=("encoder.layer.{}.", "layers.{}."),
        inner=_HF_DINO_INNER,
        usual={"norm_eps": 1e-6, "activation": "gelu"},
    ),
    _hf(
        name="transformers DINOv3",
        marks=(r"embeddings\.patch_embeddings\.weight", r".*layer\.0\.layer_scale1\.lambda1"),
        prefixes=("dinov3_vit.", ""),
        blocks=("model.layer.{}.", "layer.{}."),
        inner=_HF_DINO_INNER,
        usual=_DINO3_USUAL,
        preprocess=_IMAGENET | _STRETCH,
        prepare=_plain_up,
    ),
    _hf_tower(
        name="transformers CLIP",
        marks=(r"embeddings\.class_embedding", r"pre_layrnorm\.weight"),
        absent=(r"classifier\.weight",),  # the classifier reads tokens before the final norm
        usual={"norm_eps": 1e-5, "activation": "quick_gelu"},
        without_bias=("patch_embed.proj", "head"),  # the head is a projection
        preprocess=_CLIP | _COVER_WHOLE,
    ),
    _hf_tower(name="transformers SigLIP", marks=_SIGLIP, absent=(r".*class_embedding", r"classifier\.weight")),
    _hf_tower(
        name="transformers SigLIP classifier",
        marks=(*_SIGLIP, r"classifier\.weight"),
        absent=(r".*class_embedding",),
        ignore=((r"^(vision_model\.)?head\.", "the classifier reads the mean of the patches instead"), *_HF_TEXT),
    ),
    _hf(
        name="transformers AST",
        marks=(r"embeddings\.distillation_token", r"classifier\.dense\.weight"),
        prefixes=("audio_spectrogram_transformer.", ""),
        top=(
            ("reg_token", "embeddings.distillation_token"),
            ("head_norm", "classifier.layernorm"),
            ("head", "classifier.dense"),
            *_HF_TOP,
        ),
        usual={"norm_eps": 1e-12, "activation": "gelu", "input_size": (128, 1024), "patch_stride": (10, 10)},
        certain={"pooling": "prefix_avg", "head_norm": "layer"},
        preprocess=None,
        signal={"mean": (-4.2677393,), "std": (2 * 4.5689974,)},  # of AudioSet, halved
        class_position=False,  # of DINOv2 and others, whose registers have none
    ),
    _mantis(
        name="Mantis",
        marks=(_MANTIS_MARK, r"(vit|transf)_unit\.transformer\.layers\.0\.0\.fn\.to_qkv\.weight"),
        blocks=("transf_unit.transformer.layers.{}.", "vit_unit.transformer.layers.{}."),
        inner=(
            ("norm1", "0.norm"),
            ("attn.qkv", "0.fn.to_qkv"),
            ("attn.proj", "0.fn.to_out.0"),
            ("norm2", "1.norm"),
            ("mlp.fc1", "1.fn.net.0"),
            ("mlp.fc2", "1.fn.net.3"),
        ),
        usual=_MANTIS_USUAL | {"final_norm": False},
        certain=_MANTIS_CERTAIN,
        class_position=True,
        finish=_mantis_tokens,
    ),
    _mantis(
        name="MantisV2",
        marks=(_MANTIS_MARK, r"transf_unit\.transformer\.layers\.0\.attention\.wQKV\.weight"),
        blocks=("transf_unit.transformer.layers.{}.",),
        inner=(
            ("norm1.weight", "norm1.scale"),
            ("attn.qkv", "attention.wQKV"),
            ("attn.proj", "attention.wO"),
            ("norm2.weight", "norm2.scale"),
            ("mlp.fc1", "mlp.0"),
            ("mlp.fc2", "mlp.2"),
        ),
        usual=_MANTIS_USUAL | {"final_norm": False},
        certain=_MANTIS_CERTAIN
        | {"num_heads": 8, "norm": "rms", "norm_eps": 1e-8, "pos_embed": "xpos", "rope_base": 10_000.0},
        finish=_mantis_v2_heads,
    ),
)

_FOREIGN: tuple[tuple[str, str], ...] = (  # for the message only; the first match counts
    (r"lora_[AB]\b", "a LoRA adapter: merge it into its model and save that"),
    (r"embeddings\.class_embedding$", "a classifier on CLIP, whose head reads tokens before the final norm"),
    (r"(^|\.)layer1\.0\.conv1\.weight$|resnet", "a ResNet"),
    (r"relative_position_bias_table.*|layers\.0\.blocks\.0\.attn", "a Swin Transformer or BEiT"),
    (r"stages\.0\.blocks\.0\.(conv_dw|gamma)|downsample_layers\.|features\.1\.0\.layer_scale", "a ConvNeXt"),
    (r"conv_stem\.weight|features\.1\.0\.block\.|_blocks\.0\.", "an EfficientNet or MobileNet"),
    (r"(^|\.)features\.0\.weight$", "a VGG or AlexNet"),
    (
        r"to_patch_embedding\.|transformer\.layers\.0\.0\.",
        "a Vision Transformer of vit-pytorch, which ndvit cannot read",
    ),
    (r"(^|\.)visual\.(transformer|conv1|trunk)\b", "an OpenCLIP model: save its image tower through timm"),
    (r"attention\.self\.query\.|embeddings\.word_embeddings", "a language model (BERT)"),
    (r"self_attn\.q_proj\.weight|transformer\.h\.0\.|embed_tokens\.weight", "a language model"),
    (r"^(exp_avg|param_groups|optim)|\.exp_avg(_sq)?$", "the state of an optimiser"),
    (
        r"blocks\.0\.attn\.(q_proj\.weight|q_bias)|(^|\.)rope\.",
        "an EVA or another Vision Transformer with rotary positions",
    ),
    (r"patch_embed\.proj\.weight$", "a Vision Transformer with parts that ndvit does not have"),
)
