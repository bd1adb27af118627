"""What a run will be: options sorted, validation data held out, a preprocessing and a config that fit the data."""

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ndvit.config import ViTConfig, named_config, plan_grid
from ndvit.data.examples import Source, hold_out
from ndvit.data.preprocess import Preprocess
from ndvit.data.source import fit_preprocess
from ndvit.training.recipe import Recipe


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
    named = named_config(name, **{k: v for k, v in overrides.items() if k not in ("input_size", "patch_size")})
    example: Any = data.train[0]
    dims = 2 if data.kind == "image" else getattr(example, "values", example).ndim - 1  # less the channels
    size, patch = overrides.get("input_size"), overrides.get("patch_size")
    if "_patch" in name:
        if len(named.input_size) != dims:
            raise ValueError(
                f"{name} reads pictures, but {data.name} has {dims} dimension{'s' * (dims > 1)}: "
                f"use {name.partition('_patch')[0]}, which takes its dimensions from the data"
            )
        size, patch = size or named.input_size, patch or named.patch_size
    if size is not None:
        size = tuple(size) if isinstance(size, list | tuple) else (size,)
        size = size * dims if len(size) == 1 else size
        if len(size) != dims:
            raise ValueError(f"input_size {size} has {len(size)} axes, but the examples of {data.name} have {dims}")
    preprocess = fit_preprocess(data, size=size)
    patch, whole = plan_grid(preprocess.size, patch)
    if size is not None and whole != tuple(size):
        raise ValueError(f"input_size {tuple(size)} is not divisible by patch_size {patch}: use {whole}")
    preprocess = replace(preprocess, size=whole)  # type: ignore[type-var]  # every Preprocess is a dataclass
    # the article's weights need more steps than little data deserves, see ViTConfig.weight_init
    values = {"weight_init": "balanced", **overrides} | {
        "input_size": whole,
        "patch_size": patch,
        "in_channels": preprocess.channels,
        "num_classes": len(data.classes),
        "drop_path_rate": recipe.drop_path_rate,
    }
    return preprocess, named_config(name, **values)


def with_validation(data: Source, recipe: Recipe) -> Source:
    """Hold a validation set out of the training set, where the recipe wants one and the source has none.

    Raises:
        ValueError: for early stopping without validation data.
    """
    if data.val is not None:
        return data
    fraction = recipe.val_fraction
    if fraction is None:
        fraction = 0.1 if len(data.train) >= 2000 else 0.0
    if not fraction:
        if recipe.early_stop:
            raise ValueError("early_stop needs validation data: set val_fraction (say 0.1) or add a val/ folder")
        return data
    assert data.train.labels is not None
    keep, held = hold_out(data.train.labels, fraction, recipe.seed, data.classes, data.name)
    train, val = data.train.subset(keep), data.train.subset(held)
    note = f"validation: {len(val):,} of the {len(data.train):,} training examples, stratified, seed {recipe.seed}"
    return replace(data, train=train, val=val, notes=(*data.notes, note))
