"""Runs that are broken off anywhere end in the weights and metrics of the unbroken run, bit for bit."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml

from datafiles import pictures
from ndvit.training.module import TrainingModule
from tinyruns import QUIET, TINY, command, flags, resume_quietly, run_tiny, same_result, toy

SOURCE = toy()
# 28 training examples and 7 in a batch: steps do not end where passes over the data do once examples are held out
VARIANTS = {
    "plain": {"batch_size": 7, "steps": 9},
    "everything": {
        "batch_size": 7,
        "steps": 9,
        "accumulate": 3,
        "val_fraction": 0.25,
        "val_every": 2,
        "ema_decay": 0.9,
        "drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "drop_path_rate": 0.2,
        "mixup": 0.4,
        "cutmix": 1.0,
        "mix_prob": 0.9,
        "crop": 0.7,
        "flip": 0.5,
        "noise": 0.1,
        "layer_decay": 0.7,
    },
    "signal": {
        "model": "signal_tiny",
        "depth": 1,
        "stem_width": 8,
        "rocket_features": 400,
        "batch_size": 6,
        "steps": 8,
        "val_fraction": 0.25,
        "val_every": 3,
        "ema_decay": 0.5,
        "warp": 0.7,
        "scale": 0.1,
        "channel_drop": 0.3,
    },
    # the loss rises soon, so it stops before its last step
    "early stop": {
        "batch_size": 7,
        "steps": 14,
        "early_stop": 2,
        "val_fraction": 0.25,
        "val_every": 1,
        "learning_rate": 0.05,
        "ema_decay": 0.5,
    },
}
BREAKS = [
    ("plain", 4),
    ("plain", 8),
    ("everything", 1),
    ("everything", 10),
    ("everything", 25),
    ("signal", 4),
    ("early stop", -1),
]


class Killed(Exception):
    pass


def at_batch(monkeypatch, number, act):
    """Do something in the forward pass of this batch, counted from 0."""
    step = TrainingModule.training_step

    def acting(self, batch, batch_idx):
        if batch_idx == number:
            act()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", acting)


@contextmanager
def killed_at(batch):
    """The training in this block dies in the forward pass of a batch."""

    def die():
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        at_batch(patch, batch, die)
        with pytest.raises(Killed):
            yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of the unbroken run of a variant, made once."""
    made = {}

    def folder(variant):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(variant) / "run"
            run_tiny(SOURCE, made[variant], **VARIANTS[variant])
        return made[variant]

    return folder


@pytest.mark.parametrize(("variant", "batch"), BREAKS)
def test_a_broken_run_resumes_to_the_unbroken_result(tmp_path, unbroken, variant, batch):
    if batch < 0:  # the last that the unbroken run saw
        batch += len((unbroken(variant) / "metrics.csv").read_text().splitlines()) - 1
    with killed_at(batch):
        run_tiny(SOURCE, tmp_path / "run", **VARIANTS[variant])
    assert not (tmp_path / "run" / "model.safetensors").exists()
    run = resume_quietly(tmp_path / "run", SOURCE)
    assert not run.interrupted
    assert same_result(tmp_path / "run", unbroken(variant))


def test_the_early_stop_of_the_variant_is_early(unbroken):
    rows = (unbroken("early stop") / "metrics.csv").read_text().splitlines()
    assert len(rows) - 1 < VARIANTS["early stop"]["steps"]


def test_a_run_broken_twice_amid_the_first_step_after_a_checkpoint(tmp_path, unbroken):
    # batch 13 is the second of the three that make step 5, and step 4 has a checkpoint: it must stay as it was
    with killed_at(13):
        run_tiny(SOURCE, tmp_path / "run", **VARIANTS["everything"])
    with killed_at(13):
        resume_quietly(tmp_path / "run", SOURCE)
    resume_quietly(tmp_path / "run", SOURCE)
    assert same_result(tmp_path / "run", unbroken("everything"))


@pytest.mark.parametrize("options", [{"ema_decay": 0.8}, {"early_stop": 3, "val_fraction": 0.25, "ema_decay": 0.8}])
def test_a_run_killed_after_its_last_step_resumes_without_training(tmp_path, options):
    run_tiny(SOURCE, tmp_path / "whole", steps=4, val_every=1, **options)
    run_tiny(SOURCE, tmp_path / "run", steps=4, val_every=1, **options)
    assert (tmp_path / "run" / "checkpoints" / "step=4.ckpt").is_file()
    (tmp_path / "run" / "model.safetensors").unlink()
    assert resume_quietly(tmp_path / "run", SOURCE).fit.steps == 4
    assert same_result(tmp_path / "run", tmp_path / "whole")


