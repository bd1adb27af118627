"""Figures of a report, drawn by matplotlib as SVG inside the page.

Text stays text and colours are CSS variables of the page, so that figures work with any alphabet and follow the
reader's light or dark theme. Names are untrusted: matplotlib escapes them.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ndvit.evaluation.base import wilson_interval

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes


FEW = 10  # a bin with fewer examples is drawn faint, because its accuracy means little
SPLITS = {"train": "training", "val": "validation"}  # first curves of the legend, and prefixes of metrics
_PREFIXES = SPLITS | {"probe": "probe"}
_DOTS = 1000  # examples in a scatter plot
MAX_CURVES = 8  # in one chart: as many colours as the template has

# matplotlib knows no CSS: each of these colours stands for one of the page and is replaced by it afterwards.
CURVES = [f"#00fe0{i}" for i in range(MAX_CURVES)]
TEXT, STRONG, GRID = "#00fe0a", "#00fe0b", "#00fe0c"
INKS = {TEXT: "currentColor", STRONG: "var(--ink)", GRID: "var(--line)"}
INKS |= {colour: f"var(--c{i})" for i, colour in enumerate(CURVES)}
STYLE = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"], "font.size": 12}
STYLE |= {"text.parse_math": False, "figure.frameon": False, "axes.facecolor": "none"}  # $ is no formula
STYLE |= {f"axes.spines.{side}": False for side in ("left", "right", "top")}
STYLE |= {"ytick.left": False, "axes.xmargin": 0, "axes.ymargin": 0.06}
STYLE |= {"axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlecolor": STRONG}
STYLE |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)
STYLE |= {"grid.color": GRID, "lines.linewidth": 1.6, "lines.marker": "o", "lines.markersize": 5}


class ConfidenceBin(NamedTuple):
    """Examples whose confidence lies in [low, high); the last bin includes 1."""

    low: float
    high: float
    examples: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of correct predictions."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(round(self.accuracy * self.examples), self.examples)


def draw(size: tuple[int, int], name: str, description: str, paint: Callable[[Any], None], **panels: Any) -> Markup:
    """Draw a figure as SVG.

    Args:
        size: width and height in pixels.
        name: unique on the page, because the ids inside the figure are derived from it.
        description: alternative text for screen readers.
        paint: draws on the axes.
        **panels: arguments of matplotlib's `Figure.subplots`, which makes the axes.
    """
    from markupsafe import Markup
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context(["default", STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has other fonts
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure.subplots(**panels))
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue().decode()
    # Names stand between tags, with their < and > escaped, and never inside a tag, so only tags are rewritten.
    body = re.sub("<[^>]*>", _tidy, svg[svg.index("<g ") : svg.rindex("</svg>")])
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        *size, description, Markup(body)
    )


def _tidy(match: re.Match[str]) -> str:
    """Rewrite a tag of matplotlib: colours of the page, no ids shared by figures, fewer digits."""
    tag = re.sub("#00fe0[0-9a-c]", lambda colour: INKS[colour[0]], match[0].replace("xlink:href", "href"))
    tag = re.sub(' id="[^"]*"', "", tag) if tag.startswith("<g ") else tag
    return re.sub(r"\s*\n|(?<=\.\d)\d+" if tag.startswith(("<path", "<use")) else "\n", "", tag)


def chart(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    size: tuple[int, int],
    x_label: str,
    title: str,
    name: str,
    description: str,
    spans: Sequence[tuple[float, float]] = (),
    mark_steps: bool = True,
) -> Markup:
    """Draw curves on one pair of axes.

    Args:
        series: colour, one of `CURVES`, with x and y of each curve; NaN in y leaves a gap.
        size: width and height in pixels.
        x_label: label of the x axis; it ends in (s) for seconds, and counts otherwise.
        title: printed above the curves, with a % for percentages; "" for the signal of an example.
        name: unique on the page.
        description: alternative text for screen readers.
        spans: begin and end of marked stretches along the x axis.
        mark_steps: mark each point of all curves but the first, if they are few and there is a title.
    """
    from matplotlib.ticker import MaxNLocator

    def paint(axes: Axes) -> None:
        for begin, end in spans:
            axes.axvspan(begin, end, color=GRID, alpha=0.5, linewidth=0, clip_on=False)
        for colour, x, y in series:
            x, y = thin(x, y, size[0] // 2)
            finite = np.isfinite(y)
            dots = finite & ~np.append(False, finite[:-1]) & ~np.append(finite[1:], False)  # no neighbours, no line
            if mark_steps and title and colour != CURVES[0] and len(x) <= 60:
                dots = finite  # show the steps at which validation took place
            axes.plot(x, y, color=colour, markevery=dots, clip_on=False)
        xs = np.concatenate([x for _, x, _ in series])
        if xs.min() < xs.max():
            axes.set_xlim(xs.min(), xs.max())  # also where y is missing
        if "%" in title:
            axes.set_ylim(top=min(100, axes.get_ylim()[1]))
        axes.set(xlabel=x_label, title=title)
        axes.grid(axis="y", clip_on=False)  # clipping would add a reference, url(#...), to each line
        steps = [1, 2, 5, 10]
        axes.xaxis.set_major_locator(MaxNLocator(size[0] // 60, steps=steps, integer="(s)" not in x_label))
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.yaxis.set_major_locator(MaxNLocator(size[1] // 35, steps=steps))

    return draw(size, name, description, paint)


def heat(
    values: np.ndarray,
    step: float,
    frequencies: np.ndarray,
    size: tuple[int, int],
    labels: tuple[str, str],
    name: str,
    description: str,
) -> Markup:
    """Draw a spectrogram: time to the right, frequency upwards, power as a colour.

    Args:
        values: (bands, frames) decibels, NaN where nothing was observed.
        step: distance of two frames in the unit of the time axis.
        frequencies: (bands,) centres of the bands, ascending.
        size: width and height in pixels.
        labels: labels of the axes of time and frequency.
        name: unique on the page.
        description: alternative text for screen readers.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    bands, frames = values.shape
    seen = np.isfinite(values)
    low, high = (values[seen].min(), values[seen].max()) if seen.any() else (0.0, 0.0)
    shades = (np.where(seen, values, low) - low) / max(high - low, 1e-12)
    cells = (255 * colormaps["magma"](shades)).astype(np.uint8)
    cells[~seen, 3] = 0

    def paint(axes: Axes) -> None:
        axes.imshow(cells, "magma", aspect="auto", interpolation="none", origin="lower", clip_on=False)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        ticks = np.asarray(MaxNLocator(size[0] // 60, steps=[1, 2, 5, 10]).tick_values(0, frames * step))
        times = ticks[(ticks >= 0) & (ticks <= frames * step)]
        axes.set_xticks(times / step - 0.5, [f"{time:,.10g}" for time in times])
        rows = np.linspace(0, bands - 1, min(bands, 5)).round().astype(int)
        axes.set_yticks(
            rows, [f"{frequencies[row]:,.3g}" if frequencies[row] < 100 else f"{frequencies[row]:,.0f}" for row in rows]
        )

    return draw(size, name, description, paint)


def thin(x: np.ndarray, y: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a long curve to its minimum and maximum in each bin; gaps remain. matplotlib keeps far more points."""
    if len(y) <= 2 * bins:
        return x, y
    starts = np.arange(0, len(y), ceil(len(y) / bins))
    outline = np.stack([np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts)], axis=1)
    return x[starts].repeat(2), outline.ravel()


def learning_curves(history: list[dict[str, float]]) -> tuple[list[Markup], int, dict[str, str]]:
    """Draw a chart of each metric in `history`, and one of the learning rate.

    A metric of training and the same metric of validation share a chart. A variant of a metric, such as
    balanced_accuracy of accuracy, is one more curve in the same chart, and is left out if the two are equal.

    Args:
        history: rows with a "step" and any of train_*, val_*, probe_* and learning_rate; other columns are ignored.

    Returns:
        The charts; the number of values that are not finite and therefore not drawn; and the legend, which is the CSS
        colour by kind of curve.

    Raises:
        ValueError: if a row has no step.
    """
    for row in history:
        if "step" not in row:
            raise ValueError(f"every row of the history needs a 'step', got one with {sorted(row)}")
    curves = {}
    for name in dict.fromkeys(name for row in history for name in row):
        points = sorted((row["step"], row[name]) for row in history if row.get(name) is not None)
        curves[name] = np.array(points, dtype=float).reshape(-1, 2).T
    metrics = dict.fromkeys(name.partition("_")[2] for name in curves if name.partition("_")[0] in _PREFIXES)
    plan: dict[str, dict[str, np.ndarray]] = {"loss": {}}  # title: {kind of curve: (step, value)}
    for metric in metrics:
        title = next((other for other in metrics if metric.endswith(f"_{other}")), metric)
        variant = metric.removesuffix(title).rstrip("_")
        for split, kind in _PREFIXES.items():
            curve, base = curves.get(f"{split}_{metric}"), curves.get(f"{split}_{title}", np.empty(0))
            if curve is not None and not (variant and np.array_equal(curve.round(6), base.round(6))):
                plan.setdefault(title, {})[f"{kind}, {variant}" if variant else kind] = curve
    plan["learning rate"] = {"training": curves["learning_rate"]} if "learning_rate" in curves else {}
    kinds = dict.fromkeys([*SPLITS.values(), *(kind for chart in plan.values() for kind in chart)])
    colours = {kind: CURVES[i % MAX_CURVES] for i, kind in enumerate(kinds)}

    charts, hidden, used = [], 0, set[str]()
    for title, drawn in plan.items():
        scale, height = 100 if title.endswith("accuracy") else 1, 150 if title == "learning rate" else 230
        title = title.replace("_", " ") + " (%)" * (scale == 100)
        hidden += sum(int(np.count_nonzero(~np.isfinite(y))) for _, y in drawn.values())
        finite = {kind: (x[ok], scale * y[ok]) for kind, (x, y) in drawn.items() if (ok := np.isfinite(y)).any()}
        if finite:
            description = f"{title} against the training step: {' and '.join(finite)}"
            series = [(colours[kind], *curve) for kind, curve in finite.items()]
            charts.append(chart(series, (360, height), "step", title, title, description))
        used |= finite.keys()
    return charts, hidden, {kind: INKS[colour] for kind, colour in colours.items() if kind in used}


def reliability_diagram(bins: Sequence[ConfidenceBin]) -> Markup:
    """Draw accuracy against confidence, and below it the number of examples in each bin.

    A dot with the 95 % interval of its accuracy stands at the mean confidence of its bin, which need not be the middle.
    """

    def paint(panels: Sequence[Axes]) -> None:
        upper, lower = panels
        upper.plot([0, 100], [0, 100], color=TEXT, linewidth=1.2, linestyle=(0, (5, 4)), marker="", clip_on=False)
        for one in bins:
            x, at = 50 * (one.low + one.high), 100 * one.confidence
            ink_alpha, bar_alpha, count_alpha = (1, 0.4, 0.8) if one.examples >= FEW else (0.4, 0.2, 0.4)
            bar: dict[str, Any] = {"width": 92 * (one.high - one.low), "color": CURVES[0], "linewidth": 0}
            ink: dict[str, Any] = {"color": STRONG, "alpha": ink_alpha, "clip_on": False}
            upper.bar(x, 100 * one.accuracy, alpha=bar_alpha, clip_on=False, **bar)
            upper.plot([at, at], [100 * share for share in one.interval], linewidth=1.3, marker="", **ink)
            upper.plot([at], [100 * one.accuracy], markeredgewidth=0, linestyle="", **ink)
            bars = lower.bar(x, one.examples, alpha=count_alpha, clip_on=False, **bar)
            count = f"{one.examples}" if one.examples < 1000 else f"{one.examples / 1000:.3g}k"
            lower.bar_label(bars, [count], padding=2, fontsize=10, color=TEXT)
        upper.set(xlim=(0, 100), ylim=(0, 100), title="accuracy (%)")
        upper.grid(axis="y", clip_on=False)
        upper.set_axisbelow(True)
        lower.set(xlabel="confidence (%)", title="examples", yticks=[])
        lower.set_ylim(0, 1.25 * max(one.examples for one in bins))

    description = "reliability diagram. " + "; ".join(
        f"confidence {100 * one.confidence:.0f} %: accuracy {100 * one.accuracy:.0f} % of {one.examples}"
        for one in bins
    )
    shape = {"nrows": 2, "sharex": True, "height_ratios": (3.4, 1)}
    return draw((460, 500), "reliability", description, paint, **shape)


def matrix(classes: Sequence[str], shares: np.ndarray) -> Markup:
    """Draw a confusion matrix that is too large for a table: one pixel per cell, names of at most 25 classes.

    Args:
        classes: class names.
        shares: (classes, classes): the confusion matrix, each row (true class) divided by its sum.
    """
    width = len(classes)
    cells = np.empty((width, width, 4), dtype=np.uint8)
    cells[..., :3] = (249, 115, 22)
    cells[np.arange(width), np.arange(width), :3] = (59, 130, 246)
    # A single mistake among hundreds must be seen in either theme, so its opacity is at least 0.4.
    cells[..., 3] = np.where(shares > 0, 255 * (0.4 + 0.6 * shares), 0)
    ticks = range(0, width, ceil(width / 25))
    names = [_short(classes[i]) for i in ticks]

    def paint(axes: Axes) -> None:
        axes.figure.set(layout_engine="none")  # a layout engine measures names in a font that lacks their letters
        axes.set_position((0.25, 0.25, 0.74, 0.74))
        axes.imshow(cells, interpolation="none", clip_on=False)
        axes.set_yticks(ticks, names)
        axes.set_xticks(ticks, names, rotation=90, rotation_mode="anchor", ha="right", va="center")
        axes.tick_params(length=0, labelsize=11)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(GRID)
        strong: dict[str, Any] = {"weight": "bold", "color": STRONG, "transform": axes.figure.transFigure}
        axes.text(0.002, 0.976, "true", **strong)
        axes.text(0.99, 0.008, "predicted", ha="right", **strong)

    description = f"confusion matrix of {width} classes; the most frequent confusions are listed below"
    return draw((700, 700), "matrix", description, paint)


def _short(name: str) -> str:
    """A name as one line that fits beside the matrix."""
    name = " ".join(name.encode(errors="replace").decode().split())
    most = 12 if any(unicodedata.east_asian_width(letter) in "WF" for letter in name) else 22
    return name if len(name) <= most else f"{name[: most - 1]}…"


def residuals(truth: np.ndarray, predicted: np.ndarray, target: str, name: str) -> Markup:
    """Draw predicted against true numbers (n,), and beside it the errors; of more than 1,000 examples a sample."""
    chosen = np.arange(len(truth))
    if len(chosen) > _DOTS:
        chosen = np.random.default_rng(0).permutation(len(chosen))[:_DOTS]
    truth, predicted = truth[chosen], predicted[chosen]

    def paint(panels: Sequence[Axes]) -> None:
        from matplotlib.ticker import MaxNLocator

        left, right = panels
        dots: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "color": CURVES[0], "clip_on": False}
        dots |= {"alpha": 0.55, "markersize": 4.5 if len(chosen) > 100 else 6}
        dash: dict[str, Any] = {"color": TEXT, "linewidth": 1.2, "linestyle": (0, (5, 4)), "marker": "", "zorder": 0}
        both = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
        left.plot(both, both, clip_on=False, **dash)
        left.plot(truth, predicted, **dots)
        right.axhline(0, clip_on=False, **dash)
        right.plot(predicted, predicted - truth, **dots)
        left.set(xlabel="true", title="predicted")
        right.set(xlabel="predicted", title="predicted minus true")
        for axes in panels:
            axes.margins(x=0.03)
            axes.grid(axis="y", clip_on=False)
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))

    error = float(np.sqrt(np.square(predicted - truth).mean()))
    description = (
        f"predictions and errors of {_short(target)}: {len(truth)} examples, root mean squared error {error:.4g}"
    )
    return draw((820, 340), name, description, paint, ncols=2)
