"""The page that a training run leaves behind: one HTML file that needs nothing else, no network and no script.

`report.html.jinja` holds every tag and colour of the page, `evaluation.figures` draws its curves and its large
matrices, and this module gathers the facts and the mistakes. Names are untrusted: Jinja escapes them.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.resources import files
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation.figures import CURVES, FEW, MAX_CHANNELS, chart, learning_curves, matrix, reliability_diagram
from ndvit.evaluation.metrics import Evaluation
from ndvit.files import replace_file

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CARDS = 24  # mistakes shown
MAX_TABLE = 20  # classes up to which the confusion matrix is a table of counts
MAX_ROWS = 50  # classes shown before the rest are folded away
PICTURE = (96, 192)  # the longer side of a shown picture, pixels: enlarged from below the first, shrunk to the second


@dataclass(frozen=True, eq=False)
class Report:
    """Everything the page tells."""

    title: str
    """What was trained on what: "gunpoint · vit_nano"."""
    summary: dict[str, str]
    """Facts in the order they are shown: model, parameters, examples, steps, probabilities, time, device, versions,
    seed; "probabilities" says whether they were calibrated, and how."""
    notes: tuple[str, ...]
    """What was decided about the data: "no split given: ..."."""
    history: list[dict[str, float]]
    """Rows with a "step" and any of train_loss, val_loss, train_accuracy, val_accuracy, val_balanced_accuracy,
    learning_rate, of which curves are drawn; others are allowed. May be empty."""
    evaluation: Evaluation
    """The answers on the test set."""
    mistakes: list[tuple[int, Any]]
    """The worst mistakes: an index into `evaluation` and the example as it was read: a PIL image, an array (channels,
    *grid) with NaN where values are missing, or a recording with `values` (channels, time) and `rate` in Hz."""
    config: str
    """The run's configuration, YAML."""
    command: str
    """How to run it again."""


@dataclass(frozen=True)
class Card:
    """One mistake: what was shown, what was said, and its picture (a data URI) or its chart (SVG)."""

    name: str
    true: str
    said: str
    confidence: float
    note: str
    picture: str = ""
    chart: str = ""


def write_report(report: Report, path: str | Path) -> None:
    """Write the page; a page already there is replaced at once or, if anything fails, not at all.

    Raises:
        ValueError: A mistake's index or a row of the history does not fit.
        TypeError: An example is of a kind that cannot be drawn.
    """
    # File names that are not UTF-8 reach Python as lone surrogates, which no encoder takes.
    replace_file(Path(path), render(report).encode("utf-8", errors="replace"))


