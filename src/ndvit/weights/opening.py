"""From a source of weights to a `Checkpoint`: the tensors decide, with the help of config.json and the zoo table."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ndvit.config import ViTConfig
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.network.vit import HEADS
from ndvit.tasks.base import Task
from ndvit.tasks.class_names import check_class_names
from ndvit.tasks.classification import Classification
from ndvit.tasks.imagenet import are_imagenet, imagenet_classes, like_imagenet
from ndvit.tasks.multilabel import Multilabel
from ndvit.tasks.regression import Regression, usual_names
from ndvit.weights.errors import some
from ndvit.weights.file import Checkpoint, check_tensors, checkpoint_from_header, header_errors
from ndvit.weights.layouts.architecture import Inferred, contradiction, determined, infer
from ndvit.weights.layouts.finding import choose_network
from ndvit.weights.layouts.layout import Format, convert
from ndvit.weights.reading.files import TensorFile, read_tensors
from ndvit.weights.reading.hub import resolve
from ndvit.weights.reading.sidecars import Sidecars, read_sidecars
from ndvit.weights.reading.values import read_values
from ndvit.weights.reading.zoo import Weights
from ndvit.weights.structure import below, configs_in, make_network, networks_in
from ndvit.weights.unfinished import is_unfinished, read_unfinished

# Networks of timm that have the tensors of a plain ViT, some of them exactly, and compute something else.
_OTHER_NETWORKS = re.compile(r"^vit_\w*(rope|_pe_|_rpn_)|^eva|^beit")


def open_weights(
    source: str | Path, overrides: Mapping[str, Any] | None = None, *, ema: bool | None = None
) -> Checkpoint:
    """Find, download and read weights of any origin. Nothing in a file is executed.

    The layout is recognised by the names of the tensors, never by the name of the file: ndvit's own files and runs,
    timm, torchvision, transformers, Google's .npz, and the releases of DeiT, MAE, DINOv2 and DINOv3. Names may have any
    prefix, and other networks and losses may be in the same file.

    Args:
        source: a file, a folder (a run, or one with config.json), a name that `list_weights` has, or
            `hf:owner/name[/file][@revision]`. `#PREFIX` at its end chooses one of several networks in a file.
        overrides: fields of `ViTConfig`; those that tensors cannot tell (num_heads, input_size) help to read the file.
        ema: of several copies of a network in a file, the averaged one (a teacher, a moving average) or the other one;
            None is what the program that wrote the file evaluates.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the source is no Vision Transformer, is damaged, would run code, or holds several networks of
            which any may be meant.
        OSError: if a download fails.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"weights are a path, a name or hf:owner/name, got {type(source).__name__}")
    place, part = split_part(source)
    path, row = resolve(place)
    file = read_tensors(path)
    if "ndvit" in file.header:
        if part is not None or ema:
            raise ValueError(f"{path} has one set of weights, written by ndvit: leave {_wanted(part, ema)} out")
        checkpoint = checkpoint_from_header(file.path, file.header, file.tensors)
    elif is_unfinished(file):
        if part is not None:
            raise ValueError(f"{path} is a checkpoint of ndvit with one network: leave {_wanted(part, None)} out")
        checkpoint = read_unfinished(file, ema)
    else:
        checkpoint = _foreign(file, row, overrides or {}, part, ema)
    checkpoint.source = str(source)
    checkpoint.notes = (*file.notes, *checkpoint.notes)
    _check(file.path, checkpoint)
    return checkpoint


def split_part(source: str | Path) -> tuple[str | Path, str | None]:
    """A source of weights without the `#PREFIX` that chooses a network in the file, and this prefix or None."""
    text = str(source)
    if "#" not in text or Path(text).exists():
        return source, None
    place, _, part = text.partition("#")
    return place, part


def _wanted(part: str | None, ema: bool | None) -> str:
    return f"ema={ema}" if part is None else f"#{part}"


