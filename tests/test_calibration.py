"""One temperature for a model's logits: how it is fitted, where it is kept, and who answers by it."""

import copy
import json
import math
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ndvit import ViTClassifier, create_model, evaluate, load_model, save_model, train
from ndvit.cli import main
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Batch, Inputs
from ndvit.data.sources.load import fit_preprocess, load_source
from ndvit.evaluation.calibration import Calibration, calibrate, fit_temperature
from ndvit.evaluation.metrics import calibration_error
from ndvit.inference.batches import predict_logits, predict_probabilities
from ndvit.network.committee import Ensemble, get_member
from ndvit.training.module import SupervisedTask
from tinyruns import TINY, resume_quietly, run_tiny, same_result, toy

VALIDATED = {"steps": 4, "val_fraction": 0.5, "batch_size": 16}  # of 160 examples 64 are for validation


def drawn(n, sharper, classes=4):
    """Logits, and labels drawn from the softmax of logits that are less sharp by a factor."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharper * logits, labels


def network(seed=0, size=(8,), sure=1.0):
    torch.manual_seed(seed)
    given = {"input_size": size, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 2}
    made = create_model("vit_pico", in_channels=2, weight_init="balanced", **given)
    made.head.weight.data *= sure
    made.classes = ("0", "1")
    return made.eval()


def examples(n=60, size=(8,)):
    """Labelled inputs for `network`, and a preprocessing that it may have."""
    source = load_source(toy(n, shape=(2, *size)), test_fraction=0)
    return Inputs(source.train, fit_preprocess(source, size=size))


# fitting


@pytest.mark.parametrize("sharper", [0.25, 1, 3])
def test_the_temperature_undoes_what_made_logits_too_sharp(sharper):
    assert fit_temperature(*drawn(4000, sharper)) == pytest.approx(sharper, rel=0.06)


def test_the_temperature_is_where_the_cost_has_no_slope():
    logits, labels = drawn(80, 2)
    inverse = torch.tensor(1 / fit_temperature(logits, labels), dtype=torch.float64, requires_grad=True)
    cost = F.cross_entropy(logits.double() * inverse, labels, reduction="sum") + inverse - inverse.log()
    cost.backward()
    assert abs(inverse.grad.item()) < 0.02
    assert fit_temperature(logits.half(), labels) == pytest.approx(1 / inverse.item(), rel=1e-2)


@pytest.mark.parametrize("n", [50, 1000])
def test_perfect_answers_do_not_make_certainty(n):
    labels = torch.arange(n) % 2
    margin = 2.0  # of two classes, the negative log-likelihood of an example is log(1 + exp(-margin / T))
    temperature = fit_temperature(margin * F.one_hot(labels, 2).float(), labels)
    b = 1 / temperature
    assert n * margin / (1 + math.exp(margin * b)) == pytest.approx(1 - 1 / b, abs=0.01)
    wrong = 1 / (1 + math.exp(margin * b))
    assert 0.1 / n < wrong < 1 / n  # about what n right answers can tell


def test_answers_that_tell_nothing_leave_the_temperature_at_one():
    assert fit_temperature(torch.zeros(60, 3), torch.arange(60) % 3) == pytest.approx(1, abs=1e-3)
    certain = torch.arange(60) % 3  # right by so much that no temperature near 1 makes a difference
    assert fit_temperature(500 * F.one_hot(certain, 3).float(), certain) == pytest.approx(1, abs=1e-3)


def test_the_temperature_is_bounded():
    labels = torch.arange(200) % 2
    assert fit_temperature(-100 * F.one_hot(labels, 2).float(), labels) == pytest.approx(20, rel=1e-3)
    assert fit_temperature(1e-3 * F.one_hot(labels, 2).float(), labels) > 0.05
    many = labels.repeat(5000)
    assert fit_temperature(0.1 * F.one_hot(many, 2).float(), many) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("size", [(8,), (8, 4)])
def test_calibrating_changes_probabilities_only(size):
    model, val = network(size=size, sure=40.0), examples(size=size)
    x = val.__getitems__(list(range(60))).x
    with torch.no_grad():
        raw = model(x)
    before = predict_probabilities(model, val, device="cpu")
    assert np.allclose(before, raw.softmax(1), atol=1e-6)
    found = calibrate(model, val, device="cpu")
    after = predict_probabilities(model, val, device="cpu")
    assert found.temperature == model.temperature == fit_temperature(raw, val.labels)
    assert abs(model.temperature - 1) > 0.1
    assert np.allclose(after, (raw / model.temperature).softmax(1), atol=1e-6)
    assert (after.argmax(1) == before.argmax(1)).all()
    with torch.no_grad():
        assert torch.equal(model(x), raw)
    labels = val.labels.numpy()
    assert found.examples == 60
    assert found.before == pytest.approx(calibration_error(before, labels), abs=1e-6)
    assert found.after == pytest.approx(calibration_error(after, labels), abs=1e-6)
    assert found == calibrate(model, val, device="cpu")  # a second time, it begins with 1 again


def test_an_ensemble_has_one_temperature_for_its_mean():
    model, val = Ensemble([network(seed, sure=40.0) for seed in range(3)]), examples()
    logits = predict_logits(model, val, device="cpu")
    calibrate(model, val, device="cpu")
    assert model.temperature == fit_temperature(logits, val.labels) != 1
    assert [member.temperature for member in model.members] == [1, 1, 1]


def test_where_nothing_is_calibrated():
    model = network()
    model.temperature = 3.0
    told = calibrate(model, None)
    assert (model.temperature, str(told)) == (1, "not calibrated: no validation data")
    told = calibrate(model, examples(49), device="cpu")
    assert (model.temperature, str(told)) == (1, "not calibrated: 49 validation examples, and it takes 50")
    assert calibrate(network(sure=40.0), examples(50), device="cpu").temperature != 1
    model.head.bias.data[0] = torch.nan
    told = calibrate(model, examples(), device="cpu")
    assert (model.temperature, str(told)) == (1, "not calibrated: the answers on validation data are not finite")


def test_what_is_said():
    assert str(Calibration(1.2345, 1200, 0.0412, 0.0119)) == (
        "calibrated: temperature 1.23 on 1,200 validation examples, validation ECE 4.1 % -> 1.2 %"
    )


def test_a_new_head_is_not_calibrated():
    model = network()
    model.temperature = 3.0
    model.reset_head(5)
    assert model.temperature == 1


# files


def entry(path):
    """The temperature in the header of a file, as text, or None."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"].get("temperature")


