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
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.level_features import LevelFeatures
from ndvit.network.random_convolutions import KERNELS, TAPS, RandomConvolutions
from ndvit.parts import ModelParts
from ndvit.tasks import Classification


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
            elif isinstance(module, EncoderFeatures | LevelFeatures):
                self.set_submodule(name, PlainSolved(module))
        self.softmax, self.inside, self.mask = options.softmax, options.inside, options.mask
        self.temperature = model.temperature
        self.activate = (model.task or Classification(())).activate
        self.input_shape = model.input_shape
        if options.inside:
            mean, std = standardisation(model.preprocess)
            self.register_buffer("mean", mean.float())
            self.register_buffer("std", std.float())
            assert model.preprocess is not None
            used = torch.ones_like(std, dtype=torch.bool)
            used[:, list(model.preprocess.unused_channels)] = False
            self.register_buffer("used", None if used.all() else used)
        self.eval()

    mean: Tensor
    std: Tensor
    used: Tensor | None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs, or probabilities with `softmax`."""
        if self.inside:
            x = (x - self.mean) / self.std
            if self.used is not None:  # unused channels hold their mean, whatever they have
                x = torch.where(self.used, x, torch.zeros_like(x))
        outputs: Tensor = self.network(x, mask)
        return self.activate(outputs / self.temperature) if self.softmax else outputs

    def example_inputs(self, dynamic: bool) -> Inputs:
        """Inputs to trace the graph with: one example, or two if it accepts any number."""
        x = torch.zeros(2 if dynamic else 1, *self.input_shape)
        return (x, torch.ones_like(x[:, 0], dtype=torch.bool)) if self.mask else (x,)


class PlainRandomConvolutions(nn.Module):
    """`RandomConvolutions` in as few operations as every format has: seven for each dilation, with or without a mask.

    The time to trace, translate and optimise a graph grows with their number. All biases of a dilation are compared at
    once. Every other one counts the places of the output that do not depend on padding only: `places` are 1 where a
    kind of bias counts, and 0 elsewhere. Its first row is for biases that count all places.
    """

    def __init__(self, source: RandomConvolutions) -> None:
        super().__init__()
        self.dilations: list[tuple[int, int]] = []  # (0 signal or 1 differences, dilation) of each part
        self.kinds: list[list[int]] = [[], []]  # row in `places` of every bias, for the signal and for the differences
        start = 0
        for differences, plan in enumerate(source.plans):
            length = source.length - differences
            places = torch.ones(1 + len(plan), length)
            for row, (dilation, count) in enumerate(plan, 1):
                edge = TAPS // 2 * dilation
                if length > 2 * edge:
                    places[row, :edge] = places[row, length - edge :] = 0
                number = len(self.dilations)
                kinds = [row if i % 2 else 0 for i in range(count)]
                biases = source.biases[start : start + KERNELS * count].view(count, KERNELS, 1)
                self.register_buffer(f"weight_{number}", source.chosen[number, :, :, None] * source.kernels[:, None])
                self.register_buffer(f"biases_{number}", biases)
                self.register_buffer(f"kinds_{number}", torch.tensor(kinds))
                self.dilations.append((differences, dilation))
                self.kinds[differences] += kinds
                start += KERNELS * count
            self.register_buffer(f"places_{differences}", places[:, None])  # (kinds, 1, L)
            self.register_buffer(f"all_kinds_{differences}", torch.tensor(self.kinds[differences]))
        for name, tensor in {"mean": source.mean, "scale": source.scale}.items():
            self.register_buffer(name, tensor)
        self.head = source.head

    places_0: Tensor
    places_1: Tensor
    mean: Tensor
    scale: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs) of signals (B, C, L)."""
        inputs = [x, x[:, :, 1:] - x[:, :, :-1]]
        counted = [self.places_0[None], self.places_1[None]]  # (1, kinds, 1, L)
        if mask is not None:
            observed = [mask, mask[:, 1:] & mask[:, :-1]]
            counted = [mine[:, None, None].to(x.dtype) * places for mine, places in zip(observed, counted)]
        numbers = [
            places.sum(3).clamp(min=1).index_select(1, getattr(self, f"all_kinds_{i}"))  # (B, biases, 1)
            for i, places in enumerate(counted)
        ]
        sums = []
        for number, (differences, dilation) in enumerate(self.dilations):
            weight, biases, kinds = (getattr(self, f"{name}_{number}") for name in ("weight", "biases", "kinds"))
            outputs = F.conv1d(inputs[differences], weight, padding=TAPS // 2 * dilation, dilation=dilation)
            above = (outputs.unsqueeze(1) > biases).to(x.dtype)  # (B, biases, 84, L)
            sums.append((above * counted[differences].index_select(1, kinds)).sum(3))  # (B, biases, 84)
        shares = torch.cat(sums, dim=1) / torch.cat(numbers, dim=1)
        return self.head((shares.flatten(1) - self.mean) * self.scale)


class PlainSolved(nn.Module):
    """`EncoderFeatures` or `LevelFeatures` for any number of examples at once, without contexts."""

    def __init__(self, source: EncoderFeatures | LevelFeatures) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outputs (B, outputs) of signals (B, C, L)."""
        features = self.source.plain_features(x, mask)
        return self.source.head((features - self.source.mean) * self.source.scale)


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
