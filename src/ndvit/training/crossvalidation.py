"""Cross-validation: every example is answered by models that were trained without it and without its group.

`ndvit crossvalidate` and `ndvit.cross_validate` are the same function. Each fold is a run with a folder of its own, so
that an interrupted cross-validation continues with the fold that it was in.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ndvit import __version__
from ndvit.config.bounds import checked, counted
from ndvit.config.options import split_options
from ndvit.config.reading import take_reading_options
from ndvit.config.validation import Folds, Repeats
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.messages import Ungrouped, ungrouped, warn_of_doubts
from ndvit.data.sources.load import load_source
from ndvit.data.splits import folds as divide
from ndvit.data.windows import cut_outliers
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.cards import cards_of
from ndvit.evaluation.folds import FoldScores
from ndvit.evaluation.report import Report, write_report
from ndvit.evaluation.stored import STORED_FILE, store_report
from ndvit.files import csv_text, make_folder, replace_file, sole_process
from ndvit.inference.answers import answer_rows
from ndvit.inference.batches import predict_answers
from ndvit.inference.recordings import WholeRecordings, evaluate_answers
from ndvit.model import Model, load_model
from ndvit.training.fit import fit
from ndvit.training.isolation import isolated
from ndvit.training.plan import Plan, Request, plan
from ndvit.training.results import PREDICTIONS_FILE, REPORT_FILE, RESULTS_FILE
from ndvit.training.run import (
    begin_folder,
    new_folder,
    resume,
    start_run,
)
from ndvit.training.settings import CONFIG_FILE, HEAD, read_config, request_of, settings_of
from ndvit.weights.file import MODEL_FILE

FOLDS_FOLDER = "folds"
_OWN = ("folds", "repeats", "refit")
"""Settings in config.yaml beside those of a run."""
_SECONDS_BETWEEN = 1.0  # of folds that are so short that no estimate of the rest is printed


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """A finished or interrupted cross-validation.

    Attributes:
        folder: its folder with report.html, results.json, predictions.csv (out-of-fold answers), config.yaml and one
            run folder a fold in folds/; with `refit` also model.safetensors.
        scores: metrics of each fold, their means and intervals.
        evaluation: out-of-fold answers of all examples; with repeats, the mean of their answers. None if interrupted.
        model: the model that was trained on all examples; None without `refit`.
    """

    folder: Path
    scores: FoldScores
    evaluation: Evaluation | None
    model: Model | None = None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it; `resume_cross_validation(folder)` continues it."""
        return self.evaluation is None

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / REPORT_FILE


@dataclass(frozen=True)
class _Task:
    """What is to be done in one folder."""

    request: Request
    folds: int
    repeats: int
    refit: bool
    folder: Path
    log: Callable[[str], Any]


def cross_validate(
    source: Any,
    *,
    folds: int = 5,
    repeats: int = 1,
    refit: bool = False,
    output: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    log: Callable[[str], Any] = print,
    **arguments: Any,
) -> CrossValidation:
    """Train and test on the folds of a source, and write a report.

    The folds are stratified as far as groups allow; examples of one group (`group_by`), and exact copies, are in one
    fold. Within each fold, the validation set of its training is made of the other folds, by groups too. A test set
    of the source is left out of all of this.

    Args:
        source: as in `train`.
        folds: number of folds.
        repeats: how many times everything is divided again, with the seeds seed, seed + 1, ...
        refit: train a model on all examples in the end, whose file keeps the out-of-fold results.
        output: the folder; None creates a new one under `runs/`.
        force: replace an existing run folder.
        progress: show progress bars.
        log: receives each line about the progress.
        **arguments: as in `train`.

    Raises:
        ValueError, FileExistsError: as in `train`, and for more folds than examples or groups.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> result = ndvit.cross_validate((X, y), folds=2, preset="fast", output="runs/folds", progress=False, log=str)
        >>> len(result.evaluation)  # every example was answered by a model that was trained without it
        40
    """
    checked("folds", Folds, folds)
    checked("repeats", Repeats, repeats)
    if idle := [name for name in ("test_fraction", "split_file", "write_split") if name in arguments]:
        raise ValueError(f"{idle[0]} does nothing in a cross-validation, in which every fold is tested: leave it out")
    own = {name: arguments.pop(name) for name in Request.__dataclass_fields__ if name in arguments}
    reading, options = take_reading_options(arguments)
    if more := [name for name in ("devices", "nodes", "strategy") if options.get(name) not in (None, 1)]:
        raise ValueError(f"{more[0]}: a cross-validation trains its folds on one device: leave {more[0]} out")
    request = Request(source=source, reading=reading, options=options, progress=progress, **own)
    if not request.learns_from_targets:
        raise ValueError(f"{request.task} learns without targets, and there is nothing to cross-validate")
    folder = new_folder(request, output, force, ending="-folds")
    data, request = _load(request)
    divided = [_divide(data, request, folds, repeat) for repeat in range(repeats)]
    settings = {**settings_of(request), **request.options, "folds": folds, "repeats": repeats, "refit": refit}
    del settings["test_fraction"]
    make_folder(folder)
    with sole_process(folder):
        begin_folder(folder, _config_text(settings), force)
        for note in data.decisions:
            log(note)
        return _run(_Task(request, folds, repeats, refit, folder, log), data, divided)


