"""The plan of a run: what `ndvit train --dry-run` prints, and that planning changes nothing."""

import random
import re

import numpy as np
import pytest
import torch

from datafiles import pictures
from ndvit import ViTClassifier
from ndvit.training.cost import estimate_cost
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
    np.savez(home / "volumes.npz", X_train=x, y_train=y, X_test=x[:4], y_test=y[:4])
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
            r"steps    6 of 8 examples, peak learning rate 0\.003",
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
    np.savez(tmp_path / "toy.npz", X_train=x, y_train=y, X_test=x[:4], y_test=y[:4])
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
