"""Compare classifiers of signals: accuracy on the test set of each data set, and time on this machine.

`python benchmarks/signals.py --data FOLDER` trains and tests each model on each NAME.npz of a folder (X_train (n,
channels, time), y_train, X_test, y_test), or on sets that aeon brings along (`--sets BasicMotions`). It writes one row
per fit, and then a report with tables, a figure and an ablation. An interrupted benchmark continues where it stopped.
"""

import functools
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from cyclopts import App
from signal_models import ABLATIONS, KNOWN, MEMBERS, MODELS, Setting
from signal_report import write_report
from signal_results import (
    ABLATION,
    PUBLISHED,
    RESULTS,
    Row,
    add_row,
    probabilities_file,
    read_rows,
    save_probabilities,
    write_rows,
)

from ndvit.evaluation.reliability import calibration_error

app = App(help=__doc__)
BUNDLED = ("BasicMotions", "JapaneseVowels")
"""Sets of several channels that aeon brings along."""


@dataclass(frozen=True)
class Bench:
    """Settings that all fits of a call share."""

    data: Path
    out: Path
    trial: int
    parallel: int
    threads: int
    commit: str
    command: str

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Load the arrays of a set."""
        if name in BUNDLED and not (self.data / f"{name}.npz").is_file():
            return bundled(name)
        with np.load(self.data / f"{name}.npz", allow_pickle=False) as file:
            parts = {key: file[key] for key in ("X_train", "y_train", "X_test", "y_test")}
        if parts["X_train"].ndim != 3:
            raise ValueError(f"{name}.npz: X_train is {parts['X_train'].shape}, expected (n, channels, time)")
        return parts

    def table(self, model: str) -> Path:
        """The CSV file for the rows of a model."""
        return self.out / (RESULTS if model in MODELS else ABLATION)


def bundled(name: str) -> dict[str, np.ndarray]:
    """The arrays of a set that aeon brings along; series of unequal length end in NaN."""
    from aeon.datasets import load_classification

    parts = {split: load_classification(name, split, load_equal_length=False) for split in ("train", "test")}
    longest = max(one.shape[-1] for X, _ in parts.values() for one in X)
    arrays: dict[str, np.ndarray] = {}
    for split, (X, y) in parts.items():
        rows = [np.pad(one, ((0, 0), (0, longest - one.shape[-1])), constant_values=np.nan) for one in X]
        arrays |= {f"X_{split}": np.stack(rows).astype(np.float32), f"y_{split}": np.asarray(y)}
    return arrays


class Job(NamedTuple):
    """One fit."""

    set: str
    model: str
    seed: int


@functools.cache
def warm_up(model: str, channels: int, threads: int) -> None:
    """Run one fit that is not counted, so that compilation and imports of the process are not measured."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, channels, 64)).astype(np.float32)
    y = np.arange(8) % 2
    make = KNOWN[model].make
    assert make is not None
    make(Setting(0, threads, 2, X, y)).fit(X, y).predict_proba(X)


def run(bench: Bench, job: Job) -> Row:
    """Fit and predict, save the probabilities, and return the row."""
    warnings.filterwarnings("ignore", module="aeon|sklearn")
    data, threads = bench.load(job.set), bench.threads
    X, y = data["X_train"], data["y_train"]
    warm_up(job.model, X.shape[1], threads)
    torch.set_num_threads(threads)  # numba and torch share OpenMP's threads, and aeon has changed their number
    make = KNOWN[job.model].make
    assert make is not None
    setting = Setting(job.seed, threads, bench.trial, X, y)
    classifier = make(setting)
    start = time.perf_counter()
    classifier.fit(X, y)
    fitted = time.perf_counter()
    probabilities = np.asarray(classifier.predict_proba(data["X_test"]))
    end = time.perf_counter()
    save_probabilities(bench.out, (*job, bench.trial), probabilities)
    row = Row(
        *job,
        trial=bench.trial,
        channels=X.shape[1],
        train=len(X),
        test=len(probabilities),
        **measures(probabilities, np.asarray(classifier.classes_), data["y_test"]),
        fit_seconds=round(fitted - start, 3),
        predict_seconds=round(end - fitted, 3),
        steps=getattr(classifier, "n_iter_", 0),
        threads=threads,
        parallel=bench.parallel,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        software=", ".join(f"{name} {version(name)}" for name in ("torch", "aeon")),
        commit=bench.commit,
        command=bench.command,
    )
    return row


