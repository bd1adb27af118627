"""Folders of classes: what is found, what is left out, what is read when."""

import os

import numpy as np
import pytest

from datafiles import arrays, cut, npy, picture, pictures, sound
from ndvit.data import checking
from ndvit.data.examples import Recording
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources import files, folders
from ndvit.data.sources.load import load_source


def names(examples):
    return sorted(examples.names)


def test_a_folder_of_classes_is_split(tmp_path):
    source = load_source(pictures(tmp_path / "pets", classes=("cat", "dog", "10"), count=5))
    assert (source.name, source.kind, source.task.classes) == ("pets", "image", ("10", "cat", "dog"))
    assert (len(source.train), len(source.test)) == (12, 3)
    assert set(names(source.train)).isdisjoint(names(source.test))
    for i, name in enumerate(source.train.names):
        assert source.task.classes[source.train.targets[i]] == name.split("/")[0]
    assert source.train[0].mode == "RGB"


def test_numbers_are_sorted_by_value(tmp_path):
    assert load_source(pictures(tmp_path, classes=("10", "9", "-1"))).task.classes == ("-1", "9", "10")


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (("train", "test"), {"train", "test"}),
        (("Train", "TEST", "validation"), {"train", "test", "val"}),
        (("train", "val"), {"train", "test"}),
        (("train",), {"train"}),
        (("training", "Testing", "dev"), {"train", "test", "val"}),
    ],
    ids=["test", "all three", "val", "train alone", "other names"],
)
def test_splits_of_a_folder(tmp_path, splits, found):
    for i, split in enumerate(splits):
        pictures(tmp_path / split, count=2 + i)
    source = load_source(tmp_path)
    notes = " ".join(source.notes)
    assert (source.val is not None) == ("val" in found)
    assert ("held out for testing" in notes) == ("test" not in found)
    assert ("validation set is the test set" in notes) == (splits == ("train", "val"))
    if "test" in found:
        assert (len(source.train), len(source.test)) == (4, 6)
        assert source.test.names[0].startswith(splits[1])
    if source.val is not None:
        assert len(source.val) == 8


@pytest.mark.parametrize("name", ["train", "test", "dev"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    assert load_source(pictures(tmp_path, classes=("bus", name))).task.classes == ("bus", name)


@pytest.mark.parametrize("splits", [("test",), ("dev", "test")])
def test_splits_without_a_training_set(tmp_path, splits):
    for split in splits:
        pictures(tmp_path / split)
    parts, _ = folders.read_folder(tmp_path)
    assert sorted(parts) == sorted({"dev": "val"}.get(split, split) for split in splits)
    assert parts["test"].targets == ["cat"] * 4 + ["dog"] * 4


def test_a_train_folder_of_folders_is_a_split(tmp_path):
    pictures(tmp_path / "train")
    picture(tmp_path / "unlabelled" / "0.png")
    source = load_source(tmp_path)
    assert source.task.classes == ("cat", "dog")
    assert "1 left out, beside train/: unlabelled" in source.notes


def test_notes_list_ignored_files(tmp_path):
    pictures(tmp_path)
    picture(tmp_path / "cat" / "deep" / "er" / "5.PNG")
    picture(tmp_path / "lost.png")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "Thumbs.db"):
        (tmp_path / "dog" / name).write_text("x")
    source = load_source(tmp_path)
    everything = names(source.train) + names(source.test)
    assert len(everything) == 9
    assert "cat/deep/er/5.PNG" in everything
    assert source.notes[:2] == (
        "1 left out, beside the class folders: lost.png",
        "4 left out, of an unknown type: dog/Thumbs.db, dog/a.txt, dog/b.txt and 1 more",
    )


def test_links_that_leave_the_folder_are_not_followed(tmp_path):
    root = pictures(tmp_path / "in")
    outside = pictures(tmp_path / "out", classes=("bird",))
    (root / "bird").symlink_to(outside / "bird")
    (root / "cat" / "outside.png").symlink_to(outside / "bird" / "0.png")
    (root / "cat" / "inside.png").symlink_to(root / "dog" / "0.png")
    (root / "dog" / "loop").symlink_to(root)
    source = load_source(root)
    everything = names(source.train) + names(source.test)
    assert len(everything) == 9
    assert "cat/inside.png" in everything
    assert source.task.classes == ("cat", "dog")
    assert "2 left out, links that leave the folder: bird, cat/outside.png" in source.notes
    assert "1 left out, links to folders: dog/loop" in source.notes


def test_the_root_may_be_a_link(tmp_path):
    pictures(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(load_source(tmp_path / "link").train) == 6


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".Png", ".bmp", ".webp", ".tif", ".tiff", ".gif"])
def test_types_of_pictures(tmp_path, suffix):
    source = load_source(pictures(tmp_path, count=2, suffix=suffix))
    assert fit_preprocess(source)(source.train[0]).shape == (3, 10, 12)


