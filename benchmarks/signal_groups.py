"""Compare classifiers on unbalanced signals of recordings that are not in the training set.

`python benchmarks/signal_groups.py --data FOLDER` reads each NAME.npz of a folder: X (n, channels, time), y, and
groups, for example the recording or the patient of each signal; and each folder NAME with CLASS/GROUP_TAKE.npy, the
recordings (time,) of bearings with faults of several sizes, which are cut into windows. Groups are sorted, and group i
is in fold i modulo 5. Each model is trained on the other folds and tested on one. Everything is fixed before a fit: the
seed is 0, the presets are used as they are, and classes are weighed by `class_weight="balanced"` or not at all.

It writes a row for each fit to groups.csv, and groups.md with the results on all recordings of the folds. An
interrupted benchmark continues where it stopped.
"""

import csv
import io
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import App
from signal_results import read_table
from signals import git_commit

from ndvit import ViTClassifier
from ndvit.files import replace_file

FOLDS = 5
WINDOW = 2048  # samples of a recording, 0.17 s at 12 kHz
LOOKED_AT = (
    "All five folds of beats_ds1 were looked at while it was found out why models fail on unknown patients. The "
    "rule that weighs the encoder by groups follows from that, and its constant was set on other data (the UCR "
    "archive): the results with groups are optimistic. Some classes are rare: two folds have 4 beats of class F, "
    "and each of them is 6 points of balanced accuracy."
)
OF_BEARINGS = (
    f"Windows of {WINDOW:,} samples (0.17 s) of drive-end vibrations. A group is a size of the fault (7, 14, 21 "
    "thousandths of an inch), and the tested size is in no training window; the only recording without a fault is cut "
    "into three parts. In two of three folds all models take faults of the tested size for those of one class: windows "
    "or loads of the same recordings on both sides would hide that. Nothing was tuned to them."
)
ROWS, REPORT = "groups.csv", "groups.md"
app = App(help=__doc__)


def ours(preset: str, class_weight: str | None) -> Callable[[], Any]:
    """Make a ViTClassifier from a preset."""
    return lambda: ViTClassifier(preset, class_weight=class_weight, random_state=0, device="cpu")


def minirocket(class_weight: str | None) -> Callable[[], Any]:
    """Make aeon's MiniRocketClassifier, which ends in a ridge classifier."""

    def make() -> Any:
        from aeon.classification.convolution_based import MiniRocketClassifier

        return MiniRocketClassifier(class_weight=class_weight, random_state=0, n_jobs=torch.get_num_threads())

    return make


MODELS: dict[str, Callable[[], Any]] = {
    "ours-balanced": ours("signal", "balanced"),
    "minirocket-balanced": minirocket("balanced"),
    "fast-balanced-groups": ours("fast", "balanced"),
    "fast-balanced": ours("fast", "balanced"),
    "ours": ours("signal", None),
    "fast": ours("fast", None),
    "minirocket": minirocket(None),
}


