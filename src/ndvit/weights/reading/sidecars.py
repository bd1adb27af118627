"""Read config.json and preprocessor_config.json: the fields that they state, under the names of ndvit."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ACTIVATIONS = {  # transformers' names and timm's
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
TRANSFORMERS = {  # names of fields there: here; networks are also written for other libraries by these tables
    "num_attention_heads": "num_heads",
    "layer_norm_eps": "norm_eps",
    "patch_size": "patch_size",
    "image_size": "input_size",
    "num_channels": "in_channels",
    "num_hidden_layers": "depth",
    "hidden_size": "embed_dim",
}
TIMM = {
    "num_heads": "num_heads",
    "patch_size": "patch_size",
    "img_size": "input_size",
    "in_chans": "in_channels",
    "depth": "depth",
    "embed_dim": "embed_dim",
}

_MANTIS = {"transf_num_heads": "num_heads", "transf_depth": "depth", "hidden_dim": "embed_dim"}
PROBLEMS = {"multi_label_classification": "multilabel", "regression": "regression"}
"""Names of transformers for tasks beside classification."""
_AST, _AUDIOSET = "audio-spectrogram-transformer", 527  # classes of AudioSet


@dataclass(frozen=True)
class Sidecars:
    """Fields of a network and its preprocessing from the files beside its weights."""

    architecture: str | None  # name in timm, such as "vit_base_patch16_224", or class in transformers
    config: dict[str, Any]  # fields of `ViTConfig`
    classes: tuple[Any, ...]  # in the order of outputs; empty if there are none, or only "LABEL_0" and so on
    preprocess: dict[str, Any]  # fields of `ImagePreprocess`
    no_task: str = ""  # why the outputs belong to no task that ndvit has; empty if nothing says so
    task: str = ""  # name of the task of the outputs, if it is stated and is no classification


def read_sidecars(sidecars: Mapping[str, dict[str, Any]]) -> Sidecars:
    """Read the contents of `config.json` and `preprocessor_config.json`, as far as they exist.

    Raises:
        ValueError: for a value of an unexpected kind, or one that ndvit cannot reproduce (an activation, a resampling).
    """
    config, processor = sidecars.get("config.json", {}), sidecars.get("preprocessor_config.json", {})
    try:
        if "architecture" in config:
            return _timm(config)
        return _transformers(config, processor)
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{' or '.join(sidecars)} has a value of an unexpected kind: {error}") from error


def _transformers(config: dict[str, Any], processor: dict[str, Any]) -> Sidecars:
    vision = config.get("vision_config") or config
    model_type = vision.get("model_type")
    found = _renamed(vision, TRANSFORMERS | {"rope_theta": "rope_base", **_MANTIS})
    if isinstance(config.get("seq_len"), int):  # of Mantis
        found["input_size"] = (config["seq_len"],)
    if model_type == _AST:
        found["input_size"] = (config.get("num_mel_bins", 128), config.get("max_length", 1024))
        found["patch_stride"] = (config.get("frequency_stride", 10), config.get("time_stride", 10))
    hidden_act = vision.get("hidden_act")
    if vision.get("use_swiglu_ffn") or (vision.get("use_gated_mlp") and hidden_act in (None, "silu")):
        found["activation"] = "swiglu"  # the gated MLP of DINOv2 uses silu, whatever hidden_act is
    elif hidden_act is not None:
        found["activation"] = _activation(f"a gated {hidden_act}" if vision.get("use_gated_mlp") else hidden_act)
    labels = config.get("id2label") or {}
    names = [labels.get(str(i)) for i in range(len(labels))]
    generic = None in names or names == [f"LABEL_{i}" for i in range(len(names))]
    classes = () if generic else tuple(names)
    architecture = next((name for name in config.get("architectures") or () if isinstance(name, str)), None)
    preprocess = _processor(processor, str(model_type))
    no_task, task = task_of(config.get("problem_type"), "config.json")
    if model_type == _AST and len(labels) == _AUDIOSET:  # a recording has several of these classes
        no_task, task = "", "multilabel"
    return Sidecars(architecture, found, classes, preprocess, no_task, task)


def _processor(processor: dict[str, Any], model_type: str) -> dict[str, Any]:
    """The preprocessing of a transformers image processor."""
    found: dict[str, Any] = {}
    factor, scaled = processor.get("rescale_factor", 1 / 255), processor.get("do_rescale", True)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6) or not scaled:
        raise ValueError(
            f"preprocessor_config.json scales pixels by {factor} (do_rescale {scaled}); only 1/255 can be reproduced"
        )
    if not processor.get("do_normalize", True):
        found |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    elif isinstance(processor.get("mean"), float | int) and isinstance(processor.get("std"), float | int):
        found |= {"mean": (float(processor["mean"]),), "std": (2 * float(processor["std"]),)}  # AST halves its inputs
    elif "image_mean" in processor and "image_std" in processor:
        found |= moments_of(processor["image_mean"], processor["image_std"])
    if "resample" in processor:
        if processor["resample"] not in RESAMPLING:
            raise ValueError(f"preprocessor_config.json: resample {processor['resample']} is none of {RESAMPLING}")
        found["interpolation"] = RESAMPLING[processor["resample"]]
    size = processor.get("size") if processor.get("do_resize", True) else None
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    if size is None:
        return found
    if isinstance(size, int):
        # Files from before 2023: for the processors of CLIP and BiT it is the shorter edge, for others both sides.
        kind = str(
            processor.get("image_processor_type") or processor.get("feature_extractor_type") or model_type
        ).lower()
        size = {"shortest_edge": size} if kind.startswith(("clip", "bit")) else {"height": size, "width": size}
    if not isinstance(size, dict) or not ({"height", "width"} <= size.keys() or "shortest_edge" in size):
        raise ValueError(f"preprocessor_config.json: size {size} is neither height and width nor a shortest_edge")
    if "shortest_edge" in size:
        found["resize"] = "cover"
        if crop is None:
            return found  # pictures keep their shapes, so there is no single size
        full = (size["shortest_edge"],) * 2
    else:
        found["resize"] = "stretch"
        full = (size["height"], size["width"])
    cut = full if crop is None else pair_of(crop, "crop_size")
    if cut[0] * full[1] != cut[1] * full[0] or cut[0] > full[0]:
        raise ValueError(
            f"preprocessor_config.json cuts {cut} from {full}: only one fraction of both sides can be kept"
        )
    return found | {"size": cut, "crop_fraction": cut[0] / full[0]}


def _timm(config: dict[str, Any]) -> Sidecars:
    pretrained = config.get("pretrained_cfg", config)  # files from before 2023 are flat
    stated = config.get("model_args") or {}
    found: dict[str, Any] = {}
    preprocess: dict[str, Any] = {}
    if "input_size" in pretrained:
        channels, *size = pretrained["input_size"]
        preprocess["size"] = pair_of(size, "input_size")
        found = {"in_channels": channels, "input_size": preprocess["size"]}
    found |= _renamed(stated, TIMM)
    if stated.get("act_layer") is not None:
        found["activation"] = _activation(stated["act_layer"])
    name = str(config["architecture"])
    found = fields_of_name(name) | found
    pooling = stated.get("global_pool") or config.get("global_pool")
    if pooling not in (None, "", "token", "avg", "map"):
        raise ValueError(f"global_pool {pooling!r} is not among the poolings of ndvit: token, avg, map")
    found |= {"pooling": pooling} if pooling else {}
    if "mean" in pretrained and "std" in pretrained:
        preprocess |= moments_of(pretrained["mean"], pretrained["std"])
    if "interpolation" in pretrained:
        preprocess["interpolation"] = pretrained["interpolation"]
    if "crop_pct" in pretrained:
        preprocess["crop_fraction"] = float(pretrained["crop_pct"])
    if resize := {"center": "cover", "squash": "stretch", "border": "pad"}.get(pretrained.get("crop_mode")):
        preprocess["resize"] = resize
    names = config.get("label_names") or pretrained.get("label_names") or pretrained.get("labels")
    meanings = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    names = meanings if names is None and isinstance(meanings, list) else names
    classes: tuple[Any, ...] = ()
    if isinstance(names, list) and len(names) == config.get("num_classes", pretrained.get("num_classes")):
        classes = tuple(meanings.get(n, n) if isinstance(meanings, dict) else n for n in names)
        if len(set(classes)) < len(set(names)):  # WordNet has the same words for several of its classes
            classes = tuple(names)
    return Sidecars(name, found, classes, preprocess)


def fields_of_name(name: str) -> dict[str, Any]:
    """Fields that are in timm's function of this name."""
    found: dict[str, Any] = {"activation": "quick_gelu"} if "quickgelu" in name else {}
    if name.startswith(("vit_", "deit")):
        found["norm_eps"] = 1e-5 if re.search("_clip_|dinov3|lingbot", name) else 1e-6
    return found


