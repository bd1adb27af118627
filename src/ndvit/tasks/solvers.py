"""Closed-form and convex solvers over fixed features: logistic regression, nearest neighbours, ridge regression."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndvit.tasks.base import Linear, Ridge

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C: a larger value regularises less
_FOLDS = 5
_FEW = 1_000  # up to this many examples, every fold is held out in turn; beyond, one is enough
_TRIED = 5_000  # examples at most on which the strength is chosen
_MOST_STEPS = 1_000
_CHUNK = 1_024  # rows of the matrix of cosines at a time
_PENALTIES = np.logspace(-6, 1, 15)  # relative to the mean of the kernel's eigenvalues
_SHARPNESS = np.logspace(-0.5, 1, 13)


def logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    weights: np.ndarray | None = None,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Linear:
    """Fit a multinomial logistic regression to standardised features with scikit-learn.

    The strength of the regularisation is chosen by the loss on validation examples. Without those, it is chosen by
    stratified five-fold cross-validation on the training examples, or for more than 1,000 examples by a single fold of
    at most 5,000 of them. The final fit uses all training examples.

    Args:
        features: (n, width).
        labels: (n,) integers from 0; classes may be absent.
        classes: number of classes.
        weights: (classes,) weights of the classes in the loss.
        val: features and labels to choose the strength by.
        seed: seed of the folds.

    Raises:
        ValueError: if features are not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity: the weights are damaged, or inputs are far beyond their range")
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 1e-6 * max(1e-12, float(std.max())), std, 1.0)  # a constant feature carries no information
    x, y = (features - mean) / std, np.asarray(labels)
    if val is None:
        trials = [(x[kept], y[kept], x[held], y[held]) for kept, held in _folds(y, seed)]
    else:
        trials = [(x, y, (val[0] - mean) / std, np.asarray(val[1]))]
    losses = np.zeros(len(_STRENGTHS))
    for x_fit, y_fit, x_held, y_held in trials:
        for i, strength in enumerate(_STRENGTHS):
            logits = _fit_logistic(x_fit, y_fit, classes, strength, weights).outputs(x_held)
            losses[i] += cross_entropy(logits, y_held, weights, reduction="sum")
    best = _STRENGTHS[int(losses.argmin())] if trials else 1.0
    weight, bias = _fit_logistic(x, y, classes, best, weights)
    return Linear(weight / std, bias - weight @ (mean / std))


def cross_entropy(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, reduction: str = "mean"
) -> float:
    """Cross-entropy of logits (n, classes) and integer labels (n,)."""
    weight = None if weights is None else torch.from_numpy(weights)
    return float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), weight, reduction=reduction))


def _folds(y: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified indices to fit to and to hold out; none where a single class would be left to fit to."""
    drawn = np.random.default_rng(seed).permutation(len(y))[:_TRIED]
    drawn = drawn[np.argsort(y[drawn], kind="stable")]  # sorted by class, every fifth example is a stratified fold
    for fold in range(_FOLDS if len(drawn) <= _FEW else 1):
        held = np.arange(len(drawn)) % _FOLDS == fold
        if held.any() and len(np.unique(y[drawn[~held]])) > 1:
            yield drawn[~held], drawn[held]


def _fit_logistic(x: np.ndarray, y: np.ndarray, classes: int, strength: float, weights: np.ndarray | None) -> Linear:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(y)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -20.0)  # absent classes are never predicted
    if len(present) == 1:
        bias[present] = 0.0
        return Linear(weight, bias)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # a thousand iterations are close enough
        model = LogisticRegression(C=strength, max_iter=_MOST_STEPS)
        model.fit(x, y, sample_weight=None if weights is None else weights[y])
    if len(present) == 2:  # scikit-learn has one row for two classes; half of it for each gives the same probabilities
        weight[present] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[present] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return Linear(weight, bias)


def nearest_neighbours(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Class probabilities (n, classes) of queries by a weighted vote of their k nearest neighbours.

    Neighbours are those with the largest cosine similarity; each has exp(cosine / temperature) votes ("Unsupervised
    Feature Learning via Non-Parametric Instance Discrimination", Wu et al., 2018; k and temperature as in DINO, Caron
    et al., 2021). With fewer than k known examples all of them vote.

    Args:
        features: (m, width) of known examples.
        labels: (m,) integers from 0.
        queries: (n, width).
        classes: number of classes.
        k: neighbours that vote.
        temperature: temperature of the votes.
    """
    known, queries = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (features, queries))
    k = min(k, len(known))
    votes = np.zeros((len(queries), classes))
    for start in range(0, len(queries), _CHUNK):
        cosines = queries[start : start + _CHUNK] @ known.T
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(cosines, near, 1) - 1) / temperature)
        rows = np.arange(start, start + len(near))[:, None]
        np.add.at(votes, (rows, labels[near]), weights)
    shares: np.ndarray = votes / votes.sum(1, keepdims=True)
    return shares


