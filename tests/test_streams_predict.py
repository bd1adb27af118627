"""Predictions of any number of examples into a file: in parts, by several processes, continued after a kill."""

import csv

import numpy as np
import pytest

from datafiles import npy
from ndvit.inference import to_file
from ndvit.inference.to_file import _gaps
from ndvit.processes import Started
from tinyruns import command, fit_tiny, toy

QUIET = {"progress": False, "log": lambda line: None}


@pytest.fixture(scope="module")
def model():
    return fit_tiny(toy(24, (1, 16)), steps=2, batch_size=8, test_fraction=0.25).model


@pytest.fixture
def small(monkeypatch):
    """Parts of 8 rows."""
    monkeypatch.setattr(to_file, "_ROWS", 8)


X = toy(43, (1, 16))[0]


def names(path):
    with path.open() as file:
        return [row[0] for row in csv.reader(file)][1:]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_has_what_predict_returns(model, small, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    import pandas

    path = tmp_path / f"out.{ending}"
    assert model.predict_to(X, output=path, batch_size=4, **QUIET) == 43
    table = pandas.read_csv(path) if ending == "csv" else pandas.read_parquet(path)
    expected = model.predict(X, batch_size=4, **QUIET)
    assert table["name"].tolist() == [one.name for one in expected]
    assert table["class"].astype(str).tolist() == [one.label for one in expected]
    assert table["0"].to_numpy() == pytest.approx([one.probabilities["0"] for one in expected], abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [f"out.{ending}"]
    with pytest.raises(FileExistsError):
        model.predict_to(X, output=path, **QUIET)


@pytest.fixture
def killed_after(monkeypatch):
    """Let a prediction end after some parts, as if it was killed; returns what is written, by stretches."""
    write, written = to_file._Parts.write, []

    def after(count):
        def limited(self, number, start, stop, *more):
            if len(written) == count:
                raise KeyboardInterrupt
            write(self, number, start, stop, *more)
            written.append((start, stop))

        monkeypatch.setattr(to_file._Parts, "write", limited)
        return written

    return after


def test_parts_that_are_written_are_kept(model, small, tmp_path, killed_after):
    path = tmp_path / "out.csv"
    for count in (2, 4):
        written = killed_after(count)
        with pytest.raises(KeyboardInterrupt):
            model.predict_to(X, output=path, batch_size=4, **QUIET)
    assert not path.exists()
    lines = []
    written = killed_after(99)
    assert model.predict_to(X, output=path, batch_size=4, progress=False, log=lines.append) == 43
    assert written == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40), (40, 43)]
    assert names(path) == [one.name for one in model.predict(X, **QUIET)]
    assert "32 of 43 examples have answers from an earlier start" in lines


def test_parts_of_another_model_are_not_used(model, small, tmp_path, killed_after):
    path = tmp_path / "out.csv"
    killed_after(2)
    with pytest.raises(KeyboardInterrupt):
        model.predict_to(X, output=path, batch_size=4, **QUIET)
    other, lines = fit_tiny(toy(24, (1, 16)), steps=1, batch_size=8, test_fraction=0.25, seed=1).model, []
    written = killed_after(99)
    other.predict_to(X, output=path, batch_size=4, progress=False, log=lines.append)
    assert written[2:][0] == (0, 8)
    assert any("parts of other predictions" in line for line in lines)


def test_several_processes_share_the_examples(model, small, tmp_path, monkeypatch, killed_after):
    def process(rank):
        monkeypatch.setattr("ndvit.processes.started", lambda: Started("torchrun", rank, rank, 3, 1))
        return model.predict_to(X, output=tmp_path / "out.csv", batch_size=4, **QUIET)

    killed_after(0)  # the first process has written the plan, and nothing else
    with pytest.raises(KeyboardInterrupt):
        process(0)
    written = killed_after(99)
    assert [process(2), process(1)] == [0, 0]
    assert sorted(written) == [(15, 23), (23, 29), (29, 37), (37, 43)]
    assert process(0) == 43
    assert names(tmp_path / "out.csv") == [one.name for one in model.predict(X, **QUIET)]


def test_windows_of_a_recording_stay_in_one_part(model, small, tmp_path):
    long = toy(9, (1, 48))[0]
    rows = model.predict_to(long, output=tmp_path / "out.csv", batch_size=5, window=16, **QUIET)
    assert rows == 9
    expected = model.predict(long, window=16, **QUIET)
    with (tmp_path / "out.csv").open() as file:
        found = [float(row["0"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([one.probabilities["0"] for one in expected], abs=1e-5)
    assert model.predict_to(long, output=tmp_path / "all.csv", window=16, per_window=True, **QUIET) == 27


def test_an_example_that_breaks_later_is_left_out_and_named(model, small, tmp_path, monkeypatch):
    paths = [npy(tmp_path / "in" / f"{i}.npy", X[i, 0]) for i in range(12)]
    write = to_file._agree

    def damage(*arguments):
        paths[5].write_bytes(b"")
        write(*arguments)

    monkeypatch.setattr(to_file, "_agree", damage)
    faults = []
    rows = model.predict_to(tmp_path / "in", output=tmp_path / "out.csv", batch_size=4, on_fault=faults.append, **QUIET)
    assert (rows, len(faults)) == (11, 1)
    assert "5.npy" in faults[0]
    assert len(names(tmp_path / "out.csv")) == 11


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ([], [(2, 9)]),
        ([(0, 2), (9, 12)], [(2, 9)]),
        ([(0, 4)], [(4, 9)]),
        ([(3, 5), (7, 20)], [(2, 3), (5, 7)]),
        ([(0, 12)], []),
    ],
)
def test_stretches_that_are_left(done, left):
    assert list(_gaps((2, 9), done)) == left


def test_the_command(model, tmp_path, capsys):
    model.save(tmp_path / "model.safetensors")
    np.save(tmp_path / "x.npy", X)
    arguments = ["predict", tmp_path / "model.safetensors", tmp_path / "x.npy"]
    assert command(*arguments, "--output", tmp_path / "out.csv", "--no-progress") == 0
    assert "43 rows" in capsys.readouterr().out
    assert command(*arguments, "--devices", "2") == 2
    assert "are for --output" in capsys.readouterr().err
    assert command(*arguments, "--output", tmp_path / "out.xlsx") == 2
    assert ".parquet or a .csv" in capsys.readouterr().err
