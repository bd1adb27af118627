"""What the report of a run has beside its numbers: why answers were as they were, and a map of the features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ndvit.config.recipe import Device
from ndvit.data.examples import Examples
from ndvit.data.loading import Inputs
from ndvit.data.messages import warn
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.evaluation.base import Evaluation
from ndvit.evaluation.maps import MOST, FeatureMap, feature_map
from ndvit.evaluation.relevance import Reason, Relevance, RelevanceSketch, sketch_relevance
from ndvit.explain.bands import usual_bands
from ndvit.explain.explain import Explanation, explain_inputs, has_numbers, reads_signals
from ndvit.explain.page import reason
from ndvit.inference.batches import pick_device, predict_features
from ndvit.inference.recordings import WholeRecordings, recording_of
from ndvit.parts import ModelParts

MISTAKES, CORRECT = 6, 3  # examples or recordings whose answers the report explains
_MOST_WINDOWS = 256  # of these recordings
_MOST_BANDED = 2**14  # values of a signal up to which the report has bands: each takes a forward pass


class Reasons(NamedTuple):
    """Reasons of some answers, and the map of the features of test examples."""

    reasons: tuple[Reason, ...] = ()
    method: str = ""
    map: FeatureMap | None = None


def reasons_of(
    model: ModelParts,
    evaluation: Evaluation,
    test: Examples,
    preprocess: Preprocess,
    batch_size: int = 64,
    device: Device = "cpu",
    progress: bool = False,
) -> Reasons:
    """What decided the worst mistakes and some correct answers, each beside a similar correct one, and the map.

    What cannot be computed, such as for too little memory, is left out with a warning.

    Args:
        model: the trained model. Its network is moved to the device and back.
        evaluation: its answers for the test set.
        test: the test set.
        preprocess: turns its examples into inputs.
        batch_size: examples per forward pass of the features.
        device: where to compute.
        progress: show progress bars.
    """
    if model.task is None or not model.task.learns_from_targets or not len(test):
        return Reasons()
    before = model.device
    model.network.to(pick_device(device))
    try:
        return _reasons_of(model, evaluation, test, preprocess, batch_size, progress)
    finally:
        model.network.to(before)


def _reasons_of(
    model: ModelParts, evaluation: Evaluation, test: Examples, preprocess: Preprocess, batch_size: int, progress: bool
) -> Reasons:
    owner = np.arange(len(test)) if test.places is None else recording_of(test.places)  # a recording has many windows
    mistakes = list(evaluation.worst())
    others = sorted(set(owner.tolist()) - set(mistakes))
    if model.task is not None and has_numbers(model.task):  # none is right or wrong: those with the smallest errors
        others = mistakes[MISTAKES:][: -CORRECT - 1 : -1]
    wanted = mistakes[:MISTAKES] + others[:: max(1, len(others) // CORRECT)][:CORRECT]
    found, features = None, np.zeros((0, 0))
    indices = _sample(len(evaluation), wanted)
    try:
        features = _features(model, test, preprocess, owner, indices, batch_size, progress)
        found = feature_map(indices, features)
    except (ValueError, RuntimeError) as error:  # the run is finished all the same
        warn(f"the report has no embedding map: {error}", RuntimeWarning)
    if test.places is not None and isinstance(preprocess, SpectrogramPreprocess):  # their windows do not fit together
        return Reasons(map=found)
    order = [np.flatnonzero(owner == i) for i in wanted]
    kept = np.cumsum([len(windows) for windows in order]) <= _MOST_WINDOWS
    chosen = [i for i, fits in zip(wanted, kept) if fits]
    if not chosen:
        return Reasons(map=found)
    some = Inputs(test.subset(np.concatenate([windows for windows, fits in zip(order, kept) if fits])), preprocess)
    try:
        banded = reads_signals(model) and math.prod(model.input_shape) <= _MOST_BANDED
        bands = usual_bands(model.input_shape[1]) if banded else None
        explained = explain_inputs(model, some, bands=bands, progress=progress)
    except (ValueError, RuntimeError) as error:
        warn(f"the report does not explain the answers: {error}", RuntimeWarning)
        return Reasons(map=found)
    reasons = []
    for i, one in zip(chosen, explained):
        beside = nearest(i, evaluation.references(i), indices, features)
        reference = None if beside is None else _reference(test, preprocess, beside, one)
        name = "" if beside is None else str(evaluation.names[beside])
        caption = evaluation.caption(i)
        if not one.exclusive and len(one.answers) > 1:  # the caption names several outputs, or another one
            caption |= {"explained": one.label}
        reasons.append(reason(one, caption, reference, name))
    return Reasons(tuple(reasons), explained[0].method, found)


def nearest(index: int, among: np.ndarray, indices: np.ndarray, features: np.ndarray) -> int | None:
    """The example whose features are most like those of another.

    Args:
        index: the other one.
        among: the examples to choose from.
        indices: (n,) sorted, the examples whose features are known.
        features: (n, width); empty if none are known, and the first example is then taken.

    Returns:
        One of `among`; None if it is empty.
    """
    known = np.intersect1d(among, indices) if len(features) else np.zeros(0, dtype=np.int64)
    if not len(known) or index not in indices:
        return int(among[0]) if len(among) else None
    rows, own = features[np.searchsorted(indices, known)], features[np.searchsorted(indices, index)]
    return int(known[np.square(rows - own).sum(axis=1).argmin()])


def _sample(count: int, wanted: Sequence[int]) -> np.ndarray:
    """Sorted indices of at most `MOST` examples, among them those that are wanted."""
    order = np.random.default_rng(0).permutation(count)
    order = np.concatenate([np.asarray(wanted, dtype=np.int64), order[~np.isin(order, wanted)]])
    return np.sort(order[:MOST])


def _features(
    model: ModelParts,
    test: Examples,
    preprocess: Preprocess,
    owner: np.ndarray,
    indices: np.ndarray,
    batch_size: int,
    progress: bool,
) -> np.ndarray:
    """Features (n, width) of examples, or means over the windows of recordings."""
    windows = np.flatnonzero(np.isin(owner, indices))
    inputs = Inputs(test.subset(windows), preprocess)
    rows = predict_features(model.network, inputs, batch_size, model.device.type, progress)
    sums = np.zeros((len(indices), rows.shape[1]))
    at = np.searchsorted(indices, owner[windows])
    np.add.at(sums, at, rows)
    means: np.ndarray = sums / np.bincount(at)[:, None]
    return means


def _reference(test: Examples, preprocess: Preprocess, index: int, beside: Explanation) -> RelevanceSketch:
    """What is drawn of an example for comparison with an explained one: the same channels."""
    raw = (test if test.places is None else WholeRecordings(test))[index]
    waves = not isinstance(preprocess, SpectrogramPreprocess)
    rate = getattr(raw, "rate", None) if waves else None
    rows = None
    if beside.values.ndim == 2:
        rows = sketch_relevance(reason(beside).example).rows  # type: ignore[arg-type]  # of an explanation
    values = preprocess.upright(raw)
    return sketch_relevance(Relevance(values, None, rate, channels=beside.channels), rows)
