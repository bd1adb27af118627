"""Sources that work: built-in sets, arrays, tables, splits, and examples to predict."""

import pickle
import socket
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafiles import arrays, npy, picture, pictures, sound, ts, xy
from ndvit import DataWarning, ViTClassifier
from ndvit.data.examples import Examples, Recording, Source
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources.archives import bundled
from ndvit.data.sources.finding import builtin_sources
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.tables import read_table
from ndvit.data.splits import hold_out
from ndvit.tasks import Classification
from tinyruns import command, run_tiny


def counts(examples):
    return np.bincount(examples.targets).tolist()


# Built in


NUMBERS = ("covid3month", "cardanosentiment")  # targets of a regression


def test_builtin_names():
    names = set(builtin_sources())
    assert {"digits", "gunpoint", "arrowhead", "italypowerdemand", "basicmotions", "osuleaf"} <= names
    assert {"japanesevowels", "acsf1"} <= names
    assert {*NUMBERS} <= names
    assert not {"japanesevowels_eq", "unittesttimestamps", "airline"} & names


@pytest.mark.parametrize("name", [name for name in builtin_sources() if name not in NUMBERS])
def test_every_builtin_set_loads_and_is_preprocessed(name):
    source = load_source(name)
    assert isinstance(source, Source)
    assert source.name == name
    assert source.classes == source.task.classes
    assert source.val is None
    assert source.notes
    preprocess = fit_preprocess(source)
    assert preprocess.kind == source.kind
    for examples in (source.train, source.test):
        assert set(examples.targets) == set(range(len(source.task.classes)))
        assert examples.targets.dtype == np.int64
        assert len(examples.names) == len(examples) == len(examples.targets)
        x, mask = preprocess.masked(examples[0])
        assert x.shape == (preprocess.channels, *preprocess.size)
        assert mask is None or mask.shape == preprocess.size


def test_digits():
    source = load_source("Digits")
    assert (source.kind, source.task.classes) == ("image", tuple("0123456789"))
    assert len(source.train) + len(source.test) == 1797
    assert {(image.size, image.mode) for image in source.train} == {((8, 8), "L")}
    levels = np.unique(np.stack([np.asarray(image) for image in source.train]))
    assert levels.tolist() == [round(level * 255 / 16) for level in range(17)]
    assert fit_preprocess(source).size == (8, 8)
    assert "no test set in the data: 20% held out for testing" in source.notes[0]


def test_gunpoint_is_the_archives_split():
    source = load_source("gunpoint")
    assert (len(source.train), len(source.test), source.task.classes) == (50, 150, ("1", "2"))
    assert source.train[0].shape == (1, 150)
    assert source.test.names[4] == "GunPoint_TEST.ts[4]"
    assert "GunPoint_TRAIN.ts to train" in source.notes[0]


def test_notes_on_unequal_lengths():
    source = load_source("japanesevowels")
    assert any("unequal lengths in the train set (7 to 26)" in note for note in source.notes)
    assert any("resampled down to fit: 1 test examples" in note for note in source.notes)
    preprocess = fit_preprocess(source)
    assert preprocess.size == (26,)
    assert [preprocess.fits(row) for row in source.test].count(False) == 1


@pytest.mark.parametrize("name", ["gunpoint", "basicmotions", "japanesevowels"])
def test_ts_agrees_with_aeon(name):
    from aeon.datasets import load_from_ts_file

    x, y = load_from_ts_file(str(bundled()[name]))
    part = read_table(bundled()[name]).parts["train"]
    assert len(x) == len(part.items)
    for one, other in zip(x, part.items):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert [label.lower() for label in part.targets] == y.tolist()  # aeon's labels are in lower case


