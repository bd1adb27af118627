"""Files of many examples with their targets: .ts, .tsv, .npz, .npy with targets beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ndvit.data.examples import Part
from ndvit.data.sources.arrays import as_part, raw_target
from ndvit.data.sources.files import SPLITS
from ndvit.data.sources.npy import load_array, load_numpy

TABLES = (".ts", ".tsv", ".npz", ".npy")
"""Endings of files of many examples."""


def read_table(path: Path) -> dict[str, Part]:
    """Read a file of many examples: {"train": ...}, and "test" and "val" if an .npz has them."""
    reader = {".ts": _read_ts, ".tsv": _read_tsv, ".npz": _read_npz, ".npy": _read_npy}[path.suffix.lower()]
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        message = str(error)
        raise ValueError(message if path.name in message else f"{path}: {message}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # old archives have any encoding; bytes that are not UTF-8 become \xe9, so that different labels stay different
    with path.open(encoding="utf-8-sig", errors="backslashreplace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line.strip("\r\n ")


def _series(fields: list[str], where: str) -> np.ndarray:
    values = [field if field.strip() not in ("?", "") else "nan" for field in fields]
    try:
        with np.errstate(over="ignore"):  # as in `numbers`
            return np.array(values, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected numbers, NaN or ?") from error


def _read_ts(path: Path) -> dict[str, Part]:
    """Read the format of the UCR/UEA archives: @tags, then one line per example, channel:channel:label, with commas."""
    # The reader of aeon changes labels to lower case ("banana" for "baNaNa"), drops the minus signs of series with time
    # stamps, and stops at channels of unequal length, which end in missing values here.
    tags: dict[str, bool] = {}
    items: list[np.ndarray] = []
    targets: list[Any] = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if line.startswith(("#", "%")):
            continue
        if "data" not in tags:
            if not line.startswith("@"):
                raise ValueError(f"{where}: expected a comment or a tag such as @data, got {line[:40]!r}")
            tag, *words = line[1:].lower().split() or [""]
            tags[tag] = words[:1] == ["true"]
            if tags.get("timestamps"):
                raise ValueError(f"{where}: time stamps are not supported; save plain values (@timeStamps false)")
            if tags.get("targetlabel"):
                raise ValueError(f"{where}: the set is for regression (@targetLabel), which is not supported")
            continue
        channels = line.split(":")
        if tags.get("classlabel"):
            targets.append(raw_target(channels.pop()))
        rows = [_series(channel.split(","), where) for channel in channels]
        if not rows:
            raise ValueError(f"{where}: expected values, a colon and a label, got {line[:40]!r}")
        values = np.full((len(rows), max(map(len, rows))), np.nan, dtype=np.float32)
        for row, into in zip(rows, values):
            into[: len(row)] = row
        items.append(values)
    if "data" not in tags:
        raise ValueError(f"{path}: no @data line; the file is not a .ts file or was cut off")
    return _train_part(path, items, targets if tags.get("classlabel") else None)


def _read_tsv(path: Path) -> dict[str, Part]:
    """Read the .tsv format of UCR: one line per example, its label first, then its values, separated by tabs."""
    items, targets = [], []
    for number, line in _lines(path):
        label, *fields = line.split("\t")
        if not fields:
            raise ValueError(f"{path}, line {number}: expected a label and values with tabs between, got {line[:40]!r}")
        targets.append(raw_target(label))
        items.append(_series(fields, f"{path}, line {number}")[None])
    return _train_part(path, items, targets)


def _train_part(path: Path, items: list[np.ndarray], targets: list[Any] | None) -> dict[str, Part]:
    return {"train": Part(items, targets, [f"{path.name}[{i}]" for i in range(len(items))])}


def _read_npz(path: Path) -> dict[str, Part]:
    arrays: dict[str, np.ndarray] = {}
    for key, array in load_numpy(path).items():
        if arrays.setdefault(key.lower(), array) is not array:
            raise ValueError(f"{path}: has two arrays called {key}, in upper and in lower case; keep one")
    splits = [name for name in SPLITS if f"x_{name}" in arrays]
    if "x" in arrays and splits:
        if "train" in map(SPLITS.get, splits):
            raise ValueError(f"{path}: has both X and X_train; keep the training set")
        arrays |= {f"{key}_train": arrays.pop(key) for key in ("x", "y") if key in arrays}
        splits.insert(0, "train")
    if "x" in arrays:
        return {"train": as_part(arrays["x"], arrays.get("y"), path.name, f"y in {path.name}")}
    parts: dict[str, Part] = {}
    for name in splits:
        if SPLITS[name] in parts:
            raise ValueError(f"{path}: has several arrays that could be X_{SPLITS[name]}, such as X_{name}; keep one")
        where = f"y_{name} in {path.name}"
        parts[SPLITS[name]] = as_part(arrays[f"x_{name}"], arrays.get(f"y_{name}"), f"{path.name}:X_{name}", where)
    if not parts:
        raise ValueError(
            f"{path}: expected arrays X and y, or X_train, y_train, X_test, y_test; "
            f"got {', '.join(arrays) if all(arrays) else 'a single array; name it .npy'}"
        )
    return parts


def _read_npy(path: Path) -> dict[str, Part]:
    beside = [path.with_name(f"{path.stem}_labels{ending}") for ending in (".npy", ".txt")]
    if path.stem[0] in "xX":
        beside += [path.with_name(y + path.stem[1:] + ending) for y in "yY" for ending in (".npy", ".txt")]
    found = next((file for file in beside if file.is_file()), None)
    y: Any = None
    try:
        if found is not None and found.suffix == ".txt":
            y = found.read_text(encoding="utf-8-sig").rstrip().split("\n")
        elif found is not None:
            y = load_array(found)
    except ValueError as error:
        fault = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"{found}, the targets of {path.name}: {fault}") from error
    return {"train": as_part(load_array(path), y, path.name, found.name if found else "y")}
