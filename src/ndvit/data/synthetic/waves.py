"""Building blocks of synthetic signals: noise, smooth random functions, interpolation, warping.

All functions are vectorised over leading axes; the last axis is time. They compute in float32.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.random import SFC64, Generator
from scipy import fft
from scipy.special import ndtri

Shape = tuple[int, ...]

_SILENT = 3e-4  # share of the largest amplitude of a spectrum, below which its highest frequencies are left out


def generator(seed: int | Generator) -> Generator:
    """The generator itself, or a new one from a seed; SFC64 is numpy's fastest."""
    return seed if isinstance(seed, Generator) else Generator(SFC64(seed))


def standardised(x: np.ndarray) -> np.ndarray:
    """The signals (..., length) with mean 0 and standard deviation 1; a constant signal becomes 0."""
    result: np.ndarray = x - x.mean(-1, keepdims=True)
    scale = np.sqrt(np.einsum("...t,...t->...", result, result) / np.float32(x.shape[-1]))
    result *= (1 / (scale + np.float32(1e-6)))[..., None]
    return result


@cache
def _quantiles() -> np.ndarray:
    """65,536 quantiles of the normal distribution, which must not be written to."""
    values = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
    values = (values / values.std()).astype(np.float32)
    values.flags.writeable = False
    return values


def normal(random: Generator, shape: Shape) -> np.ndarray:
    """Standard normal numbers, float32: random ones of 65,536 quantiles, drawn faster than exact numbers."""
    return _quantiles().take(random.integers(0, 1 << 16, shape, dtype=np.uint16))


def uniform(random: Generator, shape: Shape, low: float = 0.0, high: float = 1.0, log: bool = False) -> np.ndarray:
    """Numbers from `low` to `high`, float32; with `log` their logarithm is uniform."""
    return scaled(random.random(shape, dtype=np.float32), low, high, log)


def scaled(share: np.ndarray, low: float, high: float, log: bool) -> np.ndarray:
    """Map shares from 0 to 1 onto the range from `low` to `high`, linearly or in the logarithm."""
    if log:
        return np.exp(np.float32(np.log(low)) + share * np.float32(np.log(high / low)))
    return np.float32(low) + share * np.float32(high - low)


@cache
def times(length: int) -> np.ndarray:
    """(length,) float32 from 0 to 1, which must not be written to."""
    time = np.linspace(0, 1, length, dtype=np.float32)
    time.flags.writeable = False
    return time


@cache
def frequencies(length: int) -> np.ndarray:
    """(length,) float32: 1 to `length` half periods in a signal; must not be written to."""
    k = np.arange(1, length + 1, dtype=np.float32)
    k.flags.writeable = False
    return k


