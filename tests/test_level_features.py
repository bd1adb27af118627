"""Level and spread of signals beside random convolutions and encoder: features, evidence, files, every door."""

import numpy as np
import pytest
import torch

from ndvit import ViTClassifier, ViTRegressor, load_model
from ndvit.network.committee import Committee, solved_networks
from ndvit.network.level_features import KNOTS, LevelFeatures
from ndvit.tasks import Classification
from ndvit.tasks.solvers import ridge_classifier
from ndvit.training.closed_form import best_share, solve_beside
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from ndvit.weights.structure import check_structure, make_network, structure_of, summary
from tinyruns import QUIET, UNSPLIT

FEW = {"rocket_features": 168}


def drawn(x, mask=None):
    network = LevelFeatures(x.shape[1], x.shape[2], 2)
    network.draw(x, mask, torch.Generator())
    return network


def levels(n=120, channels=1, offset=1.0, seed=0):
    """Smooth signals (n, channels, 60) of any shape, and three classes that differ in the level of the last channel."""
    random = np.random.default_rng(seed)
    time, labels = np.linspace(0, 1, 60), np.arange(n) % 3
    waves = [
        random.standard_normal((n, channels, 1)) * np.sin(2 * np.pi * k * time + random.uniform(0, 6, (n, channels, 1)))
        for k in range(1, 4)
    ]
    X = sum(waves)
    X -= X.mean(2, keepdims=True)
    X[:, -1] += (offset * labels + 0.1 * random.standard_normal(n))[:, None]
    return X.astype(np.float32), labels


def test_statistics_are_those_of_numpy():
    x = torch.randn(5, 3, 50) * torch.tensor([1.0, 2.0, 5.0])[:, None] + 3
    found = LevelFeatures(3, 50, 2).statistics(x, None)
    expected = np.concatenate([x.numpy().mean(2), np.log(x.numpy().std(2))], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_only_observed_values_count():
    x, mask = torch.randn(4, 2, 50), torch.rand(4, 50) < 0.7
    network = LevelFeatures(2, 50, 2)
    found = network.statistics(torch.where(mask[:, None], x, 1e3), mask)
    for row, values, there in zip(found, x, mask):
        alone = network.statistics(values[None, :, there], None)[0]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=1e-4)
    assert network.features(x, torch.zeros(4, 50, dtype=torch.bool)).isfinite().all()


def test_features_are_piecewise_linear_between_quantiles_and_bounded():
    means = torch.arange(17.0)
    network = drawn(means[:, None, None].expand(17, 1, 10))
    assert network.knots.shape == (2, KNOTS)
    assert network.knots[0].tolist() == [2, 4, 6, 8, 10, 12, 14]
    row = network.features(torch.full((1, 1, 10), 7.0)).view(2, 1 + KNOTS)[0]
    assert row.tolist() == pytest.approx([7, 5, 3, 1, 0, 0, 0, 0])
    far = network.features(torch.full((1, 1, 10), 1e6)).view(2, 1 + KNOTS)[0]
    assert far[0].item() == 32  # as far beyond the training examples as their range


def test_files_keep_them(tmp_path):
    network = drawn(torch.randn(20, 2, 30))
    torch.nn.init.normal_(network.head.weight)
    again = make_network(check_structure(structure_of(network)))
    again.load_state_dict(network.state_dict())
    x = torch.randn(3, 2, 30)
    assert torch.equal(again(x), network(x))
    assert summary(structure_of(network)) == "level and spread of each channel"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_that_tells_the_classes_is_found(channels, tmp_path):
    X, y = levels(channels=channels)
    scores = {}
    for on in (True, False):
        classifier = ViTClassifier("fast", random_state=0, options=FEW | {"levels": on}).fit(X[:60], y[:60])
        scores[on] = classifier.score(X[60:], y[60:])
    assert scores[True] >= 0.98
    assert scores[False] < 0.8
    classifier = ViTClassifier("fast", random_state=0, options=FEW).fit(X[:60], y[:60])
    classifier.save(tmp_path / "level.safetensors")
    loaded = load_model(tmp_path / "level.safetensors")
    assert loaded.predict(X[60:63], device="cpu")[0].label == str(y[60])


