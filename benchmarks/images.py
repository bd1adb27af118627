"""Classifiers of pictures side by side: the same trained weights, pictures, split, steps and batches.

`python benchmarks/images.py --data FOLDER --weights FILE` trains on a folder of classes with ndvit, timm and
transformers, each fit in a process of its own, and writes a row a fit, then a report: a table and a picture. A bench
that was interrupted goes on where it stopped.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cyclopts import App
from image_models import MODELS
from image_report import write_report
from image_results import RESULTS, Row, add_row, git_commit, read_rows, write_rows
from image_work import Fitted, Work

from ndvit.data.examples import Source
from ndvit.data.sources.load import load_source
from ndvit.evaluation.metrics import Evaluation
from ndvit.inference.batches import pick_device
from ndvit.training.plan import split_options, with_validation
from ndvit.training.presets import choose
from ndvit.weights.convert import export_state_dict
from ndvit.weights.loading import load_model
from ndvit.weights.opening import open_weights

app = App(help=__doc__)
FIT = Path(__file__).resolve().parent / "image_fits.py"
CODE = (
    "images.py",
    "image_models.py",
    "image_fits.py",
    "image_peers.py",
    "image_work.py",
)  # what a fit depends on, with the library
BUILT_IN = "digits"  # pictures of 8 x 8 pixels, for what needs no trained weights


class Job(NamedTuple):
    """One fit to do."""

    set: str
    model: str
    seed: int


class Plan(NamedTuple):
    """What `ours` does by default with these pictures and weights, which the others are given."""

    steps: int
    batch: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Bench:
    """What all fits of a call have in common.

    Attributes:
        data: a folder of classes.
        weights: a file of trained weights, or None.
        folders: of each other library, a folder with those weights.
        given: options of `ndvit.train` for every fit of ours.
        setting, threads, device, commit, command: see `Row`.
        workers: processes that read the pictures of the folder; the built-in ones are in memory.
    """

    data: Path
    weights: Path | None
    folders: dict[str, Path]
    given: dict[str, Any]
    setting: str
    threads: int
    workers: int
    device: str
    commit: str
    command: str

    @property
    def name(self) -> str:
        """Of the folder, as a set."""
        return self.data.resolve().name

    def load(self, name: str, seed: int) -> Source:
        """A set as `ndvit.train` splits it."""
        source = str(self.data) if name == self.name else name
        data = load_source(source, test_fraction=0.2, seed=seed, progress=False)
        if data.kind != "image" or (name == self.name and data.train.in_memory):
            raise SystemExit(f"--data {self.data}: this holds no pictures in a folder for each class")
        return data

    def plan(self, data: Source) -> Plan:
        """What `ours` would do."""
        assert self.weights is not None
        config = open_weights(self.weights, {}).config
        choice = choose("auto", data, None, self.given, config)
        recipe, overrides = split_options(choice.options)
        height, width = overrides.get("input_size", config.input_size)
        train = with_validation(data, recipe).train
        return Plan(recipe.total_steps(len(train)), recipe.batch_size * recipe.accumulate, (height, width))


def work_of(bench: Bench, job: Job, data: Source) -> Work:
    """What a job's process is told."""
    model = MODELS[job.model]
    ours = model.library == "ndvit"
    plan = Plan(0, 0, (0, 0)) if ours else bench.plan(data)
    size: tuple[int, ...] = plan.size
    if not ours and not model.small and "input_size" not in bench.given:
        assert bench.weights is not None
        size = open_weights(bench.weights, {}).config.input_size
    weights = bench.weights if ours else bench.folders[model.library]
    without = {"input_size"} if job.set != bench.name else set()
    without |= {"epochs", "steps"} if model.options.get("preset") == "linear_probe" else set()  # which takes none
    given = {key: value for key, value in bench.given.items() if key not in without}
    return Work(
        library=model.library,
        source=str(bench.data) if job.set == bench.name else job.set,
        weights=str(weights) if model.trained else None,
        options={**model.options, **(given if ours else {})},
        seed=job.seed,
        size=size,
        steps=plan.steps,
        batch=plan.batch,
        workers=bench.workers if job.set == bench.name else 0,
        device=bench.device,
        threads=bench.threads,
        classes=len(data.classes),
        train=[] if ours else files(data, "train"),
        test=[] if ours else files(data, "test"),
    )


