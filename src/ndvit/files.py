"""How files are written: whole, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: str | bytes | Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it over the one that may be there.

    Args:
        path: the file.
        write: its text (as UTF-8), its bytes, or what writes it to a path.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    temporary = path.with_name(path.name + ".tmp")
    try:
        if isinstance(write, str):
            temporary.write_text(write, encoding="utf-8")
        elif isinstance(write, bytes):
            temporary.write_bytes(write)
        else:
            write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
