"""Reading picture files as plain grey or colour images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ndvit.files import unpacking_fault

USUAL_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Endings of pictures in messages, see `picture_endings`."""
_NOT_PICTURES = {"EPS", "WMF", "MPEG", "FITS", "IPTC", "PCD"}
"""Formats that are not read: they run a program (EPS), have nothing that PIL decodes, have values without a range, or
share their ending with other data (.pcd, point clouds)."""


def picture_formats() -> tuple[str, ...]:
    """The formats of pictures that PIL decodes, with those of its plugins that are registered, such as HEIF."""
    Image.init()
    return _readable(len(Image.ID))[0]


def picture_endings() -> tuple[str, ...]:
    """The endings of `picture_formats`, the usual ones first."""
    Image.init()
    return _readable(len(Image.ID))[1]


@cache
def _readable(registered: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Formats and endings that are read, of the registered ones, whose number grows when a plugin is imported."""
    opened = {name: Image.OPEN[name][0] for name in Image.ID if name in Image.OPEN}
    stubs = {n for n, kind in opened.items() if isinstance(kind, type) and issubclass(kind, ImageFile.StubImageFile)}
    formats = tuple(name for name in opened if name not in stubs | _NOT_PICTURES)
    known = {*formats, "MPO"}  # which is read as JPEG
    endings = sorted(ending for ending, name in Image.EXTENSION.items() if name in known)
    return formats, tuple(dict.fromkeys((*USUAL_PICTURES, *endings)))


_ORIENTATION = 0x0112  # a tag of EXIF; 1 is upright
_LONGEST_SIDE = 2**20  # pixels; scans and panoramas have less, and each row of a decoder costs memory of its own
HALVED = "upper 8 of 16 bits"
"""Key of `info` of a picture whose lower 8 bits PIL does not read: 16 bits of colour, or of grey with transparency."""


def read_image(path: str | Path | BinaryIO) -> Image.Image:
    """Read the first frame of a picture completely, upright, as mode "L" or "RGB"; the file is closed again.

    `info["frames"]` of the result is "several" if the file has more frames or pages.

    Raises:
        OSError: if the file is damaged or not a picture.
        ValueError: see `plain`.
    """
    with open_picture(path) as image:
        halved = any(str(tile[3]).endswith(";16B") and image.mode != "I;16" for tile in image.tile)
        image.load()
        picture = plain(image)
        if halved:
            picture.info[HALVED] = True
        if getattr(image, "is_animated", False):
            picture.info["frames"] = "several"
        return picture


def image_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """Return (height, width) of the upright picture from the header of its file."""
    with open_picture(path) as image:
        width, height = image.size
        exif = Image.Image.getexif(image)  # the method of the base class: that of PNG would decode the whole picture
        turned = exif.get(_ORIENTATION, 1) >= 5  # orientations 5 to 8 swap the sides
    return (width, height) if turned else (height, width)


@contextmanager
def open_picture(path: str | Path | BinaryIO) -> Iterator[ImageFile.ImageFile]:
    """Open a picture that does not fill the memory; its errors are OSErrors and ValueErrors only.

    Raises:
        OSError: if the file is not a picture or is damaged.
        ValueError: for too many pixels, and for the other errors of PIL's decoders.
    """
    stored = _stored_bytes(path)
    try:
        with Image.open(path, formats=picture_formats()) as image:
            _check_pixels(image, stored)
            yield image
    except (OSError, ValueError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"has too many pixels for a picture (PIL: {error})") from error
    except Exception as error:
        raise ValueError(f"cannot be read ({str(error)[:200] or type(error).__name__})") from error


def _check_pixels(image: Image.Image, stored: int) -> None:
    """Refuse what PIL only warns of: a small file, of `stored` bytes, can claim pictures that fill the memory."""
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise ValueError(f"has too many pixels for a picture ({pixels:,}, at most {most:,}); cut it, or scale it down")
    if max(image.size) > _LONGEST_SIDE:
        raise ValueError(f"has a side of {max(image.size):,} pixels, more than {_LONGEST_SIDE:,}; cut it into pieces")
    if fault := unpacking_fault(pixels * len(image.getbands()), stored):
        raise ValueError(f"{fault}, or scale the picture down")


def _stored_bytes(source: str | Path | BinaryIO) -> int:
    if isinstance(source, str | Path):
        return os.path.getsize(source)
    at = source.tell()
    end = source.seek(0, os.SEEK_END)
    source.seek(at)
    return end


def plain(image: Image.Image) -> Image.Image:
    """Return the picture upright, in mode "L" (stored as grey), "I;16" (grey of more than 8 bits) or "RGB" (others).

    Transparent pictures are laid on white, palettes and CMYK become RGB. Values of more than 8 bits are kept: which of
    them are black and white depends on the data, and is decided by `ImagePreprocess`. PIL reads only the upper 8 of 16
    bits of colour, and of grey with transparency.

    Raises:
        ValueError: for values without a defined range, as in floating-point TIFFs, or outside of 0 to 65535.
    """
    if isinstance(image, ImageFile.ImageFile) or image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)  # which copies any picture
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "I;16":
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"picture values from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        return Image.fromarray(values.astype(np.uint16))
    if image.mode == "F":
        raise ValueError("floating-point picture without a defined range; save it with 8 or 16 bits, or as .npy")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if grey else "RGB")
    return image.convert("RGB")


def is_blank(image: Image.Image) -> bool:
    """Whether all pixels of a picture have the same value."""
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)
