"""Runs from a source to a folder, and the answers of trained models: train, evaluate and predict in Python."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datafiles import arrays, picture, pictures, sound, ts
from ndvit import DataWarning, Model, create_model, evaluate, load_model, predict, train
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.data.sources.load import load_examples, load_source
from ndvit.training.plan import Request, hold_out_validation, plan
from tinyruns import QUIET, command, run_tiny, same_result, tensors, toy

FILES = ["checkpoints", "config.yaml", "metrics.csv", "model.safetensors", "predictions.csv", "report.html"]
FILES += ["report.npz", "results.json", "split.csv"]


def uneven():
    """Signals of 9 to 16 values, some of them missing."""
    x, y = toy(shape=(2, 16))
    x[3, :, 4] = x[5, 0, :3] = np.nan
    return [row[:, : 9 + i % 8] for i, row in enumerate(x)], y


DATA = {
    # name: source, input size, channels, patch
    "signals": (toy(shape=(16,)), (16,), 1, (2,)),
    "signals with channels": (toy(shape=(2, 16)), (16,), 2, (2,)),
    "unequal lengths and missing values": (uneven(), (16,), 2, (2,)),
    "a length that needs padding": (toy(shape=(130,)), (132,), 1, (3,)),
    "pictures as arrays": (toy(shape=(3, 8, 10)), (8, 10), 3, (2, 2)),
    "volumes": (toy(shape=(1, 4, 4, 8)), (4, 4, 8), 1, (2, 2, 2)),
    "own test set": ((*toy(shape=(16,)), *toy(12, shape=(16,))), (16,), 1, (2,)),
}


@pytest.mark.parametrize("name", DATA)
def test_arrays_of_every_kind(tmp_path, name):
    source, size, channels, patch = DATA[name]
    run = run_tiny(source, tmp_path / "run", steps=2, batch_size=8)
    config = run.model.config
    assert (config.input_size, config.in_channels, config.patch_size) == (size, channels, patch)
    assert config.num_classes == 2
    assert len(run.evaluation) == (12 if name == "own test set" else 8)
    assert sorted(path.name for path in run.folder.iterdir()) == FILES
    assert run.report.read_text().startswith("<!DOCTYPE html>")
    # what is in the folder answers as what was trained
    again = evaluate(run.folder, source[-2:], split="all" if len(source) == 2 else "train", **QUIET)
    direct = evaluate(run.model, source[-2:], split="all" if len(source) == 2 else "train", **QUIET)
    assert np.array_equal(again.probabilities, direct.probabilities)


def test_missing_values_are_masked_to_the_end(tmp_path):
    source = uneven()
    run = run_tiny(source, tmp_path / "run", steps=2, batch_size=8)
    x, mask = run.model.preprocess.masked(source[0][0])  # 9 of 16 values
    assert mask.tolist() == [True] * 9 + [False] * 7
    with torch.no_grad():
        right = run.model(x[None], mask[None]).softmax(1)
        wrong = run.model(x[None]).softmax(1)
    result = evaluate(run.model, source, split="all", **QUIET)
    first = result.probabilities[list(result.names).index("X[0]")]
    assert np.allclose(first, right[0], atol=1e-6)
    assert not np.allclose(first, wrong[0], atol=1e-5)


@pytest.mark.usefixtures("_drawn")
def test_the_run_folder(tmp_path):
    source = tmp_path / "toy.npz"
    np.savez(source, X=toy()[0], y=np.array(["off", "on"])[toy()[1]])
    run = run_tiny(
        str(source), tmp_path / "runs" / "deep", steps=7, batch_size=8, seed=3, val_fraction=0.25, val_every=3
    )
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert settings["source"] == str(source)
    assert (settings["model"], settings["seed"], settings["steps"], settings["depth"]) == ("vit_pico", 3, 7, 2)
    assert settings.keys() >= {*Recipe().to_dict(), "test_fraction", "skip_bad"}

    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == list("1234567")
    assert all(float(row["train_loss"]) > 0 and 0 <= float(row["train_accuracy"]) <= 1 for row in rows)
    assert [row["step"] for row in rows if row["val_loss"]] == ["3", "6"]
    assert [row["step"] for row in run.fit.history] == [1, 2, 3, 4, 5, 6, 7]

    results = json.loads((run.folder / "results.json").read_text())
    assert results["accuracy"] == run.evaluation.accuracy
    assert results["examples"] == 8
    model = load_model(run.folder)
    assert model.classes == ("off", "on")
    assert not model.network.training
    facts = model.provenance
    assert (facts["source"], facts["model"], facts["seed"], facts["steps"]) == (str(source), "vit_pico", 3, 7)
    assert facts["test_accuracy"] == run.evaluation.accuracy
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step=6.ckpt"]
    assert not list(run.folder.rglob("*.tmp"))
    assert run.report.read_text().count("<path") > 10


def test_one_row_of_metrics_is_the_mean_since_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("ndvit.training.descent.METRIC_ROWS", 1000)
    every = run_tiny(toy(), tmp_path / "a", steps=6, accumulate=2).fit.history
    monkeypatch.setattr("ndvit.training.descent.METRIC_ROWS", 2)
    thinned = run_tiny(toy(), tmp_path / "b", steps=6, accumulate=2).fit.history
    assert [row["step"] for row in thinned] == [3, 6]
    for row, three in zip(thinned, (every[:3], every[3:])):
        assert row["train_loss"] == pytest.approx(np.mean([r["train_loss"] for r in three]), rel=1e-5)
        assert row["learning_rate"] == three[-1]["learning_rate"]


def test_config_yaml_reruns_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("toy.npz", X=toy(shape=(2, 8, 8))[0], y=toy()[1])
    options = {"input_size": (12, 8), "patch_size": 4, "betas": (0.8, 0.9), "test_fraction": 0.3, "pooling": "avg"}
    run_tiny("toy.npz", tmp_path / "a", steps=3, seed=5, batch_size=8, ema_decay=0.5, qkv_bias=False, **options)
    assert command("train", "--config", "a/config.yaml", "--output", "b", "--no-progress") == 0
    assert same_result(tmp_path / "a", tmp_path / "b")
    assert load_model("b").config.input_size == (12, 8)
    # the command in config.yaml's first line and in the report is this one
    first = Path("a/config.yaml").read_text().splitlines()[0]
    assert shlex.split(first.partition("Rerun: ")[2])[:3] == ["ndvit", "train", "--config"]


def test_config_yaml_of_preset_fast_reruns(tmp_path, monkeypatch):
    """It has the options of training by steps, too, which would do nothing if a user set them."""
    monkeypatch.chdir(tmp_path)
    np.savez("toy.npz", X=toy(shape=(1, 16))[0], y=toy()[1])
    train("toy.npz", preset="fast", rocket_features=168, encoder=False, output="a", **QUIET)
    assert command("train", "--config", "a/config.yaml", "--output", "b", "--no-progress") == 0
    assert same_result(tmp_path / "a", tmp_path / "b")
    assert command("train", "--config", "a/config.yaml", "--output", "c", "--mixup", "0.7", "--no-progress") == 2


def test_the_seed_decides(tmp_path):
    made = [run_tiny(toy(), tmp_path / str(i), steps=3, seed=seed) for i, seed in enumerate((4, 4, 5))]
    one, two, other = (tensors(run.folder) for run in made)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert list(made[0].evaluation.names) != list(made[2].evaluation.names)  # it splits, too


def test_learning(tmp_path):
    run = run_tiny(toy(80, shift=1.0), tmp_path / "run", steps=60, learning_rate=5e-3, mixup=0)
    first, last = run.fit.history[0]["train_loss"], run.fit.history[-1]["train_loss"]
    assert last < 0.6 * first
    assert run.evaluation.accuracy > 0.8  # 1/2 is chance


def test_folder_of_pictures(tmp_path):
    source = pictures(tmp_path / "pictures", count=8, suffix=".jpg")
    run = run_tiny(source, tmp_path / "run", steps=20, batch_size=8, workers=0)
    assert run.model.classes == ("cat", "dog")
    assert run.model.config.input_size == (10, 12)
    new = [picture(tmp_path / "new" / "one.jpg", (0, 100, 200)), picture(tmp_path / "two.png", (60, 100, 160))]
    predictions = predict(run.folder, *new, **QUIET)
    assert [(Path(p.name).name, p.label) for p in predictions] == [("one.jpg", "cat"), ("two.png", "dog")]
    assert [(Path(p.name).name, p.label) for p in predict(run.folder, tmp_path / "new", **QUIET)] == [
        ("one.jpg", "cat")
    ]


def test_folder_of_sound(tmp_path):
    for name, pitch in (("low", 200.0), ("high", 3000.0)):
        for i in range(6):
            sound(tmp_path / "sound" / name / f"{i}.wav", frames=300 + 20 * i, pitch=pitch)
    run = run_tiny(tmp_path / "sound", tmp_path / "run", steps=30, batch_size=8, workers=0, crop=1.0, spectrogram="off")
    assert run.model.classes == ("high", "low")
    assert run.model.preprocess.sample_rate == 8000
    assert run.model.config.input_size == (400,)
    new = [sound(tmp_path / "a.wav", pitch=3000.0), sound(tmp_path / "b.flac", pitch=200.0, rate=16000, frames=800)]
    assert [p.label for p in predict(run.folder, *new, **QUIET)] == ["high", "low"]


def test_ts_of_unequal_length(tmp_path):
    lines = [f"{','.join(f'{i % 2 * 9 + j}.{i:02}' for j in range(4 + i % 3))}:{'ab'[i % 2]}" for i in range(20)]
    run = run_tiny(ts(tmp_path / "toy.ts", lines), tmp_path / "run", steps=20, batch_size=8)
    assert run.model.config.input_size == (6,)
    new = ts(tmp_path / "new.ts", ["1,2,3:?", "9,10,11,12,13:?"])
    assert [(Path(p.name).name, p.label) for p in predict(run.folder, new, **QUIET)] == [
        ("new.ts[0]", "a"),
        ("new.ts[1]", "b"),
    ]


# where runs go


def test_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("toy.npz", X=toy()[0], y=toy()[1])
    folders = [run_tiny(source, None, steps=1).folder for source in ("toy.npz", "toy.npz", toy())]
    assert [f.as_posix() for f in folders] == ["runs/toy-vit_pico", "runs/toy-vit_pico-2", "runs/arrays-vit_pico"]


def test_an_existing_folder_is_left_alone(tmp_path):
    folder = tmp_path / "run"
    run_tiny(toy(), folder, steps=1)
    before = tensors(folder)
    with pytest.raises(FileExistsError, match=r"run exists: choose another output, or replace it with --force"):
        run_tiny(toy(), folder, steps=2)
    assert torch.equal(tensors(folder)["head.weight"], before["head.weight"])

    (folder / "checkpoints" / "old").touch()
    run_tiny(toy(), folder, steps=2, force=True)
    assert load_model(folder).provenance["steps"] == 2
    assert not (folder / "checkpoints" / "old").exists()


def test_batchnorm_wants_two_examples(tmp_path):
    with pytest.raises(
        ValueError,
        match="batch_size is 1, but BatchNorm before the head needs at least 2: increase it, or set head_norm='none'",
    ):
        run_tiny(toy(), tmp_path / "run", model="signal_tiny", depth=1, stem_width=8, rocket_features=0, batch_size=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"steps": 0}, {"patch_size": 99, "input_size": 5}, {"early_stop": 1}])
def test_a_refused_run_replaces_nothing(tmp_path, options):
    folder = run_tiny(toy(), tmp_path / "run", steps=1).folder
    with pytest.raises(ValueError, match=r"steps|input_size|early_stop"):
        run_tiny(toy(), folder, force=True, **options)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        run_tiny("no-such-data", folder, force=True)
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_force_replaces_runs_only(tmp_path, kind):
    precious = tmp_path / "thesis" / "chapter.tex"
    precious.parent.mkdir()
    precious.write_text("much work")
    target = precious if kind == "file" else precious.parent
    with pytest.raises(FileExistsError, match="is not a run of ndvit, so it is not replaced even with force"):
        run_tiny(toy(), target, steps=1, force=True)
    with pytest.raises(FileExistsError, match="exists: choose another output"):
        run_tiny(toy(), target, steps=1)
    assert precious.read_text() == "much work"


def test_force_does_not_replace_what_has_a_config_yaml_of_its_own(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("theme: dark\n")
    (project / "work.py").write_text("much work")
    with pytest.raises(FileExistsError, match="is not a run of ndvit"):
        run_tiny(toy(), project, steps=1, force=True)
    assert (project / "work.py").read_text() == "much work"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "run").mkdir()
    assert run_tiny(toy(), tmp_path / "run", steps=1).folder == tmp_path / "run"


# options


REFUSED = {
    "misspelt recipe": ({"learning_rat": 1}, "unknown option 'learning_rat': did you mean 'learning_rate'"),
    "misspelt model": ({"patchsize": 1}, "unknown option 'patchsize': did you mean 'patch_size'"),
    "nothing near": ({"xyzzy": 1}, "unknown option 'xyzzy'; options are the fields of Recipe and ViTConfig"),
    "classes": ({"num_classes": 3}, "num_classes follows from the data and cannot be set"),
    "channels": ({"in_channels": 3}, "in_channels follows from the data"),
    "model": ({"model": "vit_pica"}, "unknown model 'vit_pica'. Did you mean 'vit_pico'"),
    "2-D model": ({"model": "vit_base_patch16_224"}, "reads pictures, but arrays has 1 dimension: use vit_base, which"),
    "axes": ({"input_size": (8, 8)}, r"input_size \(8, 8\) has 2 axes, but the examples of arrays have 1"),
    "patch axes": ({"patch_size": (2, 2)}, r"patch_size \(2, 2\) has 2 axes but the data has 1"),
    "size and patch": (
        {"input_size": 15, "patch_size": 4},
        r"\(15,\) is not divisible by patch_size \(4,\): use \(16,\)",
    ),
    "heads": ({"num_heads": 3}, "not divisible by num_heads 3"),
    "steps": ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
    "steps and epochs": ({"steps": 1, "epochs": 1}, "give steps or epochs, not both"),
    "no test": ({"test_fraction": 0}, "test_fraction must be above 0: a run ends with a test"),
    "test of all": ({"test_fraction": 1}, "test_fraction must be a number of at least 0 and below 1"),
    "early stop": ({"early_stop": 2}, "early_stop needs validation data: set val_fraction"),
    "early stop without": ({"early_stop": 2, "val_fraction": 0.0}, "early_stop needs validation data"),
    "device": ({"device": "mps"}, "device mps is not available: use auto or cpu"),
    "other device": ({"device": "tpu"}, "device must be one of auto, cpu, cuda, mps; got 'tpu'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_are_refused_before_anything_is_written(tmp_path, name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run_tiny(toy(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu(tmp_path):
    with pytest.raises(ValueError, match="device cuda is not available: use auto or cpu"):
        run_tiny(toy(), tmp_path / "run", device="cuda")
    run = run_tiny(toy(), tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="device cuda is not available"):
        evaluate(run.model, toy(), device="cuda", **QUIET)


def config_of(source, model="vit_pico", **options):
    return plan(Request(source=source, model=model, preset="basic", options=options, progress=False)).first.config


@pytest.mark.parametrize(
    ("shape", "options", "size"),
    [
        ((16,), {"input_size": 8}, (8,)),
        ((3, 8, 8), {"input_size": 12}, (12, 12)),
        ((3, 8, 8), {"input_size": (12, 16)}, (12, 16)),
        ((1, 8, 8, 8), {"input_size": 4}, (4, 4, 4)),
        ((3, 8, 8), {"patch_size": 3}, (9, 9)),
        ((3, 8, 8), {"patch_size": (2, 8)}, (8, 8)),
        ((1, 16), {"input_size": [8], "patch_size": [4]}, (8,)),
    ],
)
def test_one_number_is_a_length_a_square_or_a_cube(shape, options, size):
    assert config_of(toy(shape=shape), **options).input_size == size


def test_a_named_2d_model_brings_size_and_patch(tmp_path):
    source = pictures(tmp_path / "pictures")
    config = config_of(source, "vit_tiny_patch16_224")
    assert (config.input_size, config.patch_size, config.in_channels) == ((224, 224), (16, 16), 3)
    config = config_of(source, "vit_tiny_patch16_224", input_size=32)
    assert (config.input_size, config.patch_size) == ((32, 32), (16, 16))
    config = config_of(source, "vit_tiny_patch16_224", patch_size=32)
    assert (config.input_size, config.patch_size) == ((224, 224), (32, 32))
    with pytest.raises(
        ValueError, match=r"input_size \(40, 40\) is not divisible by patch_size \(16, 16\): use \(48, 48\)"
    ):
        config_of(source, "vit_tiny_patch16_224", input_size=40)


def test_options_arrive_in_the_config():
    config = config_of(toy(), drop_path_rate=0.25, drop_rate=0.1, pooling="avg", distilled=False, weight_init="article")
    assert (config.drop_path_rate, config.drop_rate, config.pooling) == (0.25, 0.1, "avg")
    assert config.weight_init == "article"
    assert config_of(toy()).weight_init == "balanced"
    assert config_of(toy(classes=5)).num_classes == 5


def test_validation_data(tmp_path):
    data = load_source(toy(100))
    held = hold_out_validation(data, Recipe(val_fraction=0.25, seed=3))
    assert (len(held.train), len(held.val), len(held.test)) == (60, 20, 20)
    assert np.bincount(held.val.targets).tolist() == [10, 10]
    assert set(held.train.names).isdisjoint(held.val.names)
    assert held.notes[-1] == "validation: 20 of the 80 training examples, stratified, seed 3"
    assert hold_out_validation(data, Recipe()).val is None  # too few to hold any out by default
    many = hold_out_validation(load_source(toy(2500, shape=(2,))), Recipe())
    assert (len(many.train), len(many.val)) == (1800, 200)
    assert hold_out_validation(load_source(toy(2500, shape=(2,))), Recipe(val_fraction=0.0)).val is None

    x, y = toy(2500, shape=(2,))
    y[0] = 7  # a class of one
    single = hold_out_validation(load_source((x, y, x, y)), Recipe())
    assert "; not in it, because they have a single example: class 7" in single.notes[-1]
    assert 2 not in single.val.targets
    with pytest.raises(ValueError, match="class 7 has a single example"):
        hold_out_validation(load_source((x, y, x, y)), Recipe(val_fraction=0.1))

    for split in ("train", "val", "test"):
        pictures(tmp_path / "pictures" / split)
    own = load_source(tmp_path / "pictures")
    assert hold_out_validation(own, Recipe(val_fraction=0.5)).val is own.val


def test_lines_of_a_run(tmp_path):
    lines = []
    run = run_tiny(toy(), tmp_path / "run", steps=1, val_fraction=0.25, log=lines.append)
    text = "\n".join(lines)
    assert "20% held out for testing (8 examples), stratified, seed 0" in text
    assert "validation: 8 of the 32 training examples, stratified, seed 0" in text
    assert "24 training, 8 validation, 8 test" in text
    parameters = sum(p.numel() for p in run.model.network.parameters())
    assert f"vit_pico, {parameters:,} parameters" in text
    right = 8 - len(run.evaluation.mistakes)
    assert f"test accuracy {right / 8:.4f} ({right} of 8; 95 % interval " in lines[-2]
    assert lines[-1] == f"report: {tmp_path / 'run' / 'report.html'}"


def test_tensorboard(tmp_path):
    run_tiny(toy(), tmp_path / "run", steps=1, tracker="tensorboard")
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_tracker_that_is_not_installed_loses_nothing(tmp_path, monkeypatch):
    run_tiny(toy(), tmp_path / "run", steps=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tracker wandb needs a package .* pip install 'ndvit\[track\]'"):
        run_tiny(toy(), tmp_path / "run", steps=1, tracker="wandb", force=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()


# evaluate


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with toy.npz, a run trained on it, and one trained on pictures."""
    home = tmp_path_factory.mktemp("home")
    x, y = toy(60, classes=3)
    np.savez(home / "toy.npz", X=x, y=np.array(["a", "b", "c"])[y])
    run_tiny(home / "toy.npz", home / "run", steps=5, seed=3, val_fraction=0.25)
    pictures(home / "pictures")
    run_tiny(home / "pictures", home / "picture_run", steps=1, workers=0)
    return home


