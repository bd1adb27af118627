"""How a network learns, in numbers: schedules, parameter groups, losses, accumulation, averages, validation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ndvit import Recipe, VisionTransformer, ViTConfig, create_model
from ndvit.data.augment import plan_augmentation
from ndvit.data.examples import Examples
from ndvit.data.loading import Batch, Inputs
from ndvit.data.preprocess.base import Moments
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.sources.load import load_source
from ndvit.inference.batches import pick_device, predict_answers
from ndvit.model import Model
from ndvit.tasks import Classification
from ndvit.training.callbacks.averaging import MovingAverage
from ndvit.training.callbacks.same_run import SameRun
from ndvit.training.cost import estimate_cost
from ndvit.training.module import TrainingModule, _evaluation_output, training_loss
from ndvit.training.optim import Lamb, build_optimizer, build_schedule
from ndvit.training.plan import hold_out_validation
from tinyruns import different, fit_tiny, toy

PLAIN = {"mixup": 0.0, "crop": 1.0, "label_smoothing": 0.0}  # no augmentation
SGD = {"optimizer": "sgd", "learning_rate": 0.1}  # Adam makes large steps of rounding errors where a gradient is 0


def small(size=(16,), **options):
    torch.manual_seed(0)
    values = {"embed_dim": 16, "depth": 3, "num_heads": 2, "in_channels": 2, "num_classes": 4, "patch_size": 4}
    return VisionTransformer(ViTConfig(input_size=size, **values | options))


def initial(trained):
    """The network of a tiny fit of seed 0 before its training."""
    torch.manual_seed(0)
    return VisionTransformer(trained.model.config)


def inputs_of(trained, examples):
    return torch.stack([trained.model.preprocess(example) for example in examples])


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
    assert [found[0], found[5], found[10]] == pytest.approx([0.5, 0.25, 0], abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_of_short_runs_are_finite(steps):
    assert all(0 < rate <= 1 for rate in rates(Recipe(learning_rate=1.0), steps)[:-1])


def test_a_fit_follows_the_schedule():
    trained = fit_tiny(toy(), steps=10, learning_rate=0.01, warmup=0.2, layer_decay=0.5, accumulate=2)
    expected = rates(Recipe(learning_rate=0.01, warmup=0.2), 10)[:10]
    assert [row["learning_rate"] for row in trained.fit.history] == pytest.approx(expected, rel=1e-5)


def test_the_peak_follows_from_the_width():
    assert Recipe().peak_learning_rate(64) == pytest.approx(0.002)
    assert Recipe().peak_learning_rate(768) == pytest.approx(0.016 / math.sqrt(768))
    assert Recipe(learning_rate=0.3).peak_learning_rate(64) == 0.3
    assert build_optimizer(small(), Recipe()).param_groups[0]["lr"] == pytest.approx(0.004)
    assert build_optimizer(small(), Recipe(), pretrained=True).param_groups[0]["lr"] == pytest.approx(0.0004)


# optimizer


@pytest.mark.parametrize("size", [(16,), (8, 8), (4, 4, 4)])
def test_weight_decay_spares_norms_biases_scales_tokens_and_positions(size):
    norms = {"layer_scale": 0.1, "qk_norm": True, "patch_norm": True, "pre_norm": True}
    network = small(size, distilled=True, num_registers=2, **norms)
    groups = build_optimizer(network, Recipe(weight_decay=0.07)).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert {group["weight_decay"] for group in groups} == {0.07, 0.0}
    assert decayed | spared == set(names.values())
    assert sum(len(group["params"]) for group in groups) == len(names)
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    expected = {f"blocks.{i}.{name}" for i in range(3) for name in matrices}
    assert decayed == expected | {"patch_embed.proj.weight", "head.weight", "head_dist.weight"}


def test_decay_moves_weights_and_nothing_else():
    network = small()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = build_optimizer(network, Recipe(learning_rate=0.1, weight_decay=0.5))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(network.named_parameters())
    assert torch.allclose(after["head.weight"], before["head.weight"] * (1 - 0.1 * 0.5))
    for name in ("head.bias", "norm.weight", "cls_token", "pos_embed"):
        assert torch.equal(after[name], before[name])


def test_layer_decay():
    network = small()
    optimizer = build_optimizer(network, Recipe(learning_rate=1.0, layer_decay=0.5))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rate = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate["head.weight"] == rate["norm.bias"] == 1.0
    assert rate["blocks.2.attn.qkv.weight"] == 0.5
    assert rate["blocks.1.mlp.fc1.bias"] == 0.25
    assert rate["blocks.0.norm1.weight"] == 0.125
    assert rate["patch_embed.proj.weight"] == rate["cls_token"] == rate["pos_embed"] == 0.0625


def test_kinds_of_optimizers():
    adam = build_optimizer(small(), Recipe(betas=(0.8, 0.9)))
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["betas"], adam.defaults["fused"]) == ((0.8, 0.9), True)
    assert not build_optimizer(small(), Recipe(precision="16-mixed")).defaults["fused"]
    sgd = build_optimizer(small(), Recipe(optimizer="sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    lamb = build_optimizer(small(), Recipe(optimizer="lamb", betas=(0.8, 0.9)))
    assert isinstance(lamb, Lamb)
    assert lamb.defaults["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_is_timms(decay):
    timm = pytest.importorskip("timm.optim")
    start = [torch.randn(5, 4), torch.randn(7)]
    results = []
    for make in (Lamb, lambda p, **kw: timm.Lamb(p, max_grad_norm=None, **kw)):
        params = [torch.nn.Parameter(t.clone()) for t in start]
        optimizer = make(params, lr=0.1, betas=(0.8, 0.9), eps=1e-8, weight_decay=decay)
        for i in range(4):
            for p in params:
                p.grad = torch.sin(p.detach() + i)
            optimizer.step()
        results.append(params)
    for ours, theirs in zip(*results):
        assert torch.allclose(ours, theirs, atol=1e-6)


# one step


def module(network=None, log_every=100, **options):
    """A training module whose examples are signals of two channels or arrays of more axes."""
    network, recipe = network or small(), Recipe(**options)
    augment = plan_augmentation(SignalPreprocess(network.config.input_size, (0.0,) * 2, (1.0,) * 2), recipe).per_batch
    return TrainingModule(network, Classification("abcd"), recipe, 10, log_every, augment=augment)


def batch(n=8, size=(16,)):
    return Batch(torch.randn(n, 2, *size), torch.rand(n, *size) > 0.1, torch.arange(n) % 4)


def augmented(made, examples):
    return made.augment(examples.x, examples.mask, made.criterion.prepare(examples.targets))


@pytest.mark.parametrize("size", [(16,), (8, 8), (4, 4, 4)])
@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.5, "cutmix": 0.5}])
def test_augmented_targets_sum_to_one(size, options):
    every = {"flip": 0.5, "noise": 0.1, "warp": 0.7, "scale": 0.1, "channel_drop": 0.3}
    made = module(small(size), mix_prob=1.0, **every, **options)
    for seed in range(5):
        torch.manual_seed(seed)
        examples = batch(size=size)
        x, mask, targets = augmented(made, examples)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        assert targets.min() >= 0.1 / 4 - 1e-6  # the share of the smoothing
        assert (x.shape, mask.shape) == (examples.x.shape, examples.mask.shape)
        assert not torch.equal(x, examples.x)


def test_shares_of_mixed_batches():
    def mixed(**options):
        found, made = 0, module(**PLAIN | options)
        for seed in range(100):
            torch.manual_seed(seed)
            found += not torch.equal(augmented(made, batch(2))[2], F.one_hot(torch.arange(2), 4).float())
        return found / 100

    assert mixed(mixup=0.5, mix_prob=0.0) == 0
    # Two examples are shuffled into themselves half the time.
    assert 0.35 < mixed(mixup=0.5, mix_prob=1.0) < 0.65
    assert 0.1 < mixed(mixup=0.5, mix_prob=0.5) < 0.4


@pytest.mark.parametrize("option", [{"noise": 0.3}, {"warp": 0.7}, {"scale": 0.1}, {"channel_drop": 0.5}])
def test_each_augmentation_is_switched_on_by_its_field(option):
    examples = Batch(torch.randn(8, 2, 16), None, torch.arange(8) % 4)
    assert torch.equal(augmented(module(**PLAIN), examples)[0], examples.x)
    x, mask, targets = augmented(module(**PLAIN | option), examples)
    assert not torch.allclose(x, examples.x, atol=1e-2)
    assert torch.equal(targets, F.one_hot(examples.targets, 4).float())
    assert mask is None


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
OTHER = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
TARGETS = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
LOSSES = math.log(1 + math.exp(-2)) + math.log(2)
OTHERS = math.log(2) + 0.25 * math.log(1 + math.exp(3)) + 0.75 * math.log(1 + math.exp(-3))


def loss_of(output, recipe=None, labels=None, **options):
    recipe = recipe or Recipe()
    criterion = Classification("ab").criterion(recipe, labels)
    weights = 1 if criterion.class_weight is None else criterion.class_weight  # without smoothing, as `prepare` does
    return training_loss(output, TARGETS * weights, criterion, recipe, **options).item()


def test_the_loss_of_every_kind_of_head():
    assert loss_of(LOGITS) == pytest.approx(LOSSES / 2)
    # A distilled network without a teacher has the mean of the losses of its heads.
    assert loss_of((LOGITS, OTHER), distilled=True) == pytest.approx((LOSSES + OTHERS) / 4)
    # An auxiliary head over the stem adds its share.
    assert loss_of((LOGITS, OTHER), Recipe(stem_loss=0.4)) == pytest.approx((LOSSES + 0.4 * OTHERS) / 2)


def test_class_weights_apply_to_every_head_that_learns_from_labels():
    recipe, labels = Recipe(class_weight=(0.5, 1.5), stem_loss=0.4), torch.tensor([0, 1])
    weighted = (0.5 * math.log(1 + math.exp(-2)) + (0.5 * 0.25 + 1.5 * 0.75) * math.log(2)) / 2
    assert loss_of(LOGITS, recipe, labels) == pytest.approx(weighted)
    assert loss_of((LOGITS, LOGITS), recipe, labels, distilled=True) == pytest.approx(weighted)
    assert loss_of((LOGITS, LOGITS), recipe, labels) == pytest.approx(1.4 * weighted)


def test_outputs_in_evaluation_of_what_training_returns():
    assert _evaluation_output((LOGITS, OTHER), True).tolist() == [[1.0, 0.0], [0.0, 1.5]]
    assert _evaluation_output((LOGITS, OTHER), False) is LOGITS  # an auxiliary head is not used
    assert _evaluation_output(LOGITS, False) is LOGITS


@pytest.mark.parametrize("size", [(16,), (8, 8)])
def test_the_head_over_the_stem_learns_too(size):
    network = small(size, stem="inception", stem_depths=(1,), stem_width=8, stem_head=True).train()
    examples = batch(size=size)
    loss = module(network, stem_loss=0.2, **PLAIN).training_step(examples, 0)
    first, second = (F.cross_entropy(z, examples.targets) for z in network(examples.x, examples.mask))
    assert torch.allclose(loss, first + 0.2 * second, atol=1e-5)
    loss.backward()
    assert torch.stack([p.grad.norm() for p in network.stem_head.parameters()]).min() > 0


def test_both_heads_of_a_distilled_network_learn():
    trained = fit_tiny(toy(), steps=1, distilled=True)
    learned = different(trained, initial(trained))
    assert {"head.weight", "head_dist.weight", "cls_token", "dist_token"} <= learned


def test_the_first_loss_by_hand():
    # Whole batch, no augmentation: the loss of step 1 is that of the initial network.
    x, y = toy(40)
    trained = fit_tiny((x, y), test_fraction=0, steps=1, batch_size=40, **PLAIN)
    loss = F.cross_entropy(initial(trained)(inputs_of(trained, x)), torch.from_numpy(y))
    assert trained.fit.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_create_model_trains_in_a_plain_loop():
    # The network knows no trainer: its groups, a loss, a step.
    network = create_model("vit_pico", input_size=16, in_channels=2, num_classes=4, weight_init="balanced", depth=2)
    recipe, examples = Recipe(learning_rate=3e-3, label_smoothing=0.0), batch()
    optimizer, criterion = build_optimizer(network, recipe), Classification("abcd").criterion(recipe)
    targets, losses = criterion.prepare(examples.targets), []
    for _ in range(20):
        loss = training_loss(network(examples.x, examples.mask), targets, criterion, recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


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
def test_number_of_steps(options, examples, steps):
    assert Recipe(**options).total_steps(examples) == steps


def test_a_fit_of_epochs():
    assert fit_tiny(toy(), epochs=2, batch_size=6).fit.steps == 11  # 2 * 32 / 6


def test_accumulation_equals_a_larger_batch():
    large, accumulated, other = (
        fit_tiny(toy(), steps=5, batch_size=size, accumulate=count, **PLAIN | SGD)
        for size, count in ((12, 1), (4, 3), (4, 1))
    )
    assert not different(large, accumulated, 1e-5)
    assert different(large, other, 1e-3)


def test_balanced_weights_equal_repeated_examples(monkeypatch):
    # In a first step over all examples, weights do what repeating the rarer class does.
    x, y = toy(40)
    rare = np.flatnonzero((y == 0) | (np.arange(40) % 8 == 1))  # 20 of one class, 5 of the other
    often = np.concatenate([rare[y[rare] == 0], *[rare[y[rare] == 1]] * 4])

    def first_step(chosen, **options):
        options |= {"steps": 1, "warmup": 0.0, "grad_clip": 0.0, "test_fraction": 0, "batch_size": len(chosen)}
        return fit_tiny((x[chosen], y[chosen]), **PLAIN | SGD | options)

    plain, weighted = first_step(rare), first_step(rare, class_weight="balanced")
    for name in ("mean", "std"):  # the same standardisation of both
        values = getattr(weighted.model.preprocess, name)
        monkeypatch.setattr(Moments, name, lambda self, values=values: values)
    assert not different(weighted, first_step(often), 1e-5)
    assert different(weighted, plain, 1e-3)


@pytest.mark.parametrize("clip", [0.01, 0.05, 0.0])
def test_gradients_are_clipped(clip):
    options = {"steps": 1, "learning_rate": 1.0, "warmup": 0.0, "weight_decay": 0.0, "grad_clip": clip}
    trained = fit_tiny(toy(), **PLAIN | SGD | options)
    pairs = zip(trained.model.network.parameters(), initial(trained).parameters(), strict=True)
    moved = torch.stack([(a - b).norm() for a, b in pairs]).norm().item()
    # The first step of Nesterov's momentum is rate * (1 + .9) * gradient.
    assert moved == pytest.approx(1.9 * clip, rel=1e-3) if clip else moved > 0.2


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precision(precision):
    trained = fit_tiny(toy(), steps=2, precision=precision, grad_clip=0.5)
    assert {p.dtype for p in trained.model.network.parameters()} == {torch.float32}


def test_gradient_checkpointing_changes_no_weight():
    one, other = (fit_tiny(toy(), steps=3, grad_checkpointing=switch, drop_rate=0.1) for switch in (False, True))
    assert not different(one, other)
    assert one.fit.history == other.fit.history


@pytest.mark.parametrize("switch", [False, True])
def test_estimated_memory_has_the_weights_once(switch):
    network = small(embed_dim=256, depth=1)  # 0.8 million parameters and 5 tokens
    model = Model(network, Classification("abcd"))
    train = Inputs(Examples(list(toy()[0]), toy()[1]), SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0)))
    few, many = (estimate_cost(model, Recipe(batch_size=n, grad_checkpointing=switch), train, 10) for n in (2, 32))
    weights, activations = 16 * sum(p.numel() for p in network.parameters()), (many.bytes - few.bytes) / 30
    assert few.bytes == pytest.approx(weights + 2 * activations, abs=30)
    assert (0 if switch else 30e3) < activations < 300e3  # bytes for each example; the weights alone have 3.2 million
    assert (few.seconds, few.device) == (10 * few.step_seconds, pick_device("auto"))


# moving average


def averages(network, decay, change, updates):
    """The averages that a network has after each update; `change` changes it before."""
    average = MovingAverage(decay)
    averaged = torch.optim.swa_utils.AveragedModel(network, use_buffers=average._use_buffers, **average._kwargs)
    for n in range(updates):
        change(n)
        averaged.update_parameters(network)
        yield averaged.module


def by_hand(decay, values):
    """The moving average after each value; the first is copied, and the decay starts low: 2/11, 3/12, 4/13, ..."""
    mean = values[0]
    for n, value in enumerate(values):
        decays = min(decay, (1 + n) / (10 + n)) if n else 0
        mean = decays * mean + (1 - decays) * value
        yield mean


@pytest.mark.parametrize("decay", [0.05, 0.3])
def test_moving_average_by_hand(decay):
    network, values = torch.nn.Linear(1, 1, bias=False), [1.0, 2.0, 4.0, -3.0, 0.5]

    def change(n):
        torch.nn.init.constant_(network.weight, values[n])

    found = [averaged.weight.item() for averaged in averages(network, decay, change, 5)]
    assert found == pytest.approx(list(by_hand(decay, values)), rel=1e-5)


def test_moving_average_of_batch_norm_belongs_to_the_averaged_weights():
    network, means = torch.nn.BatchNorm1d(2), []

    def change(n):
        network(torch.full((2, 2), 10.0 * n))
        means.append(network.running_mean.clone())

    averaged = list(averages(network, 0.5, change, 4))[-1]
    assert torch.allclose(averaged.running_mean, list(by_hand(0.5, means))[-1])
    assert averaged.num_batches_tracked == 4


def head_weights(monkeypatch, callback):
    """A list that gets the head's weights after each optimizer step, when this class of callback has run."""
    found, before = [], callback.on_train_batch_end

    def noting(self, trainer, module, *args):
        before(self, trainer, module, *args)
        if not trainer.fit_loop._should_accumulate():
            found.append(module.model.head.weight.detach().clone())

    monkeypatch.setattr(callback, "on_train_batch_end", noting)
    return found


