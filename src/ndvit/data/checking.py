"""Checking every example before training: bad ones are refused or left out, unusual ones and copies are reported.

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

from ndvit.data.copies import content_digest, file_digest, file_mark, find_copies, is_blank, repeated
from ndvit.data.examples import EncodedPicture, Kind, Part, Raw, Recording, StoredSignal, are_streamed
from ndvit.data.messages import Doubt, LeftOut, cannot_be_used, listing
from ndvit.data.sources.arrays import value_fault
from ndvit.data.sources.files import Header, decode, describe_fault, header_of
from ndvit.data.sources.pictures import HALVED
from ndvit.data.sources.rasters import has_doubtful_alpha
from ndvit.data.sources.split_names import alike

_CHANNELS_AT_MOST = 12  # of a short last axis that may be the channels
_SMOOTH, _SMOOTHER = 0.7, 0.4  # correlation of neighbours along an axis that is time, and its lead over another axis
_SMALLEST_PICTURE = 16  # pixels on a side of pictures that may be passed as arrays without an axis of channels
_DARK = 64  # of 256 levels: values of 14 of 16 bits or less
_DECODE_AT_MOST = 50_000  # files that are decoded to find bad ones; of more, only headers are read


class Checked(NamedTuple):
    """The good examples, their kind and number of axes, the fault of each bad example by split and index, and notes.

    `copies` has, of each split with copies of its own examples, the groups of `find_copies`.
    """

    parts: dict[str, Part]
    kind: Kind
    dims: int
    faults: dict[str, dict[int, str]]
    notes: list[str]
    copies: dict[str, np.ndarray]


class Finding(NamedTuple):
    """The findings about one example; `fault` is None for a good one."""

    header: Header = Header("image", 0, ())
    fault: str | None = None
    missing: bool = False
    mode: str = ""  # of a decoded picture, "L", "I;16" (grey of more than 8 bits) or "RGB"
    blank: bool = False  # whether all pixels of a decoded picture are equal
    halved: bool = False  # whether it is dark, and its lower 8 of 16 bits were not read
    alpha: bool = False  # of a file, see `has_doubtful_alpha`
    smoothness: tuple[float, float] | None = None  # of channels and time, see `_smoothness`
    frames: bool = False  # whether a decoded picture has more frames or pages than the one that is used
    digest: bytes = b""  # of the content, or the `file_mark` of a file that is not decoded

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
        """Whether the shape of an array suggests that its channels are last.

        The last axis is then at most as long as the root of any axis before it; or has at most 12 values (4 for
        pictures, whose sides are of similar lengths), and each axis before it at least twice as many.
        """
        _, channels, grid, _ = self.header
        if self.shape[0] == 0:
            return False
        before, last = (channels, *grid[:-1]), grid[-1]
        pictures = len(grid) == 1 or (last <= 4 and max(before) <= 4 * min(before))
        few = last <= _CHANNELS_AT_MOST and 2 * last <= min(before) and pictures
        return few or max(2, last**2) <= min(before)

    @property
    def is_column(self) -> bool:
        """Whether an array has several channels of a single value each."""
        return self.shape[0] > 1 and set(self.header.grid) == {1}

    @property
    def square(self) -> bool:
        """Whether an array of channels and time may be a picture, such as (28, 28)."""
        _, channels, grid, rate = self.header
        return rate is None and len(grid) == 1 and channels == grid[0] >= _SMALLEST_PICTURE


def check_examples(
    parts: dict[str, Part],
    where: str,
    skip_bad: bool,
    progress: bool,
    *,
    drop_copies: bool = False,
    channels: int = 0,
    windowed: bool = False,
) -> Checked:
    """Check every example of all parts that are not streamed, leave bad ones out, and find copies.

    Files are decoded completely; of more than 50,000, only the headers are read, and files are copies if all their
    bytes are equal. Streamed parts are not checked: that would fetch everything. Copies are not
    searched in examples without targets.

    Args:
        parts: the examples of each split.
        where: name of the data in messages.
        skip_bad: leave bad examples out instead of raising.
        progress: show a progress bar while many files are checked.
        drop_copies: leave out copies, so that no content occurs twice: the test set keeps its examples, then the
            validation set. Equal examples with different labels are all left out. They count as faults.
        channels: channels of the inputs, if a model has decided that.
        windowed: whether the examples will be cut into windows, so that unequal lengths need no padding.

    Raises:
        ValueError: for an empty part; examples that are all columns of values, whose channels must come first; or bad
            examples (all of them listed) unless `skip_bad`.
    """
    local = {split: part for split, part in parts.items() if not are_streamed(part.items)}
    if empty := [split for split, part in local.items() if not part.items]:
        raise ValueError(f"{where}: the {empty[0]} set has no examples")
    total = sum(len(part.items) for part in local.values())
    whole = total <= _DECODE_AT_MOST
    compare = all(part.targets is not None for part in local.values())
    findings = {split: _check(part.items, whole, progress, compare) for split, part in local.items()}
    _refuse_columns(findings, where, channels)
    _mark_odd(findings)
    good, faults = dict(parts), {split: dict[int, str]() for split in parts}
    kept: dict[str, list[int]] = {}
    for split, part in local.items():
        faults[split] = {i: f"{part.names[i]}: {one.fault}" for i, one in enumerate(findings[split]) if one.fault}
        kept[split] = [i for i in range(len(part.items)) if i not in faults[split]]
        good[split] = part.take(kept[split])
        if skip_bad and not good[split].items:
            raise ValueError(f"{where}: every example in the {split} set is bad; the first: {faults[split][0]}")
    bad = [fault for split in faults.values() for fault in split.values()]
    if bad and not skip_bad:
        raise cannot_be_used(where, bad, total, "examples")
    notes = []
    stored = any(isinstance(part.items[0], str | EncodedPicture) for part in local.values())
    if not whole and stored:
        notes.append(
            f"{total:,} files: only their headers were read, so a damaged one may appear in training, and only files "
            "with equal bytes are found as copies"
        )
    if bad:
        notes.append(LeftOut.of(f"{len(bad):,} of {total:,} examples left out as bad: {listing(bad, 20)}", bad))
    sound = {split: [findings[split][i] for i in kept[split]] for split in local}
    groups: dict[str, np.ndarray] = {}
    if compare:
        notes += _alike_classes(local)
        digests = _digests({split: good[split] for split in local}, sound, whole)
        copies = find_copies(good, digests)
        groups = copies.groups
        if drop_copies:
            notes += _drop(copies.surplus, good, sound, kept, faults, where)
            groups = {}
        else:
            notes += copies.notes
    if several := sum(one.frames for found in sound.values() for one in found):
        notes.append(f"{several:,} pictures have several frames or pages: the first one is used")
    notes += _unequal(sound, windowed)
    notes += _blank(good, sound)
    if "train" in sound:
        notes += _mixed(sound) + _doubtful([one for found in sound.values() for one in found], stored)
    header = next((found[0].header for found in sound.values()), None) or _streamed_header(parts)
    dims = 2 if header.kind == "image" else len(header.grid)
    return Checked(good, header.kind, dims, faults, notes, groups)


def _streamed_header(parts: dict[str, Part]) -> Header:
    """The header of an example of a stream, as far as it is known without fetching anything."""
    first = next((part.items[0] for part in parts.values() if part.items), None)
    return header_of(first) if isinstance(first, StoredSignal) else Finding().header


def _digests(parts: dict[str, Part], findings: dict[str, list[Finding]], whole: bool) -> dict[str, list[bytes]]:
    """The digest of each example, empty for blank ones. Files with equal marks are read completely."""
    digests = {split: [one.digest for one in found] for split, found in findings.items()}
    with _pool() as pool:
        if not whole:
            places = [place for places in repeated(digests).values() for place in places]
            files = [place for place in places if isinstance(parts[place[0]].items[place[1]], str)]
            found = pool.map(file_digest, [parts[split].items[i] for split, i in files])
            for (split, i), digest in zip(files, found):
                digests[split][i] = digest
        equal = list(repeated(digests).values())
        blank = pool.map(_is_blank, [parts[places[0][0]].items[places[0][1]] for places in equal])
    for places in (places for places, one in zip(equal, blank) if one):
        for split, i in places:
            digests[split][i] = b""
    return digests


def _is_blank(item: Any) -> bool:
    return is_blank(decode(item) if isinstance(item, str | EncodedPicture) else item)


def _drop(
    surplus: dict[str, dict[int, str]],
    good: dict[str, Part],
    sound: dict[str, list[Finding]],
    kept: dict[str, list[int]],
    faults: dict[str, dict[int, str]],
    where: str,
) -> list[str]:
    """Take surplus examples out of all arguments, and return notes."""
    notes = []
    for split, reasons in surplus.items():
        if not reasons:
            continue
        part, count = good[split], len(good[split].items)
        why = {i: f"{part.names[i]}: {reason}" for i, reason in reasons.items()}
        left = [i for i in range(count) if i not in why]
        if not left:
            raise ValueError(
                f"{where}: every example in the {split} set is a copy; the first: {next(iter(why.values()))}"
            )
        notes.append(f"{len(why):,} of {count:,} {split} examples left out as copies: {listing(list(why.values()))}")
        faults[split] |= {kept[split][i]: reason for i, reason in why.items()}
        good[split], sound[split] = part.take(left), [sound[split][i] for i in left]
    return notes


def _alike_classes(parts: dict[str, Part]) -> list[str]:
    """Doubts about class names that differ only in case, outer spaces or separators."""
    counts = Counter(target for part in parts.values() for target in part.targets or () if isinstance(target, str))
    spellings: dict[str, list[str]] = {}
    for name in sorted(counts):
        if len(name) > 1:  # a and A are classes of handwritten letters
            spellings.setdefault(alike(name), []).append(name)
    groups = [names for names in spellings.values() if len(names) > 1]
    if not groups:
        return []
    listed = listing([" and ".join(f"{name!r} ({counts[name]:,})" for name in names[:4]) for names in groups])
    return [Doubt(f"classes that differ only in case, spaces or separators: {listed}; if they are one, rename them")]


def _refuse_columns(findings: dict[str, list[Finding]], where: str, channels: int) -> None:
    """Raise a ValueError if all examples are columns of values, as MATLAB's series are."""
    found = [one for part in findings.values() for one in part if one.fault is None]
    if not found or not all(one.is_column and one.header.channels != channels for one in found):
        return
    _, count, grid, _ = found[0].header
    raise ValueError(
        f"{where}: examples of shape {(count, *grid)} would be read as {count:,} channels of a single value, because "
        "channels come first. If such a column is a series of one channel, pass X[..., 0] (in files: save x.ravel()); "
        "if each value is a feature of its own, pass a table (n, features)"
    )


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
        notes.append(f"pictures of {span}: each is resized to the network's input")
    modes = Counter(one.mode for one in found)
    if (deep := modes["I;16"]) and len(modes) > 1:
        notes.append(
            Doubt(
                f"pictures of 8 bits ({len(found) - deep:,}) and grey ones of more ({deep:,}): the former are read as "
                "0 to 255, the latter are scaled by the range of the training pictures, so that equal values may not "
                "mean equal brightness: save all with one depth"
            )
        )
    if halved := sum(one.halved for one in found):
        notes.append(
            Doubt(
                f"{halved:,} of {len(found):,} pictures have 16 bits of colour, or of grey with transparency, of which "
                f"only the upper 8 are read, and no value reaches {_DARK} of these 256 levels: save them as grey of 16 "
                "bits, or as .npy (channels, height, width)"
            )
        )
    modes["L"] += deep
    if modes["L"] and modes["RGB"]:
        grey = "grey, as the training pictures, or to colour for trained weights in colour"
        to = "colour" if any(one.mode == "RGB" for one in findings["train"]) else grey
        notes.append(f"pictures in grey ({modes['L']:,}) and in colour ({modes['RGB']:,}): all are converted to {to}")
    return notes


