"""Streamed splits: blocks of rows in parquet files that are fetched when they are needed."""

import io
import pickle
from itertools import chain

import numpy as np
import pytest
from PIL import Image

import ndvit
from datafiles import png
from ndvit.data.loading import Inputs, ShuffledStream
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.sources import hub, streams
from ndvit.data.sources.load import load_examples, load_source
from ndvit.data.sources.streams import LANES, StreamedRows, shuffled
from ndvit.data.splits import hold_out

datasets = pytest.importorskip("datasets")
ROWS, GROUP = 60, 6  # in each file, of two; and in each block


def write(path, first, count=ROWS, group=GROUP):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    numbers = range(first, first + count)
    values = {"image": [png((i, 100, 50), (8, 8)) for i in numbers], "label": [i % 2 for i in numbers]}
    datasets.Dataset.from_dict(values, features=features).to_parquet(path, batch_size=group)
    return str(path)


@pytest.fixture
def fetched(monkeypatch):
    """Every block that is fetched, in turn."""
    from pyarrow.parquet import ParquetFile

    blocks = []

    class Watched(ParquetFile):
        def read_row_group(self, i, **options):
            blocks.append(i)
            return super().read_row_group(i, **options)

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", Watched)
    return blocks


@pytest.fixture
def rows(tmp_path):
    datasets.disable_progress_bars()
    yield StreamedRows([write(tmp_path / "0.parquet", 0), write(tmp_path / "1.parquet", ROWS)])
    datasets.enable_progress_bars()


@pytest.fixture
def source(rows, tmp_path, monkeypatch):
    """A data set with a streamed training set of 120 pictures and a test set that is here."""
    test = datasets.Dataset.from_parquet(write(tmp_path / "test.parquet", 0, 10), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "stream", lambda address, progress: {"train": rows, "test": test})
    return load_source("hf:me/pets?streaming=1", progress=False)


def test_rows_are_fetched_by_blocks_and_the_newest_kept(rows, fetched, monkeypatch):
    pictures = rows.pictures("image")
    assert (len(rows), rows.column_names, len(rows.groups)) == (2 * ROWS, ["image", "label"], 20)
    assert [rows.block(i) for i in (0, 5, 6, 59, 60, 119)] == [0, 0, 1, 9, 10, 19]
    assert rows.values("label") == [i % 2 for i in range(2 * ROWS)]
    assert fetched == []
    for i in (61, 62, 60, 7):
        colour = Image.open(io.BytesIO(pictures[i]["image"]["bytes"])).getpixel((0, 0))
        assert colour == (i, 100, 50)
    assert fetched == [0, 1]  # the first of the second file, the second of the first
    copy = pickle.loads(pickle.dumps(pictures))
    assert copy[7] == pictures[7]
    assert fetched == [0, 1, 1]
    monkeypatch.setattr(streams, "_WINDOW", 1)  # 2 blocks in each of the 4 lanes, and 2 more
    for block in range(20):
        pictures[block * GROUP]
    del fetched[:]
    pictures[19 * GROUP], pictures[4 * GROUP]
    assert fetched == []
    pictures[3 * GROUP]
    assert fetched == [3]


def test_files_must_be_alike(tmp_path):
    other = datasets.Dataset.from_dict({"image": [b""], "class": [1]})
    other.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet has other columns than .*0\.parquet"):
        StreamedRows([write(tmp_path / "0.parquet", 0), str(tmp_path / "other.parquet")])


