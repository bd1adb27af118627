"""95 % intervals of metrics by the bootstrap: the metrics of examples, or of whole groups, that are drawn with repeats.

A metric takes weights (n, resamples), how often each example is drawn, so that all resamples are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Interval = tuple[float, float]
MOST, LEAST = 1000, 200  # resamples
_WORK = 1e8  # of examples, classes and resamples, from which on there are fewer resamples
_AT_ONCE = 4_000_000  # weights in memory
_DEFINED = 0.5  # share of the resamples in which a metric must be defined
_LEVEL = 0.95


def count(examples: int, classes: int = 1) -> int:
    """How many resamples are drawn: 1,000, and fewer for many examples and classes, which take longer."""
    return int(np.clip(_WORK / max(examples * classes, 1), LEAST, MOST))


def weights(examples: int, resamples: int, groups: np.ndarray | None = None, seed: int = 0) -> Iterator[np.ndarray]:
    """Weights (examples, part of the resamples) float32 of all resamples, a part at a time.

    Args:
        examples: their number.
        resamples: number of resamples.
        groups: (examples,) names of groups, which are drawn as a whole; None draws examples.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    of = np.arange(examples) if groups is None else np.unique(groups, return_inverse=True)[1].ravel()
    units, step = int(of.max()) + 1, max(1, _AT_ONCE // examples)
    for start in range(0, resamples, step):
        part = min(step, resamples - start)
        drawn = random.integers(units, size=(part, units)) + units * np.arange(part)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=units * part).reshape(part, units)
        yield np.ascontiguousarray(counts.T.astype(np.float32)[of])


def intervals(
    metrics: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    examples: int,
    classes: int = 1,
    groups: np.ndarray | None = None,
) -> dict[str, Interval]:
    """The interval of each metric from the 2.5 % to the 97.5 % quantile of its values on the resamples.

    The percentile method of Efron & Tibshirani ("An Introduction to the Bootstrap", 1993), with a fixed seed.

    Args:
        metrics: from weights (examples, resamples) to values (resamples,) by name, NaN where a metric is undefined.
        examples: their number.
        classes: number of classes, which decides the time of a resample.
        groups: (examples,) names of groups, which are drawn as a whole; None draws examples.

    Returns:
        The intervals; none for fewer than two examples or groups, for metrics that are undefined in most resamples,
        and for those that are the same in all of them, such as the F1 of a test without mistakes, of whose uncertainty
        resamples know nothing.
    """
    if examples < 2 or (groups is not None and len(np.unique(groups)) < 2):
        return {}
    parts = [metrics(drawn) for drawn in weights(examples, count(examples, classes), groups)]
    found: dict[str, Interval] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        finite = values[np.isfinite(values)]
        if len(finite) >= _DEFINED * len(values):
            low, high = np.quantile(finite, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
            found |= {name: (float(low), float(high))} if low < high else {}
    return found


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing else is."""
    there = np.isfinite(values)
    number = there.sum(axis=0)
    mean: np.ndarray = np.where(number, np.where(there, values, 0).sum(axis=0) / np.maximum(number, 1), np.nan)
    return mean
