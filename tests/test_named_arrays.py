"""Files of named arrays (.mat, .h5, .npz) and of recordings: many examples, one recording, a folder of recordings."""

import zlib

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from datafiles import MAT_NUMBER, cells, mat, mat_element, mat_matrix, sound, table, walks, xy
from ndvit.data.examples import Recording
from ndvit.data.messages import Doubt
from ndvit.data.sources.columns import NO_ROLES, Roles
from ndvit.data.sources.lists import read_list
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.matlab import open_arrays
from ndvit.data.sources.named_arrays import holds_many, read_many, read_one
from ndvit.data.sources.recordings import read_file

# ------------------------------------------------------------------------------------------------- many examples


@pytest.mark.parametrize("compressed", [False, True])
def test_a_mat_file_of_examples_with_text_labels_and_groups(tmp_path, compressed):
    x, y = xy(6, (2, 9))
    labels = np.where(y, "walk", "run")
    values = {"X": x, "labels": cells(labels), "subject": np.array([[3, 3, 3, 4, 4, 4]]), "note": {"a": 1}}
    savemat(tmp_path / "a.mat", values, do_compression=compressed)
    parts, notes = read_many(tmp_path / "a.mat", Roles(columns=("subject",)), with_targets=True)
    np.testing.assert_array_equal(parts["train"].items, x)
    assert parts["train"].targets == labels.tolist()
    assert parts["train"].columns == {"subject": [3, 3, 3, 4, 4, 4]}
    assert notes == [
        "examples: X (6 of 2 channels x 9); label: labels, group: subject",
        "arrays not read: note.a",
    ]


def test_examples_on_the_last_axis_and_a_rate(tmp_path):
    x, y = xy(6, (2, 9))
    savemat(tmp_path / "a.mat", {"eeg": np.moveaxis(x, 0, -1), "y": y[:, None] * 1.5, "fs": 250})
    parts, notes = read_many(tmp_path / "a.mat", NO_ROLES, with_targets=True)
    assert [item.rate for item in parts["train"].items] == [250] * 6
    np.testing.assert_array_equal([item.values for item in parts["train"].items], x)
    assert parts["train"].targets == [0, 1.5] * 3
    assert notes[0] == "the last axis of eeg (2, 9, 6) is that of the examples, as many as labels"


def test_cells_of_different_length_are_examples(tmp_path):
    series = [np.arange(2.0 * n).reshape(n, 2) for n in (5, 7, 9)]
    savemat(tmp_path / "a.mat", {"data": cells(series), "target": [[1, 2, 3]]})
    part = read_many(tmp_path / "a.mat", NO_ROLES, with_targets=True)[0]["train"]
    assert [item.tolist() for item in part.items] == [one.T.tolist() for one in series]  # columns are channels


def test_named_arrays_of_an_npz_are_channels(tmp_path):
    x, y = xy(8, (9,))
    np.savez(tmp_path / "a.npz", drive_DE=x, drive_FE=-x, speed=x[:, 0], fault=y)
    source = load_source(tmp_path / "a.npz", array="DE,FE", label="fault", test_fraction=0)
    np.testing.assert_array_equal(source.train[3], [x[3], -x[3]])
    assert source.notes == (
        "channels: drive_DE, drive_FE (8 of 2 channels x 9); label: fault",
        "arrays not read: speed",
    )
    loaded = load_examples(tmp_path / "a.npz", array="DE,FE", dims=1, in_channels=2)
    np.testing.assert_array_equal(loaded.examples[7], [x[7], -x[7]])


def test_hdf5_with_groups_text_and_compression(tmp_path):
    h5py = pytest.importorskip("h5py")
    x, y = xy(6, (2, 9))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/X", data=x, compression="gzip")
        file["train/y"] = np.where(y, b"walk", b"run")
        file["link"] = h5py.ExternalLink("other.h5", "/X")
    parts, _ = read_many(tmp_path / "a.h5", Roles(array=("train/X",), label=("train/y",)), with_targets=True)
    np.testing.assert_array_equal(parts["train"].items, x)
    assert parts["train"].targets == ["run", "walk"] * 3


