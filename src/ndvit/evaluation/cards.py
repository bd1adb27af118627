"""Examples drawn for the report: an image as a picture, a signal as a chart, a volume as its middle slice."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ndvit.evaluation.base import Evaluation, percent
from ndvit.evaluation.figures import CURVES, INKS, MAX_CURVES, chart, heat, save_picture, thin
from ndvit.evaluation.words import translated

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

SIZE = (96, 192)  # longer side in pixels: smaller pictures are enlarged to the first, larger ones reduced to the second
MAX_CARDS = 24  # examples drawn
STORED = 1000  # stretches of a signal whose lowest and highest values are kept: more than a chart has pixels


Notes = tuple[tuple[str, dict[str, Any]], ...]
"""Parts of a note in English, each with the values for its places, see `translated`."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """An example as a page draws it. It is not larger than what can be seen, so that a run can store it.

    Attributes:
        kind: what it is drawn as.
        values: of a picture (height, width, bands) of 8 bits, of a signal (channels, n), of a spectrogram (bands, n).
        notes: its size, and what is drawn of it.
        x: (n,) seconds or numbers of samples of a signal.
        in_seconds: whether the time axis has seconds.
        frequencies: (bands,) of a spectrogram, in Hz or cycles a sample.
        step: distance of the frames of a spectrogram, in seconds or samples.
        channels: names of the channels of a signal; empty if unknown.
    """

    kind: Literal["picture", "signal", "spectrogram", "empty"]
    values: np.ndarray
    notes: Notes
    x: np.ndarray | None = None
    in_seconds: bool = False
    frequencies: np.ndarray | None = None
    step: float = 1.0
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Card:
    """An example of an evaluation, as a report prints it."""

    index: int
    name: str
    sketch: Sketch


def cards_of(
    evaluation: Evaluation,
    examples: Any,
    view: Callable[[Any], Any] | None = None,
    channels: Sequence[str] = (),
    most: int = MAX_CARDS,
) -> tuple[Card, ...]:
    """The worst examples of an evaluation.

    Args:
        evaluation: results.
        examples: the examples by index: a sequence, or a mapping that has at least the worst ones.
        view: turns an example into what is drawn, such as the part of a picture that a network reads.
        channels: names of the channels.
        most: number of examples.

    Raises:
        TypeError: if an example is of a type that cannot be drawn.
    """
    found = []
    for i in evaluation.worst()[:most]:
        name = str(evaluation.names[i])
        found.append(Card(int(i), name, sketch(examples[i], name, view, channels)))
    return tuple(found)


def draw_example(
    example: Any, name: str, figure: str, view: Callable[[Any], Any] | None = None, channels: Sequence[str] = ()
) -> tuple[Markup | str, str]:
    """Draw an example, see `sketch` and `draw_sketch`."""
    return draw_sketch(sketch(example, name, view, channels), name, figure)


def sketch(example: Any, name: str, view: Callable[[Any], Any] | None = None, channels: Sequence[str] = ()) -> Sketch:
    """What is drawn of an example.

    Args:
        example: a PIL image, an array (channels, *grid) with NaN for missing values, or a recording: an object with
            `values` (channels, time) and `rate` in Hz. With `frequencies` and `step` it is a `Spectrogram`.
        name: name of the example, for messages.
        view: turns the example into what is drawn, such as the part of a picture that a network reads.
        channels: names of the channels; ignored unless there are as many.

    Raises:
        TypeError: if the example is of another type.
    """
    if view is not None:
        seen = view(example)
        drawn = _sketch(seen, name, channels)
        if _size(seen) == _size(example):
            return drawn
        return replace(drawn, notes=(*_size(example), (", drawn as ", {}), *drawn.notes))
    return _sketch(example, name, channels)


def draw_sketch(drawn: Sketch, name: str, figure: str) -> tuple[Markup | str, str]:
    """Draw an example.

    Args:
        drawn: what is drawn.
        name: name of the example.
        figure: name of the figure, unique on the page.

    Returns:
        The HTML of the figure, empty for an empty example; and a note on its size, and that of the view if it differs.
    """
    note = note_text(drawn.notes)
    if drawn.kind == "empty":
        return "", note
    if drawn.kind == "picture":
        from PIL import Image

        image = Image.fromarray(drawn.values if drawn.values.shape[-1] > 1 else drawn.values[..., 0])
        save_picture(drawn.values, figure)
        return picture(image, translated("example {name}", name=name)), note
    if drawn.kind == "spectrogram":
        assert drawn.frequencies is not None
        labels = ("time (s)", "frequency (Hz)") if drawn.in_seconds else ("sample", "cycles a sample")
        words = (translated(labels[0]), translated(labels[1]))
        description = translated("spectrogram of example {name}", name=name)
        return heat(drawn.values, drawn.step, drawn.frequencies, (300, 190), words, figure, description), note
    assert drawn.x is not None
    label = translated("time (s)" if drawn.in_seconds else "sample")
    series = [(colour, drawn.x, values) for colour, values in zip(CURVES, drawn.values)]
    legend = dict(zip(drawn.channels, CURVES)) if len(series) > 1 else {}
    description = translated("example {name} against {axis}", name=name, axis=label)
    return chart(series, (260, 170), label, "", figure, description, legend=legend), note


def legend_of(drawn: Sketch) -> dict[str, str]:
    """The CSS colours of the channels that are drawn, by name; empty without names."""
    named = dict(zip(drawn.channels, CURVES)) if drawn.kind == "signal" else {}
    return {name: INKS[colour] for name, colour in named.items()}


def note_text(notes: Notes) -> str:
    """A note in the language of the page."""
    return "".join(translated(text, **values) for text, values in notes)


def draw_change(original: np.ndarray, made: np.ndarray, marked: np.ndarray | None, figure: str) -> Markup | str:
    """Draw an example beside what was made of it: curves on one chart, or pictures side by side.

    Args:
        original: (channels, *grid) the example.
        made: (channels, *grid) what was made of it.
        marked: (*grid) where values were masked; the picture of the example without them then comes first. None
            without masks.
        figure: name of the figure, unique on the page.
    """
    if original.ndim > 2:
        parts = [original, made] if marked is None else [np.where(marked, np.nan, original), made, original]
        gap = np.full((*original.shape[:-1], max(1, original.shape[-1] // 16)), np.nan)
        strip = np.concatenate([part for one in parts for part in (one, gap)][:-1], axis=-1)
        return picture(plane(strip)[0], translated("example {name}", name=figure), (SIZE[0] * 3, SIZE[1] * 3))
    x = np.arange(original.shape[1], dtype=float)
    curve, spans = made[0].astype(float), list[tuple[float, float]]()
    if marked is not None:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
        spans = [(float(begin) - 0.5, float(end) - 0.5) for begin, end in zip(edges[::2], edges[1::2])]
        curve = np.where(marked, curve, np.nan)
    series = [(CURVES[0], x, original[0].astype(float)), (CURVES[1], x, curve)]
    description = translated("{name}: a signal and what was made of it", name=figure)
    return chart(series, (360, 170), translated("sample"), "", figure, description, spans)


def _size(example: Any) -> Notes:
    """The size of an example, without its channels."""
    if hasattr(example, "width"):
        return (("{width} × {height} pixels", {"width": example.width, "height": example.height}),)
    rate, values = getattr(example, "rate", None), np.atleast_2d(getattr(example, "values", example))
    if hasattr(example, "frequencies"):
        bands, frames = values.shape[-2:]
        facts = {"bands": bands, "top": f"{example.frequencies[-1]:,.4g}", "frames": frames}
        if rate is None:
            text = "{bands} bands up to {top} cycles a sample, {frames} frames each {step} samples"
            return ((text, facts | {"step": f"{example.step:g}"}),)
        text = "{bands} bands up to {top} Hz, {frames} frames each {step} ms"
        return ((text, facts | {"step": f"{1000 * example.step:.3g}"}),)
    if values.ndim > 2:
        return ((" × ".join(map(str, values.shape[1:])), {}),)
    return length_notes(values.shape[1], rate)


def length_notes(length: int, rate: float | None) -> Notes:
    """The length of a signal."""
    if rate is None:
        return (("{n} samples", {"n": length}),)
    return (("{seconds} s at {rate} Hz", {"seconds": f"{length / rate:.3g}", "rate": f"{rate:g}"}),)


def _sketch(example: Any, name: str, names: Sequence[str]) -> Sketch:
    from PIL import Image

    if isinstance(example, Image.Image):
        notes: Notes = _size(example)
        if example.mode == "F" or example.mode.startswith("I"):  # 16 bits and more have no fixed range
            example = plane(np.asarray(example, dtype=float)[None])[0]
        return Sketch("picture", pixels(example), notes)
    rate = getattr(example, "rate", None)
    spectrogram = hasattr(example, "frequencies")
    values = np.atleast_2d(example.values if spectrogram or rate is not None else example)
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"example {name!r} cannot be drawn: it must be a PIL image, an array of real numbers or a recording with "
            f"values and rate, got {type(example).__name__}"
        )
    if values.size == 0:
        return Sketch("empty", np.zeros(0), (("empty", {}),))
    if spectrogram:
        first = (("; channel 1 of {n}", {"n": len(values)}),) if len(values) > 1 else ()
        axes: dict[str, Any] = {"in_seconds": bool(rate), "frequencies": np.asarray(example.frequencies)}
        return Sketch("spectrogram", values[0].astype(np.float32), _size(example) + first, step=example.step, **axes)
    if values.ndim > 2:
        image, notes = plane(values)
        return Sketch("picture", pixels(image), notes)
    channels, length = values.shape
    notes = (("{n} channels, ", {"n": channels}),) if channels > 1 else ()
    notes += length_notes(length, rate)
    if channels > MAX_CURVES:
        notes += (("; the first {n} are drawn", {"n": MAX_CURVES}),)
    if missing := 1 - np.isfinite(values).mean():
        notes += (("; {share} missing", {"share": percent(missing)}),)
    x = np.arange(length) / (rate or 1)
    kept = [thin(x, np.where(np.isfinite(y), y, np.nan).astype(float), STORED) for y in values[:MAX_CURVES]]
    curves = np.stack([y for _, y in kept])
    own = tuple(names[: len(curves)]) if len(names) == channels else ()
    return Sketch("signal", curves, notes, x=kept[0][0], in_seconds=rate is not None, channels=own)


def plane(values: np.ndarray) -> tuple[Image, Notes]:
    """An image of an array (channels, *grid) of two or more dimensions, transparent where values are missing."""
    from PIL import Image

    notes = _size(values)
    if slices := values.shape[1:-2]:
        values = values[:, *(size // 2 for size in slices)]
        middle, of = (", ".join(str(size // 2 + 1) for size in slices), ", ".join(map(str, slices)))
        notes += ((", slice {i} of {n}", {"i": middle, "n": of}),)
    channels = len(values)
    words = {1: ", 1 channel", 3: ", 3 channels"}
    notes += ((words.get(channels, ", channel 1 of {n}"), {"n": channels}),)
    if channels != 3:  # three channels are drawn as red, green and blue
        values = values[:1].repeat(3, axis=0)
    present = np.isfinite(values).all(axis=0)
    if values.dtype != np.uint8 and present.any():
        low, high = values[:, present].min(), values[:, present].max()
        values = 255 * (np.where(present, values, low).astype(float) - low) / max(float(high) - float(low), 1e-12)
    cells = np.concatenate([np.where(present, values, 0), 255 * present[None]]).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(cells.transpose(1, 2, 0))), notes


def pixels(image: Image, most: int = SIZE[1]) -> np.ndarray:
    """(height, width, bands) of an image of 8 bits, whose longer side is reduced to at most `most` pixels."""
    from PIL import Image as images

    image = plain(image)
    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), images.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(image))


def plain(image: Image) -> Image:
    """An image in grey or colours, perhaps with transparency, of 8 bits."""
    if image.mode in ("RGB", "RGBA", "L"):
        return image
    return image.convert("RGBA" if "transparency" in image.info or image.mode == "LA" else "RGB")


def picture(image: Image, words: str, size: tuple[int, int] = SIZE) -> Markup:
    """An image as an HTML element that contains its data, with its alternative text; for `size` see `SIZE`."""
    from markupsafe import Markup
    from PIL import Image

    small, large = size
    image = plain(image)
    if max(image.size) < small:  # each pixel stays a square of one colour
        factor = ceil(small / max(image.size))
        kind, image = "png", image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        kind, image = "webp", image.copy()  # 24 photographs as PNG have several megabytes
        image.thumbnail((large, large), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/{};base64,{}" alt="{}">').format(kind, data, words)
