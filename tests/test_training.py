"""How a model learns, in numbers: schedules, parameter groups, targets, losses, accumulation, clipping, averages."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ndvit.training.fit as fitting
from ndvit import Recipe, VisionTransformer, ViTConfig, create_model
from ndvit.data.loading import Batch
from ndvit.data.sources.load import Examples
from ndvit.inference.batches import pick_device, predict_probabilities
from ndvit.training.module import SupervisedTask, class_weights, label_loss, predicted_logits, supervised_loss
from ndvit.training.optim import build_optimizer, build_schedule
from tinyruns import run_tiny, same_result, tensors, toy

PLAIN = {"mixup": 0.0, "crop": 1.0, "label_smoothing": 0.0}  # no augmentation


def small(size=(16,), **options):
    torch.manual_seed(0)
    options = {
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 2,
        "in_channels": 2,
        "num_classes": 4,
        "patch_size": 4,
    } | options
    return VisionTransformer(ViTConfig(input_size=size, **options))


# schedule


def rates(recipe, steps):
    """The learning rate of each step and the one after the last."""
    optimizer = build_optimizer(small(), recipe)
    schedule = build_schedule(optimizer, recipe, steps)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedule_by_hand():
    found = rates(Recipe(learning_rate=1.0, warmup=0.2, min_learning_rate=0.1), 20)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])  # 4 steps of warm-up, then the peak
    assert found[4] == pytest.approx(1.0)
    assert found[12] == pytest.approx((1.0 + 0.1) / 2)  # half way down the cosine
    assert found[8] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter
    assert found[20] == pytest.approx(0.1)
    assert found[4:] == sorted(found[4:], reverse=True)


def test_schedule_without_warmup():
    found = rates(Recipe(learning_rate=0.5, warmup=0.0, min_learning_rate=0.0), 10)
    assert found[0] == pytest.approx(0.5)
    assert found[5] == pytest.approx(0.25)
    assert found[10] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_of_short_runs_are_finite(steps):
    found = rates(Recipe(learning_rate=1.0), steps)
    assert all(0 < rate <= 1 for rate in found[:-1])


def test_the_run_follows_the_schedule(tmp_path):
    run = run_tiny(toy(), tmp_path / "run", steps=10, learning_rate=0.01, warmup=0.2, layer_decay=0.5, accumulate=2)
    expected = rates(Recipe(learning_rate=0.01, warmup=0.2), 10)[:10]
    assert [row["learning_rate"] for row in run.fit.history] == pytest.approx(expected, rel=1e-5)


def test_the_peak_follows_from_the_width():
    assert Recipe().peak_learning_rate(64) == pytest.approx(0.002)
    assert Recipe().peak_learning_rate(768) == pytest.approx(0.016 / math.sqrt(768))
    assert Recipe(learning_rate=0.3).peak_learning_rate(64) == 0.3
    assert build_optimizer(small(), Recipe()).param_groups[0]["lr"] == pytest.approx(0.004)


# optimiser


@pytest.mark.parametrize("size", [(16,), (8, 8), (4, 4, 4)])
def test_weight_decay_spares_norms_biases_scales_tokens_and_positions(size):
    model = small(size, distilled=True, num_registers=2, layer_scale=0.1, qk_norm=True, patch_norm=True, pre_norm=True)
    optimizer = build_optimizer(model, Recipe(weight_decay=0.07))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.07, 0.0}
    assert decayed | spared == set(names.values())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    expected = {f"blocks.{i}.{name}" for i in range(3) for name in matrices}
    assert decayed == expected | {"patch_embed.proj.weight", "head.weight", "head_dist.weight"}


def test_decay_moves_weights_and_nothing_else():
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, Recipe(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["head.weight"], before["head.weight"] * (1 - 0.1 * 0.5))
    for name in ("head.bias", "norm.weight", "cls_token", "pos_embed"):
        assert torch.equal(after[name], before[name])


def test_layer_decay():
    model = small()
    optimizer = build_optimizer(model, Recipe(learning_rate=1.0, layer_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate["head.weight"] == rate["norm.bias"] == 1.0
    assert rate["blocks.2.attn.qkv.weight"] == 0.5
    assert rate["blocks.1.mlp.fc1.bias"] == 0.25
    assert rate["blocks.0.norm1.weight"] == 0.125
    assert rate["patch_embed.proj.weight"] == rate["cls_token"] == rate["pos_embed"] == 0.0625


def test_kinds_of_optimiser():
    adam = build_optimizer(small(), Recipe(betas=(0.8, 0.9)))
    assert isinstance(adam, torch.optim.AdamW)
    assert adam.defaults["betas"] == (0.8, 0.9)
    assert adam.defaults["fused"]
    assert not build_optimizer(small(), Recipe(precision="16-mixed")).defaults["fused"]
    sgd = build_optimizer(small(), Recipe(optimizer="sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)


# targets and losses


def task(model=None, log_every=1, **options):
    return SupervisedTask(model or small(), Recipe(**options), steps=10, log_every=log_every)


def batch(n=8, size=(16,)):
    return Batch(torch.randn(n, 2, *size), torch.rand(n, *size) > 0.1, torch.arange(n) % 4)


def test_targets_without_augmentation():
    given = batch()
    x, mask, targets = task(**PLAIN).augment(given)
    assert torch.equal(x, given.x)
    assert torch.equal(mask, given.mask)
    assert torch.equal(targets, F.one_hot(given.labels, 4).float())
    _, _, targets = task(**PLAIN | {"label_smoothing": 0.2}).augment(given)
    assert targets[1].tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


@pytest.mark.parametrize("size", [(16,), (8, 8), (4, 4, 4)])
@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.5, "cutmix": 0.5}])
def test_targets_sum_to_one(size, options):
    every = {"flip": 0.5, "noise": 0.1, "warp": 0.7, "scale": 0.1, "channel_drop": 0.3}
    made = task(small(size), mix_prob=1.0, **every, **options)
    for seed in range(5):
        torch.manual_seed(seed)
        given = batch(size=size)
        x, mask, targets = made.augment(given)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert targets.min() >= 0.1 / 4 - 1e-6  # the smoothing's share
        assert x.shape == given.x.shape
        assert mask.shape == given.mask.shape
        assert not torch.equal(x, given.x)


def test_shares_of_mixed_batches():
    def mixed(**options):
        found, made = 0, task(**PLAIN | options)
        for seed in range(200):
            torch.manual_seed(seed)
            targets = made.augment(batch(2))[2]
            found += not torch.equal(targets, F.one_hot(torch.arange(2), 4).float())
        return found / 200

    assert mixed(mixup=0.5, mix_prob=0.0) == 0
    # two examples are shuffled into themselves half the time
    assert 0.35 < mixed(mixup=0.5, mix_prob=1.0) < 0.65
    assert 0.1 < mixed(mixup=0.5, mix_prob=0.5) < 0.4


def test_noise_has_its_deviation():
    given = Batch(torch.zeros(64, 2, 100), None, torch.zeros(64, dtype=torch.long))
    x, mask, _ = task(**PLAIN | {"noise": 0.3}).augment(given)
    assert x.std() == pytest.approx(0.3, rel=0.03)
    assert mask is None


@pytest.mark.parametrize("option", [{"warp": 0.7}, {"scale": 0.1}, {"channel_drop": 0.5}])
def test_each_augmentation_is_switched_on_by_its_field(option):
    given = Batch(torch.randn(8, 2, 16), None, torch.arange(8) % 4)
    assert torch.equal(task(**PLAIN).augment(given)[0], given.x)
    x, _, targets = task(**PLAIN | option).augment(given)
    assert not torch.allclose(x, given.x, atol=1e-2)
    assert torch.equal(targets, F.one_hot(given.labels, 4).float())


def test_pictures_that_were_cropped_when_they_were_read_are_warped_still():
    given = Batch(torch.randn(8, 2, 8, 8), None, torch.arange(8) % 4)
    for options, changed in (({"crop": 0.5, "flip": 1.0}, False), ({"crop": 0.5, "warp": 0.7}, True)):
        varied = SupervisedTask(small((8, 8)), Recipe(**PLAIN | options), 10, 1, varied=True)
        assert torch.allclose(varied.augment(given)[0], given.x, atol=1e-2) != changed


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
OTHER = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
TARGETS = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
LOSSES = math.log(1 + math.exp(-2)), math.log(2)
OTHERS = math.log(2), 0.25 * (math.log(1 + math.exp(3))) + 0.75 * math.log(1 + math.exp(-3))


def test_loss_by_hand():
    assert supervised_loss(LOGITS, TARGETS, Recipe()).item() == pytest.approx(sum(LOSSES) / 2)
    # a distilled network without a teacher: the mean of its two heads' losses
    found = supervised_loss((LOGITS, OTHER), TARGETS, Recipe(), distilled=True)
    assert found.item() == pytest.approx((sum(LOSSES) + sum(OTHERS)) / 4)
    # an auxiliary head over the stem adds its share
    found = supervised_loss((LOGITS, OTHER), TARGETS, Recipe(stem_loss=0.4))
    assert found.item() == pytest.approx((sum(LOSSES) + 0.4 * sum(OTHERS)) / 2)


def test_class_weights_weight_the_targets():
    # each target's share of a class counts as that class weighs
    weight = torch.tensor([0.5, 1.5])
    first = 0.5 * math.log(1 + math.exp(-2))
    second = (0.5 * 0.25 + 1.5 * 0.75) * math.log(2)
    found = supervised_loss(LOGITS, TARGETS, Recipe(), class_weight=weight)
    assert found.item() == pytest.approx((first + second) / 2)
    for options in ({"distilled": True}, {}):  # both heads that learn from labels
        plain = supervised_loss((LOGITS, LOGITS), TARGETS, Recipe(stem_loss=0.4), class_weight=weight, **options)
        assert plain.item() == pytest.approx((1 if options else 1.4) * (first + second) / 2)


def test_the_loss_of_each_class_by_itself():
    def there(z):
        return math.log(1 + math.exp(-z))

    recipe = Recipe(loss="sigmoid", label_smoothing=0.0)
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 3.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0]])  # the second is mixed of two, and both are there
    rows = there(2) + there(0) + there(1), there(0.5) + there(3) + there(0)
    assert label_loss(logits, targets, recipe, None).item() == pytest.approx(sum(rows) / 2)
    # a new head, by which each class has 1 / classes, begins where that of all classes together does
    start = label_loss(torch.full((1, 1000), -math.log(1000)), F.one_hot(torch.tensor([3]), 1000).float(), recipe, None)
    assert math.log(1000) < start.item() < math.log(1000) + 1.001
    smooth = 0.7 * targets + 0.1
    found = label_loss(logits, smooth, Recipe(loss="sigmoid", label_smoothing=0.3), None).item()
    extra = [0.2 * 2.0 + 0.1 * 1.0, 0.2 * 0.5 + 0.2 * 3.0]  # a target t instead of 1 adds (1 - t) z, instead of 0 -t z
    assert found == pytest.approx((sum(rows) + extra[0] + extra[1]) / 2)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_class_weights_do_what_repeating_examples_would(loss):
    recipe, labels = Recipe(loss=loss, label_smoothing=0.0), torch.tensor([0, 0, 1])
    logits, targets = torch.randn(3, 2), F.one_hot(labels, 2).float()
    weight = class_weights(replace(recipe, class_weight="balanced"), labels, 2)
    often = torch.tensor([0, 1, 2, 2])
    repeated = label_loss(logits[often], targets[often], recipe, None)
    assert label_loss(logits, targets, recipe, weight).item() == pytest.approx(repeated.item())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_losses_of_half_precision_are_in_single(loss):
    logits, targets = torch.randn(4, 3).bfloat16(), F.one_hot(torch.arange(4) % 3, 3).float()
    weight = torch.tensor([0.5, 1.0, 1.5])
    with torch.autocast("cpu", torch.bfloat16):
        found = label_loss(logits, targets, Recipe(loss=loss), weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, label_loss(logits.float(), targets, Recipe(loss=loss), weight))


def test_class_weights_by_hand():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 1)
    found = class_weights(Recipe(class_weight="balanced"), labels, 3)
    assert found.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])  # n / (classes * count): its mean is 1 already
    found = class_weights(Recipe(class_weight=(1, 2, 0)), labels, 3)
    assert found.tolist() == pytest.approx([1 / 1.2, 2 / 1.2, 0])  # the mean over the examples is (6 + 6) / 10
    assert found[labels].mean().item() == pytest.approx(1)
    assert class_weights(Recipe(), labels, 3) is None
    # a class without examples leaves the others' as they are
    found = class_weights(Recipe(class_weight="balanced"), labels[:9], 3)
    assert found[:2].tolist() == pytest.approx([0.75, 1.5])
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="class_weight has 2 numbers for 3 classes: give one a class, or balanced"):
        class_weights(Recipe(class_weight=(1, 2)), labels, 3)
    with pytest.raises(ValueError, match=r"class_weight \(0.0, 0.0, 1.0\) leaves no training example"):
        class_weights(Recipe(class_weight=(0, 0, 1)), labels[:9], 3)


def test_balanced_weights_equal_repeated_examples(tmp_path):
    # the first step over all examples: weights do what repeating the rarer class would
    x, y = toy(40)
    rare = np.flatnonzero((y == 0) | (np.arange(40) % 8 == 1))  # 20 of one class, 5 of the other
    often = np.concatenate([rare[y[rare] == 0], *[rare[y[rare] == 1]] * 4])
    options = PLAIN | {"steps": 1, "optimizer": "sgd", "learning_rate": 0.1, "warmup": 0.0, "grad_clip": 0.0}
    run_tiny((x[rare], y[rare], x, y), tmp_path / "plain", batch_size=25, **options)
    weighted = run_tiny((x[rare], y[rare], x, y), tmp_path / "a", batch_size=25, class_weight="balanced", **options)
    mean, std = weighted.model.preprocess.mean, weighted.model.preprocess.std
    with pytest.MonkeyPatch.context() as patch:  # the same standardisation of both
        from ndvit.data.preprocess.base import Moments

        patch.setattr(Moments, "mean", lambda self: mean)
        patch.setattr(Moments, "std", lambda self: std)
        run_tiny((x[often], y[often], x, y), tmp_path / "b", batch_size=40, **options)
    assert close(tmp_path / "a", tmp_path / "b", 1e-5)
    assert not close(tmp_path / "a", tmp_path / "plain", 1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_weight": "even"}, "class_weight must be balanced, or one number of at least 0 .* got 'even'"),
        ({"class_weight": (0, 0)}, "not all of them 0"),
        ({"class_weight": (1, -1)}, "at least 0 for each class"),
        ({"class_weight": ()}, "one number"),
        ({"distillation": "warm"}, "distillation must be one of hard, soft; got 'warm'"),
        ({"distillation_weight": 1.1}, "distillation_weight must be a number, at least 0 and at most 1; got 1.1"),
        ({"temperature": 0}, "temperature must be a number, above 0; got 0"),
        ({"warp": -1}, "warp must be a number, at least 0; got -1"),
        ({"channel_drop": 1.0}, "channel_drop must be a number, at least 0 and below 1; got 1.0"),
        ({"scale": None}, "scale must be a number, at least 0; got None"),
        ({"stem_loss": -0.1}, "stem_loss must be a number, at least 0; got -0.1"),
    ],
)
def test_what_augmentation_and_losses_refuse(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


def test_class_weights_as_yaml_has_them():
    import yaml

    recipe = Recipe(class_weight=(np.float64(1), 2))
    text = yaml.safe_dump(recipe.to_dict())
    assert Recipe.from_dict(yaml.safe_load(text)) == recipe
    assert recipe.class_weight == (1.0, 2.0)


def test_what_a_pair_would_answer():
    assert predicted_logits((LOGITS, OTHER), True).tolist() == [[1.0, 0.0], [0.0, 1.5]]
    assert predicted_logits((LOGITS, OTHER), False) is LOGITS  # an auxiliary head does not answer
    assert predicted_logits(LOGITS, False) is LOGITS


def test_both_heads_of_a_distilled_network_learn(tmp_path):
    run = run_tiny(toy(), tmp_path / "run", steps=1, distilled=True)
    torch.manual_seed(0)
    fresh = VisionTransformer(run.model.config)
    for name in ("head.weight", "head_dist.weight", "cls_token", "dist_token"):
        assert not torch.equal(dict(run.model.named_parameters())[name], dict(fresh.named_parameters())[name])


@pytest.mark.parametrize("size", [(16,), (8, 8)])
def test_the_head_over_the_stem_learns_too(size):
    stem = {"stem": "inception", "stem_depths": (1,), "stem_width": 8, "patch_size": 4, "stem_head": True}
    model = small(size, **stem).train()
    given = batch(size=size)
    made = task(model, stem_loss=0.2, log_every=100, **PLAIN)
    loss = made.training_step(given, 0)
    first, second = (F.cross_entropy(z, given.labels) for z in model(given.x, given.mask))
    assert torch.allclose(loss, first + 0.2 * second, atol=1e-5)
    loss.backward()
    assert torch.stack([p.grad.norm() for p in model.stem_head.parameters()]).min() > 0
    with torch.no_grad():
        model.eval()
        assert torch.equal(predicted_logits(model(given.x), False), model(given.x))


def test_the_first_loss_of_a_run_by_hand(tmp_path):
    # whole batch, no augmentation: the loss of step 1 is that of the initial network
    source = toy(40)
    run = run_tiny((*source, *source), tmp_path / "run", steps=1, batch_size=40, **PLAIN)
    torch.manual_seed(0)
    fresh = VisionTransformer(run.model.config)
    x = torch.stack([run.model.preprocess(example) for example in source[0]])
    loss = F.cross_entropy(fresh(x), torch.from_numpy(source[1]))
    assert run.fit.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)


# steps


@pytest.mark.parametrize(
    ("options", "examples", "steps"),
    [
        ({}, 50, 1000),
        ({"steps": 7}, 50, 7),
        ({"epochs": 1, "batch_size": 8}, 64, 8),
        ({"epochs": 3, "batch_size": 10}, 25, 8),  # 7.5
        ({"epochs": 2, "batch_size": 10, "accumulate": 2}, 25, 3),  # 2.5
        ({"epochs": 1, "batch_size": 64}, 10, 1),
    ],
)
def test_steps_of_a_run(options, examples, steps):
    assert Recipe(**options).total_steps(examples) == steps


def test_epochs_of_a_run(tmp_path):
    assert run_tiny(toy(), tmp_path / "run", epochs=2, batch_size=6).fit.steps == 11  # 2 * 32 / 6


def close(one, other, tolerance):
    a, b = tensors(one), tensors(other)
    return all(torch.allclose(a[name], b[name], atol=tolerance) for name in a)


def test_accumulation_equals_a_larger_batch(tmp_path):
    # sgd, because Adam makes 1e-4 of a rounding error where a gradient is 0, as that of the keys' biases is
    options = PLAIN | {"steps": 5, "optimizer": "sgd", "learning_rate": 0.1}
    run_tiny(toy(), tmp_path / "large", batch_size=12, **options)
    run_tiny(toy(), tmp_path / "small", batch_size=4, accumulate=3, **options)
    run_tiny(toy(), tmp_path / "other", batch_size=4, **options)
    assert close(tmp_path / "large", tmp_path / "small", 1e-5)
    assert not close(tmp_path / "large", tmp_path / "other", 1e-3)


def test_gradients_are_clipped(tmp_path):
    # without momentum's history a step of sgd under decay 0 is rate * (1 + .9) * gradient: Nesterov's first step
    options = PLAIN | {"steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "warmup": 0.0, "weight_decay": 0.0}
    for clip in (0.01, 0.05):
        run = run_tiny(toy(), tmp_path / str(clip), grad_clip=clip, **options)
        torch.manual_seed(0)
        fresh = VisionTransformer(run.model.config)
        moved = [(a - b).norm() for a, b in zip(run.model.parameters(), fresh.parameters())]
        assert torch.stack(moved).norm().item() == pytest.approx(1.9 * clip, rel=1e-3)
    run = run_tiny(toy(), tmp_path / "free", grad_clip=0.0, **options)
    torch.manual_seed(0)
    fresh = VisionTransformer(run.model.config)
    moved = [(a - b).norm() for a, b in zip(run.model.parameters(), fresh.parameters())]
    assert torch.stack(moved).norm() > 0.2


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precision(tmp_path, precision):
    run = run_tiny(toy(), tmp_path / "run", steps=2, precision=precision, grad_clip=0.5)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    for switch in (False, True):
        run_tiny(toy(), tmp_path / str(switch), steps=3, grad_checkpointing=switch, drop_rate=0.1)
    assert same_result(tmp_path / "False", tmp_path / "True")


@pytest.mark.parametrize("ema_decay", [0.05, 0.3])
def test_moving_average_by_hand(ema_decay):
    average = fitting.MovingAverage(ema_decay)
    model = torch.nn.Linear(1, 1, bias=False)
    values = [1.0, 2.0, 4.0, -3.0, 0.5]
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=average._use_buffers, **average._kwargs)
    mean = values[0]  # the first update copies
    for n, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        if n:
            decay = min(ema_decay, (1 + n) / (10 + n))  # 2/11, 3/12, 4/13, ...
            mean = decay * mean + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(mean, rel=1e-5)


def test_moving_average_of_batch_norm_belongs_to_the_averaged_weights():
    average = fitting.MovingAverage(0.5)
    model = torch.nn.BatchNorm1d(2)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=average._use_buffers, **average._kwargs)
    means = []
    for n in range(4):
        model(torch.full((2, 2), 10.0 * n))
        averaged.update_parameters(model)
        means.append(model.running_mean.clone())
    expected = means[0]
    for n, mean in enumerate(means[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * mean
    assert torch.allclose(averaged.module.running_mean, expected)
    assert averaged.module.num_batches_tracked == 4


def test_a_run_keeps_the_average_of_its_steps(tmp_path, monkeypatch):
    seen = []
    step = fitting.MovingAverage.on_train_batch_end

    def noting(self, trainer, module, *args):
        step(self, trainer, module, *args)
        if not trainer.fit_loop._should_accumulate():
            seen.append(module.model.head.weight.detach().clone())

    monkeypatch.setattr(fitting.MovingAverage, "on_train_batch_end", noting)
    run = run_tiny(toy(), tmp_path / "run", steps=5, accumulate=2, ema_decay=0.25, val_fraction=0.25, val_every=2)
    assert len(seen) == 5
    mean = seen[0]
    for n, weight in enumerate(seen[1:], start=1):
        decay = min(0.25, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * weight
    assert torch.allclose(run.model.head.weight, mean, atol=1e-6)
    assert not torch.allclose(run.model.head.weight, seen[-1], atol=1e-6)


# validation and early stop


def test_validation_numbers_by_hand(tmp_path):
    # one step at rate 0 or nearly so: the network that is validated is known
    run = run_tiny(toy(80), tmp_path / "run", steps=2, val_every=2, val_fraction=0.25, batch_size=6)
    from ndvit.data.sources.load import load_source
    from ndvit.training.plan import with_validation

    data = with_validation(load_source(toy(80)), Recipe(val_fraction=0.25))
    x = torch.stack([run.model.preprocess(example) for example in data.val])
    with torch.no_grad():
        logits = run.model(x)
    labels = torch.from_numpy(data.val.labels)
    row = run.fit.history[-1]
    assert len(labels) == 16  # two batches of six and one of four: a mean over examples, not over batches
    assert row["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = (logits.argmax(1) == labels).float()
    assert row["val_accuracy"] == pytest.approx(right.mean().item())
    each = [right[labels == label].mean().item() for label in (0, 1)]
    assert row["val_balanced_accuracy"] == pytest.approx(sum(each) / 2)


def test_early_stop_keeps_the_best_weights(tmp_path):
    options = {"val_fraction": 0.25, "val_every": 1, "learning_rate": 0.05, "batch_size": 8}
    run = run_tiny(toy(), tmp_path / "run", steps=30, early_stop=3, **options)
    losses = [row["val_loss"] for row in run.fit.history]
    best = int(np.argmin(losses))
    assert run.fit.steps == best + 1 + 3 < 30
    # the weights are those of the best step: a run with the same schedule, read at that step
    seen = {}
    with pytest.MonkeyPatch.context() as patch:

        def noting(self, trainer, module, *args):
            seen[trainer.global_step] = module.model.head.weight.detach().clone()

        patch.setattr(fitting.SameRun, "on_train_batch_end", noting, raising=False)
        run_tiny(toy(), tmp_path / "again", steps=30, early_stop=3, **options)
    assert torch.equal(run.model.head.weight, seen[best + 1])
    assert not torch.equal(run.model.head.weight, seen[best + 4])


def test_early_stop_that_never_comes_keeps_the_best_too(tmp_path):
    options = {"val_fraction": 0.25, "val_every": 1, "learning_rate": 0.05, "batch_size": 8, "steps": 6}
    run = run_tiny(toy(), tmp_path / "run", early_stop=100, **options)
    losses = [row["val_loss"] for row in run.fit.history]
    assert run.fit.steps == 6
    x = run_tiny(toy(), tmp_path / "last", **options)
    if np.argmin(losses) == 5:
        assert torch.equal(run.model.head.weight, x.model.head.weight)
    else:
        assert not torch.equal(run.model.head.weight, x.model.head.weight)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    with pytest.raises(
        ValueError, match=r"the loss is nan at step \d+, .* diverged: try a learning_rate below 9\.9e\+29"
    ):
        run_tiny(toy(), tmp_path / "run", steps=20, learning_rate=1e30, warmup=0.0, optimizer="sgd", grad_clip=0.0)
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[1] == "nan"


# answers


def test_probabilities_of_every_example_in_order():
    from ndvit.data.loading import Inputs
    from ndvit.data.preprocess.signals import SignalPreprocess

    model = small()
    x = toy(10)[0]
    inputs = Inputs(Examples(list(x)), SignalPreprocess(size=(16,), mean=(0.0, 0.0), std=(1.0, 1.0)))
    model.train()
    rows = predict_probabilities(model, inputs, batch_size=4)
    assert rows.shape == (10, 4)
    assert rows.dtype == np.float32
    assert rows.sum(1) == pytest.approx(1, abs=1e-5)
    assert not model.training
    with torch.no_grad():
        assert np.allclose(rows, model(torch.from_numpy(x)).softmax(1), atol=1e-6)
    empty = Inputs(Examples([]), inputs.preprocess)
    assert predict_probabilities(model, empty).shape == (0, 4)


def test_devices(monkeypatch):
    assert pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == "mps"
    with pytest.raises(ValueError, match="there is no device cuda here: use auto or mps or cpu"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="there is no device gpu here"):
        pick_device("gpu")


def test_create_model_trains_in_a_plain_loop():
    # the network knows no trainer: its groups, a loss, a step
    model = create_model("vit_pico", input_size=16, in_channels=2, num_classes=4, weight_init="balanced", depth=2)
    optimizer = build_optimizer(model, Recipe(learning_rate=3e-3))
    given = batch()
    targets = F.one_hot(given.labels, 4).float()
    losses = []
    for _ in range(20):
        loss = supervised_loss(model(given.x, given.mask), targets, Recipe())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
