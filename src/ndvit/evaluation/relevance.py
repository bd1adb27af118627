"""Examples drawn with the relevance of their samples, pixels or voxels for an answer.

What speaks for the answer is orange and what speaks against it is blue; both are transparent where there is none, so
that the drawings suit light and dark pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation import figures
from ndvit.evaluation.cards import picture, plane
from ndvit.evaluation.figures import CURVES, MAX_CURVES, STRONG, thin

if TYPE_CHECKING:
    from markupsafe import Markup

FOR, AGAINST = (234, 96, 12), (37, 99, 235)
_COLUMNS = 600  # of a drawn signal: more stretches than pixels cannot be distinguished
_ROWS = 64  # channels of a drawn table of channels
_PICTURE = (256, 384)  # pixels of the longer side, see `cards.SIZE`
_FAINT = 0.45  # contrast of a picture below its relevance
_QUANTILE = 0.995  # of relevance, which has the full colour


@dataclass(frozen=True, eq=False)
class Relevance:
    """An example and the relevance of its values.

    Attributes:
        values: (channels, *grid) the example; NaN for missing values.
        relevance: (channels or 1, *grid).
        rate: samples per second of a recording; None for other examples.
        band_edges: (bands + 1,) rising frequencies, in Hz with a rate, else in cycles per sample; None without bands.
        bands: (bands,) relevance by frequency; None without bands.
    """

    values: np.ndarray
    relevance: np.ndarray
    rate: float | None = None
    band_edges: np.ndarray | None = None
    bands: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Reason:
    """Why a model answered as it did for one example, as a report prints it.

    Attributes:
        example: what is drawn.
        name: name of the example.
        caption: answer, target and what else is printed, by name.
        signed: whether relevance below 0 speaks against the answer.
    """

    example: Relevance
    name: str
    caption: dict[str, str]
    signed: bool = True


def reason_card(reason: Reason, figure: str) -> dict[str, Any]:
    """What `reasons.html.jinja` prints of a reason; `figure` is unique on the page."""
    drawn, note = draw_relevance(reason.example, reason.name, figure)
    bands = draw_bands(reason.example, reason.name, f"{figure} bands")
    return {"name": reason.name, "figure": drawn, "bands": bands, "note": note, "caption": reason.caption}


def draw_relevance(example: Relevance, name: str, figure: str) -> tuple[Markup | str, str]:
    """Draw an example with its relevance.

    A signal is drawn as curves on a coloured ground, a picture beside a faint copy under its relevance, and a volume as
    the slice that has most of the relevance.

    Args:
        example: what is drawn.
        name: name of the example.
        figure: name of the figure, unique on the page.

    Returns:
        The HTML, and a note on size and what is drawn.
    """
    if example.values.ndim == 2:
        return _draw_signal(example, name, figure)
    values, relevance, note = example.values, example.relevance.sum(axis=0), ""
    if slices := values.shape[1:-2]:
        mass = np.abs(relevance).sum(axis=(-2, -1))
        chosen = tuple(int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
        for i in chosen:
            values, relevance = values[:, i], relevance[i]
        whole = " × ".join(map(str, example.values.shape[1:]))
        note = f"{whole}; slice {', '.join(str(i + 1) for i in chosen)} of {', '.join(map(str, slices))} is drawn: "
    image, size = plane(values)
    if values.dtype == np.uint8:  # a picture
        size = f"{image.width} × {image.height} pixels"
    return picture(_beside(image, heat(relevance)), f"{name}, and beside it its relevance", _PICTURE), note + size


def heat(relevance: np.ndarray) -> np.ndarray:
    """Colours (*grid, 4) of relevance, uint8: the hue is the sign, opacity is the size within the example."""
    size = np.abs(np.nan_to_num(relevance))
    most = np.quantile(size, _QUANTILE) if size.size else 0.0
    full = float(most if most > 0 else size.max(initial=0.0))
    opacity = (size / full).clip(0, 1) if full > 0 else size
    colours = np.where((relevance < 0)[..., None], np.array(AGAINST), np.array(FOR))
    return np.concatenate([colours, (255 * opacity)[..., None]], axis=-1).astype(np.uint8)


def _beside(image: Any, colours: np.ndarray) -> Any:
    """A picture, and to its right a faint grey copy under the colours (height, width, 4)."""
    from PIL import Image

    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    grey = image.convert("L").point(lambda v: round(255 * (1 - _FAINT) / 2 + _FAINT * v))
    below = Image.merge("RGBA", (grey, grey, grey, alpha))
    marked = Image.alpha_composite(below, Image.fromarray(colours))
    width, height = image.size
    gap = max(1, width // 24)
    wide = width > 1.6 * height  # wide pictures stand above each other
    both = Image.new("RGBA", (width, 2 * height + gap) if wide else (2 * width + gap, height), (0, 0, 0, 0))
    both.paste(image, (0, 0))
    both.paste(marked, (0, height + gap) if wide else (width + gap, 0))
    return both


def _draw_signal(example: Relevance, name: str, figure: str) -> tuple[Markup | str, str]:
    channels, length = example.values.shape
    by_channel = len(example.relevance) == channels > 1
    order = np.arange(channels)
    if by_channel and channels > MAX_CURVES:  # the most relevant ones, in their order
        order = np.sort(np.argsort(-np.abs(example.relevance).sum(axis=1), kind="stable")[:MAX_CURVES])
    order = order[:MAX_CURVES]
    unit = "sample" if example.rate is None else "time (s)"
    note = f"{length} samples" if example.rate is None else f"{length / example.rate:.3g} s at {example.rate:g} Hz"
    if channels > 1:
        note = f"{channels} channels, {note}"
    if channels > len(order):
        kind = "the most relevant" if by_channel else "the first"
        note += f"; {kind} {len(order)} are drawn"
    table = by_channel and channels > MAX_CURVES
    rows = len(order) + (2 if table else 0)
    size = (620, 70 + (110 if rows == 1 else 46) * rows)

    def paint(axes: Any) -> None:
        x = np.arange(length) / (example.rate or 1.0)
        step = (x[1] - x[0]) if length > 1 else 1.0
        across = (-step / 2, x[-1] + step / 2)
        top = axes[: len(order), 0]
        scale = np.abs(_columns(example.relevance)).max(initial=0.0)
        for row, (one, channel) in enumerate(zip(top, order)):
            y = np.where(np.isfinite(example.values[channel]), example.values[channel], np.nan).astype(float)
            own = _columns(example.relevance[channel if by_channel else 0][None])
            curve = thin(x, y, _COLUMNS)
            low, high = (np.nanmin(y), np.nanmax(y)) if np.isfinite(y).any() else (0.0, 1.0)
            margin = 0.06 * (high - low) or 1.0
            ground = _scaled_heat(own, scale)
            one.imshow(ground, extent=(*across, low - margin, high + margin), aspect="auto", interpolation="none")
            one.plot(*curve, color=STRONG, linewidth=1.1, marker="o" if length <= 60 else "", markersize=2.5)
            one.set(xlim=across, ylim=(low - margin, high + margin))
            one.locator_params(axis="y", nbins=3)
            if channels > 1:
                one.set_ylabel(f"{channel + 1}", rotation=0, ha="right", va="center", labelpad=12)
            one.tick_params(labelbottom=row == len(order) - 1 and not table, bottom=row == len(order) - 1)
        if table:
            whole = _columns(example.relevance)
            last = axes[-1, 0]
            last.imshow(
                _scaled_heat(whole, scale),
                extent=(*across, channels + 0.5, 0.5),
                aspect="auto",
                interpolation="none",
            )
            last.set(xlim=across, ylabel="channel")
        axes[-1, 0].set(xlabel=unit)

    heights = [1.0] * len(order) + ([2.0] if table else [])
    words = f"{name}: {channels} channel{'s' * (channels > 1)} against {unit}, coloured by relevance"
    panels = {"nrows": len(heights), "squeeze": False, "gridspec_kw": {"height_ratios": heights}}
    return figures.draw(size, figure, words, paint, **panels), note


def draw_bands(example: Relevance, name: str, figure: str) -> Markup | str:
    """Draw the relevance of frequency bands as bars; empty without bands."""
    if example.bands is None or example.band_edges is None:
        return ""
    bands, edges = example.bands, example.band_edges

    def paint(axes: Any) -> None:
        places = np.arange(len(bands))
        colours = [CURVES[1] if value >= 0 else CURVES[0] for value in bands]
        axes.bar(places, bands, color=colours, width=0.8)
        axes.axhline(0, color=STRONG, linewidth=0.8, marker="")
        axes.set_xticks(places, [f"{low:,.4g}–{high:,.4g}" for low, high in pairwise(edges)])
        axes.tick_params(axis="x", labelsize=9)
        axes.set(xlabel="frequency (Hz)" if example.rate is not None else "cycles per sample")
        axes.set_ylabel("fall of the output")
        axes.locator_params(axis="y", nbins=4)

    return figures.draw((620, 190), figure, f"{name}: fall of the output without each frequency band", paint)


def _columns(relevance: np.ndarray) -> np.ndarray:
    """Relevance (rows, length) in at most `_COLUMNS` columns: the sum of each stretch."""
    length = relevance.shape[1]
    if length <= _COLUMNS:
        return relevance
    starts = np.linspace(0, length, _COLUMNS, endpoint=False).astype(int)
    summed: np.ndarray = np.add.reduceat(relevance, starts, axis=1)
    return summed


def _scaled_heat(rows: np.ndarray, scale: float) -> np.ndarray:
    """Colours of rows of relevance, of which `scale` has the full colour."""
    opacity = (np.abs(rows) / scale).clip(0, 1) if scale > 0 else np.zeros_like(rows)
    colours = np.where((rows < 0)[..., None], np.array(AGAINST), np.array(FOR))
    return np.concatenate([colours, (200 * opacity)[..., None]], axis=-1).astype(np.uint8)
