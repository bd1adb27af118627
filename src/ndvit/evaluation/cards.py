"""Examples drawn for the report: an image as a picture, a signal as a chart, a volume as its middle slice."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from ndvit.evaluation.base import percent
from ndvit.evaluation.figures import CURVES, MAX_CURVES, chart, heat

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

SIZE = (96, 192)  # longer side in pixels: smaller pictures are enlarged to the first, larger ones reduced to the second


def draw_example(
    example: Any, name: str, figure: str, view: Callable[[Any], Any] | None = None
) -> tuple[Markup | str, str]:
    """Draw an example.

    Args:
        example: a PIL image, an array (channels, *grid) with NaN for missing values, or a recording: an object with
            `values` (channels, time) and `rate` in Hz. With `frequencies` and `step` it is a `Spectrogram`.
        name: name of the example.
        figure: name of the figure, unique on the page.
        view: turns the example into what is drawn, such as the part of a picture that a network reads.

    Returns:
        The HTML of the figure, empty for an empty example; and a note on its size, and that of the view if it differs.

    Raises:
        TypeError: if the example is of another type.
    """
    if view is not None:
        seen = view(example)
        drawn, note = _draw(seen, name, figure)
        return drawn, note if _size(seen) == _size(example) else f"{_size(example)}, drawn as {note}"
    return _draw(example, name, figure)


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
        return picture(plane(strip)[0], figure, (SIZE[0] * 3, SIZE[1] * 3))
    x = np.arange(original.shape[1], dtype=float)
    curve, spans = made[0].astype(float), list[tuple[float, float]]()
    if marked is not None:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
        spans = [(float(begin) - 0.5, float(end) - 0.5) for begin, end in zip(edges[::2], edges[1::2])]
        curve = np.where(marked, curve, np.nan)
    series = [(CURVES[0], x, original[0].astype(float)), (CURVES[1], x, curve)]
    return chart(series, (360, 170), "sample", "", figure, f"{figure}: a signal and what was made of it", spans)


def _size(example: Any) -> str:
    """The size of an example in words, without its channels."""
    if hasattr(example, "width"):
        return f"{example.width} × {example.height} pixels"
    rate, values = getattr(example, "rate", None), np.atleast_2d(getattr(example, "values", example))
    if hasattr(example, "frequencies"):
        bands, frames = values.shape[-2:]
        top = f"{example.frequencies[-1]:,.4g} {'cycles a sample' if rate is None else 'Hz'}"
        length = f"{example.step:g} samples" if rate is None else f"{1000 * example.step:.3g} ms"
        return f"{bands} bands up to {top}, {frames} frames each {length}"
    if values.ndim > 2:
        return " × ".join(map(str, values.shape[1:]))
    length = values.shape[1]
    return f"{length} samples" if rate is None else f"{length / rate:.3g} s at {rate:g} Hz"


def _draw(example: Any, name: str, figure: str) -> tuple[Markup | str, str]:
    """The HTML of an example, and a note on its size."""
    from PIL import Image

    if isinstance(example, Image.Image):
        note = _size(example)
        if example.mode == "F" or example.mode.startswith("I"):  # 16 bits and more have no fixed range
            example = plane(np.asarray(example, dtype=float)[None])[0]
        return picture(example, name), note
    rate = getattr(example, "rate", None)
    spectrogram = hasattr(example, "frequencies")
    values = np.atleast_2d(example.values if spectrogram or rate is not None else example)
    if values.dtype.kind not in "fiub":
        raise TypeError(
            f"example {name!r} cannot be drawn: it must be a PIL image, an array of real numbers or a recording with "
            f"values and rate, got {type(example).__name__}"
        )
    if values.size == 0:
        return "", "empty"
    if spectrogram:
        labels = ("time (s)", "frequency (Hz)") if rate else ("sample", "cycles a sample")
        note = _size(example) + (f"; channel 1 of {len(values)}" if len(values) > 1 else "")
        description = f"spectrogram of test example {name}"
        return heat(values[0], example.step, example.frequencies, (300, 190), labels, figure, description), note
    if values.ndim > 2:
        image, note = plane(values)
        return picture(image, name), note
    channels, length = values.shape
    note = f"{channels} channels, " if channels > 1 else ""
    note += _size(example)
    if channels > MAX_CURVES:
        note += f"; the first {MAX_CURVES} are drawn"
    if missing := 1 - np.isfinite(values).mean():
        note += f"; {percent(missing)} missing"
    x_label = "sample" if rate is None else "time (s)"
    x = np.arange(length) / (rate or 1)
    series = [(colour, x, np.where(np.isfinite(y), y, np.nan).astype(float)) for colour, y in zip(CURVES, values)]
    return chart(series, (260, 170), x_label, "", figure, f"test example {name} against {x_label}"), note


def plane(values: np.ndarray) -> tuple[Image, str]:
    """An image of an array (channels, *grid) of two or more dimensions, transparent where values are missing."""
    from PIL import Image

    note = f"{_size(values)}, "
    if slices := values.shape[1:-2]:
        values = values[:, *(size // 2 for size in slices)]
        note += f"slice {', '.join(str(size // 2 + 1) for size in slices)} of {', '.join(map(str, slices))}, "
    channels = len(values)
    note += "1 channel" if channels == 1 else "3 channels" if channels == 3 else f"channel 1 of {channels}"
    if channels != 3:  # three channels are drawn as red, green and blue
        values = values[:1].repeat(3, axis=0)
    present = np.isfinite(values).all(axis=0)
    if values.dtype != np.uint8 and present.any():
        low, high = values[:, present].min(), values[:, present].max()
        values = 255 * (np.where(present, values, low).astype(float) - low) / max(float(high) - float(low), 1e-12)
    pixels = np.concatenate([np.where(present, values, 0), 255 * present[None]]).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), note


def picture(image: Image, name: str, size: tuple[int, int] = SIZE) -> Markup:
    """An image as an HTML element that contains its data; for `size` see `SIZE`."""
    from markupsafe import Markup
    from PIL import Image

    small, large = size
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "LA" else "RGB")
    if max(image.size) < small:  # each pixel stays a square of one colour
        factor = ceil(small / max(image.size))
        kind, image = "png", image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        kind, image = "webp", image.copy()  # 24 photographs as PNG have several megabytes
        image.thumbnail((large, large), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/{};base64,{}" alt="test example {}">').format(kind, data, name)
