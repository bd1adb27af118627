"""Folders of files, one example a file: finding them by their folders and endings, and reading one."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ndvit.data.examples import Encoded
from ndvit.data.preprocess.base import Raw
from ndvit.data.preprocess.images import read_image
from ndvit.data.preprocess.signals import SOUNDS, read_audio
from ndvit.data.sources.arrays import Part, read_npy
from ndvit.data.sources.rasters import TIFFS, read_raster

MEDIA = {
    "images": (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    "sound files": SOUNDS,
    "npy files": (".npy",),
    "npz files": (".npz",),
}
"""Kinds of files that hold one example each, by ending."""

_MEDIUM = {ending: medium for medium, endings in MEDIA.items() for ending in endings}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
"""What folders and columns call the parts of a data set."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

LAYOUT = (
    "expected one folder a class with its files inside, with or without train/ and test/ (or val/) above; or give a "
    ".csv with the columns path and label"
)


def medium(path: str | Path) -> str | None:
    """Return the kind of a file that holds one example ("images", "sound files", "npy files"), None for other files."""
    return _MEDIUM.get(Path(path).suffix.lower())


def read_example(item: str | Encoded) -> Raw:
    """Read one file, or one row of a table, as an image, a `Recording` or an array.

    Raises:
        ValueError: the file and what is wrong with it.
    """
    try:
        return decode(item)
    except Exception as error:  # decoders raise whatever they like on a damaged file
        raise ValueError(f"{printable(str(item))}: {reason(error)}") from error


def decode(item: str | Encoded) -> Raw:
    """Read one file or row, raising what its decoder raises: see `reason`."""
    if isinstance(item, Encoded):
        return read_image(item.open())
    path = item
    if os.path.getsize(path) == 0:
        raise ValueError("is empty (0 bytes)")
    kind = medium(path)
    if kind == "images":
        raster = read_raster(path) if path.lower().endswith(TIFFS) else None
        return read_image(path) if raster is None else raster
    return read_audio(path) if kind == "sound files" else read_npy(path)


def reason(error: Exception) -> str:
    """Say what is wrong with a file, from what its decoder raised."""
    if isinstance(error, UnidentifiedImageError):
        return "is no picture, or of a format that PIL cannot read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"has too many pixels for a picture (PIL: {error})"
    if isinstance(error, FileNotFoundError):
        return "is not there (any more), or a broken link"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if type(error).__name__ == "LibsndfileError":
        return f"is no sound file, or damaged ({getattr(error, 'error_string', error)})"
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return f"cannot be read ({str(error) or type(error).__name__})"


def scan(root: Path) -> tuple[dict[str, Part], list[str]]:
    """Find the examples of a folder of classes: {"train": ...}, or the parts of one with folders of splits.

    Hidden files are skipped; links that leave the folder and links to folders are never followed. Folders are splits by
    their names (see `SPLITS`) if there are no others, or if one of them is `train` and stands beside another split or
    holds folders only; else they are classes.

    Returns:
        The parts, with paths as items, and notes on what was left out.

    Raises:
        ValueError: another layout, an empty class folder, more than one kind of files, no permission.
    """
    scanner = _Scanner(root)
    folders, _ = scanner.children(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        if split in splits:
            raise ValueError(
                f"{root}: both {splits[split].name}/ and {folder.name}/ could be the {split} set; keep one"
            )
        if split:
            splits[split] = folder
    known = "train" in splits and (len(splits) > 1 or not scanner.children(splits["train"])[1])
    if splits and (known or len(splits) == len(folders)):
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
    paths = [str(path) for path in scanner.main(scanner.known(files))]
    scanner.leave("being folders", folders)
    if not paths:
        if any(medium(path) for folder in folders for path in scanner.children(folder)[1]):
            raise ValueError(
                f"{root}: holds no file that can be read as an example, but folders of them; "
                f"give {root}/*/ to predict, or evaluate it where its folders are classes"
            )
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


def printable(text: str) -> str:
    """Escape line breaks and other control characters, undecodable bytes and changes of direction, as repr does."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


class _Scanner:
    """Walks a folder in a fixed order and remembers what it left out."""

    def __init__(self, root: Path) -> None:
        self.root, self.inside = root, root.resolve()
        self.left: dict[str, dict[str, None]] = defaultdict(dict)  # in order, each once

    def leave(self, why: str, paths: Iterable[Path]) -> None:
        self.left[why] |= dict.fromkeys(printable(path.relative_to(self.root).as_posix()) for path in paths)

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
                    # not Path.resolve, which raises for links in a circle
                    if entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.inside):
                        self.leave("links that leave the folder", [path])
                    elif entry.is_symlink() and path.is_dir():
                        self.leave("links to folders", [path])
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        files.append(path)
        except PermissionError as error:
            raise ValueError(f"{folder}: no permission to list this folder") from error
        return folders, files

    def known(self, files: list[Path]) -> list[Path]:
        self.leave("of a type not read here", (path for path in files if medium(path) is None))
        return [path for path in files if medium(path)]

    def main(self, files: list[Path]) -> list[Path]:
        """Leave out .npz files that lie beside examples of another kind: they are seldom examples themselves."""
        tables = [path for path in files if medium(path) == "npz files"]
        if len(tables) in (0, len(files)):
            return files
        self.leave("beside files of another kind", tables)
        return [path for path in files if path not in set(tables)]

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
        paths: list[Path] = []
        labels: list[str | None] = []
        for inner in folders:
            members = self.main(self.walk(inner))
            if not members:
                more = f" ({'; '.join(self.notes())})" if self.notes() else ""
                raise ValueError(
                    f"{printable(str(inner))}: class folder without examples; "
                    f"add some ({known_endings()}) or remove it{more}"
                )
            paths += members
            labels += [inner.name] * len(members)
        names = [path.relative_to(self.root).as_posix() for path in paths]
        return Part([str(path) for path in paths], labels, names)
