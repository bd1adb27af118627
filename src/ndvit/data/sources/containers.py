"""In-memory containers, such as masked arrays, frames, labelled arrays and tensors: their values as plain numpy arrays.

`numpy.asarray` drops what a container means: which values are masked, which level of the columns is time, whether a row
is a moment or a channel. `read_container` keeps it. No library is imported for that: an object of pandas, polars,
pyarrow, xarray or torch brings its own methods.
"""

import datetime
import decimal
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.messages import Doubt, listing, printable

_ROLES = {  # of levels and dimensions, by their names in the singular
    "sample": {"sample", "instance", "example", "case", "trial", "epoch", "batch", "n", "id", "subject", "window"}
    | {"participant", "recording", "observation", "obs", "segment", "event"},
    "channel": {
        "channel",
        "chan",
        "ch",
        "variable",
        "var",
        "sensor",
        "lead",
        "electrode",
        "feature",
        "dim",
        "dimension",
    }
    | {"axis", "band", "signal", "component"},
    "time": {"time", "t", "timestamp", "timestep", "timepoint", "step", "moment", "lag", "tick", "second", "date"}
    | {"datetime"},
    "space": {"y", "x", "z", "height", "width", "depth", "row", "column", "lat", "lon", "latitude", "longitude"},
}
_LABELS = {"label", "labels", "class", "target", "targets", "unnamed: 0", "index", "id"}
_CLOCKS = {"time", "timestamp", "timestep", "t", "date", "datetime", "seconds"}
_LAYOUTS = "(n, time) or (n, channels, time, ...)"


class NotANumber(ValueError, TypeError):
    """A Python object in the place of a number. scikit-learn's checks expect a TypeError."""


class Contents(NamedTuple):
    """The examples of a container.

    Attributes:
        examples: (n, time) or (n, channels, *grid), with NaN for missing values; a list of arrays (time,) or (channels,
            *grid); or a list of PIL images.
        names: names of the columns of a table (n, time), or of the channels; None if the container has none.
        doubts: what may have been read as something else.
    """

    examples: np.ndarray | list[Any]
    names: tuple[str, ...] | None = None
    doubts: tuple[Doubt, ...] = ()


def read_container(x: Any, where: str = "X") -> Contents:
    """Return the examples of any in-memory container.

    Args:
        x: an array or nested lists; a table with one row for each example, whose columns are moments, or pairs of a
            channel and a moment; an array with named dimensions; a mapping from channels to arrays (n, time); or a
            sequence of examples. An example is an array, a picture, a frame with one row for each moment and one named
            column for each channel, or a mapping from channels to series.
        where: name of `x` in messages.

    Raises:
        ValueError: for values that are not numbers, with the name of their column; and for a layout that is ambiguous.
    """
    if isinstance(x, Image.Image):
        raise ValueError(f"{where} is a single picture; pass a list of pictures: [{where}]")
    if (named := _named_dimensions(x)) is not None:
        return _read_dimensions(named, where)
    if (frame := _as_frame(x)) is not None:
        return _read_frame(frame, where)
    if isinstance(x, Mapping) and not hasattr(x, "toarray"):  # some sparse matrices are mappings
        return _read_mapping(x, where)
    if (rows := _as_rows(x)) is not None:
        return _read_rows(rows, where)
    if isinstance(x, str | bytes | Path) or not (hasattr(x, "shape") or is_array_like(x)):
        raise ValueError(
            f"{where} is a {type(x).__name__}; expected an array {_LAYOUTS}, a table, or a list of arrays, frames or "
            "PIL images"
        )
    return Contents(plain_array(x, where))