@pytest.mark.parametrize("block", [0, 512])
@pytest.mark.parametrize("how", [{}, {"chunks": (2,)}, {"chunks": (4,), "compression": "gzip", "shuffle": True}])
def test_values_of_hdf5_in_every_layout(tmp_path, how, block):
    h5py = pytest.importorskip("h5py")
    numbers, texts = np.arange(5.0) ** 2, ["a", "bcd", "", "é", "a"]
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=block) as file:
        file.create_dataset("numbers", data=numbers, **how)
        file.create_dataset("big endian", data=numbers.astype(">i2"), fletcher32=bool(how), **how)
        file.create_dataset("texts", data=texts, dtype=h5py.string_dtype(), **how)
        file.create_dataset("fixed", data=np.array(texts[:2], dtype="S3"))
        lists = file.create_dataset("lists", (5,), dtype=h5py.vlen_dtype(np.float32), **how)
        lists[1], lists[4] = [1, 2], [3]
    with open_arrays(tmp_path / "a.h5") as found:
        assert found.read("numbers").tolist() == found.read("big endian").tolist() == numbers.tolist()
        assert found.read("texts").tolist() == texts
        assert found.read("fixed").tolist() == texts[:2]
        assert [one.tolist() for one in found.read("lists")] == [[], [1, 2], [], [], [3]]


def test_mat_files_of_version_7_3(tmp_path):
    h5py = pytest.importorskip("h5py")
    x, y = xy(4, (3, 9))
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["X"] = x.T  # MATLAB's axes are in the order of Fortran
        names = [file.create_dataset(f"#refs#/{i}", data=[[ord(n)] for n in f"c{label}"]) for i, label in enumerate(y)]
        for name in names:
            name.attrs["MATLAB_class"] = b"char"
        file.create_dataset("labels", data=[[name.ref for name in names]], dtype=h5py.ref_dtype)
        file["labels"].attrs["MATLAB_class"] = b"cell"
    part = read_many(tmp_path / "a.mat", NO_ROLES, with_targets=True)[0]["train"]
    np.testing.assert_array_equal(part.items, x)
    assert part.targets == ["c0", "c1", "c0", "c1"]


def test_without_examples_the_arrays_are_listed(tmp_path):
    savemat(tmp_path / "a.mat", {"left": np.zeros((3, 4)), "right": np.zeros((3, 4))})
    with pytest.raises(
        ValueError,
        match=r"a.mat: expected arrays X and y.*; got left \(3, 4\), right \(3, 4\): .* --array .* --label",
    ):
        load_source(tmp_path / "a.mat")
    with pytest.raises(ValueError, match=r"a.mat: has no array 'up' \(--array\); arrays: left, right"):
        load_source(tmp_path / "a.mat", array="up")


# ------------------------------------------------------------------------------------------------- one recording


def test_vectors_of_one_length_are_the_channels_of_a_recording(tmp_path):
    x = np.arange(20.0)
    savemat(tmp_path / "a.mat", {"X118_DE_time": x[:, None], "X118_FE_time": -x[:, None], "X118RPM": 1797})
    both, one = read_one(tmp_path / "a.mat", NO_ROLES), read_one(tmp_path / "a.mat", Roles(array=("FE",)))
    assert (both.channels, one.channels) == (("X118_DE_time", "X118_FE_time"), ("FE",))
    np.testing.assert_array_equal(both.series.values, [x, -x])
    np.testing.assert_array_equal(one.series.values, [-x])


def test_columns_of_a_matrix_are_channels_with_times_and_label(tmp_path):
    x = np.arange(60.0).reshape(20, 3)
    savemat(tmp_path / "a.mat", {"acc": x, "t": np.arange(20)[:, None] / 100, "label": "walk"})
    found = read_one(tmp_path / "a.mat", Roles(channels=("0", "2")))
    np.testing.assert_array_equal(found.series.values, x.T[[0, 2]])
    assert (found.target, found.in_seconds, found.series.times[1]) == ("walk", True, pytest.approx(0.01))
    assert "acc of shape (20, 3) is read as 3 channels of 20 values" in found.notes