def test_metrics_of_a_long_run_resume_between_two_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("ndvit.training.descent.METRIC_ROWS", 3)  # a row every 4 steps, a checkpoint every 3
    options = {"steps": 12, "val_every": 3, "accumulate": 2, "val_fraction": 0.25}
    run_tiny(SOURCE, tmp_path / "whole", **options)
    for batch in (13, 15):
        with killed_at(batch):
            run_tiny(SOURCE, tmp_path / "run", force=True, **options)
        resume_quietly(tmp_path / "run", SOURCE)
        assert same_result(tmp_path / "run", tmp_path / "whole")
    steps = [line.split(",")[0] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == ["3", "4", "6", "8", "9", "12"]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    with killed_at(0):
        run_tiny(SOURCE, tmp_path / "run", steps=3)
    resume_quietly(tmp_path / "run", SOURCE)
    run_tiny(SOURCE, tmp_path / "whole", steps=3)
    assert same_result(tmp_path / "run", tmp_path / "whole")


def start(arguments, cwd):
    """The command as a process of its own, with a process group of its own, as a terminal gives one."""
    program = [sys.executable, "-m", "ndvit.cli", *map(str, arguments)]
    return subprocess.Popen(
        program, cwd=cwd, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(process, run):
    while not list((run / "checkpoints").glob("step=*.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def test_sigkill_amid_a_pass(tmp_path, monkeypatch):
    options = VARIANTS["everything"] | {"steps": 24, "val_every": 3, "accumulate": 2}
    np.savez(tmp_path / "toy.npz", X=SOURCE[0], y=SOURCE[1])
    run = tmp_path / "run"
    process = start(["train", "toy.npz", "--output", run, "--no-progress", *flags({**TINY, **options})], tmp_path)
    with process:
        wait_for_checkpoint(process, run)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "model.safetensors").exists()

    monkeypatch.chdir(tmp_path)  # its config.yaml names toy.npz
    assert command("train", "--resume", run, "--no-progress") == 0
    run_tiny("toy.npz", tmp_path / "whole", **options)
    assert same_result(run, tmp_path / "whole")
    steps = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, 25))
    files = ["checkpoints", "config.yaml", "metrics.csv", "model.safetensors", "predictions.csv", "report.html"]
    files += ["report.npz", "results.json", "split.csv"]
    assert sorted(p.name for p in run.iterdir()) == files


def test_ctrl_c_in_a_terminal_leaves_a_resumable_run(tmp_path):
    # a terminal interrupts every process of the group: the worker that reads files as well
    source = pictures(tmp_path / "pictures", count=12)
    options = {"steps": 24, "batch_size": 5, "val_every": 3, "workers": 1, "mixup": 0.5}
    run = tmp_path / "my run"
    process = start(["train", source, "--output", run, "--no-progress", *flags({**TINY, **options})], tmp_path)
    wait_for_checkpoint(process, run)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    line = printed.splitlines()[-1]
    message, _, advice = line.partition("; continue with: ")
    assert message.startswith("stopped at step ")
    step = int(message.removeprefix("stopped at step "))
    assert step < 24
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step={step}.ckpt"]
    assert not (run / "model.safetensors").exists()

    program, *arguments = shlex.split(advice)
    assert program == "ndvit"
    assert command(*arguments, "--no-progress") == 0
    run_tiny(source, tmp_path / "whole", **options | {"workers": 0})
    assert same_result(run, tmp_path / "whole")


@pytest.mark.parametrize("batch", [13, 17, 26])  # 17 ends step 6, where a validation is due; 26 is the last
def test_ctrl_c_ends_after_the_step(tmp_path, monkeypatch, unbroken, batch):
    lines = []
    with monkeypatch.context() as patch:
        at_batch(patch, batch, lambda: os.kill(os.getpid(), signal.SIGINT))
        options = {**TINY, **QUIET, **VARIANTS["everything"], "log": lines.append}
        run = run_tiny(SOURCE, tmp_path / "run", **options)
    step = batch // 3 + 1
    assert run.interrupted
    assert run.evaluation is None
    assert run.fit.steps == step
    assert lines[-1] == f"stopped at step {step}; continue with: ndvit train --resume {tmp_path / 'run'}"
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step={step}.ckpt"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not resume_quietly(tmp_path / "run", SOURCE).interrupted
    assert same_result(tmp_path / "run", unbroken("everything"))


def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch, unbroken):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_batch(patch, 5, twice)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(SOURCE, tmp_path / "run", **VARIANTS["plain"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resume_quietly(tmp_path / "run", SOURCE)
    assert same_result(tmp_path / "run", unbroken("plain"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "run"
    with killed_at(3):
        run_tiny(SOURCE, folder, steps=5, val_every=2, batch_size=8)
    return folder


@pytest.fixture
def broken(killed, tmp_path):
    """A copy of a run of arrays that was killed with a checkpoint at step 2."""
    return shutil.copytree(killed, tmp_path / "run")


def test_checkpoints_hold_plain_values_only(broken):
    checkpoint = torch.load(broken / "checkpoints" / "step=2.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["optimizer_states"][0]["state"]
    assert "model.head.weight" in checkpoint["state_dict"]


def change(broken, **settings):
    path = broken / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


CHANGES = {
    "recipe": ({"learning_rate": 0.5}, "the run has changed since its checkpoint: learning_rate was None, is 0.5"),
    "length": ({"steps": 7}, "steps was 5, is 7"),
    "network": ({"embed_dim": 32}, "embed_dim was 16, is 32"),
    "both": ({"seed": 1, "depth": 3}, "seed was 0, is 1; depth was 2, is 3"),
    "split": ({"test_fraction": 0.5}, "training examples were 32, are 20"),
    "unknown option": ({"stepz": 7}, "unknown option 'stepz': did you mean 'steps'"),
    "a value that makes no sense": ({"steps": -7}, "steps must be a whole number of at least 1, got -7"),
    "no model": ({"model": None}, r"config\.yaml has been changed: it must have either"),
    "a number for a model": ({"model": 3}, r"config\.yaml has been changed since the run wrote it: model is 3"),
    "model and weights": ({"weights": "toy.safetensors"}, "it must have either model or weights"),
    "a fraction in words": ({"test_fraction": "half"}, "test_fraction is 'half'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_config_is_refused(broken, name):
    settings, message = CHANGES[name]
    change(broken, **settings)
    with pytest.raises(ValueError, match=message):
        resume_quietly(broken, SOURCE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (toy(48), "training examples were 32, are 38"),
        ((SOURCE[0], 1 - SOURCE[1]), "training examples have other names or labels"),
        ((SOURCE[0] * 2, SOURCE[1]), "training examples have another mean or standard deviation"),
        (toy(shape=(3, 16)), "in_channels was 2, is 3"),
        (toy(classes=4), "num_classes was 2, is 4"),
    ],
)
def test_changed_data_is_refused(broken, data, message):
    with pytest.raises(ValueError, match=message):
        resume_quietly(broken, data)
    assert not (broken / "model.safetensors").exists()
    assert (broken / "checkpoints" / "step=2.ckpt").is_file()


def test_what_cannot_be_resumed(broken, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no run to resume: it has no config\.yaml"):
        resume_quietly(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="was trained on arrays: resume it from Python with source= the same arrays"):
        resume_quietly(broken)

    config = (broken / "config.yaml").read_text()
    (broken / "config.yaml").write_text("seed: [0")
    with pytest.raises(ValueError, match=r"config\.yaml is not readable YAML"):
        resume_quietly(broken, SOURCE)
    (broken / "config.yaml").write_text("- seed")
    with pytest.raises(ValueError, match=r"config\.yaml must hold settings as `name: value` lines, got list"):
        resume_quietly(broken, SOURCE)
    (broken / "config.yaml").write_text(config.replace("model: vit_pico\n", ""))
    with pytest.raises(ValueError, match=r"config\.yaml has been changed since the run wrote it: model is None"):
        resume_quietly(broken, SOURCE)
    (broken / "config.yaml").write_text(config)

    resume_quietly(broken, SOURCE)
    with pytest.raises(ValueError, match=r"is finished: it has a model\.safetensors. Train again with another output"):
        resume_quietly(broken, SOURCE)


def test_a_damaged_checkpoint_is_named(broken):
    checkpoint = broken / "checkpoints" / "step=2.ckpt"
    data = checkpoint.read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"x" * 99):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"step=2\.ckpt is damaged or cut off: remove it"):
            resume_quietly(broken, SOURCE)
    checkpoint.unlink()
    assert resume_quietly(broken, SOURCE).fit.steps == 5
