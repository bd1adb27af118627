"""The zoo table of published weights: where they are, their classes, preprocessing and licence.

The rows are data, in zoo.csv; nothing here imports torch or uses the network. A name ends in a tag, as weights of one
network from different trainings differ in classes, preprocessing and licence.
"""

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

_TABLE = Path(__file__).with_name("zoo.csv")
STATISTICS = {  # mean and standard deviation of red, green and blue, of pixels scaled to 0..1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "satellite": ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signal": ((0.0,), (1.0,)),  # raw values of one channel
    "audioset": ((-4.2677393,), (2 * 4.5689974,)),  # log-mel energies, halved after standardising
}
_TOP1_SOURCES = {
    "": "",
    "timm": "timm's results-imagenet.csv",
    "deit": "DeiT's README_deit.md, at crop 0.875",
    "deit3": "DeiT's README_revenge.md",
    "mae": "MAE's FINETUNE.md",
    "torchvision": "torchvision's metadata",
}
_PLACE = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")  # on the hub
# By convention of torch.hub, a file name ends in the first digits of its sha256, as in vit_b_16-c867db91.pth.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One release of weights."""

    # Network and tag: timm's full name; torchvision/..., facebook/... and google/... for the originals; mantis/... and
    # ast/... for networks of signals and of spectrograms.
    name: str
    repo: str | None  # repository on the hub; None for weights that have a `url`
    file: str | None  # in the repository
    revision: str | None  # of the repository; None is the newest one
    url: str | None  # address of a release outside the hub
    sha256: str | None  # digest of the file, or its first digits; None if the release does not publish it
    licence: str  # SPDX identifier or usual name; "unknown" if the release states none
    mean: tuple[float, ...]  # of each channel; of pixels scaled to 0..1
    std: tuple[float, ...]  # standard deviations likewise
    interpolation: Literal["bilinear", "bicubic"]  # filter for resizing pictures
    crop_fraction: float  # part of the resized picture's shorter side that the centre crop keeps
    resize: Literal["cover", "stretch"]  # keep the aspect ratio and cover the square, or stretch the picture to it
    input_size: tuple[int, ...]  # (height, width) of pictures, (length,) of signals, (bins, frames) of spectrograms
    top1: float | None  # published top-1 accuracy on ImageNet-1k in percent
    top1_source: str  # source of that number
    # Classes of the head; empty for features, embeddings and other lists of classes. imagenet-21k is Google's list of
    # 21,843 classes.
    classes: Literal["imagenet-1k", "imagenet-21k", ""]
    config: Mapping[str, Any]  # fields of `ViTConfig` that cannot be inferred from the shapes of tensors


def list_weights() -> list[str]:
    """Names for `find_weights`, in the order of the table: those of timm, then the original releases.

    Example:
        >>> from ndvit import list_weights
        >>> [name for name in list_weights() if name.startswith("deit_tiny")][0]
        'deit_tiny_patch16_224.fb_in1k'
    """
    return list(_table())


def find_weights(name: str) -> Weights | None:
    """The release of exactly this name, or None.

    Example:
        >>> from ndvit import find_weights
        >>> find_weights("deit_tiny_patch16_224.fb_in1k").input_size
        (224, 224)
    """
    return _table().get(name)


def near_weights(name: str) -> list[str]:
    """Names similar to a wrong one: every tag of a network whose tag is missing, else the most similar names."""
    tags = [known for known in _table() if known.startswith(f"{name}.")]
    return tags or difflib.get_close_matches(name, _table(), n=3, cutoff=0.7)


@cache
def _table() -> dict[str, Weights]:
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: _weights(row) for row in csv.DictReader(file)}


def _weights(row: dict[str, str]) -> Weights:
    size = tuple(int(side) for side in row["size"].split("x"))
    mean, std = STATISTICS[row["stats"]]
    place = _PLACE.fullmatch(row["repo"] or f"timm/{row['name']}")
    assert place is not None
    digest = _HASH_IN_NAME.search(row["url"])
    config: dict[str, Any] = {"num_heads": int(row["heads"]), "norm_eps": float(row["eps"])}
    config |= {name: row[name] for name in ("activation", "pooling")}
    config |= dict(field.split("=") for field in row["more"].split())
    return Weights(
        name=row["name"],
        repo=None if row["url"] else place["repo"],
        file=None if row["url"] else place["file"] or "model.safetensors",
        revision=place["revision"],
        url=row["url"] or None,
        sha256=digest[1] if digest else None,
        licence=row["licence"],
        mean=mean,
        std=std,
        interpolation=row["interpolation"],  # type: ignore[arg-type]  # a test checks the table
        crop_fraction=float(row["crop"]),
        resize=row["resize"],  # type: ignore[arg-type]
        input_size=size * 2 if len(size) == 1 and row["stats"] != "signal" else size,
        top1=float(row["top1"]) if row["top1"] else None,
        top1_source=_TOP1_SOURCES[row["top1_source"]],
        classes=row["classes"],  # type: ignore[arg-type]
        config=MappingProxyType(config),
    )
