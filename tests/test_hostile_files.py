"""Files made to hang, to fill the memory or to be misread: each is an error of one line, before it costs anything."""

import io
import os
import re
import socket
import struct
import warnings
import zipfile

import numpy as np
import pytest
import soundfile
import tifffile
from PIL import Image

from datafiles import TS_HEAD, npy, picture, pictures, sound, ts, xy
from ndvit import DataWarning, files
from ndvit.data.messages import cannot_be_used, unread
from ndvit.data.sources import tables
from ndvit.data.sources.files import read_example
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.npy import load_array, npy_shape
from ndvit.data.sources.pictures import image_size, read_image
from ndvit.data.sources.rasters import has_doubtful_alpha, read_raster
from ndvit.data.sources.sounds import read_audio, sound_header
from ndvit.data.sources.tables import read_table

X, Y = xy()


def fault(path, load=load_source):
    """The message of the error, which is one printable line."""
    with pytest.raises(ValueError) as caught:
        load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000
    return message


# Special files


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
@pytest.mark.parametrize("name", ["a.ts", "a.tsv", "a.npz", "a.npy", "a.csv", "a.png", "a.tif", "a.wav", "a"])
def test_special_files_are_not_opened(tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    if kind == "a pipe":
        os.mkfifo(name)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    else:
        os.symlink("/dev/zero", name)
    for load in (load_source, load_examples):
        assert fault(tmp_path / name, load).startswith(f"{tmp_path / name}: is {kind}, expected a regular file")


def test_readers_of_one_example_do_not_open_pipes_either(tmp_path):
    for name, readers in {
        "a.npy": (load_array, npy_shape),
        "a.npz": (load_array, npy_shape),
        "a.wav": (read_audio, sound_header),
        "a.tif": (read_raster,),
        "a.ts": (read_table,),
    }.items():
        os.mkfifo(tmp_path / name)
        for read in readers:
            assert "is a pipe, expected a regular file" in fault(tmp_path / name, read)


@pytest.mark.parametrize("name", ["y.npy", "X_labels.npy", "X_labels.txt", "labels.npy"])
def test_pipes_beside_arrays_are_not_taken_for_targets(tmp_path, name):
    npy(tmp_path / "X.npy", X)
    os.mkfifo(tmp_path / name)
    assert "has no labels" in fault(tmp_path / "X.npy")


# Arrays


def header(shape, descr="<f4", version=1, length=None):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


HEADERS = {
    "2^70 values": (header((2**70,)) + bytes(600), "has an impossible shape"),
    "2^62 values": (header((2**62,)) + bytes(600), "is damaged or cut off: it has the shape .*, and 600 bytes follow"),
    "negative axis": (header((-5, 3)) + bytes(60), r"has an impossible shape \(-5, 3\)"),
    "axis that is true": (header((True, 3)) + bytes(12), "has an impossible shape"),
    "2^62 empty rows": (header((2**62, 0)), r"is empty \(shape"),
    "letters of no size": (header((2**62,), "<U0"), r"is empty \(shape"),
    "70 axes": (header((1,) * 70) + bytes(4), r"has an impossible shape \(1, 1, 1, 1, 1, 1, 1, 1, ...\)"),
    "number of 3,500 digits": (header(f"({'9' * 3500},)"), "has an impossible shape"),
    "fields": (header((2,), [("t", "<f4"), ("x", "<f4")]) + bytes(16), "has the fields t, x; expected plain numbers"),
    "void": (header((2,), "|V8") + bytes(16), "has values of the type |V8; expected plain numbers"),
    "objects": (header((2,), "|O") + bytes(16), "holds Python objects, which could run code"),
    "control characters": (header((2,), "\x1b[31m") + bytes(8), r"is damaged or cut off \(.*\\x1b\[31m"),
    "header of 4 GB": (
        header((2,), version=2, length=2**32 - 1),
        "has a header of 4,294,967,295 bytes, expected about",
    ),
    "deep header": (header("(" * 3000), "is damaged or cut off"),
    "deep sum": (header("-" * 3000 + "1"), "is damaged or cut off"),
    "version 9": (header((2,), version=9) + bytes(8), "has the format version 9.0, expected 1.0 to 3.0"),
    "too few values": (header((5, 10)) + bytes(100), "is damaged or cut off: it has the shape .* 200 bytes, and 100"),
    "two arrays": (header((2,)) + bytes(8) + header((2,)) + bytes(8), "has more than one array: the first one has the"),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["npy", "npz"])
@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_checked_before_anything_is_allocated(tmp_path, name, zipped):
    data, message = HEADERS[name]
    path = tmp_path / ("a.npz" if zipped else "a.npy")
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("X.npy", data)
    else:
        path.write_bytes(data)
    for read in (load_source, load_array, npy_shape):
        assert re.search(message, fault(path, read))


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "|u1", "<f2"])
@pytest.mark.parametrize("order", "CF")
def test_types_orders_and_versions_read_alike(tmp_path, version, dtype, order):
    values = np.arange(24).reshape(4, 6).astype(dtype)
    with (tmp_path / "a.npy").open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of version 3
        np.lib.format.write_array(file, values.copy(order), (version, 0))
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), values)
    assert npy_shape(tmp_path / "a.npy") == (4, 6)


