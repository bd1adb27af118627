"""Sorting of flat options, as flags and YAML hold them, into the objects that they belong to."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ndvit.config.bounds import nearest
from ndvit.config.network import ViTConfig
from ndvit.config.reading import ReadingOptions
from ndvit.config.recipe import Recipe, refuse_if_solved
from ndvit.config.solved import SolvedOptions

DERIVED = ("num_classes", "in_channels")
"""Fields of `ViTConfig` that follow from the data in training."""


def split_options(options: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any], SolvedOptions]:
    """Split options into a recipe, overrides of the network's config, and options of the networks that are solved.

    Raises:
        ValueError: for an option that does not exist, that follows from the data, or whose value is out of bounds, and
            for stochastic depth where the head is solved.
    """
    classes = (Recipe, ViTConfig, SolvedOptions)
    homes = {f.name: cls for cls in classes for f in fields(cls) if f.name not in DERIVED}
    sorted_options: dict[type, dict[str, Any]] = {cls: {} for cls in classes}
    for name, value in options.items():
        if name in DERIVED:
            raise ValueError(f"{name} follows from the data and cannot be set")
        if name not in homes:
            near = nearest(name, [*homes, *ReadingOptions.__dataclass_fields__])
            hint = f": did you mean {near!r}?" if near else "; options are the fields of Recipe and ViTConfig"
            raise ValueError(f"unknown option {name!r}{hint}")
        sorted_options[homes[name]][name] = value
    recipe, network = Recipe(**sorted_options[Recipe]), sorted_options[ViTConfig]
    if recipe.head == "solved":
        refuse_if_solved(["drop_path_rate"] if network.get("drop_path_rate") else [])
    return recipe, network, SolvedOptions(**sorted_options[SolvedOptions])
