"""Measure how well `ndvit check --labels` finds labels that were flipped on purpose.

`python benchmarks/check_labels.py --data FOLDER --sets signals/CBF.npz,images/signdigits` reads each set, gives some
examples the label of another class, drawn at random, by a file of labels, and checks the labels. It prints a row a set
and seed: among as many suspects as labels were flipped, the share that was flipped; then the number of suspects, the
share of them that was flipped, and the share of the flipped labels that are suspects. Rows are added to --output.
"""

import csv
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cyclopts import App

import ndvit
from ndvit.files import csv_text

app = App(help=__doc__)
HEAD = ("set", "seed", "examples", "classes", "accuracy", "flipped", "found_of_as_many", "suspects", "precision")
HEAD += ("recall", "seconds")
OPTIONS: dict[str, dict[str, Any]] = {
    "audio/digits": {"label": "path:{digit}_*_*", "group_by": "path:*_{speaker}_*"},
    "ecg/beats_ds1.npz": {"group_by": "groups"},
}
"""Options of reading that a set needs."""
FOLDS = {"audio/digits": 4}  # as many as speakers


def flipped(source: Path, share: float, seed: int, most: int, options: dict[str, Any], folder: Path) -> set[str]:
    """Names of the examples with a wrong label; `folder` gets the file of labels.

    Of a large set, the examples beyond `most` have an empty label there, so that they are left out.
    """
    with warnings.catch_warnings(action="ignore", category=ndvit.DataWarning):  # they are no part of the table
        data = ndvit.load_source(source, test_fraction=0, to_train=False, progress=False, **options)
    parts = [part for part in (data.train, data.val, data.test) if part is not None and len(part)]
    names = np.array([name for part in parts for name in part.names])
    labels = np.concatenate([part.targets for part in parts])
    random = np.random.default_rng(seed)
    order = random.permutation(len(names))
    kept, left_out = np.sort(order[:most]), order[most:]
    wrong = random.permutation(kept)[: round(share * len(kept))]
    shift = random.integers(1, len(data.classes), len(wrong))
    new = (labels[wrong] + shift) % len(data.classes)
    rows = [["name", "label"], *([names[i], data.classes[label]] for i, label in zip(wrong, new))]
    rows += [[names[i], ""] for i in left_out]
    (folder / "flipped.csv").write_text(csv_text(rows), encoding="utf-8")
    return set(names[wrong].tolist())


def measure(source: Path, name: str, seed: int, share: float, most: int, groups: bool, **options: Any) -> list[Any]:
    """A row of the table."""
    reading = {key: value for key, value in OPTIONS.get(name, {}).items() if groups or key != "group_by"}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wrong = flipped(source, share, seed, most, reading, folder)
        start, lines = time.perf_counter(), list[str]()
        found = ndvit.check(
            source,
            labels=True,
            label_file=str(folder / "flipped.csv"),
            seed=seed,
            folds=FOLDS.get(name, 5) if groups else 5,
            output=folder / "check",
            progress=False,
            log=lines.append,
            **reading,
            **options,
        )
        seconds = time.perf_counter() - start
        with (folder / "check" / "suspects.csv").open(newline="", encoding="utf-8") as file:
            suspects = [row["name"] for row in csv.DictReader(file)]
    hits = [one in wrong for one in suspects]
    accuracy = next(line for line in lines if line.startswith("mean over folds: accuracy")).split()[4]
    first = sum(hits[: len(wrong)]) / len(wrong)
    name += "" if groups or name not in OPTIONS else ", without groups"
    row = [name, seed, found.labelled, len(found.classes), accuracy, len(wrong), f"{first:.3f}", len(suspects)]
    return [*row, f"{np.mean(hits or [0]):.3f}", f"{sum(hits) / len(wrong):.3f}", f"{seconds:.0f}"]


@app.default
def main(
    data: Path,
    sets: str,
    *,
    share: float = 0.1,
    seeds: int = 1,
    most: int = 2500,
    groups: bool = True,
    weights: Path | None = None,
    output: Path = Path("check_labels.csv"),
) -> None:
    """Flip labels, look for them, and print a row a set and seed.

    Args:
        data: folder of the sets.
        sets: paths below it, with commas between.
        share: share of the labels that are flipped.
        seeds: how many times each set is flipped.
        most: examples of a set; of more, a random sample.
        groups: whether the examples of a group are in one fold.
        weights: trained weights for images.
        output: a .csv that rows are added to.
    """
    for name in sets.split(","):
        images = name.startswith("images/")
        options = {"weights": str(weights)} if images and weights is not None else {}
        for seed in range(seeds):
            row = measure(data / name, name, seed, share, most, groups, **options)
            print(*row, flush=True)
            new = not output.exists()
            with output.open("a", newline="") as file:
                csv.writer(file).writerows([HEAD, row] if new else [row])


if __name__ == "__main__":
    app()
