"""BatchNorm over the whole batch that several processes share.

torch.nn.SyncBatchNorm does so on GPUs only; this does it on every device, with the names of BatchNorm, so that model
files stay the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ndvit.processes import gathered_with_gradients, size


@contextmanager
def synchronised(network: nn.Module) -> Iterator[None]:
    """Inside the context, every BatchNorm of a network computes its statistics over the examples of all processes."""
    norms = [] if size() == 1 else [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [type(norm) for norm in norms]
    for norm in norms:
        norm.__class__ = _Synchronised
    try:
        yield
    finally:
        for norm, kind in zip(norms, before):
            norm.__class__ = kind


class _Synchronised(_BatchNorm):
    """BatchNorm in training mode over equally many rows (B, C, *size) of each process."""

    def _check_input_dim(self, input: Tensor) -> None:
        """BatchNorm of any number of dimensions takes this place."""

    @torch.compiler.disable  # a compiled graph takes no collectives with gradients
    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel by the mean and the variance over all rows and places."""
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        x = input.float()
        axes = [0, *range(2, x.ndim)]
        own = torch.stack(torch.var_mean(x, axes, correction=0))  # (2, C): variance and mean
        variances, means = gathered_with_gradients(own[None]).unbind(1)  # (processes, C)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * size())
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        if self.bias is not None:
            shift = shift + self.bias
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics as BatchNorm does, by the variance without bias."""
        if self.running_mean is None or self.running_var is None:
            return
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if share is None else share
        share = 0.0 if share is None else share
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / max(1, count - 1)).to(self.running_var), share)
