"""The signal benchmark on two tiny sets in two steps: rows, derived rows, the report, and how it continues."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ndvit import ViTClassifier
from ndvit.config.presets import PRESETS
from ndvit.network.committee import first_transformer
from ndvit.training.plan import Request, plan

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
bench = importlib.import_module("signals")
peers = importlib.import_module("signal_peers")
report = importlib.import_module("signal_report")
results = importlib.import_module("signal_results")

pytestmark = pytest.mark.slow
STEPS = 2
ROW = results.Row("A", "ours", 0, 0, 1, 10, 20, 0.5, 10.0, 1.0, 100, 1, 1, 2, "torch", "abc", "python")


def write_set(folder, name, channels, seed):
    rng = np.random.default_rng(seed)
    y = np.repeat(["high", "low"], 20)
    turns = np.where(y == "high", 5, 2)[:, None, None] * np.linspace(0, 2 * np.pi, 32)
    X = np.sin(turns + rng.uniform(0, 6, (40, channels, 1))) + 0.3 * rng.standard_normal((40, channels, 32))
    X, order = X.astype(np.float32), rng.permutation(40)
    train, test = order[:16], order[16:]
    np.savez(folder / f"{name}.npz", X_train=X[train], y_train=y[train], X_test=X[test], y_test=y[test])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of sets with the results of a run in two steps."""
    folder = tmp_path_factory.mktemp("bench")
    write_set(folder, "One", 1, 0)
    write_set(folder, "Two", 2, 1)
    (folder / "published.csv").write_text("dataset,n_train,Theirs,Partly\nOne,16,0.75,\n")
    bench.main(data=folder, seeds=1, models="ours-ensemble,resnet,features-alone", steps=STEPS, out=folder / "out")
    return folder


def rows_of(folder):
    return {(row.set, row.model, row.seed): row for row in results.read_rows(folder / "out" / "results.csv")}


def test_every_fit_is_a_row(folder):
    rows = rows_of(folder)
    of_ours = [("ours", seed) for seed in range(5)]
    others = [(model, 0) for model in ("resnet", "features-alone", "ours-ensemble")]
    expected = {(name, *rest) for name in ("One", "Two") for rest in [*of_ours, *others]}
    assert set(rows) == expected
    row = rows["Two", "resnet", 0]
    assert (row.channels, row.train, row.test, row.steps, row.trial, row.parallel) == (2, 16, 24, STEPS, STEPS, 1)
    assert rows["One", "features-alone", 0].accuracy == 1  # two frequencies
    assert str(folder) not in (folder / "out" / "results.csv").read_text()
    assert (folder / "out" / "probabilities" / ".gitignore").read_text() == "*\n"


def test_ensemble_equals_members(folder):
    with np.load(folder / "One.npz") as data:
        X, y, X_test, y_test = (data[name] for name in ("X_train", "y_train", "X_test", "y_test"))
    together = ViTClassifier(preset="signal", members=5, steps=STEPS, random_state=0).fit(X, y)
    files = [results.probabilities_file(folder / "out", ("One", "ours", seed, STEPS)) for seed in range(5)]
    alone = [np.load(file) for file in files]
    assert np.abs(alone[0] - alone[1]).max() > 1e-4  # seeds differ, so the agreement below is meaningful
    np.testing.assert_allclose(together.predict_proba(X_test), np.mean(alone, axis=0), atol=1e-6)
    rows = rows_of(folder)
    row = rows["One", "ours-ensemble", 0]
    assert row.accuracy == pytest.approx(together.score(X_test, y_test), abs=1e-6)
    assert row.fit_seconds == pytest.approx(sum(rows["One", "ours", seed].fit_seconds for seed in range(5)), abs=1e-3)


