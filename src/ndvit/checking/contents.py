"""What the examples of a data set hold: shapes, ranges, constant channels, and a coarse picture of each example."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from ndvit.data.copies import content_digest
from ndvit.data.examples import Examples, Raw, Recording
from ndvit.data.sources.files import header_of

_COARSE = 512  # values of a coarse picture
_MOST_CHANNELS = 16  # of a coarse picture; of more channels, their mean


class Content(NamedTuple):
    """One example.

    Attributes:
        shape: channels and grid, (channels, *grid).
        mode: mode of a picture, such as "RGB"; "" for other examples.
        rate: samples per second of a recording (Hz); None for other examples.
        low: (channels,) smallest values; NaN where nothing was observed.
        high: (channels,) largest values.
        mean: (channels,) means.
        spread: (channels,) standard deviations.
        missing: share of missing values.
        digest: digest of the content, see `content_digest`.
        coarse: (values,) coarse picture, see `coarse_picture`.
    """

    shape: tuple[int, ...]
    mode: str
    rate: float | None
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    missing: float
    digest: bytes
    coarse: np.ndarray


@dataclass(frozen=True, eq=False)
class Examined:
    """Some examples of a split that have been read.

    Attributes:
        split: the split.
        examples: all examples of it.
        indices: (n,) those that have been read; of a stream, a sample.
        contents: what they hold.
    """

    split: str
    examples: Examples
    indices: np.ndarray
    contents: list[Content]


def examine(parts: dict[str, Examples], progress: bool, most: int) -> list[Examined]:
    """Read the examples of each split; of streams, a sample.

    Args:
        parts: the examples by split.
        progress: show a progress bar while many examples are read.
        most: number of streamed examples that are read.
    """
    from tqdm import tqdm

    headers = [header_of(part.items[0]) for part in parts.values() if len(part)]
    counts = {header.channels for header in headers}
    if not any(part.streamed for part in parts.values()) and headers and headers[0].kind == "signal":
        counts = {header_of(item).channels for part in parts.values() for item in part.items}
    channels = counts.pop() if len(counts) == 1 else 0
    found = []
    for split, part in parts.items():
        chosen = part.sample(most) if part.streamed else range(len(part))
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:  # decoders release Python's lock
            read = pool.map(partial(_content, part, channels), chosen)
            disable = not (progress and len(chosen) > 500)
            contents = list(tqdm(read, f"reading the {split} set", len(chosen), leave=False, disable=disable))
        found.append(Examined(split, part, np.asarray(chosen, dtype=np.int64), contents))
    return found


def coarse_picture(values: np.ndarray, channels: int) -> np.ndarray:
    """Means of an example on a coarse grid, (values,) float32 with a length of 1, for comparisons of content.

    Each channel has a mean of 0 and the same deviation, so that offset, gain and unit do not count. It has about 512
    values whatever the size and the number of axes. A constant example has zeros.

    Args:
        values: (channels, *grid) with NaN for missing values.
        channels: channels that all examples have; 0 if they differ: their mean is taken.
    """
    if not 0 < channels <= _MOST_CHANNELS:
        values = _filled(values).mean(axis=0, keepdims=True)
    side = max(2, round((_COARSE / len(values)) ** (1 / (values.ndim - 1))))
    coarse = _filled(values)
    for axis in range(1, coarse.ndim):
        coarse = _cell_means(coarse, axis, side)
    rows = coarse.reshape(len(coarse), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    spread = rows.std(axis=1, keepdims=True)
    rows = np.where(spread > 1e-6 * np.abs(values).max(initial=0, where=np.isfinite(values)), rows, 0)
    rows = rows / np.where(spread > 0, spread, 1)
    length = float(np.linalg.norm(rows))
    return (rows / (length or 1)).astype(np.float32).ravel()


def _cell_means(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Means over `count` stretches of equal length along an axis, which may begin and end inside a value."""
    sums = np.cumsum(values, axis=axis, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums.take([0], axis=axis)), sums], axis=axis)
    edges = np.linspace(0, values.shape[axis], count + 1)
    below = np.minimum(edges.astype(int), values.shape[axis] - 1)
    share = (edges - below).reshape(-1, *[1] * (values.ndim - axis - 1))
    at_edges = sums.take(below, axis=axis) * (1 - share) + sums.take(below + 1, axis=axis) * share
    return np.asarray(np.diff(at_edges, axis=axis) * (count / values.shape[axis]))


def as_values(raw: Raw) -> np.ndarray:
    """An example as an array (channels, *grid) float32; channels of a picture are its bands."""
    if isinstance(raw, Image.Image):
        pixels = np.asarray(raw)
        return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0), dtype=np.float32)
    return np.asarray(raw.values if isinstance(raw, Recording) else raw, dtype=np.float32)


def _content(examples: Examples, channels: int, index: int) -> Content:
    raw = examples[index]
    values = as_values(raw)
    rows = values.reshape(len(values), -1)
    observed = np.isfinite(rows)
    missing = float(1 - observed.mean())
    with np.errstate(invalid="ignore"):  # of a channel without any value everything is NaN
        if missing:
            low = np.where(observed.any(axis=1), np.fmin.reduce(rows, axis=1), np.nan)
            high = np.where(observed.any(axis=1), np.fmax.reduce(rows, axis=1), np.nan)
            count = observed.sum(axis=1)
            mean = np.where(observed, rows, 0).sum(axis=1, dtype=np.float64) / count
            spread = np.sqrt(np.where(observed, np.square(rows - mean[:, None]), 0).sum(axis=1) / count)
        else:
            low, high = rows.min(axis=1), rows.max(axis=1)
            mean, spread = rows.mean(axis=1, dtype=np.float64), rows.std(axis=1, dtype=np.float64)
    picture = isinstance(raw, Image.Image)
    return Content(
        shape=values.shape,
        mode=raw.mode if isinstance(raw, Image.Image) else "",
        rate=raw.rate if isinstance(raw, Recording) else None,
        low=low,
        high=high,
        mean=mean,
        spread=spread,
        missing=missing,
        digest=content_digest(raw),
        coarse=coarse_picture(values, 0 if picture else channels),
    )


def _filled(values: np.ndarray) -> np.ndarray:
    """Values with the mean of the channel in place of missing ones."""
    observed = np.isfinite(values)
    if observed.all():
        return values
    axes = tuple(range(1, values.ndim))
    count = observed.sum(axis=axes, keepdims=True)
    mean = np.where(observed, values, 0).sum(axis=axes, keepdims=True) / np.maximum(count, 1)
    return np.where(observed, values, mean)


def describe_shape(content: Content) -> str:
    """Shape, mode and rate in words."""
    channels, *grid = content.shape
    if content.mode:
        return f"{grid[1]} × {grid[0]} pixels, {content.mode}"
    size = " × ".join(f"{n:,}" for n in grid)
    rate = "" if content.rate is None else f" at {content.rate:,.10g} Hz"
    return f"{channels:,} channel{'s' * (channels > 1)} × {size}{rate}"


def shapes(found: Sequence[Examined]) -> dict[str, dict[str, int]]:
    """Number of examples of each shape in each split, the most frequent shapes first."""
    counts: dict[str, dict[str, int]] = {}
    for part in found:
        for content in part.contents:
            row = counts.setdefault(describe_shape(content), {one.split: 0 for one in found})
            row[part.split] += 1
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1].values())))
