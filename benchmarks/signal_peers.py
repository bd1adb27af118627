"""The convolutional networks that ours is compared with, trained by our own loop under the recipe of our own preset."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndvit.config import named_config, plan_strides
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.sources.load import fit_preprocess, load_examples, load_source
from ndvit.inference.batches import predict_probabilities
from ndvit.network.stems.convolutional import ConvStem
from ndvit.training.fit import fit
from ndvit.training.plan import split_options
from ndvit.training.presets import PRESETS, choose

Body = Callable[[int, int], nn.Module]  # channels, time -> a module: signals (B, channels, time) to (B, width, places)


def as_source(X: np.ndarray, y: np.ndarray) -> Source:
    """Training data whose class i is the i-th of the sorted labels."""
    codes = np.unique(y, return_inverse=True)[1]
    return load_source((X, codes), test_fraction=0, progress=False)


def preset_recipe(preset: str, data: Source, **changes: Any) -> Recipe:
    """The recipe that a preset means for this data, without what it says of our network."""
    return split_options(choose(preset, data, None, {"val_fraction": 0.0, **changes}).options)[0]


@dataclass(frozen=True)
class PeerConfig:
    """What the loop asks of a network's config."""

    num_classes: int
    embed_dim: int
    depth: int = 0
    distilled: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Peer(nn.Module):
    """A convolutional network, the mean over time and a linear head, with what the loop asks of any network.

    Missing values stand interpolated in x; the mask is not looked at, as these networks have no use for one.
    """

    load_report = rocket = None
    temperature = 1.0
    grad_checkpointing = False

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.config = PeerConfig(classes, width)
        self.body = body
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.body(x).mean(2))  # (B, classes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups: weights decay, norms and biases do not, as with ours."""
        named = list(self.named_parameters())
        parts = [(decay, [p for _, p in named if (p.ndim > 1) == decay]) for decay in (True, False)]
        return [{"depth": 0, "decay": decay, "params": params} for decay, params in parts]


class PeerClassifier:
    """A peer behind `fit` and `predict_proba`, under the preset `signal`'s recipe: steps, augmentation and so on.

    Args:
        body: makes the network below the pooling.
        width: of its features.
        seed: of weights, order and augmentation.
        steps: instead of the preset's.
    """

    def __init__(self, body: Body, width: int, seed: int, steps: int | None = None) -> None:
        self.body, self.width, self.seed, self.steps = body, width, seed, steps

    def fit(self, X: np.ndarray, y: np.ndarray) -> "PeerClassifier":
        data = as_source(X, y)
        changes = {} if self.steps is None else {"steps": self.steps}
        recipe = preset_recipe("signal", data, seed=self.seed, device="cpu", **changes)
        self.classes_ = np.unique(y)
        self.preprocess_ = fit_preprocess(data)
        torch.manual_seed(self.seed)
        self.model_ = Peer(self.body(*X.shape[1:]), self.width, len(self.classes_))
        inputs = Inputs(data.train, self.preprocess_)
        self.n_iter_ = fit(self.model_, inputs, None, recipe, None, progress=False).steps  # type: ignore[arg-type]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        inputs = Inputs(load_examples(X)[1], self.preprocess_)
        return predict_probabilities(self.model_, inputs)  # type: ignore[arg-type]


def convolution(before: int, after: int, kernel: int, bias: bool = True) -> nn.Module:
    """A convolution that keeps the length; for an even kernel the odd one of the padding stands at the end."""
    padding = nn.ConstantPad1d(((kernel - 1) // 2, kernel // 2), 0.0)
    return nn.Sequential(padding, nn.Conv1d(before, after, kernel, bias=bias))


class ResidualBlock(nn.Module):
    """Convolutions of 8, 5 and 3 with BatchNorm, and a shortcut around them: (B, before, L) -> (B, after, L)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for kernel, channels in ((8, before), (5, after), (3, after)):
            parts += [convolution(channels, after, kernel), nn.BatchNorm1d(after), nn.ReLU()]
        self.convolutions = nn.Sequential(*parts[:-1])  # the last ReLU follows the sum
        project = [nn.Conv1d(before, after, 1)] if before != after else []
        self.shortcut = nn.Sequential(*project, nn.BatchNorm1d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.shortcut(x))


def resnet(channels: int, time: int) -> nn.Module:
    """ResNet for time series ("Time series classification from scratch", Wang et al., 2017): 128 features."""
    return nn.Sequential(ResidualBlock(channels, 64), ResidualBlock(64, 128), ResidualBlock(128, 128))


class InceptionModule(nn.Module):
    """Convolutions of 40, 20 and 10 behind a bottleneck, beside a maximum: (B, before, L) -> (B, 128, L)."""

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
    """Three modules with a shortcut around them: (B, before, L) -> (B, 128, L)."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.modules_inside = nn.Sequential(*(InceptionModule(c) for c in (before, 128, 128)))
        self.shortcut = nn.Sequential(nn.Conv1d(before, 128, 1, bias=False), nn.BatchNorm1d(128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.modules_inside(x) + self.shortcut(x))


def inceptiontime(channels: int, time: int) -> nn.Module:
    """One of InceptionTime's five networks (Ismail Fawaz et al., 2020): 128 features."""
    return nn.Sequential(InceptionGroup(channels), InceptionGroup(128))


def our_stem(channels: int, time: int) -> nn.Module:
    """The stem of the preset `signal`'s network, which the transformer is left out of: 96 features."""
    named = named_config(PRESETS["signal"].model)
    strides = plan_strides((time,), len(named.stem_depths))
    size = math.prod(strides) * math.ceil(time / math.prod(strides))
    return ConvStem(replace(named, in_channels=channels, input_size=(size,), patch_size=(1,), stem_strides=strides))
