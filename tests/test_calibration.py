"""One temperature for the logits of a classifier: how it is fitted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ndvit.evaluation.calibration import Calibration, calibrate, fit_temperature
from ndvit.evaluation.reliability import calibration_error


def sample(n, sharper, classes=4):
    """Logits, and labels sampled from the softmax of logits that are less sharp by a factor."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharper * logits, labels


@pytest.mark.parametrize("sharper", [0.25, 1, 3])
def test_the_temperature_corrects_logits_that_are_too_sharp(sharper):
    assert fit_temperature(*sample(4000, sharper)) == pytest.approx(sharper, rel=0.06)


def test_the_cost_has_no_slope_at_the_temperature():
    logits, labels = sample(80, 2)
    inverse = torch.tensor(1 / fit_temperature(logits, labels), dtype=torch.float64, requires_grad=True)
    cost = F.cross_entropy(logits.double() * inverse, labels, reduction="sum") + inverse - inverse.log()
    cost.backward()
    assert abs(inverse.grad.item()) < 0.02
    assert fit_temperature(logits.half(), labels) == pytest.approx(1 / inverse.item(), rel=1e-2)


@pytest.mark.parametrize("n", [50, 1000])
def test_perfect_predictions_do_not_become_certain(n):
    labels = torch.arange(n) % 2
    margin = 2.0  # with two classes, the negative log-likelihood of an example is log(1 + exp(-margin / T))
    b = 1 / fit_temperature(margin * F.one_hot(labels, 2).float(), labels)
    assert n * margin / (1 + math.exp(margin * b)) == pytest.approx(1 - 1 / b, abs=0.01)
    assert 0.1 / n < 1 / (1 + math.exp(margin * b)) < 1 / n  # about what n correct predictions support


@pytest.mark.parametrize("scale", [0.0, 500.0])
def test_logits_that_fit_any_temperature_leave_it_at_one(scale):
    labels = torch.arange(60) % 3
    assert fit_temperature(scale * F.one_hot(labels, 3).float(), labels) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("n", "scale", "bound"), [(200, -100, 20), (200_000, 0.1, 0.05)])
def test_the_temperature_is_bounded(n, scale, bound):
    labels = torch.arange(n) % 2
    assert fit_temperature(scale * F.one_hot(labels, 2).float(), labels) == pytest.approx(bound, rel=2e-3)


def test_calibrate():
    logits, labels = sample(60, 3)
    found = calibrate(logits, labels)
    assert found.temperature == fit_temperature(logits, labels)
    assert abs(found.temperature - 1) > 0.1
    assert found.examples == 60
    for temperature, error in ((1, found.before), (found.temperature, found.after)):
        p = (logits / temperature).softmax(1).numpy()
        assert error == pytest.approx(calibration_error(p, labels.numpy()), abs=1e-6)
    assert found.after < found.before
    losses = [F.cross_entropy(logits / t, labels).item() for t in (1, found.temperature)]
    assert found.losses == pytest.approx(tuple(losses))


@pytest.mark.parametrize(
    ("n", "broken", "text"),
    [
        (0, False, "no validation data"),
        (49, False, "at least 50 validation examples are needed, got 49"),
        (60, True, "the outputs on validation data are not finite"),
    ],
)
def test_where_the_temperature_stays_one(n, broken, text):
    logits, labels = sample(60, 3)
    logits[0, 0] = np.nan if broken else logits[0, 0]
    found = calibrate(logits[:n], labels[:n])
    assert (found.temperature, found.examples, found.before) == (1.0, n, None)
    assert str(found) == f"not calibrated: {text}"


def confident_mistakes(n=500, wrong=25):
    """Right answers with 85 % confidence, and a few mistakes of which the classifier is certain."""
    labels = torch.arange(n) % 2
    logits = math.log(0.85 / 0.15) * F.one_hot(labels, 2).float()
    logits[:wrong] = 12 * F.one_hot(1 - labels[:wrong], 2).float()
    return logits, labels


def test_a_temperature_that_raises_the_calibration_error_is_refused():
    found = calibrate(*confident_mistakes())
    assert found.temperature == 1
    assert found.losses[1] < found.losses[0]  # the log loss alone would keep it
    assert found.after > found.before + 0.1
    assert str(found) == (
        "not calibrated: temperature 2.92 on 500 validation examples made the calibration (ECE) worse "
        "(validation ECE 19.2 % -> 38.7 %, log loss 0.7544 -> 0.6239)"
    )


@pytest.mark.parametrize("n", [60, 1000])
def test_a_temperature_that_improves_nothing_beyond_chance_is_refused(n):
    found = calibrate(*sample(n, 1))
    assert found.temperature == 1
    assert "improved nothing beyond chance" in found.refused


def test_a_temperature_is_kept_for_predictions_that_are_all_right():
    labels = torch.arange(100) % 2
    found = calibrate(math.log(0.8 / 0.2) * F.one_hot(labels, 2).float(), labels)
    assert found.temperature < 1
    assert found.after < found.before == pytest.approx(0.2)


def test_validation_data_of_one_class_give_no_temperature():
    logits, labels = sample(200, 3)
    found = calibrate(logits, torch.zeros_like(labels))
    assert str(found) == "not calibrated: the validation examples are all of one class"
    assert found.temperature == 1


def test_weights_do_what_repeating_examples_does():
    logits, labels = sample(300, 3)
    weights = torch.where(labels == 0, 4.0, 1.0)
    often = torch.arange(300).repeat_interleave(weights.long())
    weighted, repeated = calibrate(logits, labels, weights), calibrate(logits[often], labels[often])
    # of scaled weights, the same sum of the loss stands against the same prior
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=0.01)
    assert weighted.before == pytest.approx(repeated.before)
    assert weighted.losses[0] == pytest.approx(repeated.losses[0])
    assert str(weighted).endswith("; classes weigh as in training (class_weight)")


def test_examples_without_weight_do_not_count():
    logits, labels = sample(200, 3)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0])[labels]
    assert calibrate(logits, labels, weights).refused == "the validation examples are all of one class"


def test_text():
    found = Calibration(1.2345, 1200, 0.0412, 0.0119, (0.51234, 0.4))
    assert str(found).endswith("validation ECE 4.1 % -> 1.2 %, log loss 0.5123 -> 0.4")
    assert str(Calibration(1.2345, 1200, 0.0412, 0.0119)) == (
        "calibrated: temperature 1.23 on 1,200 validation examples, validation ECE 4.1 % -> 1.2 %"
    )
