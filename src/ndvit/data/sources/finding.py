"""Which reader a source needs: built-in sets, archives, shards, the hub, folders, lists, tables, arrays."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ndvit.config.bounds import nearest
from ndvit.config.reading import CACHE_SIZE, PATH, FileOptions, ReadingOptions, byte_count
from ndvit.data.examples import Part
from ndvit.data.messages import printable
from ndvit.data.sources import folders
from ndvit.data.sources.archives import bundled, download, find_training_file, read_set, read_split_files, unread_beside
from ndvit.data.sources.arrays import as_part, read_arrays
from ndvit.data.sources.columns import Roles
from ndvit.data.sources.files import known_endings, medium
from ndvit.data.sources.hub import is_hub, read_hub
from ndvit.data.sources.labelled_arrays import has_labels_inside, read_labelled, read_unlabelled
from ndvit.data.sources.lists import is_list, read_list
from ndvit.data.sources.shards import is_shards, read_shards
from ndvit.data.sources.tables import TABLES
from ndvit.files import check_regular
from ndvit.tasks.class_names import literal_names


def builtin_sources() -> tuple[str, ...]:
    """Return the names of the sets that need no download."""
    return "digits", *bundled()


def find_parts(
    source: Any, reading: ReadingOptions, progress: bool, with_targets: bool = True
) -> tuple[str, dict[str, Part], list[str]]:
    """Return name, parts ("train", and "test" and "val" if the data has them) and notes of a source.

    Without `with_targets`, a folder unlabelled/ beside those of the classes belongs to the training set.
    """
    roles = Roles.of(reading)
    if isinstance(source, tuple | dict):
        return "arrays", *read_arrays(source, reading.columns)
    if has_labels_inside(source):
        return "arrays", *read_labelled(source, roles, with_targets=with_targets)
    if not isinstance(source, str | Path):
        raise ValueError(
            "a source is a name, a path, (X, y), (X_train, y_train, X_test, y_test), or a table or data set of xarray "
            f"with the labels; got a {type(source).__name__}"
        )
    if source == "":
        raise ValueError("the source is an empty text; pass a name or a path (the current folder is written .)")
    text, path = str(source), Path(source).expanduser()
    if isinstance(source, str) and text.lower() in builtin_sources():
        notes = [f"the built-in {text.lower()}; for the files at that path, write ./{text}"] if path.exists() else []
        if text.lower() == "digits":
            return "digits", {"train": _digits()}, notes
        name, parts, more = read_set(bundled()[text.lower()], roles)
        return name.lower(), parts, notes + more
    if text.lower().startswith("ucr:"):
        return read_set(download(text[4:].strip()), roles)
    if is_shards(text):
        return read_shards(text, cache_size(reading), with_targets=with_targets)
    if is_hub(text):
        return text.partition("?")[0], *read_hub(text, with_targets=True, progress=progress)
    if path.is_dir():
        table = find_training_file(path)
        if table:
            name, parts, notes = read_set(table, roles)
            return name, parts, notes + unread_beside(table)
        if with_targets and _labels_need_no_folders(path, reading):
            parts, notes = read_split_files(path, roles)
            if not parts:
                part, notes = folders.read_flat_folder(path)
                parts = {"train": part}
            return path.resolve().name, parts, notes
        parts, notes = folders.read_folder(
            path, with_unlabelled=not with_targets, labels_in_paths=is_path_pattern(reading.label)
        )
        named = {split: part._replace(targets=literal_names(part.targets or [])) for split, part in parts.items()}
        return path.resolve().name, named, notes
    if path.exists():
        check_file(path)
        if is_list(path):
            columns, labels_inside = reading.columns, not is_path_pattern(reading.label)
            found = read_list(
                path, with_targets=labels_inside, skip_bad=reading.skip_bad, labels=roles.label, columns=columns
            )
            return path.stem, *found
        return read_set(check_table(path), roles, with_targets=with_targets)
    close = nearest(text.lower(), builtin_sources())
    raise FileNotFoundError(
        f"{printable(text)}: no such file or folder, and no built-in source."
        f"{f' Did you mean {close}?' if close else ''} "
        f"Built in: {', '.join(builtin_sources())}. Other sets of the UCR archive: ucr:NAME; of the Hugging Face hub: "
        "hf:owner/name"
    )


def find_any_parts(source: Any, reading: ReadingOptions, progress: bool) -> tuple[str, dict[str, Part], list[str]]:
    """As `find_parts`, for data with labels or without: also a folder of files, a list of paths, or X alone."""
    if not isinstance(source, str | Path | tuple | dict) and not has_labels_inside(source):
        part, notes = read_unlabelled(source, Roles.of(reading), 0)
        return "arrays", {"train": part}, notes
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    builtin = isinstance(source, str) and source.lower() in builtin_sources()
    flat = path is not None and path.is_dir() and not any(inner.is_dir() for inner in path.iterdir())
    if path is not None and flat and not builtin and find_training_file(path) is None:
        part, notes = folders.read_flat_folder(path)
        return path.resolve().name, {"train": part}, notes
    try:
        return find_parts(source, reading, progress, with_targets=False)
    except ValueError as error:
        if path is None or not is_list(path):
            raise
        fault = error
    try:
        parts, notes = read_list(path, with_targets=False, skip_bad=reading.skip_bad)
    except ValueError:
        raise fault from None
    return path.stem, parts, notes


def is_path_pattern(label: Any) -> bool:
    """Whether the option `label` names a part of the paths of files."""
    return isinstance(label, str) and label.startswith(PATH)


def _labels_need_no_folders(path: Path, reading: ReadingOptions) -> bool:
    """Whether a folder without folders has recordings, which may have labels inside, or labels are parts of paths."""
    inside = [inner for inner in path.iterdir() if not inner.name.startswith(".")]
    if not inside or any(inner.is_dir() for inner in inside):
        return False
    media = {medium(inner) for inner in inside} - {None}
    return is_path_pattern(reading.label) or bool(media and media <= {"tables", "recordings"})


def cache_size(reading: FileOptions) -> int:
    """Bytes of the cache of shards."""
    return byte_count(CACHE_SIZE if reading.cache_size is None else reading.cache_size)


def _digits() -> Part:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pixels = np.round(x.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # the values are counts from 0 to 16
    return as_part([Image.fromarray(image) for image in pixels], y, "digits")


def check_file(path: Path) -> None:
    """Raise a ValueError for a path that is no regular file, such as a pipe."""
    try:
        check_regular(path)
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from None


def check_table(path: Path) -> Path:
    """Return the path of a file of many examples.

    Raises:
        ValueError: for another kind of file, with what to do.
    """
    if path.suffix.lower() in TABLES:
        return path
    if medium(path):
        raise ValueError(f"{printable(str(path))}: is a single example; to train, {folders.LAYOUT}")
    known = f"{', '.join(TABLES)} for many examples, {known_endings()} for one each, .csv for a list of files"
    raise ValueError(f"{printable(str(path))}: unknown type of file {path.suffix!r}; known: {known}")
