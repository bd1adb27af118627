"""Rasters: TIFF files that are not ordinary pictures, such as the bands of a satellite image.

Only the values and GDAL's mark of missing values are read; georeferences are ignored.
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ndvit.data.sources.arrays import warn_of_rounding
from ndvit.data.sources.pictures import open_picture
from ndvit.files import check_regular, unpacking_fault

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_TIFFS = (".tif", ".tiff")
_MOST_VALUES = 2**29  # 2 GiB as float32; a header can claim any size
_GREY = (0, 1)  # photometric interpretations: white is zero, black is zero
_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}
"""Samples of a pixel by photometric interpretation: grey, RGB, palette, mask, CMYK, YCbCr, CIE Lab (TIFF 6.0)."""
_COPY, _MASK = 1, 4  # bits of NewSubfileType: the page is a smaller copy of another, or its mask
_ALPHA = (1, 2)  # values of ExtraSamples for transparency; 0 is a band without a defined meaning
_NODATA = 42113  # GDAL_NODATA, a text
_GEO_TAGS = (33550, 34264, 34735, 42112, _NODATA)
"""Tags of GeoTIFF and of GDAL, which marks the fourth of four bands as alpha by default."""


class _Raster(NamedTuple):
    """The pages with the bands, and (bands, height, width)."""

    pages: list["TiffPage"]
    shape: tuple[int, int, int]


def raster_shape(path: str | Path) -> tuple[int, int, int] | None:
    """Return (bands, height, width) of a raster from its header; None for other files and for ordinary pictures.

    Pictures are grey or colour of 8 bits and grey of 16 bits, with or without transparency; with tags of GDAL or a
    georeference, only those without transparency. Grey pages of equal size are the bands of one raster; smaller copies
    and masks are not counted.

    Raises:
        ValueError: see `read_raster`.
    """
    with _opened(path) as raster:
        return None if raster is None else raster.shape


def read_raster(path: str | Path) -> np.ndarray | None:
    """Read a raster as (bands, height, width) float32, with NaN for values that equal GDAL_NODATA.

    Returns:
        None for ordinary pictures, files that are not TIFFs, and TIFFs that are too damaged to tell.

    Raises:
        ValueError: for pages that are not bands of one raster, values that are not numbers or too many, and compression
            that needs a package.
    """
    with _opened(path) as raster:
        if raster is None:
            return None
        bands = []
        try:
            for page in raster.pages:
                planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # (planes, height, width, samples)
                bands.append(np.moveaxis(planes, -1, 1).reshape(-1, *planes.shape[1:3]))
        except Exception as error:  # tifffile and zlib raise any error for damaged files
            raise ValueError(f"is damaged or cut off ({str(error)[:200] or type(error).__name__})") from error
        return _observed(np.concatenate(bands), raster.pages[0])


def has_doubtful_alpha(path: str | Path, whole: bool = True) -> bool:
    """Whether the transparency of a TIFF file may be a measured band; False for all other files.

    In a raster, that is any band marked as transparency; in a picture, transparency with values between none and all,
    or any transparency if the picture must not be decoded (`whole=False`).
    """
    if not str(path).lower().endswith(_TIFFS):
        return False
    with _opened(path) as raster:
        if raster is not None:
            return any(kind in _ALPHA for kind in raster.pages[0].extrasamples)
    with open_picture(path) as image:
        *_, last = image.getbands()
        return last in ("A", "a") and (not whole or any(image.getchannel(last).histogram()[1:255]))


@contextmanager
def _opened(path: str | Path) -> Iterator[_Raster | None]:
    """The raster in a file; None for anything else."""
    if not str(path).lower().endswith(_TIFFS):
        yield None
        return
    import tifffile

    check_regular(path)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs faults that it also raises
    with open(path, "rb") as file:  # faults of the file itself get the same message as for other types
        try:
            tiff = tifffile.TiffFile(file, _multifile=False)  # otherwise the file could name other files to read
            pages = list(tiff.pages)
        except Exception:  # any error for a damaged file; PIL, which reads it next, has a better message
            yield None
            return
        with tiff:
            yield _raster(tiff, pages, os.fstat(file.fileno()).st_size)


def _raster(tiff: "TiffFile", pages: list, stored: int) -> _Raster | None:
    pages = [page for page in pages if not page.subfiletype & (_COPY | _MASK)] or pages[:1]
    if not pages:
        return None
    first, several = pages[0], len(pages) > 1
    bands = several and all(_is_band(p) and (p.shaped, p.dtype) == (first.shaped, first.dtype) for p in pages)
    if not bands and _is_picture(first):
        return None  # further pages are ignored
    if several and not bands:
        raise ValueError(
            f"has {len(pages)} pages that are not bands of one raster: expected one page, or pages of equal size and "
            "type with one band each"
        )
    if first.dtype is None or first.dtype.kind not in "fiub":
        raise ValueError(f"has values of type {first.dtype or f'{first.bitspersample} bits'}; expected numbers")
    planes, depth, height, width, samples = first.shaped
    shape = (len(pages) * planes * samples, height, width)
    if depth != 1:
        raise ValueError(f"has a volume of depth {depth}; save it as .npy (channels, depth, height, width)")
    if np.prod(shape, dtype=np.float64) > _MOST_VALUES:
        raise ValueError(f"claims {' x '.join(map(str, shape))} values, more than {_MOST_VALUES:,}; cut it into tiles")
    if fault := unpacking_fault(math.prod(shape) * first.dtype.itemsize, stored, math.prod(shape)):
        raise ValueError(fault)
    _check_compression(first)
    return _Raster(pages, shape)


def _is_band(page: "TiffPage") -> bool:
    """Whether a page has one band; pages of 1 bit are scanned text."""
    return page.samplesperpixel == 1 and page.photometric in _GREY and page.bitspersample != 1


def _is_picture(page: "TiffPage") -> bool:
    """Whether PIL reads everything in a page."""
    colours, extra = _SAMPLES.get(page.photometric, 0), page.extrasamples
    if isinstance(page.bitspersample, tuple):
        return True  # of unequal bits: PIL must decide whether it can read them
    georeferenced = any(tag in page.tags for tag in _GEO_TAGS)
    transparency = not extra or (len(extra) == 1 and extra[0] in _ALPHA and not georeferenced)
    simple = page.sampleformat == 1 and page.bitspersample <= (16 if colours == 1 else 8) and page.shaped[1] == 1
    return simple and page.samplesperpixel == colours + len(extra) and transparency


def _check_compression(page: "TiffPage") -> None:
    from tifffile import TIFF

    for known, method in ((TIFF.DECOMPRESSORS, page.compression), (TIFF.UNPREDICTORS, page.predictor)):
        try:
            known[method]
        except KeyError as error:
            name = getattr(method, "name", method)
            if "imagecodecs" not in str(error):
                raise ValueError(f"has an unknown compression ({name})") from error
            raise ValueError(
                f"has a compression ({name}) that needs the package imagecodecs: pip install imagecodecs, or save it "
                "with deflate compression and without a predictor"
            ) from error


def _observed(array: np.ndarray, page: "TiffPage") -> np.ndarray:
    """The values as float32, NaN for GDAL_NODATA."""
    missing = np.zeros((), dtype=bool)
    tag = page.tags.get(_NODATA)
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused later
        if tag is not None:
            try:
                mark = float(str(tag.value).strip("\0 "))
            except ValueError:
                mark = np.nan
            # the text has 17 digits and means the nearest value of the file's type; no integer equals -0.5
            missing = array == (array.dtype.type(mark) if array.dtype.kind == "f" else mark)
        values = np.where(missing, np.float32(np.nan), array.astype(np.float32))
    if array.dtype.itemsize > 2 and array.dtype != np.float32:
        warn_of_rounding(np.where(missing, np.nan, array)[None], values[None], "the raster")
    return values
