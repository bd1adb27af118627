"""From examples to batches: the shuffled stream, inputs in memory and from files, masks, workers."""

import copy
import dataclasses
import signal

import numpy as np
import pytest
import torch

from datafiles import arrays, npy, pictures, xy
from ndvit.data import loading
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs, ShuffledStream, UnusableExample
from ndvit.data.preprocess import fit_preprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.sources.files import read_example
from ndvit.data.sources.load import load_source

STREAMS = [(10, 4), (10, 10), (7, 3), (3, 8), (1, 5), (12, 1)]


@pytest.mark.parametrize(("n", "size"), STREAMS)
def test_every_pass_covers_every_example_once(n, size):
    batches = list(ShuffledStream(n, size, 30, seed=1))
    assert len(batches) == 30
    assert all(len(batch) == size for batch in batches)
    flat = [i for batch in batches for i in batch]
    passes = [flat[i : i + n] for i in range(0, len(flat) - n + 1, n)]
    assert all(sorted(one) == list(range(n)) for one in passes)
    assert n < 5 or len({tuple(one) for one in passes}) == len(passes)  # each in another order


@pytest.mark.parametrize(("n", "size"), STREAMS)
@pytest.mark.parametrize("start", [1, 2, 7, 29])
def test_a_batch_is_the_same_wherever_one_starts(n, size, start):
    whole = list(ShuffledStream(n, size, 30, seed=4))
    assert list(ShuffledStream(n, size, 30, seed=4, start=start)) == whole[start:]
    assert len(ShuffledStream(n, size, 30, seed=4, start=start)) == 30


def test_streams_follow_the_seed_and_can_be_read_twice():
    stream = ShuffledStream(20, 5, 8, seed=0)
    assert list(stream) == list(stream)
    assert list(stream) != list(ShuffledStream(20, 5, 8, seed=1))
    assert list(ShuffledStream(20, 5, 8, seed=0, start=8)) == []


def test_the_order_is_pinned():
    # a run that is resumed by a later version must see the same batches
    expected = [np.random.default_rng((3, turn)).permutation(5).tolist() for turn in range(2)]
    flat = [i for batch in ShuffledStream(5, 2, 5, seed=3) for i in batch]
    assert flat == expected[0] + expected[1]


def test_a_stream_repeats_each_example_and_gives_every_place_a_seed_of_its_own():
    batches = list(ShuffledStream(5, 4, 6, seed=3, repeats=3, seeded=True))
    flat = [i for batch in batches for i, _ in batch]
    assert flat[:15] == [i for i in flat[0:15:3] for _ in range(3)]
    assert sorted(flat[0:15:3]) == list(range(5))
    assert [i for batch in ShuffledStream(5, 1, 5, seed=3) for i in batch] == flat[0:15:3]  # the order is the same
    seeds = [seed for batch in batches for _, seed in batch]
    assert len(set(seeds)) == len(seeds)
    assert list(ShuffledStream(5, 4, 6, seed=3, start=2, repeats=3, seeded=True)) == batches[2:]


def inputs(source):
    data = load_source(source)
    return Inputs(data.train, fit_preprocess(data))


def test_batches_in_memory():
    x, y = xy(20, (2, 9))
    made = inputs((x, y, x, y))
    batch = made.__getitems__([3, 0, 3])
    mean, std = x.mean((0, 2), keepdims=True), x.std((0, 2), keepdims=True)
    assert torch.allclose(batch.x, torch.from_numpy(((x - mean) / std)[[3, 0, 3]]), atol=1e-5)
    assert batch.mask is None
    assert batch.targets.tolist() == y[[3, 0, 3]].tolist()
    assert batch.targets.dtype == torch.int64
    assert made[5].x.shape == (1, 2, 9)
    assert len(made) == 20


@pytest.mark.parametrize(
    "make", [lambda root: pictures(root, count=6), lambda root: arrays(root, count=6, shape=(2, 9))]
)
def test_files_and_memory_give_the_same_tensors(tmp_path, make):
    data = load_source(make(tmp_path))
    preprocess = fit_preprocess(data)
    files = Inputs(data.train, preprocess)
    memory = Inputs(Examples(list(data.train), data.train.targets, data.train.names), preprocess)
    assert not files.examples.in_memory
    assert memory.examples.in_memory
    for indices in ([0], [4, 1, 1], list(range(len(files)))):
        one, other = files.__getitems__(indices), memory.__getitems__(indices)
        assert torch.equal(one.x, other.x)
        assert one.mask is other.mask is None
        assert torch.equal(one.targets, other.targets)


def test_a_mask_where_anything_is_missing():
    x = [np.arange(6.0), np.arange(4.0), np.array([0, np.nan, 2, 3, 4, 5.0]), np.arange(6.0)]
    made = inputs((x, list("abab"), x, list("abab")))
    assert made.__getitems__([0, 1, 2]).mask.tolist() == [
        [True] * 6,
        [True] * 4 + [False] * 2,
        [True, False] + [True] * 4,
    ]
    # in memory all batches have a mask where one example needs it; from files only batches that need it
    assert made.__getitems__([0, 3]).mask.all()
    lazy = copy.copy(made)
    lazy._all = None
    assert lazy.__getitems__([0, 3]).mask is None
    assert torch.equal(lazy.__getitems__([1, 2]).mask, made.__getitems__([1, 2]).mask)
    assert torch.equal(lazy.__getitems__([1, 2]).x, made.__getitems__([1, 2]).x)


