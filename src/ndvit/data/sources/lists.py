"""Lists of files: a .csv with one line per example, its path, its target, and optionally its split."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ndvit.data.examples import Part
from ndvit.data.messages import cannot_be_used, listing, printable
from ndvit.data.sources.arrays import raw_target
from ndvit.data.sources.files import SPLITS, check_one_medium, known_endings, medium

_PATHS = ("path", "file", "filename", "image", "file_name", "filepath", "file_path", "image_path")
_LABELS = ("label", "class", "target", "labels")
_COLUMNS = {"path": _PATHS, "label": _LABELS, "split": ("split",)}
_LONGEST = 200  # letters of a path in messages
_HEADER = (
    f"expected a header with a column of paths ({', '.join(_PATHS)}) and one of labels ({', '.join(_LABELS)}); "
    "a table of values is read from an .npz with X and y, a .ts, or UCR's .tsv (label first, tabs, no header)"
)


def is_list(path: Path) -> bool:
    """Whether a file is a list of files: any .csv, and a .tsv with a column of paths in its first line."""
    if path.suffix.lower() != ".tsv":
        return path.suffix.lower() == ".csv"
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return _has_paths(file.readline(), "\t")[0]


def read_list(path: Path, *, with_targets: bool, skip_bad: bool) -> tuple[dict[str, Part], list[str]]:
    """Find the examples of a list: {"train": ...}, or the splits of its column `split`.

    The first line names the columns, in any order, separated by commas, semicolons or tabs. Paths are relative to the
    folder of the list, and nothing outside it is read.

    Args:
        path: the list.
        with_targets: whether every line needs a target.
        skip_bad: leave unusable lines out instead of raising.

    Returns:
        The parts, with paths as items, and notes on ignored lines and columns.

    Raises:
        ValueError: without a column of paths or targets, for a path that leaves the folder, and for unusable lines (all
            with their numbers).
    """
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    columns = {what: _column(path, header, names) for what, names in _COLUMNS.items()}
    if columns["path"] is None:
        found = f"its first line is {printable(','.join(header)[:60])!r}" if header else "it is empty"
        raise ValueError(f"{path}: {found}; {_HEADER}")
    names = [name or "(without a name)" for name in header]
    if with_targets and columns["label"] is None:
        raise ValueError(
            f"{path}: has no column of labels but {printable(listing(names, 20))}; name the one with labels "
            f"{' or '.join(_LABELS)}"
        )
    finder = _Finder(path.parent)
    faults: list[str] = []
    examples: dict[str, list[tuple[str, Any, str]]] = defaultdict(list)
    lines = 0
    for number, row in rows:
        lines += 1
        if len(row) != len(header):
            faults.append(f"line {number}: has {len(row)} fields, the header has {len(header)}")
            continue
        fields = {what: row[at].strip() if at is not None else "" for what, at in columns.items()}
        file = finder.path(fields["path"], f"{path}, line {number}")
        target = raw_target(fields["label"])
        split = SPLITS.get(fields["split"].lower()) if columns["split"] is not None else "train"
        fault = finder.fault(file, number)
        if fault is None and with_targets and target is None:
            fault = "has no label"
        if fault is None and split is None:
            fault = f"split is {fields['split']!r}; expected train, val or test"
        if fault is not None:
            faults.append(f"line {number}: {fault}")
        elif split is not None:
            examples[split].append((str(file), target, fields["path"]))
    if faults and not (skip_bad and examples):
        raise cannot_be_used(str(path), faults, lines, "lines")
    if not examples:
        raise ValueError(f"{path}: lists no files below its header")
    notes = [f"the split in {path.name}"] if set(examples) & {"test", "val"} else []
    if unused := [name for i, name in enumerate(names) if i not in columns.values()]:
        notes.append(f"columns not read: {listing(unused)}")
    if faults:
        notes.append(f"{len(faults):,} of {lines:,} lines left out: {listing(faults, 20)}")
    check_one_medium([file for part in examples.values() for file, _, _ in part], path)
    parts = {}
    for split, rows_of_split in examples.items():
        files, targets, written = map(list, zip(*rows_of_split, strict=True))
        parts[split] = Part(files, None if columns["label"] is None else targets, written)
    return parts, notes


def _column(path: Path, header: list[str], names: tuple[str, ...]) -> int | None:
    """Index of the column with one of these names."""
    places = [i for i, name in enumerate(header) if name.lower() in names]
    if len(places) > 1:
        both = " and ".join(header[i] for i in places)
        raise ValueError(f"{path}: the columns {both} may mean the same ({', '.join(names)}): rename all but one")
    return places[0] if places else None


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that is not empty, with its number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            delimiter = max(",;\t", key=lambda sign: _has_paths(first, sign))
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if any(field.strip() for field in row):
                    yield reader.line_num, row
    except UnicodeDecodeError:
        data = path.read_bytes()  # the file was decoded in pieces; the place is counted from its beginning
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line, offset = data[: error.start].count(b"\n") + 1, error.start
            raise ValueError(f"{path}, line {line}: is not UTF-8 text (offset {offset:,}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; quotes must enclose whole fields") from error


def _has_paths(header: str, delimiter: str) -> tuple[bool, int]:
    """Whether a header with this delimiter has a column of paths, and its number of columns."""
    names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    return any(name in _PATHS for name in names), len(names)


def _short(name: str) -> str:
    return printable(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}...")


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
                    f"{where}: {_short(written)} leads out of the folder of the list ({self.folder}), and nothing "
                    "outside it is read: move the list above its files"
                )
        return path

    def _is_inside(self, path: str | Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.root)  # Path.resolve raises for loops and long names

    def fault(self, path: Path, line: int) -> str | None:
        """The fault of a file; None for a good one."""
        name = _short(os.path.relpath(path, self.folder)) if "\0" not in str(path) else "a name with a zero byte"
        if path == self.folder:
            return "has no path"
        if not os.path.isfile(path):
            return f"{name} {'is a folder' if os.path.isdir(path) else 'does not exist'}"
        if medium(path) is None:
            return f"{name} has an unknown type; known: {known_endings()}"
        before = self.lines.setdefault(os.path.normpath(path), line)
        return f"{name} is in line {before}, too" if before != line else None
