"""How training pictures vary before they are tensors: crops, mirroring, and the policies that recipes for images name.

One picture at a time, in whatever process reads it, by torchvision's transforms. What is drawn for a picture is a
function of a seed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ndvit.data.preprocess.base import Raw
from ndvit.data.preprocess.images import ImagePreprocess

_LEVELS = 11  # of randaugment, 0 to 10: the scale of recipes (torchvision's own has 31 levels up to the same strength)


@dataclass(frozen=True)
class Variation:
    """A raw picture and a seed -> the tensor that is learned from, of the preprocessing's size and standardisation.

    Attributes:
        preprocess: of the network. Its way of cropping is for testing: what is not cropped at random is resized whole.
        crop: the least share of the picture's area that a random resized crop keeps, of an aspect between 3/4 and 4/3
            ("Going Deeper with Convolutions", Szegedy et al., 2015); 1 crops nothing.
        crop_prob: probability that a picture is cropped; else it is seen as in testing.
        flip: probability of mirroring left and right.
        policy: randaugment (Cubuk et al., 2020), trivialaugment (its wide space; Mueller & Hutter, 2021), or 3-augment:
            grey, solarised or blurred, one of the three ("DeiT III", Touvron et al., 2022).
        operations: how many randaugment does to a picture.
        magnitude: how strong they are, from 0 to 10, where 10 turns by 30 degrees or shears by .3.
        jitter: brightness, contrast and saturation are multiplied by up to 1 +- jitter.
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
        """Return (channels, height, width) float32; errors as the preprocessing's."""
        image = self.preprocess.converted(raw)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(seed)  # torch.manual_seed sees to GPUs, too, and takes 0.1 ms for it
            cropped = self.crop < 1 and torch.rand(()) < self.crop_prob
            image = self._cropper(image) if cropped else self.preprocess.resized(image)
            for change in self._changes:
                image = change(image)
        return self.preprocess.standardised(
            image if image.mode == self.preprocess.mode else image.convert(self.preprocess.mode)
        )

    @cached_property
    def _cropper(self) -> Callable[[Image.Image], Image.Image]:
        from torchvision.transforms import v2

        smooth = _interpolation(self.preprocess.interpolation)
        made: Any = v2.RandomResizedCrop(self.preprocess.size, scale=(self.crop, 1.0), interpolation=smooth)
        return made

    @cached_property
    def _changes(self) -> list[Callable[[Image.Image], Image.Image]]:
        from torchvision.transforms import v2

        # what a rotation or a shift uncovers is the mean colour, which the network sees as 0
        fill = [round(255 * mean) for mean in self.preprocess.mean]
        bilinear = _interpolation("bilinear")
        made: list[Any] = []
        if self.flip:
            made.append(v2.RandomHorizontalFlip(self.flip))
        if self.policy == "randaugment":
            made.append(v2.RandAugment(self.operations, self.magnitude, _LEVELS, interpolation=bilinear, fill=fill))
        elif self.policy == "trivialaugment":
            made.append(v2.TrivialAugmentWide(interpolation=bilinear, fill=fill))
        elif self.policy == "3-augment":
            blur = v2.GaussianBlur(kernel_size=_odd(0.1 * min(self.preprocess.size)), sigma=(0.1, 2.0))
            grey = v2.Grayscale(num_output_channels=self.preprocess.channels)
            made.append(v2.RandomChoice([grey, v2.RandomSolarize(threshold=128, p=1.0), blur]))
        if self.jitter:
            made.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made when it is first needed: worker processes make their own."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _interpolation(name: str) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name)


def _odd(length: float) -> int:
    """The odd number of at least 3 that a length comes nearest to from above."""
    return max(3, int(length) // 2 * 2 + 1)
