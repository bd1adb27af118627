"""Loading a data set from a name, a folder, a file or arrays.

Every decision is reported: `Source.notes` says what was held out, left out, padded or taken as missing. A note about
data that may mean something else, a `Doubt`, is also a warning here, so that it reaches the user of every interface.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.config.reading import FileOptions, ReadingOptions
from ndvit.data.channels import check_channels
from ndvit.data.checking import Checked, check_examples
from ndvit.data.examples import (
    Examples,
    Kind,
    Part,
    Recording,
    Source,
    Stored,
    StoredItems,
    StoredSignal,
    are_streamed,
)
from ndvit.data.groups import (
    FEW_GROUPS,
    describe_groups,
    groups_of,
    named_groups,
    names_in_paths,
    sample_weights,
    without,
)
from ndvit.data.messages import (
    Doubt,
    LayoutDoubt,
    LeftOut,
    Ungrouped,
    listing,
    printable,
    ungrouped,
    warn_of_doubts,
)
from ndvit.data.name_parts import label_hint, suspected_groups
from ndvit.data.overlaps import overlapping_windows
from ndvit.data.sources import folders
from ndvit.data.sources.arrays import labels_are_missing, missing_labels, raw_target
from ndvit.data.sources.columns import Roles
from ndvit.data.sources.files import header_of, medium, read_example
from ndvit.data.sources.finding import (
    cache_size,
    check_file,
    check_table,
    find_any_parts,
    find_parts,
    is_path_pattern,
)
from ndvit.data.sources.hub import is_hub, read_hub
from ndvit.data.sources.label_files import relabel
from ndvit.data.sources.labelled_arrays import read_unlabelled
from ndvit.data.sources.lists import is_list, read_list
from ndvit.data.sources.named_arrays import ARRAY_FILES, holds_many
from ndvit.data.sources.npy import has_many_examples
from ndvit.data.sources.recordings import is_recording, load_recordings
from ndvit.data.sources.shards import Texts, is_shards, read_shards
from ndvit.data.sources.split_files import divide_by_file
from ndvit.data.sources.tables import read_table
from ndvit.data.splits import hold_out
from ndvit.data.windows import cut
from ndvit.tasks import Task, task_class
from ndvit.tasks.class_names import literal_names


class LoadedExamples(NamedTuple):
    """Examples without targets; `dims` is the number of axes of an example, without its channels."""

    kind: Kind
    dims: int
    examples: Examples
    notes: tuple[str, ...]


def load_source(
    source: Any,
    *,
    task: str | type[Task] = "classification",
    seed: int = 0,
    progress: bool = True,
    to_train: bool = True,
    **options: Any,
) -> Source:
    """Load a data set with targets, or for a task that learns without them, the training examples of any data.

    Args:
        source: the name of a built-in set; `ucr:NAME`; `hf:owner/name`, a data set of pictures on the Hugging Face hub
            (see `read_hub`); a folder or an address of shards (see `read_shards`); a folder of class folders; a .csv
            with the columns path and label (see `read_list`); a table of values, wide or long (.csv, .parquet, .arff;
            see `layouts`); a .ts, .tsv, .npz, .npy, .mat or .h5 file; or in Python a table with labels, a data set of
            xarray, `(X, y)`, `(X_train, y_train, X_test, y_test)` or a dict with such keys, where each X is any
            container that `read_container` reads. Without targets also a folder of files, or X alone.
        task: meaning of the targets, by name or class.
        seed: seed of the split at random where the data has no test set.
        progress: show a progress bar while many files are checked.
        to_train: whether a training set, sufficient for the task, is required; otherwise `train` may be empty.
        **options: fields of `ReadingOptions`. With test_fraction=0, nothing is held out and `test` is empty.

    Raises:
        FileNotFoundError: if the source is neither a name nor a path.
        ValueError: for faults of the data, with the place and the remedy.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> source = ndvit.load_source((X, y), test_fraction=0.25)
        >>> len(source.train), len(source.test), source.classes
        (30, 10, ('high', 'low'))
    """
    reading = ReadingOptions.from_dict(options)
    test_fraction, skip_bad = reading.test_fraction, reading.skip_bad
    kind_of_task = task_class(task)
    if kind_of_task.learns_from_targets:
        name, parts, notes = find_parts(source, reading, progress)
    else:
        name, parts, notes = find_any_parts(source, reading, progress)
    where = printable(str(source)) if isinstance(source, str | Path) else name
    parts, read = _opened(parts, reading, where, progress)
    notes += read
    if reading.split_file is not None and kind_of_task.learns_from_targets:
        parts, note = divide_by_file(parts, reading.split_file, where)
        notes.append(note)
    if to_train and "train" not in parts:
        raise ValueError(
            f"{where}: has {' and '.join(parts)} but no training set (X_train, a folder train/, or lines with train in "
            "the column split); `ndvit evaluate` tests a trained model on it"
        )
    if kind_of_task.learns_from_targets and "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
        notes.append("no test set in the data: the validation set is the test set")
    parts = {split: _printable(parts[split]) for split in ("train", "test", "val") if split in parts}
    unchanged: dict[str, set[str]] = {}
    if reading.label_file is not None and kind_of_task.learns_from_targets:
        parts, relabelled, unchanged = relabel(parts, reading.label_file, where)
        notes += relabelled
    if reading.drop_suspected and reading.label_file is None:
        raise ValueError("drop_suspected needs the file with the suspected examples: set label_file (--label-file)")
    if kind_of_task.learns_from_targets:
        for split, part in parts.items():
            parts[split], unlabelled = _with_targets(part, split, where, notes, reading, kind_of_task)
            notes += unlabelled
    else:
        notes += [f"the {split} examples of {name} are not used" for split in parts if split != "train"]
        parts, test_fraction = {"train": _with_known_targets(parts["train"], reading.literal_labels)}, 0.0
    windowed = reading.window is not None
    checked = check_examples(parts, where, skip_bad, progress, drop_copies=reading.drop_copies, windowed=windowed)
    notes += checked.notes
    if any(checked.faults.values()):
        _check_strata_remain(kind_of_task, parts, checked, where)
    parts = checked.parts
    targets = {split: part.targets or [] for split, part in parts.items()}
    fitted = kind_of_task.from_targets(targets, where, to_train=bool(to_train and test_fraction))
    notes += map(Doubt, kind_of_task.doubts(targets))
    groups: dict[str, list[str]] = {}
    if reading.group_by is not None and kind_of_task.learns_from_targets:
        groups = groups_of(reading.group_by, parts, where)
        notes += describe_groups(groups, reading.group_by)
        notes = [note for note in notes if not _is_settled(note, reading, groups)]
    elif kind_of_task.learns_from_targets:
        notes = [note for note in notes if not _is_settled(note, reading, groups)]
        notes += suspected_groups(parts)
        notes += [] if windowed else overlapping_windows(parts)
        if "test" not in parts and test_fraction:  # the split at random may separate the examples of a group
            notes = [ungrouped(note) if isinstance(note, Ungrouped) else note for note in notes]
    notes = [printable(note) for note in notes]
    warn_of_doubts(notes)  # before the split, which such data may fail
    made = {
        split: _examples(part, fitted.encode(targets[split]), checked.copies.get(split), groups.get(split))
        for split, part in parts.items()
    }
    if reading.sample_weight is not None and "train" in parts and kind_of_task.learns_from_targets:
        made["train"].weights = sample_weights(reading.sample_weight, parts["train"], where)
        notes.append(f"training examples are weighted by {reading.sample_weight}")
    if reading.drop_suspected and "train" in made:
        count = without(made["train"], unchanged["train"])
        notes.append(
            f"{counted(count, 'example')} with suspected labels left out of the training, see {reading.label_file}"
        )
    channels = {split: _channel_names(part, reading) for split, part in parts.items()}
    for split, names in channels.items():
        check_channels(names, channels.get("train", ()), f"{where}, the {split} set", "and the training set has")
    made, windows = _cut(made, reading, where, named=not isinstance(source, tuple | dict))
    notes += windows
    made.setdefault("train", next(iter(made.values())).subset([]))
    if "test" not in made and test_fraction:
        try:
            keep, held = hold_out(made["train"], fitted, test_fraction, seed, where)
        except ValueError as error:
            same = bool(groups) and set(map(str, targets["train"])) <= set(groups["train"])
            hint = label_hint(parts["train"].names, groups["train"]) if same else ""
            raise ValueError(f"{error}{f'; {hint}' if hint else ''}") from None
        made |= {"train": made["train"].subset(keep), "test": made["train"].subset(held)}
        unit = "example" if made["train"].places is None else "window"
        share = f"{test_fraction:.0%} held out for testing ({counted(len(held), unit)})"
        kept = ""
        kept_groups, held_groups = made["train"].groups, made["test"].groups
        if kept_groups is not None and held_groups is not None:
            known = len(set(held_groups) | set(kept_groups))
            which = named_groups(held_groups) if len(set(held_groups)) <= FEW_GROUPS else ""
            kept = f", {len(set(held_groups)):,} of {counted(known, 'group' if groups else 'recording')}{which}"
        notes.append(f"no test set in the data: {share}{kept}, stratified, seed {seed}")
    made.setdefault("test", made["train"].subset([]))
    return Source(
        name=printable(name),
        kind=checked.kind,
        dims=checked.dims,
        task=fitted,
        train=made["train"],
        test=made["test"],
        val=made.get("val"),
        notes=tuple(notes),
        channels=next(filter(None, channels.values()), ()),
    )


def _channel_names(part: Part, reading: FileOptions) -> tuple[str, ...]:
    """Names of the channels of the examples, if the data have names, and as many as there are channels."""
    if not part.items or reading.mono or not part.channels:
        return ()
    item = part.items[0]
    values = item.values if isinstance(item, Recording) else item
    if isinstance(values, np.ndarray | StoredSignal):
        return part.channels if header_of(values).channels == len(part.channels) else ()
    return ()


def load_examples(
    path: Any,
    *,
    dims: int | None = None,
    in_channels: int = 0,
    reading: FileOptions | None = None,
    **options: Any,
) -> LoadedExamples:
    """Load examples without targets: one file, a folder of files, or arrays.

    Args:
        path: a picture, a sound file, an .npy or .npz of one example, a table (.ts, .tsv, .csv, .parquet, .arff, or
            .npz, .mat and .h5 with X or X_test), a recording (.csv, .parquet, .mat, .h5, .edf), a .csv with a column
            path, `hf:owner/name`, or a folder of files; or in Python an array (n, time) or (n, channels, time, ...), a
            list of arrays of any length, a list of PIL images, or another container that `read_container` reads.
        dims: number of axes of the model's input, without the channels. An .npy with `dims` + 2 axes, or with `dims` +
            1 for a model of one channel, has many examples; without `dims`, every .npy is one.
        in_channels: channels of the model's input.
        reading: how files are read; None for `options`, or the defaults.
        **options: fields of `FileOptions`, without `reading`.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: for faults of the data, with the name of the file.
    """
    assert reading is None or not options, options
    reading = reading or FileOptions.from_dict(options)
    roles = Roles.of(reading)
    of_table = 0 if reading.mono else in_channels  # columns that are read; other files have their channels chosen later
    in_channels = 0 if reading.mono or reading.channels else in_channels
    if not isinstance(path, str | Path):
        named = not isinstance(path, np.ndarray)
        return _loaded(*read_unlabelled(path, roles, of_table), "X", reading, in_channels, named)
    if path == "":
        raise ValueError("the path is empty; the current folder is written .")
    text, path = os.fspath(path), Path(path).expanduser()
    notes: list[str] = []
    tables: dict[str, Part] = {}
    folder = text  # part of the names of examples, so that a/0.wav and b/0.wav differ
    shards = is_shards(text)
    if shards:
        _, tables, notes = read_shards(text, cache_size(reading), with_targets=False)
    elif is_hub(text):
        tables, notes = read_hub(text, with_targets=False, progress=True)
    elif path.is_dir():
        part, notes = folders.read_flat_folder(path)
    elif not path.exists():
        raise FileNotFoundError(f"{printable(str(path))}: no such file or folder")
    else:
        check_file(path)
        folder = os.path.dirname(text)
        many = _holds_many(path, roles, dims, in_channels)
        if is_list(path):
            tables, notes = read_list(path, with_targets=False, skip_bad=reading.skip_bad)
        elif medium(path) and not many:
            part = Part([str(path)], None, [path.name])
        else:
            tables, notes = read_table(check_table(path), roles, with_targets=False, channels=of_table)
        if medium(path) == "npy files" and dims is not None:
            items = tables["train"].items if many else []
            count = counted(len(items), "example") if many else "one example"
            note = f"{path.name}: taken as {count}, by its number of axes"
            if items and items[0].size == 1:
                note = Doubt(f"{note}, of a single value each; if it is one example, save it as x.reshape(1, -1)")
            notes.append(note)
    if tables:
        split = next(split for split in ("test", "val", "train") if split in tables)
        part = tables[split]
        if len(tables) > 1:
            *others, last = tables
            name = text if is_hub(text) or shards else path.name
            notes.append(f"{name} has {', '.join(others)} and {last}: the {split} set is used")
    opened, read = _opened({"test": part}, reading, printable(text), progress=True)
    part, notes = opened["test"], [*notes, *read]
    names = part.names if shards else [os.path.join(folder, name) for name in part.names]
    part = part._replace(targets=None, names=names)
    return _loaded(_printable(part), notes, printable(text), reading, in_channels)


def _loaded(
    part: Part, notes: list[str], where: str, reading: FileOptions, channels: int, named: bool = True
) -> LoadedExamples:
    windowed = reading.window is not None
    found = check_examples({"test": part}, where, reading.skip_bad, progress=True, channels=channels, windowed=windowed)
    notes = [printable(note) for note in (*notes, *found.notes)]
    warn_of_doubts(notes)
    examples, windows = cut(_examples(found.parts["test"], None), reading, where, named=named)
    examples.left_out = tuple(found.faults["test"].values())
    examples.channels = _channel_names(part, reading)
    return LoadedExamples(found.kind, found.dims, examples, (*notes, *windows))


def _cut(
    made: dict[str, Examples], reading: FileOptions, where: str, named: bool
) -> tuple[dict[str, Examples], list[str]]:
    """The windows of the examples of each split, see `cut`, and notes."""
    found = {split: cut(part, reading, where, named=named) for split, part in made.items()}
    several = len(found) > 1
    notes = [f"{split}: {note}" if several else note for split, (_, own) in found.items() for note in own]
    return {split: part for split, (part, _) in found.items()}, notes


def _opened(
    parts: dict[str, Part], reading: FileOptions, where: str, progress: bool
) -> tuple[dict[str, Part], list[str]]:
    """The parts with labels from the files' paths, if that is how they are named, and with their recordings read."""
    roles = Roles.of(reading)
    if is_path_pattern(reading.label) and isinstance(reading, ReadingOptions):
        labels = names_in_paths(str(reading.label), parts, where, "label")
        parts = {split: part._replace(targets=list(map(raw_target, labels[split]))) for split, part in parts.items()}
    if not any(is_recording(part.items[0], roles) for part in parts.values() if part.items):
        return parts, []
    return load_recordings(parts, roles, where, skip_bad=reading.skip_bad, progress=progress)


