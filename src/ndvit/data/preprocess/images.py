"""Preprocessing of pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ndvit.config.recipe import Resize
from ndvit.data.examples import Examples, Raw
from ndvit.data.preprocess.base import Extent, Moments, Preprocess, is_list, is_number, is_whole, short
from ndvit.data.sources.files import header_of
from ndvit.data.sources.pictures import plain

_SAMPLE = 1_000  # pictures for statistics: more would change the third digit of a mean
_LARGEST = 224  # the shorter side by default; most published weights were trained at this size
_FULL = (0.0, 65535.0)  # the range of 16 bits
_NOISE = 0.5 / 255  # half a grey level of 8 bits: a channel that varies less holds rounding and compression noise
WASTE = 4
"""A resized picture with more than this many times the pixels that are kept is resized in part only."""
_TOO_DARK = 1 / 16  # of the range of the training data: 16 of 256 levels
_ALIASES = {"cover": "crop", "stretch": "squash"}  # names of earlier versions


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """Picture -> tensor: resize to the network's size, scale to 0..1, standardise.

    `resize` is what is done to a picture of another aspect than `size`:
      - "crop" keeps the aspect, covers `size / crop_fraction`, and cuts `size` from the centre: the overhang of the
        longer side is lost;
      - "pad" keeps the aspect and the whole picture, which fits into `size / crop_fraction`; what remains of `size` is
        the mean colour, which is 0 after standardising;
      - "squash" resizes both sides to `size / crop_fraction`, and cuts `size` from the centre.

    Mode "L" turns colour into grey (ITU-R 601-2 luma), mode "RGB" repeats grey three times. Grey pictures of more than
    8 bits are mapped from `levels` to 0..255, and clipped.

    Takes PIL images of any mode (see `plain`) and arrays laid out as PIL lays them out: uint8 of (height, width) or
    (height, width, channels) with 1, 3 or 4 channels, or uint16 of (height, width) or (height, width, 1).
    """

    kind: ClassVar[str] = "image"

    mode: Literal["RGB", "L"] = "RGB"
    """Colour (3 channels) or grey (1 channel)."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """PIL's resampling filter; all but "nearest" are antialiased."""
    crop_fraction: float = 1.0
    """Share of the shorter side of the resized picture that the centre crop keeps; of each side with "squash"."""
    resize: Resize = "crop"
    """Treatment of another aspect; the ViTs of Google and Hugging Face are evaluated with "squash". The names "cover"
    and "stretch" of earlier versions are read as "crop" and "squash"."""
    levels: tuple[float, float] = _FULL
    """Grey values of pictures of more than 8 bits that become black and white: the range of the training data."""

    def __post_init__(self) -> None:
        if is_whole(self.size):
            object.__setattr__(self, "size", (self.size, self.size))
        super().__post_init__()
        if len(self.size) != 2:
            raise ValueError(f"a picture's size is (height, width); got {short(self.size)}")
        if (self.mode, self.channels) not in (("RGB", 3), ("L", 1)):
            raise ValueError(f'mode is "RGB" with 3 means or "L" with 1; got {short(self.mode)} with {len(self.mean)}')
        if self.interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise ValueError(f"interpolation is nearest, bilinear, bicubic or lanczos; got {short(self.interpolation)}")
        if not is_number(self.crop_fraction, 0.01, 1):
            raise ValueError(f"crop_fraction must be from 0.01 to 1; got {short(self.crop_fraction)}")
        if isinstance(self.resize, str):
            object.__setattr__(self, "resize", _ALIASES.get(self.resize, self.resize))
        if self.resize not in get_args(Resize):
            raise ValueError(
                'resize is "crop" or "pad" (both keep the aspect), or "squash"; earlier names are "cover" for crop and '
                f'"stretch" for squash; got {short(self.resize)}'
            )
        levels = self.levels
        if not is_list(levels) or len(levels) != 2 or any(not is_number(v, *_FULL) for v in levels):
            raise ValueError(f"levels are two grey values from 0 to 65535; got {short(levels)}")
        if not levels[0] < levels[1]:
            raise ValueError(f"levels are the grey values of black and white, the lower first; got {short(levels)}")
        object.__setattr__(self, "levels", (float(levels[0]), float(levels[1])))

    @classmethod
    def fit(
        cls, examples: Examples, size: int | Sequence[int] | None = None, resize: Resize | None = None
    ) -> "ImagePreprocess":
        """Compute everything from training pictures, from at most 1,000 of them drawn with a fixed seed.

        Args:
            examples: the training examples.
            size: (height, width) or one number for a square; None takes the median of each side, and scales both down
                together if the shorter one exceeds 224.
            resize: treatment of another aspect; None is "crop".

        Raises:
            ValueError: if no channel varies by more than half a grey level of 8 bits over all pictures.
        """
        drawn = examples.sample(_SAMPLE)
        if size is None:
            height, width = median_size(examples)
            scale = min(1.0, _LARGEST / min(height, width))
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
        # statistics of padded pictures are those of whole pictures, without the padding
        whole: Resize = "squash" if resize == "pad" else resize or "crop"
        colour = cls(size, (0.0,) * 3, (1.0,) * 3, resize=whole)  # type: ignore[arg-type]  # as `size` of the class
        measured = _measure(colour, examples, drawn, deep=False)
        if measured is None:  # one of the pictures has more than 8 bits
            colour = replace(colour, levels=_levels(examples, drawn))
            measured = _measure(colour, examples, drawn, deep=True)
        assert measured is not None
        moments, grey_moments, grey = measured
        found = grey_moments if grey else moments
        unused = found.constant(_NOISE)
        if len(unused) == (1 if grey else 3):
            raise ValueError(
                f"all {len(drawn):,} training pictures that were read are blank or nearly constant: their channels "
                f"have the mean {', '.join(f'{255 * m:.3g}' for m in found.mean())} of 255 and vary by less than half "
                "a level, so that there is nothing to learn from: look at some files. Low values of 16 or 32 bits need "
                "to be saved as 16-bit grey, or as .npy (channels, height, width)"
            )
        return cls(
            colour.size,
            found.mean(),
            found.std(),
            "L" if grey else "RGB",
            resize=resize or "crop",
            levels=colour.levels,
            unused_channels=unused,
        )

    def __call__(self, raw: Raw) -> Tensor:
        """Return (channels, height, width) float32; raises the errors of `converted`."""
        return self.standardised(self.resized(self.converted(raw)))

    def converted(self, raw: Raw) -> Image.Image:
        """Return the picture upright, of 8 bits, in the mode of this preprocessing.

        Raises:
            ValueError: for an array of another layout or type than described above, or a picture that `plain` refuses.
        """
        image = plain(_as_image(raw))
        if image.mode == "I;16":
            low, high = self.levels
            scaled = (np.asarray(image) - low) * (255 / (high - low))
            image = Image.fromarray(np.round(scaled).clip(0, 255).astype(np.uint8))
        return image.convert(self.mode)

    def resized(self, image: Image.Image) -> Image.Image:
        """Return the picture resized and cropped to `size`; with "pad", it may be smaller, see `standardised`."""
        full, box = self._geometry(image.width, image.height)
        kept, (wide, tall) = (box[2] - box[0], box[3] - box[1]), image.size
        smooth = Image.Resampling[self.interpolation.upper()]
        if math.prod(full) > WASTE * math.prod(kept):  # 1 x 30,000 pixels would become 224 x 6,720,000
            x, y = wide / full[0], tall / full[1]
            return image.resize(kept, smooth, (box[0] * x, box[1] * y, min(wide, box[2] * x), min(tall, box[3] * y)))
        if full != image.size:
            image = image.resize(full, smooth)
        return image.crop(box)

    def _geometry(self, wide: int, tall: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """The size (width, height) of a resized picture, and the box (left, top, right, bottom) that is cut from it."""
        height, width = self.size
        # torchvision and timm round down; 1e-6 is for quotients slightly below a whole number
        over_h, over_w = int(height / self.crop_fraction + 1e-6), int(width / self.crop_fraction + 1e-6)
        if self.resize == "squash":
            full = (over_w, over_h)
        elif self.resize == "pad":  # rounded as timm does
            shrink = max(tall / over_h, wide / over_w)
            full = (max(1, round(wide / shrink)), max(1, round(tall / shrink)))
        elif tall * over_w <= wide * over_h:
            full = (wide * over_h // tall, over_h)
        else:
            full = (over_w, tall * over_w // wide)
        kept = (min(width, full[0]), min(height, full[1]))
        left, top = (round((whole - part) / 2) for whole, part in zip(full, kept))
        return full, (left, top, left + kept[0], top + kept[1])

    def extents(self, raw: Raw) -> tuple[Extent, ...]:
        """Where height and width of the tensor lie in an upright picture, as in `Preprocess`."""
        wide, tall = plain(_as_image(raw)).size
        full, (left, top, right, bottom) = self._geometry(wide, tall)
        found = []
        axes = zip(self.size, (tall, wide), (full[1], full[0]), (top, left), (bottom, right))
        for size, length, resized, first, last in axes:
            first -= (size - (last - first)) // 2  # padding comes on both sides, an odd pixel at the end
            found.append(Extent(first * length / resized, (first + size) * length / resized, length))
        return tuple(found)

    def upright(self, raw: Raw) -> np.ndarray:
        """Return the picture as (3 or 1 channels, height, width), upright and of 8 bits."""
        pixels = np.array(self.converted(raw))
        return pixels.reshape(*pixels.shape[:2], self.channels).transpose(2, 0, 1)

    def standardised(self, image: Image.Image) -> Tensor:
        """Return the tensor of a picture of `mode`; one that is smaller than `size` is padded with the mean, 0."""
        pixels = torch.from_numpy(np.array(image).reshape(image.height, image.width, self.channels)).permute(2, 0, 1)
        tensor = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # permuting bytes is faster
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        tensor = tensor.div_(255).sub_(mean).div_(std)
        for channel in self.unused_channels:
            tensor[channel] = 0
        down, right = self.size[0] - image.height, self.size[1] - image.width
        if down or right:
            tensor = F.pad(tensor, (right // 2, right - right // 2, down // 2, down - down // 2))
        return tensor

    def lost(self, height: int, width: int) -> float:
        """Share of the area of a picture that is cut because its aspect is not that of `size`."""
        if self.resize != "crop":
            return 0.0
        aspects = height / width, self.size[0] / self.size[1]
        return 1 - min(aspects) / max(aspects)

    def unlike_training(self, examples: Sequence[Raw]) -> list[str]:
        """Describe grey values outside the training range, and channels that were constant in training but not here."""
        pictures = [plain(_as_image(raw)) for raw in examples]
        doubts = []
        low, high = self.levels
        deep = [np.asarray(image) for image in pictures if image.mode == "I;16"]
        if deep:
            least, most = min(int(v.min()) for v in deep), max(int(v.max()) for v in deep)
            clipped = max(float(((v < low) | (v > high)).mean()) for v in deep)
            if clipped > 0.1 or most - least < _TOO_DARK * (high - low):
                doubts.append(
                    f"grey values from {least} to {most} in pictures of more than 8 bits, and the model maps {low:g} "
                    f"to black and {high:g} to white ({clipped:.0%} of the pixels of one picture are clipped): scale "
                    "them as the training pictures were, or train on pictures like these"
                )
        for channel in self.unused_channels:
            usual = 255 * self.mean[channel]
            of_one = (np.asarray(self.converted(image)).reshape(-1, self.channels)[:, channel] for image in pictures)
            if any(abs(float(values.mean()) - usual) > 4 for values in of_one):
                doubts.append(f"channel {channel} was constant in training, differs here, and is not used")
        return doubts

    def view(self, raw: Raw) -> Image.Image:
        """Return the picture that the network reads: resized, cropped or padded, of 8 bits."""
        x = self(raw)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        pixels = x.mul_(std).add_(mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels if self.mode == "RGB" else pixels[..., 0])


def _measure(
    colour: ImagePreprocess, examples: Examples, drawn: Sequence[int], deep: bool
) -> tuple[Moments, Moments, bool] | None:
    """Moments of the pictures in colour and in grey, and whether all are grey.

    Returns:
        None, without reading on, for a picture of more than 8 bits unless `deep`.
    """
    moments, grey_moments, grey = Moments(3), Moments(1), True
    for i in drawn:  # one pass: a grey picture repeats its channel, so colour statistics serve it as well
        image = plain(_as_image(examples[i]))
        if image.mode == "I;16" and not deep:
            return None
        grey = grey and image.mode != "RGB"
        tensor = colour(image).numpy()
        moments.add(tensor)
        grey_moments.add(tensor[:1])
    return moments, grey_moments, grey


def _levels(examples: Examples, drawn: Sequence[int]) -> tuple[float, float]:
    """The range of the grey values of more than 8 bits, (0, 65535) if there are none.

    Percentiles of all pixels resist hot pixels (nnU-Net clips CT to 0.5 and 99.5 %, Isensee et al., 2021). The range
    reaches one width beyond the percentiles 0.1 and 99.9 on either side, but not beyond the values: ordinary data is
    not clipped at all, and most of its values keep at least a third of the 256 levels.
    """
    counts = np.zeros(65536, dtype=np.int64)
    for i in drawn:
        image = plain(_as_image(examples[i]))
        if image.mode == "I;16":
            counts += np.bincount(np.asarray(image).ravel(), minlength=65536)
    values, total = np.flatnonzero(counts), counts.cumsum()
    low, high = (int(np.searchsorted(total, share * total[-1])) for share in (0.001, 0.999))
    width = max(high - low, 1)
    low, high = max(int(values[0]), low - width), min(int(values[-1]), high + width)
    return (float(low), float(high)) if low < high else (float(low), float(low + 1)) if low < 65535 else _FULL


def _as_image(raw: Raw) -> Image.Image:
    if isinstance(raw, Image.Image):
        return raw
    if not isinstance(raw, np.ndarray):
        raise ValueError(f"a picture is a PIL image or a uint8 array; got {type(raw).__name__}")
    layouts = {np.dtype(np.uint8): ((), (1,), (3,), (4,)), np.dtype(np.uint16): ((), (1,))}
    known = layouts.get(raw.dtype.newbyteorder("="), ())
    if raw.size == 0 or raw.ndim not in (2, 3) or raw.shape[2:] not in known:
        raise ValueError(
            "a picture as an array is uint8 (0..255) of shape (height, width) or (height, width, 1, 3 or 4 channels), "
            f"or uint16 of shape (height, width) or (height, width, 1); got {raw.dtype} of shape {raw.shape}: scale "
            "the values, move the channels last"
        )
    return Image.fromarray(raw[..., 0] if raw.shape[2:] == (1,) else raw)


def median_size(examples: Examples) -> tuple[float, float]:
    """Return the median height and the median width of at most 1,000 pictures, drawn with a fixed seed."""
    height, width = np.median(picture_sizes(examples), axis=0)
    return float(height), float(width)


def picture_sizes(examples: Examples) -> list[tuple[int, ...]]:
    """Return (height, width) of at most 1,000 pictures, drawn with a fixed seed."""
    items = (examples.items[i] for i in examples.sample(_SAMPLE))
    return [header_of(_as_image(item) if examples.in_memory else item).grid for item in items]
