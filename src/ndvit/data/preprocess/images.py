"""Pictures: reading them into plain grey or colour, and the preprocessing that makes them tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ndvit.data.examples import Encoded, Examples
from ndvit.data.preprocess import base as preprocess
from ndvit.data.preprocess.base import Moments, Raw

_SAMPLE = 1_000  # pictures that statistics are taken from: more would change the third digit of a mean
_LARGEST = 224  # the shorter side where no size is asked for; the size that most published weights were trained at


def read_image(path: str | Path | BinaryIO) -> Image.Image:
    """Read the first frame of a picture completely, upright, as mode "L" or "RGB"; the file is closed again.

    Raises:
        OSError: the file is damaged or no picture. ValueError: see `plain`.
    """
    with Image.open(path) as image:
        image.load()
        return plain(image)


def image_size(path: str | Path | BinaryIO) -> tuple[int, int]:
    """Return (height, width) of the upright picture from the file's header."""
    with Image.open(path) as image:
        width, height = image.size
        exif = Image.Image.getexif(image)  # the base class's: PNG's own would decode the whole picture
        turned = exif.get(0x0112, 1) >= 5  # orientations 5 to 8 lie on their side
    return (width, height) if turned else (height, width)


def plain(image: Image.Image) -> Image.Image:
    """Return the picture upright and in mode "L" (what was stored as grey) or "RGB" (everything else).

    Transparency is laid on white, 16-bit grey is scaled to 8 bits (65535 becomes 255), palettes and CMYK become RGB.

    Raises:
        ValueError: values with no stated range, as in floating-point TIFFs.
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
        raise ValueError("picture of floating-point values has no stated range; save it with 8 or 16 bits, or as .npy")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if grey else "RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImagePreprocess:
    """Picture -> tensor: resize and crop, scale to 0..1, standardise.

    The picture is resized until it covers `size / crop_fraction`, and `size` is cut from its centre; nothing is padded.
    With `resize="cover"` it keeps its aspect and just covers, so what hangs over on the longer side is lost and nothing
    is stretched; with "stretch" both sides are resized straight to `size / crop_fraction`. Mode "L" turns colour into
    grey (ITU-R 601-2 luma), mode "RGB" repeats grey three times.

    Takes PIL images of any mode (see `plain`) and uint8 arrays laid out as PIL lays them out: (height, width) or
    (height, width, channels) with 1, 3 or 4 channels.
    """

    kind: ClassVar[str] = "image"

    size: tuple[int, ...]
    """(height, width); one number means a square."""
    mean: tuple[float, ...]
    """Mean of each channel, of pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    mode: Literal["RGB", "L"] = "RGB"
    """Colour (3 channels) or grey (1 channel)."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """PIL's resampling filter; all but "nearest" are antialiased."""
    crop_fraction: float = 1.0
    """The part of the covering picture's shorter side that the centre crop keeps; of each side with "stretch"."""
    resize: Literal["cover", "stretch"] = "cover"
    """Keep the aspect, or not: "stretch" is how Google's and Hugging Face's ViTs are evaluated."""

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        preprocess.check_fields(self, size, self.mean, self.std)
        if len(self.size) != 2:
            raise ValueError(f"a picture's size is (height, width); got {self.size}")
        if self.mode not in ("RGB", "L") or self.channels != len(self.mean):
            raise ValueError(f'mode is "RGB" with 3 means or "L" with 1; got {self.mode!r} with {len(self.mean)}')
        if self.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise ValueError(f"interpolation is nearest, bilinear, bicubic or lanczos; got {self.interpolation!r}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be above 0 and at most 1; got {self.crop_fraction}")
        if self.resize not in ("cover", "stretch"):
            raise ValueError(f'resize is "cover" (keeps the aspect) or "stretch"; got {self.resize!r}')

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return len(self.mode) if self.mode == "RGB" else 1

    @classmethod
    def fit(cls, examples: Examples, size: int | Sequence[int] | None = None) -> "ImagePreprocess":
        """Compute everything from training pictures, from at most 1,000 of them drawn with a fixed seed.

        Args:
            examples: The training examples.
            size: (height, width) or one number for a square; None takes the median of each side, and scales both down
                together where the shorter one exceeds 224.
        """
        drawn = examples.sample(_SAMPLE)
        if size is None:
            height, width = median_size(examples)
            scale = min(1.0, _LARGEST / min(height, width))
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
        size = (size, size) if isinstance(size, int) else tuple(int(n) for n in size)
        colour = cls(size, (0.0,) * 3, (1.0,) * 3)
        moments, grey_moments, grey = Moments(3), Moments(1), True
        for i in drawn:  # one pass: a grey picture repeats its channel, so colour statistics serve it as well
            raw = examples[i]
            grey = grey and plain(_as_image(raw)).mode == "L"
            tensor = colour(raw).numpy()
            moments.add(tensor)
            grey_moments.add(tensor[:1])
        found: Moments = grey_moments if grey else moments
        return cls(size, found.mean(), found.std(), "L" if grey else "RGB")

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, height, width) float32.

        Raises:
            ValueError: an array of another layout or type than stated above, or a picture that `plain` refuses.
        """
        return self.standardised(self.resized(self.converted(raw)))

    def converted(self, raw: Raw) -> Image.Image:
        """Return the picture upright, in this mode; errors as above."""
        return plain(_as_image(raw)).convert(self.mode)

    def resized(self, image: Image.Image) -> Image.Image:
        """Return what the network sees of a picture, (width, height) = `size`, as PIL calls it."""
        (height, width), (tall, wide) = self.size, (image.height, image.width)
        # Rounding down is what torchvision and timm do; 1e-6 is for quotients that fall just short of a whole number.
        over_h, over_w = int(height / self.crop_fraction + 1e-6), int(width / self.crop_fraction + 1e-6)
        if self.resize == "stretch":
            cover = (over_w, over_h)
        elif tall * over_w <= wide * over_h:
            cover = (wide * over_h // tall, over_h)
        else:
            cover = (over_w, tall * over_w // wide)
        if cover != image.size:
            image = image.resize(cover, Image.Resampling[self.interpolation.upper()])
        left, top = round((cover[0] - width) / 2), round((cover[1] - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def standardised(self, image: Image.Image) -> Tensor:
        """Return the tensor of a picture of `size` and `mode`."""
        pixels = torch.from_numpy(np.array(image).reshape(image.height, image.width, self.channels)).permute(2, 0, 1)
        tensor = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # channels apart while they are bytes
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return tensor.div_(255).sub_(mean).div_(std)

    def masked(self, raw: Raw) -> tuple[Tensor, Tensor | None]:
        """Return the tensor and None: pictures are always fully observed."""
        return self(raw), None

    def fits(self, raw: Raw) -> bool:
        """Return True: resizing is what one expects of a picture."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for `preprocess_from_dict`."""
        return preprocess.to_dict(self)


def _as_image(raw: Raw) -> Image.Image:
    if isinstance(raw, Image.Image):
        return raw
    if not isinstance(raw, np.ndarray):
        raise ValueError(f"a picture is a PIL image or a uint8 array; got {type(raw).__name__}")
    if raw.dtype != np.uint8 or raw.size == 0 or raw.ndim not in (2, 3) or raw.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            "a picture as an array is uint8 (0..255) of shape (height, width) or (height, width, 1, 3 or 4 channels); "
            f"got {raw.dtype} of shape {raw.shape}: scale the values, move the channels last"
        )
    return Image.fromarray(raw[..., 0] if raw.shape[2:] == (1,) else raw)


def median_size(examples: Examples) -> tuple[float, float]:
    """Return the median height and the median width of at most 1,000 pictures, drawn with a fixed seed."""
    sizes = []
    for i in examples.sample(_SAMPLE):
        if examples.in_memory:
            image = _as_image(examples[i])
            sizes.append((image.height, image.width))
        else:
            item = examples.items[i]
            sizes.append(image_size(item.open() if isinstance(item, Encoded) else item))
    height, width = np.median(sizes, axis=0)
    return float(height), float(width)
