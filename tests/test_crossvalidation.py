"""Cross-validation: out-of-fold answers, intervals, groups, resumption, and the model of all examples."""

import csv
import json

import numpy as np
import pytest

import ndvit
from ndvit import cross_validate, load_model, resume_cross_validation
from ndvit.evaluation.folds import corrected_interval
from ndvit.training import crossvalidation
from tinyruns import QUIET, TINY, command, toy

SMALL = {**TINY, **QUIET, "steps": 1}


def test_every_example_is_answered_by_a_model_that_lacks_it_and_its_group(tmp_path):
    x, y = toy()
    source = {"X": x, "y": y, "who": np.repeat(np.arange(10), 4)}
    result = cross_validate(source, folds=5, group_by="who", output=tmp_path / "cv", **SMALL)
    assert len(result.evaluation.names) == 40
    with (tmp_path / "cv" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"X[{i}]" for i in range(40)]
    fold_of = {}
    for row in rows:
        assert fold_of.setdefault(row["group"], row["fold"]) == row["fold"]
    assert sorted(set(fold_of.values())) == ["0", "1", "2", "3", "4"]
    of_first = [i for i, row in enumerate(rows) if row["fold"] == "0"]
    answers = load_model(tmp_path / "cv" / "folds" / "0").predict_proba(x[of_first])
    assert np.allclose(answers, result.evaluation.probabilities[of_first], atol=1e-6)
    stored = json.loads((tmp_path / "cv" / "results.json").read_text())
    accuracies = [fold["accuracy"] for fold in stored["folds"]]
    assert stored["means"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert stored["out_of_fold"]["examples"] == 40
    page = (tmp_path / "cv" / "report.html").read_text()
    assert "out-of-fold accuracy" in page
    assert "<h2>Folds</h2>" in page
    assert "Learning curves" not in page


def test_the_interval_allows_for_the_overlap_of_training_sets():
    mean = corrected_interval([0.7, 0.8, 0.9, 0.8, 0.8], [20] * 5, 100)
    spread = np.std([0.7, 0.8, 0.9, 0.8, 0.8], ddof=1) * np.sqrt(1 / 5 + 20 / 80)
    assert mean.mean == pytest.approx(0.8)
    assert mean.high - mean.mean == pytest.approx(2.776445 * spread, rel=1e-6)


def test_a_few_long_recordings_cut_all_into_windows(tmp_path):
    x, y = toy(24, shape=(1, 300))
    long = np.tile(x[0], (1, 14))  # (1, 4200)
    result = cross_validate(([long, *x[1:]], y), folds=2, output=tmp_path / "cv", **SMALL, patch_size=30)
    assert len(result.evaluation) == 24  # recordings, of which the first is in 14 windows
    assert "window: 300" in (tmp_path / "cv" / "config.yaml").read_text()
    assert load_model(tmp_path / "cv" / "folds" / "0").config.input_size == (300,)


def test_repeats_divide_differently_and_their_answers_are_averaged(tmp_path):
    result = cross_validate(toy(), folds=2, repeats=2, output=tmp_path / "cv", **SMALL)
    assert [(row["repeat"], row["fold"]) for row in result.scores.rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    splits = [(tmp_path / "cv" / "folds" / name / "split.csv").read_text() for name in ("0-0", "1-0")]
    assert splits[0] != splits[1]


def test_an_interrupted_one_resumes_to_the_same_result(tmp_path, monkeypatch):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y)
    whole = cross_validate(tmp_path / "a.npz", folds=3, refit=True, output=tmp_path / "whole", **SMALL)
    begin = crossvalidation.start_run

    def stop_at_the_second(request, output, *rest):
        if output.name == "1":
            raise KeyboardInterrupt
        return begin(request, output, *rest)

    monkeypatch.setattr(crossvalidation, "start_run", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(tmp_path / "a.npz", folds=3, refit=True, output=tmp_path / "broken", **SMALL)
    monkeypatch.undo()
    first = (tmp_path / "broken" / "folds" / "0" / "model.safetensors").stat().st_mtime_ns
    resumed = resume_cross_validation(tmp_path / "broken", **QUIET)
    assert (tmp_path / "broken" / "folds" / "0" / "model.safetensors").stat().st_mtime_ns == first
    assert np.array_equal(resumed.evaluation.probabilities, whole.evaluation.probabilities)
    assert np.array_equal(resumed.model.predict_proba(x), whole.model.predict_proba(x))
    with pytest.raises(ValueError, match=r"is finished: it has a results\.json"):
        resume_cross_validation(tmp_path / "broken", **QUIET)
    (tmp_path / "broken" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="continue it with ndvit crossvalidate --resume"):
        ndvit.resume(tmp_path / "broken")


def test_the_model_of_all_examples_keeps_the_results(tmp_path):
    result = cross_validate(toy(), folds=2, refit=True, output=tmp_path / "cv", **SMALL)
    facts = load_model(tmp_path / "cv").provenance["cross_validation"]
    assert (facts["folds"], facts["accuracy"]) == (2, result.scores.mean("accuracy").mean)


def test_a_test_set_of_the_source_is_left_out(tmp_path):
    (x, y), lines = toy(), []
    how = {**SMALL, "log": lines.append}
    result = cross_validate((x[:30], y[:30], x[30:], y[30:]), folds=2, refit=True, output=tmp_path / "cv", **how)
    assert len(result.evaluation.names) == 30
    assert any(line.startswith("test set of the source: accuracy") and "of 10" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds must be a whole number of at least 2"),
        ({"folds": 41}, "41 folds need at least as many examples, there are 40"),
        ({"test_fraction": 0.5}, "test_fraction does nothing in a cross-validation"),
        ({"task": "contrastive"}, "learns without targets, and there is nothing to cross-validate"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        cross_validate(toy(), output=tmp_path / "cv", **{**SMALL, **options})
    assert not (tmp_path / "cv").exists()


def test_the_command(tmp_path, capsys):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y)
    flags = ["--folds", 2, "--model", TINY["model"], "--embed-dim", 16, "--steps", 1, "--no-progress"]
    assert command("crossvalidate", tmp_path / "a.npz", "--output", tmp_path / "cv", *flags) == 0
    printed = capsys.readouterr().out
    assert "fold 2 of 2: accuracy" in printed
    assert "mean over folds: accuracy" in printed
    assert command("crossvalidate", "--resume", tmp_path / "cv") == 2
    assert "is finished" in capsys.readouterr().err


def test_groups_that_are_not_read_are_doubted(tmp_path):
    x, y = toy()
    np.savez(tmp_path / "a.npz", X=x, y=y, patient=np.repeat(np.arange(10), 4))
    with pytest.warns(ndvit.DataWarning, match="not read: patient.*can be on both sides"):
        cross_validate(tmp_path / "a.npz", folds=2, output=tmp_path / "cv", **SMALL)


def test_thresholds_of_labels_come_from_the_other_folds_and_stay_in_the_model(tmp_path):
    random = np.random.default_rng(0)
    y = (random.random((60, 2)) < 0.3).astype(int)
    x = random.normal(size=(60, 1, 16)).astype(np.float32)
    x[:, 0, :4] += 1.5 * y[:, :1]
    x[:, 0, 8:12] += 1.5 * y[:, 1:]
    options = {**SMALL, "task": "multilabel"}
    result = cross_validate((x, y), folds=3, refit=True, output=tmp_path / "cv", **options)
    answers, truth = result.evaluation.probabilities, result.evaluation.truth
    with (tmp_path / "cv" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    folds = np.array([int(row["fold"]) for row in rows])
    usual = ndvit.Multilabel(("0", "1"))
    for fold in range(3):
        others = folds != fold
        best = usual.decided_by(answers[others], truth[others]).thresholds
        assert result.evaluation.thresholds[folds == fold].tolist() == [list(best)] * sum(folds == fold)
        own = usual.__class__(("0", "1"), best).evaluate(answers[~others], truth[~others], ["x"] * sum(~others))
        assert result.scores.rows[fold]["f1_micro"] == own.f1_micro
    decided = (answers >= result.evaluation.thresholds).tolist()
    assert [row["labels"] for row in rows] == [";".join(n for n, there in zip("01", one) if there) for one in decided]
    stored = load_model(tmp_path / "cv").task
    assert (stored.thresholds, stored.measured) == (usual.decided_by(answers, truth).thresholds, 60)
    assert stored.thresholds != (0.5, 0.5)
    assert ndvit.evaluation.stored.load_report(tmp_path / "cv" / "report.npz").evaluation.thresholds.shape == (60, 2)


def test_thresholds_of_labels_in_windows_are_those_of_their_recordings(tmp_path):
    random = np.random.default_rng(0)
    y = np.tile([[0, 0], [0, 1], [1, 0]], (6, 1))
    x = [random.normal(size=(1, 40 + 2 * i)).astype(np.float32) + y[i].sum() for i in range(18)]
    options = {**SMALL, "task": "multilabel", "window": "20", "hop": "20"}
    result = cross_validate((x, y), folds=2, output=tmp_path / "cv", **options)
    assert result.evaluation.recordings.thresholds.shape == (18, 2)
    assert len(result.evaluation.windows.thresholds) == len(result.evaluation.windows)