def _blank(parts: dict[str, Part], findings: dict[str, list[Finding]]) -> list[str]:
    """A note on pictures of a single colour."""
    names = [parts[split].names[i] for split, found in findings.items() for i, one in enumerate(found) if one.blank]
    if not names:
        return []
    share = f"{len(names):,} of {sum(map(len, findings.values())):,} pictures"
    if all(one.blank for one in findings.get("train", (Finding(),))):
        return [Doubt(f"{share}, all training pictures among them, are blank (a single colour): look at some files")]
    return [f"{share} are blank (a single colour): {listing(names)}"]


def _doubtful(found: list[Finding], stored: bool) -> list[str]:
    """Notes on data that may mean something else than they are read as."""
    notes = []
    if found and _channels_are_last(found):
        _, channels, grid, _ = found[0].header
        notes.append(
            f"examples of shape {(channels, *grid)} are read as {channels} channels of {' x '.join(map(str, grid))} "
            f"values: channels come first; if they are last, pass np.moveaxis({'x, -1, 0' if stored else 'X, -1, 1'})"
        )
    elif found and all(one.square for one in found):
        _, channels, grid, _ = found[0].header
        notes.append(
            f"examples of shape {(channels, *grid)} are read as {channels} channels of {grid[0]} values; if they are "
            f"pictures, add an axis of channels: {'x[None]' if stored else 'X[:, None]'}"
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


def _channels_are_last(found: list[Finding]) -> bool:
    """Whether arrays may have their channels last, by their shapes and by the axis along which they are smooth."""
    known = [one.smoothness for one in found if one.smoothness is not None]
    across, along = np.mean(known, axis=0) if known else (0.0, 0.0)
    if all(one.channels_last for one in found):
        short = all(max(2, one.header.grid[-1] ** 2) <= one.header.channels for one in found)
        return short or not (along > _SMOOTH and along - across > _SMOOTHER)
    wide = all(len(one.header.grid) == 1 and one.shape[0] > one.header.grid[0] for one in found)
    return bool(wide and across > _SMOOTH and across - along > _SMOOTHER)


def _smoothness(values: np.ndarray) -> tuple[float, float] | None:
    """The mean correlation of neighbours across channels and along time of (channels, time), if time is the shorter."""
    if values.ndim != 2 or not 2 < values.shape[1] < values.shape[0] or np.isnan(values).any():
        return None
    both = []
    for axis in (0, 1):
        scale = 2 * np.square(values - values.mean(axis, keepdims=True)).mean()
        both.append(1 - float(np.square(np.diff(values, axis=axis)).mean() / scale) if scale > 0 else 0.0)
    return both[0], both[1]


def _unequal(findings: dict[str, list[Finding]], windowed: bool) -> list[str]:
    """Notes on unequal lengths and missing values."""
    notes = []
    longest = [max(axis) for axis in zip(*{one.extent for one in findings.get("train", ())})]
    for split, found in findings.items():
        extents = {one.extent for one in found}
        if len(extents) > 1:
            spans = ", ".join(f"{min(axis):,.6g} to {max(axis):,.6g}" for axis in zip(*extents))
            spans += " s" if found[0].header.rate else ""
            notes.append(
                f"unequal lengths in the {split} set ({spans})"
                f"{'' if windowed else ': shorter examples end in missing values'}"
            )
        # without a training set (examples to predict), `longest` is empty and nothing is longer
        longer = sum(any(n > most for n, most in zip(one.extent, longest)) for one in found)
        if longer and not windowed:
            notes.append(f"longer than all training examples, and resampled down to fit: {longer:,} {split} examples")
        missing = sum(one.missing for one in found)
        if missing:
            share = f"{missing:,} of {len(found):,} {split} examples"
            notes.append(f"missing values in {share}: masked where no channel is observed, else interpolated")
    return notes


def _check(items: Sequence[Any], whole: bool, progress: bool, compare: bool) -> list[Finding]:
    if not isinstance(items[0], str | EncodedPicture):
        return [_check_raw(item, compare) for item in items]
    from tqdm import tqdm

    with _pool() as pool:
        findings = pool.map(partial(_check_stored, whole=whole, compare=compare), items)
        disable = not (progress and len(items) > 500)
        return list(tqdm(findings, "checking files", len(items), leave=False, disable=disable, unit="file"))


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2))  # decoders release Python's lock


