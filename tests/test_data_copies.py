"""Copies: found by content, reported, left out on request, and never on both sides of a split."""

import numpy as np
import pytest

from datafiles import npy, picture, pictures, sound, xy
from ndvit import DataWarning, ViTClassifier, load_model
from ndvit.config import Recipe
from ndvit.data import checking
from ndvit.data.copies import content_digest, is_blank
from ndvit.data.examples import Examples, Recording
from ndvit.data.sources.load import load_source
from ndvit.data.splits import hold_out
from ndvit.inference.evaluate import past_reading
from ndvit.tasks import Classification
from ndvit.training.plan import hold_out_validation
from ndvit.training.settings import read_config
from tinyruns import run_tiny


def with_copies(shape=(10,)):
    """Training and test arrays: of four test examples, two are training examples, with their labels."""
    x, y = xy(12, shape)
    return x[:8], y[:8], np.concatenate([x[:2], x[8:10]]), np.concatenate([y[:2], y[8:10]])


def test_copies_across_splits_are_doubtful():
    doubt = (
        r"^2 of 4 test examples are exact copies of training examples, .*: X_test\[0\] = X_train\[0\], "
        r"X_test\[1\] = X_train\[1\]; .* --drop-copies \(drop_copies=True in Python\)$"
    )
    with pytest.warns(DataWarning, match=doubt):
        source = load_source(with_copies())
    assert (len(source.train), len(source.test)) == (8, 4)


def test_dropped_copies_leave_the_training_set():
    source = load_source(with_copies(), drop_copies=True)
    assert source.train.names == [f"X_train[{i}]" for i in range(2, 8)]
    assert len(source.test) == 4
    assert source.notes == (
        "2 of 8 train examples left out as copies: X_train[0]: is a copy of X_test[0], "
        "X_train[1]: is a copy of X_test[1]",
    )


def conflicting():
    """Nine arrays, of which the first and the fifth are equal and have different labels."""
    x, _ = xy(9)
    x[4] = x[0]
    return x, ["a", "b", "a", "b", "b", "a", "b", "a", "b"]


def test_equal_examples_with_different_labels_are_doubtful():
    doubt = r"^equal examples have different labels, 2 examples in all: X\[0\] as a and X\[4\] as b; correct the labels"
    with pytest.warns(DataWarning, match=doubt):
        load_source(conflicting())


def test_all_of_the_conflicting_copies_are_dropped():
    source = load_source(conflicting(), drop_copies=True, test_fraction=0)
    assert source.train.names == [f"X[{i}]" for i in (1, 2, 3, 5, 6, 7, 8)]
    assert (
        "2 of 9 train examples left out as copies: X[0]: has the content of an example with another" in source.notes[0]
    )


def test_copies_within_a_split_are_a_plain_note():
    x, y = xy(12)
    x[4:8:2] = x[0]
    source = load_source((x, y))
    assert source.decisions[0] == (
        "2 of 12 examples in the train set are exact copies of others in it: X[4] = X[0], X[6] = X[0]; a split at "
        "random keeps them on one side"
    )
    assert len(load_source((x, y), drop_copies=True, test_fraction=0).train) == 10


def test_a_class_of_copies_only_is_doubtful():
    x, y = xy(12)
    x[y == 1] = x[1]
    with pytest.warns(DataWarning, match="all examples of 1 in the train set are copies of one: a split at random has"):
        source = load_source((x, y))
    assert sorted(np.unique(source.test.targets)) == [0, 1]


def test_blank_examples_are_no_copies():
    x, y = xy(12)
    x[:6] = 0
    assert not any("cop" in note for note in load_source((x, y)).notes)
    assert is_blank(np.array([[1, 1], [2, np.nan]], dtype=np.float32))
    assert not is_blank(np.array([[1, 1], [2, 3]], dtype=np.float32))


def test_the_content_counts_and_not_the_file(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split, suffix=".png" if split == "train" else ".bmp")
    with pytest.warns(DataWarning, match=r"8 of 8 test examples .*: test/cat/0.bmp = train/cat/0.png, "):
        load_source(tmp_path)


def test_copies_of_recordings(tmp_path):
    for name, pitch in (("a", 400), ("b", 500)):
        for i in range(3):
            sound(tmp_path / name / f"{i}.wav", pitch=pitch + (10 * i if i < 2 else 0))
    notes = load_source(tmp_path).notes
    assert any(
        note.startswith("2 of 6 examples in the train set are exact copies of others in it: a/2.wav = a/0.wav")
        for note in notes
    )


