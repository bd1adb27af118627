"""A head that is solved, not descended: logistic regression over the features of a network that stays as it is."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ndvit.data.loading import Inputs
from ndvit.inference.batches import predict_features
from ndvit.network import VisionTransformer

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn: the larger, the less the weights are held down
_FOLDS = 5
_FEW = 1_000  # examples of which each fold is held out in turn; of more, one tells enough
_TRIED = 5_000  # examples at most that the strength is chosen on
_MOST_STEPS = 1_000
_CHUNK = 1_024  # rows of cosines at a time


class Linear(NamedTuple):
    """A linear classifier of features: logits are features @ weight.T + bias, with one row for each class."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Class scores (n, classes) of features (n, width)."""
        scores: np.ndarray = features @ self.weight.T + self.bias
        return scores


def logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    weights: np.ndarray | None = None,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Linear:
    """The multinomial logistic regression of labels on standardised features, by scikit-learn.

    How strongly weights are held down is chosen by the loss on validation examples. Where there are none, it is chosen
    on the training examples alone: each fifth of every class is held out in turn, or of more than 1,000 examples (of
    which it takes 5,000 at most) one fifth once. The fit is then to all of them.

    Args:
        features: (n, width).
        labels: (n,) from 0; not every class needs to be there.
        classes: their number.
        weights: (classes,) of the classes in the loss.
        val: features and labels to choose by.
        seed: of the choice of examples that are held out.

    Raises:
        ValueError: if features are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity: the weights are damaged, or inputs are far beyond their range")
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 1e-6 * max(1e-12, float(std.max())), std, 1.0)  # what never changes has nothing to say
    x, y = (features - mean) / std, np.asarray(labels)
    if val is None:
        trials = [(x[kept], y[kept], x[held], y[held]) for kept, held in _folds(y, seed)]
    else:
        trials = [(x, y, (val[0] - mean) / std, np.asarray(val[1]))]
    losses = np.zeros(len(_STRENGTHS))
    for x_try, y_try, x_held, y_held in trials:
        for i, strength in enumerate(_STRENGTHS):
            losses[i] += _loss(_fit(x_try, y_try, classes, strength, weights), x_held, y_held, weights)
    best = _STRENGTHS[int(losses.argmin())] if trials else 1.0
    weight, bias = _fit(x, y, classes, best, weights)
    return Linear(weight / std, bias - weight @ (mean / std))


def _folds(y: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices to fit to and to hold out, of every class its share; none where too few are left to fit to."""
    drawn = np.random.default_rng(seed).permutation(len(y))[:_TRIED]
    drawn = drawn[np.argsort(y[drawn], kind="stable")]  # dealt out in turn, each class is in all folds alike
    for fold in range(_FOLDS if len(drawn) <= _FEW else 1):
        held = np.arange(len(drawn)) % _FOLDS == fold
        if held.any() and len(np.unique(y[drawn[~held]])) > 1:
            yield drawn[~held], drawn[held]


def _loss(found: Linear, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> float:
    weight = None if weights is None else torch.from_numpy(weights)
    logits, truth = torch.from_numpy(found.logits(x)), torch.from_numpy(y)
    return float(nn.functional.cross_entropy(logits, truth, weight, reduction="sum"))


def vote(
    features: np.ndarray, labels: np.ndarray, asked: np.ndarray, classes: int, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Class probabilities (n, classes) of features that are asked for, by their k nearest neighbours (all, of fewer).

    Near is what has a large cosine; a neighbour has exp(cosine / temperature) votes ("Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", Wu et al., 2018, with k and temperature of DINO, Caron et al., 2021).

    Args:
        features: (m, width) of known examples.
        labels: (m,) theirs, from 0.
        asked: (n, width).
        classes: their number.
        k: neighbours.
        temperature: of the votes.
    """
    known, asked = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (features, asked))
    k = min(k, len(known))
    votes = np.zeros((len(asked), classes))
    for start in range(0, len(asked), _CHUNK):
        cosines = asked[start : start + _CHUNK] @ known.T
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(cosines, near, 1) - 1) / temperature)
        rows = np.arange(start, start + len(near))[:, None]
        np.add.at(votes, (rows, labels[near]), weights)
    shares: np.ndarray = votes / votes.sum(1, keepdims=True)
    return shares


def _fit(x: np.ndarray, y: np.ndarray, classes: int, strength: float, weights: np.ndarray | None) -> Linear:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(y)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -20.0)  # a class never seen is never said
    if len(seen) == 1:
        bias[seen] = 0.0
        return Linear(weight, bias)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # a thousand steps are near enough
        found = LogisticRegression(C=strength, max_iter=_MOST_STEPS)
        found.fit(x, y, sample_weight=None if weights is None else weights[y])
    if len(seen) == 2:  # scikit-learn has one row for two classes; half of it each gives the same probabilities
        weight[seen] = np.concatenate([-found.coef_, found.coef_]) / 2
        bias[seen] = np.concatenate([-found.intercept_, found.intercept_]) / 2
    else:
        weight[seen], bias[seen] = found.coef_, found.intercept_
    return Linear(weight, bias)


def solve_head(
    model: VisionTransformer,
    train: Inputs,
    val: Inputs | None,
    *,
    class_weight: torch.Tensor | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, float]:
    """Solve the head of a network, in place, over features that are computed once, without augmentation.

    Both heads of a distilled network get their part of one solution; an auxiliary head over a stem, which answers
    nothing, stays as it is, and so do random convolutions, which `solve_rocket` solves. None of these heads is
    `untrained` any more.

    Args:
        model: is put into eval mode.
        train: labelled examples.
        val: labelled examples that the strength of the regularisation is chosen by; else see `logistic_regression`.
        class_weight: (classes,) in the loss, as `class_weights` gives it.
        seed: of that choice.
        batch_size: examples at a time.
        device: where features are computed.
        progress: show a progress bar.

    Returns:
        Loss and accuracy on the training and, where there are some, the validation examples.

    Raises:
        ValueError: if the network has no head, or features are not finite.
    """
    assert train.labels is not None
    if not model.config.num_classes:
        raise ValueError("the network has 0 classes, so there is no head to solve: give it one with reset_head")
    weights = None if class_weight is None else class_weight.cpu().numpy().astype(np.float64)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, inputs in (("train", train), ("val", val)):
        if inputs is not None and inputs.labels is not None:
            features = predict_features(model, inputs, batch_size, device, progress)
            parts[name] = features, inputs.labels.numpy()
    classes = model.config.num_classes
    found = logistic_regression(*parts["train"], classes, weights=weights, val=parts.get("val"), seed=seed)
    heads = [model.head, *([model.head_dist] if model.config.distilled else [])]
    with torch.no_grad():
        # a distilled network answers with the mean of its heads, so each has its part of the weights that often
        for head, weight in zip(heads, np.split(found.weight * len(heads), len(heads), axis=1)):
            assert isinstance(head, nn.Linear)
            head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            head.bias.copy_(torch.from_numpy(found.bias))
    model.untrained = tuple(n for n in model.untrained if n.partition(".")[0] not in ("head", "head_dist", "stem_head"))
    model.temperature = 1.0  # what calibrated other logits
    row = {}
    for name, (features, labels) in parts.items():
        logits, truth = torch.from_numpy(found.logits(features)), torch.from_numpy(labels)
        row[f"{name}_loss"] = float(nn.functional.cross_entropy(logits, truth))
        row[f"{name}_accuracy"] = float((logits.argmax(1) == truth).double().mean())
    return row
