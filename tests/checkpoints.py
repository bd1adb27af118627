"""Small checkpoints of every kind that ndvit reads, made by the libraries that publish them, each with a reference.

`CASES[name](folder, seed)` builds a network of another library with parameters that all matter, writes it the way such
weights are published, and returns where it lies, what computes the right answers, and what should be recognised.
Used by tests/test_weights_formats.py and benchmarks/weights.py.
"""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ndvit._torchvision  # noqa: F401

# isort: split
import numpy as np
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import mantisnetwork
from googlefiles import NEW, OLD, Arrays, forward, make_arrays, scan

WIDTH, DEPTH, HEADS, CLASSES = 64, 2, 2, 7


@dataclass
class Sample:
    """A checkpoint on disk, and what is true of it."""

    path: Path
    kind: str
    """The layout that should be recognised."""
    reference: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    """Of one input: channels, then the size."""
    library: str
    """What the reference is computed by."""
    container: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Arguments of load_model: what neither tensors nor config.json tell."""
    zeros: int = 0
    """Values of the network that the file leaves out: biases of zero, and the rotations of MantisV2."""
    folded: int = 0
    """Values of the file that are added to others."""
    tolerance: float = 2e-5


CASES: dict[str, Callable[[Path, int], Sample]] = {}


def case(name: str, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Sample]], Callable[..., Sample]]:
    """Enter a builder into the table under a name, with arguments of its own after the folder and the seed."""

    def enter(build: Callable[..., Sample]) -> Callable[..., Sample]:
        assert name not in CASES
        CASES[name] = lambda folder, seed=0: build(folder, seed, *args, **kwargs)
        return build

    return enter


# ---- parameters that matter: norms near 1, biases of 0.2, attention that is far from uniform, answers of order 1

_TOKENS = re.compile(r"token|pos_emb|position_emb|class_embedding|latent|probe")
_FACTORS = re.compile(r"gamma|lambda1|(norm|ln|bn|layrnorm)[\w.]*weight$|scale$")


def values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random values for a tensor of this name in any library; matrices are (out, in), Google's kernels (in, out)."""
    x = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.2 * x
    if _TOKENS.search(name):
        return 0.5 * x
    if "kernel" in name:
        heads_out = "/out/" in name or "conv" in name or "embedding" in name
        last = 2 if re.search("/(query|key|value)/", name) else 1
        fan_in = math.prod(shape[:-last] if "encoderblock/" not in name else shape[1:-last])
        return x * (0.01 if "conv" in name else (1.0 if heads_out else 1.5) / fan_in**0.5)
    if len(shape) == 1 or _FACTORS.search(name):
        return (1 + 0.2 * x) * (0.3 if re.search(r"(norm3|gn3)", name) else 1)  # else rounding grows over fifty layers
    if "backbone" in name and len(shape) == 4:
        return 0.01 * x  # standardised before use; so small that the epsilon shows
    return x * 1.5 / math.prod(shape[1:]) ** 0.5


