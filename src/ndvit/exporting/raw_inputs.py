"""Preprocessing as nodes of an ONNX graph: a raw example becomes the input and the mask of the network.

The nodes compute what `Preprocess.masked` computes, in the same order of operations, so that answers are equal.
"""

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import WASTE, ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.preprocess.spectrograms import ABOVE_SILENCE, RANGE, SpectrogramPreprocess
from ndvit.exporting.onnx_nodes import DOUBLE, FLOAT, INT, Array

_LUMA = np.array([[19595], [38470], [7471]], dtype=np.float32)  # of 65536; ITU-R 601-2 as PIL rounds it
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # half widths of PIL's filters at their own scale
_DIGITS = 2**22
_EXACT = 2**20  # pixels up to which sums are exact, as halves of a level are frequent where pictures are enlarged
_ZEROS, _KAISER = 10, 5.0  # of the filter in scipy.signal.resample_poly
_TERMS = 25


class RawInput(NamedTuple):
    """The input of a graph for raw examples."""

    type: ir.DataType
    shape: tuple[int | str, ...]  # names for lengths that may vary


def raw_input(preprocess: Preprocess) -> RawInput:
    """What the nodes of `prepared` read.

    A picture is (height, width, 3) uint8 in RGB. A signal is (channels, *grid) float32, with NaN for missing values.
    """
    if preprocess.kind == "image":
        return RawInput(ir.DataType.UINT8, ("height", "width", 3))
    grid = [f"axis_{axis}" for axis in range(1, len(preprocess.raw_size))] + ["time"]
    return RawInput(FLOAT, (preprocess.raw_channels, *grid))


def reads_rate(preprocess: Preprocess) -> bool:
    """Whether examples may be recordings at another rate, so that the graph has a second input, see `prepared`."""
    return getattr(preprocess, "sample_rate", None) is not None


def prepared(raw: Array, ratio: Array | None, preprocess: Preprocess) -> tuple[Array, Array | None]:
    """Append the nodes of a preprocessing.

    Args:
        raw: the example, see `raw_input`.
        ratio: (2,) int64, the sample rate of the training and that of the example, without common factors; None if
            there is no rate.
        preprocess: the preprocessing.

    Returns:
        The input (1, channels, *size) of the network, and its mask (1, *size), True where a value was observed; None
        for pictures.

    Raises:
        ValueError: for a preprocessing that has no nodes.
    """
    mask = None
    if ratio is not None:
        raw = _at_rate(raw, ratio)
    if isinstance(preprocess, ImagePreprocess):
        x = _picture(raw, preprocess)
    elif isinstance(preprocess, SignalPreprocess):
        x, mask = _signal(raw, preprocess)
    elif isinstance(preprocess, SpectrogramPreprocess):
        x, mask = _spectrogram(raw, preprocess)
    else:
        raise ValueError(f"{type(preprocess).__name__} cannot be part of a graph")
    return x.node("Unsqueeze", np.array([0])), None if mask is None else mask.node("Unsqueeze", np.array([0]))


# ------------------------------------------------------------------------------------------------------- pictures


def _picture(raw: Array, p: ImagePreprocess) -> Array:
    """(height, width, 3) uint8 -> (channels, *size)."""
    sides = [raw.length(0), raw.length(1)]
    if p.mode == "L":  # all products and sums are below 2**24, where float32 has every whole number
        luma = ((raw.cast(FLOAT).node("MatMul", _LUMA) + 32768) / 65536).node("Floor")
        pixels = luma.node("Transpose", perm=[2, 0, 1])
    else:
        pixels = raw.node("Transpose", perm=[2, 0, 1])
    full = _full_size(sides, p)
    kept = [whole.at_most(size) for size, whole in zip(p.size, full)]
    first = [((a - b).cast(DOUBLE) / 2).round() for a, b in zip(full, kept)]
    wasteful = kept[0] * kept[1] * WASTE < full[0] * full[1]
    down, across = (_picture_weights(*lengths, wasteful, p.interpolation) for lengths in zip(sides, full, first, kept))
    small = sides[0] * sides[1] < _EXACT
    pixels = small.choose(*(_resized(pixels.nested(), down, across, type) for type in (DOUBLE, FLOAT)))
    mean, std = (np.reshape(values, (-1, 1, 1)).astype(np.float32) for values in (p.mean, p.std))
    x = _without_unused((pixels / 255 - mean) / std, p)
    if p.resize != "pad":
        return x
    missing = [size - length for size, length in zip(p.size, kept)]
    before = [length / 2 for length in missing]
    return x.padded([0, *before], [0, *(length - half for length, half in zip(missing, before))])


