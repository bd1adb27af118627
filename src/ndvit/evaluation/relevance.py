"""Examples drawn with the relevance of their samples, pixels or voxels for an answer.

What speaks for the answer is orange and what speaks against it is blue; both are transparent where there is none, so
that the drawings suit light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation import figures
from ndvit.evaluation.cards import Notes, length_notes, note_text, picture, pixels, plane
from ndvit.evaluation.figures import CURVES, MAX_CURVES, STRONG, TEXT, save_picture, thin
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup

FOR, AGAINST = (234, 96, 12), (37, 99, 235)
_COLUMNS = 600  # of a drawn signal: more stretches than pixels cannot be distinguished
_DENSE = 4096  # samples above which a curve may cover its whole ground, and is drawn transparent
_WIDTH = 430  # of a drawn signal, so that its numbers can be read on a phone
_LONGEST_NAME = 48  # letters of a channel
_PICTURE = (256, 384)  # pixels of the longer side, see `cards.SIZE`
_FAINT = 0.45  # contrast of a picture below its relevance
_QUANTILE = 0.995  # of relevance, which has the full colour


@dataclass(frozen=True, eq=False)
class Relevance:
    """An example and the relevance of its values.

    Attributes:
        values: (channels, *grid) the example; NaN for missing values.
        relevance: (channels or 1, *grid); None of an example that is drawn for comparison.
        rate: samples per second of a recording; None for other examples.
        band_edges: (bands + 1,) rising frequencies, in Hz with a rate, else in cycles per sample; None without bands.
        bands: (bands,) relevance by frequency; None without bands.
        channels: names of the channels; empty if unknown.
    """

    values: np.ndarray
    relevance: np.ndarray | None
    rate: float | None = None
    band_edges: np.ndarray | None = None
    bands: np.ndarray | None = None
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RelevanceSketch:
    """What is drawn of a `Relevance`. It is not larger than what can be seen, so that a run can store it.

    Attributes:
        notes: size, and what is drawn.
        picture: (height, width, 4) of 8 bits; None for a signal.
        rows: (rows,) numbers of the channels that are drawn as curves.
        x: (n,) seconds or numbers of samples.
        curves: (rows, n).
        relevance: (channels or 1, stretches) sums over stretches of the signal; None without relevance.
        length: samples of the signal.
        rate: samples per second; None if unknown.
        all_channels: number of channels of the signal.
        channels: their names; empty if unknown.
        band_edges: as of a `Relevance`.
        bands: as of a `Relevance`.
    """

    notes: Notes
    picture: np.ndarray | None = None
    rows: tuple[int, ...] = ()
    x: np.ndarray | None = None
    curves: np.ndarray | None = None
    relevance: np.ndarray | None = None
    length: int = 0
    rate: float | None = None
    all_channels: int = 1
    channels: tuple[str, ...] = ()
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
        reference: an example of the same target that was answered correctly; None without one.
        reference_name: its name.
    """

    example: Relevance | RelevanceSketch
    name: str
    caption: dict[str, str]
    signed: bool = True
    reference: RelevanceSketch | None = None
    reference_name: str = ""


def reason_card(reason: Reason, figure: str) -> dict[str, Any]:
    """What `reasons.html.jinja` prints of a reason; `figure` is unique on the page."""
    example = reason.example if isinstance(reason.example, RelevanceSketch) else sketch_relevance(reason.example)
    drawn, note = draw_relevance(example, reason.name, figure)
    bands = draw_bands(example, reason.name, f"{figure} bands")
    card = {"name": reason.name, "figure": drawn, "bands": bands, "note": note, "caption": reason.caption}
    reference: Markup | str = ""
    if reason.reference is not None:
        reference, _ = draw_relevance(reason.reference, reason.reference_name, f"{figure} reference")
    return card | {"reference": reference, "reference_name": reason.reference_name}


