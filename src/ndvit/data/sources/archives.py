"""Sets of the UCR and UEA archives, NAME_TRAIN with NAME_TEST beside it: in a folder, in aeon's package, downloaded.

A file without a test file beside it is a complete set.
"""

import difflib
import importlib.util
import os
import tempfile
from functools import cache
from itertools import takewhile
from pathlib import Path

from ndvit.data.examples import Part
from ndvit.data.messages import Doubt, listing, unread
from ndvit.data.sources.columns import NO_ROLES, Roles
from ndvit.data.sources.split_names import split_of
from ndvit.data.sources.tables import TABLES, read_table


def read_set(
    path: Path, roles: Roles = NO_ROLES, *, with_targets: bool = True
) -> tuple[str, dict[str, Part], list[str]]:
    """Read a file of examples, and for a _TRAIN file the _TEST file beside it; return name, parts and notes."""
    (parts, notes), other = read_table(path, roles, with_targets=with_targets), _test_file(path)
    if other and "test" not in parts:
        found, more = read_table(other, roles, with_targets=with_targets)
        parts["test"] = found[next(split for split in ("test", "train", "val") if split in found)]
        note = f"the archive's own split: {path.name} to train, {other.name} to test"
        return path.stem[: -len("_train")], parts, [note, *dict.fromkeys([*notes, *more])]
    beside = f", and not {other.name}" if other else ""
    return path.stem, parts, ([f"the split in {path.name}{beside}"] if "test" in parts else []) + notes


def read_split_files(folder: Path, roles: Roles) -> tuple[dict[str, Part], list[str]]:
    """Read train.csv, test.csv and the like, one file for each split; nothing where that is not the layout."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES and path.is_file()]
    splits = {split: path for path in files if (split := split_of(path.stem))}
    if "train" not in splits or len(splits) < 2 or len(splits) < len(files):
        return {}, []
    parts: dict[str, Part] = {}
    notes: dict[str, None] = {}
    for split, path in splits.items():
        found, more = read_table(path, roles)
        if "train" not in found or len(found) > 1:
            raise ValueError(f"{path}: has splits inside ({', '.join(found)}); pass this file alone")
        parts[split] = found["train"]
        notes |= dict.fromkeys(more)
    listed = ", ".join(f"{path.name} is the {split} set" for split, path in splits.items())
    return parts, [f"splits by the names of the files: {listed}", *notes]


def _test_file(path: Path) -> Path | None:
    """The test file beside a file whose name ends in _TRAIN or _train."""
    for train, test in (("_TRAIN", "_TEST"), ("_train", "_test")):
        other = path.with_name(path.stem.removesuffix(train) + test + path.suffix)
        if path.stem.endswith(train) and other.is_file():
            return other
    return None


def find_training_file(folder: Path) -> Path | None:
    """The training file in a folder of the UCR archive; .ts before .arff and .tsv, the folder's own name first."""
    found = [
        path for ending in (".ts", ".arff", ".tsv") for path in sorted(folder.glob(f"*{ending}")) if _test_file(path)
    ]
    own = [path for path in found if path.stem[: -len("_train")] == folder.name]
    names = {path.stem for path in found}
    if len(names) > 1 and not own:
        raise ValueError(f"{folder}: has several data sets ({', '.join(sorted(names))}); pass the path of one file")
    return next(iter(own + found), None)


def unread_beside(table: Path) -> list[str]:
    """Return notes on the contents of a folder of the archive that are not read because its training file is.

    Files of other formats, which repeat the set or describe it, are facts; folders may be the data that were meant.
    """
    stem = table.stem[: -len("_train")]
    beside = sorted(path for path in table.parent.iterdir() if path not in (table, _test_file(table)))
    folders = [f"{path.name}/" for path in beside if path.is_dir() and not path.name.startswith(".")]
    others = [path.name for path in beside if path.is_file() and path.suffix.lower() in TABLES]
    notes = unread("files beside the training file", others)
    if folders:
        notes.append(
            Doubt(f"{table.parent.name}/ is read as the set {stem}, and its folders are not read: {listing(folders)}")
        )
    return notes


@cache
def bundled() -> dict[str, Path]:
    """The sets with classes or numbers in aeon's package, found without importing it (which takes seconds)."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        return {}
    sets = _sets(Path(spec.origin).parent / "datasets" / "data")
    return {name: train for name, train in sets.items() if _has_targets(train)}


def _sets(folder: Path) -> dict[str, Path]:
    """Each NAME/NAME_TRAIN.ts in a folder that has its _TEST file, by its name in lower case."""
    found = sorted(folder.glob("*/*_TRAIN.ts"))  # files of other names are variants, such as series of equal length
    return {p.parent.name.lower(): p for p in found if p.name == f"{p.parent.name}_TRAIN.ts" and _test_file(p)}


def _has_targets(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as lines:
        tags = takewhile(lambda line: not line.startswith("@data"), map(str.lower, lines))
        return any(tag.startswith(("@classlabel true", "@targetlabel true")) for tag in tags)


def download(name: str) -> Path:
    """Return the training file of a UCR or UEA set in $NDVIT_CACHE or ~/.cache/ndvit; download it if it is not there.

    Raises:
        ValueError: for an unknown name, or a download that fails.
    """
    home = Path(os.environ.get("NDVIT_CACHE") or "~/.cache/ndvit").expanduser() / "ucr"
    if cached := _sets(home).get(name.lower()):
        return cached
    from aeon.datasets import load_classification
    from aeon.datasets.tsc_datasets import tsc_zenodo

    archive = {known.lower(): known for known in tsc_zenodo}
    if name.lower() not in archive:
        close = [archive[match] for match in difflib.get_close_matches(name.lower(), archive, n=3)]
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"ucr:{name}: no such set among the {len(archive)} that aeon can download.{hint}")
    name = archive[name.lower()]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as fresh:  # moved when complete: a broken download leaves nothing
            load_classification(name, extract_path=fresh)
            if not _sets(Path(fresh)):
                raise FileNotFoundError(f"the download has no {name}_TRAIN.ts with {name}_TEST.ts")
            if os.path.lexists(home / name):  # it is incomplete, and is removed with `fresh`
                (home / name).rename(Path(fresh) / "incomplete")
            (Path(fresh) / name).rename(home / name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"ucr:{name} could not be downloaded ({error}). Check the network, or put {name}_TRAIN.ts and "
            f"{name}_TEST.ts into {home / name}"
        ) from error
    return home / name / f"{name}_TRAIN.ts"
