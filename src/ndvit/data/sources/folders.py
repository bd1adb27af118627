"""Folders of files, one example a file, whose folder names are the targets."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ndvit.data.examples import Part
from ndvit.data.messages import listing, printable
from ndvit.data.sources.files import SPLITS, check_one_medium, known_endings, medium

LAYOUT = (
    "expected one folder for each class with its files inside, with or without train/ and test/ (or val/) above; or "
    "pass a .csv with the columns path and label"
)


def read_folder(root: Path) -> tuple[dict[str, Part], list[str]]:
    """Find the examples of a folder of class folders: {"train": ...}, or its splits.

    Hidden files are skipped; links that leave the folder and links to folders are never followed. Folders are splits by
    their names (see `SPLITS`) if there are no others, or if one of them is `train` and there is another split or
    `train` has folders only; otherwise they are classes.

    Returns:
        The parts, with paths as items, and notes on ignored files.

    Raises:
        ValueError: for another layout, an empty class folder, more than one kind of files, or missing permission.
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
    training = "train" in splits and (len(splits) > 1 or not scanner.children(splits["train"])[1])
    if splits and (training or len(splits) == len(folders)):
        scanner.ignore("beside train/", (f for f in folders if f not in splits.values()))
        parts = {split: scanner.class_folders(folder) for split, folder in splits.items()}
    else:
        parts = {"train": scanner.class_folders(root)}
    check_one_medium([path for part in parts.values() for path in part.items], root)
    return parts, scanner.notes()


def read_flat_folder(root: Path) -> tuple[Part, list[str]]:
    """Find the examples of a folder of files without targets, and notes on ignored files."""
    scanner = _Scanner(root)
    folders, files = scanner.children(root)
    paths = [str(path) for path in scanner.without_tables(scanner.known(files))]
    scanner.ignore("folders", folders)
    if not paths:
        if any(medium(path) for folder in folders for path in scanner.children(folder)[1]):
            raise ValueError(
                f"{root}: has no file that can be read as an example, but folders of them; "
                f"pass {root}/*/ to predict, or evaluate it if its folders are classes"
            )
        raise ValueError(f"{root}: has no file that can be read as an example; known: {known_endings()}")
    check_one_medium(paths, root)
    return Part(paths, None, [Path(path).name for path in paths]), scanner.notes()


class _Scanner:
    """Walks a folder in a fixed order and records the ignored files."""

    def __init__(self, root: Path) -> None:
        self.root, self.resolved = root, root.resolve()
        self.ignored: dict[str, dict[str, None]] = defaultdict(dict)  # by reason; in order, each name once

    def ignore(self, reason: str, paths: Iterable[Path]) -> None:
        self.ignored[reason] |= dict.fromkeys(printable(path.relative_to(self.root).as_posix()) for path in paths)

    def notes(self) -> list[str]:
        return [
            f"{len(names):,} left out, {why}: {listing(list(names))}" for why, names in self.ignored.items() if names
        ]

    def children(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders and the files of a folder, sorted, without hidden ones and links that are not followed."""
        folders, files = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = folder / entry.name
                    if entry.name.startswith("."):
                        continue
                    # not Path.resolve, which raises for circular links
                    if entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.resolved):
                        self.ignore("links that leave the folder", [path])
                    elif entry.is_symlink() and path.is_dir():
                        self.ignore("links to folders", [path])
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        files.append(path)
        except PermissionError as error:
            raise ValueError(f"{folder}: no permission to list this folder") from error
        return folders, files

    def known(self, files: list[Path]) -> list[Path]:
        self.ignore("of an unknown type", (path for path in files if medium(path) is None))
        return [path for path in files if medium(path)]

    def without_tables(self, files: list[Path]) -> list[Path]:
        """Ignore .npz files beside examples of another kind: they are seldom examples themselves."""
        tables = [path for path in files if medium(path) == "npz files"]
        if len(tables) in (0, len(files)):
            return files
        self.ignore("beside files of another kind", tables)
        return [path for path in files if path not in set(tables)]

    def walk(self, folder: Path) -> list[Path]:
        folders, files = self.children(folder)
        return self.known(files) + [path for inner in folders for path in self.walk(inner)]

    def class_folders(self, folder: Path) -> Part:
        """Return the files of each class folder, named relative to the root; the target is the folder's name."""
        folders, files = self.children(folder)
        if not folders:
            found = f"{len(files)} files but no class folders" if files else "nothing"
            raise ValueError(f"{folder}: found {found}; {LAYOUT}")
        self.ignore("beside the class folders", files)
        paths: list[Path] = []
        targets: list[str] = []
        for inner in folders:
            members = self.without_tables(self.walk(inner))
            if not members:
                more = f" ({'; '.join(self.notes())})" if self.notes() else ""
                raise ValueError(
                    f"{printable(str(inner))}: class folder without examples; "
                    f"add some ({known_endings()}) or remove it{more}"
                )
            paths += members
            targets += [printable(inner.name)] * len(members)
        names = [path.relative_to(self.root).as_posix() for path in paths]
        return Part([str(path) for path in paths], targets, names)
