"""Files of one example each: their kinds by ending, their headers, and reading one."""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ndvit.data.examples import EncodedPicture, Kind, Raw, Recording
from ndvit.data.messages import printable
from ndvit.data.sources.npy import npy_shape, read_npy
from ndvit.data.sources.pictures import USUAL_PICTURES, image_size, picture_endings, read_image
from ndvit.data.sources.rasters import raster_shape, read_raster
from ndvit.data.sources.sounds import SOUNDS, USUAL_SOUNDS, read_audio, sound_header

_ARRAYS = {".npy": "npy files", ".npz": "npz files"}


class Header(NamedTuple):
    """Shape of an example: channels (0 for pictures, which are converted) and grid; `rate` (Hz) of a recording."""

    kind: Kind
    channels: int
    grid: tuple[int, ...]
    rate: float | None = None


def medium(path: str | Path) -> str | None:
    """Return the kind of a file by its ending: images, sound files, npy files or npz files; None for other files."""
    return _media().get(os.path.splitext(path)[1].lower())


def known_endings() -> str:
    """The usual endings of files with one example, for messages."""
    others = len(_media()) - len(USUAL_PICTURES + USUAL_SOUNDS) - len(_ARRAYS)
    return ", ".join([*USUAL_PICTURES, *USUAL_SOUNDS, *_ARRAYS]) + f" and {others} more that PIL or libsndfile read"


def _media() -> dict[str, str]:
    """Kind of a file with one example, by its ending; found at the first use, because PIL imports all its formats."""
    return _kinds(picture_endings())


@cache
def _kinds(pictures: tuple[str, ...]) -> dict[str, str]:
    return dict.fromkeys(pictures, "images") | dict.fromkeys(SOUNDS, "sound files") | _ARRAYS


def short(text: str, most: int = 200) -> str:
    """Return a path or another text of files for messages: printable, and without its middle if it is long."""
    return printable(text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}")


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
    _check_file(item)
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
    _check_file(item)
    kind = medium(item)
    if kind == "images":
        raster = read_raster(item)
        return read_image(item) if raster is None else raster
    return read_audio(item) if kind == "sound files" else read_npy(item)


def _check_file(path: str) -> None:
    """Raise a ValueError for an empty file, and for a pipe, socket or device, which could block for ever."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    if status.st_size == 0:
        raise ValueError("is empty (0 bytes)")


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