def test_continues_where_it_stopped(folder, monkeypatch, capsys):
    path = folder / "out" / "results.csv"
    before = results.read_rows(path)
    results.write_rows(path, [row for row in before if (row.set, row.model) != ("Two", "resnet")])
    done = []

    def run(what, job):
        done.append(job)
        return next(row for row in before if row.key == (*job, STEPS))

    monkeypatch.setattr(bench, "run", run)
    arguments = {
        "data": folder,
        "seeds": 1,
        "models": "ours-ensemble,resnet,features-alone",
        "steps": STEPS,
        "out": folder / "out",
    }
    bench.main(**arguments)
    assert done == [("Two", "resnet", 0)]
    assert {row.key for row in results.read_rows(path)} == {row.key for row in before}
    bench.main(**arguments | {"models": "resnet", "sets": "One", "fresh": True})
    assert done[1:] == [("One", "resnet", 0)]

    def fail(what, job):
        raise ValueError("no such luck")

    monkeypatch.setattr(bench, "run", fail)
    with pytest.raises(SystemExit, match="1"):
        bench.main(**arguments | {"seeds": 2, "sets": "One", "models": "resnet"})
    assert "One resnet seed 1: ValueError: no such luck" in capsys.readouterr().err
    assert {row.key for row in results.read_rows(path)} == {row.key for row in before}


def test_fits_are_reproducible(folder):
    with np.load(folder / "Two.npz") as data:
        X, y, X_test = (data[name] for name in ("X_train", "y_train", "X_test"))
    first, second = (peers.PeerClassifier(peers.inceptiontime, 128, 3, 1).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(X_test), second.predict_proba(X_test))
    assert first.classes_.tolist() == ["high", "low"]
    assert first.n_iter_ == 1


def test_fits_have_the_requested_threads(folder, monkeypatch):
    """A warm-up may change the number of threads, as aeon's does; the measured fit has the requested number."""
    threads = []

    class Greedy:
        classes_ = np.array(["high", "low"])

        def fit(self, X, y):
            threads.append(torch.get_num_threads())
            torch.set_num_threads(2)
            return self

        def predict_proba(self, X):
            return np.tile([1.0, 0.0], (len(X), 1))

    monkeypatch.setitem(bench.KNOWN, "greedy", bench.MODELS["resnet"].__class__("", lambda setting: Greedy()))
    before = torch.get_num_threads()
    try:
        what = bench.Bench(folder, folder / "greedy", 0, 1, 1, "abc", "python")
        row = bench.run(what, bench.Job("One", "greedy", 0))
    finally:
        torch.set_num_threads(before)
    assert (threads[1], row.threads) == (1, 1)  # the first was the warm-up
    with np.load(folder / "One.npz") as data:
        assert row.accuracy == pytest.approx((data["y_test"] == "high").mean(), abs=1e-6)


def test_every_ablation_changes_something():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 1, 80)).astype(np.float32)  # long enough for patches of several samples
    setting = bench.Setting(seed=0, threads=1, trial=2, X=X, y=np.arange(8) % 2)
    made = {name: bench.KNOWN[name].make(setting) for name in ("hybrid", *bench.ABLATIONS)}
    probabilities = {name: classifier.fit(X, setting.y).predict_proba(X) for name, classifier in made.items()}
    for name in bench.ABLATIONS:
        assert np.abs(probabilities[name] - probabilities["hybrid"]).max() > 1e-6, name
    assert {name: made[name].n_iter_ for name in ("hybrid", "twice-the-steps", "half-the-steps")} == {
        "hybrid": 2, "twice-the-steps": 4, "half-the-steps": 1,
    }  # fmt: skip
    full = bench.ABLATIONS["half-the-steps"].make(setting._replace(trial=0))
    assert 2 * full.steps == PRESETS["signal"].recipe["steps"]


def test_unknown_names_raise(folder):
    with pytest.raises(SystemExit, match="unknown model resnot: known are ours,"):
        bench.main(data=folder, models="resnot")
    with pytest.raises(SystemExit, match="unknown set Three: known are One, Two"):
        bench.main(data=folder, sets="Three")
    with pytest.raises(SystemExit, match=r"expected a folder with files NAME\.npz"):
        bench.main(data=folder / "out")


