import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics

from ndvit.evaluation.metrics import Evaluation, unbalanced

# Six examples of three classes; predicted 0 0 1 1 0 2, so that 0→1, 1→0 are the mistakes.
LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.3, 0.6, 0.1], [0.1, 0.9, 0.0], [0.7, 0.2, 0.1], [0.0, 0.2, 0.8]]
)
NAMES = tuple("abcdef")


def make(labels=LABELS, probabilities=PROBABILITIES, classes=("x", "y", "z"), names=NAMES):
    return Evaluation(classes, labels, probabilities, names)


def test_numbers_by_hand():
    ev = make()
    assert ev.predicted.tolist() == [0, 0, 1, 1, 0, 2]
    assert ev.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert ev.accuracy == pytest.approx(4 / 6)
    assert ev.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert ev.majority_share == 0.5
    assert ev.mistakes.tolist() == [4, 2]  # 0.7 was said more confidently than 0.6
    assert ev.log_loss == pytest.approx(-np.log([0.8, 0.5, 0.3, 0.9, 0.2, 0.8]).mean())
    x, y, z = ev.per_class
    assert x == ("x", 3, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert y == ("y", 2, 0.5, 0.5, 0.5)
    assert z == ("z", 1, 1.0, 1.0, 1.0)


def test_calibration_error_by_hand():
    # bins of 1/15: 0.5; 0.6, 0.7 and 0.9 lie alone, 0.8 twice; right are 0.8, 0.5, 0.9, 0.8
    ev = make()
    assert ev.ece == pytest.approx((2 * 0.2 + 0.5 + 0.6 + 0.1 + 0.7) / 6, abs=1e-6)
    assert [(b.examples, b.accuracy) for b in ev.reliability] == [(1, 1), (1, 0), (1, 0), (2, 1), (1, 1)]
    assert [b.confidence for b in ev.reliability] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert all(b.low - 1e-6 <= b.confidence < b.high for b in ev.reliability)


def test_certain_answers_share_the_last_bin():
    # one right, one wrong: together they are 0.5 right at a confidence of 0.975; by themselves the error would be 0.525
    p = np.array([[1.0, 0.0], [0.95, 0.05]])
    ev = make(np.array([0, 1]), p, ("x", "y"), ("a", "b"))
    assert ev.ece == pytest.approx(0.475, abs=1e-6)
    assert len(ev.reliability) == 1
    above = make(np.array([0, 1]), p + [[0.005, 0], [0, 0]], ("x", "y"), ("a", "b"))  # rounded, not logits
    assert above.ece == pytest.approx(0.475, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_the_bins_add_up_to_the_error(classes):
    rng = np.random.default_rng(classes)
    p = rng.dirichlet(np.full(classes, 0.3), 500)
    ev = make(rng.integers(0, classes, 500), p, tuple(map(str, range(classes))), tuple(map(str, range(500))))
    assert sum(b.examples for b in ev.reliability) == 500
    gaps = sum(b.examples * abs(b.accuracy - b.confidence) for b in ev.reliability)
    assert ev.ece == pytest.approx(gaps / 500, abs=1e-5)
    assert ev.ece > 0.15


@pytest.mark.parametrize(("labels", "expected"), [([0, 0, 1], True), ([0, 0, 0, 1, 1], False), ([2, 2], False)])
def test_unbalanced(labels, expected):
    n = len(labels)
    assert unbalanced(np.array(labels)) is expected
    assert make(np.array(labels), np.full((n, 3), 1 / 3), names=NAMES[:n]).unbalanced is expected


def test_wilson_interval():
    # 8 of 10: the textbook's 0.490 to 0.943; 0 of 10: 0 to z²/(n + z²) = 0.278
    p = np.eye(2)[np.array([0] * 8 + [1] * 2)]
    assert make(np.zeros(10, int), p, ("x", "y"), NAMES + tuple("ghij")).accuracy_interval == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )
    none = make(np.ones(10, int), np.eye(2)[np.zeros(10, int)], ("x", "y"), NAMES + tuple("ghij"))
    assert none.accuracy_interval == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 5, 300), rng.dirichlet(np.ones(5), 300)
    ev = make(labels, p, tuple("vwxyz"), tuple(map(str, range(300))))
    said = p.argmax(axis=1)
    precision, recall, f1, count = metrics.precision_recall_fscore_support(labels, said)
    assert np.allclose([row[1:] for row in ev.per_class], np.stack([count, recall, precision, f1]).T)
    assert ev.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    assert ev.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, said))
    assert ev.log_loss == pytest.approx(metrics.log_loss(labels, p))
    assert (ev.confusion == metrics.confusion_matrix(labels, said)).all()