@pytest.mark.parametrize("suffix", [".wav", ".FLAC", ".ogg"])
def test_folders_of_sound(tmp_path, suffix):
    for name in ("hum", "whistle"):
        for i in range(3):
            sound(
                tmp_path / name / f"{i}{suffix}",
                frames=400 + 50 * i,
                rate=16000 if i == 2 else 8000,
                channels=1 + i % 2,
            )
    source = load_source(tmp_path)
    assert source.kind == "signal"
    assert isinstance(source.train[0], Recording)
    assert "unequal lengths in the train set (0.03125 to 0.05625 s): shorter examples end in missing" in source.notes[0]
    preprocess = fit_preprocess(source)
    assert (preprocess.channels, preprocess.mono, preprocess.sample_rate) == (1, True, 8000)
    x, _ = preprocess.masked(source.test[0])
    assert x.shape == (1, *preprocess.size)


@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 6, 5), (1, 3, 4, 5)], ids=str)
def test_folders_of_arrays(tmp_path, shape):
    source = load_source(arrays(tmp_path, shape=shape))
    expected = (1, *shape) if len(shape) == 1 else shape
    assert (source.kind, source.train[0].shape, source.train[0].dtype) == ("signal", expected, np.float32)
    assert fit_preprocess(source)(source.test[0]).shape == expected


def test_skip_bad_leaves_bad_files_out_with_a_note(tmp_path):
    pictures(tmp_path)
    cut(tmp_path / "cat" / "1.png")
    (tmp_path / "dog" / "2.png").write_bytes(b"")
    source = load_source(tmp_path, skip_bad=True)
    assert len(source.train) + len(source.test) == 6
    assert any(note.startswith("2 of 8 examples left out as bad: cat/1.png: ") for note in source.notes)


def test_odd_names_break_no_message_and_no_table(tmp_path):
    odd = os.fsdecode(b"caf\xe9")  # not UTF-8
    pictures(tmp_path, classes=("a\nb\x1b[31m", odd, "犬 é,|<b>"), count=3)
    (tmp_path / "a\nb\x1b[31m" / "x\ny.txt").write_text("x")
    source = load_source(tmp_path, test_fraction=0.4)
    assert source.task.classes == (r"a\nb\x1b[31m", r"caf\udce9", "犬 é,|<b>")
    texts = [*source.train.names, *source.test.names, *source.notes]
    assert all(len(text.splitlines()) == 1 and "\x1b" not in text and text.encode() for text in texts)
    assert r"a\nb\x1b[31m/x\ny.txt" in " ".join(source.notes)
    assert len(list(source.train)) == 6  # the files are found under their real names
    (tmp_path / odd / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"caf\\udce9/0.png: is empty"):
        load_source(tmp_path)