def test_shape_and_rate_belong_to_the_content():
    values = np.arange(6, dtype=np.float32)
    raw = [
        values.reshape(2, 3),
        values.reshape(3, 2),
        Recording(values.reshape(2, 3), 8.0),
        Recording(values.reshape(2, 3), 9.0),
    ]
    assert len(set(map(content_digest, raw))) == 4


def test_of_very_many_files_only_equal_bytes_are_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", 3)
    for name in "ab":
        for i in range(3):
            npy(tmp_path / name / f"{i}.npy", np.arange(2000) + "ab".index(name) * 10 + (i if i < 2 else 0))
    npy(tmp_path / "a" / "3.npy", np.r_[5, 1:2000])  # has the size and the end of a/0.npy
    notes = load_source(tmp_path).notes
    assert "only files with equal bytes are found as copies" in notes[0]
    assert notes[1].startswith(
        "2 of 7 examples in the train set are exact copies of others in it: a/2.npy = a/0.npy, b/2"
    )


def test_the_held_out_set_has_no_copy_of_the_rest():
    random = np.random.default_rng(0)
    for seed in range(20):
        copies = random.integers(0, 30, 60)
        targets = copies % 3  # copies have equal labels
        kept, held = hold_out(Examples(range(60), targets, copies=copies), Classification("abc"), 0.2, seed)
        assert not set(copies[kept]) & set(copies[held])
        assert set(targets[held]) == set(targets[kept]) == {0, 1, 2}
        assert 6 <= len(held) <= 18


def test_without_copies_the_split_is_that_of_earlier_versions():
    targets = np.repeat([0, 1], 10)
    expected = hold_out(Examples(range(20), targets), Classification("ab"), 0.2, 5)
    random = np.random.default_rng(5)
    held = np.sort(np.concatenate([random.permutation(np.arange(first, first + 10))[:2] for first in (0, 10)]))
    assert expected[1].tolist() == held.tolist()
    numbered = hold_out(Examples(range(20), targets, copies=np.arange(20)), Classification("ab"), 0.2, 5)
    assert [part.tolist() for part in numbered] == [part.tolist() for part in expected]


def test_copies_with_different_labels_stay_on_one_side():
    copies, targets = np.array([0, 1, 2, 3, 0, 1, 2, 3, 8, 9]), np.array([0] * 4 + [1] * 4 + [0, 1])
    for seed in range(10):
        kept, held = hold_out(Examples(range(10), targets, copies=copies), Classification("ab"), 0.4, seed)
        assert not set(copies[kept]) & set(copies[held])


def test_test_and_validation_sets_have_no_copies_of_training_examples():
    x, y = xy(40)
    x[20:] = x[:20]
    data = hold_out_validation(load_source((x, y)), Recipe(val_fraction=0.3))
    train, val, test = (set(part.copies.tolist()) for part in (data.train, data.val, data.test))
    assert not train & val
    assert not train & test
    assert not val & test


def test_a_run_remembers_that_copies_were_dropped(tmp_path):
    pictures(tmp_path / "data", count=5)
    picture(tmp_path / "data" / "cat" / "copy.png", (0, 100, 200))
    run = run_tiny(tmp_path / "data", tmp_path / "run", steps=1, drop_copies=True)
    assert read_config(tmp_path / "run" / "config.yaml")["drop_copies"] is True
    model = load_model(run.folder)
    assert past_reading(model, tmp_path / "data", {}).options.drop_copies
    lines = []
    model.evaluate(tmp_path / "data", progress=False, log=lines.append)
    assert any("left out as copies" in line for line in lines)


def test_evaluation_reports_and_drops_copies(tmp_path):
    x, y = xy(8)
    model = run_tiny((x, y), tmp_path / "run", steps=1).model
    doubled = np.concatenate([x, x[:3]]), np.concatenate([y, y[:3]])
    lines = []
    assert len(model.evaluate(doubled, progress=False, log=lines.append).names) == 11
    assert any(line.startswith("3 of 11 examples in the train set are exact copies") for line in lines)
    assert len(model.evaluate(doubled, drop_copies=True, progress=False, log=lines.append).names) == 8


def test_the_estimator_warns_of_conflicting_labels():
    x, labels = conflicting()
    with pytest.warns(DataWarning, match="equal examples have different labels, 2 examples in all"):
        ViTClassifier("basic", model="vit_pico", steps=1).fit(x, labels)


def test_predictions_are_not_searched_for_copies(tmp_path):
    x, y = xy(8)
    model = run_tiny((x, y), tmp_path / "run", steps=1).model
    lines = []
    model.predict(np.concatenate([x, x]), progress=False, log=lines.append)
    assert not any("copies" in line for line in lines)
