"""Tables with named columns: what is an example, a channel, a label, an id, a time; in files and in memory."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datafiles import table, walks, xy
from ndvit.data.examples import Recording
from ndvit.data.messages import DataWarning, Doubt
from ndvit.data.sources.column_files import is_table_of_values, read_columns
from ndvit.data.sources.columns import NO_ROLES, Roles, columns_of
from ndvit.data.sources.layouts import read_examples
from ndvit.data.sources.load import load_examples, load_source


def read(source, roles=NO_ROLES, with_targets=True, **how):
    columns = columns_of(source, "X") if not isinstance(source, Path) else read_columns(source, roles)
    return read_examples(columns, roles, with_targets=with_targets, **how)


def test_a_wide_table_has_an_example_in_each_row(tmp_path):
    path = table(tmp_path / "a.csv", {"id": ["p", "q", "r"], "v0": [1, 2, 3], "v1": [4, 5, 6.5], "label": [0, 1, 0]})
    found = read(path)
    assert [item.tolist() for item in found.items] == [[[1, 4]], [[2, 5]], [[3, 6.5]]]
    assert (found.targets, found.names) == ([0, 1, 0], ["a.csv[p]", "a.csv[q]", "a.csv[r]"])
    assert found.notes == ["a row is an example: 1 channel of 2 values (v0, v1); label: label, id: id"]


def test_numbered_columns_of_several_stems_are_channels(tmp_path):
    names = [f"{channel}_{i}" for i in (2, 0, 1) for channel in ("gyr", "acc")]
    found = read(table(tmp_path / "a.csv", {name: [i, -i] for i, name in enumerate(names)} | {"class": ["a", "b"]}))
    assert found.channels == ("gyr", "acc")
    assert found.items[0].tolist() == [[2, 4, 0], [3, 5, 1]]  # in the order of the numbers


def test_the_only_column_of_text_has_the_labels(tmp_path):
    found = read(table(tmp_path / "a.csv", {"x": [1, 2, 3], "y": [4, 5, 6], "kind of leaf": ["oak", "elm", "oak"]}))
    assert found.targets == ["oak", "elm", "oak"]
    assert found.notes[0] == "labels from the column kind of leaf, the only one of text"


@pytest.mark.parametrize(("written", "targets"), [("007", ["007", "8"]), ("7", [7, 8]), ("0.5", [0.5, 8.0])])
def test_labels_are_text_or_numbers_as_they_are_written(tmp_path, written, targets):
    path = tmp_path / "a.csv"
    path.write_text(f"v,label\n1,{written}\n2,8\n")
    assert read(path).targets == targets


def test_a_missing_label_is_none_and_a_word_for_it_stays(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("v,label\n1,a\n2,\n3,NA\n")
    assert read(path).targets == ["a", None, "NA"]


def test_several_labels_are_dicts(tmp_path):
    path = table(tmp_path / "a.csv", {"v0": [1, 2], "v1": [3, 4], "red": [0, 1], "blue": [1, 1]})
    assert read(path, Roles(label=("red", "blue"))).targets == [{"red": 0, "blue": 1}, {"red": 1, "blue": 1}]


def test_semicolons_decimal_commas_and_comments(tmp_path):
    path = tmp_path / "logger.csv"
    path.write_text("# Logger 3\n# 50 Hz\nTemp (°C);p;label\n1,5;2;a\n-0,25;;b\n", encoding="cp1252")
    found = read(path)
    assert found.items[0].tolist() == [[1.5, 2]]
    assert found.items[1][0, 0] == -0.25
    assert np.isnan(found.items[1][0, 1])
    assert found.notes[0] == "logger.csv: 2 lines of comments at the beginning not read"


def test_a_table_without_a_header_has_numbers_as_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,0.5,0.25\n2,1.5,1.25\n")
    found = read(path, Roles(label=("0",)))
    assert (found.targets, found.items[1].tolist()) == ([1, 2], [[1.5, 1.25]])
    assert read(path, Roles(label=("-1",))).targets == [0.25, 1.25]


def test_the_index_that_pandas_saves_is_not_read(tmp_path):
    pd.DataFrame({"v0": [1.5, 2], "v1": [0, 1], "label": ["a", "b"]}).to_csv(tmp_path / "a.csv")
    found = read(tmp_path / "a.csv")
    assert found.items[0].tolist() == [[1.5, 0]]
    assert found.notes[0] == "the column that counts the rows is not read"


# ------------------------------------------------------------------------------------------------------------ long


def test_a_long_table_has_an_example_for_each_id(tmp_path):
    values = walks()
    source = load_source(table(tmp_path / "walks.csv", values), group_by="subject", test_fraction=0)
    assert source.train.names[:2] == ["walks.csv[0]", "walks.csv[1]"]
    assert isinstance(source.train[1], Recording)
    assert source.train[1].rate == 50
    expected = np.stack([values["ax"][40:80], values["ay"][40:80]])
    np.testing.assert_allclose(source.train[1].values, expected, rtol=1e-6)
    assert source.task.classes == ("run", "walk")
    assert source.train.groups.tolist() == ["s0"] * 4 + ["s1"] * 4 + ["s2"] * 4
    assert source.notes[0] == (
        "rows of one recording are an example (12), channels: ax, ay; label: activity, id: recording, time: time_s, "
        "group: subject"
    )


def test_rows_of_a_long_table_may_have_any_order():
    frame = pd.DataFrame(walks(3))
    found = read(frame.sample(frac=1, random_state=0))
    order = [int(name[2:-1]) for name in found.names]
    for number, item in zip(order, found.items):
        np.testing.assert_allclose(item.values[0], frame[frame.recording == number].ax, rtol=1e-6)
    assert any(note.startswith("rows that are not in the order of time in 3 of 3") for note in found.notes)


def test_several_ids_tell_examples_apart():
    frame = pd.DataFrame(walks(4)).drop(columns="recording")
    frame["time_s"] = np.arange(len(frame)) / 50
    found = read(frame, Roles(id=("subject", "activity")))
    assert (found.names, found.targets) == (["X[s0/run]", "X[s0/walk]"], ["run", "walk"])


def test_one_row_for_each_channel_and_moment():
    frame = pd.DataFrame(walks(2)).drop(columns="subject")
    tidy = frame.melt(id_vars=["recording", "time_s", "activity"], var_name="channel").sample(frac=1, random_state=1)
    found, expected = read(tidy), read(frame)
    assert found.channels == expected.channels == ("ax", "ay")
    by_name = dict(zip(found.names, found.items))
    for name, item in zip(expected.names, expected.items):
        np.testing.assert_array_equal(by_name[name].values, item.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activity": ["run", "walk"] * 40}, "row 1: the label .column activity. changes within an example, X.0."),
        ({"time_s": np.tile(np.arange(20) / 50, 4)}, r"X\[0\]: its times start again after 20 rows.*--id"),
        ({"time_s": ["x"] * 80}, "the column time_s has text such as 'x'; expected times"),
        ({"ax": ["a"] + ["1"] * 79}, "row 0: 'a' in the column ax, expected a number .1 such field"),
        ({"recording": [None] * 80}, "row 0: no value in the column recording"),
        ({"trial": [0, 1] * 40}, "the columns recording, trial may all tell the examples apart; name .* --id"),
        ({"label": ["a", "b"] * 40}, "the columns activity, label may all be the label|changes within"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_long_tables_of_unclear_meaning_are_refused(change, message):
    frame = pd.DataFrame({**walks(2), **change})
    with pytest.raises(ValueError, match=message):
        read(frame)


def test_a_recording_of_many_rows_is_no_training_set(tmp_path):
    one = {name: values for name, values in walks(1).items() if name in ("time_s", "ax", "ay")}
    found = read(table(tmp_path / "a.csv", one), with_targets=False)
    assert (found.names, found.items[0].rate, found.items[0].values.shape) == (["a.csv"], 50, (2, 40))


def test_a_table_without_roles_is_one_recording_or_many_examples_as_the_model_needs(tmp_path):
    path = table(tmp_path / "a.csv", {"left": np.arange(5), "right": np.arange(5) + 10})
    assert [item.shape for item in read(path, with_targets=False, channels=2).items] == [(2, 5)]
    assert [item.shape for item in read(path, with_targets=False, channels=1).items] == [(1, 2)] * 5
    found = read(path, with_targets=False)
    assert isinstance(found.notes[0], Doubt)


def test_the_columns_of_a_model_are_those_of_its_training(tmp_path):
    path = table(tmp_path / "new.csv", {"b": [1, 2, 3], "extra": [7, 8, 9], "a": [4, 5, 6]})
    loaded = load_examples(path, dims=1, in_channels=2, channels="a,b")
    assert loaded.examples[0].tolist() == [[4, 5, 6], [1, 2, 3]]  # in their order


# ------------------------------------------------------------------------------------------------------- in memory


def frames():
    values = {name: array.tolist() for name, array in walks(4).items()}
    yield "pandas", pd.DataFrame(values)
    yield "index of two levels", pd.DataFrame(values).set_index(["recording", "time_s"])
    yield "categories", pd.DataFrame(values).astype({"activity": "category", "subject": "string", "ax": "Float64"})
    yield "durations", pd.DataFrame({**values, "time_s": pd.to_timedelta(values["time_s"], unit="s")})


@pytest.mark.parametrize(("name", "frame"), list(frames()), ids=lambda value: value if isinstance(value, str) else "")
def test_long_frames_of_pandas(name, frame):
    source = load_source(frame, group_by="subject", test_fraction=0)
    expected = load_source(next(frames())[1], group_by="subject", test_fraction=0)
    assert source.task.classes == expected.task.classes
    for one, other in zip(source.train, expected.train):
        assert one.rate == other.rate
        np.testing.assert_allclose(one.values, other.values, rtol=1e-6)


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_long_frames_of_other_libraries(library):
    pytest.importorskip(library)
    values = {name: array.tolist() for name, array in walks(4).items()}
    if library == "polars":
        import polars

        frame = polars.DataFrame(values).lazy()
    else:
        import pyarrow

        frame = pyarrow.table(values)
    found, expected = read(frame), read(pd.DataFrame(values))
    assert (found.targets, found.names, found.channels) == (expected.targets, expected.names, expected.channels)
    np.testing.assert_array_equal(found.items[3].values, expected.items[3].values)


def test_a_wide_frame_is_a_source_and_its_rows_are_examples():
    x, y = xy(12, (6,))
    source = load_source(pd.DataFrame(x).assign(label=np.where(y, "b", "a")), test_fraction=0)
    np.testing.assert_array_equal(source.train[3], x[3:4])
    assert source.task.classes == ("a", "b")


def test_examples_of_a_long_frame_are_predicted():
    frame = pd.DataFrame(walks(3)).drop(columns=["activity", "subject"])
    loaded = load_examples(frame, dims=1, in_channels=2)
    assert [item.values.shape for item in loaded.examples] == [(2, 40)] * 3


def test_a_data_set_of_xarray_is_a_source():
    xarray = pytest.importorskip("xarray")
    x, y = xy(12, (6,))
    data = xarray.Dataset(
        {"acc": (("sample", "time"), x), "gyr": (("sample", "time"), -x), "label": ("sample", np.where(y, "b", "a"))},
        coords={"subject": ("sample", np.arange(12) // 4)},
    )
    source = load_source(data, group_by="subject", test_fraction=0)
    np.testing.assert_array_equal(source.train[5], np.stack([x[5], -x[5]]))
    assert source.train.groups.tolist() == [str(i // 4) for i in range(12)]


def test_a_group_that_is_not_read_is_a_warning(tmp_path):
    with pytest.warns(DataWarning, match="columns not read: subject; .*--group-by"):
        load_source(table(tmp_path / "a.csv", walks()))


# ----------------------------------------------------------------------------------------------------------- files


def test_parquet_and_series_in_fields(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame(walks(2)).to_parquet(tmp_path / "long.parquet")
    assert [item.values.shape for item in read(tmp_path / "long.parquet").items] == [(2, 40)] * 2
    nested = pd.DataFrame({"x": [[1.0, 2, 3], [4.0, 5]], "y": [[7.0, 8, 9], [10.0, 11]], "label": ["a", "b"]})
    nested.to_parquet(tmp_path / "nested.parquet")
    found = read(tmp_path / "nested.parquet")
    assert [item.tolist() for item in found.items] == [[[1, 2, 3], [7, 8, 9]], [[4, 5], [10, 11]]]


ARFF = """@relation toy
@attribute a numeric
@attribute b numeric
@attribute kind {x,y}
@data
1,?,x
3,4,y
"""
RELATIONAL = """@relation toy
@attribute series relational
@attribute t1 numeric
@attribute t2 numeric
@end series
@attribute target {x,y}
@data
"1,2\\n3,4",x
"5,6\\n7,8",y
"""


def test_arff_with_the_class_last_and_relational_series(tmp_path):
    (tmp_path / "a.arff").write_text(ARFF)
    (tmp_path / "b.arff").write_text(RELATIONAL)
    flat, several = read(tmp_path / "a.arff"), read(tmp_path / "b.arff")
    assert flat.targets == several.targets == ["x", "y"]
    np.testing.assert_array_equal(flat.items, [[[1, np.nan]], [[3, 4]]])
    assert [item.tolist() for item in several.items] == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


def test_an_arff_set_has_its_own_split(tmp_path):
    (tmp_path / "toy_TRAIN.arff").write_text(ARFF)
    (tmp_path / "toy_TEST.arff").write_text(ARFF.replace("1,?", "2,2").replace("3,4", "5,6"))
    source = load_source(tmp_path / "toy_TRAIN.arff")
    assert (len(source.train), len(source.test)) == (2, 2)
    assert load_source(tmp_path).test[0].tolist() == [[2, 2]]


def test_a_file_for_each_split(tmp_path):
    for name, first in (("train", 0), ("test", 10)):
        table(tmp_path / f"{name}.csv", {"v0": [first, 1], "v1": [2, 3], "label": ["a", "b"]})
    source = load_source(tmp_path)
    assert source.train[0].tolist() == [[0, 2]]
    assert source.test[0].tolist() == [[10, 2]]
    assert source.notes[0] == "splits by the names of the files: test.csv is the test set, train.csv is the train set"


def test_a_role_that_is_not_there_is_none(tmp_path):
    path = table(tmp_path / "a.csv", {"Time": [0, 1, 2], "v": [3, 4, 5], "Class": [0, 1, 0]})
    with pytest.raises(ValueError, match=r"the label .column Class. changes within the recording.*set --time none"):
        read(path)
    found = read(path, Roles(time="none"))
    assert ([item.tolist() for item in found.items], found.targets) == ([[[0, 3]], [[1, 4]], [[2, 5]]], [0, 1, 0])


def test_columns_and_values_that_cannot_be_used(tmp_path):
    cases = {
        "v,w,label\n1,2,x\n1,2,3,y\n": "cannot be read as a table: .*line 3",
        "v,label\n": "no rows",
        "a,b,label\nx,1,p\n2,y,q\n3,4,q\n": "line 2: 'x' in the column a, expected a number",
        "a;b\n" * 3: "no column has numbers .a, b.; --id, --time, --label and --channels",
        ",".join(f"c{i}" for i in range(60_000)) + "\n" + "1\n" * 5_000: "most have few fields",
    }
    path = tmp_path / "bad.csv"
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read(path)


def test_a_list_of_files_is_no_table_of_values(tmp_path):
    assert is_table_of_values(table(tmp_path / "a.csv", {"a": [1], "label": ["x"]}))
    assert not is_table_of_values(table(tmp_path / "b.csv", {"path": ["a.png"], "age": [3], "label": ["x"]}))
    assert not is_table_of_values(table(tmp_path / "c.csv", {"name": ["a.png"], "label": ["x"]}))


def test_an_unknown_column_is_an_error_with_the_names_there_are(tmp_path):
    path = table(tmp_path / "a.csv", {"v": [1, 2], "label": ["x", "y"]})
    with pytest.raises(ValueError, match=r"a.csv: has no column 'kind' \(--label\); columns: v, label"):
        load_source(path, label="kind")
    assert load_examples(path, dims=1, in_channels=1, label="kind").examples[0].shape == (1, 1)  # without targets


def test_names_of_columns_are_refused_where_a_file_has_none(tmp_path):
    (tmp_path / "a.tsv").write_text("1\t0.5\t1\n2\t1\t2\n")
    with pytest.raises(ValueError, match=r"a.tsv: has no names for --label"):
        load_source(tmp_path / "a.tsv", label="kind")


def write_recordings(folder, head):
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(4):
            rows = "".join(f"{row / 100},{row % 7 + i}\n" for row in range(50))
            (folder / name / f"{i}.csv").write_text(f"{head}\n{rows}")


def test_names_with_brackets_are_names(tmp_path):
    write_recordings(tmp_path, "clock [s],acc [g]")
    data = load_source(tmp_path, progress=False, time="clock [s]", channels="acc [g]", test_fraction=0)
    assert data.train[0].rate == 100
    assert data.train[0].values.shape == (1, 50)
    assert data.channels == ("acc [g]",)


def test_a_column_of_times_that_files_lack_is_a_warning(tmp_path):
    write_recordings(tmp_path, "time,acc")
    with pytest.warns(DataWarning, match=r"no column of times 'Tiem' \(--time\); columns: time, acc"):
        load_source(tmp_path, progress=False, time="Tiem", test_fraction=0)