def plain_array(x: Any, where: str) -> np.ndarray:
    """Return the numbers of one array-like object: integers, booleans or floating point with NaN for missing values.

    Raises:
        ValueError: for other values, rows of unequal length and sparse matrices.
    """
    if isinstance(x, np.ma.MaskedArray):
        values = _numeric(x.data, where)
        if not np.ma.is_masked(x):
            return values
        return np.where(np.ma.getmaskarray(x), np.nan, values if values.dtype.kind == "f" else values.astype(float))
    if isinstance(x, np.ndarray):
        return _numeric(x, where)
    if _library(x, "torch") and hasattr(x, "detach"):
        return _numeric(_tensor(x, where), where)
    if hasattr(x, "toarray") or type(x).__module__.partition(".")[0] == "sparse":
        dense = "toarray" if hasattr(x, "toarray") else "todense"
        raise ValueError(f"{where} is sparse, a {type(x).__name__}; dense data is required: pass {where}.{dense}()")
    if isinstance(x, list | tuple) and any(is_array_like(row) or isinstance(row, list | tuple) for row in x):
        rows = [plain_array(row, where) for row in x]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{where} has rows of different length; pass a list with one array for each example")
        return np.stack(rows)
    try:
        array = np.asarray(x)
    except TypeError:  # memory of an accelerator
        if not hasattr(x, "__dlpack__"):
            raise ValueError(f"{where} is a {type(x).__name__} that numpy cannot read; pass an array") from None
        from torch.utils.dlpack import from_dlpack

        array = _tensor(from_dlpack(x), where)
    except ValueError as error:
        raise ValueError(f"{where} cannot be read as an array ({error}); pass a list with one array each") from error
    if array.dtype == object and array.ndim == 0 and hasattr(x, "__dlpack__"):
        array = np.from_dlpack(x)
    return _numeric(array, where)


def one_column(y: Any, where: str) -> Any:
    """Return the only column of a table, and any other container of labels as something that numpy reads.

    Raises:
        ValueError: for a table of several columns, and for times.
    """
    if (frame := _as_frame(y)) is not None:
        if len(frame.names) != 1:
            names = listing(list(map(_text, frame.names)))
            raise ValueError(
                f"{where} has {len(frame.names)} columns ({names}); expected one with the labels: {where}[NAME]"
            )
        y = frame.column(0)
    if (named := _named_dimensions(y)) is not None:
        y = named.values
    if _library(y, "torch") and hasattr(y, "detach"):
        y = _tensor(y, where)
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    if kind in ("m", "M"):
        raise ValueError(f"{where} has times ({y.dtype}); expected classes: pass text if times are names of classes")
    return y


def named_rows(y: Any) -> list[dict[str, Any]] | None:
    """The rows of a table of several columns as dicts with their names; None for any other container."""
    if (frame := _as_frame(y)) is None or len(frame.names) == 1:
        return None
    columns = {_text(name): plain_labels(frame.column(i), "y") for i, name in enumerate(frame.names)}
    return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def plain_labels(y: Any, where: str) -> Any:
    """Return labels of any container as a list, with None, NaN and the like for missing ones; nested if there are many.

    Raises:
        ValueError: for a table of several columns, and for times.
    """
    y = one_column(y, where)
    for method in ("to_pylist", "to_list", "tolist"):  # of pyarrow; of polars and pandas; of numpy
        if hasattr(y, method):
            y = getattr(y, method)()
            break
    else:
        y = np.asarray(y).tolist() if hasattr(y, "__array__") else y
    if isinstance(y, list) and y and all(isinstance(value, list) and len(value) == 1 for value in y):  # a column
        return [value for (value,) in y]
    return y


def is_array_like(x: Any) -> bool:
    """Whether an object has values as an array, or can be indexed as one."""
    if isinstance(x, float | int | str | bytes | np.generic | None):
        return False
    protocols = ("__array__", "__array_interface__", "__dlpack__", "__dataframe__", "iloc", "toarray")
    return any(hasattr(x, name) for name in protocols) or _is_buffer(x)


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, NaT, pandas' NA or numpy's masked constant."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    if isinstance(value, float | np.floating | decimal.Decimal):
        return bool(value != value)
    return False


def check_names(names: Sequence[str] | None, expected: Sequence[str] | None, where: str, of: str) -> None:
    """Raise a ValueError if both have names of columns or channels, and they differ."""
    if names is None or expected is None or tuple(names) == tuple(expected):
        return
    found, wanted = (listing(list(map(_text, listed)), 10) for listed in (names, expected))
    order = " in this order" if sorted(names) == sorted(expected) else ""
    raise ValueError(f"{where} has the columns {found}; expected {wanted}{order}, as in {of}")