def _resized(pixels: Array, down: Array, across: Array, type: ir.DataType) -> Array:
    """(channels, *kept) of whole levels; PIL rounds after each axis."""
    down, across = (Array(pixels.tape, weights.value, weights.type).cast(type) for weights in (down, across))
    wide = _levels(pixels.cast(type).node("MatMul", across.node("Transpose", perm=[1, 0])))
    return _levels(down.node("MatMul", wide)).cast(FLOAT)


def _full_size(sides: list[Array], p: ImagePreprocess) -> list[Array]:
    """Height and width of the whole resized picture, of which `size` is cut; see `ImagePreprocess`."""
    (height, width), (over_h, over_w) = sides, (int(side / p.crop_fraction + 1e-6) for side in p.size)
    if p.resize == "squash":
        return [height.constant(over_h), height.constant(over_w)]
    if p.resize == "pad":
        shrink = (height.cast(DOUBLE) / over_h).at_least(width.cast(DOUBLE) / over_w)
        return [(n.cast(DOUBLE) / shrink).round().at_least(1) for n in (height, width)]
    wide = width * over_h >= height * over_w
    full_h = wide.where(height.constant(over_h), height * over_w / width)
    return [full_h, wide.where(width * over_h / height, over_w)]


def _picture_weights(side: Array, full: Array, first: Array, kept: Array, wasteful: Array, interpolation: str) -> Array:
    """(kept, side) float32: the share of each pixel of a side in the pixels `first` to `first + kept` of `full`.

    Of a wasteful picture, `ImagePreprocess` resizes a box only, whose edges PIL holds in float32.

    These are PIL's weights, rounded to 22 binary digits as there, so that exact halves of a level are rounded alike.
    """
    scale, pixel = side.cast(DOUBLE) / full.cast(DOUBLE), side.range()
    begin, end = (at.cast(DOUBLE) * scale for at in (first, first + kept))
    begin, end = begin.cast(FLOAT).cast(DOUBLE), end.at_most(side.cast(DOUBLE)).cast(FLOAT).cast(DOUBLE)
    box = begin + (kept.range().cast(DOUBLE) + 0.5) * ((end - begin) / kept.cast(DOUBLE))
    centre = wasteful.where(box, ((kept.range() + first).cast(DOUBLE) + 0.5) * scale).column()
    if interpolation == "nearest":
        return pixel.equals(centre.cast(INT)).cast(FLOAT)
    stretch = scale.at_least(1)
    inside = _between(pixel, centre, stretch * _SUPPORT[interpolation], side)
    weights = inside.where(_kernel((pixel.cast(DOUBLE) - centre + 0.5) / stretch, interpolation), 0)
    return ((weights / weights.over([1]) * _DIGITS).node("Round") / _DIGITS).cast(FLOAT)


def _between(place: Array, centre: Array, reach: Array, length: Array) -> Array:
    """Whether places from 0 to length - 1 are within reach of a centre, as PIL and torch round the bounds."""
    first, end = (centre - reach + 0.5).cast(INT), (centre + reach + 0.5).cast(INT)
    return (place >= first.at_least(0)) & (place < end.at_most(length))


