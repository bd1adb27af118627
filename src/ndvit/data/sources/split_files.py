"""Splits in a file of their own: a .csv with the name and the split of every example."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ndvit.config.bounds import counted
from ndvit.data.examples import Examples, Part
from ndvit.data.messages import listing, printable
from ndvit.data.sources.split_names import split_of
from ndvit.files import cell, check_regular, csv_text, replace_file

_HEADER = ("name", "split")
_MOST_BYTES = 2**30


def divide_by_file(parts: dict[str, Part], path: str, where: str) -> tuple[dict[str, Part], str]:
    """Divide the examples of a source as a file names them.

    Args:
        parts: the examples, in any splits.
        path: the file, see `write_split`.
        where: name of the source in messages.

    Returns:
        The parts "train", "val" and "test", without empty ones, and a note.

    Raises:
        ValueError: for a file that cannot be read, or that does not name every example exactly once.
    """
    written = _read(Path(path).expanduser())
    together = [(split, i) for split, part in parts.items() for i in range(len(part.items))]
    names = [parts[split].names[i] for split, i in together]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{where}: several examples have the same name, which a split file cannot tell apart: {listing(repeated)}"
        )
    split_by_name = {name: written[key] for name in names for key in (name, cell(name)) if key in written}
    missing = [name for name in names if name not in split_by_name]
    unknown = sorted(written.keys() - {key for name in names for key in (name, cell(name))})
    if missing or unknown:
        found = [f"{path} lacks {counted(len(missing), 'example')} of the source ({listing(missing)})"] * bool(missing)
        found += [f"{path} names {counted(len(unknown), 'example')} that the source lacks ({listing(unknown)})"] * bool(
            unknown
        )
        raise ValueError(f"{where}: {' and '.join(found)}; every example needs one line with its name and split")
    divided: dict[str, Part] = {}
    for wanted in ("train", "val", "test"):
        found_parts = [
            part.take(chosen)
            for split, part in parts.items()
            if (chosen := [i for i, name in enumerate(part.names) if split_by_name[name] == wanted])
        ]
        if found_parts:
            divided[wanted] = _joined(found_parts)
    counts = ", ".join(f"{len(part.items):,} {split}" for split, part in divided.items())
    return divided, f"the split in {printable(Path(path).name)}: {counts}"


def write_split(path: Path, examples: dict[str, Examples]) -> None:
    """Write the split of each example as `divide_by_file` reads it, with the group where there are groups.

    Of windows, the recordings are written.
    """
    grouped = any(part.groups is not None for part in examples.values())
    rows = [[*_HEADER, *(["group"] if grouped else [])]]
    for split, part in examples.items():
        groups = part.groups if part.groups is not None else [""] * len(part)
        names = part.names if part.places is None else [place.recording for place in part.places]
        lines = list(zip(names, groups, strict=True))
        lines = lines if part.places is None else list(dict.fromkeys(lines))  # the windows of a recording are one line
        rows += [[name, split, *([group] if grouped else [])] for name, group in lines]
    replace_file(path, csv_text(rows))


def _joined(parts: list[Part]) -> Part:
    targets = None if any(part.targets is None for part in parts) else [t for part in parts for t in part.targets or []]
    columns = {name: [v for part in parts for v in part.columns.get(name, [])] for name in parts[0].columns}
    items, names = ([value for part in parts for value in getattr(part, field)] for field in ("items", "names"))
    return Part(items, targets, names, columns, parts[0].channels)


def _read(path: Path) -> dict[str, str]:
    """The split of each name."""
    found: dict[str, str] = {}
    for number, row in named_rows(path, _HEADER):
        name, split = row["name"], split_of(row["split"])
        if split is None:
            raise ValueError(f"{path}, line {number}: split is {row['split'][:40]!r}; expected train, val or test")
        if found.setdefault(name, split) != split:
            raise ValueError(f"{path}, line {number}: {printable(name[:80])} is in {found[name]} and in {split}")
    return found


def named_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a .csv about examples, with their line numbers.

    Args:
        path: the file.
        columns: names of columns that it must have.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another file, or without the columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a .csv with the columns {' and '.join(columns)}")
    check_regular(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restval="")
            if rows.fieldnames is None or not set(columns) <= set(rows.fieldnames):
                found = listing([name[:40] for name in rows.fieldnames or ()], 10) or "none"
                raise ValueError(f"{path} has the columns {printable(found)}, expected {' and '.join(columns)}")
            for row in rows:
                yield rows.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable .csv: {error}") from error
