"""Temperature scaling: one temperature for the logits of a trained classifier, fitted on validation data."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ndvit.evaluation.reliability import calibration_error, calibration_gaps

MIN_EXAMPLES = 50  # with fewer, the temperature would depend more on chance than on the model
LOWEST, HIGHEST = 0.05, 20.0
_RESAMPLES, _SURE = 200, 0.95


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes:
        temperature: divisor of the logits; 1 leaves them unchanged.
        examples: number of validation examples.
        before: expected calibration error on them at temperature 1; None if no temperature was fitted.
        after: expected calibration error on them at the temperature that was fitted; None likewise.
        losses: log loss on them at temperature 1 and at the temperature that was fitted; None likewise.
        refused: why no temperature was fitted, or the one that was is not used; "" otherwise.
        weighted: whether examples were weighed as in a training with class weights. The probabilities then belong to
            data in which the classes have their weighted shares.
    """

    temperature: float = 1.0
    examples: int = 0
    before: float | None = None
    after: float | None = None
    losses: tuple[float, float] | None = None
    refused: str = ""
    weighted: bool = False

    def __str__(self) -> str:
        change, scope = "", "; classes weigh as in training (class_weight)" * self.weighted
        if self.before is not None and self.after is not None:
            change = f"validation ECE {100 * self.before:.1f} % -> {100 * self.after:.1f} %"
            change += ", log loss {:.4g} -> {:.4g}".format(*self.losses) if self.losses else ""
        if self.refused:
            return f"not calibrated: {self.refused}{f' ({change})' * bool(change)}{scope}"
        if change:
            on = f"temperature {self.temperature:.2f} on {self.examples:,} validation examples"
            return f"calibrated: {on}, {change}{scope}"
        return f"not calibrated: no validation data{scope}"


def calibrate(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Calibration:
    """Fit a temperature to validation data, and use it if it improves the probabilities.

    The temperature minimises the log loss. It is refused unless the log loss or the expected calibration error improves
    beyond chance, and also if one of the two becomes worse beyond chance: a few confident mistakes can pull the
    temperature to a value that makes all other answers less calibrated. Beyond chance means in 95 % of 200 resamples of
    the examples, on which both temperatures are compared (paired bootstrap; Efron & Tibshirani, "An Introduction to the
    Bootstrap", 1993). The temperature also stays 1 for fewer than 50 examples, for examples of one class, and for
    logits that are not finite. Predicted classes, and so the accuracy, do not depend on it.

    Args:
        logits: (n, classes), of examples that were used neither for training nor for the test.
        labels: (n,) integers from 0.
        weights: (n,) weights of the examples, if training weighed them; None weighs all equally.
    """
    found = Calibration(examples=len(labels), weighted=weights is not None)
    if not found.examples:
        return found
    if found.examples < MIN_EXAMPLES:
        few = f"at least {MIN_EXAMPLES} validation examples are needed, got {found.examples}"
        return replace(found, refused=few)
    if not logits.isfinite().all():
        return replace(found, refused="the outputs on validation data are not finite")
    kept = slice(None) if weights is None else weights > 0  # examples without weight do not count
    logits, labels = logits[kept].double(), labels[kept]
    weights = None if weights is None else weights[kept].double() / weights[kept].double().mean()
    if len(labels.unique()) < 2:
        return replace(found, refused="the validation examples are all of one class")
    temperature = fit_temperature(logits, labels, weights)
    weigh = np.ones(len(labels)) if weights is None else weights.numpy()
    losses = [F.cross_entropy(logits / t, labels, reduction="none").numpy() for t in (1.0, temperature)]
    probabilities = [(logits / t).softmax(1).numpy() for t in (1.0, temperature)]
    before, after = (calibration_error(p, labels.numpy(), weigh) for p in probabilities)
    mean = [float(np.average(loss, weights=weigh)) for loss in losses]
    found = replace(found, before=before, after=after, losses=(mean[0], mean[1]))
    gaps = [calibration_gaps(p, labels.numpy()) for p in probabilities]
    better, worse = _compare(losses[0] - losses[1], gaps, weigh)
    if worse or not better:
        why = f"made the {worse[0]} worse" if worse else "improved nothing beyond chance"
        return replace(found, refused=f"temperature {temperature:.2f} on {found.examples:,} validation examples {why}")
    return replace(found, temperature=temperature)


def _compare(
    gains: np.ndarray, gaps: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray
) -> tuple[list[str], list[str]]:
    """Which of log loss and ECE are better, and which are worse, in nearly all resamples of the examples.

    Args:
        gains: (n,) log loss before minus after.
        gaps: bins and gaps of each example before and after, see `calibration_gaps`.
        weights: (n,).
    """
    random, n = np.random.default_rng(0), len(gains)
    changes = np.empty((_RESAMPLES, 2))
    for row in changes:
        drawn = np.bincount(random.integers(n, size=n), minlength=n) * weights
        errors = [abs(np.bincount(places, drawn * gap)).sum() for places, gap in gaps]
        row[:] = drawn @ gains, errors[0] - errors[1]
    names = ("log loss", "calibration (ECE)")
    shares = zip(names, (changes > 0).mean(0), (changes < 0).mean(0))
    rows = list(shares)
    return [name for name, up, _ in rows if up >= _SURE], [name for name, _, down in rows if down >= _SURE]


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Find the temperature T, from 0.05 to 20, for which softmax(logits / T) fits the labels best.

    It minimises the negative log-likelihood ("On Calibration of Modern Neural Networks", Guo et al., 2017). If all
    predictions are correct, the likelihood alone would choose the lower bound, a confidence that n examples cannot
    support. Therefore 1/T has a gamma prior of shape 2 and rate 1, whose mode is 1. It adds 1/T + log(T) to the sum
    over the examples, which keeps T near 1 for few examples and has little effect for many.

    Args:
        logits: (n, classes), finite.
        labels: (n,) integers from 0.
        weights: (n,) weights of the examples with a mean of 1; None weighs all equally.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = logits.double(), labels.long()
    weights = logits.new_ones(len(labels)) if weights is None else weights.double()

    def cost(inverse: float) -> float:
        losses = F.cross_entropy(logits * inverse, labels, reduction="none")
        return (losses @ weights).item() + inverse - math.log(inverse)

    # Both terms are convex in 1/T, so the search finds the only minimum.
    found = minimize_scalar(cost, bounds=(1 / HIGHEST, 1 / LOWEST), method="bounded", options={"xatol": 1e-7})
    return round(1 / float(found.x), 4)  # no data determines more digits
