"""Messages that the readers of weights share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    """Turn any error that damaged bytes cause into one clear line."""
    try:
        yield
    except Exception as error:
        raise damaged(path, what, error) from error


def damaged(path: Path, what: str, error: Exception) -> ValueError:
    """The error for a damaged file."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    size = path.stat().st_size
    return ValueError(f"{path} ({size:,} bytes) is a {what} cut short or damaged: {reason}. Download it again")


def quantised(path: object, name: str, dtype: object) -> str:
    """The message for weights that are stored as integers with scales."""
    return (
        f"{path}: {name!r} is quantised ({dtype}), and its scales cannot be applied here: save the weights before "
        "their quantisation, as float32, float16 or bfloat16"
    )


def note_left_out(names: list[str], notes: list[str]) -> None:
    """Add a note on entries of a file that are no tensors."""
    if names:
        notes.append(f"{len(names)} entries that are no tensors were left out: {some(names)}.")


def some(names: list[str]) -> str:
    """The first five names. Files come from strangers, so characters that do not print are escaped."""
    first = [name if name.isprintable() else ascii(name) for name in names[:5]]
    return ", ".join(first) + (", ..." if len(names) > 5 else "")