def files(data: Source, part: str) -> list[tuple[str, int]]:
    """Paths and classes of the pictures of a part."""
    examples = getattr(data, part)
    return [(str(item), int(label)) for item, label in zip(examples.items, examples.labels, strict=True)]


def in_process(work: Work) -> Fitted:
    """Do it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        work.write(job)
        done = subprocess.run([sys.executable, str(FIT), str(job), str(result)], capture_output=True, text=True)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise RuntimeError("".join(last) or f"its process ended with status {done.returncode}")
        return Fitted.read(result)


def run(bench: Bench, job: Job, data: Source, fit: Callable[[Work], Fitted] | None = None) -> Row:
    """Fit one model on a set, and say what came out."""
    work = work_of(bench, job, data)
    start = time.perf_counter()
    fitted = (fit or in_process)(work)
    seconds = time.perf_counter() - start
    assert data.test.labels is not None
    names = list(data.test.names)
    if fitted.names and fitted.names != names:  # they would be compared on other pictures
        raise RuntimeError(f"{job.model} was tested on other pictures than its split has: {fitted.names[:3]} ...")
    told = Evaluation(data.classes, data.test.labels, np.array(fitted.probabilities, np.float32), tuple(names))
    library = MODELS[job.model].library
    return Row(
        *job,
        bench.setting,
        pixels="x".join(map(str, fitted.size)),
        train=len(data.train),
        test=len(data.test),
        accuracy=round(told.accuracy, 6),
        log_loss=round(told.log_loss, 6),
        train_seconds=round(fitted.train_seconds, 3),
        total_seconds=round(seconds, 3),
        megabytes=fitted.megabytes,
        steps=fitted.steps,
        batch=fitted.batch,
        threads=bench.threads,
        workers=work.workers,
        device=bench.device,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        software=", ".join(f"{name} {version(name)}" for name in dict.fromkeys(("torch", library))),
        commit=bench.commit,
        command=bench.command,
    )


def jobs_of(bench: Bench, models: list[str], seeds: int) -> Iterator[Job]:
    """All fits, seed by seed; the built-in set is for what needs no trained weights."""
    for seed in range(seeds):
        for name in (bench.name, BUILT_IN):
            for model in models:
                if name == bench.name or not MODELS[model].trained:
                    yield Job(name, model, seed)


def work_off(bench: Bench, jobs: list[Job], path: Path, fresh: bool) -> list[str]:
    """Do the jobs that are not done yet, and tell what failed."""
    rows, wanted = read_rows(path, Row), {(*job, bench.setting) for job in jobs}
    # what another commit made is another model
    old = {row.key for row in rows if row.key in wanted and (fresh or row.commit != bench.commit)}
    rows = [row for row in rows if row.key not in old]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows, Row)
    done = {row.key for row in rows}
    jobs = [job for job in jobs if (*job, bench.setting) not in done]
    print(f"{len(jobs)} fits to do", flush=True)
    failed: list[str] = []
    data: tuple[tuple[str, int], Source] | None = None
    for number, job in enumerate(jobs, 1):
        start = f"{number}/{len(jobs)}  {job.set:<14} {job.model:<20} seed {job.seed}"
        try:
            if data is None or data[0] != (job.set, job.seed):
                data = (job.set, job.seed), bench.load(job.set, job.seed)
            row = run(bench, job, data[1])
        except Exception as error:  # the other fits are hours of work
            failed.append(f"{job.set} {job.model} seed {job.seed}: {type(error).__name__}: {error}")
            print(f"{start}  failed: {error}", flush=True)
            continue
        add_row(path, row)
        times = f"trained in {row.train_seconds:.1f} s, {row.total_seconds:.1f} s in all, {row.megabytes:,} MB"
        print(f"{start}  {row.accuracy:.4f}  {times}", flush=True)
    return failed


def choose_models(text: str, weights: Path | None, sized: bool) -> list[str]:
    """The models of a comma-separated list, or all, at a given size each once; those that are trained need weights."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in MODELS]:
        raise SystemExit(f"unknown model {', '.join(unknown)}: there are {', '.join(MODELS)}")
    without = [name for name, model in MODELS.items() if not model.trained]
    if weights is None and (lacking := [name for name in names if name not in without]):
        raise SystemExit(f"{', '.join(lacking)} begins with trained weights: give some with --weights")
    if names or weights is None:
        return names or without
    return [name for name, model in MODELS.items() if not (sized and model.small)]