class Measures(TypedDict):
    """Measures of probabilities on a test set, fields of `Row`."""

    classes: int
    accuracy: float
    log_loss: float
    ece: float


def measures(probabilities: np.ndarray, classes: np.ndarray, y: np.ndarray) -> Measures:
    """The share of examples whose most probable class is the true one, log loss and expected calibration error.

    The log loss of a probability of 0 is that of the smallest step of float64, as in scikit-learn.
    """
    labels = np.searchsorted(classes, y)
    of_true = np.clip(probabilities[np.arange(len(y)), labels], np.finfo(float).eps, 1)
    return Measures(
        classes=len(classes),
        accuracy=round(float((classes[probabilities.argmax(1)] == y).mean()), 6),
        log_loss=round(float(-np.log(of_true).mean()), 6),
        ece=round(calibration_error(probabilities, labels), 6),
    )


def derive_ensemble(bench: Bench, name: str) -> Row | None:
    """The row of the ensemble of the fits of `ours` on a set at this commit; None if there are too few fits."""
    found = {row.key: row for row in read_rows(bench.table("ours")) if row.commit == bench.commit}
    keys = [(name, "ours", seed, bench.trial) for seed in range(MEMBERS)]
    if not all(key in found and probabilities_file(bench.out, key).is_file() for key in keys):
        return None
    members = [found[key] for key in keys]
    mean = np.mean([np.load(probabilities_file(bench.out, key), allow_pickle=False) for key in keys], axis=0)
    data = bench.load(name)
    return replace(
        members[-1],
        model="ours-ensemble",
        seed=0,
        **measures(mean, np.unique(data["y_train"]), data["y_test"]),
        fit_seconds=round(sum(row.fit_seconds for row in members), 3),
        predict_seconds=round(sum(row.predict_seconds for row in members), 3),
        parallel=max(row.parallel for row in members),
    )


def plan(sets: list[str], models: list[str], seeds: int) -> list[Job]:
    """All fits, set by set, including the members of ensembles."""
    wanted: dict[str, int] = {}
    for model in models:
        count = MEMBERS if model == "ours-ensemble" else seeds if KNOWN[model].random else 1
        made_of = model if KNOWN[model].make else "ours"
        wanted[made_of] = max(wanted.get(made_of, 0), count)
    return [Job(name, model, seed) for name in sets for model, count in wanted.items() for seed in range(count)]


