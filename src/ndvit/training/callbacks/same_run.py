"""A checkpoint knows the run that it belongs to."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import nn

from ndvit.config import ViTConfig
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.network.committee import first_transformer, solved_networks
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.level_features import LevelFeatures
from ndvit.network.random_convolutions import RandomConvolutions

_ABSENT = {
    **Recipe().to_dict(),
    **ViTConfig().to_dict(),
    "encoder": False,
    "levels": False,
}  # values of fields that earlier versions lack
_FREE = (
    "device",
    "workers",
    "tracker",
    "strategy",
    "device_timeout",
)  # options that change where and how fast a run computes, not what


class SameRun(Callback):
    """Writes recipe, config and data into checkpoints, and refuses to resume a checkpoint of another run.

    Args:
        recipe: the recipe.
        network: the transformer, with the solved networks beside it.
        train: training examples.
        objective: options of the objective of a task without targets.
    """

    def __init__(
        self, recipe: Recipe, network: nn.Module, train: Inputs, objective: Mapping[str, Any] | None = None
    ) -> None:
        solved = solved_networks(network)
        features = sum(one.num_features for one in solved if isinstance(one, RandomConvolutions))
        encoders = [one for one in solved if isinstance(one, EncoderFeatures)]
        beside = {"rocket_features": features, "encoder": bool(encoders)}
        beside["levels"] = any(isinstance(one, LevelFeatures) for one in solved)
        if local := sum(len(one.starts) for one in encoders):  # checkpoints of earlier versions have none
            beside["local_windows"] = local
        preprocess = train.preprocess.to_dict()
        labels = [] if train.examples.targets is None else train.examples.targets.tolist()
        self.facts: dict[str, Any] = {
            "recipe": {k: v for k, v in recipe.to_dict().items() if k not in _FREE} | dict(objective or {}),
            "config": first_transformer(network).config.to_dict() | beside,
            "examples": len(train),
            "labels": zlib.crc32(repr((list(train.examples.names), labels)).encode()),
            "moments": [*preprocess["mean"], *preprocess["std"]],
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values, so that checkpoints can be loaded with weights_only=True."""
        return self.facts

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Compare the facts with those of a checkpoint before anything is loaded from it.

        Raises:
            ValueError: with every difference.
        """
        before, differences = checkpoint["callbacks"][self.state_key], []
        for part in ("recipe", "config"):
            for name, now in self.facts[part].items():
                then = before[part].get(name, _ABSENT.get(name))
                if name == "rocket_features":  # earlier versions stored the requested number, which is rounded down
                    then = (then or 0) // RandomConvolutions.smallest * RandomConvolutions.smallest
                if then != now:
                    differences.append(f"{name} was {then!r}, is {now!r}")
        if before["examples"] != self.facts["examples"]:
            differences.append(f"training examples were {before['examples']}, are {self.facts['examples']}")
        elif before["labels"] != self.facts["labels"]:
            differences.append("training examples have other names or labels")
        then, now = before["moments"], self.facts["moments"]  # not to the last bit, which differs between machines
        if len(then) == len(now) and not np.allclose(then, now, rtol=1e-3):
            differences.append("training examples have another mean or standard deviation")
        if differences:
            raise ValueError("cannot resume, the run has changed since its checkpoint: " + "; ".join(differences))
