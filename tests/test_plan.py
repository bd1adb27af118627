"""The plan of a run: what `ndvit train --dry-run` prints, and that planning changes nothing."""

import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from datafiles import pictures
from ndvit import DataWarning, ViTClassifier
from ndvit.config import named_config
from ndvit.config.recipe import Recipe
from ndvit.model import Model
from ndvit.network import VisionTransformer
from ndvit.network.checkpointing import is_checkpointing
from ndvit.network.fast import only_read_tokens
from ndvit.training.cost import estimate_cost, foresee_needs
from ndvit.training.fit import fit
from ndvit.training.plan import Request, plan
from ndvit.training.run import describe_plan
from tinyruns import QUIET, TINY, command, flags, run_tiny, toy

SMALL_SIGNAL = {"model": "signal_tiny", "embed_dim": 16, "depth": 1, "num_heads": 2, "stem_width": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a signal set, a folder of pictures, a volume with its own test set, and a run on the signals."""
    home = tmp_path_factory.mktemp("home")
    x, y = toy(50, classes=2)
    np.savez(home / "signals.npz", X=x, y=np.array(["on", "off switch"])[y])
    pictures(home / "pictures", classes=("cat", "dog", "owl"), count=10)
    x, y = toy(12, shape=(1, 4, 4, 8))
    np.savez(home / "volumes.npz", X_train=x, y_train=y, X_test=x[:4] + 1, y_test=y[:4])
    run_tiny(home / "signals.npz", home / "run", steps=1)
    return home


HELD_OUT = "no test set in the data: 20% held out for testing"
PLANS = {
    # name: source, options, lines that the plan has, rows of the table of classes
    "signals": (
        "signals.npz",
        {**SMALL_SIGNAL, "rocket_features": 168, "val_fraction": 0.25, "steps": 6, "batch_size": 8},
        [
            r"data     signals, signals of 1 axis",
            r"preset   signal",
            r"model    signal_tiny, [\d,]+ parameters",
            r"input    2 x 16, as 16 tokens of 1",
            r"examples 30 training, 10 validation, 10 test",
            rf"         {HELD_OUT} \(10 examples\), stratified, seed 0",
            r"         validation: 10 of the 40 training examples, stratified, seed 0",
            r"task     classification, 2 outputs",
            r"steps    6 of 8 examples, peak learning rate 0\.003, then 1 on all training examples",
            r"seed     0",
            r"time     (about|less than) [\d.]+ s on this \w+, [\d.e-]+ s per step; .*",
        ],
        [["class", "train", "val", "test"], ["off switch", "15", "5", "5"], ["on", "15", "5", "5"]],
    ),
    "pictures": (
        "pictures",
        {**TINY, "epochs": 2, "batch_size": 8, "seed": 3},
        [
            r"data     pictures, images of 2 axes",
            r"preset   small_data",
            r"input    3 x 10 x 12, as 30 tokens of 2 x 2",
            r"examples 24 training, 0 validation, 6 test",
            rf"         {HELD_OUT} \(6 examples\), stratified, seed 3",
            r"steps    6 of 8 examples, .*",
        ],
        [["class", "train", "test"], *[[name, "8", "2"] for name in ("cat", "dog", "owl")]],
    ),
    "a volume with a test set": (
        "volumes.npz",
        {**TINY, "steps": 2},
        [
            r"data     volumes, signals of 3 axes",
            r"preset   basic",
            r"input    1 x 4 x 4 x 8, as 16 tokens of 2 x 2 x 2",
            r"examples 12 training, 0 validation, 4 test",
            r"         the split in volumes\.npz",
        ],
        [["class", "train", "test"], ["0", "6", "2"], ["1", "6", "2"]],
    ),
    "an ensemble with a teacher": (
        "signals.npz",
        {**TINY, "members": 3, "seed": 5, "steps": 2, "teacher": "run"},
        [
            r"model    3 members of vit_pico, each [\d,]+ parameters",
            r"seed     5 to 7",
            r"teacher  run; its time and memory are not estimated",
        ],
        [],
    ),
    "trained weights": (
        "pictures",
        {"weights": "run", "lora": 2, "steps": 2},
        [
            r"preset   finetune",
            r"model    run, [\d,]+ parameters",
            r"weights  run: ndvit layout",
            r"new      head\.weight, head\.bias: initialised, to be trained",
            r"trained  [\d,]+ of [\d,]+ parameters \(the head, and adapters of rank 2 in all 2 blocks\)",
        ],
        [],
    ),
    "a solved head": (
        "signals.npz",
        {"weights": "run", "head": "solved"},
        [
            r"trained  34 of [\d,]+ parameters \(the head\)",
            r"steps    none: the head is solved on frozen features",
            r"time     (about|less than) [\d.]+ s on this \w+, one pass over the examples; .*",
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_dry_run_shows_the_plan_and_writes_nothing(home, monkeypatch, capsys, name):
    source, options, lines, table = PLANS[name]
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    assert command("train", source, "--dry-run", "--no-progress", "--output", "new", *flags(options)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert sorted(home.rglob("*")) == before
    text = printed.out.splitlines()
    for line in [*lines, r"memory   about \d+ MiB for weights, gradients, .*"]:
        assert any(re.fullmatch(line, found) for found in text), f"{line} is not in\n{printed.out}"
    assert text[-1] == "Nothing was trained or written; without --dry-run, the run would be in new."
    rows = [re.split(r"  +", line) for line in text[text.index("") + 1 : -2]]
    assert rows == table or not table


def test_a_dry_run_refuses_what_a_run_refuses(home, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(FileExistsError, match="run exists: choose another output"):
        describe_plan("signals.npz", output="run", progress=False)
    assert describe_plan("signals.npz", **TINY, steps=1, output="run", force=True, progress=False)
    with pytest.raises(ValueError, match="test_fraction must be above 0"):
        describe_plan("signals.npz", test_fraction=0)
    with pytest.raises(ValueError, match="unknown preset 'fest'"):
        describe_plan("signals.npz", preset="fest")
    with pytest.raises(ValueError, match="unknown option 'stepz'"):
        describe_plan("signals.npz", stepz=1)
    assert not (home / "runs").exists()


def test_planning_prints_nothing_and_leaves_the_global_generators_alone(capfd):
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    options = {**TINY, "steps": 2, "drop_rate": 0.1, "mixup": 0.2}
    planned = plan(Request(source=toy(), model=options.pop("model"), options=options, members=2, progress=False))
    assert str(planned)
    after = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    assert states[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(states[1], after[1]))
    assert torch.equal(states[2], after[2])
    assert capfd.readouterr() == ("", "")


def test_a_plan_can_be_used_again():
    options = {**TINY, "steps": 2}
    planned = plan(Request(source=toy(), model=options.pop("model"), options=options, progress=False))
    initial = planned.first.network.state_dict()["head.weight"].clone()
    one, two = (fit(planned, **QUIET).model.network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(planned.first.network.state_dict()["head.weight"], initial)


@pytest.mark.parametrize(
    "options", [{**TINY, "mixup": 0.2}, {**SMALL_SIGNAL, "rocket_features": 168}], ids=["", "signal"]
)
def test_the_estimator_and_the_command_train_the_same_model(tmp_path, options):
    x, y = toy()
    np.savez(tmp_path / "toy.npz", X_train=x, y_train=y, X_test=x[:4] + 1, y_test=y[:4])
    run = tmp_path / "run"
    settings = {**options, "steps": 3, "seed": 4, "output": run}
    assert command("train", tmp_path / "toy.npz", "--no-progress", *flags(settings)) == 0
    options = dict(options)
    classifier = ViTClassifier(model=options.pop("model"), steps=3, random_state=4, options=options).fit(x, y)
    again = ViTClassifier.load(run / "model.safetensors")
    one, two = classifier.model_.network.state_dict(), again.model_.network.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert np.array_equal(classifier.predict_proba(x), again.predict_proba(x))


def test_the_cost_grows_with_the_training():
    options = {**TINY, "steps": 10}
    planned = plan(Request(source=toy(), model=options.pop("model"), options=options, progress=False))
    train = planned.inputs()[0]
    cost = estimate_cost(planned.first, planned.recipe, train, 10)
    assert cost.seconds == pytest.approx(10 * cost.step_seconds)
    weights = 16 * sum(p.numel() for p in planned.first.network.parameters())
    # One example of 8 tokens keeps some hundred numbers of 16 for each token and block.
    assert weights < cost.bytes < weights + 32 * 8 * 2 * 16 * 4 * 200


# doubts about data


@pytest.mark.parametrize("value", [300.0, np.nan], ids=["constant", "unobserved"])
def test_channels_without_content_are_warned_of_on_every_door(value, tmp_path, capsys):
    x, y = toy()
    x[:, 1] = value
    with pytest.warns(DataWarning, match="channel 1 of 2 .* is constant or never observed in the training set"):
        planned = plan(Request(source=(x, y), model="vit_pico", options={"steps": 1}, progress=False))
    assert planned.preprocess.unused_channels == (1,)
    assert any("never observed" in note for note in planned.data.notes)
    with pytest.warns(DataWarning, match="never observed"):
        classifier = ViTClassifier(model="vit_pico", steps=1, random_state=0).fit(x, y)
    x[:, 1] = np.random.default_rng(1).normal(size=(40, 16))
    with pytest.warns(DataWarning, match="channel 1 was constant or never observed in training, differs here"):
        alive = classifier.predict_proba(x)
    x[:, 1] = value
    assert np.array_equal(alive, classifier.predict_proba(x))
    np.savez(tmp_path / "dead.npz", X_train=x, y_train=y, X_test=x, y_test=y)
    assert command("train", tmp_path / "dead.npz", "--model", "vit_pico", "--steps", 1, "--dry-run") == 0
    assert "warning: channel 1 of 2" in capsys.readouterr().err


def test_a_step_that_cannot_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr("ndvit.training.cost._memory", lambda device: 2**30)
    x, y = np.random.default_rng(0).normal(size=(40, 1, 4096)).astype(np.float32), np.arange(40) % 2
    options = {"patch_size": 4, "batch_size": 32, "steps": 1}
    request = Request(source=(x, y), model="vit_tiny", options=options, progress=False)
    with pytest.raises(
        ValueError,
        match=r"at least [\d.]+ GiB of memory, and this cpu has 1\.0 GiB: 1 x 4096 .*1,024 .*"
        r"--window 512 \(window=; the mean of 8 windows is the answer .* a step of 32 windows needs about [\d.]+ GiB\)",
    ):
        plan(request)
    monkeypatch.setattr("ndvit.training.cost._memory", lambda device: 2**45)
    assert plan(request).data.notes[0].startswith("no test set")


def test_a_run_of_hours_is_warned_of(monkeypatch):
    monkeypatch.setattr("ndvit.training.cost._speed", lambda device: 1e11)
    with pytest.warns(DataWarning, match=r"the 1,000,000 steps would take about [\d.]+ .*--patch-size.*--steps"):
        plan(Request(source=toy(shape=(3, 64, 64)), model="vit_small", options={"steps": 1_000_000}, progress=False))


def test_random_convolutions_of_long_recordings_are_foreseen(monkeypatch):
    monkeypatch.setattr("ndvit.training.cost._speed", lambda device: 1e11)
    x = np.random.default_rng(0).normal(size=(12, 1, 960_000)).astype(np.float32)
    with pytest.warns(
        DataWarning, match="the random convolutions and the 1,000 steps would take about .* --input-size"
    ):
        plan(Request(source=(x, np.arange(12) % 2), preset="signal", progress=False))


def test_what_is_foreseen_is_what_autograd_keeps():
    config = named_config("vit_pico", input_size=(512,), patch_size=2, in_channels=1, num_classes=2)
    network, kept = VisionTransformer(config).train(), {}

    def count(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    token = is_checkpointing.set(True)  # without the hooks that compute some tensors again
    with only_read_tokens(network), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network(torch.randn(2, 1, 512))
    is_checkpointing.reset(token)
    weights = sum(p.numel() * 4 for p in network.parameters())
    two, four = (foresee_needs(Model(network), Recipe(batch_size=n), 1).bytes for n in (2, 4))
    assert four - two == pytest.approx(sum(kept.values()) - weights, rel=0.1)


def picture_folder(root, size):
    random = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir()
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_pictures_that_lose_much_are_warned_of(tmp_path):
    folder = picture_folder(tmp_path, (94, 40))
    options = {"input_size": (32, 32), "patch_size": 8, "steps": 1}
    with pytest.warns(DataWarning, match=r"half of the pictures lose at least 57% of their area.*--resize pad"):
        plan(Request(source=folder, model="vit_pico", options=options, progress=False))
    for resize in ("pad", "squash"):
        planned = plan(Request(source=folder, model="vit_pico", options=options | {"resize": resize}, progress=False))
        assert planned.preprocess.resize == resize
        assert planned.augmentation.per_example.preprocess == planned.preprocess


def test_pictures_that_lose_as_photographs_do_have_a_note(tmp_path):
    options = {"input_size": (32, 32), "patch_size": 8, "steps": 1}
    planned = plan(
        Request(source=picture_folder(tmp_path, (30, 40)), model="vit_pico", options=options, progress=False)
    )
    assert [note for note in planned.data.notes if "lose at least 25% of their area" in note]


def test_resize_is_for_pictures():
    with pytest.raises(ValueError, match="resize='pad' is for pictures, and arrays holds arrays of values"):
        plan(Request(source=toy(), model="vit_pico", options={"resize": "pad"}, progress=False))
