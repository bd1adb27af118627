"""ViTRegressor: scikit-learn's own checks, shapes of y, intervals, files and errors."""

import doctest
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import ndvit.estimator.regressor
from ndvit import ViTClassifier, ViTRegressor, load_model
from tinyruns import make_fast_quick, toy

OPTIONS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mixup": 0.0, "crop": 1.0}


def tiny(**parameters):
    usual = {"model": "vit_pico", "steps": 3, "batch_size": 16, "random_state": 0, "options": OPTIONS}
    return ViTRegressor(**usual | parameters)


FAILING = {
    "check_methods_subset_invariance": "float32 is less exact than the check requires",
    # Both compare fits on other numbers of examples, for which other biases of the convolutions are drawn.
    "check_sample_weight_equivalence_on_dense_data": "random features depend on the examples",
    "check_sample_weight_equivalence_on_sparse_data": "random features depend on the examples",
}


@parametrize_with_checks(
    [ViTRegressor("fast")],  # what it shares with ViTClassifier is checked there with a network
    expected_failed_checks=lambda estimator: FAILING,
)
@pytest.mark.filterwarnings("ignore")  # the checks provoke warnings
def test_scikit_learns_checks(estimator, check, monkeypatch):
    make_fast_quick(monkeypatch)
    check(estimator)


def numbers(n=40, shape=(16,)):
    """Noise (n, *shape) with a mean, and the means: 0 to 9."""
    y = np.arange(n) % 10
    X = np.random.default_rng(0).normal(size=(n, *shape)) * 0.3 + y.reshape(-1, *[1] * len(shape))
    return X.astype(np.float32), y.astype(float)


@pytest.mark.parametrize("shape", [(16,), (1, 6, 6)], ids=["1-D", "2-D"])
def test_it_learns_numbers(shape):
    X, y = numbers(60, shape)
    regressor = tiny(steps=40, learning_rate=0.01).fit(X[:40], y[:40])
    assert regressor.score(X[40:], y[40:]) > 0.9
    assert regressor.n_outputs_ == 1
    assert regressor.predict(X).shape == (60,)
    assert regressor.history_[-1]["step"] == 40


@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, lambda y: pd.DataFrame(y, columns=["a", "b"])])
def test_several_targets(kind):
    X, y = numbers()
    regressor = ViTRegressor("fast", options={"rocket_features": 168, "encoder": False})
    both = np.stack([y, -10 * y], 1)
    regressor.fit(X, kind(both))
    assert regressor.predict(X).shape == regressor.predict_interval(X)[..., 0].shape == (40, 2)
    assert regressor.score(X, both) > 0.9


def test_intervals_contain_their_numbers():
    X, y = numbers(80)
    regressor = ViTRegressor("fast", interval=0.8, options={"rocket_features": 168, "encoder": False}).fit(
        X[:60], y[:60]
    )
    low, high = regressor.predict_interval(X[60:]).T
    assert (low < regressor.predict(X[60:])).all()
    assert ((low <= y[60:]) & (y[60:] <= high)).mean() >= 0.6
    with pytest.raises(ValueError, match=r"there are no intervals, .* set preset='fast'"):
        tiny(steps=1).fit(X, y).predict_interval(X)


def test_files_and_pickles_predict_the_same(tmp_path):
    X, y = numbers()
    regressor = tiny(loss="huber", interval=0.7).fit(X, y)
    regressor.save(tmp_path / "m.safetensors")
    loaded = ViTRegressor.load(tmp_path / "m.safetensors", device="cpu")
    assert loaded.get_params() == regressor.get_params() | {"device": "cpu"}
    for other in (loaded, pickle.loads(pickle.dumps(regressor))):
        np.testing.assert_array_equal(other.predict(X), regressor.predict(X))
    assert load_model(tmp_path / "m.safetensors").task.level == 0.7
    with pytest.raises(ValueError, match="holds no classifier but a regression"):
        ViTClassifier.load(tmp_path / "m.safetensors")


def test_a_classifier_is_no_regressor(tmp_path):
    X, y = toy(24, shape=(16,))
    classifier = ViTClassifier(**{k: v for k, v in tiny().get_params().items() if k not in ("loss", "interval")})
    classifier.fit(X, y).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="holds no regression but classification: load it as ViTClassifier"):
        ViTRegressor.load(tmp_path / "m.safetensors")


def test_it_is_cloned_and_cross_validated():
    X, y = numbers()
    regressor = ViTRegressor("fast", options={"rocket_features": 168, "encoder": False})
    assert clone(regressor).get_params() == regressor.get_params()
    assert cross_val_score(regressor, X, y, cv=2).min() > 0.8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "softmax"}, "loss='softmax' does not exist for regression"),
        ({"interval": 1.5}, "interval must be"),
        ({"options": {"loss": "l2"}}, "loss is not an option here: set the parameter loss of ViTRegressor"),
        ({"options": {"class_weight": "balanced"}}, "a regression has none"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny(**parameters).fit(*numbers())


def test_wrong_targets():
    X, y = numbers(8)
    for wrong, message in (
        (["a"] * 8, "could not convert string to float"),
        ([np.nan, *y[1:]], "Input y contains NaN"),
        (y[:-1], "inconsistent numbers of samples"),
        (None, "the target y is None"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny().fit(X, wrong)


def test_the_example_of_the_docstring():
    assert doctest.testmod(ndvit.estimator.regressor).failed == 0
