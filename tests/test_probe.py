"""The solved head: it is scikit-learn's logistic regression, written into the network."""

import numpy as np
import pytest
import tinyruns
import torch
from ndvit.config import ViTConfig
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.signals import SignalPreprocess
from ndvit.network import VisionTransformer
from ndvit.run import train
from ndvit.training.inference import predict_features
from ndvit.training.probe import logistic_regression, solve_head
from sklearn.linear_model import LogisticRegression
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
    assert min(np.abs(c.predict_proba(features) - said).max() for c in candidates) < 2e-4
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
    run = train(data, weights=weights, preset="linear_probe", output=tmp_path / "probe", val_fraction=0.2, **tinyruns.QUIET)
    before, after = tensors(tmp_path / "first"), tensors(tmp_path / "probe")
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    assert run.fit.steps == 0
    assert run.model.untrained == ()
    assert run.fit.history[0].keys() == {"step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert run.evaluation.accuracy > 0.5
