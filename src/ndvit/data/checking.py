"""Checking every example before training: bad ones are refused or left out, unusual ones are reported.

Files are decoded to check them, several at a time; nothing of them is kept.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.examples import EncodedPicture, Kind, Part, Raw, Recording, are_streamed
from ndvit.data.messages import Doubt, cannot_be_used, listing
from ndvit.data.sources.arrays import value_fault
from ndvit.data.sources.files import Header, decode, describe_fault, header_of
from ndvit.data.sources.rasters import has_doubtful_alpha

_DECODE_AT_MOST = 50_000  # files that are decoded to find bad ones; of more, only headers are read


class Checked(NamedTuple):
    """The good examples, their kind and number of axes, the fault of each bad example by split and index, and notes."""

    parts: dict[str, Part]
    kind: Kind
    dims: int
    faults: dict[str, dict[int, str]]
    notes: list[str]


class Finding(NamedTuple):
    """The findings about one example; `fault` is None for a good one."""

    header: Header = Header("image", 0, ())
    fault: str | None = None
    missing: bool = False
    mode: str = ""  # of a decoded picture, "L" or "RGB"
    alpha: bool = False  # of a file, see `has_doubtful_alpha`

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and number of axes, which all examples must share; 0 for what preprocessing makes equal."""
        kind, channels, grid, rate = self.header
        return (0, 0) if kind == "image" else (0 if rate else channels, len(grid))

    @property
    def extent(self) -> tuple[float, ...]:
        """Length of each axis: seconds of a recording, nothing for pictures, which are always resized."""
        kind, _, grid, rate = self.header
        return () if kind == "image" else tuple(n / rate for n in grid) if rate else grid

    @property
    def channels_last(self) -> bool:
        """Whether an array may have its channels last: no axis is longer than the root of any axis before it."""
        _, channels, grid, _ = self.header
        return self.shape[0] > 0 and max(2, grid[-1] ** 2) <= min((channels, *grid[:-1]))


def check_examples(parts: dict[str, Part], where: str, skip_bad: bool, progress: bool) -> Checked:
    """Check every example of all parts that are not streamed, and leave bad ones out.

    Files are decoded completely; of more than 50,000, only the headers are read. Streamed parts, which are pictures,
    are not checked: that would fetch everything.

    Raises:
        ValueError: for an empty part, or bad examples (all of them listed) unless `skip_bad`.
    """
    local = {split: part for split, part in parts.items() if not are_streamed(part.items)}
    if empty := [split for split, part in local.items() if not part.items]:
        raise ValueError(f"{where}: the {empty[0]} set has no examples")
    total = sum(len(part.items) for part in local.values())
    whole = total <= _DECODE_AT_MOST
    findings = {split: _check(part.items, whole, progress) for split, part in local.items()}
    _mark_odd(findings)
    good, faults = dict(parts), {split: dict[int, str]() for split in parts}
    for split, part in local.items():
        faults[split] = {i: f"{part.names[i]}: {one.fault}" for i, one in enumerate(findings[split]) if one.fault}
        good[split] = part.take([i for i in range(len(part.items)) if i not in faults[split]])
        if skip_bad and not good[split].items:
            raise ValueError(f"{where}: every example in the {split} set is bad; the first: {faults[split][0]}")
    bad = [fault for split in faults.values() for fault in split.values()]
    if bad and not skip_bad:
        raise cannot_be_used(where, bad, total, "examples")
    notes = []
    stored = any(isinstance(part.items[0], str | EncodedPicture) for part in local.values())
    if not whole and stored:
        notes.append(f"{total:,} files: only their headers were read, so a damaged one may appear in training")
    if bad:
        notes.append(f"{len(bad):,} of {total:,} examples left out as bad: {listing(bad, 20)}")
    sound = {split: [one for one in found if one.fault is None] for split, found in findings.items()}
    notes += _unequal(sound)
    if "train" in sound:
        notes += _mixed(sound) + _doubtful([one for found in sound.values() for one in found], stored)
    header = next((found[0].header for found in sound.values()), Finding().header)
    dims = 2 if header.kind == "image" else len(header.grid)  # streams, without a header, are pictures
    return Checked(good, header.kind, dims, faults, notes)


def _mark_odd(findings: dict[str, list[Finding]]) -> None:
    """Set a fault for each good example whose numbers of channels and axes are not those of most good ones."""
    shapes = Counter(one.shape for found in findings.values() for one in found if one.fault is None)
    if len(shapes) < 2:
        return
    most = shapes.most_common(1)[0][0]
    for found in findings.values():
        for i, one in enumerate(found):
            if one.fault is not None or one.shape == most:
                continue
            if one.shape[1] and most[1]:
                fault = f"{one.shape[0]} channels and {one.shape[1]} axes, most have {most[0]} and {most[1]}"
                if one.channels_last:
                    fault += f" (shape {(one.header.channels, *one.header.grid)}: channels come first)"
            else:  # TIFF files
                fault = f"is a {_tiff(one.shape[0])}, most are a {_tiff(most[0])}; one data set needs one kind"
            found[i] = one._replace(fault=fault)


def _tiff(bands: int) -> str:
    return f"raster of {bands} band{'s' * (bands > 1)}" if bands else "picture in grey or colour"


