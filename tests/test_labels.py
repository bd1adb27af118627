"""Labels: missing ones, numbers that look continuous, and the option that takes labels literally."""

import numpy as np
import pandas as pd
import pytest
import torch

from datafiles import arrays, npy, ts, xy
from ndvit import DataWarning, ViTClassifier, load_model
from ndvit.data.sources.load import load_source
from ndvit.tasks import Classification
from ndvit.training.plan import Request, plan
from tinyruns import command, run_tiny

X, Y = xy(12)
WORDS = ["NA", "N/A", "null", "NULL", "None", "<NA>", "nan", "NaN", "NaT", "?", "n/a"]
GAPS = [None, np.nan, pd.NA, pd.NaT, "", " ", np.datetime64("NaT"), *WORDS]


def gap(value):
    return ["a", "b", value, *"babababab"]


@pytest.mark.parametrize("value", GAPS, ids=repr)
def test_missing_labels_are_refused_on_every_door(value):
    for y in (gap(value), np.array(gap(value), dtype=object), pd.Series(gap(value), dtype=object)):
        with pytest.raises(ValueError, match=r"arrays: 1 labels are missing in the train set: X\[2\]"):
            load_source((X, y))
        with pytest.raises(ValueError, match=r"1 labels are missing in y: y\[2\]"):
            ViTClassifier().fit(X, y)
        source = load_source((X, y), skip_bad=True)
        assert source.notes[0] == "1 of 12 train examples left out without a label: X[2]"
        assert source.classes == ("a", "b")


