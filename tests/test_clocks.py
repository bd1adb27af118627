"""Times of measurements: units, regular steps, and resampling of irregular ones."""

import numpy as np
import pytest

from ndvit.data.examples import Recording
from ndvit.data.messages import Doubt
from ndvit.data.sources.clocks import Series, on_grid, read_times


def one(times, values=None, in_seconds=True):
    times = np.asarray(times, dtype=float)
    values = np.arange(len(times), dtype=float) if values is None else np.asarray(values, dtype=float)
    items, notes = on_grid([Series(np.atleast_2d(values), times, "a")], in_seconds, "data")
    return items[0], notes


@pytest.mark.parametrize(
    ("column", "name", "seconds"),
    [
        ([0.0, 0.5], "t", True),
        ([0, 1], "t", False),
        ([0, 1], "seconds", True),
        ([1000, 1500], "time_ms", True),
        ([0, 500_000], "Time [us]", True),
        ([1_700_000_000, 1_700_000_001], "timestamp", True),
        ([1_700_000_000_000_000_000, 1_700_000_000_500_000_000], "stamp", True),
        (["2026-01-31 10:00:00.25", "2026-01-31T10:00:00.75"], "date", True),
        (["10:00:00.25", "10:00:00.75"], "clock", True),
        (np.array(["2026-01-31", "2026-02-01"], dtype="datetime64[D]"), "date", True),
    ],
    ids=str,
)
def test_units_of_times(column, name, seconds):
    array = np.array(column, dtype=object) if isinstance(column[0], str) else np.asarray(column)
    found = read_times(array, name, "data")
    assert found.in_seconds is seconds
    step = {"seconds": 1, "t": column[1] if name == "t" else 0, "timestamp": 1}.get(name, 0.5)
    step = 86_400 if isinstance(column, np.ndarray) else step
    assert found.values.tolist() == pytest.approx([0, step])


def test_dates_of_doubtful_order_are_doubted():
    found = read_times(np.array(["01/02/2026 10:00", "01/02/2026 10:01"], dtype=object), "date", "data")
    assert found.values.tolist() == pytest.approx([0, 60])
    assert isinstance(found.notes[0], Doubt)


def test_missing_times_are_refused():
    with pytest.raises(ValueError, match="data: 1 times are missing in the column t, the first in row 1"):
        read_times(np.array([0.0, np.nan, 1.0]), "t", "data")


def test_rounded_times_are_regular():
    item, notes = one(np.round(np.arange(100) / 60, 3))
    assert (item.rate, item.values[0].tolist()) == (60, list(range(100)))
    assert notes == ["one value every 0.0166667 s (60 Hz)"]


def test_irregular_times_are_interpolated():
    item, notes = one([0, 1, 2, 3.5, 4, 5], [0, 10, 20, 35, 40, 50])
    assert item.rate == 1
    np.testing.assert_allclose(item.values, [[0, 10, 20, 30, 40, 50]])
    assert notes[1].startswith("irregular times in 1 of 1 recordings (a): interpolated linearly onto a grid of 1 s")


def test_values_in_long_gaps_are_missing_and_in_short_ones_interpolated():
    item, _ = one([0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 22, 23])
    values = item.values[0]
    np.testing.assert_allclose(values[3:8], [3, 3.25, 3.5, 3.75, 4])
    assert np.isnan(values).tolist() == [12 < i < 22 for i in range(24)]


def test_missing_values_stay_missing_where_times_are_regular():
    item, _ = one(np.arange(5) / 10, [0, np.nan, np.nan, 3, 4])
    assert np.isnan(item.values[0]).tolist() == [False, True, True, False, False]


def test_equal_times_are_averaged_with_a_doubt():
    item, notes = one([0, 1, 1, 2, 3], [0, 1, 3, 4, 5])
    np.testing.assert_allclose(item.values, [[0, 2, 4, 5]])
    assert [type(note) for note in notes] == [str, Doubt]


def test_a_coarse_clock_is_spread_evenly_with_a_doubt():
    item, notes = one(np.repeat(np.arange(5), 10))
    assert item.values.shape == (1, 50)
    assert isinstance(notes[-1], Doubt)


def test_recordings_share_a_step_unless_their_rates_differ():
    series = [Series(np.zeros((1, 50)), np.arange(50) * step, "a") for step in (0.01, 0.0101, 0.02)]
    items, _ = on_grid(series, True, "data")
    assert [item.rate for item in items] == [99, 99, 50]


def test_times_without_a_unit_make_arrays():
    item, notes = one(np.arange(6) * 2, in_seconds=False)
    assert not isinstance(item, Recording)
    assert (item.tolist(), notes) == ([[0, 1, 2, 3, 4, 5]], ["one value every 2"])


def test_slow_measurements_have_no_rate():
    item, _ = one(np.arange(4) * 86_400)
    assert isinstance(item, np.ndarray)


def test_times_that_are_far_apart_are_refused():
    with pytest.raises(ValueError, match=r"the 4 times of a would become .* gaps such as that from 2 to 1e\+09"):
        one([0, 1, 2, 1e9])
