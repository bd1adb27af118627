"""Times of measurements: their unit, whether they are regular, and resampling of irregular ones onto a grid."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ndvit.data.examples import Recording
from ndvit.data.messages import Doubt, listing, printable

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_UNITS |= dict.fromkeys(("sec", "secs", "second", "seconds"), 1.0) | dict.fromkeys(("msec", "millis"), 1e-3)
_UNITS |= {"milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9, "minutes": 60.0, "hours": 3600.0}
_UNIT = re.compile(r"[\s_.\-\[(/]([A-Za-zµμ]+)[\])]?\s*$")
_EPOCHS = ((9e8, 4e9, 1.0), (9e11, 4e12, 1e-3), (9e14, 4e15, 1e-6), (9e17, 4e18, 1e-9))  # 1998 to 2096, in s to ns
_RATES = (1e-3, 1e9)  # Hz that preprocessing takes
_JITTER = 0.25  # of a step, by which times may deviate from a regular grid, such as times rounded to milliseconds
_ALIKE = 0.05  # relative difference of steps that are one
_RUN = 10  # rows on average between times that go back, where recordings follow each other
_GAP = 5  # steps without a value that are interpolated; values in longer gaps are missing
_MOST_GROWTH = 50  # of the number of values by resampling
_DIGITS = (3, 4, 5)  # of a rate that is rounded if that changes it by less than a thousandth


class Series(NamedTuple):
    """The values of one recording before its times are used.

    Attributes:
        values: (channels, n) numbers, NaN for missing ones.
        times: (n,) numbers in their order; None for values in regular steps.
        name: name in messages.
        rate: samples per second (Hz) if a header has it.
    """

    values: np.ndarray
    times: np.ndarray | None
    name: str
    rate: float | None = None


class Times(NamedTuple):
    """Times as numbers, whether their unit is the second, and notes."""

    values: np.ndarray
    in_seconds: bool
    notes: list[str]


def read_times(column: np.ndarray, name: str, where: str) -> Times:
    """Convert a column of times to numbers: of seconds if the unit is known.

    It is known of dates, of durations, of numbers whose column is named like `time_ms` or `t [s]`, and of numbers that
    are seconds (milli-, micro-, nanoseconds) since 1970 between 1998 and 2096. Other numbers are seconds if they have
    fractions, with a note, and else count the values.

    Raises:
        ValueError: for values that are neither numbers nor times, and for missing ones.
    """
    doubts: list[str] = []
    if column.dtype.kind == "O":
        column, doubts = _parsed(column, name, where)
    if column.dtype.kind in "mM":
        ticks = column.astype("timedelta64[ns]" if column.dtype.kind == "m" else "datetime64[ns]")
        _check_complete(np.isnat(ticks), name, where)
        return Times((ticks - ticks.min()).astype(np.float64) * 1e-9, True, doubts)
    if column.dtype.kind not in "fiu":
        raise ValueError(f"{where}: the column {name} has {column.dtype} values; expected numbers or dates as times")
    _check_complete(~np.isfinite(column) if column.dtype.kind == "f" else np.zeros(1, bool), name, where)
    start = column.min()
    since = (column - start).astype(np.float64)  # first, because nanoseconds since 1970 exceed the precision
    unit = _UNIT.search(name)
    if unit and (scale := _UNITS.get(unit[1]) or _UNITS.get(unit[1].lower())):
        return Times(since * scale, True, doubts)
    for low, high, scale in _EPOCHS:
        if low <= float(start) and float(column.max()) <= high:
            return Times(since * scale, True, doubts)
    if name.strip().lower() in _UNITS:
        return Times(since, True, doubts)
    if np.all(since == np.round(since)):
        return Times(since, False, doubts)
    unit_note = f"times in the column {name} are read as seconds; if they are not, rename it (such as {name}_ms)"
    return Times(since, True, [*doubts, unit_note])


def _check_complete(missing: np.ndarray, name: str, where: str) -> None:
    if missing.any():
        raise ValueError(
            f"{where}: {int(missing.sum()):,} times are missing in the column {name}, the first in row "
            f"{int(missing.argmax()):,}; remove these rows"
        )


def _parsed(column: np.ndarray, name: str, where: str) -> tuple[np.ndarray, list[str]]:
    """Dates or durations from text, and doubts about the order of day and month."""
    import pandas as pd

    text = pd.Series(column, dtype="str")
    first = printable(str(text.iloc[0])[:40])
    if text.str.fullmatch(r"\s*-?(\d+ days?,? )?\d{1,3}:\d\d(:\d\d)?([.,]\d+)?\s*").all():
        long = text.str.strip().str.replace(",", ".", regex=False)
        long = long.where(long.str.count(":") == 2, "00:" + long)  # minutes and seconds
        return pd.to_timedelta(long).to_numpy(), []
    for how in ({"format": "ISO8601"}, {"format": "mixed"}):
        try:
            parsed = pd.to_datetime(text, utc=True, **how)
        except (ValueError, TypeError, OverflowError):
            continue
        doubtful = how["format"] == "mixed" and text.str.match(r"\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}").any()
        order = f"{where}: dates such as {first} in the column {name} are read with the month first; write them as"
        return parsed.dt.tz_localize(None).to_numpy(), [Doubt(f"{order} 2026-12-31")] if doubtful else []
    raise ValueError(f"{where}: the column {name} has text such as {first!r}; expected times: numbers, or 2026-12-31")


def on_grid(series: Sequence[Series], in_seconds: bool, where: str) -> tuple[list[np.ndarray | Recording], list[str]]:
    """Return recordings with regular steps, and notes.

    Rows are sorted by time. Times that are regular, up to a quarter of a step, only yield the rate. Others are
    interpolated linearly onto a regular grid whose step is the median of all; values in gaps of more than five steps
    are missing.

    Args:
        series: the recordings.
        in_seconds: whether times are in seconds, so that the items are `Recording`s at their rate.
        where: name of the data in messages.

    Raises:
        ValueError: for times so far apart that the grid would have 50 times as many values as were measured.
    """
    notes: dict[str, list[str]] = {"unsorted": [], "repeated": [], "coarse": [], "irregular": []}
    sorted_series = [_sorted(one, notes) for one in series]
    steps = [_step(one.times) for one in sorted_series]
    known = [step for step in steps if step]
    common = float(np.median(known)) if known else 0.0
    items: list[np.ndarray | Recording] = []
    for one, step in zip(sorted_series, steps):
        if one.times is None or not step:
            rate = one.rate or (_rounded(1 / common) if common and in_seconds else None)
            items.append(as_item(one.values, rate))
            continue
        regular = _is_regular(one.times, None if in_seconds else common)
        if not in_seconds or abs(step - common) <= (_ALIKE if regular else 1) * common:
            step = common
        values = one.values
        if not regular:
            values = _interpolated(one, step, where)
            notes["irregular"].append(one.name)
        items.append(as_item(values, _rounded(1 / step) if in_seconds else None))
    return items, _described(notes, len(series), common, in_seconds)


def as_item(values: np.ndarray, rate: float | None) -> np.ndarray | Recording:
    """Return (channels, n) values as float32, as a `Recording` if there is a rate that preprocessing takes."""
    with np.errstate(over="ignore"):  # infinite values are refused later
        values = np.ascontiguousarray(values, dtype=np.float32)
    return values if rate is None or not _RATES[0] <= rate <= _RATES[1] else Recording(values, rate)


def _rounded(rate: float) -> float:
    """A rate without the last digits that come from rounded times."""
    for digits in _DIGITS:
        if abs((short := float(f"{rate:.{digits}g}")) - rate) <= 1e-3 * rate:
            return short
    return rate


def _sorted(one: Series, notes: dict[str, list[str]]) -> Series:
    """A recording in the order of its times, with the mean of the values of equal times."""
    times = one.times
    if times is None:
        return one
    back = np.diff(times) < 0
    if back.any():
        _check_one_clock(times, back, one.name)
        order = np.argsort(times, kind="stable")
        one, times = one._replace(values=one.values[:, order]), times[order]
        notes["unsorted"].append(one.name)
    same = np.diff(times) == 0
    if not same.any() or times[0] == times[-1]:
        return one._replace(times=times)
    if same.mean() > 0.5:  # a clock that is slower than the measurements
        notes["coarse"].append(one.name)
        return one._replace(times=np.linspace(times[0], times[-1], len(times)))
    notes["repeated"].append(one.name)
    unique, starts = np.unique(times, return_index=True)
    present = ~np.isnan(one.values)
    sums = np.add.reduceat(np.where(present, one.values, 0.0), starts, axis=1)
    counts = np.add.reduceat(present, starts, axis=1)
    with np.errstate(invalid="ignore"):
        return one._replace(values=sums / np.where(counts, counts, np.nan), times=unique)


def _check_one_clock(times: np.ndarray, back: np.ndarray, name: str) -> None:
    """Raise a ValueError for times that start again, as where the rows of several recordings follow each other."""
    starts = np.flatnonzero(np.r_[True, back])
    if len(times) < _RUN * len(starts):  # rows in any order
        return
    ends = np.r_[starts[1:] - 1, len(times) - 1]
    order = np.argsort(times[starts], kind="stable")
    if np.any(times[starts][order][1:] <= times[ends][order][:-1]):
        raise ValueError(
            f"{name}: its times start again after {starts[1]:,} rows, so that it has several recordings; name the "
            "columns that tell them apart with --id (id= in Python)"
        )


def _step(times: np.ndarray | None) -> float:
    """Median of the steps; of regular times their mean, which rounding affects less; 0 without any."""
    if times is None or len(times) < 2 or times[-1] == times[0]:
        return 0.0
    mean = float(times[-1] - times[0]) / (len(times) - 1)
    return mean if _is_regular(times) else float(np.median(np.diff(times)))


def _is_regular(times: np.ndarray, step: float | None = None) -> bool:
    """Whether times have regular steps; with `step`, steps of this length."""
    mean = float(times[-1] - times[0]) / (len(times) - 1)
    deviation = np.abs(times - (times[0] + mean * np.arange(len(times)))).max()
    return bool(deviation <= _JITTER * mean and (step is None or abs(mean - step) <= 1e-3 * step))


def _interpolated(one: Series, step: float, where: str) -> np.ndarray:
    """Values on a grid of this step; each channel between its own observed values."""
    times = one.times
    assert times is not None
    count = int(np.floor((times[-1] - times[0]) / step * (1 + 1e-9))) + 1
    if count > _MOST_GROWTH * (len(times) + 20):
        gap = int(np.diff(times).argmax())
        raise ValueError(
            f"{where}: the {len(times):,} times of {one.name} would become {count:,} in regular steps of {step:g}, "
            f"because of gaps such as that from {times[gap]:g} to {times[gap + 1]:g} after the first time: cut the "
            "recording there (another id), or choose another column of times"
        )
    grid = times[0] + step * np.arange(count)
    result = np.full((len(one.values), count), np.nan)
    for row, values in zip(result, one.values):
        observed = ~np.isnan(values)
        if not observed.any():
            continue
        at, there = times[observed], values[observed]
        row[:] = np.interp(grid, at, there, left=np.nan, right=np.nan)
        after = np.searchsorted(at, grid - 1e-6 * step)  # the observed value that follows each place of the grid
        before, after = np.maximum(after - 1, 0), np.minimum(after, len(at) - 1)
        in_gap = (at[after] - at[before] > (_GAP + 1e-6) * step) & (np.abs(at[after] - grid) > 1e-6 * step)
        row[in_gap] = np.nan
    return result


def _described(notes: dict[str, list[str]], total: int, step: float, in_seconds: bool) -> list[str]:
    """Notes on what was done with the times."""
    found: list[str] = []

    def of(what: str) -> str:
        names = notes[what]
        return f"{len(names):,} of {total:,} recordings ({listing([name[:60] for name in names])})"

    unit = " s" if in_seconds else ""
    if step:
        found.append(f"one value every {step:.6g}{unit}" + (f" ({_rounded(1 / step):.6g} Hz)" if in_seconds else ""))
    if notes["irregular"]:
        found.append(
            f"irregular times in {of('irregular')}: interpolated linearly onto a grid of {step:.6g}{unit}; values in "
            f"gaps of more than {_GAP} steps are missing"
        )
    if notes["unsorted"]:
        found.append(f"rows that are not in the order of time in {of('unsorted')}: sorted")
    if notes["repeated"]:
        found.append(
            Doubt(f"equal times in {of('repeated')}: the mean of their values is used; if they differ, name --id")
        )
    if notes["coarse"]:
        found.append(
            Doubt(f"most times repeat the one before in {of('coarse')}: rows are read as evenly spaced between them")
        )
    return found
