"""What happened to every tensor when weights were loaded."""

import textwrap
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Change:
    """A tensor that was changed to fit: its shapes before and after, and how."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        shapes = f" {self.before} -> {self.after}" if self.before != self.after else ""
        return f"{self.name}{shapes}: {self.how}"


@dataclass(frozen=True)
class LoadReport:
    """Every tensor of a file and of the network, and what became of it. `str(report)` is one screen."""

    source: str
    """Where the weights came from."""
    kind: str
    """The layout that was recognised: "timm", "google", "torchvision", "transformers ViT", "ndvit", ..."""
    network: str
    """The network in a line."""
    loaded: tuple[str, ...] = ()
    """Tensors of the network whose values were taken as they are."""
    adapted: tuple[Change, ...] = ()
    """Tensors whose values were changed to fit."""
    new: tuple[str, ...] = ()
    """Tensors of the network that the file does not have: initialised anew, to be trained."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Tensors of the file that the network has no use for, and why."""
    assumed: tuple[str, ...] = ()
    """What no tensor tells and was taken from a default; each line says how to set it."""
    notes: tuple[str, ...] = ()
    """What else was done to the file's content."""

    def __str__(self) -> str:
        rows = [("weights", f"{self.source}: {self.kind} layout"), ("network", self.network)]
        rows += [("note", line) for line in self.notes]
        rows += [("assumed", line) for line in self.assumed]
        rows.append(("loaded", f"{_count(len(self.loaded), 'tensor')} unchanged"))
        rows += [("adapted", line) for line in _few(self._adapted_lines())]
        if self.new:
            rows.append(("new", f"{_names(self.new)}: initialised anew, to be trained"))
        reasons: dict[str, list[str]] = {}
        for name, why in self.ignored.items():
            reasons.setdefault(why, []).append(name)
        rows += [("ignored", line) for line in _few([f"{_names(names)}: {why}" for why, names in reasons.items()])]
        return "\n".join(_wrapped(title, text) for title, text in rows)

    def to_dict(self) -> dict[str, Any]:
        """A summary in plain values, fit for JSON and for the file of a model that is trained from these weights."""
        return {
            "source": self.source,
            "kind": self.kind,
            "loaded": len(self.loaded),
            "adapted": self._adapted_lines(),
            "new": list(self.new),
            "ignored": len(self.ignored),
            "assumed": list(self.assumed),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LoadReport":
        """The report of which JSON holds `dataclasses.asdict`."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        known["adapted"] = tuple(
            Change(c["name"], tuple(c["before"]), tuple(c["after"]), c["how"]) for c in values["adapted"]
        )
        return cls(**known)

    def _adapted_lines(self) -> list[str]:
        """A line for each tensor; one for all that were changed alike, as the fifty kernels of a stem."""
        alike: dict[str, list[Change]] = {}
        for change in self.adapted:
            alike.setdefault(change.how, []).append(change)
        return [
            str(changes[0]) if len(changes) == 1 else f"{_names([change.name for change in changes])}: {how}"
            for how, changes in alike.items()
        ]


def _names(names: tuple[str, ...] | list[str], width: int = 80) -> str:
    """The first names, as many as fit, and how many more there are."""
    shown = max(1, sum(len(", ".join(names[: n + 1])) <= width for n in range(len(names))))
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _few(lines: list[str], shown: int = 5) -> list[str]:
    return lines if len(lines) <= shown else [*lines[: shown - 1], f"and {len(lines) - shown + 1} more such lines"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wrapped(title: str, text: str, width: int = 120) -> str:
    return textwrap.fill(f"{title:8} {text}", width, subsequent_indent=" " * 9, break_on_hyphens=False)
