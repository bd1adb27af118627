"""Out-of-sample answers for all examples of a source: by a cross-validation, or by an earlier run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.checking.labels import Labelled, place_of, stored_probabilities
from ndvit.config.reading import ReadingOptions, take_reading_options
from ndvit.data.examples import Examples, Source
from ndvit.data.messages import DataWarning, printable
from ndvit.data.sources.split_files import named_rows
from ndvit.files import cell
from ndvit.inference.evaluate import same_source
from ndvit.inference.recordings import recording_of
from ndvit.model import load_model
from ndvit.training.crossvalidation import cross_validate
from ndvit.training.results import PREDICTIONS_FILE
from ndvit.training.settings import CONFIG_FILE, read_config

FOLDER = "crossvalidation"
_WITH_WEIGHTS = "linear_probe"


class Joined(NamedTuple):
    """The examples of all splits together, and the split of each."""

    examples: Examples
    splits: list[str]


def cross_validated(
    data: Source,
    joined: Joined,
    folder: Path,
    *,
    folds: int,
    preset: str | None,
    weights: str | Path | None,
    seed: int,
    force: bool,
    progress: bool,
    log: Callable[[str], Any],
) -> Labelled:
    """Answers of a cross-validation over all splits, which is written to a folder inside `folder`.

    Raises:
        ValueError: as in `cross_validate`.
    """
    if preset is None:
        fast = data.kind == "signal" and data.dims == 1
        preset = _WITH_WEIGHTS if weights is not None else "fast" if fast else "auto"
    everything = replace(data, train=joined.examples, test=joined.examples.subset([]), val=None, notes=())
    result = cross_validate(
        everything,
        folds=folds,
        preset=preset,
        weights=weights,
        seed=seed,
        output=folder / FOLDER,
        force=force,
        progress=progress,
        log=log,
    )
    if result.evaluation is None:
        raise KeyboardInterrupt
    by = f"{folds} models with preset {preset}, each trained without the examples that it answered"
    return _labelled(data, joined, np.asarray(result.evaluation.probabilities), by)  # type: ignore[attr-defined]


def stored_options(run: str | Path, source: Any) -> dict[str, Any]:
    """The options of reading of a run or a cross-validation of this source; none for another source."""
    settings = _settings(run)
    if settings is None or not _of_source(settings, source):
        return {}
    own = ReadingOptions.__dataclass_fields__
    reading, _ = take_reading_options({name: value for name, value in settings.items() if name in own})
    return reading.set_options()


def answered_by_run(
    data: Source,
    joined: Joined,
    run: str | Path,
    source: Any,
    reading: ReadingOptions,
    progress: bool,
    log: Callable[[str], Any],
) -> Labelled:
    """Answers of a run for examples that it was not trained on.

    Of the source that it was trained on, those in its predictions.csv: of a cross-validation all, of a training the
    test set. Of another source, the answers of its model to all examples.

    Raises:
        ValueError: for a run of this source without predictions.csv, and a model of other classes.
    """
    settings, path = _settings(run), Path(run).expanduser() / PREDICTIONS_FILE
    names, labels, _ = _units(joined)
    if settings is not None and path.is_file() and (_of_source(settings, source) or _are_known(path, names, settings)):
        found = stored_probabilities(path, names, data, labels)
        kind = "cross-validation" if "folds" in settings else "model, which was not trained on them,"
        return _labelled(data, joined, found, f"the {kind} in {printable(str(run))}")
    model = load_model(run)
    if same_source(source, model.provenance.get("source")):
        raise ValueError(
            f"{run} was trained on this source, and without its {PREDICTIONS_FILE} nothing tells which examples it has "
            "not seen: pass the folder of the run, or use --labels (labels=True)"
        )
    options = reading.to_dict() | {"test_fraction": 0, "skip_bad": True}
    own = {name: value for name, value in options.items() if value is not None}
    with warnings.catch_warnings(action="ignore", category=DataWarning):  # they are findings already
        evaluation: Any = model.evaluate(source, split="all", progress=progress, log=log, **own)
    if missing := set(data.classes) - set(evaluation.classes):
        raise ValueError(f"{run} does not know the classes {', '.join(sorted(missing))} of the source")
    columns = [evaluation.classes.index(name) for name in data.classes]
    by_name = dict(zip(map(str, evaluation.names), evaluation.probabilities))
    if len(by_name) < len(names):
        raise ValueError("several examples have the same name, so that their answers cannot be distinguished")
    found = np.stack([by_name[name] for name in names])[:, columns]
    return _labelled(data, joined, found, f"{printable(str(run))}, which was trained on other data")


def _settings(run: str | Path) -> dict[str, Any] | None:
    path = Path(run).expanduser() / CONFIG_FILE
    return read_config(path) if path.is_file() else None


def _of_source(settings: Mapping[str, Any], source: Any) -> bool:
    """Whether settings are those of a run of this source."""
    return same_source(source, settings.get("source"))


def _are_known(path: Path, names: list[str], settings: Mapping[str, Any]) -> bool:
    """Whether a predictions.csv of data in memory, such as that of a check, is about examples with these names."""
    if settings.get("source") is not None:
        return False
    places = {cell(name): i for i, name in enumerate(names)}
    return all(place_of(row["name"], places) is not None for _, row in named_rows(path, ("name",)))


def _units(joined: Joined) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names and labels of examples, or of recordings that are cut into windows, and the first example of each."""
    examples = joined.examples
    assert examples.targets is not None
    if examples.places is None:
        return list(map(str, examples.names)), examples.targets, np.arange(len(examples))
    first = np.unique(recording_of(examples.places), return_index=True)[1]
    return [examples.places[i].recording for i in first], examples.targets[first], first


def _labelled(data: Source, joined: Joined, probabilities: np.ndarray, by: str) -> Labelled:
    names, labels, first = _units(joined)
    groups = joined.examples.groups
    recordings = joined.examples.places is not None and groups is not None and set(groups) <= set(names)
    return Labelled(
        classes=data.classes,
        names=names,
        splits=[joined.splits[i] for i in first],
        labels=labels,
        groups=["" if groups is None or recordings else str(groups[i]) for i in first],
        probabilities=probabilities,
        by=by,
    )
