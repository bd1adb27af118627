"""What a run will be: options sorted, validation data held out, a preprocessing and a config that fit the data."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ndvit.config import ViTConfig, named_config, plan_grid, plan_strides, stem_stride
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Source, hold_out
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.sources.load import fit_preprocess
from ndvit.weights.file import Described

_ENOUGH = 10  # examples a class, from which on a network answers about as well as random convolutions


def split_options(options: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Sort keyword options into a recipe and overrides of the model's config; an unknown one is a ValueError."""
    recipe_fields = {f.name for f in fields(Recipe)}
    model_fields = {f.name for f in fields(ViTConfig)} - {"num_classes", "in_channels"} - recipe_fields
    for name in options:
        if name in ("num_classes", "in_channels"):
            raise ValueError(f"{name} follows from the data and cannot be set")
        if name not in recipe_fields | model_fields:
            near = difflib.get_close_matches(name, recipe_fields | model_fields, n=1)
            hint = f": did you mean {near[0]!r}?" if near else "; options are the fields of Recipe and ViTConfig"
            raise ValueError(f"unknown option {name!r}{hint}")
    recipe = Recipe.from_dict({k: v for k, v in options.items() if k in recipe_fields})
    return recipe, {k: v for k, v in options.items() if k in model_fields}


def plan_model(data: Source, name: str, recipe: Recipe, overrides: Mapping[str, Any]) -> tuple[Preprocess, ViTConfig]:
    """Fit the preprocessing to the training data and the named model to both.

    `input_size` is the user's, or the one in the model's name, or the data's own, rounded up to whole patches. One
    number for data of several dimensions is the side of a square or cube.
    """
    named, dims = named_config(name), count_axes(data)
    size, patch = overrides.get("input_size"), overrides.get("patch_size")
    if "_patch" in name:
        if len(named.input_size) != dims:
            raise ValueError(
                f"{name} reads pictures, but {data.name} has {dims} dimension{'s' * (dims > 1)}: "
                f"use {name.partition('_patch')[0]}, which takes its dimensions from the data"
            )
        size, patch = size or named.input_size, patch or named.patch_size
    stem, depths = (overrides.get(k, getattr(named, k)) for k in ("stem", "stem_depths"))
    strides = overrides.get("stem_strides", ())  # no name says any
    # what is wrong with the options is said before the data are read
    probe = named_config(
        name, **{**overrides, "input_size": (4 * stem_stride(stem, depths, strides),) * dims, "patch_size": 1}
    )
    preprocess = _fit_size(data, size)
    light = probe.stem in ("inception", "residual")
    if light and "stem_strides" not in overrides:
        strides = plan_strides(preprocess.size, len(probe.stem_depths))
    preprocess, patch = _fit_patch(preprocess, size, patch, stem, stem_stride(stem, depths, strides))
    # the article's weights need more steps than little data deserves, see ViTConfig.weight_init
    values = {"weight_init": "balanced", **overrides} | {
        "input_size": preprocess.size,
        "patch_size": patch,
        "stem_strides": strides,
        "in_channels": preprocess.channels,
        "num_classes": len(data.classes),
        "drop_path_rate": recipe.drop_path_rate,
    }
    if probe.rocket_features:
        values = {"rocket_weight": _rocket_weight(data)} | values
    return preprocess, named_config(name, **values)


def plan_fine_tuning(
    data: Source, weights: Described, recipe: Recipe, overrides: Mapping[str, Any]
) -> tuple[Preprocess, dict[str, Any]]:
    """Choose what trained weights are adapted to: their own input for pictures, the data's for everything else.

    Pictures keep the preprocessing that the weights were trained with; it is computed where there is none.

    Returns:
        The preprocessing, and the overrides that fit the weights to it and to the classes.
    """
    dims, own = count_axes(data), weights.config
    size, patch = overrides.get("input_size"), overrides.get("patch_size")
    if len(own.input_size) == dims:
        patch = patch or own.patch_size
        size = size or (own.input_size if data.kind == "image" else None)
    preprocess, patch = _fit_patch(_fit_size(data, size), size, patch, own.stem, own.stem_stride)
    if data.kind == "image" and isinstance(weights.preprocess, ImagePreprocess):
        preprocess = replace(weights.preprocess, size=preprocess.size)
    again = {"rocket_weight": _rocket_weight(data)} if own.rocket_features else {}
    return preprocess, {
        **again,
        **overrides,
        "input_size": preprocess.size,
        "patch_size": patch,
        "in_channels": preprocess.channels,
        "drop_path_rate": recipe.drop_path_rate,
    }


