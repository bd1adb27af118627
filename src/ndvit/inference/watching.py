"""Answers for files as they appear in a folder, as lines of a CSV that is also the memory of what was answered."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.bounds import counted
from ndvit.config.reading import file_options
from ndvit.data.messages import printable
from ndvit.data.sources.files import medium
from ndvit.data.sources.tables import TABLES
from ndvit.files import TEMPORARY, cell, csv_text, refuse_existing, writing
from ndvit.inference.predict import Log, check_ready, predict
from ndvit.inference.recordings import WindowPrediction
from ndvit.parts import ModelParts

SETTLED = 2.0
"""Seconds for which the size and the time of a file do not change before it is read."""
INTERVAL = 1.0
"""Default of the seconds between two looks at the folder."""
_ABOUT_FILE = ("file", "modified", "part")
_UNFINISHED = (TEMPORARY, ".part", ".partial", ".crdownload", ".filepart")

Row = Sequence[tuple[str, Any]]
"""(column, value) pairs of an answer, as `Prediction.row` returns them."""
Answer = Callable[[Path], tuple[list[Row], list[str]]]
"""The answers for the examples of a file, and the faults of those that have none."""


class Found(NamedTuple):
    """A file at one moment."""

    path: Path
    name: str  # below the folder, with / between its parts
    modified: int  # nanoseconds
    size: int

    @property
    def key(self) -> tuple[str, str]:
        """Name and time as they stand in the CSV."""
        return cell(printable(self.name)), datetime.fromtimestamp(self.modified / 1e9, UTC).isoformat()


class AnswerFile:
    """A CSV to which the answers of one file are appended whole or not at all.

    Each line has the name of its file, the time of its last change, and its place among the lines of this file (1/1).
    Lines that a power failure left incomplete are removed when the CSV is opened again.

    Args:
        path: the CSV; an existing one is continued.
        columns: names of the columns of answers.

    Raises:
        ValueError: if an existing file is not a CSV with these columns.
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, [*_ABOUT_FILE, *columns, "error"]
        self.done: set[tuple[str, str]] = set()
        refuse_existing(path, force=True)
        with writing(path):
            self._file = open(path, "ab")  # noqa: SIM115  # closed by close()
            try:
                self._continue()
            except BaseException:
                self.close()
                raise

    def _continue(self) -> None:
        """Read what was answered, and cut off what is incomplete."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        header = csv_text([self.columns]).encode()
        if not whole:
            if content and not header.startswith(content):
                raise ValueError(f"{self.path} exists and is no CSV of answers: choose another --output (output=)")
            self._file.truncate(0)
            self._write(header)
            return
        if not whole.startswith(header):
            raise ValueError(
                f"{self.path} has other columns than the answers of this model ({', '.join(self.columns[:6])}, ...): "
                "choose another --output (output=)"
            )
        lines = whole[len(header) :].decode().splitlines(keepends=True)
        rows = list(csv.reader(lines))
        kept = len(rows)
        if rows:
            place, total = rows[-1][2].split("/")
            kept -= int(place) if place != total else 0  # all lines of a file that is not whole
        self._file.truncate(len(header) + sum(len(line.encode()) for line in lines[:kept]))
        self.done = {(row[0], row[1]) for row in rows[:kept]}

    def append(self, found: Found, rows: Sequence[Row], faults: Sequence[str]) -> None:
        """Append the lines of one file; they are on the disk when this returns.

        Raises:
            OSError: if they cannot be written, with the remedy; the CSV is as before.
        """
        total, lines = len(rows) + len(faults), list[list[Any]]()
        for values in [*(dict(row) for row in rows), *({"error": fault} for fault in faults)]:
            name, modified = found.key
            about = {"file": name, "modified": modified, "part": f"{len(lines) + 1}/{total}"}
            named = {**values, **about}
            cells = [named.get(column, "") for column in self.columns]
            lines.append([printable(v) if isinstance(v, str) else v for v in cells])
        self._write(csv_text(lines).encode())
        self.done.add(found.key)

    def _write(self, content: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        with writing(self.path):
            try:
                self._file.write(content)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                os.ftruncate(self._file.fileno(), size)
                raise

    def close(self) -> None:
        """Close the CSV."""
        self._file.close()


class Folder:
    """Files of a folder and of those in it, and which of them are complete.

    Args:
        folder: the folder.
        leave: paths that are not read, such as that of the answers.
    """

    def __init__(self, folder: Path, leave: Sequence[Path] = ()) -> None:
        self.folder, self._leave = folder, {path.absolute() for path in leave}
        self._seen: dict[Path, tuple[int, int, float]] = {}  # time and size of a file, and since when they are so

    def complete(self, done: set[tuple[str, str]]) -> tuple[list[Found], int]:
        """The complete files that are not done, the oldest first, and how many others are not complete yet.

        A file is complete if neither time nor size have changed for `SETTLED` seconds, as its own time or earlier looks
        show. So a file that is renamed into the folder is complete at once.
        """
        ready, waiting, seen = list[Found](), 0, dict[Path, tuple[int, int, float]]()
        now = time.monotonic()
        for found in self._files():
            if found.key in done:
                continue
            before = self._seen.get(found.path)
            same = before is not None and before[:2] == (found.modified, found.size)
            since = before[2] if same and before else now
            seen[found.path] = found.modified, found.size, since
            age = time.time() - found.modified / 1e9
            if now - since >= SETTLED or (age >= SETTLED and (same or before is None)):
                ready.append(found)
            else:
                waiting += 1
        self._seen = seen
        return sorted(ready, key=lambda found: (found.modified, found.name)), waiting

    def _files(self) -> Iterator[Found]:
        for top, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = Path(top, name)
                if name.startswith(".") or name.lower().endswith(_UNFINISHED) or path.absolute() in self._leave:
                    continue
                if medium(path) is None and path.suffix.lower() not in TABLES:
                    continue
                try:
                    status = path.stat()
                except OSError:  # it is gone, or a broken link
                    continue
                yield Found(path, path.relative_to(self.folder).as_posix(), status.st_mtime_ns, status.st_size)


def watch_folder(
    model: ModelParts,
    folder: str | Path,
    output: str | Path,
    *,
    per_window: bool,
    once: bool,
    interval: float,
    log: Log,
    **options: Any,
) -> int:
    """Predict new files of a folder; arguments and errors as in `Model.watch`."""
    task = check_ready(model, options.get("batch_size", 64), options.get("device", "auto"), log)
    others = ("batch_size", "device", "progress")
    file_options(model.provenance, {name: value for name, value in options.items() if name not in others})
    sample = task.predictions(np.zeros((1, task.num_outputs), dtype=np.float32), [""])[0]
    row = (WindowPrediction("", 0.0, 0.0, sample) if per_window else sample).row()
    options = {"progress": False, **options, "log": lambda line: None}

    def answer(path: Path) -> tuple[list[Row], list[str]]:
        faults: list[str] = []
        found = predict(model, path, per_window=per_window, on_fault=faults.append, **options)
        rows = [dict(prediction.row()) for prediction in found]
        names = [str(row["name"]).replace(str(path), path.name, 1) for row in rows]
        return [list({**row, "name": name}.items()) for row, name in zip(rows, names)], faults

    return watch(folder, output, [name for name, _ in row], answer, once=once, interval=interval, log=log)


def watch(
    folder: str | Path,
    output: str | Path,
    columns: Sequence[str],
    answer: Answer,
    *,
    once: bool = False,
    interval: float = INTERVAL,
    log: Callable[[str], Any] = print,
) -> int:
    """Append the answers for each new file of a folder to a CSV, until SIGINT or SIGTERM.

    A file that changes later is answered again, as a new line with its new time. A file that cannot be read has a line
    with the error, and is not read again until it changes.

    Args:
        folder: where files appear, also in folders below.
        output: the CSV. It may exist from an earlier call, and is continued then.
        columns: columns of the answers.
        answer: answers one file.
        once: stop after the files that are there.
        interval: seconds between two looks at the folder.
        log: receives a line for each file.

    Returns:
        The number of files that were answered.

    Raises:
        ValueError: for a folder that is not there, a CSV of something else, or an interval of 0 or less.
        FileExistsError: if another process writes to the CSV.
        OSError: if the CSV cannot be written.
    """
    folder, output = Path(folder), Path(output)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder to watch: make it first")
    if not interval > 0:
        raise ValueError(f"interval must be above 0 s, got {interval}")
    refuse_existing(output, force=True)
    lock = output.with_name(f".{output.name}.lock")
    with _sole_writer(output, lock), _stopped_by_signals() as stop:
        answers = AnswerFile(output, columns)
        try:
            log(f"watching {folder}, {counted(len(answers.done), 'file')} answered before; answers go to {output}")
            return _watch(Folder(folder, (output, lock)), answers, answer, once, interval, stop, log)
        finally:
            answers.close()


def _watch(
    folder: Folder,
    answers: AnswerFile,
    answer: Answer,
    once: bool,
    interval: float,
    stop: threading.Event,
    log: Callable[[str], Any],
) -> int:
    count, patience = 0, SETTLED + interval  # of a single look, for files that were written just now
    while True:
        ready, waiting = folder.complete(answers.done)
        for found in ready:
            if stop.is_set():
                break
            try:
                rows, faults = answer(found.path)
            except FileNotFoundError:
                continue  # taken away since the look
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                rows, faults = [], [str(error) or type(error).__name__]
            if not (rows or faults):
                faults = ["has no examples"]
            answers.append(found, rows, faults)
            count += 1
            log(f"{found.name}: {counted(len(rows), 'answer')}{_first(faults)}")
        if once and (not waiting or patience <= 0):
            return count
        patience -= interval
        if stop.wait(interval):
            log(f"stopped; {counted(count, 'file')} answered")
            return count


def _first(faults: Sequence[str]) -> str:
    return f"; {len(faults):,} not answered: {faults[0]}" if faults else ""


@contextmanager
def _sole_writer(output: Path, lock: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        with writing(output):
            held.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"another process writes to {output}: wait until it ends, stop it, or choose another --output (output=)"
        ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the file in work is finished; a second SIGINT interrupts it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    usual = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def end(kind: int, _: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, usual[signal.SIGINT])

    for kind in usual:
        signal.signal(kind, end)
    try:
        yield stop
    finally:
        for kind, before in usual.items():
            signal.signal(kind, before)