def fit_all(bench: Bench, jobs: list[Job]) -> Iterator[tuple[Job, Row | Exception]]:
    """Yield each job with its row, or with the error that it raised; one after the other or in parallel."""
    if bench.parallel == 1:
        for job in jobs:
            try:
                yield job, run(bench, job)
            except Exception as error:  # an error must not stop hours of other fits
                yield job, error
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}  # for the processes that are started below
    pool = ProcessPoolExecutor(bench.parallel, multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(run, bench, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield futures[future], future.result() if error is None else error
    finally:
        pool.shutdown(cancel_futures=True)


def git_commit() -> str:
    """The newest commit that changed the code of a fit, with a + if files have uncommitted changes."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = ["--", "../src", "../constraints.txt", "signals.py", "signal_models.py", "signal_peers.py"]
        changed = bool(git("status", "--porcelain", "-uno", *code))
        return git("log", "-1", "--format=%h", "--abbrev=10", *code) + "+" * changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def choose(text: str, known: list[str], what: str) -> list[str]:
    """The names in a comma-separated list; all known names for an empty list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"unknown {what} {', '.join(unknown)}: known are {', '.join(known)}")
    return names or known


@app.default
def main(
    *,
    data: Path | None = None,
    seeds: int = 3,
    models: str = "",
    sets: str = "",
    out: Path = Path("docs/signals"),
    ablation: bool = False,
    steps: int = 0,
    parallel: int = 1,
    fresh: bool = False,
    report: bool = False,
) -> None:
    """Train and test every model on every set, then write the report.

    Args:
        data: folder with NAME.npz for each set, and optionally published.csv with published accuracies.
        seeds: number of fits of each model on each set.
        models: comma-separated names; by default all models.
        sets: comma-separated names, also of sets that aeon brings along; by default all sets of the folder.
        out: folder for results.csv, ablation.csv, report.md and accuracy.png.
        ablation: fit the network alone and its variants, with one change each, instead of the models.
        steps: optimizer steps of our networks and the peers, for a trial of the benchmark; its rows are kept apart.
        parallel: number of fits at a time, each in a process with one thread. They slow each other down.
        fresh: repeat the chosen fits that are already in the results.
        report: only write the report.
    """
    if not report:
        if data is None or not any(data.glob("*.npz")):
            raise SystemExit(f"--data {data}: expected a folder with files NAME.npz")
        if min(seeds, parallel) < 1 or steps < 0:
            raise SystemExit(
                f"seeds and parallel must be at least 1 and steps at least 0; got {seeds}, {parallel}, {steps}"
            )
        there = sorted(path.stem for path in data.glob("*.npz"))
        names = choose(sets, [*there, *BUNDLED], "set") if sets else there
        table = ["hybrid", *ABLATIONS] if ablation else list(MODELS)
        chosen = choose(models, table, "model")
        settings = {"seeds": seeds, "models": models, "sets": sets, "steps": steps, "parallel": parallel}
        usual = {"models": "", "sets": "", "steps": 0, "parallel": 1}
        words = [f"--{name} {value}" for name, value in settings.items() if value != usual.get(name)]
        command = " ".join(["python benchmarks/signals.py --data FOLDER", *words, *["--ablation"] * ablation])
        threads = torch.get_num_threads() if parallel == 1 else 1
        bench = Bench(data, out, steps, parallel, threads, git_commit(), command)
        failed = work(bench, plan(names, chosen, seeds), fresh)
        if failed:
            print(f"{len(failed)} fits failed and are not in the report:", *failed, sep="\n  ", file=sys.stderr)
    abouts = [{name: model.about for name, model in part.items()} for part in (MODELS, ABLATIONS)]
    print(f"written: {write_report(out, *abouts, trial=steps)}")
    if not report and failed:
        raise SystemExit(1)


def made_of(job: Job) -> list[tuple[str, str, int]]:
    """Set, model and seed of all rows that depend on a fit."""
    name, model, seed = job
    return [(name, model, seed)] + [(name, "ours-ensemble", 0)] * (model == "ours")


def work(bench: Bench, jobs: list[Job], fresh: bool) -> list[str]:
    """Run the jobs that are not in the results, derive the ensembles of `ours`, and return the failures."""
    ensembles = dict.fromkeys(job.set for job in jobs if job.model == "ours")
    bench.out.mkdir(parents=True, exist_ok=True)
    if (bench.data / PUBLISHED).is_file():
        shutil.copyfile(bench.data / PUBLISHED, bench.out / PUBLISHED)
    done: set[tuple[str, str, int, int]] = set()
    for path in (bench.out / RESULTS, bench.out / ABLATION):
        rows, again = read_rows(path), {name for job in jobs for name in made_of(job)}
        # rows of another commit are results of another model
        old = [r for r in rows if (r.set, r.model, r.seed) in again and (fresh or r.commit != bench.commit)]
        write_rows(path, rows := [row for row in rows if row not in old])
        done |= {row.key for row in rows}
    jobs = [job for job in jobs if (*job, bench.trial) not in done]
    print(f"{len(jobs)} fits, {bench.parallel} at a time", flush=True)
    failed = []
    for number, (job, row) in enumerate(fit_all(bench, jobs), 1):
        start = f"{number}/{len(jobs)}  {job.set:<22} {job.model:<18} seed {job.seed}"
        if isinstance(row, Exception):
            failed.append(f"{job.set} {job.model} seed {job.seed}: {type(row).__name__}: {row}")
            print(f"{start}  failed: {row}", flush=True)
            continue
        add_row(bench.table(job.model), row)
        times = f"trained in {row.fit_seconds:.1f} s, predicted in {row.predict_seconds:.1f} s"
        print(f"{start}  {row.accuracy:.4f}  {times}", flush=True)
    for name in ensembles:
        if (made := derive_ensemble(bench, name)) is not None:
            add_row(bench.table(made.model), made)
            print(f"{name:<22} {made.model}  {made.accuracy:.4f}  from {MEMBERS} fits", flush=True)
    return failed


if __name__ == "__main__":
    app()
