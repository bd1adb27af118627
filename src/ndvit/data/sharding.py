"""Write a source into shards, which `sources/shards.py` reads."""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ndvit.config.bounds import Share, checked
from ndvit.config.reading import PATH, ReadingOptions, byte_count
from ndvit.data.examples import EncodedPicture, Examples, Recording, Source
from ndvit.data.preprocess.base import Moments
from ndvit.data.sources.files import Header, header_of
from ndvit.data.sources.load import load_source
from ndvit.data.sources.shards import FORMAT, MANIFEST, SPLITS, Meaning, Table, Texts
from ndvit.data.sources.streams import shuffled
from ndvit.data.splits import hold_out
from ndvit.data.windows import cut_outliers
from ndvit.files import TEMPORARY, refuse_existing, replace_file, sole_process, writing
from ndvit.tasks import Classification, Task
from ndvit.tasks.multilabel import Multilabel
from ndvit.tasks.regression import Regression, usual_names
from ndvit.tasks.self_supervised import SelfSupervised

_TABLE = "examples.npz"
_PIECE = 2**24  # bytes that are read at a time to compute a checksum


def shard(
    source: Any,
    output: str | Path,
    *,
    task: str | type[Task] = "classification",
    labels: bool = True,
    chunk_size: int | str = "8MB",
    val_fraction: float = 0.0,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
    log: Callable[[str], Any] = print,
    **options: Any,
) -> Path:
    """Write a source into shards, once, for training from a disk or from an address.

    The source is read and checked as `train` does it. Training examples are written in random order. Files of pictures
    are copied as they are, pictures in memory become PNG, and everything else is an array of float32.

    Args:
        source: as in `train`.
        output: the folder of the shards, which appears when it is complete.
        task: meaning of the targets.
        labels: whether there are labels; without, all examples are the training set.
        chunk_size: bytes in a chunk, or a text such as 8MB. A chunk is what is fetched at once.
        val_fraction: share of the training examples that become a validation set, if the source has none.
        seed: seed of the split and of the order.
        force: replace existing shards.
        progress: show progress bars.
        log: receives each line about the source.
        **options: fields of `ReadingOptions`.

    Returns:
        The folder.

    Raises:
        ValueError: for faults of the data as in `train`, tasks that cannot be stored, or if litdata is not installed.
        FileExistsError: if the output exists and `force` is not set.
    """
    import importlib.util

    if importlib.util.find_spec("litdata") is None:
        raise ValueError("writing shards needs a package that is not installed: pip install 'ndvit[stream]'")
    checked("val_fraction", Share, val_fraction)
    target, most = Path(output).expanduser(), byte_count(chunk_size)
    if not 10**3 <= most <= 10**9:
        raise ValueError(f"chunk_size {chunk_size} is out of bounds; expected 1kB to 1GB, for example 8MB")
    refuse_existing(target, force, kind="folder")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise FileExistsError(f"{target} exists and holds no shards: choose another output")
    reading = ReadingOptions.from_dict(options if labels else {**options, "test_fraction": 0.0})
    wanted = task if labels else "contrastive"
    data = load_source(source, task=wanted, seed=seed, progress=progress, **reading.to_dict())
    data, reading = cut_outliers(data, reading)
    data = _with_validation(data, val_fraction, seed)
    for note in data.notes:
        log(note)
    meaning, names = _meaning(data.task)
    unfinished = target.with_name(target.name + TEMPORARY)
    with writing(target):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        with sole_process(unfinished):
            parts = {"train": data.train, "val": data.val, "test": data.test}
            written = {
                split: _write_split(unfinished / split, part, split, most, seed, reading, progress)
                for split in SPLITS
                if (part := parts[split]) is not None and len(part)
            }
            manifest = {
                "format": FORMAT,
                "name": data.name,
                "source": str(source)[:200] if isinstance(source, str | Path) else "arrays",
                "kind": data.kind,
                "dims": data.dims,
                "task": data.task.name if labels else None,
                "targets": {"meaning": meaning, "names": names},
                "channels": list(data.channels),
                "notes": list(map(str, data.notes)),
                "seed": seed,
                "reading": reading.set_options(),
                "splits": written,
            }
            replace_file(unfinished / MANIFEST, json.dumps(manifest, indent=1))
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    return target