@pytest.mark.parametrize(
    ("body", "expected"),
    # Counted by hand. The authors of LITE state that its 9,814 parameters are 2.34 % of those of Inception.
    [("resnet", 34_112 + 206_336 + 263_552), ("inceptiontime", 2_528 + 5 * 80_128 + 384 + 16_640)],
)
def test_peers_have_the_published_sizes(body, expected):
    network = getattr(peers, body)(1, 37)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network(torch.zeros(2, 1, 37)).shape == (2, 128, 37)
    assert getattr(peers, body)(3, 50)(torch.zeros(2, 3, 50)).shape == (2, 128, 50)


@pytest.mark.parametrize(("time", "places"), [(30, 30), (99, 50), (301, 151), (2000, 125)])
def test_the_stem_alone_is_that_of_the_preset(time, places):
    x = torch.randn(8, 2, time)
    planned = plan(Request(source=peers.as_source(x.numpy(), np.arange(8) % 2), preset="signal"))
    ours = first_transformer(planned.first.network).patch_embed.backbone
    stem = peers.our_stem(2, time)
    assert repr(stem) == repr(ours)  # layers, widths, kernels and strides
    assert stem(x).shape == (8, 96, places)


def test_means_ranks_spread_and_seconds():
    accuracies = {
        ("A", "ours"): [0.8, 1.0], ("B", "ours"): [0.6, 0.7], ("C", "ours"): [0.5, 0.5],
        ("A", "resnet"): [0.9], ("B", "resnet"): [0.9], ("C", "resnet"): [0.4], ("A", "minirocket"): [1.0],
    }  # fmt: skip
    rows = [
        replace(ROW, set=name, model=model, seed=seed, accuracy=value, fit_seconds=10.0 * (1 + "ABC".index(name)))
        for (name, model), values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    rows[1] = replace(rows[1], parallel=2, fit_seconds=1000.0)  # ignored, because another fit of this set ran alone
    found = report.Comparison(rows, ["resnet", "minirocket", "ours", "1nn-dtw"])
    assert found.models == ["resnet", "minirocket", "ours"]
    assert found.complete == ["resnet", "ours"]
    assert found.mean("ours") == pytest.approx((0.9 + 0.65 + 0.5) / 3)
    assert found.spread("ours") == pytest.approx(abs(1.9 - 2.2) / 3 / 2**0.5)
    assert found.spread("resnet") is None
    assert found.ranks() == pytest.approx({"resnet": (1.5 + 1 + 2) / 3, "ours": (1.5 + 2 + 1) / 3})
    assert found.seconds("ours") == 20.0
    assert found.value("A", "ours", "fit_seconds") == 505.0
    table = report.comparison_table(found, {"Theirs": {"A": 0.5, "B": 0.6, "C": 0.7}})
    assert table[0] == "| set | resnet | minirocket | ours | *Theirs* |"
    assert "| A | 90.0 | **100.0** | 90.0 | 50.0 |" in table
    assert "| **mean** | **73.3** | – | 68.3 | 60.0 |" in table


def test_differences_are_paired_over_sets_that_were_not_tuned_on():
    values = {"features-alone": (0.5, 0.7, 0.9, 0.1), "ours-fast": (0.52, 0.7, 0.94, 0.9)}
    rows = [
        replace(ROW, set=name, model=model, accuracy=value)
        for model, row in values.items()
        for name, value in zip(("A", "B", "C", "CBF"), row)
    ]
    rows.append(replace(ROW, set="D", model="ours-fast"))  # the other model cannot read it
    table = report.paired_table(report.Comparison(rows, ["ours-fast", "features-alone"]))
    # differences of 2, 0 and 4 points: a standard error of 2 / sqrt(3)
    assert table[0].startswith("| model | mean over 3 sets | points against `features-alone`")
    assert table[2:] == [
        "| `ours-fast` | 72.0 | +2.0 ± 1.2 | 2, 1, 0 |",
        "| `features-alone` | 70.0 | +0.0 ± 0.0 | 0, 3, 0 |",
    ]
    assert report.paired_table(report.Comparison(rows[:1], ["features-alone"])) == []


def test_measures_of_probabilities():
    names, probabilities = np.array(["a", "b"]), np.array([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])
    found = bench.measures(probabilities, names, np.array(["a", "b", "a"]))
    assert (found["classes"], found["accuracy"]) == (2, pytest.approx(2 / 3, abs=1e-6))
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 1.0]).mean(), abs=1e-6)
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.0) / 3, abs=1e-6)
    never = bench.measures(np.array([[1.0, 0.0]]), names, np.array(["b"]))
    assert never["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps), abs=1e-4)


def test_unseen_sets_are_grouped_and_ranked_beside_published_results(tmp_path):
    values = {"ours": (0.9, 0.8, 0.7, 0.1), "minirocket": (0.8, 0.8, 0.6, 0.9), "quant": (0.7, 0.9, 0.5, 0.9)}
    sizes = {"A": (20, 4), "B": (30, 2), "C": (400, 2), "CBF": (30, 3)}
    rows = [
        replace(ROW, set=name, model=model, accuracy=value, train=sizes[name][0], classes=sizes[name][1])
        for model, row in values.items()
        for name, value in zip(sizes, row)
    ]
    found = report.Comparison(rows, list(values))
    assert report.grouped_table(found)[2:] == [
        "| fewer than 10 examples a class | 1 | **90.0** | 80.0 | 70.0 |",
        "| 10 to 50 | 1 | 80.0 | 80.0 | **90.0** |",
        "| 50 and more | 1 | **70.0** | 60.0 | 50.0 |",
        "| even place in the alphabet | 1 | 80.0 | 80.0 | **90.0** |",
        "| odd place | 2 | **80.0** | 70.0 | 60.0 |",
    ]
    assert report.grouped_table(report.Comparison([replace(row, classes=0) for row in rows], list(values))) == []
    (tmp_path / "published.csv").write_text("dataset,n_train,Theirs\nA,20,0.95\nB,30,0.7\nC,400,\nCBF,30,1\n")
    lines = report.published_part(found, tmp_path / "published.csv", tmp_path / "ranks.png")
    assert lines[0] == "### Beside published results, 2 unseen sets"
    assert "| `ours` | 85.0 | 2.25 |" in lines
    assert "| Theirs (published) | 82.5 | 2.50 |" in lines
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_ablation_compares_the_same_sets_and_seeds():
    def rows(model, values, seconds):
        return [
            replace(ROW, set=name, model=model, seed=seed, accuracy=value, fit_seconds=seconds, channels=channels)
            for (name, seed, channels), value in values.items()
        ]

    base = rows("hybrid", {("A", 0, 1): 0.8, ("A", 1, 1): 0.9, ("B", 0, 1): 0.7, ("M", 0, 3): 0.9}, 10.0)
    off = rows("off", {("A", 0, 1): 0.78, ("B", 0, 1): 0.71, ("B", 1, 1): 0.1, ("M", 0, 3): 0.92}, 5.0)
    table = report.ablation_table(off, base, {"off": "switched off", "on": "never run"})
    # A loses 2 points and B gains 1; seed 1 has no partner on either set; the standard error is 1.5
    start = "| `off` | switched off | 3 | 75.0 | 74.5 | -0.5 ± 1.5 | 1, 1 |"
    assert table[2:] == [f"{start} +2.0 | x 0.50 |"]
    assert report.ablation_table([], base, {"off": "switched off"}) == []


def test_report_is_written_from_the_files(folder):
    out = folder / "out"
    (out / "report.md").unlink(missing_ok=True)
    bench.main(report=True, out=out, steps=STEPS)
    text = (out / "report.md").read_text()
    assert f"A trial of the benchmark with {STEPS} steps" in text
    assert text.index("## 1 univariate set") < text.index("## 1 multivariate set")
    assert "*Theirs*" in text  # for One; there is none for Two, and Partly has no figure
    assert text.count("*Theirs*") == 1
    assert "*Partly*" not in text
    models = "ours-ensemble,resnet,features-alone"
    assert f"by `python benchmarks/signals.py --data FOLDER --seeds 1 --models {models} --steps {STEPS}`" in text
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="no rows"):
        bench.main(report=True, out=out)
