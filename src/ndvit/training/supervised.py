"""Learning from labels: the loss, and the LightningModule around it."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from ndvit.data.augment import cutmix, mixup, random_crop_resize, random_flip
from ndvit.data.loading import Batch
from ndvit.network import VisionTransformer
from ndvit.training.optim import build_optimizer, build_schedule
from ndvit.training.recipe import Recipe


def supervised_loss(output: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Mean cross-entropy against target distributions.

    Args:
        output: logits (B, classes), or the pair of a distilled network, whose two losses are averaged (DeiT without a
            teacher).
        targets: (B, classes), each row summing to one.
    """
    if isinstance(output, tuple):
        return (F.cross_entropy(output[0], targets) + F.cross_entropy(output[1], targets)) / 2
    return F.cross_entropy(output, targets)


def mean_logits(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """One set of logits (B, classes) whichever a network returns."""
    return (output[0] + output[1]) / 2 if isinstance(output, tuple) else output


class SupervisedTask(pl.LightningModule):
    """Supervised training of a classifier under a recipe.

    Args:
        model: the network that is trained.
        recipe: how.
        steps: optimiser steps of the whole run, for the schedule.
        log_every: optimiser steps between rows of metrics; a row holds means since the last.
    """

    def __init__(self, model: VisionTransformer, recipe: Recipe, steps: int, log_every: int) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.steps = steps
        self.log_every = log_every * recipe.accumulate
        # the default leaves NaN out of means, and so hides a run that diverges
        self.mean_loss, self.mean_accuracy = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        for metric in (self.mean_loss, self.mean_accuracy):
            metric.persistent(True)  # in checkpoints, so that a resumed run logs what an unbroken one does

    def augment(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """The batch as the network sees it in training: x, mask and target distributions (B, classes)."""
        recipe = self.recipe
        x, mask = batch.x, batch.mask
        assert batch.labels is not None
        classes = self.model.config.num_classes
        targets = F.one_hot(batch.labels, classes) * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
        if recipe.crop < 1:
            x, mask = random_crop_resize(x, mask, recipe.crop)
        if recipe.flip:
            x, mask = random_flip(x, mask, recipe.flip)
        if recipe.noise:
            x = x + recipe.noise * torch.randn_like(x)
        mixes = [(f, alpha) for f, alpha in ((mixup, recipe.mixup), (cutmix, recipe.cutmix)) if alpha]
        if mixes and torch.rand(()) < recipe.mix_prob:
            mix, alpha = mixes[int(torch.randint(len(mixes), ()))]
            x, mask, targets = mix(x, mask, targets, alpha)
        return x, mask, targets

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One forward pass under augmentation."""
        # all that is random in a step follows from (seed, step), so a resumed run draws what an unbroken one draws
        torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, batch_idx)).generate_state(1)[0]))
        x, mask, targets = self.augment(batch)
        output = self.model(x, mask)
        loss = supervised_loss(output, targets)
        with torch.no_grad():
            accuracy = (mean_logits(output).argmax(1) == targets.argmax(1)).float().mean()
        self.mean_loss.update(loss.detach())
        self.mean_accuracy.update(accuracy)
        if (batch_idx + 1) % self.log_every == 0:
            mean_loss = self.mean_loss.compute()
            row = {
                "train_loss": mean_loss,
                "train_accuracy": self.mean_accuracy.compute(),
                "learning_rate": max(group["lr"] for group in self.trainer.optimizers[0].param_groups),
            }
            # not by log_dict, which would repeat the row at every step until the next
            for logger in self.loggers:
                logger.log_metrics({name: float(value) for name, value in row.items()}, self.global_step)
            self.log_dict({"loss": mean_loss}, prog_bar=True, logger=False, batch_size=len(x))
            if not mean_loss.isfinite():
                raise ValueError(
                    f"the loss is {mean_loss:g} at step {self.global_step + 1}, the training has diverged: "
                    f"try a learning_rate below {row['learning_rate']:.2g}, a longer warmup, or grad_clip"
                )
            self.mean_loss.reset()
            self.mean_accuracy.reset()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy on validation data."""
        assert batch.labels is not None
        logits = mean_logits(self.model(batch.x, batch.mask))
        values = {
            "val_loss": F.cross_entropy(logits, batch.labels),
            "val_accuracy": (logits.argmax(1) == batch.labels).float().mean(),
        }
        self.log_dict(values, prog_bar=True, batch_size=len(batch.labels))

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """The recipe's; Lightning's own refuses fused optimisers in bf16, too, where gradients are not scaled."""
        if self.recipe.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and its schedule by steps."""
        optimizer = build_optimizer(self.model, self.recipe)
        schedule = build_schedule(optimizer, self.recipe, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
