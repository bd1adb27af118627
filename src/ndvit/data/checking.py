"""A look at every example before training: bad ones are refused or left out, all that is unusual is told.

Files are decoded to be looked at, many at a time; nothing of them is kept.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.examples import Encoded
from ndvit.data.preprocess.base import Raw, Recording
from ndvit.data.preprocess.images import image_size
from ndvit.data.preprocess.signals import signal_header
from ndvit.data.sources.arrays import Part
from ndvit.data.sources.folders import decode, listing, medium, reason
from ndvit.data.sources.rasters import doubtful_alpha, is_raster

_DECODE_AT_MOST = 50_000  # files that are decoded to find bad ones; beyond that, headers are read


class Look(NamedTuple):
    """What a first look at one example found; `fault` is None for a good one."""

    channels: int = 0  # 0 where any number will do: pictures are converted, recordings can be averaged
    grid: tuple[float, ...] = ()  # positions along each axis; seconds for recordings, whose rates may differ
    missing: bool = False
    fault: str | None = None
    heard: tuple[int, float] | None = None  # channels and sample rate of a recording
    seen: tuple[int, int] | None = None  # width and height of a picture
    mode: str = ""  # of a decoded picture, "L" or "RGB"
    alpha: bool = False  # of a file, see `doubtful_alpha`


def without_bad(
    parts: dict[str, Part], where: str, skip_bad: bool, progress: bool
) -> tuple[dict[str, Part], list[str]]:
    """Look at every example, and return the good ones with notes on bad ones, unequal lengths and missing values.

    Files are decoded completely; where there are more than 50,000, only their headers are read.

    Raises:
        ValueError: an empty part; bad examples (all of them listed) unless `skip_bad`; a class with bad ones only.
    """
    for split, part in parts.items():
        if not part.items:
            raise ValueError(f"{where}: the {split} set holds no examples")
    total = sum(len(part.items) for part in parts.values())
    whole = total <= _DECODE_AT_MOST
    looks = {split: _look(part.items, whole, progress) for split, part in parts.items()}
    _mark_odd(looks)
    good: dict[str, Part] = {}
    bad: list[str] = []
    for split, part in parts.items():
        faults = {i: f"{part.names[i]}: {one.fault}" for i, one in enumerate(looks[split]) if one.fault is not None}
        bad += faults.values()
        good[split] = part.take([i for i in range(len(part.items)) if i not in faults])
        labels = part.labels or []
        lost = sorted(str(label) for label in set(labels) - set(good[split].labels or ()) if label is not None)
        if skip_bad and (lost or not good[split].items):
            which = f"of class {listing(lost)} " if lost else ""
            first = next(fault for i, fault in faults.items() if not lost or labels[i] in lost)
            raise ValueError(f"{where}: every example {which}in the {split} set is bad; the first: {first}")
    if bad and not skip_bad:
        shown = "\n  ".join(bad[:20]) + (f"\n  and {len(bad) - 20:,} more" if len(bad) > 20 else "")
        raise ValueError(
            f"{where}: {len(bad):,} of {total:,} examples cannot be used:\n  {shown}\n"
            "Mend or remove them, or leave them out with --skip-bad (skip_bad=True in Python)."
        )
    notes = []
    stored = any(isinstance(part.items[0], str | Encoded) for part in parts.values())
    if not whole and stored:
        notes.append(f"{total:,} files: only their headers were read, so a damaged one may show up in training")
    if bad:
        notes.append(f"{len(bad):,} of {total:,} examples left out as bad: {listing(bad, 20)}")
    sound = {split: [one for one in found if one.fault is None] for split, found in looks.items()}
    notes += _uneven(sound)
    if "train" in sound:
        notes += _mixed(sound) + _doubtful([one for found in sound.values() for one in found], stored)
    return good, notes


def _mark_odd(looks: dict[str, list[Look]]) -> None:
    """Write a fault on each good look whose numbers of channels and axes are not those of most good ones."""
    shapes = Counter((one.channels, len(one.grid)) for found in looks.values() for one in found if one.fault is None)
    if len(shapes) < 2:
        return
    most = shapes.most_common(1)[0][0]
    for found in looks.values():
        for i, one in enumerate(found):
            shape = one.channels, len(one.grid)
            if one.fault is not None or shape == most:
                continue
            if all(axes for _, axes in (shape, most)):
                fault = f"{shape[0]} channels and {shape[1]} axes, most have {most[0]} and {most[1]}"
                if _channels_last(one):
                    fault += f" (shape {(one.channels, *one.grid)}: channels come first)"
            else:  # TIFFs
                fault = f"is a {_tiff(shape[0])}, most are a {_tiff(most[0])}; one data set needs one kind"
            found[i] = one._replace(fault=fault)


def _tiff(channels: int) -> str:
    return f"raster of {channels} band{'s' * (channels > 1)}" if channels else "picture in grey or colour"


def _mixed(found: dict[str, list[Look]]) -> list[str]:
    """Notes on recordings and pictures that differ in what preprocessing will make the same."""
    looks, notes = [one for part in found.values() for one in part], []
    rates = sorted({one.heard[1] for one in looks if one.heard})
    if len(rates) > 1:
        notes.append(f"sample rates {', '.join(f'{rate:.15g}' for rate in rates)} Hz: all are resampled to one")
    channels = sorted({one.heard[0] for one in looks if one.heard})
    if len(channels) > 1:
        notes.append(f"recordings of {' and '.join(map(str, channels))} channels: all are averaged to one channel")
    sizes = sorted({one.seen for one in looks if one.seen}, key=lambda size: (size[0] * size[1], size))
    if len(sizes) > 1:
        (w, h), (wide, high) = sizes[0], sizes[-1]
        span = f"{w} x {h} to {wide} x {high} pixels"
        notes.append(f"pictures of {span}: each is resized to cover the network's input and centre-cropped")
    modes = Counter(one.mode for one in looks)
    if modes["L"] and modes["RGB"]:
        grey = "grey, as those to train on are, or to colour where trained weights take that"
        to = "colour" if any(one.mode == "RGB" for one in found["train"]) else grey
        notes.append(f"pictures in grey ({modes['L']:,}) and in colour ({modes['RGB']:,}): all are converted to {to}")
    return notes


def _doubtful(looks: list[Look], stored: bool) -> list[str]:
    """Notes on what may be meant in another way than it is read."""
    notes = []
    if looks and all(map(_channels_last, looks)):
        channels, grid = looks[0].channels, looks[0].grid
        notes.append(
            f"examples of shape {(channels, *grid)} are read as {channels} channels of {' x '.join(map(str, grid))} "
            f"values: channels come first; if they are last, give np.moveaxis({'x, -1, 0' if stored else 'X, -1, 1'})"
        )
    if alpha := [one for one in looks if one.alpha]:
        share = f"{len(alpha):,} of {len(looks):,}"
        notes.append(
            f"a band that is marked as transparency is read as any other, in {share} rasters: GDAL marks a fourth band "
            "so by default; if it is transparency, save pictures of three bands"
            if alpha[0].channels
            else f"transparency that may be a measured band, in {share} pictures (TIFF): they are laid on white; if it "
            "was measured, as near infrared is, save them by tifffile with extrasamples=['unspecified'], or as .npy "
            "(channels, height, width)"
        )
    return notes


def _channels_last(one: Look) -> bool:
    """Whether an array looks like one of another library: no axis is longer than the square root of any before it."""
    return one.channels > 0 and max(2, one.grid[-1] ** 2) <= min((one.channels, *one.grid[:-1]))


def _uneven(looks: dict[str, list[Look]]) -> list[str]:
    """Notes on lengths and missing values, which preprocessing will level out."""
    notes = []
    longest = [max(axis) for axis in zip(*{one.grid for one in looks.get("train", ())})]
    for split, found in looks.items():
        grids = {one.grid for one in found}
        if len(grids) > 1:
            spans = ", ".join(f"{min(axis):,.6g} to {max(axis):,.6g}" for axis in zip(*grids))
            spans += "" if found[0].channels else " s"
            notes.append(f"unequal lengths in the {split} set ({spans}): shorter examples end in missing values")
        # Without a training set (examples to predict) there is nothing to compare with, and the zip is empty.
        longer = sum(any(n > most for n, most in zip(one.grid, longest)) for one in found)
        if longer:
            notes.append(f"longer than all training examples, and resampled down to fit: {longer:,} {split} examples")
        missing = sum(one.missing for one in found)
        if missing:
            share = f"{missing:,} of {len(found):,} {split} examples"
            notes.append(f"missing values in {share}: masked where no channel is observed, else interpolated")
    return notes


def _look(items: Sequence[Any], whole: bool, progress: bool) -> list[Look]:
    if not isinstance(items[0], str | Encoded):
        return [_look_at(item) for item in items]
    from tqdm import tqdm

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:  # decoders let go of Python's lock
        looks = pool.map(partial(_look_into, whole=whole), items)
        hidden = not (progress and len(items) > 500)
        return list(tqdm(looks, "checking files", len(items), leave=False, disable=hidden, unit="file"))


def _look_into(item: str | Encoded, whole: bool) -> Look:
    """A look at a file or a row: at all of it, or at its header."""
    try:
        if whole:
            look = _look_at(decode(item))
        elif isinstance(item, Encoded) or (medium(item) == "images" and not is_raster(item)):
            height, width = image_size(item.open() if isinstance(item, Encoded) else item)
            look = Look(seen=(width, height))
        else:
            look = _measured(item)
        return look._replace(alpha=look.fault is None and isinstance(item, str) and doubtful_alpha(item, whole))
    except Exception as error:  # decoders raise whatever they like on a damaged file
        return Look(fault=reason(error))


def _look_at(raw: Raw) -> Look:
    if isinstance(raw, Image.Image):
        return Look(seen=raw.size, mode=raw.mode)
    look = _measured(raw)
    if look.fault is not None:
        return look
    values = raw.values if isinstance(raw, Recording) else raw
    if np.isinf(values).any():
        return look._replace(fault="holds infinite values; mend them, or mark them as missing (NaN)")
    missing = np.isnan(values)
    if missing.all():
        return look._replace(fault="nothing is observed: all values are missing (NaN)")
    return look._replace(missing=bool(missing.any()))


def _measured(item: Any) -> Look:
    """A look at the shape of a recording, an array, or a file of one of them."""
    channels, grid, rate = signal_header(item)
    fault = None if channels and all(grid) else f"is empty (shape {(channels, *grid)})"
    if rate:
        return Look(0, tuple(n / rate for n in grid), fault=fault, heard=(channels, rate))
    return Look(channels, grid, fault=fault)
