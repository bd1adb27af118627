"""Options and presets of self-supervised pretraining, which learns from examples without labels."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

from ndvit.config.bounds import Count, Options, Positive
from ndvit.config.presets import Preset
from ndvit.config.recipe import Recipe

Objective = Literal["masked", "contrastive"]


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions(Options):
    """Objectives."""

    mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.75
    """Share of the observed patches of an example that masked pretraining hides from the network."""
    decoder_depth: Count = 2
    """Blocks of the decoder of masked pretraining, which is thrown away afterwards."""
    contrast_temperature: Positive = 0.1
    """Temperature of the contrastive loss: lower values weigh the most similar other examples more."""
    projection_dim: Count = 64
    """Outputs of the projection head of contrastive pretraining, which is thrown away afterwards."""


IDLE = (
    *("loss", "label_smoothing", "class_weight", "interval", "stem_loss", "head", "freeze", "lora"),
    *(
        "distillation",
        "distillation_weight",
        "temperature",
        "early_stop",
        "val_fraction",
        "final_share",
        "mixup",
        "cutmix",
    ),
    *("rocket_features", "rocket_weight", "compile"),
)
"""Options of a training that concern targets or outputs, which pretraining does not have, or the compiled forward."""
UNSPLIT = ("test_fraction", "split_file", "group_by", "label_file", "drop_suspected")
"""Options of reading that pretraining, which has no test and no labels, lacks."""


def take_pretraining_options(options: Mapping[str, Any]) -> tuple[PretrainingOptions, dict[str, Any]]:
    """Split the options of a pretraining into those of its objective and the others, without mixing of examples.

    Raises:
        ValueError: for a value out of bounds, and for an option that would do nothing.
    """
    usual = {f.name: f.default for f in fields(Recipe)} | {"mixup": 0.0}
    idle = [name for name in IDLE if options.get(name, usual.get(name)) != usual.get(name) and options[name] != 0]
    if idle:
        raise ValueError(
            f"pretraining has no targets and computes no outputs, and {', '.join(idle)} would do nothing: leave "
            f"{'it' if len(idle) == 1 else 'them'} out here, and set {'it' if len(idle) == 1 else 'them'} in "
            "`ndvit train SOURCE --weights RUN`"
        )
    own = {f.name for f in fields(PretrainingOptions)}
    return (
        PretrainingOptions(**{name: value for name, value in options.items() if name in own}),
        {name: value for name, value in options.items() if name not in own} | {"mixup": 0.0},
    )


_USUAL: dict[str, Any] = {"weight_decay": 0.05, "learning_rate": 1e-3, "warmup": 0.1}
# Two views of each example stand one after the other in a batch, each with its own augmentation.
_VIEWS: dict[str, Any] = {**_USUAL, "steps": 1000, "batch_size": 128, "repeats": 2}
_MASKED: dict[str, Any] = {**_USUAL, "steps": 1000, "batch_size": 64, "betas": (0.9, 0.95)}
PRETRAINING_PRESETS: dict[str, Preset] = {
    "contrastive_signal": Preset(
        "two crops of 50 to 100 % of each signal, with gain and noise",
        "signal_small",
        {**_VIEWS, "crop": 0.5, "scale": 0.2, "noise": 0.05},
        passes=20,
        kind="signal",
        dims=1,
    ),
    "contrastive_array": Preset(
        "two crops of 40 to 100 % of each array, with gain and noise",
        "compact_small",
        {**_VIEWS, "steps": 700, "crop": 0.4, "scale": 0.2, "noise": 0.05},
        passes=20,
        kind="signal",
    ),
    "contrastive_image": Preset(
        "two crops of 30 to 100 % of each picture, with other brightness and contrast",
        "compact_small",
        {**_VIEWS, "steps": 700, "crop": 0.3, "jitter": 0.4},
        passes=20,
        kind="image",
    ),
    "masked_signal": Preset(
        "signals with masked stretches",
        "signal_small",
        {**_MASKED, "crop": 0.7, "scale": 0.1},
        passes=20,
        kind="signal",
        dims=1,
    ),
    "masked_array": Preset(
        "arrays with masked patches", "compact_small", {**_MASKED, "crop": 0.5}, passes=20, kind="signal"
    ),
    "masked_image": Preset(
        "pictures with masked patches", "compact_small", {**_MASKED, "crop": 0.5}, passes=20, kind="image"
    ),
}
"""The defaults of a pretraining, by its objective and the data."""


def pretraining_preset(objective: str, kind: str, dims: int) -> str:
    """Name of the preset for an objective on images, signals of one axis, or arrays of more axes."""
    return f"{objective}_{kind if kind == 'image' or dims == 1 else 'array'}"
