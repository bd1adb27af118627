"""Columns beside inputs and targets: groups of examples, such as patients, which no split divides; and weights."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ndvit.config.bounds import counted
from ndvit.config.reading import PATH
from ndvit.data.examples import Examples, Part, are_streamed
from ndvit.data.messages import Doubt, listing, printable
from ndvit.data.name_parts import group_hint, label_hint
from ndvit.data.sources.containers import is_missing

_FIELD = re.compile(r"\{(\w*)\}|\*")
_LONGEST = 40  # letters of the name of a group in a message
FEW_GROUPS = 6  # that a note names all


def groups_of(group_by: str, parts: dict[str, Part], where: str) -> dict[str, list[str]]:
    """The name of the group of each example.

    Args:
        group_by: a column that the parts have, or path:PATTERN, see `ReadingOptions`.
        parts: the examples of each split.
        where: name of the source in messages.

    Raises:
        ValueError: if the source has no such column, the pattern does not fit the names of all files, or an example has
            no group.
    """
    if group_by.startswith(PATH):
        return names_in_paths(group_by, parts, where, "group_by")
    if lacking := [split for split, part in parts.items() if group_by not in part.columns]:
        raise ValueError(
            f"{where}: the {lacking[0]} set has no column or array {printable(group_by)!r} to group by; for a part of "
            f"the files' paths use path:PATTERN, for example {_example(parts)} (--group-by, group_by=)"
        )
    found: dict[str, list[str]] = {}
    for split, part in parts.items():
        found[split] = group_names(part.columns[group_by], part.names, where, printable(group_by))
    return found


def names_in_paths(text: str, parts: dict[str, Part], where: str, option: str) -> dict[str, list[str]]:
    """The first name in braces of path:PATTERN, in the path of each example.

    Args:
        text: path:PATTERN, see `ReadingOptions`.
        parts: the examples of each split.
        where: name of the source in messages.
        option: name of the option in messages.

    Raises:
        ValueError: if the pattern does not fit the names of all files.
    """
    pattern = _pattern(text.removeprefix(PATH), option)
    return {split: _in_names(part, *pattern, text, where, option) for split, part in parts.items()}


def group_names(values: Sequence[Any], names: Sequence[str], where: str, what: str) -> list[str]:
    """Groups as text.

    Args:
        values: one for each example.
        names: names of the examples.
        where: name of the data in messages.
        what: name of the groups in messages.

    Raises:
        ValueError: for examples without a group.
    """
    if missing := [names[i] for i, value in enumerate(values) if is_missing(value) or not str(value).strip()]:
        raise ValueError(
            f"{where}: {counted(len(missing), 'example')} without {what}: {listing(missing)}. Add it, or "
            "remove these examples"
        )
    return [printable(_plain(value)) for value in values]


def sample_weights(column: str, part: Part, where: str) -> np.ndarray:
    """The weights in a column, divided by their mean, (n,).

    Raises:
        ValueError: if the source has no such column, or a weight is no finite number of at least 0, or all are 0; and
            for streamed examples.
    """
    if column not in part.columns:
        raise ValueError(f"{where}: the train set has no column or array {printable(column)!r} with sample weights")
    if are_streamed(part.items):
        raise ValueError(f"{where}: is streamed, and its examples cannot be weighted: use data that are not")
    try:
        weights = np.array([float(value) for value in part.columns[column]])
    except (TypeError, ValueError):
        weights = np.array([np.nan])
    return relative_weights(weights, f"{where}: the sample weights in {printable(column)}")


def without(examples: Examples, names: Container[str]) -> int:
    """Set the weights of the examples with these names to 0, and return their number.

    Raises:
        ValueError: if none would remain.
    """
    chosen = np.array([name in names for name in examples.names], dtype=bool)
    if chosen.any():
        weights = np.ones(len(examples)) if examples.weights is None else examples.weights
        examples.weights = relative_weights(np.where(chosen, 0.0, weights), "the weights of the examples that remain")
    return int(chosen.sum())


def relative_weights(weights: np.ndarray, where: str) -> np.ndarray:
    """Weights divided by their mean, (n,).

    Raises:
        ValueError: unless they are finite numbers of at least 0, some above 0.
    """
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            f"{where} must be finite numbers, none below zero and some above zero; remove examples that have none"
        )
    scaled: np.ndarray = weights / weights.mean()
    return scaled


def describe_groups(groups: dict[str, list[str]], group_by: str) -> list[str]:
    """Notes on the number of groups, and a doubt about groups that several splits of the source share."""
    sets = {split: set(names) for split, names in groups.items()}
    counts = ", ".join(f"{split} {len(found):,}{named_groups(found)}" for split, found in sets.items())
    notes = [f"groups by {group_by}: {counts}"]
    for split, found in sets.items():
        for other, names in sets.items():
            if split < other and (both := sorted(found & names)):
                notes.append(
                    Doubt(
                        f"{len(both):,} groups are in the {split} set and in the {other} set of the source "
                        f"({listing([name[:_LONGEST] for name in both])}), so that results are too good: provide a "
                        "split by groups, or none, and one is made"
                    )
                )
    return notes


def named_groups(groups: Iterable[str]) -> str:
    """The names of a few groups in brackets, of many the first ones, with a space before."""
    names = [name[:_LONGEST] for name in sorted(set(groups))]
    return f" ({listing(names, FEW_GROUPS if len(names) <= FEW_GROUPS else 3)})" if names else ""


def _example(parts: Mapping[str, Part]) -> str:
    """An option of grouping that fits the names of the files, or one in general."""
    names = [name for part in parts.values() for name in part.names]
    return group_hint(names) or "path:{speaker}_{take}"


def _plain(value: Any) -> str:
    """The text of a group: 3.0, as tables with missing values hold whole numbers, is 3."""
    value = value.item() if isinstance(value, np.generic) else value
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _pattern(text: str, option: str) -> tuple[re.Pattern[str], int]:
    """A pattern as a regular expression for the last parts of a path, and their number.

    A field matches everything but slashes and the separators of the pattern, so that it fits in one way.

    Raises:
        ValueError: for a pattern without a field in braces.
    """
    if "{" not in text or not (fields := list(_FIELD.finditer(text))):
        raise ValueError(
            f"{option} has the pattern {text!r}, which names no {option.removesuffix('_by')}: put it in braces, as in "
            "path:{speaker}_{take} or path:{subject}/*/*"
        )
    separators = {letter for letter in _FIELD.sub("", text) if not letter.isalnum()} | {"/"}
    any_text = f"[^{re.escape(''.join(sorted(separators)))}]+"
    expression, end, group = "", 0, False
    for field in fields:
        captured = field[0] != "*" and not group  # the first name in braces is the group
        group |= captured
        expression += re.escape(text[end : field.start()]) + (f"({any_text})" if captured else any_text)
        end = field.end()
    return re.compile(expression + re.escape(text[end:])), text.count("/") + 1


def _in_names(part: Part, pattern: re.Pattern[str], levels: int, text: str, where: str, option: str) -> list[str]:
    groups: list[str] = []
    for name in part.names:
        path = PurePosixPath(name)
        last = "/".join(path.parts[-levels:])
        found = pattern.fullmatch("/".join(path.with_suffix("").parts[-levels:])) or pattern.fullmatch(last)
        if found is None:
            hint = group_hint(part.names) if option == "group_by" else label_hint(part.names)
            raise ValueError(
                f"{where}: the name {name[-80:]!r} does not fit the pattern of {option} {text!r}, in which a name "
                "in braces and * stand for text without the pattern's separators; change it so that it fits "
                f"every file, or use a .csv with a column of paths{f'; {hint}' if hint else ''}"
            )
        groups.append(found[1])
    return groups