# ------------------------------------------------------------------------------------------------- layouts


class _Frame(NamedTuple):
    """A table with named columns of any library."""

    names: list[Any]
    column: Callable[[int], Any]
    several: bool = False
    """Whether its rows have several levels, as if an example had several rows."""
    levels: tuple[Any, ...] = ()
    """Names of the levels of its columns, if there are several."""
    numbers: np.ndarray | None = None
    """All values, if they are plain numbers."""


def _as_frame(x: Any) -> _Frame | None:
    if hasattr(x, "iloc") and getattr(x, "ndim", 0) == 2:  # pandas
        levels = tuple(x.columns.names) if x.columns.nlevels > 1 else ()
        values = np.asarray(x)
        plain = values if values.dtype.kind in "fiub" else None
        return _Frame(list(x.columns), lambda i: x.iloc[:, i], x.index.nlevels > 1, levels, plain)
    if hasattr(x, "collect") and _library(x, "polars"):
        x = x.collect()
    if hasattr(x, "get_columns"):  # polars
        return _Frame(list(x.columns), lambda i: x.get_columns()[i])
    if hasattr(x, "column_names") and hasattr(x, "column"):  # pyarrow
        return _Frame(list(x.column_names), x.column)
    if hasattr(x, "__dataframe__"):
        from pyarrow.interchange import from_dataframe

        return _as_frame(from_dataframe(x))
    return None


def _as_rows(x: Any) -> list[Any] | None:
    """The examples of a sequence; None for anything else."""
    if isinstance(x, list | tuple):
        return list(x)
    if isinstance(x, np.ndarray):
        return list(x) if x.dtype == object and x.ndim == 1 and not isinstance(x, np.ma.MaskedArray) else None
    if _library(x, "torch") and getattr(x, "is_nested", False):
        return list(x.unbind())
    one_axis = getattr(x, "ndim", 1) == 1 and (hasattr(x, "iloc") or _library(x, "polars", "pyarrow"))
    if one_axis and len(x) and np.asarray(x).dtype == object:  # a series of arrays or lists
        return [value.values if _library(value, "pyarrow") else value for value in x]
    return None


def _read_frame(frame: _Frame, where: str) -> Contents:
    """A row is an example; columns of two levels are pairs of a channel and a moment."""
    if frame.several or (frame.numbers is None and _is_nested(frame)):
        raise ValueError(
            f"{where} is a DataFrame that is nested or has several rows for an example; expected one row of numbers "
            'for each. aeon.utils.conversion.convert_collection(X, "np-list") converts it to arrays'
        )
    table = _table(frame, where)
    if not frame.levels:
        names = tuple(frame.names) if all(isinstance(name, str) for name in frame.names) else None
        return Contents(table, names, _doubtful_columns(names or (), _LABELS, where, "a value of each series"))
    if len(frame.levels) > 2:
        raise ValueError(f"{where} has columns of {len(frame.levels)} levels; expected at most two, channel and time")
    if len(set(frame.names)) < len(frame.names):
        raise ValueError(f"{where} has several columns of the same channel and time; remove all but one")
    level = _time_level(frame, where)
    channels, times = (list(dict.fromkeys(name[i] for name in frame.names)) for i in (1 - level, level))
    if all(isinstance(time, _ORDERED) for time in times):
        times.sort()
    row, column = ({value: i for i, value in enumerate(values)} for values in (channels, times))
    values = np.full((len(table), len(channels), len(times)), np.nan, dtype=np.result_type(table.dtype, np.float32))
    values[:, [row[name[1 - level]] for name in frame.names], [column[name[level]] for name in frame.names]] = table
    return Contents(values, tuple(map(_text, channels)))


def _is_nested(frame: _Frame) -> bool:
    """Whether the first row has series instead of numbers."""
    columns = map(frame.column, range(len(frame.names)))
    return any(len(column) and np.ndim(np.asarray(column[:1])[0]) for column in columns)


