"""Lists of files: a .csv with one line per example, its path, its target, and optionally its split."""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ndvit.data.examples import Part
from ndvit.data.messages import LeftOut, cannot_be_used, listing, unread
from ndvit.data.sources.arrays import raw_target
from ndvit.data.sources.column_files import is_table_of_values
from ndvit.data.sources.columns import PATHS, matching
from ndvit.data.sources.files import check_one_medium, known_endings, medium, short
from ndvit.data.sources.split_names import split_of
from ndvit.files import text_encoding

_LABELS = ("label", "class", "target", "labels")
_COLUMNS = {"path": PATHS, "label": _LABELS, "split": ("split",)}
_LONGEST_LINE = 2**18  # letters
_LONGEST_FIELD = 2**17  # letters
_MOST_COLUMNS = 10_000
_MOST_BAD = 100_000  # fields of unusable lines after which a file without any example is read no further
_PEEK = 20  # lines in which a column of paths without a usual name is searched
_UNDECODED = re.compile("[\udc80-\udcff]")
_HEADER = (
    f"expected a header with a column of paths ({', '.join(PATHS)}) and one of labels ({', '.join(_LABELS)}), or a "
    "table of values, with columns of numbers"
)


def is_list(path: Path) -> bool:
    """Whether a file is a list of files: a .csv that is no table of values, and a .tsv with a column of paths.

    A .csv with a column of numbers is a list if all values of another one, in the first lines, are files beside it.
    """
    if path.suffix.lower() == ".tsv":
        with path.open(encoding=text_encoding(path), errors="replace") as file:
            return _has_paths(file.readline(_LONGEST_LINE), "\t")[0]
    if path.suffix.lower() != ".csv":
        return False
    if not is_table_of_values(path):
        return True
    try:
        rows = [row for _, row in islice(_rows(path), _PEEK + 1)]
    except ValueError:
        return False
    return _column_of_files(_Finder(path.parent), rows[1:], len(rows[0]), set()) is not None


def read_list(
    path: Path, *, with_targets: bool, skip_bad: bool, labels: Sequence[str] = (), columns: Sequence[str] = ()
) -> tuple[dict[str, Part], list[str]]:
    """Find the examples of a list: {"train": ...}, or the splits of its column `split`.

    The first line names the columns, in any order, separated by commas, semicolons or tabs. If none has a usual name of
    paths, the only one whose values are files is taken. Paths are relative to the folder of the list, and nothing
    outside it is read. The text is UTF-8, or UTF-16 with a byte order mark, as spreadsheets save it.

    Args:
        path: the list.
        with_targets: whether every line needs a target.
        skip_bad: leave unusable lines out instead of raising.
        labels: names of the columns of targets, if they are not a usual one; of several, a target is a dict.
        columns: names of other columns that are read, where the list has them.

    Returns:
        The parts, with paths as items, and notes on ignored lines and columns.

    Raises:
        ValueError: without a column of paths or targets, for a path that leaves the folder, and for unusable lines (all
            with their numbers).
    """
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if len(header) > _MOST_COLUMNS:
        raise ValueError(f"{path}: has {len(header):,} columns; {_HEADER}")
    places = {what: _column(path, header, names) for what, names in _COLUMNS.items() if what != "label" or not labels}
    targets_at = {name: header.index(name) for name in matching(labels, header, str(path), "--label")}
    places |= dict(zip(["label"], targets_at.values()))
    beside = {name: header.index(name) for name in columns if name in header}
    names = [short(name, 60) or "(without a name)" for name in header]
    finder = _Finder(path.parent)
    notes: list[str] = []
    if places["path"] is None:
        first = list(islice(rows, _PEEK))
        rows = chain(first, rows)
        no_header = any(finder.is_example(field) for field in header)
        if not no_header:
            taken = set(places.values())
            places["path"] = _column_of_files(finder, [row for _, row in first], len(header), taken)
        if places["path"] is None:
            found = f"its first line is '{short(','.join(header), 60)}'" if header else "it is empty"
            found += ", which names a file instead of the columns" * no_header
            raise ValueError(f"{path}: {found}; {_HEADER}")
        notes.append(f"paths from the column {names[places['path']]}, whose values are files")
    if with_targets and places["label"] is None:
        raise ValueError(
            f"{path}: has no column of labels but {listing(names, 20)}; name the one with labels "
            f"{' or '.join(_LABELS)}, or set --label (label= in Python)"
        )
    faults: list[str] = []
    examples: dict[str, list[tuple[str, Any, str]]] = defaultdict(list)
    read: dict[str, dict[str, list[str]]] = defaultdict(lambda: {name: [] for name in beside})
    lines = fields_read = 0
    for number, row in rows:
        if fields_read > _MOST_BAD and not examples:
            break
        lines += 1
        fields_read += len(row)
        if len(row) != len(header):
            faults.append(f"line {number}: has {len(row)} fields, the header has {len(header)}")
            continue
        fields = {what: row[at].strip() if at is not None else "" for what, at in places.items()}
        file = finder.path(fields["path"], f"{path}, line {number}")
        target = raw_target(fields["label"])
        if len(targets_at) > 1:
            target = {name: raw_target(row[at]) for name, at in targets_at.items()}
        split = split_of(fields["split"]) if places["split"] is not None else "train"
        fault = finder.fault(file, number)
        if fault is None and split is None:
            fault = f"split is {short(fields['split'], 60)!r}; expected train, val or test"
        if fault is not None:
            faults.append(f"line {number}: {fault}")
        elif split is not None:
            examples[split].append((str(file), target, fields["path"]))
            for name, at in beside.items():
                read[split][name].append(row[at].strip())
    if faults and not (skip_bad and examples):
        raise cannot_be_used(str(path), faults, lines, "lines")
    if not examples:
        raise ValueError(f"{path}: lists no files below its header")
    if set(examples) & {"test", "val"}:
        notes.append(f"the split in {path.name}")
    notes += unread(
        "columns",
        (name for i, name in enumerate(names) if i not in (*places.values(), *targets_at.values(), *beside.values())),
    )
    if faults:
        notes.append(LeftOut.of(f"{len(faults):,} of {lines:,} lines left out: {listing(faults, 20)}", faults))
    check_one_medium([file for part in examples.values() for file, _, _ in part], path)
    parts = {}
    for split, rows_of_split in examples.items():
        files, targets, written = map(list, zip(*rows_of_split, strict=True))
        parts[split] = Part(files, None if places["label"] is None else targets, written, read[split])
    return parts, notes