def test_classes_without_examples_or_predictions():
    ev = make(np.array([0, 0, 1]), np.eye(4)[[0, 2, 0]], tuple("wxyz"), tuple("abc"))
    w, x, y, z = ev.per_class
    assert (w.recall, w.precision) == (0.5, 0.5)
    assert (x.recall, x.precision, x.f1) == (0.0, None, 0.0)  # never predicted
    assert (y.examples, y.recall, y.precision, y.f1) == (0, None, 0.0, 0.0)  # never there
    assert (z.recall, z.precision, z.f1) == (None, None, None)  # neither
    assert ev.balanced_accuracy == 0.25


def test_log_loss_of_a_certain_mistake_is_finite():
    ev = make(np.array([1]), np.array([[1.0, 0.0]], dtype=np.float32), ("x", "y"), ("a",))
    assert ev.log_loss == pytest.approx(-np.log(np.finfo(np.float32).eps))
    half = make(np.array([1]), np.array([[0.3333, 0.6667]], dtype=np.float16), ("x", "y"), ("a",))
    assert half.probabilities.dtype == np.float32
    assert half.log_loss == pytest.approx(-np.log(0.6667), abs=1e-3)


def test_one_class():
    ev = make(np.array([0, 0]), np.ones((2, 1)), ("x",), ("a", "b"))
    assert ev.confusion.tolist() == [[2]]
    assert (ev.accuracy, ev.balanced_accuracy, ev.majority_share, ev.ece) == (1, 1, 1, 0)
    assert ev.log_loss == pytest.approx(0, abs=1e-9)


def test_rows_rounded_to_half_precision_raise_no_warning():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(50), 40).astype(np.float16)
    labels = p.argmax(axis=1)
    ev = make(labels, p, tuple(map(str, range(50))), tuple(map(str, range(40))))
    assert ev.log_loss == pytest.approx(-np.log(p[np.arange(40), labels].astype(float)).mean(), rel=1e-3)
    certain = make(np.array([0]), np.array([[1.005, 0.0]]), ("x", "y"), ("a",))
    assert certain.log_loss == pytest.approx(0, abs=1e-9)


def test_import_is_light():
    code = "import sys, ndvit.evaluation.metrics; print([m for m in ('sklearn', 'scipy', 'torch') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_to_dict_is_json():
    told = json.loads(json.dumps(make().to_dict(), allow_nan=False))
    assert told["examples"] == 6
    assert told["mistakes"] == 2
    assert told["ece"] == pytest.approx(2.3 / 6, abs=1e-6)
    assert told["per_class"][2] == {"name": "z", "examples": 1, "recall": 1.0, "precision": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [], "probabilities": np.zeros((0, 3)), "names": ()}, "at least one example, got none"),
        ({"classes": ("x", "y", "x")}, "must differ from each other, got more than one 'x'"),
        ({"labels": LABELS[:, None]}, r"\(n,\) integers, got shape \(6, 1\)"),
        ({"labels": LABELS + 0.5}, "integers, got shape .* of float64"),
        ({"names": NAMES[:4]}, "got 4 names for 6 labels"),
        ({"classes": ("x", "y")}, r"shape \(6, 2\) for 6 labels and 2 classes, got shape \(6, 3\)"),
        ({"probabilities": PROBABILITIES[:5]}, r"got shape \(5, 3\)"),
        ({"probabilities": (PROBABILITIES > 0.5).astype(int)}, "must be floats"),
        ({"labels": LABELS + 1}, r"0 to 2 for 3 classes, got 3 for 'f' \(1 such"),
        ({"labels": LABELS - 1}, "got -1 for 'a'"),
        ({"probabilities": np.where(LABELS[:, None] == 2, np.nan, PROBABILITIES)}, "finite, got NaN .* 1 of 6 .*'f'"),
        ({"probabilities": PROBABILITIES * 3}, r"sum to 1 .* got \[2.4 0.3 0.3\] for 'a': take the softmax"),
        ({"probabilities": PROBABILITIES + [0.2, 0, -0.2]}, "must not be negative"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)
