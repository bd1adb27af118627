"""What the bench of signals measured: a row for each fit in a CSV file, and the probabilities that each fit gave."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from ndvit.files import replace_file

RESULTS, ABLATION, PUBLISHED = "results.csv", "ablation.csv", "published.csv"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Row:
    """One fit of one model on one set.

    Attributes:
        set, model, seed: what was fitted on what.
        trial: steps that were asked for to try the bench; 0 in a run that counts.
        channels, train, test: size of the set.
        accuracy: on the test set.
        fit_seconds, predict_seconds: wall time, data in memory.
        steps: optimiser steps done; 0 where there are none.
        threads: of torch and numba.
        parallel: fits that ran at the same time on this machine: above 1 the others slow this one down.
        cores, software, commit, command: where and with what.
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

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What there is one row of."""
        return self.set, self.model, self.seed, self.trial


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file.

    Raises:
        ValueError: for a file with other columns.
    """
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(kinds):
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {list(kinds)}: move it away")
        return [Row(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in reader]  # type: ignore


def write_rows(path: Path, rows: list[Row]) -> None:
    """All rows, in a file that is never half-written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(path, text.getvalue())


def add_row(path: Path, row: Row) -> None:
    """One row more; it takes the place of the one with its key."""
    kept = {old.key: old for old in read_rows(path)} | {row.key: row}
    write_rows(path, list(kept.values()))


def network_of(model: str) -> str:
    """The name in a row of what the network of `ours` or a variant says without its random convolution features."""
    return "hybrid" if model == "ours" else f"{model}, network alone"


def probabilities_file(out: Path, row: tuple[str, str, int, int]) -> Path:
    """Where the probabilities of a fit are kept."""
    name, model, seed, trial = row
    return out / PROBABILITIES / f"{name}.{model}.{seed}{f'.{trial}' if trial else ''}.npy"


def save_probabilities(out: Path, key: tuple[str, str, int, int], probabilities: np.ndarray) -> None:
    """Keep what a fit gave for the test set, (n, classes), out of version control."""
    path = probabilities_file(out, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / ".gitignore").write_text("*\n")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would give a path its own ending
            np.save(file, probabilities.astype(np.float32), allow_pickle=False)

    replace_file(path, write)
