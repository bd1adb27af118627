"""Lists of files: paths, labels and splits in a .csv."""

import os
import sys

import numpy as np
import pytest

from datafiles import arrays, npy, picture, pictures, sound
from ndvit.data.examples import Recording
from ndvit.data.sources.lists import is_list, read_list
from ndvit.data.sources.load import load_examples, load_source


def csv(folder, *lines, name="labels.csv", **write):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", **{"encoding": "utf-8", **write})
    return folder / name


def rows(folder, classes=("cat", "dog"), count=4):
    """Lines for the files of `datafiles.pictures`, whose labels are not the names of their folders."""
    return [f"{name}/{i}.png,{name.upper()}" for name in classes for i in range(count)]


def listed(folder, *more):
    return csv(pictures(folder), "path,label", *rows(folder), *more)


def labels(source, examples):
    return {name: source.task.classes[label] for name, label in zip(examples.names, examples.targets)}


@pytest.mark.parametrize(
    ("header", "between"),
    [
        ("path,label", ","),
        ("File;Class", ";"),
        (" filename \ttarget", "\t"),
        ("image,label", ","),
        ("\ufeffpath,label", ","),
        ('"file_name","label"', ","),
    ],
    ids=repr,
)
def test_a_list_of_files_is_a_source(tmp_path, header, between):
    pictures(tmp_path)
    path = csv(tmp_path, header, "", *(row.replace(",", between) for row in rows(tmp_path)))
    source = load_source(path)
    assert (source.name, source.kind, source.task.classes) == ("labels", "image", ("CAT", "DOG"))
    assert (len(source.train), len(source.test)) == (6, 2)
    assert {name: name.split("/")[0].upper() for name in source.train.names} == labels(source, source.train)
    assert source.notes == ("no test set in the data: 20% held out for testing (2 examples), stratified, seed 0",)
    assert source.train[0].size == (12, 10)


