"""Figures of the guided reading, drawn from tensors of a real forward pass."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def example_pictures(size: int = 64) -> Tensor:
    """The two photographs that scikit-learn ships, (2, 3, size, size), standardised by channel."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)).crop((106, 0, 533, 427)) for name in ("china.jpg", "flower.jpg")]
    x = torch.stack([torch.from_numpy(np.array(p.resize((size, size)))).permute(2, 0, 1) for p in photos]).float()
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def example_signals(count: int = 2) -> tuple[Tensor, list[str]]:
    """Signals of GunPoint, which aeon ships, (count, 1, 150), and their labels: 1 draws a gun, 2 points a finger."""
    from aeon.datasets import load_gunpoint

    x, labels = load_gunpoint(split="train")
    return torch.from_numpy(x[:count]).float(), list(labels[:count])


def _to_pixels(picture: Tensor) -> np.ndarray:
    picture = picture - picture.amin()
    return (picture / picture.amax()).permute(1, 2, 0).numpy()


def draw_patches(picture: Tensor, patch: int) -> Figure:
    """A picture (C, H, W) with the grid of its patches, and the patches in row-major order."""
    pixels = _to_pixels(picture)
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    figure = plt.figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots()
    axes.imshow(pixels)
    axes.set_xticks(np.arange(0, pixels.shape[1] + 1, patch) - 0.5, labels=[])
    axes.set_yticks(np.arange(0, pixels.shape[0] + 1, patch) - 0.5, labels=[])
    axes.grid(color="white", linewidth=1)
    axes.tick_params(length=0)
    left.suptitle(f"{pixels.shape[0]} x {pixels.shape[1]} pixels")
    for at, small in enumerate(right.subplots(rows, columns).flat):
        row, column = divmod(at, columns)
        small.imshow(pixels[row * patch :, column * patch :][:patch, :patch], vmin=0, vmax=1)
        small.set_title(str(at), fontsize=7, pad=1)
        small.axis("off")
    right.suptitle(f"{rows * columns} patches")
    plt.close(figure)
    return figure


def draw_signal_patches(signal: Tensor, patch: int) -> Figure:
    """A signal (C, L), cut into patches."""
    figure, axes = plt.subplots(figsize=(7, 2), layout="constrained")
    for at in range(signal.shape[1] // patch):
        if at % 2:
            axes.axvspan(at * patch, (at + 1) * patch, color="0.93")
        axes.text((at + 0.5) * patch, float(signal.max()) * 1.15, at, ha="center", fontsize=7)
    axes.plot(signal.T.numpy(), linewidth=1.2)
    axes.set_xlim(0, signal.shape[1])
    axes.set_xlabel(f"sample; {signal.shape[1] // patch} patches of {patch}")
    plt.close(figure)
    return figure


def draw_tokens(tokens: Tensor, prefix: Sequence[str] = ("class",)) -> Figure:
    """Tokens (T, D) as a heat map, a row for each."""
    figure, axes = plt.subplots(figsize=(7, 0.16 * len(tokens) + 0.8), layout="constrained")
    tokens = tokens.detach()
    limit = float(tokens.abs().quantile(0.99))
    image = axes.imshow(tokens.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(tokens)), [*prefix, *map(str, range(len(tokens) - len(prefix)))], fontsize=6)
    axes.set_ylabel("token")
    axes.set_xlabel("channel of the token")
    figure.colorbar(image, ax=axes, shrink=0.8)
    plt.close(figure)
    return figure


def draw_similarity(positions: Tensor, grid: Sequence[int], places: Sequence[int]) -> Figure:
    """Cosine similarity of the position embeddings (N, D) of some places with those of all places of a 2-D grid."""
    unit = torch.nn.functional.normalize(positions, dim=1)
    figure, axes = plt.subplots(1, len(places), figsize=(7, 2.1), layout="constrained")
    for one, place in zip(axes, places):
        image = one.imshow((unit @ unit[place]).detach().reshape(*grid), vmin=-1, vmax=1, cmap="RdBu_r")
        one.set_title(f"with place {place}")
        one.axis("off")
    figure.colorbar(image, ax=axes, shrink=0.8)
    plt.close(figure)
    return figure


