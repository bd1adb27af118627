"""Examples and relevance in a form that a page can draw: pictures as PNG, signals and grids as short lists."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ndvit.data.examples import Raw, Recording
from ndvit.data.preprocess.spectrograms import Spectrogram
from ndvit.explain.explain import Explanation

_PICTURE = 384  # pixels of the longer side
_LONG, _WIDE = 1024, 256  # values along the only axis, and along each of several
_CHANNELS = 16


def drawing(raw: Raw | Spectrogram) -> dict[str, Any]:
    """An example as {"kind": "picture", "src"}, {"kind": "curves", "values", "rate"} or {"kind": "grid", "values"}."""
    if isinstance(raw, Image.Image):
        small = raw.copy()
        small.thumbnail((_PICTURE, _PICTURE))
        file = io.BytesIO()
        small.save(file, "PNG")
        return {"kind": "picture", "src": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
    if isinstance(raw, Spectrogram):
        return {"kind": "grid", "values": plain(shortened(raw.values[0], mean=True))}
    rate = raw.rate if isinstance(raw, Recording) else None
    values = raw.values if isinstance(raw, Recording) else np.asarray(raw)
    if values.ndim == 2:
        few = values[:_CHANNELS]
        seconds = values.shape[1] / rate if rate else None
        drawn = {"values": plain(shortened(few, mean=True)), "samples": values.shape[1], "seconds": seconds}
        return {"kind": "curves", **drawn}
    return {"kind": "grid", "values": plain(shortened(middle(values[0]), mean=True))}


def relevance(one: Explanation, picture: bool) -> dict[str, Any]:
    """An explanation as plain values: the example as it was read, and the relevance of its parts."""
    values = one.values
    if picture:
        pixels = values.transpose(1, 2, 0)
        example = drawing(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    else:
        example = drawing(values if one.rate is None else Recording(values, one.rate))
    where = one.relevance[:_CHANNELS] if one.relevance.ndim == 2 else middle(one.total)
    return {**one.to_dict(), "example": example, "relevance": plain(shortened(where, mean=False))}


def middle(values: np.ndarray) -> np.ndarray:
    """The two last axes of a grid, at the middle of all others."""
    while values.ndim > 2:
        values = values[len(values) // 2]
    return values


def shortened(values: np.ndarray, *, mean: bool) -> np.ndarray:
    """A table (rows, columns) with at most as many values as a page has pixels: means or sums of neighbours.

    Rows remain if there are at most 16, because they are channels.
    """
    most = (_WIDE, _WIDE) if len(values) > _CHANNELS else (_CHANNELS, _LONG)
    for axis, limit in enumerate(most):
        length = values.shape[axis]
        if length > limit:
            starts = np.linspace(0, length, limit, endpoint=False).astype(int)
            values = np.add.reduceat(values, starts, axis=axis)
            if mean:
                counts = np.diff([*starts, length])
                values = values / (counts if axis else counts[:, None])
    return values


def plain(values: np.ndarray) -> list[list[float | None]]:
    """Numbers of four digits for JSON, with None for missing ones."""
    return [[float(f"{v:.4g}") if np.isfinite(v) else None for v in row] for row in values.tolist()]
