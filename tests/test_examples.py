"""The examples run in a few steps, and prepare data as they describe."""

import ast
import contextlib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ndvit import ViTClassifier

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shares(printed):
    return [float(text) / 100 for text in re.findall(r"(\d+\.\d)%", printed)]


def rows(*stretches):
    """A table of stretches (person, activity, first time, rows) at 10 Hz; x counts all rows."""
    parts = [
        pd.DataFrame({"person": person, "time": start + np.arange(n) / 10, "activity": activity})
        for person, activity, start, n in stretches
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(x=np.arange(len(table), dtype=float), y=1.0, z=2.0)


def test_each_is_listed_and_describes_how_to_run_it():
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+)\.py\)", listed)) == NAMES
    for name in NAMES:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert f"python examples/{name}.py" in ast.get_docstring(ast.parse(text)), name


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # it reads sys.argv, as intended
def test_ten_lines_are_ten_and_run_as_a_script(monkeypatch, capsys):
    path = FOLDER / "ucr_in_ten_lines.py"
    code = path.read_text(encoding="utf-8").rpartition('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) == 10
    monkeypatch.setattr(sys, "argv", [str(path)])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    [share] = shares(printed)
    assert "of 150 test signals" in printed
    assert share * 150 == pytest.approx(round(share * 150), abs=0.08)  # a whole number of signals, up to rounding


def test_gaps_are_runs_of_the_requested_share():
    signals = [np.ones((3, 20)), np.ones((3, 7))]
    for signal, holed in zip(signals, load("unequal_lengths").with_gaps(signals, 0.4, seed=0), strict=True):
        assert not np.isnan(signal).any()
        missing = np.isnan(holed)
        assert missing.sum(axis=1).tolist() == [round(0.4 * signal.shape[1])] * 3
        assert (np.diff(missing.astype(int), axis=1) == 1).sum() <= 3  # one run a channel


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X. 1 of 370 examples is longer")  # the real data has such an example
def test_unequal_lengths(tmp_path, capsys):
    load("unequal_lengths").main(output=tmp_path)
    printed = capsys.readouterr().out
    assert "270 training signals, 370 test signals, 7 to 29 values long" in printed
    assert len(shares(printed)) == 3
    assert ViTClassifier.load(tmp_path / "gaps.safetensors").n_features_in_ == 12


def test_windows_stay_within_a_person_an_activity_and_a_stretch():
    table = rows(("a", "walk", 0, 25), ("a", "run", 2.5, 10), ("b", "run", 3.5, 12), ("b", "run", 9, 10))
    windows = load("sensor_windows").cut_windows(table, length=10, step=5)
    starts = windows.X[:, 0, 0].astype(int).tolist()
    assert starts == [0, 5, 10, 15, 25, 35, 47]
    assert windows.y.tolist() == ["walk"] * 4 + ["run"] * 3
    assert windows.people.tolist() == ["a"] * 5 + ["b"] * 2
    np.testing.assert_array_equal(windows.X[1], np.stack([np.arange(5, 15), np.ones(10), np.full(10, 2)]))
    assert windows.dropped["rows too few for a window"] == 2  # of the twelve


def test_dropped_rows_and_windows_are_counted():
    table = rows(("a", "walk", 0, 20), ("a", None, 2, 4), ("a", "walk", 2.4, 9), ("b", "run", 0, 10))
    table.loc[10:19, ["x", "y", "z"]] = np.nan
    table.loc[3, "x"] = np.nan  # one missing value does not drop a window
    windows = load("sensor_windows").cut_windows(table, length=10, step=10)
    assert (len(windows.X), windows.people.tolist()) == (2, ["a", "b"])
    assert windows.dropped == {
        "rows without person or activity": 4,
        "rows too few for a window": 9,
        "windows without values": 1,
    }


def test_rows_of_persons_may_be_interleaved():
    one, other = rows(("a", "walk", 0, 10)), rows(("b", "walk", 0, 10))
    mixed = pd.concat([one, other]).sort_index(kind="stable").reset_index(drop=True)
    windows = load("sensor_windows").cut_windows(mixed, length=10, step=10)
    assert windows.people.tolist() == ["a", "b"]
    np.testing.assert_array_equal(windows.X[:, 0], [np.arange(10), np.arange(10)])


def test_unsuitable_tables_raise(tmp_path):
    example, table = load("sensor_windows"), rows(("a", "walk", 0, 10))
    for step in (0, 11):
        with pytest.raises(ValueError, match=rf"at most the length of a window, 10; got {step}"):
            example.cut_windows(table, length=10, step=step)
    with pytest.raises(ValueError, match="has 11 rows: choose a shorter window"):
        example.cut_windows(table, length=11, step=5)
    table.drop(columns="z").to_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="lacks the columns z; it has"):
        example.read_sensor(tmp_path / "a.csv")
    table.assign(time="noon").to_csv(tmp_path / "b.csv")
    with pytest.raises(ValueError, match="numbers in the columns time; times are in seconds"):
        example.read_sensor(tmp_path / "b.csv")


def test_sensor_windows_of_a_file(tmp_path, capsys):
    example = load("sensor_windows")
    table = example.generate_sensor(people=4, seed=0)
    table.to_csv(tmp_path / "mine.csv", index=False)
    example.main(csv=tmp_path / "mine.csv", output=tmp_path / "out")
    printed = capsys.readouterr().out
    assert len(shares(printed)) == 2
    tested = re.search(r"tested on (.*), trained", printed)[1].split(", ")
    assert len(tested) == 2  # a third of four, rounded up
    assert set(tested) < {"p00", "p01", "p02", "p03"}
    assert ViTClassifier.load(tmp_path / "out/model.safetensors").classes_.tolist() == ["run", "stairs", "walk"]


def test_no_person_is_on_both_sides_of_the_split(tmp_path, monkeypatch):
    example, splits = load("sensor_windows"), []

    def look(windows, train, test):
        splits.append((set(windows.people[train]), set(windows.people[test]), len(test)))
        return ViTClassifier("fast").fit(windows.X[:40], np.arange(40) % 2), 1.0

    monkeypatch.setattr(example, "fit_and_score", look)
    example.main(output=tmp_path)
    (random_train, random_test, random_size), (train, test, size) = splits
    assert (len(train), len(test)) == (8, 4)
    assert not train & test
    assert len(random_train & random_test) == 12
    assert size == random_size


@pytest.mark.parametrize("images", [False, True])
def test_distil_cnn(images, tmp_path, capsys):
    load("distil_cnn").main(steps=3, images=images, output=tmp_path)
    printed = capsys.readouterr().out
    assert len(shares(printed)) == 3
    assert ("200 training images, 1597 test images" if images else "50 training signals, 150 test") in printed
    taught = ViTClassifier.load(tmp_path / "distilled.safetensors")
    assert len(taught.model_.config.input_size) == 1 + images


@pytest.mark.slow
def test_cross_validation(capsys):
    load("cross_validation").main(steps=2, folds=2)
    printed = capsys.readouterr().out
    assert re.search(r"MiniRocket +9\d\.\d%  9\d\.\d%", printed)  # it needs no steps
    assert re.search(r"GridSearchCV: preset=(fast|basic)", printed)
    assert len(shares(printed)) == 2 * 4
