"""Rasters: TIFF files that hold more than a picture in grey or colour, such as the bands of a satellite image.

Only the values and GDAL's mark for missing ones are read; where on earth they were measured is of no use here.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.sources.arrays import warn_of_rounding

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

TIFFS = (".tif", ".tiff")

_MOST_VALUES = 2**29  # 2 GiB as float32; a header can claim any size
_GREY = (0, 1)  # photometric interpretations: white is zero, black is zero
_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}
"""Samples of a pixel by photometric interpretation: grey, RGB, palette, mask, CMYK, YCbCr, CIE Lab (TIFF 6.0)."""
_COPY, _MASK = 1, 4  # bits of NewSubfileType: a page that is a smaller copy of another, or its mask
_ALPHA = (1, 2)  # of ExtraSamples; 0 is a band without a meaning
_NODATA = 42113  # GDAL_NODATA, a text
_OF_THE_EARTH = (33550, 34264, 34735, 42112, _NODATA)
"""Tags of GeoTIFF and of GDAL, which marks the fourth of four bands as alpha unless it is told not to."""


class _Raster(NamedTuple):
    """The pages that hold the bands, and (bands, height, width)."""

    pages: list["TiffPage"]
    shape: tuple[int, int, int]


def is_raster(path: str | Path) -> bool:
    """Say of any file whether it is a TIFF that is no ordinary picture, by its header.

    Pictures are those of 8 bits in grey or colour and those of 16 bits in grey, with or without transparency; of what
    GDAL wrote or what has a place on earth, those without. Grey pages of equal size are bands of one raster; smaller
    copies and masks are not counted.
    """
    if Path(path).suffix.lower() not in TIFFS:
        return False
    with _opened(path) as raster:
        return raster is not None


def raster_shape(path: str | Path) -> tuple[int, int, int]:
    """Return (bands, height, width) of a raster from its header; raises as `read_raster`."""
    with _opened(path) as raster:
        if raster is None:
            raise ValueError("is a picture in grey or colour, expected a raster of bands")
        return raster.shape


def read_raster(path: str | Path) -> np.ndarray | None:
    """Read a raster as (bands, height, width) float32, NaN where GDAL_NODATA says that nothing was measured.

    Returns:
        None for ordinary pictures, for what is no TIFF, and for TIFFs that are damaged beyond telling.

    Raises:
        ValueError: pages that make no bands, values that are no numbers or too many, compression that needs a package.
    """
    with _opened(path) as raster:
        if raster is None:
            return None
        bands = []
        for page in raster.pages:
            planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # (planes, height, width, samples)
            bands.append(np.moveaxis(planes, -1, 1).reshape(-1, *planes.shape[1:3]))
        return _observed(np.concatenate(bands), raster.pages[0])


def doubtful_alpha(path: str | Path, whole: bool = True) -> bool:
    """Say of any file whether it is a TIFF whose transparency may be a band that was measured.

    Of a raster that is any band that is marked as transparency; of a picture, one with values between none and all, or
    any if it is not to be read as a `whole`.
    """
    if Path(path).suffix.lower() not in TIFFS:
        return False
    with _opened(path) as raster:
        if raster is not None:
            return any(kind in _ALPHA for kind in raster.pages[0].extrasamples)
    with Image.open(path) as image:
        *_, last = image.getbands()
        return last in ("A", "a") and (not whole or any(image.getchannel(last).histogram()[1:255]))


@contextmanager
def _opened(path: str | Path) -> Iterator[_Raster | None]:
    """The raster in a file, None for anything else."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of its log is raised as well
    with open(path, "rb") as file:  # what is wrong with the file itself is said as for any other
        try:
            tiff = tifffile.TiffFile(file, _multifile=False)  # or the file could name others that are read, too
            pages = list(tiff.pages)
        except Exception:  # it raises whatever it likes on a damaged file; PIL, which comes next, finds better words
            yield None
            return
        with tiff:
            yield _raster(tiff, pages)


def _raster(tiff: "TiffFile", pages: list) -> _Raster | None:
    pages = [page for page in pages if not page.subfiletype & (_COPY | _MASK)] or pages[:1]
    if not pages:
        return None
    first, several = pages[0], len(pages) > 1
    bands = several and all(_is_band(page) and _layout(page) == _layout(first) for page in pages)
    if not bands and _is_picture(first):
        return None  # of which further pages are left out
    if several and not bands:
        raise ValueError(
            f"holds {len(pages)} pages that make no bands of one raster: expected one page, or pages of equal size and "
            "type with one band each"
        )
    if first.dtype is None or first.dtype.kind not in "fiub":
        raise ValueError(f"holds values of type {first.dtype or f'{first.bitspersample} bits'}; numbers are needed")
    planes, depth, height, width, samples = first.shaped
    shape = (len(pages) * planes * samples, height, width)
    if depth != 1:
        raise ValueError(f"holds a volume of depth {depth}; save it as .npy (channels, depth, height, width)")
    if np.prod(shape, dtype=np.float64) > _MOST_VALUES:
        raise ValueError(f"claims {' x '.join(map(str, shape))} values, more than {_MOST_VALUES:,}; cut it into tiles")
    _check_compression(first)
    return _Raster(pages, shape)


def _layout(page: "TiffPage") -> tuple:
    return page.shaped, page.dtype


def _is_band(page: "TiffPage") -> bool:
    """Whether a page holds one band; not of 1 bit, as pages of text do."""
    return page.samplesperpixel == 1 and page.photometric in _GREY and page.bitspersample != 1


def _is_picture(page: "TiffPage") -> bool:
    """Whether PIL makes of a page all that is in it."""
    colours, extra = _SAMPLES.get(page.photometric, 0), page.extrasamples
    whole = page.samplesperpixel == colours + len(extra)
    meant = not any(tag in page.tags for tag in _OF_THE_EARTH)
    transparency = not extra or (len(extra) == 1 and extra[0] in _ALPHA and meant)
    if isinstance(page.bitspersample, tuple):
        return True  # of unequal bits, of which PIL has to say whether it can read them
    plain = page.sampleformat == 1 and page.bitspersample <= (16 if colours == 1 else 8) and page.shaped[1] == 1
    return plain and whole and transparency


def _check_compression(page: "TiffPage") -> None:
    from tifffile import TIFF

    for known, how in ((TIFF.DECOMPRESSORS, page.compression), (TIFF.UNPREDICTORS, page.predictor)):
        try:
            known[how]
        except KeyError as error:
            name = getattr(how, "name", how)
            if "imagecodecs" not in str(error):
                raise ValueError(f"is compressed in a way that is not known here ({name})") from error
            raise ValueError(
                f"is compressed in a way ({name}) that takes the package imagecodecs to read: "
                "pip install imagecodecs, or save it with deflate compression and without a predictor"
            ) from error


def _observed(array: np.ndarray, page: "TiffPage") -> np.ndarray:
    """The values as float32, NaN for GDAL_NODATA."""
    missing = np.zeros((), dtype=bool)
    tag = page.tags.get(_NODATA)
    if tag is not None:
        try:
            mark = float(str(tag.value).strip("\0 "))
        except ValueError:
            mark = np.nan
        with np.errstate(over="ignore"):
            # a text of 17 digits stands for the nearest value of the file's own type; no whole number equals -0.5
            missing = array == (array.dtype.type(mark) if array.dtype.kind == "f" else mark)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and infinite values are refused
        values = np.where(missing, np.float32(np.nan), array.astype(np.float32))
    if array.dtype.itemsize > 2 and array.dtype != np.float32:
        warn_of_rounding(np.where(missing, np.nan, array)[None], values[None], "the raster")
    return values
