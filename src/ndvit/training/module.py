"""Learning from labels: the loss, and the LightningModule around it."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassStatScores

from ndvit.config.recipe import Recipe
from ndvit.data.augment.batches import (
    channel_drop,
    cutmix,
    mixup,
    random_crop_resize,
    random_erase,
    random_flip,
    random_noise,
    random_scale,
)
from ndvit.data.loading import Batch
from ndvit.network import VisionTransformer
from ndvit.training.distillation import Teacher, distillation_loss
from ndvit.training.optim import build_optimizer, build_schedule


def supervised_loss(
    output: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    recipe: Recipe,
    *,
    distilled: bool = False,
    class_weight: Tensor | None = None,
    teacher: Tensor | None = None,
) -> Tensor:
    """What is minimised, for every kind of network: cross-entropy against the labels' distributions, and the teacher's.

    Labels have 1 - w of the loss and a teacher has w, the recipe's `distillation_weight` (DeiT's w is 1/2).

    Args:
        output: what the network returned in training: logits (B, classes); or a pair of them, from class head and
            distillation head (`distilled`), or from the head and an auxiliary head over the stem.
        targets: (B, classes), each row summing to one.
        recipe: how much the parts weigh.
        distilled: whether the second output is a distillation head's, which learns from the teacher what the class head
            learns from labels. Without a teacher both learn from labels, and their losses are averaged.
        class_weight: (classes,), of the labels' part.
        teacher: its logits (B, classes). Where there is no distillation head, the one head learns from both.
    """
    logits, second = output if isinstance(output, tuple) else (output, None)
    loss = label_loss(logits, targets, recipe, class_weight)
    share = recipe.distillation_weight
    if distilled:
        assert second is not None
        if teacher is None:
            return (loss + label_loss(second, targets, recipe, class_weight)) / 2
        return (1 - share) * loss + share * distillation_loss(second, teacher, recipe)
    if teacher is not None:
        loss = (1 - share) * loss + share * distillation_loss(logits, teacher, recipe)
    if second is not None:
        loss = loss + recipe.stem_loss * label_loss(second, targets, recipe, class_weight)
    return loss


def label_loss(logits: Tensor, targets: Tensor, recipe: Recipe, class_weight: Tensor | None) -> Tensor:
    """Cross-entropy of logits (B, classes) against distributions over the classes, or of each class by itself.

    By itself, every class that has more than smoothing gives it is there: of two mixed pictures both are (DeiT III);
    and an example has the sum over the classes (AugReg), which is as large as the loss of all classes together.
    """
    logits = logits.float()
    if recipe.loss == "softmax":
        return F.cross_entropy(logits, targets, class_weight)
    smoothing = recipe.label_smoothing
    there = (targets > smoothing / targets.shape[1] + 1e-6).to(logits.dtype)
    there = there * (1 - smoothing) + smoothing / targets.shape[1]
    losses = F.binary_cross_entropy_with_logits(logits, there, reduction="none").sum(1)
    if class_weight is not None:  # of whole examples: heavier, one class's yes and no would be as likely as before
        losses = losses * (targets * class_weight).sum(1)
    return losses.mean()


def class_weights(recipe: Recipe, labels: Tensor, classes: int) -> Tensor | None:
    """The recipe's weight of each class, (classes,), scaled to a mean of 1 over the labels (n,); None for no weights.

    Raises:
        ValueError: for another number of weights than of classes, or if no label has a weight.
    """
    given = recipe.class_weight
    if given is None:
        return None
    count = torch.bincount(labels, minlength=classes).double()
    if given == "balanced":
        weight = len(labels) / (classes * count.clamp(min=1))
    elif len(given) == classes:
        weight = torch.tensor(given, dtype=torch.float64)
    else:
        raise ValueError(f"class_weight has {len(given)} numbers for {classes} classes: give one a class, or balanced")
    mean = (weight * count).sum() / count.sum()
    if not mean > 0:
        raise ValueError(f"class_weight {given} leaves no training example: each class with a weight above 0 is empty")
    return (weight / mean).float()


def predicted_logits(output: Tensor | tuple[Tensor, Tensor], distilled: bool) -> Tensor:
    """What a network would answer in evaluation, from what it returned in training: logits (B, classes)."""
    if not isinstance(output, tuple):
        return output
    return (output[0] + output[1]) / 2 if distilled else output[0]


class SupervisedTask(pl.LightningModule):
    """Supervised training of a classifier under a recipe.

    Args:
        model: the network that is trained.
        recipe: how.
        steps: optimiser steps of the whole run, for the schedule.
        log_every: optimiser steps between rows of metrics; a row holds means since the last.
        labels: (n,) of the training examples, which class weights need.
        teacher: whom the network learns from beside the labels. It is no submodule, and in no checkpoint.
        varied: whether examples were cropped and mirrored when they were read, as pictures are.
        still: modules that do not learn, and stay in eval mode.
    """

    class_weight: Tensor | None
    sums: Tensor

    def __init__(
        self,
        model: VisionTransformer,
        recipe: Recipe,
        steps: int,
        log_every: int,
        *,
        labels: Tensor | None = None,
        teacher: Teacher | None = None,
        varied: bool = False,
        still: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self._still = tuple(still)  # a tuple: they are submodules already
        self.varied = varied
        self.recipe = recipe
        self.steps = steps
        self.teacher = teacher
        assert labels is not None or recipe.class_weight is None
        weight = None if labels is None else class_weights(recipe, labels, model.config.num_classes)
        self.register_buffer("class_weight", weight, persistent=False)
        self.log_every = log_every * recipe.accumulate
        self.counts = MulticlassStatScores(max(2, model.config.num_classes), average="none", validate_args=False)
        # of loss and accuracy, and their number; in checkpoints, so that a resumed run logs what an unbroken one does
        self.register_buffer("sums", torch.zeros(3))

    def train(self, mode: bool = True) -> "SupervisedTask":
        """Training mode for all that learns."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def augment(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """The batch as the network sees it in training: x, mask and target distributions (B, classes)."""
        recipe = self.recipe
        x, mask = batch.x, batch.mask
        assert batch.labels is not None
        classes = self.model.config.num_classes
        targets = F.one_hot(batch.labels, classes) * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
        crop = 1.0 if self.varied else recipe.crop
        if crop < 1 or recipe.warp:
            x, mask = random_crop_resize(x, mask, crop, recipe.warp, recipe.crop_prob)
        if recipe.flip and not self.varied:
            x, mask = random_flip(x, mask, recipe.flip)
        if recipe.scale:
            x = random_scale(x, recipe.scale)
        if recipe.channel_drop:
            x = channel_drop(x, recipe.channel_drop)
        if recipe.noise:
            x = random_noise(x, recipe.noise)
        if recipe.erase:
            x = random_erase(x, recipe.erase)
        mixes = [(f, alpha) for f, alpha in ((mixup, recipe.mixup), (cutmix, recipe.cutmix)) if alpha]
        if mixes and torch.rand(()) < recipe.mix_prob:
            mix, alpha = mixes[int(torch.randint(len(mixes), ()))]
            x, mask, targets = mix(x, mask, targets, alpha)
        return x, mask, targets

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One forward pass under augmentation."""
        # all that is random in a step follows from (seed, step), so a resumed run draws what an unbroken one draws
        self._reseed(int(np.random.SeedSequence((self.recipe.seed, batch_idx)).generate_state(1)[0]))
        x, mask, targets = self.augment(batch)
        output, distilled = self.model(x, mask), self.model.config.distilled
        said = None if self.teacher is None else self.teacher(x, mask)
        weight = self.class_weight
        loss = supervised_loss(output, targets, self.recipe, distilled=distilled, class_weight=weight, teacher=said)
        with torch.no_grad():
            accuracy = (predicted_logits(output, distilled).argmax(1) == targets.argmax(1)).float().mean()
            self.sums += torch.stack([loss.detach(), accuracy, accuracy.new_ones(())])
        if (batch_idx + 1) % self.log_every == 0:
            self._log_means()
        return loss

    def _reseed(self, seed: int) -> None:
        """Seed the generators that are in use; torch.manual_seed sees to all there are, which takes a millisecond."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _log_means(self) -> None:
        """A row of metrics: means since the last."""
        loss, accuracy = (self.sums[:2] / self.sums[2]).tolist()
        self.sums.zero_()
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        row = {"train_loss": loss, "train_accuracy": accuracy, "learning_rate": rate}
        for logger in self.loggers:  # not by log_dict, which would repeat the row at every step until the next
            logger.log_metrics(row, self.global_step)
        if self.trainer.progress_bar_callback is not None:
            self.log_dict({"loss": loss}, prog_bar=True, logger=False, batch_size=1)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss:g} at step {self.global_step + 1}, the training has diverged: "
                f"try a learning_rate below {rate:.2g}, a longer warmup, or grad_clip"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of validation data: the mean over its examples, as batches weigh by their size; counts of answers."""
        assert batch.labels is not None
        logits = self.model(batch.x, batch.mask)
        self.counts.update(logits.argmax(1), batch.labels)
        self.log("val_loss", F.cross_entropy(logits.float(), batch.labels), prog_bar=True, batch_size=len(batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Accuracy over the whole validation set, and balanced: the mean recall of the classes that are in it.

        torchmetrics' own macro average counts a class that is not in it, too, as a recall of 0, if it was predicted.
        """
        counts = self.counts.compute().float()  # (classes, 5)
        self.counts.reset()
        right, there = counts[:, 0], counts[:, 4]
        balanced = (right / there)[there > 0].mean()
        self.log("val_accuracy", right.sum() / there.sum(), prog_bar=True)
        self.log("val_balanced_accuracy", balanced)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """The recipe's; Lightning's own refuses fused optimisers in bf16, too, where gradients are not scaled."""
        if self.recipe.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and its schedule by steps."""
        optimizer = build_optimizer(self.model, self.recipe)
        schedule = build_schedule(optimizer, self.recipe, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
