"""The weights of the lowest validation loss, for early stopping."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ndvit.training.strategies import whole


class BestWeights(Callback):
    """Keeps the weights of the lowest validation loss in memory and in checkpoints.

    It must stand before the moving average, which swaps its weights in for the validation and out at its end.
    """

    def __init__(self) -> None:
        self.loss = float("inf")
        self.weights: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Copy the weights if the loss is the lowest so far."""
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.loss:
            state = pl_module.model.state_dict()
            # of a network in parts, the whole; all processes come here together
            self.loss = loss
            self.weights = {name: whole(tensor.detach()).cpu().clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {"loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from the checkpoint."""
        self.loss, self.weights = state_dict["loss"], state_dict["weights"]
