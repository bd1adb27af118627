"""Output of the commands. Everything that they print passes through here, because names come from strangers' files.

Control characters, with which a name could command the terminal, are escaped, and cells of CSV cannot become formulas.
"""

import json
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from ndvit.data.messages import printable
from ndvit.files import csv_text

_LONGEST = 1900  # letters of a line about a command; longer ones repeat what is in a file
_BAR = re.compile(r"\r|(?:\x1b\[A)*\Z")  # what moves the cursor for progress bars


class Plain:
    """A text stream without control characters except line ends, tabs, and the cursor of progress bars."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.rich_proxied_file = stream  # the help pages of cyclopts, printed by rich, have colours

    def write(self, text: str) -> int:
        """Write text with escaped control characters, and with those that the encoding of the stream lacks."""
        moves = _BAR.match(text)
        start = moves.end() if moves else 0
        escaped = text[:start] + _escaped(text[start:])
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(escaped.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Escape what is printed to both standard streams, also by libraries and in the traceback of an error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Plain(sys.stdout), Plain(sys.stderr)
    try:
        yield
    except Exception:
        sys.excepthook = _print_traceback
        raise
    finally:
        sys.stdout, sys.stderr = before


def out(text: object) -> None:
    """Print lines of results."""
    print(_escaped(str(text)))


def remark(line: object) -> None:
    """Print a line to standard error, which keeps CSV and JSON on standard output clean."""
    for part in str(line).split("\n"):
        print(shortened(part), file=sys.stderr)


def error_line(message: str) -> None:
    """Print an error in the user's input as one line."""
    print(shortened("ndvit: " + re.sub(r"\s*\n\s*", " ", message.strip())), file=sys.stderr)


def print_json(values: Any) -> None:
    """Print plain values as JSON."""
    for line in json.dumps(values, indent=1, ensure_ascii=False).split("\n"):
        plain = printable(line) == line
        print(line if plain else "".join(c if printable(c) == c else f"\\u{ord(c):04x}" for c in line))


def print_csv(rows: Sequence[Sequence[Any]]) -> None:
    """Print rows of texts and numbers as CSV."""
    sys.stdout.write(csv_text(rows))


def shortened(line: str, most: int = _LONGEST) -> str:
    """A line without control characters, and without its middle if it is very long: the remedy is at the end."""
    if len(line) > 2 * most:
        line = line[:most] + line[-most:]
    line = printable(line)
    return line if len(line) <= most else f"{line[: most * 3 // 4]} [...] {line[-most // 5 :]}"


def _escaped(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    Plain(sys.stderr).write("".join(traceback.format_exception(kind, error, where)))
