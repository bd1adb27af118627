"""Results of the image benchmark: one row per fit in a CSV file."""

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
        set, model, seed: data set, model and seed of the fit; the seed also determines the split.
        setting: options that differ from the defaults, for example "epochs 5" or "steps 2"; empty in a real run.
        pixels: height and width of the network's input, for example "112x112".
        train, test: numbers of training images and test images.
        accuracy, log_loss: results on the test images; the loss in nats.
        train_seconds: wall time of the training alone, in seconds.
        total_seconds: wall time of the whole process, with imports, reading, training, testing and writing.
        megabytes: peak memory of the process in MiB, without its worker processes.
        steps, batch: optimizer steps (0 for models without steps), and images per step.
        threads, workers: threads of torch, and worker processes that read images.
        device, cores, software, commit, command: machine, versions, and how the fit was started.
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
        """Identifies a row."""
        return self.set, self.model, self.seed, self.setting


def read_rows(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """Read the rows of a file as dataclasses of this kind; an empty list if there is no file.

    Raises:
        ValueError: if the file has other columns.
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
    """Write all rows; the file is replaced as a whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(path, text.getvalue())


def add_row(path: Path, row: Row) -> None:
    """Add a row, or replace the row with the same key."""
    kept = {old.key: old for old in read_rows(path, Row)} | {row.key: row}
    write_rows(path, list(kept.values()), Row)


def git_commit(files: Sequence[str]) -> str:
    """The newest commit that changed these files of this folder, the library or its versions.

    A + is appended if there are uncommitted changes. Without git the result is "unknown".
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
