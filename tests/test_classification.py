"""The loss, the weights and the metrics of classification, by hand; and the values that its options refuse."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ndvit import Recipe
from ndvit.tasks import Classification
from ndvit.tasks.classification import ClassificationCriterion, class_weights
from tinyruns import fit_tiny, toy

LOSSES = ["softmax", "sigmoid"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_targets_are_smoothed(smoothing):
    labels = torch.tensor([1, 0, 3])
    targets = Classification("abcd").criterion(Recipe(label_smoothing=smoothing)).prepare(labels)
    torch.testing.assert_close(targets, F.one_hot(labels, 4) * (1 - smoothing) + smoothing / 4)
    assert targets[0].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05] if smoothing else [0, 1, 0, 0])


def test_the_loss_of_each_class_by_itself():
    def present(z):
        return math.log(1 + math.exp(-z))

    def loss(logits, targets, smoothing=0.0):
        recipe = Recipe(loss="sigmoid", label_smoothing=smoothing)
        return ClassificationCriterion(recipe, targets.shape[1]).loss(logits, targets).item()

    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 3.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0]])  # the second is mixed of two, and both are positives
    rows = present(2) + present(0) + present(1), present(0.5) + present(3) + present(0)
    assert loss(logits, targets) == pytest.approx(sum(rows) / 2)
    # A new head, under which each class has probability 1 / classes, starts at the loss of all classes together.
    start = loss(torch.full((1, 1000), -math.log(1000)), F.one_hot(torch.tensor([3]), 1000).float())
    assert math.log(1000) < start < math.log(1000) + 1.001
    # A target t instead of 1 adds (1 - t) z, and instead of 0 -t z.
    extra = [0.2 * 2.0 + 0.1 * 1.0, 0.2 * 0.5 + 0.2 * 3.0]
    assert loss(logits, 0.7 * targets + 0.1, 0.3) == pytest.approx((sum(rows) + sum(extra)) / 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_do_what_repeating_examples_does(loss):
    recipe = Recipe(loss=loss, label_smoothing=0.0, class_weight="balanced")
    labels, logits, often = torch.tensor([0, 0, 1]), torch.randn(3, 2), torch.tensor([0, 1, 2, 2])
    plain, weighted = ClassificationCriterion(recipe, 2), Classification("ab").criterion(recipe, labels)
    repeated = plain.loss(logits[often], plain.prepare(labels[often]))
    assert weighted.loss(logits, weighted.prepare(labels)).item() == pytest.approx(repeated.item())


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_half_precision_are_computed_in_single(loss):
    logits, targets = torch.randn(4, 3).bfloat16(), F.one_hot(torch.arange(4) % 3, 3).float()
    criterion = ClassificationCriterion(Recipe(loss=loss), 3, torch.tensor([0.5, 1.0, 1.5]))
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion.loss(logits, targets)
    assert found.dtype == torch.float32
    assert torch.equal(found, criterion.loss(logits.float(), targets))


def test_class_weights_by_hand():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 1)
    found = class_weights(Recipe(class_weight="balanced"), labels, 3)
    assert found.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])  # n / (classes * count): its mean is 1 already
    found = class_weights(Recipe(class_weight=(1, 2, 0)), labels, 3)
    assert found.tolist() == pytest.approx([1 / 1.2, 2 / 1.2, 0])  # the mean over the examples is (6 + 6) / 10
    assert found[labels].mean().item() == pytest.approx(1)
    assert class_weights(Recipe(), labels, 3) is None
    # A class without examples leaves the weights of the others unchanged.
    found = class_weights(Recipe(class_weight="balanced"), labels[:9], 3)
    assert found[:2].tolist() == pytest.approx([0.75, 1.5])
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="class_weight has 2 numbers for 3 classes: pass one for each class, or bal"):
        class_weights(Recipe(class_weight=(1, 2)), labels, 3)
    with pytest.raises(ValueError, match=r"class_weight \(0.0, 0.0, 1.0\) leaves no training example"):
        class_weights(Recipe(class_weight=(0, 0, 1)), labels[:9], 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_weight": "even"}, "class_weight must be balanced, or one number of at least 0 .* got 'even'"),
        ({"class_weight": (1, -1)}, "at least 0 for each class"),
        ({"class_weight": ()}, "one number"),
        ({"distillation": "warm"}, "distillation must be one of hard, soft; got 'warm'"),
        ({"distillation_weight": 1.1}, "distillation_weight must be a number of at least 0 and at most 1, got 1.1"),
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"warp": -1}, "warp must be a number of at least 0, got -1"),
        ({"channel_drop": 1.0}, "channel_drop must be a number of at least 0 and below 1, got 1.0"),
        ({"scale": None}, "scale must be a number of at least 0, got None"),
        ({"stem_loss": -0.1}, "stem_loss must be a number of at least 0, got -0.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_options_of_losses_and_augmentation(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


def test_class_weights_are_plain_numbers():
    weights = Recipe(class_weight=(np.float64(1), 2)).to_dict()["class_weight"]
    assert (list(weights), {type(value) for value in weights}) == ([1.0, 2.0], {float})


def test_new_heads_under_the_sigmoid_loss_start_at_the_share_of_a_class():
    trained = fit_tiny(toy(classes=4), steps=1, loss="sigmoid", learning_rate=1e-9)
    assert trained.model.network.head.bias.tolist() == pytest.approx([-np.log(4)] * 4, abs=1e-5)


def test_metrics_count_over_the_whole_set():
    metrics = Classification(("0", "1")).metrics()
    # The second batch has one class only, so the mean over batches would be another balanced accuracy.
    for predicted, targets in (([0, 0, 0, 1], [0, 0, 0, 0]), ([0, 1], [1, 1])):
        metrics.update(torch.eye(2)[predicted], torch.tensor(targets))
    found = metrics.compute()
    assert float(found["accuracy"]) == pytest.approx(4 / 6)
    assert float(found["balanced_accuracy"]) == pytest.approx((3 / 4 + 1 / 2) / 2)
    # A class without examples does not count although it was predicted, and counts start again.
    metrics.update(torch.eye(2)[[0, 1]], torch.tensor([0, 0]))
    assert {name: float(value) for name, value in metrics.compute().items()} == dict.fromkeys(found, 0.5)
