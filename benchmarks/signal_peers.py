"""Convolutional networks for comparison, trained by ndvit's loop with the recipe of its preset `signal`."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndvit import Model, VisionTransformer, ViTConfig
from ndvit.config import named_config, plan_strides
from ndvit.config.options import split_options
from ndvit.config.presets import PRESETS
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources.load import load_examples, load_source
from ndvit.inference.batches import predict_answers
from ndvit.network.stems.convolutional import ConvStem
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from ndvit.training.presets import choose

Body = Callable[
    [int, int], nn.Module
]  # (channels, time) -> a module that maps (B, channels, time) to (B, width, positions)


def as_source(X: np.ndarray, y: np.ndarray) -> Source:
    """Make a source of training data; class i is the i-th of the sorted labels."""
    codes = np.unique(y, return_inverse=True)[1]
    return load_source((X, codes), test_fraction=0, progress=False)


def preset_recipe(preset: str, data: Source, **changes: Any) -> Recipe:
    """The recipe of a preset for this data, without the options of the network."""
    return split_options(choose(preset, data, None, {"val_fraction": 0.0, **changes}).options)[0]


class Peer(VisionTransformer):
    """A convolutional network, the mean over time and a linear head.

    It is a `VisionTransformer` for ndvit's training loop only, which trains nothing else: it has none of its layers,
    and its config holds the input, the width and the number of classes. Missing values in x are interpolated. The mask
    is ignored, because these networks have no masks.
    """

    def __init__(self, body: nn.Module, channels: int, time: int, width: int, classes: int) -> None:
        nn.Module.__init__(self)
        size: Any = {"input_size": (time,), "patch_size": (1,), "in_channels": channels, "num_classes": classes}
        self.config = ViTConfig(**size, embed_dim=width, num_heads=1)
        self.grad_checkpointing = False
        self.body = body
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.body(x).mean(2))  # (B, classes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups: weights with weight decay; norms and biases without, as in ndvit."""
        named = list(self.named_parameters())
        parts = [(decay, [p for _, p in named if (p.ndim > 1) == decay]) for decay in (True, False)]
        return [{"depth": 0, "decay": decay, "params": params} for decay, params in parts]


class PeerClassifier:
    """A `Peer` with `fit` and `predict_proba`, trained with the recipe of the preset `signal`.

    Args:
        body: makes the network before the pooling.
        width: number of its features.
        seed: seed of weights, order and augmentation.
        steps: optimizer steps; by default those of the preset.
    """

    def __init__(self, body: Body, width: int, seed: int, steps: int | None = None) -> None:
        self.body, self.width, self.seed, self.steps = body, width, seed, steps

    def fit(self, X: np.ndarray, y: np.ndarray) -> "PeerClassifier":
        data = as_source(X, y)
        options: dict[str, Any] = {"val_fraction": 0.0, "seed": self.seed, "device": "cpu"}
        options |= {} if self.steps is None else {"steps": self.steps}
        # The plan of a small network, of which the recipe and the augmentation are kept.
        planned = plan(Request(source=data, preset="signal", model="vit_pico", options=options, progress=False))
        self.classes_ = np.unique(y)
        preprocess = fit_preprocess(data)
        torch.manual_seed(self.seed)
        network = Peer(self.body(*X.shape[1:]), *X.shape[1:], self.width, len(self.classes_))
        planned = replace(planned, preprocess=preprocess, first=Model(network, data.task, preprocess))
        trained = fit(planned, progress=False, log=lambda line: None)
        self.model_, self.n_iter_ = trained.model, trained.fit.steps
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        assert self.model_.preprocess is not None
        return predict_answers(self.model_, Inputs(load_examples(X).examples, self.model_.preprocess), device="cpu")


def convolution(before: int, after: int, kernel: int, bias: bool = True) -> nn.Module:
    """A convolution that keeps the length. For an even kernel, the additional padding is at the end."""
    padding = nn.ConstantPad1d(((kernel - 1) // 2, kernel // 2), 0.0)
    return nn.Sequential(padding, nn.Conv1d(before, after, kernel, bias=bias))


class ResidualBlock(nn.Module):
    """Convolutions with kernels 8, 5 and 3, BatchNorm, and a shortcut: (B, before, L) -> (B, after, L)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for kernel, channels in ((8, before), (5, after), (3, after)):
            parts += [convolution(channels, after, kernel), nn.BatchNorm1d(after), nn.ReLU()]
        self.convolutions = nn.Sequential(*parts[:-1])  # the last ReLU is applied after the sum
        project = [nn.Conv1d(before, after, 1)] if before != after else []
        self.shortcut = nn.Sequential(*project, nn.BatchNorm1d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.shortcut(x))


def resnet(channels: int, time: int) -> nn.Module:
    """ResNet for time series ("Time series classification from scratch", Wang et al., 2017): 128 features."""
    return nn.Sequential(ResidualBlock(channels, 64), ResidualBlock(64, 128), ResidualBlock(128, 128))


class InceptionModule(nn.Module):
    """Convolutions with kernels 40, 20 and 10 after a bottleneck, and max pooling: (B, before, L) -> (B, 128, L)."""

    def __init__(self, before: int, filters: int = 32) -> None:
        super().__init__()
        narrow = before > 1
        self.bottleneck = nn.Conv1d(before, filters, 1, bias=False) if narrow else nn.Identity()
        inside = filters if narrow else before
        self.branches = nn.ModuleList(convolution(inside, filters, kernel, bias=False) for kernel in (40, 20, 10))
        self.maximum = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(before, filters, 1, bias=False))
        self.norm = nn.BatchNorm1d(4 * filters)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bottleneck(x)
        parts = [branch(inside) for branch in self.branches]
        return torch.relu(self.norm(torch.cat([*parts, self.maximum(x)], dim=1)))


class InceptionGroup(nn.Module):
    """Three modules and a shortcut: (B, before, L) -> (B, 128, L)."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.modules_inside = nn.Sequential(*(InceptionModule(c) for c in (before, 128, 128)))
        self.shortcut = nn.Sequential(nn.Conv1d(before, 128, 1, bias=False), nn.BatchNorm1d(128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.modules_inside(x) + self.shortcut(x))


def inceptiontime(channels: int, time: int) -> nn.Module:
    """One of the five networks of InceptionTime (Ismail Fawaz et al., 2020): 128 features."""
    return nn.Sequential(InceptionGroup(channels), InceptionGroup(128))


def our_stem(channels: int, time: int) -> nn.Module:
    """The stem of the network of the preset `signal`, without the transformer: 96 features."""
    named = named_config(PRESETS["signal"].model)
    strides = plan_strides((time,), len(named.stem_depths))
    size = math.prod(strides) * math.ceil(time / math.prod(strides))
    return ConvStem(replace(named, in_channels=channels, input_size=(size,), patch_size=(1,), stem_strides=strides))