def test_splits_and_other_columns(tmp_path):
    pictures(tmp_path, count=6)
    splits = ["train", "Train", "train", "test", "valid", "validation"]
    lines = [f"{i},{name}/{i}.png,{split},{name}" for name in ("cat", "dog") for i, split in enumerate(splits)]
    source = load_source(csv(tmp_path, ",path,split,label", *lines))
    assert sorted(source.train.names) == [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert sorted(source.test.names) == ["cat/3.png", "dog/3.png"]
    assert sorted(source.val.names) == ["cat/4.png", "cat/5.png", "dog/4.png", "dog/5.png"]
    assert source.notes == ("the split in labels.csv", "columns not read: (without a name)")


def test_a_tsv_with_a_header_is_a_list_and_one_of_values_is_not(tmp_path):
    pictures(tmp_path)
    lines = [row.replace(",", "\t") for row in rows(tmp_path)]
    path = csv(tmp_path, "path\tlabel", *lines, name="list.tsv")
    assert load_source(path).task.classes == ("CAT", "DOG")
    values = csv(tmp_path, "1\t0.5\t0.25", "2\t1.5\t1.25", "1\t2\t3", "2\t3\t4", name="values.tsv")
    assert not is_list(values)
    assert load_source(values).train[0].shape == (1, 2)


def test_lists_of_sounds_and_of_arrays(tmp_path):
    for i in range(6):
        sound(tmp_path / "in" / f"{i}.wav")
        npy(tmp_path / f"{i}.npy", np.full((2, 5), float(i)))
    source = load_source(csv(tmp_path, "file,label", *(f"in/{i}.wav,{i % 2}" for i in range(6))))
    assert (source.kind, source.task.classes) == ("signal", ("0", "1"))
    assert isinstance(source.train[0], Recording)
    source = load_source(csv(tmp_path, "file,label", *(f"{i}.npy,{i % 2}.0" for i in range(6))))
    assert source.task.classes == ("0", "1")  # as written by pandas, where a label was missing before
    assert all(example[0, 0] % 2 == label for example, label in zip(source.train, source.train.targets))


def test_quotes_spaces_and_backslashes(tmp_path):
    for i in range(2):
        picture(tmp_path / "a, b" / f"ä {i}.png")
        picture(tmp_path / "c" / f"{i}.png")
    lines = [f'"a, b/ä {i}.png", "big, red"' for i in range(2)] + [f"c\\{i}.png,small" for i in range(2)]
    path = csv(tmp_path, "path,label", *lines)
    path.write_text(path.read_text(encoding="utf-8").replace(', "big', ',"big'), encoding="utf-8")
    source = load_source(path, test_fraction=0)
    assert source.task.classes == ("big, red", "small")
    assert source.train.names == ["a, b/ä 0.png", "a, b/ä 1.png", "c\\0.png", "c\\1.png"]
    assert len(list(source.train)) == 4


def test_paths_are_relative_to_the_list(tmp_path, monkeypatch):
    listed(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert len(load_source("data/labels.csv").train) == 6
    monkeypatch.chdir(tmp_path / "data")
    assert len(load_source("labels.csv").train) == 6
    absolute = csv(tmp_path / "data", "path,label", *(f"{tmp_path}/data/{row}" for row in rows(tmp_path)))
    assert len(load_source(absolute).train) == 6


OUT = ["../out.png", "cat/../../out.png", "{}/out.png", "link.png", "folder/out.png", "..", f"{'x' * 300}/../../a.png"]


@pytest.mark.parametrize("written", OUT)
@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
@pytest.mark.parametrize("skip_bad", [True, False])
def test_paths_that_lead_out_are_refused(tmp_path, written, there, skip_bad):
    path = listed(tmp_path / "in", f"{written.format(tmp_path)},CAT")
    if there:
        picture(tmp_path / "out.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path)
    message = rf"labels.csv, line 10: .* leads out of the folder of the list \({tmp_path}/in\).*move the list above its"
    with pytest.raises(ValueError, match=message):
        load_source(path, skip_bad=skip_bad)
    with pytest.raises(ValueError, match=message):
        load_examples(path, skip_bad=skip_bad)


def test_links_that_stay_inside_are_followed(tmp_path):
    path = listed(tmp_path / "in", "link.png,CAT")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "in" / "dog" / "0.png")
    (tmp_path / "here").symlink_to(tmp_path / "in")
    assert len(load_source(path).train) == 7
    assert len(load_source(tmp_path / "here" / "labels.csv").train) == 7


LINES = {
    "missing": ("cat/9.png,CAT", "cat/9.png does not exist"),
    "broken link": ("gone.png,CAT", "gone.png does not exist"),
    "folder": ("cat,CAT", "cat is a folder"),
    "no path": (",CAT", "has no path"),
    "no label": ("cat/9.png,", "cat/9.png does not exist"),
    "too few": ("more.png", "has 1 fields, the header has 2"),
    "too many": ("more.png,CAT,1", "has 3 fields, the header has 2"),
    "twice": ("cat/../cat/1.png,DOG", "cat/1.png is in line 3, too"),
    "other type": ("more.txt,CAT", r"more.txt has an unknown type; known: .jpg"),
    "zero byte": ("a\0b.png,CAT", "a name with a zero byte does not exist"),
    "long name": (f"cat/{'x' * 5000}.png,CAT", r"cat/x{96}\.\.\.x{96}\.png does not exist"),
    "long folder": (f"{'x' * 300}/{'y/' * 3000}z.png,CAT", r"x{100}\.\.\.(/y)+/z\.png does not exist"),
    "circle": ("circle/a.png,CAT", "circle/a.png does not exist"),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_cannot_be_used_are_listed(tmp_path, name):
    line, message = LINES[name]
    if "\0" in line and sys.version_info < (3, 11, 4):
        pytest.skip("csv refuses it")
    path = listed(tmp_path, line)
    picture(tmp_path / "more.png")
    (tmp_path / "more.txt").write_text("words")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match=rf"labels.csv: 1 of 9 lines cannot be used: line 10: .*{message}.*\. Repair"):
        load_source(path)
    source = load_source(path, skip_bad=True)
    assert len(source.train) + len(source.test) == 8
    assert source.notes[0].startswith("1 of 9 lines left out: line 10: ")


def test_all_lines_are_listed(tmp_path):
    path = listed(tmp_path, *(f"{i}.png,CAT" for i in range(25)))
    with pytest.raises(ValueError, match=r"25 of 33 lines cannot be used: line 10: 0.png does") as caught:
        load_source(path)
    assert "and 5 more" in str(caught.value)
    with pytest.raises(ValueError, match="2 of 2 lines cannot be used"):  # nothing would be left
        load_source(csv(tmp_path, "path,label", "a.png,CAT", "b.png,DOG"), skip_bad=True)


def test_splits_that_are_unknown_or_lack_the_training_set(tmp_path):
    pictures(tmp_path)
    lines = [f"{row},train" for row in rows(tmp_path)]
    bad = csv(tmp_path, "path,label,split", *lines[:-1], lines[-1].replace("train", "fold3"))
    with pytest.raises(ValueError, match="line 9: split is 'fold3'; expected train, val or test"):
        load_source(bad)
    test = csv(tmp_path, "path,label,split", *(line.replace("train", "test") for line in lines))
    with pytest.raises(ValueError, match=r"labels.csv: has test but no training set"):
        load_source(test)
    parts, _ = read_list(test, with_targets=True, skip_bad=False)
    assert (list(parts), parts["test"].targets) == (["test"], ["CAT"] * 4 + ["DOG"] * 4)
    assert len(load_examples(test).examples) == 8


CSVS = {
    "words": (["name,label", "x,a"], "its first line is 'name,label'; expected a header with a column of paths"),
    "empty": ([], "labels.csv: it is empty; expected a header"),
    "no lines": (["path,label"], "lists no files below its header"),
    "two columns of paths": (
        ["path,image,label"],
        "the columns path and image may mean the same",
        "rename all but one",
    ),
    "two columns of labels": (["path,label,Class"], "the columns label and Class may mean the same"),
    "no labels": (
        ["path,,animal", "cat/0.png,1,cat"],
        r"no column of labels but path, \(without a name\), animal; name the one with labels label or class or target",
    ),
    "quotes": (["path,label", '"cat/0.png"x,CAT'], r"labels.csv, line 2: .*quotes must enclose whole fields"),
    "mixed": (
        ["path,label", "cat/0.png,a", "0.npy,b"],
        "1 images and 1 npy files; one data set needs files of one kind",
    ),
}


@pytest.mark.parametrize("name", CSVS)
def test_lists_that_are_none(tmp_path, name):
    lines, *messages = CSVS[name]
    pictures(tmp_path)
    npy(tmp_path / "0.npy", np.zeros(3))
    with pytest.raises(ValueError) as caught:
        load_source(csv(tmp_path, *lines))
    for message in messages:
        caught.match(message)


@pytest.mark.parametrize(
    ("encoding", "many", "place"),
    [
        ("latin-1", 0, r"line 2: is not UTF-8 text \(offset 12\)"),
        ("latin-1", 2_000, r"line 2002: is not UTF-8 text \(offset 10,012\)"),
    ],
)
def test_other_encodings_are_refused(tmp_path, encoding, many, place):
    """A long file is decoded in pieces; places count from its beginning."""
    lines = ["a,CA"] * many
    with pytest.raises(ValueError, match=rf"labels.csv, {place}; save it as UTF-8"):
        load_source(csv(tmp_path, "path,label", *lines, "käfer.png,a", encoding=encoding))


def test_files_that_are_bad_are_named_as_in_the_list(tmp_path):
    path = listed(tmp_path)
    (tmp_path / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 8 examples cannot be used: dog/1.png: is empty"):
        load_source(path)


def test_lists_to_predict(tmp_path, monkeypatch):
    arrays(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    csv(tmp_path / "in", "path", *(f"{name}/{i}.npy" for name in "ab" for i in range(4)))
    kind, dims, examples, notes = load_examples("in/labels.csv")
    assert (kind, dims, examples.targets, notes) == ("signal", 1, None, ())
    assert examples.names[4] == os.path.join("in", "b/0.npy")
    csv(tmp_path / "in", "path,label", "a/0.npy,a", "b/0.npy,")  # labels are ignored
    assert load_examples("in/labels.csv").examples.targets is None
    csv(tmp_path / "in", "path,split", "a/0.npy,train", "b/0.npy,test")
    _, _, examples, notes = load_examples("in/labels.csv")
    assert (examples.names, notes[-1]) == (["in/b/0.npy"], "labels.csv has train and test: the test set is used")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("first", ["", "sep=;\n"])
def test_exports_of_spreadsheets_are_read(tmp_path, encoding, first):
    pictures(tmp_path)
    lines = ['"path";"label"', *(f'"{row.replace(",", chr(34) + ";" + chr(34))}"' for row in rows(tmp_path))]
    (tmp_path / "labels.csv").write_text(first + "\r\n".join(lines), encoding=encoding)
    assert len(load_source(tmp_path / "labels.csv").train) == 6


def test_the_column_whose_values_are_files_has_the_paths(tmp_path):
    pictures(tmp_path)
    source = load_source(csv(tmp_path, "nr,foto,label", *(f"{i},{row}" for i, row in enumerate(rows(tmp_path)))))
    assert len(source.train) == 6
    assert source.notes[:2] == ("paths from the column foto, whose values are files", "columns not read: nr")


def test_a_list_without_a_header_is_refused(tmp_path):
    pictures(tmp_path)
    with pytest.raises(
        ValueError, match=r"its first line is 'cat/0.png,.*', which names a file instead of the columns; exp"
    ):
        load_source(csv(tmp_path, *rows(tmp_path)))


HOSTILE = {
    "a cell of a megabyte": ("path,label\n" + "x" * 2**20, r"line 2: has more than 262,144 letters"),
    "a quote that never ends": ('path,label\n"' + "x,\n" * 100_000, r"line \d+: field larger than field limit"),
    "commas": ("a," * 100_000, "has 100,001 columns; expected a header"),
    "colons": (":" * 100_000, r"its first line is ':{30}\.\.\.:{30}'; expected a header"),
    "zero bytes": ("\0" * 1000, r"its first line is '(\\x00)+\.\.\.(\\x00)+'; expected a header"),
    "short lines": ("path,label\n" + "x\n" * 120_000, "100,001 of 100,001 lines cannot be used"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_no_lists_are_refused_in_short(tmp_path, name):
    text, message = HOSTILE[name]
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_source(tmp_path / "labels.csv")
    assert len(str(caught.value)) < 2000


def test_pipes_in_lists_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"line 2: pipe.png is not a regular file"):
        load_source(csv(tmp_path, "path,label", "pipe.png,a"))
