"""The LightningModule of a training: loss, augmentation, metrics and optimizer of one network."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from ndvit import processes
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Batch
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee, first_transformer
from ndvit.network.draws import sharing
from ndvit.network.solved import SolvedNetwork
from ndvit.tasks.base import Criterion, Objective, Task
from ndvit.training.callbacks.checkpoints import count_batches, rename_legacy
from ndvit.training.distillation import Teacher
from ndvit.training.optim import build_optimizer, build_schedule

Augment = Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor | None, Tensor]]


def training_loss(
    output: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    criterion: Criterion,
    recipe: Recipe,
    *,
    distilled: bool = False,
    teacher: Tensor | None = None,
) -> Tensor:
    """The loss that is minimised, for every kind of head.

    The targets' loss has weight 1 - w and the teacher's has w, the recipe's `distillation_weight` (1/2 in DeiT).

    Args:
        output: what the network returned in training: outputs (B, outputs); or a pair of them, of the class head and
            the distillation head (`distilled`), or of the head and an auxiliary head over the stem.
        targets: (B, outputs), prepared by the criterion.
        criterion: the task's loss.
        recipe: weights of the parts.
        distilled: whether the second output is that of a distillation head, which learns from the teacher while the
            class head learns from the targets. Without a teacher both learn from the targets, and the losses are
            averaged.
        teacher: the teacher's outputs (B, outputs). Without a distillation head, the only head learns from both.
    """
    output, second = output if isinstance(output, tuple) else (output, None)
    loss = criterion.loss(output, targets)
    share = recipe.distillation_weight
    if distilled:
        assert second is not None
        if teacher is None:
            return (loss + criterion.loss(second, targets)) / 2
        return (1 - share) * loss + share * criterion.distillation_loss(second, teacher, targets)
    if teacher is not None:
        loss = (1 - share) * loss + share * criterion.distillation_loss(output, teacher, targets)
    if second is not None:
        loss = loss + recipe.stem_loss * criterion.loss(second, targets)
    return loss


class TrainingModule(pl.LightningModule):
    """Training of one network for a task under a recipe.

    Args:
        network: what is trained; of a committee, its transformer is trained and the whole is validated.
        task: gives loss and metrics.
        recipe: how it is trained.
        steps: optimizer steps of the whole run, for the schedule.
        log_every: optimizer steps between rows of metrics; a row holds means since the last.
        targets: encoded targets of the training set.
        augment: varies a batch (x, mask, prepared targets); None leaves it unchanged.
        teacher: what the network also learns from. It is not a submodule and not part of checkpoints.
        frozen: modules that are not trained and stay in eval mode.
        pretrained: whether the network starts with trained weights.
        objective: the loss of a task without targets, which is trained beside the network; None for all other tasks.
        val_batches: number of examples in each batch of the validation set that processes share; empty if each process
            validates by itself.
    """

    sums: Tensor

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        recipe: Recipe,
        steps: int,
        log_every: int,
        *,
        targets: Tensor | None = None,
        augment: Augment | None = None,
        teacher: Teacher | None = None,
        frozen: Sequence[nn.Module] = (),
        pretrained: bool = False,
        objective: Objective | None = None,
        val_batches: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.model, self.val_batches = network, val_batches
        self._trained = (first_transformer(network),)  # in a tuple, because it is a submodule of `model` already
        self._frozen = tuple(frozen)
        self.task, self.recipe, self.steps = task, recipe, steps
        self.augment, self.teacher, self.pretrained = augment, teacher, pretrained
        self.objective = objective
        self.criterion = task.criterion(recipe, targets) if objective is None else None
        self.metrics = task.metrics()
        self.log_every = log_every * recipe.accumulate
        if objective is not None:
            names: Iterable[str] = objective.metric_names
        else:
            example = torch.zeros(2, task.num_outputs)
            names = self._criterion.batch_metrics(example, example)
        self.metric_names = ("loss", *names)
        # Sums of loss and metrics, and their number. They are in checkpoints, so that a resumed run logs the same rows.
        self._newest = math.nan
        self._constant: dict[int, Tensor] = {}  # outputs of solved networks on batches of the validation set
        self.register_buffer("sums", torch.zeros(len(self.metric_names) + 1))

    @property
    def trained(self) -> VisionTransformer:
        """The transformer that is trained."""
        return self._trained[0]

    @property
    def _criterion(self) -> Criterion:
        """The loss of a task with targets."""
        assert self.criterion is not None
        return self.criterion

    def train(self, mode: bool = True) -> "TrainingModule":
        """Set training mode, except for frozen modules."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of an augmented batch."""
        # Everything random in a step follows from (seed, step), so a resumed run repeats the unbroken one. Processes
        # that share a batch draw in common what belongs to its examples, and by their ranks what only needs to differ.
        generators = self._seed(self.recipe.seed, batch_idx)
        if processes.size() == 1:
            loss, metrics = self._loss(batch)
        else:
            with sharing(processes.rank(), processes.size(), generators):
                self._seed(self.recipe.seed, batch_idx, processes.rank() + 1)
                loss, metrics = self._loss(batch)
        with torch.no_grad():
            row = torch.stack([loss.detach(), *metrics.values(), loss.new_ones(())])
            self.sums += processes.mean_of(row)
        if (batch_idx + 1) % self.log_every == 0:
            self._log_means()
        return loss

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch that is augmented here, and its metrics."""
        x, mask = batch.x, batch.mask
        if self.objective is not None:
            if self.augment is not None:
                x, mask, _ = self.augment(x, mask, x.new_zeros(len(x), 0))
            loss, metrics = self.objective(self.trained, x, mask)
            return loss, metrics
        assert batch.targets is not None
        targets = self._criterion.prepare(batch.targets)
        if self.augment is not None:
            x, mask, targets = self.augment(x, mask, targets)
        output, distilled = self.trained(x, mask), self.trained.config.distilled
        teacher = None if self.teacher is None else self.teacher(x, mask)
        loss = training_loss(output, targets, self._criterion, self.recipe, distilled=distilled, teacher=teacher)
        with torch.no_grad():
            return loss, self._criterion.batch_metrics(_evaluation_output(output, distilled), targets)

    def _seed(self, *numbers: int) -> list[torch.Generator]:
        """Seed the generators in use, and return them. torch.manual_seed seeds all devices, in a millisecond."""
        seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
        generators = [torch.default_generator]
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
            generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        return generators

    def recent_loss(self) -> float:
        """Mean training loss since the last row of metrics, or that of the last row if it was just logged."""
        return float(self.sums[0] / self.sums[-1]) if self.sums[-1] else self._newest

    def _log_means(self) -> None:
        """Log a row of metrics: means since the last row."""
        means = (self.sums[:-1] / self.sums[-1]).tolist()
        self._newest = means[0]
        self.sums.zero_()
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        row = {f"train_{name}": value for name, value in zip(self.metric_names, means)} | {"learning_rate": rate}
        for logger in self.loggers:  # log_dict would repeat the row at every step until the next
            logger.log_metrics(row, self.global_step)
        loss = means[0]
        if self.trainer.progress_bar_callback is not None:
            self.log_dict({"loss": loss}, prog_bar=True, logger=False, batch_size=1)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss:g} at step {self.global_step + 1}, the training has diverged: "
                f"try a learning_rate below {rate:.2g}, a longer warmup, or grad_clip"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to loss and metrics of the validation set; batches are weighted by their size.

        Processes share each batch, and each of them adds the whole of it.
        """
        targets = batch.targets
        assert targets is not None
        outputs = self._validated(batch, batch_idx)
        if self.val_batches:
            count = self.val_batches[batch_idx]
            outputs, targets = (processes.gathered_rows(rows, count) for rows in (outputs, targets))
        self.metrics.update(outputs, targets)
        if self.criterion is not None:
            loss = self.criterion.validation_loss(outputs, targets)
            self.log("val_loss", loss, prog_bar=True, batch_size=len(targets))

    def _validated(self, batch: Batch, batch_idx: int) -> Tensor:
        """Outputs on a batch of the validation set. Solved networks do not change, so they are computed once."""
        if not isinstance(self.model, Committee):
            outputs: Tensor = self.model(batch.x, batch.mask)
            return outputs
        parts = []
        for member in self.model.members:
            constant = isinstance(member, SolvedNetwork)
            if not constant or batch_idx not in self._constant:
                parts.append(member(batch.x, batch.mask))
                if constant:
                    self._constant[batch_idx] = parts[-1]
            else:
                parts.append(self._constant[batch_idx])
        return self.model.combined(parts)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set; the first is in the progress bar."""
        for i, (name, value) in enumerate(self.metrics.compute().items()):
            self.log(f"{self.metrics.prefix}_{name}", value, prog_bar=i == 0)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Accept checkpoints of earlier versions, and of runs on another number of devices."""
        rename_legacy(checkpoint)
        count_batches(checkpoint, self.recipe.accumulate)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the norm of the gradient. Lightning would refuse fused optimizers in bf16, where nothing is scaled."""
        if self.recipe.grad_clip:
            beside = () if self.objective is None else self.objective.parameters()
            torch.nn.utils.clip_grad_norm_([*self.trained.parameters(), *beside], self.recipe.grad_clip)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, with its schedule by steps."""
        optimizer = build_optimizer(self.trained, self.recipe, self.pretrained, self.objective)
        schedule = build_schedule(optimizer, self.recipe, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _evaluation_output(output: Tensor | tuple[Tensor, Tensor], distilled: bool) -> Tensor:
    """What the network would return in evaluation, from what it returned in training: (B, outputs)."""
    if not isinstance(output, tuple):
        return output
    return (output[0] + output[1]) / 2 if distilled else output[0]
