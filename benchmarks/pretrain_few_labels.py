"""Compare training from scratch with training from an encoder that was pretrained without labels, on few labels.

`python benchmarks/pretrain_few_labels.py --data FOLDER` pretrains on all training examples of each set without their
labels, then trains with a tenth of the labels (at least one of each class) once from scratch and once from the
pretrained encoder, both by the network alone with the same recipe, and tests on the whole test set. It writes one row
for each fit and prints a table. Sets that have their rows are not run again.

FOLDER has signals/NAME.npz (X_train (n, channels, time), y_train, X_test, y_test) and images/signdigits/ (one folder
of pictures for each class, of which a fifth is the test set). `digits` is built in.
"""

import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import App

import ndvit
from ndvit.data.sources.load import load_source

app = App(help=__doc__)

SIGNALS = ("CricketX", "FacesUCR", "MedicalImages", "ShapesAll", "Strawberry", "SwedishLeaf")
PICTURES = ("digits", "signdigits")
SETS = (*SIGNALS, *PICTURES)
FIELDS = ("set", "seed", "objective", "labels", "scratch", "pretrained", "probe", "pretrain_seconds", "train_seconds")


def arrays(name: str, data: Path) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """X_train, y_train, X_test and y_test of a set; X are arrays or lists of pictures."""
    if (path := data / "signals" / f"{name}.npz").is_file():
        with np.load(path, allow_pickle=False) as file:
            return file["X_train"], file["y_train"], file["X_test"], file["y_test"]
    source = load_source("digits" if name == "digits" else str(data / "images" / name), progress=False)
    parts = [(list(part), np.array(source.classes)[part.targets]) for part in (source.train, source.test)]
    return *parts[0], *parts[1]


def few_labels(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of a random share of the examples of each class, at least one."""
    random = np.random.default_rng(seed)
    groups = (random.permutation(np.flatnonzero(y == label)) for label in np.unique(y))
    return np.sort(np.concatenate([group[: max(1, round(share * len(group)))] for group in groups]))


def take(x: Any, indices: np.ndarray) -> Any:
    """The examples at these indices."""
    return x[indices] if isinstance(x, np.ndarray) else [x[i] for i in indices]


def accuracy(source: Any, seed: int, **options: Any) -> float:
    """The test accuracy of one training."""
    with tempfile.TemporaryDirectory() as folder:
        run = ndvit.train(source, output=Path(folder) / "run", seed=seed, progress=False, log=_ignore, **options)
    assert run.evaluation is not None
    return run.evaluation.to_dict()["accuracy"]


def compare(name: str, data: Path, out: Path, seed: int, objective: str, share: float, own: dict[str, Any]) -> dict:
    """Pretrain on a set, train from scratch and from the encoder, and return the row."""
    x, y, x_test, y_test = arrays(name, data)
    chosen = few_labels(y, share, seed)
    labelled = (take(x, chosen), y[chosen], x_test, y_test)
    unlabelled = [None] * len(y)
    for i in chosen:
        unlabelled[i] = str(y[i])
    started = time.perf_counter()
    run = ndvit.pretrain(
        (x, unlabelled),
        objective=objective,
        output=out / f"{name}-{objective}-{seed}",
        force=True,
        seed=seed,
        progress=False,
        **own,
    )
    pretrain_seconds = time.perf_counter() - started
    signals = isinstance(x, np.ndarray)
    # nothing solved beside it: the shipped encoder is pretrained, too
    alone: dict[str, Any] = {"preset": "signal", "rocket_features": 0, "encoder": False, "val_fraction": 0.0}
    kind = alone if signals else {"preset": "small_data"}
    started = time.perf_counter()
    scratch = accuracy(labelled, seed, **kind)
    train_seconds = time.perf_counter() - started
    kind |= FINE_TUNING
    pretrained = accuracy(labelled, seed, weights=run.folder, **kind)
    probe = accuracy(labelled, seed, weights=run.folder, preset="linear_probe")
    row = (name, seed, objective, len(chosen), scratch, pretrained, probe, pretrain_seconds, train_seconds)
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in zip(FIELDS, row, strict=True)}


FINE_TUNING: dict[str, Any] = {"learning_rate": 1e-3, "layer_decay": 0.75}


@app.default
def main(
    *,
    data: Path,
    out: Path = Path("runs/pretrain_few_labels"),
    sets: Sequence[str] = SETS,
    seeds: Sequence[int] = (0,),
    objective: str = "contrastive",
    share: float = 0.1,
    steps: int | None = None,
    threads: int | None = None,
) -> None:
    """Run the sets that have no row yet, and print the table.

    Args:
        data: Folder with signals/ and images/.
        out: Folder for rows and pretraining runs.
        sets: Names of the sets.
        seeds: Seeds of the choice of labels, of pretraining and of training.
        objective: contrastive or masked.
        share: Share of the labels.
        steps: Steps of the pretraining. [default: the preset's]
        threads: Threads of torch. [default: torch's]
    """
    if threads is not None:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "rows.csv"
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    done = {(row["set"], int(row["seed"]), row["objective"]) for row in rows}
    for name in sets:
        for seed in seeds:
            if (name, seed, objective) not in done:
                own = {} if steps is None else {"steps": steps}
                rows.append(compare(name, data, out, seed, objective, share, own))
                with table.open("w", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    writer.writeheader()
                    writer.writerows(rows)
    print("  ".join(FIELDS))
    for row in rows:
        print("  ".join(str(row[field]) for field in FIELDS))
    gains = {
        name: [float(row["pretrained"]) - float(row["scratch"]) for row in rows if row["set"] == name]
        for name in dict.fromkeys(row["set"] for row in rows)
    }
    better = [name for name, gain in gains.items() if np.mean(gain) >= 0.03]
    print(f"\n3 points or more over training from scratch: {len(better)} of {len(gains)} sets ({', '.join(better)})")


def _ignore(line: str) -> None:
    """Print nothing."""


if __name__ == "__main__":
    app()
