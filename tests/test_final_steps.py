"""Final steps of a training, on all training examples including those that were held out for validation."""

import math
import os
import signal

import numpy as np
import pytest

from ndvit import load_model
from ndvit.network.committee import transformers
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.training import descent
from ndvit.training.module import TrainingModule
from ndvit.training.plan import Request, plan
from tinyruns import UNSPLIT, different, fit_tiny, resume_quietly, run_tiny, same_result, toy

SOURCE = toy()  # 32 training examples in a run, 8 of them held out
SMALL = {"embed_dim": 16, "depth": 1, "stem_width": 8, "rocket_features": 400, "encoder": False}
SIGNAL = SMALL | {"model": "signal_tiny"}
TWO = SIGNAL | {"members": 2, "seed": 3}
OPTIONS = SIGNAL | {"batch_size": 6, "steps": 8, "val_fraction": 0.25, "val_every": 3, "final_share": 0.5}


class Killed(Exception):
    pass


def die():
    raise Killed


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def same_metrics(one, other):
    return (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def at_step(patch, number, act):
    """Do something in this step, counted from 0 over all trainings; the list gets the batch size of each step."""
    sizes, step = [], TrainingModule.training_step

    def acting(self, batch, batch_idx):
        if len(sizes) == number:
            act()
        sizes.append(len(batch.x))
        return step(self, batch, batch_idx)

    patch.setattr(TrainingModule, "training_step", acting)
    return sizes


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("final") / "run"
    return run_tiny(SOURCE, folder, **OPTIONS)


def test_they_follow_the_others_with_what_validation_has_chosen(unbroken, tmp_path):
    without = run_tiny(SOURCE, tmp_path / "run", **OPTIONS | {"final_share": 0.0})
    assert (unbroken.fit.steps, without.fit.steps) == (12, 8)
    assert unbroken.model.provenance["steps"] == 12
    assert [row["step"] for row in unbroken.fit.history] == list(range(1, 13))
    assert unbroken.fit.history[:8] == without.fit.history
    assert unbroken.model.network.weights == without.model.network.weights
    assert unbroken.model.temperature == without.model.temperature
    trained = {name for name in different(unbroken, without) if not name.startswith("members.1.")}
    assert trained  # and what is solved is the same, on all examples
    assert different(unbroken, without) == trained


def test_they_are_on_all_examples_with_a_lower_rate(monkeypatch):
    calls, descend = [], descent.descend

    def watched(plan, model, inputs, recipe, *rest):
        calls.append((inputs, recipe))
        return descend(plan, model, inputs, recipe, *rest)

    monkeypatch.setattr(descent, "descend", watched)
    fit_tiny(SOURCE, **OPTIONS)
    (first, usual), (final, recipe) = calls
    assert [len(part) for part in first] == [24, 8]
    assert len(final[0]) == 32
    assert final[1] is None
    assert recipe.steps == 4
    assert recipe.learning_rate == pytest.approx(0.3 * usual.peak_learning_rate(SIGNAL["embed_dim"]))
    both = np.concatenate([part.targets for part in first])
    assert sorted(final[0].targets.tolist()) == sorted(both.tolist())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.15),
        ({"val_fraction": 0.3}, 0.15),
        ({"val_fraction": 0.0}, 0.0),
        ({"final_share": 0.4}, 0.4),
        ({"final_share": 0.0}, 0.0),
    ],
)
@pytest.mark.parametrize("each", [20, 8])  # of fewer than ten examples a class, the preset holds none out
def test_preset_signal_has_them_if_examples_are_held_out(options, expected, each):
    held_out = options.get("val_fraction", 0.2 if each >= 10 else 0.0)
    request = Request(
        source=toy(2 * each), model="signal_tiny", preset="signal", reading=UNSPLIT, options=SMALL | options
    )
    if options.get("final_share") and not held_out:
        with pytest.raises(ValueError, match=r"final_share 0.4 adds steps on examples that were held out .*, and none"):
            plan(request)
        return
    planned = plan(request)
    assert planned.recipe.final_share == (expected if held_out else 0.0)
    assert (planned.final_steps > 0) == bool(planned.recipe.final_share)


def test_a_validation_set_of_the_data_is_not_trained_on(tmp_path):
    X, y = toy(60)
    np.savez(tmp_path / "x.npz", X_train=X[:40], y_train=y[:40], X_val=X[40:50], y_val=y[40:50], X_test=X, y_test=y)
    planned = plan(Request(source=tmp_path / "x.npz", model="signal_tiny", preset="signal", options=SMALL))
    assert len(planned.data.val) == 10
    assert (planned.final_steps, planned.recipe.final_share) == (0, 0.0)


