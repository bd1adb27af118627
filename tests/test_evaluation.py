"""Metrics of a classifier, and what every evaluation does by default."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn import metrics

from ndvit.evaluation.base import Evaluation, percent, wilson_interval
from ndvit.evaluation.classification import ClassificationEvaluation, unbalanced

# Six examples of three classes; the predictions 0 0 1 1 0 2 contain two mistakes, 0→1 and 1→0.
LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.3, 0.6, 0.1], [0.1, 0.9, 0.0], [0.7, 0.2, 0.1], [0.0, 0.2, 0.8]]
)


def make(labels=LABELS, probabilities=PROBABILITIES, classes=None, names=None):
    classes = classes or tuple("xyzuvw")[: probabilities.shape[1]]
    return ClassificationEvaluation(classes, labels, probabilities, names or tuple(map(str, range(len(labels)))))


def random(classes, n, seed=0, concentration=1.0):
    rng = np.random.default_rng(seed)
    labels, p = rng.integers(0, classes, n), rng.dirichlet(np.full(classes, concentration), n)
    return make(labels, p, tuple(f"class {i}" for i in range(classes)))


def test_numbers_by_hand():
    ev = make()
    assert ev.predicted.tolist() == [0, 0, 1, 1, 0, 2]
    assert ev.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert ev.score == ev.accuracy == pytest.approx(4 / 6)
    assert ev.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert ev.majority_share == 0.5
    assert ev.mistakes.tolist() == ev.worst() == [4, 2]  # confidence 0.7 before 0.6
    assert ev.caption(4) == {"true": "y", "predicted": "x", "confidence": "70.0\N{NBSP}%"}
    assert ev.log_loss == pytest.approx(-np.log([0.8, 0.5, 0.3, 0.9, 0.2, 0.8]).mean())
    x, y, z = ev.per_class
    assert x[:5] == ("x", 3, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (y[:5], z[:5]) == (("y", 2, 0.5, 0.5, 0.5), ("z", 1, 1.0, 1.0, 1.0))
    assert [row.specificity for row in ev.per_class] == pytest.approx([2 / 3, 3 / 4, 1])
    assert x.recall_interval == pytest.approx(wilson_interval(2, 3))


def test_agrees_with_sklearn():
    ev = random(5, 300)
    labels, predicted = ev.labels, ev.predicted
    precision, recall, f1, count = metrics.precision_recall_fscore_support(labels, predicted)
    assert np.allclose([row[1:5] for row in ev.per_class], np.stack([count, recall, precision, f1]).T)
    assert ev.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert ev.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert ev.log_loss == pytest.approx(metrics.log_loss(labels, ev.probabilities))
    assert (ev.confusion == metrics.confusion_matrix(labels, predicted)).all()


def test_calibration_error_by_hand():
    # In bins of width 1/15, 0.5, 0.6, 0.7 and 0.9 lie alone and 0.8 twice; 0.8, 0.5, 0.9 and 0.8 are correct.
    ev = make()
    assert ev.ece == pytest.approx((2 * 0.2 + 0.5 + 0.6 + 0.1 + 0.7) / 6, abs=1e-6)
    assert [(b.examples, b.accuracy) for b in ev.reliability] == [(1, 1), (1, 0), (1, 0), (2, 1), (1, 1)]
    assert [b.confidence for b in ev.reliability] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert all(b.low - 1e-6 <= b.confidence < b.high for b in ev.reliability)


@pytest.mark.parametrize("certain", [1.0, 1.005])  # rounding may give more than 1
def test_a_confidence_of_one_belongs_to_the_last_bin(certain):
    # One of two is correct at a mean confidence of 0.975. In separate bins the error would be 0.525.
    ev = make(np.array([0, 1]), np.array([[certain, 0.0], [0.95, 0.05]]))
    assert ev.ece == pytest.approx(0.475, abs=1e-6)
    assert len(ev.reliability) == 1


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_the_bins_add_up_to_the_error(classes):
    ev = random(classes, 500, classes, 0.3)
    assert sum(b.examples for b in ev.reliability) == 500
    gaps = sum(b.examples * abs(b.accuracy - b.confidence) for b in ev.reliability)
    assert ev.ece == pytest.approx(gaps / 500, abs=1e-5)
    assert ev.ece > 0.15


@pytest.mark.parametrize(("labels", "expected"), [([0, 0, 1], True), ([0, 0, 0, 1, 1], False), ([2, 2], False)])
def test_unbalanced(labels, expected):
    labels = np.array(labels)
    ev = make(labels, np.eye(3)[labels])
    assert ev.unbalanced is unbalanced(labels) is expected
    assert ("balanced" in ev.headline()) is expected


@pytest.mark.parametrize(("label", "expected"), [(0, (0.4902, 0.9433)), (2, (0.0, 0.2775))])
def test_wilson_interval(label, expected):
    # Textbook values for 8 of 10 and for 0 of 10 correct: the latter is 0 to z²/(n + z²).
    ev = make(np.full(10, label), np.eye(3)[[0] * 8 + [1] * 2])
    assert ev.accuracy_interval == pytest.approx(expected, abs=1e-4)


def test_classes_without_examples_or_predictions():
    w, x, y, z = (ev := make(np.array([0, 0, 1]), np.eye(4)[[0, 2, 0]])).per_class
    assert (w.recall, w.precision) == (0.5, 0.5)
    assert x[2:5] == (0.0, None, 0.0)  # no predictions
    assert y[1:] == (0, None, 0.0, 0.0, None, pytest.approx(2 / 3), None, None)  # no examples
    assert z[2:] == (None, None, None, None, 1.0, None, None)  # neither
    assert ev.balanced_accuracy == 0.25


def test_log_loss_of_a_certain_mistake_is_finite():
    ev = make(np.array([1]), np.array([[1.0, 0.0]], dtype=np.float32))
    assert ev.log_loss == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_one_class():
    ev = make(np.array([0, 0]), np.ones((2, 1)))
    assert ev.confusion.tolist() == [[2]]
    assert (ev.accuracy, ev.balanced_accuracy, ev.majority_share, ev.ece) == (1, 1, 1, 0)
    assert ev.log_loss == pytest.approx(0, abs=1e-9)


def test_rows_rounded_to_half_precision_raise_no_warning():
    p = np.random.default_rng(0).dirichlet(np.ones(50), 40).astype(np.float16)
    labels = p.argmax(axis=1)
    ev = make(labels, p, tuple(map(str, range(50))))
    assert ev.probabilities.dtype == np.float32
    assert ev.log_loss == pytest.approx(-np.log(p[np.arange(40), labels].astype(float)).mean(), rel=1e-3)
    assert make(np.array([0]), np.array([[1.005, 0.0]])).log_loss == pytest.approx(0, abs=1e-9)


def test_texts():
    ev = make()
    assert ev.headline() == "accuracy 0.6667 (4 of 6; 95 % interval 0.3000 to 0.9032), balanced accuracy 0.7222"
    even = make(LABELS[1:3], PROBABILITIES[1:3])
    line = "accuracy 0.5000 (1 of 2; 95 % interval 0.0945 to 0.9055)"
    assert even.headline() == even.headline(np.array([0, 1])) == line
    assert even.headline(np.array([0, 0, 1])) == f"{line}, balanced accuracy 0.5000"
    assert ev.metadata() == {"test_accuracy": ev.accuracy}
    lines = ev.table().splitlines()
    assert lines[:3] == [
        "                           95 % interval",
        "examples           6",
        "accuracy           0.6667  0.3000 to 0.9032   (4 of 6)",
    ]
    assert lines[12:16] == [
        "ECE                0.3833                     (expected calibration error, 15 bins)",
        "",
        "class  examples  recall  95 % interval  precision     f1  AUROC  average precision",
        "x             3   0.667    0.208–0.939      0.667  0.667  0.778              0.806",
    ]


@pytest.mark.parametrize(("absent", "lines"), [(20, 37), (21, 18)])
def test_table_leaves_out_many_classes_without_examples(absent, lines):
    width = absent + 2
    got = make(np.array([0, 1]), np.eye(width)[:2], tuple(map(str, range(width)))).table().splitlines()
    assert len(got) == lines
    assert (got[-1] == "and 21 classes without examples here") == (absent == 21)


def test_to_dict_is_json():
    got = json.loads(json.dumps(make().to_dict(), allow_nan=False))
    assert (got["examples"], got["mistakes"]) == (6, 2)
    assert got["ece"] == pytest.approx(2.3 / 6, abs=1e-6)
    z = got["per_class"][2]
    assert (z["name"], z["examples"], z["recall"], z["specificity"], z["auroc"]) == ("z", 1, 1.0, 1.0, 1.0)
    assert got["intervals_95"]["accuracy"] == got["accuracy_interval_95"] == pytest.approx([0.3, 0.9032], abs=1e-4)
    assert (got["resampled"], got["positive"]) == ("examples", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [], "probabilities": np.zeros((0, 3))}, "at least one example, got none"),
        ({"classes": ("x", "y", "x")}, "must be unique, got more than one 'x'"),
        ({"labels": LABELS[:, None]}, r"6 integers, one per name, got shape \(6, 1\)"),
        ({"labels": LABELS + 0.5}, "integers, one per name, got shape .* of float64"),
        ({"names": tuple("abcd")}, r"4 integers, one per name, got shape \(6,\)"),
        ({"classes": ("x", "y")}, r"shape \(6, 2\) for 6 labels and 2 classes, got shape \(6, 3\)"),
        ({"probabilities": PROBABILITIES[:5]}, r"got shape \(5, 3\)"),
        ({"probabilities": (PROBABILITIES > 0.5).astype(int)}, "must be floating point"),
        ({"labels": LABELS + 1}, r"0 to 2 for 3 classes, got 3 for '5' \(1 such"),
        ({"labels": LABELS - 1}, "got -1 for '0'"),
        ({"probabilities": np.where(LABELS[:, None] == 2, np.nan, PROBABILITIES)}, "finite, got NaN .* 1 of 6 .*'5'"),
        ({"probabilities": PROBABILITIES * 3}, r"sum to 1 .* got \[2.4 0.3 0.3\] for '0': apply softmax"),
        ({"probabilities": PROBABILITIES + [0.2, 0, -0.2]}, "must not be negative"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_import_is_light():
    code = "import sys, ndvit.evaluation.classification as c; print({'sklearn', 'scipy', 'torch'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@dataclass
class Counting(Evaluation):
    """The least that an evaluation of another task must have."""

    names: tuple[str, ...]
    errors: np.ndarray

    @property
    def score(self):
        return -float(abs(self.errors).mean())

    def numbers(self):
        return {"mean error": -self.score}


def test_defaults():
    ev = Counting(tuple("ab"), np.array([1.0, -2.0]))
    assert ev.headline() == ev.headline(np.array([3])) == "score -1.5000 on 2 examples"
    assert ev.table() == "examples    2\nmean error  1.5000"
    assert ev.metadata() == {"test_score": -1.5}
    assert ev.to_dict() == {"examples": 2, "mean error": 1.5}
    assert (ev.worst(), ev.caption(0), ev.report_values()) == ((), {}, {})


def test_percent():
    got = [percent(x).replace("\N{NBSP}", " ") for x in (None, 0.0, 1.0, 0.98765, 0.9999, 0.0001)]
    assert got == ["–", "0.0 %", "100.0 %", "98.8 %", "> 99.9 %", "< 0.1 %"]
