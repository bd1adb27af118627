"""Named bundles of a network and a recipe: where a run begins that is told nothing else."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ndvit.data.examples import Source
from ndvit.training.plan import count_axes
from ndvit.training.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """A network and a recipe that belong together.

    Attributes:
        about: what it is for, in a few words.
        model: a name that `create_model` knows.
        recipe: fields of `Recipe` that differ from their defaults.
        passes: over the training set at least, where the data is so large that the recipe's steps are fewer.
        small_batches: whether little data comes in smaller batches: an eighth of it, 8 at least.
        dims: the number of axes it is meant for; None for any.
    """

    about: str
    model: str
    recipe: Mapping[str, Any]
    passes: int = 0
    small_batches: bool = False
    dims: int | None = None


# Window warping and slicing are the best of twelve augmentations on 128 sets of signals (Iwana & Uchida, 2021). Half of
# the examples go without, so that whole signals at their own speed, as they will come later, are learned, too.
_AUGMENT = {"crop": 0.85, "warp": 0.7, "crop_prob": 0.5, "noise": 0.03, "scale": 0.1, "mixup": 0.4}
PRESETS = {
    "signal": Preset(
        "the best for signals, in a minute or two",
        "signal_small",
        _AUGMENT | {"steps": 1000, "learning_rate": 3e-3},
        passes=10,
        small_batches=True,
        dims=1,
    ),
    "fast": Preset(
        "for signals, in seconds",
        "signal_tiny",
        _AUGMENT | {"steps": 400, "learning_rate": 2e-3},
        passes=2,
        small_batches=True,
        dims=1,
    ),
    "plain": Preset("the Vision Transformer as published, for anything", "vit_pico", {}),
}


@dataclass(frozen=True)
class Choice:
    """What a preset comes to: its name, the network's (None where trained weights bring one), and all options."""

    preset: str
    model: str | None
    options: dict[str, Any]


def choose(name: str, data: Source, model: str | None, given: Mapping[str, Any], trained: bool = False) -> Choice:
    """The network and the options that a preset means for this data, under what the user gave.

    Args:
        name: of a preset, or "auto". That is by the model, where it is named (`signal` for signal_*), else by the data
            (`signal` for signals of one axis, `plain` for everything else); `plain` with trained weights, with which no
            bundle was measured.
        data: what is trained on.
        model: the name of the network, if it is given already; None leaves it to the preset.
        given: options that take the place of the preset's.
        trained: whether the network is that of trained weights.

    Raises:
        ValueError: for an unknown preset, or one for data of another number of axes.
    """
    check_preset(name)
    axes = count_axes(data)
    if name == "auto":
        by_model = model is not None and model.startswith("signal_")
        by_data = model is None and not trained and data.kind == "signal" and axes == 1
        name = "signal" if by_model or by_data else "plain"
    preset = PRESETS[name]
    if preset.dims not in (None, axes) and model is None and not trained:
        raise ValueError(
            f"preset {name!r} is for signals of one axis, but examples of {data.name} have {axes}: use preset 'plain'"
        )
    options = {**preset.recipe, **given}
    if trained and "learning_rate" not in given:  # a preset's is for new weights; a recipe knows what trained ones bear
        options.pop("learning_rate", None)
    if preset.small_batches and "batch_size" not in given:
        options["batch_size"] = min(Recipe.batch_size, max(8, len(data.train) // 8))
    if given.get("epochs") is not None:
        options["steps"] = given.get("steps")
    elif preset.passes and given.get("steps") is None:
        examples = options.get("batch_size", Recipe.batch_size) * options.get("accumulate", Recipe.accumulate)
        options["steps"] = max(preset.recipe["steps"], math.ceil(preset.passes * len(data.train) / examples))
    return Choice(name, model or (None if trained else preset.model), options)


def check_preset(name: str) -> None:
    """Raise a ValueError that lists the presets where there is none of this name."""
    known = ["auto", *PRESETS]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}.{hint} There are {', '.join(known)}")