def test_evaluating_what_was_trained_on_repeats_the_test(home):
    lines = []
    result = evaluate(home / "run", home / "toy.npz", progress=False, log=lines.append)
    stored = json.loads((home / "run" / "results.json").read_text())
    assert result.to_dict() == stored
    assert lines[-1] == "toy: 12 examples (the test set)"


def test_the_source_of_the_training_is_known_however_it_is_written(home, monkeypatch):
    monkeypatch.chdir(home)
    for path in ("toy.npz", "./toy.npz", home / "pictures" / ".." / "toy.npz"):
        assert len(evaluate("run", path, **QUIET)) == 12
    shutil.copy("toy.npz", "other.npz")
    assert len(evaluate("run", "other.npz", **QUIET)) == 60


@pytest.mark.parametrize(("split", "count"), [("test", 12), ("train", 48), ("all", 60)])
def test_splits(home, split, count):
    result = evaluate(home / "run", home / "toy.npz", split=split, **QUIET)
    assert len(result) == len(set(result.names)) == count
    tested = set(evaluate(home / "run", home / "toy.npz", **QUIET).names)
    assert len(tested & set(result.names)) == {"test": 12, "train": 0, "all": 12}[split]


def test_other_data_is_tested_whole_or_by_its_own_split(home, tmp_path):
    x, y = toy(30, classes=3)
    y = np.array(["a", "b", "c"])[y]
    np.savez(tmp_path / "other.npz", X=x, y=y)
    np.savez(tmp_path / "split.npz", X_train=x, y_train=y, X_test=x[:9], y_test=y[:9])
    assert len(evaluate(home / "run", tmp_path / "other.npz", **QUIET)) == 30
    assert len(evaluate(home / "run", (x, y), **QUIET)) == 30
    assert len(evaluate(home / "run", tmp_path / "split.npz", **QUIET)) == 9
    assert len(evaluate(home / "run", tmp_path / "split.npz", split="train", **QUIET)) == 30
    assert len(evaluate(home / "run", tmp_path / "split.npz", split="all", **QUIET)) == 39