def _foreign(
    file: TensorFile, row: Weights | None, overrides: Mapping[str, Any], part: str | None, ema: bool | None
) -> Checkpoint:
    """The checkpoint of another library's file."""
    values = file.values or _stored_as_text(file.header)
    # DeiT's program evaluates the model itself, though it stores a moving average; timm and torchvision the average.
    args = values.get("args")
    raw = isinstance(args, argparse.Namespace) and hasattr(args, "model_ema_force_cpu")
    raw = raw and any(name.startswith("model_ema.") for name in file.tensors)
    chosen = choose_network(file.tensors, file.path, part, ema, raw)
    layout = chosen.format
    with _odd_shapes(file.path, layout.name):
        converted = convert(chosen.tensors, layout)
        actual = determined(converted)
    notes = [_with_values(chosen.note, values)] if chosen.note else []
    with _sidecar_errors(file.path):
        beside = read_sidecars(file.sidecars)
    if wrong := contradiction(beside.config, actual):
        notes.append(f"config.json beside the file describes another model ({wrong}) and is not used")
        beside = read_sidecars({})
    within, more = read_values(values, actual)
    notes += more
    for name in (beside.architecture or "", within.architecture or ""):
        if _OTHER_NETWORKS.search(name):
            raise ValueError(f"{file.path} is of {name}, whose blocks are not those of a plain ViT")
    stated = ({"input_size": row.input_size, **row.config} if row else {}) | within.config | beside.config
    if "num_heads" in overrides and "num_heads" not in converted.certain | stated:
        stated["num_heads"] = overrides["num_heads"]
    with _odd_shapes(file.path, layout.name):
        inferred = infer(converted, stated, file.path, overrides.get("input_size"))
    config, lost, dropped = _without_misfit(inferred, converted.lost_head)
    checkpoint = Checkpoint(
        layout=layout.name,
        structure={"kind": "vit", "config": config.to_dict()},
        tensors=inferred.tensors,
        provenance={"source": row.name, "licence": row.licence} if row else {"source": file.path.name},
        ignored=chosen.ignored | {f"{chosen.prefix}{n}": why for n, why in (converted.ignored | dropped).items()},
        assumed=converted.assumed | inferred.assumed,
        notes=(*notes, *inferred.notes),
        lost_head=lost,
    )
    with _sidecar_errors(file.path):
        checkpoint.preprocess = _preprocess(config, layout, row, (within, beside), checkpoint.assumed)
    if config.num_classes:
        checkpoint.no_task = beside.no_task or within.no_task
        stated_classes = beside.classes or within.classes
        if checkpoint.no_task:
            return checkpoint
        if kind := beside.task or within.task:
            checkpoint.task = _stated_task(kind, config.num_classes, stated_classes)
            if kind == "multilabel":
                checkpoint.notes += ("several labels: each is predicted from a probability of 0.5 on",)
            return checkpoint
        if classes := _classes(config, row, stated_classes, checkpoint.assumed):
            checkpoint.task = Classification(classes)
            pairs = enumerate(zip(stated_classes, classes))
            if changed := [new for i, (name, new) in pairs if new == f"{name} ({i})"]:
                checkpoint.notes += (f"classes of equal names are numbered by their outputs: {some(changed)}",)
        elif config.num_classes == 1:
            checkpoint.no_task = (
                f"{file.path} has one output, of a regression or of two classes with a sigmoid, and "
                "nothing in it says which: fine-tune the model (ndvit train SOURCE --weights FILE) or use model(x)"
            )
    return checkpoint


def _stated_task(name: str, outputs: int, names: Sequence[Any]) -> Task:
    """The task that transformers calls by another name than single_label_classification."""
    if name == "multilabel":
        return Multilabel(check_class_names(_numbered(names)) if names else [f"label_{i}" for i in range(outputs)])
    return Regression(check_class_names(_numbered(names)) if names else usual_names(outputs))


