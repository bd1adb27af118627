"""Files of one recording each: tables with a row for each moment, named arrays, EDF. All share a clock."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.data.examples import Part
from ndvit.data.messages import LeftOut, cannot_be_used, listing, printable
from ndvit.data.sources.clocks import on_grid
from ndvit.data.sources.column_files import COLUMN_FILES, read_columns
from ndvit.data.sources.columns import Roles, named
from ndvit.data.sources.edf import EDF_FILES, read_edf
from ndvit.data.sources.layouts import Recorded, read_recording
from ndvit.data.sources.named_arrays import ARRAY_FILES, read_one

RECORDINGS = (*COLUMN_FILES, *ARRAY_FILES, *EDF_FILES)
"""Endings of files that may hold one recording, and, except for EDF, many examples."""
_MOST_VALUES = 2**30  # of all recordings in memory: 4 GiB as float32


class _Read(NamedTuple):
    recorded: Recorded
    target: Any
    name: str


def is_recording(item: Any, roles: Roles) -> bool:
    """Whether an item is the path of a file that this module reads; an .npz is one if arrays are named."""
    if not isinstance(item, str):
        return False
    ending = os.path.splitext(item)[1].lower()
    return ending in RECORDINGS or (ending == ".npz" and bool(roles.array))


def read_file(path: Path, roles: Roles) -> Recorded:
    """Read one file of one recording.

    Raises:
        ValueError: with the fault, without the path.
    """
    ending = path.suffix.lower()
    if ending in EDF_FILES:
        return read_edf(path, roles)
    if ending in ARRAY_FILES or ending == ".npz":
        return read_one(path, roles)
    return read_recording(read_columns(path, roles), roles)


def load_recordings(
    parts: dict[str, Part], roles: Roles, where: str, *, skip_bad: bool, progress: bool
) -> tuple[dict[str, Part], list[str]]:
    """Read the files of all parts into memory, onto one clock, see `on_grid`.

    The target of a recording is that of its part (such as its class folder), else the label in its file.

    Args:
        parts: the splits, with paths as items.
        roles: what the user names.
        where: name of the data in messages.
        skip_bad: leave bad files out instead of raising.
        progress: show a progress bar.

    Raises:
        ValueError: for bad files (all of them listed), files with different channels, and too many values.
    """
    from tqdm import tqdm

    total = sum(len(part.items) for part in parts.values())
    faults: list[str] = []
    values = 0
    read: dict[str, list[_Read]] = {split: [] for split in parts}
    kept: dict[str, list[int]] = {split: [] for split in parts}
    with tqdm(total=total, desc="reading files", leave=False, disable=not progress or total < 20, unit="file") as bar:
        for split, part in parts.items():
            for i, item in enumerate(part.items):
                bar.update()
                try:
                    one = read_file(Path(item), roles)
                except (ValueError, OSError) as error:
                    fault = printable(str(error)).removeprefix(f"{os.path.basename(item)}: ")
                    faults.append(f"{part.names[i]}: {fault}")
                    continue
                values += one.series.values.size
                if values > _MOST_VALUES:
                    raise ValueError(
                        f"{where}: has more than {_MOST_VALUES:,} values, which are read into memory; save each "
                        "recording as .npy (channels, time), which is read when it is needed"
                    )
                narrow = one.series.values.astype(np.float32)
                one = one._replace(series=one.series._replace(values=narrow, name=part.names[i]))
                target = part.targets[i] if part.targets is not None else one.target
                read[split].append(_Read(one, target, part.names[i]))
                kept[split].append(i)
    every = [one for of_split in read.values() for one in of_split]
    if faults and not (skip_bad and every):
        raise cannot_be_used(where, faults, total, "files")
    _check_channels(every, where)
    in_seconds = bool(every) and all(one.recorded.in_seconds or one.recorded.series.rate for one in every)
    items, notes = on_grid([one.recorded.series for one in every], in_seconds, where)
    labelled = any(part.targets is not None for part in parts.values()) or any(one.target is not None for one in every)
    same = len({one.recorded.channels for one in every}) == 1  # arrays may have other names in each file
    channels = _with_units(every[0].recorded) if same else ()
    result: dict[str, Part] = {}
    for split, of_split in read.items():
        mine, items = items[: len(of_split)], items[len(of_split) :]
        targets = [one.target for one in of_split] if labelled else None
        columns = parts[split].take(kept[split]).columns
        inside = set.intersection(*(set(one.recorded.columns) for one in of_split)) if of_split else set()
        columns |= {name: [one.recorded.columns[name] for one in of_split] for name in inside - columns.keys()}
        result[split] = Part(list(mine), targets, [one.name for one in of_split], columns, channels)
    if faults:
        notes.append(LeftOut.of(f"{len(faults):,} of {total:,} files left out as bad: {listing(faults, 20)}", faults))
    return result, [*_summary(every), *notes]


def _check_channels(every: Sequence[_Read], where: str) -> None:
    """Refuse files with different channels; arrays whose names differ in each file count only."""
    if not every:
        return
    first = every[0]
    for one in every:
        mine, expected = one.recorded.channels, first.recorded.channels
        if len(mine) == len(expected) and (mine == expected or _are_arrays(one.name)):
            continue
        raise ValueError(
            f"{where}: {one.name} has the channels {named(mine)}, {first.name} has {named(expected)}; choose those "
            f"that all files have with {'--array' if _are_arrays(one.name) else '--channels'}"
        )


def _with_units(recorded: Recorded) -> tuple[str, ...]:
    """The names of the channels, with their units where the file has them."""
    units = recorded.units or ("",) * len(recorded.channels)
    return tuple(printable(f"{name} ({unit})" if unit else name) for name, unit in zip(recorded.channels, units))


def _are_arrays(name: str) -> bool:
    return name.lower().endswith((*ARRAY_FILES, ".npz"))


def _summary(every: Sequence[_Read]) -> list[str]:
    """What was read of the files: each note once, with the number of files where it is not of all."""
    counts: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for one in every:
        for note in one.recorded.notes:
            text = str(note).removeprefix(f"{PurePosixPath(one.name).name}: ")  # so that notes of many files are one
            counts.setdefault(text, []).append(one.name)
            kinds[text] = note
    notes: list[str] = []
    variants: dict[str, list[str]] = {}  # notes that differ in the names of each file
    for note in counts:
        variants.setdefault(note.partition(":")[0], []).append(note)
    for same in variants.values():
        first = max(same, key=lambda note: len(counts[note]))
        files = sum(len(counts[note]) for note in same)
        text = first
        if len(counts[first]) < len(every):
            others = f", and alike in {counted(files - 1, 'file')}" if files > 1 else ""
            text = f"{first} ({counts[first][0]}{others})"
        notes.append(type(kinds[first])(text))
    return notes
