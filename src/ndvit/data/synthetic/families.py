"""Families of synthetic signals. Each turns `Latents` into signals (tasks, classes, examples, length)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import fft

from ndvit.data.synthetic.latents import Latents
from ndvit.data.synthetic.waves import (
    SMOOTH_KINDS,
    bell,
    coloured_noise,
    frequencies,
    from_spectrum,
    interpolate,
    normal,
    smooth,
    standardised,
    synthesised,
    times,
    uniform,
    waves,
)

_PATTERN = 64  # samples of a short pattern before it is stretched
_TURN = np.float32(2 * np.pi)


def spectra(latents: Latents) -> np.ndarray:
    """Noise whose spectrum has a slope and one to three peaks."""
    random, length = latents.random, latents.length
    logs = np.log(frequencies(length))
    peaks = int(random.integers(1, 4))
    centre, slope = latents.values(4, 0.8 * length, peaks, log=True), latents.values(0, 2.5)
    width, height = latents.values(0.03, 0.7, peaks, log=True), latents.values(0.1, 1, peaks)
    floor = latents.values(0.03, 1, log=True)
    amplitude = (-0.5 * slope) * logs
    np.exp(amplitude, out=amplitude)
    amplitude *= 2 * floor
    for i in range(peaks):
        at, wide = centre[..., i : i + 1], width[..., i : i + 1]
        peak = bell(logs, np.log(at), wide)
        peak *= height[..., i : i + 1] / np.sqrt(at * wide)
        amplitude += peak
    x = from_spectrum(random, latents.shape, amplitude, length)
    return np.cumsum(x, -1) if latents.flip(0.2) else x


def processes(latents: Latents) -> np.ndarray:
    """Mixtures of Gaussian processes with smooth, rough and periodic kernels, which may blend into each other."""
    random, (tasks, classes, examples), length = latents.random, latents.shape, latents.length
    k = frequencies(length)

    def amplitude() -> np.ndarray:
        kind = int(random.integers(0, 3))
        if kind == 0:
            return bell(k, 0, latents.values(2, 60, log=True))
        if kind == 1:
            root = k / latents.values(1, 30, log=True)
            root *= root
            root += 1
            return root ** -np.float32(random.uniform(0.5, 1.5))
        period, sharpness = latents.values(5, 80, log=True), latents.per_task(0.5, 20, log=True)
        comb = np.cos(k * (_TURN / period))
        comb -= 1
        comb *= sharpness
        np.exp(comb, out=comb)
        comb *= k ** -np.float32(random.uniform(0.3, 2))
        return comb

    def noise() -> np.ndarray:
        if stationary:
            return waves(random, latents.shape, length)
        base, difference, variation = (waves(random, shape, length) for shape in shapes)
        return latents.mixed(base, difference, variation, latents.flip(0.5))

    stationary = latents.flip(0.5)  # otherwise the examples share the shape that the kernel colours
    shapes = [(tasks, 1, 1), (tasks, classes, 1), (tasks, classes, examples)]
    first, second, weight = amplitude(), amplitude(), latents.values(0.05, 1)
    first /= np.sqrt(np.einsum("...k,...k->...", first, first))[..., None]
    second /= np.sqrt(np.einsum("...k,...k->...", second, second))[..., None]
    if latents.flip(0.6):  # a sum: one process with both kernels
        first += weight * second
        return synthesised(noise() * first, length)
    gate = np.tanh((times(length) - latents.values(0.1, 0.9)) / latents.per_task(0.01, 0.5, log=True))
    one, other = synthesised(noise() * first, length), synthesised(noise() * second, length)
    return (1 - gate) * one + (1 + gate) * other


def templates(latents: Latents) -> np.ndarray:
    """A smooth template for each task; classes differ everywhere or in one place."""
    random, (tasks, classes, _), length = latents.random, latents.shape, latents.length
    template = smooth(random, (tasks, 1, 1), length)
    difference = smooth(random, (tasks, classes, 1), length)
    x = smooth(random, latents.shape, length, "gaussian")
    if latents.flip(0.5):
        centre = uniform(random, (tasks, classes, 1, 1))
        difference *= bell(times(length), centre, latents.per_task(0.03, 0.3, log=True))
    x *= 1.2 * latents.spread[..., None]
    x += template + 0.5 * latents.contrast[..., None] * difference
    return x


def bumps(latents: Latents) -> np.ndarray:
    """Many bumps on a smooth base, whose heights differ a little, as in the spectra of materials."""
    random, (tasks, classes, examples), length = latents.random, latents.shape, latents.length
    count = int(random.integers(4, 20))
    centre, width = uniform(random, (tasks, count, 1)), uniform(random, (tasks, count, 1), 0.006, 0.12, log=True)
    shapes = bell(times(length), centre, width)  # (tasks, count, length)
    matters = random.random((tasks, 1, 1, count)) < random.choice([0.15, 0.5, 1])
    matters[..., 0] = True
    heights = latents.mixed(
        normal(random, (tasks, 1, 1, count)),
        normal(random, (tasks, classes, 1, count)) * matters,
        normal(random, (tasks, classes, examples, count)),
    )
    x = (heights.reshape(tasks, -1, count) @ shapes).reshape(*latents.shape, length)
    x += smooth(random, (tasks, 1, 1), length, "gaussian") * np.float32(random.uniform(0, 2))
    return x


def plateaus(latents: Latents) -> np.ndarray:
    """Smoothed changes of level, as in movements and states of machines."""
    random, (tasks, classes, examples) = latents.random, latents.shape
    count = int(random.integers(2, 7))
    centre, width = latents.values(0.02, 0.98, count), latents.values(0.004, 0.1, log=True)
    heights = latents.mixed(
        normal(random, (tasks, 1, 1, count)),
        normal(random, (tasks, classes, 1, count)),
        0.7 * normal(random, (tasks, classes, examples, count)),
        latents.flip(0.6),
    )
    x = np.zeros((*latents.shape, latents.length), dtype=np.float32)
    for i in range(count):
        level = times(latents.length) - centre[..., i : i + 1]
        level /= width
        np.tanh(level, out=level)
        level *= heights[..., i : i + 1]
        x += level
    return x


def outlines(latents: Latents) -> np.ndarray:
    """Closed smooth curves, as the distance of an outline from its centre."""
    random, (tasks, classes, examples), length = latents.random, latents.shape, latents.length
    count = int(random.integers(5, 30))
    harmonics = np.arange(1, count + 1, dtype=np.float32)
    decay = harmonics ** np.float32(-random.uniform(0.6, 2))
    shapes = [(tasks, 1, 1), (tasks, classes, 1), (tasks, classes, examples)]
    coefficients = latents.mixed(*(waves(random, shape, count) * decay for shape in shapes))
    if latents.flip(0.3):  # the curve starts anywhere
        coefficients = coefficients * np.exp(1j * _TURN * harmonics * latents.per_example(0, 1)).astype(np.complex64)
    angle = _TURN * harmonics[:, None] * times(length)
    x = coefficients.view(np.float32).reshape(-1, 2 * count) @ np.stack([np.cos(angle), -np.sin(angle)], 1).reshape(
        2 * count, length
    )
    x = x.reshape(*latents.shape, length)
    if latents.flip(0.5):
        x -= x.min(-1, keepdims=True)
        x **= np.float32(random.uniform(0.5, 1))
    return x


def shapelets(latents: Latents) -> np.ndarray:
    """Short patterns in noise; classes differ in which, where, how long, in which order, or in the patterns' shape."""
    random, (tasks, classes, _), length = latents.random, latents.shape, latents.length
    mode = str(random.choice(["which", "shape", "place", "size", "order"]))
    count = int(random.integers(3, 5) if mode == "order" else random.integers(1, 4))
    kinds = int(random.integers(3, 7))
    patterns = _patterns(latents, (tasks, kinds))
    if mode == "which":
        chosen = random.integers(0, kinds, (tasks, classes, count))
        chosen[..., 0] = np.arange(classes) % kinds
    elif mode == "order":
        chosen = random.permuted(np.broadcast_to(np.arange(count) % kinds, (tasks, classes, count)), axis=-1)
    else:
        chosen = random.integers(0, kinds, (tasks, 1, count)).repeat(classes, axis=1)
    width = latents.values(0.05, 0.4, count, log=True, active=mode == "size")
    height = latents.values(0.5, 1.5, count, active=mode == "size")
    if mode == "order":
        width = 0.6 * width
        start = (np.arange(count, dtype=np.float32) + uniform(random, (*latents.shape, count))) / count
    elif mode != "place" and latents.flip(0.6):
        start = np.sort(uniform(random, (*latents.shape, count)), axis=-1)
    else:
        start = latents.values(0.05, 0.95, count, active=mode == "place")
    own = latents.contrast[..., None] * _patterns(latents, (tasks, classes, count)) if mode == "shape" else None
    x = _background(latents)
    x *= latents.per_task(0.03, 0.5, log=True)
    for i in range(count):
        pattern = patterns[np.arange(tasks)[:, None], chosen[..., i]]  # (tasks, classes, _PATTERN)
        if own is not None:
            pattern = pattern + own[:, :, i]
        pattern[..., [0, -1]] = 0  # beyond its ends, the pattern is absent
        wide, at = width[..., i : i + 1], start[..., i : i + 1]
        placed = interpolate(pattern[:, :, None], (times(length) - at * (1 - wide)) / wide)
        placed *= height[..., i : i + 1]
        x += placed
    return x


