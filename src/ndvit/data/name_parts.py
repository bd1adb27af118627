"""Parts of file names that look like labels or groups, and the patterns of options that take them.

They are suggestions for messages only: nothing is read from a name unless an option has a pattern.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from ndvit.config.reading import PATH
from ndvit.data.examples import Part
from ndvit.data.messages import Ungrouped, listing, printable

_FEWEST_EACH = 3  # examples that a group has on average where a part of the names is suspected to be one
_FEWEST_OF_LABEL = 2  # likewise of a label
_WORD = re.compile(r"[^\W\d_]+\d*")
_SEPARATORS = re.compile(r"[_\-. ]+")
_LONGEST = 40  # letters of a part in a message
_MOST_NAMES = 5_000  # names that are looked at for a suggestion


class NamePart(NamedTuple):
    """A part of the names of files at a fixed place between separators.

    Attributes:
        values: what stands there, one for each name.
        pattern: the names with * for the other parts and {} for this one: *_{}_*.
    """

    values: tuple[str, ...]
    pattern: str

    @property
    def distinct(self) -> list[str]:
        """The different values, in the order of the names."""
        return list(dict.fromkeys(self.values))

    @property
    def is_of_words(self) -> bool:
        """Whether every value is a word, perhaps with a number at its end: anna, pump1."""
        return all(map(_WORD.fullmatch, self.distinct))

    def option(self, flag: str, name: str) -> str:
        """A flag of the command line that takes this part."""
        return f"{flag} '{PATH}{self.pattern.format('{' + name + '}')}'"

    def listed(self) -> str:
        """The first values, for messages."""
        return listing([value[:_LONGEST] for value in self.distinct])


def parts_of_names(names: Sequence[str]) -> list[NamePart]:
    """The parts of names without folders and endings; none unless all have as many, two or more, alike separated."""
    stems = [PurePosixPath(name).stem for name in names[:_MOST_NAMES]]
    if not stems or len({tuple(_SEPARATORS.findall(stem)) for stem in stems}) > 1:
        return []
    split = [_SEPARATORS.split(stem) for stem in stems]
    separators = _SEPARATORS.findall(stems[0])
    if not separators or not all(all(parts) for parts in split):
        return []
    found = []
    for place, values in enumerate(zip(*split)):
        found.append(NamePart(tuple(values), _pattern(separators, place)))
    return found


def _pattern(separators: Sequence[str], place: int) -> str:
    """{} for the part at a place between separators, and * for the others."""
    fields = ["{}" if i == place else "*" for i in range(len(separators) + 1)]
    return "".join(field + separator for field, separator in zip(fields, [*separators, ""]))


def label_hint(names: Sequence[str], known: Sequence[str] = ()) -> str:
    """A clause on the parts of file names and the option that reads one as the label; empty if none looks like one.

    Args:
        names: names of the files.
        known: values that are something else already, such as groups.
    """
    parts = parts_of_names(names)
    usable = [
        part
        for part in parts
        if 2 <= len(part.distinct) <= len(part.values) / _FEWEST_OF_LABEL and not set(part.distinct) <= set(known)
    ]
    if not usable:
        return ""
    label = min(usable, key=lambda part: (not part.is_of_words, len(part.distinct)))
    others = [part for part in usable if part is not label and part.is_of_words]
    all_parts = " / ".join(part.listed() for part in parts)
    hint = f"the files' names have the parts {all_parts}: {label.option('--label', 'label')} reads {label.listed()}"
    if others and not known:
        together = others[0].listed()
        hint += f", and {others[0].option('--group-by', 'group')} keeps the files of each of {together} on one side"
    return printable(hint)


def group_hint(names: Sequence[str], labels: Sequence[str] = ()) -> str:
    """A clause on the option that groups by a part of file names; empty if none looks like a group."""
    parts = [part for part in parts_of_names(names) if part.is_of_words and not set(part.distinct) <= set(labels)]
    fitting = [part for part in parts if 2 <= len(part.distinct) <= len(part.values) / _FEWEST_OF_LABEL]
    if not fitting:
        return ""
    return printable(f"{fitting[0].option('--group-by', 'group')} groups these files by {fitting[0].listed()}")


def suspected_groups(parts: dict[str, Part]) -> list[str]:
    """Notes on a part of the files' names that looks like a group, for a source that is split at random.

    Such a part is a word (subject1, anna) at a fixed place of the name, with several examples for each of its values,
    which is not the label.
    """
    if set(parts) != {"train"} or not (part := parts["train"]).items:
        return []
    stems: list[list[str]] = []
    for name in part.names:  # ends at the first that differs, because shards may have millions of names
        stems.append(_SEPARATORS.split(PurePosixPath(name).stem))
        if not 2 <= len(stems[-1]) == len(stems[0]):
            return []
    length = len(stems[0])
    labels = [str(target) for target in part.targets or [""] * len(stems)]
    for place in range(length):
        values = [stem[place] for stem in stems]
        if _looks_like_groups(values, labels):
            pattern = _pattern(_SEPARATORS.findall(PurePosixPath(part.names[0]).stem), place)
            suspected = NamePart(tuple(values), pattern)
            note = f"the names of the files have a part that may be a group ({suspected.listed()}), which is not read"
            return [Ungrouped.of(note, f"{suspected.option('--group-by', 'group')} (group_by=)")]
    return []


def _looks_like_groups(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether values are few words with several examples each, and neither decide the label nor follow from it."""
    distinct = set(values)
    if not 2 <= len(distinct) <= len(values) / _FEWEST_EACH or not all(map(_WORD.fullmatch, distinct)):
        return False
    if any(value.lower() in {label.lower() for label in labels} for value in distinct):
        return False
    classes: dict[str, set[str]] = defaultdict(set)
    for value, label in zip(values, labels):
        classes[value].add(label)
    return any(len(found) > 1 for found in classes.values())
