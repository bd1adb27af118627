"""Cut the CSV file of a sensor into windows, and estimate the accuracy for new persons.

`python examples/sensor_windows.py --csv FILE` reads the columns person, time (in seconds), x, y, z and activity.
Without a file it generates one: twelve people walk, climb stairs and run. Each person has their own pace and force, and
wears the sensor in their own way, so that a network can recognise the persons of the training set.

Windows of one person are similar, and they overlap. A random split puts windows of the same person into the training
set and into the test set, so its accuracy is that for known persons. A split by person (scikit-learn's
GroupShuffleSplit) gives the accuracy for new persons.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from cyclopts import run
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

from ndvit import ViTClassifier

AXES = ["x", "y", "z"]
COLUMNS = ["person", "time", *AXES, "activity"]
HERTZ = 20
STEPS_A_SECOND = {"walk": 1.8, "stairs": 1.5, "run": 2.4}
FORCE = {"walk": 2.0, "stairs": 1.7, "run": 3.5}  # m/s^2


class Windows(NamedTuple):
    """Windows X (n, 3, length), their activities y (n,) and persons (n,), and counts of dropped rows and windows."""

    X: np.ndarray
    y: np.ndarray
    people: np.ndarray
    dropped: dict[str, int]


def generate_sensor(people: int, seed: int) -> pd.DataFrame:
    """Generate rows of a sensor at 20 Hz: each person does each activity twice, for about half a minute."""
    rng = np.random.default_rng(seed)
    parts = []
    for person in range(people):
        pace, force = np.exp(rng.normal(0, 0.25, 2))
        down, ahead = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2]  # orientation of the sensor of this person
        start = 0.0
        for activity in [*FORCE, *FORCE]:
            time = np.arange(rng.integers(25 * HERTZ, 35 * HERTZ)) / HERTZ
            phase = 2 * np.pi * (pace * STEPS_A_SECOND[activity] * time + rng.uniform())
            up_and_down = 9.81 + force * FORCE[activity] * np.sin(phase)
            to_and_fro = force * FORCE[activity] * np.sin(2 * phase + 1) / 2
            values = np.outer(up_and_down, down) + np.outer(to_and_fro, ahead) + rng.normal(0, 1, (len(time), 3))
            part = pd.DataFrame(values.round(3), columns=AXES)
            parts.append(part.assign(person=f"p{person:02}", time=(start + time).round(3), activity=activity))
            start += time[-1] + 60  # a pause of one minute
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def read_sensor(path: Path) -> pd.DataFrame:
    """Read a CSV file and check its columns.

    Raises:
        ValueError: for missing columns, or text where numbers are expected.
    """
    rows = pd.read_csv(path)
    missing = [name for name in COLUMNS if name not in rows]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(rows)}: rename them")
    words = [name for name in ("time", *AXES) if not pd.api.types.is_numeric_dtype(rows[name])]
    if words:
        raise ValueError(f"{path} must hold numbers in the columns {', '.join(words)}; times are in seconds")
    return rows


def cut_windows(rows: pd.DataFrame, length: int, step: int, pause: float = 0.5) -> Windows:
    """Cut rows into windows. A window contains one person and one activity, and no pause.

    Args:
        rows: rows in the order of time for each person; NaN in x, y or z is a missing value.
        length: rows per window.
        step: rows from the start of one window to the start of the next; below `length` windows overlap.
        pause: seconds without a row after which a new stretch begins. A stretch also begins where time decreases.

    Raises:
        ValueError: if length or step give no windows.
    """
    if not 1 <= step <= length:
        raise ValueError(f"step must be at least 1 and at most the length of a window, {length}; got {step}")
    rows = rows.sort_values("person", kind="stable")  # rows of several persons may be interleaved
    person, activity = (rows[name].astype("string").fillna("") for name in ("person", "activity"))
    begins = (person != person.shift()) | (activity != activity.shift()) | ~rows["time"].diff().between(0, pause)

    found, labels, people = [], [], []
    dropped = dict.fromkeys(
        ("rows without person or activity", "rows too few for a window", "windows without values"), 0
    )
    for _, stretch in rows.groupby(begins.astype(int).cumsum()):
        who, what = person[stretch.index[0]], activity[stretch.index[0]]
        if not who or not what:
            dropped["rows without person or activity"] += len(stretch)
            continue
        if len(stretch) < length:
            dropped["rows too few for a window"] += len(stretch)
            continue
        dropped["rows too few for a window"] += (len(stretch) - length) % step  # rows at the end of the stretch
        for window in sliding_window_view(stretch[AXES].to_numpy(float), length, axis=0)[::step]:
            if np.isnan(window).all():
                dropped["windows without values"] += 1
                continue
            found.append(window)
            labels.append(what)
            people.append(who)
    if not found:
        raise ValueError(f"no stretch of one person and activity has {length} rows: choose a shorter window")
    return Windows(np.stack(found), np.array(labels), np.array(people), dropped)


def fit_and_score(windows: Windows, train: np.ndarray, test: np.ndarray) -> tuple[ViTClassifier, float]:
    """Train a classifier on some windows and score it on others."""
    classifier = ViTClassifier("fast", random_state=0).fit(windows.X[train], windows.y[train])
    return classifier, classifier.score(windows.X[test], windows.y[test])


def main(
    csv: Path | None = None,
    window: int = 80,
    step: int = 40,
    output: Path = Path("runs/sensor-windows"),
) -> None:
    """Compare a random split of windows with a split by person.

    Args:
        csv: file of a sensor. By default a file is generated in the output folder.
        window: rows per window.
        step: rows from one window to the next.
        output: folder for the classifier of the split by person, `model.safetensors`.
    """
    output.mkdir(parents=True, exist_ok=True)
    if csv is None:
        csv = output / "sensor.csv"
        generate_sensor(people=12, seed=0).to_csv(csv, index=False)
    windows = cut_windows(read_sensor(csv), window, step)
    n = len(windows.X)
    print(f"{csv}: {n:,} windows of {window} rows from {len(set(windows.people))} people")
    print("dropped: " + ", ".join(f"{count:,} {what}" for what, count in windows.dropped.items()))

    by_person = GroupShuffleSplit(n_splits=1, test_size=1 / 3, random_state=0)
    train, test = next(by_person.split(windows.X, windows.y, windows.people))
    at_random = StratifiedShuffleSplit(n_splits=1, test_size=len(test), random_state=0)
    mixed_train, mixed_test = next(at_random.split(windows.X, windows.y))
    print(f"tested on {', '.join(sorted(set(windows.people[test])))}, trained on the other persons")
    _, known = fit_and_score(windows, mixed_train, mixed_test)
    classifier, unknown = fit_and_score(windows, train, test)
    print(f"random split     {known:.1%}  for persons of the training set: too optimistic")
    print(f"split by person  {unknown:.1%}  for persons outside the training set: to be expected for a new person")

    classifier.save(output / "model.safetensors")
    print(f"saved: {output / 'model.safetensors'}")


if __name__ == "__main__":
    run(main)