def describe(folder: Path) -> str:
    """One line for each split of shards, and their size."""
    splits = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["splits"]
    lines = []
    for split, facts in splits.items():
        size = sum(chunk[1] for chunk in facts["chunks"])
        lines.append(
            f"{split:5}  {facts['examples']:,} examples in {len(facts['chunks']):,} chunks, {size / 1e6:,.1f} MB"
        )
    return "\n".join(
        [*lines, f"{folder}: train with `ndvit train {folder}`, or copy it to a server and use its address"]
    )


def _with_validation(data: Source, fraction: float, seed: int) -> Source:
    from dataclasses import replace

    if not fraction:
        return data
    if data.val is not None or not data.task.learns_from_targets:
        raise ValueError(f"val_fraction {fraction}: the source has a validation set, or no labels: leave it out")
    kept, held = hold_out(data.train, data.task, fraction, seed, data.name)
    note = f"validation: {len(held):,} of the {len(data.train):,} training examples, stratified, seed {seed}"
    train, val = data.train.subset(kept), data.train.subset(held)
    return replace(data, train=train, val=val, notes=(*data.notes, note))


def _meaning(task: Task) -> tuple[Meaning, list[str]]:
    """What the encoded targets of a task are, and their names, see `raw_targets`."""
    if isinstance(task, SelfSupervised):
        return ("none", []) if task.labels is None else ("classes", list(task.labels.classes))
    if isinstance(task, Classification):
        return "classes", list(task.classes)
    if isinstance(task, Multilabel):
        return "labels", list(task.classes)
    if isinstance(task, Regression):
        return "numbers", [] if task.targets == usual_names(1) else list(task.targets)
    raise ValueError(f"targets of the task {task.name} cannot be stored in shards: use classification or regression")


def _write_split(
    folder: Path, part: Examples, split: str, most: int, seed: int, reading: ReadingOptions, progress: bool
) -> dict[str, Any]:
    """Write the examples of a split; return what the manifest has of it."""
    import ndvit._torchvision  # noqa: F401  (litdata imports torchvision)

    # isort: split
    from litdata.streaming import Cache
    from tqdm import tqdm

    order = _order(part, seed) if split == "train" else np.arange(len(part))
    headers: list[Header] = []
    moments: Moments | None = None
    has_rates = any(header_of(item).rate is not None for item in part.items) if _is_signals(part) else False
    with _quiet():
        cache = Cache(str(folder), chunk_bytes=most)
        for place, i in enumerate(tqdm(order.tolist(), f"writing {split}", leave=False, disable=not progress)):
            fields, header = _fields(part, i, has_rates)
            if "signal" in fields:
                moments = moments or Moments(len(fields["signal"]))
                if len(moments.count) == len(fields["signal"]):  # recordings may differ in their channels
                    moments.add(fields["signal"])
            headers.append(header)
            cache[place] = fields
        cache.done()
        cache.merge()
    index = json.loads((folder / "index.json").read_text())
    keys = list(fields)
    chunks = [(str(one["filename"]), int(one["chunk_size"])) for one in index["chunks"]]
    (folder / _TABLE).write_bytes(_table(part, order, headers).pack())
    facts: dict[str, Any] = {"examples": len(part), "fields": dict(zip(keys, index["config"]["data_format"]))}
    if part.groups is not None:
        by = reading.group_by
        facts["group"] = by if by is not None and not by.startswith(PATH) else "group"
    facts["statistics"] = _statistics(part, headers, moments)
    facts["table"] = [_TABLE, *_checksum(folder / _TABLE)]
    facts["chunks"] = [[name, *_checksum(folder / name), count] for name, count in chunks]
    return facts


