"""Validation data in a run: the temperature that is fitted to it, and where the temperature is kept."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ndvit import Recipe, ViTClassifier, create_model, evaluate, load_model
from ndvit.model import Model
from ndvit.network.committee import Committee
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks.classification import Classification
from ndvit.training.callbacks.checkpoints import Checkpoints
from ndvit.training.module import TrainingModule
from tinyruns import QUIET, TINY, command, different, fit_tiny, run_tiny, toy

VALIDATED = {"steps": 4, "val_fraction": 0.5, "batch_size": 16}  # 64 of 160 examples are for validation


def model(members=1, size=(8,)):
    options = {"input_size": size, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 2}
    networks = [create_model("vit_pico", in_channels=2, **options) for _ in range(members)]
    network = networks[0] if members == 1 else Committee(networks, combine="probabilities")
    return Model(network, Classification(("0", "1")))


def metadata(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]


# files


@pytest.mark.parametrize("members", [1, 2])
def test_the_temperature_is_saved(tmp_path, members):
    made, path = model(members), tmp_path / "m.safetensors"
    for temperature in (1.0, 0.1 + 0.2):
        made.temperature = temperature
        made.save(path)
        assert load_model(path).temperature == temperature
    # The temperature was fitted to another network.
    assert load_model(path, input_size=(16,)).temperature == 1
    assert load_model(path, classes=["a", "b"]).temperature == 1


BAD = ("Infinity", "[1]", "1e-9", "1e400", "9" * 400)


@pytest.mark.parametrize("value", [*BAD, "{"])
def test_bad_temperatures_in_files(tmp_path, value):
    path = tmp_path / "m.safetensors"
    model().save(path)
    save_file(load_file(path), path, metadata=metadata(path) | {"temperature": value})
    message = "temperature must be a finite number above 0" if value in BAD else "does not describe a model"
    with pytest.raises(ValueError, match=rf"m\.safetensors: the header .*{message}"):
        load_model(path)


def test_bad_temperatures_are_not_saved(tmp_path):
    made = model()
    made.temperature = float("nan")
    with pytest.raises(ValueError, match=r"temperature must be .* from 0\.001 to 1000, got nan"):
        made.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_other_libraries_have_no_temperature(tmp_path, temperature, capsys):
    made = model(size=(8, 4))
    made.temperature = temperature
    made.save(tmp_path / "m.safetensors")
    assert command("convert", tmp_path / "m.safetensors", tmp_path / "timm.safetensors", "--to", "timm") == 0
    assert ("temperature 2.50" in capsys.readouterr().err) == (temperature != 1)
    assert torch.equal(load_file(tmp_path / "timm.safetensors")["head.weight"], made.network.head.weight)


# training


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A run with validation data, and the lines that it printed."""
    lines = []
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    return run_tiny(toy(160, shift=1.0), folder, **VALIDATED, log=lines.append), lines


def test_a_run_is_calibrated_on_validation_data(calibrated):
    run, lines = calibrated
    (line,) = (line for line in lines if line.startswith("calibrated"))
    assert line.startswith(f"calibrated: temperature {run.model.temperature:.2f} on 64 validation examples, validation")
    assert abs(run.model.temperature - 1) > 0.02
    assert line.replace(">", "&gt;") in run.report.read_text(encoding="utf-8")
    again = load_model(run.folder)
    assert again.temperature == run.model.temperature
    X, y = (values[:32] for values in toy(160, shift=1.0))
    x = torch.stack([again.preprocess(example) for example in X])
    with torch.no_grad():
        expected = (again(x) / again.temperature).softmax(1)
    found = evaluate(run.folder, (X, y), device="cpu", **QUIET)
    assert np.allclose(found.probabilities, expected, atol=1e-6)
    assert (found.predicted == again(x).argmax(1).numpy()).all()


def test_an_ensemble_has_one_temperature(calibrated):
    trained = fit_tiny(toy(160, shift=1.0), **VALIDATED, members=2)
    assert trained.model.temperature == trained.calibration.temperature != 1
    assert not different(trained.model.network.members[0], calibrated[0])  # the run without members


def test_a_resumed_training_fits_the_same_temperature(tmp_path, calibrated):
    step = TrainingModule.training_step

    def dying(self, batch, batch_idx):
        if batch_idx == 2:
            raise ZeroDivisionError
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", dying)
        with pytest.raises(ZeroDivisionError):
            fit_tiny(toy(160, shift=1.0), tmp_path, **VALIDATED)
    resumed = fit_tiny(toy(160, shift=1.0), tmp_path, resume=True, **VALIDATED)
    assert not different(resumed, calibrated[0])
    assert (tmp_path / "metrics.csv").read_text() == (calibrated[0].folder / "metrics.csv").read_text()
    assert resumed.model.temperature == calibrated[0].model.temperature