def test_early_stopping_shortens_them():
    options = {"steps": 14, "early_stop": 2, "val_every": 1, "learning_rate": 0.05}
    result = fit_tiny(SOURCE, **OPTIONS | options).fit
    validated = sum("val_loss" in row for row in result.history)
    assert validated < 14
    assert result.steps == validated + math.ceil(validated / 2)


def test_a_network_without_weight_is_not_trained_on(monkeypatch, tmp_path):
    def silence(network, *_):
        network.weights = tuple(float(isinstance(one, RandomConvolutions)) for one in network.members)

    monkeypatch.setattr("ndvit.training.fit.weigh_networks", silence)
    trained = fit_tiny(SOURCE, tmp_path, **OPTIONS)
    assert trained.fit.steps == 8
    assert not transformers(trained.model.network)
    assert not (tmp_path / "final").exists()


def test_networks_without_random_convolutions_have_them_too():
    options = {"steps": 4, "val_fraction": 0.25, "final_share": 0.25, "batch_size": 8}
    one, other = fit_tiny(SOURCE, **options), fit_tiny(SOURCE, **options | {"final_share": 0.0})
    assert (one.fit.steps, other.fit.steps) == (5, 4)
    assert different(one, other)
    assert one.model.temperature == other.model.temperature


@pytest.mark.parametrize("number", [3, 8, 10])
def test_a_broken_run_resumes_to_the_unbroken_result(number, unbroken, tmp_path):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, number, die)
        with pytest.raises(Killed):
            run_tiny(SOURCE, folder, **OPTIONS)
    assert not (folder / "model.safetensors").exists()
    again = resume_quietly(folder, SOURCE)
    assert same_result(folder, unbroken.folder)
    assert same_metrics(folder / "final", unbroken.folder / "final")
    assert again.fit.history == unbroken.fit.history
    assert again.model.network.weights == unbroken.model.network.weights
    assert again.model.temperature == unbroken.model.temperature


@pytest.mark.parametrize("number", [6, 8])  # before the first of the final steps, and after one with a checkpoint
def test_new_adapters_are_those_of_the_unbroken_run(number, tmp_path):
    options = {"weights": tmp_path / "weights.safetensors", "lora": 2, "steps": 6, "val_every": 2, "batch_size": 8}
    options |= {"val_fraction": 0.25, "final_share": 0.5}
    fit_tiny(SOURCE, steps=1).model.save(options["weights"])
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, number, die)
        with pytest.raises(Killed):
            fit_tiny(SOURCE, tmp_path / "run", **options)
    again = fit_tiny(SOURCE, tmp_path / "run", resume=True, **options)
    assert not different(again, fit_tiny(SOURCE, **options))


def test_ctrl_c_in_the_final_steps(unbroken, tmp_path):
    folder, lines = tmp_path / "run", []
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 9, interrupt)
        broken = run_tiny(SOURCE, folder, **OPTIONS | {"log": lines.append})
    assert broken.interrupted
    assert lines[-1] == f"stopped at step 10; continue with: ndvit train --resume {folder}"
    assert not (folder / "model.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        sizes = at_step(patch, -1, die)
        assert not resume_quietly(folder, SOURCE).interrupted
    assert len(sizes) == 4  # two after the last checkpoint of the first steps, and two of the final ones
    assert same_result(folder, unbroken.folder)


def test_ctrl_c_in_the_final_steps_of_the_first_member(tmp_path):
    options, lines = TWO | {"batch_size": 8, "steps": 4, "val_fraction": 0.25, "final_share": 0.5}, []
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, interrupt)
        run_tiny(SOURCE, tmp_path / "run", **options | {"log": lines.append})
    assert lines[-3:-1] == ["member 1 of 2", "2 further steps on all 32 training examples, including those held out"]
    assert lines[-1].startswith("stopped at step 5; ")


def test_a_broken_ensemble_resumes_to_the_unbroken_result(tmp_path):
    options = TWO | {"batch_size": 8, "steps": 4, "val_fraction": 0.25, "final_share": 0.5}
    whole, broken = fit_tiny(SOURCE, tmp_path / "whole", **options), tmp_path / "broken"
    assert whole.fit.steps == 6
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 11, die)  # in the last step of the second member
        with pytest.raises(Killed):
            fit_tiny(SOURCE, broken, **options)
    with pytest.raises(FileNotFoundError, match=r"members.0.final.checkpoints.step=2.ckpt"):
        load_model(broken)
    with pytest.MonkeyPatch.context() as patch:
        sizes = at_step(patch, -1, die)
        again = fit_tiny(SOURCE, broken, resume=True, **options)
    assert len(sizes) == 1
    assert not different(again, whole)
    assert again.fit.history == whole.fit.history
