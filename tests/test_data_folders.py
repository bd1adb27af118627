"""Folders of classes: what is found, what is left out, what is read when."""

import os

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageFile

from datafiles import arrays, cut, npy, picture, pictures, sound, xy
from ndvit import DataWarning
from ndvit.data import checking
from ndvit.data.examples import Recording
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources import files, folders
from ndvit.data.sources.load import load_source
from ndvit.data.sources.pictures import picture_endings
from ndvit.data.sources.sounds import SOUNDS


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
def test_below_train_a_class_may_be_called_like_a_split(tmp_path, name):
    pictures(tmp_path / "train", classes=("bus", name))
    assert load_source(tmp_path).task.classes == ("bus", name)


def test_a_training_set_without_class_folders_is_a_doubtful_class(tmp_path):
    with pytest.warns(DataWarning, match=r"train/ is read as a class, but its name may look like a split"):
        source = load_source(pictures(tmp_path, classes=("bus", "train")))
    assert source.task.classes == ("bus", "train")


@pytest.mark.parametrize("name", ["test", "Test_set", "val", "holdout", "pred", "predictions2"])
def test_a_folder_named_like_a_split_beside_classes_stops(tmp_path, name):
    pictures(tmp_path, classes=("cat", "dog", name))
    with pytest.raises(
        ValueError, match=rf"the folders {name}/ look like splits .* the folders cat/, dog/ like classes"
    ):
        load_source(tmp_path)


@pytest.mark.parametrize(
    "names", [("fold1", "fold2"), ("split_1", "split_2"), ("flowers_train", "garden_test")], ids=str
)
def test_parts_of_the_data_are_not_classes(tmp_path, names):
    for name in names:
        pictures(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"the folders {names[0]}/, {names[1]}/ look like splits or parts of the data"
    ):
        load_source(tmp_path)


def test_words_beside_a_split_name_make_a_class(tmp_path):
    source = load_source(pictures(tmp_path, classes=("bullet_train", "steam_train", "test_tube")))
    assert source.task.classes == ("bullet_train", "steam_train", "test_tube")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_images", "val_images"),
        ("TRAIN-data", "Holdout"),
        ("trainset", "testset"),
        ("train2017", "val2017"),
        ("imagesTr", "imagesTs"),
        ("archive/pets/Train", "archive/pets/eval"),
        ("train/images", "test/images"),
    ],
)
def test_splits_in_any_spelling(tmp_path, train, test):
    pictures(tmp_path / train)
    pictures(tmp_path / test, count=2)
    source = load_source(tmp_path)
    assert (source.task.classes, len(source.train), len(source.test)) == (("cat", "dog"), 8, 4)


def test_notes_name_unusual_splits_and_folders_around(tmp_path):
    pictures(tmp_path / "pets" / "seg_train" / "seg_train")
    pictures(tmp_path / "pets" / "seg_test")
    pictures(tmp_path / "pets" / "seg_pred", classes=("all",))
    assert load_source(tmp_path).notes[:4] == (
        "pets/ is the only folder: the folders in it are used",
        "splits by the names of the folders: pets/seg_test/ is the test set, pets/seg_train/ is the train set",
        "pets/seg_train/seg_train/ is the only folder: the folders in it are used",
        "1 left out, without labels, by their names: pets/seg_pred",
    )


def test_unlabelled_examples_beside_classes_are_left_out(tmp_path):
    source = load_source(pictures(tmp_path, classes=("cat", "dog", "unlabeled")))
    assert source.task.classes == ("cat", "dog")
    assert "1 left out, without labels, by their names: unlabeled" in source.notes


def test_classes_may_be_called_labelled_and_unlabelled_below_train(tmp_path):
    with pytest.raises(ValueError, match="the folders unlabelled/ look like splits"):
        load_source(pictures(tmp_path, classes=("labelled", "unlabelled")))


def test_splits_inside_of_classes_stop(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name, classes=("train", "test"))
    with pytest.raises(
        ValueError, match=r"folders that look like splits, such as cat/test/, cat/train/; put the splits"
    ):
        load_source(tmp_path)


def test_equal_folders_inside_of_classes_are_doubtful(tmp_path):
    for name in ("day1", "day2"):
        pictures(tmp_path / name, classes=("ill", "well"))
    with pytest.warns(
        DataWarning, match=r"the classes are day1/, day2/, but .* equal names, such as day1/ill/, day1/well/"
    ):
        load_source(tmp_path)


