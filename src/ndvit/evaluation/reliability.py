"""Confidence against accuracy: the expected calibration error and its bins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ndvit.evaluation.base import wilson_interval

ECE_BINS = 15  # of equal width, as in Guo et al. (2017), so that values can be compared with published ones


class ConfidenceBin(NamedTuple):
    """Examples whose confidence lies in [low, high); the last bin includes 1."""

    low: float
    high: float
    examples: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of correct predictions."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(round(self.accuracy * self.examples), self.examples)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error: the mean difference between confidence and accuracy, over 15 bins of equal width.

    It takes the predicted class only ("On Calibration of Modern Neural Networks", Guo et al., 2017). It depends on the
    bins, and few examples bias it upwards: even perfect probabilities then have an error above 0.

    Args:
        probabilities: (n, classes).
        labels: (n,) integers from 0.
        weights: (n,) weights of the examples; None weighs all equally.

    Returns:
        A number from 0 to 1.
    """
    places, gaps = calibration_gaps(probabilities, labels)
    weights = np.ones(len(gaps)) if weights is None else weights
    return float(abs(np.bincount(places, weights * gaps)).sum() / weights.sum())


def calibration_gaps(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each example by its confidence, (n,), and 1 or 0 for right or wrong minus the confidence, (n,)."""
    confidence = _confidence(probabilities.max(1))
    return _bins(confidence), (probabilities.argmax(1) == labels) - confidence.astype(np.float64)


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray) -> list[ConfidenceBin]:
    """The bins of `calibration_error` that have examples, with their mean confidence and accuracy."""
    edges, confidence = _edges(), _confidence(probabilities.max(1))
    place = _bins(confidence)
    sums = [np.bincount(place, values) for values in (confidence, probabilities.argmax(1) == labels)]
    return [
        ConfidenceBin(float(edges[i]), float(edges[i + 1]), int(n), float(sums[0][i] / n), float(sums[1][i] / n))
        for i, n in enumerate(np.bincount(place))
        if n
    ]


def _confidence(values: np.ndarray) -> np.ndarray:
    """Confidences in the number type of the bins, without rounding above 1."""
    return values.astype(np.float32).clip(max=1)


def _edges() -> np.ndarray:
    return np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)


def _bins(confidence: np.ndarray) -> np.ndarray:
    """Numbers of the bins of confidences (n,). A confidence of 1 is in the last bin."""
    return np.digitize(confidence, _edges()[1:-1])
