"""Findings of a check: what may be wrong with a data set, in sentences, each with the examples that it is about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ndvit.checking.contents import Examined, describe_shape
from ndvit.checking.near_copies import Pair
from ndvit.data.examples import Source
from ndvit.data.messages import Doubt, LeftOut, listing
from ndvit.tasks.classification import Classification

_RARE = 0.2  # share of examples with a constant channel up to which it may be a fault of these examples
_OUTLYING = 1000.0  # times that the deviation of an example differs from the median of its channel
_TELLS = 0.9  # share of examples whose class follows from their shape
_MORE = 0.5  # share of the examples outside of the largest class that the shape must add
_FEWEST = 10  # examples below which shapes, spreads and groups are not compared


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: a word for JSON: "left out", "doubt", "class", "constant", "values", "shape", "group", "near copies",
            "label" or "note".
        text: a sentence.
        suspicious: whether it decides the exit status; otherwise it is a note.
        items: the examples, or pairs of them, that it is about.
    """

    kind: str
    text: str
    suspicious: bool = True
    items: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, "suspicious": self.suspicious, "text": self.text, "items": list(self.items)}


def exclusive_classes(data: Source) -> tuple[str, ...]:
    """The classes of which every example has one; none for other tasks."""
    return data.classes if isinstance(data.task, Classification) else ()


def of_notes(notes: Sequence[str]) -> list[Finding]:
    """Notes of reading; doubts, and examples that were left out, are suspicious."""
    found = []
    for note in notes:
        if isinstance(note, LeftOut):
            found.append(Finding("left out", str(note), True, note.faults))
        else:
            found.append(Finding("doubt" if isinstance(note, Doubt) else "note", str(note), isinstance(note, Doubt)))
    return found


def of_classes(data: Source) -> list[Finding]:
    """Classes with too few examples, and classes that a single group has."""
    train, classes = data.train, exclusive_classes(data)
    if not classes or train.targets is None:
        return []
    counts = np.bincount(train.targets, minlength=len(classes))
    found = []
    if len(classes) == 1:
        found.append(Finding("class", f"there is one class only ({classes[0]}); training needs two"))
    if single := [name for name, count in zip(classes, counts.tolist()) if count == 1]:
        text = f"classes with a single training example, which cannot be trained on and tested on: {listing(single)}"
        found.append(Finding("class", text, True, tuple(single)))
    present = counts[counts > 0]
    if len(present) > 1 and present.max() >= 10 * present.min():
        most, least = classes[int(counts.argmax())], classes[int(np.where(counts > 0, counts, 1e18).argmin())]
        text = (
            f"the largest class, {most}, has {present.max():,} training examples and the smallest, {least}, "
            f"{present.min():,}: look at the balanced accuracy, and at --class-weight balanced"
        )
        found.append(Finding("class", text, False))
    if train.groups is not None and len(train) >= _FEWEST:
        groups = train.groups
        lone = [
            name for i, name in enumerate(classes) if counts[i] and len(set(groups[train.targets == i].tolist())) == 1
        ]
        if lone and len(set(groups.tolist())) > 1:
            text = f"classes in one group only, so that a split by groups cannot test them: {listing(lone)}"
            found.append(Finding("group", text, True, tuple(lone)))
    return found


def of_contents(found: Sequence[Examined], data: Source) -> list[Finding]:
    """Constant examples and channels, values far from those of other examples, and shapes that tell the class."""
    names = [str(part.examples.names[i]) for part in found for i in part.indices]
    contents = [content for part in found for content in part.contents]
    if not contents:
        return []
    findings = _constant(names, found)
    equal = len({len(content.spread) for content in contents}) == 1
    if equal and not contents[0].mode and len(contents) >= _FEWEST:
        findings += _outlying(names, np.stack([content.spread for content in contents]))
    if exclusive_classes(data) and len(contents) >= _FEWEST:
        targets = [part.examples.targets for part in found]
        labels = [t[part.indices] for t, part in zip(targets, found) if t is not None]
        shapes = [describe_shape(content) for content in contents]
        findings += _telling(shapes, np.concatenate(labels), data.classes)
    return findings


