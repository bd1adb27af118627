"""Files of one example each: their kinds by ending, their headers, and reading one."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ndvit.data.examples import EncodedPicture, Kind, Raw, Recording
from ndvit.data.messages import printable
from ndvit.data.sources.npy import npy_shape, read_npy
from ndvit.data.sources.pictures import image_size, read_image
from ndvit.data.sources.rasters import raster_shape, read_raster
from ndvit.data.sources.sounds import SOUNDS, read_audio, sound_header

_MEDIUM = {  # kind of a file with one example, by its ending
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"), "images"),
    **dict.fromkeys(SOUNDS, "sound files"),
    ".npy": "npy files",
    ".npz": "npz files",
}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
"""Split by the name of a folder, an array, or a value in a column."""


class Header(NamedTuple):
    """Shape of an example: channels (0 for pictures, which are converted) and grid; `rate` (Hz) of a recording."""

    kind: Kind
    channels: int
    grid: tuple[int, ...]
    rate: float | None = None


def medium(path: str | Path) -> str | None:
    """Return the kind of a file by its ending: images, sound files, npy files or npz files; None for other files."""
    return _MEDIUM.get(Path(path).suffix.lower())


def known_endings() -> str:
    """List the endings of files with one example, for messages."""
    return ", ".join(_MEDIUM)


def check_one_medium(paths: Iterable[str], root: Path) -> None:
    """Raise a ValueError if the paths are of more than one kind of file."""
    counts = Counter(medium(path) for path in paths)
    if len(counts) > 1:
        found = " and ".join(f"{count:,} {kind}" for kind, count in counts.items())
        raise ValueError(f"{root}: has {found}; one data set needs files of one kind")


def header_of(item: Any) -> Header:
    """Return the header of an example in memory, or of a file or stored picture without decoding it."""
    if isinstance(item, Image.Image):
        return Header("image", 0, (item.height, item.width))
    if isinstance(item, EncodedPicture):
        return Header("image", 0, image_size(item.open()))
    if isinstance(item, Recording):
        return Header("signal", len(item.values), item.values.shape[1:], item.rate)
    if isinstance(item, np.ndarray):
        return Header("signal", len(item), item.shape[1:])
    kind = medium(item)
    if kind == "sound files":
        channels, frames, rate = sound_header(item)
        return Header("signal", channels, (frames,), rate)
    shape = raster_shape(item) if kind == "images" else npy_shape(item)
    return Header("image", 0, image_size(item)) if shape is None else Header("signal", shape[0], shape[1:])


def read_example(item: str | EncodedPicture) -> Raw:
    """Read one file or stored picture; raise ValueErrors with the name of the file and its fault."""
    try:
        return decode(item)
    except Exception as error:  # decoders raise any error for a damaged file
        raise ValueError(f"{printable(str(item))}: {describe_fault(error)}") from error


def decode(item: str | EncodedPicture) -> Raw:
    """Read one file or stored picture, and raise the errors of its decoder, see `describe_fault`."""
    if isinstance(item, EncodedPicture):
        return read_image(item.open())
    if os.path.getsize(item) == 0:
        raise ValueError("is empty (0 bytes)")
    kind = medium(item)
    if kind == "images":
        raster = read_raster(item)
        return read_image(item) if raster is None else raster
    return read_audio(item) if kind == "sound files" else read_npy(item)


def describe_fault(error: Exception) -> str:
    """Describe the fault of a file from the error of its decoder."""
    if isinstance(error, UnidentifiedImageError):
        return "is not a picture, or has a format that PIL cannot read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"has too many pixels for a picture (PIL: {error})"
    if isinstance(error, FileNotFoundError):
        return "does not exist (any more), or is a broken link"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if type(error).__name__ == "LibsndfileError":
        return f"is not a sound file, or damaged ({getattr(error, 'error_string', error)})"
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return f"cannot be read ({str(error) or type(error).__name__})"
