"""Parts of messages: doubts, shortened lists, text without control characters, and the refusal of bad input."""

import re
import sys
import warnings
from collections.abc import Iterable, Sequence

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class DataWarning(UserWarning):
    """Data may mean something else than they were read as; the message says how to make sure."""


class Doubt(str):
    """A note that data may mean something else than they were read as; it is also raised as a `DataWarning`."""


def warn_of_doubts(notes: Iterable[str]) -> None:
    """Raise a `DataWarning` for each `Doubt` among notes, at the line outside of ndvit that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ndvit":
        frame, level = frame.f_back, level + 1
    for note in notes:
        if isinstance(note, Doubt):
            warnings.warn(note, DataWarning, stacklevel=level)


def listing(names: Sequence[str], most: int = 3) -> str:
    """Return the first names and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def printable(text: str) -> str:
    """Escape line breaks, other control characters, undecodable bytes and changes of direction, as repr does."""
    escaped = _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)
    return Doubt(escaped) if isinstance(text, Doubt) else escaped


def cannot_be_used(where: str, faults: Sequence[str], total: int, what: str) -> ValueError:
    """Return the error for bad input, with the first 20 faults."""
    lines = [*faults[:20], *([f"and {len(faults) - 20:,} more"] if len(faults) > 20 else [])]
    return ValueError(
        "\n  ".join([f"{where}: {len(faults):,} of {total:,} {what} cannot be used:", *lines])
        + "\nRepair or remove them, or leave them out with --skip-bad (skip_bad=True in Python)."
    )
