"""Answers for files as they appear in a folder: once each, also after restarts, crashes and faults."""

import csv
import os
import signal
import threading
import time

import numpy as np
import pytest
from filelock import FileLock

from exports import small_model
from ndvit.inference import watching
from ndvit.inference.watching import AnswerFile, Folder, Found, watch
from tinyruns import command

COLUMNS = ("name", "class")
LOG = {"log": lambda line: None}


def put(path, age=60.0, content=b"x"):
    """Write a file whose last change is so many seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    now = time.time() - age
    os.utime(path, (now, now))
    return path


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Answers:
    """Answers one line for each letter of a file; records what was read."""

    def __init__(self):
        self.read = []

    def __call__(self, path):
        self.read.append(path.name)
        content = path.read_text()
        if content == "bad":
            raise ValueError(f"{path.name}: is not a recording")
        rows = [[("name", f"{path.name}[{i}]"), ("class", letter)] for i, letter in enumerate(content) if letter != "?"]
        return rows, ["an example is missing"] * content.count("?")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "answers.csv"


def look(folder, output, answer=None):
    return watch(folder, output, COLUMNS, answer or Answers(), once=True, interval=0.01, **LOG)


def test_each_file_is_answered_once_also_after_a_restart(folder, output):
    put(folder / "b.wav", 50)
    put(folder / "day/a.npy", 70, b"yz")
    put(folder / "notes.txt")
    put(folder / ".hidden.wav")
    put(folder / "c.wav.part")
    assert look(folder, output) == 2
    assert [(row["file"], row["part"], row["class"], row["error"]) for row in lines(output)] == [
        ("day/a.npy", "1/2", "y", ""),
        ("day/a.npy", "2/2", "z", ""),
        ("b.wav", "1/1", "x", ""),
    ]
    answer = Answers()
    put(folder / "new.wav")
    assert look(folder, output, answer) == 1
    assert answer.read == ["new.wav"]
    put(folder / "b.wav", 5, b"q")  # written again
    look(folder, output, answer)
    assert answer.read == ["new.wav", "b.wav"]
    assert [row["class"] for row in lines(output) if row["file"] == "b.wav"] == ["x", "q"]


def test_a_file_that_cannot_be_read_has_one_line_with_the_error(folder, output):
    put(folder / "a.wav", content=b"bad")
    put(folder / "b.wav", content=b"x?")
    put(folder / "c.wav", content=b"")
    for _ in range(2):
        look(folder, output)
    assert [(row["file"], row["part"], row["error"]) for row in lines(output)] == [
        ("a.wav", "1/1", "a.wav: is not a recording"),
        ("b.wav", "1/2", ""),
        ("b.wav", "2/2", "an example is missing"),
        ("c.wav", "1/1", "has no examples"),
    ]


def test_a_file_is_read_when_its_size_and_time_are_stable(folder, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock[0])
    found = Folder(folder)
    growing = put(folder / "a.wav", age=0)
    assert found.complete(set()) == ([], 1)
    clock[0] += 1.5
    put(growing, age=0, content=b"more")
    assert found.complete(set()) == ([], 1)
    clock[0] += 1.5
    assert found.complete(set()) == ([], 1)  # 1.5 s after the change
    clock[0] += 0.6
    assert [one.name for one in found.complete(set())[0]] == ["a.wav"]
    put(folder / "moved.wav", age=100)  # renamed into place
    put(folder / "future.wav", age=-1000)  # by a clock that is ahead
    assert [one.name for one in found.complete(set())[0]] == ["moved.wav", "a.wav"]
    clock[0] += 2
    assert [one.name for one in found.complete(set())[0]] == ["moved.wav", "a.wav", "future.wav"]


@pytest.mark.parametrize("lost", [1, 12, 60])
def test_lines_that_a_crash_left_incomplete_are_written_again(folder, output, lost):
    put(folder / "a.wav", 70)
    put(folder / "b.wav", 60, b"yz")
    look(folder, output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-lost])
    answer = Answers()
    look(folder, output, answer)
    assert answer.read == ["b.wav"]
    assert output.read_bytes() == whole


def test_a_full_disk_leaves_the_csv_as_it_was(folder, output, monkeypatch):
    put(folder / "a.wav")
    look(folder, output)
    before = output.read_bytes()
    answers = AnswerFile(output, COLUMNS)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watching.os, "fsync", full)
    with pytest.raises(OSError, match=r"answers.csv cannot be written, the disk is full"):
        answers.append(Found(folder / "b.wav", "b.wav", 10**18, 1), [[("name", "b"), ("class", "x")]], [])
    answers.close()
    assert output.read_bytes() == before


def test_other_csv_files_and_a_second_writer_are_refused(folder, output):
    put(folder / "a.wav")
    output.write_text("id,price\n1,2\n")
    with pytest.raises(ValueError, match="has other columns than the answers of this model"):
        look(folder, output)
    assert output.read_text() == "id,price\n1,2\n"
    output.unlink()
    with FileLock(output.with_name(".answers.csv.lock")), pytest.raises(FileExistsError, match="another process"):
        look(folder, output)
    with pytest.raises(ValueError, match="is no folder to watch"):
        look(folder / "none", output)


def test_names_cannot_be_formulas_and_are_still_known(folder, output):
    put(folder / "=1+2.wav")
    look(folder, output)
    assert lines(output)[0]["file"] == "'=1+2.wav"
    answer = Answers()
    look(folder, output, answer)
    assert not answer.read


def test_new_files_are_seen_until_a_signal_ends_the_watch(folder, output):
    put(folder / "a.wav")

    def act():
        while not output.exists() or len(lines(output)) < 1:
            time.sleep(0.01)
        put(folder / "b.wav")
        while len(lines(output)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=act, daemon=True)
    helper.start()
    before = signal.getsignal(signal.SIGTERM)
    assert watch(folder, output, COLUMNS, Answers(), interval=0.02, **LOG) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert not output.with_name(".answers.csv.lock").exists()


def test_the_command_watches_with_the_options_of_predict(tmp_path, folder, output, capsys):
    model = small_model("signal")
    model.save(tmp_path / "model.safetensors")
    values = np.random.default_rng(0).normal(size=(3, 2, 24)).astype(np.float32)
    np.save(folder / "one.npy", values[0])
    np.save(folder / "many.npy", values)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    arguments = ["predict", tmp_path / "model.safetensors", "--watch", folder, "--output", output, "--once"]
    assert command(*arguments, "--device", "cpu") == 0
    found = lines(output)
    assert [row["part"] for row in found] == ["1/3", "2/3", "3/3", "1/1"]
    assert list(found[0]) == ["file", "modified", "part", "name", "class", "ash", "beech", "cedar", "error"]
    expected = model.predict(values[0][None], progress=False, **LOG)[0]
    assert float(found[3]["ash"]) == pytest.approx(expected.probabilities["ash"], abs=1e-5)
    assert found[3]["modified"] == "2001-09-09T01:46:40+00:00"
    assert "2 files" not in capsys.readouterr().out
    assert command(*arguments[:2], "--watch", folder) == 2
    assert "--watch FOLDER needs --output" in capsys.readouterr().err