def bell(x: np.ndarray, centre: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
    """Gaussian bell with height 1."""
    y: np.ndarray = (x - centre) / width
    y *= y
    y *= np.float32(-0.5)
    return np.exp(y, out=y)


def waves(random: Generator, shape: Shape, count: int) -> np.ndarray:
    """Complex normal coefficients (*shape, count) of the frequencies 1 to `count`."""
    return normal(random, (*shape, count, 2)).view(np.complex64)[..., 0]


def synthesised(coefficients: np.ndarray, length: int) -> np.ndarray:
    """Signals (..., length) of the coefficients (..., count) of the frequencies 1 to `count`, in half periods a signal.

    They are one half of signals of twice the length, because the inverse Fourier transform gives periodic ones.
    """
    spectrum = np.empty((*coefficients.shape[:-1], coefficients.shape[-1] + 1), dtype=np.complex64)
    spectrum[..., 0], spectrum[..., 1:] = 0, coefficients
    signals: np.ndarray = fft.irfft(spectrum, 2 * length, overwrite_x=True, workers=1)[..., :length]
    return signals


def from_spectrum(random: Generator, shape: Shape, amplitude: np.ndarray, length: int) -> np.ndarray:
    """Gaussian signals (*shape, length) of a spectrum.

    Args:
        random: random generator.
        shape: leading axes.
        amplitude: (..., length), which broadcasts to `shape`: amplitudes of the frequencies 1 to `length`. The highest
            ones are left out if they are silent in all signals.
        length: samples.
    """
    loud = amplitude >= _SILENT * amplitude.max(-1, keepdims=True)
    count = int(np.flatnonzero(loud.reshape(-1, length).any(0))[-1]) + 1
    coefficients = waves(random, shape, count)
    coefficients *= amplitude[..., :count]
    return synthesised(coefficients, length)


def coloured_noise(random: Generator, shape: Shape, slope: np.ndarray | float, length: int) -> np.ndarray:
    """Standardised noise (*shape, length) whose power falls as frequency ** -slope; `slope` (..., 1) broadcasts."""
    amplitude = np.exp(np.float32(-0.5) * np.asarray(slope, np.float32) * np.log(frequencies(length)))
    return standardised(from_spectrum(random, shape, amplitude, length))


SMOOTH_KINDS = ("gaussian", "matern", "periodic", "mixture")


def smooth(random: Generator, shape: Shape, length: int, kind: str | None = None) -> np.ndarray:
    """Standardised draws (*shape, length) of a Gaussian process.

    Its kernel is drawn for all of them together: squared exponential, Matern, periodic or a mixture; a quarter of the
    calls add trends, fifths add a start, a limit or a rectifier.

    Args:
        random: random generator.
        shape: leading axes.
        length: samples.
        kind: one of `SMOOTH_KINDS`; None draws it.
    """
    kind = kind or SMOOTH_KINDS[random.integers(len(SMOOTH_KINDS))]
    k = frequencies(length)

    def squared_exponential() -> np.ndarray:
        return bell(k, 0, float(np.exp(random.uniform(np.log(2), np.log(40)))))

    if kind == "gaussian":
        amplitude = squared_exponential()
    elif kind == "matern":
        amplitude = (1 + (k / np.exp(random.uniform(0, 3))) ** 2) ** -random.uniform(0.5, 1.5)
    elif kind == "periodic":
        first, width = np.exp(random.uniform(np.log(3), np.log(40))), random.uniform(0.2, 1.5)
        heights = np.arange(1, 6) ** -random.uniform(0.3, 2)
        amplitude = heights @ bell(k, first * np.arange(1, 6)[:, None], width)
    else:
        parts = random.uniform([0.3, 0, 0], [1, 0.5, 0.1])
        amplitude = parts[0] * squared_exponential() + parts[1] * squared_exponential() + parts[2] / (1 + k)
    x = standardised(from_spectrum(random, shape, amplitude.astype(np.float32), length))
    if random.random() < 0.25:
        x += 2 * normal(random, (*shape, 1)) * (times(length) - np.float32(0.5))
    if random.random() < 0.2:
        x *= times(length) > uniform(random, (*shape, 1))
    if random.random() < 0.2:
        x = np.tanh(2 * x, out=x) if random.random() < 0.5 else np.maximum(x, 0, out=x)
    return x


def interpolate(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Linear interpolation of x (..., m) at places (..., n) from 0 (first sample) to 1 (last); beyond, the ends hold.

    The leading axes of both broadcast.
    """
    m = x.shape[-1]
    weight: np.ndarray = place * np.float32(m - 1)
    np.clip(weight, 0, np.nextafter(np.float32(m - 1), np.float32(0)), out=weight)
    whole = np.floor(weight)
    left = whole.astype(np.intp)
    weight -= whole
    if place.ndim == 1:
        before, after = x.take(left, -1), x.take(left + 1, -1)
    else:
        # rows of x that are repeated by broadcasting are not copied: their index is repeated instead
        rows = m * np.arange(int(np.prod(x.shape[:-1]))).reshape(*x.shape[:-1], 1)
        start = rows + left
        flat = np.ascontiguousarray(x).ravel()
        before = flat.take(start)
        start += 1
        after = flat.take(start)
    after -= before
    after *= weight
    after += before
    return after


_KNOTS = 9


@cache
def _hats(length: int) -> np.ndarray:
    """(knots, length): linear interpolation of knots as a matrix."""
    return interpolate(np.eye(_KNOTS, dtype=np.float32), times(length))


def warped(random: Generator, x: np.ndarray, amount: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Signals (..., length) on a smooth, increasing, random time axis.

    Args:
        random: random generator.
        x: the signals.
        amount: (..., 1) standard deviation of the logarithm of the speed.
        shift: (..., 1) largest shift as a share of the length.
    """
    knots = np.zeros((*x.shape[:-1], _KNOTS), dtype=np.float32)
    np.cumsum(np.exp(normal(random, (*x.shape[:-1], _KNOTS - 1)) * amount), axis=-1, out=knots[..., 1:])
    knots /= knots[..., -1:]
    knots += shift * uniform(random, (*x.shape[:-1], 1), -1, 1)
    return interpolate(x, (knots.reshape(-1, _KNOTS) @ _hats(x.shape[-1])).reshape(x.shape))
