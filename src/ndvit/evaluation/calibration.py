"""Probabilities that mean what they say: one temperature for a trained model's logits, fitted on validation data."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ndvit.data.loading import Inputs
from ndvit.evaluation.metrics import calibration_error
from ndvit.inference.batches import predict_logits
from ndvit.network.committee import Model

MIN_EXAMPLES = 50  # of fewer, chance would decide more than the model
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """What calibrating did.

    Attributes:
        temperature: what logits are divided by; 1 leaves them as they are.
        examples: validation examples that there were.
        before: the expected calibration error on them, 0 to 1, as trained; None if nothing was fitted.
        after: the same, of the logits divided.
    """

    temperature: float = 1.0
    examples: int = 0
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            why = "the answers on validation data are not finite"
            if self.examples < MIN_EXAMPLES:
                few = f"{self.examples} validation example{'s' * (self.examples > 1)}, and it takes {MIN_EXAMPLES}"
                why = few if self.examples else "no validation data"
            return f"not calibrated: {why}"
        return (
            f"calibrated: temperature {self.temperature:.2f} on {self.examples:,} validation examples, "
            f"validation ECE {100 * self.before:.1f} % -> {100 * self.after:.1f} %"
        )


def calibrate(
    model: Model, val: Inputs | None, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> Calibration:
    """Fit `model.temperature` to validation data, where there are 50 examples or more; else it is 1.

    The classes that are predicted, and so the accuracy, stay the same. Of an ensemble it is the mean that is
    calibrated: it is less sure than its members.

    Args:
        model: is put into eval mode, and gets the temperature.
        val: labelled examples that no weight was learned from, and not those of the test.
        batch_size: examples at a time.
        device: where to compute.
        progress: show a progress bar.
    """
    model.temperature = 1.0
    if val is None or len(val) < MIN_EXAMPLES:
        return Calibration(examples=0 if val is None else len(val))
    labels = val.labels
    assert labels is not None
    logits = predict_logits(model, val, batch_size, device, progress)
    if not logits.isfinite().all():  # a diverged training, of which the test tells
        return Calibration(examples=len(val))
    model.temperature = fit_temperature(logits, labels)
    before, after = (
        calibration_error((logits / t).softmax(1).numpy(), labels.numpy()) for t in (1.0, model.temperature)
    )
    return Calibration(model.temperature, len(val), before, after)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T for which softmax(logits / T) fits the labels best, from 0.05 to 20.

    It minimises the negative log-likelihood ("On Calibration of Modern Neural Networks", Guo et al., 2017). Where all
    answers are right, that falls with T down to the bound, and promises a certainty that n examples cannot prove. So
    1/T has a prior, the gamma distribution of shape 2 and rate 1, whose maximum is at 1: 1/T + log(T) is added to the
    sum over the examples. It keeps T near 1 where they tell little, and matters little where they tell much.

    Args:
        logits: (n, classes), finite.
        labels: (n,) integers from 0.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = logits.double(), labels.long()

    def cost(inverse: float) -> float:
        return F.cross_entropy(logits * inverse, labels, reduction="sum").item() + inverse - math.log(inverse)

    # Both terms are convex in 1/T, so there is one minimum, and the search finds it.
    bounds = 1 / HOTTEST, 1 / COLDEST
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return round(1 / float(found.x), 4)  # more digits are below what any data tells
