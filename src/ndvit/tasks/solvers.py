"""Closed-form and convex solvers over fixed features: logistic regression, nearest neighbours, ridge regression."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

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
_WIDE = np.logspace(-6, 3, 19)  # of regressions and labels, some of which the features do not explain at all
_NO_KERNEL = 1e-6  # mean eigenvalue, where a single feature of spread 1 gives about 1
_SHARPNESS = np.logspace(-0.5, 1, 13)


class _Usual(NamedTuple):
    penalty: float  # relative, as above
    sharpness: float


_UNJUDGED = _Usual(0.1, 2.0)  # least log loss with one example a class, mean of 20 small sets of the UCR archive


def logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    class_weights: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Linear:
    """Fit a multinomial logistic regression to standardised features with scikit-learn.

    The strength of the regularisation is chosen by the loss on validation examples. Without those, it is chosen by
    stratified five-fold cross-validation on the training examples, or for more than 1,000 examples by a single fold of
    at most 5,000 of them. No group is divided by a fold. The final fit uses all training examples.

    Args:
        features: (n, width).
        labels: (n,) integers from 0; classes may be absent.
        classes: number of classes.
        class_weights: (classes,) weights of the classes in the loss, also on validation examples.
        weights: (n,) weights of the examples in the loss.
        groups: (n,) integers of the groups.
        val: features and labels to choose the strength by.
        seed: seed of the folds.

    Raises:
        ValueError: if features are not finite.
    """
    mean, std = _moments(features)
    x, y = (np.asarray(features, dtype=np.float64) - mean) / std, np.asarray(labels)
    by_class = np.ones(classes) if class_weights is None else class_weights
    each = by_class[y] * (1.0 if weights is None else weights)
    if val is None:
        trials = [
            (x[kept], y[kept], each[kept], x[held], y[held], each[held]) for kept, held in _folds(y, seed, groups)
        ]
    else:
        labels_held = np.asarray(val[1])
        trials = [(x, y, each, (val[0] - mean) / std, labels_held, by_class[labels_held])]
    losses = np.zeros(len(_STRENGTHS))
    for x_fit, y_fit, each_fit, x_held, y_held, each_held in trials:
        for i, strength in enumerate(_STRENGTHS):
            logits = torch.from_numpy(_fit_logistic(x_fit, y_fit, classes, strength, each_fit).outputs(x_held))
            lost = F.cross_entropy(logits, torch.from_numpy(y_held), reduction="none").numpy()
            losses[i] += float(each_held @ lost)
    best = _STRENGTHS[int(losses.argmin())] if trials else 1.0
    weight, bias = _fit_logistic(x, y, classes, best, each)
    return Linear(weight / std, bias - weight @ (mean / std))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of features, 1 for a constant one; a ValueError if one is not finite."""
    features = np.asarray(features, dtype=np.float64)
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity: the weights are damaged, or inputs are far beyond their range")
    mean, std = features.mean(0), features.std(0)
    return mean, np.where(std > 1e-6 * max(1e-12, float(std.max())), std, 1.0)


