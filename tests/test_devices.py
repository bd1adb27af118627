"""Training on several devices: processes on this CPU, connected by gloo, against one process."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ranks
from datafiles import pictures
from ndvit.config import Recipe
from ndvit.data.loading import Dealt, ShuffledStream
from ndvit.data.sources.load import load_source
from ndvit.processes import LOST, SUPERVISED, started
from ndvit.training import devices
from ndvit.training.devices import deal, resumed_devices, settle_devices
from ndvit.training.presets import choose
from tinyruns import TINY, fit_tiny, flags, run_tiny, toy

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
JOBS = ["vit", "signals", "sharded", "stopped", "predicted", "fetched", "resumed"]
MORE_JOBS = ["gaps", "contrastive", "masked"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def worker_of(parent, rank):
    """The process of a rank among the children of a process."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("no such process")


def ran(home, count, jobs, *before):
    """What jobs return in each of this number of processes: {job: [of rank 0, ...]}; other jobs run before them."""
    groups = [words for one in (*before, ",".join(jobs)) for words in (str(count), one)]
    program = [sys.executable, ranks.__file__, str(home), *groups]
    done = subprocess.run(program, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return {job: [torch.load(home / f"{count}/{job}.{i}.pt", weights_only=True) for i in range(count)] for job in jobs}


@pytest.fixture(scope="module")
def two(home):
    np.savez(home / "toy.npz", X=ranks.SOURCE[0], y=ranks.SOURCE[1])
    return ran(home, 2, JOBS, "killed")


@pytest.fixture(scope="module")
def more_of_two(home):
    return ran(home, 2, MORE_JOBS)


@pytest.fixture(scope="module")
def four(home):
    return ran(home, 4, ["vit", "signals"])


@pytest.fixture(scope="module")
def alone():
    """The results of one process, made once."""
    made = {}

    def get(job):
        if job not in made:
            made[job] = getattr(ranks, job)(Path("unused")) if job != "vit" else ranks.result(ranks.VIT, 16)
        return made[job]

    return get


def distance(one, other):
    """The largest difference of two results in their weights and in their metrics."""
    states, rows = (one["state"], other["state"]), zip(one["history"], other["history"], strict=True)
    weights = max(
        float((states[0][name] - states[1][name]).abs().max()) for name in states[0] if states[0][name].numel()
    )
    return max(weights, *(abs(row[name] - same[name]) for row, same in rows for name in row))


@pytest.mark.parametrize("job", ["vit", "signals"])
def test_two_processes_train_what_one_trains_with_their_whole_batch(two, alone, job):
    assert distance(two[job][0], alone(job)) < 1e-5
    assert distance(two[job][0], two[job][1]) < 1e-6  # both have the network, and the metrics of the whole batch


@pytest.mark.parametrize("job", MORE_JOBS)
def test_two_processes_pretrain_and_mask_as_one(more_of_two, alone, job):
    assert distance(more_of_two[job][0], alone(job)) < 1e-5
    assert distance(more_of_two[job][0], more_of_two[job][1]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("job", ["vit", "signals"])
def test_four_processes_train_what_one_trains_with_their_whole_batch(four, alone, job):
    assert distance(four[job][0], alone(job)) < 1e-5


def test_a_network_in_parts_trains_as_a_whole_one(two):
    assert distance(two["sharded"][0], ranks.result(ranks.VIT | {"ema_decay": None}, 16)) < 1e-5


def test_a_signal_to_any_process_leaves_one_checkpoint_that_continues_to_the_same_bits(two, home):
    assert [path.name for path in (home / "2" / "copy" / "checkpoints").iterdir()] == [f"step={ranks.STOPPED + 1}.ckpt"]
    assert distance(two["stopped"][0], two["vit"][0]) == 0
    stopped, whole = ((home / "2" / name / "metrics.csv").read_text() for name in ("stopped", "vit"))
    assert stopped == whole


def test_a_run_continues_on_another_number_of_devices(two, home):
    """In one process, where a step is two forward passes; what is drawn in them differs, so the weights do."""
    resumed = fit_tiny(ranks.SOURCE, home / "2" / "copy", resume=True, batch_size=8, devices=2, **ranks.VIT)
    assert resumed.fit.steps == 20
    whole, continued = ([row["train_loss"] for row in rows] for rows in (two["vit"][0]["history"], resumed.fit.history))
    assert len(whole) == len(continued) + ranks.STOPPED + 1  # metrics.csv was not copied
    assert np.abs(np.mean(whole[10:]) - np.mean(continued)) < 0.1


def test_predictions_are_gathered_without_padding(two):
    for found in two["predicted"]:
        assert len(found["together"]) == 11
        assert torch.allclose(found["together"], found["alone"], atol=1e-6)


def test_rows_are_fetched_from_other_processes(two):
    assert [found["right"] for found in two["fetched"]] == [[True] * 3] * 2


def test_a_killed_process_ends_the_command_with_one_message(tmp_path):
    np.savez(tmp_path / "toy.npz", X=ranks.SOURCE[0], y=ranks.SOURCE[1])
    options, run = TINY | ranks.VIT | {"batch_size": 8, "devices": 2}, tmp_path / "killed"
    program = [sys.executable, "-m", "ndvit.cli", "train", tmp_path / "toy.npz", "--output", run, "--no-progress"]
    with subprocess.Popen([*program, *flags(options)], stderr=subprocess.PIPE, text=True) as process:
        while not list((run / "checkpoints").glob("step=*.ckpt")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        os.kill(worker_of(process.pid, rank=1), signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "the process of device 1 was ended by SIGKILL" in errors
    assert "continue the run from its newest checkpoint with --resume" in errors


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("test $RANK = 0 && test $WORLD_SIZE = 2 && test $NDVIT_SUPERVISED = 1 || exec sleep 0.2", 0, None),
        ("test $RANK = 1 && exit 3; exec sleep 60", 3, None),  # it has printed why
        ("test $RANK = 1 && kill -KILL $$; exec sleep 60", 2, "the process of device 1 was ended by SIGKILL (the sys"),
        (f"exit {LOST}", 2, "a process of this run did not answer within --device-timeout, and all were stopped: con"),
    ],
)
def test_the_command_starts_processes_and_accounts_for_the_first_that_fails(
    tmp_path, monkeypatch, script, status, message
):
    """The command is a shell script here, because importing torch takes seconds."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\ntest "$*" = "-m ndvit.cli train toy.npz" || exit 9\n{script}\n')
    program.chmod(0o700)
    for name in (SUPERVISED, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # `launch` sets them, and they are restored
    monkeypatch.setattr(devices.sys, "executable", str(program))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    messages = []
    try:
        assert devices.launch(2, ["train", "toy.npz"], messages.append) == status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [text[: len(message or "")] for text in messages] == ([message] if message else [])


def test_a_killed_run_continues_to_the_same_bits(two, home):
    names = two["vit"][0]["state"]
    assert all(torch.equal(two["resumed"][0]["state"][name], names[name]) for name in names)
    assert (home / "killed" / "metrics.csv").read_text() == (home / "2" / "vit" / "metrics.csv").read_text()
    rows = (home / "killed" / "predictions.csv").read_text().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == len(rows) == 14  # a fifth of 72, and each once


# ------------------------------------------------------------------------------------------------ in one process


def test_the_parts_of_a_stream_are_the_stream():
    whole = list(ShuffledStream(10, 12, 7, seed=3, seeded=True))
    parts = [list(ShuffledStream(10, 12, 7, seed=3, seeded=True, dealt=Dealt(3, i, 4))) for i in range(3)]
    assert [list(itertools.chain(*batch)) for batch in zip(*parts)] == whole


@pytest.mark.parametrize("blocks", [None, np.repeat(np.arange(8), 5)])
def test_a_run_that_changes_its_devices_sees_each_example_once_in_a_pass(blocks):
    recipe = Recipe(batch_size=2, accumulate=2, devices=4)  # 16 examples in a step
    seen = []
    for processes, steps in ((4, (0, 3)), (2, (3, 6)), (8, (6, 10))):
        dealing = deal(recipe, processes)
        assert dealing.batch_size <= 2
        assert dealing.batch_size * dealing.accumulate * processes == 16
        start, stop = (step * dealing.accumulate for step in steps)
        size = dealing.batch_size * processes
        parts = [
            list(ShuffledStream(40, size, stop, 1, start, blocks=blocks, dealt=Dealt(processes, i, recipe.batch_size)))
            for i in range(processes)
        ]
        seen += [i for batch in zip(*parts, strict=True) for part in batch for i in part]
    assert [sorted(seen[i : i + 40]) for i in range(0, 160, 40)] == [list(range(40))] * 4


def test_a_step_that_cannot_be_dealt_is_refused_with_numbers_that_can():
    with pytest.raises(ValueError, match=r"a step of this run has 128 examples, .* 3 devices .* such as 1, 2, 4, 8"):
        deal(Recipe(batch_size=32, devices=4), 3)
    assert deal(Recipe(batch_size=6, devices=2), 1, unit=2) == (6, 2)


def test_torchrun_and_slurm_are_recognised(monkeypatch):
    assert started() is None
    with monkeypatch.context() as patch:
        for name, value in TORCHRUN.items():
            patch.setenv(name, value)
        place = started()
        assert (place.by, place.rank, place.local_rank, place.devices, place.nodes) == ("torchrun", 5, 1, 4, 2)
        assert settle_devices({}, "cpu") == (place, {"devices": 4, "nodes": 2})
        assert settle_devices({"devices": 1}, "cpu") == (None, {})  # such as in a search with one training a task
        with pytest.raises(ValueError, match="devices=2 and nodes=2 were set, but torchrun has started 4 processes"):
            settle_devices({"devices": 2}, "cpu")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert started().devices == 2
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "3")
    with pytest.raises(ValueError, match=r"SLURM has started 6 tasks on 3 nodes: every node needs as many"):
        started()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 2}, "devices=2 needs 2 processes: use the command line"),
        ({"devices": 2, "nodes": 3}, "nodes=3: torchrun or srun starts the command on every node"),
        ({"devices": 0}, "devices must be"),
        ({"devices": 2, "preset": "fast"}, "devices=2 needs 2 processes"),
    ],
)
def test_what_cannot_start(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_tiny(toy(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_has_the_devices_that_are_set_or_started_or_its_own(monkeypatch):
    own = {"devices": 4, "nodes": 2, "strategy": "fsdp", "device": "cpu"}
    assert resumed_devices(own, {}) == own
    assert resumed_devices(own, {"devices": 2}) == {"devices": 2, "strategy": "fsdp", "device": "cpu"}
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert resumed_devices(own, {}) == {"strategy": "fsdp", "device": "cpu"}


def test_presets_keep_their_batch_on_several_devices(tmp_path):
    images = load_source(str(pictures(tmp_path / "pictures")), test_fraction=0)
    one, eight, many = (choose("deit", images, None, {"devices": n} if n else {}).options for n in (None, 8, 16))
    assert (one["batch_size"], one["accumulate"], eight["accumulate"]) == (128, 8, 1)
    assert eight["learning_rate"] == one["learning_rate"]
    assert many["learning_rate"] == pytest.approx(2 * one["learning_rate"])  # of 2,048 examples in a step
