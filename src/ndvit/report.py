"""The page that a training run leaves behind: one HTML file that needs nothing else, no network and no script.

Python decides what is drawn and where; `report.html.jinja` holds every tag and colour. The figures are SVG written by
that template, not by a plotting library: their text is then escaped like all other text, follows the reader's light or
dark theme, and takes any alphabet. Names are untrusted and reach the page through Jinja's escaping only.
"""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from importlib.resources import files
from math import ceil, floor, inf, log, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation import Evaluation

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CARDS = 24  # mistakes shown
MAX_TABLE = 20  # classes up to which the confusion matrix is a table of counts
MAX_ROWS = 50  # classes shown before the rest are folded away
MAX_CHANNELS = 8  # channels of a signal drawn over each other; as many colours as the template has
PICTURE = (96, 192)  # the longer side of a shown picture, pixels: enlarged from below the first, shrunk to the second


@dataclass(frozen=True, eq=False)
class Report:
    """Everything the page tells."""

    title: str
    """What was trained on what: "gunpoint · vit_nano"."""
    summary: dict[str, str]
    """Facts in the order they are shown: model, parameters, examples, steps, time, device, versions, seed."""
    notes: tuple[str, ...]
    """What was decided about the data: "no split given: ..."."""
    history: list[dict[str, float]]
    """Rows with a "step" and any of train_loss, val_loss, train_accuracy, val_accuracy, learning_rate; may be empty."""
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
class Line:
    """One curve in the pixels of its chart."""

    name: str
    colour: int
    path: str
    dots: str


@dataclass(frozen=True)
class Chart:
    """Curves and their axes in pixels, ready to be written as SVG."""

    width: int
    height: int
    left: float
    right: float
    bottom: float
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Card:
    """One mistake: what was shown, what was said, and its picture (a data URI) or its chart."""

    name: str
    true: str
    said: str
    confidence: float
    note: str
    picture: str = ""
    chart: Chart | None = None


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page; a page already there is replaced at once or, if anything fails, not at all.

    Raises:
        ValueError: A mistake's index or a row of the history does not fit.
        TypeError: An example is of a kind that cannot be drawn.
    """
    path = Path(path)
    # File names that are not UTF-8 reach Python as lone surrogates, which no encoder takes.
    page = render(report).encode("utf-8", errors="replace")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(page)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def render(report: Report) -> str:
    """The page as text; raises what `write_report` raises."""
    from jinja2 import Environment, StrictUndefined

    ev = report.evaluation
    many = len(ev.classes) > MAX_TABLE
    # Many classes are read from the worst; a class without examples has nothing to say and comes last.
    rows = sorted(ev.per_class, key=lambda row: 2.0 if row.recall is None else row.recall) if many else ev.per_class
    charts, unseen = _curves(report.history)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    template = environment.from_string(files("ndvit").joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        ev=ev,
        many=many,
        chance_loss=log(len(ev.classes)),
        shares=ev.confusion / np.maximum(ev.confusion.sum(axis=1, keepdims=True), 1),
        matrix=_matrix(ev) if many else None,
        confused=_confused(ev),
        rows=rows,
        max_rows=MAX_ROWS,
        charts=charts,
        unseen=unseen,
        validated=any(line.name == "validation" for chart in charts for line in chart.lines),
        cards=[_card(ev, index, example) for index, example in report.mistakes[:MAX_CARDS]],
    )


def _percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage that says 100 (or 0) only where it is exactly that."""
    if share is None:
        return "–"
    least = 10.0**-digits
    if 0 < share < 1 and round(100 * share, digits) in (0, 100):
        return f"<\N{NBSP}{least:.{digits}f}\N{NBSP}%" if share < 0.5 else f">\N{NBSP}{100 - least:.{digits}f}\N{NBSP}%"
    return f"{100 * share:.{digits}f}\N{NBSP}%"


# --- charts ---------------------------------------------------------------------------------------------------------


def _curves(history: list[dict[str, float]]) -> tuple[list[Chart], int]:
    """The learning curves, and how many values in them are not finite and so cannot be drawn."""
    charts, unseen = [], 0
    for row in history:
        if "step" not in row:
            raise ValueError(f"every row of the history needs a 'step', got one with {sorted(row)}")
    plan = (
        ("loss", 1, 230, {"training": "train_loss", "validation": "val_loss"}),
        ("accuracy (%)", 100, 230, {"training": "train_accuracy", "validation": "val_accuracy"}),
        ("learning rate", 1, 150, {"training": "learning_rate"}),
    )
    for label, scale, height, columns in plan:
        series = []
        for name, column in columns.items():
            points = sorted((row["step"], row[column]) for row in history if row.get(column) is not None)
            x, y = np.array(points, dtype=float).reshape(-1, 2).T
            seen = np.isfinite(y)
            unseen += int((~seen).sum())
            if seen.any():
                series.append((name, x[seen], scale * y[seen]))
        if series:
            charts.append(_chart(series, ("step", label), (360, height), 100 if scale == 100 else inf))
    return charts, unseen


