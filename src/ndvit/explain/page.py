"""Explanations as one HTML page, or as a folder with the page and the arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ndvit.evaluation.base import percent
from ndvit.evaluation.relevance import Reason, Relevance, RelevanceSketch, reason_card
from ndvit.evaluation.report import page_environment
from ndvit.explain.explain import Explanation
from ndvit.files import make_folder, replace_file

PAGE_FILE, TABLE_FILE = "page.html", "explanations.json"
MOST = 48  # examples on a page, which then stays below 5 MB


def write_explanations(explanations: Sequence[Explanation], output: Path, title: str) -> None:
    """Write explanations to a page (a path that ends in .html) or into a folder.

    A folder has page.html, explanations.json, and the relevance of each example as 00000.npy, 00001.npy, ... in the
    order of explanations.json.
    """
    if output.suffix.lower() in (".html", ".htm"):
        replace_file(output, render(explanations, title).encode("utf-8", errors="replace"))
        return
    make_folder(output)
    rows = [{"file": f"{i:05}.npy", **one.to_dict()} for i, one in enumerate(explanations)]
    for row, one in zip(rows, explanations):
        replace_file(output / row["file"], partial(_save, one.relevance))
    replace_file(output / TABLE_FILE, json.dumps(rows, indent=1, ensure_ascii=False))
    replace_file(output / PAGE_FILE, render(explanations, title).encode("utf-8", errors="replace"))


def render(explanations: Sequence[Explanation], title: str) -> str:
    """The page as text."""
    cards = [reason_card(reason(one), f"example {number}") for number, one in enumerate(explanations[:MOST])]
    return (
        page_environment()
        .get_template("explain.html.jinja")
        .render(
            report=SimpleNamespace(title=title),
            reasons=cards,
            total=len(explanations),
            methods=sorted({one.method for one in explanations}),
            signed=any(one.signed for one in explanations),
            banded=any(one.bands is not None for one in explanations),
            of_number=any(one.of_number for one in explanations),
        )
    )


def reason(
    one: Explanation,
    caption: dict[str, str] | None = None,
    reference: RelevanceSketch | None = None,
    reference_name: str = "",
) -> Reason:
    """An explanation as a page prints it; the caption is by default the answer and what is explained."""
    example = Relevance(
        values=one.values,
        relevance=one.relevance,
        rate=one.rate,
        band_edges=None if one.bands is None else one.bands.edges,
        bands=None if one.bands is None else one.bands.relevance,
        channels=one.channels,
    )
    if caption is None:
        caption = {"answer": one.predicted}
        if one.exclusive:
            caption["probability"] = percent(float(one.answers.max()))
        if one.label != one.predicted:
            caption["explained"] = one.label
        if one.label != one.predicted and one.exclusive:
            caption["its probability"] = percent(float(one.answers[one.target]))
    return Reason(example, one.name, caption, one.signed, reference, reference_name)


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # np.save would add an extension to the temporary name
        np.save(file, array)