def steps(latents: Latents) -> np.ndarray:
    """Devices that switch on and off, with a peak at the start that decays."""
    random, length = latents.random, latents.length
    count = int(random.integers(1, 7))
    duration, height = latents.values(0.01, 0.5, count, log=True), latents.values(0.1, 1, count)
    free = latents.flip(0.4)
    start = uniform(random, (*latents.shape, count)) if free else latents.values(0, 1, count)
    decay, edge = latents.values(0.01, 20, count, log=True), latents.values(0.002, 0.03, log=True)
    on = random.random((*latents.shape, count)) < latents.values(0.4, 1, count)
    x = np.float32(0.02) * normal(random, (*latents.shape, length))
    for i in range(count):
        since = times(length) - start[..., i : i + 1]
        pulse, end = since / edge, since - duration[..., i : i + 1]
        end /= edge
        np.tanh(pulse, out=pulse)
        pulse -= np.tanh(end, out=end)
        if i < 2:
            np.maximum(since, 0, out=since)
            since *= -decay[..., i : i + 1]
            np.exp(since, out=since)
            since += 1
            pulse *= since
        pulse *= 0.5 * on[..., i : i + 1] * height[..., i : i + 1]
        x += pulse
    return x


def chirps(latents: Latents) -> np.ndarray:
    """Oscillations with a changing frequency, harmonics, and modulation of amplitude and phase."""
    time = times(latents.length)
    turn = float(_TURN)
    first, last = latents.values(1, 50, log=True), latents.values(1, 50, log=True)
    if latents.flip(0.5):
        phase = first * time
    else:
        bend = latents.values(0.5, 3) + 1
        phase = first * time + (last - first) / bend * time**bend
    phase *= _TURN
    if latents.flip(0.7):
        phase += latents.per_example(0, turn)
    if latents.flip(0.4):
        speed, depth = latents.values(0.5, 12, log=True), latents.values(0, 3)
        phase += depth * np.sin(_TURN * speed * time + latents.per_example(0, turn))
    x = np.sin(phase)
    if latents.flip(0.6):
        harmonic = latents.values(0, 0.8, 2)
        x += harmonic[..., :1] * np.sin(2 * phase + 1) + harmonic[..., 1:] * np.sin(3 * phase)
    if latents.flip(0.5):
        speed, depth = latents.values(0.5, 10, log=True), latents.values(0, 1)
        x *= 1 + depth * np.sin(_TURN * speed * time + latents.per_example(0, turn))
    if latents.flip(0.4):
        x *= bell(time, latents.values(0.1, 0.9), latents.values(0.08, 1, log=True))
    return x


