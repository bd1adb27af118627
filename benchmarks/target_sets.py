"""Sets of the targets benchmark: regressions and several labels, bundled with aeon, from a folder, or generated.

Every set is (X_train, y_train, X_test, y_test) with X (n, channels, time). `SETS` says what each one is: sets of the
TSER archive are used as they are; the others are made of real recordings or of noise, which their lines state.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_SEED = 0
_WINDOW = 1024


class Set(NamedTuple):
    """A data set: its task, what it is, and the function that makes it from the folder of --data (or None)."""

    task: str
    about: str
    make: Callable[[Path | None], Split]
    needs_folder: bool = False


def tser(name: str) -> Callable[[Path | None], Split]:
    """A set of the TSER archive that aeon bundles, with its own split."""

    def make(folder: Path | None) -> Split:
        from aeon.datasets import load_regression

        parts = [load_regression(name, split=split) for split in ("train", "test")]
        return tuple(np.asarray(value, dtype=float) for x, y in parts for value in (x, y))  # type: ignore[return-value]

    return make


def solar(folder: Path | None) -> Split:
    """Half-hours of solar generation that aeon bundles: windows of 24 values, the next one is the target."""
    from aeon.datasets import load_solar

    return next_values(load_solar()[None], 24)


def consumption(folder: Path | None) -> Split:
    """Five quarterly series of the US economy that aeon bundles: 12 quarters, the next value of the first one."""
    from aeon.datasets import load_uschange

    return next_values(load_uschange(), 12)


def next_values(series: np.ndarray, length: int) -> Split:
    """Windows (n, channels, length) of (channels, time) and the next value of the first channel; the last 30 % test."""
    count = series.shape[1] - length
    x = np.stack([series[:, i : i + length] for i in range(count)])
    y = series[0, length:]
    cut = round(0.7 * count)
    return x[: cut - length], y[: cut - length], x[cut:], y[cut:]  # no value of a test window is in a training window


def bearings(folder: Path | None) -> Split:
    """Load of a motor, 0 to 3 horse powers, from its vibration; faults of 0.021 inch are the test."""
    assert folder is not None
    parts: dict[bool, list[tuple[np.ndarray, float]]] = {False: [], True: []}
    for path in sorted((folder / "bearing").glob("[BIO]*/*.npy")):
        size, load = path.stem.split("_")
        values = np.load(path).ravel()
        for i in range(8):
            parts[size == "021"].append((values[i * 14_000 :][:_WINDOW], float(load)))
    x, y = ([np.stack([row[k] for row in parts[held]]) for held in (False, True)] for k in (0, 1))
    return x[0][:, None], y[0], x[1][:, None], y[1]


def frequency(folder: Path | None) -> Split:
    """Frequency of a sine of any phase in noise of twice its power."""
    random = np.random.default_rng(_SEED)
    y = random.uniform(3, 12, 400)
    time = np.linspace(0, 1, 128)
    x = np.sin(2 * np.pi * (y[:, None] * time + random.uniform(size=(400, 1)))) + random.normal(size=(400, 128))
    return x[:200, None], y[:200], x[200:, None], y[200:]


def pulses(folder: Path | None) -> Split:
    """Number of pulses of unequal heights in noise."""
    random = np.random.default_rng(_SEED)
    y, x = random.integers(0, 9, 400).astype(float), 0.5 * random.normal(size=(400, 160))
    for row, count in zip(x, y, strict=True):
        for place in random.choice(150, int(count), replace=False):
            row[place : place + 5] += random.uniform(1, 3) * np.hanning(5)
    return x[:200, None], y[:200], x[200:, None], y[200:]


def decay(folder: Path | None) -> Split:
    """Decay time of an oscillation of any frequency and amplitude, with noise."""
    random = np.random.default_rng(_SEED)
    y, time = random.uniform(0.05, 0.5, 400), np.linspace(0, 1, 150)
    waves = np.sin(2 * np.pi * (random.uniform(8, 20, (400, 1)) * time + random.uniform(size=(400, 1))))
    x = random.uniform(0.5, 2, (400, 1)) * np.exp(-time / y[:, None]) * waves + 0.1 * random.normal(size=(400, 150))
    return x[:200, None], y[:200], x[200:, None], y[200:]


def tones(folder: Path | None) -> Split:
    """Which of eight tones of any phase are in a recording with noise."""
    random = np.random.default_rng(_SEED)
    y, time = (random.random((500, 8)) < 0.3).astype(int), np.linspace(0, 1, 200)
    phases = random.uniform(size=(500, 8, 1))
    waves = np.sin(2 * np.pi * (np.array([4, 6, 9, 13, 18, 24, 31, 40])[:, None] * time + phases))
    x = (y[:, :, None] * waves * random.uniform(0.4, 1.2, (500, 8, 1))).sum(1) + 1.2 * random.normal(size=(500, 200))
    return x[:250, None], y[:250], x[250:, None], y[250:]


def sums(load: Callable[[Path | None], Split]) -> Callable[[Path | None], Split]:
    """Sums of one to three series of different classes of a classification set, labelled with all their classes."""

    def make(folder: Path | None) -> Split:
        x_train, y_train, x_test, y_test = load(folder)
        classes = np.unique(y_train)
        random = np.random.default_rng(_SEED)
        made: list[np.ndarray] = []
        for x, labels, count in ((x_train, y_train, 400), (x_test, y_test, 300)):
            rows, targets = np.zeros((count, *x.shape[1:])), np.zeros((count, len(classes)), dtype=int)
            for row, target in zip(rows, targets, strict=True):
                for k in random.choice(len(classes), random.integers(1, 4), replace=False):
                    row += x[random.choice(np.flatnonzero(labels == classes[k]))] * random.uniform(0.7, 1.3)
                    target[k] = 1
            made += [rows, targets]
        return made[0], made[1], made[2], made[3]

    return make


def osu_leaf(folder: Path | None) -> Split:
    """The classification set that aeon bundles."""
    from ndvit.data.sources.load import load_source

    source = load_source("osuleaf")
    x_train, x_test = (np.stack(part.items) for part in (source.train, source.test))
    return x_train, np.asarray(source.train.targets), x_test, np.asarray(source.test.targets)


def archive(name: str) -> Callable[[Path | None], Split]:
    """A classification set in the folder signals of --data."""

    def make(folder: Path | None) -> Split:
        assert folder is not None
        with np.load(folder / "signals" / f"{name}.npz") as file:
            return file["X_train"], file["y_train"], file["X_test"], file["y_test"]

    return make


SETS = {
    "Covid3Month": Set(
        "regression", "TSER archive: death rate of a country from 84 days of cases", tser("Covid3Month")
    ),
    "CardanoSentiment": Set(
        "regression", "TSER archive: sentiment of news from two series of 24 hours", tser("CardanoSentiment")
    ),
    "Solar": Set("regression", "the next half-hour of solar generation, from 24 (made of a bundled series)", solar),
    "Consumption": Set(
        "regression", "the next quarter of US consumption, from five series of 12 (made of bundled series)", consumption
    ),
    "BearingLoad": Set("regression", "load of a motor from vibration, other faults are the test", bearings, True),
    "Frequency": Set("regression", "frequency of a sine in noise (generated)", frequency),
    "Pulses": Set("regression", "number of pulses in noise (generated)", pulses),
    "Decay": Set("regression", "decay time of an oscillation (generated)", decay),
    "Tones": Set("multilabel", "which of 8 tones are in noise (generated)", tones),
    "OSULeafSums": Set("multilabel", "sums of 1 to 3 of OSULeaf's 6 classes (made of a bundled set)", sums(osu_leaf)),
    "SwedishLeafSums": Set(
        "multilabel",
        "sums of 1 to 3 of SwedishLeaf's 15 classes (made of an archive set)",
        sums(archive("SwedishLeaf")),
        True,
    ),
    "FacesSums": Set(
        "multilabel",
        "sums of 1 to 3 of FacesUCR's 14 classes (made of an archive set)",
        sums(archive("FacesUCR")),
        True,
    ),
}