_ORDERED = (numbers.Real, datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)


def _time_level(frame: _Frame, where: str) -> int:
    """The level of the columns that is time, by the names of the levels, else by their values."""
    roles = [_role(title) for title in frame.levels]
    levels = {i for i in (0, 1) if roles[i] == "time" or roles[1 - i] == "channel"}
    if not levels:  # numbers or dates beside text
        levels = {
            i
            for i in (0, 1)
            if all(isinstance(name[i], _ORDERED) and isinstance(name[1 - i], str) for name in frame.names)
        }
    if len(levels) != 1:
        first = " and ".join(repr(name) for name in (frame.names[0], frame.names[-1]))
        raise ValueError(
            f"{where} has columns of two levels, such as {first}, and it is not clear which level is time: name them, "
            f"{where}.columns.names = ['channel', 'time'] (or the other way round)"
        )
    return levels.pop()


def _table(frame: _Frame, where: str) -> np.ndarray:
    """The values of a table, (rows, columns)."""
    if frame.numbers is not None:
        return frame.numbers
    if not frame.names:
        raise ValueError(f"{where} is a table without columns")
    columns = [plain_array(frame.column(i), f"{where}[{_text(n)!r}]") for i, n in enumerate(frame.names)]
    return np.stack(columns, axis=1)


def _read_dimensions(x: Any, where: str) -> Contents:
    """An array with named dimensions: examples first, then channels, then the others in their order.

    Dimensions of other names are read in this order, with a doubt.
    """
    listed = ", ".join(map(str, x.dims))
    roles = {role: [d for d in x.dims if _role(d) == role] for role in ("sample", "channel", "time")}
    if several := next((found for found in roles.values() if len(found) > 1), None):
        raise ValueError(
            f"{where} has the dimensions {listed}, of which {' and '.join(map(str, several))} may mean the same; "
            "rename them to sample, channel and time"
        )
    sample, channel = (next(iter(roles[role]), None) for role in ("sample", "channel"))
    unknown = [d for d in x.dims if _role(d) is None]
    doubtful = bool(unknown)
    if sample is None and unknown:
        sample = unknown.pop(0)
    if channel is None and unknown and len(x.dims) > 2:
        channel = unknown.pop(0)
    axes = [d for d in x.dims if d not in (sample, channel)]
    if sample is None or not axes:
        raise ValueError(
            f"{where} has the dimensions {listed}; expected one of examples and one of time: name them sample, channel "
            "and time"
        )
    values = plain_array(x.transpose(sample, *([] if channel is None else [channel]), *axes).values, where)
    if channel is None and len(axes) > 1:
        values = values[:, None]
    read = {"examples": sample, "channels": channel, "axes": ", ".join(map(str, axes))}
    as_roles = "; ".join(f"{role}: {name}" for role, name in read.items() if name is not None)
    doubt = Doubt(
        f"{where} has the dimensions {listed}, read as {as_roles}. To make sure, rename them to sample, channel, time"
    )
    return Contents(values, _coordinate(x, channel), (doubt,) if doubtful else ())


def _role(name: Any) -> str | None:
    """What a dimension or a level of columns is by its name: sample, channel, time, space; None for other names."""
    word = str(name).lower().replace("_", "").replace(" ", "")
    words = {word, word.removesuffix("s"), {"axes": "axis"}.get(word, word)}
    return next((role for role, known in _ROLES.items() if words & known), None)


def is_xarray(x: Any) -> bool:
    """Whether an object is a DataArray or a Dataset of xarray."""
    return hasattr(x, "dims") and _library(x, "xarray")


def _named_dimensions(x: Any) -> Any:
    """The xarray DataArray of an object, whose variables are channels if it is a Dataset; None for other objects."""
    if not is_xarray(x):
        return None
    return x.to_array("channel") if hasattr(x, "data_vars") else x