def _holds_many(path: Path, roles: Roles, dims: int | None, in_channels: int) -> bool:
    """Whether a file has many examples, for a model with `dims` axes and `in_channels`."""
    if path.suffix.lower() in ARRAY_FILES or (path.suffix.lower() == ".npz" and roles.array):
        return holds_many(path, roles, dims, in_channels)
    if medium(path) in ("npy files", "npz files"):
        return has_many_examples(path, dims, in_channels)
    return medium(path) == "tables"


def _printable(part: Part) -> Part:
    """Escape names that could break a message or a table."""
    return part if isinstance(part.names, Texts) else part._replace(names=list(map(printable, part.names)))


def _is_settled(note: str, reading: ReadingOptions, groups: Mapping[str, list[str]]) -> bool:
    """Whether a note doubts the meaning of folders that an option names: as the labels, or as the groups."""
    if not isinstance(note, LayoutDoubt):
        return False
    return is_path_pattern(reading.label) or note.folders <= {name for names in groups.values() for name in names}


def _with_targets(
    part: Part, split: str, where: str, notes: list[str], reading: ReadingOptions, kind_of_task: type[Task]
) -> tuple[Part, list[str]]:
    """Return the examples that have a target, and notes on those that do not; a ValueError unless `skip_bad`.

    The targets are those that the task has read.
    """
    if part.targets is None:
        unread = "".join(f"; {note}" for note in notes if "not read" in note)
        hint = "" if are_streamed(part.items) else label_hint(part.names)
        raise ValueError(
            f"{where}: the {split} set has no labels; every example needs one"
            " (.ts: @classLabel or @targetLabel true; .npz: y; .npy: NAME_labels.npy or .txt beside it; tables: a "
            "column label, or --label NAME; files: folders of classes, or --label path:PATTERN for a part of their "
            f"names{f'; {hint}' if hint else ''}){unread}"
        )
    if reading.literal_labels:
        part = part._replace(targets=literal_names(part.targets))
    missing, empty = missing_labels(part.targets or []), list[str]()
    if kind_of_task.may_be_empty:
        without = sum(target is None for target in part.targets or ())
        missing = [i for i in missing if (part.targets or [])[i] is not None]
        if without:
            empty.append(
                f"{without:,} of {len(part.items):,} {split} examples have no label: none of the classes is there"
            )
    if not missing:
        return part._replace(targets=kind_of_task.read(part.targets or [], where)), empty
    if not reading.skip_bad or len(missing) == len(part.items):
        how = "--skip-bad, skip_bad=True in Python"
        error = labels_are_missing(f"the {split} set", part.names, part.targets or [], missing, how)
        raise ValueError(f"{where}: {error}")
    names, left_out = [part.names[i] for i in missing], set(missing)
    kept = part.take([i for i in range(len(part.items)) if i not in left_out])
    kept = kept._replace(targets=kind_of_task.read(kept.targets or [], where))
    note = f"{len(missing):,} of {len(part.items):,} {split} examples left out without a label: {listing(names)}"
    return kept, [*empty, LeftOut.of(note, (f"{name}: has no label" for name in names))]


