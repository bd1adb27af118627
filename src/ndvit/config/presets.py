"""Presets: named combinations of a network and a recipe, which are the defaults of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ndvit.config.bounds import nearest
from ndvit.config.recipe import Recipe
from ndvit.config.solved import SOLVED


@dataclass(frozen=True)
class Preset:
    """A network and a recipe that belong together.

    Attributes:
        about: its purpose, in a few words.
        model: a name that `create_model` accepts; None if trained weights must provide the network.
        recipe: fields of `Recipe` that differ from their defaults.
        network: fields of `ViTConfig` for a new network, beside its name.
        by_width: further fields of either, by the least embed_dim that they apply to; the largest one that fits counts.
        source: publication of the values; empty if we measured them.
        batch: effective batch size that the learning rate is meant for; 0 if it applies to any.
        scaling: how the learning rate follows another batch size: proportionally (linear, Goyal et al., 2017) or with
            its square root (sqrt, as the noise of Adam's steps requires; LAMB, You et al., 2020).
        passes: least number of passes over the training set, for data so large that the recipe's steps are fewer.
        small_batches: whether little data has smaller batches: an eighth of the data, at least 8.
        small_images: whether images smaller than the weights' input keep their own size, or at least half the input:
            attention over a quarter of the tokens costs a fifth of the time.
        kind: kind of data it is meant for; None for any.
        dims: number of axes it is meant for; None for any.
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
    small_images: bool = False
    kind: Literal["image", "signal", "spectrogram"] | None = None
    dims: int | None = None

    def options(self, embed_dim: int) -> dict[str, Any]:
        """Fields of `Recipe` and `ViTConfig` for a network of this width."""
        fitting = [least for least in self.by_width if least <= embed_dim]
        return {**self.network, **self.recipe, **(self.by_width[max(fitting)] if fitting else {})}

    def scale(self, learning_rate: float, batch: int) -> float:
        """The learning rate for an effective batch of this size."""
        share = batch / self.batch if self.batch else 1.0
        return learning_rate * (share if self.scaling == "linear" else share**0.5)

    @property
    def scaled(self) -> str:
        """How the learning rate follows the batch size, in words."""
        return "proportionally" if self.scaling == "linear" else "with its square root"

    def rules(self) -> list[str]:
        """Sentences on what it derives from the data, the network and the batch size."""
        rules = [
            (self.kind == "image", "images only"),
            (self.kind == "spectrogram", "spectrograms of signals (--spectrogram)"),
            (self.kind == "signal", "signals of one axis; other signals need --model"),
            (self.model is None, "starts from trained weights (--weights)"),
            (self.batch, f"the learning rate is for {self.batch:,} examples in a step, and scales {self.scaled}"),
            (self.passes, f"the steps below, or those of {self.passes} passes over the training set, if more"),
            (self.small_batches, f"batches of an eighth of the training set, from 8 to {Recipe.batch_size} examples"),
            (self.small_images, "images smaller than the weights' input keep their size, but at least half the input"),
        ]
        widths = (
            f"from embed_dim {width} on: {', '.join(f'{name} {value:g}' for name, value in values.items())}"
            for width, values in self.by_width.items()
        )
        return [*(rule for applies, rule in rules if applies), *widths]


# Window warping and slicing are the best of twelve augmentations on 128 sets of signals (Iwana & Uchida, 2021). Half of
# the examples are not augmented, so that the network also sees complete signals at their original speed, as in testing.
_SIGNALS = {"crop": 0.85, "warp": 0.7, "crop_prob": 0.5, "noise": 0.03, "scale": 0.1, "mixup": 0.4}
# Common to recipes for ImageNet. Large batches are accumulated from parts that fit a usual GPU.
_IMAGENET = {"batch_size": 128, "flip": 0.5, "mix_prob": 1.0, "operations": 2}
_AUGREG = _IMAGENET | {
    "learning_rate": 1e-3,
    "weight_decay": 0.1,  # the 1e-4 of "plain" is not multiplied by the learning rate in its code; AdamW's is
    "min_learning_rate": 0.0,
    "grad_clip": 1.0,
    "label_smoothing": 0.0,
    "mixup": 0.2,
    "crop": 0.05,
    "policy": "randaugment",
    "magnitude": 10,
}
_IMAGENET_TRAIN = 1_281_167  # images
PRESETS = {
    "signal": Preset(
        "for signals: the closed form of fast, and a network as far as it helps, in a minute or two",
        "signal_small",
        _SIGNALS | {"steps": 1000, "learning_rate": 3e-3, "val_fraction": 0.2, "final_share": 0.15},
        passes=10,
        small_batches=True,
        kind="signal",
        dims=1,
    ),
    "fast": Preset(
        "for signals, in seconds: random convolutions and a frozen encoder, solved in closed form",
        SOLVED,
        {"head": "solved", "val_fraction": 0.0},
        kind="signal",
        dims=1,
    ),
    "finetune": Preset(
        "fine-tuning of trained weights on images",
        None,
        {"steps": 300, "layer_decay": 0.75, "crop": 0.5, "mixup": 0.2, "ema_decay": 0.99},
        # by the root of the width; with layer decay it applies to the head and the last block
        by_width={0: {"learning_rate": 1e-3}, 384: {"learning_rate": 7e-4}, 768: {"learning_rate": 5e-4}},
        batch=32,
        scaling="sqrt",
        passes=12,
        small_images=True,
        kind="image",
    ),
    "linear_probe": Preset(
        "a head solved in closed form over frozen trained weights",
        None,
        {"head": "solved"},
        source="the protocol of MoCo v3 and MAE, with the optimum of logistic regression instead of 90 epochs of SGD",
    ),
    "small_data": Preset(
        "hundreds to tens of thousands of images, without trained weights",
        "compact_small",
        {"steps": 700, "learning_rate": 2e-3, "crop": 0.6, "mixup": 0.4},
        passes=20,
        kind="image",
    ),
    "spectrogram": Preset(
        "spectrograms of hundreds to tens of thousands of signals, without trained weights",
        "compact_small",
        # Other voices and machines have other pitches and speeds: crops of time and frequency imitate them, and masks
        # keep the network from relying on few of them (SpecAugment).
        {"steps": 700, "learning_rate": 2e-3, "crop": 0.6, "mixup": 0.4, "mask_time": 0.2, "mask_bands": 0.2},
        passes=20,
        kind="spectrogram",
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
        },
        network={"drop_path_rate": 0.1},
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
            "grad_clip": 0.0,  # the code clips at 1 for a mean over 1,000 classes: too far off to matter for our sum
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
        _AUGREG
        | {"epochs": 300, "accumulate": 32, "warmup": 10_000 / (300 * _IMAGENET_TRAIN / 4096), "loss": "sigmoid"},
        source="Steiner et al., 2021 (How to train your ViT?): RandAugment (2, 10), mixup .2, decay .1, no drop path",
        batch=4096,
        scaling="sqrt",
        kind="image",
    ),
    "plain": Preset(
        "the better plain ViT: 76.5 % on ImageNet-1k in 90 epochs",
        "vit_small",
        _AUGREG | {"epochs": 90, "accumulate": 8, "warmup": 10_000 / (90 * _IMAGENET_TRAIN / 1024)},
        network={"pooling": "norm_avg", "class_token": False, "pos_embed": "sincos"},
        by_width={width: {"representation_size": width} for width in (64, 128, 192, 384, 768, 1024, 1280)},
        source="Beyer et al., 2022 (Better plain ViT baselines for ImageNet-1k), and big_vision",
        batch=1024,
        scaling="sqrt",
        kind="image",
    ),
    "basic": Preset(
        "the Vision Transformer as published, for any data",
        "vit_pico",
        {},
        source="the defaults of Recipe and ViTConfig",
    ),
}


