"""Overlapping windows among the rows of arrays: found where they are, and nowhere else."""

import warnings

import numpy as np
import pytest

from ndvit import DataWarning, ViTClassifier, cross_validate, load_source
from ndvit.checking.check import check
from ndvit.data.examples import Part
from ndvit.data.messages import Doubt, Ungrouped
from ndvit.data.overlaps import find_overlaps, overlapping_windows
from tinyruns import QUIET, TINY


def recordings(count=6, channels=2, length=1000, levels=200):
    """Random walks of whole numbers, as converters give them."""
    steps = np.random.default_rng(0).normal(size=(count, channels, length))
    return np.round(np.cumsum(steps, 2) * levels / 20).astype(np.float32)


def windows(width=128, hop=64, **how):
    """All windows of recordings in an order at random, and their recordings."""
    whole = recordings(**how)
    starts = range(0, whole.shape[2] - width + 1, hop)
    found = np.concatenate([[one[:, start : start + width] for start in starts] for one in whole])
    owner = np.repeat(np.arange(len(whole)), len(starts))
    order = np.random.default_rng(1).permutation(len(found))
    return found[order], owner[order]


def part(x):
    return Part(list(x), None, [f"X[{i}]" for i in range(len(x))])


@pytest.mark.parametrize("hop", [16, 64, 96])
def test_overlapping_windows_in_any_order_are_found(hop):
    x, owner = windows(hop=hop)
    found, probes = find_overlaps({"train": part(x)})
    starts = {one.names[0] for one in found}
    assert probes == min(len(x), 256)
    assert len(starts) >= 0.9 * probes * (1 - 6 / len(x))  # all but the first window of each recording
    assert all(owner[int(a[2:-1])] == owner[int(b[2:-1])] for a, b in (one.names for one in found))
    (note,) = overlapping_windows({"train": part(x)})
    assert isinstance(note, Ungrouped)
    assert "begin inside of another one (X[" in note


def sine(n, noise=0.0):
    time = np.arange(128)
    waves = [np.sin(2 * np.pi * (time + i) / 32) for i in range(n)]  # of a whole period: each repeats itself
    return (np.array(waves)[:, None] + noise * np.random.default_rng(0).normal(size=(n, 1, 128))).astype(np.float32)


@pytest.mark.parametrize(
    "x",
    [
        windows(hop=128)[0],
        windows(hop=64)[0] + np.random.default_rng(0).normal(size=(84, 2, 128)).astype(np.float32),
        sine(60),
        sine(60, noise=0.1),
        np.tile(np.sin(np.arange(128.0)), (40, 1, 1)),
        np.zeros((40, 1, 128)),
        (np.random.default_rng(0).random((60, 1, 128)) < 0.3).astype(np.float32),
        np.pad(recordings(40, 1, 64), ((0, 0), (0, 0), (64, 0))),
        windows(width=24, hop=12)[0],
    ],
    ids=["apart", "noise", "periodic", "noisy waves", "copies", "zeros", "binary", "padded", "short"],
)
def test_other_signals_are_no_overlapping_windows(x):
    assert overlapping_windows({"train": part(x)}) == []


def test_overlaps_of_two_splits_are_a_doubt():
    x, _ = windows()
    (note,) = overlapping_windows({"train": part(x[:40]), "test": part(x[40:])})
    assert isinstance(note, Doubt)
    assert "windows of one recording are in the train set and in the test set" in note or "in the test set" in note


def test_every_door_warns_unless_groups_or_windows_are_given(tmp_path):
    x, owner = windows(hop=32, count=4)
    y = owner % 2
    with pytest.warns(DataWarning, match="begin inside of another one.*split by them with --group-by"):
        load_source((x, y))
    with pytest.warns(DataWarning, match="begin inside of another one"):
        cross_validate((x, y), folds=2, output=tmp_path / "cv", **{**TINY, **QUIET, "steps": 1})
    checked = check((x, y), output=tmp_path / "check", **QUIET)
    assert any("begin inside of another one" in one.text for one in checked.findings)
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "val_fraction": 0.2}
    tiny = ViTClassifier(model="vit_pico", steps=1, random_state=0, options=options)
    with pytest.warns(DataWarning, match="begin inside of another one"):
        tiny.fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        load_source({"X": x, "y": y, "who": owner}, group_by="who")
        load_source((x, y), test_fraction=0)
        tiny.fit(x, y, groups=owner)