def ridge_classifier(features: Tensor, labels: Tensor, classes: int, class_weight: Tensor | None = None) -> Ridge:
    """Solve ridge regression on targets of -1 and 1, as ROCKET's authors do, with calibrated logits.

    The penalty, and the factor that turns scores into logits, minimise the log loss of leaving one example out, which
    one eigendecomposition gives for all examples ("Notes on Regularized Least Squares", Rifkin & Lippert, 2007). So the
    probabilities are calibrated although the solution may fit the training set exactly.

    Weights apply to the squared errors, to the mean of features and targets, and to the log loss alike, so a weight of
    2 does what a second copy of the example does. With the weights w, features X and penalty a, the dual solution is
    (X X^T + a / w)^-1 of the centred targets, computed as S (S X X^T S + a)^-1 S with S = sqrt(w).

    Args:
        features: (n, features), float32, of similar spread.
        labels: (n,) integers from 0.
        classes: number of classes.
        class_weight: (classes,) weights of the examples by their labels; None weighs all equally.
    """
    targets = 2 * F.one_hot(labels, classes).double() - 1
    weight = targets.new_ones(len(labels)) if class_weight is None else class_weight.to(targets)[labels]
    weight = weight / weight.mean()
    offset = (weight[:, None] * targets).mean(0)
    mean = (weight[:, None] * features).mean(0).to(features)
    features = features - mean
    root = weight.sqrt()[:, None]
    kernel = (features @ features.T).double() * root * root.T
    # Features are centred, so the vector of the roots has eigenvalue 0. It belongs to the offset and must not be solved
    # for; lifted above all others, it is the last eigenvector and can be left out.
    kernel += (10 * kernel.diagonal().mean() + 1) * root * root.T
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp(min=0)
    rotated = vectors.T @ (root * (targets - offset))
    facts: dict[str, float] = {"loss": torch.inf}
    solution = answers = torch.empty(0)
    for penalty in _PENALTIES * float(values[:-1].mean().clamp(min=1e-12)):
        inverse = 1 / (values + penalty)
        inverse[-1] = 0
        dual = root * (vectors @ (inverse[:, None] * rotated))
        left_out = targets - dual / (weight * (vectors**2 @ inverse))[:, None].clamp(min=1e-12)
        for sharpness in _SHARPNESS:
            losses = F.cross_entropy(left_out * sharpness, labels, reduction="none")
            loss = (weight * losses).mean().item()
            if loss < facts["loss"]:
                right = (left_out.argmax(1) == labels).double()
                accuracy = (weight * right).mean().item()
                facts = {"loss": loss, "accuracy": accuracy, "penalty": float(penalty), "sharpness": float(sharpness)}
                solution, answers = dual * sharpness, left_out * sharpness
    facts["examples"] = float(len(labels))
    coefficients = solution.T.to(features) @ features
    return Ridge(coefficients, offset * facts["sharpness"] - (coefficients @ mean).to(offset), facts, answers)
