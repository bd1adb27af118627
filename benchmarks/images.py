"""Compare classifiers of images with the same trained weights, images, split, steps and batch size.

`python benchmarks/images.py --data FOLDER --weights FILE` trains on a folder of classes with ndvit, timm and
transformers. Each fit runs in its own process. The script writes one row per fit, and then a report with a table and a
figure. An interrupted benchmark continues where it stopped.
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

from ndvit import load_model
from ndvit.config.options import split_options
from ndvit.data.examples import Source
from ndvit.data.sources.load import load_source
from ndvit.inference.batches import pick_device
from ndvit.training.plan import hold_out_validation
from ndvit.training.presets import choose
from ndvit.weights.convert import export_state_dict
from ndvit.weights.opening import open_weights

app = App(help=__doc__)
FIT = Path(__file__).resolve().parent / "image_fits.py"
CODE = (
    "images.py",
    "image_models.py",
    "image_fits.py",
    "image_peers.py",
    "image_work.py",
)  # the code of a fit, beside the library
BUILT_IN = "digits"  # images of 8 x 8 pixels, for models without trained weights


class Job(NamedTuple):
    """One fit."""

    set: str
    model: str
    seed: int


class Plan(NamedTuple):
    """Steps, batch size and input size that `ours` chooses; the other libraries use the same."""

    steps: int
    batch: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Bench:
    """Settings that all fits of a call share.

    Attributes:
        data: folder of classes.
        weights: file of trained weights, or None.
        folders: for each other library, a folder with these weights in its format.
        options: options of `ndvit.train` for every fit of ndvit.
        setting, threads, device, commit, command: see `Row`.
        workers: worker processes that read the images of the folder; the built-in images are in memory.
    """

    data: Path
    weights: Path | None
    folders: dict[str, Path]
    options: dict[str, Any]
    setting: str
    threads: int
    workers: int
    device: str
    commit: str
    command: str

    @property
    def name(self) -> str:
        """The name of the folder as a data set."""
        return self.data.resolve().name

    def load(self, name: str, seed: int) -> Source:
        """Load a set with the split of `ndvit.train`."""
        source = str(self.data) if name == self.name else name
        data = load_source(source, test_fraction=0.2, seed=seed, progress=False)
        if data.kind != "image" or (name == self.name and data.train.in_memory):
            raise SystemExit(f"--data {self.data}: expected a folder of images with one folder per class")
        return data

    def plan(self, data: Source) -> Plan:
        """Steps, batch size and input size of `ours` for this data."""
        assert self.weights is not None
        config = open_weights(self.weights, {}).config
        choice = choose("auto", data, None, self.options, config)
        recipe, overrides, _ = split_options(choice.options)
        height, width = overrides.get("input_size", config.input_size)
        train = hold_out_validation(data, recipe).train
        return Plan(recipe.total_steps(len(train)), recipe.batch_size * recipe.accumulate, (height, width))


def work_of(bench: Bench, job: Job, data: Source) -> Work:
    """The arguments for the process of a job."""
    model = MODELS[job.model]
    ours = model.library == "ndvit"
    plan = Plan(0, 0, (0, 0)) if ours else bench.plan(data)
    size: tuple[int, ...] = plan.size
    if not ours and not model.small and "input_size" not in bench.options:
        assert bench.weights is not None
        size = open_weights(bench.weights, {}).config.input_size
    weights = bench.weights if ours else bench.folders[model.library]
    without = {"input_size"} if job.set != bench.name else set()
    without |= {"epochs", "steps"} if model.options.get("preset") == "linear_probe" else set()  # it has no steps
    chosen = {key: value for key, value in bench.options.items() if key not in without}
    return Work(
        library=model.library,
        source=str(bench.data) if job.set == bench.name else job.set,
        weights=str(weights) if model.trained else None,
        options={**model.options, **(chosen if ours else {})},
        seed=job.seed,
        size=size,
        steps=plan.steps,
        batch=plan.batch,
        workers=bench.workers if job.set == bench.name else 0,
        device=bench.device,
        threads=bench.threads,
        classes=data.task.num_outputs,
        train=[] if ours else files(data, "train"),
        test=[] if ours else files(data, "test"),
    )


def files(data: Source, part: str) -> list[tuple[str, int]]:
    """Paths and class indices of the images of a split."""
    examples = getattr(data, part)
    return [(str(item), int(label)) for item, label in zip(examples.items, examples.targets, strict=True)]


def in_process(work: Work) -> Fitted:
    """Run a fit in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        work.write(job)
        done = subprocess.run([sys.executable, str(FIT), str(job), str(result)], capture_output=True, text=True)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise RuntimeError("".join(last) or f"the process ended with status {done.returncode}")
        return Fitted.read(result)


