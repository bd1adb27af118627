"""Distillation: a convolutional network teaches a Vision Transformer, for signals and for images.

`python examples/distil_cnn.py` trains a plain transformer and a convolutional network on GunPoint. Then it trains a
second transformer that also learns from the outputs of the convolutional network, through a distillation token
("Training data-efficient image transformers & distillation through attention", 2021). `--images` uses 200 images of
handwritten digits instead. For your own module you only need the argument `teacher=`.

The data sets are small, and the default of 80 steps shows the way, not the gain: no network is trained out by then.
`--steps 400` takes some minutes. The convolutional network is then better than the transformer, and the gain from
distillation is about one or two points, which is no more than the effect of another seed.
"""

from pathlib import Path

import numpy as np
import torch
from aeon.datasets import load_gunpoint
from cyclopts import run
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ndvit import ViTClassifier


def make_cnn(channels: int, classes: int, axes: int) -> nn.Module:
    """A plain network of three convolutions for signals (1 axis) or images (2 axes)."""
    convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv2d, nn.BatchNorm2d)
    layers: list[nn.Module] = []
    for width, kernel in ((32, 7), (64, 5), (64, 3)):
        layers += [convolution(channels, width, kernel, padding="same"), norm(width), nn.ReLU()]
        channels = width
    pool = nn.AdaptiveAvgPool1d(1) if axes == 1 else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels, classes))


def train_cnn(cnn: nn.Module, x: Tensor, labels: Tensor, steps: int) -> None:
    """Train with Adam on random batches of 32, and switch to evaluation mode."""
    optimizer = torch.optim.Adam(cnn.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randperm(len(x))[:32]
        loss = nn.functional.cross_entropy(cnn(x[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cnn.eval()


def main(steps: int = 80, images: bool = False, output: Path = Path("runs/distil-cnn")) -> None:
    """Compare a transformer alone, a convolutional network, and a transformer distilled from it.

    Args:
        steps: optimizer steps of each of the three trainings.
        images: use handwritten digits instead of signals.
        output: folder for the distilled transformer, `distilled.safetensors`.
    """
    if images:
        pictures, digits = load_digits(return_X_y=True)
        arrays = pictures.reshape(-1, 1, 8, 8), digits  # an image is an array (channels, height, width)
        X, X_test, y, y_test = train_test_split(*arrays, train_size=200, stratify=digits, random_state=0)
    else:
        X, y = load_gunpoint(split="train")
        X_test, y_test = load_gunpoint(split="test")

    alone = ViTClassifier("basic", steps=steps, random_state=0).fit(X, y)

    # The teacher gets the standardised inputs of its student, so it is trained on them. The order of its outputs is
    # that of the sorted labels, as for the student.
    preprocess = alone.model_.preprocess
    x, x_test = (torch.stack([preprocess.masked(example)[0] for example in part]) for part in (X, X_test))
    torch.manual_seed(0)
    cnn = make_cnn(x.shape[1], len(alone.classes_), axes=x.ndim - 2)
    train_cnn(cnn, x, torch.from_numpy(np.searchsorted(alone.classes_, y)), steps)
    with torch.no_grad():
        predicted = alone.classes_[cnn(x_test).argmax(1).numpy()]

    token = {"distilled": True, "distillation": "soft"}  # "hard": only the teacher's classes
    taught = ViTClassifier("basic", teacher=cnn, steps=steps, random_state=0, options=token).fit(X, y)

    kind = "images" if images else "signals"
    print(f"{len(X)} training {kind}, {len(X_test)} test {kind}, {steps} steps each")
    print(f"transformer alone          {alone.score(X_test, y_test):.1%}")
    print(f"convolutional network      {np.mean(predicted == y_test):.1%}")
    print(f"distilled transformer      {taught.score(X_test, y_test):.1%}")

    output.mkdir(parents=True, exist_ok=True)
    taught.save(output / "distilled.safetensors")
    print(f"saved: {output / 'distilled.safetensors'}; it predicts without the teacher")


if __name__ == "__main__":
    run(main)