@pytest.mark.parametrize("name", ["test", "val"])
@pytest.mark.parametrize("classes", ["abc", "ccc"])
def test_data_with_a_test_set_alone(home, tmp_path, name, classes):
    x, y = toy(12, classes=3)
    part, labels = f"X_{name}", np.array(list(classes))[y]
    np.savez(tmp_path / "toy.npz", **{part: x, f"y_{name}": labels})
    whole = evaluate(home / "run", (x, labels), **QUIET)
    for split in ("auto", "test", "all"):
        result = evaluate(home / "run", tmp_path / "toy.npz", split=split, **QUIET)
        assert [n.removeprefix(f"toy.npz:{part}") for n in result.names] == [n.removeprefix("X") for n in whole.names]
        np.testing.assert_array_equal(result.probabilities, whole.probabilities)
        np.testing.assert_array_equal(result.labels, whole.labels)
    with pytest.raises(ValueError, match="toy has no examples of the train set"):
        evaluate(home / "run", tmp_path / "toy.npz", split="train", **QUIET)
    with pytest.raises(ValueError, match=f"has {name} but no training set .*`ndvit evaluate` tests"):
        load_source(tmp_path / "toy.npz")


def test_pictures_with_a_test_set_alone(home, tmp_path):
    pictures(tmp_path / "folder" / "test", count=3)
    lines = [f"test/{name}/{i}.png,{name},test" for name in ("cat", "dog") for i in range(3)]
    (tmp_path / "folder" / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    for source in (tmp_path / "folder", tmp_path / "folder" / "list.csv"):
        result = evaluate(home / "picture_run", source, **QUIET)
        assert result.names == tuple(line.split(",")[0] for line in lines)
        assert result.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_classes_are_matched_by_name(home):
    x, y = toy(20, classes=2)
    result = evaluate(home / "run", (x, np.array(["b", "c"])[y]), **QUIET)
    assert result.classes == ("a", "b", "c")
    assert sorted(set(result.labels.tolist())) == [1, 2]
    order = [int(name.removeprefix("X[").removesuffix("]")) for name in result.names]
    assert result.labels.tolist() == [1 + y[i] for i in order]
    one = evaluate(home / "run", (x[:3], ["c"] * 3), **QUIET)  # a single class can be tested on
    assert one.labels.tolist() == [2, 2, 2]


def test_what_cannot_be_evaluated(home):
    x, _ = toy(4)
    with pytest.raises(ValueError, match=r"arrays: classes that the model does not know: d, e\. It knows a, b, c"):
        evaluate(home / "run", (x, ["a", "d", "e", "b"]), **QUIET)
    with pytest.raises(ValueError, match="pictures holds images, and the model was trained on signals"):
        evaluate(home / "run", home / "pictures", **QUIET)
    with pytest.raises(ValueError, match="toy holds signals or other arrays of values, and the model was"):
        evaluate(home / "picture_run", home / "toy.npz", **QUIET)
    with pytest.raises(ValueError, match="split must be one of auto, test, train, all; got 'val'"):
        evaluate(home / "run", home / "toy.npz", split="val", **QUIET)
    with pytest.raises(ValueError, match=r"got 3 channels, expected 2 \(shape \(3, 16\)\)"):
        evaluate(home / "run", (np.zeros((2, 3, 16)), ["a", "b"]), **QUIET)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        evaluate(home / "run", home / "toy.npz", batch_size=0, **QUIET)
    with pytest.raises(FileNotFoundError, match="no model at"):
        evaluate(home / "nothing", home / "toy.npz", **QUIET)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        evaluate(home / "run", home / "nothing", **QUIET)
    with pytest.raises(ValueError, match="does not know its classes and preprocessing"):
        evaluate(Model(create_model("vit_pico", input_size=16)), home / "toy.npz", **QUIET)


# predict


def test_predictions_agree_with_the_network(home):
    predictions = predict(home / "run", home / "toy.npz", **QUIET)
    assert len(predictions) == 60
    assert all(sum(p.probabilities.values()) == pytest.approx(1, abs=1e-5) for p in predictions)
    assert all(p.label == max(p.probabilities, key=p.probabilities.get) for p in predictions)
    model = load_model(home / "run")
    x = torch.stack([model.preprocess(example) for example in np.load(home / "toy.npz")["X"]])
    with torch.no_grad():
        direct = model(x).softmax(1)
    assert torch.allclose(torch.tensor([list(p.probabilities.values()) for p in predictions]), direct, atol=1e-6)
    assert list(predictions[0].probabilities) == ["a", "b", "c"]


def test_batches_and_models_in_memory_say_the_same(home):
    whole = predict(home / "run", home / "toy.npz", batch_size=64, **QUIET)
    parts = predict(load_model(home / "run"), home / "toy.npz", batch_size=7, **QUIET)
    file = predict(home / "run" / "model.safetensors", home / "toy.npz", **QUIET)
    for other in (parts, file):
        assert [p.label for p in other] == [p.label for p in whole]
        assert np.allclose(
            [list(p.probabilities.values()) for p in other], [list(p.probabilities.values()) for p in whole], atol=1e-6
        )


def test_files_and_folders_may_be_mixed(home, tmp_path):
    arrays(tmp_path, classes=("one",), count=3, shape=(2, 16))
    predictions = predict(home / "run", home / "toy.npz", tmp_path / "one", tmp_path / "one" / "2.npy", **QUIET)
    assert [Path(p.name).name for p in predictions[60:]] == ["0.npy", "1.npy", "2.npy", "2.npy"]
    assert predictions[-1].probabilities == pytest.approx(predictions[-2].probabilities, abs=1e-6)


def test_inputs_of_predictions_are_those_of_training(home):
    # what predict reads and what Inputs makes for training is one tensor
    model = load_model(home / "run")
    examples = load_examples(home / "toy.npz").examples
    one = Inputs(examples, model.preprocess).__getitems__([4]).x
    assert torch.equal(one[0], model.preprocess(np.load(home / "toy.npz")["X"][4]))


def test_what_cannot_be_predicted(home, tmp_path):
    with pytest.raises(ValueError, match="nothing to read: pass files, folders or arrays"):
        predict(home / "run", **QUIET)
    with pytest.raises(ValueError, match=r"0\.png holds images, and the model was trained on signals"):
        predict(home / "run", home / "toy.npz", home / "pictures" / "cat" / "0.png", **QUIET)
    with pytest.raises(FileNotFoundError, match=r"new\.png: no such file or folder"):
        predict(home / "picture_run", tmp_path / "new.png", **QUIET)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png: is not a picture"):
        predict(home / "picture_run", tmp_path / "bad.png", **QUIET)
    picture(tmp_path / "good.png")
    lines = []
    predictions = predict(home / "picture_run", tmp_path, skip_bad=True, progress=False, log=lines.append)
    assert [Path(p.name).name for p in predictions] == ["good.png"]
    assert re.fullmatch(r"1 of 2 examples left out as bad: .*bad\.png: is not a picture.*", lines[0])
    with pytest.raises(ValueError, match="the model does not know its classes"):
        predict(Model(create_model("vit_pico", input_size=16)), home / "toy.npz", **QUIET)


def test_longer_examples_are_resampled_with_a_note(home, tmp_path):
    longer, short = np.zeros((2, 30), np.float32), np.ones((2, 16), np.float32)
    arrays(tmp_path, classes=("one",), count=3, shape=(2, 20))
    for answer in (
        lambda log: predict(home / "run", [longer, short, longer], progress=False, log=log),
        lambda log: evaluate(home / "run", ([longer, short, longer], ["a", "b", "c"]), progress=False, log=log),
    ):
        lines = []
        answer(lines.append)
        assert lines[-1] == "2 of 3 examples are longer than 16, and resampled to it"
    lines = []
    predict(home / "run", tmp_path / "one", progress=False, log=lines.append)  # files, by their headers
    assert lines == ["3 of 3 examples are longer than 16, and resampled to it"]
    lines.clear()
    predict(home / "picture_run", home / "pictures" / "cat", progress=False, log=lines.append)
    assert lines == []


def test_arrays_can_be_predicted(home):
    x = np.load(home / "toy.npz")["X"][:3]
    predictions = predict(home / "run", home / "toy.npz", **QUIET)[:3]
    for examples in (x, list(x), tuple(x)):
        again = predict(home / "run", examples, **QUIET)
        assert [p.name for p in again] == ["X[0]", "X[1]", "X[2]"]
        assert again[2].probabilities == pytest.approx(predictions[2].probabilities, abs=1e-6)
    with pytest.warns(DataWarning, match="X is a torch tensor and taken as raw values"):
        again = predict(home / "run", torch.from_numpy(x), **QUIET)
    assert again[2].probabilities == pytest.approx(predictions[2].probabilities, abs=1e-6)
    with pytest.raises(ValueError, match=r"examples to predict are paths, an array .*; got a int"):
        predict(home / "run", 3, **QUIET)
    with pytest.raises(ValueError, match="got a list of paths; pass them one by one"):
        predict(home / "run", [home / "toy.npz"], **QUIET)
    with pytest.raises(ValueError, match="X: the test set has no examples"):
        predict(home / "run", [], **QUIET)
    with pytest.raises(ValueError, match="X holds signals or other arrays of values, and the model was"):
        predict(home / "picture_run", x, **QUIET)
    from PIL import Image

    images = [Image.open(home / "pictures" / "cat" / f"{i}.png") for i in range(2)]
    by_file = predict(home / "picture_run", home / "pictures" / "cat" / "1.png", **QUIET)
    assert predict(home / "picture_run", images, **QUIET)[1].probabilities == pytest.approx(by_file[0].probabilities)


def test_an_npy_file_is_one_or_many_examples_by_the_model(home, tmp_path):
    x = np.load(home / "toy.npz")["X"]
    np.save(tmp_path / "many.npy", x[:3])
    np.save(tmp_path / "one.npy", x[0])
    lines = []
    predictions = predict(home / "run", tmp_path / "many.npy", tmp_path / "one.npy", progress=False, log=lines.append)
    assert [Path(p.name).name for p in predictions] == ["many.npy[0]", "many.npy[1]", "many.npy[2]", "one.npy"]
    assert predictions[0].probabilities == pytest.approx(predictions[3].probabilities, abs=1e-6)
    assert lines == [
        "many.npy: taken as 3 examples, by its number of axes",
        "one.npy: taken as one example, by its number of axes",
    ]
    for channels, count in ((1, 2), (2, 1)):
        assert len(load_examples(tmp_path / "one.npy", dims=1, in_channels=channels).examples) == count