@contextmanager
def _quiet() -> Iterator[None]:
    """Without litdata's warnings of examples that are larger than a chunk, which are allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_signals(part: Examples) -> bool:
    return header_of(part.items[0]).kind == "signal"


def _order(part: Examples, seed: int) -> np.ndarray:
    """A random order; of streamed examples, one that needs few blocks at a time."""
    random, blocks = np.random.default_rng((seed, len(part))), part.blocks()
    return random.permutation(len(part)) if blocks is None else shuffled(blocks, 64, 0, random)


def _fields(part: Examples, i: int, has_rates: bool) -> tuple[dict[str, Any], Header]:
    """What a chunk has of an example: its picture, or its values and their rate; and its target."""
    import litdata

    item = part.items[i]
    header = header_of(item)
    fields: dict[str, Any] = {}
    if header.kind == "image":
        fields["image"] = litdata.File(bytes=_encoded(item))  # as it is; litdata would write plain bytes as Arrow
    else:
        raw = part[i]
        values = raw.values if isinstance(raw, Recording) else np.asarray(raw)
        fields["signal"] = np.ascontiguousarray(values, dtype=np.float32)
        header = Header("signal", len(values), values.shape[1:], raw.rate if isinstance(raw, Recording) else None)
        if has_rates:
            fields["rate"] = float("nan") if header.rate is None else float(header.rate)
    if part.targets is not None:
        target = part.targets[i]
        if target.size == 1:
            number = target.item()
            fields["target"] = number if part.targets.dtype.kind in "iu" else float(number)
        else:
            fields["target"] = np.ascontiguousarray(target)
    return fields, header


def _encoded(item: Any) -> bytes:
    """The bytes of a picture's file."""
    if isinstance(item, EncodedPicture):
        return item.open().read()
    if isinstance(item, str):
        return Path(item).read_bytes()
    assert isinstance(item, Image.Image)
    file = io.BytesIO()
    try:
        item.save(file, "PNG", exif=item.getexif())
    except OSError:  # modes that PNG lacks
        file = io.BytesIO()
        item.save(file, "TIFF")
    return file.getvalue()


def _table(part: Examples, order: np.ndarray, headers: list[Header]) -> Table:
    count = len(order)
    targets = np.zeros((count, 0), dtype=np.int8) if part.targets is None else part.targets[order]
    if targets.dtype == np.int64 and targets.size and np.abs(targets).max() < 2**31:
        targets = targets.astype(np.int32)
    signals = headers[0].kind == "signal"
    places = part.places
    return Table(
        targets=targets,
        names=Texts.of([part.names[i] for i in order]),
        channels=np.array([header.channels for header in headers], dtype=np.int32),
        grids=np.array([header.grid if signals else () for header in headers], dtype=np.int64).reshape(count, -1),
        rates=np.array([np.nan if header.rate is None else header.rate for header in headers], dtype=np.float64),
        groups=None if part.groups is None else Texts.of([str(part.groups[i]) for i in order]),
        recordings=None if places is None else Texts.of([places[i].recording for i in order]),
        spans=None if places is None else np.array([places[i][1:3] for i in order], dtype=np.int64),
    )


def _statistics(part: Examples, headers: list[Header], moments: Moments | None) -> dict[str, Any]:
    """Facts about a split for its readers: examples of each target, range of the lengths, mean and deviation."""
    facts: dict[str, Any] = {}
    if part.targets is not None and part.targets.dtype.kind in "iu" and part.targets.ndim == 1:
        codes, counts = np.unique(part.targets, return_counts=True)
        facts["counts"] = dict(zip(map(str, codes.tolist()), counts.tolist()))
    grids = np.array([header.grid for header in headers])
    facts["smallest"], facts["largest"] = grids.min(0).tolist(), grids.max(0).tolist()
    if moments is not None:
        facts["mean"], facts["std"] = moments.mean(), moments.std()
    return facts


def _checksum(path: Path) -> tuple[int, int]:
    """Length and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while data := file.read(_PIECE):
            size, crc = size + len(data), zlib.crc32(data, crc)
    return size, crc