def test_a_note_counts_inner_folders(tmp_path):
    pictures(tmp_path / "cat", classes=("persian", "siamese"))
    picture(tmp_path / "cat" / "persian" / "young" / "0.png", (1, 2, 3))
    pictures(tmp_path / "dog", classes=("poodle",), count=2)
    source = load_source(tmp_path)
    assert source.task.classes == ("cat", "dog")
    counts = "cat/persian (5), cat/siamese (4), dog/poodle (2)"
    assert f"files in folders inside a class folder belong to that class: {counts}" in source.notes


@pytest.mark.parametrize("masks", ["masks", "Labels", "ground_truth", "segmentation"])
def test_masks_beside_pictures_are_not_read(tmp_path, masks):
    for name in ("ill", "well"):
        pictures(tmp_path / name, classes=("images", masks))
    with pytest.warns(
        DataWarning, match=rf"8 files left out that may be masks .*: ill/{masks} \(4\), well/{masks} \(4\);"
    ):
        source = load_source(tmp_path)
    assert len(source.train) + len(source.test) == 8
    assert (
        "files in folders inside a class folder belong to that class: ill/images (4), well/images (4)" in source.notes
    )


def test_masks_in_the_folder_of_the_pictures_are_not_read(tmp_path):
    pictures(tmp_path)
    picture(tmp_path / "cat" / "0_mask.png")
    picture(tmp_path / "cat" / "1_mask_1.png")
    picture(tmp_path / "cat" / "lone_mask.png", (9, 9, 9))
    with pytest.warns(DataWarning, match=r"2 files left out that may be masks or labels of others: cat/\*_mask \(1\)"):
        source = load_source(tmp_path)
    assert len(source.train) + len(source.test) == 9


def test_a_folder_of_pictures_beside_one_of_masks_is_no_class(tmp_path):
    pictures(tmp_path / "flat", classes=("images", "masks"))
    with pytest.raises(
        ValueError, match="images/, masks/ look like pictures and their masks or labels, not like classes"
    ):
        load_source(tmp_path / "flat")
    pictures(tmp_path / "deep" / "images")
    pictures(tmp_path / "deep" / "masks")
    with pytest.warns(DataWarning, match=r"8 files left out that may be masks or labels of others: masks \(8\)"):
        assert load_source(tmp_path / "deep").task.classes == ("cat", "dog")


def test_classes_left_out_beside_the_splits_are_doubtful(tmp_path):
    pictures(tmp_path / "train")
    pictures(tmp_path, classes=("cat", "bird"))
    with pytest.warns(
        DataWarning, match="the folders cat are left out because they are beside the splits, but classes"
    ):
        load_source(tmp_path)


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("cat ", "cat"), ("polar bear", "polar_bear"), ("caf\u00e9", "cafe\u0301")]
)
def test_class_names_that_are_alike_are_doubtful(tmp_path, names):
    pictures(tmp_path, classes=(*names, "dog"))
    with pytest.warns(
        DataWarning, match=r"classes that differ only in case, spaces or separators: '.*' \(4\) and '.*' \(4\);"
    ):
        load_source(tmp_path)


def test_letters_and_negative_numbers_are_not_alike():
    x, _ = xy(12)
    assert not any("differ only" in note for note in load_source((x, ["a", "A", "-1", "1"] * 3)).notes)


SYSTEM = ("@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN")


def test_system_folders_and_thumbnails_are_not_read(tmp_path):
    pictures(tmp_path)
    for name in SYSTEM:
        pictures(tmp_path, classes=(name,))
        pictures(tmp_path / "cat", classes=(name,))
    source = load_source(tmp_path)
    assert (source.task.classes, len(source.train) + len(source.test)) == (("cat", "dog"), 8)
    assert source.notes[0] == (
        "12 left out, of the system, or thumbnails: $RECYCLE.BIN, .ipynb_checkpoints, .thumbnails and 9 more"
    )


def test_pipes_sockets_and_devices_are_never_opened(tmp_path):
    pictures(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "cat" / "pipe.png")
    source = load_source(tmp_path)
    assert len(source.train) + len(source.test) == 8
    assert "2 left out, devices, pipes or sockets: cat/link.png, cat/pipe.png" in source.notes
    with pytest.raises(ValueError, match="is not a regular file"):
        files.read_example(str(tmp_path / "cat" / "pipe.png"))


