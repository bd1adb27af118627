"""What the bench of images measured: a row for each fit in a CSV file."""

import csv
import io
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ndvit.files import replace_file

RESULTS = "results.csv"
Key = tuple[str, str, int, str]
AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True)
class Row:
    """One fit of one model on one set.

    Attributes:
        set, model, seed: what was fitted on what; the seed is that of the split, too.
        setting: what was asked for besides the defaults, "epochs 5" or "steps 2" say; empty in a run that counts.
        pixels: height and width of what the network sees, "112x112".
        train, test: pictures that were given to train on, and tested on.
        accuracy, log_loss: on the test pictures; the loss in nats.
        train_seconds: wall time of the training alone.
        total_seconds: wall time of the whole process: imports, reading, training, testing and what it writes.
        megabytes: the most memory that the process had at a time, without that of the processes that read for it.
        steps, batch: optimiser steps done (0 where there are none), and pictures in each.
        threads, workers: of torch, and the processes that read pictures.
        device, cores, software, commit, command: where and with what.
    """

    set: str
    model: str
    seed: int
    setting: str
    pixels: str
    train: int
    test: int
    accuracy: float
    log_loss: float
    train_seconds: float
    total_seconds: float
    megabytes: int
    steps: int
    batch: int
    threads: int
    workers: int
    device: str
    cores: int
    software: str
    commit: str
    command: str

    @property
    def key(self) -> Key:
        """What there is one row of."""
        return self.set, self.model, self.seed, self.setting


def read_rows(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of a file as dataclasses of this kind, whose fields are its columns; none where there is no file.

    Raises:
        ValueError: for a file with other columns.
    """
    if not path.is_file():
        return []
    kinds: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(kinds):
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {list(kinds)}: move it away")
        return [kind(**{name: made(row[name]) for name, made in kinds.items()}) for row in reader]


def write_rows(path: Path, rows: Sequence[Any], kind: type) -> None:
    """All rows, in a file that is never half-written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(path, text.getvalue())


def add_row(path: Path, row: Row) -> None:
    """One row more; it takes the place of the one with its key."""
    kept = {old.key: old for old in read_rows(path, Row)} | {row.key: row}
    write_rows(path, list(kept.values()), Row)


def git_commit(files: Sequence[str]) -> str:
    """The newest commit that changed these files of this folder, the library or its versions; a + where files differ.

    "unknown" where there is no git.
    """

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = ["--", "../src", "../constraints.txt", *files]
        changed = bool(git("status", "--porcelain", "-uno", *code))
        return git("log", "-1", "--format=%h", "--abbrev=10", *code) + "+" * changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
