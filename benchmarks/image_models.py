"""The models that the image benchmark compares: a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Library = Literal["ndvit", "timm", "transformers"]


@dataclass(frozen=True)
class Model:
    """A row of the table of models.

    Attributes:
        about: description in the report.
        library: library that trains it.
        trained: whether it starts from the trained weights.
        small: whether its input has the size that `ours` chooses, instead of the size of the weights.
        options: keyword arguments of `ndvit.train`, or of the fit in image_fits.py.
    """

    about: str
    library: Library
    trained: bool = True
    small: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


# An experienced user of timm would take AdamW, layer decay, and a warm-up that fits the length of the run, counted in
# steps. All other values are the defaults of train.py.
_EXPERT = {
    "opt": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.05,
    "layer_decay": 0.75,
    "reprob": 0.0,
    "sched_on_updates": True,
}
_TIMM = "timm with the defaults of its train.py: SGD with momentum 0.9, learning rate 0.1 for 256 images per step, 5 "
_TIMM += "epochs of warm-up, cosine by epoch, crops of 0.08 to 1, flips, colour jitter 0.4, label smoothing 0.1"
_ADAMW = "timm with AdamW, learning rate 5e-4, layer decay 0.75, a tenth of the steps as warm-up, cosine by step; "
_ADAMW += "otherwise the defaults of train.py"
_HF = (
    "transformers' Trainer with its defaults (AdamW, learning rate 5e-5, linear decay, no warm-up); crops and flips as "
)
_HF += "in its example run_image_classification.py"
_SMALL = "; with the input size of `ours`"
MODELS = {
    "ours": Model("`ndvit.train(folder, weights=...)` with its defaults", "ndvit"),
    "timm": Model(_TIMM, "timm"),
    "timm-small": Model(_TIMM + _SMALL, "timm", small=True),
    "timm-adamw": Model(_ADAMW, "timm", options=_EXPERT),
    "timm-adamw-small": Model(_ADAMW + _SMALL, "timm", small=True, options=_EXPERT),
    "transformers": Model(_HF, "transformers"),
    "transformers-small": Model(_HF + _SMALL, "transformers", small=True),
    "linear-probe": Model("`ndvit.train(folder, weights=..., preset='linear_probe')`: a logistic regression on "
                          "frozen features", "ndvit", options={"preset": "linear_probe"}),
    "small-data": Model("`ndvit.train(folder)`: preset `small_data`, without trained weights", "ndvit",
                        trained=False, options={"preset": "small_data"}),
}  # fmt: skip