def pulses(latents: Latents) -> np.ndarray:
    """Trains of a pulse of several bumps, such as heartbeats, at a rate that varies."""
    time = np.linspace(0, 1, _PATTERN, dtype=np.float32)
    count = int(latents.random.integers(2, 6))
    height, rate = latents.values(-1, 1, count), latents.values(0.8, 14, log=True)
    centre, width = latents.values(0.05, 0.95, count), latents.values(0.012, 0.2, count, log=True)
    pulse = np.zeros((*latents.shape, _PATTERN), dtype=np.float32)
    for i in range(count):
        pulse += height[..., i : i + 1] * bell(time, centre[..., i : i + 1], width[..., i : i + 1])
    pulse -= pulse[..., :1] * (1 - time) + pulse[..., -1:] * time  # it starts and ends at 0
    phase = coloured_noise(latents.random, latents.shape, 2.0, latents.length)
    phase *= latents.values(0.006, 0.36, log=True)
    phase += rate * times(latents.length)
    if latents.flip(0.7):
        phase += latents.per_example(0, 1)
    phase -= np.floor(phase)
    return interpolate(pulse, phase)


def impacts(latents: Latents) -> np.ndarray:
    """Resonances that knocks or bursts of noise excite, as in bearings, earthquakes and footsteps."""
    random, length = latents.random, latents.length
    resonances = int(random.integers(1, 3))
    turns, decay = latents.values(3, 0.3 * length, resonances, log=True), latents.values(6, 150, log=True)
    if latents.flip(0.6):
        count = int(random.integers(1, 12))
        force = np.zeros((*latents.shape, length), dtype=np.float32)
        if latents.flip(0.5):  # at regular times
            rate, first = latents.values(1, 12, log=True), latents.per_example(0, 1)
            place = (np.arange(count, dtype=np.float32) + first) / rate
        else:
            place = uniform(random, (*latents.shape, count)) if latents.flip(0.5) else latents.values(0, 0.9, count)
        height = latents.values(0.2, 1, count) * (place < 1)
        where = np.minimum(place * np.float32(length), length - 1).astype(np.intp)
        np.put_along_axis(force, where, height.astype(np.float32), axis=-1)
    else:
        force = normal(random, (*latents.shape, length))
        force *= bell(times(length), latents.values(0, 0.7), latents.values(0.02, 0.3, log=True))
    spectrum = fft.rfft(force, 2 * length, overwrite_x=True, workers=1)
    # the transfer function of a damped oscillator, at the frequencies of a signal of twice the length
    rate = decay + 1j * (_TURN / 2) * np.arange(length + 1, dtype=np.float32)
    rate *= rate
    transfer = np.zeros_like(rate)
    for i in range(resonances):
        omega = _TURN * turns[..., i : i + 1]
        transfer += omega / (rate + omega * omega)
    spectrum *= transfer
    x: np.ndarray = standardised(fft.irfft(spectrum, 2 * length, overwrite_x=True, workers=1)[..., :length])
    x += latents.per_task(0.01, 0.3, log=True) * normal(random, x.shape)
    return x


