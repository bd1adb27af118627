"""Synthetic signals and classification tasks: a family, and what disturbs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge
from numpy.random import Generator

from ndvit.config.bounds import Cap, Count, checked
from ndvit.data.synthetic.families import FAMILIES, draw
from ndvit.data.synthetic.latents import Latents
from ndvit.data.synthetic.waves import (
    coloured_noise,
    generator,
    interpolate,
    normal,
    smooth,
    standardised,
    times,
    uniform,
    warped,
)

Length = Annotated[int, Ge(16), Cap(10**6)]

_GROUP = 2  # tasks that share the decisions of a family, such as the number of its peaks
_SIGNALS = 16  # signals of a task without classes: many at once are faster, few at once more diverse
_WEIGHTS = {"templates": 2.0, "shapelets": 2.0}  # how often a family is drawn, 1 if absent
_LARGEST = 8.0  # standard deviations, at which signals are clipped


class SyntheticTasks(NamedTuple):
    """Classification tasks.

    Attributes:
        signals: (tasks, classes, examples, length) float32, each signal with mean 0 and standard deviation 1.
        difficulty: (tasks,) variation within classes divided by the difference between them.
        families: name of the family of each task.
    """

    signals: np.ndarray
    difficulty: np.ndarray
    families: list[str]


def synthetic_tasks(
    tasks: int,
    classes: int,
    examples: int,
    length: int = 512,
    *,
    seed: int | Generator = 0,
    difficulty: tuple[float, float] = (0.05, 0.5),
    families: Sequence[str] | None = None,
) -> SyntheticTasks:
    """Draw classification tasks.

    Args:
        tasks: number of tasks.
        classes: classes in each.
        examples: examples of each class.
        length: samples in a signal, at least 16.
        seed: seed, or a generator that is drawn from.
        difficulty: range of the variation within classes divided by the difference between them, drawn log-uniformly.
        families: names of the families to draw from; None takes all (`FAMILIES`).

    Raises:
        ValueError: for an unknown family, an empty range, a count below 1 or a length below 16.
    """
    names = _known(families)
    tasks, classes = checked("tasks", Count, tasks), checked("classes", Count, classes)
    examples, length = checked("examples", Count, examples), checked("length", Length, length)
    if not 0 < difficulty[0] <= difficulty[1]:
        raise ValueError(f"difficulty must be a range of positive numbers (low, high), got {difficulty}")
    random = generator(seed)
    chance = np.array([_WEIGHTS.get(name, 1.0) for name in names])
    signals = np.empty((tasks, classes, examples, length), dtype=np.float32)
    degrees = uniform(random, (tasks,), *difficulty, log=True)
    used: list[str] = []
    for start in range(0, tasks, _GROUP):
        group = slice(start, start + _GROUP)
        name = str(random.choice(names, p=chance / chance.sum()))
        latents = Latents(random, (len(degrees[group]), classes, examples), length, degrees[group])
        signals[group] = _disturbed(latents, draw(name, latents), names)
        used += [name] * latents.shape[0]
    return SyntheticTasks(signals, degrees, used)


def synthetic_signals(
    count: int,
    length: int = 512,
    *,
    channels: int = 1,
    seed: int | Generator = 0,
    families: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw signals without classes, (count, channels, length) float32, each channel standardised.

    Args:
        count: number of signals.
        length: samples in a signal, at least 16.
        channels: channels; several are mixes of common signals, see `mix_channels`.
        seed: seed, or a generator that is drawn from.
        families: names of the families to draw from; None takes all (`FAMILIES`).

    Raises:
        ValueError: as for `synthetic_tasks`.
    """
    count, channels = checked("count", Count, count), checked("channels", Count, channels)
    random = generator(seed)
    sources = 1 if channels == 1 else channels + 1
    tasks = -(-count * sources // _SIGNALS)
    drawn = synthetic_tasks(tasks, _SIGNALS, 1, length, seed=random, families=families).signals
    signals = drawn.reshape(-1, length)[: count * sources].reshape(count, sources, length)
    return signals if channels == 1 else mix_channels(signals, channels, random)


def mix_channels(sources: np.ndarray, channels: int, seed: int | Generator = 0) -> np.ndarray:
    """Observe several sources by several sensors: (n, sources, length) to (n, channels, length), standardised.

    Each channel has one source with weight 1, the others with small random weights, and its own delay.
    """
    random = generator(seed)
    count, available, length = sources.shape
    weight = normal(random, (count, channels, available)) * uniform(random, (count, 1, 1), 0.02, 0.7, log=True)
    main = random.integers(0, available, (count, channels))
    np.put_along_axis(weight, main[..., None], 1, axis=-1)
    mixed = weight @ sources
    delay = uniform(random, (count, 1, 1), 0, 0.1) * uniform(random, (count, channels, 1))
    return standardised(interpolate(mixed, (1 - delay) * times(length)))


def _known(families: Sequence[str] | None) -> list[str]:
    names = list(FAMILIES if families is None else families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        found = f"unknown families {', '.join(unknown)}" if unknown else "families is empty"
        raise ValueError(f"{found}: choose from {', '.join(FAMILIES)}, or leave families out to draw from all")
    return names


def _disturbed(latents: Latents, x: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Add what real recordings have beside the signal: a second signal, warps, drifts, noise, other resolutions."""
    random, length, tasks = latents.random, latents.length, (latents.shape[0], 1, 1, 1)

    def in_some(share: float) -> np.ndarray:
        return (random.random(tasks) < share).astype(np.float32)

    if latents.flip(0.3):
        x = _joined(latents, x, str(random.choice(names)))
    if latents.flip(0.6):
        amount, shift = latents.per_task(0.03, 0.4, log=True), latents.per_task(0.005, 0.15, log=True)
        x = warped(random, x, in_some(0.7) * amount, in_some(0.5) * shift)
    x = standardised(x)
    if latents.flip(0.5):
        gain = smooth(random, latents.shape, length, "gaussian")
        gain *= in_some(0.8) * latents.per_task(0, 0.3)
        gain += 1
        x *= gain
    if latents.flip(0.5):
        drift = coloured_noise(random, latents.shape, 2.5, length)
        drift *= in_some(0.6) * latents.per_task(0.02, 0.7, log=True)
        x += drift
    if latents.flip(0.8):
        noise = normal(random, (*latents.shape, length))
        noise *= in_some(0.8) * latents.per_task(0.005, 0.6, log=True)
        x += noise
    if latents.flip(0.15):
        x = np.cumsum(standardised(x), -1)
    if latents.flip(0.3):  # a recording at a lower rate
        short = max(8, int(length * np.exp(random.uniform(np.log(0.08), np.log(0.6)))))
        x = interpolate(interpolate(x, times(short)), times(length))
    if latents.flip(0.1):
        x = x[..., ::-1]
    if latents.flip(0.3):
        x = x * np.sign(normal(random, tasks))
    x = standardised(x)
    return np.clip(x, -_LARGEST, _LARGEST, out=x)


def _joined(latents: Latents, x: np.ndarray, name: str) -> np.ndarray:
    """Join a second signal, which does not depend on the class: added, as an envelope, or before or after."""
    difficulty = np.ones(latents.shape[0], dtype=np.float32)
    other = Latents(latents.random, latents.shape, latents.length, difficulty, informative=False)
    y, size, length = draw(name, other), latents.per_task(0.1, 0.7, log=True), latents.length
    mode = int(latents.random.integers(0, 4))
    if mode < 2:
        y *= size
        y += x
        return y
    if mode == 2:
        y *= np.float32(0.4) * size
        np.exp(y, out=y)
        y *= x
        return y
    for i, cut in enumerate(uniform(latents.random, (latents.shape[0],), 0.3, 0.7) * length):
        short = interpolate(x[i], times(int(cut)))
        y[i, ..., : int(cut)] = short
    return y if latents.flip(0.5) else y[..., ::-1]
