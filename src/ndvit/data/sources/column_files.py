"""Files of tables with named columns: .csv and .tsv with a header, .parquet, .arff."""

import csv
import math
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.data.messages import printable
from ndvit.data.sources.arrays import MISSING_WORDS
from ndvit.data.sources.columns import LABELS, PATHS, Columns, Roles, as_objects, columns_of, word
from ndvit.data.sources.packages import needed
from ndvit.files import bounded_lines, check_regular, text_encoding, unpacking_fault

COLUMN_FILES = (".csv", ".tsv", ".parquet", ".arff")
"""Endings of files of tables with named columns."""
_PEEK = 30  # lines in which separator, header and decimal sign are found
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|[-+]?inf|\?|", re.IGNORECASE)
_COMMA = re.compile(r"[-+]?\d+,\d+(e[-+]?\d+)?", re.IGNORECASE)
_ZERO_FIRST = re.compile(r"[-+]?0\d")
_MOST_CELLS = 2**20  # that a table may have beyond ten for each byte of its file
_MOST_COLUMNS = 10**6


class _Head(NamedTuple):
    """How a text table is written; `start` is the number of the line of its first row, from 1."""

    names: list[str]
    separator: str
    decimal: str
    start: int
    notes: list[str]
    rows: list[list[str]]
    extra: bool = False  # whether each row ends with a separator that the header lacks


def read_columns(path: Path, roles: Roles) -> Columns:
    """Read the columns of a file.

    Raises:
        ValueError: for a damaged file, without its name, and for a package that is not installed.
    """
    check_regular(path)
    reader = {".parquet": _read_parquet, ".arff": _read_arff}.get(path.suffix.lower())
    try:
        columns = _read_text(path, roles) if reader is None else reader(path)
    except (ValueError, OSError):
        raise
    except MemoryError as error:
        raise ValueError("needs more memory than there is") from error
    except Exception as error:  # parsers raise any error for damaged files
        raise ValueError(f"is damaged or cut off ({printable(str(error)[:200]) or type(error).__name__})") from error
    if not columns.values:
        raise ValueError("has no columns")
    return columns


def is_table_of_values(path: Path) -> bool:
    """Whether a text file has a table of values with a header, or a .csv one without, instead of a list of files.

    It is one if a column has only numbers in the first lines, and none has a usual name of paths. A .tsv without a
    header is UCR's format.
    """
    try:
        head = _head(path)
    except (ValueError, OSError, csv.Error):
        return False
    if any(name.strip().lower() in PATHS for name in head.names):
        return False
    if path.suffix.lower() == ".tsv":
        named = [name for name in head.names if re.search(r"[^\W\d]", name) and "\0" not in name]
        return head.separator == "\t" and len(named) == len(head.names) > 1
    rows = [row for row in head.rows if len(row) == len(head.names)]
    fields = zip(*rows)
    return any(any(column) and all(_NUMBER.fullmatch(_plain(f, head)) for f in column) for column in fields)


def _plain(text: str, head: _Head) -> str:
    return text.strip().replace(",", ".") if head.decimal == "," else text.strip()


# ------------------------------------------------------------------------------------------------------------ text


def _read_text(path: Path, roles: Roles) -> Columns:
    """Read a text table by pandas; columns of labels, ids and groups as text, so that 01 stays 01."""
    import pandas as pd

    head = _head(path)
    names = head.names
    if len(names) > _MOST_COLUMNS:
        raise ValueError(f"has {len(names):,} columns, more than {_MOST_COLUMNS:,}")
    lines = _count_lines(path)
    if lines * len(names) > 10 * path.stat().st_size + _MOST_CELLS:
        raise ValueError(
            f"has {len(names):,} columns and {lines:,} lines, of which most have few fields; expected as many fields "
            "in each line as the header has"
        )
    known = {*roles.label, *roles.columns, *roles.id}
    by_number = {
        names[int(n)] for n in known if n and re.fullmatch(r"-?\d{1,6}", n) and -len(names) <= int(n) < len(names)
    }
    text = {n for n in names if n in known or n in by_number or word(n) in LABELS or n.strip().lower() == "split"}
    try:
        frame = pd.read_csv(
            path,
            sep=head.separator if head.separator != " " else r"\s+",
            header=None,
            names=[*names, "\0"] if head.extra else names,
            skiprows=head.start - 1,
            index_col=False,
            decimal=head.decimal,
            dtype=dict.fromkeys(text, object),
            keep_default_na=False,
            na_values={name: [*MISSING_WORDS, ""] for name in names if name not in text},
            skipinitialspace=True,
            low_memory=False,
            compression=None,
            encoding=text_encoding(path),
            encoding_errors="backslashreplace",
            engine="c",
        )
    except pd.errors.EmptyDataError:
        raise ValueError("has no rows below its header") from None
    except pd.errors.ParserError as error:
        raise ValueError(f"cannot be read as a table: {printable(str(error).strip()[-200:])}") from error
    frame = frame.drop(columns="\0") if head.extra else frame
    values = columns_of(frame.reset_index(drop=True), path.name).values
    for name in text:
        values[name] = _numbers_or_text(values[name])
    return Columns(values, path.name, head.start, tuple(head.notes))


def _numbers_or_text(values: np.ndarray) -> np.ndarray:
    """Text as numbers if all of it is that of plain numbers, none of which begins with a zero."""
    fields = [str(value).strip() for value in values.tolist() if value is not None]
    if not fields or any(not _NUMBER.fullmatch(f) or _ZERO_FIRST.match(f) or f[-1:] in "fFnN?" for f in fields):
        return as_objects([None if value is None else str(value) for value in values.tolist()])
    if len(fields) == len(values) and all(re.fullmatch(r"[-+]?\d{1,18}", field) for field in fields):
        return np.array([int(field) for field in fields])
    return np.array([math.nan if value is None else float(value) for value in values.tolist()])


