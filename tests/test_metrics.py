"""Metrics with their intervals: ranking areas, the bootstrap over examples and groups, results of groups."""

import json

import numpy as np
import pytest
from sklearn import metrics

from ndvit.evaluation import figures
from ndvit.evaluation.base import wilson_interval
from ndvit.evaluation.bootstrap import count, intervals, weights
from ndvit.evaluation.charts import ranking, residuals
from ndvit.evaluation.classification import ClassificationEvaluation
from ndvit.evaluation.multilabel import MultilabelEvaluation
from ndvit.evaluation.ranking import areas, curves, resampled_areas
from ndvit.evaluation.recordings import RecordingEvaluation
from ndvit.evaluation.regression import RegressionEvaluation
from ndvit.evaluation.relevance import _columns


def classified(n=120, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    p = random.dirichlet(np.ones(classes), n) + 0.4 * np.eye(classes)[labels]
    names = tuple(f"class {i}" for i in range(classes))
    return ClassificationEvaluation(names, labels, p / p.sum(1, keepdims=True), tuple(map(str, range(n))))


def drawn(n=120, resamples=7):
    return next(weights(n, resamples))


def test_areas_of_resamples_are_those_of_sklearn_with_weights():
    random = np.random.default_rng(0)
    truth = random.random(120) < 0.3
    scores = np.round(random.random(120) + 0.3 * truth, 1)  # with ties
    found = resampled_areas(truth, scores, drawn())
    for j, weight in enumerate(drawn().T):
        assert found.auroc[j] == pytest.approx(metrics.roc_auc_score(truth, scores, sample_weight=weight))
        expected = metrics.average_precision_score(truth, scores, sample_weight=weight)
        assert found.average_precision[j] == pytest.approx(expected)
    ones = resampled_areas(truth, scores, np.ones((120, 1), dtype=np.float32))
    assert (ones.auroc[0], ones.average_precision[0]) == pytest.approx(areas(truth, scores))


@pytest.mark.parametrize("classes", [2, 3])
def test_every_metric_of_a_resample_is_that_of_sklearn(classes):
    ev = classified(classes=classes)
    labels, predicted, p = ev.labels, ev.predicted, ev.probabilities
    found = ev.resampled(drawn())
    for j, weight in enumerate(drawn().T):
        recall = metrics.recall_score(labels, predicted, average=None, sample_weight=weight)
        other = metrics.recall_score(labels == 0, predicted == 0, pos_label=False, sample_weight=weight)
        assert found["accuracy"][j] == pytest.approx(metrics.accuracy_score(labels, predicted, sample_weight=weight))
        assert found["balanced_accuracy"][j] == pytest.approx(recall.mean())
        f1 = metrics.f1_score(labels, predicted, average="macro", sample_weight=weight)
        assert found["macro_f1"][j] == pytest.approx(f1)
        assert found["mcc"][j] == pytest.approx(metrics.matthews_corrcoef(labels, predicted, sample_weight=weight))
        assert found["log_loss"][j] == pytest.approx(metrics.log_loss(labels, p, sample_weight=weight), rel=1e-5)
        if classes == 2:
            assert found["sensitivity"][j] == pytest.approx(recall[1])
            assert found["specificity"][j] == pytest.approx(recall[0])
            assert found["auroc"][j] == pytest.approx(metrics.roc_auc_score(labels, p[:, 1], sample_weight=weight))
        else:
            each = [metrics.roc_auc_score(labels == k, p[:, k], sample_weight=weight) for k in range(classes)]
            assert found["auroc"][j] == pytest.approx(np.mean(each))
            assert 0 < other < 1


def test_metrics_without_weights_are_those_of_a_resample_with_every_example_once():
    ev = classified()
    found = ev.resampled(np.ones((len(ev), 1), dtype=np.float32))
    numbers = ev.numbers()
    for name, value in found.items():
        assert numbers[name] == pytest.approx(value[0], rel=1e-6), name


def test_intervals_are_reproducible_and_contain_the_metric():
    ev = classified()
    ends = ev.intervals_95
    assert ends == classified().intervals_95
    for name, (low, high) in ends.items():
        assert low < ev.numbers()[name] < high, name
    low, high = ends["balanced_accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(ev.accuracy * (1 - ev.accuracy) / 120), rel=0.15)
    assert ends["accuracy"] == wilson_interval(120 - len(ev.mistakes), 120)


def test_groups_are_drawn_as_a_whole():
    groups = np.repeat(["a", "b", "c", "d"], 30)
    for weight in next(weights(120, 9, groups)).T:
        each = weight.reshape(4, 30)
        assert (each == each[:, :1]).all()
        assert each[:, 0].sum() == 4


def test_groups_that_differ_make_wide_intervals():
    labels = np.zeros(120, dtype=int)
    p = np.eye(2)[[0] * 60 + [1] * 60]  # two of four groups are all wrong
    ev = ClassificationEvaluation(("x", "y"), labels, p, tuple(map(str, range(120))))
    grouped = ev.grouped(np.repeat(["a", "b", "c", "d"], 30))
    assert ev.accuracy_interval == pytest.approx((0.412, 0.588), abs=1e-3)
    assert grouped.accuracy_interval == (0, 1)
    assert grouped.by_group()[0][:3] == ("c", 30, 0.0)
    assert grouped.to_dict()["by_group"][0]["interval"] == list(wilson_interval(0, 30))
    assert "c            30    0.0000    0.000–0.114" in grouped.table()
    assert ev.groups is None
    with pytest.raises(ValueError, match="one name for each of 120 examples, got 3"):
        ev.grouped(["a", "b", "c"])


def test_no_interval_where_resamples_know_nothing():
    right = ClassificationEvaluation(("x", "y"), np.array([0, 1] * 20), np.eye(2)[[0, 1] * 20], tuple("ab" * 20))
    assert right.intervals_95.keys() == {"accuracy"}  # Wilson's, from .91 to 1
    assert intervals(lambda w: {"m": w[0]}, 5, groups=np.array(["a"] * 5)) == {}  # a single group


def test_fewer_resamples_where_they_take_long():
    assert (count(100, 2), count(10_000, 100), count(1000, 200)) == (1000, 200, 500)


def test_undefined_metrics_are_left_out():
    ev = ClassificationEvaluation(("x", "y"), np.array([0, 0, 0]), np.eye(2)[[0, 0, 1]], tuple("abc"))
    assert not {"auroc", "sensitivity", "average_precision"} & ev.numbers().keys()
    assert ev.numbers()["specificity"] == pytest.approx(2 / 3)
    json.dumps(ev.to_dict(), allow_nan=False)
    assert curves(ev.labels == 1, ev.probabilities[:, 1]) is None


def test_long_curves_are_thinned_and_keep_their_area():
    random = np.random.default_rng(0)
    truth = random.random(5000) < 0.4
    scores = random.random(5000) + 0.5 * truth
    found = curves(truth, scores)
    assert len(found.false_positive) == len(found.recall) == 201
    assert np.trapezoid(found.true_positive, found.false_positive) == pytest.approx(areas(truth, scores)[0], abs=2e-3)


def test_intervals_of_regressions_and_labels():
    random = np.random.default_rng(0)
    truth = random.normal(size=(80, 1))
    ev = RegressionEvaluation(("t",), truth, truth + 0.5, None, 0.9, tuple(map(str, range(80))))
    found = ev.resampled(drawn(80))
    assert found["rmse"] == pytest.approx(np.full(7, 0.5))
    weight = drawn(80)[:, 0]
    assert found["r2"][0] == pytest.approx(metrics.r2_score(truth, truth + 0.5, sample_weight=weight), rel=1e-5)
    labels = (random.random((80, 3)) < 0.4).astype(int)
    p = 0.6 * random.random((80, 3)) + 0.4 * labels
    several = MultilabelEvaluation(tuple("abc"), labels, p, (0.5,) * 3, tuple(map(str, range(80))))
    found = several.resampled(drawn(80))
    expected = metrics.average_precision_score(labels, p, average="macro", sample_weight=weight)
    assert found["mean_average_precision"][0] == pytest.approx(expected)
    expected = metrics.f1_score(labels, p >= 0.5, average="macro", sample_weight=weight)
    assert found["f1_macro"][0] == pytest.approx(expected)
    assert several.intervals_95.keys() == several.numbers().keys() - {"ece"}


def test_recordings_have_the_intervals_of_both():
    windows = classified(60).grouped(np.repeat([f"r{i}" for i in range(20)], 3))
    both = RecordingEvaluation(classified(20), windows)
    assert both.groups is None
    assert {"mcc", "mcc_per_window"} <= both.intervals_95.keys()
    assert both.to_dict()["per_window"]["resampled"] == "groups"


@pytest.fixture
def painted(_drawn, monkeypatch):
    """Axes and alternative texts of the figures that are drawn, by name."""
    found, drawn = {}, figures.draw

    def draw(size, name, description, paint):
        def keep(axes):
            paint(axes)
            found[name] = axes, description

        return drawn(size, name, description, keep)

    monkeypatch.setattr(figures, "draw", draw)
    return found


def steps_of(line):
    from matplotlib.cbook import STEP_LOOKUP_MAP

    return STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())


def test_the_area_under_the_drawn_precision_is_the_average_precision(painted):
    random = np.random.default_rng(0)
    truth, scores = random.random(60) < 0.3, random.random(60)
    ranking({"a": (truth, scores)})
    (line,) = painted["precision recall"][0].lines
    x, y = steps_of(line)
    assert np.trapezoid(y, x) == pytest.approx(areas(truth, scores)[1], abs=1e-9)


def test_the_mean_of_many_curves_has_the_mean_area(painted):
    random = np.random.default_rng(0)
    ranked = {str(i): (random.random(60) < 0.3, random.random(60)) for i in range(12)}
    ranking(ranked)
    expected = np.mean([areas(*one) for one in ranked.values()], axis=0)
    x, y = steps_of(painted["precision recall"][0].lines[-1])
    assert np.trapezoid(y, x) == pytest.approx(expected[1], abs=2e-3)
    assert np.trapezoid(*painted["roc"][0].lines[-1].get_data()[::-1]) == pytest.approx(expected[0], abs=1e-2)


def test_the_error_in_the_text_of_a_scatter_plot_is_that_of_all_examples(painted):
    errors = np.arange(3000) % 3 - 1.0
    residuals(np.zeros(3000), errors, "load", "a")
    axes, description = painted["a predictions"]
    assert len(axes.lines[-1].get_xdata()) == 1000
    assert description == f"predictions of load: 3000 examples, root mean squared error {np.sqrt(2 / 3):.4g}"


def test_relevance_of_a_long_signal_is_drawn_without_stripes():
    assert np.unique(_columns(np.ones((1, 900)))).tolist() == [1.0]
