"""The closed-form part of training: ridge regression on random convolution features, calibrated by leaving one out."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.data.loading import Inputs
from ndvit.network.random_convolutions import Rocket

MOST_EXAMPLES = 4096  # solving costs the cube of their number; with more of them the network knows better anyway
_MOST_DRAWN_ON = 512  # examples that biases are drawn on
_MOST_VALUES = 2**26  # in them
_PENALTIES = np.logspace(-6, 1, 15)  # relative to the mean of the kernel's diagonal
_SHARPNESS = np.logspace(-0.5, 1, 13)


def solve_rocket(
    rocket: Rocket, inputs: Inputs, seed: int, class_weight: Tensor | None = None, workers: int | None = None
) -> dict[str, float]:
    """Draw the kernels' biases and solve the linear head, on training examples as they are, without augmentation.

    Ridge regression on targets of -1 and 1, as ROCKET's authors do it. The penalty, and the factor that makes its
    scores logits, are those under which the solution without an example gives it the least log loss, on average: one
    eigendecomposition tells ("Notes on Regularized Least Squares", Rifkin & Lippert, 2007). So its probabilities mean
    what they say, though it may fit the training set exactly.

    Args:
        rocket: is changed in place.
        inputs: training examples; of more than 4,096, that many are drawn, of each class its share and two at least.
        seed: of what is drawn.
        class_weight: (classes,) factors on each class's part of the log loss, and so on the odds of a class; None
            counts examples alike.
        workers: processes that read files, as in a recipe.

    Returns:
        "examples", "accuracy" and "loss" of leaving one out, "penalty", "sharpness".
    """
    generator = torch.Generator().manual_seed(seed)
    assert inputs.labels is not None
    chosen = _draw(inputs.labels, generator)
    device = rocket.biases.device
    few = max(1, min(_MOST_DRAWN_ON, _MOST_VALUES // math.prod((inputs.preprocess.channels, *inputs.preprocess.size))))
    drawn_on = chosen if len(chosen) <= few else chosen[torch.randperm(len(chosen), generator=generator)[:few]]
    some = inputs.__getitems__(drawn_on.tolist())
    rocket.draw(some.x.to(device), None if some.mask is None else some.mask.to(device), generator)
    rows = []  # long signals fit into memory a batch at a time, their features all at once
    for batch in inputs.loader(64, workers, chosen.tolist()):
        rows.append(rocket.features(batch.x.to(device), None if batch.mask is None else batch.mask.to(device)))
    features = torch.cat(rows)
    rocket.mean.copy_(features.mean(0))
    spread = features.std(0, correction=0)
    rocket.scale.copy_(torch.where(spread > 1e-6, 1 / spread, 0))  # a feature that never varies says nothing
    features = (features - rocket.mean) * rocket.scale

    labels = inputs.labels[chosen].to(device)
    classes = rocket.head.out_features
    odds = torch.zeros(classes, dtype=torch.float64, device=device)
    if class_weight is not None:  # of calibrated probabilities p the weighted log loss makes p times the weight
        class_weight = class_weight.to(odds)
        odds = class_weight.clamp(min=1e-6).log()
    targets = 2 * F.one_hot(labels, classes).double() - 1
    offset = targets.mean(0)
    kernel = (features @ features.T).double()
    # The constant is the offset's, and no example's own: features are centred, so it has eigenvalue 0; lifted above
    # all others, it can be told from them and left out.
    kernel += 10 * kernel.diagonal().mean() + 1
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    rotated = vectors.T @ (targets - offset)
    best: dict[str, float] = {"loss": torch.inf}
    weights = torch.empty(0)
    for penalty in _PENALTIES * float(values[:-1].mean().clamp(min=1e-12)):
        inverse = 1 / (values + penalty)
        inverse[-1] = 0
        dual = vectors @ (inverse[:, None] * rotated)
        left_out = targets - dual / (vectors**2 @ inverse)[:, None].clamp(min=1e-12)
        for sharpness in _SHARPNESS:
            loss = F.cross_entropy(left_out * sharpness + odds, labels, class_weight).item()
            if loss < best["loss"]:
                accuracy = ((left_out * sharpness + odds).argmax(1) == labels).double().mean().item()
                best = {"loss": loss, "accuracy": accuracy, "penalty": float(penalty), "sharpness": float(sharpness)}
                weights = dual * sharpness
    rocket.head.weight.copy_(weights.T.to(features) @ features)
    rocket.head.bias.copy_(offset * best["sharpness"] + odds)
    return best | {"examples": float(len(chosen))}


def _draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of at most 4,096 examples: of each class in proportion, and two of it at least, where there are two."""
    order = torch.randperm(len(labels), generator=generator)
    if len(order) <= MOST_EXAMPLES:
        return order.sort().values
    turn = torch.empty(len(order), dtype=torch.float64)  # how early an example is taken: its place within its class
    for label in labels.unique():
        places = (labels[order] == label).nonzero()[:, 0]
        rank = torch.arange(len(places), dtype=torch.float64)
        turn[places] = torch.where(rank < 2, -1, rank / len(places))
    return order[turn.argsort(stable=True)[:MOST_EXAMPLES]].sort().values
