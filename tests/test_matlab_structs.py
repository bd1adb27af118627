"""Structs, arrays of structs and nested cells in MATLAB's .mat files, of versions 5 and 7.3."""

import struct

import numpy as np
import pytest
from scipy.io import savemat

from datafiles import MAT_NUMBER, cells, mat, mat_element, mat_matrix, xy
from ndvit.data.messages import Doubt
from ndvit.data.sources.columns import NO_ROLES, Roles
from ndvit.data.sources.load import load_source
from ndvit.data.sources.matlab import open_arrays
from ndvit.data.sources.named_arrays import holds_many, read_many, read_one


def newer(path, variables):
    """Write dicts, lists of dicts, text and arrays as MATLAB's version 7.3 does."""
    h5py = pytest.importorskip("h5py")

    def put(group, name, value):
        if isinstance(value, dict):
            group.create_group(name).attrs["MATLAB_class"] = b"struct"
            for field, one in value.items():
                put(group[name], field, one)
        elif isinstance(value, list) and isinstance(value[0], dict):  # an array of structs: references in each field
            group.create_group(name).attrs["MATLAB_class"] = b"struct"
            for field in value[0]:
                group[name][field] = references([one[field] for one in value])
        elif isinstance(value, list):
            group[name] = references(value)
            group[name].attrs["MATLAB_class"] = b"cell"
        elif isinstance(value, str):
            group[name] = np.array([[ord(letter)] for letter in value], dtype=np.uint16)
            group[name].attrs["MATLAB_class"] = b"char"
        else:
            group[name] = np.atleast_2d(value).T
            group[name].attrs["MATLAB_class"] = b"double"

    def references(values):
        names = []
        for value in values:
            names.append(str(len(file["#refs#"])))
            file["#refs#"].create_group(f"x{names[-1]}")  # keeps the number of what is put inside
            put(file["#refs#"], names[-1], value)
        return np.array([[file["#refs#"][name].ref for name in names]], dtype=h5py.ref_dtype)

    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_group("#refs#")
        for name, value in variables.items():
            put(file, name, value)


