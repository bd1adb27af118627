"""Preprocessing of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ndvit.data.examples import Examples, Raw
from ndvit.data.preprocess.base import Moments, Preprocess
from ndvit.data.sources.files import header_of
from ndvit.data.sources.pictures import plain

_SAMPLE = 1_000  # pictures for statistics: more would change the third digit of a mean
_LARGEST = 224  # the shorter side by default; most published weights were trained at this size


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """Picture -> tensor: resize and crop, scale to 0..1, standardise.

    The picture is resized to cover `size / crop_fraction`, and `size` is cut from its centre; nothing is padded. With
    `resize="cover"` it keeps its aspect, and the overhang of the longer side is lost; with "stretch" both sides are
    resized to `size / crop_fraction`. Mode "L" turns colour into grey (ITU-R 601-2 luma), mode "RGB" repeats grey three
    times.

    Takes PIL images of any mode (see `plain`) and uint8 arrays laid out as PIL lays them out: (height, width) or
    (height, width, channels) with 1, 3 or 4 channels.
    """

    kind: ClassVar[str] = "image"

    mode: Literal["RGB", "L"] = "RGB"
    """Colour (3 channels) or grey (1 channel)."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """PIL's resampling filter; all but "nearest" are antialiased."""
    crop_fraction: float = 1.0
    """Share of the shorter side of the resized picture that the centre crop keeps; of each side with "stretch"."""
    resize: Literal["cover", "stretch"] = "cover"
    """Keep the aspect or not; the ViTs of Google and Hugging Face are evaluated with "stretch"."""

    def __post_init__(self) -> None:
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        super().__post_init__()
        if len(self.size) != 2:
            raise ValueError(f"a picture's size is (height, width); got {self.size}")
        if (self.mode, self.channels) not in (("RGB", 3), ("L", 1)):
            raise ValueError(f'mode is "RGB" with 3 means or "L" with 1; got {self.mode!r} with {len(self.mean)}')
        if self.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise ValueError(f"interpolation is nearest, bilinear, bicubic or lanczos; got {self.interpolation!r}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be above 0 and at most 1; got {self.crop_fraction}")
        if self.resize not in ("cover", "stretch"):
            raise ValueError(f'resize is "cover" (keeps the aspect) or "stretch"; got {self.resize!r}')

    @classmethod
    def fit(cls, examples: Examples, size: int | Sequence[int] | None = None) -> "ImagePreprocess":
        """Compute everything from training pictures, from at most 1,000 of them drawn with a fixed seed.

        Args:
            examples: the training examples.
            size: (height, width) or one number for a square; None takes the median of each side, and scales both down
                together if the shorter one exceeds 224.
        """
        drawn = examples.sample(_SAMPLE)
        if size is None:
            height, width = median_size(examples)
            scale = min(1.0, _LARGEST / min(height, width))
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
        colour = cls(size, (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]  # as `size` of the class
        moments, grey_moments, grey = Moments(3), Moments(1), True
        for i in drawn:  # one pass: a grey picture repeats its channel, so colour statistics serve it as well
            raw = examples[i]
            grey = grey and plain(_as_image(raw)).mode == "L"
            tensor = colour(raw).numpy()
            moments.add(tensor)
            grey_moments.add(tensor[:1])
        found = grey_moments if grey else moments
        return cls(colour.size, found.mean(), found.std(), "L" if grey else "RGB")

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, height, width) float32; raises the errors of `converted`."""
        return self.standardised(self.resized(self.converted(raw)))

    def converted(self, raw: Raw) -> Image.Image:
        """Return the picture upright, in the mode of this preprocessing.

        Raises:
            ValueError: for an array of another layout or type than described above, or a picture that `plain` refuses.
        """
        return plain(_as_image(raw)).convert(self.mode)

    def resized(self, image: Image.Image) -> Image.Image:
        """Return the picture resized and cropped to `size`."""
        (height, width), (tall, wide) = self.size, (image.height, image.width)
        # torchvision and timm round down; 1e-6 is for quotients slightly below a whole number
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
        tensor = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # permuting bytes is faster
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return tensor.div_(255).sub_(mean).div_(std)


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
        item = examples.items[i]
        sizes.append(header_of(_as_image(item) if examples.in_memory else item).grid)
    height, width = np.median(sizes, axis=0)
    return float(height), float(width)
