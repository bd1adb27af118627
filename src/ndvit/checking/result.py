"""What a check has found: findings, classes, shapes, copies and suspected labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndvit.checking.findings import Finding
from ndvit.checking.labels import SUSPECTS_FILE, Suspect
from ndvit.config.bounds import counted
from ndvit.data.examples import Examples, Source

PAGE_FILE, FINDINGS_FILE = "check.html", "check.json"
_LINES = 12  # findings on the terminal


@dataclass(frozen=True, eq=False)
class Check:
    """What was found in a data set.

    Attributes:
        data: the data as they were read, without examples that cannot be used.
        findings: suspicious ones first, then notes.
        classes: number of examples of each class in each split.
        shapes: number of examples of each shape in each split.
        copies: names of exact copies, in groups.
        near_copies: names of near copies and their distance (0 to 2).
        suspects: suspected label errors, the most suspicious first; None if labels were not checked.
        labelled: how many examples have an out-of-sample answer.
        folder: the folder with check.html, check.json and, where labels were checked, suspects.csv.
    """

    data: Source
    findings: tuple[Finding, ...]
    classes: dict[str, dict[str, int]]
    shapes: dict[str, dict[str, int]]
    copies: tuple[tuple[str, ...], ...]
    near_copies: tuple[tuple[str, str, float], ...]
    suspects: tuple[Suspect, ...] | None
    labelled: int
    folder: Path

    @property
    def status(self) -> int:
        """Exit status of the command: 0 if nothing was found, 1 if something is suspicious."""
        return int(any(finding.suspicious for finding in self.findings))

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE_FILE

    def lines(self) -> list[str]:
        """A short summary."""
        data, parts = self.data, splits_of(self.data)
        size = ", ".join(f"{len(part):,} {split}" for split, part in parts.items())
        about = f"{counted(len(data.classes), 'class', 'classes')}" if data.classes else data.task.name
        lines = [f"{data.name}: {size} examples, {about}, {_briefly(self.shapes)}"]
        suspicious = [finding for finding in self.findings if finding.suspicious]
        lines += [f"- {finding.text}" for finding in suspicious[:_LINES]]
        if len(suspicious) > _LINES:
            lines.append(f"- and {len(suspicious) - _LINES:,} more on the page")
        if not suspicious:
            lines.append("nothing suspicious found")
        lines.append(f"page: {self.page}")
        if self.suspects:
            lines.append(f"suspected labels: {self.folder / SUSPECTS_FILE}; look at them, then train with --label-file")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.data.name,
            "status": self.status,
            "task": self.data.task.name,
            "examples": {split: len(part) for split, part in splits_of(self.data).items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "classes": self.classes,
            "shapes": self.shapes,
            "copies": [list(names) for names in self.copies],
            "near_copies": [list(pair) for pair in self.near_copies],
            "suspects": None if self.suspects is None else [one._asdict() for one in self.suspects],
            "examples_with_answers": self.labelled,
        }


def splits_of(data: Source) -> dict[str, Examples]:
    """The splits that have examples."""
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {split: part for split, part in parts.items() if part is not None and len(part)}


def _briefly(found: dict[str, dict[str, int]]) -> str:
    first, *others = found or [""]
    return first + (f" and {len(others):,} other shape{'s' * (len(others) > 1)}" if others else "")