def _kernel(x: Array, interpolation: str) -> Array:
    """PIL's filters at distances of at most their support."""
    away = x.node("Abs")
    if interpolation == "bilinear":
        return (1 - away).at_least(0)
    if interpolation == "lanczos":
        return (away < 3).where(_sinc(x) * _sinc(x / 3), 0)
    near = (away * 1.5 - 2.5) * away * away + 1  # bicubic with a = -0.5
    far = (((away - 5) * away + 8) * away - 4) * -0.5
    return (away < 1).where(near, (away < 2).where(far, 0))


def _sinc(x: Array) -> Array:
    angle = x * math.pi
    zero = angle.equals(0)
    return zero.where(x.constant(1), angle.node("Sin") / zero.where(x.constant(1), angle))


def _levels(x: Array) -> Array:
    """Values rounded to the levels 0 to 255."""
    return (x + 0.5).node("Floor").at_least(0).at_most(255)


def _without_unused(x: Array, p: Preprocess) -> Array:
    """0 in the channels that are not used, whatever they have."""
    if not p.unused_channels:
        return x
    unused = np.zeros((p.channels, *[1] * len(p.size)), dtype=bool)
    unused[list(p.unused_channels)] = True
    return x.constant(unused).where(x.constant(0), x)


# -------------------------------------------------------------------------------------------------------- signals


def _signal(raw: Array, p: SignalPreprocess) -> tuple[Array, Array]:
    """(channels, *grid) float32 -> (channels, *size), and the mask (*size)."""
    observed = _observed(raw, [c for c in range(p.channels) if c not in p.unused_channels])
    mean, std = (np.reshape(values, (-1,) + (1,) * len(p.size)) for values in (p.mean, p.std))
    x = _without_unused(_filled(((raw.cast(DOUBLE) - mean) / std).cast(FLOAT)), p)
    missing: list[Array] = []
    for axis, size in enumerate(p.size, start=1):
        behind = len(p.size) - axis
        x, observed, length = _fitted(x, observed, axis, behind, size, p.resize == "resample")
        missing.append(size - length)
    if p.resize == "pad":
        zeros: list[Array | int] = [0] * (len(p.size) + 1)
        x = x.padded(zeros, [*zeros[:-1], missing[-1]], mode="edge")
        x = x.padded(zeros, [0, *missing[:-1], 0])
        observed = observed.padded(zeros, [0, *missing])
    return x, (observed >= 1).node("Squeeze", np.array([0]))


def _observed(raw: Array, used: list[int]) -> Array:
    """(1, *grid) int64: 1 where a value of any of these channels is there."""
    return raw.take(used).node("IsNaN").node("Not").cast(INT).over([0], "Max")


def _filled(x: Array) -> Array:
    """Fill NaN along the last axis as `signals.filled` does.

    The observed values of all lines stand in one row, and a running count of them finds the neighbours of each missing
    value in it.
    """
    length, flat = x.length(-1), x.shape(-1)
    seen = flat.node("IsNaN").node("Not")
    places = seen.cast(FLOAT).node("NonZero").shape(-1)
    values = flat.take(places).padded([1], [1]).cast(DOUBLE)
    here = flat.length(0).range()
    bounds = places.several(-1).node("Concat", places, places.several(flat.length(0)), axis=0)
    before = seen.cast(INT).node("CumSum", np.array(0))  # where `bounds` has the last observed place
    left, right, low, high = (row.take(before + step) for row in (bounds, values) for step in (0, 1))
    start = here / length * length
    has_left, has_right = left >= start, right < start + length
    between = (high - low) / (right - left).cast(DOUBLE) * (here - left).cast(DOUBLE) + low
    edge = has_left.where(low, has_right.where(high, 0))
    made = (has_left & has_right).where(between, edge).cast(FLOAT)
    return seen.where(flat, made).node("Reshape", x.node("Shape"))


