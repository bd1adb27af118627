"""A report on every tensor of loaded weights."""

import textwrap
from dataclasses import dataclass, field
from functools import partial
from typing import Any


class WeightsWarning(UserWarning):
    """Something that weights do not state was assumed; the message says how to set it.

    Example:
        >>> import warnings
        >>> from ndvit import WeightsWarning
        >>> warnings.simplefilter("error", WeightsWarning)  # accept no assumption about weights
        >>> warnings.simplefilter("default", WeightsWarning)
    """


@dataclass(frozen=True)
class Change:
    """A tensor that was changed to fit: its shapes before and after, and the method."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        shapes = f" {self.before} -> {self.after}" if self.before != self.after else ""
        return f"{self.name}{shapes}: {self.how}"


@dataclass(frozen=True)
class LoadReport:
    """What was done with every tensor of a file and of the network. `str(report)` fits on one screen."""

    source: str  # of the weights
    kind: str  # the recognised layout: "timm", "google", "torchvision", "transformers ViT", "ndvit", ...
    network: str  # the network in one line
    loaded: tuple[str, ...] = ()  # tensors of the network whose values were loaded unchanged
    adapted: tuple[Change, ...] = ()  # tensors whose values were changed to fit
    new: tuple[str, ...] = ()  # tensors that the file does not have: they have initial values and must be trained
    ignored: dict[str, str] = field(default_factory=dict)  # tensors of the file that the network does not use, and why
    assumed: tuple[str, ...] = ()  # fields that no tensor determines, with their default and how to set another value
    notes: tuple[str, ...] = ()  # what else was changed or left out
    no_task: str = ""  # why the outputs belong to no task of ndvit

    def __str__(self) -> str:
        rows = [("weights", f"{self.source}: {self.kind} layout"), ("network", self.network)]
        rows += [("note", line) for line in self.notes]
        rows += [("task", self.no_task)] if self.no_task else []
        rows += [("assumed", line) for line in self.assumed]
        rows.append(("loaded", f"{len(self.loaded)} tensor{'s' if len(self.loaded) != 1 else ''} unchanged"))
        rows += [("adapted", line) for line in _few(self._adapted_lines())]
        if self.new:
            rows.append(("new", f"{_names(self.new)}: initialised, to be trained"))
        reasons: dict[str, list[str]] = {}
        for name, why in self.ignored.items():
            reasons.setdefault(why, []).append(name)
        rows += [("ignored", line) for line in _few([f"{_names(names)}: {why}" for why, names in reasons.items()])]
        wrap = partial(textwrap.fill, width=120, subsequent_indent=" " * 9, break_on_hyphens=False)
        return "\n".join(wrap(f"{title:8} {text}") for title, text in rows)

    def summary(self) -> str:
        """The report in one line."""
        counts = {"adapted": len(self.adapted), "new": len(self.new), "ignored": len(self.ignored)}
        rest = "".join(f", {count} {what}" for what, count in counts.items() if count)
        return f"{self.source} ({self.kind} layout): {len(self.loaded)} tensors unchanged{rest}"

    def to_dict(self) -> dict[str, Any]:
        """A summary in plain values for JSON, which the file of a model trained from these weights keeps."""
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
        """The report that `dataclasses.asdict` turned into plain values."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        known["adapted"] = tuple(
            Change(c["name"], tuple(c["before"]), tuple(c["after"]), c["how"]) for c in values["adapted"]
        )
        return cls(**known)

    def _adapted_lines(self) -> list[str]:
        """One line for all tensors that were changed in the same way, such as the fifty kernels of a stem."""
        alike: dict[str, list[Change]] = {}
        for change in self.adapted:
            alike.setdefault(change.how, []).append(change)
        return [
            str(changes[0]) if len(changes) == 1 else f"{_names([change.name for change in changes])}: {how}"
            for how, changes in alike.items()
        ]


def _names(names: tuple[str, ...] | list[str]) -> str:
    """As many names as fit into 80 characters, and the number of the others."""
    most = max(1, sum(len(", ".join(names[: n + 1])) <= 80 for n in range(len(names))))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _few(lines: list[str], most: int = 5) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], f"and {len(lines) - most + 1} more such lines"]
