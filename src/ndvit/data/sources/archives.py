"""Sets of the UCR and UEA archives, NAME_TRAIN with NAME_TEST beside it: in a folder, in aeon's package, downloaded.

A file without such a sibling is a set too, and is all of it.
"""

import difflib
import importlib.util
import os
import tempfile
from functools import cache
from itertools import takewhile
from pathlib import Path

from ndvit.data.sources.arrays import Part
from ndvit.data.sources.tables import read_table


def read_set(path: Path) -> tuple[str, dict[str, Part], list[str]]:
    """Read a file of examples, and the _TEST file beside it if it is a _TRAIN file; return name, parts and notes."""
    parts, other = read_table(path), _sibling(path)
    if other and "test" not in parts:
        found = read_table(other)
        parts["test"] = found[next(split for split in ("test", "train", "val") if split in found)]
        note = f"the archive's own split: {path.name} to train, {other.name} to test"
        return path.stem[: -len("_train")], parts, [note]
    beside = f", and not {other.name}" if other else ""
    return path.stem, parts, [f"the split in {path.name}{beside}"] if "test" in parts else []


def _sibling(path: Path) -> Path | None:
    """The test file beside a file whose name ends in _TRAIN or _train."""
    for train, test in (("_TRAIN", "_TEST"), ("_train", "_test")):
        other = path.with_name(path.stem.removesuffix(train) + test + path.suffix)
        if path.stem.endswith(train) and other.is_file():
            return other
    return None


def table_in(folder: Path) -> Path | None:
    """The training file in a folder of the UCR archive, if it is one; .ts before .tsv, the folder's own name first."""
    found = [path for ending in (".ts", ".tsv") for path in sorted(folder.glob(f"*{ending}")) if _sibling(path)]
    own = [path for path in found if path.stem[: -len("_train")] == folder.name]
    names = {path.stem for path in found}
    if len(names) > 1 and not own:
        raise ValueError(f"{folder}: holds several data sets ({', '.join(sorted(names))}); give the path of one file")
    return next(iter(own + found), None)


@cache
def bundled() -> dict[str, Path]:
    """The classification sets in aeon's own package, found without importing it (which takes seconds)."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        return {}
    sets = _sets(Path(spec.origin).parent / "datasets" / "data")
    return {name: train for name, train in sets.items() if _has_classes(train)}


def _sets(folder: Path) -> dict[str, Path]:
    """Each NAME/NAME_TRAIN.ts in a folder that has its _TEST file, by its name in lower case.

    Other names in its folder are variants, such as ones made equal in length.
    """
    found = sorted(folder.glob("*/*_TRAIN.ts"))
    return {p.parent.name.lower(): p for p in found if p.name == f"{p.parent.name}_TRAIN.ts" and _sibling(p)}


def _has_classes(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as lines:
        tags = takewhile(lambda line: not line.startswith("@data"), map(str.lower, lines))
        return any(tag.startswith("@classlabel true") for tag in tags)


def download(name: str) -> Path:
    """Return the training file of a UCR or UEA set in $NDVIT_CACHE or ~/.cache/ndvit, fetched if it is not there."""
    home = Path(os.environ.get("NDVIT_CACHE") or "~/.cache/ndvit").expanduser() / "ucr"
    if cached := _sets(home).get(name.lower()):
        return cached
    from aeon.datasets import load_classification
    from aeon.datasets.tsc_datasets import tsc_zenodo

    archive = {known.lower(): known for known in tsc_zenodo}
    if name.lower() not in archive:
        close = [archive[match] for match in difflib.get_close_matches(name.lower(), archive, n=3)]
        mean = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"ucr:{name}: no such set among the {len(archive)} that aeon can fetch.{mean}")
    name = archive[name.lower()]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as fresh:  # moved when complete: a broken download leaves nothing
            load_classification(name, extract_path=fresh)
            if not _sets(Path(fresh)):
                raise FileNotFoundError(f"the download holds no {name}_TRAIN.ts with {name}_TEST.ts")
            if os.path.lexists(home / name):  # incomplete, or it would have been taken; it goes with `fresh`
                (home / name).rename(Path(fresh) / "incomplete")
            (Path(fresh) / name).rename(home / name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"ucr:{name} could not be fetched ({error}). Check the network, or put {name}_TRAIN.ts and {name}_TEST.ts "
            f"into {home / name}"
        ) from error
    return home / name / f"{name}_TRAIN.ts"
