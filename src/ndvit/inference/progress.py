"""Lines of text about the progress of long work, where there are no progress bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

FIRST = 15.0  # seconds before the first line, and between two lines
MOST = 12  # lines about one piece of work


class ProgressLines:
    """Logs how far a piece of work is and how long the rest will take, about every tenth of the expected time.

    Work of a few seconds gets no line.

    Args:
        log: receives the lines.
        what: format of the first words of a line, with `done` and `total`.
        total: amount of work.
        start: amount that was done before.
    """

    def __init__(self, log: Callable[[str], object], what: str, total: int, start: int = 0) -> None:
        self.log, self.what, self.total, self.start = log, what, total, start
        self.began = self.last = time.perf_counter()
        self.lines = 0

    def update(self, done: int, note: Callable[[], str] | None = None) -> None:
        """Log a line if one is due.

        Args:
            done: amount of work that is done.
            note: returns further words for a line; it is called for lines only.
        """
        now = time.perf_counter()
        if now - self.last < FIRST or self.lines == MOST or not self.start < done < self.total:
            return
        left = (now - self.began) / (done - self.start) * (self.total - done)
        if now - self.last < (now - self.began + left) / (MOST - 2) and self.lines:
            return
        self.last, self.lines = now, self.lines + 1
        words = self.what.format(done=done, total=self.total)
        self.log(f"{words} ({100 * done / self.total:.0f} %){note() if note else ''}, {duration(left)} left")
        sys.stdout.flush()  # a log file has the line at once, although Python collects what it prints there


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    if seconds < 7200:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h" if seconds < 172_800 else f"about {seconds / 86_400:.3g} days"
