"""The page that a training run leaves behind: one HTML file that needs nothing else, no network and no script.

`report.html.jinja` holds every tag and colour of the page; matplotlib draws the figures as SVG that stands in the page.
Their text stays text and their colours are the page's own, so that they take any alphabet and follow the reader's light
or dark theme. Names are untrusted: Jinja escapes them in the page, and matplotlib in the figures.
"""

from __future__ import annotations

import base64
import io
import os
import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation import Evaluation

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from PIL.Image import Image

MAX_CARDS = 24  # mistakes shown
MAX_TABLE = 20  # classes up to which the confusion matrix is a table of counts
MAX_ROWS = 50  # classes shown before the rest are folded away
MAX_CHANNELS = 8  # channels of a signal drawn over each other; as many colours as the template has
PICTURE = (96, 192)  # the longer side of a shown picture, pixels: enlarged from below the first, shrunk to the second

# matplotlib knows no CSS: figures are drawn in colours that stand for the page's, which then take their place.
CURVES = [f"#00fe0{i}" for i in range(MAX_CHANNELS)]
TEXT, STRONG, GRID = "#00fe0a", "#00fe0b", "#00fe0c"
INKS = {TEXT: "currentColor", STRONG: "var(--ink)", GRID: "var(--line)"}
INKS |= {colour: f"var(--c{i})" for i, colour in enumerate(CURVES)}
STYLE = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"], "font.size": 12}
STYLE |= {"text.parse_math": False, "figure.frameon": False, "axes.facecolor": "none"}  # a $ is a $
STYLE |= {f"axes.spines.{side}": False for side in ("left", "right", "top")}
STYLE |= {"ytick.left": False, "axes.xmargin": 0, "axes.ymargin": 0.06}
STYLE |= {"axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlecolor": STRONG}
STYLE |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)
STYLE |= {"grid.color": GRID, "lines.linewidth": 1.6, "lines.marker": "o", "lines.markersize": 5}


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
class Card:
    """One mistake: what was shown, what was said, and its picture (a data URI) or its chart (SVG)."""

    name: str
    true: str
    said: str
    confidence: float
    note: str
    picture: str = ""
    chart: str = ""


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
    charts, unseen, validated = _curves(report.history)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    template = environment.from_string(files("ndvit").joinpath("report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        ev=ev,
        many=many,
        chance_loss=log(len(ev.classes)),
        shares=ev.confusion / np.maximum(ev.confusion.sum(axis=1, keepdims=True), 1),
        matrix=_matrix(ev) if many else "",
        confused=_confused(ev),
        rows=rows,
        max_rows=MAX_ROWS,
        charts=charts,
        unseen=unseen,
        validated=validated,
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


# --- figures --------------------------------------------------------------------------------------------------------


def _draw(size: tuple[int, int], name: str, told: str, paint: Callable[[Axes], None]) -> Markup:
    """A figure of a size in pixels as SVG; its ids follow from its name, and it is told to who cannot see it."""
    from markupsafe import Markup
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context(["default", STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's browser has fonts of its own
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue().decode()
    # Names stand between tags, with their < and > escaped, and never inside of one: only tags are rewritten.
    body = re.sub("<[^>]*>", _tidy, svg[svg.index("<g ") : svg.rindex("</svg>")])
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(*size, told, Markup(body))


def _tidy(match: re.Match[str]) -> str:
    """A tag of matplotlib's as it may stand in a page: in the page's colours, with no id shared by figures, shorter."""
    tag = re.sub("#00fe0[0-9a-c]", lambda colour: INKS[colour[0]], match[0].replace("xlink:href", "href"))
    tag = re.sub(' id="[^"]*"', "", tag) if tag.startswith("<g ") else tag
    return re.sub(r"\s*\n|(?<=\.\d)\d+" if tag.startswith(("<path", "<use")) else "\n", "", tag)


def _chart(
    series: dict[str, tuple[np.ndarray, np.ndarray]],
    size: tuple[int, int],
    x_label: str,
    title: str,
    name: str,
    told: str,
) -> Markup:
    """Curves, x and y by colour; NaN in y leaves a gap."""
    from matplotlib.ticker import MaxNLocator

    def paint(axes: Axes) -> None:
        for colour, (x, y) in series.items():
            x, y = _thin(x, y, size[0] // 2)
            seen = np.isfinite(y)
            dots = seen & ~np.append(False, seen[:-1]) & ~np.append(seen[1:], False)  # without neighbours, no line
            if title and colour == CURVES[1] and len(x) <= 60:
                dots = seen  # of validation, to show where it was measured
            axes.plot(x, y, color=colour, markevery=dots, clip_on=False)
        xs = np.concatenate([x for x, _ in series.values()])
        if xs.min() < xs.max():
            axes.set_xlim(xs.min(), xs.max())  # also where y is missing
        if "%" in title:
            axes.set_ylim(top=min(100, axes.get_ylim()[1]))
        axes.set(xlabel=x_label, title=title)
        axes.grid(axis="y", clip_on=False)  # clipping would take a reference, url(#...), on each line
        steps = [1, 2, 5, 10]
        axes.xaxis.set_major_locator(MaxNLocator(size[0] // 60, steps=steps, integer="(s)" not in x_label))
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.yaxis.set_major_locator(MaxNLocator(size[1] // 35, steps=steps))

    return _draw(size, name, told, paint)


def _thin(x: np.ndarray, y: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """A long curve's outline, far smaller than what matplotlib's simplification leaves; gaps stay."""
    if len(y) <= 2 * bins:
        return x, y
    starts = np.arange(0, len(y), ceil(len(y) / bins))
    outline = np.stack([np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts)], axis=1)
    return x[starts].repeat(2), outline.ravel()


def _curves(history: list[dict[str, float]]) -> tuple[list[Markup], int, bool]:
    """The learning curves, how many values are not finite and so cannot be drawn, and whether any is of validation."""
    charts, unseen, validated = [], 0, False
    for row in history:
        if "step" not in row:
            raise ValueError(f"every row of the history needs a 'step', got one with {sorted(row)}")
    plan = (
        ("loss", 1, 230, {"training": "train_loss", "validation": "val_loss"}),
        ("accuracy (%)", 100, 230, {"training": "train_accuracy", "validation": "val_accuracy"}),
        ("learning rate", 1, 150, {"training": "learning_rate"}),
    )
    for title, scale, height, columns in plan:
        series, shown = {}, []
        for colour, (name, column) in zip(CURVES, columns.items()):
            points = sorted((row["step"], row[column]) for row in history if row.get(column) is not None)
            x, y = np.array(points, dtype=float).reshape(-1, 2).T
            seen = np.isfinite(y)
            unseen += int((~seen).sum())
            if seen.any():
                series[colour] = (x[seen], scale * y[seen])
                shown.append(name)
                validated |= name == "validation"
        if series:
            told = f"{title} against the step of training: {' and '.join(shown)}"
            charts.append(_chart(series, (360, height), "step", title, title, told))
    return charts, unseen, validated


def _matrix(ev: Evaluation) -> Markup:
    """A confusion matrix too large for a table: one pixel a cell, and the names of at most 25 classes."""
    width = len(ev.classes)
    share = ev.confusion / np.maximum(ev.confusion.sum(axis=1, keepdims=True), 1)
    cells = np.empty((width, width, 4), dtype=np.uint8)
    cells[..., :3] = (249, 115, 22)
    cells[np.arange(width), np.arange(width), :3] = (59, 130, 246)
    # A single mistake among hundreds must still be seen, in either theme, so that anything at all starts at 0.4.
    cells[..., 3] = np.where(share > 0, 255 * (0.4 + 0.6 * share), 0)
    named = range(0, width, ceil(width / 25))
    names = [_short(ev.classes[i]) for i in named]

    def paint(axes: Axes) -> None:
        axes.figure.set(layout_engine="none")  # it would measure names in a font that lacks their letters
        axes.set_position((0.25, 0.25, 0.74, 0.74))
        axes.imshow(cells, interpolation="none", clip_on=False)
        axes.set_yticks(named, names)
        axes.set_xticks(named, names, rotation=90, rotation_mode="anchor", ha="right", va="center")
        axes.tick_params(length=0, labelsize=11)
        axes.spines[:].set(visible=True, color=GRID)
        strong: dict[str, Any] = {"weight": "bold", "color": STRONG, "transform": axes.figure.transFigure}
        axes.text(0.002, 0.976, "true", **strong)
        axes.text(0.99, 0.008, "predicted", ha="right", **strong)

    told = f"confusion matrix of {width} classes; the commonest confusions are listed below"
    return _draw((700, 700), "matrix", told, paint)


def _short(name: str) -> str:
    """A name of one line that fits beside the matrix."""
    name = " ".join(name.encode(errors="replace").decode().split())
    most = 12 if any(unicodedata.east_asian_width(letter) in "WF" for letter in name) else 22
    return name if len(name) <= most else f"{name[: most - 1]}…"


# --- classes --------------------------------------------------------------------------------------------------------


def _confused(ev: Evaluation) -> list[tuple[str, str, int]]:
    """The commonest confusions: true class, predicted class, count."""
    wrong = ev.confusion * (1 - np.eye(len(ev.classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [(ev.classes[i], ev.classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


# --- mistakes -------------------------------------------------------------------------------------------------------


def _card(ev: Evaluation, index: int, example: Any, name: str) -> Card:
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
    series = {colour: (x, y) for colour, y in zip(CURVES, drawn)}
    x_label = "sample" if rate is None else "time (s)"
    told = f"test example {ev.names[index]}, drawn over {x_label}"
    return Card(*facts, note, chart=_chart(series, (260, 170), x_label, "", name, told))


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