@app.default
def main(
    *,
    data: Path | None = None,
    weights: Path | None = None,
    size: int | None = None,
    epochs: int | None = None,
    models: str = "",
    seeds: int = 3,
    out: Path = Path("docs/images"),
    steps: int = 0,
    workers: int | None = None,
    device: str = "auto",
    fresh: bool = False,
    report: bool = False,
) -> None:
    """Train and test every model on the folder, what needs no weights on the built-in digits, too; write the report.

    Args:
        data: folder of pictures, a folder in it for each class.
        weights: file of trained weights that all models begin with, `small-data` excepted.
        size: height and width that all models see; by default `ours` decides, and the others are tried at the weights'
            size and at that of `ours`.
        epochs: passes over the training pictures, for all models; by default as many steps as `ours` has by default.
        models: names, with commas between them; all of the table by default.
        seeds: fits of each model, each on a split of its own.
        out: folder for results.csv, report.md and accuracy.png.
        steps: optimiser steps of all models, to try the bench; rows of trials stand apart.
        workers: processes that read pictures, for all models; by default as many as ours has: one less than there are
            cores, 4 at most.
        device: cpu, cuda, mps, or auto for the best there is.
        fresh: do the chosen fits again that were done before.
        report: only write the report anew.
    """
    asked = {"size": size, "epochs": epochs, "steps": steps}
    setting = ", ".join(f"{name} {value}" for name, value in asked.items() if value)
    failed: list[str] = []
    if not report:
        if data is None or not data.is_dir():
            raise SystemExit(f"--data {data}: there is no such folder")
        if weights is not None and not weights.exists():
            raise SystemExit(f"--weights {weights}: there is no such file")
        if min(seeds, size or 1, 1 if epochs is None else epochs) < 1 or steps < 0 or (steps and epochs):
            raise SystemExit(
                "seeds, size and epochs must be at least 1, steps at least 0, and not both epochs and steps be given: "
                f"{seeds}, {size}, {epochs}, {steps}"
            )
        chosen = choose_models(models, weights, sized=size is not None)
        given: dict[str, Any] = {} if size is None else {"input_size": (size, size)}
        given |= {"epochs": epochs} if epochs else {"steps": steps} if steps else {}
        said = {"models": models, "seeds": seeds, **asked, "workers": workers, "device": device}
        usual = {"device": "auto", "steps": 0}
        words = [f"--{name} {value}" for name, value in said.items() if value not in (None, "", usual.get(name))]
        start = "python benchmarks/images.py --data FOLDER" + (" --weights FILE" if weights else "")
        usual_workers = min(4, max(1, (os.cpu_count() or 2) - 1))  # that ours has for more than a few files
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(
                data=data,
                weights=weights,
                folders=export(weights, chosen, Path(folder)),
                given=given,
                setting=setting,
                threads=torch.get_num_threads(),
                workers=usual_workers if workers is None else workers,
                device=pick_device(device),
                commit=git_commit(CODE),
                command=" ".join([start, *words]),
            )
            failed = work_off(bench, list(jobs_of(bench, chosen, seeds)), out / RESULTS, fresh)
        if failed:
            print(f"{len(failed)} fits failed and are not in the report:", *failed, sep="\n  ", file=sys.stderr)
    print(f"written: {write_report(out, {name: model.about for name, model in MODELS.items()}, setting=setting)}")
    if failed:
        raise SystemExit(1)


def export(weights: Path | None, models: list[str], folder: Path) -> dict[str, Path]:
    """The weights as the other libraries take them, a folder each; of those that the models are of."""
    libraries = {MODELS[name].library for name in models} - {"ndvit"}
    if not libraries:
        return {}
    assert weights is not None
    network = load_model(weights)
    for library in libraries:
        export_state_dict(network, library, folder / library)  # type: ignore[arg-type]
    return {library: folder / library for library in libraries}


if __name__ == "__main__":
    app()
