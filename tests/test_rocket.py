"""The linear head of random convolutions, against scikit-learn and against leaving examples out; and in training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from ndvit import load_model
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.network import VisionTransformer
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks import Classification, solvers
from ndvit.training import closed_form
from ndvit.training.closed_form import solve_networks
from ndvit.training.members import usual_weight
from ndvit.training.plan import Request, plan
from tinyruns import UNSPLIT, different, fit_tiny

NETWORK = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "preset": "basic"}


def waves(n=30, classes=3, seed=0):
    """Noisy waves (n, 1, 40) whose frequency tells the class, and labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    clean = np.sin(np.linspace(0, 6, 40)[None, None] * (1 + labels[:, None, None]) + random.uniform(size=(n, 1, 1)))
    return (clean + 0.5 * random.standard_normal((n, 1, 40))).astype(np.float32), labels


def inputs_of(values, labels) -> Inputs:
    examples = Examples(list(values), np.asarray(labels))
    return Inputs(examples, SignalPreprocess.fit(examples))


def all_of(inputs: Inputs):
    return inputs.__getitems__(list(range(len(inputs))))


def solved(inputs, features=800, seed=0, **options):
    """Solved random convolutions, and the numbers of leaving one out."""
    classes = int(inputs.targets.max()) + 1
    network = RandomConvolutions(1, *inputs.preprocess.size, features, classes)
    task = Classification([str(i) for i in range(classes)])
    found = solve_networks([network], inputs, task, Recipe(seed=seed, **options))[0]
    return network, found.ridge.facts


def standardised(network, batch):
    """Features and targets of the ridge regression."""
    targets = 2 * F.one_hot(batch.targets, network.head.out_features).double().numpy() - 1
    return ((network.features(batch.x) - network.mean) * network.scale).double().numpy(), targets


def test_the_solution_is_ridge_regression():
    inputs = inputs_of(*waves())
    network, facts = solved(inputs)
    batch = all_of(inputs)
    z, targets = standardised(network, batch)
    scores = facts["sharpness"] * Ridge(alpha=facts["penalty"]).fit(z, targets).predict(z)
    assert np.abs(network(batch.x).numpy() - scores).max() < 2e-3 * np.abs(scores).max()


def test_leaving_one_out_equals_solving_without_it(monkeypatch):
    monkeypatch.setattr(solvers, "_PENALTIES", np.array([0.03]))
    inputs = inputs_of(*waves(18))
    network, facts = solved(inputs, 400)
    batch = all_of(inputs)
    z, targets = standardised(network, batch)
    rows = []
    for i in range(18):
        rest = np.arange(18) != i
        rows.append(Ridge(alpha=facts["penalty"]).fit(z[rest], targets[rest]).predict(z[i : i + 1])[0])
    logits = torch.tensor(np.array(rows)) * facts["sharpness"]
    assert facts["loss"] == pytest.approx(F.cross_entropy(logits, batch.targets).item(), rel=0.02)
    assert facts["accuracy"] == pytest.approx((logits.argmax(1) == batch.targets).double().mean().item())


def test_noise_gets_uncertain_outputs():
    random = np.random.default_rng(0)
    network, facts = solved(inputs_of(random.standard_normal((60, 1, 30)).astype(np.float32), np.arange(60) % 2), 1000)
    assert facts["loss"] < 0.75  # guessing has ln 2, which is .69
    new = torch.from_numpy(random.standard_normal((200, 1, 30)).astype(np.float32))
    assert network(new).softmax(1).max(1).values.mean() < 0.75


def test_it_learns_waves_and_follows_its_seed():
    inputs, other = inputs_of(*waves(seed=1)), all_of(inputs_of(*waves(90, seed=2)))
    outputs = [solved(inputs, 2000, seed)[0](other.x) for seed in (0, 0, 1)]
    assert (outputs[0].argmax(1) == other.targets).float().mean() > 0.95
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_some_of_many_examples_are_used(monkeypatch):
    monkeypatch.setattr(closed_form, "MOST_EXAMPLES", 12)
    monkeypatch.setattr(closed_form, "_MOST_DRAWN_ON", 5)
    network, facts = solved(inputs_of(*waves()), 400)
    assert facts["examples"] == 12
    assert network.biases.abs().sum() > 0