def test_a_folder_named_like_a_builtin_set(tmp_path, monkeypatch):
    pictures(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert "write ./digits" in load_source("digits").notes[0]
    assert load_source("./digits").task.classes == ("cat", "dog")


# The archive


def fill(folder, name):
    ts(folder / name / f"{name}_TRAIN.ts")
    ts(folder / name / f"{name}_TEST.ts")
    ts(folder / name / f"{name}_eq_TRAIN.ts")


def test_ucr_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "socket", None)
    fill(tmp_path / "ucr", "Toy")
    source = load_source("ucr:toy")
    assert (source.name, source.task.classes, len(source.test)) == ("Toy", ("a", "b"), 4)


def test_ucr_is_fetched_once(tmp_path, monkeypatch):
    fetched = []

    def fetch(name, extract_path):
        fetched.append(name)
        fill(tmp_path / "ucr" / extract_path, name)

    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("aeon.datasets.load_classification", fetch)
    for _ in range(2):
        assert load_source("ucr:coffee").name == "Coffee"
    assert fetched == ["Coffee"]
    assert [path.name for path in (tmp_path / "ucr").iterdir()] == ["Coffee"]


def test_ucr_without_network(tmp_path, monkeypatch):
    def fail(name, extract_path):
        (tmp_path / "ucr" / extract_path / name).mkdir()
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("aeon.datasets.load_classification", fail)
    with pytest.raises(
        ValueError, match=r"ucr:Coffee could not be downloaded .*no route.*Check the network, or put Coffee_"
    ):
        load_source("ucr:Coffee")
    assert not list((tmp_path / "ucr").iterdir())


def test_ucr_replaces_an_incomplete_folder(tmp_path, monkeypatch):
    cache = tmp_path / "ucr"
    outside = ts(tmp_path / "mine" / "keep.ts").parent
    fill(cache, "Toy")
    ts(cache / "Coffee" / "Coffee_TRAIN.ts", lines=["1,2:a"])  # no _TEST beside it
    (cache / "Beef").symlink_to(outside)

    def fetch(name, extract_path):
        fill(cache / extract_path, name)

    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("aeon.datasets.load_classification", fetch)
    for name in ("Coffee", "Beef"):
        assert len(load_source(f"ucr:{name}").train) == 4
    assert sorted(path.name for path in cache.iterdir()) == ["Beef", "Coffee", "Toy"]
    assert (outside / "keep.ts").exists()


def test_ucr_keeps_an_incomplete_folder_if_nothing_better_comes(tmp_path, monkeypatch):
    kept = ts(tmp_path / "ucr" / "Coffee" / "Coffee_TRAIN.ts")
    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path))
    monkeypatch.setattr("aeon.datasets.load_classification", lambda name, extract_path: None)
    with pytest.raises(ValueError, match=r"the download has no Coffee_TRAIN.ts with Coffee_TEST.ts"):
        load_source("ucr:Coffee")
    assert kept.exists()


