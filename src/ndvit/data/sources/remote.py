"""Files of a folder or of an address that fsspec reads: fetched whole, compared with their checksums, and cached.

What cannot be fetched, or arrives damaged, is fetched again after a pause that doubles each time.
"""

import hashlib
import os
import random
import re
import tempfile
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ndvit.config.reading import CACHE_SIZE, byte_count
from ndvit.data.messages import printable
from ndvit.files import TEMPORARY, make_folder, writing

_ADDRESS = re.compile(r"(https?|s3|gs|gcs|az|abfs|hf)://\S+")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "http": "aiohttp"}
_PACKAGES["https"] = "aiohttp"
_TRIES = 5
_PAUSE = 1.0  # seconds before the second try
_PATIENCE = 120.0  # seconds for one file
_LOCKS = 64


class Expected(NamedTuple):
    """What is known of a file before it is fetched: its length in bytes and its CRC-32."""

    size: int
    crc: int

    def fault(self, data: bytes) -> str | None:
        """How the content differs; None if it does not."""
        if len(data) != self.size:
            return f"has {len(data):,} bytes, expected {self.size:,}"
        if zlib.crc32(data) != self.crc:
            return "has another content than was written (its checksum differs)"
        return None


def is_remote(text: str) -> bool:
    """Whether a text is an address such as s3://bucket/folder."""
    return _ADDRESS.fullmatch(text) is not None


@dataclass(frozen=True)
class Files:
    """The files of a folder or of an address.

    Attributes:
        base: path of the folder, or its address.
        cache_size: bytes on the disk for all remote files together. The least recently used ones are deleted.
    """

    base: str
    cache_size: int = byte_count(CACHE_SIZE)

    def path(self, name: str) -> str:
        """The path or address of a file."""
        return f"{self.base.rstrip('/')}/{name}" if is_remote(self.base) else os.path.join(self.base, name)

    def read(self, name: str, expected: Expected | None = None, *, patient: bool = True) -> bytes:
        """Fetch a file, or read it from the cache.

        Args:
            name: its path below the base, with forward slashes.
            expected: its length and checksum; files without are not cached.
            patient: try again if it does not exist, too.

        Raises:
            FileNotFoundError: if it does not exist.
            OSError: if it cannot be fetched, or is damaged, after all tries.
            ValueError: if the package for the address is not installed.
        """
        began, pause, tries = time.monotonic(), _PAUSE, _TRIES
        for attempt in range(1, tries + 1):
            try:
                data = self._read(name, expected)
                if expected is None or (reason := expected.fault(data)) is None:
                    return data
                error: Exception = OSError(reason)
                self._forget(name)
            except (ImportError, PermissionError) as fault:
                raise self._final(name, fault) from fault
            except Exception as fault:  # each kind of address has errors of its own library
                error = fault
                if isinstance(fault, FileNotFoundError) and not patient:
                    break
            if attempt < tries:
                time.sleep(pause * (0.75 + random.SystemRandom().random() / 2))  # not all processes at once
                pause *= 2
        seconds = time.monotonic() - began
        raise self._final(name, error, f" after {attempt} tries in {seconds:.0f} s" * (attempt > 1)) from error

    def _final(self, name: str, error: Exception, when: str = "") -> Exception:
        where, reason = printable(self.path(name)), printable(" ".join(str(error).split())[:300])
        if isinstance(error, ImportError):
            package = _PACKAGES.get(self.base.partition("://")[0], "fsspec")
            return ValueError(f"{where} needs a package that is not installed: pip install {package}")
        if isinstance(error, PermissionError):
            return PermissionError(f"{where}: no permission ({reason}): check the credentials")
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(f"{where}: does not exist{when}")
        kind = "" if type(error) is OSError else f"{type(error).__name__}: "
        hint = "check the network and the server" if is_remote(self.base) else "check the disk"
        return OSError(f"{where}: cannot be read{when} ({kind}{reason}): {hint}, or write the shards again")

    def _read(self, name: str, expected: Expected | None) -> bytes:
        if not is_remote(self.base):
            return Path(self.path(name)).read_bytes()
        if expected is None or expected.size > self.cache_size:
            return self._download(name)
        from filelock import FileLock

        kept = self._cached(name)
        if (data := _content(kept)) is not None:
            return data
        make_folder(kept.parent)
        number = int(kept.name[:4], 16) % _LOCKS
        with FileLock(kept.parent / f"{number}.lock", timeout=2 * _PATIENCE):
            if (data := _content(kept)) is not None:  # another process has fetched it meanwhile
                return data
            data = self._download(name)
            if expected.fault(data) is None:
                _keep(kept, data, self.cache_size)
            return data

    def _download(self, name: str) -> bytes:
        import fsspec
        from fsspec.asyn import AsyncFileSystem

        system, path = fsspec.core.url_to_fs(self.path(name))  # one for each process, which fsspec remembers
        patience: dict[str, Any] = {"timeout": _PATIENCE} if isinstance(system, AsyncFileSystem) else {}
        data: bytes = system.cat_file(path, **patience)
        return data

    def _cached(self, name: str) -> Path:
        return cache_folder() / hashlib.blake2b(self.path(name).encode(), digest_size=16).hexdigest()

    def _forget(self, name: str) -> None:
        if is_remote(self.base):
            with suppress(OSError):
                self._cached(name).unlink()


def cache_folder() -> Path:
    """The folder of cached files, $NDVIT_CACHE/shards or ~/.cache/ndvit/shards."""
    return Path(os.environ.get("NDVIT_CACHE") or "~/.cache/ndvit").expanduser() / "shards"


def _content(path: Path) -> bytes | None:
    """The content of a cached file, which counts as used now; None if it is not there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    with suppress(OSError):
        os.utime(path)
    return data


def _keep(path: Path, data: bytes, most: int) -> None:
    """Write a file into the cache, after the deletion of the files that were not used for the longest time."""
    with writing(path):
        _make_room(path.parent, most - len(data))
        handle, temporary = tempfile.mkstemp(suffix=TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                os.unlink(temporary)


def _make_room(folder: Path, most: int) -> None:
    found: list[tuple[float, int, str]] = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # another process has deleted it
            if not entry.name.endswith(".lock"):
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        with suppress(OSError):
            os.unlink(path)
        total -= size
