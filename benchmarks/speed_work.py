"""Cases and results of the speed benchmark: plain values, without torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ndvit.files import replace_file

RESULTS = "performance.json"
PEER = "timm"
"""The library that all others are compared with."""
CEILING = "matrix product"
"""The upper bound: the product of two square matrices, measured in every round beside the networks."""


@dataclass(frozen=True)
class Case:
    """Parties that are measured in turn, in one process of their own.

    Attributes:
        table: table of the report.
        network: name for `ndvit.create_model`, or name of a run.
        batch: batch size.
        parties: what is measured: "LIBRARY" or "LIBRARY, WAY".
        kind: "forward", "training" (a step with AdamW) or "memory" (peak of five such steps).
        arguments: arguments of `create_model` beside the name; drop rates are also used for the other libraries.
        run, data: a fine-tuned model and its images, for ways that change the predictions.
        device, precision, threads: device, floating-point type and number of threads.
        seconds, rounds: the measurement stops after this time (but not before five rounds) or after this number of
            rounds.
    """

    table: str
    network: str
    batch: int
    parties: tuple[str, ...]
    kind: str = "forward"
    arguments: tuple[tuple[str, Any], ...] = ()
    run: str = ""
    data: str = ""
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    seconds: float = 60
    rounds: int = 31

    @classmethod
    def read(cls, path: Path) -> "Case":
        """Read a case that was written as JSON of `asdict`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["parties"] = tuple(values["parties"])
        values["arguments"] = tuple((name, _tuples(value)) for name, value in values["arguments"])
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Row:
    """Result of one party in one case.

    Attributes:
        table, network, batch, party, device, precision: the case and the party.
        ms, low, high: median and quartiles of the wall time in milliseconds; 0 if only memory was measured.
        rounds: number of measurements.
        ratio: median over the rounds of timm's time divided by the time of the party; above 1 it is faster than timm.
            For start-up: the time divided by that of importing torch.
        share: median over the rounds of the multiply-adds per second, divided by those of the matrix product; 0 if
            multiply-adds are not counted.
        difference: largest difference of the logits from ours, divided by the standard deviation of ours; -1 for
            networks with other weights or without logits.
        more: other results: "MB" (memory of the process), "live" (memory of tensors), "accuracy", "agreement",
            "examples", "way".
        threads, cores, machine, software, commit, command: machine (processor), versions, and how it was measured.
    """

    table: str
    network: str
    batch: int
    party: str
    device: str
    precision: str
    ms: float
    low: float
    high: float
    rounds: int
    ratio: float
    share: float
    difference: float
    more: dict[str, Any]
    threads: int
    cores: int
    machine: str
    software: str
    commit: str
    command: str

    @property
    def case(self) -> tuple[str, str, int, str, str]:
        """Identifies the case."""
        return self.table, self.network, self.batch, self.device, self.precision


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file; an empty list if there is no file.

    Raises:
        ValueError: if the rows have other columns.
    """
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Row)}
    if any(set(row) != names for row in rows):
        raise ValueError(f"{path} has other columns than {sorted(names)}: move it away")
    return [Row(**row) for row in rows]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, one per line; the file is replaced as a whole."""
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    replace_file(path, f"[\n{lines}\n]\n")
