"""Contrastive pretraining: two views of an example have similar features, views of different examples have not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.processes import gathered_with_gradients, rank
from ndvit.tasks.base import Drawn, Objective
from ndvit.tasks.self_supervised import SelfSupervised

if TYPE_CHECKING:
    from ndvit.config import ViTConfig
    from ndvit.config.pretraining import PretrainingOptions
    from ndvit.config.recipe import Recipe
    from ndvit.network import VisionTransformer


class Contrastive(SelfSupervised):
    """InfoNCE with the other examples of the batch as negatives (SimCLR, Chen et al., 2020)."""

    name = "contrastive"

    def objective(self, config: ViTConfig, recipe: Recipe, options: PretrainingOptions) -> Objective:
        """The loss over pairs of views, which stand one after the other in a batch (`repeats=2`).

        Raises:
            ValueError: unless batches are whole pairs of at least two examples.
        """
        if recipe.repeats != 2 or recipe.batch_size % 2 or recipe.batch_size < 4:
            raise ValueError(
                "contrastive pretraining compares two views of at least two examples in a batch: set repeats to 2 and "
                f"batch_size to an even number from 4 on (two for each example), got repeats={recipe.repeats} and "
                f"batch_size={recipe.batch_size}"
            )
        return InfoNCE(config, options)

    def describe(self, options: PretrainingOptions) -> str:
        """The loss in a few words."""
        return f"contrastive: two views of each example, InfoNCE at temperature {options.contrast_temperature:g}"


class InfoNCE(Objective):
    """The contrastive loss over a projection head ("Representation Learning with Contrastive Predictive Coding", 2018).

    Rows 2 i and 2 i + 1 of a batch are views of one example.

    Args:
        config: config of the network.
        options: temperature, and width of the projection.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("matched",)

    def __init__(self, config: ViTConfig, options: PretrainingOptions) -> None:
        super().__init__()
        width = config.representation_size or config.pooled_dim * (2 if config.distilled else 1)
        self.temperature = options.contrast_temperature
        layers: list[Any] = [nn.Linear(width, width), nn.GELU(), nn.Linear(width, options.projection_dim)]
        self.projection = nn.Sequential(*layers)

    def forward(self, network: VisionTransformer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the share of views whose most similar one in the batch is that of the same example."""
        projected = self.projection(network.features(x, mask))  # (B, projection_dim)
        with torch.autocast(x.device.type, enabled=False):  # differences of cosines need more digits than bfloat16 has
            loss, matched = info_nce(projected.float(), self.temperature)
        return loss, {"matched": matched}

    def show(self, network: VisionTransformer, x: Tensor, mask: Tensor | None) -> Drawn:
        """Both views of each example."""
        return Drawn(x[0::2], x[1::2], None, "Two views of an example, which the network learns to recognise as one.")


def info_nce(projected: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding the other view of an example among all other rows, by cosine similarity.

    Processes that share a batch compare their rows with those of all of them.

    Args:
        projected: (2 n, width); rows 2 i and 2 i + 1 are views of example i.
        temperature: divides the cosines.

    Returns:
        The mean loss, and the share of rows whose most similar row is the other view.
    """
    z = F.normalize(projected, dim=1)
    whole = gathered_with_gradients(z)  # (2 n processes, width)
    own = torch.arange(len(z), device=z.device) + rank() * len(z)
    logits = (z @ whole.T / temperature).scatter(1, own[:, None], -torch.inf)  # (2 n, 2 n processes)
    other = own ^ 1  # 1, 0, 3, 2, ...
    return F.cross_entropy(logits, other), (logits.detach().argmax(1) == other).float().mean()
