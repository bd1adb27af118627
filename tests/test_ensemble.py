"""Ensembles: what their models answer, their files, and runs that train their members one after the other."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import nn

from ndvit import (
    Classification,
    Model,
    create_model,
    evaluate,
    export_state_dict,
    load_model,
    predict,
    resume,
    save_model,
    train,
)
from ndvit.network.committee import Committee
from ndvit.training.fit import fit
from ndvit.training.module import TrainingModule
from ndvit.training.plan import Request, plan
from ndvit.weights.card import model_card
from tinyruns import QUIET, TINY, command, resume_quietly, run_tiny, same_result, tensors, toy

SPLIT = (*toy(24, shape=(2, 16)), *toy(12, shape=(2, 16)))  # with a test set of its own, which no seed splits


def network(seed=0):
    torch.manual_seed(seed)
    small = {"input_size": (8,), "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 3}
    return create_model("vit_pico", in_channels=2, weight_init="balanced", **small)


def trio(**facts):
    committee = Committee([network(seed) for seed in range(3)], combine="probabilities")
    return Model(committee, Classification("abc"), **facts)


# one file


@pytest.fixture
def file(tmp_path):
    """A file of three trained members."""
    provenance = {"model": "vit_pico", "seed": 4, "members": 3, "steps": 7, "test_accuracy": 0.5}
    trio(provenance=provenance).save(tmp_path / "e.safetensors")
    return tmp_path / "e.safetensors"


def test_members_are_models(file):
    ensemble, x = load_model(file), torch.randn(4, 2, 8)
    members = ensemble.members
    assert [member.classes for member in members] == [("a", "b", "c")] * 3
    assert [member.network for member in members] == list(ensemble.network.members)
    # the accuracy was that of all members
    assert members[1].provenance == {"model": "vit_pico", "seed": 4, "steps": 7, "member": 1}
    with torch.no_grad():
        mean = torch.stack([member(x).softmax(1) for member in members]).mean(0)
        torch.testing.assert_close(ensemble(x).softmax(1), mean, atol=1e-6, rtol=0)
    assert members[0].members == [members[0]]


def test_untrained_members(file):
    ensemble = load_model(file, input_size=(16,), classes=("x", "y"))
    assert [member.untrained for member in ensemble.members] == [("head.weight", "head.bias")] * 3
    assert "test_accuracy" not in ensemble.provenance
    with pytest.raises(ValueError, match=r"6 tensors of the model .* are newly initialised"):
        predict(ensemble, np.zeros((1, 2, 16)), **QUIET)


def test_other_libraries_have_no_ensembles(file, tmp_path, capsys):
    with pytest.raises(ValueError, match="timm has no Committee: export one Vision Transformer"):
        export_state_dict(load_model(file), "timm")
    assert command("convert", file, tmp_path / "t.safetensors", "--to", "timm") == 2
    assert "timm has no Committee: export one Vision Transformer" in " ".join(capsys.readouterr().err.split())
    assert command("convert", file, tmp_path / "one.safetensors", "--to", "ndvit", "--member", 1) == 0
    alone, x = load_model(tmp_path / "one.safetensors"), torch.randn(2, 2, 8)
    with torch.no_grad():
        assert torch.equal(alone(x), load_model(file).members[1](x))
    assert command("convert", file, tmp_path / "all.safetensors", "--to", "ndvit") == 0
    assert len(load_model(tmp_path / "all.safetensors").members) == 3


@pytest.mark.parametrize("number", [-1, 3])
def test_members_by_number(file, tmp_path, capsys, number):
    assert command("convert", file, tmp_path / "one.safetensors", "--to", "ndvit", f"--member={number}") == 2
    assert f"there is no member {number}: the ensemble has 0 to 2" in " ".join(capsys.readouterr().err.split())


def test_a_single_network_has_no_members(tmp_path, capsys):
    one, other = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    save_model(network(), one)
    assert command("convert", one, other, "--to", "ndvit", "--member", 0) == 2
    assert "there is no member 0: this is a single network, no ensemble" in " ".join(capsys.readouterr().err.split())


def test_info_and_card_count_the_members(file, capsys):
    assert command("info", file) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.partition("\n\n")[0].splitlines())
    parameters = 3 * sum(p.numel() for p in network().parameters())
    assert lines["members"] == "3, whose probabilities are averaged"
    assert lines["size"].startswith(f"{parameters:,} parameters")
    card = model_card(load_model(file), "me/three")
    assert f"of {parameters:,} parameters" in card
    assert "- members: 3\n" in card


# runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_tiny(SPLIT, tmp_path_factory.mktemp("run") / "run", members=2, steps=4, seed=3, batch_size=8)


def test_members_are_the_runs_of_their_seeds(run, tmp_path):
    together = tensors(run.folder)
    for i in range(2):
        alone = tensors(run_tiny(SPLIT, tmp_path / str(i), steps=4, seed=3 + i, batch_size=8).folder)
        assert all(torch.equal(together[f"members.{i}.{name}"], tensor) for name, tensor in alone.items())
        assert same_result(tmp_path / str(i), run.folder / "members" / str(i))
    assert len(together) == 2 * len(alone)


def test_the_answers_of_a_run_are_the_mean_of_its_members(run):
    assert len(run.model.members) == 2
    whole = evaluate(run.folder, SPLIT, **QUIET).probabilities
    parts = [evaluate(run.folder / "members" / str(i), SPLIT, **QUIET).probabilities for i in range(2)]
    assert np.allclose(whole, np.mean(parts, axis=0), atol=1e-6)
    assert np.array_equal(run.evaluation.probabilities, whole)
    predictions = predict(run.folder / "model.safetensors", SPLIT[2][:3], **QUIET)
    assert np.allclose([list(p.probabilities.values()) for p in predictions], whole[:3], atol=1e-6)


def test_files_of_a_run(run):
    files = {path.name for path in run.folder.iterdir()}
    results = {"report.html", "report.npz", "results.json", "predictions.csv", "split.csv"}
    assert files == {"config.yaml", "members", "model.safetensors"} | results
    assert {p.name for p in (run.folder / "members").iterdir()} == {"0", "1"}
    assert "2 members of vit_pico" in run.report.read_text()
    facts = load_model(run.folder).provenance
    assert (facts["members"], facts["seed"], facts["steps"]) == (2, 3, 4)
    assert facts["test_accuracy"] == run.evaluation.accuracy
    histories = [
        [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]
        for path in (run.folder / "members" / str(i) / "metrics.csv" for i in range(2))
    ]
    assert [row["step"] for row in run.fit.history] == [1, 2, 3, 4]
    assert [row["train_loss"] for row in run.fit.history] == pytest.approx(np.mean(histories, axis=0))
    assert "members: 2" in (run.folder / "config.yaml").read_text()


@pytest.mark.parametrize("members", [0, -1, 1.5, True, "2"])
def test_numbers_of_members_that_make_no_sense(tmp_path, members):
    with pytest.raises(ValueError, match="members must be a whole number of at least 1, got"):
        run_tiny(toy(), tmp_path / "run", members=members)
    assert not (tmp_path / "run").exists()


def test_training_does_not_start_from_an_ensemble(run, tmp_path):
    with pytest.raises(ValueError, match="is an ensemble of 2 networks, and training starts from one: pass one"):
        train(tmp_path / "no data either", weights=run.folder, output=tmp_path / "tuned", **QUIET)
    tuned = train(SPLIT, weights=run.folder / "members" / "1", output=tmp_path / "tuned", steps=1, **QUIET)
    assert "head.weight" in tuned.model.load_report.loaded


def test_an_ensemble_of_trained_weights(run, tmp_path):
    weights = run.folder / "members" / "0"
    options = {"weights": weights, "members": 2, "steps": 2, "learning_rate": 0.1, **QUIET}
    tuned = train(SPLIT, output=tmp_path / "a", **options)
    assert not torch.equal(*(member.network.head.weight for member in tuned.model.members))
    assert tuned.model.provenance["weights"] == str(weights)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, 3)
        with pytest.raises(RuntimeError, match="killed"):
            train(SPLIT, output=tmp_path / "b", **options)
    resume_quietly(tmp_path / "b", SPLIT)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def same_weights(one, other):
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill(patch, number, act=None):
    """Die, or do something, at this training step, counted over all members; returns what counts them."""
    step, count = TrainingModule.training_step, []

    def counted(self, batch, batch_idx):
        count.append(batch_idx)
        if len(count) == number + 1:
            if act is None:
                raise RuntimeError("killed")
            act()
        return step(self, batch, batch_idx)

    patch.setattr(TrainingModule, "training_step", counted)
    return count


@pytest.mark.parametrize("number", [2, 4, 6])  # amid the first member, between the two, amid the second
def test_a_broken_run_resumes_to_the_unbroken_result(run, tmp_path, number):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, number)
        with pytest.raises(RuntimeError, match="killed"):
            run_tiny(SPLIT, folder, members=2, steps=4, seed=3, batch_size=8)
    assert not (folder / "model.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        count = kill(patch, 99)
        again = resume_quietly(folder, SPLIT)
    assert len(count) == 8 - number  # and no step of a finished member
    assert same_weights(folder, run.folder)
    assert again.fit.history == run.fit.history
    assert again.evaluation.accuracy == run.evaluation.accuracy


def test_ctrl_c_in_the_second_member(run, tmp_path):
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        options = {"members": 2, "steps": 4, "seed": 3, "batch_size": 8, "log": lines.append}
        broken = run_tiny(SPLIT, tmp_path / "run", **options)
    assert broken.interrupted
    assert len(broken.model.members) == 2
    assert lines[-2:] == ["member 2 of 2", f"stopped at step 2; continue with: ndvit train --resume {tmp_path / 'run'}"]
    assert not resume_quietly(tmp_path / "run", SPLIT).interrupted
    assert same_weights(tmp_path / "run", run.folder)


def test_a_changed_run_is_refused_though_a_member_is_finished(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, 4)
        with pytest.raises(RuntimeError, match="killed"):
            run_tiny(SPLIT, tmp_path / "run", members=2, steps=4)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: null", "learning_rate: 0.5"))
    with pytest.raises(ValueError, match=r"the run has changed since its checkpoint: learning_rate was None, is 0\.5"):
        resume_quietly(tmp_path / "run", SPLIT)
    shutil.rmtree(tmp_path / "run" / "members")
    assert resume_quietly(tmp_path / "run", SPLIT).fit.steps == 4


# without a folder


def in_memory(log=QUIET["log"], **options):
    """The plan of a training, and its result without a folder."""
    options = {name: value for name, value in (TINY | options).items() if name != "model"}
    planned = plan(Request(source=SPLIT, preset="basic", model="vit_pico", options=options))
    return planned, fit(planned, progress=False, log=log)


@pytest.mark.parametrize(
    "options",
    [{"ema_decay": 0.8}, {"early_stop": 1, "val_fraction": 0.25, "val_every": 1, "ema_decay": 0.5, "steps": 12}],
)
def test_a_training_without_a_folder_writes_nothing_and_gives_the_same(tmp_path, monkeypatch, options):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = {"steps": 5, "batch_size": 8, "learning_rate": 0.05, **options}
    _, trained = in_memory(**options)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    monkeypatch.chdir(tmp_path)
    run = run_tiny(SPLIT, tmp_path / "run", **options)
    weights = run.model.network.state_dict()
    assert all(torch.equal(t, weights[name]) for name, t in trained.model.network.state_dict().items())
    assert trained.fit.history == run.fit.history
    assert not trained.model.network.training


def test_early_stopping_keeps_the_best_weights():
    options = {"steps": 12, "batch_size": 8, "learning_rate": 0.05, "val_fraction": 0.25, "val_every": 1}
    planned, trained = in_memory(early_stop=2, **options)
    losses = [row["val_loss"] for row in trained.fit.history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 12  # stopped after two that were no better
    data = planned.data.val
    x = torch.stack([trained.model.preprocess(item) for item in data.items])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(trained.model(x), torch.as_tensor(data.targets)).item()
    assert loss == pytest.approx(losses[best], rel=1e-4)


def test_ctrl_c_without_a_folder(monkeypatch):
    kill(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    _, trained = in_memory(steps=9)
    assert trained.interrupted
    assert trained.fit.steps == 3


def test_a_tracker_needs_a_folder():
    with pytest.raises(ValueError, match="tracker tensorboard writes into a run folder: use `train`"):
        in_memory(steps=1, tracker="tensorboard")


# teachers


class Judge(nn.Module):
    """A teacher whose logits are known."""

    def forward(self, x):
        return torch.stack([-x.mean((1, 2)), x.mean((1, 2))], 1)


def test_a_teacher_teaches_every_member(tmp_path):
    taught = run_tiny(SPLIT, tmp_path / "a", members=2, steps=3, teacher=Judge(), distillation="soft")
    alone = run_tiny(SPLIT, tmp_path / "b", members=2, steps=3)
    for one, other in zip(taught.model.members, alone.model.members):
        assert not torch.equal(one.network.head.weight, other.network.head.weight)
    assert not any("teacher" in name for name in taught.model.network.state_dict())


def test_a_teacher_in_memory_is_passed_again(tmp_path):
    options = {"steps": 4, "teacher": Judge(), "batch_size": 8, "val_every": 1}
    whole = run_tiny(SPLIT, tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, 2)
        with pytest.raises(RuntimeError, match="killed"):
            run_tiny(SPLIT, tmp_path / "run", **options)
    with pytest.raises(ValueError, match="the teacher of this run was a Judge in memory: from Python, pass teacher="):
        resume_quietly(tmp_path / "run", SPLIT)
    resume(tmp_path / "run", source=SPLIT, teacher=Judge(), **QUIET)
    assert same_result(tmp_path / "run", whole.folder)


def test_a_run_teaches_by_its_path(run, tmp_path, monkeypatch):
    np.savez(tmp_path / "toy.npz", **dict(zip(("X_train", "y_train", "X_test", "y_test"), SPLIT)))
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", 2, "--embed-dim", 16, "--num-heads", 2, "--depth", 1, "--no-progress"]
    assert command("train", "toy.npz", "--output", "a", "--members", 2, "--teacher", run.folder, *flags) == 0
    settings = (tmp_path / "a" / "config.yaml").read_text()
    assert f"teacher: {run.folder}\n" in settings
    assert json.loads((tmp_path / "a" / "results.json").read_text())["examples"] == 12
    assert command("train", "--config", "a/config.yaml", "--output", "b", "--no-progress") == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")