def run(bench: Bench, job: Job, data: Source, fit: Callable[[Work], Fitted] | None = None) -> Row:
    """Fit one model on a set and return its row."""
    work = work_of(bench, job, data)
    start = time.perf_counter()
    fitted = (fit or in_process)(work)
    seconds = time.perf_counter() - start
    assert data.test.targets is not None
    names = list(data.test.names)
    if fitted.names and fitted.names != names:  # otherwise the models would be compared on different images
        raise RuntimeError(f"{job.model} was tested on images that are not in its test split: {fitted.names[:3]} ...")
    evaluation: Any = data.task.evaluate(np.array(fitted.probabilities, np.float32), data.test.targets, names)
    library = MODELS[job.model].library
    return Row(
        *job,
        bench.setting,
        pixels="x".join(map(str, fitted.size)),
        train=len(data.train),
        test=len(data.test),
        accuracy=round(evaluation.accuracy, 6),
        log_loss=round(evaluation.log_loss, 6),
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
    """All fits, seed by seed; the built-in set is for models without trained weights."""
    for seed in range(seeds):
        for name in (bench.name, BUILT_IN):
            for model in models:
                if name == bench.name or not MODELS[model].trained:
                    yield Job(name, model, seed)


def run_all(bench: Bench, jobs: list[Job], path: Path, fresh: bool) -> list[str]:
    """Run the jobs that are not in the results, and return the failures."""
    rows, wanted = read_rows(path, Row), {(*job, bench.setting) for job in jobs}
    # rows of another commit are results of another model
    old = {row.key for row in rows if row.key in wanted and (fresh or row.commit != bench.commit)}
    rows = [row for row in rows if row.key not in old]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows, Row)
    done = {row.key for row in rows}
    jobs = [job for job in jobs if (*job, bench.setting) not in done]
    print(f"{len(jobs)} fits", flush=True)
    failed: list[str] = []
    data: tuple[tuple[str, int], Source] | None = None
    for number, job in enumerate(jobs, 1):
        start = f"{number}/{len(jobs)}  {job.set:<14} {job.model:<20} seed {job.seed}"
        try:
            if data is None or data[0] != (job.set, job.seed):
                data = (job.set, job.seed), bench.load(job.set, job.seed)
            row = run(bench, job, data[1])
        except Exception as error:  # an error must not stop hours of other fits
            failed.append(f"{job.set} {job.model} seed {job.seed}: {type(error).__name__}: {error}")
            print(f"{start}  failed: {error}", flush=True)
            continue
        add_row(path, row)
        times = f"trained in {row.train_seconds:.1f} s, {row.total_seconds:.1f} s in total, {row.megabytes:,} MB"
        print(f"{start}  {row.accuracy:.4f}  {times}", flush=True)
    return failed


def choose_models(text: str, weights: Path | None, sized: bool) -> list[str]:
    """The models of a comma-separated list, or all models; with a fixed input size, each model is included once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in MODELS]:
        raise SystemExit(f"unknown model {', '.join(unknown)}: known are {', '.join(MODELS)}")
    without = [name for name, model in MODELS.items() if not model.trained]
    if weights is None and (lacking := [name for name in names if name not in without]):
        raise SystemExit(f"{', '.join(lacking)} needs trained weights: add --weights FILE")
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
    """Train and test every model on the folder, and models without weights on the built-in digits; write the report.

    Args:
        data: folder of images with one folder per class.
        weights: file of trained weights from which all models except `small-data` start.
        size: height and width of the input of all models. By default ndvit chooses its own, and the other libraries
            are run with the size of the weights and with that of ndvit.
        epochs: passes over the training images, for all models; by default the number of steps that ndvit chooses.
        models: comma-separated names; by default all models.
        seeds: number of fits of each model, each on its own split.
        out: folder for results.csv, report.md and accuracy.png.
        steps: optimizer steps of all models, for a trial of the benchmark; its rows are kept apart.
        workers: worker processes that read images, for all models; by default the number of cores minus one, at most 4.
        device: cpu, cuda, mps, or auto for the best available device.
        fresh: repeat the chosen fits that are already in the results.
        report: only write the report.
    """
    limits = {"size": size, "epochs": epochs, "steps": steps}
    setting = ", ".join(f"{name} {value}" for name, value in limits.items() if value)
    failed: list[str] = []
    if not report:
        if data is None or not data.is_dir():
            raise SystemExit(f"--data {data}: no such folder")
        if weights is not None and not weights.exists():
            raise SystemExit(f"--weights {weights}: no such file")
        if min(seeds, size or 1, 1 if epochs is None else epochs) < 1 or steps < 0 or (steps and epochs):
            raise SystemExit(
                "seeds, size and epochs must be at least 1 and steps at least 0, not both epochs and steps; got "
                f"{seeds}, {size}, {epochs}, {steps}"
            )
        chosen = choose_models(models, weights, sized=size is not None)
        options: dict[str, Any] = {} if size is None else {"input_size": (size, size)}
        options |= {"epochs": epochs} if epochs else {"steps": steps} if steps else {}
        settings = {"models": models, "seeds": seeds, **limits, "workers": workers, "device": device}
        usual = {"device": "auto", "steps": 0}
        words = [f"--{name} {value}" for name, value in settings.items() if value not in (None, "", usual.get(name))]
        start = "python benchmarks/images.py --data FOLDER" + (" --weights FILE" if weights else "")
        usual_workers = min(4, max(1, (os.cpu_count() or 2) - 1))  # the default of ndvit for more than a few files
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(
                data=data,
                weights=weights,
                folders=export(weights, chosen, Path(folder)),
                options=options,
                setting=setting,
                threads=torch.get_num_threads(),
                workers=usual_workers if workers is None else workers,
                device=pick_device(device),
                commit=git_commit(CODE),
                command=" ".join([start, *words]),
            )
            failed = run_all(bench, list(jobs_of(bench, chosen, seeds)), out / RESULTS, fresh)
        if failed:
            print(f"{len(failed)} fits failed and are not in the report:", *failed, sep="\n  ", file=sys.stderr)
    print(f"written: {write_report(out, {name: model.about for name, model in MODELS.items()}, setting=setting)}")
    if failed:
        raise SystemExit(1)


def export(weights: Path | None, models: list[str], folder: Path) -> dict[str, Path]:
    """Write the weights for each other library that the models need; return the folders."""
    libraries = {MODELS[name].library for name in models} - {"ndvit"}
    if not libraries:
        return {}
    assert weights is not None
    model = load_model(weights)
    for library in libraries:
        export_state_dict(model, library, folder / library)  # type: ignore[arg-type]
    return {library: folder / library for library in libraries}


if __name__ == "__main__":
    app()