def test_further_training_starts_at_one(calibrated):
    trained = fit_tiny(toy(40), weights=calibrated[0].model, preset="basic", steps=1)
    assert calibrated[0].model.temperature != trained.model.temperature == 1
    assert str(trained.calibration) == "not calibrated: no validation data"


def test_the_classifier_is_calibrated_if_it_holds_examples_out(tmp_path, capsys):
    X, y = toy(120, shift=1.0)
    options = {name: value for name, value in TINY.items() if name != "model"} | {"val_fraction": 0.5}
    shared = {"random_state": 0, "device": "cpu"}
    made = ViTClassifier(model="vit_pico", steps=4, batch_size=16, options=options, **shared).fit(X, y)
    temperature = made.model_.temperature
    assert temperature != 1
    scaled = made.predict_proba(X[:9])
    made.model_.temperature = 1.0
    raw = made.predict_proba(X[:9])
    assert np.allclose(np.diff(np.log(scaled)) / np.diff(np.log(raw)), 1 / temperature, rtol=1e-3)
    made.model_.temperature = temperature
    made.save(tmp_path / "m.safetensors")
    assert np.allclose(ViTClassifier.load(tmp_path / "m.safetensors", device="cpu").predict_proba(X[:9]), scaled)
    assert capsys.readouterr().out == ""
    again = ViTClassifier(weights=made, steps=1, **shared).fit(X, y)
    assert again.model_.temperature == 1  # there was no validation data


def test_unbalanced_training_data_has_balanced_accuracy_in_the_last_line(tmp_path, calibrated):
    lines, (X, _) = [], toy(24)
    trained, test = np.repeat([0, 1], [16, 8]), np.repeat([0, 1], 6)  # balanced for testing, not for training
    run = run_tiny((X, trained, X[:12], test), tmp_path / "run", steps=1, log=lines.append)
    assert f", balanced accuracy {run.evaluation.balanced_accuracy:.4f}" in lines[-2]
    title = run.report.read_text(encoding="utf-8").partition("<title>")[2].partition("</title>")[0]
    assert "balanced" not in title
    assert "balanced" not in calibrated[1][-2]


# how often


@pytest.mark.parametrize(
    ("steps", "examples", "options", "every"),
    [
        (1000, 10, {}, 50),  # cheap: 20 validations
        (
            1000,
            1000,
            {},
            125,
        ),  # 9.6 cost a tenth of 3 * 32 * 1000 passes; 125 divides 1000
        (100, 1000, {}, 100),  # a tenth would be less than one, which stands at the end
        (100, 1000, {"batch_size": 320}, 20),
        (1000, 1000, {"accumulate": 4}, 50),
        (1009, 5000, {}, 1009),
        (997, 1000, {}, 111),  # a prime number of steps
        (100, 1000, {"val_every": 5}, 5),
        (100, 1000, {"early_stop": 3}, 5),
        (7, 10, {}, 2),
    ],
)
def test_validation_takes_a_tenth_of_the_cost_at_most(steps, examples, options, every):
    assert Recipe(**options).validation_interval(steps, examples) == every
    assert Recipe(**options).checkpoint_interval(steps) == options.get("val_every", math.ceil(steps / 20))


def test_a_training_validates_as_often_and_writes_more_checkpoints(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Checkpoints, "_end_step", lambda self, trainer: written.append(trainer.global_step))
    trained = fit_tiny(toy(80), steps=40, batch_size=4, val_fraction=0.5)
    rows = [row["step"] for row in trained.fit.history if "val_loss" in row]
    assert rows == [40]  # 40 validation examples, 3 * 4 * 40 passes of training
    assert written == list(range(1, 41))


def test_random_convolutions_are_computed_once_for_all_validations(monkeypatch):
    calls, forward = [], RandomConvolutions.forward

    def counted(self, x, mask=None):
        calls.append(len(x))
        return forward(self, x, mask)

    monkeypatch.setattr(RandomConvolutions, "forward", counted)
    options = {
        "steps": 6,
        "batch_size": 8,
        "val_fraction": 0.25,
        "val_every": 2,
        "rocket_features": 168,
        "solved_weight": 0.5,
    }
    trained = fit_tiny(toy(64, shape=(1, 24)), **options)
    assert len([row for row in trained.fit.history if "val_loss" in row]) == 3
    assert calls == [8, 4, 8, 4]  # of 12 validation examples: once for the validations, once for the temperature