def _coordinate(x: Any, dimension: Any) -> tuple[str, ...] | None:
    """Names along a dimension, if they are text."""
    if dimension is None or dimension not in x.coords:
        return None
    names = x.coords[dimension].values.tolist()
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def _read_mapping(x: Mapping[Any, Any], where: str) -> Contents:
    """A mapping from channels to tables (n, time)."""
    tables = {str(name): plain_array(values, f"{where}[{_text(name)}]") for name, values in x.items()}
    shapes = {values.shape for values in tables.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        found = ", ".join(f"{_text(name)} {values.shape}" for name, values in list(tables.items())[:5])
        raise ValueError(
            f"{where} is a mapping from channels to arrays, which must all have one shape (n, time); got {found}"
        )
    return Contents(np.stack(list(tables.values()), axis=1), tuple(tables))


def _read_rows(rows: list[Any], where: str) -> Contents:
    pictures = [isinstance(row, Image.Image) for row in rows]
    if rows and all(pictures):
        return Contents(rows)
    if any(pictures):
        at = f"{where}[{pictures.index(False)}]"
        raise ValueError(
            f"{where} mixes pictures and arrays; pass a list of PIL images, or of arrays: {at} is not a picture"
        )
    if any(isinstance(row, str | bytes | Path) for row in rows):
        raise ValueError(f"{where} has text (a list of paths?); expected numbers: pass a folder or a .csv of paths")
    examples: list[np.ndarray] = []
    names: list[tuple[str, ...] | None] = []
    doubts: dict[Doubt, None] = {}
    for i, row in enumerate(rows):
        example, of_row, more = _read_row(row, f"{where}[{i}]")
        check_names(of_row, names[0] if names else None, f"{where}[{i}]", f"{where}[0]")
        if names and (of_row is None) != (names[0] is None):
            raise ValueError(
                f"{where} mixes examples with named channels and without ({where}[{i}] is a {type(row).__name__}, "
                f"{where}[0] a {type(rows[0]).__name__}); pass examples of one kind"
            )
        examples.append(example)
        names.append(of_row)
        doubts |= dict.fromkeys(more)
    if rows and not any(is_array_like(row) or isinstance(row, Mapping) for row in rows):  # nested lists are an array
        shapes = {example.shape for example in examples}
        if len(shapes) == 1 and () not in shapes:
            return Contents(np.stack(examples))
    return Contents(examples, names[0] if names else None, tuple(doubts))


def _read_row(row: Any, where: str) -> tuple[np.ndarray, tuple[str, ...] | None, tuple[Doubt, ...]]:
    """One example, the names of its channels, and doubts."""
    if (frame := _as_frame(row)) is not None:
        if not frame.names or not all(isinstance(name, str) for name in frame.names):
            raise ValueError(
                f"{where} is a DataFrame with the columns {listing(list(map(_text, frame.names)))}; expected one row "
                "for each moment, and columns with the names of the channels. Without names pass arrays (channels, "
                "time): frame.to_numpy().T if a row is a moment"
            )
        names, frames = tuple(frame.names), f"each frame of {where.partition('[')[0]}"
        return _table(frame, where).T, names, _doubtful_columns(names, _CLOCKS | _LABELS, frames, "a channel")
    if isinstance(row, Mapping):
        series = [plain_array(values, f"{where}[{_text(name)}]") for name, values in row.items()]
        if not series or {values.ndim for values in series} != {1} or len(set(map(len, series))) > 1:
            raise ValueError(f"{where} is a mapping from channels to series; expected series of one length")
        return np.stack(series), tuple(map(str, row)), ()
    if (named := _named_dimensions(row)) is not None:
        channels, times = ([d for d in named.dims if _role(d) == role] for role in ("channel", "time"))
        if len(channels) == 1:
            named = named.transpose(channels[0], ...)
        elif len(times) == 1 and len(named.dims) == 2:
            named = named.transpose(..., times[0])
        return plain_array(named.values, where), _coordinate(named, next(iter(channels), None)), ()
    return plain_array(row, where), None, ()


def _doubtful_columns(names: Iterable[str], words: set[str], where: str, what: str) -> tuple[Doubt, ...]:
    """Doubts about columns that are named like something else than values."""
    found = " and ".join(_text(name) for name in names if name.lower() in words)
    return (Doubt(f"{where} has the column {found}, which is read as {what}; drop it if it is not"),) if found else ()


# -------------------------------------------------------------------------------------------------- values


def _numeric(array: np.ndarray, where: str) -> np.ndarray:
    """The array if it has real numbers; objects are converted one by one."""
    if array.dtype.kind in "fiub":
        return array
    if array.dtype == object:
        return _from_objects(array, where)
    raise refused(array.dtype, where)


def refused(dtype: Any, where: str) -> ValueError:
    """The error for values of a type that is not real numbers."""
    numpy_names = getattr(dtype, "names", None)
    if numpy_names:
        columns = ", ".join(map(_text, numpy_names[:5]))
        return ValueError(
            f"{where} has rows of named fields ({columns}); expected numbers: "
            f"numpy.lib.recfunctions.structured_to_unstructured({where})"
        )
    what, remedy = {
        "O": ("Python objects", "unequal lengths: a list of arrays"),
        "U": ("text", "leave text out, or convert it"),
        "S": ("text", "leave text out, or convert it"),
        "T": ("text", "leave text out, or convert it"),
        "c": ("complex numbers", "Complex data not supported: make real and imaginary parts two channels"),
        "M": ("time stamps", "leave them out, or convert them to seconds"),
        "m": ("durations", "leave them out, or convert them to seconds"),
    }.get(dtype.kind, ("values of another type", "leave them out, or convert them"))
    return ValueError(f"{where} has {what} ({dtype}); expected numbers ({remedy})")


def _from_objects(array: np.ndarray, where: str) -> np.ndarray:
    """Numbers among Python objects as float64; missing ones are NaN."""
    values = np.empty(array.shape, dtype=np.float64)
    for place in np.ndindex(array.shape):
        value = array[place]
        if is_missing(value):
            values[place] = np.nan
        elif isinstance(value, numbers.Real | decimal.Decimal | np.bool_):
            values[place] = float(value)
        else:
            raise _refused_object(value, f"{where}{list(place)}" if place else where)
    return values


def _refused_object(value: Any, where: str) -> ValueError:
    if isinstance(value, str | bytes):
        return ValueError(f"{where} has text, {_text(value)!r:.60}; expected numbers (leave text out, or convert it)")
    if isinstance(value, complex | np.complexfloating):
        return refused(np.dtype(complex), where)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | np.datetime64 | np.timedelta64):
        kind = type(value).__name__
        return ValueError(f"{where} has time stamps ({kind}); expected numbers (leave them out, or convert to seconds)")
    if isinstance(value, Sequence | np.ndarray):
        return ValueError(f"{where} has rows of different length; pass a list with one array for each example")
    try:
        float(value)
    except TypeError as error:
        return NotANumber(f"{where} has Python objects: {error}")
    return ValueError(f"{where} has Python objects ({type(value).__name__}); expected numbers")


def _tensor(x: Any, where: str) -> np.ndarray:
    """A torch tensor of any device and precision as an array."""
    import torch

    if x.layout != torch.strided:
        raise ValueError(f"{where} is sparse, a torch tensor; dense data is required: pass {where}.to_dense()")
    x = x.detach().cpu()
    if x.is_quantized:
        x = x.dequantize()
    if x.is_floating_point() and x.dtype not in (torch.float16, torch.float32, torch.float64):
        x = x.float()
    array: np.ndarray = x.resolve_conj().resolve_neg().numpy()
    return array


def _library(x: Any, *names: str) -> bool:
    """Whether the class of an object comes from one of these libraries."""
    return any(base.__module__.partition(".")[0] in names for base in type(x).__mro__)


def _is_buffer(x: Any) -> bool:
    """Whether an object has a buffer of numbers, such as array.array."""
    if isinstance(x, bytes | bytearray):
        return False
    try:
        memoryview(x)
    except TypeError:
        return False
    return True


def _text(name: Any) -> str:
    text = ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)
    return printable(text if len(text) <= 60 else f"{text[:60]}...")
