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


def criterion(classes=3, weights=None, **options):
    weights = None if weights is None else torch.tensor(weights)
    return ClassificationCriterion(Recipe(**{"label_smoothing": 0.0, **options}), classes, weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_targets_are_smoothed(smoothing):
    labels = torch.tensor([1, 0, 3])
    targets = Classification("abcd").criterion(Recipe(label_smoothing=smoothing)).prepare(labels)
    torch.testing.assert_close(targets, F.one_hot(labels, 4) * (1 - smoothing) + smoothing / 4)
    assert targets[0].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05] if smoothing else [0, 1, 0, 0])


@pytest.mark.parametrize("loss", LOSSES)
def test_an_example_is_weighed_by_its_own_label_before_smoothing_and_mixing(loss):
    options = {"loss": loss, "label_smoothing": 0.3}
    weighted, plain = criterion(3, [0.1, 0.9, 20.0], **options), criterion(3, **options)
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    targets = weighted.prepare(labels)
    assert targets.sum(1).tolist() == pytest.approx([0.1, 20.0])
    assert targets[1].tolist() == pytest.approx([2.0, 2.0, 16.0])
    losses = [plain.loss(logits[i : i + 1], plain.prepare(labels[i : i + 1])).item() for i in range(2)]
    assert weighted.loss(logits, targets).item() == pytest.approx((0.1 * losses[0] + 20 * losses[1]) / 2, rel=1e-5)
    # a mixture of a quarter of the first and the rest of the second, which has their mean weight
    mixed, logits = 0.25 * targets[:1] + 0.75 * targets[1:], logits[:1]
    if loss == "softmax":
        parts = [plain.loss(logits, plain.prepare(torch.tensor([k]))).item() for k in (0, 2)]
        expected = 0.25 * 0.1 * parts[0] + 0.75 * 20 * parts[1]
    else:  # both classes are positives
        both = 0.25 * plain.prepare(torch.tensor([0])) + 0.75 * plain.prepare(torch.tensor([2]))
        expected = (0.25 * 0.1 + 0.75 * 20) * plain.loss(logits, both).item()
    assert weighted.loss(logits, mixed).item() == pytest.approx(expected, rel=1e-5)


def test_smoothing_gives_a_rare_class_nothing_from_the_weights_of_others():
    # The gradient of the mean loss over a set whose outputs are its class frequencies, weighed to be balanced, is 0 for
    # uniform outputs, with smoothing or without.
    labels = torch.arange(3).repeat_interleave(torch.tensor([90, 9, 1]))
    made = Classification("abc").criterion(Recipe(class_weight="balanced", label_smoothing=0.1), labels)
    bias = torch.zeros(3, requires_grad=True)
    made.loss(bias.expand(100, 3), made.prepare(labels)).backward()
    assert bias.grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_examples_without_weight_do_not_count(loss):
    made = criterion(2, [0.0, 2.0], loss=loss, label_smoothing=0.1)
    logits, targets = torch.eye(2), made.prepare(torch.tensor([1, 0]))
    assert made.loss(logits, targets).item() == pytest.approx(made.loss(logits[:1], targets[:1]).item() / 2)
    assert made.batch_metrics(logits, targets)["accuracy"].item() == 0  # of the first alone
    assert made.batch_metrics(logits.flip(1), targets)["accuracy"].item() == 1


@pytest.mark.parametrize("weights", [None, [0.3, 0.3, 30.0]])
def test_the_accuracy_of_mixed_examples_does_not_depend_on_weights(weights):
    made = criterion(3, weights, label_smoothing=0.1)
    first, last = made.prepare(torch.tensor([0])), made.prepare(torch.tensor([2]))
    targets = torch.cat([0.6 * first + 0.4 * last, 0.4 * first + 0.6 * last])
    assert made.batch_metrics(torch.eye(3)[[0, 0]], targets)["accuracy"].item() == 0.5
    assert made.batch_metrics(torch.eye(3)[[0, 2]], targets)["accuracy"].item() == 1


@pytest.mark.parametrize("options", [{"distillation": "hard"}, {"distillation": "soft", "temperature": 2.0}])
def test_the_loss_of_a_teacher_weighs_examples_too(options):
    student, teacher, often = torch.randn(3, 2), torch.randn(3, 2), [0, 1, 2, 2]
    weighted = criterion(2, [0.75, 1.5], **options)
    found = weighted.distillation_loss(student, teacher, weighted.prepare(torch.tensor([0, 0, 1])))
    expected = criterion(2, **options).distillation_loss(student[often], teacher[often], student[often])
    assert found.item() == pytest.approx(expected.item())


def test_the_validation_loss_has_the_weights_of_training_and_no_smoothing():
    logits, labels = torch.randn(3, 2), torch.tensor([0, 0, 1])
    losses = F.cross_entropy(logits, labels, reduction="none")
    found = criterion(2, [0.75, 1.5], label_smoothing=0.1).validation_loss(logits, labels)
    assert found.item() == pytest.approx(((losses[0] + losses[1]) * 0.75 + losses[2] * 1.5).item() / 3)


def test_balanced_weights_find_rare_classes_with_the_default_smoothing():
    labels = np.arange(3).repeat((450, 45, 5))  # 90 : 9 : 1
    noise = np.random.default_rng(0).normal(size=(2, 500, 3, 4))
    x, x_test = (noise + np.eye(3)[labels][:, :, None]).astype(np.float32)

    def accuracies(**options):
        options |= {"steps": 40, "batch_size": 64, "learning_rate": 0.01, "val_fraction": 0.0}
        model = fit_tiny((x, labels), test_fraction=0, **options).model
        evaluation = model.evaluate((x_test, labels), split="all", progress=False, log=lambda line: None)
        return evaluation.accuracy, evaluation.balanced_accuracy

    (accuracy, balanced), (_, unweighted) = accuracies(class_weight="balanced"), accuracies()
    assert accuracy > 0.8
    assert balanced > unweighted + 0.1


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
