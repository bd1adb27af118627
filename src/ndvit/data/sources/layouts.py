"""Layouts of tables: wide (a row is an example), long (a moment of one of many), one recording (a moment)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ndvit.data.examples import Part
from ndvit.data.messages import Doubt, listing, printable, unread
from ndvit.data.sources.arrays import raw_target, warn_of_rounding
from ndvit.data.sources.clocks import Series, Times, on_grid, read_times
from ndvit.data.sources.columns import (
    Assigned,
    Columns,
    Roles,
    assign,
    channels_named,
    fits,
    is_missing_series,
    named,
    numbers_of,
    repeats,
    series_of,
    split_number,
)
from ndvit.data.sources.split_names import split_of

_MOST_CHANNELS = 64  # columns of a table that may be one recording, if nothing else decides
_FLAGS = "--id, --time, --label and --channels (id=, time=, label=, channels= in Python) name the columns"


class Examples(NamedTuple):
    """The examples of one table.

    Attributes:
        items: arrays (channels, time), or `Recording`s.
        names: names of the examples.
        targets: raw targets; None if the table has none.
        columns: values of the further columns that the user names, by these names.
        splits: "train", "val" or "test" of each example; None without such a column.
        channels: names of the channels.
        notes: what was read as what, and doubts.
    """

    items: list[Any]
    names: list[str]
    targets: list[Any] | None
    columns: dict[str, list[Any]]
    splits: list[str] | None
    channels: tuple[str, ...]
    notes: list[str]


class Recorded(NamedTuple):
    """One recording of a table, before its times are used; see `Series` and `Times`."""

    series: Series
    in_seconds: bool
    target: Any
    columns: dict[str, Any]
    channels: tuple[str, ...]
    notes: list[str]
    units: tuple[str, ...] = ()  # of the channels, "" where a unit is unknown; empty where the format has none


def read_examples(columns: Columns, roles: Roles, *, with_targets: bool, channels: int = 0) -> Examples:
    """Read a table of many examples, wide or long, or of one recording.

    It is long if a column of ids has repeated values; one recording if it has none, but times; else wide. A table
    without targets and without either is one recording if it has as many columns as the model `channels`, or if its
    few columns have names that do not count.

    Args:
        columns: the table.
        roles: what the user names.
        with_targets: whether targets are needed, so that the only column of text is taken as theirs.
        channels: channels of the model that reads the examples; 0 without a model.

    Raises:
        ValueError: for a table without values, columns of several possible meanings, and targets that change within an
            example.
    """
    if not len(columns):
        raise ValueError(f"{columns.where}: has no rows below its header")
    found = assign(columns, roles, with_targets=with_targets)
    _check_not_one_column(columns)
    texts = [
        name for name in found.rest if columns.values[name].dtype.kind == "O" and not series_of(columns.values[name])
    ]
    values = {name: array for name in found.rest if (array := numbers_of(columns, name)) is not None}
    nested = [name for name in found.rest if series_of(columns.values[name])]
    notes = list(columns.notes)
    texts = [name for name in texts if name not in values]
    if roles.channels and (bad := [name for name in found.rest if name not in values and name not in nested]):
        raise ValueError(f"{columns.where}: the column {named(bad)} (--channels) has no numbers")
    if not found.label and with_targets and len(texts) == 1 and repeats(columns.values[texts[0]]):
        found.label = (texts.pop(),)
        notes.append(f"labels from the column {printable(found.label[0])}, the only one of text")
    if not values and not nested:
        raise ValueError(f"{columns.where}: no column has numbers ({named(columns.values)}); {_FLAGS}")
    if nested:
        read = _nested(columns, found, nested)
        values = {}
    elif found.id and _repeats(columns, found.id):
        read = _long(columns, found, values)
    elif found.time is not None and not found.id:
        one = _recorded(columns, found, values)
        items, more = on_grid([one.series], one.in_seconds, columns.where)
        targets = [one.target] if found.label else None
        beside = {name: [value] for name, value in one.columns.items()}
        read = Examples(items, [columns.where], targets, beside, None, one.channels, [*one.notes, *more])
    elif not found.label and not found.id and _may_be_one(values, channels, with_targets):
        read = _rows_as_moments(columns, values, channels)
    else:
        read = _wide(columns, found, values)
    used = {*found.label, found.time, found.split, found.kind, *found.columns.values(), *found.id, *values, *nested}
    if found.counter is not None:
        notes.append("the column that counts the rows is not read")
    left = [printable(name) for name in columns.values if name not in used and name != found.counter]
    return read._replace(notes=[*notes, *read.notes, *unread("columns", left)])


def is_long(columns: Columns, roles: Roles) -> bool:
    """Whether a table has a column of ids whose values repeat."""
    found = assign(columns, roles, with_targets=False)
    return bool(len(columns) and found.id and _repeats(columns, found.id))


def parts_of(read: Examples) -> dict[str, Part]:
    """The splits of a table."""
    part = Part(read.items, read.targets, read.names, read.columns, tuple(map(printable, read.channels)))
    if read.splits is None:
        return {"train": part}
    order = [split for split in ("train", "val", "test") if split in read.splits]
    return {split: part.take([i for i, of in enumerate(read.splits) if of == split]) for split in order}


def read_recording(columns: Columns, roles: Roles) -> Recorded:
    """Read a table of one recording, a row for each moment.

    Raises:
        ValueError: for a table without values, or labels that change within it.
    """
    if not len(columns):
        raise ValueError(f"{columns.where}: has no rows below its header")
    found = assign(columns, roles, with_targets=False)
    values = {name: array for name in found.rest if (array := numbers_of(columns, name)) is not None}
    if roles.channels and (bad := [name for name in found.rest if name not in values]):
        raise ValueError(f"{columns.where}: the column {named(bad)} (--channels) has no numbers")
    if not values:
        raise ValueError(f"{columns.where}: no column has numbers ({named(columns.values)}); {_FLAGS}")
    if found.id and not roles.id and not _repeats(columns, found.id):  # a counter of the rows
        found.id = ()
    one = _recorded(columns, found, values)
    used = {*found.label, found.time, found.counter, *found.columns.values(), *values}
    left = [printable(name) for name in columns.values if name not in used]
    notes = [*columns.notes, *one.notes, *unread("columns", left)]
    if roles.time is not None and roles.time.lower() != "none" and not fits(roles.time, list(columns.values)):
        notes.append(
            Doubt(f"no column of times {printable(roles.time)[:60]!r} (--time); columns: {named(columns.values)}")
        )
    return one._replace(notes=notes)


# ----------------------------------------------------------------------------------------------------------- wide


def _wide(columns: Columns, found: Assigned, values: dict[str, np.ndarray]) -> Examples:
    """A row is an example. Columns such as ax_0, ax_1, ay_0, ay_1 are two channels; others one."""
    names, matrix = list(values), np.stack(list(values.values()), axis=1)
    channels = _numbered_channels(names)
    where = columns.where
    if channels:
        order = [i for of_channel in channels.values() for i in of_channel]
        matrix = matrix[:, order].reshape(len(columns), len(channels), -1)
        listed = f"{len(channels)} channels ({named(channels)}) of {matrix.shape[2]:,} values, by the columns' names"
    else:
        matrix = matrix[:, None]
        listed = f"1 channel of {len(names):,} values ({_span(names)})"
    with np.errstate(over="ignore"):
        items = list(matrix.astype(np.float32))
    warn_of_rounding(matrix, matrix.astype(np.float32), where)
    note = f"a row is an example: {listed}; {_read_as(found)}"
    ids = _names(columns, found.id, where)
    return _with_roles(columns, found, items, ids, np.arange(len(columns)), tuple(channels) or (), [note])


def _numbered_channels(names: Sequence[str]) -> dict[str, list[int]]:
    """Places of the columns of each channel, if all names are stems with the same three or more numbers."""
    places: dict[str, dict[int, int]] = {}
    for i, name in enumerate(names):
        stem, number = split_number(name)
        if number is None or number in places.setdefault(stem, {}):
            return {}
        places[stem][number] = i
    numbers = [sorted(of) for of in places.values()]
    if len(places) < 2 or len(numbers[0]) < 3 or any(of != numbers[0] for of in numbers):
        return {}
    return {stem: [of[number] for number in numbers[0]] for stem, of in places.items()}


def _nested(columns: Columns, found: Assigned, names: Sequence[str]) -> Examples:
    """A row is an example, and each column with a series in every field a channel."""
    items, where = [], columns.where
    for i in range(len(columns)):
        rows = [columns.values[name][i] for name in names]
        try:
            series = [np.atleast_1d(np.asarray([] if is_missing_series(r) else r, dtype=np.float32)) for r in rows]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}, {columns.row(i)}: {error}; expected series of numbers") from error
        if len({one.shape for one in series}) > 1 or series[0].size == 0:
            lengths = ", ".join(f"{printable(name)} {len(one):,}" for name, one in zip(names, series))
            raise ValueError(f"{where}, {columns.row(i)}: series of {lengths} values; expected one length, not 0")
        items.append(np.stack(series) if series[0].ndim == 1 else np.concatenate(series))
    note = f"a row is an example, with a series in each of the columns {named(names)}, the channels; {_read_as(found)}"
    ids = _names(columns, found.id, where)
    return _with_roles(columns, found, items, ids, np.arange(len(columns)), tuple(names), [note])


def _may_be_one(values: dict[str, np.ndarray], channels: int, with_targets: bool) -> bool:
    """Whether a table without ids, times and labels is one recording instead of many examples."""
    if with_targets or not 1 <= len(values) <= _MOST_CHANNELS:
        return False
    if channels:
        return len(values) == channels and (channels > 1 or len(next(iter(values.values()))) > 1)
    numbered = [split_number(name)[1] for name in values]
    return None in numbered and len(next(iter(values.values()))) > len(values)


def _rows_as_moments(columns: Columns, values: dict[str, np.ndarray], channels: int) -> Examples:
    note = f"one recording: a row is a moment, {channels_named(values)}"
    if not channels:
        note = Doubt(f"{columns.where}: {note}; if a row is an example, name a column of its names with --id")
    items, more = on_grid([Series(np.stack(list(values.values())), None, columns.where)], False, columns.where)
    return Examples(items, [columns.where], None, {}, None, tuple(values), [note, *more])


# ----------------------------------------------------------------------------------------------------------- long


def _recorded(columns: Columns, found: Assigned, values: dict[str, np.ndarray]) -> Recorded:
    """The only recording of a table."""
    where, every = columns.where, np.zeros(len(columns), dtype=np.int64)
    times = _times(columns, found)
    if found.id and len(set(_codes(columns, found.id).tolist())) > 1:
        raise ValueError(f"{where}: has several recordings by the column {named(found.id)}; expected one in each file")
    _check_constant(columns, found, every, np.zeros(1, np.int64), "the recording", [where])
    at = None if times is None else times.values
    series = Series(np.stack(list(values.values())), at, where)
    first = np.zeros(1, np.int64)
    (target,) = _targets(columns, found.label, first) or (None,)
    beside = {name: raw_values(columns.values[column][first])[0] for name, column in found.columns.items()}
    note = f"one recording: a row is a moment, {channels_named(values)}; {_read_as(found)}"
    notes = [note, *(times.notes if times else ())]
    return Recorded(series, bool(times and times.in_seconds), target, beside, tuple(values), notes)


def _long(columns: Columns, found: Assigned, values: dict[str, np.ndarray]) -> Examples:
    """A row is a moment, and rows of one id are an example."""
    where = columns.where
    codes = _codes(columns, found.id)
    times = _times(columns, found)
    tidy = found.kind is not None and len(values) == 1
    if found.kind is not None and not tidy:
        found.rest.append(found.kind)  # a channel as others, if it has numbers
        values |= {found.kind: numbers} if (numbers := numbers_of(columns, found.kind)) is not None else {}
        found.kind = None if found.kind in values else found.kind
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) > 0])
    first = order[starts]  # row in which an example begins, in the order of the table
    names = _names(columns, found.id, where, first)
    _check_constant(columns, found, codes, first, "an example", names)
    series: list[Series] = []
    channels = tuple(values)
    matrix = np.stack(list(values.values()))
    kinds, labels = (None, ()) if not tidy else _levels(columns.values[str(found.kind)])
    for rows, name in zip(np.split(order, starts[1:]), names):
        at = None if times is None else times.values[rows]
        if kinds is None:
            series.append(Series(matrix[:, rows], at, name))
        else:
            series.append(_spread(matrix[0, rows], kinds[rows], at, len(labels), name, where))
    if kinds is not None:
        channels = tuple(map(printable, labels))
    items, more = on_grid(series, bool(times and times.in_seconds), where)
    listed = channels_named(channels) + (f" of the column {found.kind}" if tidy else "")
    note = f"rows of one {' and '.join(found.id)} are an example ({len(items):,}), {listed}; {_read_as(found)}"
    return _with_roles(columns, found, items, names, first, channels, [note, *(times.notes if times else ()), *more])


def _spread(
    values: np.ndarray, kinds: np.ndarray, times: np.ndarray | None, count: int, name: str, where: str
) -> Series:
    """The values of one example in a table with one row for each channel and moment, as (channels, moments)."""
    if times is None:  # the rows of a channel are its moments
        at = np.zeros(len(kinds), dtype=np.int64)
        for kind in range(count):
            at[kinds == kind] = np.arange(int((kinds == kind).sum()))
        moments = None
        length = int(at.max()) + 1
    else:
        moments, at = np.unique(times, return_inverse=True)
        length = len(moments)
    spread = np.full((count, length), np.nan)
    spread[kinds, at] = values
    if len(np.unique(kinds * length + at)) < len(at):
        raise ValueError(f"{where}: {name} has several values of one channel at one time; expected one")
    return Series(spread, moments, name)


def _levels(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n,) numbers of the different values, and these as text, in sorted order of numbers or else of text."""
    unique = set(values.tolist())
    ordered = sorted(unique) if values.dtype.kind in "fiu" else sorted(unique, key=str)
    places = {value: i for i, value in enumerate(ordered)}
    return np.array([places[value] for value in values.tolist()]), tuple(map(str, ordered))


