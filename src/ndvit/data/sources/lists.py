"""Lists of files: a .csv with a line an example, its path and its label, and the split that it belongs to."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ndvit.data.sources.arrays import Part, label_name
from ndvit.data.sources.folders import SPLITS, known_endings, listing, medium, one_medium, printable

_PATHS = ("path", "file", "filename", "image", "file_name", "filepath", "file_path", "image_path")
_LABELS = ("label", "class", "target", "labels")
_LONGEST = 200  # letters of a path that messages show
_COLUMNS = {"path": _PATHS, "label": _LABELS, "split": ("split",)}
_HEADER = (
    f"expected a header with a column of paths ({', '.join(_PATHS)}) and one of labels ({', '.join(_LABELS)}); "
    "a table of values is read from an .npz with X and y, a .ts, or UCR's .tsv (label first, tabs, no header)"
)


def is_list(path: Path) -> bool:
    """Say whether a file is a list of files: any .csv, and a .tsv whose first line names a column of paths."""
    if path.suffix.lower() == ".csv":
        return True
    if path.suffix.lower() != ".tsv":
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().split("\t")
    return any(name.strip().strip('"').lower() in _PATHS for name in header)


def read_list(path: Path, *, labelled: bool, skip_bad: bool) -> tuple[dict[str, Part], list[str]]:
    """Find the examples that a list names: {"train": ...}, or what its column `split` says.

    The first line names the columns, in any order; commas, semicolons or tabs stand between them. Paths are relative to
    the folder of the list, and nothing outside of it is read.

    Args:
        path: the list.
        labelled: whether every line needs a label.
        skip_bad: leave lines out that cannot be used, instead of raising.

    Returns:
        The parts, with paths as items, and notes on lines and columns that were left out.

    Raises:
        ValueError: no column of paths or labels, a path that leads out of the folder, lines that cannot be used (all by
            number).
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    header = [name.strip() for name in header]
    columns = {what: _column(path, header, names) for what, names in _COLUMNS.items()}
    if columns["path"] is None:
        said = f"its first line is {printable(','.join(header)[:60])!r}" if header else "it is empty"
        raise ValueError(f"{path}: {said}; {_HEADER}")
    if labelled and columns["label"] is None:
        has = printable(listing([name or "(without a name)" for name in header], 20))
        raise ValueError(f"{path}: has no column of labels but {has}; call the one with labels {' or '.join(_LABELS)}")
    reader = _Reader(path.parent)
    bad: dict[int, str] = {}
    found: dict[str, list[tuple[str, str | None, str]]] = defaultdict(list)
    lines = 0
    for number, row in rows:
        lines += 1
        if len(row) != len(header):
            bad[number] = f"has {len(row)} fields, the header has {len(header)}"
            continue
        fields = {what: row[at].strip() if at is not None else "" for what, at in columns.items()}
        file = reader.inside(fields["path"], f"{path}, line {number}")
        label = label_name(fields["label"])
        split = SPLITS.get(fields["split"].lower()) if columns["split"] is not None else "train"
        fault = reader.fault(file, number)
        if fault is None and labelled and label is None:
            fault = "has no label"
        if fault is None and split is None:
            fault = f"split is {fields['split']!r}; expected train, val or test"
        if fault is not None:
            bad[number] = fault
            continue
        assert split is not None
        found[split].append((str(file), label, fields["path"]))
    notes = [f"the split in {path.name}"] if set(found) & {"test", "val"} else []
    if unused := [name or "(without a name)" for i, name in enumerate(header) if i not in columns.values()]:
        notes.append(f"columns not read: {listing(unused)}")
    faults = [f"line {number}: {fault}" for number, fault in bad.items()]
    if faults and not (skip_bad and found):
        raise ValueError(_complaint(path, faults, lines))
    if not found:
        raise ValueError(f"{path}: lists no files below its header")
    if faults:
        notes.append(f"{len(faults):,} of {lines:,} lines left out: {listing(faults, 20)}")
    one_medium([file for part in found.values() for file, _, _ in part], path)
    return {split: _part(part, columns["label"] is not None) for split, part in found.items()}, notes


def _complaint(path: Path, faults: list[str], lines: int) -> str:
    shown = "\n  ".join(faults[:20]) + (f"\n  and {len(faults) - 20:,} more" if len(faults) > 20 else "")
    return (
        f"{path}: {len(faults):,} of {lines:,} lines cannot be used:\n  {shown}\n"
        "Mend or remove them, or leave them out with --skip-bad (skip_bad=True in Python)."
    )


def _part(rows: list[tuple[str, str | None, str]], labelled: bool) -> Part:
    labels = [label for _, label, _ in rows] if labelled else None
    return Part([file for file, _, _ in rows], labels, [name for _, _, name in rows])


def _column(path: Path, header: list[str], names: tuple[str, ...]) -> int | None:
    """Where the column stands that goes by one of these names."""
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
            between = max(",;\t", key=lambda sign: _names_paths(first, sign))
            reader = csv.reader(file, delimiter=between, strict=True)
            for row in reader:
                if any(field.strip() for field in row):
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        before = _text_before_a_fault(path.read_bytes())  # the error counts from the piece that was read last
        line = before.count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: is not UTF-8 text (offset {len(before):,}); save it as such") from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; quotes stand around whole fields") from error


def _text_before_a_fault(data: bytes) -> bytes:
    """The bytes before the first one that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start]
    return data


def _names_paths(header: str, sign: str) -> tuple[bool, int]:
    """Whether a column of paths is there if this sign stands between columns, and how many columns then are."""
    names = [name.strip().strip('"').lower() for name in header.split(sign)]
    return any(name in _PATHS for name in names), len(names)


def _shown(name: str) -> str:
    return printable(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}...")


class _Reader:
    """Finds the files of a list and what is wrong with them; a folder is looked up once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder.resolve()
        self.within: dict[str, bool] = {}  # folder -> whether it lies in the list's own
        self.seen: dict[str, int] = {}  # file -> line

    def inside(self, said: str, where: str) -> Path:
        """The path of a file below the list's folder, whether or not it is there.

        Raises:
            ValueError: the path leads elsewhere, by itself or by links.
        """
        if not said:
            return self.folder
        path = self.folder / said
        if os.sep == "/" and "\\" in said and not os.path.lexists(path):
            path = self.folder / said.replace("\\", "/")  # lists are written on Windows, too
        if "\0" not in said:
            above = os.path.dirname(path)
            if above not in self.within:
                self.within[above] = self._stays(above)
            if not self.within[above] or path.name == ".." or (os.path.islink(path) and not self._stays(path)):
                raise ValueError(
                    f"{where}: {_shown(said)} leads out of the folder of the list ({self.folder}), and nothing "
                    "outside of it is read: put the list above its files"
                )
        return path

    def _stays(self, path: str | Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.root)  # Path.resolve raises for loops and long names

    def fault(self, path: Path, line: int) -> str | None:
        """What is wrong with a file, None if nothing is."""
        name = _shown(os.path.relpath(path, self.folder)) if "\0" not in str(path) else "a name with a zero byte"
        if path == self.folder:
            return "has no path"
        if not os.path.isfile(path):
            return f"{name} is {'a folder' if os.path.isdir(path) else 'not there'}"
        if medium(path) is None:
            return f"{name} is of a type not read here; known: {known_endings()}"
        before = self.seen.setdefault(os.path.normpath(path), line)
        return f"{name} stands in line {before}, too" if before != line else None
