"""Folders of files, one example a file: finding them, reading one, and looking through all of them for bad ones."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ndvit.data.arrays import Part, read_npy
from ndvit.data.images import image_size, read_image
from ndvit.data.preprocess import Raw, Recording
from ndvit.data.signals import SOUNDS, read_audio, signal_header

MEDIA = {
    "images": (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    "sound files": SOUNDS,
    "npy files": (".npy",),
}
"""Kinds of files that hold one example each, by ending."""

_MEDIUM = {ending: medium for medium, endings in MEDIA.items() for ending in endings}
_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_DECODE_AT_MOST = 50_000  # files that are decoded to find bad ones; beyond that, headers are read

LAYOUT = "expected one folder a class with its files inside, with or without train/ and test/ (or val/) above"


class Look(NamedTuple):
    """What a first look at one example found; `fault` is None for a good one."""

    channels: int = 0  # 0 where any number will do: pictures are converted, recordings can be averaged
    grid: tuple[float, ...] = ()  # positions along each axis; seconds for recordings, whose rates may differ
    missing: bool = False
    fault: str | None = None


def medium(path: str | Path) -> str | None:
    """Return the kind of a file that holds one example ("images", "sound files", "npy files"), None for other files."""
    return _MEDIUM.get(Path(path).suffix.lower())


def read_example(path: str) -> Raw:
    """Read one file as an image, a `Recording` or an array.

    Raises:
        ValueError: the file and what is wrong with it.
    """
    try:
        return _read(path)
    except Exception as error:  # decoders raise whatever they like on a damaged file
        raise ValueError(f"{path}: {_reason(error)}") from error


def _read(path: str) -> Raw:
    if os.path.getsize(path) == 0:
        raise ValueError("is empty (0 bytes)")
    readers: dict[str | None, Callable[[str], Raw]] = {"images": read_image, "sound files": read_audio}
    return readers.get(medium(path), read_npy)(path)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is no picture, or of a format that PIL cannot read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"has too many pixels for a picture (PIL: {error})"
    if isinstance(error, FileNotFoundError | PermissionError):
        return (
            "is not there (any more), or a broken link"
            if isinstance(error, FileNotFoundError)
            else "no permission to read it"
        )
    if type(error).__name__ == "LibsndfileError":
        return f"is no sound file, or damaged ({getattr(error, 'error_string', error)})"
    return str(error) if isinstance(error, ValueError) else f"cannot be read ({error})"


def without_bad(
    parts: dict[str, Part], where: str, skip_bad: bool, progress: bool
) -> tuple[dict[str, Part], list[str]]:
    """Look at every example, and return the good ones with notes on bad ones, unequal lengths and missing values.

    Files are decoded completely; where there are more than 50,000, only their headers are read.

    Raises:
        ValueError: an empty part; bad examples (all of them listed) unless `skip_bad`; a class with bad ones only.
    """
    empty = [split for split, part in parts.items() if not part.items]
    if empty:
        raise ValueError(f"{where}: the {empty[0]} set holds no examples")
    total = sum(len(part.items) for part in parts.values())
    notes = []
    if total > _DECODE_AT_MOST and isinstance(parts[next(iter(parts))].items[0], str):
        notes.append(f"{total:,} files: only their headers were read, so a damaged one may show up in training")
    looks = {split: _look(part.items, total <= _DECODE_AT_MOST, progress) for split, part in parts.items()}
    good = Counter((one.channels, len(one.grid)) for found in looks.values() for one in found if not one.fault)
    channels, axes = good.most_common(1)[0][0] if good else (0, 0)
    bad: list[str] = []
    for split, part in list(parts.items()):
        keep = []
        for i, one in enumerate(looks[split]):
            fault = one.fault
            if not fault and (one.channels, len(one.grid)) != (channels, axes):
                fault = f"{one.channels} channels and {len(one.grid)} axes, most have {channels} and {axes}"
            if fault:
                bad.append(f"{part.names[i]}: {fault}")
            else:
                keep.append(i)
        kept = part.take(keep)
        lost = sorted({str(label) for label in part.labels or ()} - {str(label) for label in kept.labels or ()})
        if skip_bad and (lost or not keep):
            which = f"of class {', '.join(lost)} " if lost else ""
            raise ValueError(f"{where}: every example {which}in the {split} set is bad; the first: {bad[0]}")
        parts, looks[split] = parts | {split: kept}, [looks[split][i] for i in keep]
    if bad and not skip_bad:
        shown = "\n  ".join(bad[:20]) + (f"\n  and {len(bad) - 20:,} more" if len(bad) > 20 else "")
        raise ValueError(
            f"{where}: {len(bad):,} of {total:,} examples cannot be used:\n  {shown}\n"
            "Mend or remove them, or leave them out with --skip-bad (skip_bad=True in Python)."
        )
    if bad:
        notes.append(f"{len(bad):,} of {total:,} examples left out as bad: {listing(bad, 20)}")
    return parts, notes + _uneven(looks)


def _uneven(looks: dict[str, list[Look]]) -> list[str]:
    """Notes on lengths and missing values, which preprocessing will level out."""
    notes = []
    for split, found in looks.items():
        grids = {one.grid for one in found}
        if len(grids) > 1:
            spans = ", ".join(f"{min(axis):,.6g} to {max(axis):,.6g}" for axis in zip(*grids))
            spans += "" if found[0].channels else " s"
            notes.append(f"unequal lengths in the {split} set ({spans}): shorter examples end in missing values")
        longest = [max(axis) for axis in zip(*{one.grid for one in looks.get("train", found)})]
        longer = sum(any(n > most for n, most in zip(one.grid, longest)) for one in found)
        if longer:
            notes.append(f"longer than all training examples, and resampled down to fit: {longer:,} {split} examples")
        missing = sum(one.missing for one in found)
        if missing:
            share = f"{missing:,} of {len(found):,} {split} examples"
            notes.append(f"missing values in {share}: masked where no channel is observed, else interpolated")
    return notes


def _look(items: Sequence[Any], decode: bool, progress: bool) -> list[Look]:
    if not isinstance(items[0], str):
        return [_look_at(item) for item in items]
    from tqdm import tqdm

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:  # decoders let go of Python's lock
        looks = pool.map(_look_into if decode else _look_at_header, items)
        hidden = not (progress and len(items) > 500)
        return list(tqdm(looks, "checking files", len(items), leave=False, disable=hidden, unit="file"))


def _look_into(path: str) -> Look:
    try:
        return _look_at(_read(path))
    except Exception as error:
        return Look(fault=_reason(error))


def _look_at_header(path: str) -> Look:
    try:
        if medium(path) == "images":
            image_size(path)
            return Look()
        channels, grid, rate = signal_header(path)
        fault = None if channels and all(grid) else f"is empty (shape {(channels, *grid)})"
        return Look(0, tuple(n / rate for n in grid), fault=fault) if rate else Look(channels, grid, fault=fault)
    except Exception as error:
        return Look(fault=_reason(error))


def _look_at(raw: Raw) -> Look:
    if isinstance(raw, Image.Image):
        return Look()
    values = raw.values if isinstance(raw, Recording) else raw
    missing = np.isnan(values)
    fault = None
    if values.size == 0:
        fault = f"is empty (shape {values.shape})"
    elif np.isinf(values).any():
        fault = "holds infinite values; mend them, or mark them as missing (NaN)"
    elif missing.all():
        fault = "nothing is observed: all values are missing (NaN)"
    if isinstance(raw, Recording):
        return Look(0, (values.shape[1] / raw.rate,), fault=fault)
    return Look(len(values), values.shape[1:], bool(missing.any()), fault)


def scan(root: Path) -> tuple[dict[str, Part], list[str]]:
    """Find the examples of a folder of classes: {"train": ...} and, where there are such folders, "test" and "val".

    Hidden files are skipped; links that leave the folder and links to folders are never followed. A `train` folder
    makes a split if a `test` or `val` folder stands beside it, or no other folder at all, or if it holds folders only;
    else it is a class.

    Returns:
        The parts, with paths as items, and notes on what was left out.

    Raises:
        ValueError: another layout, an empty class folder, more than one kind of files, no permission.
    """
    scanner = _Scanner(root)
    folders, _ = scanner.children(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = _SPLITS.get(folder.name.lower())
        if split in splits:
            raise ValueError(
                f"{root}: both {splits[split].name}/ and {folder.name}/ could be the {split} set; keep one"
            )
        if split:
            splits[split] = folder
    if splits and "train" not in splits and len(splits) == len(folders):
        raise ValueError(f"{root}: found {', '.join(f.name for f in folders)} but no train folder; {LAYOUT}")
    if "train" in splits and (len(splits) > 1 or len(folders) == 1 or not scanner.children(splits["train"])[1]):
        scanner.leave("beside train/", (f for f in folders if f not in splits.values()))
        parts = {split: scanner.classes(folder) for split, folder in splits.items()}
    else:
        parts = {"train": scanner.classes(root)}
    one_medium([path for part in parts.values() for path in part.items], root)
    return parts, scanner.notes()


def flat(root: Path) -> tuple[Part, list[str]]:
    """Find the examples of a folder of files without classes, and notes on what was left out."""
    scanner = _Scanner(root)
    folders, files = scanner.children(root)
    paths = [str(path) for path in scanner.known(files)]
    scanner.leave("being folders", folders)
    if not paths:
        raise ValueError(f"{root}: holds no file that can be read as an example; known: {known_endings()}")
    one_medium(paths, root)
    return Part(paths, None, [Path(path).name for path in paths]), scanner.notes()


def known_endings() -> str:
    """List the endings of files that hold one example, for messages."""
    return ", ".join(_MEDIUM)


def one_medium(paths: Iterable[str], root: Path) -> None:
    """Raise a ValueError where the paths are of more than one kind of file."""
    counts = Counter(medium(path) for path in paths)
    if len(counts) > 1:
        found = " and ".join(f"{count:,} {kind}" for kind, count in counts.items())
        raise ValueError(f"{root}: holds {found}; one data set needs files of one kind")


def listing(names: Sequence[str], most: int = 3) -> str:
    """Write the first names and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