def sketch_relevance(example: Relevance, rows: Sequence[int] | None = None) -> RelevanceSketch:
    """What is drawn of an example with its relevance.

    A signal is drawn as curves on a coloured ground, a picture beside a faint copy under its relevance, and a volume as
    the slice that has most of the relevance, or the middle one.

    Args:
        example: the example and its relevance.
        rows: channels of a signal that are drawn as curves; None chooses them.
    """
    if example.values.ndim == 2:
        return _sketch_signal(example, rows)
    values: np.ndarray = example.values
    notes: Notes = ()
    relevance = np.zeros(values.shape[1:]) if example.relevance is None else example.relevance.sum(axis=0)
    if slices := values.shape[1:-2]:
        mass = np.abs(relevance).sum(axis=(-2, -1))
        chosen = tuple(int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
        if example.relevance is None:
            chosen = tuple(size // 2 for size in slices)
        for i in chosen:
            values, relevance = values[:, i], relevance[i]
        whole = " × ".join(map(str, example.values.shape[1:]))
        facts = {"whole": whole, "i": ", ".join(str(i + 1) for i in chosen), "n": ", ".join(map(str, slices))}
        notes += (("{whole}; slice {i} of {n} is drawn: ", facts),)
    image, size = plane(values)
    if values.dtype == np.uint8:  # a picture
        size = (("{width} × {height} pixels", {"width": image.width, "height": image.height}),)
    both = image if example.relevance is None else _beside(image, heat(relevance))
    return RelevanceSketch(notes + size, pixels(both, _PICTURE[1]))


def draw_relevance(example: RelevanceSketch, name: str, figure: str) -> tuple[Markup | str, str]:
    """Draw an example with its relevance.

    Args:
        example: what is drawn.
        name: name of the example.
        figure: name of the figure, unique on the page.

    Returns:
        The HTML, and a note on size and what is drawn.
    """
    if example.picture is None:
        return _draw_signal(example, name, figure), note_text(example.notes)
    from PIL import Image

    image = Image.fromarray(example.picture if example.picture.shape[-1] > 1 else example.picture[..., 0])
    save_picture(example.picture, figure)
    words = translated("{name}, and beside it its relevance", name=name)
    return picture(image, words, _PICTURE), note_text(example.notes)


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


def _sketch_signal(example: Relevance, rows: Sequence[int] | None) -> RelevanceSketch:
    channels, length = example.values.shape
    relevance = example.relevance
    by_channel = relevance is not None and len(relevance) == channels > 1
    order = np.arange(min(channels, MAX_CURVES)) if rows is None else np.asarray(rows)
    if relevance is not None and by_channel and channels > MAX_CURVES:  # the most relevant ones, in their order
        order = np.sort(np.argsort(-np.abs(relevance).sum(axis=1), kind="stable")[:MAX_CURVES])
    notes: Notes = (("{n} channels, ", {"n": channels}),) if channels > 1 else ()
    notes += length_notes(length, example.rate)
    if channels > len(order):
        kind = "; the most relevant {n} are drawn" if by_channel else "; the first {n} are drawn"
        notes += ((kind, {"n": len(order)}),)
    x = np.arange(length) / (example.rate or 1.0)
    kept = [thin(x, np.where(np.isfinite(y), y, np.nan).astype(float), _COLUMNS) for y in example.values[order]]
    return RelevanceSketch(
        notes=notes,
        rows=tuple(int(i) for i in order),
        x=kept[0][0],
        curves=np.stack([y for _, y in kept]),
        relevance=None if relevance is None else _columns(relevance),
        length=length,
        rate=example.rate,
        all_channels=channels,
        channels=tuple(example.channels) if len(example.channels) == channels else (),
        band_edges=example.band_edges,
        bands=example.bands,
    )


def _draw_signal(example: RelevanceSketch, name: str, figure: str) -> Markup:
    curves = example.curves
    assert example.x is not None
    assert curves is not None
    relevance = np.zeros((1, 1)) if example.relevance is None else example.relevance
    channels, order = example.all_channels, example.rows
    by_channel = len(relevance) == channels > 1
    table = by_channel and channels > MAX_CURVES
    named = channels > 1 or bool(example.channels)
    rows = len(order) + (2 if table else 0)
    height = 110 if rows == 1 else 46
    size = (_WIDTH, 60 + (height + 16 * named) * rows - (40 if example.relevance is None else 0))
    axis = translated("sample" if example.rate is None else "time (s)")

    def paint(axes: Any) -> None:
        step = 1 / (example.rate or 1.0)
        across = (-step / 2, (example.length - 0.5) * step)
        top = axes[: len(order), 0]
        scale = np.abs(relevance).max(initial=0.0)
        for row, (one, channel, y) in enumerate(zip(top, order, curves)):
            own = relevance[channel if by_channel else 0][None]
            low, high = (np.nanmin(y), np.nanmax(y)) if np.isfinite(y).any() else (0.0, 1.0)
            margin = 0.06 * (high - low) or 1.0
            ground = _scaled_heat(own, scale)
            one.imshow(ground, extent=(*across, low - margin, high + margin), aspect="auto", interpolation="none")
            one.plot(
                example.x,
                y,
                color=STRONG,
                linewidth=1.1,
                marker="o" if example.length <= 60 else "",
                markersize=2.5,
                alpha=1 if example.length <= _DENSE else 0.4,
            )
            one.set(xlim=across, ylim=(low - margin, high + margin))
            one.locator_params(axis="y", nbins=3)
            if named:
                one.set_title(_channel(example, channel), fontsize=10, weight="normal", color=TEXT, pad=3)
            one.tick_params(labelbottom=row == len(order) - 1 and not table, bottom=row == len(order) - 1)
        if table:
            last = axes[-1, 0]
            last.imshow(
                _scaled_heat(relevance, scale),
                extent=(*across, channels + 0.5, 0.5),
                aspect="auto",
                interpolation="none",
            )
            last.set(xlim=across, ylabel=translated("channel"))
        axes[-1, 0].set(xlabel=axis)

    heights = [1.0] * len(order) + ([2.0] if table else [])
    text = "{name}: {n} channels against {axis}, coloured by relevance"
    if example.relevance is None:
        text = "{name}: {n} channels against {axis}"
    panels = {"nrows": len(heights), "squeeze": False, "gridspec_kw": {"height_ratios": heights}}
    return figures.draw(size, figure, translated(text, name=name, n=channels, axis=axis), paint, **panels)


def _channel(example: RelevanceSketch, number: int) -> str:
    """How a channel is called on a page."""
    name = example.channels[number] if example.channels else translated("channel {n}", n=number + 1)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def draw_bands(example: RelevanceSketch, name: str, figure: str) -> Markup | str:
    """Draw the relevance of frequency bands as bars; empty without bands."""
    if example.bands is None or example.band_edges is None:
        return ""
    bands, edges = example.bands, example.band_edges

    def paint(axes: Any) -> None:
        places = np.arange(len(bands))
        colours = [CURVES[1] if value >= 0 else CURVES[0] for value in bands]
        axes.bar(places, bands, color=colours, width=0.8)
        axes.axhline(0, color=STRONG, linewidth=0.8, marker="")
        axes.set_xticks(
            np.arange(len(edges)) - 0.5, [f"{edge:,.2g}" if edge < 100 else f"{edge:,.0f}" for edge in edges]
        )
        axes.set(xlabel=translated("frequency (Hz)" if example.rate is not None else "cycles per sample"))
        axes.set_title(translated("fall of the output"), fontsize=11, weight="normal", color=TEXT)
        axes.locator_params(axis="y", nbins=4)

    description = translated("{name}: fall of the output without each frequency band", name=name)
    return figures.draw((_WIDTH, 190), figure, description, paint)


def _columns(relevance: np.ndarray) -> np.ndarray:
    """Relevance (rows, length) in at most `_COLUMNS` columns: the mean of each stretch, as their lengths differ."""
    length = relevance.shape[1]
    if length <= _COLUMNS:
        return relevance
    starts = np.linspace(0, length, _COLUMNS, endpoint=False).astype(int)
    means: np.ndarray = np.add.reduceat(relevance, starts, axis=1) / np.diff(starts, append=length)
    return means


def _scaled_heat(rows: np.ndarray, scale: float) -> np.ndarray:
    """Colours of rows of relevance, of which `scale` has the full colour."""
    opacity = (np.abs(rows) / scale).clip(0, 1) if scale > 0 else np.zeros_like(rows)
    colours = np.where((rows < 0)[..., None], np.array(AGAINST), np.array(FOR))
    return np.concatenate([colours, (200 * opacity)[..., None]], axis=-1).astype(np.uint8)
