"""Several networks as one: what they answer, their one file, and runs that train them one after the other."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ndvit import create_model, evaluate, export_state_dict, load_model, predict, save_model, train
from ndvit.data.sources.load import load_source
from ndvit.network.committee import Ensemble, get_member
from ndvit.training.learn import learn
from ndvit.training.module import SupervisedTask
from ndvit.training.plan import split_options
from ndvit.weights.publish import model_card
from tinyruns import QUIET, TINY, command, resume_quietly, run_tiny, same_result, tensors, toy

SPLIT = (*toy(24, shape=(2, 16)), *toy(12, shape=(2, 16)))  # with a test set of its own, which no seed splits


def network(seed=0, size=(8,), **options):
    torch.manual_seed(seed)
    given = {"input_size": size, "patch_size": 4, "embed_dim": 8, "num_heads": 2, "depth": 1, "num_classes": 3}
    made = create_model("vit_pico", in_channels=2, weight_init="balanced", **given | options)
    made.classes = ("a", "b", "c")[: made.config.num_classes]
    return made.eval()


def trio(**options):
    return Ensemble([network(seed, **options) for seed in range(3)])


# what they answer


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 4, 8)])
def test_the_softmax_of_its_logits_is_the_mean_of_the_members(size):
    ensemble, x = trio(size=size), torch.randn(5, 2, *size)
    mask = torch.rand(5, *size) < 0.4
    with torch.no_grad():
        for hidden in (None, mask):
            each = torch.stack([member(x, hidden).softmax(1) for member in ensemble.members])
            assert each.std(0).max() > 0.02  # they do differ
            assert torch.allclose(ensemble(x, hidden).softmax(1), each.mean(0), atol=1e-6)


def test_sure_members_do_not_overflow():
    ensemble = trio()
    for i, member in enumerate(ensemble.members):
        nn.init.zeros_(member.head.weight)
        member.head.bias.data = torch.tensor([0.0, 0.0, 0.0]).index_fill(0, torch.tensor([i]), 200.0)
    with torch.no_grad():
        assert torch.allclose(ensemble(torch.randn(2, 2, 8)).softmax(1), torch.full((2, 3), 1 / 3), atol=1e-6)


def test_pairs_of_training_are_no_matter():
    ensemble = trio(distilled=True)
    assert not ensemble.training
    assert ensemble(torch.randn(2, 2, 8)).shape == (2, 3)


def test_members_must_be_alike():
    with pytest.raises(ValueError, match="an ensemble needs at least one network"):
        Ensemble([])
    with pytest.raises(ValueError, match="members of an ensemble must have the same config: that of member 0 is V"):
        Ensemble([network(), network(depth=2)])
    other = network()
    other.classes = ("a", "b", "d")
    with pytest.raises(ValueError, match=r"the same classes: that of member 0 is \('a', 'b', 'c'\), that of member 1 "):
        Ensemble([network(), other])
    with pytest.raises(ValueError, match="averages probabilities, and networks of 0 classes have none"):
        Ensemble([network(num_classes=0)])


def test_members_by_number():
    ensemble = trio()
    assert get_member(ensemble, 2) is ensemble.members[2]
    for number in (-1, 3):
        with pytest.raises(ValueError, match=rf"there is no member {number}: the ensemble has 0 to 2"):
            get_member(ensemble, number)
    with pytest.raises(ValueError, match="there is no member 0: this is a network alone, no ensemble"):
        get_member(network(), 0)


# one file


@pytest.fixture
def file(tmp_path):
    """A file of three members, who were trained."""
    ensemble = trio()
    ensemble.provenance = {"model": "vit_pico", "seed": 4, "members": 3, "steps": 7, "test_accuracy": 0.5}
    save_model(ensemble, tmp_path / "e.safetensors")
    return tmp_path / "e.safetensors"


def test_a_file_gives_back_what_was_saved(file):
    ensemble, loaded, x = trio(), load_model(file), torch.randn(4, 2, 8)
    assert isinstance(loaded, Ensemble)
    with torch.no_grad():
        assert torch.equal(loaded(x), ensemble(x))
    assert (loaded.classes, loaded.config, loaded.untrained) == (("a", "b", "c"), ensemble.config, ())
    assert loaded.provenance == {"model": "vit_pico", "seed": 4, "members": 3, "steps": 7, "test_accuracy": 0.5}
    # what was measured was measured of all
    assert loaded.members[1].provenance == {"model": "vit_pico", "seed": 4, "steps": 7, "member": 1}
    report = loaded.load_report
    assert report.network.startswith("3 members, each 8 wide, 1 blocks, 2 heads")
    assert set(report.loaded) == set(ensemble.state_dict())
    assert sum(p.numel() for p in loaded.parameters()) == 3 * sum(p.numel() for p in network().parameters())


def test_files_of_single_networks_stay_as_they_were(tmp_path, file):
    save_model(network(), tmp_path / "one.safetensors")
    for path, format, members in ((tmp_path / "one.safetensors", "1", None), (file, "2", "3")):
        with safe_open(path, "pt") as opened:
            assert (opened.metadata()["ndvit"], opened.metadata().get("members")) == (format, members)


def test_every_member_is_adapted(file):
    loaded = load_model(file, input_size=(16,), classes=("x", "y"))
    for i, member in enumerate(loaded.members):
        save_model(load_model(file).members[i], file.with_name("one.safetensors"))
        alone = load_model(file.with_name("one.safetensors"), input_size=(16,), classes=("x", "y"))
        assert torch.equal(member.pos_embed, alone.pos_embed)
        assert member.config == alone.config
    assert loaded.untrained == tuple(f"members.{i}.head.{leaf}" for i in range(3) for leaf in ("weight", "bias"))
    assert loaded.load_report.new == loaded.untrained
    assert "test_accuracy" not in loaded.provenance
    with pytest.raises(ValueError, match=r"6 tensors of the model .* are newly initialised"):
        predict(loaded, np.zeros((1, 2, 16)), **QUIET)
    with pytest.raises(ValueError, match="networks of 0 classes have none"):
        load_model(file, num_classes=0)


def rewrite(file, change, **header):
    """The same file with other tensors and facts."""
    with safe_open(file, "pt") as opened:
        known = opened.metadata()
    parts = load_file(file)
    change(parts)
    save_file(parts, file, {**known, **header})


def rename(old, new):
    def change(parts):
        for name in [n for n in parts if n.startswith(old)]:
            parts[new + name.removeprefix(old)] = parts.pop(name)

    return change


HOSTILE = {
    "too few": (lambda p: None, {"members": "4"}, "it says '4' members, and there are tensors of 0, 1, 2"),
    "a billion": (lambda p: None, {"members": "1" + "0" * 30}, "it says '10000000000000000000' members"),
    "no number": (lambda p: None, {"members": "three"}, "it says 'three' members"),
    "not said": (lambda p: None, {"members": ""}, "it says '' members"),
    "a gap": (rename("members.1.", "members.7."), {}, "it says '3' members, and there are tensors of 0, 2, 7"),
    "a stranger": (lambda p: p.update(x=torch.zeros(1)), {}, r"1 tensors are of no member of the ensemble \(x\)"),
    "a number with a sign": (rename("members.1.", "members.-1."), {}, "tensors are of no member"),
    "a huge number": (rename("members.1.", "members.99999999999999999."), {}, "tensors are of no member"),
    "two numbers": (rename("members.1.", "members.01."), {}, r"of no member of the ensemble \(members\.01\."),
    "nothing missing": (
        lambda p: p.pop("members.2.head.bias"),
        {},
        r"e\.safetensors/members\.2: tensors do not fit the config: 1 missing \(head\.bias\)",
    ),
    "another shape": (
        lambda p: p.update({"members.1.head.bias": torch.zeros(4)}),
        {},
        r"members\.1: tensors do not fit the config: head\.bias is \(4,\), the config needs \(3,\)",
    ),
    "one in another": (
        lambda p: p.update({"members.1.members.0.head.bias": torch.zeros(3)}),
        {},
        "do not fit the config",
    ),
    "as a network alone": (lambda p: None, {"ndvit": "1"}, "it is of a network alone, and has tensors of members"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(file, name):
    change, header, message = HOSTILE[name]
    rewrite(file, change, **header)
    with pytest.raises(ValueError, match=message):
        load_model(file)


def test_other_libraries_have_no_ensembles(file, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"timm has no ensembles: give one of the 3 members, model\.members\[0\] say"):
        export_state_dict(load_model(file), "timm")
    assert command("convert", file, tmp_path / "t.safetensors", "--to", "timm") == 2
    assert "timm has no ensembles: give one of the 3 members" in capsys.readouterr().err
    assert command("convert", file, tmp_path / "one.safetensors", "--to", "ndvit", "--member", 1) == 0
    alone, x = load_model(tmp_path / "one.safetensors"), torch.randn(2, 2, 8)
    with torch.no_grad():
        assert torch.equal(alone(x), load_model(file).members[1](x))
    assert command("convert", file, tmp_path / "all.safetensors", "--to", "ndvit") == 0
    assert len(load_model(tmp_path / "all.safetensors").members) == 3


def test_info_and_card_count_the_members(file, capsys):
    assert command("info", file) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.partition("\n\n")[0].splitlines())
    assert lines["members"] == "3, and the mean of their probabilities is the answer"
    parameters = 3 * sum(p.numel() for p in network().parameters())
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
    assert isinstance(run.model, Ensemble)
    whole = evaluate(run.folder, SPLIT, **QUIET).probabilities
    parts = [evaluate(run.folder / "members" / str(i), SPLIT, **QUIET).probabilities for i in range(2)]
    assert np.allclose(whole, np.mean(parts, axis=0), atol=1e-6)
    assert np.array_equal(run.evaluation.probabilities, whole)
    said = predict(run.folder / "model.safetensors", SPLIT[2][:3], **QUIET)
    assert np.allclose([list(p.probabilities.values()) for p in said], whole[:3], atol=1e-6)


def test_what_a_run_leaves(run):
    files = {path.name for path in run.folder.iterdir()}
    assert files == {"config.yaml", "members", "model.safetensors", "report.html", "results.json"}
    assert {p.name for p in (run.folder / "members").iterdir()} == {"0", "1"}
    assert "2 members of vit_pico" in run.report.read_text()
    told = load_model(run.folder).provenance
    assert (told["members"], told["seed"], told["steps"]) == (2, 3, 4)
    assert told["test_accuracy"] == run.evaluation.accuracy
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


def test_training_does_not_begin_with_an_ensemble(run, tmp_path):
    with pytest.raises(ValueError, match="is an ensemble of 2 networks, and training begins with one: give one"):
        train(tmp_path / "no data either", weights=run.folder, output=tmp_path / "tuned", **QUIET)
    tuned = train(SPLIT, weights=run.folder / "members" / "1", output=tmp_path / "tuned", steps=1, **QUIET)
    assert "head.weight" in tuned.model.load_report.loaded


def test_an_ensemble_of_trained_weights(run, tmp_path):
    weights = run.folder / "members" / "0"
    options = {"weights": weights, "members": 2, "steps": 2, "learning_rate": 0.1, **QUIET}
    tuned = train(SPLIT, output=tmp_path / "a", **options)
    assert not torch.equal(tuned.model.members[0].head.weight, tuned.model.members[1].head.weight)
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
    step, count = SupervisedTask.training_step, []

    def counted(self, batch, batch_idx):
        count.append(batch_idx)
        if len(count) == number + 1:
            if act is None:
                raise RuntimeError("killed")
            act()
        return step(self, batch, batch_idx)

    patch.setattr(SupervisedTask, "training_step", counted)
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
        options = {"members": 2, "steps": 4, "seed": 3, "batch_size": 8, "say": lines.append}
        broken = run_tiny(SPLIT, tmp_path / "run", **options)
    assert broken.interrupted
    assert len(broken.model.members) == 2
    assert lines[-2:] == ["member 2 of 2", f"stopped at step 2; go on with: ndvit train --resume {tmp_path / 'run'}"]
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


def in_memory(**options):
    recipe, overrides = split_options({k: v for k, v in TINY.items() if k != "model"} | options)
    members = overrides.pop("members", 1)
    return learn(load_source(SPLIT), recipe, overrides, model="vit_pico", members=members, **QUIET)


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.8}, {"early_stop": 1, "val_fraction": 0.25, "val_every": 1, "ema_decay": 0.5, "steps": 12}],
)
def test_nothing_is_written_without_a_folder_and_all_is_the_same(tmp_path, monkeypatch, options):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = {"steps": 5, "batch_size": 8, "learning_rate": 0.05, **options}
    learned = in_memory(**options)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    monkeypatch.chdir(tmp_path)
    run = run_tiny(SPLIT, tmp_path / "run", **options)
    assert all(torch.equal(t, run.model.state_dict()[name]) for name, t in learned.model.state_dict().items())
    assert learned.fit.history == run.fit.history
    assert not learned.model.training


def test_early_stopping_keeps_the_best_weights(tmp_path):
    options = {"steps": 12, "batch_size": 8, "learning_rate": 0.05, "val_fraction": 0.25, "val_every": 1}
    learned = in_memory(early_stop=2, **options)
    losses = [row["val_loss"] for row in learned.fit.history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 12  # stopped after two that were no better
    data = learned.data.val
    x = torch.stack([learned.model.preprocess(item) for item in data.items])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(learned.model(x), torch.as_tensor(data.labels)).item()
    assert loss == pytest.approx(losses[best], rel=1e-4)


def test_ctrl_c_without_a_folder(monkeypatch):
    kill(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    learned = in_memory(steps=9)
    assert learned.interrupted
    assert learned.fit.steps == 3


def test_a_tracker_needs_a_folder():
    with pytest.raises(ValueError, match="tracker tensorboard writes into a run folder, and there is none"):
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
        assert not torch.equal(one.head.weight, other.head.weight)
    assert not any("teacher" in name for name in taught.model.state_dict())


def test_a_teacher_in_memory_is_asked_for_again(tmp_path):
    options = {"steps": 4, "teacher": Judge(), "batch_size": 8, "val_every": 1}
    whole = run_tiny(SPLIT, tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, 2)
        with pytest.raises(RuntimeError, match="killed"):
            run_tiny(SPLIT, tmp_path / "run", **options)
    with pytest.raises(ValueError, match="the teacher of this run was a Judge in memory: from Python, give teacher="):
        resume_quietly(tmp_path / "run", SPLIT)
    from ndvit import resume

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