def _column(path: Path, header: list[str], names: tuple[str, ...]) -> int | None:
    """Index of the column with one of these names."""
    places = [i for i, name in enumerate(header) if name.lower() in names]
    if len(places) > 1:
        both = " and ".join(header[i] for i in places)
        raise ValueError(f"{path}: the columns {both} may mean the same ({', '.join(names)}): rename all but one")
    return places[0] if places else None


def _column_of_files(finder: "_Finder", rows: list[list[str]], count: int, taken: set[int | None]) -> int | None:
    """Index of the only column of which every value, in these rows, is the path of an example."""
    rows = [row for row in rows if len(row) == count]
    free = [i for i in range(count) if i not in taken]
    found = [i for i in free if rows and all(finder.is_example(row[i]) for row in rows)]
    return found[0] if len(found) == 1 else None


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that is not empty, with its number."""
    lines = _lines(path)
    before: list[str] = []
    delimiter = ""
    for line in lines:
        before.append(line)
        if excel := re.fullmatch(r"sep=(.)\s*", line, re.IGNORECASE):
            delimiter = excel[1]
            before[-1] = "\n"
        elif line.strip():
            delimiter = delimiter or max(",;\t", key=lambda sign: _has_paths(line, sign))
            break
    reader = csv.reader(chain(before, lines), delimiter=delimiter or ",", strict=True)
    limit = csv.field_size_limit(_LONGEST_FIELD)  # pandas lifts it, and a quote may never end
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; quotes must enclose whole fields") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text; ValueErrors for other files."""
    encoding = text_encoding(path)
    number, offset = 0, 3 * (encoding == "utf-8-sig")
    with path.open(encoding=encoding, newline="", errors="surrogateescape") as file:
        try:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}: has more than {_LONGEST_LINE:,} letters; {_HEADER}")
                if bad := _UNDECODED.search(line):
                    offset += len(line[: bad.start()].encode("utf-8", "surrogateescape"))
                    raise ValueError(f"{path}, line {number}: is not UTF-8 text (offset {offset:,}); save it as UTF-8")
                offset += len(line.encode("utf-8", "surrogateescape"))
                yield line
        except UnicodeError as error:
            raise ValueError(f"{path}, line {number + 1}: is not {encoding} text; save it as UTF-8") from error


def _has_paths(header: str, delimiter: str) -> tuple[bool, int]:
    """Whether a header with this delimiter has a column of paths, and its number of columns."""
    names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    return any(name in PATHS for name in names), len(names)


class _Finder:
    """Finds the files of a list and their faults; each folder is resolved once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder.resolve()
        self.inside: dict[str, bool] = {}  # folder -> whether it is in that of the list
        self.lines: dict[str, int] = {}  # file -> line

    def path(self, written: str, where: str) -> Path:
        """The path of a file, which need not exist; a ValueError if it leaves the folder of the list, also by links."""
        if not written:
            return self.folder
        path = self.folder / written
        if os.sep == "/" and "\\" in written and not os.path.lexists(path):
            path = self.folder / written.replace("\\", "/")  # the list may be from Windows
        if "\0" not in written:
            above = os.path.dirname(path)
            if above not in self.inside:
                self.inside[above] = self._is_inside(above)
            if not self.inside[above] or path.name == ".." or (os.path.islink(path) and not self._is_inside(path)):
                raise ValueError(
                    f"{where}: {short(written)} leads out of the folder of the list ({self.folder}), and nothing "
                    "outside it is read: move the list above its files"
                )
        return path

    def is_example(self, written: str) -> bool:
        """Whether a text is the path of an example in the folder of the list."""
        try:
            return bool(written.strip()) and self._fault(self.path(written.strip(), "")) is None
        except (ValueError, OSError):
            return False

    def _is_inside(self, path: str | Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.root)  # Path.resolve raises for loops and long names

    def fault(self, path: Path, line: int) -> str | None:
        """The fault of a file; None for a good one that is in no line before."""
        if fault := self._fault(path):
            return fault
        before = self.lines.setdefault(os.path.normpath(path), line)
        return f"{self._name(path)} is in line {before}, too" if before != line else None

    def _name(self, path: Path) -> str:
        return short(os.path.relpath(path, self.folder)) if "\0" not in str(path) else "a name with a zero byte"

    def _fault(self, path: Path) -> str | None:
        if path == self.folder:
            return "has no path"
        if not os.path.isfile(path):
            special = "is not a regular file" if os.path.exists(path) else "does not exist"
            return f"{self._name(path)} {'is a folder' if os.path.isdir(path) else special}"
        if medium(path) is None:
            return f"{self._name(path)} has an unknown type; known: {known_endings()}"
        return None