# ---------------------------------------------------------------------------------------------------------- roles


def _repeats(columns: Columns, names: Sequence[str]) -> bool:
    codes = _codes(columns, names)
    return int(codes.max()) + 1 < len(codes)


def _codes(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """(n,) numbers of the different values of columns together, in the order in which they first appear."""
    known: dict[Any, int] = {}
    rows = zip(*(columns.values[name].tolist() for name in names))
    missing = {None, ""}
    codes = np.empty(len(columns), dtype=np.int64)
    for i, row in enumerate(rows):
        if any(value in missing or value != value for value in row):
            raise ValueError(f"{columns.where}, {columns.row(i)}: no value in the column {named(names)} (--id)")
        codes[i] = known.setdefault(row, len(known))
    return codes


def _names(columns: Columns, ids: Sequence[str], where: str, rows: np.ndarray | None = None) -> list[str]:
    """Names of the examples: their ids, else their numbers."""
    at = range(len(columns)) if rows is None else rows.tolist()
    if not ids:
        return [f"{where}[{i}]" for i in at]
    return [f"{where}[{'/'.join(str(raw_target(columns.values[name][i])) for name in ids)}]" for i in at]


def _times(columns: Columns, found: Assigned) -> Times | None:
    return None if found.time is None else read_times(columns.values[found.time], found.time, columns.where)


def _check_constant(
    columns: Columns, found: Assigned, codes: np.ndarray, first: np.ndarray, what: str, names: Sequence[str]
) -> None:
    """Raise a ValueError if label, split or a further column change within an example."""
    each_row = "" if found.id else "; if each row is an example, set --time none"
    labels = [("label", name) for name in found.label]
    splits = [("split", found.split)] if found.split else []
    for role, name in (*labels, *splits, *(("group", name) for name in found.columns.values())):
        levels, _ = _levels(np.array([str(value) for value in columns.values[name].tolist()], dtype=object))
        differ = levels != levels[first][codes]
        if differ.any():
            at = int(differ.argmax())
            ids = ",".join((*found.id, name))
            raise ValueError(
                f"{columns.where}, {columns.row(at)}: the {role} (column {printable(name)}) changes within {what}, "
                f"{names[codes[at]]}; expected one for each example: cut it there by a column of ids, or, if all its "
                f"rows of one {role} are one example, set --id {ids}{each_row}"
            )


def _with_roles(
    columns: Columns,
    found: Assigned,
    items: list[Any],
    names: list[str],
    rows: np.ndarray,
    channels: tuple[str, ...],
    notes: list[str],
) -> Examples:
    """Add what the first row of each example has as label, split and further columns."""
    targets = _targets(columns, found.label, rows) or None
    beside = {name: raw_values(columns.values[column][rows]) for name, column in found.columns.items()}
    splits = None
    if found.split is not None:
        written = columns.values[found.split][rows].tolist()
        splits = []
        for name, value in zip(names, written):
            split = split_of(str(value or ""))
            if split is None:
                raise ValueError(
                    f"{columns.where}: the split of {name} is {str(value)[:40]!r}; expected train, val or test"
                )
            splits.append(split)
        notes = [*notes, f"the split in the column {found.split}"]
    return Examples(items, names, targets, beside, splits, channels, notes)


def _targets(columns: Columns, names: Sequence[str], rows: np.ndarray) -> list[Any]:
    """The raw target in each of these rows; of several columns, dicts from their names to values; empty without any."""
    found = [raw_values(columns.values[name][rows]) for name in names]
    return found[0] if len(found) == 1 else [dict(zip(names, row)) for row in zip(*found)]


def raw_values(values: np.ndarray) -> list[Any]:
    """Targets or further columns as plain values, None for missing ones; numbers as integers if all are whole."""
    if values.dtype.kind == "f":
        present = values[~np.isnan(values)]
        whole = np.all((present == np.round(present)) & (np.abs(present) < 2**53))
        return [None if value != value else int(value) if whole else value for value in values.tolist()]
    return [raw_target(value) for value in values.tolist()]


def _read_as(found: Assigned) -> str:
    """The roles of the other columns, for notes."""
    roles = {"label": ", ".join(found.label), "id": ", ".join(found.id), "time": found.time}
    roles |= dict.fromkeys(["group"] if found.columns else [], ", ".join(found.columns.values()))
    listed = ", ".join(f"{role}: {printable(name)}" for role, name in roles.items() if name)
    return listed or "no column of labels, ids or times"


def _span(names: Sequence[str]) -> str:
    ends = [printable(name)[:30] for name in names]
    return listing(ends) if len(ends) <= 3 else f"{ends[0]} to {ends[-1]}"


def _check_not_one_column(columns: Columns) -> None:
    names = list(columns.values)
    if len(names) == 1 and len(names[0]) > 60 and any(sign in names[0] for sign in ",;\t| "):
        raise ValueError(
            f"{columns.where}: has one column, {printable(names[0])[:60]!r}; expected several, separated by commas, "
            "semicolons or tabs"
        )