def render(report: Report) -> str:
    """The page as text; raises what `write_report` raises."""
    from jinja2 import Environment, StrictUndefined

    ev = report.evaluation
    many = len(ev.classes) > MAX_TABLE
    # Many classes are read from the worst; a class without examples has nothing to say and comes last.
    rows = sorted(ev.per_class, key=lambda row: 2.0 if row.recall is None else row.recall) if many else ev.per_class
    shares = ev.confusion / np.maximum(ev.confusion.sum(axis=1, keepdims=True), 1)
    charts, unseen, kinds = learning_curves(report.history)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    page = files("ndvit.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = environment.from_string(page)
    return template.render(
        report=report,
        ev=ev,
        many=many,
        chance_loss=log(len(ev.classes)),
        shares=shares,
        matrix=matrix(ev.classes, shares) if many else "",
        confused=_confused(ev),
        reliability=reliability_diagram(ev.reliability),
        calibrated=report.summary.get("probabilities", ""),
        few=FEW,
        rows=rows,
        max_rows=MAX_ROWS,
        charts=charts,
        unseen=unseen,
        kinds=kinds,
        cards=[_card(ev, *mistake, f"mistake {i}") for i, mistake in enumerate(report.mistakes[:MAX_CARDS])],
    )


def _percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage that says 100 (or 0) only where it is exactly that."""
    if share is None:
        return "–"
    least = 10.0**-digits
    if 0 < share < 1 and round(100 * share, digits) in (0, 100):
        return f"<\N{NBSP}{least:.{digits}f}\N{NBSP}%" if share < 0.5 else f">\N{NBSP}{100 - least:.{digits}f}\N{NBSP}%"
    return f"{100 * share:.{digits}f}\N{NBSP}%"


def _confused(ev: Evaluation) -> list[tuple[str, str, int]]:
    """The commonest confusions: true class, predicted class, count."""
    wrong = ev.confusion * (1 - np.eye(len(ev.classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [(ev.classes[i], ev.classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _card(ev: Evaluation, index: int, example: Any, name: str) -> Card:
    """A mistake's card; `name` tells its chart from those of other cards."""
    from PIL import Image

    if not 0 <= index < len(ev):
        raise ValueError(f"a mistake's index must lie in 0 to {len(ev) - 1}, got {index}")
    said = int(ev.predicted[index])
    facts = (ev.names[index], ev.classes[ev.labels[index]], ev.classes[said], float(ev.confidence[index]))
    if isinstance(example, Image.Image):
        note = f"{example.width} × {example.height} pixels"
        if example.mode == "F" or example.mode.startswith("I"):  # 16 bits and more: no fixed range
            example = _plane(np.asarray(example, dtype=float)[None])[0]
        return Card(*facts, note, picture=_picture(example))
    rate = getattr(example, "rate", None)
    values = np.asarray(example if rate is None else example.values)
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"to be drawn, example {ev.names[index]!r} must be a PIL image, a real array or a recording with values "
            f"and rate, got {type(example).__name__}"
        )
    values = np.atleast_2d(values)
    if values.size == 0:
        return Card(*facts, "empty")
    if values.ndim > 2:
        plane, note = _plane(values)
        return Card(*facts, note, picture=_picture(plane))
    x_label = "sample" if rate is None else "time (s)"
    x = np.arange(values.shape[1]) / (rate or 1)
    series = {colour: (x, np.where(np.isfinite(y), y, np.nan).astype(float)) for colour, y in zip(CURVES, values)}
    told = f"test example {ev.names[index]}, drawn over {x_label}"
    return Card(*facts, _note(values, rate), chart=chart(series, (260, 170), x_label, "", name, told))


def _note(values: np.ndarray, rate: float | None) -> str:
    """What a chart of a signal (channels, time) leaves untold."""
    channels, length = values.shape
    note = f"{channels} channels, " if channels > 1 else ""
    note += f"{length} samples" if rate is None else f"{length / rate:.3g} s at {rate:g} Hz"
    if channels > MAX_CHANNELS:
        note += f"; the first {MAX_CHANNELS} drawn"
    if missing := 1 - np.isfinite(values).mean():
        note += f"; {_percent(missing)} missing"
    return note


def _plane(values: np.ndarray) -> tuple[Image, str]:
    """A picture of an array (channels, *grid) of two or more dimensions, transparent where values are missing."""
    from PIL import Image

    note = f"{' × '.join(map(str, values.shape[1:]))}, "
    slices = values.shape[1:-2]
    for size in slices:
        values = values[:, size // 2]
    if slices:
        note += f"slice {', '.join(str(size // 2 + 1) for size in slices)} of {', '.join(map(str, slices))}, "
    channels = len(values)
    if channels != 3:  # three are taken for red, green and blue
        values = values[:1].repeat(3, axis=0)
    note += "1 channel" if channels == 1 else f"{channels} channels" if channels == 3 else f"channel 1 of {channels}"
    there = np.isfinite(values).all(axis=0)
    if values.dtype != np.uint8 and there.any():
        low, high = values[:, there].min(), values[:, there].max()
        values = 255 * (np.where(there, values, low).astype(float) - low) / max(float(high) - float(low), 1e-12)
    pixels = np.concatenate([np.where(there, values, 0), 255 * there[None]]).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), note


def _picture(image: Image) -> str:
    """A data URI of a picture at the size of a card."""
    from PIL import Image

    small, large = PICTURE
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "LA" else "RGB")
    if max(image.size) < small:  # show the pixels as they are
        factor = ceil(small / max(image.size))
        kind, image = "PNG", image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        kind, image = "WEBP", image.copy()  # as PNG, two dozen photographs are several megabytes
        image.thumbnail((large, large), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
