"""The bench of explanations: where motifs are planted, what counts as a hit, and how maps are compared."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
bench = importlib.import_module("explain")


@pytest.mark.parametrize("case", bench.CASES.values(), ids=lambda case: case.name)
def test_each_example_has_a_motif_where_it_is_marked_and_a_bump_elsewhere(case):
    data = bench.plant(6, case.size, case.width, torch.Generator().manual_seed(0), strength=50.0)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.inside.flatten(1).sum(1).tolist() == [case.width ** len(case.size)] * 6
    strong = data.x[:, 0].abs() > 10
    assert (strong & data.inside).flatten(1).any(1).all()
    assert (strong & ~data.inside).flatten(1).any(1).all()


def test_windows_that_cannot_stand_apart_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        bench.plant(2, (20, 20), 8, torch.Generator())


def test_the_centre_of_the_most_relevant_token_counts():
    values, inside = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bool)
    values[:, 2:6] = 1
    inside[0, 3:5], inside[1, :2] = True, True
    assert bench.points(values, inside).tolist() == [True, False]


def test_samples_of_a_token_have_one_rank():
    one = torch.arange(4.0).repeat_interleave(3)[None]
    assert bench.rank_correlation(one, 2 * one + 1) == pytest.approx(1)
    assert bench.rank_correlation(one, -one) == pytest.approx(-1)


def test_a_measured_network_is_kept_unless_it_is_measured_again(tmp_path, monkeypatch):
    results = tmp_path / "results.json"
    monkeypatch.setattr(bench, "train", lambda case, seed: None)
    monkeypatch.setattr(
        bench, "measured", lambda network, case, seed, methods: [{"case": case.name, "seed": seed, "n": methods}]
    )
    bench.measure("1-D plain", seeds=(0, 1), results=results)
    monkeypatch.setattr(bench, "METHODS", ("other",))
    bench.measure("1-D plain", seeds=(1, 2), results=results)
    rows = json.loads(results.read_text())["rows"]
    assert [(row["seed"], row["n"] == ["other"]) for row in rows] == [(0, False), (1, False), (2, True)]
    bench.measure("1-D plain", seeds=(1,), again=True, results=results)
    assert sum(row["n"] == ["other"] for row in json.loads(results.read_text())["rows"]) == 2