def causes(latents: Latents) -> np.ndarray:
    """Delayed nonlinear mixes of random causes, of which several are observed as one signal."""
    random, length = latents.random, latents.length
    count = int(random.integers(2, 4))
    weight, gains = latents.values(-1, 1, count), latents.values(0.3, 3, count, log=True)
    delay = latents.values(0, 0.3, count)
    kinds = [SMOOTH_KINDS[i] for i in random.integers(0, len(SMOOTH_KINDS), count)]
    shared = latents.flip(0.75)  # otherwise each example has causes of its own

    def cause(kind: str) -> np.ndarray:
        if not shared:
            return smooth(random, latents.shape, length, kind)
        y = smooth(random, latents.shape, length, "gaussian")
        y *= latents.spread[..., None]
        y += smooth(random, (latents.shape[0], 1, 1), length, kind)
        return y

    root = cause(kinds[0])
    x = np.zeros((*latents.shape, length), dtype=np.float32)
    for i in range(count):
        y = root if i == 0 or latents.flip(0.4) else cause(kinds[i])
        late = interpolate(y, np.float32(0.7) * times(length) + delay[..., i : i + 1])
        effect = _EFFECTS[random.integers(len(_EFFECTS))](late, gains[..., i : i + 1])
        x += weight[..., i : i + 1] * effect
    return x


