"""Files of every earlier format load, give the answers they gave, and unfinished runs resume (see data/README.md)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ndvit import ViTClassifier, load_model, resume
from tinyruns import QUIET, tensors, toy

DATA = Path(__file__).parent / "data"
ANSWERS = np.load(DATA / "answers.npz")


def signals():
    x = np.random.default_rng(1).normal(size=(5, 1, 24)).astype(np.float32)
    x[1, 0, 20:] = np.nan
    return x


INPUTS = {
    "network.safetensors": np.random.default_rng(3).normal(size=(5, 1, 8, 8)).astype(np.float32),
    "ensemble.safetensors": np.random.default_rng(1).normal(size=(5, 2, 16)).astype(np.float32),
    "signal.safetensors": signals(),
    "signal_ensemble.safetensors": signals(),
    "run": signals(),
    "signal.onnx": signals(),
    "network.xml": np.random.default_rng(3).normal(size=(5, 1, 8, 8)).astype(np.float32),
}
EXPORTED = ("signal.onnx", "network.xml")


@pytest.mark.parametrize("name", INPUTS)
def test_a_file_gives_the_answers_it_gave(name):
    predictions = load_model(DATA / name).predict(INPUTS[name], device="cpu", **QUIET)
    answers = np.array([list(p.probabilities.values()) for p in predictions])
    expected = ANSWERS[name.removesuffix(".safetensors")]
    np.testing.assert_allclose(answers, expected, atol=1e-5 if name in EXPORTED else 1e-6)


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in EXPORTED])
def test_a_file_that_is_saved_again_gives_the_same_answers(tmp_path, name):
    model = load_model(DATA / name)
    model.save(tmp_path / "again.safetensors")
    again = load_model(tmp_path / "again.safetensors")
    assert again.task == model.task
    assert again.preprocess == model.preprocess
    assert again.temperature == model.temperature
    x = torch.stack([model.preprocess.masked(row)[0] for row in INPUTS[name]])
    assert torch.equal(model(x), again(x))


def test_a_classifier_keeps_its_labels():
    classifier = ViTClassifier.load(DATA / "estimator.safetensors")
    assert classifier.classes_.tolist() == [3, 7]
    assert classifier.classes_.dtype.kind == "i"
    answers = classifier.predict_proba(INPUTS["ensemble.safetensors"])
    np.testing.assert_allclose(answers, ANSWERS["estimator"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "source"),
    [("unfinished-network", toy()), ("unfinished-signal", toy(shape=(1, 24), n=30, classes=3))],
    ids=["network", "signal"],
)
def test_an_unfinished_run_resumes_to_the_unbroken_result(tmp_path, name, source):
    shutil.copytree(DATA / name, tmp_path / "run")
    resume(tmp_path / "run", source=source, **QUIET)
    whole = load_file(DATA / f"{name}-whole.safetensors")
    now = tensors(tmp_path / "run")
    if "signal" in name:  # random convolutions were a part of the transformer
        now = {k.replace("members.1.", "rocket.").removeprefix("members.0."): v for k, v in now.items()}
    assert now.keys() == whole.keys()
    # Nothing depends on a key bias (softmax), or on a bias before BatchNorm: their gradients are rounding errors, which
    # differ between processors and which Adam enlarges.
    free = {"norm.bias", "head_norm.running_mean"} if "signal" in name else set()
    for tensor in whole.keys() - free:
        parts = [now[tensor], whole[tensor]]
        if tensor.endswith("qkv.bias"):
            parts = [part.view(3, -1)[[0, 2]] for part in parts]
        torch.testing.assert_close(*parts, atol=1e-5, rtol=1e-4)
