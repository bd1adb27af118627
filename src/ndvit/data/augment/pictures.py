"""Augmentation of single pictures with torchvision's transforms, in the process that reads them.

The random choices for a picture are a function of a seed alone.
"""

import ndvit._torchvision  # noqa: F401  (makes torchvision importable)

# isort: split
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ndvit.data.examples import Raw
from ndvit.data.preprocess.images import ImagePreprocess

_LEVELS = 11  # magnitudes 0 to 10, as in recipes; torchvision has 31 levels up to the same strength by default


@dataclass(frozen=True)
class Variation:
    """Augments and preprocesses a raw picture: (picture, seed) -> tensor.

    Attributes:
        preprocess: preprocessing of the network.
        crop: smallest share of the area that a random resized crop keeps, with an aspect between 3/4 and 4/3 ("Going
            Deeper with Convolutions", Szegedy et al., 2015), or, if the preprocessing pads or squashes, as many times
            the aspect of the picture; 1 does not crop.
        crop_prob: probability of cropping a picture; otherwise it is resized and cropped as in testing.
        flip: probability of mirroring left and right.
        policy: randaugment (Cubuk et al., 2020), trivialaugment (its wide space; Mueller & Hutter, 2021), or 3-augment:
            grey, solarised or blurred, one of the three ("DeiT III", Touvron et al., 2022).
        operations, jitter: as in `Recipe`.
        magnitude: strength of randaugment from 0 to 10, where 10 rotates by 30 degrees or shears by .3.
    """

    preprocess: ImagePreprocess
    crop: float = 1.0
    crop_prob: float = 1.0
    flip: float = 0.0
    policy: str = "none"
    operations: int = 2
    magnitude: int = 9
    jitter: float = 0.0

    def __call__(self, raw: Raw, seed: int) -> Tensor:
        """Return (channels, height, width) float32; raises the errors of the preprocessing."""
        image = self.preprocess.converted(raw)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds GPUs and takes 0.1 ms
            cropped = self.crop < 1 and torch.rand(()) < self.crop_prob
            image = self._cropped(image) if cropped else self.preprocess.resized(image)
            for change in self._changes:
                image = change(image)
        return self.preprocess.standardised(image.convert(self.preprocess.mode))

    def _cropped(self, image: Image.Image) -> Image.Image:
        """A random part of the picture, resized as the preprocessing resizes whole pictures."""
        if self.preprocess.resize == "crop":
            return self._cropper(image)
        from torchvision.transforms import RandomResizedCrop

        aspect = image.width / image.height
        ratio = [3 / 4 * aspect, 4 / 3 * aspect]
        top, left, height, width = RandomResizedCrop.get_params(image, [self.crop, 1.0], ratio)
        whole = replace(self.preprocess, crop_fraction=1.0)  # as with "crop", nothing else is cut
        return whole.resized(image.crop((left, top, left + width, top + height)))

    @cached_property
    def _cropper(self) -> Callable[[Image.Image], Image.Image]:
        from torchvision.transforms import v2

        smooth = v2.InterpolationMode(self.preprocess.interpolation)
        made: Any = v2.RandomResizedCrop(self.preprocess.size, scale=(self.crop, 1.0), interpolation=smooth)
        return made

    @cached_property
    def _changes(self) -> list[Callable[[Image.Image], Image.Image]]:
        from torchvision.transforms import v2

        # areas that a rotation or a shift uncovers get the mean colour, which becomes 0
        fill = [round(255 * mean) for mean in self.preprocess.mean]
        bilinear = v2.InterpolationMode.BILINEAR
        made: list[Any] = []
        if self.flip:
            made.append(v2.RandomHorizontalFlip(self.flip))
        if self.policy == "randaugment":
            made.append(v2.RandAugment(self.operations, self.magnitude, _LEVELS, interpolation=bilinear, fill=fill))
        elif self.policy == "trivialaugment":
            made.append(v2.TrivialAugmentWide(interpolation=bilinear, fill=fill))
        elif self.policy == "3-augment":
            odd = max(3, min(self.preprocess.size) // 20 * 2 + 1)  # a tenth of the shorter side
            blur = v2.GaussianBlur(kernel_size=odd, sigma=(0.1, 2.0))
            grey = v2.Grayscale(num_output_channels=self.preprocess.channels)
            made.append(v2.RandomChoice([grey, v2.RandomSolarize(threshold=128, p=1.0), blur]))
        if self.jitter:
            made.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cached transforms: worker processes build their own."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