def _fitted(x: Array, observed: Array, axis: int, behind: int, size: int, stretch: bool) -> tuple[Array, Array, Array]:
    """Resample an axis that is longer than `size`, or with `stretch` any, linearly and antialiased as torch does.

    Args:
        x: (channels, *grid).
        observed: (1, *grid), 1 where a value is there.
        axis: the axis.
        behind: number of the axes behind it.
        size: the longest that is kept.
        stretch: resample shorter ones, too.

    Returns:
        The values, the places of which any value is there, and the new length.
    """
    old = x.length(axis)
    new = old.constant(size) if stretch else old.at_most(size)
    scale = old.cast(FLOAT) / new.cast(FLOAT)
    reach = scale.at_least(1)
    centre = ((new.range().cast(FLOAT) + 0.5) * scale).column()
    first = (centre - reach + 0.5).cast(INT).at_least(0)
    places = first + (reach.node("Ceil").cast(INT) * 2 + 1).range()  # (new, taps)
    weights = (1 - ((places.cast(FLOAT) - centre + 0.5) / reach).node("Abs")).at_least(0)
    weights = _between(places, centre, reach, old).where(weights, 0)
    weights = weights / weights.over([1])
    if behind:
        weights = weights.node("Unsqueeze", np.arange(2, 2 + behind))
    x = (x.take(places.at_most(old - 1), axis) * weights).over([axis + 1], keep=False)
    here = new.range()
    begin, end = here * old / new, ((here + 1) * old + new - 1) / new  # as torch's adaptive pooling
    edge = [0] * (axis + 1 + behind)
    edge[axis] = 1
    count = observed.node("CumSum", np.array(axis)).padded(edge, [0] * len(edge))
    return x, count.take(end, axis) - count.take(begin, axis), new


def _at_rate(x: Array, ratio: Array) -> Array:
    """(channels, samples) at the sample rate of the training, as `scipy.signal.resample_poly` resamples."""
    up, down = ratio.take(0), ratio.take(1)
    inner = x.nested()
    resampled = _resampled(inner, Array(inner.tape, up.value, INT), Array(inner.tape, down.value, INT))
    return up.equals(down).choose(x.nested().node("Identity"), resampled)


def _resampled(x: Array, up: Array, down: Array) -> Array:
    """The polyphase filter of `resample_poly`: a sinc in a Kaiser window, ten zeros wide to each side."""
    slow = up.at_least(down)
    half = slow * _ZEROS
    last = x.length(1) - 1
    at = ((last + 1) * up + down - 1) / down
    at = at.range() * down + half
    places = (at / up).column() - (half * 2 / up + 1).range()  # (new, taps)
    weights = _low_pass(at.column() - places * up - half, slow)
    total = _low_pass((half * 2 + 1).range() - half, slow).over([], "Sum").scalar()
    weights = (weights / total * up.cast(DOUBLE)).cast(FLOAT)
    first, end = x.take(np.array([0]), 1), x.take(last.shape(1), 1)
    slope = ((end - first) / last.at_least(1).cast(FLOAT)).node("Unsqueeze", np.array([2]))
    beyond = (places.at_most(0) + (places - last).at_least(0)).cast(FLOAT)  # where the line through both ends goes on
    values = x.take(places.at_least(0).at_most(last), 1) + slope * beyond
    return (values * weights).over([2], keep=False)


def _low_pass(lag: Array, slow: Array) -> Array:
    """Weights at these distances in samples of the higher rate, 0 beyond the filter."""
    place = lag.cast(DOUBLE) / slow.cast(DOUBLE)
    relative = place / _ZEROS
    inside = (1 - relative * relative).at_least(0) * (_KAISER**2 / 4)
    bessel = inside * 0 + 1
    for k in range(_TERMS, 0, -1):  # the power series of the modified Bessel function of order 0
        bessel = bessel * inside / k**2 + 1
    return (place.node("Abs") < _ZEROS + 1e-9).where(bessel * _sinc(place), 0)


