"""What an export is tried on, and how far its answers are from the model's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndvit.data.examples import Examples, Kind
from ndvit.data.loading import Inputs
from ndvit.data.preprocess.base import same_kind
from ndvit.data.sources.load import builtin_sources, load_examples, load_source
from ndvit.network.committee import Model
from ndvit.weights.imagenet import match_classes

BATCH = 8
"""The batch size that every export is tried at, beside 1."""
CALIBRATION = 300
"""Examples that int8 takes the ranges of values from."""
TOLERANCE = 1e-3
"""How far answers may be from the model's, in parts of their spread, see `Comparison`."""
_COUNT, _COUNT_INT8 = 64, 512  # examples that are compared: rounding shows in few, changed answers in many


@dataclass(frozen=True)
class Trial:
    """Examples as the preprocessing gives them, and where they are from.

    Attributes:
        x: (n, C, *size).
        mask: (n, *size), True where a value was observed; None where all were.
        labels: (n,) numbers of the model's classes, or None where they are not known.
        name: what they are.
        notes: what was left out.
    """

    x: Tensor
    mask: Tensor | None
    labels: Tensor | None
    name: str
    notes: tuple[str, ...] = ()


def gather(model: Model, run: Any, data: Any, mask: bool, int8: bool) -> tuple[Trial, Trial | None]:
    """Examples to compare on, and, of given data, others to calibrate on.

    Those to compare on are of the test set of `data`, or of what the model was trained on, where that comes with ndvit
    or `run` is the folder of the run; else they are random.

    Raises:
        ValueError: if the data cannot be read, or are of another kind than the model reads.
    """
    source = data if data is not None else _trained_on(model, run)
    count = _COUNT_INT8 if int8 else _COUNT
    if source is None:
        return random_trial(model, count, mask), None
    if model.preprocess is None:
        raise ValueError("the model does not know its preprocessing, which data need: set model.preprocess")
    kind, name, classes, parts, notes = _parts(model, source)
    same_kind(kind, model.preprocess, name)
    known = [part for part in ("test", "val", "train") if part in parts]
    index, unmatched = _index(classes, model.classes)
    notes += unmatched

    def trial(part: str, count: int) -> Trial:
        examples = parts[part].subset(parts[part].sample(count))
        called = f"the {part} set of {name}" if classes else name
        return _trial(model, examples, index, called, mask, notes)

    calibration = trial("train" if "train" in known else known[0], CALIBRATION) if int8 else None
    return trial(known[0], count), calibration


def _trained_on(model: Model, run: Any) -> str | None:
    """The source of a model's training, where reading it is cheap and follows no stranger's path."""
    told = model.provenance.get("source")
    if not isinstance(told, str):
        return None
    if told.lower() in builtin_sources():
        return told
    own = isinstance(run, str | Path) and any((p / "config.yaml").is_file() for p in (Path(run), Path(run).parent))
    return told if own and Path(told).exists() else None


def _parts(model: Model, source: Any) -> tuple[Kind, str, tuple[str, ...], dict[str, Examples], tuple[str, ...]]:
    """Kind, name, classes, the parts that have examples, and notes of labelled data or of files without labels."""
    held, seed = model.provenance.get("test_fraction", 0.2), model.provenance.get("seed", 0)  # as it was trained
    try:
        data = load_source(source, test_fraction=held, seed=seed, progress=False, to_train=False)
    except ValueError as error:
        axes, channels = len(model.config.input_size), model.config.in_channels
        try:
            dims = axes if model.preprocess.kind == "signal" else None
            kind, examples, notes = load_examples(source, dims=dims, channels=channels)
        except (ValueError, OSError):
            raise error from None
        name = str(source) if isinstance(source, str | Path) else "the arrays"
        return kind, name, (), {"test": examples}, notes
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return data.kind, data.name, data.classes, {n: e for n, e in parts.items() if e is not None and len(e)}, data.notes


