"""Overlapping windows among signals in memory: rows that were cut from the same recordings before they came here.

A split at random puts overlapping windows on both sides, so that the test set holds parts of training examples.
"""

from typing import NamedTuple

import numpy as np

from ndvit.data.examples import Part, Recording
from ndvit.data.messages import Doubt, Ungrouped, listing, printable

_MOST_VALUES = 2**22  # of one channel that are searched, those of the first examples
_PROBES = 256  # examples whose beginning is searched in the others
_BEGINNING = 16  # samples of a beginning
_VARIED = 6  # different values in a beginning that is searched, and in 16 samples of an overlap
_SHARE = 0.125  # of an example that an overlap has at least
_FEWEST = 3  # probes that overlap, and their share, from which on it is no chance
_FEWEST_SHARE = 0.05
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class _Row(NamedTuple):
    split: str
    name: str
    values: np.ndarray  # (channels, time)


class Overlap(NamedTuple):
    """An example that begins inside of another one.

    Attributes:
        splits: of the example and of the other one.
        names: of both.
        offset: sample of the other one at which the example begins.
    """

    splits: tuple[str, str]
    names: tuple[str, str]
    offset: int


def overlapping_windows(parts: dict[str, Part]) -> list[str]:
    """Notes on signals of one axis of which many begin inside of others, with exactly equal values up to the end.

    Args:
        parts: the examples of each split; those that are not in memory are not compared.

    Returns:
        An `Ungrouped` note if all are one training set, which may be split at random; a `Doubt` for overlaps of two
        splits.
    """
    found, probes = find_overlaps(parts)
    across = [one for one in found if one.splits[0] != one.splits[1]]
    if across and len(across) >= _FEWEST:
        first, other = across[0].splits
        return [
            Doubt(
                f"{len(across):,} of {probes:,} examples that were compared overlap with those of another split "
                f"({_shown(across)}): windows of one recording are in the {first} set and in the {other} set, so that "
                "results are too good: split by recordings, or cut the windows after the split (--window)"
            )
        ]
    if len(found) < max(_FEWEST, _FEWEST_SHARE * probes):
        return []
    note = (
        f"{len(found):,} of {probes:,} examples that were compared begin inside of another one ({_shown(found)}), as "
        "overlapping windows of recordings do"
    )
    return [Ungrouped(note) if set(parts) == {"train"} else note]


def find_overlaps(parts: dict[str, Part]) -> tuple[list[Overlap], int]:
    """Examples that begin inside of others, one each, and the number of those that were searched."""
    rows = _rows(parts)
    if len(rows) < 2:
        return [], 0
    lengths = np.array([row.values.shape[1] for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    line = np.concatenate([row.values[0] for row in rows]).astype(np.float32).view(np.uint32).astype(np.uint64)
    marks = np.zeros(len(line) - _BEGINNING + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for k in range(_BEGINNING):  # a number for the 16 samples from each place on
            marks = marks * _MULTIPLIER + line[k : k + len(marks)]
    every = np.unique(np.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).astype(int))
    probes = [i for i in every if len(np.unique(line[starts[i] : starts[i] + _BEGINNING])) >= _VARIED]
    if not probes:
        return [], 0
    keys = marks[starts[probes]]
    order = np.argsort(keys)
    near = np.minimum(np.searchsorted(keys[order], marks), len(keys) - 1)
    places = np.flatnonzero(keys[order][near] == marks)
    inside: dict[int, list[tuple[int, int]]] = {}  # by mark: example and offset
    owners = np.searchsorted(starts, places, side="right") - 1
    for place, owner in zip(places.tolist(), owners.tolist()):
        inside.setdefault(int(marks[place]), []).append((owner, place - int(starts[owner])))
    found = [one for i in probes if (one := _overlap(rows, i, inside.get(int(marks[starts[i]]), [])))]
    return found, len(probes)


def _rows(parts: dict[str, Part]) -> list[_Row]:
    """The signals in memory, as many as are searched."""
    rows: list[_Row] = []
    left = _MOST_VALUES
    for split, part in parts.items():
        for name, item in zip(part.names, part.items):
            values = item.values if isinstance(item, Recording) else item
            if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
                return []
            if values.shape[1] < 2 * _BEGINNING:
                continue
            left -= values.shape[1]
            if left < 0:
                return rows
            rows.append(_Row(split, name, values))
    return rows


def _overlap(rows: list[_Row], number: int, matches: list[tuple[int, int]]) -> Overlap | None:
    """The overlap of an example with one of those that have its beginning, if the values are equal up to the end."""
    row = rows[number]
    if any(owner == number and offset for owner, offset in matches):  # it repeats itself, as periodic signals do
        return None
    for owner, offset in matches:
        other = rows[owner]
        length = other.values.shape[1] - offset
        if not offset or not max(_BEGINNING, _SHARE * row.values.shape[1]) <= length <= row.values.shape[1]:
            continue
        stretch = row.values[:, :length]
        if len(np.unique(stretch[0])) < _VARIED * length / _BEGINNING or len(other.values) != len(stretch):
            continue
        if np.array_equal(other.values[:, offset:], stretch, equal_nan=True):
            return Overlap((row.split, other.split), (row.name, other.name), offset)
    return None


def _shown(found: list[Overlap]) -> str:
    names = [tuple(map(printable, one.names)) for one in found]
    return listing([f"{name} is {other} from {one.offset:,} on" for (name, other), one in zip(names, found)], 2)