def test_header_only_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", 3)
    pictures(tmp_path / "p")
    cut(tmp_path / "p" / "cat" / "1.png", keep=0.6)  # its header is whole
    source = load_source(tmp_path / "p")
    assert source.notes[0].startswith("8 files: only their headers were read")
    (tmp_path / "p" / "cat" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"cat/2.png: is not a picture"):
        load_source(tmp_path / "p")
    arrays(tmp_path / "a")
    assert len(load_source(tmp_path / "a").train) == 6
    for name, values, message in (
        ("0", np.zeros((3, 0)), r"is empty \(shape \(3, 0\)\)"),
        ("1", 3.0, "the array is a single number"),
        ("2", ["a", "b"], "the array has text"),
    ):
        npy(tmp_path / "a" / "b" / f"{name}.npy", values)
        with pytest.raises(ValueError, match=rf"b/{name}.npy: {message}"):
            load_source(tmp_path / "a")
    np.savez(tmp_path / "zip.npz", a=np.zeros(3))
    (tmp_path / "zip.npz").rename(tmp_path / "a" / "b" / "3.npy")
    with pytest.raises(ValueError, match=r"b/3.npy: is a zip of arrays"):
        load_source(tmp_path / "a")


def test_a_file_that_goes_bad_later_is_named(tmp_path):
    source = load_source(pictures(tmp_path))
    path = cut(tmp_path / source.train.names[0])
    with pytest.raises(ValueError, match=rf"{path}: .*truncated"):
        source.train[0]
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path}: does not exist"):
        source.train[0]


def test_only_many_files_have_a_progress_bar(tmp_path, capsys):
    load_source(pictures(tmp_path / "few"))
    assert capsys.readouterr().err == ""
    for name in "ab":
        first = npy(tmp_path / "many" / name / "0.npy", np.arange(3.0))
        for i in range(1, 260):
            os.link(first, first.with_name(f"{i}.npy"))
    load_source(tmp_path / "many")
    assert "checking files" in capsys.readouterr().err
    load_source(tmp_path / "many", progress=False)
    assert capsys.readouterr().err == ""


def test_order_is_the_same_every_time(tmp_path, monkeypatch):
    pictures(tmp_path, count=6)
    first = load_source(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return iter(list(self.entries)[::-1])

        def __exit__(self, *_):
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Backwards)
    again = load_source(tmp_path)
    assert (again.train.names, again.test.names) == (first.train.names, first.test.names)


def test_reading_a_wav_of_unknown_length(tmp_path):
    """Programs that write into a pipe state 4 GiB of data; the file is whole."""
    path = sound(tmp_path / "a.wav", frames=100, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert files.read_example(str(path)).values.shape == (1, 100)


@pytest.mark.parametrize("limit", [0, 100])
def test_notes_list_mixed_recordings_and_pictures(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(checking, "_DECODE_AT_MOST", limit)  # headers, or whole files
    for name in ("a", "b"):
        for i, (rate, channels) in enumerate(((8000, 1), (16000, 2), (22050, 1))):
            sound(tmp_path / "sounds" / name / f"{i}.wav", rate=rate, channels=channels)
    notes = load_source(tmp_path / "sounds").notes
    assert "sample rates 8000, 16000, 22050 Hz: all are resampled to one" in notes
    assert "recordings of 1 and 2 channels: all are averaged to one channel" in notes
    pictures(tmp_path / "p")
    assert not any("pictures" in note for note in load_source(tmp_path / "p").notes)
    picture(tmp_path / "p" / "cat" / "9.png", size=(40, 30), mode="L")
    notes = load_source(tmp_path / "p").notes
    span = "pictures of 12 x 10 to 40 x 30 pixels"
    assert f"{span}: each is resized to cover the network's input and centre-cropped" in notes
    assert ("pictures in grey (1) and in colour (8): all are converted to colour" in notes) == (limit > 0)
    pictures(tmp_path / "p2" / "train", mode="L")
    pictures(tmp_path / "p2" / "test", count=1)
    expected = "in grey (8) and in colour (2): all are converted to grey, as the training pictures, or to colour for"
    assert any(expected in note for note in load_source(tmp_path / "p2").notes) == (limit > 0)