@pytest.mark.parametrize(("per_batch", "first"), [(8, 0), (8, 997), (2.5, 13)])
def test_a_shuffled_order_has_every_row_once_and_few_blocks_at_a_time(per_batch, first):
    n, size = 40_000, 100
    blocks = np.arange(n) // size
    order = shuffled(blocks, per_batch, first, np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(n))
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.1
    lane = ((first + np.arange(n)) // per_batch % LANES).astype(int)
    for one in range(LANES):
        mine = blocks[order[lane == one]]
        assert len(np.unique(mine[:1000])) > 10  # rows of many blocks are mixed
        places = {block: np.flatnonzero(mine == block) for block in np.unique(mine)}
        longest = max(found[-1] - found[0] for found in places.values())
        assert longest < 14 * size  # a window of 11 blocks, and what random keys vary by
        assert len(places) < len(mine) / size + 13  # no lane needs all blocks


def test_without_blocks_the_order_is_as_ever_and_with_them_passes_differ():
    blocks = np.arange(12) // 4
    plain = list(ShuffledStream(12, 4, 6, 0))
    assert plain[0] == np.random.default_rng((0, 0)).permutation(12)[:4].tolist()
    streamed = list(ShuffledStream(12, 4, 6, 0, blocks=blocks))
    for turn in (streamed[:3], streamed[3:]):
        assert sorted(chain.from_iterable(turn)) == list(range(12))
    assert streamed[:3] != streamed[3:]
    assert list(ShuffledStream(12, 4, 6, 0, start=4, blocks=blocks)) == streamed[4:]
    repeated = list(ShuffledStream(12, 4, 6, 0, repeats=2, blocks=blocks))
    assert sorted(chain.from_iterable(repeated)) == sorted(2 * list(range(12)))


def test_a_streamed_source(source, fetched):
    assert (source.task.classes, len(source.train), len(source.test)) == (("cat", "dog"), 120, 10)
    assert source.train.streamed
    assert not source.test.streamed
    assert any("the training set is streamed" in note for note in source.notes)
    assert fetched == []
    assert source.train[61].getpixel((0, 0)) == (61, 100, 50)
    assert source.train.names[61] == "train[61]"
    part = source.train.subset([7, 61, 100])
    assert part.blocks().tolist() == [1, 10, 16]
    drawn = source.train.sample(12)
    assert len(set(np.array(drawn) // GROUP)) == 2  # two whole blocks
    assert fit_preprocess(source).size == (8, 8)


TINY = {"model": "vit_pico", "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "device": "cpu"}


def test_a_network_learns_from_a_stream(source, tmp_path):
    options = {"steps": 3, "batch_size": 16, "workers": 0, "progress": False}
    run = ndvit.train("hf:me/pets?streaming=1", output=tmp_path / "run", **TINY, **options)
    assert run.fit.steps == 3
    assert np.isfinite(run.fit.history[-1]["train_loss"])
    with pytest.raises(ValueError, match=r"val_fraction 0\.1: hf:me/pets is streamed, and each validation would"):
        ndvit.train("hf:me/pets?streaming=1", output=tmp_path / "other", val_fraction=0.1, **TINY, **options)


def test_workers_give_the_same_batches(source):
    inputs = Inputs(source.train, fit_preprocess(source))
    alone, helped = (list(inputs.stream(16, 8, 0, 0, workers)) for workers in (0, 2))
    assert all((a.x == b.x).all() and (a.targets == b.targets).all() for a, b in zip(alone, helped, strict=True))


def test_a_number_of_workers_that_shares_the_lanes(source, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    inputs = Inputs(source.train, fit_preprocess(source))
    assert inputs.stream(16, 8, 0, 0, None).num_workers == 2


def test_to_predict(source):
    kind, _, examples, _ = load_examples("hf:me/pets?streaming=1")
    assert (kind, len(examples), examples.streamed) == ("image", 10, False)


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path, monkeypatch):
    bad = datasets.Dataset.from_dict({"image": [png("red")["bytes"], b"no picture"], "label": ["a", "b"]})
    bad.to_parquet(tmp_path / "bad.parquet")
    monkeypatch.setattr(
        hub, "stream", lambda address, progress: {"train": StreamedRows([str(tmp_path / "bad.parquet")])}
    )
    source = load_source("hf:me/pets?streaming=1&image=image&label=label", test_fraction=0, progress=False)
    keep, _ = hold_out(source.train, source.task, 0.5, 0, both_sides=False)
    assert keep.tolist() == [0, 1]
    preprocess = fit_preprocess(load_source("digits"))
    with pytest.raises(ValueError, match=r"train\[1\]: .*(cannot identify|damaged|not a picture)"):
        list(Inputs(source.train, preprocess).loader(2))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": ["hf://x/a.parquet", "hf://x/b.arrow"]}, "b.arrow is not a parquet file.*refs/convert/parquet"),
        (
            {"test": ["hf://x/a.parquet"], "validation": ["hf://x/b.parquet"]},
            "no training set to stream, but test, val",
        ),
        ({}, "no training set to stream, but no data files"),
    ],
)
def test_what_cannot_be_streamed(monkeypatch, files, message):
    class Builder:
        class config:
            data_files = files

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **kwargs: Builder)
    with pytest.raises(ValueError, match=message):
        load_source("hf:me/pets?streaming=1")


def test_streaming_is_1_or_left_out():
    assert hub.Address.parse("hf:me/pets?streaming=1").streaming
    assert not hub.Address.parse("hf:me/pets?streaming=0").streaming
    with pytest.raises(ValueError, match="has streaming=yes: use 1, or leave it out"):
        hub.Address.parse("hf:me/pets?streaming=yes")
