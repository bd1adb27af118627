"""Random convolutions against naive loops, their linear head against scikit-learn and against leaving examples out."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from ndvit.config import ViTConfig, named_config
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.sources.load import load_source
from ndvit.network import VisionTransformer, random_convolutions
from ndvit.network.random_convolutions import KERNELS, Rocket
from ndvit.training import ridge as solving
from ndvit.training.fit import fit
from ndvit.training.plan import plan_fine_tuning, plan_model
from ndvit.training.ridge import solve_rocket
from ndvit.weights.file import save_model
from ndvit.weights.loading import load_model
from ndvit.weights.opening import open_weights


def signals(n: int = 30, channels: int = 1, length: int = 40, classes: int = 3, seed: int = 0) -> Inputs:
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    waves = np.sin(np.linspace(0, 6, length)[None, None] * (1 + labels[:, None, None]) + random.uniform(size=(n, 1, 1)))
    values = (waves + 0.5 * random.standard_normal((n, channels, length))).astype(np.float32)
    examples = Examples(list(values), labels)
    return Inputs(examples, SignalPreprocess.fit(examples))


def all_of(inputs: Inputs):
    return inputs.__getitems__(list(range(len(inputs))))


def test_kernels_are_all_placements_of_three_twos_and_sum_to_zero():
    kernels = Rocket(1, 50, 1000, 2).kernels
    assert kernels.shape == (84, 9)
    assert kernels.sum(1).eq(0).all()
    assert {tuple(np.flatnonzero(k)) for k in (kernels == 2).numpy()} == set(itertools.combinations(range(9), 3))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("length", [5, 40])
def test_features_are_shares_above_biases_where_observed(channels, length, gaps):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, channels, length, generator=generator)
    shown = torch.rand(4, length, generator=generator) > 0.2 if gaps else torch.ones(4, length, dtype=torch.bool)
    mask = shown if gaps else None
    rocket = Rocket(channels, length, 6 * Rocket.smallest, 2)
    rocket.draw(x, mask, torch.Generator().manual_seed(2))
    features = rocket.features(x, mask)
    assert features.shape == (4, 6 * Rocket.smallest) == (4, rocket.head.in_features)
    expected, start, number = [], 0, 0
    both = shown[:, 1:] & shown[:, :-1]  # a difference is observed where both its ends are
    for values, seen, plan in zip((x, x[:, :, 1:] - x[:, :, :-1]), (shown, both), rocket.plans):
        assert sum(count for _, count in plan) == 6
        for dilation, count in plan:
            for i in range(count):
                for k in range(KERNELS):
                    weight = rocket.chosen[number, k, :, None] * rocket.kernels[k]
                    padded = F.conv1d(values, weight[None], padding=4 * dilation, dilation=dilation)[:, 0]
                    edge, width = 4 * dilation, values.shape[2]
                    part = slice(edge, width - edge) if i % 2 and width > 2 * edge else slice(None)
                    above = (padded > rocket.biases[start + i * KERNELS + k])[:, part] & seen[:, part]
                    expected.append(above.sum(1) / seen[:, part].sum(1).clamp(min=1))
            start += count * KERNELS
            number += 1
    assert torch.allclose(features, torch.stack(expected, 1), atol=1e-6)
    assert (0.3 if length == 40 else 0.2) < features.mean() < 0.7  # biases are quantiles of such outputs


def test_biases_are_quantiles_of_what_was_observed():
    x = torch.randn(6, 1, 400)
    mask = torch.zeros(6, 400, dtype=torch.bool)
    mask[:, :40] = True
    x[:, :, 40:] = x[:, :, 39:40]  # as a short signal is held
    rockets = [Rocket(1, 400, 20 * Rocket.smallest, 2) for _ in range(2)]
    for rocket, seen in zip(rockets, (None, mask)):
        rocket.draw(x, seen, torch.Generator().manual_seed(0))
    # most outputs of all are 0, and as biases tell nothing
    assert (rockets[0].biases.abs() < 1e-3).float().mean() > 0.5
    assert (rockets[1].biases.abs() < 1e-3).float().mean() < 0.05
    rockets[1].draw(x, torch.zeros_like(mask), torch.Generator().manual_seed(0))  # of nothing observed
    assert rockets[1].biases.isfinite().all()


def test_of_long_signals_some_places_tell_the_quantiles(monkeypatch):
    x = torch.randn(8, 2, 3000, generator=torch.Generator().manual_seed(0))
    rockets = [Rocket(2, 3000, 4 * Rocket.smallest, 2) for _ in range(2)]
    rockets[0].draw(x, None, torch.Generator().manual_seed(0))
    monkeypatch.setattr(random_convolutions, "_MOST_PLACES", 500)
    rockets[1].draw(x, None, torch.Generator().manual_seed(0))
    one, two = (rocket.features(x) for rocket in rockets)
    assert not torch.equal(rockets[0].biases, rockets[1].biases)
    assert (one - two).abs().max() < 0.12  # of 500 draws a share is known to .02


def test_rounding_decides_nothing_where_signals_have_few_levels():
    random = np.random.default_rng(0)
    steps = np.repeat(random.standard_normal((8, 1, 8)), 32, axis=2).astype(np.float32)
    x = torch.from_numpy(steps)
    rocket = Rocket(1, 256, 10_000, 2)
    rocket.draw(x, None, torch.Generator().manual_seed(0))
    features = rocket.features(x)
    # levels that differ in rounding only, and another order of the sums
    assert torch.equal(rocket.features(x * (1 + 2e-7)), features)
    assert torch.equal(rocket.features(x[:1]), features[:1])
    assert torch.equal(rocket.features(x.double()), features)


def test_under_autocast_it_says_the_same():
    inputs = signals()
    rocket = Rocket(1, 40, 800, 3)
    solve_rocket(rocket, inputs, seed=0)
    x = all_of(inputs).x
    with torch.autocast("cpu", torch.bfloat16):
        answer = rocket(x)
    assert torch.equal(answer, rocket(x))
    assert answer.dtype == torch.float32


def test_dilations_span_the_signal():
    plan = dict(Rocket(1, 129, 20_000, 2).plans[0])
    assert min(plan) == 1
    assert max(plan) == 16  # nine taps, 16 apart, are 129 samples
    assert sum(plan.values()) == 20_000 // (2 * 84)


def test_channels_are_chosen_at_random_and_few():
    rocket = Rocket(12, 30, 2000, 2)
    rocket.draw(torch.randn(3, 12, 30), None, torch.Generator().manual_seed(0))
    counts = rocket.chosen.sum(2)
    assert counts.min() == 1
    assert counts.max() <= 9
    assert counts.float().mean() < 5
    assert rocket.chosen.sum((0, 1)).min() > 0  # every channel is seen by some kernel


def test_what_is_hidden_is_not_counted():
    x = torch.randn(2, 1, 64)
    rocket = Rocket(1, 64, 400, 2)
    rocket.draw(x, None, torch.Generator().manual_seed(0))
    assert torch.allclose(rocket.features(x, torch.ones(2, 64, dtype=torch.bool)), rocket.features(x), atol=1e-6)
    mask = torch.ones(2, 64, dtype=torch.bool)
    mask[:, 40:] = False
    other = x.clone()
    # kernels of dilation d reach 4 d samples: the first features (dilation 1, on the signal) see 4 behind the end
    other[:, :, 44:] = 9
    count = rocket.plans[0][0][1] * KERNELS
    assert torch.equal(rocket.features(x, mask)[:, :KERNELS], rocket.features(other, mask)[:, :KERNELS])
    assert not torch.equal(rocket.features(x)[:, :count], rocket.features(other)[:, :count])


def test_the_solution_is_ridge_regression():
    inputs = signals()
    rocket = Rocket(1, 40, 800, 3)
    found = solve_rocket(rocket, inputs, seed=0)
    batch = all_of(inputs)
    z = ((rocket.features(batch.x) - rocket.mean) * rocket.scale).double().numpy()
    targets = 2 * F.one_hot(batch.labels, 3).double().numpy() - 1
    ridge = Ridge(alpha=found["penalty"]).fit(z, targets)
    scores = found["sharpness"] * ridge.predict(z)
    assert np.abs(rocket(batch.x).numpy() - scores).max() < 2e-3 * np.abs(scores).max()


def test_leaving_one_out_is_what_leaving_one_out_gives(monkeypatch):
    monkeypatch.setattr(solving, "_PENALTIES", np.array([0.03]))
    inputs = signals(n=18)
    rocket = Rocket(1, 40, 400, 3)
    found = solve_rocket(rocket, inputs, seed=0)
    batch = all_of(inputs)
    z = ((rocket.features(batch.x) - rocket.mean) * rocket.scale).double().numpy()
    targets = 2 * F.one_hot(batch.labels, 3).double().numpy() - 1
    rows = []
    for i in range(18):  # solved anew without the example
        rest = np.arange(18) != i
        rows.append(Ridge(alpha=found["penalty"]).fit(z[rest], targets[rest]).predict(z[i : i + 1])[0])
    logits = torch.tensor(np.array(rows)) * found["sharpness"]
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=0.02)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == batch.labels).double().mean().item())


def test_noise_is_answered_with_doubt():
    random = np.random.default_rng(0)
    examples = Examples(list(random.standard_normal((60, 1, 30)).astype(np.float32)), np.arange(60) % 2)
    rocket = Rocket(1, 30, 1000, 2)
    found = solve_rocket(rocket, Inputs(examples, SignalPreprocess.fit(examples)), seed=0)
    assert found["loss"] < 0.75  # ln 2 is .69: it does not claim to know
    new = torch.from_numpy(random.standard_normal((200, 1, 30)).astype(np.float32))
    assert rocket(new).softmax(1).max(1).values.mean() < 0.75


def test_it_learns_waves_and_follows_its_seed():
    inputs, other = signals(seed=1), all_of(signals(n=90, seed=2))
    solved = [Rocket(1, 40, 2000, 3) for _ in range(3)]
    for rocket, seed in zip(solved, (0, 0, 1)):
        solve_rocket(rocket, inputs, seed)
    answers = [rocket(other.x) for rocket in solved]
    assert (answers[0].argmax(1) == other.labels).float().mean() > 0.95
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_of_many_examples_some_are_drawn(monkeypatch):
    monkeypatch.setattr(solving, "MOST_EXAMPLES", 12)
    monkeypatch.setattr(solving, "_MOST_DRAWN_ON", 5)
    rocket = Rocket(1, 40, 400, 3)
    assert solve_rocket(rocket, signals(), seed=0)["examples"] == 12
    assert rocket.biases.abs().sum() > 0


def test_of_each_class_its_share_is_drawn_and_two_at_least(monkeypatch):
    monkeypatch.setattr(solving, "MOST_EXAMPLES", 100)
    labels = torch.tensor([0] * 9000 + [1] * 900 + [2] * 3 + [3])
    for seed in range(3):
        chosen = solving._draw(labels, torch.Generator().manual_seed(seed))
        assert chosen.unique().tolist() == chosen.tolist()
        counts = labels[chosen].bincount()
        assert counts.sum() == 100
        assert counts[3] == 1
        assert counts[2] == 2
        assert counts[1] == pytest.approx(9, abs=2)


def test_class_weights_move_its_odds(monkeypatch):
    monkeypatch.setattr(solving, "_PENALTIES", np.array([0.03]))
    inputs = signals(n=60)
    x = all_of(inputs).x
    plain, weighted = Rocket(1, 40, 800, 3), Rocket(1, 40, 800, 3)
    one = solve_rocket(plain, inputs, seed=0)
    weight = torch.tensor([0.2, 0.2, 2.6])
    two = solve_rocket(weighted, inputs, 0, weight)
    assert one["loss"] != two["loss"]
    scale = two["sharpness"] / one["sharpness"]
    assert torch.allclose(weighted(x), plain(x) * scale + weight.log(), atol=1e-3)
    noise = torch.randn(50, 1, 40)
    assert weighted(noise).softmax(1)[:, 2].mean() > plain(noise).softmax(1)[:, 2].mean() + 0.1
    solve_rocket(weighted, inputs, 0, torch.tensor([1.5, 1.5, 0.0]))
    assert weighted(x).isfinite().all()
    assert weighted(noise).argmax(1).ne(2).all()  # what weighs nothing is never said


def test_constant_signals_and_twins_do_no_harm():
    values = np.zeros((6, 1, 20), dtype=np.float32)
    values[3:] = np.sin(np.arange(20))
    examples = Examples(list(values), [0, 0, 0, 1, 1, 1])
    rocket = Rocket(1, 20, 400, 2)
    solve_rocket(rocket, Inputs(examples, SignalPreprocess.fit(examples)), seed=0)
    batch = all_of(Inputs(examples, SignalPreprocess.fit(examples)))
    assert rocket(batch.x).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in rocket.state_dict().values())  # files with others are refused
    assert rocket(batch.x).argmax(1).tolist() == [0, 0, 0, 1, 1, 1]


def test_before_it_is_solved_all_classes_are_alike():
    assert Rocket(2, 20, 400, 4)(torch.randn(3, 2, 20)).eq(0).all()


def small(**changes) -> VisionTransformer:
    values = {"input_size": (40,), "patch_size": 4, "in_channels": 1, "num_classes": 3, "embed_dim": 8, "depth": 1}
    return VisionTransformer(ViTConfig(**(values | {"num_heads": 2, "rocket_features": 400} | changes)))


@pytest.mark.parametrize("weight", [0.5, 0.8])
def test_a_network_answers_with_a_mean_of_both_logits_and_trains_without_it(weight):
    inputs = signals()
    model = small(rocket_weight=weight)
    solve_rocket(model.rocket, inputs, seed=0)
    x = all_of(inputs).x
    alone = small(rocket_features=0)
    alone.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("rocket.")})
    expected = (1 - weight) * alone.eval()(x) + weight * model.rocket(x)
    assert torch.equal(model.eval()(x), expected)
    assert torch.equal(model.train()(x), alone.train()(x))
    model(x).sum().backward()
    assert model.rocket.head.weight.grad is None
    assert not any("rocket" in name for group in model.parameter_groups() for name in group["names"])


def test_training_solves_it_once_and_its_file_has_it(tmp_path):
    inputs = signals()
    model = small()
    fit(model, inputs, None, Recipe(steps=2, batch_size=4, seed=7), None, progress=False)
    twin = Rocket(1, 40, 400, 3)
    solve_rocket(twin, inputs, seed=7)
    assert twin.head.weight.abs().sum() > 0
    assert all(torch.equal(t, twin.state_dict()[n]) for n, t in model.rocket.state_dict().items())
    model.classes, x = ("a", "b", "c"), all_of(inputs).x
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded(x), model.eval()(x))


@pytest.mark.parametrize(("a_class", "weight"), [(2, 0.9), (5, 0.75), (10, 0.5), (40, 0.5)])
def test_with_few_examples_a_class_it_has_more_than_half_of_the_answer(a_class, weight, tmp_path):
    y = np.arange(3 * a_class) % 3
    X = np.random.default_rng(0).standard_normal((3 * a_class, 40)).astype(np.float32)
    data = load_source((X, y), test_fraction=0, progress=False)
    _, config = plan_model(data, "signal_tiny", Recipe(), {"rocket_features": 400})
    assert config.rocket_weight == pytest.approx(weight)
    _, config = plan_model(data, "signal_tiny", Recipe(), {"rocket_features": 400, "rocket_weight": 0.3})
    assert config.rocket_weight == 0.3
    _, config = plan_model(data, "vit_pico", Recipe(), {})
    assert (config.rocket_features, config.rocket_weight) == (0, 0.5)
    model = small()
    model.classes, model.preprocess = ("a", "b", "c"), signals().preprocess
    save_model(model, tmp_path / "model.safetensors")
    _, fitting = plan_fine_tuning(data, open_weights(tmp_path / "model.safetensors", {}), Recipe(), {})
    assert fitting["rocket_weight"] == pytest.approx(weight)
    again = load_model(tmp_path / "model.safetensors", classes=data.classes, **fitting)
    assert again.config.rocket_weight == pytest.approx(weight)


@pytest.mark.parametrize(
    "changes", [{"input_size": (80,)}, {"classes": ("x", "y")}, {"in_channels": 2}, {"rocket_features": 800}]
)
def test_of_another_input_or_other_classes_it_is_new(tmp_path, changes):
    model = small()
    model.classes = ("a", "b", "c")
    solve_rocket(model.rocket, signals(), seed=0)
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", **changes)
    assert {"rocket.head.weight", "rocket.head.bias"} <= set(loaded.untrained)
    assert loaded.rocket.head.weight.eq(0).all()
    assert loaded.rocket.biases.eq(0).all()
    assert loaded.rocket.kernels.eq(model.rocket.kernels).all()


def test_a_new_head_has_a_new_one():
    model = small()
    solve_rocket(model.rocket, signals(), seed=0)
    model.reset_head(5)
    assert model.rocket.head.weight.shape[0] == 5
    assert model.eval()(torch.randn(2, 1, 40)).shape == (2, 5)
    model.reset_head(0)
    assert model.rocket is None
    assert model(torch.randn(2, 1, 40)).shape == (2, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rocket_features": 100}, "at least 168"),
        ({"input_size": (8, 8), "patch_size": 4}, "signals of one axis"),
        ({"input_size": (2,), "patch_size": 1}, "at least 3 samples"),
        ({"rocket_features": -1}, "rocket_features must be a whole number"),
        ({"rocket_weight": 1.1}, "rocket_weight must be a number from 0 to 1, got 1.1"),
        ({"rocket_weight": "half"}, "rocket_weight must be a number from 0 to 1, got 'half'"),
    ],
)
def test_what_it_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_signal_models_have_it_along_one_axis_only():
    assert named_config("signal_small", input_size=(64,)).rocket_features == 10_000
    assert named_config("signal_small", input_size=(16, 16)).rocket_features == 0
    with pytest.raises(ValueError, match="one axis"):
        named_config("signal_small", input_size=(16, 16), rocket_features=500)
