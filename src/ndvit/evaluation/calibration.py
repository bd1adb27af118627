"""Temperature scaling: one temperature for the logits of a trained classifier, fitted on validation data."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ndvit.evaluation.classification import calibration_error

MIN_EXAMPLES = 50  # with fewer, the temperature would depend more on chance than on the model
LOWEST, HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes:
        temperature: divisor of the logits; 1 leaves them unchanged.
        examples: number of validation examples.
        before: expected calibration error on them at temperature 1; None if no temperature was fitted.
        after: expected calibration error on them at `temperature`; None likewise.
    """

    temperature: float = 1.0
    examples: int = 0
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        if self.before is not None and self.after is not None:
            return (
                f"calibrated: temperature {self.temperature:.2f} on {self.examples:,} validation examples, "
                f"validation ECE {100 * self.before:.1f} % -> {100 * self.after:.1f} %"
            )
        if self.examples >= MIN_EXAMPLES:
            return "not calibrated: the outputs on validation data are not finite"
        if self.examples:
            return f"not calibrated: at least {MIN_EXAMPLES} validation examples are needed, got {self.examples}"
        return "not calibrated: no validation data"


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit a temperature to validation data.

    The temperature stays 1 for fewer than 50 examples and for logits that are not finite. Predicted classes, and so the
    accuracy, do not depend on it.

    Args:
        logits: (n, classes), of examples that were used neither for training nor for the test.
        labels: (n,) integers from 0.
    """
    if len(labels) < MIN_EXAMPLES or not logits.isfinite().all():
        return Calibration(examples=len(labels))
    temperature = fit_temperature(logits, labels)
    before, after = (calibration_error((logits / t).softmax(1).numpy(), labels.numpy()) for t in (1.0, temperature))
    return Calibration(temperature, len(labels), before, after)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature T, from 0.05 to 20, for which softmax(logits / T) fits the labels best.

    It minimises the negative log-likelihood ("On Calibration of Modern Neural Networks", Guo et al., 2017). If all
    predictions are correct, the likelihood alone would choose the lower bound, a confidence that n examples cannot
    support. Therefore 1/T has a gamma prior of shape 2 and rate 1, whose mode is 1. It adds 1/T + log(T) to the sum
    over the examples, which keeps T near 1 for few examples and has little effect for many.

    Args:
        logits: (n, classes), finite.
        labels: (n,) integers from 0.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = logits.double(), labels.long()

    def cost(inverse: float) -> float:
        return F.cross_entropy(logits * inverse, labels, reduction="sum").item() + inverse - math.log(inverse)

    # Both terms are convex in 1/T, so the search finds the only minimum.
    found = minimize_scalar(cost, bounds=(1 / HIGHEST, 1 / LOWEST), method="bounded", options={"xatol": 1e-7})
    return round(1 / float(found.x), 4)  # no data determines more digits