# --------------------------------------------------------------------------------------------------- spectrograms


def _spectrogram(raw: Array, p: SpectrogramPreprocess) -> tuple[Array, Array]:
    """(inputs, samples) float32 -> (channels, *size), and the mask (*size); see `SpectrogramPreprocess`."""
    seen = _observed(raw, p.used_inputs).shape(-1)
    n = seen.cast(FLOAT).node("NonZero").over([], "Max").scalar() + 1  # samples without missing ones at the end
    frames = (n + (p.step - 1)) / p.step
    values = _filled(_first(raw, n, 1))
    values = values - values.over([1], "Mean")
    left = (p.points - p.step) // 2
    padded = values.padded([0, left], [0, (frames - 1) * p.step + (p.points - left) - n])
    hann = torch.hann_window(p.window)
    edge = (p.points - p.window) // 2
    window = torch.nn.functional.pad(hann, (edge, p.points - p.window - edge)).numpy()
    waves = padded.node("Unsqueeze", np.array([2])).node(
        "STFT", np.array(p.step), window, np.array(p.points), onesided=1
    )  # (inputs, frames, bins, 2)
    amplitudes = waves / max(float(hann.sum()) / 2, 1e-12)
    squares = (amplitudes * amplitudes).over([3], keep=False).node("Transpose", perm=[0, 2, 1])
    power = squares.constant(p.filters.numpy()).node("MatMul", squares)
    seen = _first(seen, n, 0).padded([0], [frames * p.step - n]).shape(-1, p.step).over([1], "Max").shape(1, 1, -1)
    if p.silence is not None:
        power, seen = _sounding(power, seen, p.silence)
    decibels = _decibels(power, p)
    decibels, seen, count = _fitted(decibels, seen, 2, 0, p.size[-1], p.resize == "resample")
    missing = p.size[-1] - count
    decibels = decibels.padded([0, 0, 0], [0, 0, missing], decibels.over([], "Min").scalar())
    seen = seen.padded([0, 0, 0], [0, 0, missing]) >= 1
    mean, std = (np.reshape(v, (-1,) + (1,) * len(p.size)).astype(np.float32) for v in (p.mean, p.std))
    x = (decibels.shape(p.channels, *p.size) - mean) / std
    return _without_unused(x, p), seen.shape(-1).node("Expand", np.array(p.size))


def _first(x: Array, n: Array, axis: int) -> Array:
    """The first n places of an axis."""
    return x.node("Slice", np.array([0]), n.shape(1), np.array([axis]))


def _sounding(power: Array, seen: Array, silence: float) -> tuple[Array, Array]:
    """Power (inputs, bands, frames) and observed frames (1, 1, frames) without the silence at both ends."""
    frames = (power.over([0, 1], "Max") * (seen >= 1).cast(FLOAT)).shape(-1)
    loud = (frames >= frames.over([], "Max") * 10 ** ((ABOVE_SILENCE - silence) / 10)).node("NonZero")
    first, last = loud.over([], "Min").shape(1), loud.over([], "Max").shape(1) + 1
    return power.node("Slice", first, last, np.array([2])), seen.node("Slice", first, last, np.array([2]))


def _decibels(power: Array, p: SpectrogramPreprocess) -> Array:
    """Decibels of power (inputs, bands, frames), down to the floor below the loudest place."""
    tens = 10 / math.log(10)
    loudest = (power.over([], "Max").scalar().cast(DOUBLE).at_least(1e-300).node("Log") * tens).at_least(p.floor)
    floor = loudest - (RANGE if p.silence is None else p.silence)
    least = power.constant(10.0, DOUBLE).node("Pow", floor / 10).cast(FLOAT)
    decibels = (power.at_least(least) if p.silence is None else power + least).node("Log") * tens
    return decibels - loudest.cast(FLOAT) if p.relative else decibels
