"""One probability for one example, whichever door computes it."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from exports import small_model
from ndvit.data.messages import DataWarning
from ndvit.estimator import ViTClassifier
from ndvit.exporting.export import export
from ndvit.model import compile as compile_model
from ndvit.model import load_exported
from tinyruns import QUIET, command, toy

SILENT = {"log": lambda line: None}


def expected(model, X):
    return np.array([list(prediction.probabilities.values()) for prediction in model.predict(X, **QUIET)])


def incomplete():
    """Signals of the small models, one of them with missing values."""
    X = toy(6, (2, 24))[0]
    X[1, :, 18:] = np.nan
    return X


def as_tensors(model, X):
    pairs = [model.preprocess.masked(x) for x in X]
    full = torch.ones(X.shape[2:], dtype=torch.bool)
    return torch.stack([x for x, _ in pairs]), torch.stack([full if mask is None else mask for _, mask in pairs])


@pytest.mark.parametrize("name", ["signal", "committee", "ensemble"])
def test_raw_examples_and_tensors_have_the_probabilities_of_predict(name):
    model, X = small_model(name), incomplete()
    right = expected(model, X)
    found = model.predict_proba(X, **SILENT)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, atol=1e-6)
    x, mask = as_tensors(model, X)
    for arguments, options in [((x, mask), {}), ((x,), {"mask": mask}), ((x, mask), {"batch_size": 1})]:
        tensor = model.predict_proba(*arguments, **options)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_allclose(tensor, right, atol=1e-6)
    assert np.abs(model(x, mask).softmax(1).detach().numpy() - right).max() > 0.01  # the temperature is 1.7


def test_pictures_and_files(tmp_path):
    model = small_model("image")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(
        model.predict_proba([Image.fromarray(pixels)], **SILENT),
        model.predict_proba(model.preprocess(pixels)[None]),
        atol=1e-6,
    )
    both = model.predict_proba(tmp_path / "a.png", tmp_path / "a.png", **SILENT)
    np.testing.assert_allclose(both, model.predict_proba([Image.fromarray(pixels)] * 2, **SILENT), atol=1e-6)


def test_command_evaluation_and_estimator_agree(tmp_path, capsys):
    model, X, y = small_model("signal", ("0", "1", "2")), incomplete(), np.array(["0", "1", "2"] * 2)
    right = expected(model, X)
    np.testing.assert_allclose(model.evaluate((X, y), split="all", **QUIET).probabilities, right, atol=1e-6)
    model.save(tmp_path / "model.safetensors")
    np.save(tmp_path / "x.npy", X)
    assert command("predict", tmp_path / "model.safetensors", tmp_path / "x.npy", "--format", "json") == 0
    rows = [list(row["probabilities"].values()) for row in json.loads(capsys.readouterr().out)]
    np.testing.assert_allclose(rows, right, atol=1e-6)
    estimator = ViTClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(estimator.predict_proba(X), right, atol=1e-6)


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
@pytest.mark.parametrize("softmax", [False, True])
def test_exported_graphs_agree_with_softmax_inside_and_without(format, softmax, tmp_path):
    model, X = small_model("signal"), incomplete()
    path = tmp_path / {"openvino": "model.xml", "torchscript": "model.ts"}[format]
    export(model, path, format=format, softmax=softmax)
    found = load_exported(path)
    for probabilities in (found.predict_proba(X, **SILENT), found.predict_proba(*as_tensors(model, X))):
        np.testing.assert_allclose(probabilities, expected(model, X), atol=1e-6)


def test_compiled_models_agree():
    model, X = small_model("signal"), incomplete()
    compiled = compile_model(model, ways=["openvino"], rounds=1, seconds=0.1, **SILENT)
    np.testing.assert_allclose(compiled.predict_proba(X, **SILENT), expected(model, X), atol=1e-6)


def test_threads_have_identical_answers():
    model, X = small_model("ensemble"), incomplete()
    x, mask = as_tensors(model, X)
    right = model.predict_proba(x, mask)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: model.predict_proba(x, mask), range(32)))
    assert all(torch.equal(answer, right) for answer in answers)


def test_the_model_remembers_that_outputs_are_raw():
    assert "model(x) are raw outputs, model.predict_proba(x) answers" in repr(small_model("signal"))


def test_what_cannot_be_answered():
    model = small_model("signal")
    x = torch.zeros(2, 2, 24)
    for wrong in (x[0], x[:, :, :23], x.long()):
        with pytest.raises(ValueError, match=r"tensors are inputs of the network, floating point \('n', 2, 24\)"):
            model.predict_proba(wrong)
    with pytest.raises(ValueError, match=r"expected a boolean mask \(2, 24\)"):
        model.predict_proba(x, torch.ones(2, 24))
    with pytest.raises(ValueError, match="one tensor of inputs and perhaps its mask"):
        model.predict_proba(x, np.zeros((1, 2, 24)))
    with pytest.raises(ValueError, match="a mask belongs to a tensor"):
        model.predict_proba(np.zeros((1, 2, 24)), mask=torch.ones(1, 24, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing to read"):
        model.predict_proba()
    with pytest.raises(ValueError, match=r"the answer for x\[1\] is NaN or infinite"):
        model.predict_proba(torch.stack([x[0], x[1] + torch.inf]))
    model.preprocess = None
    assert model.predict_proba(x).shape == (2, 3)
    with pytest.raises(ValueError, match="does not know its preprocessing"):
        model.predict_proba(np.zeros((1, 2, 24)))


def test_predict_doubts_a_tensor():
    with pytest.warns(DataWarning, match="X is a torch tensor and taken as raw values"):
        small_model("signal").predict(torch.ones(1, 2, 24), **QUIET)
