"""The figures of a report: matplotlib draws them as SVG that stands in the page.

Their text stays text and their colours are the page's own, so that they take any alphabet and follow the reader's light
or dark theme. Names are untrusted: matplotlib escapes them.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

    from ndvit.evaluation.metrics import ConfidenceBin

FEW = 10  # examples of a bin below which its accuracy says little
MAX_CHANNELS = 8  # channels of a signal drawn over each other; as many colours as the template has

# matplotlib knows no CSS: figures are drawn in colours that stand for the page's, which then take their place.
CURVES = [f"#00fe0{i}" for i in range(MAX_CHANNELS)]
BALANCED = "validation, balanced over the classes"
KINDS = dict(zip(("training", "validation", BALANCED), CURVES))  # as in the page's legend
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


def _draw(size: tuple[int, int], name: str, told: str, paint: Callable[[Any], None], **panels: Any) -> Markup:
    """A figure of a size in pixels as SVG; its ids follow from its name, and it is told to who cannot see it.

    What paints it is given its axes; more than one pair where `panels`, of matplotlib's `Figure.subplots`, ask for it.
    """
    from markupsafe import Markup
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context(["default", STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's browser has fonts of its own
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure.subplots(**panels))
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


def chart(
    series: dict[str, tuple[np.ndarray, np.ndarray]],
    size: tuple[int, int],
    x_label: str,
    title: str,
    name: str,
    told: str,
) -> Markup:
    """Curves on one pair of axes.

    Args:
        series: x and y by colour, of `CURVES`; NaN in y leaves a gap.
        size: Width and height, pixels.
        x_label: What x is; in seconds where it ends in (s), else counted.
        title: Stands above the curves, and tells shares where it has a %; "" for a mistake's signal.
        name: Differs from that of every other figure on the page.
        told: Says what is drawn to who cannot see it.
    """
    from matplotlib.ticker import MaxNLocator

    def paint(axes: Axes) -> None:
        for colour, (x, y) in series.items():
            x, y = _thin(x, y, size[0] // 2)
            seen = np.isfinite(y)
            dots = seen & ~np.append(False, seen[:-1]) & ~np.append(seen[1:], False)  # without neighbours, no line
            if title and colour != KINDS["training"] and len(x) <= 60:
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


def learning_curves(history: list[dict[str, float]]) -> tuple[list[Markup], int, dict[str, str]]:
    """The learning curves, how many values are not finite and so cannot be drawn, and the legend: name and CSS colour.

    Balanced accuracy has no curve where it is the accuracy, as it is where all classes have as many examples.
    """
    charts, unseen, kinds = [], 0, set[str]()
    for row in history:
        if "step" not in row:
            raise ValueError(f"every row of the history needs a 'step', got one with {sorted(row)}")
    pairs = [(row.get("val_accuracy"), row.get("val_balanced_accuracy")) for row in history]
    differ = any(b is not None and (a is None or abs(a - b) > 1e-6) for a, b in pairs)
    balanced = {BALANCED: "val_balanced_accuracy"} if differ else {}
    plan = (
        ("loss", 1, 230, {"training": "train_loss", "validation": "val_loss"}),
        ("accuracy (%)", 100, 230, {"training": "train_accuracy", "validation": "val_accuracy", **balanced}),
        ("learning rate", 1, 150, {"training": "learning_rate"}),
    )
    for title, scale, height, columns in plan:
        series = {}
        for name, column in columns.items():
            points = sorted((row["step"], row[column]) for row in history if row.get(column) is not None)
            x, y = np.array(points, dtype=float).reshape(-1, 2).T
            seen = np.isfinite(y)
            unseen += int(np.count_nonzero(~seen))
            if seen.any():
                series[name] = (x[seen], scale * y[seen])
        kinds |= series.keys()
        if series:
            told = f"{title} against the step of training: {' and '.join(series)}"
            coloured = {KINDS[name]: curve for name, curve in series.items()}
            charts.append(chart(coloured, (360, height), "step", title, title, told))
    return charts, unseen, {name: INKS[colour] for name, colour in KINDS.items() if name in kinds}


def reliability_diagram(bins: Sequence[ConfidenceBin]) -> Markup:
    """Accuracy against confidence, and below how many examples each bin has; bins of few examples are faint.

    Both axes run from 0 to 100 %. A dot stands at the mean confidence of its bin, which need not be the middle, with
    the 95 % interval of its accuracy (Wilson): whether it is off the dashed line by chance.

    Args:
        bins: those that have examples.
    """
    from scipy.stats import binomtest

    def paint(panels: Sequence[Axes]) -> None:
        upper, lower = panels
        upper.plot([0, 100], [0, 100], color=TEXT, linewidth=1.2, linestyle=(0, (5, 4)), marker="", clip_on=False)
        for one in bins:
            x, width = 100 * (one.low + one.high) / 2, 92 * (one.high - one.low)
            ink_alpha, bar_alpha, count_alpha = (1, 0.4, 0.8) if one.examples >= FEW else (0.4, 0.2, 0.4)
            bar: dict[str, Any] = {"width": width, "color": CURVES[0], "linewidth": 0, "clip_on": False}
            upper.bar(x, 100 * one.accuracy, alpha=bar_alpha, **bar)
            span = binomtest(round(one.accuracy * one.examples), one.examples).proportion_ci(0.95, method="wilson")
            ink: dict[str, Any] = {"color": STRONG, "alpha": ink_alpha, "clip_on": False}
            at = 100 * one.confidence
            upper.plot([at, at], [100 * span.low, 100 * span.high], linewidth=1.3, marker="", **ink)
            upper.plot([at], [100 * one.accuracy], markeredgewidth=0, linestyle="", **ink)
            lower.bar(x, one.examples, alpha=count_alpha, **bar)
            count = f"{one.examples}" if one.examples < 1000 else f"{one.examples / 1000:.3g}k"
            lower.annotate(
                count, (x, one.examples), (0, 2), textcoords="offset points", ha="center", fontsize=10, color=TEXT
            )
        upper.set(xlim=(0, 100), ylim=(0, 100), title="accuracy (%)")
        upper.grid(axis="y", clip_on=False)
        upper.set_axisbelow(True)
        lower.set(xlabel="confidence (%)", title="examples", yticks=[])
        lower.set_ylim(0, 1.25 * max(one.examples for one in bins))

    told = "; ".join(
        f"confidence {100 * one.confidence:.0f} %: accuracy {100 * one.accuracy:.0f} % of {one.examples}"
        for one in bins
    )
    shape = {"nrows": 2, "sharex": True, "height_ratios": (3.4, 1)}
    return _draw((460, 500), "reliability", f"reliability diagram. {told}", paint, **shape)


def matrix(classes: Sequence[str], shares: np.ndarray) -> Markup:
    """A confusion matrix too large for a table: one pixel a cell, and the names of at most 25 classes.

    Args:
        classes: Names of the classes.
        shares: The confusion matrix as shares of each true class, (true, predicted).
    """
    width = len(classes)
    cells = np.empty((width, width, 4), dtype=np.uint8)
    cells[..., :3] = (249, 115, 22)
    cells[np.arange(width), np.arange(width), :3] = (59, 130, 246)
    # A single mistake among hundreds must still be seen, in either theme, so that anything at all starts at 0.4.
    cells[..., 3] = np.where(shares > 0, 255 * (0.4 + 0.6 * shares), 0)
    named = range(0, width, ceil(width / 25))
    names = [_short(classes[i]) for i in named]

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
