"""The classes of ImageNet-1k, recognised by WordNet id, by any of their names, or by index.

The table is data, in imagenet.csv; nothing here imports torch. Its names are those of torchvision, which are all
different; other names in WordNet are in the column "more".
"""

import csv
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ndvit.config import ViTConfig

_TABLE = Path(__file__).with_name("imagenet.csv")  # one row for each class, in the order of every published head
_ID = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")
_INDEX = re.compile(r"[0-9]{1,4}")


class ClassMap(NamedTuple):
    """The output of a model for each class name of the data, and notes for the user."""

    outputs: dict[str, int]
    notes: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1,000 classes in the order of every published head."""
    return tuple(row["name"] for row in _rows())


def like_imagenet(config: ViTConfig) -> bool:
    """Whether a network may be one for ImageNet-1k by its shape: 1,000 outputs for colour pictures."""
    return (config.num_classes, len(config.input_size), config.in_channels) == (1000, 2, 3)


@cache
def are_imagenet(classes: tuple[str, ...]) -> bool:
    """Whether these are the 1,000 classes in the usual order, by WordNet ids or by any of their names."""
    return len(classes) == len(_rows()) and all(i in _meanings(name) for i, name in enumerate(classes))


def match_classes(names: Sequence[str], classes: Sequence[str]) -> ClassMap:
    """Find the output of a model for each class name of the data.

    It is the class of the same name. For a model of ImageNet-1k it may also be the class with this WordNet id
    (n01440764, alone or within the name, as in n01440764-tench), or with this name in WordNet, regardless of case and
    of the characters between words; or, if all names are numbers from 0 to 999, the output of that number.

    Args:
        names: class names of the data.
        classes: classes of the model.

    Raises:
        ValueError: for names that the model does not have, or that match several classes.
    """
    if are_imagenet(tuple(classes)):
        return _match_imagenet(names)
    known = {name: i for i, name in enumerate(classes)}
    _refuse_unknown([name for name in names if name not in known], classes)
    return ClassMap({name: known[name] for name in names}, ())


def _match_imagenet(names: Sequence[str]) -> ClassMap:
    classes = imagenet_classes()
    if all(_INDEX.fullmatch(name) and int(name) < len(classes) for name in names):
        outputs = {name: int(name) for name in names}
        return ClassMap(outputs, _renamed(outputs, " by index"))
    meant = {name: _meanings(name) for name in names}
    hint = "a name, a WordNet id such as n01440764, or for all of them an index from 0 to 999"
    _refuse_unknown([name for name in names if not meant[name]], classes, f". A class of ImageNet goes by {hint}")
    outputs = {name: _likeliest(name, meant[name]) for name in names}
    found = set(outputs.values())
    doubtful = [  # no doubt where the data has every class that a name matches
        f"{name} is taken as {_title(i)}, not as {' or '.join(map(_title, sorted(meant[name] - {i})))}"
        for name, i in outputs.items()
        if not meant[name] <= found
    ]
    return ClassMap(outputs, (*_renamed(outputs), *doubtful))


def _likeliest(name: str, meant: set[int]) -> int:
    """The class that a name matches; of several, the one whose first name it is."""
    classes = imagenet_classes()
    if len(meant) > 1:
        first = [i for i in meant if classes[i] == name] or [i for i in meant if _plain(classes[i]) == _plain(name)]
        if len(first) != 1:
            which = " or ".join(map(_title, sorted(meant)))
            raise ValueError(f"class {name!r} may be {which}: name its folder by the WordNet id")
        return first[0]
    return next(iter(meant))


def _renamed(outputs: dict[str, int], how: str = "") -> tuple[str, ...]:
    """A note on the classes whose names differ from those of the model."""
    classes = imagenet_classes()
    other = [f"{name} = {classes[i]}" for name, i in outputs.items() if name != classes[i]]
    some = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
    return (f"{len(other):,} class{'es' * (len(other) > 1)} taken as ImageNet's{how}: {some}",) if other else ()


def _refuse_unknown(unknown: Sequence[str], classes: Sequence[str], hint: str = "") -> None:
    if unknown:
        more = f" and {len(unknown) - 10:,} more" if len(unknown) > 10 else ""
        raise ValueError(
            f"classes that the model does not know: {', '.join(unknown[:10])}{more}. "
            f"It knows {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}{hint}"
        )


def _meanings(name: str) -> set[int]:
    """Indices of the classes that a name matches."""
    ids, words = _index()
    if by_id := {ids[found] for found in _ID.findall(name.lower()) if found in ids}:
        return by_id
    return words.get(_plain(name), set())


def _title(index: int) -> str:
    return f"{_rows()[index]['wordnet']} ({imagenet_classes()[index]})"


def _plain(name: str) -> str:
    """The words of a name, in lower case."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


@cache
def _index() -> tuple[dict[str, int], dict[str, set[int]]]:
    """Indices by WordNet id; and by each name of a class, and by all its names together."""
    ids: dict[str, int] = {}
    words: dict[str, set[int]] = {}
    for i, row in enumerate(_rows()):
        ids[row["wordnet"]] = i
        together = f"{row['name']}, {row['more']}"
        for name in (row["name"], row["more"], together, *row["more"].split(",")):
            if name:
                words.setdefault(_plain(name), set()).add(i)
    return ids, words


@cache
def _rows() -> list[dict[str, str]]:
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
