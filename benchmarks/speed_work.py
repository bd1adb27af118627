"""What the bench of speed measures in one process, and what comes out: plain values, without torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ndvit.files import replace_file

RESULTS = "performance.json"
PEER = "timm"
"""Whom all others are compared with."""
CEILING = "matrix product"
"""The fastest that the machine multiplies: two square matrices, measured in every round beside the networks."""


@dataclass(frozen=True)
class Case:
    """What is measured side by side in a process of its own.

    Attributes:
        table: the part of the report that it belongs to.
        network: its name in `ndvit.create_model`, or a run.
        batch: examples at a time.
        parties: who is measured, "LIBRARY" or "LIBRARY, WAY".
        kind: "forward", "training" (a step with AdamW) or "memory" (what five such steps take).
        arguments: of `create_model`, beside the name; those of training are the peers', too.
        run, data: a fine-tuned model and the pictures it is tested on, for what changes its answers.
        device, precision, threads: where, and in what numbers.
        seconds, rounds: when to stop: after so many seconds, but not before five rounds; or after so many rounds.
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
        """What was written as JSON of `asdict`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["parties"] = tuple(values["parties"])
        values["arguments"] = tuple((name, _tuples(value)) for name, value in values["arguments"])
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Row:
    """One party in one case.

    Attributes:
        table, network, batch, party, device, precision: which.
        ms, low, high: median and quartiles of the wall time, in milliseconds; 0 where only memory was measured.
        rounds: how often.
        ratio: median over the rounds of timm's time in the round by its own; above 1 it is faster than timm. Of
            start-up, how many times as long as importing torch takes.
        share: median over the rounds of its multiply-adds a second, by those of the matrix product; 0 where its work
            is not counted.
        difference: largest difference of its logits from ours, in parts of their spread; -1 for networks with other
            weights, and where there are none.
        more: what else was found: "MB" (of the process), "live" (of its tensors), "accuracy", "agreement", "examples",
            "way".
        threads, cores, machine, software, commit, command: where and with what; the machine is its processor.
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
        """What is measured together."""
        return self.table, self.network, self.batch, self.device, self.precision


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file.

    Raises:
        ValueError: for a file of other rows.
    """
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Row)}
    if any(set(row) != names for row in rows):
        raise ValueError(f"{path} has other columns than {sorted(names)}: move it away")
    return [Row(**row) for row in rows]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """All rows, a line each, in a file that is never half-written."""
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    replace_file(path, f"[\n{lines}\n]\n")
