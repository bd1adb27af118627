"""Labels in a file of their own: a .csv with names and labels, such as those of suspected label errors."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from ndvit.config.bounds import counted, nearest
from ndvit.data.examples import Part
from ndvit.data.messages import listing, printable
from ndvit.data.sources.arrays import raw_target
from ndvit.data.sources.split_files import named_rows
from ndvit.data.sources.split_names import split_of
from ndvit.files import cell
from ndvit.tasks.class_names import class_name


class Relabelled(NamedTuple):
    """The examples with the labels of a file.

    Attributes:
        parts: the examples, without those whose label in the file is empty.
        notes: what was changed.
        unchanged: of each split, the names of the examples that the file has with the label of the source.
    """

    parts: dict[str, Part]
    notes: list[str]
    unchanged: dict[str, set[str]]


def relabel(parts: dict[str, Part], path: str, where: str) -> Relabelled:
    """Replace labels by those of a file, and leave out the examples whose label there is empty.

    Args:
        parts: the examples, with raw targets.
        path: a .csv with the columns name and label, and perhaps split, which is used where names occur several times.
        where: name of the source in messages.

    Raises:
        ValueError: for a file that cannot be read, names that the source lacks or has several times, and labels that no
            example of the source has, unless all are numbers.
    """
    file = Path(path).expanduser()
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, part in parts.items():
        for i, name in enumerate(part.names):
            places[name].append((split, i))
            if cell(name) != name:  # as tables are written, see `cell`
                places[cell(name)].append((split, i))
    known = _known(parts)
    targets = {split: None if part.targets is None else list(part.targets) for split, part in parts.items()}
    unchanged: dict[str, set[str]] = {split: set() for split in parts}
    changes: Counter[str] = Counter()
    dropped: dict[str, set[int]] = {split: set() for split in parts}
    unknown: list[str] = []
    for number, row in named_rows(file, ("name", "label")):
        name, label = row["name"], row["label"].strip()
        if not (found := places.get(name, [])):
            unknown.append(name)
            continue
        if len(found) > 1 and row.get("split"):
            found = [place for place in found if place[0] == split_of(row["split"])]
        if len(found) != 1:
            raise ValueError(
                f"{path}, line {number}: {len(found):,} examples of the source have the name {printable(name[:80])}, "
                "which a file of labels cannot tell apart; make the names unique, or add a column split"
            )
        (split, i), kept = found[0], targets[found[0][0]]
        if kept is None:
            raise ValueError(f"{where}: the {split} set has no labels that {path} could replace")
        before = "" if kept[i] is None else class_name(kept[i])
        if not label:
            dropped[split].add(i)
        elif label in (before, cell(before)):
            unchanged[split].add(parts[split].names[i])
        else:
            kept[i] = _target(label, known, f"{path}, line {number}")
            changes[f"{before or 'none'} to {class_name(kept[i])}"] += 1
    if unknown:
        raise ValueError(
            f"{where}: {path} has {counted(len(unknown), 'name')} that the source lacks "
            f"({printable(listing(unknown))}); it must have been written for the same source"
        )
    notes: list[str] = []
    if changes:
        listed = listing([f"{change} ({count:,})" for change, count in changes.most_common()], 10)
        notes.append(f"{counted(changes.total(), 'label')} replaced by those in {printable(file.name)}: {listed}")
    if count := sum(map(len, dropped.values())):
        notes.append(f"{counted(count, 'example')} left out, because the label in {printable(file.name)} is empty")
    made = {}
    for split, part in parts.items():
        part = part._replace(targets=targets[split])
        made[split] = part.take([i for i in range(len(part.items)) if i not in dropped[split]])
    return Relabelled(made, notes, unchanged)


def _known(parts: dict[str, Part]) -> dict[str, Any]:
    """The raw targets by their text, also as it is written into tables."""
    found = [t for part in parts.values() for t in part.targets or () if isinstance(t, str | int | float)]
    return {text: t for t in found for text in (cell(class_name(t)), class_name(t))}


def _target(label: str, known: dict[str, Any], where: str) -> Any:
    if label in known:
        return known[label]
    if known and all(_is_number(text) for text in known) and _is_number(label):
        return raw_target(label)
    near = nearest(label, list(known))
    hint = f": did you mean {printable(near)!r}?" if near else f"; there are {printable(listing(sorted(known), 20))}"
    raise ValueError(f"{where}: no example of the source has the label {printable(label[:80])!r}{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