def test_ucr_of_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.setenv("NDVIT_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"ucr:Cofee: no such set.*Did you mean Coffee"):
        load_source("ucr:Cofee")


# Arrays


@pytest.mark.parametrize("shape", [(10,), (3, 10), (2, 6, 5), (1, 3, 4, 5)], ids=str)
def test_arrays_of_any_number_of_axes(shape):
    source = load_source(xy(10, shape))
    expected = (1, *shape) if len(shape) == 1 else shape
    assert (source.kind, source.name, source.task.classes) == ("signal", "arrays", ("0", "1"))
    assert source.train[0].shape == expected
    assert source.train[0].dtype == np.float32
    assert source.train.in_memory
    preprocess = fit_preprocess(source)
    assert preprocess(source.test[0]).shape == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((32, 32, 3), "32 channels of 32 x 3 values"),
        ((28, 28, 1), "28 channels of 28 x 1 values"),
        ((16, 16, 4), "16 channels of 16 x 4 values"),
        ((128, 9), "128 channels of 9 values"),
        ((30, 6), "30 channels of 6 values"),
        ((50, 8), "50 channels of 8 values"),
        ((8, 8, 3), "8 channels of 8 x 3 values"),
        ((64, 8, 4), None),
        ((9, 9, 9, 3), "9 channels of 9 x 9 x 3 values"),
        ((3, 32, 32), None),
        ((13, 8, 64), None),
        ((32, 32, 6), None),
        ((1, 28, 28), None),
        ((28, 1, 28), None),
        ((1, 1), None),
        ((1, 30), None),
        ((6, 4), None),
        ((2, 8), None),  # the sizes that follow are of UCR's and UEA's sets
        ((12, 7), None),
        ((200, 22), None),
        ((144, 62), None),
        ((963, 144), None),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::ndvit.DataWarning")
def test_notes_on_channels_that_may_be_last(tmp_path, shape, expected):
    x, y = xy(4, shape)
    notes = [f"examples of shape {shape} are read as {expected}: channels come first; if they are last, pass "] * bool(
        expected
    )
    assert list(load_source((x, y, x + 1, y)).notes) == [f"{note}np.moveaxis(X, -1, 1)" for note in notes]
    assert list(load_source((list(x), y, x + 1, y)).notes) == [f"{note}np.moveaxis(X, -1, 1)" for note in notes]
    for name in "ab":
        for i in range(2):
            at = 2 * "ab".index(name) + i
            npy(tmp_path / "train" / name / f"{i}.npy", x[at])
            npy(tmp_path / "test" / name / f"{i}.npy", x[at] + 1)
    if len(shape) > 1:
        assert list(load_source(tmp_path).notes) == [f"{note}np.moveaxis(x, -1, 0)" for note in notes]


def waves(n=8, shape=(24, 51)):
    """Noisy channels (n, channels, time) that are smooth in time, and labels."""
    random = np.random.default_rng(0)
    phase = random.uniform(0, 6, (n, shape[0], 1))
    return np.sin(np.arange(shape[1]) / 3 + phase) + random.normal(0, 0.1, (n, *shape)), np.arange(n) % 2


def test_values_that_are_smooth_across_channels_may_have_time_first():
    x, y = waves()
    assert load_source((x, y, x + 1, y)).notes == ()
    with pytest.warns(DataWarning, match=r"shape \(51, 24\) are read as 51 channels of 24 values: channels come first"):
        load_source((x.swapaxes(1, 2), y))


def test_short_series_that_are_smooth_in_time_have_their_channels_first():
    x, y = waves(shape=(30, 10))
    assert load_source((x, y, x + 1, y)).notes == ()


@pytest.mark.parametrize("shape", [(100, 1), (12, 1, 1)])
def test_columns_of_values_are_refused_on_every_door(tmp_path, shape):
    x, y = xy(4, shape)
    message = rf"shape \({shape[0]}, 1.*{shape[0]} channels of a single value, because channels come first.*X\[..., 0\]"
    for i in range(4):
        npy(tmp_path / "ab"[i % 2] / f"{i}.npy", x[i])
    for source in ((x, y), (list(x), y), tmp_path):
        with pytest.raises(ValueError, match=message):
            load_source(source, skip_bad=True)
    with pytest.raises(ValueError, match=message):
        ViTClassifier().fit(x, y)
    with pytest.raises(ValueError, match=message):
        load_examples(x)
    assert len(load_examples(x, in_channels=shape[0]).examples) == 4  # of a model that was trained so


def test_doubts_are_warnings_on_every_door(capsys, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(24, 100, 3)).astype("f4"), np.arange(24) % 2
    doubt = "read as 100 channels of 3 values"
    np.savez(tmp_path / "doubtful.npz", X=x, y=y)
    with pytest.warns(DataWarning, match=doubt) as seen:
        source = load_source((x, y))
    assert seen[0].filename == __file__
    assert any(doubt in note for note in source.notes)
    assert not any(doubt in note for note in source.decisions)
    with pytest.warns(DataWarning, match=doubt):
        run_tiny((x, y), tmp_path / "run", steps=1)
    with pytest.warns(DataWarning, match=doubt):
        ViTClassifier("basic", model="vit_pico", steps=1).fit(x, y)
    assert command("evaluate", tmp_path / "run", tmp_path / "doubtful.npz", "--no-progress") == 0
    assert f"warning: examples of shape (100, 3) are {doubt}" in capsys.readouterr().err


def test_notes_on_channels_that_may_be_last_of_unequal_lengths():
    rows = [np.zeros((n, 3)) for n in (20, 21, 20, 22)]
    message = r"X\[1\]: 21 channels and 1 axes, most have 20 and 1 \(shape \(21, 3\): channels come first\)"
    with pytest.raises(ValueError, match=message):
        load_source((rows, list("abab")))


def test_arrays_keep_their_split():
    x, y = xy()
    test = x[:3] + 1
    for data in ((x, y, test, y[:3]), {"X_train": x, "y_train": y, "X_test": test, "y_test": y[:3]}):
        source = load_source(data)
        assert (len(source.train), len(source.test), source.notes) == (8, 3, ())
        assert source.test.names[2] == "X_test[2]"


def test_lists_of_unequal_length():
    rows = [np.arange(3.0), [1, 2, 3, 4], np.arange(5)[None], (0, 1)]
    source = load_source((rows, list("abab"), rows, list("abab")))
    assert [row.shape for row in source.train] == [(1, 3), (1, 4), (1, 5), (1, 2)]
    assert fit_preprocess(source).size == (5,)


def test_lists_of_pictures():
    pictures = [Image.fromarray(np.arange(24, dtype=np.uint8).reshape(3, 4, 2) + i, "LA") for i in range(4)]
    source = load_source((pictures, list("abab")))
    assert (source.kind, source.train[0].mode, fit_preprocess(source).size) == ("image", "L", (3, 4))


def test_notes_on_missing_values():
    x, y = xy()
    x[1, 2] = np.nan
    notes = load_source((x, y, x + 1, y)).notes
    assert "missing values in 1 of 8 train examples" in notes[0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 2, 10], ("2", "9", "10")),
        ([1.0, 2.0, 1.0, 2.0], ("1", "2")),
        (np.array([-1, 1, -1, 1], np.int8), ("-1", "1")),
        (np.array(["b", "a", "10", "9"]), ("10", "9", "a", "b")),
        (np.array([b"x", b"y", b"x", b"y"]), ("x", "y")),
        (["1.0", "2.0", "10.0", "1.0"], ("1", "2", "10")),
        (np.array(["x", "y", "x", "y"], dtype=object), ("x", "y")),
        ([b" x", b"y\n", "x", b"y"], ("x", "y")),
        (["a\nb", "\x1b[31m", "a\nb", "\u202e"], ("\\u202e", "\\x1b[31m", "a\\nb")),
        (["犬 \u3000é", "🐕‍🦺", "犬 \u3000é", "🐕‍🦺"], ("犬 \u3000é", "🐕‍🦺")),
        ([True, False, True, False], ("False", "True")),
        (["01", "1", "02", "1"], ("01", "1", "02")),
        (["1.10", "1.1", "1.10", "1.1"], ("1.1", "1.10")),
    ],
    ids=[
        "ints",
        "floats",
        "int8",
        "text",
        "bytes",
        "text of numbers",
        "objects",
        "bytes with spaces",
        "control characters",
        "other scripts",
        "bools",
        "leading zeros",
        "versions",
    ],
)
def test_classes(labels, classes):
    x, _ = xy(4)
    source = load_source((x, labels, x, labels))
    assert source.task.classes == classes