def _check_stored(item: str | EncodedPicture, whole: bool, compare: bool) -> Finding:
    """Check a file or a stored picture, completely or by its header."""
    try:
        finding = _check_raw(decode(item), compare) if whole else _check_header(item)
        if compare and not whole and finding.fault is None:
            finding = finding._replace(digest=file_mark(item))
        doubtful = finding.fault is None and isinstance(item, str) and has_doubtful_alpha(item, whole)
        return finding._replace(alpha=doubtful)
    except Exception as error:  # decoders raise any error for a damaged file
        return Finding(fault=describe_fault(error))


def _check_header(item: Any) -> Finding:
    header = header_of(item)
    if header.kind == "signal" and not (header.channels and all(header.grid)):
        return Finding(header, f"is empty (shape {(header.channels, *header.grid)})")
    return Finding(header)


def _check_raw(raw: Raw, compare: bool) -> Finding:
    finding = _check_header(raw)
    if finding.fault is None and compare:
        finding = finding._replace(digest=content_digest(raw))
    if isinstance(raw, Image.Image):
        halved, frames = HALVED in raw.info and np.max(raw.getextrema()) < _DARK, "frames" in raw.info
        return finding._replace(mode=raw.mode, blank=is_blank(raw), halved=halved, frames=frames)
    if finding.fault is not None:
        return finding
    values = raw.values if isinstance(raw, Recording) else raw
    fault, missing = value_fault(values), bool(np.isnan(values).any())
    smoothness = None if fault else _smoothness(values)
    return finding._replace(fault=fault, missing=missing, smoothness=smoothness)