@dataclass(frozen=True)
class Row:
    """One fit.

    Attributes:
        set, model, fold: what was fitted, and the fold that it was tested on.
        classes: names of the classes, as JSON.
        confusion: counts of test signals by true and predicted class, as JSON.
        log_loss: mean over the test signals; NaN for models whose probabilities are only 0 and 1.
        fit_seconds, predict_seconds: wall time.
        threads, software, commit: how it was computed.
    """

    set: str
    model: str
    fold: int
    classes: str
    confusion: str
    log_loss: float
    fit_seconds: float
    predict_seconds: float
    threads: int
    software: str
    commit: str

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix (classes, classes)."""
        return np.array(json.loads(self.confusion))


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (n, channels, time), y and groups of a file or a folder.

    A class with recordings of one group only, such as bearings without a fault, is cut into as many parts as there are
    groups, one after the other, so that it is in every fold.
    """
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return file["X"], file["y"], file["groups"]
    X, y, groups = [], [], []
    files = sorted(path.glob("*/*_*.npy"))
    group_of = {file: file.stem.partition("_")[0] for file in files}
    of_class = {
        label: {group_of[f] for f in files if f.parent.name == label} for label in {f.parent.name for f in files}
    }
    usual = sorted(max(of_class.values(), key=len))
    for file in files:
        recording = np.load(file, allow_pickle=False).astype(np.float32)
        windows = recording[: len(recording) // WINDOW * WINDOW].reshape(-1, 1, WINDOW)
        X.append(windows)
        y += [file.parent.name] * len(windows)
        if len(of_class[file.parent.name]) == 1:
            groups += [usual[i * len(usual) // len(windows)] for i in range(len(windows))]
        else:
            groups += [group_of[file]] * len(windows)
    return np.concatenate(X), np.array(y), np.array(groups)


def folds_of(groups: np.ndarray) -> np.ndarray:
    """The fold of each example (n,): that of its group."""
    return np.unique(groups, return_inverse=True)[1] % FOLDS


def run(data: Path, model: str, fold: int, commit: str) -> Row:
    """Fit a model on all folds but one, and test it on that."""
    warnings.filterwarnings("ignore", module="aeon|sklearn")
    X, y, groups = read(data)
    test, threads = folds_of(groups) == fold, torch.get_num_threads()
    classifier, start = MODELS[model](), time.perf_counter()
    # a model that knows the groups leaves all signals of one out together, to choose penalties, calibration and weights
    known_groups = {"groups": groups[~test]} if model.endswith("-groups") else {}
    classifier.fit(X[~test], y[~test], **known_groups)
    fitted = time.perf_counter()
    probabilities = np.asarray(classifier.predict_proba(X[test]), dtype=np.float64)
    end = time.perf_counter()
    torch.set_num_threads(threads)  # which numba changes
    classes = np.unique(y)
    known = np.searchsorted(classes, classifier.classes_)
    truth, predicted = np.searchsorted(classes, y[test]), known[probabilities.argmax(1)]
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (truth, predicted), 1)
    whole = np.zeros((len(truth), len(classes)))
    whole[:, known] = probabilities
    right = whole[np.arange(len(truth)), truth]
    certain = bool(np.isin(probabilities, (0.0, 1.0)).all())
    return Row(
        set=data.stem,
        model=model,
        fold=fold,
        classes=json.dumps(classes.tolist()),
        confusion=json.dumps(confusion.tolist()),
        log_loss=float("nan") if certain else round(float(-np.log(np.maximum(right, 1e-12)).mean()), 4),
        fit_seconds=round(fitted - start, 1),
        predict_seconds=round(end - fitted, 1),
        threads=threads,
        software=", ".join(f"{name} {version(name)}" for name in ("torch", "aeon")),
        commit=commit,
    )


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 of a confusion matrix, over the classes that have examples."""
    there, right = confusion.sum(1), np.diag(confusion)
    recall = right[there > 0] / there[there > 0]
    f1 = 2 * right / np.maximum(confusion.sum(0) + there, 1)
    return {
        "accuracy": right.sum() / there.sum(),
        "balanced accuracy": recall.mean(),
        "macro F1": f1[there > 0].mean(),
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows; the file is replaced as a whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(path, text.getvalue())


def table(rows: Sequence[Row], folds: Sequence[int]) -> list[str]:
    """A table of the models with results on all of these folds, whose test signals are taken together."""
    classes = json.loads(rows[0].classes)
    head = ["model", "accuracy", "balanced accuracy", "macro F1", "log loss", *(f"recall {name}" for name in classes)]
    lines = [_line([*head, "balanced accuracy of each fold", "seconds"]), "|---" * (len(head) + 2) + "|"]
    for model in MODELS:
        found = {row.fold: row for row in rows if row.model == model and row.fold in folds}
        if len(found) < len(folds):
            continue
        counts = sum(row.counts for row in found.values())
        sizes = [row.counts.sum() for row in found.values()]
        loss = np.average([row.log_loss for row in found.values()], weights=sizes)
        recalls = np.diag(counts) / np.maximum(counts.sum(1), 1)
        each = (f"{100 * scores(found[fold].counts)['balanced accuracy']:.1f}" for fold in folds)
        lines.append(
            _line(
                [
                    f"`{model}`",
                    *(f"{100 * value:.1f}" for value in scores(counts).values()),
                    "–" if np.isnan(loss) else f"{loss:.3f}",
                    *(f"{100 * value:.1f}" for value in recalls),
                    ", ".join(each),
                    f"{np.mean([row.fit_seconds for row in found.values()]):.0f}",
                ]
            )
        )
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_report(out: Path, note: str = "") -> Path:
    """Write groups.md from groups.csv."""
    text = ["# Unbalanced signals of recordings outside the training set", "", *([note, ""] if note else [])]
    rows = read_table(out / ROWS, Row)
    for name in dict.fromkeys(row.set for row in rows):
        own = [row for row in rows if row.set == name]
        folds = sorted({row.fold for row in own})
        text += [f"## {name}, folds {', '.join(map(str, folds))}", "", *table(own, folds), ""]
        text += [LOOKED_AT, ""] if name == "beats_ds1" else [OF_BEARINGS, ""] if name == "bearing" else []
        text += ["`-balanced`: classes are weighed. `-groups`: the recordings are known in training (`groups=`).", ""]
    made = sorted({(row.threads, row.software, row.commit) for row in rows})
    text += [
        f"- {threads} thread{'s' * (threads > 1)}, {software}, commit {commit}" for threads, software, commit in made
    ]
    replace_file(out / REPORT, "\n".join(text) + "\n")
    return out / REPORT


@app.default
def main(
    *, data: Path, out: Path = Path("docs/signals"), models: str = "", folds: str = "", fresh: bool = False
) -> None:
    """Fit every model on every fold, then write the report.

    Args:
        data: folder with files NAME.npz that hold X, y and groups, or folders NAME/CLASS/GROUP_TAKE.npy.
        out: folder for groups.csv and groups.md.
        models: comma-separated names; by default all.
        folds: comma-separated numbers; by default all.
        fresh: repeat fits that are in the results.
    """
    chosen = [name for name in models.split(",") if name] or list(MODELS)
    if unknown := [name for name in chosen if name not in MODELS]:
        raise SystemExit(f"unknown model {', '.join(unknown)}: known are {', '.join(MODELS)}")
    wanted = [int(fold) for fold in folds.split(",") if fold] or list(range(FOLDS))
    files = sorted({*data.glob("*.npz"), *(file.parents[1] for file in data.glob("*/*/*_*.npy"))})
    if not files:
        raise SystemExit(f"--data {data}: expected a folder with files NAME.npz, or folders NAME/CLASS/GROUP_TAKE.npy")
    out.mkdir(parents=True, exist_ok=True)
    commit = git_commit()
    for file in files:
        there = set(folds_of(read(file)[2]).tolist())
        for fold in (fold for fold in wanted if fold in there):
            for model in chosen:
                rows, key = read_table(out / ROWS, Row), (file.stem, model, fold)
                rest = [row for row in rows if (row.set, row.model, row.fold) != key]
                if len(rest) < len(rows) and not fresh:
                    continue
                row = run(file, model, fold, commit)
                write_rows(out / ROWS, [*rest, row])
                found = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores(row.counts).items())
                print(f"{file.stem} fold {fold} {model}: {found}, {row.fit_seconds:.0f} s", flush=True)
    print(f"written: {write_report(out)}")


if __name__ == "__main__":
    app()