def resume_cross_validation(
    folder: str | Path, *, source: Any = None, progress: bool = True, log: Callable[[str], Any] = print
) -> CrossValidation:
    """Continue an interrupted cross-validation.

    Args:
        folder: its folder.
        source: the same arrays again, if it was of arrays.
        progress: show progress bars.
        log: receives each line about the progress.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if it is finished, or its data or settings have changed.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no cross-validation to resume: it has no {CONFIG_FILE}")
    with sole_process(folder):
        if (folder / RESULTS_FILE).is_file():
            raise ValueError(f"{folder} is finished: it has a {RESULTS_FILE}. Start again with another output folder")
        settings = read_config(folder / CONFIG_FILE)
        if missing := [name for name in _OWN if name not in settings]:
            raise ValueError(
                f"{folder} is no cross-validation, its {CONFIG_FILE} has no {missing[0]}: use train --resume"
            )
        folds, repeats = checked("folds", Folds, settings["folds"]), checked("repeats", Repeats, settings["repeats"])
        rest = {name: value for name, value in settings.items() if name not in _OWN}
        request = request_of(
            {"test_fraction": 0.2, "model": None, **rest}, folder / CONFIG_FILE, source, None, progress
        )
        data, request = _load(request)
        divided = [_divide(data, request, folds, repeat) for repeat in range(repeats)]
        return _run(_Task(request, folds, repeats, settings["refit"] is True, folder, log), data, divided)


def _load(request: Request) -> tuple[Source, Request]:
    """The examples to divide, all in the training set, and the test set of the source, if it has one.

    The request has the window that a few long recordings made necessary, see `cut_outliers`.
    """
    if isinstance(request.source, Source):
        return request.source, request
    recipe, overrides, _ = split_options(request.options)
    undivided = replace(request.reading, test_fraction=0).to_dict()
    data = load_source(request.source, task=request.task, seed=recipe.seed, progress=request.progress, **undivided)
    # The folds are drawn at random, as a test set is, so that groups which are not read matter as much.
    notes = tuple(ungrouped(note) if isinstance(note, Ungrouped) else note for note in data.notes)
    warn_of_doubts(note for note, before in zip(notes, data.notes) if note is not before)
    data, reading = replace(data, notes=notes), request.reading
    if "input_size" not in overrides:
        data, reading = cut_outliers(data, request.reading)
    return data, replace(request, reading=reading)


def _divide(data: Source, request: Request, count: int, repeat: int) -> list[np.ndarray]:
    seed = split_options(request.options)[0].seed + repeat
    return divide(data.train, data.task, count, seed, data.name)


def _config_text(settings: dict[str, Any]) -> str:
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
    command = f"ndvit crossvalidate --config {CONFIG_FILE} --output NEW_FOLDER"
    return f"{HEAD}{__version__}. Rerun: {command}\n{yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)}"


def _run(task: _Task, data: Source, divided: list[list[np.ndarray]]) -> CrossValidation:
    """Train and test every fold, then all together; write the results."""
    started = time.perf_counter()
    train, log = data.train, task.log
    assert train.targets is not None
    answers = [np.empty(0)] * task.repeats
    windows = train.places
    scores = FoldScores(len(train) if windows is None else len({window.recording for window in windows}))
    done = 0
    for repeat, places in enumerate(divided):
        for number, held in enumerate(places):
            found = _fold(task, data, held, repeat, number)
            if found is None:
                log(f"stopped; continue with: ndvit crossvalidate --resume {shlex.quote(str(task.folder))}")
                return CrossValidation(task.folder, scores, None)
            evaluation, rows = found
            if not answers[repeat].size:
                answers[repeat] = np.zeros((len(train), rows.shape[1]), dtype=rows.dtype)
            answers[repeat][held] = rows
            scores.add(repeat, number, evaluation)
            done += 1
            passed = time.perf_counter() - started
            total = task.repeats * task.folds
            left = f"; about {_duration(passed / done * (total - done))} left" * (passed / done > _SECONDS_BETWEEN)
            name = f"fold {number + 1} of {task.folds}"
            name = name if task.repeats == 1 else f"repeat {repeat + 1} of {task.repeats}, {name}"
            log(f"{name}: {evaluation.headline(train.targets)}{left if done < total else ''}")
        meaning = data.task.out_of_fold(answers[repeat], train.targets, _folds_of(places))
        if meaning is not data.task:  # the decisions that suit the other folds, which the folds' own models lack
            scores.drop(repeat)
            for number, held in enumerate(places):
                part = evaluate_answers(meaning.of_rows(held), [answers[repeat][held]], [train.subset(held)])
                scores.add(repeat, number, part)
    together = np.mean(answers, axis=0)
    meaning = data.task.out_of_fold(together, train.targets, _folds_of(divided[0]))
    evaluation = evaluate_answers(meaning, [together], [train])
    scores.whole = evaluation
    for line in scores.lines():
        log(line)
    model = _refitted(task, data, scores, together) if task.refit else None
    if task.refit and model is None:
        return CrossValidation(task.folder, scores, None)
    _write(task, replace(data, task=meaning), scores, together, divided, time.perf_counter() - started)
    if model is not None:
        model.save(task.folder / MODEL_FILE)
        log(f"model trained on all examples: {task.folder / MODEL_FILE}")
    log(f"report: {task.folder / REPORT_FILE}")
    return CrossValidation(task.folder, scores, evaluation, model)


def _fold(
    task: _Task, data: Source, held: np.ndarray, repeat: int, number: int
) -> tuple[Evaluation, np.ndarray] | None:
    """Results and answers for the examples of a fold; None if its training was interrupted."""
    kept = np.setdiff1d(np.arange(len(data.train)), held)
    of_fold = replace(data, train=data.train.subset(kept), test=data.train.subset(held), val=None, notes=())
    folder = task.folder / FOLDS_FOLDER / (f"{number}" if task.repeats == 1 else f"{repeat}-{number}")
    recipe = split_options(task.request.options)[0]
    options = {**task.request.options, "seed": recipe.seed + repeat, "devices": 1}
    request = replace(task.request, source=of_fold, options=options)
    quiet: dict[str, Any] = {"log": _ignore}
    if not (folder / MODEL_FILE).is_file():
        if (folder / CONFIG_FILE).is_file():
            run = resume(folder, source=of_fold, progress=request.progress, devices=1, **quiet)
        else:
            run = start_run(request, folder, False, _ignore)
        if run.interrupted:
            return None
    model = load_model(folder)
    assert model.preprocess is not None
    assert of_fold.test.targets is not None
    inputs = Inputs(of_fold.test, model.preprocess)
    answers = predict_answers(model, inputs, recipe.batch_size, recipe.device, request.progress, log=_ignore)
    return evaluate_answers(model.task or data.task, [answers], [of_fold.test]), answers


def _folds_of(places: list[np.ndarray]) -> np.ndarray:
    """The number of the fold of each example."""
    found = np.zeros(sum(map(len, places)), dtype=np.int64)
    for number, held in enumerate(places):
        found[held] = number
    return found


def _refitted(task: _Task, data: Source, scores: FoldScores, answers: np.ndarray) -> Model | None:
    """A model trained on all examples, with the out-of-fold results in its provenance; None if interrupted.

    It decides by what suits the out-of-fold `answers`, such as thresholds: these are of all examples.
    """
    task.log("training on all examples")
    planned = plan(replace(task.request, source=replace(data, notes=())))
    folder = task.folder / FOLDS_FOLDER / "all"
    trained = fit(
        planned, folder, resume=(folder / "checkpoints").is_dir(), progress=task.request.progress, log=_ignore
    )
    if trained.interrupted:
        task.log(f"stopped; continue with: ndvit crossvalidate --resume {shlex.quote(str(task.folder))}")
        return None
    model = trained.model.to("cpu")
    assert data.train.targets is not None
    decided = data.task.decided_by(answers, data.train.targets)
    model.task = model.task if decided is data.task else decided
    settings = settings_of(task.request)
    model.provenance |= {"source": settings["source"], "reading": task.request.reading.set_options()}
    model.provenance["cross_validation"] = {"folds": task.folds, "repeats": task.repeats, **scores.means()}
    if len(data.test):
        task.log(f"test set of the source: {_test(planned, model, data).headline(data.train.targets)}")
    return model


def _test(planned: Plan, model: Model, data: Source) -> Evaluation:
    recipe = planned.recipe
    inputs = Inputs(data.test, planned.preprocess)
    answers = predict_answers(model, inputs, recipe.batch_size, recipe.device, False, log=_ignore)
    return evaluate_answers(model.task or data.task, [answers], [data.test])


@isolated()  # matplotlib, which draws the report, is not made for several threads
def _write(
    task: _Task,
    data: Source,
    scores: FoldScores,
    answers: np.ndarray,
    divided: list[list[np.ndarray]],
    seconds: float,
) -> None:
    """Write predictions, report and results; results.json comes last, because with it all is finished."""
    folder, train = task.folder, data.train
    assert scores.whole is not None
    first = load_model(folder / FOLDS_FOLDER / ("0" if task.repeats == 1 else "0-0"))
    assert first.preprocess is not None
    rows = answer_rows(data.task, answers, train)
    fold_of = _folds_of(divided[0])
    rows = [[*row, "fold" if i == 0 else int(fold_of[i - 1])] for i, row in enumerate(rows)]
    replace_file(folder / PREDICTIONS_FILE, csv_text(rows))
    groups = "" if train.groups is None else f", {counted(len(set(train.groups)), 'group')}"
    summary = {
        "model": str(first.provenance["model"]),
        "examples": f"{len(train):,}{groups}, each answered by a model that was trained without it",
        "folds": f"{task.folds}" + f", repeated {task.repeats} times" * (task.repeats > 1),
        **scores.summary(),
        "time": f"{_duration(seconds)} in all",
        "versions": f"ndvit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    if len(data.test):
        summary["test set"] = f"{counted(len(data.test), 'example')} of the source, not used"
    config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    written = settings_of(task.request)["source"]
    command = f"ndvit crossvalidate --config {shlex.quote(str(folder / CONFIG_FILE))} --output NEW_FOLDER"
    view = first.preprocess.view if train.places is None else None
    page = Report(
        title=f"{data.name} · {first.provenance['model']}",
        summary=summary,
        notes=data.notes,
        history=None,
        evaluation=scores.whole,
        cards=cards_of(scores.whole, train if view is not None else WholeRecordings(train), view, data.channels),
        viewed=view is not None,
        config=config,
        command=command if written else "# in Python, on the same arrays: cross_validate(arrays, ...)",
        on="out-of-fold",
        tables=(scores.table(),),
    )
    write_report(page, folder / REPORT_FILE, task.request.language)
    store_report(page, folder / STORED_FILE)
    replace_file(folder / RESULTS_FILE, json.dumps(scores.to_dict(), indent=1, ensure_ascii=False))


def _duration(seconds: float) -> str:
    """Seconds as text, in the unit that suits."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _ignore(line: str) -> None:
    """Discard a line."""
