"""Features of the level and the spread of signals, which the other solved networks hardly see."""

import torch
from torch import Tensor

from ndvit.network.solved import SolvedNetwork, exactly

KNOTS = 7  # quantiles of a statistic from which on it may count otherwise
_LEAST_VARIANCE = 1e-6  # of inputs that are standardised over the data set


class LevelFeatures(SolvedNetwork):
    """Level and spread of each channel, and a linear head that is solved in closed form: (B, C, L) -> (B, outputs).

    The kernels of random convolutions sum to zero, and a frozen encoder standardises what it reads, so neither tells a
    warm sensor from a cold one. The level is the mean of the observed values of a channel, the spread the logarithm of
    their standard deviation. Of each there are eight features: itself, and its excess over each of seven quantiles of
    the training examples, so that the outputs are piecewise linear in it.

    Args:
        channels: channels of the signal.
        length: samples of the signal.
        outputs: outputs of the head.
    """

    knots: Tensor
    limits: Tensor

    def __init__(self, channels: int, length: int, outputs: int) -> None:
        super().__init__(2 * channels * (1 + KNOTS), outputs)
        self.channels, self.length = channels, length
        self.register_buffer("knots", torch.zeros(2 * channels, KNOTS))
        self.register_buffer("limits", torch.zeros(2, 2 * channels))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Reset everything that `draw` chooses and training solves."""
        self.knots.zero_()
        self.limits.copy_(torch.tensor([[-torch.inf], [torch.inf]]).expand(2, 2 * self.channels))
        self.reset_head()

    @torch.no_grad()
    def draw(self, x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        """Choose quantiles and limits: a statistic further from the training examples than their range is limited."""
        found = self.statistics(x, mask)
        shares = torch.arange(1, KNOTS + 1, device=found.device) / (KNOTS + 1)
        self.knots.copy_(torch.quantile(found, shares.to(found), dim=0).mT)
        least, largest = found.amin(0), found.amax(0)
        self.limits.copy_(torch.stack([2 * least - largest, 2 * largest - least]))

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, F) of signals (B, C, L); mask (B, L) is True where a value was observed."""
        with exactly(x):
            return self.plain_features(x.to(self.knots), mask)

    def plain_features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`features` without contexts, as an exported graph computes them."""
        found = self.statistics(x, mask).clamp(self.limits[0], self.limits[1])[:, :, None]
        return torch.cat([found, (found - self.knots).clamp(min=0)], 2).flatten(1)

    def statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Level and spread of each channel of signals (B, C, L): (B, 2 C)."""
        if mask is None:
            mean = x.mean(2)
            variance = (x - mean[:, :, None]).square().mean(2)
        else:
            observed = mask[:, None].to(x)  # (B, 1, L)
            count = observed.sum(2).clamp(min=1)
            mean = (x * observed).sum(2) / count
            variance = ((x - mean[:, :, None]).square() * observed).sum(2) / count
        return torch.cat([mean, (variance + _LEAST_VARIANCE).log() / 2], 1)