def _chart(
    series: list[tuple[str, np.ndarray, np.ndarray]], labels: tuple[str, str], size: tuple[int, int], most: float = inf
) -> Chart:
    """Lay out curves, each a name with x and y; NaN in y leaves a gap; no y lies above `most`."""
    (x_label, y_label), (width, height) = labels, size
    xs, ys = (np.concatenate([curve[axis] for curve in series]) for axis in (1, 2))
    ys = ys[np.isfinite(ys)]
    x_low, x_high = _widen(xs, 0)
    y_low, y_high = _widen(ys, 0.06) if ys.size else (0.0, 1.0)
    y_high = min(y_high, most)
    x_ticks = _ticks(x_low, x_high, width // 70, whole=bool(np.all(xs == np.floor(xs))))
    y_ticks = _ticks(y_low, y_high, height // 35)
    # Nothing here can measure text: 7 pixels a character is right for digits of 12 pixels.
    left = 10 + 7 * max(len(text) for _, text in y_ticks)
    right = width - 4 - 7 * len(x_ticks[-1][1]) // 2
    top, bottom = (26 if y_label else 8), height - 38

    def to_x(x: Any) -> Any:
        return np.round(left + (right - left) * (x - x_low) / (x_high - x_low), 1)

    def to_y(y: Any) -> Any:
        return np.round(bottom - (bottom - top) * (y - y_low) / (y_high - y_low), 1)

    lines = []
    for colour, (name, x, y) in enumerate(series):
        x, y = _thin(x, y, max(60, width // min(len(series), 4)))
        px, py, there = to_x(x), to_y(y), np.isfinite(y)
        joined = there & np.append(False, there[:-1])  # to the point before
        lone = there & ~joined & ~np.append(joined[1:], False)
        path = "".join(f"{'L' if j else 'M'}{a:g} {b:g}" for a, b, j in zip(px[there], py[there], joined[there]))
        marked = there if name == "validation" and len(x) <= 60 else lone
        lines.append(Line(name, colour, path, "".join(f"M{a:g} {b:g}h0" for a, b in zip(px[marked], py[marked]))))
    at_x = [(float(to_x(at)), text) for at, text in x_ticks]
    at_y = [(float(to_y(at)), text) for at, text in y_ticks]
    return Chart(width, height, left, right, bottom, lines, at_x, at_y, x_label, y_label)


def _widen(values: np.ndarray, margin: float) -> tuple[float, float]:
    """The range of values with a margin (a share of it), never empty."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return low - (pad := abs(low) / 10 or 1.0), high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers within a range, about `most` of them, with their texts."""
    rough = (high - low) / max(most, 2)
    unit = 10.0 ** floor(log10(rough))
    step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    places = max(0, 1 - floor(log10(step)))
    ticks = [round(i * step, places) for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return [(t, f"{t:,.10g}" if abs(t) < 1e6 else f"{t:.4g}") for t in ticks or [(low + high) / 2]]


def _thin(x: np.ndarray, y: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest point of each bin: a long curve keeps its outline, a missing bin stays missing."""
    if len(y) <= 2 * bins:
        return x, y
    size = ceil(len(y) / bins)
    padded = np.pad(y, (0, bins * size - len(y)), constant_values=np.nan).reshape(bins, size)
    low = np.where(np.isnan(padded), np.inf, padded).argmin(axis=1)
    high = np.where(np.isnan(padded), -np.inf, padded).argmax(axis=1)
    keep = np.unique(np.concatenate([low, high]) + np.tile(np.arange(bins) * size, 2))
    keep = keep[keep < len(y)]
    return x[keep], y[keep]


# --- classes --------------------------------------------------------------------------------------------------------


def _matrix(ev: Evaluation) -> tuple[str, list[tuple[float, str]]]:
    """A confusion matrix too large for a table: a picture, one pixel a cell, and (place, name) of labelled classes."""
    from PIL import Image

    width = len(ev.classes)
    share = ev.confusion / np.maximum(ev.confusion.sum(axis=1, keepdims=True), 1)
    cells = np.empty((width, width, 4), dtype=np.uint8)
    cells[..., :3] = (249, 115, 22)
    cells[np.arange(width), np.arange(width), :3] = (59, 130, 246)
    # A single mistake among hundreds must still be seen, in either theme, so that anything at all starts at 0.4.
    cells[..., 3] = np.where(share > 0, 255 * (0.4 + 0.6 * share), 0)
    every = ceil(width / 25)
    labels = [((i + 0.5) / width, name) for i, name in enumerate(ev.classes) if i % every == 0]
    return _uri(Image.fromarray(cells), "PNG"), labels


def _confused(ev: Evaluation) -> list[tuple[str, str, int]]:
    """The commonest confusions: true class, predicted class, count."""
    wrong = ev.confusion * (1 - np.eye(len(ev.classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [(ev.classes[i], ev.classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


# --- mistakes -------------------------------------------------------------------------------------------------------


def _card(ev: Evaluation, index: int, example: Any) -> Card:
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
    channels, length = values.shape
    note = f"{channels} channels, " if channels > 1 else ""
    note += f"{length} samples" if rate is None else f"{length / rate:.3g} s at {rate:g} Hz"
    if channels > MAX_CHANNELS:
        note += f"; the first {MAX_CHANNELS} drawn"
    x = np.arange(length) / (rate or 1)
    drawn = np.where(np.isfinite(values), values, np.nan)[:MAX_CHANNELS].astype(float)
    if missing := 1 - np.isfinite(values).mean():
        note += f"; {_percent(missing)} missing"
    series = [(f"channel {i + 1}", x, y) for i, y in enumerate(drawn)]
    return Card(*facts, note, chart=_chart(series, ("sample" if rate is None else "time (s)", ""), (260, 170)))


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
    longest = max(image.size)
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "LA" else "RGB")
    if longest < small:  # show the pixels as they are
        factor = ceil(small / longest)
        return _uri(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), "PNG")
    image = image.copy()
    image.thumbnail((large, large), Image.Resampling.LANCZOS)
    return _uri(image, "WEBP")  # as PNG, two dozen photographs are several megabytes


def _uri(image: Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "WEBP" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