def task_of(problem_type: Any, where: str) -> tuple[str, str]:
    """Why a model with this problem_type of transformers has no task here, and the name of its task if it has another
    than classification; empty texts otherwise.
    """
    if problem_type in (None, "single_label_classification"):
        return "", ""
    if isinstance(problem_type, str) and problem_type in PROBLEMS:
        return "", PROBLEMS[problem_type]
    return (
        f"{where} states problem_type {str(problem_type)[:40]!r}, which is none of {', '.join(PROBLEMS)}: fine-tune "
        "the model (ndvit train SOURCE --weights FILE), embed data with it, or apply your own activation to model(x)"
    ), ""


def _renamed(stated: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    found = {ours: stated[theirs] for theirs, ours in names.items() if stated.get(theirs) is not None}
    return found | {name: pair_of(found[name], name) for name in ("patch_size", "input_size") if name in found}


def pair_of(value: Any, name: str) -> tuple[int, int]:
    """(height, width) from one number, two, or a dict of them."""
    pair = [value.get("height"), value.get("width")] if isinstance(value, dict) else value
    pair = [pair, pair] if isinstance(pair, int) else pair
    if not isinstance(pair, list | tuple) or len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
        raise ValueError(f"{name} is {value}; expected one or two whole numbers above 0")
    return pair[0], pair[1]


def moments_of(mean: Any, std: Any) -> dict[str, Any]:
    """Mean and standard deviation of each channel; one channel is grey."""
    found: dict[str, Any] = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    return found | ({"mode": "L"} if len(found["mean"]) == 1 else {})


def _activation(name: Any) -> str:
    if str(name) not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not among those of ndvit: {', '.join(_ACTIVATIONS)}, gated silu")
    return _ACTIVATIONS[str(name)]
