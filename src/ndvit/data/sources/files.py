"""Files of one example each: their kinds by ending, their headers, and reading one."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ndvit.data.examples import EncodedPicture, Kind, Raw, Recording, Stored, StoredItems, StoredSignal
from ndvit.data.messages import printable
from ndvit.data.sources.column_files import COLUMN_FILES
from ndvit.data.sources.edf import EDF_FILES
from ndvit.data.sources.named_arrays import ARRAY_FILES
from ndvit.data.sources.npy import npy_shape, read_npy, read_npy_slice
from ndvit.data.sources.pictures import USUAL_PICTURES, image_size, picture_endings, read_image
from ndvit.data.sources.rasters import raster_shape, read_raster
from ndvit.data.sources.sounds import SOUNDS, USUAL_SOUNDS, read_audio, sound_header

_ARRAYS = {".npy": "npy files", ".npz": "npz files"}
_RECORDINGS = dict.fromkeys(COLUMN_FILES, "tables") | dict.fromkeys((*ARRAY_FILES, *EDF_FILES), "recordings")


class Header(NamedTuple):
    """Shape of an example: channels (0 for pictures, which are converted) and grid; `rate` (Hz) of a recording."""

    kind: Kind
    channels: int
    grid: tuple[int, ...]
    rate: float | None = None


class Excerpt(NamedTuple):
    """The samples `start` to `stop` of a file along its last axis: some of its channels (None: all), or if `mono` their
    mean. `header` is that of the excerpt.
    """

    path: str
    start: int
    stop: int
    channels: tuple[int, ...] | None
    mono: bool
    header: Header

    def __str__(self) -> str:
        return f"{self.path}[{self.start}:{self.stop}]"


def medium(path: str | Path) -> str | None:
    """Return the kind of a file by its ending; None for other files.

    The kinds are images, sound files, npy files, npz files, tables (such as .csv), recordings (.mat, .h5, .edf).
    """
    return _media().get(os.path.splitext(path)[1].lower())


def known_endings() -> str:
    """The usual endings of files with one example, for messages."""
    usual = [*USUAL_PICTURES, *USUAL_SOUNDS, *_ARRAYS, *_RECORDINGS]
    others = len(_media()) - len(usual)
    return ", ".join(usual) + f" and {others} more that PIL or libsndfile read"


def _media() -> dict[str, str]:
    """Kind of a file with one example, by its ending; found at the first use, because PIL imports all its formats."""
    return _kinds(picture_endings())


@cache
def _kinds(pictures: tuple[str, ...]) -> dict[str, str]:
    return dict.fromkeys(pictures, "images") | dict.fromkeys(SOUNDS, "sound files") | _ARRAYS | _RECORDINGS


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
    if isinstance(item, Header):
        return item
    if isinstance(item, Image.Image):
        return Header("image", 0, (item.height, item.width))
    if isinstance(item, EncodedPicture):
        return Header("image", 0, image_size(item.open()))
    if isinstance(item, Recording):
        return Header("signal", len(item.values), item.values.shape[1:], item.rate)
    if isinstance(item, StoredSignal):
        return Header("signal", item.channels, item.grid, item.rate)
    if isinstance(item, np.ndarray):
        return Header("signal", len(item), item.shape[1:])
    if isinstance(item, Excerpt):
        return item.header
    _check_file(item)
    kind = medium(item)
    if kind == "sound files":
        channels, frames, rate = sound_header(item)
        return Header("signal", channels, (frames,), rate)
    shape = raster_shape(item) if kind == "images" else npy_shape(item)
    return Header("image", 0, image_size(item)) if shape is None else Header("signal", shape[0], shape[1:])


def headers_of(items: Sequence[Any]) -> list[Header]:
    """Return the header of each example; items of a stream with the same shape share one."""
    if not isinstance(items, StoredItems):
        return [header_of(item) for item in items]
    _, first, code = np.unique(items.shapes(), return_index=True, return_inverse=True)
    known = [header_of(items[i]) for i in first.tolist()]
    return [known[i] for i in code.tolist()]


def read_example(item: str | Stored | Excerpt) -> Raw:
    """Read one file or stored example; raise ValueErrors with the name of the file and its fault."""
    try:
        return decode(item)
    except Exception as error:  # decoders raise any error for a damaged file
        raise ValueError(f"{printable(str(item))}: {describe_fault(error)}") from error


def decode(item: str | Stored | Excerpt) -> Raw:
    """Read one file, a part of one, or a stored example; raise the errors of its decoder, see `describe_fault`."""
    if isinstance(item, EncodedPicture):
        return read_image(item.open())
    if isinstance(item, StoredSignal):
        return item.load()
    if isinstance(item, Excerpt):
        return _decode_part(item)
    assert isinstance(item, str)
    _check_file(item)
    kind = medium(item)
    if kind == "images":
        raster = read_raster(item)
        return read_image(item) if raster is None else raster
    return read_audio(item) if kind == "sound files" else read_npy(item)


def mix_channels(values: np.ndarray, channels: tuple[int, ...] | None, mono: bool) -> np.ndarray:
    """Some channels of (channels, *grid), by default all; if `mono`, the mean (1, *grid) of their observed values."""
    values = values if channels is None else values[list(channels)]
    if not mono:
        return values
    observed = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        mean = np.where(observed, values, 0).sum(axis=0, keepdims=True) / observed.sum(axis=0, keepdims=True)
    return np.asarray(mean, dtype=np.float32)


def _decode_part(item: Excerpt) -> Raw:
    _check_file(item.path)
    raw = _read_part(item)
    if isinstance(raw, Recording):
        return raw._replace(values=mix_channels(raw.values, item.channels, item.mono))
    return mix_channels(np.asarray(raw), item.channels, item.mono)


def _read_part(item: Excerpt) -> Raw:
    kind = medium(item.path)
    if kind == "sound files":
        return read_audio(item.path, item.start, item.stop)
    if kind == "npy files":
        return read_npy_slice(item.path, item.start, item.stop)
    status = os.stat(item.path)  # the other formats have no access to their middle
    whole = _decode_whole(item.path, status.st_mtime_ns, status.st_size)
    values = whole.values if isinstance(whole, Recording) else np.asarray(whole)
    part = np.ascontiguousarray(values[..., item.start : item.stop])
    return whole._replace(values=part) if isinstance(whole, Recording) else part


@lru_cache(maxsize=4)  # the windows of a recording are mostly read one after the other
def _decode_whole(path: str, modified: int, size: int) -> Raw:
    return decode(path)


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
