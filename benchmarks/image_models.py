"""The models that the bench of images compares: a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Library = Literal["ndvit", "timm", "transformers"]


@dataclass(frozen=True)
class Model:
    """A row of the table of models.

    Attributes:
        about: what it is, in the report.
        library: who trains it.
        trained: whether it begins with the trained weights.
        small: whether it sees pictures at the size that `ours` chooses, not at the weights' own.
        options: keyword arguments of `ndvit.train`, or of the fit in image_fits.py.
    """

    about: str
    library: Library
    trained: bool = True
    small: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


# What somebody who knows timm does: AdamW, layer decay and a warm-up that fits the length of the run, set after every
# step. Everything else is as train.py has it.
_EXPERT = {
    "opt": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.05,
    "layer_decay": 0.75,
    "reprob": 0.0,
    "sched_on_updates": True,
}
_TIMM = "timm as its train.py's defaults train: SGD with momentum .9, learning rate .1 for 256 pictures in a step, "
_TIMM += "5 epochs of warm-up, cosine by epochs, crops of .08 to 1, mirroring, colour jitter .4, label smoothing .1"
_ADAMW = "timm with AdamW, learning rate 5e-4, layer decay .75, a tenth of the steps as warm-up, cosine by steps; else "
_ADAMW += "as `timm`"
_HF = "transformers' Trainer with its defaults (AdamW, learning rate 5e-5, linear, no warm-up), crops and mirroring as "
_HF += "in its example run_image_classification.py"
_SMALL = ", at the size of `ours`"
MODELS = {
    "ours": Model("`ndvit.train(folder, weights=...)`, its defaults", "ndvit"),
    "timm": Model(_TIMM, "timm"),
    "timm-small": Model("`timm`" + _SMALL, "timm", small=True),
    "timm-adamw": Model(_ADAMW, "timm", options=_EXPERT),
    "timm-adamw-small": Model("`timm-adamw`" + _SMALL, "timm", small=True, options=_EXPERT),
    "transformers": Model(_HF, "transformers"),
    "transformers-small": Model("`transformers`" + _SMALL, "transformers", small=True),
    "linear-probe": Model("`ndvit.train(folder, weights=..., preset='linear_probe')`: a logistic regression over the "
                          "features of the weights as they are", "ndvit", options={"preset": "linear_probe"}),
    "small-data": Model("`ndvit.train(folder)`: preset small_data, a network without trained weights", "ndvit",
                        trained=False, options={"preset": "small_data"}),
}  # fmt: skip