def _index(classes: tuple[str, ...], known: tuple[str, ...]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The numbers that the model has for the classes of data, and what was assumed; None for other classes."""
    if not classes or not known:
        return None, ()
    try:
        index, assumed = match_classes(classes, known)
    except ValueError:
        return None, ("the data's classes are not the model's: accuracies are not known",)
    return np.array([index[name] for name in classes]), tuple(assumed)


def _trial(
    model: Model, examples: Examples, index: np.ndarray | None, name: str, mask: bool, notes: tuple[str, ...]
) -> Trial:
    batches = list(Inputs(examples, model.preprocess).loader(BATCH, workers=0))
    x = torch.cat([batch.x for batch in batches])
    full = [torch.ones(len(b.x), *b.x.shape[2:], dtype=torch.bool) if b.mask is None else b.mask for b in batches]
    shown = torch.cat(full)
    labels = None
    if index is not None and examples.labels is not None:
        labels = torch.from_numpy(index[examples.labels])
    if not mask:
        whole = shown.flatten(1).all(1)
        if not whole.any():
            raise ValueError(f"no example of {name} is fully observed: export with --mask (mask=True)")
        if not whole.all():
            left = int((~whole).sum())
            notes += (f"{left} of {len(x)} examples are incomplete, which the file will refuse: --mask takes them",)
        return Trial(x[whole], None, None if labels is None else labels[whole], name, notes)
    return Trial(x, _some_hidden(shown), labels, name, notes)


def random_trial(model: Model, count: int, mask: bool) -> Trial:
    """Standard normal numbers of the model's size, every other example without its last quarter under a mask."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    x = torch.randn(count, config.in_channels, *config.input_size, generator=generator)
    shown = _some_hidden(torch.ones(count, *config.input_size, dtype=torch.bool)) if mask else None
    return Trial(x, shown, None, "random inputs, mean 0 and deviation 1 (give --data for real ones)")


def _some_hidden(mask: Tensor) -> Tensor:
    """Every other example without its last quarter, where nothing was hidden."""
    if mask.all():
        mask = mask.clone()
        mask[1::2, ..., -(mask.shape[-1] // 4) :] = False
    return mask


@dataclass(frozen=True)
class Comparison:
    """How answers differ from the model's.

    Attributes:
        examples: that were compared.
        batches: sizes of the batches that they were given in.
        difference: the largest of all logits or probabilities, or infinity where one is not finite.
        spread: standard deviation of the model's, over the classes of an example.
        agreement: share of examples with the same likeliest class.
        accuracies: of the model and of the file; None without labels.
    """

    examples: int
    batches: tuple[int, ...]
    difference: float
    spread: float
    agreement: float
    accuracies: tuple[float, float] | None

    @property
    def same(self) -> bool:
        """Whether they differ by rounding alone."""
        return self.difference <= max(TOLERANCE * self.spread, 1e-6)


def compare(
    reference: Callable[[Tensor, Tensor | None], Tensor],
    exported: Callable[[Tensor, Tensor | None], Tensor],
    trial: Trial,
    batches: tuple[int, ...],
) -> Comparison:
    """Run both on the same examples, the exported one at every batch size, and all examples at the last."""
    expected = torch.cat([reference(x, mask) for x, mask in _rows(trial, batches[-1], len(trial.x))])
    worst = 0.0
    for size in batches:
        count = len(trial.x) if size == batches[-1] else min(4 * size, len(trial.x))
        found = torch.cat([exported(x, mask) for x, mask in _rows(trial, size, count)])
        gap = (found - expected[:count]).abs().max().item() if found.shape == expected[:count].shape else torch.inf
        worst = max(worst, gap if gap == gap else torch.inf)
    accuracies = None
    if trial.labels is not None:
        right = [(answer.argmax(1) == trial.labels).double().mean().item() for answer in (expected, found)]
        accuracies = right[0], right[1]
    return Comparison(
        examples=len(trial.x),
        batches=batches,
        difference=worst,
        spread=(expected - expected.mean(1, keepdim=True)).square().mean().sqrt().item(),
        agreement=(expected.argmax(1) == found.argmax(1)).double().mean().item(),
        accuracies=accuracies,
    )


def _rows(trial: Trial, size: int, count: int) -> list[tuple[Tensor, Tensor | None]]:
    spans = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    return [(trial.x[span], None if trial.mask is None else trial.mask[span]) for span in spans]