CONTAINERS = {
    "text": pd.Series(gap(None), dtype="string"),
    "categories": pd.Series(gap(None), dtype="category"),
    "numbers": pd.Series([0, 1, None, *Y[3:]], dtype="Int64"),
    "masked array": np.ma.array(Y, mask=np.arange(12) == 2),
    "frame": pd.DataFrame({"kind": gap(None)}),
    "tensor": torch.tensor([0, 1, torch.nan, *Y[3:]]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_missing_labels_in_every_container(name):
    with pytest.raises(ValueError, match=r"1 labels are missing in the train set: X\[2\]"):
        load_source((X, CONTAINERS[name]))
    with pytest.raises(ValueError, match=r"1 labels are missing in y: y\[2\]"):
        ViTClassifier().fit(X, CONTAINERS[name])


COMPLETE = {
    "text": pd.Series(["0", "1"] * 6, dtype="string"),
    "categories": pd.Categorical(Y),
    "numbers": pd.Series(Y, dtype="Int64"),
    "masked array": np.ma.array(Y),
    "frame": pd.DataFrame({"kind": Y}),
    "tensor": torch.tensor(Y),
    "column": Y[:, None],
}


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
def test_labels_in_every_container(name, monkeypatch):
    source = load_source((X, COMPLETE[name]), test_fraction=0)
    assert (source.classes, source.train.targets.tolist()) == (("0", "1"), Y.tolist())
    monkeypatch.setattr(Classification, "doubts", lambda targets: 1 / 0)  # the checks of the labels have passed
    with pytest.raises(ZeroDivisionError):
        ViTClassifier().fit(X, COMPLETE[name])


def test_labels_in_several_columns_or_times_are_refused():
    with pytest.raises(
        ValueError, match=r"targets have 2 columns \(a, b\); .* expects one class .* y\[NAME\] .*multilabel.*regression"
    ):
        load_source((X, pd.DataFrame({"a": Y, "b": Y})))
    with pytest.raises(ValueError, match=r"y has times \(datetime64.*expected classes"):
        load_source((X, np.array(["2024"] * 12, dtype="M8[s]")))


def written(kind, folder, labels):
    """A source of 12 examples with these labels."""
    if kind == "csv":
        arrays(folder, count=6)
        names = [f"{name}/{i}.npy" for i in range(6) for name in "ab"]
        (folder / "x.csv").write_text("path,label\n" + "\n".join(map(",".join, zip(names, labels))) + "\n")
        return folder / "x.csv"
    if kind == "ts":
        return ts(folder / "x.ts", [f"1,2,{i}:{label}" for i, label in enumerate(labels)])
    if kind == "tsv":
        (folder / "x.tsv").write_text("".join(f"{label}\t1\t2\t{i}\n" for i, label in enumerate(labels)))
        return folder / "x.tsv"
    if kind == "npz":
        np.savez(folder / "x.npz", X=X, y=np.array(labels))
        return folder / "x.npz"
    npy(folder / "X.npy", X)
    if kind == "npy":
        npy(folder / "y.npy", np.array(labels))
    else:
        (folder / "y.txt").write_text("\n".join(labels) + "\n")
    return folder / "X.npy"


KINDS = ["csv", "ts", "tsv", "npz", "npy", "txt"]


@pytest.mark.parametrize("kind", KINDS)
def test_words_for_missing_labels_in_files(tmp_path, kind):
    source = written(kind, tmp_path, [*"ab", "NA", *"babababa", "null"])
    message = r"2 labels are missing in the train set: .* \(NA, null\)\. .*--skip-bad.*--literal-labels"
    with pytest.raises(ValueError, match=message):
        load_source(source)
    kept = load_source(source, skip_bad=True, test_fraction=0)
    assert (len(kept.train), kept.classes) == (10, ("a", "b"))
    assert kept.notes[0].startswith("2 of 12 train examples left out without a label: ")


@pytest.mark.filterwarnings("ignore:the tags of x.ts")
@pytest.mark.parametrize("kind", KINDS)
def test_labels_taken_literally(tmp_path, kind):
    source = written(kind, tmp_path, ["NA", "None"] * 6)
    assert load_source(source, literal_labels=True).classes == ("NA", "None")


@pytest.mark.filterwarnings("ignore:the tags of x.ts")
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_with_fractions_are_not_classes(tmp_path, kind):
    source = written(kind, tmp_path, ["0.5", "1.0", "1.5", "2.0"] * 3)
    message = r"look continuous, with 4 different numbers such as 0.5, 1.5; .* set --task regression"
    with pytest.raises(ValueError, match=message):
        load_source(source)
    assert load_source(source, literal_labels=True).classes in (("0.5", "1", "1.5", "2"), ("0.5", "1.5", "1", "2"))


CONTINUOUS = {
    "floats": np.random.default_rng(0).normal(size=12),
    "halves": np.arange(12) % 4 / 2,
    "float32": (np.arange(12) / 8).astype(np.float32),
    "series": pd.Series(np.arange(12) / 8),
    "infinite": [np.inf, 0.0] * 6,
    "text": [f"{i / 8}" for i in range(12)],
    "tensor": torch.arange(12) / 8,
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_targets_are_refused_on_every_door(name):
    y = CONTINUOUS[name]
    for use in (lambda: load_source((X, y)), lambda: load_source((X, y, X, y)), lambda: ViTClassifier().fit(X, y)):
        with pytest.raises(ValueError, match=r"continuous.*task='regression'.*ViTRegressor.*literal_labels=True"):
            use()


@pytest.mark.parametrize("labels", [["1.1", "1.10"], ["1.5", "1.5.1"], ["2.0", "3.0"], ["1.5", "beta"]], ids=str)
def test_names_with_dots_are_classes(labels):
    assert len(load_source((X, labels * 6)).classes) == 2


def test_names_of_folders_are_literal(tmp_path):
    assert load_source(arrays(tmp_path, ("NA", "1.5", "nan"))).classes == ("1.5", "NA", "nan")


def test_many_different_whole_numbers_are_doubtful():
    x, _ = xy(40)
    doubt = "whole numbers with 20 different values in 40 examples, and each value is a class.*continuous.*regression"
    with pytest.warns(DataWarning, match=doubt):
        load_source((x, np.arange(40) // 2))
    with pytest.warns(DataWarning, match=doubt), pytest.raises(ValueError, match="steps"):
        ViTClassifier(steps=0).fit(x, np.arange(40) // 2)
    assert load_source((x, np.arange(40) % 9), test_fraction=0).notes == ()
    assert load_source((x, [f"person {i // 2}" for i in range(40)]), test_fraction=0).notes == ()


def test_the_run_and_its_model_remember_literal_labels(tmp_path):
    source = written("npz", tmp_path, ["NA", "ok"] * 6)
    assert command("train", source, "--output", tmp_path / "no", "--no-progress") == 2
    run = run_tiny(str(source), tmp_path / "run", steps=1, literal_labels=True)
    assert "literal_labels: true" in (tmp_path / "run" / "config.yaml").read_text()
    model = load_model(tmp_path / "run")
    assert model.classes == run.model.classes == ("NA", "ok")
    quiet = {"progress": False, "log": lambda line: None}
    assert len(model.evaluate(str(source), split="all", **quiet)) == 12
    with pytest.raises(ValueError, match="6 labels are missing"):
        model.evaluate(str(source), literal_labels=False, **quiet)
    assert model.embed(str(source), **quiet).classes == ("NA", "ok")


def test_the_estimator_takes_labels_literally():
    y = np.array([0.5, 1.5] * 6)
    classifier = ViTClassifier(
        model="vit_pico", steps=1, literal_labels=True, options={"embed_dim": 16, "depth": 1, "num_heads": 2}
    ).fit(X, y)
    assert (classifier.classes_.tolist(), classifier.model_.classes) == ([0.5, 1.5], ("0.5", "1.5"))


def test_every_class_is_counted_before_training():
    x, y = xy(30, classes=3)
    planned = plan(Request(source=(x, y, x[:4], y[:4]), model="vit_pico", options={"embed_dim": 16, "depth": 1}))
    assert "3 classes, examples in train + test: 0 (10 + 2), 1 (10 + 1), 2 (10 + 1)" in planned.lines()


def test_many_classes_are_counted_in_short():
    counts = Classification([f"c{i}" for i in range(30)]).brief({"train": np.repeat(np.arange(30), np.arange(1, 31))})
    assert counts.startswith("30 classes, examples in train: c0 (1), c1 (2), ")
    assert counts.endswith("c19 (20) and 10 more of 21 to 30 examples each")
