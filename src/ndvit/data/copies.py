"""Exact copies among examples: in two splits, within one, and with different labels.

Examples are compared by a digest of their decoded content, so that a picture saved again without loss is a copy, too.
"""

import hashlib
import os
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.examples import EncodedPicture, Part, Raw, Recording
from ndvit.data.messages import Doubt, listing, printable
from ndvit.data.sources import pictures

_SPLITS = ("test", "val", "train")  # of copies in several splits, the first of these keeps its example
_NAMES = {"train": "training", "val": "validation", "test": "test"}
_TAIL = 1024  # last bytes of a file, which differ in almost all files of one size
_LONGEST = 80  # letters of a name in a note


class Copies(NamedTuple):
    """Examples with equal content.

    Attributes:
        notes: what was found; a `Doubt` where it spoils the test or the training.
        groups: of each split with copies of its own examples, (n,) integers that copies share.
        surplus: of each split, the examples to leave out so that nothing occurs twice, and the reason for each.
    """

    notes: list[str]
    groups: dict[str, np.ndarray]
    surplus: dict[str, dict[int, str]]


def content_digest(raw: Raw) -> bytes:
    """A digest of a decoded example: its kind, shape and values."""
    if isinstance(raw, Image.Image):
        kind = f"{raw.mode} {raw.size}"
        data: bytes | memoryview = raw.tobytes()
    else:
        values, rate = (raw.values, raw.rate) if isinstance(raw, Recording) else (raw, None)
        kind, data = f"{values.dtype} {values.shape} {rate}", np.ascontiguousarray(values).data
    digest = hashlib.blake2b(data, digest_size=16)
    digest.update(kind.encode())
    return digest.digest()


def file_digest(item: str | EncodedPicture) -> bytes:
    """A digest of the bytes of a file or stored picture."""
    if isinstance(item, EncodedPicture):
        return hashlib.blake2b(item.open().read(), digest_size=16).digest()
    with open(item, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def file_mark(item: str | EncodedPicture) -> bytes:
    """A digest of the size and the last bytes of a file, which is fast; `file_digest` compares files of equal marks."""
    if isinstance(item, EncodedPicture):
        return file_digest(item)
    with open(item, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _TAIL))
        return hashlib.blake2b(file.read() + str(size).encode(), digest_size=16).digest()


def repeated(digests: dict[str, list[bytes]]) -> dict[bytes, list[tuple[str, int]]]:
    """The places, split and index, of each digest that occurs several times; empty digests are ignored."""
    counts = Counter(digest for found in digests.values() for digest in found)
    places: dict[bytes, list[tuple[str, int]]] = {d: [] for d, count in counts.items() if count > 1 and d}
    if places:
        for split in sorted(digests, key=_SPLITS.index):
            for i, digest in enumerate(digests[split]):
                if digest in places:
                    places[digest].append((split, i))
    return places


def is_blank(raw: Raw) -> bool:
    """Whether every channel of an example is constant: such examples are equal without being copies."""
    if isinstance(raw, Image.Image):
        return pictures.is_blank(raw)
    values = raw.values if isinstance(raw, Recording) else raw
    rows = values.reshape(len(values), -1)
    return bool((np.fmin.reduce(rows, 1) == np.fmax.reduce(rows, 1)).all())


def find_copies(parts: dict[str, Part], digests: dict[str, list[bytes]]) -> Copies:
    """Find examples with equal digests.

    Args:
        parts: the examples.
        digests: of each split, the digest of each example; splits without digests are not compared.
    """
    notes: list[str] = []
    groups: dict[str, np.ndarray] = {}
    surplus: dict[str, dict[int, str]] = {split: {} for split in parts}
    within: dict[str, list[str]] = {}  # pairs of names, for the notes
    across: dict[tuple[str, str], list[str]] = {}
    conflicts: list[str] = []
    conflicting = 0
    for places in repeated(digests).values():
        names = [_name(parts[split].names[i]) for split, i in places]
        first: dict[str, int] = {}  # place in `places` of the first example of each split
        labels: dict[str, int] = {}  # and of each label
        for at, (split, i) in enumerate(places):
            first.setdefault(split, at)
            targets = parts[split].targets
            if targets is not None and targets[i] is not None:
                labels.setdefault(str(targets[i]), at)
        for at, (split, i) in enumerate(places):
            original = first[split]
            if original != at:
                within.setdefault(split, []).append(f"{names[at]} = {names[original]}")
                groups.setdefault(split, np.arange(len(parts[split].items)))[i] = places[original][1]
            for other in _SPLITS[_SPLITS.index(split) + 1 :]:
                if other in first:
                    across.setdefault((split, other), []).append(f"{names[at]} = {names[first[other]]}")
        reason = f"is a copy of {names[0]}"
        if len(labels) > 1:
            conflicting += len(places)
            conflicts.append(" and ".join(f"{names[at]} as {_name(label)}" for label, at in list(labels.items())[:3]))
            reason = "has the content of an example with another label"
        for split, i in places if len(labels) > 1 else places[1:]:
            surplus[split][i] = reason
    for (split, other), pairs in across.items():
        notes.append(
            Doubt(
                f"{len(pairs):,} of {len(parts[split].items):,} {_NAMES[split]} examples are exact copies of "
                f"{_NAMES[other]} examples, so that results on them are too good: {listing(pairs)}; remove them, or "
                f"leave them out of the {_NAMES[other]} set with --drop-copies (drop_copies=True in Python)"
            )
        )
    if conflicts:
        notes.append(
            Doubt(
                f"equal examples have different labels, {conflicting:,} examples in all: {listing(conflicts)}; correct "
                "the labels, or leave all of them out with --drop-copies (drop_copies=True in Python)"
            )
        )
    for split, part in parts.items():
        if split in groups and part.targets is not None:
            counts = Counter(map(str, part.targets))
            contents = Counter(label for label, _ in set(zip(map(str, part.targets), groups[split].tolist())))
            if single := [_name(label) for label in counts if counts[label] > 1 and contents[label] == 1]:
                notes.append(
                    Doubt(
                        f"all examples of {listing(single)} in the {split} set are copies of one: a split at random "
                        "has it on both sides, and results for it mean nothing; add examples"
                    )
                )
    for split, pairs in within.items():
        notes.append(
            f"{len(pairs):,} of {len(parts[split].items):,} examples in the {split} set are exact copies of others in "
            f"it: {listing(pairs)}{'; a split at random keeps them on one side' * (split == 'train')}"
        )
    return Copies(notes, groups, surplus)


def _name(name: str) -> str:
    return printable(name if len(name) <= _LONGEST else f"...{name[-_LONGEST:]}")
