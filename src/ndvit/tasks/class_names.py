"""Names of classes: how they are read from raw targets, and tasks with one output for each of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from ndvit.config.bounds import brief
from ndvit.tasks.base import Task

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_LONGEST = 1000  # letters of the name of a class
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # data never have them: `load_source` escapes them


class ClassTask(Task):
    """A task with one output for each class; `classes` are their names in the order of the outputs."""

    classes: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """One output for each class."""
        return len(self.classes)

    def kept_outputs(self, other: Task) -> list[int | None] | None:
        """Classes of the same name keep their outputs, if the other task is of the same kind."""
        index = dict[str, int]()
        if isinstance(other, ClassTask) and (isinstance(other, type(self)) or isinstance(self, type(other))):
            index = {name: i for i, name in enumerate(other.classes)}
        kept = [index.get(name) for name in self.classes]
        return None if all(place is None for place in kept) else kept

    def output_names(self) -> list[str]:
        """The classes."""
        return list(self.classes)


def known_names(names: Mapping[str, set[str]]) -> list[str]:
    """Those of the training set, or of all splits where there is none, sorted; by value if all are numbers."""
    known = names["train"] if "train" in names else set().union(*names.values())
    try:
        return sorted(known, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(known)


def refuse_unknown(names: Mapping[str, set[str]], known: Collection[str], what: str, where: str) -> None:
    """Raise a ValueError if a split has names that the training set lacks; `what` is their kind in the message."""
    for split, there in names.items():
        if unknown := sorted(there.difference(known)):
            listed = ", ".join(unknown[:10]) + f" and {len(unknown) - 10:,} more" * (len(unknown) > 10)
            raise ValueError(f"{where}: {what} {listed} are in the {split} set but not in the training set")


class ClassName(str):
    """A raw target that is the name of a class whatever it looks like, such as that of a folder called NA or 1.5."""


def literal_names(targets: Sequence[Any]) -> list[Any]:
    """The raw targets as names of classes; those that are missing, and several for one example, remain."""
    several = (tuple, set, frozenset, Mapping)
    return [v if v is None or isinstance(v, several) else ClassName(class_name(v)) for v in targets]


def check_classes(targets: Sequence[Any], where: str) -> None:
    """Raise a ValueError if raw targets look continuous: numbers with fractions, also as text.

    Text counts if all labels are numbers of different values, so that 1.1 and 1.10 are names.
    """
    unnamed = [value for value in targets if not isinstance(value, ClassName)]
    if several := next((v for v in unnamed if isinstance(v, tuple | set | frozenset | Mapping)), None):
        columns = f" ({', '.join(map(str, several))})" if isinstance(several, Mapping) else ""
        raise ValueError(
            f"{where}: the targets have {len(several)} columns{columns}; classification expects one class for each "
            "example: pass the column with the labels, y[NAME] or y[:, 0]. If an example may have several labels, set "
            "--task multilabel, for several numbers --task regression (task=... in Python)"
        )
    distinct = {value for value in unnamed if isinstance(value, Real | str)}
    fractions = [float(value) for value in distinct if isinstance(value, Real) and value % 1 != 0]  # infinity, too
    if not fractions and all(isinstance(value, str) and _NUMBER.fullmatch(value) for value in unnamed):
        values = {float(value) for value in distinct}
        fractions = [value for value in values if not value.is_integer()] if len(values) == len(distinct) else []
    if fractions:
        some = ", ".join(f"{value:.6g}" for value in sorted(fractions)[:3])
        raise ValueError(
            f"{where}: the targets look continuous, with {len(distinct):,} different numbers such as {some}; "
            "classification needs classes. To predict numbers, set --task regression (task='regression' in Python, or "
            "ViTRegressor); if they are names of classes, --literal-labels (literal_labels=True in Python)"
        )


def joined_names(values: Sequence[Any]) -> list[tuple[str, str]]:
    """Classes that join the names of others by a semicolon or a bar, with that sign."""
    names = {value for value in values if type(value) is str}
    parts = {name: sign for name in sorted(names) for sign in ";|" if sign in name}
    counts = Counter(part.strip() for name in names for part in re.split("[;|]", name))
    return [
        (name, sign) for name, sign in parts.items() if all(counts[part.strip()] > 1 for part in re.split("[;|]", name))
    ]


def check_class_names(classes: Sequence[Any]) -> tuple[str, ...]:
    """The names of classes that were read from a file, or passed by a user.

    Raises:
        ValueError: unless they are different texts that are not empty.
    """
    for name in classes:
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST or _CONTROLS.search(name):
            raise ValueError(
                f"classes must be texts of 1 to {_LONGEST:,} letters without control characters, got {brief(name)}"
            )
    if len(set(classes)) != len(classes):
        twice = next(name for name, count in Counter(classes).items() if count > 1)
        raise ValueError(f"classes must be a list of different names, got {brief(twice)} twice")
    return tuple(classes)


def class_name(value: Any) -> str:
    """A raw target, which is not missing, as text: the floating-point number 1.0 is "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def by_value(label: Any) -> str:
    """A label as text that numbers of the same value share, such as 1 and 1.0."""
    try:
        return str(float(str(label)))
    except ValueError:
        return str(label)
