"""The solved head: it is scikit-learn's logistic regression, written into the network."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import tinyruns
from ndvit.config import ViTConfig
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.inference.batches import predict_features
from ndvit.network import VisionTransformer
from ndvit.network.committee import Ensemble
from ndvit.training.probe import _folds, logistic_regression, solve_head, vote
from ndvit.training.run import train
from tinyruns import run_tiny, tensors, toy

QUIET = {"device": "cpu", "progress": False}


def inputs(n=60, classes=3) -> Inputs:
    x, y = toy(n, classes=classes)
    examples = Examples(list(x), y)
    return Inputs(examples, SignalPreprocess.fit(examples))


def network(classes=3, **options) -> VisionTransformer:
    torch.manual_seed(0)
    size = {"input_size": (16,), "patch_size": 4, "in_channels": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return VisionTransformer(ViTConfig(**{**size, "num_classes": classes, **options}))


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
        logits = sum(head(part) for head, part in zip(heads, parts)) / len(heads)
        x = torch.cat([b.x for b in data.loader(60)])
        assert torch.allclose(logits, model(x), atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_network_answers_as_the_logistic_regression(name, classes):
    model, data = network(classes, **VARIANTS[name]), inputs(classes=classes)
    told = solve_head(model, data, None, **QUIET)
    features, labels = predict_features(model, data, 64, "cpu").astype(float), data.labels.numpy()
    spread = features.std(0)
    features = (features - features.mean(0)) / np.where(spread > 1e-6 * spread.max(), spread, 1)
    x = torch.cat([b.x for b in data.loader(60)])
    with torch.no_grad():
        said = model.eval()(x).softmax(1).numpy()
    candidates = [LogisticRegression(C=c, max_iter=1000).fit(features, labels) for c in (1e-3, 1e-2, 0.1, 1.0, 10.0)]
    assert min(np.abs(c.predict_proba(features) - said).max() for c in candidates) < 1e-4
    assert told["train_accuracy"] == pytest.approx((said.argmax(1) == labels).mean())
    assert told.keys() == {"train_loss", "train_accuracy"}


def test_class_weights_are_those_of_the_loss():
    model, data = network(2), inputs(classes=2)
    solve_head(model, data, None, class_weight=torch.tensor([1.9, 0.1]), **QUIET)
    x = torch.cat([b.x for b in data.loader(60)])
    with torch.no_grad():
        heavy = (model.eval()(x).argmax(1) == 0).float().mean()
    assert heavy > 0.9


def test_classes_without_examples_are_never_said():
    x = np.random.default_rng(0).normal(size=(20, 4))
    found = logistic_regression(x, np.arange(20) % 2 * 2, 4)
    assert set(found.logits(x).argmax(1)) == {0, 2}
    assert set(logistic_regression(x, np.full(20, 3), 4).logits(x).argmax(1)) == {3}


def test_features_that_never_change_do_no_harm():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:, 1] = 5.0
    found = logistic_regression(x, (x[:, 0] > 0).astype(int), 2)
    assert np.isfinite(found.weight).all()
    assert (found.logits(x).argmax(1) == (x[:, 0] > 0)).mean() > 0.95


def test_a_run_with_a_solved_head_leaves_the_rest_as_it_was(tmp_path):
    data = toy(60, classes=3)
    run_tiny(data, tmp_path / "first", steps=5)
    weights = tmp_path / "first" / "model.safetensors"
    run = train(
        data, weights=weights, preset="linear_probe", output=tmp_path / "probe", val_fraction=0.2, **tinyruns.QUIET
    )
    before, after = tensors(tmp_path / "first"), tensors(tmp_path / "probe")
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    assert run.fit.steps == 0
    assert run.model.untrained == ()
    assert run.fit.history[0].keys() == {"step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert run.evaluation.accuracy > 0.5


def test_weighted_answers_are_those_of_scikit_learns_class_weight():
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x, weights = random.normal(size=(60, 4)) + 0.5 * y[:, None], np.array([0.5, 1.0, 3.0])
    found = logistic_regression(x, y, 3, weights=weights)
    standard = (x - x.mean(0)) / x.std(0)
    said = torch.from_numpy(found.logits(x)).softmax(1).numpy()
    fits = [
        LogisticRegression(C=c, max_iter=1000, class_weight=dict(enumerate(weights))).fit(standard, y)
        for c in (1e-3, 1e-2, 0.1, 1.0, 10.0)
    ]
    assert min(np.abs(fit.predict_proba(standard) - said).max() for fit in fits) < 1e-4


def test_the_strength_is_chosen_by_what_is_held_out():
    random = np.random.default_rng(0)
    y = np.arange(200) % 2
    noise = logistic_regression(random.normal(size=(200, 50)), y, 2)
    told = logistic_regression(random.normal(size=(200, 50)) + 3 * y[:, None], y, 2)
    assert np.abs(noise.weight).sum() < 0.5 < 1 < np.abs(told.weight).sum()  # noise is held down as far as can be
    x = random.normal(size=(200, 50)) + 0.3 * y[:, None]
    opposed = logistic_regression(x, y, 2, val=(x, 1 - y))  # what is learned is wrong there: the less, the better
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
    many = list(_folds(np.arange(6000) % 2, 0))  # of many, one fifth of 5,000
    assert [(len(kept), len(held)) for kept, held in many] == [(4000, 1000)]
    assert list(_folds(np.array([0, 1]), 0)) == []  # nothing would be left to learn from


def test_few_examples_are_fitted_without_a_choice():
    found = logistic_regression(np.array([[0.0], [1.0]]), np.array([0, 1]), 2)
    assert found.logits(np.array([[-1.0], [2.0]])).argmax(1).tolist() == [0, 1]


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="features hold NaN or infinity: the weights are damaged"):
        logistic_regression(np.array([[np.nan], [1.0]]), np.array([0, 1]), 2)


def test_features_of_an_ensemble_stand_side_by_side_and_batches_do_not_matter():
    one, data = network(), inputs(10)
    torch.manual_seed(1)
    other = VisionTransformer(one.config)
    features = predict_features(Ensemble([one, other]), data, 3, "cpu")
    assert features.shape == (10, 16)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:, :8], predict_features(one, data, 10, "cpu"), atol=1e-5)
    np.testing.assert_allclose(features[:, 8:], predict_features(other, data, 10, "cpu"), atol=1e-5)


def test_features_need_no_head_and_see_the_mask():
    model, x = network(0), toy(4)[0]
    x[0, :, 8:] = np.nan
    examples = Examples(list(x), [0, 1, 0, 1])
    data = Inputs(examples, SignalPreprocess.fit(examples))
    features = predict_features(model, data, 4, "cpu")
    batch = next(iter(data.loader(4)))
    with torch.no_grad():
        np.testing.assert_allclose(features, model(batch.x, batch.mask).numpy(), atol=1e-6)
        assert not np.allclose(features[0], model(batch.x)[0].numpy(), atol=1e-3)
    assert predict_features(model, Inputs(Examples([]), data.preprocess), 4, "cpu").shape == (0, 8)


def test_a_solved_head_is_trained_and_the_rest_may_not_be():
    model, data = network(**VARIANTS["stem"]), inputs()
    model.untrained = ("blocks.0.norm1.weight", "head.weight", "head.bias", "stem_head.weight")
    model.temperature = 2.0  # of the old head's logits
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    solve_head(model, data, inputs(20), **QUIET)
    assert model.untrained == ("blocks.0.norm1.weight",)
    assert model.temperature == 1.0
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"head.weight", "head.bias"}


def test_a_network_without_a_head_has_none_to_solve():
    with pytest.raises(ValueError, match="the network has 0 classes, so there is no head to solve"):
        solve_head(network(0), inputs(), None, **QUIET)


# neighbours


def test_neighbours_vote_by_their_cosine():
    known = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    votes = vote(known, np.array([0, 1, 1]), np.array([[3.0, 0.0], [1.0, 1.0]]), 3)
    far = np.exp(-1 / 0.07)
    assert votes[0] == pytest.approx([1 / (1 + 2 * far), 2 * far / (1 + 2 * far), 0])
    assert votes[1] == pytest.approx([1 / 3, 2 / 3, 0])


def test_only_the_nearest_vote():
    angles = np.linspace(0, 1, 30)
    known, labels = np.stack([np.cos(angles), np.sin(angles)], 1), (np.arange(30) >= 20).astype(int)
    assert vote(known, labels, np.array([[1.0, 0.0]]), 2)[0].tolist() == [1.0, 0.0]  # twenty, all of the first class
    near = vote(known, labels, np.array([[1.0, 0.0]]), 2, k=21, temperature=1e9)[0]
    assert near == pytest.approx([20 / 21, 1 / 21])
    assert vote(known, labels, np.zeros((1, 2)), 2).sum() == pytest.approx(1)  # an embedding of nothing


def test_many_votes_are_counted_in_parts():
    random = np.random.default_rng(0)
    known, labels = random.normal(size=(30, 3)), np.arange(30) % 2
    asked = random.normal(size=(1500, 3))
    together = vote(known, labels, asked, 2)
    np.testing.assert_allclose(together[1400:], vote(known, labels, asked[1400:], 2))
