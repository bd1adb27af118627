"""Reading picture files as plain grey or colour images."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps


def read_image(path: str | Path | BinaryIO) -> Image.Image:
    """Read the first frame of a picture completely, upright, as mode "L" or "RGB"; the file is closed again.

    Raises:
        OSError: if the file is damaged or not a picture.
        ValueError: see `plain`.
    """
    with Image.open(path) as image:
        image.load()
        return plain(image)


def image_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """Return (height, width) of the upright picture from the header of its file."""
    with Image.open(path) as image:
        width, height = image.size
        exif = Image.Image.getexif(image)  # the method of the base class: that of PNG would decode the whole picture
        turned = exif.get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
    return (width, height) if turned else (height, width)


def plain(image: Image.Image) -> Image.Image:
    """Return the picture upright and in mode "L" (if it is stored as grey) or "RGB" (otherwise).

    Transparent pictures are laid on white, 16-bit grey is scaled to 8 bits (65535 becomes 255), palettes and CMYK
    become RGB.

    Raises:
        ValueError: for values without a defined range, as in floating-point TIFFs.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"picture values from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))  # 65535 = 255 * 257
    if image.mode == "F":
        raise ValueError("floating-point picture without a defined range; save it with 8 or 16 bits, or as .npy")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if grey else "RGB")
    return image.convert("RGB")