# Splits


def test_split_is_stratified_seeded_and_complete():
    x, _ = xy(100)
    y = [0] * 80 + [1] * 15 + [2] * 3 + [3] * 2
    source = load_source((x, y), test_fraction=0.2, seed=3)
    assert counts(source.test) == [16, 3, 1, 1]
    assert counts(source.train) == [64, 12, 2, 1]
    assert sorted([*source.train.names, *source.test.names]) == sorted(f"X[{i}]" for i in range(100))
    assert load_source((x, y), seed=3).test.names == source.test.names
    assert load_source((x, y), seed=4).test.names != source.test.names
    assert "20% held out for testing (21 examples), stratified, seed 3" in source.notes[0]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_leaves_something_on_both_sides(fraction):
    source = load_source(xy(6), test_fraction=fraction)
    assert min(counts(source.train) + counts(source.test)) == 1


def test_hold_out():
    targets = np.array([0, 1, 0, 1, 0, 0, 2, 2])
    examples, task = Examples(list(range(8)), targets), Classification("abc")
    keep, held = hold_out(examples, task, 0.25, 0)
    assert sorted([*keep, *held]) == list(range(8))
    assert sorted(targets[held]) == [0, 1, 2]
    single = examples.subset(range(7))
    with pytest.raises(ValueError, match="the data: class c has a single example"):
        hold_out(single, task, 0.25, 0)
    keep, held = hold_out(single, task, 0.25, 0, both_sides=False)
    assert 6 in keep
    assert len(held) == 2


