"""Choose the input of a network for a source: preprocessing, input size and patch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ndvit.config import ViTConfig, plan_grid
from ndvit.config.network import Stem
from ndvit.config.recipe import Resize
from ndvit.data.examples import Source
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess


def fit_size(source: Source, size: Any, resize: Resize | None = None) -> Preprocess:
    """Fit a preprocessing to the training set, at an input size or, for None, at the data's own.

    Args:
        source: the data.
        size: the input size; one number serves every axis.
        resize: treatment of pictures of another aspect, see `ImagePreprocess`; None is "crop".

    Raises:
        ValueError: if the size has another number of axes than the data, or `resize` is set for other data.
    """
    if size is not None:
        size = tuple(size) if isinstance(size, list | tuple) else (size,)
        size = size * source.input_dims if len(size) == 1 else size
        if len(size) != source.input_dims:
            raise ValueError(
                f"input_size {size} has {len(size)} axes, but the examples of {source.name} have {source.input_dims}"
            )
    return fit_preprocess(source, size, resize)


def fit_patch(
    preprocess: Preprocess, size: Any, patch: Any, stem: Stem = "none", stride: int = 1
) -> tuple[Preprocess, tuple[int, ...]]:
    """Choose the patch, and round the input size up to whole tokens.

    Args:
        preprocess: as `fit_size` returns it.
        size: the input size that was requested, which is not rounded; None if it is the data's.
        patch: patch size; None chooses one by `plan_grid`.
        stem: kind of stem before the patches.
        stride: stride of the stem.

    Raises:
        ValueError: if a requested size is not divisible by the patch behind the stem.
    """
    own = preprocess.size
    chosen, whole = plan_grid(own, patch, stem, stride)
    if patch is None and size is not None and stride == 1 and whole != own:
        larger = range(max(chosen), min(own) + 1)  # the next larger patch that divides the size
        exact = next((p for p in larger if all(s % p == 0 for s in own)), None)
        chosen, whole = plan_grid(own, exact) if exact else (chosen, whole)
    if size is not None and whole != own:
        behind_stem = f" behind a stem of stride {stride}" if stride > 1 else ""
        raise ValueError(f"input_size {own} is not divisible by patch_size {chosen}{behind_stem}: use {whole}")
    return replace(preprocess, size=whole), chosen


def fit_to_weights(
    source: Source,
    own: ViTConfig,
    preprocess: Preprocess | None,
    overrides: dict[str, Any],
    resize: Resize | None = None,
) -> tuple[Preprocess, dict[str, Any]]:
    """Choose the input that trained weights are adapted to.

    For pictures it is their own, and so it is for signals if their preprocessing resamples every signal to one size;
    for everything else it is the data's.

    Args:
        source: the data.
        own: config of the trained network.
        preprocess: preprocessing of the trained network, which pictures keep, but for the range of their grey values
            and the channels without content.
        overrides: fields of `ViTConfig` chosen by the user.
        resize: treatment of pictures of another aspect; None keeps that of the trained network.

    Returns:
        The preprocessing, and the fields of `ViTConfig` that fit the network to it.
    """
    size, patch = overrides.get("input_size"), overrides.get("patch_size")
    if len(own.input_size) == source.input_dims:
        patch = patch or own.patch_size
        resampled = isinstance(preprocess, SignalPreprocess) and preprocess.resize == "resample"
        size = size or (own.input_size if source.kind == "image" or resampled else None)
    fitted = fit_size(source, size, resize)
    if not own.patch_stride:  # patches at steps need no whole number of them
        fitted, patch = fit_patch(fitted, size, patch, own.stem, own.stem_stride)
    if source.kind == "image" and isinstance(preprocess, ImagePreprocess):
        assert isinstance(fitted, ImagePreprocess)
        unused = fitted.unused_channels if fitted.channels == preprocess.channels else ()
        fitted = replace(
            preprocess,
            size=fitted.size,
            resize=resize or preprocess.resize,
            levels=fitted.levels,
            unused_channels=unused,
        )
    return fitted, {"input_size": fitted.size, "patch_size": patch, "in_channels": fitted.channels}