def _without_misfit(inferred: Inferred, lost: str) -> tuple[ViTConfig, str, dict[str, str]]:
    """Leave out a head that reads other features than those of the network, such as tokens of several blocks."""
    config, head = inferred.config, inferred.tensors.get("head.weight")
    expected = config.representation_size or config.pooled_dim
    if head is None or head.shape[1] == expected:
        return config, lost, {}
    names = [name for name in inferred.tensors if name.partition(".")[0] in HEADS]
    for name in names:
        del inferred.tensors[name]
    lost = f"head reads {head.shape[1]} features, and the network has {expected}"
    return replace(config, num_classes=0), lost, dict.fromkeys(names, "of a head that reads other features")


def _stored_as_text(header: Mapping[str, str]) -> dict[str, Any]:
    """The values of a safetensors file, whose header holds only text."""
    found = {}
    for name, text in header.items():
        with suppress(ValueError, RecursionError):
            found[name] = json.loads(text)
    return found


def _with_values(note: str, values: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name.partition(".")[0] for name in values))
    return note + (f"; beside it: {some(names)}" if names else "")


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
    config: ViTConfig,
    layout: Format,
    row: Weights | None,
    found: tuple[Sidecars, Sidecars],
    assumed: dict[str, str],
) -> Preprocess | None:
    usual = layout.preprocess
    if layout.signal is not None:
        return _signal_preprocess(config, layout.signal, row, found)
    names = ("mean", "std", "interpolation", "crop_fraction", "resize")
    stated: dict[str, Any] = {name: getattr(row, name) for name in names} if row else {}
    for sidecars in found:
        stated |= {k: v for k, v in sidecars.preprocess.items() if k != "size"}
    channels = len(stated.get("mean", ())) or 3
    if len(config.input_size) != 2 or config.in_channels not in (3, channels) or usual is None:
        return None
    if not {"mean", "std"} <= stated.keys():
        assumed["mean"] = (
            f"mean {usual['mean']}, std {usual['std']}, {usual['interpolation']} resizing, crop "
            f"{usual['crop_fraction']:.3g}: usual in the {layout.name} layout; set preprocess=dict(mean=..., std=...)"
        )
    return ImagePreprocess(size=config.input_size, **{**usual, **stated})


def _signal_preprocess(
    config: ViTConfig, usual: Mapping[str, Any], row: Weights | None, found: tuple[Sidecars, Sidecars]
) -> SignalPreprocess:
    """The preprocessing of a network that reads arrays of values: raw values, unless something is stated."""
    values = {"mean": (0.0,) * config.in_channels, "std": (1.0,) * config.in_channels, **usual}
    values |= {"mean": row.mean, "std": row.std} if row else {}
    for sidecars in found:
        values |= {name: sidecars.preprocess[name] for name in ("mean", "std") if name in sidecars.preprocess}
    return SignalPreprocess(size=config.input_size, **values)


def _classes(
    config: ViTConfig, row: Weights | None, stated: tuple[str, ...], assumed: dict[str, str]
) -> tuple[str, ...]:
    if stated and len(stated) == config.num_classes:
        if all(isinstance(name, str) for name in stated) and are_imagenet(stated):
            return imagenet_classes()  # the same names for all sources, of which some have equal ones
        return check_class_names(_numbered(stated))
    if not like_imagenet(config):
        return ()
    if row is None:
        assumed["classes"] = "classes those of ImageNet-1k, as there are 1000 outputs; set classes="
    elif row.classes != "imagenet-1k":
        return ()
    return imagenet_classes()


def _numbered(names: Sequence[Any]) -> list[Any]:
    """The names, with the number of the output added to those that have occurred before."""
    return [f"{name} ({i})" if name in names[:i] else name for i, name in enumerate(names)]


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
        computed = {"pos_embed", "rope_periods", "xpos_decay"} - dict(network.named_parameters()).keys()
        check_tensors(where, {n: t for n, t in network.state_dict().items() if n not in computed or n in found}, found)
    if strange := [name for name in checkpoint.tensors if not any(name.startswith(prefix) for prefix, _ in parts)]:
        raise ValueError(f"{path}: {len(strange)} tensors belong to no member of the committee ({some(strange)})")
    if checkpoint.structure["kind"] == "committee":
        with header_errors(path), torch.device("meta"):
            make_network(checkpoint.structure)
