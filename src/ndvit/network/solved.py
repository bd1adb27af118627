"""Networks with fixed features, whose linear head training solves in closed form instead of descending."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class SolvedNetwork(nn.Module, ABC):
    """Fixed features of signals, standardised, and a linear head: (B, C, L) -> (B, outputs).

    Training computes the features of its examples once, see `training.closed_form`; before that, all outputs are 0.

    Args:
        features: number of features.
        outputs: outputs of the head.
    """

    channels: int
    length: int
    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.num_features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.head = nn.Linear(features, outputs)
        self.head.requires_grad_(False)  # solved, not trained by gradients
        self.reset_head()

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and samples of the input."""
        return self.channels, self.length

    @property
    def parts(self) -> list[Tensor]:
        """Indices of features that can be solved by themselves: the head may be the mean of the parts' solutions."""
        return [torch.arange(self.num_features)]

    @abstractmethod
    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, F) of signals (B, C, L); mask (B, L) is True where a value was observed."""

    def draw(self, x: Tensor, mask: Tensor | None, generator: torch.Generator) -> None:
        """Choose what is random about the features, from a few training examples."""

    @torch.no_grad()
    def reset_head(self) -> None:
        """Reset everything that training solves."""
        self.mean.zero_()
        self.scale.fill_(1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs). Arguments as in `features`."""
        features = self.features(x, mask)
        with exactly(x):
            return self.head((features - self.mean) * self.scale)


@contextmanager
def exactly(x: Tensor) -> Iterator[None]:
    """Switch off autocast on the device of x and, on a GPU, TF32, which cuDNN uses by default."""
    with ExitStack() as stack:
        if torch.amp.is_autocast_available(x.device.type):
            stack.enter_context(torch.autocast(x.device.type, enabled=False))
        if x.is_cuda:
            cudnn = torch.backends.cudnn
            stack.enter_context(cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, allow_tf32=False))
        yield
