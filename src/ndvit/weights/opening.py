"""From a source of weights to a description of the model: what its tensors, its config.json and the table tell."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ndvit.config import ViTConfig
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.network import VisionTransformer
from ndvit.network.committee import MEMBERS
from ndvit.weights.file import Described, check_tensors, describe
from ndvit.weights.imagenet import are_imagenet, imagenet_classes, like_imagenet
from ndvit.weights.layouts.architecture import infer, refute
from ndvit.weights.layouts.formats import recognise
from ndvit.weights.layouts.layout import convert
from ndvit.weights.reading.files import Checkpoint, read_checkpoint
from ndvit.weights.reading.hub import resolve
from ndvit.weights.reading.sidecars import Facts, read_facts
from ndvit.weights.reading.zoo import Weights

# timm's networks that have the tensors of a plain ViT, some of them exactly, and compute something else
_OTHERWISE = re.compile(r"rope|_pe_|_rpn_|^eva|^beit")


def open_weights(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Described:
    """Find, fetch and read weights; what they are of is told by the tensors and by the facts beside them.

    `source` and errors are as in `load_model`; of the overrides, those are read that no tensor can tell.
    """
    overrides = overrides or {}
    if not isinstance(source, str | Path):
        raise ValueError(f"weights are a path, a name or hf:owner/name, got {type(source).__name__}")
    path, row = resolve(source)
    checkpoint = read_checkpoint(path)
    if "ndvit" in checkpoint.header:
        described = describe(checkpoint.path, checkpoint.header, checkpoint.tensors)
        _refuse_heads(overrides, described.config.num_heads, "its file")
    else:
        described = _describe_foreign(checkpoint, row, overrides)
    described.source = str(source)
    described.notes = (*checkpoint.notes, *described.notes)
    _check(checkpoint.path, described)
    return described


def _describe_foreign(checkpoint: Checkpoint, row: Weights | None, overrides: Mapping[str, Any]) -> Described:
    format = recognise(checkpoint.tensors, checkpoint.path)
    with _shapes(checkpoint.path, format.name):
        converted = convert(checkpoint.tensors, format)
    notes: list[str] = []
    with _beside(checkpoint.path):
        facts = read_facts(checkpoint.sidecars)
    contradiction = refute(facts.config, converted)
    if contradiction is not None:
        notes.append(f"config.json beside the file describes another model ({contradiction}) and is left aside")
        facts = read_facts({})
    if _OTHERWISE.search(facts.architecture or ""):
        raise ValueError(f"{checkpoint.path} is of {facts.architecture}, whose blocks are not those of a plain ViT")
    told = ({"input_size": row.input_size, **row.config} if row else {}) | facts.config
    known = converted.certain.get("num_heads", told.get("num_heads"))
    _refuse_heads(overrides, known, "its file" if "num_heads" in converted.certain else "config.json or the table")
    if known is None and "num_heads" in overrides:
        told["num_heads"] = overrides["num_heads"]
    with _shapes(checkpoint.path, format.name):
        inferred = infer(converted, told, checkpoint.path, overrides.get("input_size"))
    config = inferred.config
    described = Described(
        kind=format.name,
        config=config,
        tensors=inferred.tensors,
        provenance={"source": row.name, "licence": row.licence} if row else {"source": checkpoint.path.name},
        ignored=converted.ignored,
        assumed=inferred.assumed,
        notes=(*notes, *inferred.notes),
    )
    with _beside(checkpoint.path):
        described.preprocess = _preprocess(config, format.preprocess, row, facts, format.name, described.assumed)
    described.classes = _classes(config, row, facts, described.assumed)
    return described


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Say of what lies beside weights that it, and not they, is at fault."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path.parent}: {error}. Correct it, or move config.json away from the weights") from error


@contextmanager
def _shapes(path: Path, layout: str) -> Iterator[None]:
    """Turn what tensors of senseless shapes raise, and it may be anything, into one clear line."""
    try:
        yield
    except (IndexError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: a tensor has not the shape that the {layout} layout gives it ({error})") from error


def _preprocess(
    config: ViTConfig,
    usual: Mapping[str, Any] | None,
    row: Weights | None,
    facts: Facts,
    kind: str,
    assumed: dict[str, str],
) -> Preprocess | None:
    if len(config.input_size) != 2 or config.in_channels != 3 or usual is None:
        return None
    named = ("mean", "std", "interpolation", "crop_fraction", "resize")
    stated = {name: getattr(row, name) for name in named} if row else {}
    stated |= {k: v for k, v in facts.preprocess.items() if k != "size"}
    if not {"mean", "std"} <= stated.keys():
        assumed["mean"] = (
            f"mean {usual['mean']}, std {usual['std']}, {usual['interpolation']} resizing, crop "
            f"{usual['crop_fraction']:.3g}: usual in the {kind} layout; set preprocess=dict(mean=..., std=...)"
        )
    return ImagePreprocess(size=config.input_size, **{**usual, **stated})


def _classes(config: ViTConfig, row: Weights | None, facts: Facts, assumed: dict[str, str]) -> tuple[str, ...]:
    if facts.classes and len(facts.classes) == config.num_classes:
        return imagenet_classes() if are_imagenet(facts.classes) else facts.classes  # one name each, whoever published
    if not like_imagenet(config):
        return ()
    if row is None:
        assumed["classes"] = "classes those of ImageNet-1k, as there are 1000 outputs; set classes="
    elif row.classes != "imagenet-1k":
        return ()
    return imagenet_classes()


def _refuse_heads(overrides: Mapping[str, Any], known: int | None, who: str) -> None:
    if known is not None and overrides.get("num_heads", known) != known:
        raise ValueError(
            f"num_heads={overrides['num_heads']} is wrong for these weights: {who} says {known}, and with another "
            "number the network would compute something else. Leave num_heads out"
        )


def _check(path: Path, described: Described) -> None:
    """Compare the tensors with the network of the config, before anything is adapted."""
    config, members = described.config, described.members
    for i, member in enumerate(members):
        _check(path / f"{MEMBERS}{i}", member)
    if members:
        return
    parts = config.depth + (sum(config.stem_depths) if config.stem != "none" else 0)
    if parts > len(described.tensors):  # before a billion blocks are built
        raise ValueError(f"{path} claims {parts:,} blocks and has {len(described.tensors):,} tensors")
    with _shapes(path, described.kind), torch.device("meta"):
        network = VisionTransformer(config)
    computed = {"pos_embed", "rope_periods"} - dict(network.named_parameters()).keys()
    expected = {n: t for n, t in network.state_dict().items() if n not in computed or n in described.tensors}
    check_tensors(path, expected, described.tensors)
    counters = {name for name, t in expected.items() if not t.is_floating_point()}  # of BatchNorm
    wrong = [f"{n} ({t.dtype})" for n, t in described.tensors.items() if t.is_floating_point() == (n in counters)]
    if wrong:
        raise ValueError(f"{path}: weights must be floating-point numbers, got {', '.join(wrong[:4])}")
