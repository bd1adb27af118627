"""Figures of a report, drawn by matplotlib as SVG inside the page.

Text stays text and colours are CSS variables of the page, so that figures work with any alphabet and follow the
reader's light or dark theme. Names are untrusted: matplotlib escapes them.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ndvit.files import replace_file

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes


MAX_CURVES = 8  # in one chart: as many colours as the template has

# Colours have names for matplotlib, see `_named_colours`. On a page, which has light and dark colours, each stands for
# a variable of CSS; in files of figures it is that of the light page.
CURVES = [f"ndvit:c{i}" for i in range(MAX_CURVES)]
TEXT, STRONG, GRID = "ndvit:text", "ndvit:strong", "ndvit:grid"
INKS = {TEXT: "currentColor", STRONG: "var(--ink)", GRID: "var(--line)"}
INKS |= {colour: f"var(--c{i})" for i, colour in enumerate(CURVES)}
_PAPER = ["#2563eb", "#d9560b", "#0d9467", "#d11a66", "#7c4ddb", "#a16d04", "#0789a3", "#6f6156"]
_PAPER += ["#303840", "#000000", "#d5dbe1"]
# matplotlib knows no CSS: on a page, these colours stand for those of `INKS`, by which they are replaced afterwards.
_MARKS = [f"#00fe0{digit}" for digit in "01234567abc"]
_MARKED = dict(zip(_MARKS, (INKS[name] for name in (*CURVES, TEXT, STRONG, GRID))))
_FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "SimHei"]
_FONTS += ["Microsoft YaHei", "PingFang SC", "Heiti TC", "Arial Unicode MS"]
STYLE: dict[str, Any] = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"], "font.size": 12}
STYLE |= {"text.parse_math": False, "figure.frameon": False, "axes.facecolor": "none"}  # $ is no formula
STYLE |= {f"axes.spines.{side}": False for side in ("left", "right", "top")}
STYLE |= {"ytick.left": False, "axes.xmargin": 0, "axes.ymargin": 0.06}
STYLE |= {"axes.titlelocation": "left", "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlecolor": STRONG}
STYLE |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)
STYLE |= {"grid.color": GRID, "lines.linewidth": 1.6, "lines.marker": "o", "lines.markersize": 5}


class _Saving(NamedTuple):
    """Where figures are saved: the folder, what was written, and figures with letters that no font has."""

    folder: Path
    files: list[Path]
    missing: list[str]


_NO_FONT = (
    "have letters that no font of this machine has, and boxes in their place: "
    "install a font that has them, such as Noto Sans CJK"
)
_saved_to: ContextVar[_Saving | None] = ContextVar("saved_to", default=None)
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def saving(folder: Path) -> Iterator[list[Path]]:
    """Also write each figure that is drawn meanwhile to a folder, as SVG and PDF; the list has what was written."""
    saved, missing = list[Path](), list[str]()
    token = _saved_to.set(_Saving(folder, saved, missing))
    try:
        yield saved
    finally:
        _saved_to.reset(token)
    if missing:
        warnings.warn(f"{len(missing)} figures {_NO_FONT}", RuntimeWarning, stacklevel=3)


def are_saved() -> bool:
    """Whether figures that are drawn now are also written to files."""
    return _saved_to.get() is not None


def on_paper() -> bool:
    """Whether the figure that is being drawn stands alone, in a file, without the legend of the page."""
    return _alone.get()


def add_legend(axes: Axes, names: Mapping[str, str]) -> None:
    """Draw a legend, from names to colours, on a figure that stands alone; on a page it stands above the figures."""
    from matplotlib.lines import Line2D

    if on_paper() and names:
        lines = [Line2D([], [], color=colour, label=name, marker="") for name, colour in names.items()]
        axes.legend(handles=lines, frameon=False, fontsize=10)


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

    def painted() -> Figure:
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure.subplots(**panels))
        return figure

    buffer = io.BytesIO()
    _name_colours(_MARKS)
    with style.context(["default", STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has other fonts
        painted().savefig(buffer, format="svg")
    if (target := _saved_to.get()) is not None:
        _save(painted, name, target)
    svg = buffer.getvalue().decode()
    # Names stand between tags, with their < and > escaped, and never inside a tag, so only tags are rewritten.
    body = re.sub("<[^>]*>", _tidy, svg[svg.index("<g ") : svg.rindex("</svg>")])
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        *size, description, Markup(body)
    )


def save_picture(pixels: np.ndarray, name: str) -> None:
    """Write a picture (height, width, bands) as SVG and PDF if figures are saved; `name` is unique on the page."""
    if (target := _saved_to.get()) is None:
        return
    from matplotlib.figure import Figure

    def painted() -> Figure:
        height, width = pixels.shape[:2]
        figure = Figure(figsize=(4, 4 * height / width))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", interpolation="none")
        axes.set_axis_off()
        return figure

    _save(painted, name, target)


def _name_colours(colours: Sequence[str]) -> None:
    """Give matplotlib the colours of `CURVES`, `TEXT`, `STRONG` and `GRID`."""
    from matplotlib.colors import get_named_colors_mapping

    known = get_named_colors_mapping()
    for name, colour in zip((*CURVES, TEXT, STRONG, GRID), colours):
        known[name] = colour  # one by one, which also clears matplotlib's cache


def _save(painted: Callable[[], Any], name: str, saving: _Saving) -> None:
    """Write a figure that stands alone as SVG and PDF, in the colours of the light page."""
    from matplotlib import style

    _name_colours(_PAPER)
    token = _alone.set(True)
    rules = STYLE | {"svg.hashsalt": name, "svg.fonttype": "path", "pdf.fonttype": 42, "font.sans-serif": _FONTS}
    try:
        with style.context(["default", rules]), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logging.getLogger("matplotlib.font_manager").addFilter(_is_no_missing_font)
            figure = painted()
            for ending in ("svg", "pdf"):
                path = saving.folder / f"{re.sub('[^0-9a-z]+', '-', name.lower()).strip('-')}.{ending}"
                metadata = {"Date": None} if ending == "svg" else {"CreationDate": None}
                save = partial(figure.savefig, format=ending, bbox_inches="tight", metadata=metadata)
                replace_file(path, save)
                saving.files.append(path)
    finally:
        logging.getLogger("matplotlib.font_manager").removeFilter(_is_no_missing_font)
        _alone.reset(token)
        _name_colours(_MARKS)
    if any(str(one.message).startswith("Glyph ") for one in caught):
        saving.missing.append(name)


def _is_no_missing_font(record: logging.LogRecord) -> bool:
    """Whether a line of matplotlib's log is no complaint about one of the fonts that are tried."""
    return "not found" not in record.getMessage()


def _tidy(match: re.Match[str]) -> str:
    """Rewrite a tag of matplotlib: colours of the page, no ids shared by figures, fewer digits."""
    tag = re.sub("#00fe0[0-9a-c]", lambda colour: _MARKED[colour[0]], match[0].replace("xlink:href", "href"))
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
    legend: Mapping[str, str] | None = None,
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
        legend: names of curves with their colours, for a figure that stands alone.
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
        add_legend(axes, legend or {})

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
