"""Parts of messages: shortened lists, text without control characters, and the refusal of bad input."""

import re
from collections.abc import Sequence

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def listing(names: Sequence[str], most: int = 3) -> str:
    """Return the first names and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def printable(text: str) -> str:
    """Escape line breaks, other control characters, undecodable bytes and changes of direction, as repr does."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def cannot_be_used(where: str, faults: Sequence[str], total: int, what: str) -> ValueError:
    """Return the error for bad input, with the first 20 faults."""
    lines = [*faults[:20], *([f"and {len(faults) - 20:,} more"] if len(faults) > 20 else [])]
    return ValueError(
        "\n  ".join([f"{where}: {len(faults):,} of {total:,} {what} cannot be used:", *lines])
        + "\nRepair or remove them, or leave them out with --skip-bad (skip_bad=True in Python)."
    )
