"""Bad input: each case makes data and lists regular expressions that the message must match."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from datafiles import TS_HEAD, arrays, cut, npy, picture, pictures, sound, ts, xy
from ndvit.data.sources import files
from ndvit.data.sources.load import load_examples, load_source

X, Y = xy()
NAN = np.nan


def changed(index, value):
    """X with one value changed."""
    x = X.copy()
    x[index] = value
    return x


ARRAYS = {
    "unknown name": (
        "gunpiont",
        "no such file or folder, and no built-in source. Did you mean gunpoint",
        "Built in: digits",
    ),
    "missing path": ("no/such/folder", "no/such/folder: no such file or folder", "ucr:NAME"),
    "number": (7, "a source is a name, a path"),
    "list": ([X, Y], "a source is a name, a path"),
    "three arrays": ((X, Y, X), "arrays must be X, y or X_train", "got 3 arrays"),
    "wrong keys": ({"X": X, "labels": Y}, "got keys X, labels"),
    "unequal numbers": ((X, Y[:5]), "8 examples but 5 targets; every example needs one"),
    "no examples": ((X[:0], Y[:0]), "the train set has no examples"),
    "empty test set": ((X, Y, X[:0], Y[:0]), "the test set has no examples"),
    "one row": ((X[0], Y), r"X has shape \(10,\); expected \(n, time\)"),
    "single numbers": (([1, 2, 3], [0, 1, 0]), r"X\[0\] is a single number"),
    "text": ((X.astype(str), Y), "X has text"),
    "text in a list": (([["a", "b"]], [0]), r"X\[0\] has text"),
    "objects": ((np.full((8, 10), object()), Y), r"X\[0, 0\] has Python objects"),
    "complex": ((X.astype(complex), Y), "X has complex numbers", "complex128", "two channels"),
    "ragged example": (([[[1, 2], [3]]], [0]), r"X\[0\] has rows of different length"),
    "infinite": ((changed((3, 2), np.inf), Y), r"X\[3\]: has infinite values", "missing", "--skip-bad"),
    "overflowing float32": ((X.astype(np.float64) * 1e300, Y), "has infinite values"),
    "nothing observed": ((changed(5, NAN), Y), r"X\[5\]: nothing is observed"),
    "no time steps": ((X[:, :0], Y), r"X\[0\]: is empty \(shape \(1, 0\)\)"),
    "channels differ": (
        ([np.zeros((2, 5))] * 3 + [np.zeros((3, 5))], list("abab")),
        r"X\[3\]: 3 channels and 1 axes, most have 2 and 1",
    ),
    "axes differ": (
        ([np.zeros((2, 5))] * 3 + [np.zeros((2, 5, 5))], list("abab")),
        "2 channels and 2 axes, most have 2 and 1",
    ),
    "test of other channels": ((X, Y, np.zeros((2, 3, 10)), [0, 1]), r"X_test\[0\]: 3 channels"),
    "pictures and arrays": (([Image.new("L", (3, 3)), X[0]], "ab"), "X mixes pictures and arrays; pass a list of PIL"),
    "labels None": ((X, None), "the train set has no labels"),
    "a label None": ((X, [None, *Y[1:]]), r"1 labels are missing in the train set: X\[0\]"),
    "labels NaN": ((X, [*map(float, Y[:6]), NAN, NAN]), r"2 labels are missing in the train set: X\[6\], X\[7\]"),
    "labels ?": ((X, ["?", "", *"ababab"]), "2 labels are missing"),
    "test label missing": ((X, Y, X[:2], [0, None]), "1 labels are missing in the test set"),
    "labels in columns": (
        (X, np.eye(8)),
        r"the targets have 8 columns; classification expects one class for each example",
    ),
    "labels in one text": ((X, "abababab"), "expected one target for each example"),
    "labels of other bytes": ((X, [b"caf\xe9", *"abababa"]), r"y has bytes that are not UTF-8, b'caf\\xe9'; pass"),
    "one class": ((X, np.zeros(8)), r"one class only \(0\); at least two"),
    "single example": (
        (X, [0] * 7 + [1]),
        "class 1 has a single example",
        "add examples, remove this one, or provide the held-out set yourself",
    ),
    "class only in test": ((X, Y, X[:3], [0, 1, 2]), "classes 2 are in the test set but not in the training set"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    source, *messages = ARRAYS[name]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_source(source)
    for message in messages:
        caught.match(message)


@pytest.mark.parametrize("fraction", [1, -0.5, 20])
def test_fraction(fraction):
    with pytest.raises(ValueError, match=f"test_fraction must be a number of at least 0 and below 1, got {fraction}"):
        load_source((X, Y), test_fraction=fraction)


# Files: each case writes into a folder and returns what to load.


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def npz(path, **values):
    np.savez(path, **values)
    return path


def with_bad(tmp_path, name, make, folder=pictures):
    """A folder of classes whose file cat/name (a/name for arrays) is made by `make`."""
    root = folder(tmp_path)
    (root / "cat" if folder is pictures else root / "a").mkdir(exist_ok=True)
    make((root / "cat" if folder is pictures else root / "a") / name)
    return root


def sounds(root, classes=("cat", "dog")):
    for name in classes:
        for i in range(3):
            sound(root / name / f"{i}.wav")
    return root


def with_sound(tmp_path, name, make):
    make(sounds(tmp_path) / "cat" / name)
    return tmp_path


def two_sets(tmp_path):
    for name in ("A", "B"):
        ts(tmp_path / f"{name}_TRAIN.ts")
        ts(tmp_path / f"{name}_TEST.ts")
    return tmp_path


def beside(tmp_path, name, content):
    npy(tmp_path / "X.npy", X)
    written(tmp_path / name, content)
    return tmp_path / "X.npy"


class Evil:
    """Unpickling it would end the tests."""

    def __reduce__(self):
        return os._exit, (1,)


EVIL = np.array([Evil()], dtype=object)

FILES = {
    "file of unknown type": (lambda p: written(p / "a.xls", "x"), "unknown type of file '.xls'", ".npz", ".jpg"),
    "file without ending": (lambda p: written(p / "data", "x"), "unknown type of file ''"),
    "one picture": (lambda p: picture(p / "a.png"), "a.png: is a single example", "one folder for each class"),
    "one sound": (lambda p: sound(p / "a.wav"), "a.wav: is a single example"),
    "empty folder": (lambda p: p, "found nothing; expected one folder for each class"),
    "files without class folders": (
        lambda p: picture(p / "a.png").parent,
        "found 1 file but no class folders",
        "one folder for each class",
    ),
    "empty class folder": (
        lambda p: [pictures(p), (p / "bird").mkdir()] and p,
        "bird: class folder without examples",
        ".jpg",
    ),
    "class folder of other files": (
        lambda p: [pictures(p), written(p / "bird" / "a.txt", "x")] and p,
        "bird: class folder without examples",
        "bird/a.txt",
    ),
    "one class folder": (lambda p: pictures(p, classes=["cat"]), r"one class only \(cat\)"),
    "class folder of one": (lambda p: picture(pictures(p) / "bird" / "0.png") and p, "class bird has a single example"),
    "pictures and sounds": (
        lambda p: sound(pictures(p) / "cat" / "a.wav") and p,
        "8 images and 1 sound files|1 sound files and 8",
    ),
    "pictures and arrays": (lambda p: npy(pictures(p) / "cat" / "a.npy", X) and p, "npy files", "one kind"),
    "test without train": (lambda p: pictures(p / "test").parent, "has test but no training set"),
    "links in a circle": (
        lambda p: with_bad(p, "x.png", lambda f: f.symlink_to(f)),
        r"cat/x.png: cannot be read \(.*symbolic links",
    ),
    "val and valid": (
        lambda p: [pictures(p / split) for split in ("train", "val", "valid")] and p,
        "both val/ and valid/ could be the val set",
    ),
    "test folder of files": (
        lambda p: [pictures(p / "train"), picture(p / "test" / "a.png")] and p,
        "test: found 1 file but no class folders",
    ),
    "new class in test": (
        lambda p: [pictures(p / "train"), pictures(p / "test", classes=("cat", "cow"))] and p,
        "classes cow are in the test set but not in the training set",
    ),
    "empty picture": (lambda p: with_bad(p, "x.png", lambda f: written(f, "")), r"cat/x.png: is empty \(0 bytes\)"),
    "text as picture": (lambda p: with_bad(p, "x.png", lambda f: written(f, "hello")), "cat/x.png: is not a picture"),
    "truncated jpeg": (
        lambda p: with_bad(p, "x.jpg", lambda f: cut(picture(f, size=(99, 99)), 0.9)),
        "cat/x.jpg: .*truncated",
    ),
    "truncated png": (
        lambda p: with_bad(p, "x.png", lambda f: cut(picture(f, size=(99, 99)))),
        "cat/x.png: .*truncated",
    ),
    "float picture": (
        lambda p: with_bad(p, "x.tif", lambda f: Image.new("F", (3, 3)).save(f)),
        "cat/x.tif: is a raster of 1 band, most are a picture in grey or colour",
    ),
    "broken link": (
        lambda p: with_bad(p, "x.png", lambda f: f.symlink_to(p / "gone.png")),
        "cat/x.png: does not exist",
    ),
    "empty sound file": (lambda p: with_sound(p, "x.wav", lambda f: written(f, "")), "cat/x.wav: is empty"),
    "sound without samples": (lambda p: with_sound(p, "x.wav", lambda f: sound(f, frames=0)), "cat/x.wav: is empty"),
    "text as sound": (
        lambda p: with_sound(p, "x.wav", lambda f: written(f, "hello")),
        "cat/x.wav: is not a sound file",
    ),
    "truncated wav": (lambda p: with_sound(p, "x.wav", lambda f: cut(sound(f))), "cat/x.wav: sound file is cut off"),
    "truncated flac": (lambda p: with_sound(p, "x.flac", lambda f: cut(sound(f, frames=9999))), "cat/x.flac: "),
    "infinite sound": (
        lambda p: with_sound(p, "x.wav", lambda f: __import__("soundfile").write(f, [0.0, np.inf], 8000, "FLOAT")),
        "cat/x.wav: sound file has infinite or missing samples",
    ),
    "text as npy": (
        lambda p: with_bad(p, "x.npy", lambda f: written(f, "hello"), arrays),
        "a/x.npy: is not a numpy file",
    ),
    "truncated npy": (
        lambda p: with_bad(p, "x.npy", lambda f: cut(npy(f, X)), arrays),
        "a/x.npy: is damaged or cut off",
    ),
    "pickled npy": (
        lambda p: with_bad(p, "x.npy", lambda f: npy(f, EVIL, allow_pickle=True), arrays),
        "a/x.npy: holds Python objects, which could run code; save plain numbers",
    ),
    "pickle as npy": (
        lambda p: with_bad(p, "x.npy", lambda f: written(f, pickle.dumps(EVIL)), arrays),
        "a/x.npy: holds Python objects, which could run code",
    ),
    "empty npy": (
        lambda p: with_bad(p, "x.npy", lambda f: npy(f, X[:0]), arrays),
        r"a/x.npy: is empty \(shape \(0, 10\)\)",
    ),
    "number as npy": (
        lambda p: with_bad(p, "x.npy", lambda f: npy(f, 3.0), arrays),
        "a/x.npy: the array is a single number",
    ),
    "text in npy": (lambda p: with_bad(p, "x.npy", lambda f: npy(f, ["a"]), arrays), "a/x.npy: the array has text"),
    "infinite npy": (
        lambda p: with_bad(p, "x.npy", lambda f: npy(f, [1, np.inf]), arrays),
        "a/x.npy: has infinite values",
    ),
    "missing npy": (
        lambda p: with_bad(p, "x.npy", lambda f: npy(f, [NAN, NAN]), arrays),
        "a/x.npy: nothing is observed",
    ),
    "npy of other channels": (
        lambda p: with_bad(p, "x.npy", lambda f: npy(f, np.zeros((2, 20))), arrays),
        "a/x.npy: 2 channels and 1 axes, most have 1 and 1",
    ),
    "npz without X": (lambda p: npz(p / "a.npz", data=X), "a.npz: expected arrays X and y, or X_train", "got data"),
    "npz without y": (lambda p: npz(p / "a.npz", X=X), "the train set has no labels", "npz: y"),
    "npz of a test set": (lambda p: npz(p / "a.npz", X_test=X, y_test=Y), "has test but no training set"),
    "npz of unequal numbers": (lambda p: npz(p / "a.npz", X=X, y=Y[:3]), "a.npz: 8 examples but 3 targets"),
    "npz of objects": (lambda p: npz(p / "a.npz", X=EVIL, y=Y), "a.npz: holds Python objects, which could run code"),
    "truncated npz": (lambda p: cut(npz(p / "a.npz", X=X, y=Y)), "a.npz: is damaged or cut off"),
    "npz as npy": (
        lambda p: npz(p / "a.npz", X=X, y=Y).rename(p / "a.npy"),
        "a.npy: is a zip of arrays",
        "name it .npz",
    ),
    "npz as npy in a folder": (
        lambda p: with_bad(p, "x.npy", lambda f: npz(p / "x.npz", X=X).rename(f), arrays),
        "a/x.npy: is a zip of arrays, expected a single one",
    ),
    "npy as npz": (
        lambda p: npy(p / "a.npy", X).rename(p / "a.npz"),
        "a.npz: is a single array, expected a zip of arrays; name it .npy",
    ),
    "text as npz": (lambda p: written(p / "a.npz", "hello"), "a.npz: is not a numpy file"),
    "empty npz": (lambda p: written(p / "a.npz", ""), r"a.npz: is empty \(0 bytes\)"),
    "npy without labels": (lambda p: npy(p / "X.npy", X), "the train set has no labels", "NAME_labels.npy"),
    "labels of another number": (lambda p: beside(p, "X_labels.txt", "a\nb\n"), "X.npy: 8 examples but 2 targets"),
    "labels that are no numpy": (
        lambda p: beside(p, "y.npy", "hello"),
        "^[^:]*/y.npy, the targets of X.npy: is not a numpy file",
    ),
    "labels that are no UTF-8": (
        lambda p: beside(p, "y.txt", b"caf\xe9\n" * 8),
        "^[^:]*/y.txt, the targets of X.npy: is not UTF-8 text",
    ),
    "labels of other bytes in npy": (
        lambda p: npy(beside(p, "z", "").with_name("y.npy"), [b"caf\xe9"] * 8).with_name("X.npy"),
        "y.npy has bytes that are not UTF-8",
    ),
    "label lines missing": (lambda p: beside(p, "y.txt", "a\n\n" + "a\nb\n" * 3), "1 labels are missing"),
    "ts without data": (
        lambda p: ts(p / "a.ts", [], head="@classLabel true a b\n"),
        "a.ts: no @data line",
    ),
    "ts without examples": (lambda p: ts(p / "a.ts", []), "the train set has no examples"),
    "ts empty": (lambda p: written(p / "a.ts", ""), "a.ts: no @data line; the file is not a .ts file or was cut off"),
    "ts that is text": (lambda p: written(p / "a.ts", "hello"), "a.ts, line 1: expected a comment or a tag", "hello"),
    "ts with a word": (lambda p: ts(p / "a.ts", ["1,2:a", "1,two:b"]), "a.ts, line 7: .*'two'; expected numbers"),
    "ts cut off in a line": (
        lambda p: ts(p / "a.ts", ["1,2:a", "2,3:b", "1,2"]),
        "a.ts, line 8: expected values, a colon and a label",
    ),
    "ts without labels": (
        lambda p: ts(p / "a.ts", ["1,2", "2,3"], head="@data\n"),
        "has no labels",
        "@classLabel or @targetLabel true",
    ),
    "ts with labels missing": (
        lambda p: ts(p / "a.ts", ["1,2:?", "2,3:b"]),
        r"1 labels are missing in the train set: a.ts\[0\]",
    ),
    "ts of other channels": (
        lambda p: ts(p / "a.ts", ["1,2:a", "2,3:b", "1,2:3,4:a"]),
        r"a.ts\[2\]: 2 channels and 1 axes, most have 1 and 1",
    ),
    "ts infinite": (lambda p: ts(p / "a.ts", ["1,2:a", "2,inf:b"]), r"a.ts\[1\]: has infinite values"),
    "ts overflowing float32": (lambda p: ts(p / "a.ts", ["1,2:a", "2,1e300:b"]), r"a.ts\[1\]: has infinite values"),
    "ts of time stamps": (
        lambda p: ts(p / "a.ts", ["(0,1.5):a"], head=TS_HEAD.replace("timeStamps false", "timeStamps true")),
        "time stamps are not supported; save plain values",
    ),
    "ts for regression": (
        lambda p: ts(p / "a.ts", ["1,2:0.5", "2,3:1.5"], head="@targetLabel true\n@data\n"),
        "look continuous, .* set --task regression",
    ),
    "tsv with a word": (lambda p: written(p / "a.tsv", "1\t2\t3\n1\t2\tx\n"), "a.tsv, line 2: .*expected numbers, NaN"),
    "tsv overflowing float32": (
        lambda p: written(p / "a.tsv", "1\t2\t-1e300\n2\t2\t3\n"),
        r"a.tsv\[0\]: has infinite",
    ),
    "tsv with commas": (
        lambda p: written(p / "a.tsv", "1,2,3\n"),
        "a.tsv, line 1: expected a label and values with tabs",
    ),
    "tsv empty": (lambda p: written(p / "a.tsv", ""), "the train set has no examples"),
    "several data sets": (two_sets, r"has several data sets \(A_TRAIN, B_TRAIN\); pass the path of one file"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    make, *messages = FILES[name]
    with pytest.raises(ValueError) as caught:
        load_source(make(tmp_path))
    for message in messages:
        caught.match(message)
    assert str(tmp_path) in str(caught.value) or "a.np" in str(caught.value) or "X.npy" in str(caught.value)


def test_all_bad_files_are_listed(tmp_path):
    pictures(tmp_path, count=30)
    for i in range(25):
        (tmp_path / "dog" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        load_source(tmp_path)
    before, *faults, after = str(caught.value).split("; ")
    assert before.endswith("25 of 60 examples cannot be used: dog/0.png: is empty (0 bytes)")
    assert len(faults) == 19
    assert after.startswith("and 5 more. Repair or remove them, or leave them out with --skip-bad")
    assert str(caught.value).isprintable()
    assert len(load_source(tmp_path, skip_bad=True).train) == 28


def test_skipping_may_not_empty_a_class(tmp_path):
    pictures(tmp_path, count=2)
    for i in range(2):
        (tmp_path / "dog" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"every example of class dog in the train set is bad; the first: dog/0.png"):
        load_source(tmp_path, skip_bad=True)


def test_skipping_names_the_first_bad_one_of_the_class_and_split():
    x = changed(0, NAN)  # of class 0, in the training set, which keeps others
    test = changed((1, 2), np.inf)[:2]
    with pytest.raises(ValueError, match=r"every example of class 1 in the test set is bad; the first: X_test\[1\]: "):
        load_source((x, Y, test, Y[:2]), skip_bad=True)
    one_left = changed([0, 1, 3, 5, 7], NAN)
    with pytest.raises(ValueError, match=r"every example of class 1 in the train set is bad; the first: X\[1\]: "):
        load_source((one_left, Y), skip_bad=True)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_decoder_that_says_nothing_is_still_a_fault(tmp_path, monkeypatch, error):
    def refuse(path):
        raise error

    pictures(tmp_path)
    monkeypatch.setattr(files, "read_image", refuse)
    with pytest.raises(ValueError, match=rf"cat/0.png: cannot be read \({error.__name__}\)"):
        load_source(tmp_path)


def test_skipping_what_has_no_label_either():
    source = load_source((changed((3, 2), np.inf), [*Y[:3], None, *Y[4:]]), skip_bad=True)
    assert len(source.train) + len(source.test) == 7


def test_skip_bad_works_for_arrays():
    source = load_source((changed((3, 2), np.inf), Y), skip_bad=True)
    assert len(source.train) + len(source.test) == 7
    assert "1 of 8 examples left out as bad: X[3]: has infinite values" in source.notes[0]


def test_pixel_bombs(tmp_path, monkeypatch):
    pictures(tmp_path, count=2, size=(40, 40))
    for limit in (1000, 100):  # PIL warns above the limit, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="too many pixels"):
            load_source(tmp_path)


def test_folders_that_may_not_be_listed(tmp_path, monkeypatch):
    pictures(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"dog: no permission to list this folder"):
        load_source(tmp_path)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    pictures(tmp_path)
    monkeypatch.setattr(files, "read_image", refuse)
    with pytest.raises(ValueError, match=r"cat/0.png: no permission to read it"):
        load_source(tmp_path)


PREDICT = {
    "nothing there": (lambda p: p / "gone.png", "gone.png: no such file or folder"),
    "unknown type": (lambda p: written(p / "a.doc", "x"), "unknown type of file '.doc'"),
    "empty folder": (lambda p: p, "has no file that can be read as an example; known: .jpg"),
    "mixed folder": (lambda p: [picture(p / "a.png"), sound(p / "a.wav")] and p, "1 images and 1 sound files"),
    "damaged picture": (lambda p: cut(picture(p / "a.png", size=(99, 99))), "a.png: .*truncated"),
    "only bad ones": (lambda p: written(p / "a.png", "x").parent, "1 of 1 examples cannot be used"),
}


@pytest.mark.parametrize("name", PREDICT)
def test_prediction(tmp_path, name):
    make, message = PREDICT[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_examples(make(tmp_path))


def test_class_folders_and_empty_paths_are_no_examples(tmp_path):
    with pytest.raises(ValueError, match=r"but folders of them; pass .*/\*/ to predict, or evaluate it"):
        load_examples(pictures(tmp_path))
    with pytest.raises(ValueError, match="the source is an empty text"):
        load_source("")
    with pytest.raises(ValueError, match="the path is empty"):
        load_examples("")