def test_a_fit_keeps_the_average_of_its_steps(monkeypatch):
    weights = head_weights(monkeypatch, MovingAverage)
    trained = fit_tiny(toy(), steps=5, accumulate=2, ema_decay=0.25, val_fraction=0.25, val_every=2)
    assert len(weights) == 5
    head = trained.model.network.head.weight
    assert torch.allclose(head, list(by_hand(0.25, weights))[-1], atol=1e-6)
    assert not torch.allclose(head, weights[-1], atol=1e-6)


# validation and early stop


def test_validation_numbers_by_hand():
    options = {"steps": 2, "val_every": 2, "val_fraction": 0.25, "batch_size": 6}
    trained = fit_tiny(toy(80), **options)
    data = hold_out_validation(load_source(toy(80)), Recipe(val_fraction=0.25))
    with torch.no_grad():
        logits = trained.model(inputs_of(trained, data.val))
    labels, row = torch.from_numpy(data.val.targets), trained.fit.history[-1]
    assert len(labels) == 16  # two batches of six and one of four: a mean over examples, not over batches
    assert row["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = (logits.argmax(1) == labels).float()
    assert row["val_accuracy"] == pytest.approx(right.mean().item())
    each = [right[labels == label].mean().item() for label in (0, 1)]
    assert row["val_balanced_accuracy"] == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize(("steps", "patience"), [(30, 3), (6, 100)])
def test_early_stop_keeps_the_best_weights(monkeypatch, steps, patience):
    weights = head_weights(monkeypatch, SameRun)
    options = {"val_fraction": 0.25, "val_every": 1, "learning_rate": 0.05, "batch_size": 8}
    trained = fit_tiny(toy(), steps=steps, early_stop=patience, **options)
    best = int(np.argmin([row["val_loss"] for row in trained.fit.history]))
    assert best < len(weights) - 1
    assert trained.fit.steps == len(weights) == min(steps, best + 1 + patience)
    assert torch.equal(trained.model.network.head.weight, weights[best])
    assert not torch.equal(trained.model.network.head.weight, weights[-1])


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    options = {"steps": 20, "learning_rate": 1e6, "warmup": 0.0, "optimizer": "sgd", "grad_clip": 0.0}
    message = r"the loss is nan at step \d+, .* diverged: try a learning_rate below 9\.\d+e\+05"
    with pytest.raises(ValueError, match=message):
        fit_tiny(toy(), tmp_path, **options)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].split(",")[1] == "nan"


# inference


def test_answers_of_every_example_in_order():
    network, x = small(), toy(10)[0]
    model = Model(network.train(), Classification("abcd"), SignalPreprocess((16,), (0.0, 0.0), (1.0, 1.0)))
    rows = predict_answers(model, Inputs(Examples(list(x)), model.preprocess), batch_size=4)
    assert (rows.shape, rows.dtype) == ((10, 4), np.float32)
    assert rows.sum(1) == pytest.approx(1, abs=1e-5)
    assert not network.training
    with torch.no_grad():
        assert np.allclose(rows, network(torch.from_numpy(x)).softmax(1), atol=1e-6)
    assert predict_answers(model, Inputs(Examples([]), model.preprocess)).shape == (0, 4)


def test_devices(monkeypatch):
    assert pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == "mps"
    with pytest.raises(ValueError, match="device cuda is not available: use auto or mps or cpu"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="device gpu is not available"):
        pick_device("gpu")
