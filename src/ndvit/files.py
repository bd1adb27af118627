"""Files: only regular ones are read, archives unpack to bounded sizes, and files are written whole or not at all.

A file is never written over an existing one by accident, and a folder by one process at a time.
"""

import codecs
import csv
import errno
import io
import os
import re
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

LOCK_FILE = ".lock"
TEMPORARY = ".tmp"  # ending of a file that is being written
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or choose another output",
    errno.EDQUOT: "your share of the disk is full: free some space, or choose another output",
    errno.EFBIG: "files of this size are not allowed here: choose another output",
    errno.EACCES: "permission denied: make its folder writable, or choose another output",
    errno.EPERM: "it is not permitted: make its folder writable, or choose another output",
    errno.EROFS: "the file system is read-only: choose another output",
    errno.EIO: "the disk reports an error: choose another output",
    errno.ENOTDIR: "a part of its path is a file: choose another output",
    errno.EISDIR: "there is a folder of this name: choose another output",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter output",
}
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device"}
_KINDS[stat.S_IFBLK] = "device"
_LONGEST_LINE = 2**24  # characters: two million values or more
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # first characters that make a cell a formula ("CSV Injection", OWASP)
_MOST_UNPACKED = 2**28  # bytes of which any ratio is allowed
_RATIO = 100  # measurements and text shrink to a third or a tenth


def check_regular(path: str | Path) -> None:
    """Refuse a pipe, socket, device or folder before it is opened: reading it could wait or go on for ever.

    Raises:
        ValueError: without the path; also for links to such files.
        FileNotFoundError: if there is no such file.
    """
    if fault := irregular(path):
        raise ValueError(fault)


def irregular(path: str | Path) -> str | None:
    """The reason why a path is not to be opened as a file; None for a regular file or a link to one."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind == stat.S_IFREG:
        return None
    return f"is a {_KINDS.get(kind, 'special file')}, expected a regular file: save its content as a file first"


def bounded_lines(file: TextIO) -> Iterator[str]:
    """The lines of a text file, with their ends; a file without line breaks is not read whole.

    Raises:
        ValueError: for a line of 2**24 characters or more, without the path.
    """
    for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), ""), start=1):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"line {number} has {_LONGEST_LINE:,} characters or more; expected one example in a line")
        yield line


def text_encoding(path: Path) -> str:
    """Return the encoding of a text by its byte order mark; UTF-8 without one."""
    with path.open("rb") as file:
        start = file.read(3)
    if start == codecs.BOM_UTF8:
        return "utf-8-sig"
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"


def unpacking_fault(unpacked: int, stored: int, values: int = 0) -> str | None:
    """The reason why compressed content could fill the memory: above 256 MiB, it may be 100 times its stored size.

    Args:
        unpacked: bytes that the content claims.
        stored: bytes of its file.
        values: numbers that the content claims, if they are converted later, with up to 8 bytes each.
    """
    if max(unpacked, 8 * values) <= _MOST_UNPACKED or unpacked <= _RATIO * stored:
        return None
    return (
        f"unpacks from {stored:,} bytes to {unpacked:,}, more than {_RATIO} times as many, which could fill the "
        "memory: if the data are real, save them without compression"
    )


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name the file and a remedy in errors of the operating system while it is written, such as a full disk.

    Raises:
        OSError: of the same class, with a message in one line.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        named = type(error)(f"{path} cannot be written, {remedy}")
        named.errno = error.errno
        raise named from error


def replace_file(path: Path, write: str | bytes | Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it over the old one.

    The bytes are on the disk before the file has its name, so that a power failure leaves the old file or the new one.

    Args:
        path: the file.
        write: its text (stored as UTF-8), its bytes, or a function that writes it to a path.

    Raises:
        FileNotFoundError: if the folder does not exist.
        OSError: if it cannot be written, with the remedy; the old file is unchanged.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    temporary = path.with_name(path.name + TEMPORARY)
    with writing(path):
        try:
            if isinstance(write, str):
                temporary.write_text(write, encoding="utf-8")
            elif isinstance(write, bytes):
                temporary.write_bytes(write)
            else:
                write(temporary)
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
        _flush_folder(path.parent)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows of texts and numbers as CSV, see `cell`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(cell, row)) for row in rows])
    return text.getvalue()


def cell(value: Any) -> str:
    """A value as a cell of CSV. A text that a spreadsheet would compute as a formula starts with an apostrophe."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they exist.

    Raises:
        OSError: if that is impossible, with the remedy.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def _flush_folder(path: Path) -> None:
    """Write the names in a folder to the disk, where the operating system can do that."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def sole_process(folder: Path) -> Iterator[None]:
    """Keep other processes, and other calls of this one, out of an existing folder.

    The operating system frees the lock when its process ends in any way, also when it is killed.

    Raises:
        FileExistsError: if the folder is in use, with the process that uses it.
        OSError: if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK_FILE
    lock = FileLock(path)
    try:
        with writing(path):
            lock.acquire(timeout=0.2, poll_interval=0.02)
    except Timeout:
        raise FileExistsError(_in_use(folder)) from None
    try:
        with suppress(OSError):  # on Windows no one can write to a locked file, and the message then lacks the process
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):  # while it is held, so that the next process makes a file of its own
            path.unlink()
        lock.release()


def refuse_busy(folder: Path) -> None:
    """Raise the errors of `sole_process` for a folder, which need not exist, without keeping it."""
    if (folder / LOCK_FILE).is_file():
        with sole_process(folder):
            pass


def _in_use(folder: Path) -> str:
    holder = ""
    with suppress(OSError):
        holder = (folder / LOCK_FILE).read_text(errors="replace")[:100]
    return f"{folder} is in use by {holder or 'another process'}: wait until it ends, stop it, or choose another output"


def refuse_existing(path: str | Path, force: bool = False, *, kind: Literal["file", "folder", "run"] = "file") -> None:
    """Refuse an output that cannot be written, or that would overwrite something, before anything is computed.

    Args:
        path: the output.
        force: allow replacing it.
        kind: a "file", whose folder must exist; a "folder", which may exist if it is empty; or a "run", a folder that
            may be replaced even if it holds a run.

    Raises:
        FileNotFoundError: if there is no folder for the file.
        FileExistsError: if the output exists.
        OSError: if nothing can be written there, with the remedy.
    """
    path = Path(path)
    if kind == "file" and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: create it first")
    _refuse_unwritable(path)
    run = path.parent if path.name == "model.safetensors" else path
    if kind != "run" and (run / "config.yaml").is_file():
        raise FileExistsError(f"{path} belongs to a run, whose model would be lost: choose another output")
    if kind == "file" and path.is_dir():
        raise FileExistsError(f"{path} exists and is a folder: choose the name of a file as output")
    if not force and path.exists() and (kind == "file" or not path.is_dir() or contents(path)):
        raise FileExistsError(f"{path} exists: choose another output, or replace it with --force (force=True)")


def contents(folder: Path) -> list[Path]:
    """What a folder contains, without what a killed process may leave: a lock, and files that are not complete."""
    return [path for path in folder.iterdir() if path.name != LOCK_FILE and path.suffix != TEMPORARY]


def _refuse_unwritable(path: Path) -> None:
    """Raise the error that writing to a path would raise, as far as it can be known before."""
    above = next(folder for folder in (*([path] if path.is_dir() else []), *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written, {_REMEDIES[errno.ENOTDIR]}")
    if not os.access(above, os.W_OK):
        with writing(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