def _constant(names: Sequence[str], found: Sequence[Examined]) -> list[Finding]:
    contents = [content for part in found for content in part.contents]
    flat = [content.low == content.high for content in contents]
    findings = []
    if whole := [name for name, channels in zip(names, flat) if channels.all()]:
        text = f"constant examples, {len(whole):,} of {len(names):,}: {listing(whole)}"
        findings.append(Finding("constant", text, True, tuple(whole)))
    if len({len(channels) for channels in flat}) > 1 or len(flat[0]) < 2:
        return findings
    table = np.stack(flat)
    table[table.all(axis=1)] = False
    shares = table.mean(axis=0)
    dead = [f"channel {i + 1}" for i in np.flatnonzero(shares == 1 - np.mean([c.all() for c in flat])) if shares[i]]
    if dead:
        text = f"constant in every example, {len(dead):,} of {table.shape[1]:,} channels: {listing(dead, 10)}"
        findings.append(Finding("constant", f"{text}; leave them out with --channels", True, tuple(dead)))
    table[:, shares > _RARE] = False
    if rows := np.flatnonzero(table.any(axis=1)).tolist():
        items = [f"{names[i]}: channel {listing([str(c + 1) for c in np.flatnonzero(table[i])], 8)}" for i in rows]
        text = f"constant channels that vary in other examples, in {len(rows):,} of {len(names):,} examples"
        findings.append(Finding("constant", f"{text}: {listing(items)}", True, tuple(items)))
    return findings


def _outlying(names: Sequence[str], spreads: np.ndarray) -> list[Finding]:
    """Examples whose deviation is far from the usual one, as in another unit; `spreads` are (n, channels)."""
    usual = np.array([np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in spreads.T])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(spreads > 0, spreads / usual, 1.0)
    ratio = np.where(np.isfinite(ratio), np.maximum(ratio, 1 / ratio), 1.0).max(axis=1)
    rows = np.flatnonzero(ratio > _OUTLYING)
    if not len(rows):
        return []
    items = [f"{names[i]}: {ratio[i]:,.0f} times" for i in rows[np.argsort(-ratio[rows])]]
    text = (
        f"values that vary over {_OUTLYING:,.0f} times more or less than usual, as if in another unit, in "
        f"{len(rows):,} of {len(names):,} examples: {listing(items)}"
    )
    return [Finding("values", text, True, tuple(items))]


def _telling(shapes: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> list[Finding]:
    """A finding if size, rate or mode of an example tells its class, so that nothing else may be learned."""
    by_shape: dict[str, Counter[int]] = defaultdict(Counter)
    for shape, label in zip(shapes, labels.tolist()):
        by_shape[shape][label] += 1
    if not 1 < len(by_shape) <= len(shapes) / 5:  # where nearly every size is another one, they mean nothing
        return []
    right = sum(max(counts.values()) for counts in by_shape.values()) / len(shapes)
    base = np.bincount(labels).max() / len(labels)
    if right < _TELLS or right - base < _MORE * (1 - base):
        return []
    items = tuple(
        f"{shape}: {listing([f'{classes[label]} ({count:,})' for label, count in counts.most_common()], 5)}"
        for shape, counts in sorted(by_shape.items(), key=lambda item: -item[1].total())
    )
    text = (
        f"size, sample rate or colour alone tell the class of {right:.0%} of the examples, so that a model may learn "
        f"nothing else: {listing(items)}"
    )
    return [Finding("shape", text, True, items)]


def of_near_copies(pairs: Sequence[Pair], found: Sequence[Examined], data: Source) -> list[Finding]:
    """Near copies in different splits, with different labels, and in a training set that is split at random.

    Args:
        pairs: near copies, by their place among all examples that were read.
        found: these examples.
        data: the data set.
    """
    places = [(part, int(i)) for part in found for i in part.indices]
    classes = exclusive_classes(data)
    across: list[str] = []
    conflicting: list[str] = []
    within: list[str] = []
    for pair in pairs:
        (one, i), (other, j) = places[pair.first], places[pair.second]
        names = f"{one.examples.names[i]} ({one.split}) ~ {other.examples.names[j]} ({other.split})"
        if one.split != other.split:
            across.append(names)
        targets, groups = (one.examples.targets, other.examples.targets), one.examples.groups
        if targets[0] is not None and targets[1] is not None and classes:
            labels = classes[targets[0][i]], classes[targets[1][j]]
            if labels[0] != labels[1]:
                conflicting.append(f"{names}: {labels[0]} and {labels[1]}")
        if one is other and (groups is None or groups[i] != groups[j]):  # no split separates those of a group
            within.append(names)
    findings = []
    if across:
        text = f"near copies in different splits, so that results are too good, {_pairs(across)}"
        findings.append(Finding("near copies", f"{text}: {listing(across)}", True, tuple(across)))
    if conflicting:
        text = f"near copies with different labels, {_pairs(conflicting)}"
        findings.append(Finding("near copies", f"{text}: {listing(conflicting)}", True, tuple(conflicting)))
    if within:
        divided = not len(data.test)
        text = "near copies in one set"
        text += ", which a split at random may separate; group them with --group-by" if divided else ""
        text += f", {_pairs(within)}"
        findings.append(Finding("near copies", f"{text}: {listing(within)}", divided, tuple(within)))
    return findings


def _pairs(found: Sequence[str]) -> str:
    return f"{len(found):,} pair{'s' * (len(found) > 1)}"