def test_samples_have_the_share_of_each_class_and_two_at_least(monkeypatch):
    monkeypatch.setattr(closed_form, "MOST_EXAMPLES", 100)
    labels = torch.tensor([0] * 9000 + [1] * 900 + [2] * 3 + [3])
    for seed in range(3):
        sample = closed_form._sample(len(labels), labels, None, torch.Generator().manual_seed(seed))
        assert sample.unique().tolist() == sample.tolist()
        counts = labels[sample].bincount()
        assert (counts.sum(), counts[3], counts[2]) == (100, 1, 2)
        assert counts[1] == pytest.approx(9, abs=2)
    without = closed_form._sample(len(labels), None, None, torch.Generator().manual_seed(0))
    assert without.unique().tolist() == without.tolist()
    assert len(without) == 100


def test_leaving_groups_out_equals_solving_without_them():
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.normal(size=(24, 40)).astype(np.float32))
    features -= features.mean(0)
    targets = torch.from_numpy(random.normal(size=(24, 2)))
    weight = torch.from_numpy(random.uniform(0.5, 2, 24))
    groups = torch.tensor([0, 1, 1, 2, 2, 2] * 4)
    ridge = solvers.DualRidge(features, targets, weight, groups)
    _, left_out = ridge.solve(3.0)
    x = features.double()
    for group in range(3):
        kept = groups != group
        w = (weight / weight.mean())[kept]
        mean, offset = (w[:, None] * x[kept]).sum(0) / w.sum(), (w[:, None] * targets[kept]).sum(0) / w.sum()
        centred = (x[kept] - mean) * w.sqrt()[:, None]
        gram = centred.T @ centred + 3.0 * torch.eye(40, dtype=torch.float64)
        solution = torch.linalg.solve(gram, centred.T @ ((targets[kept] - offset) * w.sqrt()[:, None]))
        expected = (x[~kept] - mean) @ solution + offset
        assert torch.allclose(left_out[~kept], expected, atol=1e-5)


def test_probabilities_of_a_closed_form_are_calibrated_by_groups():
    """Where groups decide the features and not the labels, leaving single examples out would promise too much."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 8)
    features = random.normal(size=(8, 30))[groups] + 0.1 * random.normal(size=(64, 30))
    labels = torch.from_numpy(groups % 2)
    features = torch.from_numpy((features - features.mean(0)).astype(np.float32))
    alone = solvers.ridge_classifier(features, labels, 2)
    apart = solvers.ridge_classifier(features, labels, 2, groups=torch.from_numpy(groups))
    assert alone.facts["accuracy"] == 1.0
    assert apart.facts["accuracy"] < 0.7
    assert apart.facts["sharpness"] < alone.facts["sharpness"]


def test_an_example_alone_in_its_class_does_not_calibrate():
    """Leaving it out leaves a solution that does not know its class, which made all probabilities equal."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 50))
    features = torch.from_numpy(centres + 0.1 * random.normal(size=(4, 50))).float()
    features, mean = features - features.mean(0), features.mean(0)
    one_each = solvers.ridge_classifier(features, torch.arange(4), 4)
    probabilities = ((torch.from_numpy(centres).float() - mean) @ one_each.weight.T + one_each.bias).softmax(1)
    assert probabilities.diagonal().min() > 0.7
    assert probabilities.max() < 0.95
    assert one_each.left_out.abs().max() == 0
    assert "loss" not in one_each.facts

    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # 2 is alone
    features = torch.from_numpy(centres[labels] + 0.1 * random.normal(size=(7, 50))).float()
    some = solvers.ridge_classifier(features - features.mean(0), labels, 3)
    assert some.facts["accuracy"] == 1.0
    assert some.left_out[6].abs().max() == 0
    assert some.left_out[:6].abs().max() > 1

    # in one group, a class is as unknown without the group
    groups = torch.tensor([0, 1, 2, 3, 3, 3, 0])
    apart = solvers.ridge_classifier(features - features.mean(0), labels, 3, groups=groups)
    assert apart.left_out[3:].abs().max() == 0
    assert apart.left_out[:3].abs().max() > 1