def _rocket_weight(data: Source) -> float:
    """Half for random convolutions and half for the network, which needs some examples a class to be worth that."""
    return 1 - min(0.5, len(data.train) / len(data.classes) / _ENOUGH / 2)


def count_axes(data: Source) -> int:
    """Axes of an example beside its channels: 1 for a signal, 2 for a picture."""
    example: Any = data.train[0]
    return 2 if data.kind == "image" else getattr(example, "values", example).ndim - 1  # less the channels


def _fit_size(data: Source, size: Any) -> Preprocess:
    """Fit the preprocessing to the data, at this size or at the data's own."""
    dims = count_axes(data)
    if size is not None:
        size = _axes(size, dims)
        if len(size) != dims:
            raise ValueError(f"input_size {size} has {len(size)} axes, but the examples of {data.name} have {dims}")
    return fit_preprocess(data, size=size)


def _axes(size: Any, dims: int) -> tuple[int, ...]:
    size = tuple(size) if isinstance(size, list | tuple) else (size,)
    return size * dims if len(size) == 1 else size


def _fit_patch(
    preprocess: Preprocess, asked: Any, patch: tuple[int, ...] | int | None, stem: str, stride: int
) -> tuple[Preprocess, tuple[int, ...]]:
    """Choose the patch, if it is not given, and round the size up to whole tokens, unless it was asked for."""
    size = preprocess.size
    if patch is None and stem == "resnet":  # a hybrid has made patches already
        patch = 1
    behind = tuple(math.ceil(s / stride) for s in size)  # what is cut into patches is what a stem leaves
    given = patch
    patch, whole = plan_grid(behind, given, behind_stem=stem != "none")
    if given is None and asked is not None and stride == 1 and whole != size:
        larger = range(max(patch), min(size) + 1)  # the next larger patch that fits the size asked for
        exact = next((p for p in larger if all(s % p == 0 for s in size)), None)
        patch, whole = plan_grid(size, exact) if exact else (patch, whole)
    whole = tuple(s * stride for s in whole)
    if asked is not None and whole != size:
        behind_stem = f" behind a stem of stride {stride}" if stride > 1 else ""
        raise ValueError(f"input_size {size} is not divisible by patch_size {patch}{behind_stem}: use {whole}")
    return replace(preprocess, size=whole), patch  # type: ignore[type-var]  # every Preprocess is a dataclass


def with_validation(data: Source, recipe: Recipe) -> Source:
    """Hold a validation set out of the training set, where the recipe wants one and the source has none.

    Raises:
        ValueError: for early stopping without validation data.
    """
    if data.val is not None:
        return data
    fraction, asked = recipe.val_fraction, recipe.val_fraction is not None
    if fraction and data.train.streamed:
        raise ValueError(
            f"val_fraction {fraction}: {data.name} is streamed, and each validation would fetch all of it again: leave "
            "val_fraction or streaming=1 out, or take data with a validation set of its own"
        )
    if fraction is None:
        fraction = 0.1 if len(data.train) >= 2000 and not data.train.streamed else 0.0
    if not fraction:
        if recipe.early_stop:
            raise ValueError("early_stop needs validation data: set val_fraction (say 0.1) or add a val/ folder")
        return data
    assert data.train.labels is not None
    keep, held = hold_out(data.train.labels, fraction, recipe.seed, data.classes, data.name, both_sides=asked)
    train, val = data.train.subset(keep), data.train.subset(held)
    note = f"validation: {len(val):,} of the {len(data.train):,} training examples, stratified, seed {recipe.seed}"
    if single := int((np.bincount(data.train.labels) == 1).sum()):
        note += f"; {single} class{'es' * (single > 1)} of a single example {'are' if single > 1 else 'is'} not in it"
    return replace(data, train=train, val=val, notes=(*data.notes, note))
