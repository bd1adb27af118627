"""From a source of weights to a `Checkpoint`: the tensors decide, with the help of config.json and the zoo table."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ndvit.config import ViTConfig
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.tasks.classification import Classification
from ndvit.tasks.imagenet import are_imagenet, imagenet_classes, like_imagenet
from ndvit.weights.errors import some
from ndvit.weights.file import Checkpoint, check_tensors, checkpoint_from_header, header_errors
from ndvit.weights.layouts.architecture import contradiction, infer
from ndvit.weights.layouts.formats import recognise
from ndvit.weights.layouts.layout import Format, convert
from ndvit.weights.reading.files import TensorFile, read_tensors
from ndvit.weights.reading.hub import resolve
from ndvit.weights.reading.sidecars import Sidecars, read_sidecars
from ndvit.weights.reading.zoo import Weights
from ndvit.weights.structure import below, configs_in, make_network, networks_in

# Networks of timm that have the tensors of a plain ViT, some of them exactly, and compute something else.
_OTHER_NETWORKS = re.compile(r"rope|_pe_|_rpn_|^eva|^beit")


def open_weights(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Checkpoint:
    """Find, download and read weights of any origin. Nothing in a file is executed.

    The layout is recognised by the names of the tensors, never by the name of the file: ndvit's own files and runs,
    timm, torchvision, transformers, Google's .npz, and the releases of DeiT, MAE, DINOv2 and DINOv3.

    Args:
        source: a file, a folder (a run, or one with config.json), a name that `list_weights` has, or
            `hf:owner/name[/file][@revision]`.
        overrides: fields of `ViTConfig`; those that tensors cannot tell (num_heads, input_size) help to read the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the source is no Vision Transformer, is damaged, or would run code.
        OSError: if a download fails.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"weights are a path, a name or hf:owner/name, got {type(source).__name__}")
    path, row = resolve(source)
    file = read_tensors(path)
    if "ndvit" in file.header:
        checkpoint = checkpoint_from_header(file.path, file.header, file.tensors)
    else:
        checkpoint = _foreign(file, row, overrides or {})
    checkpoint.source = str(source)
    checkpoint.notes = (*file.notes, *checkpoint.notes)
    _check(file.path, checkpoint)
    return checkpoint


def _foreign(file: TensorFile, row: Weights | None, overrides: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of another library's file."""
    layout = recognise(file.tensors, file.path)
    with _odd_shapes(file.path, layout.name):
        converted = convert(file.tensors, layout)
    notes: list[str] = []
    with _sidecar_errors(file.path):
        beside = read_sidecars(file.sidecars)
    if wrong := contradiction(beside.config, converted):
        notes.append(f"config.json beside the file describes another model ({wrong}) and is not used")
        beside = read_sidecars({})
    if _OTHER_NETWORKS.search(beside.architecture or ""):
        raise ValueError(f"{file.path} is of {beside.architecture}, whose blocks are not those of a plain ViT")
    stated = ({"input_size": row.input_size, **row.config} if row else {}) | beside.config
    if "num_heads" in overrides and "num_heads" not in converted.certain | stated:
        stated["num_heads"] = overrides["num_heads"]
    with _odd_shapes(file.path, layout.name):
        inferred = infer(converted, stated, file.path, overrides.get("input_size"))
    config = inferred.config
    checkpoint = Checkpoint(
        layout=layout.name,
        structure={"kind": "vit", "config": config.to_dict()},
        tensors=inferred.tensors,
        provenance={"source": row.name, "licence": row.licence} if row else {"source": file.path.name},
        ignored=converted.ignored,
        assumed=inferred.assumed,
        notes=(*notes, *inferred.notes),
    )
    with _sidecar_errors(file.path):
        checkpoint.preprocess = _preprocess(config, layout, row, beside, checkpoint.assumed)
    if classes := _classes(config, row, beside, checkpoint.assumed):
        checkpoint.task = Classification(classes)
    return checkpoint


@contextmanager
def _sidecar_errors(path: Path) -> Iterator[None]:
    """Add to an error that config.json, and not the weights, is at fault."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path.parent}: {error}. Correct it, or move config.json away from the weights") from error


@contextmanager
def _odd_shapes(path: Path, layout: str) -> Iterator[None]:
    """Turn the errors that tensors of senseless shapes cause into one line."""
    try:
        yield
    except (IndexError, OverflowError, RuntimeError, TypeError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: a tensor does not have the shape of the {layout} layout ({reason})") from error


def _preprocess(
    config: ViTConfig, layout: Format, row: Weights | None, beside: Sidecars, assumed: dict[str, str]
) -> ImagePreprocess | None:
    usual = layout.preprocess
    if len(config.input_size) != 2 or config.in_channels != 3 or usual is None:
        return None
    names = ("mean", "std", "interpolation", "crop_fraction", "resize")
    stated = {name: getattr(row, name) for name in names} if row else {}
    stated |= {k: v for k, v in beside.preprocess.items() if k != "size"}
    if not {"mean", "std"} <= stated.keys():
        assumed["mean"] = (
            f"mean {usual['mean']}, std {usual['std']}, {usual['interpolation']} resizing, crop "
            f"{usual['crop_fraction']:.3g}: usual in the {layout.name} layout; set preprocess=dict(mean=..., std=...)"
        )
    return ImagePreprocess(size=config.input_size, **{**usual, **stated})


def _classes(config: ViTConfig, row: Weights | None, beside: Sidecars, assumed: dict[str, str]) -> tuple[str, ...]:
    if beside.classes and len(beside.classes) == config.num_classes:
        return imagenet_classes() if are_imagenet(beside.classes) else beside.classes  # the same names for all sources
    if not like_imagenet(config):
        return ()
    if row is None:
        assumed["classes"] = "classes those of ImageNet-1k, as there are 1000 outputs; set classes="
    elif row.classes != "imagenet-1k":
        return ()
    return imagenet_classes()


def _check(path: Path, checkpoint: Checkpoint) -> None:
    """Compare the tensors with every network of the structure, before anything is adapted."""
    parts = list(networks_in(checkpoint.structure))
    for prefix, structure in parts:
        where = path / prefix.removesuffix(".")
        found = below(checkpoint.tensors, prefix)
        for config in configs_in(structure):
            blocks = config.depth + (sum(config.stem_depths) if config.stem != "none" else 0)
            if blocks > len(found):  # checked before a billion blocks are built
                raise ValueError(f"{where} claims {blocks:,} blocks and has {len(found):,} tensors")
        with header_errors(where), _odd_shapes(where, checkpoint.layout), torch.device("meta"):
            network = make_network(structure)
        computed = {"pos_embed", "rope_periods"} - dict(network.named_parameters()).keys()
        check_tensors(where, {n: t for n, t in network.state_dict().items() if n not in computed or n in found}, found)
    if strange := [name for name in checkpoint.tensors if not any(name.startswith(prefix) for prefix, _ in parts)]:
        raise ValueError(f"{path}: {len(strange)} tensors belong to no member of the committee ({some(strange)})")
    if checkpoint.structure["kind"] == "committee":
        with header_errors(path), torch.device("meta"):
            make_network(checkpoint.structure)