def test_class_weights_equal_repeated_examples(monkeypatch):
    monkeypatch.setattr(solvers, "_PENALTIES", np.array([0.03]))
    monkeypatch.setattr(solvers, "_SHARPNESS", np.array([2.0]))
    random = np.random.default_rng(0)
    features, labels = torch.from_numpy(random.normal(size=(20, 30))).float(), torch.arange(20) % 3 // 2  # 14 and 6
    often = torch.arange(20).repeat_interleave(1 + 2 * labels)
    copies = features[often] - features[often].mean(0)
    weighted = solvers.ridge_classifier(features, labels, 2, torch.tensor([1.0, 3.0])[labels])
    repeated = solvers.ridge_classifier(copies, labels[often], 2)
    # the mean eigenvalue, which the penalty is relative to, is over 31 values instead of 19
    scale = weighted.facts["penalty"] / repeated.facts["penalty"]
    monkeypatch.setattr(solvers, "_PENALTIES", np.array([0.03 * scale * len(often) / 20]))
    repeated = solvers.ridge_classifier(copies, labels[often], 2)
    outputs = features @ weighted.weight.T + weighted.bias
    expected = (features - features[often].mean(0)) @ repeated.weight.T + repeated.bias
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)


def test_leaving_one_out_with_weights_equals_solving_without_it(monkeypatch):
    monkeypatch.setattr(solvers, "_PENALTIES", np.array([0.03]))
    monkeypatch.setattr(solvers, "_SHARPNESS", np.array([1.0]))
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(18, 12)), np.arange(18) % 3 // 2
    weights = np.array([0.5, 2.0])
    found = solvers.ridge_classifier(
        torch.from_numpy(features).float(), torch.from_numpy(labels), 2, torch.from_numpy(weights[labels])
    )
    targets, each = 2 * np.eye(2)[labels] - 1, weights[labels] / weights[labels].mean()
    losses = []
    for i in range(18):
        rest = np.arange(18) != i
        ridge = Ridge(alpha=found.facts["penalty"]).fit(features[rest], targets[rest], sample_weight=each[rest])
        logits = torch.from_numpy(ridge.predict(features[i : i + 1]))
        losses.append(F.cross_entropy(logits, torch.tensor(labels[i : i + 1])).item())
    assert found.facts["loss"] == pytest.approx(np.average(losses, weights=each), rel=0.02)


def test_weights_raise_the_balanced_accuracy_on_unbalanced_data():
    def sample(seed):
        random, labels = np.random.default_rng(seed), np.arange(3).repeat((180, 18, 4))
        phase = random.uniform(0, 6, (202, 1))
        wave = np.sin(np.arange(40) * np.array([0.4, 0.6, 0.9])[labels][:, None] + phase)
        return inputs_of((wave + 0.8 * random.standard_normal((202, 40)))[:, None].astype(np.float32), labels)

    train, test = sample(0), all_of(sample(1))

    def balanced(**options):
        right = solved(train, 400, **options)[0](test.x).argmax(1) == test.targets
        return np.mean([right[test.targets == k].double().mean() for k in range(3)])

    assert balanced(class_weight="balanced") > balanced() + 0.1


def test_a_class_without_weight_is_never_predicted():
    inputs = inputs_of(*waves(60))
    without, _ = solved(inputs, class_weight=(1.5, 1.5, 0.0))
    x, noise = all_of(inputs).x, torch.randn(50, 1, 40)
    assert without(x).isfinite().all()
    assert without(torch.cat([x, noise])).argmax(1).ne(2).all()