def test_the_axes_of_other_files_are_exchanged_with_a_doubt(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["acc"], file["fs"] = np.arange(60.0).reshape(20, 3), 50.0
    found = read_one(tmp_path / "a.h5", NO_ROLES)
    assert (found.series.values.shape, found.series.rate) == ((3, 20), 50)
    assert any(isinstance(note, Doubt) for note in found.notes)


def test_a_file_is_one_recording_or_many_by_its_labels_and_the_model(tmp_path):
    savemat(tmp_path / "one.mat", {"a": np.zeros((50, 1))})
    savemat(tmp_path / "many.mat", {"X": np.zeros((5, 50))})
    savemat(tmp_path / "labelled.mat", {"X": np.zeros((5, 50)), "y": np.arange(5)})
    found = [holds_many(tmp_path / f"{name}.mat", NO_ROLES, 1, 1) for name in ("one", "many", "labelled")]
    assert found == [False, True, True]
    assert not holds_many(tmp_path / "many.mat", NO_ROLES, 1, 5)  # five channels


@pytest.mark.parametrize("suffix", [".edf", ".bdf"])
def test_edf_has_channels_at_the_rate_of_most(tmp_path, suffix):
    edfio = pytest.importorskip("edfio")
    kinds = {".edf": (edfio.Edf, edfio.EdfSignal), ".bdf": (edfio.Bdf, edfio.BdfSignal)}
    whole, signal = kinds[suffix]
    x = np.sin(np.arange(200) / 9)
    signals = [signal(x * (i + 1), 100, label=f"C{i}") for i in range(2)] + [signal(x[:2], 1, label="Temp")]
    whole(signals).write(tmp_path / f"a{suffix}")
    found = read_file(tmp_path / f"a{suffix}", NO_ROLES)
    assert (found.channels, found.series.rate) == (("C0", "C1"), 100)
    np.testing.assert_allclose(found.series.values, [x, 2 * x], atol=1e-3)
    assert found.notes == ["one recording at 100 Hz, channels: C0, C1", "channels not read: Temp"]
    assert read_file(tmp_path / f"a{suffix}", Roles(channels=("C1",))).series.values.shape == (1, 200)


# ------------------------------------------------------------------------------------------ a file for each recording


def recordings(folder, suffix=".csv", by_class=True, inside=False):
    frame = pd.DataFrame(walks(8))
    for (number, subject, activity), rows in frame.groupby(["recording", "subject", "activity"]):
        rows = rows[["time_s", "ax", "ay", *(["activity"] if inside else [])]]
        path = (folder / activity if by_class else folder) / f"{subject}_{activity}_{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".csv":
            rows.to_csv(path, index=False)
        elif suffix == ".parquet":
            rows.to_parquet(path, index=False)
        else:
            savemat(path, {"values": rows[["ax", "ay"]].to_numpy(), "t": rows.time_s.to_numpy()})
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".mat"])
def test_class_folders_of_recordings(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    source = load_source(recordings(tmp_path / "all", suffix), group_by="path:{subject}_*_*", test_fraction=0)
    assert (source.task.classes, len(source.train), set(source.train.groups)) == (("run", "walk"), 8, {"s0", "s1"})
    assert {(type(item), item.rate, item.values.shape) for item in source.train} == {(Recording, 50.0, (2, 40))}
    np.testing.assert_allclose(source.train[0].values[0], walks(8)["ax"][:40], rtol=1e-5)


def test_labels_in_the_files_or_in_their_names(tmp_path):
    inside = load_source(recordings(tmp_path / "a", by_class=False, inside=True), test_fraction=0)
    by_name = load_source(recordings(tmp_path / "b", by_class=False), label="path:*_{label}_*", test_fraction=0)
    assert inside.task.classes == by_name.task.classes == ("run", "walk")
    np.testing.assert_array_equal(inside.train.targets, by_name.train.targets)
    with pytest.raises(ValueError, match=r"no labels; .*--label path:PATTERN"):
        load_source(tmp_path / "b")


def test_labels_in_the_names_of_sounds(tmp_path):
    for i in range(6):
        sound(tmp_path / f"{i % 2}_anna_{i}.wav", frames=50 + i)
    source = load_source(tmp_path, label="path:{digit}_*_*", group_by="path:*_{speaker}_*", test_fraction=0)
    assert (source.task.classes, source.train.targets.tolist()) == (("0", "1"), [0, 0, 0, 1, 1, 1])


def test_a_list_of_recordings_with_labels_and_subjects(tmp_path):
    names = sorted(path.name for path in recordings(tmp_path, by_class=False).iterdir())
    rows = {"path": names, "kind": [n.split("_")[1] for n in names], "person": [n.split("_")[0] for n in names]}
    source = load_source(table(tmp_path / "list.csv", rows), label="kind", group_by="person", test_fraction=0)
    assert source.task.classes == ("run", "walk")
    assert isinstance(source.train[0], Recording)
    assert source.train.groups.tolist() == ["s0"] * 4 + ["s1"] * 4


def test_a_list_with_several_labels(tmp_path):
    rows = {"path": ["a.npy", "b.npy"], "red": [1, 0], "blue": [1, 1]}
    for name in rows["path"]:
        np.save(tmp_path / name, np.zeros(5))
    parts, notes = read_list(
        table(tmp_path / "list.csv", rows), with_targets=True, skip_bad=False, labels=("red", "blue")
    )
    assert parts["train"].targets == [{"red": "1", "blue": "1"}, {"red": "0", "blue": "1"}]
    assert notes == []


def test_recordings_to_predict(tmp_path):
    folder = recordings(tmp_path, by_class=False)
    loaded = load_examples(folder, dims=1, in_channels=2)
    assert len(loaded.examples) == 8
    one = load_examples(next(iter(sorted(folder.iterdir()))), dims=1, in_channels=2)
    np.testing.assert_array_equal(one.examples[0].values, loaded.examples[0].values)


def test_bad_recordings_are_listed_or_left_out(tmp_path):
    folder = recordings(tmp_path)
    (folder / "run" / "empty.csv").write_text("")
    (folder / "walk" / "short.csv").write_text("time_s,ax,ay\n")
    message = "2 of 10 files cannot be used: run/empty.csv: is empty.*; walk/short.csv: has no rows.* --skip-bad"
    with pytest.raises(ValueError, match=message):
        load_source(folder)
    source = load_source(folder, skip_bad=True, test_fraction=0)
    assert len(source.train) == 8
    assert any(note.startswith("2 of 10 files left out as bad") for note in source.notes)


def test_recordings_with_other_channels_are_refused(tmp_path):
    folder = recordings(tmp_path)
    table(folder / "run" / "other.csv", {"time_s": [0, 1], "ax": [1, 2]})
    with pytest.raises(
        ValueError, match=r"run/s0_run_0.csv has the channels ax, ay, run/other.csv has ax; .*--channels"
    ):
        load_source(folder)
    assert load_source(folder, channels="ax", test_fraction=0).train[0].values.shape == (1, 2)


def test_tables_beside_other_files_are_no_examples(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            sound(tmp_path / name / f"{i}.wav")
        table(tmp_path / name / "notes.csv", {"x": [1, 2], "y": [3, 4]})
    source = load_source(tmp_path, test_fraction=0)
    assert len(source.train) == 6
    assert "2 left out, beside files of another kind: a/notes.csv, b/notes.csv" in source.notes


# ------------------------------------------------------------------------------------------------- untrusted files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (mat_matrix(6, MAT_NUMBER, shape=(10**6, 10**3)), "an array of shape .* has 8 bytes"),
        (mat_matrix(1, b"", shape=(10**9, 1)), "a cell array of 1,000,000,000 cells has 0"),
        (mat_matrix(6, MAT_NUMBER)[:-8], "is damaged or cut off"),
        (mat_element(15, zlib.compress(mat_matrix(6, MAT_NUMBER))[:-9]), "is damaged or cut off"),
        (b"\0" * 8, "an array is longer than the file"),
    ],
    ids=["shape", "cells", "cut", "cut zip", "no array"],
)
def test_mat_files_that_could_harm_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message), open_arrays(mat(tmp_path / "a.mat", content)):
        pass


