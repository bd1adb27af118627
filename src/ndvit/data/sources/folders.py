"""Folders of files, one example a file, whose folder names are the targets."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ndvit.config.bounds import counted
from ndvit.data.examples import Part
from ndvit.data.messages import Doubt, LayoutDoubt, listing, printable
from ndvit.data.name_parts import label_hint
from ndvit.data.sources.files import check_one_medium, known_endings, medium, short
from ndvit.data.sources.split_names import SplitName, are_companions, are_pictures, companions, parse_split

LAYOUT = (
    "expected one folder for each class with its files inside, with or without train/ and test/ (or val/) above; or "
    "pass a .csv with the columns path and label"
)
_NOT_CLASSES = (
    "if they are splits, put the class folders into train/ and test/; if their examples have no labels, move them away "
    "or into a folder unlabelled/; if they are classes, put all class folders into a folder train/, or pass a .csv "
    "with the columns path and label; if folders inside are the classes, use --label 'path:*/{label}/*' (label=)"
)
_BESIDE = "beside train/"
_BESIDE_OTHERS = ("tables", "npz files", "recordings")
"""Kinds of files that are ignored beside others, such as lists, features and annotations of pictures."""
_DEEPEST = 100  # folders below each other
_LISTED = 20  # inner folders in a note
_SYSTEM = {
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", ".@__thumb", ".thumbnails", "thumbnails", "__macosx"),
    *("__pycache__", ".ipynb_checkpoints", "lost+found", "$recycle.bin", "system volume information", ".trash"),
}
"""Names, in lower case, of folders that operating systems and tools put beside data, such as thumbnails."""


def read_folder(
    root: Path, with_unlabelled: bool = False, labels_in_paths: bool = False
) -> tuple[dict[str, Part], list[str]]:
    """Find the examples of a folder of class folders: {"train": ...}, or its splits.

    Folders are splits by their names, in any spelling (see `split_names`), if there are no others, or if one of them
    is the training set and there is another split or it has no files of its own; otherwise they are classes. A folder
    that is the only one, and has folders only, is replaced by these. Below a split, every name is that of a class.
    Links that leave the folder and links to folders are never followed.

    Args:
        root: the folder.
        with_unlabelled: add the files of folders of unlabelled examples to the training set, with None as their target;
            otherwise they are ignored.
        labels_in_paths: the labels are other parts of the paths than the outer folders, so that splits need no class
            folders, and folders with names such as part1 are no doubt.

    Returns:
        The parts, with paths as items, and notes on ignored files and unusual layouts; doubtful ones are `Doubt`s.

    Raises:
        ValueError: for another layout, folders that may be splits or classes, an empty class folder, more than one kind
            of files, folders that are too deep, or missing permission.
    """
    scanner = _Scanner(root, labels_in_paths)
    top = scanner.unwrapped(root, keep_splits=True)
    splits, unlabelled = scanner.splits(top)
    if not with_unlabelled:
        scanner.ignore("without labels, by their names", unlabelled)
    parts = {
        split: scanner.class_folders(folder, without=unlabelled) for split, folder in (splits or {"train": top}).items()
    }
    scanner.doubt_classes_beside_splits(parts)
    if with_unlabelled and "train" in parts:
        paths = [path for folder in unlabelled for path in scanner.without_tables(scanner.walk(folder))]
        train, names = parts["train"], [path.relative_to(root).as_posix() for path in paths]
        targets = [*(train.targets or []), *[None] * len(paths)]
        parts["train"] = Part([*train.items, *map(str, paths)], targets, [*train.names, *names])
    check_one_medium([path for part in parts.values() for path in part.items], root)
    return parts, scanner.notes()


def read_flat_folder(root: Path) -> tuple[Part, list[str]]:
    """Find the examples of a folder of files without targets, and notes on ignored files."""
    scanner = _Scanner(root)
    folders, files = scanner.children(root)
    paths = [str(path) for path in scanner.without_tables(scanner.known(files))]
    scanner.ignore("folders", folders)
    where = short(str(root))
    if not paths:
        if any(medium(path) for folder in folders for path in scanner.children(folder)[1]):
            raise ValueError(
                f"{where}: has no file that can be read as an example, but folders of them; "
                f"pass {where}/*/ to predict, or evaluate it if its folders are classes"
            )
        raise ValueError(f"{where}: has no file that can be read as an example; known: {known_endings()}")
    check_one_medium(paths, root)
    return Part(paths, None, [Path(path).name for path in paths]), scanner.notes()


class _Scanner:
    """Walks a folder in a fixed order, decides what its folders mean, and records everything that is not read."""

    def __init__(self, root: Path, labels_in_paths: bool = False) -> None:
        self.root, self.resolved, self.labels_in_paths = root, root.resolve(), labels_in_paths
        self.ignored: dict[str, dict[str, None]] = defaultdict(dict)  # by reason; in order, each name once
        self.inner: Counter[str] = Counter()  # files below a folder inside a class folder, by its name
        self.masks: Counter[str] = Counter()  # files that go with pictures and are not read, by folder
        self.facts: list[str] = []
        self.listed: dict[Path, tuple[list[Path], list[Path]]] = {}

    def name(self, path: Path) -> str:
        """The name of a path below the root in messages."""
        return short(path.relative_to(self.root).as_posix(), 100)

    def ignore(self, reason: str, paths: Iterable[Path]) -> None:
        self.ignored[reason] |= dict.fromkeys(map(self.name, paths))

    def notes(self) -> list[str]:
        notes = list(self.facts)
        notes += [
            f"{len(names):,} left out, {why}: {listing(list(names))}" for why, names in self.ignored.items() if names
        ]
        if self.masks:
            notes.append(
                Doubt(
                    f"{counted(self.masks.total(), 'file')} left out that may be masks or labels of others: "
                    f"{_counts(self.masks)}; if they are examples, rename them or their folders"
                )
            )
        if self.inner and not self.labels_in_paths:
            notes.append(f"files in folders inside a class folder belong to that class: {_counts(self.inner)}")
        return notes

    # ---------------------------------------------------------------- walking

    def children(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders and the files of a folder, sorted, without hidden ones and links that are not followed."""
        if folder not in self.listed:
            try:
                with os.scandir(folder) as entries:
                    self.listed[folder] = self._sort(folder, sorted(entries, key=lambda entry: entry.name))
            except OSError as error:
                denied = isinstance(error, PermissionError)
                fault = "no permission to list this folder" if denied else f"cannot be listed ({error.strerror})"
                raise ValueError(f"{short(str(folder))}: {fault}") from error
        return self.listed[folder]

    def _sort(self, folder: Path, entries: "list[os.DirEntry[str]]") -> tuple[list[Path], list[Path]]:
        folders, files = [], []
        for entry in entries:
            path = folder / entry.name
            if entry.name.lower() in _SYSTEM:
                self.ignore("of the system, or thumbnails", [path])
            elif entry.name.startswith("."):
                if entry.is_dir(follow_symlinks=False) or medium(entry.name):
                    self.ignore("hidden", [path])
            # not Path.resolve, which raises for circular links
            elif entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self.resolved):
                self.ignore("links that leave the folder", [path])
            elif entry.is_symlink() and path.is_dir():
                self.ignore("links to folders", [path])
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(path) or not os.path.exists(path):
                # a broken link is a bad example
                files.append(path)
            else:
                self.ignore("devices, pipes or sockets", [path])
        return folders, files

    def known(self, files: list[Path]) -> list[Path]:
        self.ignore("of an unknown type", (path for path in files if medium(path) is None))
        return [path for path in files if medium(path)]

    def has_examples(self, folder: Path) -> bool:
        """Whether there are examples directly in a folder; tables beside folders are lists and metadata."""
        folders, files = self.children(folder)
        return any(medium(path) not in (None, *(("tables",) if folders else ())) for path in files)

    def without_tables(self, files: list[Path]) -> list[Path]:
        """Ignore tables, .npz files and recordings beside examples of another kind: they seldom are examples, too."""
        for kind in _BESIDE_OTHERS:
            tables = [path for path in files if medium(path) == kind]
            if len(tables) not in (0, len(files)):
                self.ignore("beside files of another kind", tables)
                files = [path for path in files if path not in set(tables)]
        return files

    def walk(self, folder: Path) -> list[Path]:
        """The examples in a folder and in those below it, without masks that lie beside pictures."""
        found: list[Path] = []
        waiting = [(folder, "")]
        while waiting:
            current, above = waiting.pop()
            if len(current.parts) - len(self.root.parts) > _DEEPEST:
                raise ValueError(
                    f"{short(str(self.root))}: has more than {_DEEPEST} folders below each other, "
                    f"{self.name(current)}: remove them, or pass a .csv with the columns path and label"
                )
            folders, files = self.children(current)
            files = self._without_masks(current, self.known(files))
            found += files
            if above and files:
                self.inner[above] += len(files)
            masks = [f for f in folders if are_companions(f.name)]
            if masks and (files or any(are_pictures(f.name) for f in folders)):
                for path in masks:
                    self.count_masks(path)
                folders = [f for f in folders if f not in masks]
            waiting += [(path, above or self.name(path)) for path in reversed(folders)]
        return found

    def count_masks(self, folder: Path) -> None:
        """Record a folder of masks, which is not read; without readable files, as ignored."""
        waiting, count = [folder], 0
        while waiting and len(waiting[-1].parts) - len(self.root.parts) <= _DEEPEST:
            folders, files = self.children(waiting.pop())
            count += sum(medium(path) is not None for path in files)
            waiting += folders
        if count:
            self.masks[self.name(folder)] += count
        else:
            self.ignore("beside pictures", [folder])

    def _without_masks(self, folder: Path, files: list[Path]) -> list[Path]:
        """Leave out files such as a_mask.png beside a.png."""
        found = companions(path.stem for path in files)
        for stem, base in found.items():
            self.masks[f"{self.name(folder)}/*{short(stem.removeprefix(base), 20)}"] += 1
        return [path for path in files if path.stem not in found] if found else files

    # ---------------------------------------------------------------- meaning

    def unwrapped(self, folder: Path, keep_splits: bool = False) -> Path:
        """Descend into a folder of folders that is the only one, or has pictures beside folders of masks.

        Args:
            folder: where to begin.
            keep_splits: stay above a folder whose name is that of a split.
        """
        for _ in range(_DEEPEST):
            folders, _ = self.children(folder)
            pictures = [f for f in folders if are_pictures(f.name)]
            masks = [f for f in folders if are_companions(f.name)]
            together = len(pictures) == 1 and masks and len(masks) + 1 == len(folders)
            inner = pictures[0] if together else folders[0] if len(folders) == 1 else None
            split = parse_split(inner.name) if inner else None
            if inner is None or self.has_examples(folder) or (keep_splits and split and not split.rest):
                return folder
            if not self.children(inner)[0] or self.has_examples(inner):
                if together and self.has_examples(inner):
                    raise ValueError(
                        f"{short(str(folder))}: the folders {_slashes([*pictures, *masks])} look like pictures and "
                        f"their masks or labels, not like classes; {LAYOUT}"
                    )
                return folder
            for path in masks if together else ():
                self.count_masks(path)
            if not together:
                self.facts.append(f"{self.name(inner)}/ is the only folder: the folders in it are used")
            folder = inner
        return folder

    def splits(self, root: Path) -> tuple[dict[str, Path], list[Path]]:
        """Find the splits among the folders of the root.

        Returns:
            The splits, none if the folders are classes; and the folders of unlabelled examples beside them.

        Raises:
            ValueError: for folders that may be splits or classes.
        """
        folders, _ = self.children(root)
        named = {f: found for f in folders if (found := parse_split(f.name))}
        group = _splits_of_one_set(named)
        splits: dict[str, Path] = {}
        for folder, split in group.items():
            if split in splits:
                raise ValueError(
                    f"{short(str(root))}: both {_slashes([splits[split], folder], ' and ')} could be the {split} set; "
                    "keep one"
                )
            splits[split] = folder
        rest = {named[f].rest for f in group}
        unlabelled = [f for f, found in named.items() if found.split in ("unlabelled", "new") and found.rest in rest]
        others = [f for f in folders if f not in group and f not in unlabelled]
        training = "train" in splits and (len(splits) > 1 or not self.has_examples(splits["train"]))
        if not splits or not (training or not others):
            unlabelled = [f for f, found in named.items() if found == ("unlabelled", "")]
            if len(folders) - len(unlabelled) < 2:
                unlabelled = []  # such as the classes labelled and unlabelled
            self._refuse_doubtful(root, [f for f in folders if f not in unlabelled], named)
            return {}, unlabelled
        for path in others:
            if are_companions(path.name):
                self.count_masks(path)
            else:
                self.ignore(_BESIDE, [path])
        unusual = [f"{self.name(f)}/ is the {split} set" for split, f in splits.items() if split != f.name.lower()]
        if unusual:
            self.facts.append(f"splits by the names of the folders: {', '.join(unusual)}")
        return splits, unlabelled

    def _refuse_doubtful(self, root: Path, folders: list[Path], named: dict[Path, SplitName]) -> None:
        """Raise a ValueError for class folders of which some may be splits."""
        if len(folders) < 2:
            return
        parts = [f for f in folders if f in named and named[f].split == "part" and not named[f].rest]
        doubtful = parts if len(parts) == len(folders) and not self.labels_in_paths else []
        certain: list[Path] = []  # a split has class folders inside, so a training set of files is a class
        for folder in folders:
            found, flat = named.get(folder), self.has_examples(folder)
            if found is None or found.split == "part" or (found.rest and flat):
                continue
            (certain if found.split == "train" and flat else doubtful).append(folder)
        if doubtful:
            raise ValueError(
                f"{short(str(root))}: the folders {_slashes(doubtful)} look like splits or parts of the data, the "
                f"folders {_slashes([f for f in folders if f not in doubtful]) or 'in them'} like classes; "
                f"{_NOT_CLASSES}"
            )
        for folder in certain:
            kind = "one of the folders of files" if self.labels_in_paths else "a class"
            self.facts.append(
                Doubt(f"{self.name(folder)}/ is read as {kind}, but its name may look like a split; {_NOT_CLASSES}")
            )

    def doubt_classes_beside_splits(self, parts: dict[str, Part]) -> None:
        """Doubt folders that are left out beside the splits but have the name of a class."""
        classes = {target for part in parts.values() for target in part.targets or ()}
        if same := [name for name in self.ignored.get(_BESIDE, ()) if name in classes]:
            self.facts.append(
                Doubt(
                    f"the folders {listing(same)} are left out because they are beside the splits, but classes have "
                    "these names: move their files into the splits"
                )
            )

    def class_folders(self, folder: Path, without: Sequence[Path] = ()) -> Part:
        """Return the files of each class folder, named relative to the root; the target is the folder's name."""
        folder = self.unwrapped(folder)
        folders, files = self.children(folder)
        folders = [f for f in folders if f not in without]
        if not folders and files and self.labels_in_paths:
            items = list(map(str, self.without_tables(self.known(files))))
            return Part(items, None, [Path(item).relative_to(self.root).as_posix() for item in items])
        if not folders:
            hint = label_hint([path.name for path in files if medium(path)])
            found = f"{counted(len(files), 'file')} but no class folders" if files else "nothing"
            raise ValueError(
                f"{short(str(folder))}: found {found}; {f'{hint}; ' * bool(hint)}{LAYOUT}; a folder of examples "
                "without labels may be called unlabelled/ and is left out"
            )
        self.ignore("beside the class folders", files)
        self._check_order(folder, folders)
        paths: list[Path] = []
        targets: list[str] = []
        for inner in folders:
            members = self.without_tables(self.walk(inner))
            if not members:
                notes = self.notes()
                more = f" ({'; '.join(notes)[:1000]})" if notes else ""
                raise ValueError(
                    f"{short(str(inner))}: class folder without examples; "
                    f"add some ({known_endings()}) or remove it{more}"
                )
            paths += members
            targets += [printable(inner.name)] * len(members)
        items = list(map(str, paths))
        below = len(str(self.root / "x")) - 1  # of the root in each path; Path.relative_to is slow
        return Part(items, targets, [item[below:].replace(os.sep, "/") for item in items])

    def _check_order(self, folder: Path, classes: list[Path]) -> None:
        """Refuse splits inside of class folders, and doubt classes that all have the same inner folders."""
        if len(classes) < 2 or any(self.has_examples(f) for f in classes):
            return
        inner = [{f.name for f in self.children(name)[0] if not are_companions(f.name)} for name in classes]
        same = sorted(set.intersection(*inner))
        example = _slashes([classes[0] / name for name in same[:2]], base=folder)
        if len({found.split for name in same if (found := parse_split(name)) and not found.rest}) > 1:
            raise ValueError(
                f"{short(str(folder))}: every class folder has folders that look like splits, such as {example}; "
                "put the splits above the classes (train/CLASS), or pass a .csv with the columns path, label and split"
            )
        if len(same) > 1:
            self.facts.append(
                LayoutDoubt.of(
                    f"the classes are {_slashes(classes)}, but the folders inside have equal names, such as {example}: "
                    "if those are the classes, and the outer folders look like splits or groups, use --label "
                    "'path:*/{label}/*' (label=), move them up, or pass a .csv with the columns path and label",
                    same,
                )
            )


def _splits_of_one_set(named: dict[Path, SplitName]) -> dict[Path, str]:
    """The folders that are splits of the same set, such as train and test, or seg_train and seg_test."""
    groups: dict[str, dict[Path, str]] = defaultdict(dict)
    for folder, found in named.items():
        if found.split in ("train", "val", "test"):
            groups[found.rest][folder] = found.split
    if "" in groups:
        return groups[""]
    several = {rest: group for rest, group in groups.items() if len(set(group.values())) > 1}
    pictures = [group for rest, group in several.items() if not are_companions(rest)]  # not train_masks, test_masks
    chosen = pictures or list(several.values())
    return chosen[0] if len(chosen) == 1 else {}


def _slashes(folders: Iterable[Path], between: str = ", ", base: Path | None = None, most: int = 6) -> str:
    """Names of folders, each with a slash."""
    names = [f"{short((f.relative_to(base).as_posix() if base else f.name), 60)}/" for f in folders]
    return between.join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _counts(counter: "Counter[str]") -> str:
    return listing([f"{name} ({count:,})" for name, count in counter.items()], _LISTED)
