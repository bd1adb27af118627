"""Real examples for the self-test of a bundle, as files that its programs read without other packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ndvit.config.reading import Span, file_options
from ndvit.data.examples import Examples, Recording
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.exporting.comparison import read_source, training_source
from ndvit.inference.evaluate import chosen_splits
from ndvit.inference.predict import predict_proba
from ndvit.parts import ModelParts

_COUNT = 3
_SHORTER_SIDE = 384  # pixels of a stored picture, which is more than most networks read
_WINDOWS = 3  # of a stored recording


class Sample(NamedTuple):
    """An example as a file, and the model's answer for it."""

    file: str
    answer: np.ndarray  # (outputs,)


def write_samples(model: ModelParts, source: Any, folder: Path) -> list[Sample]:
    """Write three examples of a source, by default of the test set of the model's training, and compute their answers.

    Raises:
        ValueError: if there is no source, or if it cannot be read.
    """
    if source is None:
        source = training_source(model)
    if source is None:
        raise ValueError(
            "a bundle has three real inputs for its self-test, and the test set of the training cannot be read: pass "
            "--data FILES (data=)"
        )
    data = read_source(model, source, window=None, hop=None)
    examples = next(iter(chosen_splits(data, "all" if not len(data.test) else "test").values()))
    samples = []
    for number, index in enumerate(_different(examples), start=1):
        made = _write(model, examples[index], folder, f"input-{number}")
        if made is not None:
            samples.append(made)
    if not samples:
        raise ValueError(f"no example of {data.name} can be stored for the self-test: pass others with --data (data=)")
    return samples


def _different(examples: Examples) -> list[int]:
    """Examples of different targets first."""
    order = list(range(len(examples)))
    if examples.targets is not None and examples.targets.ndim == 1:
        _, first = np.unique(examples.targets, return_index=True)
        order = [*sorted(first.tolist()), *order]
    return list(dict.fromkeys(order))[:_COUNT]


def _write(model: ModelParts, raw: Any, folder: Path, name: str) -> Sample | None:
    """Write one example; None for a recording that no file of the bundle can hold."""
    preprocess = model.preprocess
    assert preprocess is not None
    quiet: dict[str, Any] = {"device": "cpu", "log": lambda line: None}
    if isinstance(preprocess, ImagePreprocess):
        picture = preprocess.converted(raw).convert("RGB")
        shrink = _SHORTER_SIDE / min(picture.size)
        if shrink < 1:
            picture = picture.resize((max(1, round(shrink * picture.width)), max(1, round(shrink * picture.height))))
        np.save(folder / f"{name}.npy", np.asarray(picture))
        return Sample(f"{name}.npy", np.asarray(predict_proba(model, [picture], **quiet))[0])
    values, rate = (raw.values, raw.rate) if isinstance(raw, Recording) else (np.asarray(raw), None)
    values = values[..., : _longest(model, rate)]
    path = folder / f"{name}.npy"
    if rate is not None and rate.is_integer() and np.abs(values).max(initial=0) <= 1:
        import soundfile

        path = folder / f"{name}.wav"
        soundfile.write(path, values.T, int(rate), subtype="PCM_16")
    elif rate is None or rate == getattr(preprocess, "sample_rate", None):
        np.save(path, values.astype(np.float32))
    else:
        return None
    if path.suffix == ".npy" and rate is not None:  # which the file does not hold
        quiet |= _in_samples(model, rate)
    answers = predict_proba(model, str(path), channels=None, mono=False, **quiet)
    return Sample(path.name, np.asarray(answers)[0])


def _in_samples(model: ModelParts, rate: float) -> dict[str, int]:
    """Window and hop of the model that are in seconds, in samples of this rate."""
    reading, found = file_options(model.provenance, {}), dict[str, int]()
    for name in ("window", "hop"):
        if (length := getattr(reading, name)) is not None and (span := Span.parse(length)).unit == "seconds":
            found[name] = max(1, round(span.value * rate))
    return found


def _longest(model: ModelParts, rate: float | None) -> int | None:
    """Samples of a recording that are stored; None for all."""
    window = file_options(model.provenance, {}).window
    if window is None:
        return None
    value, unit = Span.parse(window)
    return None if unit == "share" else round(_WINDOWS * value * (rate or 1 if unit == "seconds" else 1))
