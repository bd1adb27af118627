"""Results of the signal benchmark: one row per fit in a CSV file, and the probabilities of each fit."""

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ndvit.files import replace_file

RESULTS, ABLATION, PUBLISHED = "results.csv", "ablation.csv", "published.csv"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Row:
    """One fit of one model on one set.

    Attributes:
        set, model, seed: data set, model and seed of the fit.
        trial: number of steps in a trial of the benchmark; 0 in a real run.
        channels, train, test: channels, training examples and test examples of the set.
        accuracy: accuracy on the test set.
        fit_seconds, predict_seconds: wall time in seconds, with the data in memory.
        steps: optimizer steps; 0 for models without steps.
        threads: threads of torch and numba.
        parallel: number of fits that ran at the same time on this machine; above 1 they slow each other down.
        cores, software, commit, command: machine, versions, and how the fit was started.
        classes: classes of the set; 0 in rows that are older than this column.
        log_loss, ece: log loss and expected calibration error on the test set; NaN in older rows.
    """

    set: str
    model: str
    seed: int
    trial: int
    channels: int
    train: int
    test: int
    accuracy: float
    fit_seconds: float
    predict_seconds: float
    steps: int
    threads: int
    parallel: int
    cores: int
    software: str
    commit: str
    command: str
    classes: int = 0
    log_loss: float = math.nan
    ece: float = math.nan

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Identifies a row."""
        return self.set, self.model, self.seed, self.trial


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; an empty list if there is no file.

    Raises:
        ValueError: if the file has other columns; those with a default may be absent.
    """
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = list(reader.fieldnames or ())
        if not found or found != list(kinds)[: len(found)] or len(found) < list(kinds).index("command") + 1:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {list(kinds)}: move it away")
        return [Row(**{name: kinds[name](row[name]) for name in found}) for row in reader]  # type: ignore


T = TypeVar("T")


def read_table(path: Path, row: type[T]) -> list[T]:
    """The rows of a CSV file as a dataclass; none if there is no file."""
    if not path.is_file():
        return []
    kinds: dict[str, Any] = {field.name: field.type for field in fields(row)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        return [row(**{name: kind(found[name]) for name, kind in kinds.items()}) for found in csv.DictReader(file)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write all rows; the file is replaced as a whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(path, text.getvalue())


def add_row(path: Path, row: Row) -> None:
    """Add a row, or replace the row with the same key."""
    kept = {old.key: old for old in read_rows(path)} | {row.key: row}
    write_rows(path, list(kept.values()))


def probabilities_file(out: Path, row: tuple[str, str, int, int]) -> Path:
    """The file for the probabilities of a fit."""
    name, model, seed, trial = row
    return out / PROBABILITIES / f"{name}.{model}.{seed}{f'.{trial}' if trial else ''}.npy"


def save_probabilities(out: Path, key: tuple[str, str, int, int], probabilities: np.ndarray) -> None:
    """Write the probabilities (n, classes) for the test set to a file that git ignores."""
    path = probabilities_file(out, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / ".gitignore").write_text("*\n")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # for a path, numpy would append its own suffix
            np.save(file, probabilities.astype(np.float32), allow_pickle=False)

    replace_file(path, write)
