"""Checking data: what they hold, what may be wrong with them, and which labels may be errors.

`ndvit check` and `ndvit.check` are the same function.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ndvit.checking.contents import Examined, examine, shapes
from ndvit.checking.findings import Finding, of_classes, of_contents, of_near_copies, of_notes
from ndvit.checking.labels import SUSPECTS_FILE, Labelled, Suspect, check_cleanlab, find_suspects, write_suspects
from ndvit.checking.models import FOLDER, Joined, answered_by_run, cross_validated, stored_options
from ndvit.checking.near_copies import MOST_COMPARED, Pair, connected, near_copies
from ndvit.checking.page import Page, write_page
from ndvit.checking.result import FINDINGS_FILE, Check, splits_of
from ndvit.config.reading import ReadingOptions
from ndvit.data.copies import repeated
from ndvit.data.examples import Examples, Source
from ndvit.data.messages import DataWarning, Doubt, Ungrouped, listing, ungrouped, warn
from ndvit.data.sources.load import load_source
from ndvit.evaluation.words import check_language
from ndvit.files import contents, make_folder, refuse_existing, replace_file
from ndvit.tasks.base import Task, task_class
from ndvit.tasks.classification import Classification
from ndvit.training.plan import source_name

_STREAMED = 500  # examples that are read of a stream


def check(
    source: Any,
    *,
    labels: bool = False,
    run: str | Path | None = None,
    task: str | type[Task] = "classification",
    folds: int = 5,
    preset: str | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    force: bool = False,
    language: str = "en",
    progress: bool = True,
    log: Callable[[str], Any] = print,
    **options: Any,
) -> Check:
    """Check data before a training, or their labels by models, and write a page.

    Doubts about the data are findings here, and not raised as warnings. Nothing is held out for testing.

    Args:
        source: as in `train`.
        labels: look for label errors by a cross-validation over all examples, those of a test set included. Examples of
            one group, and exact or near copies, are in one fold.
        run: look for label errors by the answers of a run or a cross-validation (a folder) to examples that it was not
            trained on; for a model of other data, by its answers to all examples. Options of reading that are not set
            are those of the run if it was of this source.
        task: meaning of the targets, by name or class.
        folds: folds of the cross-validation.
        preset: preset of its trainings; None is "fast" for signals, "linear_probe" for images with `weights`, else
            "auto".
        weights: trained weights that these start from, as in `train`.
        seed: seed of the folds and the trainings.
        output: folder of the page, the findings and the suspected labels; None makes a new one under `runs/`.
        force: replace the files of an earlier check in `output`.
        language: the language of the page's words: "en" or "zh".
        progress: show progress bars.
        log: receives each line about the progress.
        **options: fields of `ReadingOptions`. Bad examples are always left out, and listed.

    Returns:
        What was found; `status` is 1 if something is suspicious, else 0.

    Raises:
        ValueError: for data that cannot be read, options that cannot work, and without cleanlab for `labels` and `run`.
        FileExistsError: if `output` exists and is not empty.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> X = np.random.default_rng(0).normal(size=(20, 1, 32))
        >>> X[13] = X[3]  # a copy with another label
        >>> found = ndvit.check((X, np.repeat(["a", "b"], 10)), output="check", progress=False, log=str)
        >>> found.status
        1
    """
    check_language(language)
    if labels and run is not None:
        raise ValueError("labels trains models and run takes the answers of one: set one of them")
    if not task_class(task).learns_from_targets:
        raise ValueError(f"{task_class(task).name} learns without labels, and there are none to check")
    if labels or run is not None:
        check_cleanlab()
        if not issubclass(task_class(task), Classification):
            raise ValueError(
                f"suspected label errors are found for classification, not for {task_class(task).name}: leave "
                f"{'labels' if labels else 'run'} out to check everything else"
            )
    if run is not None:
        options = stored_options(run, source) | options
    reading = ReadingOptions.from_dict(options)
    folder = _folder(source, output, force)
    data = _load(source, task, seed, progress, reading)
    parts = splits_of(data)
    found = examine(parts, progress, _STREAMED)
    pairs = _near(found)
    findings = [
        *of_notes(data.notes),
        *of_classes(data),
        *of_contents(found, data),
        *of_near_copies(pairs, found, data),
    ]
    everything = _joined(data, parts, found, pairs)
    suspects, labelled = None, None
    if labels or run is not None:
        make_folder(folder)
        if run is not None:
            labelled = answered_by_run(data, everything, run, source, reading, progress, log)
        else:
            trained: dict[str, Any] = {"preset": preset, "weights": weights, "seed": seed, "progress": progress}
            labelled = cross_validated(data, everything, folder, folds=folds, force=force, log=log, **trained)
        suspects = find_suspects(labelled)
        findings += _of_labels(suspects, labelled)
    places = [str(part.examples.names[i]) for part in found for i in part.indices]
    made = Check(
        data=data,
        findings=tuple(sorted(findings, key=lambda finding: not finding.suspicious)),
        classes=_classes(data, parts),
        shapes=shapes(found),
        copies=_copies(found),
        near_copies=tuple((places[pair.first], places[pair.second], pair.distance) for pair in pairs),
        suspects=None if suspects is None else tuple(suspects),
        labelled=0 if labelled is None else int(labelled.answered.sum()),
        folder=folder,
    )
    make_folder(folder)
    write_page(Page(made, found, pairs, everything, labelled, source), made.page, language)
    if suspects is not None:
        write_suspects(folder / SUSPECTS_FILE, suspects)
    replace_file(folder / FINDINGS_FILE, json.dumps(made.to_dict(), indent=1, ensure_ascii=False))
    return made


def _folder(source: Any, output: str | Path | None, force: bool) -> Path:
    if output is None:
        name = f"{source_name(source)}-check"[:100]
        numbered = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
        return next(folder for folder in numbered if not folder.exists())
    folder = Path(output)
    inside = contents(folder) if folder.is_dir() else []
    of_check = {folder / FINDINGS_FILE, folder / FOLDER}  # the latter alone is what an interrupted one leaves
    if inside and not (force and of_check & set(inside)):
        hint = "it is no check, so that it is not replaced even with force" if force else "replace it with --force"
        raise FileExistsError(f"{folder} exists: choose another output; {hint}")
    refuse_existing(folder, force, kind="folder")
    return folder


def _load(source: Any, task: str | type[Task], seed: int, progress: bool, reading: ReadingOptions) -> Source:
    """The data, with the doubts among their notes instead of warnings, as they are before a split at random."""
    settings = reading.to_dict() | {"test_fraction": 0, "skip_bad": True}
    loaded: Source | None = None
    fault: Exception | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = load_source(source, task=task, seed=seed, progress=progress, to_train=False, **settings)
        except (ValueError, OSError) as error:
            fault = error
    doubts = {str(one.message): one.category for one in caught}
    for text, category in doubts.items():
        if loaded is None or not issubclass(category, DataWarning):
            warn(text, category)  # before the error, which they may explain
    if loaded is None:
        assert fault is not None
        raise fault
    notes = list(loaded.notes)
    if not len(loaded.test):  # a training would hold examples out at random, which matters where groups are not read
        notes = [ungrouped(note) if isinstance(note, Ungrouped) else note for note in notes]
    raised = [text for text, category in doubts.items() if issubclass(category, DataWarning)]
    notes += [Doubt(text) for text in raised if text not in loaded.notes]
    return replace(loaded, notes=tuple(notes))


def _near(found: Sequence[Examined]) -> list[Pair]:
    """Near copies among all examples, by their place among them; none are searched in very large sets."""
    total = sum(len(part.contents) for part in found)
    if not 1 < total <= MOST_COMPARED:
        return []
    digests = np.unique([content.digest for part in found for content in part.contents], return_inverse=True)[1]
    owners = [
        f"{part.split}/{part.examples.places[i].recording}" if part.examples.places is not None else f"{part.split} {i}"
        for part in found
        for i in part.indices
    ]
    alike = np.stack([digests, np.unique(owners, return_inverse=True)[1]], axis=1)
    return near_copies(np.stack([content.coarse for part in found for content in part.contents]), alike)


def _joined(data: Source, parts: dict[str, Examples], found: Sequence[Examined], pairs: Sequence[Pair]) -> Joined:
    """All examples as one, in which exact and near copies belong together."""
    examples = Examples.joined(list(parts.values()))
    splits = [split for split, part in parts.items() for _ in range(len(part))]
    if sum(len(part.contents) for part in found) == len(examples):
        digests = np.unique([c.digest for part in found for c in part.contents], return_inverse=True)[1]
        examples.copies = connected(digests, pairs)
    return Joined(examples, splits)


def _copies(found: Sequence[Examined]) -> tuple[tuple[str, ...], ...]:
    """Names of exact copies, in groups; constant examples are none."""
    digests = {part.split: [b"" if (c.low == c.high).all() else c.digest for c in part.contents] for part in found}
    names = {part.split: [f"{part.examples.names[i]} ({part.split})" for i in part.indices] for part in found}
    groups = repeated(digests).values()
    return tuple(tuple(names[split][i] for split, i in places) for places in groups)


def _classes(data: Source, parts: dict[str, Examples]) -> dict[str, dict[str, int]]:
    """Number of examples of each class, or of several labels of an example with each, in each split."""
    width = len(data.classes)
    targets = {split: part.targets for split, part in parts.items() if part.targets is not None}
    counts = {s: np.bincount(t, minlength=width) if t.ndim == 1 else t.sum(axis=0) for s, t in targets.items() if width}
    return {name: {split: int(count[i]) for split, count in counts.items()} for i, name in enumerate(data.classes)}


def _of_labels(suspects: Sequence[Suspect], labelled: Labelled) -> list[Finding]:
    total = int(labelled.answered.sum())
    answered = f"{total:,} of {len(labelled.labels):,} examples were answered by {labelled.by}"
    if not suspects:
        return [Finding("note", f"no label is suspected; {answered}", False)]
    pairs = Counter(f"{one.label}, which looks like {one.suggested}" for one in suspects)
    listed = listing([f"{pair} ({count:,})" for pair, count in pairs.most_common()], 5)
    items = tuple(f"{one.name}: {one.label}, looks like {one.suggested} ({one.score:.3g})" for one in suspects)
    text = f"labels that may be errors, {len(suspects):,} of {total:,}: {listed}"
    return [Finding("label", text, True, items), Finding("note", answered, False)]
