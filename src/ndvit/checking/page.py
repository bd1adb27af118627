"""The page of a check: findings, classes, shapes, values, copies and suspected labels, in one file without scripts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ndvit.checking.contents import Content, Examined
from ndvit.checking.findings import Finding, exclusive_classes
from ndvit.checking.labels import SUSPECTS_FILE, Labelled
from ndvit.checking.models import Joined
from ndvit.checking.near_copies import MOST_COMPARED, Pair
from ndvit.checking.result import Check
from ndvit.config.bounds import counted
from ndvit.evaluation.base import percent
from ndvit.evaluation.cards import draw_example
from ndvit.evaluation.report import page_environment
from ndvit.evaluation.words import language, translated
from ndvit.files import replace_file
from ndvit.inference.recordings import WholeRecordings
from ndvit.training.isolation import isolated

_SUSPECTS = 24  # suspects that are drawn, each beside two other examples
_PAIRS = 8  # pairs of near copies that are drawn
_CLASSES = 12  # classes of which an example is drawn
_ROWS = 60  # rows of a table
_ITEMS = 300  # examples listed below a finding


@dataclass(frozen=True, eq=False)
class Page:
    """What the page prints.

    Attributes:
        check: the findings.
        found: the examples that were read.
        pairs: near copies, by their place among these.
        joined: all examples together.
        labelled: their labels and out-of-sample probabilities; None if labels were not checked.
        source: the source as the user named it.
    """

    check: Check
    found: Sequence[Examined]
    pairs: Sequence[Pair]
    joined: Joined
    labelled: Labelled | None
    source: Any


@isolated()  # matplotlib is not made for several threads
def write_page(page: Page, path: Path, written_in: str) -> None:
    """Write the page, with its words in a language."""
    with language(written_in):
        replace_file(path, render(page).encode("utf-8", errors="replace"))


def render(page: Page) -> str:
    """The page as text."""
    check, environment = page.check, page_environment("ndvit.checking")
    totals = {name: sum(counts.values()) for name, counts in check.classes.items()}
    return environment.get_template("check.html.jinja").render(
        report=SimpleNamespace(title=f"{check.data.name} · {translated('check of the data')}"),
        check=check,
        splits=list(next(iter(check.shapes.values()), {})),
        suspicious=[_finding(finding) for finding in check.findings if finding.suspicious],
        notes=[_finding(finding) for finding in check.findings if not finding.suspicious],
        facts=_facts(page),
        totals=totals,
        most=max(totals.values(), default=1),
        examples=_class_cards(page),
        shapes=list(check.shapes.items()),
        values=_values(page.found),
        rows=_ROWS,
        near=_near_cards(page),
        suspects=_suspect_cards(page),
        command=_command(page),
    )


def _finding(finding: Finding) -> dict[str, Any]:
    left = len(finding.items) - _ITEMS
    return {"text": finding.text, "items": finding.items[:_ITEMS], "more": max(0, left)}


def _facts(page: Page) -> dict[str, str]:
    data, parts = page.check.data, page.found
    kinds = {"signal": "signals", "image": "pictures"}
    facts = {
        "data": f"{kinds[data.kind]} of {data.dims} {'axis' if data.dims == 1 else 'axes'}",
        "examples": ", ".join(f"{len(part.examples):,} {part.split}" for part in parts),
        "task": data.task.name + (f", {counted(len(data.classes), 'class', 'classes')}" if data.classes else ""),
    }
    groups = [part.examples.groups for part in parts if part.examples.groups is not None]
    if groups:
        recordings = parts[0].examples.places is not None
        facts["groups"] = f"{len(set(np.concatenate(groups).tolist())):,}" + " (recordings)" * recordings
    read = sum(len(part.contents) for part in parts)
    total = sum(len(part.examples) for part in parts)
    if read < total:
        facts["read"] = f"{read:,} of {total:,} examples, because they are streamed"
    if page.check.copies:
        facts["exact copies"] = f"{sum(map(len, page.check.copies)) - len(page.check.copies):,}"
    facts["near copies"] = f"{counted(len(page.check.near_copies), 'pair')}"
    if read > MOST_COMPARED:
        facts["near copies"] = f"not searched among more than {MOST_COMPARED:,} examples"
    return facts


def _class_cards(page: Page) -> list[dict[str, Any]]:
    """One example of each class, or of the first ones."""
    joined, classes = page.joined.examples, exclusive_classes(page.check.data)
    if joined.targets is None or not classes:
        return []
    cards = []
    for label in range(min(len(classes), _CLASSES)):
        members = np.flatnonzero(joined.targets == label)
        if len(members):
            figure, note = draw_example(joined[int(members[0])], str(joined.names[members[0]]), f"class {label}")
            cards.append({"figure": figure, "note": note, "label": classes[label], "name": joined.names[members[0]]})
    return cards


def _values(found: Sequence[Examined]) -> list[list[str]]:
    """Rows of a table: each channel with its smallest and largest value, mean, deviation and share of constants."""
    contents = [content for part in found for content in part.contents]
    modes: dict[tuple[str, int], list[Content]] = {}
    for content in contents:
        modes.setdefault((content.mode, len(content.low)), []).append(content)
    rows = []
    for (mode, channels), same in sorted(modes.items(), key=lambda item: -len(item[1])):
        low, high, mean, spread = (
            np.stack([getattr(content, name) for content in same]) for name in ("low", "high", "mean", "spread")
        )
        bands = list(mode) if len(mode) == channels else [str(i + 1) for i in range(channels)]
        for i in range(channels):
            seen = np.isfinite(low[:, i])
            constant = float((low[:, i] == high[:, i]).mean())
            numbers = ["–"] * 4
            if seen.any():
                middle = float(np.sqrt(np.mean(np.square(spread[seen, i]))))
                values = (low[seen, i].min(), mean[seen, i].mean(), middle, high[seen, i].max())
                numbers = [f"{float(value):.4g}" for value in values]
            rows.append([bands[i], f"{len(same):,}", *numbers, percent(constant)])
    return rows


def _near_cards(page: Page) -> list[dict[str, Any]]:
    places = [(part, int(i)) for part in page.found for i in part.indices]
    cards = []
    for number, pair in enumerate(page.pairs[:_PAIRS]):
        both = []
        for side, at in enumerate((pair.first, pair.second)):
            part, i = places[at]
            name = str(part.examples.names[i])
            figure, _ = draw_example(part.examples[i], name, f"near {number} {side}")
            targets, classes = part.examples.targets, exclusive_classes(page.check.data)
            label = classes[targets[i]] if classes and targets is not None else ""
            both.append({"figure": figure, "name": name, "split": part.split, "label": label})
        cards.append({"both": both, "likeness": f"{1 - pair.distance**2 / 2:.4f}"})
    return cards


def _suspect_cards(page: Page) -> list[dict[str, Any]]:
    """The first suspects, each beside an example of the class that it looks like and one of its own label."""
    labelled, suspects = page.labelled, page.check.suspects
    if labelled is None or not suspects:
        return []
    examples = page.joined.examples
    drawn: Any = examples if examples.places is None else WholeRecordings(examples)
    coarse = None  # of recordings that are cut into windows, and of samples of streams
    if examples.places is None and sum(len(part.contents) for part in page.found) == len(examples):
        coarse = np.stack([content.coarse for part in page.found for content in part.contents])
    places = {name: i for i, name in enumerate(labelled.classes)}
    cards = []
    for number, one in enumerate(suspects[:_SUSPECTS]):
        figure, _ = draw_example(drawn[one.place], one.name, f"suspect {number}")
        panels = [{"figure": figure}]
        for kind, name in (("looks like", one.suggested), ("labelled", one.label)):
            i = labelled.example_of(places[name], one.place, coarse)
            if i is not None:
                figure, _ = draw_example(drawn[i], str(labelled.names[i]), f"suspect {number} {kind}")
                panels.append({"figure": figure, "label": name})
        cards.append({"suspect": one, "panels": panels})
    return cards


def _command(page: Page) -> str:
    """How to train on corrected labels."""
    if not page.check.suspects:
        return ""
    named = isinstance(page.source, str | Path)
    source = shlex.quote(str(page.source)) if named else ""
    path = page.check.folder / SUSPECTS_FILE
    if named:
        return f"ndvit train {source} --label-file {shlex.quote(str(path))}"
    return f"ndvit.train(source, label_file={str(path)!r})"