_EFFECTS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda y, gain: y,
    lambda y, gain: np.tanh(2 * gain * y),
    lambda y, gain: np.maximum(y, 0),
    lambda y, gain: np.abs(y),
    lambda y, gain: np.sin(gain * y),
    lambda y, gain: y * (y > 0.5),
)


def changes(latents: Latents) -> np.ndarray:
    """Signals whose level, scale, trend, frequency or noise changes at one to three times, or slowly."""
    random, (tasks, classes, _), time = latents.random, latents.shape, times(latents.length)
    mode = str(random.choice(["level", "scale", "trend", "frequency", "texture"]))
    count = int(random.integers(1, 4))
    if mode != "scale" or latents.flip(0.6):
        by, when = latents.values(-2, 2, count), latents.values(0.05, 0.95, count)
        course = np.zeros((*latents.shape, latents.length), dtype=np.float32)
        for i in range(count):
            course += by[..., i : i + 1] * (time > when[..., i : i + 1])
    else:
        course = smooth(random, (tasks, 1, 1), latents.length, "gaussian")
        own = smooth(random, (tasks, classes, 1), latents.length, "gaussian")
        course = np.float32(0.7) * (course + latents.contrast[..., None] * own)
    x = coloured_noise(random, latents.shape, latents.values(0, 2), latents.length)
    if mode == "level":
        x += course
    elif mode == "scale":
        x *= np.exp(course)
    elif mode == "trend":
        x *= np.float32(0.3)
        x += np.cumsum(course, -1) * np.float32(4 / latents.length) + latents.values(-2, 2) * time
    elif mode == "frequency":
        speed = latents.values(3, 40, log=True) * np.exp(np.float32(0.7) * course)
        np.minimum(speed, np.float32(latents.length / 4), out=speed)
        phase = np.cumsum(speed, -1) * (_TURN / latents.length) + latents.per_example(0, float(_TURN))
        x *= latents.per_task(0.05, 0.7, log=True)
        x += np.sin(phase)
    else:
        other = coloured_noise(random, latents.shape, latents.values(0, 2.5), latents.length)
        other -= x
        other /= 1 + np.exp(-3 * course)
        x += other
    return x


def _background(latents: Latents) -> np.ndarray:
    if latents.flip(0.3):
        return smooth(latents.random, latents.shape, latents.length, "gaussian")
    return coloured_noise(latents.random, latents.shape, latents.per_task(0, 2), latents.length)


def _patterns(latents: Latents, shape: tuple[int, ...]) -> np.ndarray:
    """Short patterns (*shape, _PATTERN) that begin and end at 0, with a maximum of 1."""
    random, time, kind = latents.random, np.linspace(0, 1, _PATTERN, dtype=np.float32), latents.random.integers(0, 4)
    one = (*shape, 1)
    if kind == 0:
        x = smooth(random, shape, _PATTERN, "gaussian")
    elif kind == 1:
        x = np.sin(_TURN * uniform(random, one, 0.5, 5) * time + uniform(random, one, 0, float(_TURN)))
    elif kind == 2:
        top = uniform(random, one, 0.05, 0.95)
        x = np.minimum(time / top, (1 - time) / (1 - top)) * np.sign(normal(random, one))
    else:
        x = np.zeros((*shape, _PATTERN), dtype=np.float32)
        for _ in range(3):
            x += normal(random, one) * bell(time, uniform(random, one), uniform(random, one, 0.03, 0.2))
    x = x * np.sin(np.float32(np.pi) * time).clip(0) ** np.float32(random.uniform(0.05, 1))
    x /= np.abs(x).max(-1, keepdims=True) + np.float32(1e-3)
    return x


FAMILIES: dict[str, Callable[[Latents], np.ndarray]] = {
    family.__name__: family
    for family in (
        spectra, processes, templates, bumps, plateaus, outlines, shapelets, steps, chirps, pulses, impacts, causes,
        changes,
    )
}  # fmt: skip
"""The families by name."""


def draw(name: str, latents: Latents) -> np.ndarray:
    """Standardised signals (tasks, classes, examples, length) of a family."""
    return standardised(FAMILIES[name](latents).astype(np.float32, copy=False))