def older(path, variables):
    """Write the same as version 5, where a list of dicts is an array of structs."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        if isinstance(value, list) and isinstance(value[0], dict):
            array = np.empty((1, len(value)), dtype=[(name, object) for name in value[0]])
            for i, one in enumerate(value):
                array[0, i] = tuple(plain(part) for part in one.values())
            return array
        return cells([plain(one) for one in value]) if isinstance(value, list) else value

    savemat(path, {name: plain(value) for name, value in variables.items()})


@pytest.fixture(params=[older, newer], ids=["v5", "v7.3"])
def save(request, tmp_path):
    """A function that writes variables into a file and returns its path."""

    def write(**variables):
        request.param(tmp_path / "a.mat", variables)
        return tmp_path / "a.mat"

    return write


def test_the_fields_of_a_struct_are_a_recording(save):
    x = np.arange(20.0)
    path = save(data={"signal": x[:, None], "label": "inner race", "info": {"fs": 12000.0, "unit": "g"}}, version=3.0)
    found = read_one(path, NO_ROLES)
    np.testing.assert_array_equal(found.series.values, [x])
    assert (found.channels, found.target, found.series.rate) == (("data.signal",), "inner race", 12000)
    assert found.notes == [
        "one recording, 1 channel: data.signal; label: data.label, rate: data.info.fs",
        "arrays not read: data.info.unit, version",
    ]


def test_nested_structs_are_named_by_a_word(save):
    x = np.arange(8.0)
    path = save(X097=dict(drive={"DE_time": x[:, None], "FE_time": -x[:, None]}, ball={"BA_time": x[None] * 2}))
    found = read_one(path, NO_ROLES)  # version 7.3 has fields in the order of their names
    values = dict(zip(found.channels, found.series.values.tolist()))
    assert values["X097.drive.FE_time"] == (-x).tolist()
    assert sorted(values) == ["X097.ball.BA_time", "X097.drive.DE_time", "X097.drive.FE_time"]
    assert read_one(path, Roles(array=("DE",))).series.values.tolist() == [x.tolist()]
    assert read_one(path, Roles(array=("X097.ball.BA_time",))).series.values.tolist() == [(2 * x).tolist()]


def test_an_array_of_structs_is_as_many_examples(save):
    series = [np.arange(2.0 * n).reshape(n, 2) for n in (5, 7, 9)]
    rows = [
        {"signal": x, "label": label, "meta": {"subject": subject, "fs": 50.0}}
        for x, label, subject in zip(series, ["walk", "run", "walk"], [3.0, 3.0, 4.0])
    ]
    path = save(data=rows)
    parts, notes = read_many(path, Roles(columns=("subject",)), with_targets=True)
    part = parts["train"]
    assert [item.values.tolist() for item in part.items] == [x.T.tolist() for x in series]
    assert [item.rate for item in part.items] == [50] * 3
    assert part.targets == ["walk", "run", "walk"]
    assert part.columns == {"subject": [3, 3, 4]}
    assert notes == [
        "examples: data.signal (3 of 2 channels x 5); label: data.label, group: data.meta.subject, rate: data.meta.fs"
    ]
    assert holds_many(path, NO_ROLES, 1, 2)


def test_each_of_several_structs_has_its_rate_and_may_lack_a_label(save):
    rows = [{"x": np.arange(5.0)[None], "fs": rate, "label": y} for rate, y in ((10.0, 1.0), (20.0, np.zeros((0, 0))))]
    part = read_many(save(s=rows), NO_ROLES, with_targets=True)[0]["train"]
    assert [item.rate for item in part.items] == [10, 20]
    assert part.targets == [1, None]


def test_cells_of_structs_and_cells_in_a_struct_are_examples(save):
    series = [np.arange(float(n))[None] for n in (5, 7)]
    for path in (
        save(data=[[{"signal": x, "label": "ab"[i]}] for i, x in enumerate(series)]),
        save(data={"signal": [[x] for x in series], "label": [["a"], ["b"]]}),
    ):
        part = read_many(path, NO_ROLES, with_targets=True)[0]["train"]
        assert [item.tolist() for item in part.items] == [x.tolist() for x in series]
        assert part.targets == ["a", "b"]
    with pytest.raises(ValueError, match=r"got data.label 2 texts \(not read: data.signal \(cells in cells\)\)"):
        read_many(save(data={"signal": [series, series], "label": ["a", "b"]}), NO_ROLES, with_targets=True)
    part = read_many(save(data={"signals": series, "labels": ["a", "b"]}), NO_ROLES, with_targets=True)[0]["train"]
    assert [item.tolist() for item in part.items] == [x.tolist() for x in series]
    assert part.targets == ["a", "b"]


def test_structs_called_train_and_test_are_the_splits(save):
    (x, y), (other, _) = xy(6, (9,)), xy(4, (9,))
    path = save(training={"X": x, "y": y[:, None] + 0.0}, test={"X": other, "y": np.zeros((4, 1))})
    parts, _ = read_many(path, NO_ROLES, with_targets=True)
    assert {split: len(part.items) for split, part in parts.items()} == {"train": 6, "test": 4}
    assert parts["train"].targets == y.tolist()
    assert parts["test"].targets == [0] * 4


def test_doubtful_fields_are_listed_with_the_flag(save):
    rows = [{"x": np.arange(n)[None], "y": np.arange(n)[None], "label": "a"} for n in (5.0, 7.0)]
    path = save(acc=rows)
    with pytest.raises(ValueError, match=r"got .*acc.x 2 arrays, acc.y 2 arrays.* --array"):
        load_source(path)
    part = read_many(path, Roles(array=("acc.x", "acc.y")), with_targets=True)[0]["train"]
    assert [item.tolist() for item in part.items] == [[list(range(n))] * 2 for n in (5, 7)]
    path = save(normal={"signal": np.zeros((1, 9))}, fault={"signal": np.zeros((1, 7))})
    with pytest.raises(ValueError, match=r"got .*fault.signal \(1, 7\).*: name them with --array"):
        read_one(path, NO_ROLES)


def test_labels_and_rates_of_several_structs_are_not_guessed(save):
    path = save(signal=np.arange(9.0)[None], a={"fs": 10.0, "label": "x"}, b={"fs": 20.0, "label": "y"})
    with pytest.raises(ValueError, match=r"labels may be a.label, b.label; choose with --label"):
        read_one(path, NO_ROLES)
    found = read_one(path, Roles(label=("b.label",)))
    assert (found.target, found.series.rate) == ("y", None)
    assert any(isinstance(note, Doubt) and "may be a.fs 10, b.fs 20" in note for note in found.notes)


def test_what_is_no_number_text_cell_or_struct_is_listed(tmp_path):
    h5py = pytest.importorskip("h5py")
    newer(tmp_path / "a.mat", {"data": {"signal": np.arange(9.0)[None], "name": np.arange(6.0)[None]}})
    with h5py.File(tmp_path / "a.mat", "a") as file:
        file["data/name"].attrs["MATLAB_class"] = b"string"  # the values are places in a hidden table
    assert read_one(tmp_path / "a.mat", NO_ROLES).notes[1] == "arrays not read: data.name (string)"
    names = b"".join(mat_element(1, name) for name in (b"", b"MCOS", b"string"))
    opaque = mat_element(14, mat_element(6, struct.pack("<II", 17, 0)) + names + mat_matrix(6, MAT_NUMBER))
    with open_arrays(mat(tmp_path / "b.mat", structs(("x", "y"), [mat_matrix(6, MAT_NUMBER), opaque]))) as found:
        assert (list(found.headers), found.others) == (["a.x"], ["a.y (object)"])
        assert found.read("a.x").tolist() == [[1]]


def structs(names, values, shape=(1, 1)):
    """A variable of version 5 with structs."""
    fields = b"".join(name.encode().ljust(8, b"\0") for name in names)
    return mat_matrix(2, mat_element(5, struct.pack("<i", 8)) + mat_element(1, fields) + b"".join(values), shape=shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (structs(("x", "y"), [mat_matrix(6, MAT_NUMBER)]), "1 structs of 2 fields have 1 values"),
        (
            structs(("x",), [mat_matrix(6, MAT_NUMBER)], shape=(10**9, 1)),
            "1,000,000,000 structs of 1 fields have 1 values",
        ),
        (structs(("x",), [mat_matrix(6, MAT_NUMBER)] * 2), "a struct with other fields than their names"),
        (structs(("x", "x"), [mat_matrix(6, MAT_NUMBER)] * 2), "a struct with other fields than their names"),
        (structs(("x",), [mat_matrix(6, MAT_NUMBER, shape=(10**6, 10**3))]), "an array of shape .* has 8 bytes"),
    ],
    ids=["fewer", "count", "more", "twice", "shape"],
)
def test_damaged_structs_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message), open_arrays(mat(tmp_path / "a.mat", content)):
        pass


def test_structs_in_circles_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        group = file.create_group("a")
        group["again"] = group
        file["b"] = np.zeros(1)
        file["outside"] = h5py.ExternalLink("other.mat", "/X")
    with pytest.raises(ValueError, match="more than 16 deep or in circles"), open_arrays(tmp_path / "a.mat"):
        pass
    with h5py.File(tmp_path / "b.mat", "w") as file:  # each level has 1,000 times as many
        cell = file.create_dataset("a", (1, 1000), dtype=h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = b"cell"
        cell[:] = np.array([[file["a"].ref] * 1000], dtype=h5py.ref_dtype)
    with pytest.raises(ValueError, match=r"in circles|expected fewer"), open_arrays(tmp_path / "b.mat"):
        pass