def _mixed(findings: dict[str, list[Finding]]) -> list[str]:
    """Notes on recordings and pictures that differ in what preprocessing makes equal."""
    found, notes = [one for part in findings.values() for one in part], []
    recordings = {(one.header.channels, one.header.rate) for one in found if one.header.rate}
    rates = sorted({rate for _, rate in recordings if rate})
    if len(rates) > 1:
        notes.append(f"sample rates {', '.join(f'{rate:.15g}' for rate in rates)} Hz: all are resampled to one")
    channels = sorted({count for count, _ in recordings})
    if len(channels) > 1:
        notes.append(f"recordings of {' and '.join(map(str, channels))} channels: all are averaged to one channel")
    sizes = {one.header.grid[::-1] for one in found if one.header.kind == "image"}
    if len(sizes) > 1:
        (w, h), *_, (wide, high) = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        span = f"{w} x {h} to {wide} x {high} pixels"
        notes.append(f"pictures of {span}: each is resized to cover the network's input and centre-cropped")
    modes = Counter(one.mode for one in found)
    if modes["L"] and modes["RGB"]:
        grey = "grey, as the training pictures, or to colour for trained weights in colour"
        to = "colour" if any(one.mode == "RGB" for one in findings["train"]) else grey
        notes.append(f"pictures in grey ({modes['L']:,}) and in colour ({modes['RGB']:,}): all are converted to {to}")
    return notes


def _doubtful(found: list[Finding], stored: bool) -> list[str]:
    """Notes on data that may mean something else than they are read as."""
    notes = []
    if found and all(one.channels_last for one in found):
        _, channels, grid, _ = found[0].header
        notes.append(
            f"examples of shape {(channels, *grid)} are read as {channels} channels of {' x '.join(map(str, grid))} "
            f"values: channels come first; if they are last, pass np.moveaxis({'x, -1, 0' if stored else 'X, -1, 1'})"
        )
    if alpha := [one for one in found if one.alpha]:
        share = f"{len(alpha):,} of {len(found):,}"
        notes.append(
            f"a band that is marked as transparency is read as any other, in {share} rasters: GDAL marks a fourth band "
            "so by default; if it is transparency, save pictures of three bands"
            if alpha[0].header.channels
            else f"transparency that may be a measured band, in {share} pictures (TIFF): they are laid on white; if it "
            "was measured, such as near infrared, save them by tifffile with extrasamples=['unspecified'], or as .npy "
            "(channels, height, width)"
        )
    return [Doubt(note) for note in notes]


def _unequal(findings: dict[str, list[Finding]]) -> list[str]:
    """Notes on unequal lengths and missing values."""
    notes = []
    longest = [max(axis) for axis in zip(*{one.extent for one in findings.get("train", ())})]
    for split, found in findings.items():
        extents = {one.extent for one in found}
        if len(extents) > 1:
            spans = ", ".join(f"{min(axis):,.6g} to {max(axis):,.6g}" for axis in zip(*extents))
            spans += " s" if found[0].header.rate else ""
            notes.append(f"unequal lengths in the {split} set ({spans}): shorter examples end in missing values")
        # without a training set (examples to predict), `longest` is empty and nothing is longer
        longer = sum(any(n > most for n, most in zip(one.extent, longest)) for one in found)
        if longer:
            notes.append(f"longer than all training examples, and resampled down to fit: {longer:,} {split} examples")
        missing = sum(one.missing for one in found)
        if missing:
            share = f"{missing:,} of {len(found):,} {split} examples"
            notes.append(f"missing values in {share}: masked where no channel is observed, else interpolated")
    return notes


def _check(items: Sequence[Any], whole: bool, progress: bool) -> list[Finding]:
    if not isinstance(items[0], str | EncodedPicture):
        return [_check_raw(item) for item in items]
    from tqdm import tqdm

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:  # decoders release Python's lock
        findings = pool.map(partial(_check_stored, whole=whole), items)
        disable = not (progress and len(items) > 500)
        return list(tqdm(findings, "checking files", len(items), leave=False, disable=disable, unit="file"))


def _check_stored(item: str | EncodedPicture, whole: bool) -> Finding:
    """Check a file or a stored picture, completely or by its header."""
    try:
        finding = _check_raw(decode(item)) if whole else _check_header(item)
        doubtful = finding.fault is None and isinstance(item, str) and has_doubtful_alpha(item, whole)
        return finding._replace(alpha=doubtful)
    except Exception as error:  # decoders raise any error for a damaged file
        return Finding(fault=describe_fault(error))


def _check_header(item: Any) -> Finding:
    header = header_of(item)
    if header.kind == "signal" and not (header.channels and all(header.grid)):
        return Finding(header, f"is empty (shape {(header.channels, *header.grid)})")
    return Finding(header)


def _check_raw(raw: Raw) -> Finding:
    finding = _check_header(raw)
    if isinstance(raw, Image.Image):
        return finding._replace(mode=raw.mode)
    if finding.fault is not None:
        return finding
    values = raw.values if isinstance(raw, Recording) else raw
    return finding._replace(fault=value_fault(values), missing=bool(np.isnan(values).any()))
