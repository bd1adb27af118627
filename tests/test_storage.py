"""Run folders and files outlive damage, kills, second processes, full disks and folders that cannot be written."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ndvit import load_model
from ndvit.files import LOCK_FILE, contents, refuse_existing, replace_file, sole_process
from ndvit.training.callbacks.checkpoints import read_checkpoint
from test_resume import SOURCE, killed_at
from tinyruns import QUIET, resume_quietly, run_tiny, tensors
from weightfiles import header_of


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "run"
    with killed_at(3):
        run_tiny(SOURCE, folder, steps=4, val_every=2, batch_size=8)
    return folder


@pytest.fixture
def run(killed, tmp_path):
    import shutil

    return shutil.copytree(killed, tmp_path / "run")


@pytest.mark.parametrize("damage", ["zeros", "one bit"])
def test_a_damaged_checkpoint_is_not_resumed(run, damage):
    checkpoint = run / "checkpoints" / "step=2.ckpt"
    weights = read_checkpoint(checkpoint)["state_dict"]["model.blocks.0.mlp.fc1.weight"].numpy().tobytes()
    data = bytearray(checkpoint.read_bytes())
    start = data.find(weights)
    if damage == "zeros":
        data[start : start + len(weights)] = bytes(len(weights))
    else:
        data[start] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(ValueError, match=r"step=2\.ckpt is damaged or cut off: remove it"):
        resume_quietly(run, SOURCE)


def test_a_model_file_knows_its_tensors(tmp_path):
    path = run_tiny(SOURCE, tmp_path / "run", steps=1).folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: its tensors do not have their checksum\. Copy or download"):
        load_model(path)
    header = {name: text for name, text in header_of(path).items() if name != "crc32"}
    save_file(load_file(path), path, metadata=header)
    load_model(path)  # as files of earlier versions


def test_a_folder_belongs_to_one_process(tmp_path):
    with sole_process(tmp_path):
        with pytest.raises(FileExistsError, match=rf"is in use by process {os.getpid()} on .*: wait until it ends"):
            run_tiny(SOURCE, tmp_path, steps=1)
        code = "import sys, pathlib, ndvit.files as f\nwith f.sole_process(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert f"is in use by process {os.getpid()}" in other.stderr
    assert not (tmp_path / LOCK_FILE).exists()
    with sole_process(tmp_path):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, sys, signal, pathlib, ndvit.files as f\n"
        "with f.sole_process(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0: os.execlp('sleep', 'sleep', '5')\n"  # a child of it is not the process
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / LOCK_FILE).exists()
    assert contents(tmp_path) == []
    with sole_process(tmp_path):
        pass


def test_resuming_and_force_are_kept_out(run):
    before = sorted(path.name for path in run.iterdir())
    with sole_process(run):
        for attempt in (lambda: resume_quietly(run, SOURCE), lambda: run_tiny(SOURCE, run, steps=1, force=True)):
            with pytest.raises(FileExistsError, match="is in use by process"):
                attempt()
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("left", ["config.yaml.tmp", LOCK_FILE])
def test_what_a_kill_leaves_is_an_empty_folder(tmp_path, left):
    (tmp_path / left).write_text("# nd")
    run_tiny(SOURCE, tmp_path, steps=1)
    assert not (tmp_path / left).exists()


def test_an_empty_config_of_an_earlier_version_is_replaced(tmp_path):
    (tmp_path / "config.yaml").touch()
    run_tiny(SOURCE, tmp_path, steps=1, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").touch()
    (tmp_path / "other" / "work.py").touch()
    with pytest.raises(FileExistsError, match="is not a run of ndvit"):
        run_tiny(SOURCE, tmp_path / "other", steps=1, force=True)


def test_a_config_that_is_removed_is_written_again(tmp_path):
    folder = tmp_path / "run"
    texts = []

    def log(line):
        if line.startswith("member 2"):
            texts.append((folder / "config.yaml").read_text())
            (folder / "config.yaml").unlink()

    run_tiny(SOURCE, folder, steps=1, members=2, log=log)
    assert (folder / "config.yaml").read_text() == texts[0]
    assert (folder / "model.safetensors").is_file()


def test_a_kill_amid_force_leaves_an_unfinished_run(tmp_path, monkeypatch):
    folder = run_tiny(SOURCE, tmp_path / "run", steps=1).folder
    with monkeypatch.context() as patch:
        patch.setattr("ndvit.training.run.shutil.rmtree", lambda path: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run_tiny(SOURCE, folder, steps=2, force=True)
    assert (folder / "config.yaml").is_file()
    assert not (folder / "model.safetensors").exists()
    assert run_tiny(SOURCE, folder, steps=2, force=True).fit.steps == 2


FAULTS = {
    "full": (errno.ENOSPC, "cannot be written, the disk is full: free some space, or choose another output"),
    "permission": (errno.EACCES, "cannot be written, permission denied: make its folder writable, or choose"),
    "read-only": (errno.EROFS, "cannot be written, the file system is read-only: choose another output"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_of_the_disk_name_file_and_remedy(tmp_path, monkeypatch, name):
    number, message = FAULTS[name]
    path = tmp_path / "a.txt"
    replace_file(path, "old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=rf"a\.txt {message}") as caught:
        replace_file(path, "new")
    assert caught.value.errno == number
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_on_a_full_disk_is_named(tmp_path, monkeypatch):
    fsync = os.fsync

    def full(number):
        if b".ckpt" in os.readlink(f"/proc/self/fd/{number}".encode()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"checkpoints/step=2\.ckpt cannot be written, the disk is full"):
            run_tiny(SOURCE, tmp_path / "run", steps=4, val_every=2)
    assert resume_quietly(tmp_path / "run", SOURCE).fit.steps == 4


def test_bytes_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda number: (done.append("flush"), fsync(number)))
    monkeypatch.setattr("os.replace", lambda *names: (done.append("rename"), replace(*names)))
    replace_file(tmp_path / "a.txt", b"x")
    assert done == ["flush", "rename", "flush"]  # the last is the folder's


def test_outputs_that_cannot_be_are_refused_early(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/run cannot be written, a part of its path is a file"):
        run_tiny("no-such-data", tmp_path / "file" / "run")
    with pytest.raises(FileExistsError, match="exists and is a folder: choose the name of a file"):
        refuse_existing(tmp_path, force=True)


def test_a_run_that_starts_first_is_not_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def log(line):
        if not folder.exists():
            folder.mkdir()
            (folder / "config.yaml").write_text("# ndvit of another process")

    with pytest.raises(FileExistsError, match="another run has just started in"):
        run_tiny(SOURCE, folder, steps=1, **{**QUIET, "log": log})
    assert torch.is_tensor(next(iter(tensors(run_tiny(SOURCE, folder, steps=1, force=True)).values())))