def test_masks_of_pictures_as_arrays():
    x = xy(4, (3, 4, 5))[0]
    x[1, :, 2, 3] = np.nan  # in every channel
    x[2, 0, 0, 0] = np.nan  # in one only
    mask = inputs((x, list("abab"), x, list("abab"))).__getitems__([0, 1, 2]).mask
    assert mask.shape == (3, 4, 5)
    assert mask.sum((1, 2)).tolist() == [20, 19, 20]
    assert not mask[1, 2, 3]


def test_labels_may_be_unknown():
    x = xy(4, (1, 9))[0]
    preprocess = inputs(xy(20, (1, 9))).preprocess
    batches = list(Inputs(Examples(list(x)), preprocess).loader(3))
    assert [len(batch.x) for batch in batches] == [3, 1]
    assert all(batch.targets is None for batch in batches)
    assert list(Inputs(Examples([]), preprocess).loader(3)) == []


def test_a_loader_gives_everything_once_in_order():
    made = inputs(xy(20, (2, 16)))
    batches = list(made.loader(6))
    assert [len(batch.x) for batch in batches] == [6, 6, 4]
    assert torch.equal(torch.cat([batch.x for batch in batches]), made.__getitems__(range(16)).x)


def test_workers_give_the_same_batches(tmp_path):
    made = inputs(pictures(tmp_path, count=6))
    for loader in (lambda w: made.loader(3, w), lambda w: made.stream(4, 5, seed=2, start=1, workers=w)):
        alone, helped = list(loader(0)), list(loader(1))
        assert len(alone) == len(helped) == 4
        for one, other in zip(alone, helped):
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.targets, other.targets)


def test_many_files_are_read_by_workers_and_memory_is_not(tmp_path, monkeypatch):
    files = inputs(pictures(tmp_path, count=6))
    assert files.loader(3).num_workers == 0  # starting a process costs more than reading a few files
    monkeypatch.setattr(loading, "_FEW", 3)
    assert files.loader(3).num_workers > 0
    assert inputs(xy(20, (2, 16))).loader(3).num_workers == 0


def test_errors_name_the_example(tmp_path):
    made = inputs(pictures(tmp_path, count=6))
    path = tmp_path / made.examples.names[2]
    path.write_bytes(b"gone bad since it was looked at")
    with pytest.raises(ValueError, match=rf"{path}: is not a picture"):
        made.__getitems__([0, 2])
    made.__getitems__([0, 1])

    signals = inputs(xy(20, (2, 16))).preprocess
    with pytest.raises(ValueError, match=r"^second: got 3 channels, expected 2 \(shape \(3, 16\)\)"):
        Inputs(Examples([np.zeros((2, 16)), np.zeros((3, 16))], names=["first", "second"]), signals)
    with pytest.raises(ValueError, match=r"^\[0\]: nothing is observed"):
        Inputs(Examples([np.full((2, 16), np.nan)]), signals)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_one_line_that_names_the_example(tmp_path, workers):
    npy(tmp_path / "a.npy", np.zeros((2, 8)))
    for name, message in (("a.npy", "got 2 channels, expected 1"), ("b.npy", r".*b.npy: does not exist \(any more")):
        examples = Examples([str(tmp_path / name)], None, [name], read_example)
        with pytest.raises(UnusableExample, match=rf"^{name}: {message}") as caught:
            list(Inputs(examples, SignalPreprocess(8, (0.0,), (1.0,))).loader(1, workers))
        assert "\n" not in str(caught.value)


def how_interrupts_are_met(item):
    return np.full((2, 16), signal.getsignal(signal.SIGINT) == signal.SIG_IGN, dtype=np.float32)


def test_workers_ignore_ctrl_c():
    # a terminal sends it to all processes, and a training must not lose its workers to it
    preprocess = dataclasses.replace(inputs(xy(20, (2, 16))).preprocess, mean=(0.0, 0.0), std=(1.0, 1.0))
    made = Inputs(Examples([0], read=how_interrupts_are_met), preprocess)
    assert [next(iter(made.loader(1, workers))).x.mean().item() for workers in (0, 1)] == [0, 1]


def test_large_data_is_preprocessed_when_it_is_read(monkeypatch):
    items = [torch.arange(4.0 * i + 8).numpy()[None] for i in range(3)]  # 8, 12 and 16 samples
    preprocess = SignalPreprocess(size=(16,), mean=(1.0,), std=(2.0,))
    kept = Inputs(Examples(items, [0, 1, 0]), preprocess)
    monkeypatch.setattr(loading, "_MOST_BYTES", 4 * 3 * 16 - 1)
    fresh = Inputs(Examples(items, [0, 1, 0]), preprocess)
    assert kept._all is not None
    assert fresh._all is None
    for a, b in zip(kept.__getitems__([2, 0]), fresh.__getitems__([2, 0])):
        assert torch.equal(a, b)