def randomise(model: nn.Module, seed: int) -> Any:
    """Fill a network with values of one seed, and put it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values(name, tuple(parameter.shape), generator))
    return model.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}


def write(tensors: dict[str, Tensor], folder: Path, container: str) -> Path:
    """Write tensors as they are published: bare safetensors, or a training script's .pth."""
    if container == "safetensors":
        path = folder / "weights.safetensors"
        save_file(tensors, path)
        return path
    path = folder / "weights.pth"
    path.unlink(missing_ok=True)  # tensors that were read from it may still be mapped into memory
    saved: dict[str, Any] = tensors
    if "model" in container:
        saved = {"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=1e-3, model="vit")}
    torch.save(saved, path)
    return path


# ---- timm

_SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": CLASSES, "img_size": 64}
_TWO = {"num_heads": HEADS}
_ROPE = {"num_classes": 0, "global_pool": "token"}


@case("timm/plain", "vit_base_patch16_224")
@case("timm/plain .pth", "vit_base_patch16_224", container="pth {model}")
@case("timm/plain DDP .pth", "vit_base_patch16_224", container="pth {model}", prefix="module.")
@case("timm/plain float16", "vit_base_patch16_224", dtype=torch.float16)
@case("timm/plain bfloat16", "vit_base_patch16_224", dtype=torch.bfloat16)
@case("timm/plain headless", "vit_base_patch16_224", {"num_classes": 0})
@case("timm/DINOv2 with registers bfloat16", "vit_base_patch14_reg4_dinov2", {"img_size": 56}, dtype=torch.bfloat16)
@case("timm/patch 8, one channel", "vit_base_patch8_224", {"in_chans": 1, "img_size": 32})
@case("timm/patch 32, twelve channels", "vit_base_patch32_224", {"in_chans": 12})
@case("timm/without qkv bias", "vit_base_patch16_224", {"qkv_bias": False})
@case("timm/DeiT-III", "deit3_base_patch16_224")
@case("timm/DeiT distilled", "deit_base_distilled_patch16_224")
@case("timm/DeiT distilled headless", "deit_base_distilled_patch16_224", {"num_classes": 0})
@case("timm/DINOv2", "vit_base_patch14_dinov2", {"img_size": 56})
@case("timm/DINOv2 with registers", "vit_base_patch14_reg4_dinov2", {"img_size": 56})
@case("timm/DINOv2 giant SwiGLU", "vit_giant_patch14_dinov2", {"img_size": 56, "mlp_ratio": 170 / 64})
@case("timm/CLIP", "vit_base_patch16_clip_224", kind="timm CLIP", zeros=WIDTH)
@case(
    "timm/CLIP quick_gelu",
    "vit_base_patch16_clip_quickgelu_224",
    kind="timm CLIP",
    more={"activation": "quick_gelu"},
    zeros=WIDTH,
)
@case("timm/SigLIP", "vit_base_patch16_siglip_224", {"num_classes": 0})
@case("timm/SigLIP with a head", "vit_base_patch16_siglip_224")
@case("timm/SigLIP tanh", "vit_so400m_patch16_siglip_256", {"mlp_ratio": 171 / 64}, more={"activation": "gelu_tanh"})
@case("timm/SigLIP gap", "vit_base_patch16_siglip_gap_224")
@case("timm/registers, gap", "vit_medium_patch16_reg4_gap_256")
@case("timm/registers, map", "vit_so150m_patch16_reg4_map_256", {"mlp_ratio": 3})
@case("timm/qk-norm", "vit_base_patch16_224", {"qk_norm": True}, more={"num_heads": None})
@case(
    "timm/qk-norm, four heads, register, gap",
    "vit_little_patch16_reg1_gap_256",
    {"num_heads": 4, "qk_norm": True},
    more={"num_heads": None},
)
@case("timm/average with fc_norm", "vit_base_patch16_224", {"global_pool": "avg"})
@case("timm/odd hidden size", "vit_base_patch16_224", {"mlp_ratio": 171 / 64})
@case("timm/hybrid R50+B/16", "vit_base_r50_s16_224")
@case("timm/hybrid R26+S/32", "vit_small_r26_s32_224")
@case("timm/hybrid R+Ti/16", "vit_tiny_r_s16_p8_224")
@case("timm/DINOv3", "vit_base_patch16_dinov3", _ROPE, kind="timm DINOv3")
@case("timm/DINOv3 qkvb", "vit_base_patch16_dinov3_qkvb", _ROPE, kind="timm DINOv3", zeros=DEPTH * WIDTH)
@case("timm/DINOv3 gated", "vit_small_plus_patch16_dinov3_qkvb", _ROPE, kind="timm DINOv3", zeros=DEPTH * WIDTH)
def from_timm(
    folder: Path,
    seed: int,
    architecture: str,
    arguments: dict[str, Any] | None = None,
    *,
    kind: str = "timm",
    container: str = "safetensors",
    more: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    prefix: str = "",
    zeros: int = 0,
) -> Sample:
    arguments = _SMALL | (arguments or {})
    model = randomise(timm.create_model(architecture, **arguments), seed)
    tensors = {prefix + name: t.to(dtype) for name, t in state(model).items()}
    model.load_state_dict({name.removeprefix(prefix): t.float() for name, t in tensors.items()})
    size = arguments["img_size"]
    known = {name: value for name, value in (_TWO | (more or {})).items() if value is not None}
    if "dinov3" in architecture:
        known["input_size"] = size
    return Sample(
        write(tensors, folder, container),
        kind,
        model,
        (arguments.get("in_chans", 3), size, size),
        f"timm {timm.__version__}",
        container if dtype == torch.float32 else f"{container}, {str(dtype).removeprefix('torch.')}",
        known,
        zeros,
    )


@case("timm/representation layer")
def old_timm(folder: Path, seed: int) -> Sample:
    """timm had a linear layer with tanh before the head until 2022; today's timm is its reference around that layer."""
    model = randomise(timm.create_model("vit_base_patch16_224", **_SMALL), seed)
    layer = randomise(nn.Linear(WIDTH, WIDTH), seed + 1)
    tensors = state(model) | {f"pre_logits.fc.{name}": t for name, t in state(layer).items()}

    def reference(x: Tensor) -> Tensor:
        return model.head(torch.tanh(layer(model.forward_head(model.forward_features(x), pre_logits=True))))

    path = write(tensors, folder, "pth {model}")
    return Sample(path, "timm", reference, (3, 64, 64), f"timm {timm.__version__} + layer", "pth {model}", _TWO)


# ---- the original torch releases: names of their manifests, numbers of the ports in timm


@case("DeiT release", "deit_base_patch16_224")
@case("DeiT release, distilled", "deit_base_distilled_patch16_224")
@case("DeiT-III release", "deit3_base_patch16_224")
@case("MAE release, encoder", "vit_base_patch16_224", {"num_classes": 0})
@case("MAE release, fine-tuned", "vit_base_patch16_224", {"global_pool": "avg"})
@case("MAE release, full", "vit_base_patch16_224", {"num_classes": 0}, kind="MAE")
@case("DINOv2 release", "vit_base_patch14_dinov2", {"num_classes": 0, "img_size": 56}, kind="DINOv2", container="pth")
@case(
    "DINOv2 release with registers",
    "vit_base_patch14_reg4_dinov2",
    {"num_classes": 0, "img_size": 56},
    kind="DINOv2",
    container="pth",
)
@case(
    "DINOv2 release, registers, float16",
    "vit_base_patch14_reg4_dinov2",
    {"num_classes": 0, "img_size": 56},
    kind="DINOv2",
    container="pth",
    dtype=torch.float16,
)
@case(
    "DINOv2 release, giant",
    "vit_giant_patch14_dinov2",
    {"num_classes": 0, "img_size": 56, "mlp_ratio": 170 / 64},
    kind="DINOv2",
    container="pth",
)
def release(
    folder: Path,
    seed: int,
    architecture: str,
    arguments: dict[str, Any] | None = None,
    *,
    kind: str = "timm",
    container: str = "pth {model}",
    dtype: torch.dtype = torch.float32,
) -> Sample:
    arguments = _SMALL | (arguments or {})
    model = randomise(timm.create_model(architecture, **arguments), seed)
    tensors = state(model)
    generator = torch.Generator().manual_seed(seed + 1)
    folded = 0
    if architecture.startswith("deit3"):
        tensors = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): t for name, t in tensors.items()}
    if kind == "MAE":
        tensors |= _mae_decoder(tensors["pos_embed"].shape[1], generator)
    if kind == "DINOv2":
        tensors["mask_token"] = torch.randn(1, WIDTH, generator=generator)
        tensors = {n.replace("reg_token", "register_tokens"): t for n, t in tensors.items()}
        if "giant" in architecture:
            tensors = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in tensors.items()}
        if "register_tokens" in tensors:  # the release has a position for the class token, which timm's port adds to it
            place = torch.randn(1, 1, WIDTH, generator=generator)
            tensors["cls_token"] = tensors["cls_token"] - place
            tensors["pos_embed"] = torch.cat([place, tensors["pos_embed"]], dim=1)
            folded = WIDTH
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    if dtype != torch.float32:
        rounded = {name: t.float() for name, t in tensors.items() if name in model.state_dict()}
        rounded["reg_token"] = tensors["register_tokens"].float()
        rounded["cls_token"] = tensors["cls_token"].float() + tensors["pos_embed"][:, :1].float()
        rounded["pos_embed"] = tensors["pos_embed"][:, 1:].float()
        model.load_state_dict(rounded)
    size = arguments["img_size"]
    container_of = container if dtype == torch.float32 else f"{container}, float16"
    library = f"timm {timm.__version__}'s port"
    path = write(tensors, folder, container)
    return Sample(path, kind, model, (3, size, size), library, container_of, _TWO, folded=folded)


