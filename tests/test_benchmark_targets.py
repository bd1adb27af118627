"""The targets benchmark: sets whose test values are in no training example, rows of results, and ranks."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
bench = importlib.import_module("targets")
made = importlib.import_module("target_sets")


@pytest.mark.parametrize("name", [name for name, one in made.SETS.items() if not one.needs_folder])
def test_sets_that_need_no_folder(name):
    x_train, y_train, x_test, y_test = made.SETS[name].make(None)
    assert x_train.ndim == x_test.ndim == 3
    assert (len(x_train), len(x_test)) == (len(y_train), len(y_test))
    assert y_train.ndim == (1 if made.SETS[name].task == "regression" else 2)
    assert len(np.unique(y_train)) > 1


def test_no_value_of_a_test_window_is_in_a_training_window():
    x_train, y_train, x_test, _ = made.next_values(np.arange(50.0)[None], 5)
    assert x_train[0].tolist() == [[0, 1, 2, 3, 4]]
    assert y_train[0] == 5
    assert max(x_train.max(), y_train.max()) < x_test.min()


def test_a_fit_is_a_row():
    row = bench.fit("Frequency", made.SETS["Frequency"], "mean", None)
    assert float(row["second"]) == pytest.approx(0, abs=0.05)
    assert float(row["score"]) == pytest.approx(9 / np.sqrt(12), rel=0.1)
    shares = bench.fit("Tones", made.SETS["Tones"], "mean", None)
    assert float(shares["score"]) == pytest.approx(0.3, abs=0.05)


def test_ranks_are_over_the_sets_that_every_model_has():
    def row(name, task, model, score):
        return {"set": name, "task": task, "model": model, "score": score, "second": "0.5", "seconds": "1"}

    scores = {"Solar": "1 2 3", "Pulses": "3 2 2"}
    models = ("mean", "MiniRocket", "ndvit fast")
    rows = [
        row(n, "regression", m, v) for n, values in scores.items() for m, v in zip(models, values.split(), strict=True)
    ]
    rows.append(row("Decay", "regression", "mean", "1"))  # of the other models there is nothing
    text = bench.tables(rows)
    assert "| **mean rank** | 2.00 | 1.75 | 2.25 |" in text
    assert "| Solar | **1** (0.500) | 2 (0.500) | 3 (0.500) |" in text
    assert "Decay" not in text
    several = [row("Tones", "multilabel", m, v) for m, v in zip(models, ("0.2", "0.9", "0.8"), strict=True)]
    assert "| **mean rank** | 3.00 | 1.00 | 2.00 |" in bench.tables(several)
