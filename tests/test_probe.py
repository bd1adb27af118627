"""Solvers over frozen features: logistic regression as scikit-learn's, written into a network, and neighbours."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from ndvit.config import ViTConfig
from ndvit.config.recipe import Recipe
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.inference.batches import predict_features
from ndvit.model import Model
from ndvit.network import VisionTransformer
from ndvit.network.committee import Committee
from ndvit.tasks import Classification
from ndvit.tasks.solvers import _folds, linear_regression, logistic_regression, nearest_neighbours
from ndvit.training.closed_form import solve_head
from tinyruns import different, fit_tiny, toy


def inputs(n=60, classes=3) -> Inputs:
    x, y = toy(n, classes=classes)
    examples = Examples(list(x), y)
    return Inputs(examples, SignalPreprocess.fit(examples))


def network(classes=3, **options) -> VisionTransformer:
    torch.manual_seed(0)
    size = {"input_size": (16,), "patch_size": 4, "in_channels": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return VisionTransformer(ViTConfig(**{**size, "num_classes": classes, **options}))


def solve(model, train, val=None, **options):
    task = Classification([str(i) for i in range(model.config.num_classes)])
    recipe = Recipe(head="solved", device="cpu", **options)
    return solve_head(model, task, recipe, train, val, progress=False)


def outputs_of(model, data):
    with torch.no_grad():
        return model.eval()(torch.cat([batch.x for batch in data.loader(60)]))


VARIANTS = {
    "token": {},
    "avg": {"pooling": "avg"},
    "pre_logits": {"representation_size": 5},
    "distilled": {"distilled": True},
    "stem": {"stem": "inception", "stem_depths": (1,), "stem_width": 4, "pooling": "stem_tokens", "stem_head": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_features_are_what_the_head_reads(name):
    model, data = network(**VARIANTS[name]).eval(), inputs()
    features = predict_features(model, data, 7, "cpu")
    heads = [model.head, model.head_dist] if name == "distilled" else [model.head]
    with torch.no_grad():
        parts = torch.from_numpy(features).chunk(len(heads), dim=1)
        outputs = sum(head(part) for head, part in zip(heads, parts)) / len(heads)
    assert torch.allclose(outputs, outputs_of(model, data), atol=1e-5)


def test_features_of_a_committee_stand_side_by_side_and_batches_do_not_matter():
    one, data = network(), inputs(10)
    torch.manual_seed(1)
    other = VisionTransformer(one.config)
    features = predict_features(Committee([one, other], combine="probabilities"), data, 3, "cpu")
    assert (features.shape, features.dtype) == ((10, 16), np.float32)
    np.testing.assert_allclose(features[:, :8], predict_features(one, data, 10, "cpu"), atol=1e-5)
    np.testing.assert_allclose(features[:, 8:], predict_features(other, data, 10, "cpu"), atol=1e-5)


def test_features_need_no_head_and_use_the_mask():
    model, x = network(0), toy(4)[0]
    x[0, :, 8:] = np.nan
    examples = Examples(list(x), np.array([0, 1, 0, 1]))
    data = Inputs(examples, SignalPreprocess.fit(examples))
    features = predict_features(model, data, 4, "cpu")
    batch = next(iter(data.loader(4)))
    with torch.no_grad():
        np.testing.assert_allclose(features, model(batch.x, batch.mask).numpy(), atol=1e-6)
        assert not np.allclose(features[0], model(batch.x)[0].numpy(), atol=1e-3)
    assert predict_features(model, Inputs(Examples([]), data.preprocess), 4, "cpu").shape == (0, 8)


# solved heads


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_solved_head_gives_the_probabilities_of_the_logistic_regression(name, classes):
    model, data = network(classes, **VARIANTS[name]), inputs(classes=classes)
    row = solve(model, data)
    features, labels = predict_features(model, data, 64, "cpu").astype(float), data.targets.numpy()
    spread = features.std(0)
    features = (features - features.mean(0)) / np.where(spread > 1e-6 * spread.max(), spread, 1)
    found = outputs_of(model, data).softmax(1).numpy()
    candidates = [LogisticRegression(C=c, max_iter=1000).fit(features, labels) for c in (1e-3, 1e-2, 0.1, 1.0, 10.0)]
    assert min(np.abs(c.predict_proba(features) - found).max() for c in candidates) < 1e-4
    assert row["train_accuracy"] == pytest.approx((found.argmax(1) == labels).mean())
    assert row["train_loss"] == pytest.approx(-np.log(found[np.arange(60), labels]).mean(), rel=1e-4)
    assert row.keys() == {"train_loss", "train_accuracy"}


def test_class_weights_are_those_of_the_loss():
    model, data = network(2), inputs(classes=2)
    solve(model, data, class_weight=(1.9, 0.1))
    assert (outputs_of(model, data).argmax(1) == 0).float().mean() > 0.9


def test_a_fit_with_a_solved_head_changes_nothing_else():
    data = toy(60, classes=3)
    first = fit_tiny(data, steps=5)
    trained = fit_tiny(data, weights=first.model, preset="linear_probe", val_fraction=0.2)
    assert different(first, trained) == {"head.weight", "head.bias"}
    assert (trained.fit.steps, trained.model.untrained, trained.model.provenance["steps"]) == (0, (), 0)
    (row,) = trained.fit.history
    assert row.keys() == {"step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert row["val_accuracy"] > 0.5


def test_an_auxiliary_head_stays_unchanged():
    model = network(**VARIANTS["stem"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    solve(model, inputs(), inputs(20))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"head.weight", "head.bias"}


def test_new_weights_and_the_temperature_of_another_head_are_forgotten():
    model = Model(network(), Classification("012"), inputs().preprocess, temperature=2.0)
    model.untrained = ("blocks.0.norm1.weight", "head.weight", "head.bias")
    trained = fit_tiny(toy(60, classes=3), weights=model, preset="linear_probe")
    assert (trained.model.untrained, trained.model.temperature) == ((), 1.0)


def test_a_network_without_a_head_has_none_to_solve():
    with pytest.raises(ValueError, match="the network has 0 classes, so there is no head to solve"):
        solve(network(0), inputs())


# logistic regression


def test_classes_without_examples_are_never_predicted():
    x = np.random.default_rng(0).normal(size=(20, 4))
    found = logistic_regression(x, np.arange(20) % 2 * 2, 4)
    assert set(found.outputs(x).argmax(1)) == {0, 2}
    assert set(logistic_regression(x, np.full(20, 3), 4).outputs(x).argmax(1)) == {3}


def test_constant_features_do_no_harm():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] = 5.0
    found = logistic_regression(x, (x[:, 0] > 0).astype(int), 2)
    assert np.isfinite(found.weight).all()
    assert (found.outputs(x).argmax(1) == (x[:, 0] > 0)).mean() > 0.95


def test_weights_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x, weights = random.normal(size=(60, 4)) + 0.5 * y[:, None], np.array([0.5, 1.0, 3.0])
    found = torch.from_numpy(logistic_regression(x, y, 3, class_weights=weights).outputs(x)).softmax(1).numpy()
    standard = (x - x.mean(0)) / x.std(0)
    fits = [
        LogisticRegression(C=c, max_iter=1000, class_weight=dict(enumerate(weights))).fit(standard, y)
        for c in (1e-3, 1e-2, 0.1, 1.0, 10.0)
    ]
    assert min(np.abs(fit.predict_proba(standard) - found).max() for fit in fits) < 1e-4


def test_weights_of_examples_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x, weights = random.normal(size=(60, 4)) + 0.5 * y[:, None], random.uniform(0.1, 3, 60)
    found = torch.from_numpy(logistic_regression(x, y, 3, weights=weights).outputs(x)).softmax(1).numpy()
    standard = (x - x.mean(0)) / x.std(0)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(standard, y, weights) for c in (1e-3, 1e-2, 0.1, 1.0, 10.0)]
    assert min(np.abs(fit.predict_proba(standard) - found).max() for fit in fits) < 1e-4
    targets = x[:, :1] + 0.1 * random.normal(size=(60, 1))
    line = linear_regression(x, targets, weights=weights).outputs(x)[:, 0]
    fits = [Ridge(alpha=60 * a).fit(standard, targets[:, 0], weights) for a in np.logspace(-6, 3, 19)]
    assert min(np.abs(fit.predict(standard) - line).max() for fit in fits) < 1e-6


@pytest.mark.parametrize("solver", ["logistic", "ridge"])
def test_what_only_tells_groups_is_no_reason_to_trust_features(solver):
    groups = np.repeat(np.arange(16), 4)
    y = groups % 2
    x = np.eye(16)[groups] + 0.01 * np.random.default_rng(0).normal(size=(64, 16))

    def size(of):
        if solver == "logistic":
            return np.abs(logistic_regression(x, y, 2, groups=of).weight).sum()
        return np.abs(linear_regression(x, y[:, None].astype(float), groups=of).weight).sum()

    assert size(groups) < 0.2 * size(None)
    for kept, held in _folds(y, 0, groups):
        assert not set(groups[kept]) & set(groups[held])


def test_the_strength_is_chosen_by_what_is_held_out():
    random = np.random.default_rng(0)
    y = np.arange(200) % 2
    noise = logistic_regression(random.normal(size=(200, 50)), y, 2)
    clear = logistic_regression(random.normal(size=(200, 50)) + 3 * y[:, None], y, 2)
    assert np.abs(noise.weight).sum() < 0.5 < 1 < np.abs(clear.weight).sum()  # noise is regularised most
    x = random.normal(size=(200, 50)) + 0.3 * y[:, None]
    opposed = logistic_regression(x, y, 2, val=(x, 1 - y))  # whatever is learned is wrong there
    assert np.abs(opposed.weight).sum() < np.abs(logistic_regression(x, y, 2, val=(x, y)).weight).sum() / 10


def test_folds_have_every_class_and_every_example_once():
    y = np.repeat([0, 1, 2], [50, 25, 10])
    folds = list(_folds(y, 0))
    assert len(folds) == 5
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(85))
    for kept, held in folds:
        assert np.bincount(y[held]).tolist() == [10, 5, 2]
        assert len(np.intersect1d(kept, held)) == 0
    assert not np.array_equal(folds[0][1], next(_folds(y, 1))[1])
    many = list(_folds(np.arange(6000) % 2, 0))  # one fold of 5,000 examples
    assert [(len(kept), len(held)) for kept, held in many] == [(4000, 1000)]
    assert list(_folds(np.array([0, 1]), 0)) == []  # a single class would be left to fit to


def test_few_examples_are_fitted_without_a_choice():
    found = logistic_regression(np.array([[0.0], [1.0]]), np.array([0, 1]), 2)
    assert found.outputs(np.array([[-1.0], [2.0]])).argmax(1).tolist() == [0, 1]


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="features hold NaN or infinity: the weights are damaged"):
        logistic_regression(np.array([[np.nan], [1.0]]), np.array([0, 1]), 2)


# neighbours


def test_neighbours_vote_by_their_cosine():
    known = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    votes = nearest_neighbours(known, np.array([0, 1, 1]), np.array([[3.0, 0.0], [1.0, 1.0]]), 3)
    far = np.exp(-1 / 0.07)
    assert votes[0] == pytest.approx([1 / (1 + 2 * far), 2 * far / (1 + 2 * far), 0])
    assert votes[1] == pytest.approx([1 / 3, 2 / 3, 0])


def test_only_the_nearest_vote():
    angles = np.linspace(0, 1, 30)
    known, labels = np.stack([np.cos(angles), np.sin(angles)], 1), (np.arange(30) >= 20).astype(int)
    query = np.array([[1.0, 0.0]])
    assert nearest_neighbours(known, labels, query, 2)[0].tolist() == [1.0, 0.0]  # twenty of the first class
    near = nearest_neighbours(known, labels, query, 2, k=21, temperature=1e9)[0]
    assert near == pytest.approx([20 / 21, 1 / 21])
    assert nearest_neighbours(known, labels, np.zeros((1, 2)), 2).sum() == pytest.approx(1)  # an embedding of zeros


def test_many_queries_are_answered_in_parts():
    random = np.random.default_rng(0)
    known, labels, queries = random.normal(size=(30, 3)), np.arange(30) % 2, random.normal(size=(1500, 3))
    together = nearest_neighbours(known, labels, queries, 2)
    np.testing.assert_allclose(together[1400:], nearest_neighbours(known, labels, queries[1400:], 2))
