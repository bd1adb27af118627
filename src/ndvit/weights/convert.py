"""Networks to files of other libraries."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.files import replace_file
from ndvit.network import VisionTransformer
from ndvit.network.committee import Ensemble, Model
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.layouts.layout import Tensors
from ndvit.weights.layouts.libraries import Library, library_arguments, rename


def export_state_dict(model: Model, library: Library, path: str | Path | None = None, force: bool = False) -> Tensors:
    """The weights under the names of another library, whose network of the same kind loads them with strict=True.

    `library_arguments` says how that network is built. With a path, they are written, too: to one .safetensors or .pth
    file, or to a folder with a config.json, which `timm.create_model("local-dir:FOLDER", pretrained=True)` and
    transformers' `from_pretrained` take as it is.

    `model.temperature` stays behind, as those networks have none: they answer with the raw logits.

    Args:
        model: the network.
        library: "timm", "transformers" or "torchvision".
        path: a file or a folder to write.
        force: replace what is there.

    Raises:
        FileExistsError: if something is there, and not by force.
        ValueError: if the library has no network that computes the same, naming what it lacks.
    """
    if isinstance(model, Ensemble):
        one = f"one of the {len(model.members)} members, model.members[0] say (--member 0)"
        raise ValueError(f"{library} has no ensembles: give {one}")
    library_arguments(model, library)  # refuses what the library cannot express
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    renamed = rename(model.config, tensors, library)
    out = {name: tensor.clone() for name, tensor in renamed.items()}  # parts of one tensor share its memory
    if path is not None:
        refuse_existing(Path(path), force)
        _write(model, library, out, Path(path))
    return out


def refuse_existing(path: Path, force: bool) -> None:
    """Raise a FileExistsError for a file or a folder that is not empty; a run's folder is not written into by force."""
    if (path / "config.yaml").is_file() or ((path.parent / "config.yaml").is_file() and path.name == MODEL_FILE):
        raise FileExistsError(f"{path} belongs to a run, whose model would be lost: choose another output")
    if (path.is_dir() and any(path.iterdir()) and not force) or (path.is_file() and not force):
        raise FileExistsError(f"{path} exists: choose another output, or replace it with --force (force=True)")


def _write(model: VisionTransformer, library: Library, tensors: Tensors, path: Path) -> None:
    if path.suffix in (".pth", ".pt"):
        replace_file(path, lambda temporary: torch.save(tensors, temporary))
        return
    if path.suffix == ".safetensors":
        replace_file(path, save(tensors, metadata={"format": "pt"}))
        return
    if path.suffix in (".bin", ".npz", ".onnx", ".ckpt"):
        raise ValueError(f"weights are written to .safetensors, .pth, .pt or a folder, got {path}")
    if library == "torchvision":
        raise ValueError(f"torchvision reads files, not folders: give a .pth or .safetensors path, got {path}")
    if path.is_file():
        raise FileExistsError(f"{path} is a file: give a folder, or a .safetensors or .pth file")
    facts = {"config.json": _timm_folder(model) if library == "timm" else _hf_folder(model)}
    if library == "transformers" and isinstance(model.preprocess, ImagePreprocess):
        facts["preprocessor_config.json"] = _hf_processor(model.preprocess)
    path.mkdir(parents=True, exist_ok=True)
    for name, values in facts.items():
        replace_file(path / name, json.dumps(values, indent=2))
    replace_file(path / MODEL_FILE, save(tensors, metadata={"format": "pt"}))


def _timm_folder(model: VisionTransformer) -> dict[str, Any]:
    arguments = library_arguments(model, "timm")
    name, classes = arguments.pop("model_name"), arguments.pop("num_classes")
    pretrained: dict[str, Any] = {
        "num_classes": classes,
        "input_size": [model.config.in_channels, *arguments["img_size"]],
    }
    p = model.preprocess
    if isinstance(p, ImagePreprocess):
        pretrained |= {
            "mean": list(p.mean),
            "std": list(p.std),
            "interpolation": p.interpolation,
            "crop_pct": p.crop_fraction,
            "crop_mode": "center" if p.resize == "cover" else "squash",
        }
    if classes:  # timm takes these off for other classes
        pretrained["classifier"] = ["head", "head_dist"] if model.config.distilled else "head"
    out = {"architecture": name, "num_classes": classes, "model_args": arguments, "pretrained_cfg": pretrained}
    return out | ({"label_names": list(model.classes)} if model.classes else {})


def _hf_folder(model: VisionTransformer) -> dict[str, Any]:
    out = library_arguments(model, "transformers")
    names = model.classes or [f"LABEL_{i}" for i in range(model.config.num_classes)]
    if names:
        out["id2label"] = {str(i): name for i, name in enumerate(names)}
        out["label2id"] = {name: i for i, name in enumerate(names)}
    return out


def _hf_processor(p: ImagePreprocess) -> dict[str, Any]:
    resample = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[p.interpolation]
    height, width = p.size
    big = (int(height / p.crop_fraction + 1e-6), int(width / p.crop_fraction + 1e-6))
    out: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
    }
    if p.resize == "stretch" and p.crop_fraction == 1:
        return out
    if p.resize == "cover" and height != width:
        raise ValueError(
            f"transformers has no preprocessing that covers {height} x {width} pixels and crops: write a .safetensors "
            "file instead of a folder, or set model.preprocess to one with resize='stretch'"
        )
    size = {"height": big[0], "width": big[1]} if p.resize == "stretch" else {"shortest_edge": min(big)}
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    kind = "DeiTImageProcessor" if p.resize == "stretch" else "BitImageProcessor"
    return out | {"image_processor_type": kind, "size": size, **crop}
