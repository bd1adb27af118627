"""Named bundles of a network and a recipe: where a run begins that is told nothing else."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ndvit.config import ViTConfig, named_config
from ndvit.config.recipe import SOLVED_BY, Recipe
from ndvit.data.examples import Kind, Source
from ndvit.data.preprocess.images import median_size
from ndvit.training.plan import count_axes


@dataclass(frozen=True)
class Preset:
    """A network and a recipe that belong together.

    Attributes:
        about: what it is for, in a few words.
        model: a name that `create_model` knows; None where trained weights must bring the network.
        recipe: fields of `Recipe` that differ from their defaults.
        network: fields of `ViTConfig` that a new network gets besides its name.
        by_width: further fields of either, by the least embed_dim that they are for; the widest that fits counts.
        source: where the values are from; empty where we measured them ourselves.
        batch: examples in a step that the learning rate is meant for; 0 leaves it as it is, whatever the batch.
        scaling: how the learning rate follows another batch: in proportion (linear, Goyal et al., 2017) or with its
            root (sqrt, as the noise of Adam's steps asks for; LAMB, You et al., 2020).
        passes: over the training set at least, where the data is so large that the recipe's steps are fewer.
        small_batches: whether little data comes in smaller batches: an eighth of it, 8 at least.
        small_pictures: whether pictures smaller than the weights' input are seen at their own size, or half the input
            at least: attention over a quarter of the tokens costs a fifth of the time.
        kind: of the data it is meant for; None for any.
        dims: the number of axes it is meant for; None for any.
    """

    about: str
    model: str | None
    recipe: Mapping[str, Any]
    network: Mapping[str, Any] = field(default_factory=dict)
    by_width: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""
    batch: int = 0
    scaling: Literal["linear", "sqrt"] = "linear"
    passes: int = 0
    small_batches: bool = False
    small_pictures: bool = False
    kind: Kind | None = None
    dims: int | None = None

    def rules(self) -> list[str]:
        """What it decides by the data, the network and the batch, in words."""
        said = []
        if self.kind is not None:
            said.append("pictures only" if self.kind == "image" else "signals of one axis, others with a --model")
        if self.model is None:
            said.append("begins with trained weights (--weights)")
        if self.batch:
            how = "in proportion" if self.scaling == "linear" else "by the root"
            said.append(f"the learning rate is for {self.batch:,} examples in a step, and follows other numbers {how}")
        if self.passes:
            said.append(f"the steps below, or as many as {self.passes} passes over the training set take, if more")
        if self.small_batches:
            said.append(f"batches of an eighth of the training set, 8 examples at least, {Recipe.batch_size} at most")
        if self.small_pictures:
            said.append(
                "pictures smaller than the weights' input are seen at their own size, in whole patches, "
                "but at half the input at least"
            )
        for width, values in self.by_width.items():
            told = ", ".join(f"{name} {value:g}" for name, value in values.items())
            said.append(f"from embed_dim {width} on: {told}")
        return said


# Window warping and slicing are the best of twelve augmentations on 128 sets of signals (Iwana & Uchida, 2021). Half of
# the examples go without, so that whole signals at their own speed, as they will come later, are learned, too.
_SIGNALS = {"crop": 0.85, "warp": 0.7, "crop_prob": 0.5, "noise": 0.03, "scale": 0.1, "mixup": 0.4}
# What recipes for ImageNet have in common. Their batches come as accumulated parts, which fit a usual GPU.
_IMAGENET = {"batch_size": 128, "flip": 0.5, "mix_prob": 1.0, "operations": 2}
_IMAGENET_TRAIN = 1_281_167  # pictures
PRESETS = {
    "signal": Preset(
        "the best for signals, in a minute or two",
        "signal_small",
        _SIGNALS | {"steps": 1000, "learning_rate": 3e-3},
        passes=10,
        small_batches=True,
        kind="signal",
        dims=1,
    ),
    "fast": Preset(
        "for signals, in seconds",
        "signal_tiny",
        _SIGNALS | {"steps": 400, "learning_rate": 2e-3},
        passes=2,
        small_batches=True,
        kind="signal",
        dims=1,
    ),
    "finetune": Preset(
        "trained weights, on to your pictures",
        None,
        {"steps": 300, "layer_decay": 0.75, "crop": 0.5, "mixup": 0.2, "ema_decay": 0.99},
        # by the root of the width; with layer decay it is the head's and the last block's
        by_width={0: {"learning_rate": 1e-3}, 384: {"learning_rate": 7e-4}, 768: {"learning_rate": 5e-4}},
        batch=32,
        scaling="sqrt",
        passes=12,
        small_pictures=True,
        kind="image",
    ),
    "linear_probe": Preset(
        "trained weights as they are, under a head that is solved",
        None,
        {"head": "solved"},
        source="the protocol of MoCo v3 and MAE, with the optimum of logistic regression instead of 90 epochs of SGD",
    ),
    "small_data": Preset(
        "pictures without trained weights, some hundreds to some tens of thousands",
        "compact_small",
        {"steps": 700, "learning_rate": 2e-3, "crop": 0.6, "mixup": 0.4},
        passes=20,
        kind="image",
    ),
    "deit": Preset(
        "DeiT's training from scratch on ImageNet",
        "vit_small",
        _IMAGENET
        | {
            "epochs": 300,
            "accumulate": 8,
            "learning_rate": 5e-4 * 1024 / 512,
            "weight_decay": 0.05,
            "warmup": 5 / 300,
            "min_learning_rate": 1e-5 / 1e-3,
            "grad_clip": 0.0,
            "label_smoothing": 0.1,
            "mixup": 0.8,
            "cutmix": 1.0,
            "crop": 0.08,
            "policy": "randaugment",
            "magnitude": 9,
            "erase": 0.25,
            "repeats": 3,
            "drop_path_rate": 0.1,
        },
        source="Touvron et al., 2021 (Training data-efficient image transformers), and its code",
        batch=1024,
        kind="image",
    ),
    "deit3": Preset(
        "DeiT III's training from scratch on ImageNet-1k",
        "vit_small",
        _IMAGENET
        | {
            "epochs": 800,
            "accumulate": 16,
            "optimizer": "lamb",
            "weight_decay": 0.05,
            "warmup": 5 / 800,
            "min_learning_rate": 1e-5 / 3e-3,
            "grad_clip": 0.0,  # the code's 1 is of a mean over 1,000 classes: of their sum it is never reached
            "loss": "sigmoid",
            "label_smoothing": 0.0,
            "mixup": 0.8,
            "cutmix": 1.0,
            "crop": 0.08,
            "policy": "3-augment",
            "jitter": 0.3,
            "repeats": 3,
        },
        network={"layer_scale": 1e-4, "pos_embed_prefix": False},
        by_width={
            0: {"learning_rate": 4e-3, "drop_path_rate": 0.05},
            768: {"learning_rate": 3e-3, "drop_path_rate": 0.2},
            1024: {"learning_rate": 3e-3, "drop_path_rate": 0.45},
            1280: {"learning_rate": 3e-3, "drop_path_rate": 0.6},
        },
        source="Touvron et al., 2022 (DeiT III: Revenge of the ViT), and its code",
        batch=2048,
        scaling="sqrt",
        kind="image",
    ),
    "augreg": Preset(
        "AugReg's training from scratch, its light augmentation",
        "vit_small",
        _IMAGENET
        | {
            "epochs": 300,
            "accumulate": 32,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "warmup": 10_000 / (300 * _IMAGENET_TRAIN / 4096),
            "min_learning_rate": 0.0,
            "grad_clip": 1.0,
            "loss": "sigmoid",
            "label_smoothing": 0.0,
            "mixup": 0.2,
            "crop": 0.05,
            "policy": "randaugment",
            "magnitude": 10,
        },
        source="Steiner et al., 2021 (How to train your ViT?): RandAugment (2, 10), mixup .2, decay .1, no drop path",
        batch=4096,
        scaling="sqrt",
        kind="image",
    ),
    "plain": Preset(
        "the better plain ViT: 76.5 % on ImageNet-1k in 90 epochs",
        "vit_small",
        _IMAGENET
        | {
            "epochs": 90,
            "accumulate": 8,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,  # the paper's 1e-4 is not multiplied by the learning rate; AdamW's is
            "warmup": 10_000 / (90 * _IMAGENET_TRAIN / 1024),
            "min_learning_rate": 0.0,
            "grad_clip": 1.0,
            "label_smoothing": 0.0,
            "mixup": 0.2,
            "crop": 0.05,
            "policy": "randaugment",
            "magnitude": 10,
        },
        network={"pooling": "norm_avg", "class_token": False, "pos_embed": "sincos"},
        by_width={width: {"representation_size": width} for width in (64, 128, 192, 384, 768, 1024, 1280)},
        source="Beyer et al., 2022 (Better plain ViT baselines for ImageNet-1k), and big_vision",
        batch=1024,
        scaling="sqrt",
        kind="image",
    ),
    "basic": Preset(
        "the Vision Transformer as published, for anything",
        "vit_pico",
        {},
        source="the defaults of Recipe and ViTConfig",
    ),
}


AUTO = (
    "signal for a network signal_*, small_data for pictures under another; where none is named, signal for signals of "
    "one axis, finetune for pictures with trained weights, small_data without; basic for all else"
)
"""What `auto` comes to."""


@dataclass(frozen=True)
class Choice:
    """What a preset comes to: its name, the network's (None where trained weights bring one), options, and remarks."""

    preset: str
    model: str | None
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def choose(
    name: str, data: Source, model: str | None, given: Mapping[str, Any], trained: ViTConfig | None = None
) -> Choice:
    """The network and the options that a preset means for this data, under what the user gave.

    Args:
        name: of a preset, or "auto". That is by the model, where it is named (`signal` for signal_*), else by the data:
            `signal` for signals of one axis, `small_data` for pictures, `finetune` for pictures with trained weights,
            and `basic` for everything else.
        data: what is trained on.
        model: the name of the network, if it is given already; None leaves it to the preset.
        given: options that take the place of the preset's.
        trained: the config of trained weights, where the network begins with such.

    Raises:
        ValueError: for an unknown preset, or one for other data, or one that needs trained weights; and for options
            that need trained weights, or adapters wider than those.
    """
    check_preset(name)
    if name == "auto":
        name = _by_itself(data, model, trained is not None)
    preset = PRESETS[name]
    other = _by_itself(data, model, trained is not None)
    _check_data(name, data, model is not None or trained is not None, other)
    if preset.model is None and trained is None:
        raise ValueError(f"preset {name!r} begins with trained weights: give some (--weights), or use {other!r}")
    network = {} if trained is not None else dict(preset.network)
    width = given.get("embed_dim") or (trained or named_config(model or preset.model or "")).embed_dim
    fitting = [least for least in preset.by_width if isinstance(width, int) and least <= width]
    own = {**network, **preset.recipe, **(preset.by_width[max(fitting)] if fitting else {})}
    if trained is not None:
        own.pop("representation_size", None)
        if not preset.batch and "learning_rate" in own:  # for new weights; a recipe knows what trained ones bear
            own.pop("learning_rate")
    solved = {**own, **given}.get("head") == "solved"
    if solved:  # the rest is of steps
        own = {name: v for name, v in own.items() if name in SOLVED_BY or name not in Recipe.__dataclass_fields__}
    options = {**own, **given}
    _check_kept(options, trained)
    if preset.small_batches and "batch_size" not in given:
        options["batch_size"] = min(Recipe.batch_size, max(8, len(data.train) // 8))
    if "batch_size" in given and "accumulate" not in given:
        options.pop("accumulate", None)  # the batch is the user's, not a part of the preset's
    notes: list[str] = []
    if not solved:
        _count_steps(options, preset, given, len(data.train))
        notes += _scale_learning_rate(options, name, given)
    if preset.small_pictures and trained is not None and "input_size" not in given:
        notes += _shrink_input(options, data, trained)
    return Choice(name, model or (None if trained is not None else preset.model), options, tuple(notes))


def check_preset(name: str) -> None:
    """Raise a ValueError that lists the presets where there is none of this name."""
    known = ["auto", *PRESETS]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}.{hint} There are {', '.join(known)}")


def _by_itself(data: Source, model: str | None, trained: bool) -> str:
    """The preset that fits the model or the data."""
    if model is not None:
        return "signal" if model.startswith("signal_") else "small_data" if data.kind == "image" else "basic"
    if data.kind == "image":
        return "finetune" if trained else "small_data"
    return "signal" if count_axes(data) == 1 and not trained else "basic"


def _check_data(name: str, data: Source, has_network: bool, other: str) -> None:
    """Raise a ValueError where a preset is for other data; one for signals may train what network it is given.

    `other` is the preset that would fit.
    """
    preset, axes = PRESETS[name], count_axes(data)
    if preset.kind == "image" and data.kind != "image":
        what = "signals" if axes == 1 else f"arrays of {axes} axes"
        raise ValueError(f"preset {name!r} is for pictures, but {data.name} holds {what}: use preset {other!r}")
    if preset.dims not in (None, axes) and not has_network:
        raise ValueError(
            f"preset {name!r} is for signals of one axis, but examples of {data.name} have {axes}: use preset {other!r}"
        )


def _check_kept(options: Mapping[str, Any], trained: ViTConfig | None) -> None:
    """Raise a ValueError where what shall stay as it is has learned nothing, or adapters are larger than that."""
    kept = [f"{name}={options[name]}" for name in ("freeze", "lora") if options.get(name) is not None]
    kept += ["head='solved'"] if options.get("head") == "solved" else []
    if kept and trained is None:
        raise ValueError(
            f"{' and '.join(kept)}: what stays as it is should have learned before, and this network is new: give "
            "trained weights (--weights), or leave the option out"
        )
    rank = options.get("lora")
    if trained is not None and isinstance(rank, int) and rank > trained.embed_dim:
        raise ValueError(
            f"lora={rank}: a rank above the {trained.embed_dim} numbers of a token makes adapters larger than the "
            "layers they stand in for: 4 to 16 are usual"
        )


def _count_steps(options: dict[str, Any], preset: Preset, given: Mapping[str, Any], examples: int) -> None:
    """Let the user's steps or epochs take the place of the preset's, and see that large data is passed over."""
    if given.get("steps") is not None or given.get("epochs") is not None:
        options |= {name: given.get(name) for name in ("steps", "epochs")}
    elif preset.passes:
        batch = options.get("batch_size", Recipe.batch_size) * options.get("accumulate", Recipe.accumulate)
        options["steps"] = max(preset.recipe["steps"], math.ceil(preset.passes * examples / batch))


def _scale_learning_rate(options: dict[str, Any], name: str, given: Mapping[str, Any]) -> list[str]:
    """Fit the preset's learning rate to the effective batch, and say so."""
    preset = PRESETS[name]
    batch = options.get("batch_size", Recipe.batch_size) * options.get("accumulate", Recipe.accumulate)
    if not preset.batch or "learning_rate" in given or batch == preset.batch:
        return []
    usual = options["learning_rate"]
    share = batch / preset.batch
    options["learning_rate"] = usual * (share if preset.scaling == "linear" else share**0.5)
    how = "in proportion" if preset.scaling == "linear" else "by the root"
    return [
        f"learning rate {options['learning_rate']:.2g}: {usual:.2g} of preset {name} is for {preset.batch:,} examples "
        f"in a step, scaled {how} to {batch:,}"
    ]


def _shrink_input(options: dict[str, Any], data: Source, trained: ViTConfig) -> list[str]:
    """Let small pictures be seen at their own size instead of enlarged to the weights', and say so."""
    size, patch = trained.input_size, trained.token_size
    if len(size) != 2:
        return []
    longest = max(median_size(data.train))
    wanted = tuple(min(s, max(math.ceil(longest / p), math.ceil(s / 2 / p)) * p) for s, p in zip(size, patch))
    if wanted == size:
        return []
    options["input_size"] = wanted
    shown, usual = (" x ".join(map(str, pixels)) for pixels in (wanted, size))
    return [
        f"pictures are small (median side {longest}), so the network sees them at {shown}, not at the {usual} of its "
        "weights, which costs a fraction: --input-size says otherwise"
    ]