def _head(path: Path) -> _Head:
    """Find separator, names and decimal sign in the first lines."""
    with path.open(encoding=text_encoding(path), errors="backslashreplace", newline="") as file:
        lines = list(islice(_numbered(bounded_lines(file)), _PEEK))
    notes: list[str] = []
    separator = ""
    if lines and (excel := re.fullmatch(r"sep=(.)\s*", lines[0][1], re.IGNORECASE)):
        separator, lines = excel[1], lines[1:]
    comments = 0
    while lines and lines[0][1].lstrip().startswith(("#", "%")) and len(lines) > 1:
        comments, lines = comments + 1, lines[1:]
    if comments:
        notes.append(f"{path.name}: {counted(comments, 'line')} of comments at the beginning not read")
    if not lines:
        raise ValueError("is empty, or has comments only")
    first = lines[0][1]
    if not separator:
        counts = {sign: first.count(sign) for sign in "\t;,|"}
        separator = max(counts, key=lambda sign: counts[sign])
        if counts["\t"] or counts[";"]:  # a comma may be the decimal sign
            separator = max("\t;", key=lambda sign: counts[sign])
        if not counts[separator]:
            separator = " " if len(first.split()) > 1 and len(lines) > 1 and len(lines[1][1].split()) > 1 else ","
    rows = [_fields(line, separator) for _, line in lines]
    decimal = "." if separator == "," or not any(_COMMA.fullmatch(f.strip()) for row in rows[1:] for f in row) else ","
    head = _Head(rows[0], separator, decimal, lines[0][0] + 1, notes, rows[1:])
    if all(_NUMBER.fullmatch(_plain(field, head)) for field in rows[0]) and not _counts_up(rows[0]):
        last = len(rows[0]) - 1
        called = f"columns are called 0 to {last}" if last else "only column is called 0"
        notes.append(f"{path.name}: the first line has numbers instead of names, so that the {called}")
        return head._replace(names=[str(i) for i in range(len(rows[0]))], start=lines[0][0], rows=rows)
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(rows[0])]
    extra = False
    longer = [len(row) - len(names) for row in rows[1:]]
    if longer and set(longer) == {1}:
        if extra := all(not row[-1].strip() for row in rows[1:]):
            pass
        else:  # R writes the names of rows without a header
            names = ["Unnamed: 0", *names]
    elif longer and names[-1].startswith("Unnamed: ") and all(not row[-1].strip() for row in rows[1:]):
        names[-1] = "Unnamed: 0" if len(names) == 1 else names[-1]
    return head._replace(names=_distinct(names), extra=extra)


def _counts_up(fields: list[str]) -> bool:
    """Whether a line has the names 0, 1, 2, ... of the columns of an array that pandas saved, maybe after the index."""
    names = fields if fields[0].strip() else fields[1:]
    return len(names) > 1 and [name.strip() for name in names] == [str(i) for i in range(len(names))]


def _distinct(names: list[str]) -> list[str]:
    """Names of which repeated ones have a number."""
    seen: dict[str, int] = {}
    taken = set(names)
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            while (other := f"{name}.{seen[name] - 1}") in taken:
                seen[name] += 1
            names[i] = other
            taken.add(other)
    return names


def _numbered(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    return ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, start=1) if line.strip())


def _fields(line: str, separator: str) -> list[str]:
    return line.split() if separator == " " else next(csv.reader([line], delimiter=separator), [""])


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") or block.count(b"\r") for block in iter(lambda: file.read(2**20), b"")) + 1


# ---------------------------------------------------------------------------------------------------------- binary


def _read_parquet(path: Path) -> Columns:
    needed("pyarrow", "parquet", ".parquet files")
    from pyarrow import parquet

    with path.open("rb") as opened:
        file = parquet.ParquetFile(opened)
        meta = file.metadata
        values = meta.num_rows * meta.num_columns
        groups = range(meta.num_row_groups)
        unpacked = sum(meta.row_group(i).total_byte_size for i in groups)
        if min(values, unpacked) < 0:
            raise ValueError("has an impossible size in its footer")
        if fault := unpacking_fault(max(unpacked, 8 * values), path.stat().st_size, values):
            raise ValueError(fault)
        return columns_of(file.read(), path.name)


def _read_arff(path: Path) -> Columns:
    """Read a table of Weka by scipy; relational attributes, which are series, become series in each field."""
    from scipy.io import arff

    with path.open(encoding=text_encoding(path), errors="backslashreplace") as file:
        for _ in bounded_lines(file):
            pass
        file.seek(0)
        try:
            table, meta = arff.loadarff(file)
        except NotImplementedError as error:
            raise ValueError(f"has attributes that scipy does not read ({error}); convert text to nominal") from error
    values: dict[str, np.ndarray] = {}
    for name in meta.names():
        kind = meta[name][0]
        column: Any = table[name]
        if kind == "relational":
            rows = np.empty(len(column), dtype=object)
            for i, row in enumerate(column):
                rows[i] = np.array([list(line) for line in row], dtype=np.float32)
            column = rows
        elif column.dtype.kind == "S":
            column = as_objects([None if value == b"?" else value.decode() for value in column.tolist()])
        values[name] = column
    return Columns(_with_label_last(values, path), path.name)


def _with_label_last(values: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Call the last attribute `class` if none has a name of labels and it is nominal, as Weka reads it."""
    *others, last = values
    if any(word(name) in LABELS for name in values) or values[last].dtype.kind != "O":
        return values
    return {**{name: values[name] for name in others}, "class": values[last]}
