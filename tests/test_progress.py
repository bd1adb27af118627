"""Lines about the progress of long work, where there are no progress bars."""

import re

import pytest
import torch

from ndvit.config import Recipe
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.inference import progress
from ndvit.inference.progress import ProgressLines, duration
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks import Classification
from ndvit.training import closed_form
from tinyruns import QUIET, fit_tiny, run_tiny, toy


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def lines_of(clock, seconds, total=1000, start=0):
    """Lines of work that takes these seconds, with the same time for each part."""
    lines, clock[0] = [], 0.0
    made = ProgressLines(lines.append, "step {done:,} of {total:,}", total, start)
    for done in range(start + 1, total + 1):
        clock[0] = seconds * (done - start) / (total - start)
        made.update(done, lambda: ", loss 0.5")
    return lines


def test_lines_tell_the_place_and_the_rest(clock):
    lines = lines_of(clock, 900)
    assert lines[0] == "step 17 of 1,000 (2 %), loss 0.5, about 15 min left"
    assert lines[-1].endswith("left")
    assert 9 <= len(lines) <= 12
    assert lines_of(clock, 900, start=500)[0] == "step 509 of 1,000 (51 %), loss 0.5, about 15 min left"


@pytest.mark.parametrize(("seconds", "least", "most"), [(10, 0, 0), (60, 2, 4), (200, 8, 12), (36_000, 8, 12)])
def test_the_number_of_lines(clock, seconds, least, most):
    assert least <= len(lines_of(clock, seconds)) <= most


def test_work_that_becomes_slower_has_no_more_lines(clock):
    lines = []
    made = ProgressLines(lines.append, "{done} of {total}", 1000)
    for done in range(1, 1000):
        clock[0] += done
        made.update(done)
    assert len(lines) == progress.MOST


def test_durations():
    assert [duration(s) for s in (0.5, 90, 600, 9000)] == ["less than 1 s", "about 90 s", "about 10 min", "about 2.5 h"]


def test_long_solving_prints_an_estimate_and_its_place(monkeypatch):
    now, lines = [0.0], []
    for module in (closed_form, progress):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def slow(network, x, mask=None):
        now[0] += 20.0
        return torch.zeros(len(x), network.num_features) + torch.arange(len(x))[:, None]

    monkeypatch.setattr(RandomConvolutions, "features", slow)
    values, labels = toy(200, shape=(1, 16))
    examples = Examples(list(values), labels)
    inputs = Inputs(examples, SignalPreprocess.fit(examples))
    network = RandomConvolutions(1, 16, 168, 2)
    closed_form.solve_networks([network], inputs, Classification(("a", "b")), Recipe(), lines.append)
    assert lines[0] == "the features of 200 examples take about 62 s"
    assert lines[1:3] == [
        "features: 64 of 200 examples (32 %), about 42 s left",
        "features: 128 of 200 examples (64 %), about 22 s left",
    ]
    lines.clear()
    closed_form.solve_networks([network], inputs, Classification(("a", "b")), Recipe(), lines.append, progress=True)
    assert len(lines) == 1  # beside a bar
    lines.clear()
    monkeypatch.setattr(closed_form, "_MUCH", 200 * 168 * 16 - 1)
    closed_form.solve_networks([network], inputs, Classification(("a", "b")), Recipe(), lines.append, progress=True)
    assert lines[0] == "computing 168 features of 200 examples of 16 values"


def test_a_training_without_bars_logs_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    lines = []
    run_tiny(toy(60), tmp_path / "run", steps=4, val_fraction=0.25, members=2, batch_size=4, log=lines.append)
    steps = [line for line in lines if line.startswith("step ")]
    assert re.fullmatch(r"step 1 of 4 \(25 %\), loss [\d.]+, (about \d+ s|less than 1 s) left", steps[0])
    for line in ("member 1 of 2", "member 2 of 2"):
        assert lines[lines.index(line) + 1].startswith("step 1 of 4")
    assert any(line.startswith("predicting: ") for line in lines)


def test_solving_logs_lines(monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr("ndvit.training.closed_form._LONG", 100)
    lines = []
    monkeypatch.setitem(QUIET, "log", lines.append)
    fit_tiny(toy(150, shape=(1, 24)), steps=1, rocket_features=168, levels=False, test_fraction=0)
    assert "features: 64 of 150 examples (43 %), less than 1 s left" in lines
    assert "solving the head on 150 examples, which takes up to a minute" in lines


def test_bars_replace_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 0.0)
    lines = []
    run_tiny(toy(), tmp_path / "run", steps=3, progress=True, log=lines.append)
    assert not [line for line in lines if "left" in line]
