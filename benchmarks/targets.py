"""Compare regressors and classifiers of several labels: ndvit, aeon's, a plain ViT, and always the mean.

`python benchmarks/targets.py --data FOLDER` fits every model to every set of `target_sets.SETS` once and adds a row a
fit to docs/targets/results.csv; fits that are there are not repeated. It then writes the tables in docs/targets.md.
Without --data, the sets that need it are left out.
"""

import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ndvit._torchvision  # noqa: F401

# isort: split
import numpy as np
import torch
from cyclopts import App
from image_results import git_commit
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import f1_score, r2_score, root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from target_sets import SETS, Set

from ndvit import ViTClassifier, ViTRegressor
from ndvit.evaluation.multilabel import average_precisions
from ndvit.files import replace_file

app = App(help=__doc__)
ROOT = Path(__file__).resolve().parents[1]
OUT, PAGE = ROOT / "docs/targets/results.csv", ROOT / "docs/targets.md"
HEAD = ("set", "task", "model", "score", "second", "seconds", "commit")
"""Of a regression, score is the RMSE and second R2; of several labels, mean average precision and micro F1."""
SEED = 0
_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->"


def ours(preset: str, **options: Any) -> dict[str, Callable[[], Any]]:
    """An estimator of ndvit for both tasks."""
    fixed = {"random_state": SEED, "device": "cpu", **options}
    return {"regression": lambda: ViTRegressor(preset, **fixed), "multilabel": lambda: ViTClassifier(preset, **fixed)}


def aeon_regressor(name: str) -> Callable[[], Any]:
    """A regressor of aeon."""

    def make() -> Any:
        from aeon.regression import convolution_based

        return getattr(convolution_based, name)(random_state=SEED)

    return make


