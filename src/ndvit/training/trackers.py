"""Experiment trackers beside metrics.csv: TensorBoard and Weights & Biases, through Lightning's loggers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from ndvit.config.recipe import Recipe

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def check_tracker(recipe: Recipe) -> None:
    """Raise a ValueError if the recipe's tracker needs a package that is not installed."""
    if recipe.tracker != "none" and importlib.util.find_spec(recipe.tracker) is None:
        raise ValueError(f"tracker {recipe.tracker} needs a package that is not installed: pip install 'ndvit[track]'")


def make_trackers(recipe: Recipe, folder: Path | None) -> list[Logger]:
    """The logger that the recipe asks for.

    Raises:
        ValueError: if there is no run folder to write into.
    """
    if recipe.tracker == "none":
        return []
    if folder is None:
        raise ValueError(f"tracker {recipe.tracker} writes into a run folder: use `train`, or tracker='none'")
    if recipe.tracker == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    from lightning.pytorch.loggers import WandbLogger

    member_of_ensemble = folder.parent.name == "members"
    name = f"{folder.parents[1].name}-{folder.name}" if member_of_ensemble else folder.name
    return [WandbLogger(name=name, save_dir=folder, project="ndvit")]