class Mean(Classification):
    """A task without strata, whose targets are numbers."""

    name = "mean"

    @classmethod
    def from_targets(cls, targets, where, *, to_train=True):
        return cls([where])

    def encode(self, targets):
        return np.array(targets, dtype=np.float32)

    def strata(self, targets):
        return None


@pytest.mark.parametrize("task", ["mean", Mean])
def test_a_task_without_strata(task):
    x, _ = xy(20)
    source = load_source((x, np.arange(20) / 8), task=task, test_fraction=0.25)
    assert isinstance(source.task, Mean)
    assert (len(source.train), len(source.test)) == (15, 5)
    assert sorted([*source.train.targets, *source.test.targets]) == (np.arange(20) / 8).tolist()
    assert source.train.targets.dtype == np.float32
    x[3, 0] = np.inf
    assert len(load_source((x, np.arange(20) / 8), task=task, skip_bad=True).train) == 15


def test_an_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'sorting': there are classification"):
        load_source(xy(), task="sorting")


# Tables


def test_ts_keeps_case_missing_values_channels_and_lengths(tmp_path):
    lines = ["1,?,3:4,5,NaN:baNana", "1.5,2:7,8:Cat", "-1e2,2,3,4:5,6:Cat", "", "1:2:baNana"]
    head = "# Latin: \xe9\n@problemName x\n@classLabel true baNana Cat\n@data\n"
    path = tmp_path / "x.ts"
    path.write_bytes((head + "\n".join(lines)).encode("latin-1"))
    part = read_table(path).parts["train"]
    assert part.targets == ["baNana", "Cat", "Cat", "baNana"]
    np.testing.assert_array_equal(part.items[0], np.array([[1, np.nan, 3], [4, 5, np.nan]], np.float32))
    assert [item.shape for item in part.items] == [(2, 3), (2, 2), (2, 4), (2, 1)]
    np.testing.assert_array_equal(part.items[2][1], np.array([5, 6, np.nan, np.nan], np.float32))
    source = load_source(path)
    assert source.task.classes == ("Cat", "baNana")


def test_ts_comments_may_stand_between_the_data(tmp_path):
    path = ts(tmp_path / "x.ts", ["# first", "1,2:a", "% second: 3", "3,4:b"])
    part = read_table(path).parts["train"]
    assert (part.targets, part.names) == (["a", "b"], ["x.ts[0]", "x.ts[1]"])


@pytest.mark.parametrize("give", ["folder", "file"])
@pytest.mark.parametrize("ending", [".ts", ".tsv"])
def test_archive_files(tmp_path, give, ending):
    for split in ("TRAIN", "TEST"):
        if ending == ".ts":
            ts(tmp_path / f"Toy_{split}.ts")
        else:
            (tmp_path / f"Toy_{split}.tsv").write_text("2\t1\tNaN\t3\n1.0000000e+00\t4\t5\t6\n10\t1\t1\t1\n")
    source = load_source(tmp_path if give == "folder" else tmp_path / f"Toy_TRAIN{ending}")
    assert source.name == "Toy"
    assert source.task.classes == (("a", "b") if ending == ".ts" else ("1", "2", "10"))
    assert source.test.names[1] == f"Toy_TEST{ending}[1]"
    assert "the archive's own split" in source.notes[0]