AUTO = (
    "signal for a network signal_*, fast for closed_form, small_data for images with another; without a named network, "
    "signal for signals of one axis (fast below ten training examples a class, and for up to 4,096 sound files), "
    "finetune for images with trained weights, small_data for images without, spectrogram for spectrograms; basic for "
    "everything else"
)
"""Description of preset `auto`, see `auto_preset`."""


def auto_preset(*, model: str | None, kind: str, dims: int, trained: bool) -> str:
    """Name of the preset that fits a model, or else the data. For the arguments see `resolve_preset`."""
    if model == SOLVED:
        return "fast"
    if model is not None:
        own = {"image": "small_data", "spectrogram": "spectrogram"}.get(kind, "basic")
        return "signal" if model.startswith("signal_") else own
    if kind in ("image", "spectrogram"):
        return "finetune" if trained else "small_data" if kind == "image" else "spectrogram"
    return "signal" if dims == 1 and not trained else "basic"


def resolve_preset(name: str, *, model: str | None, kind: str, dims: int, trained: bool, source: str) -> str:
    """Name of the preset that `name` stands for, after a check that it suits the data.

    Args:
        name: a preset, or "auto".
        model: name of the network; None if the preset is to choose it.
        kind: "image", "signal", or "spectrogram" for signals that the network reads as pictures.
        dims: axes of an input beside its channels.
        trained: whether training starts from trained weights.
        source: name of the data in messages.

    Raises:
        ValueError: for an unknown preset, one for other data, or one that needs trained weights.
    """
    check_preset(name)
    fitting = auto_preset(model=model, kind=kind, dims=dims, trained=trained)
    name = fitting if name == "auto" else name
    preset = PRESETS[name]
    fits = kind == preset.kind or (preset.kind == "image" and kind == "spectrogram") or preset.kind in (None, "signal")
    if not fits or (preset.dims not in (None, dims) and model is None and not trained):
        purposes = {"image": "images", "spectrogram": "spectrograms (--spectrogram)"}
        purpose = purposes.get(str(preset.kind), "signals of one axis")
        found = kind + "s" if dims == 1 or kind == "image" else f"arrays of {dims} axes"
        raise ValueError(f"preset {name!r} is for {purpose}, but {source} holds {found}: use preset {fitting!r}")
    if preset.model is None and not trained:
        raise ValueError(f"preset {name!r} starts from trained weights: set --weights, or use {fitting!r}")
    return name


def check_preset(name: str) -> None:
    """Raise a ValueError that lists the presets if there is none of this name."""
    known = ["auto", *PRESETS]
    if name not in known:
        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}.{hint} Presets are {', '.join(known)}")