class RidgeOn:
    """Features of a transformer of aeon, and scikit-learn's ridge regression on -1 and 1 for each label, as in aeon."""

    def __init__(self, name: str) -> None:
        from aeon.transformations.collection import convolution_based

        self.features = getattr(convolution_based, name)(random_state=SEED)
        self.head = make_pipeline(StandardScaler(with_mean=False), RidgeClassifierCV(np.logspace(-3, 3, 10)))

    def fit(self, x: np.ndarray, y: np.ndarray) -> "RidgeOn":
        self.head.fit(self.features.fit_transform(x), y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.head.predict(self.features.transform(x))
        return found

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.head.decision_function(self.features.transform(x))
        return found


class Shares:
    """The share of each label in the training set as the probability for every example."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Shares":
        self.shares = y.mean(0)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return np.tile(self.shares, (len(x), 1))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return (self.predict_proba(x) >= 0.5).astype(int)


class Flat:
    """A regressor of tables on flattened series."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Flat":
        self.inner.fit(x.reshape(len(x), -1), y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.inner.predict(x.reshape(len(x), -1))
        return found


PLAIN = {"model": "vit_nano", "steps": 300}
SHORT = {"steps": 150}
MODELS: dict[str, tuple[str, dict[str, Callable[[], Any]]]] = {
    "mean": (
        "the mean of the training targets, or the share of each label",
        {"regression": lambda: Flat(DummyRegressor()), "multilabel": Shares},
    ),
    "MiniRocket": (
        "aeon's MiniRocketRegressor; of labels, its features with a ridge classifier a label",
        {"regression": aeon_regressor("MiniRocketRegressor"), "multilabel": partial(RidgeOn, "MiniRocket")},
    ),
    "MultiRocket": (
        "aeon's MultiRocketRegressor; of labels, its features with a ridge classifier a label",
        {"regression": aeon_regressor("MultiRocketRegressor"), "multilabel": partial(RidgeOn, "MultiRocket")},
    ),
    "MultiRocket-Hydra": (
        "aeon's MultiRocketHydraRegressor (there is none for several labels)",
        {"regression": aeon_regressor("MultiRocketHydraRegressor")},
    ),
    "plain ViT": ("ndvit's vit_nano alone, preset basic, 300 steps", ours("basic", **PLAIN)),
    "ndvit fast": ("preset fast, the closed form", ours("fast")),
    "ndvit 150 steps": ("preset signal, of which the network has 150 steps instead of 1,000", ours("signal", **SHORT)),
}


def scores(task: str, model: Any, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """RMSE and R2 of a regression; mean average precision and micro F1 of several labels."""
    answers = np.asarray(model.predict(x))
    if task == "regression":
        return float(root_mean_squared_error(y, answers)), float(r2_score(y, answers))
    found = model.predict_proba(x) if hasattr(model, "predict_proba") else model.decision_function(x)
    return float(np.nanmean(average_precisions(y, found))), float(f1_score(y, answers, average="micro"))


def fit(name: str, made: Set, model: str, data: Path | None) -> dict[str, Any]:
    """Fit and test a model on a set: a row of the results."""
    x_train, y_train, x_test, y_test = made.make(data)
    estimator = MODELS[model][1][made.task]()
    start = time.perf_counter()
    estimator.fit(x_train.astype(np.float32), y_train)
    first, second = scores(made.task, estimator, x_test.astype(np.float32), y_test)
    values = (
        name,
        made.task,
        model,
        f"{first:.6g}",
        f"{second:.4f}",
        f"{time.perf_counter() - start:.1f}",
        git_commit(["targets.py", "target_sets.py"]),
    )
    return dict(zip(HEAD, values, strict=True))


def read_rows(path: Path = OUT) -> list[dict[str, str]]:
    """The rows of a results.csv; none without the file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(rows: list[dict[str, str]]) -> str:
    """A table a task with a row a set, and the mean rank of every model over the sets that all of its table have."""
    parts = []
    for task, first, second, sign in (
        ("regression", "RMSE", "R2", 1),
        ("multilabel", "mean average precision", "micro F1", -1),
    ):
        found = {(r["set"], r["model"]): r for r in rows if r["task"] == task}
        models = [m for m in MODELS if any(model == m for _, model in found)]
        sets = [s for s in SETS if all((s, m) in found for m in models)]
        if not (sets and models):
            continue
        values = np.array([[float(found[s, m]["score"]) for m in models] for s in sets])
        ranks = np.array(
            [[1 + (sign * row < sign * v).sum() + ((row == v).sum() - 1) / 2 for v in row] for row in values]
        )
        parts += [f"{task}: {first} ({second}); the best of a row in bold\n", "| set | " + " | ".join(models) + " |"]
        parts.append("|---" * (len(models) + 1) + "|")
        for s, row in zip(sets, values, strict=True):
            best = (sign * row).min()
            bold = ["**" if sign * v == best else "" for v in row]
            seconds_of = [float(found[s, m]["second"]) for m in models]
            cells = [f"{b}{v:.4g}{b} ({other:.3f})" for b, v, other in zip(bold, row, seconds_of, strict=True)]
            parts.append(f"| {s} | " + " | ".join(cells) + " |")
        parts.append("| **mean rank** | " + " | ".join(f"{rank:.2f}" for rank in ranks.mean(0)) + " |")
        seconds = [np.sum([float(found[s, m]["seconds"]) for s in sets]) for m in models]
        parts.append("| seconds in all | " + " | ".join(f"{value:.0f}" for value in seconds) + " |\n")
    return "\n".join(parts)


def write_page(rows: list[dict[str, str]], page: Path = PAGE) -> None:
    """Write the tables between the marks of a page."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{_BEGIN}{_END}\n"
    about = [f"- {name}: {one.about}" for name, one in SETS.items()] + [""]
    fitted = {row["model"] for row in rows}
    about += [f"- {name}: {words}" for name, (words, _) in MODELS.items() if name in fitted] + [""]
    start, rest = text.split(_BEGIN)
    replace_file(page, start + _BEGIN + tables(rows) + "\n" + "\n".join(about) + "\n" + _END + rest.split(_END)[1])


@app.default
def main(data: Path | None = None, *, sets: str = "", models: str = "", report: bool = False, out: Path = OUT) -> None:
    """Run what is missing, and write the tables.

    Args:
        data: folder with signals/ and bearing/; without it, the sets that need it are left out.
        sets: names of sets, with commas between; all without.
        models: names of models, likewise.
        report: only write the tables.
        out: the file of results.
    """
    torch.set_num_threads(1)
    rows = read_rows(out)
    done = {(row["set"], row["model"]) for row in rows}
    for model in models.split(",") if models else MODELS:
        for name, made in SETS.items():
            wanted = not sets or name in sets.split(",")
            possible = made.task in MODELS[model][1] and not (made.needs_folder and data is None)
            if report or not wanted or not possible or (name, model) in done:
                continue
            row = fit(name, made, model, data)
            rows.append(row)
            print(*row.values(), flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, HEAD)
                writer.writeheader()
                writer.writerows(rows)
    if out == OUT:
        write_page(rows)


if __name__ == "__main__":
    app()