def test_npz(tmp_path):
    x, y = xy()
    np.savez(tmp_path / "one.npz", X=x, y=y)
    assert "no test set in the data" in load_source(tmp_path / "one.npz").notes[0]
    np.savez_compressed(tmp_path / "two.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    source = load_source(str(tmp_path / "two.npz"))
    assert (len(source.train), len(source.test), source.name) == (8, 3, "two")


@pytest.mark.parametrize("labels", ["y.npy", "X_labels.npy", "X_labels.txt"])
def test_npy_with_labels_beside(tmp_path, labels):
    x, y = xy()
    npy(tmp_path / "X.npy", x)
    if labels.endswith(".npy"):
        npy(tmp_path / labels, y)
    else:
        (tmp_path / labels).write_text("\n".join(map(str, y)) + "\n")
    source = load_source(tmp_path / "X.npy")
    assert source.task.classes == ("0", "1")
    assert len(source.train) + len(source.test) == 8


def test_npy_with_a_test_file_beside(tmp_path):
    x, y = xy()
    for split in ("train", "test"):
        npy(tmp_path / f"X_{split}.npy", x)
        npy(tmp_path / f"y_{split}.npy", y)
    assert "X_test.npy to test" in load_source(tmp_path / "X_train.npy").notes[0]


@pytest.mark.parametrize("split", ["toy", "TRAIN"])
def test_npz_files_with_a_test_file_beside(tmp_path, split):
    """Each may name its arrays after its split."""
    x, y = xy()
    train, test = ("X_train", "X_test") if split == "TRAIN" else ("X", "X")
    np.savez(tmp_path / "toy_train.npz", **{train: x, train.replace("X", "y"): y})
    np.savez(tmp_path / "toy_test.npz", **{test: x[:3], test.replace("X", "y"): y[:3]})
    source = load_source(tmp_path / "toy_train.npz")
    assert (len(source.train), len(source.test)) == (8, 3)
    assert "toy_test.npz to test" in source.notes[0]
    np.savez(tmp_path / "toy_train.npz", X_train=x, y_train=y, X_test=x[:4], y_test=y[:4])
    source = load_source(tmp_path / "toy_train.npz")
    assert (len(source.train), len(source.test)) == (8, 4)
    assert source.notes[0] == "the split in toy_train.npz, and not toy_test.npz"


@pytest.mark.parametrize("val", ["X_val", "x_valid", "X_Validation", "X_dev"])
@pytest.mark.parametrize("train", ["X", "X_train"])
def test_an_npz_may_call_its_splits_as_folders_do(tmp_path, val, train):
    x, y = xy()
    named = {train: x, train.replace("X", "y"): y, val: x[:2], "y" + val[1:]: y[:2]}
    np.savez(tmp_path / "a.npz", **named)
    source = load_source(tmp_path / "a.npz")
    assert (len(source.train), len(source.test)) == (8, 2)
    assert "no test set in the data: the validation set is the test set" in source.notes
    np.savez(tmp_path / "a.npz", **named, X_testing=x[:3], y_testing=y[:3])
    source = load_source(tmp_path / "a.npz")
    assert (len(source.train), len(source.val), len(source.test)) == (8, 2, 3)
    np.savez(tmp_path / "a.npz", X_train=x, y_train=y, X_val=x, X_valid=x)
    with pytest.raises(ValueError, match="several arrays that could be X_val, such as X_valid; keep one"):
        load_source(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", X=x, x=x[:2], y=y)
    with pytest.raises(ValueError, match="has two arrays called x, in upper and in lower case"):
        load_source(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", X=x, y=y, X_train=x, X_test=x[:4], y_test=y[:4])
    with pytest.raises(ValueError, match="both X and X_train"):
        load_source(tmp_path / "a.npz")


# Examples to predict


def test_pictures_in_memory_are_copied():
    buffer = Image.new("RGB", (4, 4))
    found = load_examples([buffer]).examples
    buffer.paste((9, 9, 9), (0, 0, 4, 4))
    assert np.asarray(found[0]).max() == 0


def test_predict_one_file(tmp_path):
    kind, _, examples, _ = load_examples(picture(tmp_path / "a.JPG"))
    assert (kind, len(examples), examples.names, examples.targets) == ("image", 1, [f"{tmp_path}/a.JPG"], None)
    kind, _, examples, _ = load_examples(sound(tmp_path / "a.wav"))
    assert kind == "signal"
    assert isinstance(examples[0], Recording)
    kind, _, examples, _ = load_examples(npy(tmp_path / "a.npy", np.zeros((2, 7))))
    assert (kind, examples[0].shape) == ("signal", (2, 7))


def test_predict_a_flat_folder(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "more").mkdir()
    kind, _, examples, notes = load_examples(tmp_path)
    assert (kind, examples.names) == ("image", [f"{tmp_path}/{i}.png" for i in range(3)])
    assert "notes.txt" in " ".join(notes)
    assert "more" in " ".join(notes)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 4 examples cannot be used: .*/3.png: is empty"):
        load_examples(tmp_path)
    assert len(load_examples(tmp_path, skip_bad=True).examples) == 3


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a/0.wav", ["a/0.wav"]),
        ("./b/0.wav", ["./b/0.wav"]),
        ("0.wav", ["0.wav"]),
        (Path("a"), ["a/0.wav"]),
        ("b/", ["b/0.wav"]),
        ("~/a/0.wav", ["~/a/0.wav"]),
        ("a/x.ts", ["a/x.ts[0]", "a/x.ts[1]"]),
        ("a/x.npz", ["a/x.npz:X_test[0]", "a/x.npz:X_test[1]"]),
    ],
    ids=str,
)
def test_names_of_predicted_examples_begin_with_the_path(tmp_path, monkeypatch, path, names):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("", "a", "b"):
        sound(tmp_path / folder / "0.wav")
    ts(tmp_path / "a" / "x.ts", ["1,2:a", "3,4:b"])
    np.savez(tmp_path / "a" / "x.npz", X_test=np.zeros((2, 5)))
    assert load_examples(path).examples.names == names


def test_predict_a_table(tmp_path):
    path = ts(tmp_path / "x_TEST.ts")
    ts(tmp_path / "x_TRAIN.ts")
    kind, dims, examples, notes = load_examples(path)
    assert (kind, dims, len(examples), examples.targets, notes) == ("signal", 1, 4, None, ())
    path = ts(tmp_path / "x.ts", ["1,2", "3,4"], head="@classLabel false\n@data\n")
    assert load_examples(path).examples[1].tolist() == [[3, 4]]


def test_predict_an_npz(tmp_path):
    x, y = xy()
    np.savez(tmp_path / "a.npz", X_train=x, y_train=y, X_test=x[:3], y_test=y[:3])
    _, _, examples, notes = load_examples(tmp_path / "a.npz")
    assert (len(examples), examples.targets) == (3, None)
    assert "the test set is used" in notes[0]
    np.savez(tmp_path / "b.npz", X=x)
    assert len(load_examples(tmp_path / "b.npz").examples) == 8


# Examples


@pytest.mark.parametrize("make", [pictures, arrays], ids=["images", "arrays"])
def test_examples_pickle_and_stay_small(tmp_path, make):
    source = load_source(make(tmp_path))
    assert not source.train.in_memory
    data = pickle.dumps(source.train)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert len(again) == len(source.train)
    np.testing.assert_array_equal(np.asarray(again[0]), np.asarray(source.train[0]))


def test_subset():
    examples = Examples([np.full((1, 2), i) for i in range(4)], [0, 1, 0, 1], list("abcd"))
    chosen = examples.subset(np.array([3, 0]))
    assert (chosen.names, chosen.targets.tolist(), [int(row[0, 0]) for row in chosen]) == (["d", "a"], [1, 0], [3, 0])
    assert Examples([np.zeros((1, 2))]).subset([0]).targets is None
    assert Examples([1, 2]).names == ["[0]", "[1]"]
