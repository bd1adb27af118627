"""The report of a training run: one HTML page without scripts that needs no other file and no network.

`report.html.jinja` is the page of any task; an evaluation may name a template that extends it. Names are untrusted:
Jinja escapes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndvit.evaluation.base import Evaluation, percent
from ndvit.evaluation.cards import draw_example
from ndvit.evaluation.figures import learning_curves
from ndvit.evaluation.folds import NumberTable
from ndvit.evaluation.relevance import Reason, reason_card
from ndvit.files import replace_file

MAX_CARDS = 24  # examples drawn


@dataclass(frozen=True, eq=False)
class Report:
    """Content of the page.

    Attributes:
        title: what was trained on what: "gunpoint · vit_nano".
        summary: facts in the order of the page: model, parameters, examples, ...; "probabilities" is the text of a
            `Calibration`.
        notes: decisions about the data: "no split found: ...".
        history: rows with a "step" and metrics, see `learning_curves`; may be empty. None leaves the curves out.
        evaluation: results on the test set.
        examples: test examples as they were read, by index: a sequence, or a mapping that has at least the first 24 of
            `evaluation.worst()`. See `draw_example` for their types.
        config: configuration of the run, YAML.
        command: command that repeats the run.
        on: what was tested on, in headings: "test", or "out-of-fold".
        tables: further tables of numbers.
        view: turns an example into what the network read of it, in the units of the example; None draws examples as
            they are.
        reasons: examples with what decided their answers, in the order of the page.
        method: how that was computed.
    """

    title: str
    summary: dict[str, str]
    notes: tuple[str, ...]
    history: list[dict[str, float]] | None
    evaluation: Evaluation
    examples: Any
    config: str
    command: str
    on: str = "test"
    tables: tuple[NumberTable, ...] = ()
    view: Callable[[Any], Any] | None = None
    reasons: tuple[Reason, ...] = ()
    method: str = ""


def write_report(report: Report, path: str | Path) -> None:
    """Write the page. An existing page is replaced at once or, if anything fails, stays unchanged.

    Raises:
        ValueError: if a row of the history has no step.
        TypeError: if an example is of a type that cannot be drawn.
    """
    # File names that are not UTF-8 reach Python as lone surrogates, which cannot be encoded.
    replace_file(Path(path), render(report).encode("utf-8", errors="replace"))


def render(report: Report) -> str:
    """The page as text; raises the errors of `write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    evaluation = report.evaluation
    worst = evaluation.worst()
    cards = []
    for number, i in enumerate(worst[:MAX_CARDS]):
        name = str(evaluation.names[i])
        figure, note = draw_example(report.examples[i], name, f"example {number}", report.view)
        cards.append({"name": name, "figure": figure, "note": note, "caption": evaluation.caption(i)})
    charts, hidden, kinds = learning_curves(report.history or [])
    loader = PackageLoader("ndvit.evaluation", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    return environment.get_template(evaluation.template).render(
        report=report,
        evaluation=evaluation,
        worst=worst,
        cards=cards,
        charts=charts,
        hidden=hidden,
        kinds=kinds,
        reasons=[reason_card(reason, f"reason {number}") for number, reason in enumerate(report.reasons)],
        signed=any(reason.signed for reason in report.reasons),
        **evaluation.report_values(),
    )