def draw_attention(weights: Tensor) -> Figure:
    """Attention weights (heads, T, T), one map for each head."""
    figure, axes = plt.subplots(1, len(weights), figsize=(7, 2.2), layout="constrained", sharey=True)
    for head, (one, values) in enumerate(zip(np.atleast_1d(axes), weights)):
        image = one.imshow(values.detach(), cmap="viridis", vmin=0)
        one.set_title(f"head {head}")
        one.set_xlabel("key")
    np.atleast_1d(axes)[0].set_ylabel("query")
    figure.colorbar(image, ax=axes, shrink=0.8)
    plt.close(figure)
    return figure


def draw_class_attention(picture: Tensor, weights: Tensor, grid: Sequence[int]) -> Figure:
    """How much the class token attends to each patch: weights (heads, T, T), mean over heads, over the picture."""
    pixels = _to_pixels(picture)
    seen = weights.mean(0)[0, -math.prod(grid) :].detach().reshape(*grid).numpy()
    figure, axes = plt.subplots(1, 2, figsize=(5, 2.4), layout="constrained")
    axes[0].imshow(pixels)
    axes[1].imshow(pixels)
    axes[1].imshow(seen, alpha=0.6, extent=(0, pixels.shape[1], pixels.shape[0], 0), cmap="magma")
    for one in axes:
        one.axis("off")
    plt.close(figure)
    return figure


def draw_encoder(blocks: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """Similarity of all tokens with each other (T, D) at several depths."""
    figure, axes = plt.subplots(1, len(blocks), figsize=(7, 2.1), layout="constrained")
    for one, tokens, name in zip(axes, blocks, names):
        unit = torch.nn.functional.normalize(tokens.detach(), dim=1)
        image = one.imshow(unit @ unit.T, vmin=-1, vmax=1, cmap="RdBu_r")
        one.set_title(name)
        one.axis("off")
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
    plt.close(figure)
    return figure


def draw_head(probabilities: Tensor, classes: Sequence[str], truth: Sequence[str]) -> Figure:
    """Probabilities (B, classes) of some examples, with the true class."""
    figure, axes = plt.subplots(1, len(probabilities), figsize=(7, 1.8), layout="constrained", sharey=True)
    for one, row, true in zip(axes, probabilities, truth):
        one.bar(range(len(classes)), row.detach(), color=["#1f5f99" if c == true else "0.75" for c in classes])
        one.set_xticks(range(len(classes)), classes, fontsize=7)
        one.set_title(f"true: {true}", fontsize=8)
    axes[0].set_ylabel("probability")
    plt.close(figure)
    return figure


def draw_curve(curves: dict[str, Sequence[float]], label: str) -> Figure:
    """Curves over training steps."""
    figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
    for name, values in curves.items():
        axes.plot(values, label=name, linewidth=1.2)
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    if len(curves) > 1:
        axes.legend(frameon=False)
    plt.close(figure)
    return figure


def draw_bars(values: dict[str, float], label: str, unit: str = "") -> Figure:
    """Horizontal bars with their numbers."""
    figure, axes = plt.subplots(figsize=(6.5, 0.32 * len(values) + 0.7), layout="constrained")
    bars = axes.barh(list(values), list(values.values()), color="#1f5f99")
    axes.bar_label(bars, [f"{value:.1f}{unit}" for value in values.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.12)
    plt.close(figure)
    return figure


def draw_stages(stages: Sequence[tuple[str, str]]) -> Figure:
    """A chain of boxes: name and shape of each stage."""
    figure, axes = plt.subplots(figsize=(7.2, 1.15), layout="constrained")
    width = 1 / len(stages)
    for at, (name, shape) in enumerate(stages):
        axes.text((at + 0.5) * width, 0.66, name, ha="center", va="center", fontsize=8.5, weight="bold",
                  bbox={"boxstyle": "round,pad=0.45", "facecolor": "#e3eefb", "edgecolor": "#1f5f99"})  # fmt: skip
        axes.text((at + 0.5) * width, 0.16, shape, ha="center", va="center", fontsize=8, family="monospace")
        if at:
            axes.annotate("", (at * width + 0.022, 0.66), (at * width - 0.022, 0.66), arrowprops={"arrowstyle": "->"})
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    plt.close(figure)
    return figure


def measured(name: str) -> Any:
    """A table of results in docs/, such as "signals/results.csv", as a pandas frame."""
    import pandas as pd

    return pd.read_csv(Path(__file__).parents[1] / name)
