"""Latent parameters of synthetic classification tasks."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from ndvit.data.synthetic.waves import normal, scaled, uniform


class Latents:
    """Draws the parameters of a group of tasks: common to a task, different between classes, varying between examples.

    A parameter is `base + contrast * difference of the class + spread * variation of the example`, reflected into its
    range. Whether the class matters is drawn for each parameter of each task, so tasks differ in what tells their
    classes apart. One of the first two parameters always matters, so that no task is pure chance.

    Attributes:
        shape: numbers of tasks, classes in a task, and examples in a class.
        length: samples in a signal.
        contrast: (tasks, 1, 1) size of the differences between classes, in ranges of a parameter.
        spread: (tasks, 1, 1) size of the variations between examples of a class.
    """

    def __init__(
        self,
        random: Generator,
        shape: tuple[int, int, int],
        length: int,
        difficulty: np.ndarray,
        *,
        informative: bool = True,
    ) -> None:
        """Draw the sizes of differences and variations.

        Args:
            random: random generator.
            shape: numbers of tasks, classes and examples.
            length: samples in a signal.
            difficulty: (tasks,) spread divided by contrast.
            informative: whether the classes differ at all.
        """
        self.random, self.shape, self.length = random, shape, length
        tasks = (shape[0], 1, 1)
        self.contrast = uniform(random, tasks, 0.25, 1.6, log=True)
        self.spread = self.contrast * np.asarray(difficulty, dtype=np.float32).reshape(tasks)
        if not informative:
            self.contrast, self.spread = np.zeros(tasks, np.float32), uniform(random, tasks, 0.02, 0.3)
        self._active = random.choice([0.25, 0.5, 0.9])
        self._certain = random.integers(0, 2, (*tasks, 1))  # number of the parameter that matters for sure
        self._drawn = 0

    def values(
        self, low: float, high: float, count: int = 1, *, log: bool = False, active: bool | None = None
    ) -> np.ndarray:
        """Draw parameters (tasks, classes, examples, count) from `low` to `high`.

        Args:
            low: lower end of the range.
            high: upper end.
            count: number of parameters.
            log: vary the logarithm.
            active: whether the class matters; None draws it for each task.
        """
        random, (tasks, classes, examples) = self.random, self.shape
        matters: np.ndarray | bool
        if active is None:
            matters = (random.random((tasks, 1, 1, 1)) < self._active) | (self._certain == self._drawn)
            self._drawn += 1
        else:
            matters = active
        share = uniform(random, (tasks, 1, 1, count))
        share = share + 0.5 * self.contrast[..., None] * matters * normal(random, (tasks, classes, 1, count))
        share = share + 0.5 * self.spread[..., None] * normal(random, (tasks, classes, examples, count))
        return scaled(1 - np.abs(1 - np.abs(share) % 2), low, high, log)  # reflected at both ends

    def mixed(self, base: np.ndarray, difference: np.ndarray, variation: np.ndarray, active: bool = True) -> np.ndarray:
        """Combine arrays of free form, such as signals or coefficients.

        Args:
            base: (tasks, 1, 1, ...).
            difference: (tasks, classes, 1, ...).
            variation: (tasks, classes, examples, ...).
            active: whether the class matters.
        """
        sizes = self.contrast.shape + (1,) * (base.ndim - 3)
        x: np.ndarray = base + self.spread.reshape(sizes) * variation
        return x + self.contrast.reshape(sizes) * difference if active else x

    def per_task(self, low: float, high: float, *, log: bool = False) -> np.ndarray:
        """One number (tasks, 1, 1, 1) for each task."""
        return uniform(self.random, (self.shape[0], 1, 1, 1), low, high, log)

    def per_example(self, low: float, high: float, *, log: bool = False) -> np.ndarray:
        """One number (tasks, classes, examples, 1) for each example, regardless of its class."""
        return uniform(self.random, (*self.shape, 1), low, high, log)

    def flip(self, probability: float) -> bool:
        """A decision for the whole group."""
        return bool(self.random.random() < probability)
