"""Writing files: whole or not at all, and never over an existing one by accident."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal


def replace_file(path: Path, write: str | bytes | Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it over the old one.

    Args:
        path: the file.
        write: its text (stored as UTF-8), its bytes, or a function that writes it to a path.

    Raises:
        FileNotFoundError: if the folder does not exist.
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
    """
    path = Path(path)
    if kind == "file" and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: create it first")
    run = path.parent if path.name == "model.safetensors" else path
    if kind != "run" and (run / "config.yaml").is_file():
        raise FileExistsError(f"{path} belongs to a run, whose model would be lost: choose another output")
    replaceable = force and not (kind == "file" and path.is_dir())
    if not replaceable and path.exists() and (kind == "file" or not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists: choose another output, or replace it with --force (force=True)")