def test_arrays_of_very_many_short_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_MOST_EXAMPLES", 7)
    message = r"X.npy has the shape \(8, 10\), 8 examples of few values, more than 7; the first axis"
    assert re.search(message, fault(npy(tmp_path / "X.npy", X)))


# Archives


def archive(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of equal names
        for name, array in members.items():
            file = io.BytesIO()
            np.save(file, array)
            zipped.writestr(name.rstrip("2") + ".npy", file.getvalue())
    return path


def test_archives_that_inflate_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_UNPACKED", 100_000)
    zeros = np.zeros((100, 2000), np.uint8)
    message = r"a.npz: unpacks from [\d,]+ bytes to 201,056, more than 100 times as many, which could fill the memory"
    assert re.search(message, fault(archive(tmp_path / "a.npz", X=zeros, y=np.arange(100) % 2)))
    assert load_source(archive(tmp_path / "a.npz", zipfile.ZIP_STORED, X=zeros, y=np.arange(100) % 2)).dims == 1
    with pytest.warns(DataWarning, match="arrays not read: groups"):  # what is not read does not count
        load_source(archive(tmp_path / "a.npz", X=X, y=Y, groups=np.zeros(200_000, np.uint8)))


def test_arrays_of_an_archive_count_together(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_UNPACKED", 250_000)
    half = np.zeros((100, 1300), np.uint8)
    path = archive(tmp_path / "a.npz", X_train=half, y_train=np.arange(100), X_test=half, y_test=np.arange(100))
    assert "unpacks from" in fault(path)


def test_damaged_members(tmp_path):
    path = archive(tmp_path / "a.npz", zipfile.ZIP_STORED, X=X, y=Y)
    data = bytearray(path.read_bytes())
    data[data.find(b"X.npy") + 200] ^= 1
    path.write_bytes(data)
    assert "a.npz: is damaged or cut off (Bad CRC-32 for file 'X.npy')" in fault(path)
    assert "has two members with one name (X.npy)" in fault(archive(path, X=X, X2=X, y=Y))
    assert "a compression that numpy does not use (X)" in fault(archive(path, zipfile.ZIP_LZMA, X=X, y=Y))
    data = bytearray(archive(path, X=X, y=Y).read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "has an encrypted array (X); save it without a password" in fault(path)


# Text


@pytest.mark.parametrize("word", ["1_000", "\uff11", "0x10", "1\x002", "1;5", "NA", "one", "x" * 10**6, "\x1b[31m"])
@pytest.mark.parametrize("ending", [".ts", ".tsv"])
def test_words_that_are_no_plain_numbers(tmp_path, word, ending):
    path = tmp_path / f"a{ending}"
    lines = f"1,2:a\n1,{word}:b\n" if ending == ".ts" else f"1\t2\t3\n1\t{word}\t3\n"
    path.write_text((TS_HEAD if ending == ".ts" else "") + lines, encoding="utf-8")
    assert re.search(rf"a{ending}, line {7 if ending == '.ts' else 2}: .*expected numbers, NaN or \?", fault(path))


def test_numbers_that_overflow_are_infinite_and_refused(tmp_path):
    assert "a.ts[1]: has infinite values" in fault(ts(tmp_path / "a.ts", ["1,2:a", "1,1e999:b"]))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_unicode_text(tmp_path, encoding):
    (tmp_path / "a.tsv").write_bytes("1\t2\t3\n2\t3\t4\n".encode(encoding))
    assert "a.tsv: is UTF-16 text, or no text; save it as UTF-8" in fault(tmp_path / "a.tsv")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_ends_of_lines(tmp_path, end):
    (tmp_path / "a.tsv").write_bytes(end.join(["1\t2\t3", "2\t3\t4", "1\t5\t6", "2\t7\t8", ""]).encode())
    assert len(load_examples(tmp_path / "a.tsv").examples) == 4


@pytest.mark.parametrize("name", ["a.ts", "a.tsv"])
def test_files_without_line_breaks_are_not_read_whole(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "_LONGEST_LINE", 5000)
    text = {"a.ts": TS_HEAD + "1," * 9000, "a.tsv": "1\t" * 9000}[name]
    (tmp_path / name).write_text(text)
    assert re.search(rf"{name}: line \d has 5,000 characters or more", fault(tmp_path / name))


def test_channels_that_would_be_padded_to_gigabytes(tmp_path):
    """The padding is computed before it is allocated."""
    path = ts(tmp_path / "a.ts", [":".join(["0," * 99_999 + "0", *["1"] * 3000]) + ":a"])
    message = (
        r"a.ts, line 6: 3,001 channels of 1 to 100,000 values; .* the 103,000 values so far would become 300,100,000"
    )
    assert re.search(message, fault(path))


def test_lines_of_colons(tmp_path):
    assert "nothing is observed" in fault(ts(tmp_path / "a.ts", [":" * 10**5 + "a", ":" * 10**5 + "b"]))


def test_tags_and_labels_are_bounded(tmp_path):
    assert "more than 1,000 tags and no @data line" in fault(
        ts(tmp_path / "a.ts", ["@t"], "\n".join(f"@t{i}" for i in range(1001)) + "\n")
    )
    assert "a label of 2,000,000 characters, 'zzz" in fault(ts(tmp_path / "a.ts", [f"1,2:{'z' * 2_000_000}"]))


@pytest.mark.parametrize(
    ("head", "lines", "found"),
    [
        ("@univariate true", ["1,2:3,4:a", "2,3:4,5:b"], "@univariate true, but 2 channels"),
        ("@dimensions 3", ["1,2:3,4:a", "2,3:4,5:b"], "@dimensions 3, but 2 channels"),
        ("@equalLength true", ["1,2:a", "2,3,4:b"], "@equalLength true, but 2 to 3 values"),
        ("", ["1,2:a", "2,3:c"], "labels that @classLabel does not list: c"),
    ],
)
def test_tags_that_do_not_fit_the_data_are_doubts(tmp_path, head, lines, found):
    path = ts(tmp_path / "a.ts", lines, f"{head}\n@classLabel true a b\n@data\n".lstrip())
    with pytest.warns(DataWarning, match=f"the tags of a.ts do not fit its data: {found}"):
        load_examples(path)


def test_a_header_of_counted_columns_is_a_doubt(tmp_path):
    (tmp_path / "a.tsv").write_text("0\t1\t2\t3\n1\t.5\t.7\t.1\n0\t.2\t.1\t.9\n")
    with pytest.warns(DataWarning, match=r"the first line of a.tsv counts up \(1, 2, 3, ...\), as names of columns do"):
        load_examples(tmp_path / "a.tsv")


def test_separators_at_the_end_of_every_line_are_no_missing_values(tmp_path):
    (tmp_path / "a.tsv").write_text("1\t2\t3\t\n2\t3\t4\t\n")
    for path in (
        ts(tmp_path / "a.ts", ["2,3,:4,5,:a", "3,4,:5,6,:b"], "@classLabel true a b\n@data\n"),
        tmp_path / "a.tsv",
    ):
        loaded = load_examples(path)
        assert loaded.examples[0][0].tolist() == [2, 3]
        assert "is ignored" in loaded.notes[0]
    path = ts(tmp_path / "a.ts", ["2,3,:4,5:a"], "@classLabel true a b\n@data\n")
    assert load_examples(path).examples[0].shape == (2, 3)


def test_column_vectors_to_predict_are_a_doubt(tmp_path):
    with pytest.warns(
        DataWarning, match="taken as 50 examples, by its number of axes, of a single value each; if it is"
    ):
        load_examples(npy(tmp_path / "a.npy", np.arange(50.0)[:, None]), dims=1, in_channels=1)


# Sounds, pictures and rasters


def wave(rate=8000, channels=1):
    data = bytes(800)
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, 0, 2 * channels & 0xFFFF, 16)
    return b"RIFF" + struct.pack("<I", 836) + b"WAVEfmt " + form + b"data" + struct.pack("<I", 800) + data


@pytest.mark.parametrize("rate", [0, 10**9, 2**31 - 1])
def test_absurd_sample_rates(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(wave(rate))
    for read in (read_audio, sound_header):
        with pytest.raises((ValueError, soundfile.LibsndfileError), match=r"sample rate of|Error"):
            read(tmp_path / "a.wav")


def test_sounds_that_claim_hours(tmp_path):
    data = bytearray(sound(tmp_path / "a.flac", frames=4000).read_bytes())
    data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36 | 10**10).to_bytes(8, "big")
    (tmp_path / "a.flac").write_bytes(data)
    for read in (read_audio, sound_header):
        assert "sound file of 1 channels and 10,000,000,000 frames unpacks from" in fault(tmp_path / "a.flac", read)


def test_rasters_that_inflate(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_UNPACKED", 100_000)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((500, 500, 5), np.uint16),
        compression="zlib",
        photometric="minisblack",
        planarconfig="contig",
    )
    assert "unpacks from" in fault(tmp_path / "a.tif", read_raster)


def test_pictures_of_which_pil_only_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(tmp_path / "a.png")
    for read in (read_image, image_size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert "has too many pixels for a picture (120, at most 100); cut it" in fault(tmp_path / "a.png", read)


def test_pictures_that_pil_refuses_are_value_errors(tmp_path, monkeypatch):
    """Its error is neither a ValueError nor an OSError; found by fuzzing, in TIFF files."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for read in (read_image, image_size, has_doubtful_alpha):
        assert "has too many pixels for a picture (PIL: " in fault(picture(tmp_path / "a.tif"), read)


def test_pictures_that_inflate(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_UNPACKED", 100_000)
    picture(tmp_path / "a.png", size=(400, 400))
    with (tmp_path / "a.png").open("rb") as opened:
        for source in (tmp_path / "a.png", opened):
            assert "unpacks from" in fault(source, read_image)


# Contents that are not read


def test_names_of_groups():
    assert unread("arrays", []) == []
    assert unread("arrays", ["fs", "subject_id", "info"]) == ["arrays not read: subject_id, fs, info"]
    assert [bool(type(unread("columns", [name])[0]) is not str) for name in ("PatientID", "groups", "Speaker 2")] == [
        1,
        1,
        1,
    ]
    assert [type(unread("columns", [name])[0]) for name in ("regrouped", "personal", "age")] == [str] * 3


def test_groups_of_an_archive_are_a_doubt_if_the_split_is_random(tmp_path):
    named = dict(X=X, y=Y, groups=np.arange(8) // 2, fs=np.array(100), info=np.array([{}]))  # objects stay unread
    np.savez(tmp_path / "a.npz", **named)
    with pytest.warns(DataWarning, match="arrays not read: groups, fs, info; the split at random ignores groups"):
        load_source(tmp_path / "a.npz")
    assert load_source(tmp_path / "a.npz", test_fraction=0).notes == ("arrays not read: groups, fs, info",)
    assert load_examples(tmp_path / "a.npz").notes == ("arrays not read: groups, fs, info",)
    np.savez(tmp_path / "a.npz", **named, X_test=X, y_test=Y)
    assert "arrays not read: groups, fs, info" in load_source(tmp_path / "a.npz").notes
    np.savez(tmp_path / "a.npz", X=X, labels=Y)
    assert "has no labels" in (message := fault(tmp_path / "a.npz"))
    assert message.endswith("arrays not read: labels")


def test_members_that_are_no_arrays_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as zipped:
        zipped.writestr("readme.txt", "mV at 360 Hz")
    assert "members that are no arrays not read: readme.txt" in load_source(tmp_path / "a.npz").notes


def test_columns_with_groups_are_a_doubt(tmp_path):
    pictures(tmp_path)
    lines = [f"{name}/{i}.png,{name},{i}" for name in ("cat", "dog") for i in range(4)]
    (tmp_path / "a.csv").write_text("path,label,Patient ID\n" + "\n".join(lines))
    with pytest.warns(DataWarning, match="columns not read: Patient ID; the split at random ignores groups"):
        load_source(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        ("data.npy", "labels.npy"),
        ("train_data.npy", "train_labels.npy"),
        ("X.npy", "Targets.txt"),
        ("features.npy", "y.npy"),
    ],
)
def test_labels_of_similar_names_are_read(tmp_path, data, labels):
    npy(tmp_path / data, X)
    npy(tmp_path / "other.npy", X)
    if labels.endswith(".txt"):
        (tmp_path / labels).write_text("\n".join(map(str, Y)))
    else:
        npy(tmp_path / labels, Y)
    source = load_source(tmp_path / data)
    assert source.notes[0] == f"targets from {labels}"
    assert len(source.train) + len(source.test) == 8


def test_labels_of_other_names_are_named(tmp_path):
    npy(tmp_path / "ecg.npy", X)
    npy(tmp_path / "labels.npy", Y)
    message = "files beside ecg.npy that may have targets are not read (labels.npy); rename it ecg_labels.npy"
    assert message in fault(tmp_path / "ecg.npy")
    assert message in load_examples(tmp_path / "ecg.npy", dims=1, in_channels=1).notes


def test_contents_beside_a_set_of_the_archive_are_named(tmp_path):
    folder = tmp_path / "Toy"
    for name in ("Toy_TRAIN", "Toy_TEST", "Other"):
        ts(folder / f"{name}.ts")
    assert "files beside the training file not read: Other.ts" in load_source(folder).notes
    pictures(folder)
    with pytest.warns(DataWarning, match="Toy/ is read as the set Toy, and its folders are not read: cat/, dog/"):
        load_source(folder)


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(tmp_path, monkeypatch):
    """Two threads in `catch_warnings` can end with everything ignored, and doubts with it."""
    npy(tmp_path / "a.npy", np.array([[1.0, np.nan], [np.nan, np.nan]]))
    monkeypatch.setattr(warnings, "catch_warnings", None)
    assert read_example(str(tmp_path / "a.npy")).shape == (2, 2)


def test_square_arrays_may_be_pictures(tmp_path):
    images = np.zeros((8, 28, 28), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None]
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=Y, x_test=images, y_test=Y)
    message = (
        r"examples of shape \(28, 28\) are read as 28 channels of 28 values; if they are pictures, .* X\[:, None\]"
    )
    for source in (tmp_path / "mnist.npz", (images, Y)):
        with pytest.warns(DataWarning, match=message):
            load_source(source)


def test_lists_of_faults_are_one_bounded_line():
    message = str(cannot_be_used("a", [f"b{i}\n: {'x' * 900}" for i in range(30)], 50, "lines"))
    assert message.isprintable()
    assert len(message) < 2000
    assert "; and 29 more. Repair" in message


def test_pictures_of_a_million_rows_are_refused_by_their_header(tmp_path):
    Image.new("L", (1, 2**20 + 1)).save(tmp_path / "a.png")
    for read in (read_image, image_size):
        assert "a side of 1,048,577 pixels, more than 1,048,576; cut it" in fault(tmp_path / "a.png", read)
