"""The results of a run: the test, the answers, and the files of a finished run with its report."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ndvit import __version__, processes
from ndvit.data.examples import Source
from ndvit.data.loading import Inputs
from ndvit.data.sources.split_files import write_split
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.cards import cards_of
from ndvit.evaluation.pretraining import PretrainingEvaluation
from ndvit.evaluation.report import Report, write_report
from ndvit.evaluation.stored import STORED_FILE, store_report
from ndvit.explain.reasons import reasons_of
from ndvit.files import make_folder, replace_file
from ndvit.inference.batches import predict_answers
from ndvit.inference.recordings import WholeRecordings, evaluate_answers
from ndvit.model import Model
from ndvit.network.committee import first_transformer, transformers
from ndvit.training.fit import Trained
from ndvit.training.isolation import isolated
from ndvit.training.plan import Plan
from ndvit.training.settings import CONFIG_FILE, command_of
from ndvit.weights.file import MODEL_FILE
from ndvit.weights.structure import describe_weights

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"
SPLIT_FILE, PREDICTIONS_FILE = "split.csv", "predictions.csv"
_DRAWN = 8  # examples in the report of a pretraining


def tested(planned: Plan, model: Model, progress: bool, log: Callable[[str], Any]) -> tuple[Evaluation, np.ndarray]:
    """The results of a trained model on the test set, which processes share, and its answers (n, outputs)."""
    data, recipe = planned.data, planned.recipe
    inputs = Inputs(data.test, planned.preprocess)
    answers = predict_answers(model, inputs, recipe.batch_size, recipe.device, progress, log=log, shared=True)
    assert model.task is not None
    return evaluate_answers(model.task, [answers], [data.test]), answers


@isolated()
def pretrained(planned: Plan, trained: Trained) -> PretrainingEvaluation:
    """Loss and probes of a pretraining, and what its objective does to the first training examples."""
    network, objective, preprocess = first_transformer(trained.model.network), trained.fit.objective, planned.preprocess
    assert objective is not None
    torch.manual_seed(planned.recipe.seed)
    train, _ = planned.inputs()
    rows = min(_DRAWN * planned.recipe.repeats, planned.recipe.batch_size)
    stream = train.stream(rows, 1, planned.recipe.seed, 0, 0, planned.recipe.repeats)
    x, mask, _ = next(iter(stream))
    x, mask, _ = planned.augmentation.per_batch(x, mask, x.new_zeros(len(x), 0))
    with torch.no_grad():
        drawn = objective.show(network.cpu().eval(), x, mask)
    shape = (-1, *[1] * len(preprocess.size))
    mean, std = np.reshape(preprocess.mean, shape), np.reshape(preprocess.std, shape)
    return PretrainingEvaluation(
        names=tuple(planned.data.train.names),
        history=trained.fit.history,
        original=drawn.original.numpy() * std + mean,
        made=drawn.made.numpy() * std + mean,
        marked=None if drawn.marked is None else drawn.marked.numpy(),
        about=drawn.about,
    )


@isolated()  # matplotlib, which draws the report, is not made for several threads
def write_results(
    folder: Path,
    evaluation: Evaluation,
    planned: Plan,
    trained: Trained,
    time_in_words: str,
    settings: str,
    language: str,
    progress: bool = False,
) -> None:
    """Write the files of a finished run. The model comes last, because a folder with a model is a finished run.

    Args:
        folder: the run folder.
        evaluation: the results of the test, or of a pretraining.
        planned: what was done.
        trained: the model, on the CPU, and its training.
        time_in_words: seconds of the whole run, for the page.
        settings: content of config.yaml.
        language: the language of the page's words.
        progress: show progress bars while the examples of the page are explained.
    """
    model, fit = trained.model, trained.fit
    data, recipe, config = planned.data, planned.recipe, folder / CONFIG_FILE
    make_folder(folder)
    if not config.is_file():  # somebody has removed it
        replace_file(config, settings)
    last_seed = recipe.seed + planned.members - 1
    written = planned.provenance.get("source") or planned.provenance.get("pretrained_on")
    command = f"ndvit {command_of(planned)} --config {shlex.quote(str(config))} --output NEW_FOLDER"
    facts = planned.facts()
    if data.task.learns_from_targets:
        facts |= {"answer": describe_weights(model.network)}
        if data.task.has_temperature:
            solved = not (transformers(model.network) or trained.calibration.examples)
            by_one = "calibrated by leaving one training example out"
            facts["probabilities"] = by_one if solved else str(trained.calibration)
        facts |= {} if model.task is None else model.task.facts()
    history = fit.history
    if not planned.steps and not transformers(planned.first.network):  # a single row is no curve
        found = [f"{k.removeprefix('train_')} {v:.3g}" for row in history for k, v in row.items() if k != "step"]
        facts["one left out"] = f"{', '.join(found)}, of the first part of the answer"
        history = []
    devices = f"{processes.size()} processes, each with " if processes.size() > 1 else ""
    facts |= {
        "time": f"{fit.seconds:.0f} s of training, {time_in_words}",
        "device": f"{fit.device}, {devices}threads: {torch.get_num_threads()}",
        "versions": f"ndvit {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "seed": f"{recipe.seed}" if last_seed == recipe.seed else f"{recipe.seed} to {last_seed}",
    }
    why = reasons_of(model, evaluation, data.test, planned.preprocess, recipe.batch_size, recipe.device, progress)
    view = planned.preprocess.view if data.test.places is None else None
    examples = data.test if data.test.places is None else WholeRecordings(data.test)
    page = Report(
        title=f"{data.name} · {model.provenance['model']}",
        summary=facts,
        notes=data.notes,
        history=history,
        evaluation=evaluation,
        cards=cards_of(evaluation, examples, view, data.channels),
        viewed=view is not None,
        reasons=why.reasons,
        method=why.method,
        map=why.map,
        config=settings,
        command=command if written else f"# in Python, on the same arrays: {command_of(planned)}(arrays, ...)",
    )
    write_report(page, folder / REPORT_FILE, language)
    store_report(page, folder / STORED_FILE)
    if data.task.learns_from_targets:
        write_split_of(data, folder / SPLIT_FILE)
    replace_file(folder / RESULTS_FILE, json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False))
    model.save(folder / MODEL_FILE)


def write_split_of(data: Source, path: Path) -> None:
    """Write the split of a source, with the validation set that was held out."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    write_split(path, {name: part for name, part in splits.items() if part is not None})
