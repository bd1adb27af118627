"""Parts of messages: doubts, shortened lists, text without control characters, and the refusal of bad input."""

import re
import sys
import warnings
from collections.abc import Iterable, Sequence

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_GROUPS = frozenset(
    word + ending
    for word in (
        "group",
        "subject",
        "patient",
        "session",
        "participant",
        "person",
        "speaker",
        "recording",
        "individual",
    )
    for ending in ("", "s")
)
"""Words in the names of arrays and columns with groups of examples: subject_id, PatientID."""
_LONGEST_NAME = 60  # letters of a name in a note
_LONGEST_LIST = 1200  # letters of a list of faults


class DataWarning(UserWarning):
    """Data may mean something else than they were read as; the message says how to make sure.

    Example:
        >>> import warnings
        >>> from ndvit import DataWarning
        >>> warnings.simplefilter("error", DataWarning)  # stop at doubtful data
        >>> warnings.simplefilter("default", DataWarning)  # print them, as usual
    """


class Doubt(str):
    """A note that data may mean something else than they were read as; it is also raised as a `DataWarning`."""


class LayoutDoubt(Doubt):
    """A doubt about folders that may be labels or groups; options that name them remove it.

    Attributes:
        folders: names of these folders.
    """

    folders: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str, folders: Iterable[str]) -> "LayoutDoubt":
        """The doubt with its folders."""
        doubt = cls(text)
        doubt.folders = frozenset(folders)
        return doubt


class Ungrouped(str):
    """A note that names groups of examples, such as subjects, which are not read; see `ungrouped`.

    Attributes:
        option: what reads them on the command line.
    """

    option: str = "--group-by NAME (group_by=)"

    @classmethod
    def of(cls, text: str, option: str) -> "Ungrouped":
        """The note with its option."""
        note = cls(text)
        note.option = option
        return note


class LeftOut(str):
    """A note that examples were left out.

    Attributes:
        faults: name and fault of each of them.
    """

    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, faults: Iterable[str]) -> "LeftOut":
        """The note with its faults."""
        note = cls(text)
        note.faults = tuple(faults)
        return note


def warn_of_doubts(notes: Iterable[str]) -> None:
    """Raise a `DataWarning` for each `Doubt` among notes, at the line outside of ndvit that called it."""
    for note in notes:
        if isinstance(note, Doubt):
            warn(note, DataWarning)


def warn(message: str, category: type[Warning]) -> None:
    """Raise a warning at the line outside of ndvit that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ndvit":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def unread(what: str, names: Iterable[str]) -> list[str]:
    """Return notes that name contents of a source that are not read.

    Args:
        what: kind of the contents, such as "arrays" or "columns".
        names: their names.

    Returns:
        One note, or none; an `Ungrouped` if a name is that of groups, which come first.
    """
    found = list(names)
    groups = [name for name in found if names_groups(name)]
    if not found:
        return []
    ordered = groups + [name for name in found if name not in groups]
    note = f"{what} not read: {listing([name[:_LONGEST_NAME] for name in ordered], 20)}"
    return [Ungrouped(note) if groups else note]


def names_groups(name: str) -> bool:
    """Whether a name is one of groups of examples, such as subject_id or PatientID."""
    words = re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name[:_LONGEST_NAME]))
    return not _GROUPS.isdisjoint(word.lower() for word in words)


def ungrouped(note: Ungrouped) -> Doubt:
    """Return the doubt about a random split of examples that have groups, from the note that names these."""
    return Doubt(
        f"{note}; the split at random ignores groups, so that examples of one subject or recording can be on both "
        f"sides and the accuracy is too high: split by them with {note.option}, or provide a test set of other groups "
        "yourself"
    )


def listing(names: Sequence[str], most: int = 3) -> str:
    """Return the first names and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def printable(text: str) -> str:
    """Escape line breaks, other control characters, undecodable bytes and changes of direction, as repr does."""
    escaped = _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
    if isinstance(text, LeftOut):
        return LeftOut.of(escaped, map(printable, text.faults))
    if isinstance(text, Ungrouped):
        return Ungrouped.of(escaped, printable(text.option))
    return type(text)(escaped) if isinstance(text, Doubt) else escaped


def cannot_be_used(where: str, faults: Sequence[str], total: int, what: str) -> ValueError:
    """Return the error for bad input, one line with the first faults."""
    most, letters = 0, 0
    while most < min(len(faults), 20) and letters + len(faults[most]) < _LONGEST_LIST:
        letters += len(faults[most])
        most += 1
    most = max(most, 1)
    found = "; ".join(fault[:_LONGEST_LIST] for fault in faults[:most])
    more = f"; and {len(faults) - most:,} more" if len(faults) > most else ""
    return ValueError(
        f"{where}: {len(faults):,} of {total:,} {what} cannot be used: {printable(found)}{more}. Repair or remove "
        "them, or leave them out with --skip-bad (skip_bad=True in Python)"
    )