@pytest.mark.parametrize("members", [1, 2])
def test_the_temperature_travels(tmp_path, members):
    model = network() if members == 1 else Ensemble([network(i) for i in range(members)])
    path = tmp_path / "m.safetensors"
    save_model(model, path)
    assert entry(path) is None  # files of before are such
    assert load_model(path).temperature == 1
    model.temperature = 0.1 + 0.2
    save_model(model, path)
    again = load_model(path)
    assert again.temperature == 0.1 + 0.2
    assert copy.deepcopy(again).temperature == 0.1 + 0.2
    if members == 2:
        assert get_member(again, 0).temperature == 1
    # what it was fitted to is another network then
    assert load_model(path, input_size=(16,)).temperature == 1
    assert load_model(path, classes=["a", "b"]).temperature == 1


@pytest.mark.parametrize(
    "value", ["0", "-1", "NaN", "Infinity", '"2"', "true", "null", "[1]", "1e-9", "1e400", "9" * 400]
)
def test_bad_temperatures_in_files(tmp_path, value):
    path = tmp_path / "m.safetensors"
    save_model(network(), path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    save_file(load_file(path), path, metadata=header | {"temperature": value})
    with pytest.raises(ValueError, match=r"m\.safetensors: the header .*: temperature must be a finite number above 0"):
        load_model(path)
    save_file(load_file(path), path, metadata=header | {"temperature": "{"})
    with pytest.raises(ValueError, match=r"m\.safetensors: the header does not describe a model"):
        load_model(path)


@pytest.mark.parametrize("value", [0, -2.0, float("nan"), float("inf"), True, "1"])
def test_bad_temperatures_are_not_saved(tmp_path, value):
    model = network()
    model.temperature = value
    with pytest.raises(ValueError, match=r"temperature must be .* from 0\.001 to 1000, got .*: 1 leaves"):
        save_model(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_other_libraries_have_no_temperature(tmp_path, temperature, capsys):
    model = network(size=(8, 4))
    model.temperature = temperature
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "timm.safetensors"), "--to", "timm"])
    assert ("timm has no place for the temperature 2.50, which stays" in capsys.readouterr().err) == (temperature != 1)
    assert torch.equal(load_file(tmp_path / "timm.safetensors")["head.weight"], model.head.weight)