def _with_known_targets(part: Part, literal_labels: bool) -> Part:
    """Return the part with None as the target of each example without a label."""
    targets = [None] * len(part.items) if part.targets is None else part.targets
    if literal_labels:
        targets = literal_names(targets)
    missing = set(missing_labels(targets))
    return part._replace(targets=[None if i in missing else target for i, target in enumerate(targets)])


def _check_strata_remain(kind_of_task: type[Task], parts: dict[str, Part], checked: Checked, where: str) -> None:
    """Raise a ValueError if all examples of a stratum, such as a class, are bad."""
    raw = {split: part.targets or [] for split, part in parts.items()}
    task = kind_of_task.from_targets(raw, where, to_train=False)
    for split, targets in raw.items():
        strata, faults = task.strata(task.encode(targets)), checked.faults[split]
        if strata is None:
            continue
        left = {stratum for i, stratum in enumerate(strata.tolist()) if i not in faults}
        if lost := {i: stratum for i, stratum in enumerate(strata.tolist()) if stratum not in left}:
            names = listing([task.stratum_name(stratum) for stratum in sorted(set(lost.values()))])
            first = faults[min(lost)]
            raise ValueError(f"{where}: every example of {names} in the {split} set is bad; the first: {first}")


def _examples(
    part: Part,
    targets: np.ndarray | None,
    copies: np.ndarray | None = None,
    groups: list[str] | None = None,
) -> Examples:
    stored = isinstance(part.items[0], str | Stored)
    places = part.items.places() if isinstance(part.items, StoredItems) else None
    if places is not None and groups is None:
        groups = [place.recording for place in places]
    return Examples(part.items, targets, part.names, read_example if stored else None, copies, groups, places=places)