def test_samples_have_more_of_classes_with_a_larger_weight(monkeypatch):
    monkeypatch.setattr(closed_form, "MOST_EXAMPLES", 100)
    labels = torch.tensor([0] * 9000 + [1] * 900 + [2] * 20)
    weights = 9920 / 3 / labels.bincount()[labels].double()
    sample = closed_form._sample(len(labels), labels, weights, torch.Generator().manual_seed(0))
    counts = labels[sample].bincount()
    assert (len(sample), counts[2]) == (100, 20)
    assert counts[:2].tolist() == pytest.approx([40, 40], abs=2)


def test_constant_signals_and_equal_examples_do_no_harm():
    values = np.zeros((6, 1, 20), dtype=np.float32)
    values[3:] = np.sin(np.arange(20))
    inputs = inputs_of(values, [0, 0, 0, 1, 1, 1])
    network, _ = solved(inputs, 400)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())  # files with others are refused
    assert network(all_of(inputs).x).argmax(1).tolist() == [0, 0, 0, 1, 1, 1]


# beside a network


def planned(source=None, **options):
    """The first member of a plan."""
    request = {name: options.pop(name) for name in ("model", "weights", "preset") if name in options}
    return plan(Request(source=source or waves(), reading=UNSPLIT, progress=False, options=options, **request)).first


def test_training_solves_them_and_their_file_has_them(tmp_path):
    options = {**NETWORK, "steps": 2, "batch_size": 4, "seed": 7, "test_fraction": 0}
    model = fit_tiny(waves(), rocket_features=400, **options).model
    _, convolutions = model.network.members
    twin, _ = solved(inputs_of(*waves()), 400, seed=7)
    assert twin.head.weight.abs().sum() > 0
    assert not different(convolutions, twin)
    model.save(tmp_path / "model.safetensors")
    x = all_of(inputs_of(*waves())).x
    assert torch.equal(load_model(tmp_path / "model.safetensors")(x), model(x))


def test_the_transformer_beside_them_learns_as_if_alone():
    start = planned(model="vit_pico", rocket_features=400, **NETWORK)
    options = {"weights": start, "preset": "basic", "steps": 2, "test_fraction": 0}
    both, alone = (fit_tiny(waves(), rocket_features=number, **options).model.network for number in (400, 0))
    assert not different(both.members[0], alone)
    assert different(start.network.members[0], alone)
    assert not any(p.requires_grad or p.grad is not None for p in both.members[1].parameters())


@pytest.mark.parametrize(("a_class", "weight"), [(10, 0.5), (500, 0.5), (1000, 0.25), (5000, 0.05)])
def test_with_many_examples_per_class_they_have_less_than_half_of_the_weight(a_class, weight):
    assert usual_weight(a_class) == pytest.approx(weight)


@pytest.mark.parametrize(("a_class", "weight"), [(2, 0.9), (5, 0.75), (10, 0.5), (40, 0.5)])
def test_with_few_examples_per_class_they_have_more_than_half_of_the_weight(a_class, weight):
    source = np.random.default_rng(0).standard_normal((3 * a_class, 40)).astype(np.float32), np.arange(3 * a_class) % 3
    options = {"model": "signal_tiny", "preset": "basic", "rocket_features": 400}
    first = planned(source, **options, encoder=False, levels=False)
    assert first.network.weights == pytest.approx((1 - weight, weight))
    fixed = planned(source, **options, solved_weight=0.3)
    assert fixed.network.weights == pytest.approx((0.7, 0.2, 0.1, 0))  # level and spread need evidence
    assert isinstance(planned(source, model="vit_pico", preset="basic").network, VisionTransformer)
    tuned = planned(source, weights=first, preset="basic")  # an encoder is beside new networks only
    assert tuned.network.weights == pytest.approx((1 - weight, weight))
