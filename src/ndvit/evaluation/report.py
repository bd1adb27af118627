"""The report of a training run: one HTML page without scripts that needs no other file and no network.

`report.html.jinja` is the page of any task; an evaluation may name a template that extends it. Names are untrusted:
Jinja escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndvit.evaluation.amounts import quantity
from ndvit.evaluation.base import MAX_GROUPS, Evaluation, percent
from ndvit.evaluation.cards import Card, draw_sketch, legend_of
from ndvit.evaluation.charts import learning_curves
from ndvit.evaluation.folds import NumberTable
from ndvit.evaluation.maps import FeatureMap, Method
from ndvit.evaluation.relevance import Reason, reason_card
from ndvit.evaluation.words import (
    TAGS,
    amount,
    current_language,
    language,
    several,
    translated,
    translated_line,
)
from ndvit.files import replace_file

if TYPE_CHECKING:
    from jinja2 import Environment


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
        cards: the worst examples, see `cards_of`.
        config: configuration of the run, YAML.
        command: command that repeats the run.
        on: what was tested on, in headings: "test", or "out-of-fold".
        tables: further tables of numbers.
        viewed: whether the examples of the cards are drawn as the network reads them.
        reasons: examples with what decided their answers, in the order of the page.
        method: how that was computed.
        map: features of test examples; None without a map.
    """

    title: str
    summary: dict[str, str]
    notes: tuple[str, ...]
    history: list[dict[str, float]] | None
    evaluation: Evaluation
    cards: tuple[Card, ...]
    config: str
    command: str
    on: str = "test"
    tables: tuple[NumberTable, ...] = ()
    viewed: bool = False
    reasons: tuple[Reason, ...] = ()
    method: str = ""
    map: FeatureMap | None = None


def write_report(report: Report, path: str | Path, written_in: str = "en", map_method: Method = "pca") -> None:
    """Write the page. An existing page is replaced at once or, if anything fails, stays unchanged.

    Args:
        report: its content.
        path: the .html file.
        written_in: the language of its words.
        map_method: how the embedding map is made.

    Raises:
        ValueError: if a row of the history has no step, or for an unknown language.
    """
    # File names that are not UTF-8 reach Python as lone surrogates, which cannot be encoded.
    replace_file(Path(path), render(report, written_in, map_method).encode("utf-8", errors="replace"))


def render(report: Report, written_in: str = "en", map_method: Method = "pca") -> str:
    """The page as text; arguments and errors as of `write_report`."""
    with language(written_in):
        evaluation, cards = report.evaluation, []
        for number, card in enumerate(report.cards):
            figure, note = draw_sketch(card.sketch, card.name, f"example {number}")
            found: dict[str, Any] = {"name": card.name, "figure": figure, "note": note}
            found["legend"] = legend_of(card.sketch)
            cards.append(found | {"caption": evaluation.caption(card.index)})
        charts, hidden, kinds = learning_curves(report.history or [])
        drawn = None if report.map is None else evaluation.draw_map(report.map, map_method)
        groups, metric = evaluation.by_group(), evaluation.per_example()
        return (
            page_environment()
            .get_template(evaluation.template)
            .render(
                report=report,
                on=translated(report.on),
                units=translated(evaluation.units),
                things=several(evaluation.unit),
                evaluation=evaluation,
                worst=evaluation.worst(),
                cards=cards,
                charts=charts,
                hidden=hidden,
                kinds=kinds,
                reasons=[reason_card(reason, f"reason {number}") for number, reason in enumerate(report.reasons)],
                signed=any(reason.signed for reason in report.reasons),
                map=drawn,
                map_method=map_method,
                groups=groups,
                group_metric=translated(metric[0]) if metric is not None and groups else "",
                max_groups=MAX_GROUPS,
                **evaluation.report_values(),
            )
        )


def page_environment(*packages: str) -> Environment:
    """What renders the templates of pages: the texts in `_(...)` are looked up in the language of the page.

    Args:
        *packages: other packages with templates, which may extend or include those of ndvit.evaluation.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "") for package in (*packages, "ndvit.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "quantity": quantity, "line": translated_line}
    environment.globals |= {"_": translated, "amount": amount, "lang": TAGS[current_language()]}
    return environment
