"""Augmentation of training data: what is done to single examples, and what is done to batches.

Pictures are cropped and mirrored one by one when they are read, everything else in batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ndvit.config.recipe import Recipe
from ndvit.data.augment import batches
from ndvit.data.augment.pictures import Variation
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.network.draws import in_common

_PICTURE_FIELDS = ("crop", "crop_prob", "flip", "policy", "operations", "magnitude", "jitter")  # of both classes


@dataclass(frozen=True)
class BatchAugmentation:
    """Augments batches as a recipe says.

    Attributes:
        recipe: options of all augmentations but the next two.
        crop: smallest share that random crops keep, see `random_crop_resize`; 1 does not crop.
        flip: probability of mirroring.
        unused: channels that hold their mean before and after, see `Preprocess`.
        bands: axis of a batch along which a spectrogram has its bands; None for other data.
    """

    recipe: Recipe
    crop: float
    flip: float
    unused: tuple[int, ...] = ()
    bands: int | None = None

    def __call__(self, x: Tensor, mask: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Augment a batch.

        Args:
            x: (B, C, *size).
            mask: (B, *size), True for observed values, or None.
            targets: (B, outputs) floating point, which mixup and cutmix average.
        """
        if not self.unused:
            return self._augmented(x, mask, targets)
        used = torch.tensor([c for c in range(x.shape[1]) if c not in self.unused], device=x.device)
        made, mask, targets = self._augmented(x.index_select(1, used), mask, targets)
        return torch.zeros_like(x).index_copy(1, used, made), mask, targets

    def _augmented(self, x: Tensor, mask: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        recipe = self.recipe
        if self.crop < 1 or recipe.warp:
            x, mask = batches.random_crop_resize(x, mask, self.crop, recipe.warp, recipe.crop_prob)
        if self.flip:
            x, mask = batches.random_flip(x, mask, self.flip)
        changes: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
            (batches.random_scale, recipe.scale),
            (batches.channel_drop, recipe.channel_drop),
            (batches.random_noise, recipe.noise),
            (batches.random_erase, recipe.erase),
        ]
        for change, strength in changes:
            if strength:
                x = change(x, strength)
        if recipe.mask_time:
            x = batches.random_mask(x, x.ndim - 1, recipe.mask_time)
        if recipe.mask_bands and self.bands is not None:
            x = batches.random_mask(x, self.bands, recipe.mask_bands)
        mixes = [(f, alpha) for f, alpha in ((batches.mixup, recipe.mixup), (batches.cutmix, recipe.cutmix)) if alpha]
        if mixes and in_common(lambda: torch.rand(())) < recipe.mix_prob:
            mix, alpha = mixes[int(in_common(lambda: torch.randint(len(mixes), ())))]
            x, mask, targets = mix(x, mask, targets, alpha)
        return x, mask, targets


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training run: of single examples when they are read, or None, and of batches."""

    per_example: Variation | None
    per_batch: BatchAugmentation


def plan_augmentation(preprocess: Preprocess, recipe: Recipe) -> Augmentation:
    """Choose the augmentation of a recipe for data with this preprocessing.

    Raises:
        ValueError: for options that exist for pictures only, if the data are something else.
    """
    if isinstance(preprocess, ImagePreprocess):
        variation = Variation(preprocess, **{name: getattr(recipe, name) for name in _PICTURE_FIELDS})
        return Augmentation(variation, BatchAugmentation(recipe, 1.0, 0.0, preprocess.unused_channels))
    options = [name for name in ("jitter", "policy") if getattr(recipe, name) != getattr(Recipe, name)]
    if options:
        raise ValueError(
            f"{' and '.join(options)}: for pictures of 8 bits only, but these examples are arrays of values: leave "
            f"{'it' if len(options) == 1 else 'them'} out"
        )
    bands = None
    if isinstance(preprocess, SpectrogramPreprocess):
        bands = 1 if preprocess.bands_as == "channels" else 2
    elif recipe.mask_bands:
        raise ValueError("mask_bands is for spectrograms, and these are none: set --spectrogram, or leave it out")
    return Augmentation(None, BatchAugmentation(recipe, recipe.crop, recipe.flip, preprocess.unused_channels, bands))
