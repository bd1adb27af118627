"""Containers in memory: what they mean is kept on every door, and a column that is no number is named."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datafiles import xy
from ndvit import DataWarning, ViTClassifier
from ndvit.data.sources.containers import read_container
from ndvit.data.sources.load import load_examples, load_source

X, Y = xy(8, (3, 6))
NAMES = ["ax", "ay", "az"]


def gaps(container):
    """X as a container, with a missing value at [1, 2, 3] and at [4, 0, 0]."""
    x = X.astype(np.float64)
    x[1, 2, 3] = x[4, 0, 0] = np.nan
    return container(x)


def pairs(x, names=NAMES, times=range(6), titles=(None, None)):
    """A frame with columns (channel, time)."""
    return pd.DataFrame(x.reshape(len(x), -1), columns=pd.MultiIndex.from_product([names, times], names=titles))


def frames(x):
    return [pd.DataFrame(example.T, columns=NAMES) for example in x]


def backwards(x):
    """Columns (time, channel) in any order of the times."""
    frame = pairs(x).swaplevel(axis=1)
    return frame[frame.columns[np.random.default_rng(0).permutation(18)]][
        [(t, n) for t in (3, 0, 5, 1, 2, 4) for n in NAMES]
    ]


CONTAINERS = {
    "array": np.asarray,
    "masked array": lambda x: (
        np.ma.masked_invalid(np.where(np.isnan(x), 1e9, x)).copy()
        if not np.isnan(x).any()
        else np.ma.array(np.where(np.isnan(x), 1e9, x), mask=np.isnan(x))
    ),
    "list of masked arrays": lambda x: [np.ma.array(np.nan_to_num(row, nan=1e9), mask=np.isnan(row)) for row in x],
    "lists of masked arrays": lambda x: [
        [np.ma.array(np.nan_to_num(row, nan=1e9), mask=np.isnan(row)) for row in example] for example in x
    ],
    "objects with None": lambda x: np.where(np.isnan(x), None, x),
    "nested lists with None": lambda x: np.where(np.isnan(x), None, x).tolist(),
    "columns (channel, time)": pairs,
    "columns (time, channel)": backwards,
    "columns with titles": lambda x: pairs(x, times=list("uvwxyz"), titles=("sensor", None)),
    "nullable columns": lambda x: pairs(x).astype("Float64"),
    "columns of objects": lambda x: pairs(x).astype(object).where(~pairs(x).isna(), pd.NA),
    "list of frames": frames,
    "tuple of frames": lambda x: tuple(frames(x)),
    "series of arrays": lambda x: pd.Series(list(x)),
    "mapping of tables": lambda x: {name: pd.DataFrame(x[:, i]) for i, name in enumerate(NAMES)},
    "list of mappings": lambda x: [{name: pd.Series(row) for name, row in zip(NAMES, example)} for example in x],
    "tensor with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "list of tensors": lambda x: list(map(torch.tensor, x)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_has_the_same_values(name):
    expected = gaps(np.asarray).astype(np.float32)
    data = gaps(CONTAINERS[name])
    for examples in (load_source((data, Y), test_fraction=0).train, load_examples(data).examples):
        np.testing.assert_array_equal(np.stack(list(examples)), expected)


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_estimator_reads_every_container(name, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ndvit.estimator.classifier.load_source", lambda source, **options: seen.append(source[0]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        ViTClassifier().fit(gaps(CONTAINERS[name]), Y)
    np.testing.assert_array_equal(np.stack(list(seen[0])), gaps(np.asarray).astype(np.float32))


def test_tensors_of_half_precision():
    halves = torch.tensor(X).bfloat16()
    np.testing.assert_array_equal(read_container(halves).examples, halves.float().numpy())


def test_dimensions_by_their_names():
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(X, dims=("sample", "channel", "time"))
    for order in (("sample", "channel", "time"), ("time", "sample", "channel")):
        np.testing.assert_array_equal(read_container(array.transpose(*order)).examples, X)
    assert read_container(array.assign_coords(channel=NAMES)).names == tuple(NAMES)
    with pytest.warns(DataWarning, match="dimensions a, b, c, read as examples: a; channels: b; axes: c. To make sure"):
        load_source((xarray.DataArray(X, dims=list("abc")), Y))
    with pytest.raises(ValueError, match="dimensions channel, time; expected one of examples and one of time"):
        read_container(array[0])


def test_frames_of_polars():
    polars = pytest.importorskip("polars")
    table = polars.DataFrame({"a": [1, None], "b": [True, None]})
    np.testing.assert_array_equal(read_container(table).examples, [[1, 1], [np.nan, np.nan]])
    found = read_container([polars.DataFrame(example.T, schema=NAMES) for example in X])
    np.testing.assert_array_equal(np.stack(found.examples), X)


def table(**columns):
    return pd.DataFrame(X[:, 0]).add_prefix("v").assign(**columns)


REFUSED = {
    "times": (table(when=pd.date_range("2024", periods=8)), r"X\['when'\] has time stamps"),
    "durations": (table(when=pd.to_timedelta(range(8), unit="s")), r"X\['when'\] has durations"),
    "text": (table(who="p1"), r"X\['who'\]\[0\] has text, 'p1'"),
    "categories": (table(who=pd.Categorical(["p1"] * 8)), r"X\['who'\]\[0\] has text"),
    "a time in a frame": (
        [f.assign(when=pd.Timestamp("2024")) for f in frames(X)],
        r"X\[0\]\['when'\] has time stamps",
    ),
    "text in objects": (np.where(X > 2, "high", X.astype(object)), r"X\[\d, \d, \d\] has text, 'high'"),
    "frames without names": ([pd.DataFrame(x.T) for x in X], "columns 0, 1, 2; expected one row for each moment"),
    "another order": (
        [*frames(X)[:7], frames(X)[7][["ay", "ax", "az"]]],
        "ay, ax, az; expected ax, ay, az in this order",
    ),
    "other channels": (
        [*frames(X)[:7], frames(X)[7].rename(columns={"az": "gz"})],
        "columns ax, ay, gz; expected ax, ay",
    ),
    "frames and arrays": ([*frames(X)[:7], X[7]], "mixes examples with named channels and without"),
    "two levels of text": (
        pairs(X, times=list("uvwxyz")),
        r"not clear which level is time: name them, X.columns.names",
    ),
    "two levels of numbers": (pairs(X, names=range(3)), "not clear which level is time"),
    "columns twice": (pairs(X, names=["ax", "ax", "az"]), "several columns of the same channel and time"),
    "three levels": (pd.DataFrame(X[:, 0], columns=pd.MultiIndex.from_product([[0, 1], [0, 1, 2], [0]])), "3 levels"),
    "nested": (pd.DataFrame({"a": [pd.Series(row) for row in X[:, 0]]}), "nested or has several rows"),
    "complex": (X * 1j, "complex numbers"),
    "sparse tensor": (torch.tensor(X).to_sparse(), r"is sparse, a torch tensor; .* pass X.to_dense\(\)"),
    "named fields": (np.zeros(8, dtype=[("a", "f4"), ("b", "f4")]), "structured_to_unstructured"),
    "mapping of series": ({name: X[:, i, 0] for i, name in enumerate(NAMES)}, r"must all have one shape \(n, time\)"),
    "one picture": (Image.new("L", (8, 8)), r"X is a single picture; pass a list of pictures: \[X\]"),
    "a generator": ((x for x in X), "X is a generator; expected an array"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_number_or_ambiguous_is_refused(name):
    data, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        load_source((data, Y))
    if name != "a generator":
        with pytest.raises(ValueError, match=message):
            ViTClassifier().fit(data, Y)


def test_sparse_matrices_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    for kind in (sparse.csr_array, sparse.dok_matrix):
        with pytest.raises(ValueError, match=r"is sparse, a .*; dense data is required: pass X.toarray\(\)"):
            load_source((kind(X[:, 0]), Y))


@pytest.mark.parametrize("name", ["label", "target", "Unnamed: 0"])
def test_columns_that_are_named_like_something_else_are_doubtful(name):
    with pytest.warns(DataWarning, match=f"X has the column {name}, which is read as a value of each series; drop it"):
        load_source((table(**{name: Y}), Y))
    with pytest.warns(DataWarning, match="each frame of X has the column time, which is read as a channel"):
        load_source(([frame.assign(time=range(6)) for frame in frames(X)], Y))


def test_the_test_set_has_the_columns_of_the_training_set():
    other = pairs(X, names=["ax", "az", "ay"])
    with pytest.raises(
        ValueError, match="X_test has the columns ax, az, ay; expected ax, ay, az in this order, as in X_tr"
    ):
        load_source((pairs(X), Y, other, Y))


def test_the_estimator_knows_its_channels_by_name(tmp_path):
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    classifier = ViTClassifier(model="vit_pico", steps=1, random_state=0, options=options).fit(frames(X), Y)
    assert (classifier.feature_names_in_.tolist(), classifier.n_features_in_) == (NAMES, 3)
    classifier.save(tmp_path / "a.safetensors")
    for fitted in (classifier, ViTClassifier.load(tmp_path / "a.safetensors")):
        assert np.array_equal(fitted.predict_proba(pairs(X)), fitted.predict_proba(X))
        with pytest.raises(
            ValueError, match="X has the columns az, ay, ax; expected ax, ay, az in this order, as in fit"
        ):
            fitted.predict([frame[NAMES[::-1]] for frame in frames(X)])


def test_a_dict_may_have_a_validation_set_and_unread_arrays_are_named():
    arrays = {"X_train": X, "y_train": Y, "X_test": X[:4], "y_test": Y[:4], "X_val": X[:2], "y_val": Y[:2]}
    source = load_source(arrays)
    assert (len(source.train), len(source.val), len(source.test)) == (8, 2, 4)
    with pytest.warns(DataWarning, match="arrays not read: groups, sites"):
        load_source({"X": X, "y": Y, "groups": Y, "sites": Y})