class _Scanner:
    """Walks a folder in a fixed order and remembers what it left out."""

    def __init__(self, root: Path) -> None:
        self.root, self.inside = root, root.resolve()
        self.left: dict[str, dict[str, None]] = defaultdict(dict)  # in order, each once

    def leave(self, why: str, paths: Iterable[Path]) -> None:
        self.left[why] |= dict.fromkeys(path.relative_to(self.root).as_posix() for path in paths)

    def notes(self) -> list[str]:
        return [f"{len(names):,} left out, {why}: {listing(list(names))}" for why, names in self.left.items() if names]

    def children(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders and the files of a folder, sorted, without hidden ones and links that are not followed."""
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = folder / entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink() and not path.resolve().is_relative_to(self.inside):
                        self.leave("links that leave the folder", [path])
                    elif entry.is_symlink() and path.is_dir():
                        self.leave("links to folders", [path])
                    elif entry.is_dir():
                        folders.append(path)
                    else:
                        files.append(path)
        except PermissionError as error:
            raise ValueError(f"{folder}: no permission to list this folder") from error
        return folders, files

    def known(self, files: list[Path]) -> list[Path]:
        self.leave("of a type not read here", (path for path in files if medium(path) is None))
        return [path for path in files if medium(path)]

    def walk(self, folder: Path) -> list[Path]:
        folders, files = self.children(folder)
        return self.known(files) + [path for inner in folders for path in self.walk(inner)]

    def classes(self, folder: Path) -> Part:
        """Return the files of each class folder, named relative to the root and labelled with the folder's name."""
        folders, files = self.children(folder)
        if not folders:
            found = f"{len(files)} files but no class folders" if files else "nothing"
            raise ValueError(f"{folder}: found {found}; {LAYOUT}")
        self.leave("beside the class folders", files)
        paths, labels = [], []
        for inner in folders:
            members = self.walk(inner)
            if not members:
                more = f" ({'; '.join(self.notes())})" if self.notes() else ""
                raise ValueError(
                    f"{inner}: class folder without examples; add some ({known_endings()}) or remove it{more}"
                )
            paths += members
            labels += [inner.name] * len(members)
        names = [path.relative_to(self.root).as_posix() for path in paths]
        return Part([str(path) for path in paths], list(labels), names)
