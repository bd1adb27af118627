"""Write a network to the files of other libraries."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.files import make_folder, refuse_existing, replace_file
from ndvit.network import VisionTransformer
from ndvit.parts import ModelParts
from ndvit.tasks.regression import Regression
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.layouts.layout import Tensors
from ndvit.weights.layouts.libraries import Library, library_arguments, rename
from ndvit.weights.reading.sidecars import PROBLEMS, RESAMPLING

_PROBLEMS = {task: problem for problem, task in PROBLEMS.items()}


def export_state_dict(
    model: ModelParts | nn.Module, library: Library, path: str | Path | None = None, force: bool = False
) -> Tensors:
    """The weights under the names of another library, whose network of the same kind loads them with strict=True.

    `library_arguments` returns the arguments that build this network. With a path, the weights are written to one
    .safetensors or .pth file, or to a folder with a config.json, which `timm.create_model("local-dir:FOLDER",
    pretrained=True)` and the `from_pretrained` of transformers read.

    The temperature is not written, as those networks have none: they return the raw logits.

    Args:
        model: a model with one Vision Transformer, or the network alone.
        library: "timm", "transformers" or "torchvision".
        path: a file or a folder to write.
        force: replace an existing output.

    Raises:
        FileExistsError: if the output exists and `force` is False.
        ValueError: if the library has no network that computes the same; the message names what it lacks.

    Example:
        >>> import ndvit
        >>> network = ndvit.create_model("vit_pico", num_classes=3)
        >>> "encoder.ln.weight" in ndvit.export_state_dict(network, "torchvision")
        True
    """
    network = model if isinstance(model, nn.Module) else model.network
    if not isinstance(network, VisionTransformer):
        raise ValueError(
            f"{library} has no {type(network).__name__}: export one Vision Transformer, for example the member "
            "model.network.members[0] of a committee (--member 0 for an ensemble)"
        )
    arguments = library_arguments(network, library)
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    task = getattr(model, "task", None)
    if isinstance(task, Regression):
        tensors = _in_units(tensors, task, library)
    out = {name: tensor.clone() for name, tensor in rename(network.config, tensors, library).items()}  # shared memory
    if path is None:
        return out
    path = Path(path)
    refuse_existing(path, force, kind="file" if path.suffix else "folder")
    if path.suffix in (".pth", ".pt"):
        content = io.BytesIO()  # torch would hide the error of a full disk
        torch.save(out, content)
        replace_file(path, content.getvalue())
    elif path.suffix == ".safetensors":
        replace_file(path, save(out, metadata={"format": "pt"}))
    elif path.suffix in (".bin", ".npz", ".onnx", ".ckpt"):
        raise ValueError(f"weights are written to .safetensors, .pth, .pt or a folder, got {path}")
    elif library == "torchvision":
        raise ValueError(f"torchvision reads files, not folders: use a .pth or .safetensors path, got {path}")
    elif path.is_file():
        raise FileExistsError(f"{path} is a file: use a folder, or a .safetensors or .pth file")
    else:
        classes = getattr(task, "classes", ()) or getattr(task, "targets", ())
        preprocess = getattr(model, "preprocess", None)
        settings = _timm_folder if library == "timm" else _transformers_folder
        if library == "transformers" and (problem := _PROBLEMS.get(getattr(task, "name", ""))):
            arguments["problem_type"] = problem
        written = settings(arguments, network, classes, preprocess)
        make_folder(path)
        for name, values in written.items():
            replace_file(path / name, json.dumps(values, indent=2))
        replace_file(path / MODEL_FILE, save(out, metadata={"format": "pt"}))
    return out


def _in_units(tensors: dict[str, Tensor], task: Regression, library: Library) -> dict[str, Tensor]:
    """Tensors whose heads return numbers in the units of the targets, because other libraries know no mean and std."""
    if task.quantiles:
        raise ValueError(f"{library} has no quantiles of a regression: train without --loss quantile")
    mean, std = torch.tensor(task.mean), torch.tensor(task.std)
    changed = dict(tensors)
    for head in ("head", "head_dist"):
        if f"{head}.weight" in tensors:
            changed[f"{head}.weight"] = tensors[f"{head}.weight"] * std[:, None]
            changed[f"{head}.bias"] = tensors[f"{head}.bias"] * std + mean
    return changed


def _timm_folder(
    arguments: dict[str, Any], network: VisionTransformer, classes: tuple[str, ...], preprocess: Any
) -> dict[str, Any]:
    name, count = arguments.pop("model_name"), arguments.pop("num_classes")
    pretrained: dict[str, Any] = {
        "num_classes": count,
        "input_size": [network.config.in_channels, *arguments["img_size"]],
    }
    if isinstance(preprocess, ImagePreprocess):
        pretrained |= {
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_fraction,
            "crop_mode": {"crop": "center", "pad": "border", "squash": "squash"}[preprocess.resize],
        }
    if count:  # timm removes these layers for another number of classes
        pretrained["classifier"] = ["head", "head_dist"] if network.config.distilled else "head"
    out = {"architecture": name, "num_classes": count, "model_args": arguments, "pretrained_cfg": pretrained}
    return {"config.json": out | ({"label_names": list(classes)} if classes else {})}


def _transformers_folder(
    arguments: dict[str, Any], network: VisionTransformer, classes: tuple[str, ...], preprocess: Any
) -> dict[str, Any]:
    names = classes or [f"LABEL_{i}" for i in range(network.config.num_classes)]
    if names:
        arguments["id2label"] = {str(i): name for i, name in enumerate(names)}
        arguments["label2id"] = {name: i for i, name in enumerate(names)}
    out = {"config.json": arguments}
    if isinstance(preprocess, ImagePreprocess):
        out["preprocessor_config.json"] = _transformers_processor(preprocess)
    return out


def _transformers_processor(p: ImagePreprocess) -> dict[str, Any]:
    height, width = p.size
    big = (int(height / p.crop_fraction + 1e-6), int(width / p.crop_fraction + 1e-6))
    out: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": next(number for number, name in RESAMPLING.items() if name == p.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
    }
    if p.resize == "squash" and p.crop_fraction == 1:
        return out
    if p.resize == "pad" or (p.resize == "crop" and height != width):
        how = "covers {} pixels and crops" if p.resize == "crop" else "fits pictures into {} pixels and pads"
        raise ValueError(
            f"transformers has no preprocessing that {how.format(f'{height} x {width}')}: write a .safetensors file "
            "instead of a folder, or set model.preprocess to one with resize='squash'"
        )
    size = {"height": big[0], "width": big[1]} if p.resize == "squash" else {"shortest_edge": min(big)}
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    kind = "DeiTImageProcessor" if p.resize == "squash" else "BitImageProcessor"
    return out | {"image_processor_type": kind, "size": size, **crop}