def _folds(y: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified indices to fit to and to hold out; none where a single class or group would be left to fit to."""
    drawn = np.random.default_rng(seed).permutation(len(y))[:_TRIED]
    drawn = drawn[np.argsort(y[drawn], kind="stable")]  # sorted by class, every fifth example is a stratified fold
    fold_of = np.arange(len(drawn)) % _FOLDS if groups is None else _fold_of_groups(y[drawn], groups[drawn], seed)
    for fold in range(_FOLDS if len(drawn) <= _FEW else 1):
        held = fold_of == fold
        if held.any() and len(np.unique(y[drawn[~held]])) > 1:
            yield drawn[~held], drawn[held]


def _fold_of_groups(y: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Number of the fold of each example (n,), in which all of its group are; -1 for all of fewer than two groups."""
    from sklearn.model_selection import StratifiedGroupKFold

    fold_of, count = np.full(len(y), -1), min(_FOLDS, len(np.unique(groups)))
    if count < 2:
        return fold_of
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # classes with fewer examples than folds
        split = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(y, y, groups)
        for fold, (_, held) in enumerate(split):
            fold_of[held] = fold
    return fold_of


def _fit_logistic(x: np.ndarray, y: np.ndarray, classes: int, strength: float, weights: np.ndarray) -> Linear:
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
        model.fit(x, y, sample_weight=weights)
    if len(present) == 2:  # scikit-learn has one row for two classes; half of it for each gives the same probabilities
        weight[present] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[present] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return Linear(weight, bias)


def nearest_neighbours(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Class probabilities (n, classes) of queries by a vote of their k nearest neighbours, see `neighbour_means`.

    Args:
        features: (m, width) of known examples.
        labels: (m,) integers from 0.
        queries: (n, width).
        classes: number of classes.
        k: neighbours that vote.
        temperature: temperature of the votes.
    """
    shares = neighbour_means(features, np.eye(classes)[labels], queries, k, temperature)
    return shares / shares.sum(1, keepdims=True)


def neighbour_means(
    features: np.ndarray, targets: np.ndarray, queries: np.ndarray, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Mean targets (n, outputs) of the k nearest neighbours of queries, by their votes.

    Neighbours are those with the largest cosine similarity; each has exp(cosine / temperature) votes ("Unsupervised
    Feature Learning via Non-Parametric Instance Discrimination", Wu et al., 2018; k and temperature as in DINO, Caron
    et al., 2021). With fewer than k known examples all of them vote.

    Args:
        features: (m, width) of known examples.
        targets: (m, outputs).
        queries: (n, width).
        k: neighbours that vote.
        temperature: temperature of the votes.
    """
    known, queries = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (features, queries))
    k = min(k, len(known))
    means = np.empty((len(queries), targets.shape[1]))
    for start in range(0, len(queries), _CHUNK):
        cosines = queries[start : start + _CHUNK] @ known.T
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.exp((np.take_along_axis(cosines, near, 1) - 1) / temperature)
        shares = weights / weights.sum(1, keepdims=True)
        means[start : start + len(near)] = np.einsum("nk,nko->no", shares, targets[near])
    return means


class DualRidge:
    """Ridge regression solved in its dual form, for any penalty after one eigendecomposition.

    It also gives the outputs for each example of the solution without it ("Notes on Regularized Least Squares", Rifkin
    & Lippert, 2007).

    Weights apply to the squared errors, and to the mean of features and targets, so a weight of 2 does what a second
    copy of the example does. With the weights w, features X and penalty a, the dual solution is (X X^T + a / w)^-1 of
    the centred targets, computed as S (S X X^T S + a)^-1 S with S = sqrt(w). The residuals of leaving out examples are
    the dual solution there, divided by their block of that inverse.

    Args:
        features: (n, features), float32, of similar spread.
        targets: (n, outputs), float64.
        weight: (n,) weights of the examples; None weighs all equally.
        groups: (n,) integers that examples share which are left out together; None leaves each out by itself.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, weight: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        weight = targets.new_ones(len(targets)) if weight is None else weight
        self.weight, self.targets = weight / weight.mean(), targets
        self.offset = (self.weight[:, None] * targets).mean(0)
        self.mean = (self.weight[:, None] * features).mean(0).to(features)
        self.features = features - self.mean
        self.root = root = self.weight.sqrt()[:, None]
        kernel = (self.features @ self.features.T).double() * root * root.T
        # Features are centred, so the vector of the roots has eigenvalue 0. It belongs to the offset and must not be
        # solved for; lifted above all others, it is the last eigenvector and can be left out.
        kernel += (10 * kernel.diagonal().mean() + 1) * root * root.T
        values, self.vectors = torch.linalg.eigh(kernel)
        self.values = values.clamp(min=0)
        self.rotated = self.vectors.T @ (root * (targets - self.offset))
        self.blocks = [] if groups is None else [(groups == one).nonzero()[:, 0] for one in groups.unique()]
        if len(self.blocks) < 2 or len(self.blocks) == len(targets):
            self.blocks = []  # one group has everything, or each has one example

    def penalties(self, relative: np.ndarray) -> np.ndarray:
        """Penalties as multiples of the mean eigenvalue of the kernel; of constant features it is rounding errors."""
        return relative * float(self.values[:-1].mean().clamp(min=_NO_KERNEL))

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """The dual solution, and the outputs of leaving each example or its group out, both (n, outputs)."""
        inverse = 1 / (self.values + penalty)
        inverse[-1] = 0
        dual = self.root * (self.vectors @ (inverse[:, None] * self.rotated))
        if not self.blocks:
            left_out = self.targets - dual / (self.weight * (self.vectors**2 @ inverse))[:, None].clamp(min=1e-12)
            return dual, left_out
        left_out = self.targets.clone()
        for block in self.blocks:
            rows = self.root[block] * self.vectors[block]
            within = (rows * inverse) @ rows.T
            within.diagonal().add_(1e-12 * within.diagonal().mean())
            left_out[block] -= torch.linalg.solve(within, dual[block])
        return dual, left_out

    def linear(self, dual: Tensor, factor: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Weight (outputs, features) and bias (outputs,) of a dual solution that was multiplied by a factor."""
        weight = dual.T.to(self.features) @ self.features
        return weight, self.offset * factor - (weight @ self.mean).to(self.offset)


def ridge_classifier(
    features: Tensor,
    labels: Tensor,
    classes: int,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
) -> Ridge:
    """Solve ridge regression on targets of -1 and 1, as ROCKET's authors do, with calibrated logits.

    The penalty, and the factor that turns scores into logits, minimise the log loss of leaving one example out. So the
    probabilities are calibrated although the solution may fit the training set exactly. An example that is alone in its
    class shows nothing, because the solution without it does not know the class: it is not judged, and its left-out
    outputs are 0. If no example can be judged, penalty and factor are usual ones of a single example a class.

    Args:
        features: (n, features), float32, of similar spread.
        labels: (n,) integers from 0.
        classes: number of classes.
        weights: (n,) weights of the examples, in solution and log loss; None weighs all equally.
        groups: (n,) integers; examples of a group are left out together. None leaves each out by itself.

    Returns:
        The solution; its facts have "loss" and "accuracy" only if some example was judged.
    """
    targets = 2 * F.one_hot(labels, classes).double() - 1
    ridge = DualRidge(features, targets, None if weights is None else weights.to(targets), groups)
    judged = _class_remains(labels, groups if ridge.blocks else None)
    weight = ridge.weight * judged
    if not weight.sum() > 0:
        penalty = float(ridge.penalties(np.array(_UNJUDGED.penalty)))
        dual, left_out = ridge.solve(penalty)
        facts = {"penalty": penalty, "sharpness": _UNJUDGED.sharpness}
        solution, answers = dual * _UNJUDGED.sharpness, torch.zeros_like(left_out)
    else:
        weight, least = weight / weight.sum(), torch.inf
        solution = answers = torch.empty(0)
        for penalty in ridge.penalties(_PENALTIES):
            dual, left_out = ridge.solve(penalty)
            for sharpness in _SHARPNESS:
                loss = float(weight @ F.cross_entropy(left_out * sharpness, labels, reduction="none"))
                if loss < least:
                    least, right = loss, (left_out.argmax(1) == labels).double()
                    facts = {"loss": loss, "accuracy": float(weight @ right)}
                    facts |= {"penalty": float(penalty), "sharpness": float(sharpness)}
                    solution, answers = dual * sharpness, left_out * sharpness * judged[:, None]
    facts["examples"] = float(len(labels))
    coefficients, bias = ridge.linear(solution, facts["sharpness"])
    return Ridge(coefficients, bias, facts, answers)


def _class_remains(labels: Tensor, groups: Tensor | None) -> Tensor:
    """Whether each example's class is known without it, or without its group: (n,) booleans."""
    if groups is None:
        return torch.bincount(labels)[labels] > 1
    pairs = torch.stack([labels, groups], 1).unique(dim=0)  # each class in each group once
    return torch.bincount(pairs[:, 0], minlength=int(labels.max()) + 1)[labels] > 1


def ridge_regression(
    features: Tensor, targets: Tensor, groups: Tensor | None = None, weights: Tensor | None = None
) -> Ridge:
    """Solve ridge regression; each output has the penalty with the least squared error of leaving one example out.

    Args:
        features: (n, features), float32, of similar spread.
        targets: (n, outputs), standardised.
        groups: (n,) integers; examples of a group are left out together. None leaves each out by itself.
        weights: (n,) weights of the examples; None weighs all equally.
    """
    ridge = DualRidge(features, targets.double(), None if weights is None else weights.double(), groups)
    least = torch.full_like(ridge.offset, torch.inf)
    solution, answers, chosen = torch.zeros_like(ridge.targets), torch.zeros_like(ridge.targets), least.clone()
    for penalty in ridge.penalties(_WIDE):
        dual, left_out = ridge.solve(penalty)
        losses = (ridge.weight[:, None] * (left_out - ridge.targets).square()).mean(0)
        better = losses < least
        least, chosen = torch.where(better, losses, least), torch.where(better, penalty, chosen)
        solution, answers = torch.where(better, dual, solution), torch.where(better, left_out, answers)
    facts = {"loss": least.mean().item(), "penalty": chosen.mean().item(), "examples": float(len(targets))}
    return Ridge(*ridge.linear(solution), facts, answers)


def ridge_of_labels(
    features: Tensor, labels: Tensor, groups: Tensor | None = None, weights: Tensor | None = None
) -> Ridge:
    """Solve ridge regression on targets of -1 and 1 for each of several labels, with calibrated logits.

    Penalty and factor minimise the log loss of leaving one example out, for each label by itself.

    Args:
        features: (n, features), float32, of similar spread.
        labels: (n, labels) of 0 and 1.
        groups: (n,) integers; examples of a group are left out together. None leaves each out by itself.
        weights: (n,) weights of the examples; None weighs all equally.
    """
    truth = labels.double()
    ridge = DualRidge(features, 2 * truth - 1, None if weights is None else weights.double(), groups)
    least = torch.full_like(ridge.offset, torch.inf)
    solution, answers, chosen = torch.zeros_like(truth), torch.zeros_like(truth), torch.ones_like(least)
    for penalty in ridge.penalties(_WIDE):
        dual, left_out = ridge.solve(penalty)
        for sharpness in _SHARPNESS:
            losses = F.binary_cross_entropy_with_logits(left_out * sharpness, truth, reduction="none")
            losses = (ridge.weight[:, None] * losses).mean(0)
            better = losses < least
            least, chosen = torch.where(better, losses, least), torch.where(better, sharpness, chosen)
            solution = torch.where(better, dual * sharpness, solution)
            answers = torch.where(better, left_out * sharpness, answers)
    facts = {"loss": least.mean().item(), "examples": float(len(truth))}
    return Ridge(*ridge.linear(solution, chosen), facts, answers)


def linear_regression(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    val: tuple[np.ndarray, np.ndarray] | None = None,
) -> Linear:
    """Fit ridge regression to standardised features with scikit-learn.

    The penalty has the least squared error on validation examples; without those, of leaving one example out, or of
    holding out groups in five folds.

    Args:
        features: (n, width).
        targets: (n, outputs), standardised.
        weights: (n,) weights of the examples; None weighs all equally.
        groups: (n,) integers of the groups, which no fold divides.
        val: features and targets to choose the penalty by.

    Raises:
        ValueError: if features are not finite.
    """
    from sklearn.linear_model import Ridge as Model
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    mean, std = _moments(features)
    x, penalties = (np.asarray(features, dtype=np.float64) - mean) / std, len(features) * _WIDE
    each = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    known = 0 if groups is None else len(np.unique(groups))
    trials: list[tuple[Any, ...]] = []
    if val is not None:
        trials = [(x, targets, each, (val[0] - mean) / std, val[1], np.ones(len(val[1])))]
    elif known > 1:
        for kept, held in GroupKFold(min(_FOLDS, known)).split(x, groups=groups):
            trials.append((x[kept], targets[kept], each[kept], x[held], targets[held], each[held]))
    if trials:
        errors = np.zeros(len(penalties))
        for x_fit, y_fit, each_fit, x_held, y_held, each_held in trials:
            for i, penalty in enumerate(penalties * len(x_fit) / len(x)):
                answers = Model(alpha=penalty).fit(x_fit, y_fit, each_fit).predict(x_held).reshape(y_held.shape)
                errors[i] += float(each_held @ np.square(answers - y_held).mean(1))
        model = Model(alpha=penalties[int(errors.argmin())]).fit(x, targets, each)
    else:
        model = RidgeCV(alphas=penalties, alpha_per_target=targets.shape[1] > 1).fit(x, targets, each)
    weight = np.atleast_2d(model.coef_)
    return Linear(weight / std, np.atleast_1d(model.intercept_) - weight @ (mean / std))