def test_a_level_that_tells_nothing_is_left_out():
    random = np.random.default_rng(0)
    y = np.arange(80) % 2
    waves = np.sin(np.linspace(0, 12, 60) * (1 + y[:, None]) + random.uniform(0, 6, (80, 1)))
    X = (waves + 0.1 * random.standard_normal((80, 60)) + random.standard_normal((80, 1))).astype(np.float32)
    request = Request(source=(X[:, None], y), preset="fast", options=FEW, reading=UNSPLIT, progress=False)
    planned = plan(request)
    assert [type(one).__name__ for one in solved_networks(planned.first.network)][-1] == "LevelFeatures"
    made = fit(planned, **QUIET).model.network
    assert not any(isinstance(one, LevelFeatures) for one in solved_networks(made))


def test_constant_levels_do_not_count_for_the_confidence_that_they_take():
    """Mixing in constant outputs is a temperature, which overconfident outputs would gain by."""
    labels = torch.arange(40) % 2
    sure = 8 * (2 * torch.nn.functional.one_hot(labels, 2).float() - 1)
    sure[:8] *= -1  # wrong for a fifth of the examples
    share, losses = best_share(torch.zeros(40, 2), sure, labels, Classification("ab"), None, 0.0, improves=True)
    assert share == 0.0
    assert losses[0.8] == pytest.approx(losses[0.0], rel=1e-3)
    weak = 0.3 * (2 * torch.nn.functional.one_hot(labels, 2).float() - 1)  # right, but lowers the confidence
    good = 3 * (2 * torch.nn.functional.one_hot(labels, 2).float() - 1)
    good[:2] *= 0.1
    assert best_share(weak, good, labels, Classification("ab"), None, 0.0, improves=True)[0] == 0.0


def test_constant_features_give_the_mean_of_the_other_examples():
    """Rounding errors of the kernel must not be solved for: they knew the left-out labels."""
    labels = torch.arange(30) % 3
    solved = ridge_classifier(torch.zeros(30, 16), labels, 3)
    # of the 29 others, nine are of the class that is left out and ten of each other one
    logits = (2 * (10 - torch.nn.functional.one_hot(labels, 3)) / 29 - 1) * solved.facts["sharpness"]
    torch.testing.assert_close(solved.left_out.float(), logits, atol=1e-3, rtol=1e-3)


def test_the_trained_network_is_weighed_beside_them():
    X, y = levels(180)
    options = FEW | {"embed_dim": 16, "stem_width": 4, "steps": 2}
    request = Request(source=(X, y), model="signal_tiny", preset="signal", options=options, progress=False)
    planned = plan(request)
    trained = fit(planned, **QUIET).model
    assert isinstance(trained.network, Committee | LevelFeatures)
    right = np.mean([p.label == str(label) for p, label in zip(trained.predict(X, device="cpu"), y)])
    assert right > 0.95


def test_members_that_evidence_has_silenced_have_their_usual_shares_when_they_are_weighed_again():
    """Level and spread alone count on the training part; the final solution starts from the usual shares again."""
    X, y = levels(60)
    options = FEW | {"encoder_weight": 0.25}
    planned = plan(Request(source=(X, y), preset="fast", options=options, reading=UNSPLIT, progress=False))
    network, (inputs, _) = planned.build(0).network, planned.inputs()
    assert network.weights == pytest.approx((0.75, 0.25, 0.0))
    network.weights = (0.0, 0.0, 1.0)
    solve_beside(network, inputs, planned.task, planned.recipe, *planned.weighing)
    share = 1 - network.weights[2]
    assert share > 0.0
    assert network.weights[:2] == pytest.approx((0.75 * share, 0.25 * share))


def test_a_level_is_regressed():
    X, _ = levels(120)
    target = X.mean((1, 2))
    regressor = ViTRegressor("fast", random_state=0, options=FEW).fit(X[:80], target[:80])
    assert regressor.score(X[80:], target[80:]) > 0.99


def test_they_need_signals_of_one_axis():
    X = np.random.default_rng(0).standard_normal((20, 1, 8, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="levels needs signals of one axis"):
        plan(Request(source=(X, np.arange(20) % 2), preset="basic", options={"levels": True}, progress=False))