# runs


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A run with validation data, and what it said."""
    lines = []
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    return run_tiny(toy(160), folder, **VALIDATED, say=lines.append), lines


def test_a_run_is_calibrated_on_validation_data(calibrated):
    run, lines = calibrated
    said = [line for line in lines if line.startswith("calibrated")]
    assert len(said) == 1
    assert said[0].startswith(f"calibrated: temperature {run.model.temperature:.2f} on 64 validation examples, valid")
    assert abs(run.model.temperature - 1) > 0.02
    assert said[0].replace(">", "&gt;") in run.report.read_text(encoding="utf-8")
    again = load_model(run.folder)
    assert again.temperature == run.model.temperature
    test = toy(160)[0][:32], toy(160)[1][:32]
    told = evaluate(run.folder, test, device="cpu")
    x = torch.stack([again.preprocess(example) for example in test[0]])
    with torch.no_grad():
        expected = (again(x) / again.temperature).softmax(1)
    assert np.allclose(told.probabilities, expected, atol=1e-6)


def test_a_resumed_run_comes_to_the_same_temperature(tmp_path, calibrated):
    step = SupervisedTask.training_step

    def dying(self, batch, batch_idx):
        if batch_idx == 2:
            raise ZeroDivisionError
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedTask, "training_step", dying)
        with pytest.raises(ZeroDivisionError):
            run_tiny(toy(160), tmp_path / "run", **VALIDATED)
    run = resume_quietly(tmp_path / "run", toy(160))
    assert same_result(run.folder, calibrated[0].folder)
    assert run.model.temperature == calibrated[0].model.temperature


def test_training_on_begins_with_one(tmp_path, calibrated):
    lines = []
    first = calibrated[0].folder
    run = train(
        toy(40), weights=first, preset="basic", output=tmp_path / "run", steps=1, progress=False, say=lines.append
    )
    assert run.model.temperature == 1
    assert not [line for line in lines if line.startswith("calibrated")]
    assert "not calibrated: no validation data" in run.report.read_text(encoding="utf-8")


def test_the_classifier_is_calibrated_where_it_holds_examples_out(tmp_path, calibrated, capsys):
    X, y = toy(120)
    options = {name: value for name, value in TINY.items() if name != "model"}
    made = ViTClassifier(
        model="vit_pico", steps=4, batch_size=16, random_state=0, device="cpu", options=options | {"val_fraction": 0.5}
    ).fit(X, y)
    temperature = made.model_.temperature
    assert temperature != 1
    said = made.predict_proba(X[:9])
    made.model_.temperature = 1.0
    logs = np.log(made.predict_proba(X[:9]))
    ratio = (np.log(said)[:, 0] - np.log(said)[:, 1]) / (logs[:, 0] - logs[:, 1])
    assert np.allclose(ratio, 1 / temperature, rtol=1e-3)
    made.model_.temperature = temperature
    made.save(tmp_path / "m.safetensors")
    assert np.allclose(ViTClassifier.load(tmp_path / "m.safetensors", device="cpu").predict_proba(X[:9]), said)
    assert capsys.readouterr().out == ""
    # what is trained on from it, without validation data, is not
    again = ViTClassifier(weights=made, steps=1, random_state=0, device="cpu").fit(X, y)
    assert again.model_.temperature == 1


# validation metrics


def test_validation_counts_over_the_whole_set(monkeypatch):
    logged = {}
    task = SupervisedTask(network(), Recipe(steps=1), 1, 1)
    monkeypatch.setattr(task, "log", lambda name, value, **options: logged.setdefault(name, []).append(float(value)))
    # two batches, of which the second has one class only: batch means would give another balanced accuracy
    answers = iter([torch.eye(2)[[0, 0, 0, 1]], torch.eye(2)[[0, 1]]])
    monkeypatch.setattr(task.model, "forward", lambda x, mask: next(answers))
    for i, labels in enumerate(([0, 0, 0, 0], [1, 1])):
        task.validation_step(Batch(torch.zeros(len(labels), 2, 8), None, torch.tensor(labels)), i)
    task.on_validation_epoch_end()
    assert logged["val_accuracy"] == [pytest.approx(4 / 6)]
    assert logged["val_balanced_accuracy"] == [pytest.approx((3 / 4 + 1 / 2) / 2)]
    # a class that is not in the set counts for nothing, though it was predicted; and counts begin anew
    answers = iter([torch.eye(2)[[0, 1]]])
    task.validation_step(Batch(torch.zeros(2, 2, 8), None, torch.tensor([0, 0])), 0)
    task.on_validation_epoch_end()
    assert logged["val_balanced_accuracy"][1] == logged["val_accuracy"][1] == 0.5
    assert not [name for name in task.state_dict() if "counts" in name]


@pytest.mark.parametrize(
    ("trained", "test", "said"),
    [
        ([0] * 12 + [1] * 12, [0] * 8 + [1] * 4, True),
        ([0] * 16 + [1] * 8, [0] * 6 + [1] * 6, True),
        ([0] * 15 + [1] * 9, [0] * 7 + [1] * 4, False),
    ],
)
def test_balanced_accuracy_is_said_of_unbalanced_data(tmp_path, trained, test, said):
    X, _ = toy(24)
    lines = []
    source = (X, np.array(trained), X[: len(test)], np.array(test))
    run = run_tiny(source, tmp_path / "run", steps=1, say=lines.append)
    words = f", balanced accuracy {run.evaluation.balanced_accuracy:.4f}, after"
    assert (words in lines[-2]) == said
    title = run.report.read_text(encoding="utf-8").partition("<title>")[2].partition("</title>")[0]
    assert ("balanced" in title) == (test.count(0) >= 8)
