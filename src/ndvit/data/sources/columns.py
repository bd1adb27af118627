"""Tables with named columns, of files or in memory, and what the columns are: label, id, time, channels and so on.

A column is a numpy array: numbers, dates, or Python objects for text and for series.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.reading import PATH, FileOptions, ReadingOptions, listed
from ndvit.data.messages import listing, names_groups, printable
from ndvit.data.sources.containers import is_missing

LABELS = ("label", "labels", "class", "classes", "target", "targets", "category", "classlabel", "activity")
"""Names of columns of labels, in lower case and without separators."""
PATHS = ("path", "file", "filename", "image", "file_name", "filepath", "file_path", "image_path")
"""Names of columns of paths to files, in lower case."""
_IDS = {
    *("id", "case", "series", "recording", "sample", "trial", "instance", "example", "window", "segment", "sequence"),
    *("file", "run", "episode", "measurement", "uid", "unit", "filename"),
}
TIMES = {
    *("time", "t", "timestamp", "datetime", "date", "seconds", "elapsed", "elapsedtime", "timestep", "step", "tick"),
    *("reading", "moment", "timepoint", "sampleindex", "frame", "ms", "milliseconds", "timeindex"),
    *("zeit", "zeitstempel", "temps", "tiempo", "czas", "时间"),
}
"""Names of columns of times, as `word` returns them."""
_KINDS = {"kind", "channel", "dim", "dimension", "variable", "sensor", "signal", "parameter"}
_UNIT_AT_END = re.compile(r"[\s_]*[\[(/][^\])]*[\])]?\s*$|[\s_]+(s|ms|us|ns|sec|min|h)\s*$", re.IGNORECASE)
_LISTED = 12  # names of columns in a message
_MOSTLY = 0.5  # share of numbers in a column of text of which the rest are faults


@dataclass(frozen=True)
class Roles:
    """What columns or arrays are, as far as the user names it; the others are inferred from their names.

    The name none for label, id or time means that there is no such column.

    Attributes:
        label: names of the columns or arrays of targets.
        id: columns whose values together tell the examples of a long table apart; of a wide one, their names.
        time: column of times.
        channels: names of the columns of values, or patterns with * for several; empty for all numbers.
        columns: names of further columns or arrays that are read, such as the one of groups.
        array: names of the arrays in a file, or words in their names; each is a channel, or all of them.
    """

    label: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    time: str | None = None
    channels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    array: tuple[str, ...] = ()

    @classmethod
    def of(cls, reading: FileOptions) -> "Roles":
        """The roles that the options of reading name."""
        label = () if str(reading.label).startswith(PATH) else listed(reading.label)
        columns = reading.columns if isinstance(reading, ReadingOptions) else ()
        return cls(label, listed(reading.id), reading.time, listed(reading.channels), columns, listed(reading.array))


NO_ROLES = Roles()


class Columns(NamedTuple):
    """The columns of a table.

    Attributes:
        values: arrays of one length by name.
        where: name of the table in messages.
        first_line: number of the line of the first row in a text file; 0 for other tables.
        notes: decisions while it was read.
    """

    values: dict[str, np.ndarray]
    where: str
    first_line: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), ()))

    def row(self, i: int) -> str:
        """Name of a row in messages."""
        return f"line {self.first_line + i:,}" if self.first_line else f"row {i:,}"


@dataclass
class Assigned:
    """The names of columns by their role.

    `columns` has the further columns by the names that the user wrote; `rest` the others, in their order.
    """

    label: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    time: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    kind: str | None = None
    counter: str | None = None
    rest: list[str] = field(default_factory=list)


def word(name: str) -> str:
    """A name in lower case without separators, units in brackets and _id at the end."""
    plain = re.sub(r"[\W_]+", "", _UNIT_AT_END.sub("", name.lower()))
    return plain[:-2] if plain.endswith("id") and len(plain) > 2 else plain


def find(name: str, names: Sequence[str], where: str, flag: str) -> str:
    """The column of a name: equal, else equal but for case and outer spaces, else by its number, -1 for the last.

    Raises:
        ValueError: with the names there are.
    """
    if name in names:
        return name
    alike = [other for other in names if other.strip().lower() == name.strip().lower()]
    if len(alike) == 1:
        return alike[0]
    if re.fullmatch(r"-?\d+", name) and -len(names) <= int(name) < len(names):
        return names[int(name)]
    raise ValueError(f"{where}: has no column {printable(name)[:60]!r} ({flag}); columns: {named(names)}")


def fits(pattern: str, names: Sequence[str]) -> bool:
    """Whether a name or a pattern is that of a column."""
    try:
        return bool(matching([pattern], names, "", ""))
    except ValueError:
        return False


def named(names: Iterable[str]) -> str:
    """Names of columns for messages."""
    return listing([printable(name)[:60] for name in names], _LISTED)


def channels_named(names: Iterable[str]) -> str:
    """The channels of an example for notes, with their names."""
    listed = list(names)
    return f"{'1 channel' if len(listed) == 1 else 'channels'}: {named(listed)}"


def assign(columns: Columns, roles: Roles, *, with_targets: bool = True) -> Assigned:
    """Find the role of each column: by the user's names, else by the columns' own.

    Raises:
        ValueError: for names that are not there, or two columns that may have one role.
    """
    names, where = list(columns.values), columns.where
    found = Assigned()
    absent = {role for role in ("label", "id", "time") if _is_none(getattr(roles, role), names)}
    unset: dict[str, Any] = {role: None if role == "time" else () for role in absent}
    roles = replace(roles, **unset)
    if roles.label and (with_targets or all(fits(name, names) for name in roles.label)):
        found.label = tuple(matching(roles.label, names, where, "--label"))
    if with_targets or all(fits(name, names) for name in roles.id):  # one recording to predict has no ids
        found.id = tuple(find(name, names, where, "--id") for name in roles.id)
    if roles.time is not None and (with_targets or fits(roles.time, names)):
        found.time = find(roles.time, names, where, "--time")
    found.columns = {name: find(name, names, where, "--group-by") for name in roles.columns if fits(name, names)}
    numeric = [name for name in names if not _is_text(columns.values[name]) and name not in (found.time, *found.id)]
    in_order = dict.fromkeys(  # of the user's names, which is that of a model's channels
        name
        for pattern in roles.channels  # a pattern is for columns of numbers, a name also for one without
        for name in matching([pattern], numeric if _is_pattern(pattern, names) else names, where, "--channels")
    )
    chosen = set(in_order)
    taken = {*found.label, found.time, *found.id} | chosen
    free = [name for name in names if name not in taken and not series_of(columns.values[name])]
    if not found.label and "label" not in absent:
        # it may be one of the ids, as where the rows of a subject and an activity are an example
        candidates = [name for name in (*found.id, *free) if word(name) in LABELS]
        found.label = _only(candidates, "label", where, named_exactly=LABELS)
    others = set(found.columns.values())
    if not found.id and "id" not in absent:
        ids = [n for n in free if word(n) in _IDS and n not in found.label and n not in others]
        found.id = _plain_id(columns, ids)
    if found.time is None and "time" not in absent:
        found.time = _plain_time(columns, [n for n in free if n not in (*found.label, *found.id)])
    found.split = next((n for n in free if n.strip().lower() == "split" and _is_text(columns.values[n])), None)
    taken |= {*found.label, found.time, found.split, *found.id} | (others - chosen)
    if not chosen:
        found.kind = next((n for n in free if n not in taken and word(n) in _KINDS), None)
        found.counter = next((n for n in free if n not in taken and _counts_rows(n, columns.values[n])), None)
    taken |= {found.kind, found.counter}
    found.rest = list(in_order) or [name for name in names if name not in taken and not names_groups(name)]
    return found


def _is_none(role: str | tuple[str, ...] | None, names: Sequence[str]) -> bool:
    """Whether the user has written none, and no column is called so."""
    return role in ("none", ("none",)) and "none" not in names


def matching(patterns: Iterable[str], names: Sequence[str], where: str, flag: str) -> list[str]:
    """The names that fit the patterns, in the order of these; each must fit one or more, or be the stem of several."""
    found: dict[str, None] = {}
    for pattern in patterns:
        if _is_pattern(pattern, names):
            fitting = fnmatch.filter(names, pattern)
        elif pattern in names or not (fitting := [n for n in names if _stem(n) == pattern]):
            fitting = [find(pattern, names, where, flag)]
        if not fitting:
            raise ValueError(f"{where}: no column fitting {printable(pattern)!r} ({flag}); columns: {named(names)}")
        found |= dict.fromkeys(fitting)
    return list(found)


def _is_pattern(name: str, names: Sequence[str]) -> bool:
    """Whether a name is a pattern, and no column with brackets such as time [s]."""
    return name not in names and any(sign in name for sign in "*?[")


def _stem(name: str) -> str:
    return split_number(name)[0]


def split_number(name: str) -> tuple[str, int | None]:
    """The stem and the number at the end of a name: ("ax", 12) for ax_12; None without a number."""
    fits = re.fullmatch(r"(.*?)[\s_.\-\[(]*(\d{1,9})[\])]?", name)
    return (fits[1], int(fits[2])) if fits else (name, None)


def _only(names: list[str], what: str, where: str, named_exactly: Sequence[str]) -> tuple[str, ...]:
    exact = [name for name in names if name.strip().lower() in named_exactly] or names
    if len(exact) > 1:
        raise ValueError(
            f"{where}: the columns {named(exact)} may all be the {what}; name one with --{what} ({what}= in Python)"
        )
    return tuple(exact)


def _plain_id(columns: Columns, names: list[str]) -> tuple[str, ...]:
    """The only column of ids, or of several the only one whose values repeat."""
    if len(names) > 1:
        names = [name for name in names if repeats(columns.values[name])] or names[:1]
    if len(names) > 1:
        raise ValueError(
            f"{columns.where}: the columns {named(names)} may all tell the examples apart; name one or several with "
            "--id (id= in Python)"
        )
    return tuple(names)


def _plain_time(columns: Columns, names: list[str]) -> str | None:
    """The column of times: dates before numbers, then in the order of the columns."""
    dates = [name for name in names if columns.values[name].dtype.kind in "mM"]
    times = [name for name in names if word(name) in TIMES]
    return next(iter([n for n in times if n in dates] or times or dates), None)


def repeats(values: np.ndarray) -> bool:
    """Whether a value occurs twice."""
    return len(set(values.tolist())) < len(values)


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind == "O" and any(isinstance(value, str) for value in values[:100])


def _counts_rows(name: str, values: np.ndarray) -> bool:
    """Whether a column without a name, or called index, has the numbers of the rows, as saved by pandas."""
    if re.fullmatch(r"__index_level_\d+__", name):
        return True
    if not re.fullmatch(r"(unnamed: 0(\.\d+)?|index|level_0|)", name.strip().lower()) or values.dtype.kind not in "iu":
        return False
    return bool(len(values) and np.array_equal(values, np.arange(len(values)) + values[0]))


def numbers_of(columns: Columns, name: str) -> np.ndarray | None:
    """The numbers of a column as float64, NaN for missing ones; None for a column of text, dates or series.

    Raises:
        ValueError: for text among numbers, with its row.
    """
    values = columns.values[name]
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    if values.dtype.kind != "O":
        return None
    converted = np.full(len(values), np.nan)
    bad: list[int] = []
    good = 0
    for i, value in enumerate(values.tolist()):
        if is_missing(value) or (isinstance(value, str) and not value.strip(" ?")):
            continue
        try:
            if isinstance(value, str) and (not value.isascii() or "_" in value):
                raise ValueError
            converted[i] = float(value)
            good += 1
        except (TypeError, ValueError):
            bad.append(i)
            if len(bad) > 100 and good < len(bad):
                return None
    if not bad:
        return converted if good else None
    if good < _MOSTLY * (good + len(bad)):
        return None
    raise ValueError(
        f"{columns.where}, {columns.row(bad[0])}: {str(values[bad[0]])[:40]!r} in the column {printable(name)[:60]}, "
        f"expected a number ({len(bad):,} such fields); repair them, or leave the column out with --channels"
    )


def series_of(values: np.ndarray) -> bool:
    """Whether a column has a series in each row."""
    first = next((value for value in values[:1000] if not is_missing_series(value)), None)
    return values.dtype.kind == "O" and isinstance(first, list | tuple | np.ndarray)


def is_missing_series(value: Any) -> bool:
    """Whether a field that may hold a series is empty."""
    return not isinstance(value, list | tuple | np.ndarray) and is_missing(value)


# ------------------------------------------------------------------------------------------------ tables in memory


def is_frame(x: Any) -> bool:
    """Whether an object is a table of pandas, polars or pyarrow."""
    return (
        (hasattr(x, "iloc") and getattr(x, "ndim", 0) == 2)
        or any(hasattr(x, name) for name in ("get_columns", "column_names", "__dataframe__"))
        or _is_lazy(x)
    )


def _is_lazy(x: Any) -> bool:
    """Whether an object is a lazy frame of polars; asking for its columns would resolve its query."""
    return hasattr(x, "collect") and type(x).__module__.partition(".")[0] == "polars"


def columns_of(x: Any, where: str) -> Columns:
    """The columns of a table of pandas, polars (also lazy) or pyarrow; named levels of pandas' index become columns.

    Raises:
        ValueError: for columns of several levels, or two of one name.
    """
    if hasattr(x, "iloc"):
        if x.columns.nlevels > 1:
            raise ValueError(f"{where} has columns of {x.columns.nlevels} levels; expected one: pass (X, y)")
        levels = x.index.names
        if x.index.nlevels > 1:
            levels = ["id", "time"] if x.index.nlevels == 2 and levels == [None, None] else levels
            x = x.rename_axis(index=[str(name) for name in levels]).reset_index()
        elif levels != [None] or x.index.dtype.kind == "M":
            x = x.rename_axis(index=[str(levels[0] or "time")]).reset_index()
        pairs = [(str(name), x.iloc[:, i]) for i, name in enumerate(x.columns)]
    else:
        if _is_lazy(x):
            x = x.collect()
        if not hasattr(x, "get_columns") and not hasattr(x, "column_names"):
            from pyarrow.interchange import from_dataframe

            x = from_dataframe(x)
        names = list(x.columns) if hasattr(x, "get_columns") else list(x.column_names)
        pairs = [
            (name, x.get_columns()[i] if hasattr(x, "get_columns") else x.column(i)) for i, name in enumerate(names)
        ]
    if len({name for name, _ in pairs}) < len(pairs):
        twice = [name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1]
        raise ValueError(f"{where} has two columns called {named(dict.fromkeys(twice))}; rename one")
    return Columns({name: plain_column(column) for name, column in pairs}, where)


def plain_column(column: Any) -> np.ndarray:
    """A column of any library as an array of numbers, dates or objects (text, series, None for missing ones)."""
    kind = str(getattr(column, "dtype", getattr(column, "type", ""))).lower()
    if any(name in kind for name in ("str", "cat", "enum", "object", "list", "dictionary", "array", "bool", "utf8")):
        for method in ("to_pylist", "to_list", "tolist"):
            if hasattr(column, method):
                return as_objects(getattr(column, method)())
    if hasattr(column, "iloc"):  # nullable types of pandas
        if str(getattr(column.dtype, "tz", None)) != "None":
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        if column.dtype.kind in "fiu" and column.hasnans:
            return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.asarray(column.to_numpy())
    values = np.asarray(column.to_numpy())
    return as_objects(values.tolist()) if values.dtype.kind in "OUS" else values


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """An array (n,) of Python objects; plain numbers and truth values become an array of numbers."""
    if values and all(type(value) in (int, float, bool) for value in values):
        return np.asarray(values)
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # not at once, which would read series of one length as a second axis
        array[i] = None if not isinstance(value, list | tuple | np.ndarray | str) and is_missing(value) else value
    return array
