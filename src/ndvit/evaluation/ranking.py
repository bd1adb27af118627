"""How well scores rank examples with a label before those without: ROC and precision-recall curves and their areas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_POINTS = 201  # of a drawn curve


class Areas(NamedTuple):
    """Areas under both curves; NaN where they are undefined."""

    auroc: np.ndarray
    """Probability that an example with the label has the higher score than one without; equal scores count half."""
    average_precision: np.ndarray
    """Mean precision at the examples with the label, weighted by the rise of the recall."""


class Curves(NamedTuple):
    """Points of both curves."""

    false_positive: np.ndarray
    true_positive: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def areas(truth: np.ndarray, scores: np.ndarray) -> tuple[float | None, float | None]:
    """AUROC and average precision by scikit-learn; None without examples that have, or that lack, the label.

    Args:
        truth: (n,) boolean, whether an example has the label.
        scores: (n,).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not truth.any():
        return None, None
    precision = float(average_precision_score(truth, scores))
    return (None if truth.all() else float(roc_auc_score(truth, scores))), precision


def resampled_areas(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Areas:
    """The same areas for weighted examples, of many weightings at once.

    They are those of scikit-learn with `sample_weight`, by one sort of the scores.

    Args:
        truth: (n,) boolean.
        scores: (n,).
        weights: (n, resamples) float32.

    Returns:
        Areas (resamples,).
    """
    from scipy.sparse import csr_matrix

    n, resamples = weights.shape
    nothing = np.full(resamples, np.nan)
    if not truth.any():
        return Areas(nothing, nothing)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    begins = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # of runs of equal scores
    run = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))
    hits = np.flatnonzero(truth[order])
    runs, counts = np.unique(run[hits], return_counts=True)  # runs that have the label
    first, last = begins[runs], np.append(begins, n)[runs + 1]
    edges = np.unique(np.concatenate([[0], first, last]))
    ones = np.ones(n, dtype=np.float32)
    segments = csr_matrix((ones[: edges[-1]], order[: edges[-1]], edges), shape=(len(edges) - 1, n))
    above = np.concatenate([np.zeros((1, resamples)), np.cumsum(segments @ weights, axis=0, dtype=np.float64)])
    with_label = csr_matrix((ones[: len(hits)], order[hits], np.append(0, np.cumsum(counts))), shape=(len(runs), n))
    positive = (with_label @ weights).astype(np.float64)
    found = np.cumsum(positive, axis=0)
    before, up_to = above[np.searchsorted(edges, first)], above[np.searchsorted(edges, last)]
    negative_before, negative_up_to = before - (found - positive), up_to - found
    positives = found[-1]
    negatives = weights.sum(axis=0, dtype=np.float64) - positives
    below = (positive * (negatives - (negative_before + negative_up_to) / 2)).sum(axis=0)
    precise = (positive * found / np.maximum(up_to, 1e-12)).sum(axis=0)
    both, some = positives * negatives, positives > 0
    auroc = np.where(both > 0, below / np.where(both > 0, both, 1), np.nan)
    return Areas(auroc, np.where(some, precise / np.where(some, positives, 1), np.nan))


def curves(truth: np.ndarray, scores: np.ndarray) -> Curves | None:
    """Both curves by scikit-learn, of at most 201 points each; None unless some have the label and some lack it."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    if not truth.any() or truth.all():
        return None
    false_positive, true_positive, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    if len(false_positive) > _POINTS:
        grid = np.linspace(0, 1, _POINTS)
        false_positive, true_positive = grid, np.append(0, np.interp(grid, false_positive, true_positive)[1:])
    recall, precision = recall[::-1], precision[::-1]
    if len(recall) > _POINTS:
        kept = np.unique(np.linspace(0, len(recall) - 1, _POINTS).round().astype(int))
        recall, precision = recall[kept], precision[kept]
    return Curves(false_positive, true_positive, recall, precision)