def test_folders_that_are_too_deep_are_refused(tmp_path):
    pictures(tmp_path)
    (tmp_path / "cat" / "/".join("a" * 101)).mkdir(parents=True)
    with pytest.raises(ValueError, match="has more than 100 folders below each other, cat/a/a/") as caught:
        load_source(tmp_path)
    assert len(str(caught.value)) < 1000


def test_long_names_are_shortened_in_notes(tmp_path):
    pictures(tmp_path)
    for i in range(5):
        (tmp_path / "cat" / f"{'x' * 240}{i}.txt").write_text("x")
    assert all(len(note) < 400 for note in load_source(tmp_path).notes)


@pytest.mark.parametrize("splits", [("test",), ("dev", "test")])
def test_splits_without_a_training_set(tmp_path, splits):
    for split in splits:
        pictures(tmp_path / split)
    parts, _ = folders.read_folder(tmp_path)
    assert sorted(parts) == sorted({"dev": "val"}.get(split, split) for split in splits)
    assert parts["test"].targets == ["cat"] * 4 + ["dog"] * 4


def test_a_train_folder_of_folders_is_a_split(tmp_path):
    pictures(tmp_path / "train")
    picture(tmp_path / "other" / "0.png")
    source = load_source(tmp_path)
    assert source.task.classes == ("cat", "dog")
    assert "1 left out, beside train/: other" in source.notes


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
    assert source.notes[:3] == (
        "2 left out, hidden: .git, cat/.hidden.png",
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


PICTURES = (".jpg", ".JPEG", ".Png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif", ".avif", ".jp2", ".ppm", ".tga")


@pytest.mark.parametrize("suffix", PICTURES)
def test_types_of_pictures(tmp_path, suffix):
    source = load_source(pictures(tmp_path, count=2, suffix=suffix))
    assert fit_preprocess(source)(source.train[0]).shape == (3, 10, 12)


@pytest.mark.parametrize("suffix", [".wav", ".FLAC", ".ogg", ".aiff", ".au", ".caf"])
def test_folders_of_sound(tmp_path, suffix):
    for name in ("hum", "whistle"):
        for i in range(3):
            sound(
                tmp_path / name / f"{i}{suffix}",
                frames=400 + 50 * i,
                rate=16000 if i == 2 else 8000,
                channels=1 + i % 2,
                pitch=440 if name == "hum" else 600,
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
    assert f"{span}: each is resized to the network's input" in notes
    assert ("pictures in grey (1) and in colour (8): all are converted to colour" in notes) == (limit > 0)
    pictures(tmp_path / "p2" / "train", mode="L")
    pictures(tmp_path / "p2" / "test", count=1)
    expected = "in grey (8) and in colour (2): all are converted to grey, as the training pictures, or to colour for"
    assert any(expected in note for note in load_source(tmp_path / "p2").notes) == (limit > 0)


def test_the_endings_are_those_of_formats_that_pil_decodes():
    known = picture_endings()
    assert {".jfif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".qoi", ".apng", ".mpo"} <= set(known)
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".hdf", ".grib", ".wmf", ".emf", ".pcd", ".fits"} & set(known)


def test_a_plugin_adds_endings(monkeypatch):
    for name in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    Image.register_open("NEW", type("New", (ImageFile.ImageFile,), {"format": "NEW"}))
    Image.register_extension("NEW", ".new")
    assert files.medium("a.NEW") == "images"


def test_the_endings_of_sounds_are_those_of_libsndfile():
    endings = {".aif": "AIFF", ".aifc": "AIFF", ".oga": "OGG", ".opus": "OGG", ".snd": "AU", ".sph": "NIST"}
    formats = {endings.get(ending, ending[1:].upper()) for ending in SOUNDS}
    assert formats <= set(soundfile.available_formats())


def test_postscript_is_not_run_under_another_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is not a picture, or has a format that PIL cannot read"):
        files.read_example(str(tmp_path / "a.png"))


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp", ".png"])
def test_the_first_of_several_frames_is_used_with_a_note(tmp_path, suffix):
    pictures(tmp_path, suffix=suffix)
    frames = [Image.new("RGB", (12, 10), (i, i, 200)) for i in (0, 90)]
    frames[0].save(tmp_path / "cat" / f"9{suffix}", save_all=True, append_images=frames[1:])
    source = load_source(tmp_path)
    assert "1 pictures have several frames or pages: the first one is used" in source.notes