def test_a_mat_file_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ndvit.files._MOST_UNPACKED", 2**20)
    path = mat(tmp_path / "a.mat", mat_element(15, zlib.compress(bytes(2**23))))
    with pytest.raises(ValueError, match=r"unpacks from .* could fill the memory"), open_arrays(path):
        pass


def test_deeply_nested_cells_do_not_crash(tmp_path):
    inner = mat_matrix(6, MAT_NUMBER)
    for _ in range(2_000):
        inner = mat_matrix(1, inner)
    with pytest.raises(ValueError, match="has structs or cells in each other, more than 16 deep"):
        load_source(mat(tmp_path / "a.mat", inner))


def test_hdf5_files_that_could_fill_the_memory_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", shape=(2**20, 2**12), chunks=(2**10, 2**10), dtype="f8", compression="gzip")
    with pytest.raises(ValueError, match=r"a.h5: unpacks from .* could fill the memory"):
        load_source(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [(".parquet", "pyarrow", "parquet"), (".h5", "h5py", "hdf5"), (".edf", "edfio", "edf")],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, suffix, package, extra):
    monkeypatch.setattr("ndvit.data.sources.packages.find_spec", lambda name: None)
    (tmp_path / f"a{suffix}").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match=rf"need the package {package}, .* pip install 'ndvit\[{extra}\]'"):
        read_file(tmp_path / f"a{suffix}", NO_ROLES)
