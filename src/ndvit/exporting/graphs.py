"""Networks as they are exported: a frozen copy, and everything that goes into the graph with it."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndvit.exporting.formats import Inputs
from ndvit.exporting.runtimes import GraphOptions, Runtime, standardisation
from ndvit.network.committee import transformers
from ndvit.network.random_convolutions import KERNELS, TAPS, RandomConvolutions
from ndvit.parts import ModelParts


def frozen_copy(model: ModelParts) -> nn.Module:
    """A copy of the model's network for inference, which computes only the tokens that its heads read.

    Raises:
        ValueError: if the network is an exported or compiled one.
    """
    if isinstance(model.network, Runtime):
        raise ValueError(f"{model.network.name} runs without weights: export or compile the trained model instead")
    network = copy.deepcopy(model.network).eval().requires_grad_(False)
    for transformer in transformers(network):
        transformer.skip_unread_tokens = True
    return network


class Deployed(nn.Module):
    """The module that is exported: a copy of the network on the CPU in float32, with the operations that `options` add.

    It maps (B, C, *size) to (B, outputs). The model itself does not change.
    """

    def __init__(self, model: ModelParts, options: GraphOptions) -> None:
        super().__init__()
        self.network = frozen_copy(model).cpu().float()
        for name, module in list(self.named_modules()):
            if isinstance(module, RandomConvolutions):
                self.set_submodule(name, PlainRandomConvolutions(module))
        self.softmax, self.inside, self.mask = options.softmax, options.inside, options.mask
        self.temperature = model.temperature
        self.input_shape = (model.config.in_channels, *model.config.input_size)
        if options.inside:
            mean, std = standardisation(model.preprocess)
            self.register_buffer("mean", mean.float())
            self.register_buffer("std", std.float())
        self.eval()

    mean: Tensor
    std: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs, or probabilities with `softmax`."""
        if self.inside:
            x = (x - self.mean) / self.std
        outputs: Tensor = self.network(x, mask)
        return (outputs / self.temperature).softmax(1) if self.softmax else outputs

    def example_inputs(self, dynamic: bool) -> Inputs:
        """Inputs to trace the graph with: one example, or two if it accepts any number."""
        x = torch.zeros(2 if dynamic else 1, *self.input_shape)
        return (x, torch.ones_like(x[:, 0], dtype=torch.bool)) if self.mask else (x,)


class PlainRandomConvolutions(nn.Module):
    """`RandomConvolutions` in few operations that every format has: all biases of a convolution at once.

    Biases that count the whole output come before those that leave out its edges. The features therefore have another
    order, and the tensors that read them are reordered alike.
    """

    def __init__(self, source: RandomConvolutions) -> None:
        super().__init__()
        self.parts: list[tuple[int, int, list[int]]] = []  # (0 signal or 1 differences, dilation, biases of each group)
        order, start = [], 0
        for differences, plan in enumerate(source.plans):
            for dilation, count in plan:
                groups = [list(range(start, start + count, 2)), list(range(start + 1, start + count, 2))]
                self.parts.append((differences, dilation, [len(group) for group in groups]))
                order += groups[0] + groups[1]
                start += count
        weights = source.chosen[:, :, :, None] * source.kernels[None, :, None]  # (parts, 84, C, 9)
        tensors = {"weights": weights, "biases": source.biases.view(-1, KERNELS, 1)[order]}
        tensors |= {name: getattr(source, name).view(-1, KERNELS)[order].flatten() for name in ("mean", "scale")}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.head = source.head
        self.head.weight.data = source.head.weight.data.unflatten(1, (-1, KERNELS))[:, order].flatten(1)

    weights: Tensor
    biases: Tensor
    mean: Tensor
    scale: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs) of signals (B, C, L)."""
        both = (x, mask), (x[:, :, 1:] - x[:, :, :-1], None if mask is None else mask[:, 1:] & mask[:, :-1])
        shares, start = [], 0
        for part, (differences, dilation, groups) in enumerate(self.parts):
            values, observed = both[differences]
            edge, length = TAPS // 2 * dilation, values.shape[2]
            outputs = F.conv1d(values, self.weights[part], padding=edge, dilation=dilation)[:, None]  # (B, 1, 84, L)
            for inner, count in enumerate(groups):
                places = slice(edge, length - edge) if inner and length > 2 * edge else slice(None)
                above = outputs[..., places] > self.biases[start : start + count]  # (B, count, 84, L)
                share = above.to(values.dtype)
                if observed is None:
                    share = share.mean(3)
                else:
                    weight = observed[:, None, None, places].to(values.dtype)  # (B, 1, 1, L)
                    share = (share * weight).sum(3) / weight.sum(3).clamp(min=1)
                shares.append(share.flatten(1))
                start += count
        return self.head((torch.cat(shares, dim=1) - self.mean) * self.scale)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings about optional packages and coming changes."""
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)