def _mae_decoder(tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, 32), "decoder_pos_embed": (1, tokens, 32)}
    layers = {"decoder_embed": (32, WIDTH), "decoder_norm": (32,), "decoder_pred": (16 * 16 * 3, 32)}
    for block in ("decoder_blocks.0", "decoder_blocks.1"):
        layers |= {f"{block}.norm1": (32,), f"{block}.attn.qkv": (96, 32), f"{block}.attn.proj": (32, 32)}
        layers |= {f"{block}.norm2": (32,), f"{block}.mlp.fc1": (128, 32), f"{block}.mlp.fc2": (32, 128)}
    shapes |= {f"{n}.weight": shape for n, shape in layers.items()}
    shapes |= {f"{n}.bias": shape[:1] for n, shape in layers.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@case("DINOv3 release", "vit_base_patch16_dinov3_qkvb")
@case("DINOv3 release, without qkv bias", "vit_base_patch16_dinov3")
@case("DINOv3 release, gated", "vit_small_plus_patch16_dinov3_qkvb")
@case("DINOv3 release, four heads", "vit_base_patch16_dinov3_qkvb", heads=4)
def dinov3_release(folder: Path, seed: int, architecture: str, heads: int = HEADS) -> Sample:
    """Periods are stored rounded to bfloat16, and so timm's port gets them; biases of keys are masked."""
    model = randomise(timm.create_model(architecture, **_SMALL | _ROPE | {"num_heads": heads}), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    head_dim = WIDTH // heads
    periods = 100.0 ** (2 * torch.arange(head_dim // 4) / (head_dim // 2))
    tensors: dict[str, Tensor] = {}
    for name, tensor in state(model).items():
        if name.endswith("v_bias"):
            continue
        name = name.replace("reg_token", "storage_tokens")
        name = re.sub(r"gamma_(\d)", r"ls\1.gamma", name)
        name = name.replace("fc1_g", "w1").replace("fc1_x", "w2")
        if "plus" in architecture:
            name = name.replace("mlp.fc2", "mlp.w3")
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            value = model.state_dict()[f"{block}v_bias"]
            stale = torch.randn(WIDTH, generator=generator)  # the mask zeroes it
            tensors[f"{block}qkv.bias"] = torch.cat([tensor, stale, value])
            tensors[f"{block}qkv.bias_mask"] = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
            continue
        tensors[name] = tensor
    tensors["rope_embed.periods"] = periods.bfloat16()
    tensors["mask_token"] = torch.randn(1, WIDTH, generator=generator)
    _round_periods(model, heads)
    path = write(tensors, folder, "pth")
    known: dict[str, Any] = {"input_size": 64}
    return Sample(path, "DINOv3", model, (3, 64, 64), f"timm {timm.__version__}'s port", "pth", known)


def _round_periods(model: Any, heads: int) -> None:
    """Put the rotations of rounded periods in the place of timm's own."""
    bands = 100.0 ** (torch.arange(WIDTH // heads // 4) / (WIDTH // heads // 4))
    axis = (torch.arange(4) + 0.5) / 4 * 2 - 1
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2, 1)

    def table(periods: Tensor) -> Tensor:
        angles = (2 * math.pi * places / periods).reshape(16, -1)
        return torch.cat([angles.sin().tile(2), angles.cos().tile(2)], dim=-1)

    like = model.rope.get_embed((4, 4))
    assert torch.allclose(like, table(bands), atol=1e-5), "timm's rotations are these"
    rounded = table(bands.bfloat16().float())
    assert (rounded - like).abs().max() > 1e-3
    model.rope.get_embed = lambda *args, **kwargs: rounded


# ---- Google's .npz, without JAX: the definition in googlefiles.py, and timm by its own loader

_BIG = {"names": NEW, "positions": "pos_embedding", "tokens": 16, "token": False}
_TIMM_NUMERICS = {"activation": "gelu", "stem_numerics": "timm"}
_R50, _R26, _RTI = (3, 4, 9), (2, 2, 2, 2), ()
_BY_TIMM: dict[Any, str] = {  # timm's network for each pooling or stem
    "token": "vit_base_patch16_224",
    "map": "vit_base_patch16_siglip_224",
    "gap": "vit_base_patch16_siglip_gap_224",
    _R50: "vit_base_r50_s16_224",
    _R26: "vit_small_r26_s32_224",
    _RTI: "vit_tiny_r_s16_p8_224",
}


@case("Google/ViT-B/16, old numbering")
@case("Google/ViT-B/16 by timm's loader", by="timm")
@case("Google/ViT, new numbering", {"names": NEW})
@case("Google/ViT with pre_logits", {"representation": 48})
@case("Google/ViT under opt/target", prefix="opt/target/")
@case("Google/hybrid R50+B/16", {"units": _R50, "patch": 1})
@case("Google/hybrid R50+B/16 by timm's loader", {"units": _R50, "patch": 1}, by="timm")
@case("Google/hybrid R26+S/32", {"units": _R26, "patch": 1, "tokens": 5})
@case("Google/hybrid R26+S/32 by timm's loader", {"units": _R26, "patch": 1, "tokens": 5}, by="timm")
@case("Google/hybrid R+Ti/16", {"units": _RTI, "patch": 8, "tokens": 5})
@case("Google/hybrid R+Ti/16 by timm's loader", {"units": _RTI, "patch": 8, "tokens": 5}, by="timm")
@case("big_vision/gap", _BIG, pooling="gap", prefix="params/")
@case("big_vision/gap by timm's loader", _BIG, pooling="gap", prefix="params/", by="timm")
@case("big_vision/class token", _BIG | {"token": True}, prefix="params/")
@case("big_vision/gap, sincos2d not saved", _BIG | {"positions": None}, pooling="gap")
@case("big_vision/gap, sincos2d, pre_logits", _BIG | {"positions": None, "representation": 48}, pooling="gap")
@case("big_vision/map, scanned", _BIG | {"map_head": True}, pooling="map", prefix="params/", scanned=True)
@case("SigLIP/map", _BIG | {"map_head": True, "classes": 0}, pooling="map", prefix="params/img/")
@case("SigLIP/map, scanned", _BIG | {"map_head": True, "classes": 0}, pooling="map", prefix="params/img/", scanned=True)
@case(
    "SigLIP/map, scanned, by timm's loader",
    _BIG | {"map_head": True, "classes": 0},
    pooling="map",
    prefix="params/img/",
    scanned=True,
    by="timm",
)
def from_google(
    folder: Path,
    seed: int,
    arguments: dict[str, Any] | None = None,
    *,
    pooling: str = "token",
    prefix: str = "",
    scanned: bool = False,
    by: str = "definition",
) -> Sample:
    arguments = arguments or {}
    generator = torch.Generator().manual_seed(seed)
    arrays = make_arrays(lambda name, shape: values(name, shape, generator).numpy(), **arguments)
    big_vision = arguments.get("names") == NEW and "positions" in arguments
    stored = {prefix + name: array for name, array in (scan(arrays) if scanned else arrays).items()}
    stored |= _beside(prefix, generator)
    path = folder / "weights.npz"
    np.savez(path, **stored)
    size = 64
    kind = "big_vision" if big_vision else "google"
    library, known = "the definition, float64", dict[str, Any]()
    names = arguments.get("names", OLD)
    if by == "definition":
        reference = partial(_google, arrays, pooling=pooling, names=names, late_token=big_vision)
    else:
        architecture = _BY_TIMM[arguments.get("units", pooling)]
        made = _SMALL | {"num_classes": arguments.get("classes", CLASSES), "mlp_ratio": 2}
        reference = timm.create_model(architecture, **made).eval()
        reference.load_pretrained(str(path))
        library, known = f"timm {timm.__version__}'s loader", dict(_TIMM_NUMERICS)
    if "positions" in arguments and arguments["positions"] is None:
        known["input_size"] = (size, size)
    return Sample(path, kind, reference, (3, size, size), library, "npz", known)


def _google(arrays: Arrays, x: Tensor, **how: Any) -> Tensor:
    return forward(arrays, x, **how).float()


def _beside(prefix: str, generator: torch.Generator) -> Arrays:
    """What lies in such files beside the image network."""
    if prefix == "opt/target/":
        momentum = "opt/state/param_states/embedding/kernel/momentum"
        return {"opt/state/step": np.asarray(3), momentum: np.ones((16, 16, 3, WIDTH), np.float32)}
    if prefix == "params/img/":  # with another number of heads
        query = torch.randn(2, 48, 3, 16, generator=generator).numpy()
        text = "params/txt/Encoder_0/encoderblock"
        shapes = {"params/t": (1,), "params/b": (1,), "params/txt/Embed_0/embedding": (9, 48)}
        shapes |= {f"{text}/LayerNorm_0/scale": (2, 48), "params/txt/head/kernel": (48, 64)}
        arrays = {name: torch.randn(shape, generator=generator).numpy() for name, shape in shapes.items()}
        return arrays | {f"{text}/MultiHeadDotProductAttention_0/query/kernel": query}
    return {}


# ---- transformers: in the keys of its files (a folder by save_pretrained) and in those of version 5's live modules

_HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 128,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": CLASSES,
    "attn_implementation": "eager",
}


def _logits(model: Any, x: Tensor) -> Tensor:
    return model(x).logits


def _pooled(model: Any, x: Tensor) -> Tensor:
    return model(x).pooler_output


def _token(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state[:, 0]


def _mean(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state.mean(1)


def _two_tokens(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state[:, :2].mean(1)


def _embeds(model: Any, x: Tensor) -> Tensor:
    return model(x).image_embeds


def _unmasked(model: Any, x: Tensor) -> Tensor:
    model = getattr(model, "vit", model)
    ordered = torch.arange(16.0).expand(len(x), -1)  # nothing is masked, and nothing changes its place
    return model(x, noise=ordered).last_hidden_state[:, 0]


def _image_features(model: Any, x: Tensor) -> Tensor:
    return model.visual_projection(model.vision_model(x).pooler_output)


def _both(name: str, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Sample]], Callable[..., Sample]]:
    """One case in the file's keys, with its config.json, and one in the live keys, without."""

    def enter(build: Callable[..., Sample]) -> Callable[..., Sample]:
        case(f"{name}, folder", *args, **kwargs)(build)
        case(f"{name}, live keys", *args, **kwargs, live=True)(build)
        return build

    return enter


@_both("transformers/ViT classification", "ViTForImageClassification", _logits)
@_both("transformers/ViT with pooler", "ViTModel", _pooled)
@_both("transformers/ViT headless", "ViTModel", _token, extra={"add_pooling_layer": False})
@_both("transformers/DeiT with teacher", "DeiTForImageClassificationWithTeacher", _logits, kind="DeiT")
@_both("transformers/DeiT classification", "DeiTForImageClassification", _logits, kind="DeiT")
@_both("transformers/DeiT with pooler", "DeiTModel", _pooled, kind="DeiT")
@_both("transformers/DeiT headless", "DeiTModel", _two_tokens, kind="DeiT", extra={"add_pooling_layer": False})
@_both("transformers/ViTMAE", "ViTMAEForPreTraining", _unmasked, {"mask_ratio": 0.0}, kind="ViTMAE")
@_both("transformers/ViTMAE encoder", "ViTMAEModel", _unmasked, {"mask_ratio": 0.0})
@_both("transformers/ViTMSN", "ViTMSNForImageClassification", _logits, known={"norm_eps": 1e-6})
@_both("transformers/DINOv2", "Dinov2Model", _pooled, {"mlp_ratio": 2}, kind="DINOv2")
@_both("transformers/DINOv2 classification", "Dinov2ForImageClassification", _logits, {"mlp_ratio": 2}, kind="DINOv2")
@_both("transformers/DINOv2 giant", "Dinov2Model", _pooled, {"mlp_ratio": 4, "use_swiglu_ffn": True}, kind="DINOv2")
@_both(
    "transformers/DINOv2 with registers",
    "Dinov2WithRegistersModel",
    _pooled,
    {"mlp_ratio": 2},
    kind="DINOv2",
    folded=WIDTH,
)
@_both(
    "transformers/DINOv2 with registers, classification",
    "Dinov2WithRegistersForImageClassification",
    _logits,
    {"mlp_ratio": 2},
    kind="DINOv2",
    folded=WIDTH,
)
@_both(
    "transformers/DINOv3",
    "DINOv3ViTModel",
    _pooled,
    {"num_register_tokens": 4},
    kind="DINOv3",
    known={"input_size": 64},
    zeros=DEPTH * WIDTH,
)
@_both(
    "transformers/DINOv3 gated",
    "DINOv3ViTModel",
    _pooled,
    {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    kind="DINOv3",
    known={"input_size": 64},
    zeros=DEPTH * WIDTH,
)
@_both("transformers/CLIP vision", "CLIPVisionModel", _pooled, kind="CLIP", zeros=WIDTH)
@_both(
    "transformers/CLIP vision with projection",
    "CLIPVisionModelWithProjection",
    _embeds,
    {"projection_dim": 24},
    kind="CLIP",
    zeros=WIDTH + 24,
)
@_both(
    "transformers/CLIP vision, gelu",
    "CLIPVisionModel",
    _pooled,
    {"hidden_act": "gelu"},
    kind="CLIP",
    known={"activation": "gelu"},
    zeros=WIDTH,
)
@_both(
    "transformers/CLIP, both sides", "CLIPModel", _image_features, {"projection_dim": 24}, kind="CLIP", zeros=WIDTH + 24
)
@case(
    "transformers/CLIP vision, older file", "CLIPVisionModel", _pooled, kind="CLIP", zeros=WIDTH, live=True, older=True
)
@_both("transformers/SigLIP vision", "SiglipVisionModel", _pooled, kind="SigLIP")
@_both("transformers/SigLIP vision, no head", "SiglipVisionModel", _mean, {"vision_use_head": False}, kind="SigLIP")
@_both("transformers/SigLIP classification", "SiglipForImageClassification", _logits, kind="SigLIP classifier")
@_both("transformers/SigLIP, both sides", "SiglipModel", lambda m, x: m.vision_model(x).pooler_output, kind="SigLIP")
def from_transformers(
    folder: Path,
    seed: int,
    name: str,
    answer: Callable[[Any, Tensor], Tensor],
    config: dict[str, Any] | None = None,
    *,
    kind: str = "ViT",
    extra: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    zeros: int = 0,
    folded: int = 0,
    live: bool = False,
    older: bool = False,
) -> Sample:
    architecture = getattr(transformers, name)
    fields = _HF | (config or {})
    if name.startswith("ViTMAE"):
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        fields |= {f"decoder_{field}": value for field, value in small.items()}
    if name in ("CLIPModel", "SiglipModel", "SiglipForImageClassification"):
        sides = {field: value for field, value in fields.items() if field not in ("projection_dim", "num_labels")}
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        whole = {field: fields[field] for field in ("projection_dim", "num_labels") if field in fields}
        fields = whole | {"vision_config": sides, "text_config": text | {"vocab_size": 50}}
    model = architecture(architecture.config_class(**fields), **extra or {})
    model = randomise(model, seed)
    library = f"transformers {transformers.__version__}"
    layout = f"transformers {kind}"
    reference = partial(answer, model)
    if not live:
        model.save_pretrained(folder)
        return Sample(folder, layout, reference, (3, 64, 64), library, "folder", {}, zeros, folded)
    tensors = state(model)
    if older:
        tensors = {f"vision_model.{name}": t for name, t in tensors.items()}
        tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    path = write(tensors, folder, "safetensors")
    overrides = _TWO | (known or {})
    return Sample(path, layout, reference, (3, 64, 64), library, "safetensors", overrides, zeros, folded)


@case("transformers/AST, folder")
@case(
    "transformers/AST, other bins, frames and steps, folder", {"num_mel_bins": 40, "max_length": 50, "time_stride": 8}
)
@case("transformers/AST, live keys", live=True)
def from_ast(folder: Path, seed: int, config: dict[str, Any] | None = None, live: bool = False) -> Sample:
    """Spectrograms are (bins, frames) here, and (frames, bins) in transformers."""
    fields = {name: value for name, value in _HF.items() if name != "image_size"}
    fields |= {"num_mel_bins": 36, "max_length": 56, **(config or {})}
    model = randomise(transformers.ASTForAudioClassification(transformers.ASTConfig(**fields)), seed)
    size = fields["num_mel_bins"], fields["max_length"]

    def reference(x: Tensor) -> Tensor:
        return model(x[:, 0].mT).logits

    library, layout = f"transformers {transformers.__version__}", "transformers AST"
    if live:
        path = write(state(model), folder, "safetensors")
        return Sample(path, layout, reference, (1, *size), library, "safetensors", {"input_size": size, **_TWO})
    model.save_pretrained(folder)
    return Sample(folder, layout, reference, (1, *size), library, "folder")


# ---- Mantis and UTICA, without their package


@case("Mantis/8M and Plus")
@case("Mantis/8M, older names", unit="vit_unit")
@case("Mantis/UTICA", container="pth", norm=True)
@case("Mantis/V2", version=2, head_dim=8, kernel=41, zeros=4 + 8)
def from_mantis(
    folder: Path,
    seed: int,
    *,
    version: int = 1,
    container: str = "safetensors",
    norm: bool = False,
    zeros: int = 0,
    **sizes: Any,
) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    tensors = mantisnetwork.make_tensors(lambda name, shape: values(name, shape, generator), version, **sizes)
    if norm:
        leaves = {f"transf_unit.{leaf}": (WIDTH,) for leaf in ("norm.weight", "norm.bias", "mask_token")}
        tensors |= {name: values(name, shape, generator) for name, shape in leaves.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("prj.")}
    layout = "Mantis" if version == 1 else "MantisV2"
    reference = partial(mantisnetwork.answer, tensors)
    shape, known = (1, 128), {"input_size": 128}
    return Sample(
        write(tensors, folder, container), layout, reference, shape, "the definition, float64", container, known, zeros
    )


# ---- torchvision


@case("torchvision/ViT")
@case("torchvision/ViT, old names", old=True)
@case("torchvision/ViT, representation_size", representation=48)
@case("torchvision/ViT, patch 14", patch=14)
@case("torchvision/ViT, new head in heads.head", replace="heads.head")
@case("torchvision/ViT, new head in heads", replace="heads")
@case("torchvision/ViT, new head in heads.0", replace="heads.0")
@case("torchvision/ViT, no head", replace="none")
def from_torchvision(
    folder: Path, seed: int, old: bool = False, representation: int | None = None, patch: int = 16, replace: str = ""
) -> Sample:
    size = 4 * patch
    model = torchvision.models.VisionTransformer(
        image_size=size,
        patch_size=patch,
        num_layers=DEPTH,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=128,
        num_classes=CLASSES,
        representation_size=representation,
    )
    if replace == "heads.head":
        model.heads.head = nn.Linear(WIDTH, 5)
    elif replace:
        heads = {"heads": nn.Linear(WIDTH, 5), "heads.0": nn.Sequential(nn.Linear(WIDTH, 5)), "none": nn.Identity()}
        model.heads = heads[replace]
    model = randomise(model, seed)
    tensors = state(model)
    if old:
        tensors = {n.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for n, t in tensors.items()}
    library = f"torchvision {torchvision.__version__.partition('+')[0]}"
    return Sample(write(tensors, folder, "pth"), "torchvision", model, (3, size, size), library, "pth", _TWO)


# ---- the article's network, written from its description in a few lines


class ArticleViT(nn.Module):
    """The article's network for 1-D or 2-D, on a state dict: SPEC.md's table of pieces, nothing of ndvit's."""

    def __init__(self, tensors: dict[str, Tensor], size: tuple[int, ...], patch: tuple[int, ...]) -> None:
        super().__init__()
        self.tensors, self.size, self.patch = tensors, size, patch

    def forward(self, x: Tensor) -> Tensor:
        t = self.tensors
        convolve = nn.functional.conv1d if len(self.size) == 1 else nn.functional.conv2d
        x = convolve(x, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=self.patch)
        x = x.flatten(2).transpose(1, 2)
        if "patch_embed.norm.weight" in t:
            x = self.norm("patch_embed.norm", x, 1e-6)
        front = [t[name].expand(len(x), -1, -1) for name in ("cls_token", "dist_token") if name in t]
        x = torch.cat([*front, x], dim=1) + t["pos_embed"]
        for i in range(DEPTH):
            block = f"blocks.{i}"
            qkv = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6))
            q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(-1)
            x = x + self.linear(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
            hidden = nn.functional.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", hidden)
        x = self.norm("norm", x, 1e-6)
        if "head_dist.weight" in t:
            return (self.linear("head", x[:, 0]) + self.linear("head_dist", x[:, 1])) / 2
        x = x[:, 0]
        if "pre_logits.fc.weight" in t:
            x = torch.tanh(self.linear("pre_logits.fc", x))
        return self.linear("head", x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps)


@case("article/1-D", (13,), (1,), 24, norm=True)
@case("article/1-D without norm", (48,), (4,), 3, kind="timm")
@case("article/1-D distilled", (48,), (4,), 3, norm=True, distilled=True)
@case("article/2-D", (64, 64), (16, 16), 3, norm=True)
@case("article/2-D without norm", (64, 64), (16, 16), 3, kind="timm")
@case("article/2-D distilled", (64, 64), (16, 16), 3, norm=True, distilled=True)
@case("article/2-D distilled without norm", (64, 64), (16, 16), 3, distilled=True, kind="timm")
@case("article/2-D with pre_logits", (64, 64), (16, 16), 3, norm=True, representation=48)
@case("article/2-D with pre_logits, without norm", (64, 64), (16, 16), 3, representation=48, kind="timm")
def from_article(
    folder: Path,
    seed: int,
    size: tuple[int, ...],
    patch: tuple[int, ...],
    channels: int,
    *,
    norm: bool = False,
    distilled: bool = False,
    representation: int = 0,
    kind: str = "article",
) -> Sample:
    tokens = 1 + distilled + math.prod(s // p for s, p in zip(size, patch))
    layers: dict[str, tuple[int, ...]] = {"patch_embed.proj": (WIDTH, channels, *patch), "norm": (WIDTH,)}
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        layers |= {f"{block}.norm1": (WIDTH,), f"{block}.norm2": (WIDTH,), f"{block}.attn.qkv": (3 * WIDTH, WIDTH)}
        layers |= {f"{block}.attn.proj": (WIDTH, WIDTH)}
        layers |= {f"{block}.mlp.fc1": (4 * WIDTH, WIDTH), f"{block}.mlp.fc2": (WIDTH, 4 * WIDTH)}
    layers["head"] = (CLASSES, representation or WIDTH)
    if norm:
        layers["patch_embed.norm"] = (WIDTH,)
    if distilled:
        layers["head_dist"] = (CLASSES, WIDTH)
    if representation:
        layers["pre_logits.fc"] = (representation, WIDTH)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, tokens, WIDTH)}
    if distilled:
        shapes["dist_token"] = (1, 1, WIDTH)
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: values(name, shape, generator) for name, shape in shapes.items()}
    path = write(tensors, folder, "pth")
    return Sample(
        path, kind, ArticleViT(tensors, size, patch), (channels, *size), "the article's description", "pth", _TWO
    )


for _name in sorted(CASES):  # decorators were applied from the last to the first
    CASES[_name] = CASES.pop(_name)
