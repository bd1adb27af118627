"""Exponential moving average of the weights."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Moving average whose decay starts low: min(decay, (1 + n) / (10 + n)) at the n-th update.

    With a constant decay of .998 the average would still contain a third of the initial weights after 500 steps, the
    whole of a short run. The statistics of BatchNorm are averaged like weights: the newest ones would not match them.
    """

    def __init__(self, decay: float) -> None:
        def average(means: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
            n = float(updates)
            if means[0].is_floating_point():  # tensors arrive grouped by dtype
                torch._foreach_lerp_(means, current, 1 - min(decay, (1 + n) / (10 + n)))
            else:  # the batch counters of BatchNorm
                torch._foreach_copy_(means, current)

        super().__init__(use_buffers=True, multi_avg_fn=torch.no_grad()(average))  # all tensors in one call
