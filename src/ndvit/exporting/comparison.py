"""Comparison of exported or compiled networks with the model that they were made from, and the data for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndvit.config.reading import file_options, stored_reading
from ndvit.data.channels import check_channels
from ndvit.data.examples import Examples, Source
from ndvit.data.loading import Inputs
from ndvit.data.preprocess import check_kind, warn_if_unlike_training
from ndvit.data.sources.finding import builtin_sources
from ndvit.data.sources.load import load_examples, load_source
from ndvit.inference.evaluate import chosen_splits, past_reading
from ndvit.parts import ModelParts
from ndvit.tasks import Classification

Batch = tuple[Tensor, Tensor | None]
"""Inputs (B, C, *size), and their mask (B, *size) or None."""
BATCH = 8
"""Batch size of comparisons, beside 1."""
TOLERANCE = 1e-3
"""Largest difference of outputs that counts as rounding, relative to their spread, see `Comparison`."""
_CALIBRATION = 300
_EXAMPLES, _EXAMPLES_INT8 = 64, 512  # A few examples show rounding errors, many are needed to count changed classes.


@dataclass(frozen=True)
class ComparisonData:
    """Preprocessed examples."""

    x: Tensor  # (n, C, *size)
    mask: Tensor | None  # (n, *size), True where a value was observed; None if all were
    targets: np.ndarray | None  # (n, ...), encoded by the model's task; None if they are not known
    source: str  # description for the report
    notes: tuple[str, ...] = ()  # what was left out or assumed

    def batches(self, size: int, count: int) -> list[Batch]:
        """The first `count` examples in batches of `size`, each with its mask."""
        rows = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        return [(self.x[part], None if self.mask is None else self.mask[part]) for part in rows]


def needs_mask(model: ModelParts) -> bool:
    """Whether examples are usually incomplete, because the preprocessing pads them."""
    return model.preprocess is not None and model.preprocess.resize == "pad"  # type: ignore[attr-defined]


def load_comparison_data(
    model: ModelParts, source: Any, *, mask: bool, int8: bool
) -> tuple[ComparisonData, ComparisonData | None]:
    """Examples to compare on, and other examples to calibrate int8 on.

    Examples to compare on come from the test set of `source`. If that is None, they come from the test set of the
    model's training if it can be read, otherwise they are random.

    Raises:
        ValueError: if the data cannot be read, or are of another kind than the model's.
    """
    count = _EXAMPLES_INT8 if int8 else _EXAMPLES
    if source is None:
        source = training_source(model)
    if source is None:
        return random_data(model, count, mask), None
    if model.preprocess is None:
        raise ValueError("the model has no preprocessing, which data need: set model.preprocess")
    data = read_source(model, source)
    splits, notes = chosen_splits(data, "all"), data.notes
    warn_if_unlike_training(list(splits.values()), model.preprocess)
    labelled = next(iter(splits.values())).targets is not None
    task, translate = model.task if labelled else None, None
    if task is not None:
        try:
            translate, assumed = task.align(data.task, data.name)
            notes += tuple(assumed)
        except ValueError:
            task, notes = None, (*notes, "the targets of the data are not the model's: no score is computed")

    def preprocess(split: str, count: int) -> ComparisonData:
        examples = splits[split].subset(splits[split].sample(count))
        targets = None if task is None else examples.targets
        if targets is not None and translate is not None:
            targets = translate(targets)
        name = f"the {split} set of {data.name}" if labelled else data.name
        return _preprocess(model, examples, targets, name, mask, notes)

    test = next(split for split in ("test", "val", "train") if split in splits)
    calibration = preprocess("train" if "train" in splits else test, _CALIBRATION) if int8 else None
    return preprocess(test, count), calibration


def load_test_set(model: ModelParts) -> Examples | None:
    """The test set of the model's training, if its source is built in or the model is that of a run on this machine.

    Raises:
        ValueError: if the data are not what they were.
    """
    source = training_source(model)
    if source is None or model.preprocess is None:
        return None
    data = read_source(model, source)
    return data.test


def training_source(model: ModelParts) -> str | None:
    """The source of the model's training if it is built in, or if the model was loaded from the folder of its run.

    Only the user's own runs have such a folder, so that no path in a file of somebody else is read.
    """
    source = model.provenance.get("source")
    if not isinstance(source, str):
        return None
    weights = None if model.load_report is None else Path(model.load_report.source)
    own = weights is not None and any((p / "config.yaml").is_file() for p in (weights, weights.parent))
    return source if source.lower() in builtin_sources() or (own and Path(source).exists()) else None


def read_source(model: ModelParts, source: Any, **changed: Any) -> Source:
    """Data split and read as in the model's training, except for the options in `changed`.

    A file or folder without targets has no task, and is a test set.

    Raises:
        ValueError: if it cannot be read, or is of another kind or has other channels than the training data.
    """
    data = _read(model, source, changed)
    if model.preprocess is not None:
        check_kind(data.kind, model.preprocess, data.name)
    check_channels(data.channels, model.channel_names, data.name)
    return data


def _read(model: ModelParts, source: Any, changed: dict[str, Any]) -> Source:
    by_file = "split_file" in stored_reading(model.provenance)  # which the model does not hold: all examples then
    past = past_reading(model, source, {**({"test_fraction": 0} if by_file else {}), **changed})
    task = "classification" if model.task is None else type(model.task)
    try:
        return load_source(source, task=task, seed=past.seed, progress=False, to_train=False, **past.options.to_dict())
    except ValueError as error:
        signal = model.preprocess is not None and model.preprocess.kind == "signal"
        channels, *size = model.input_shape
        if model.preprocess is not None:
            channels, size = model.preprocess.raw_channels, list(model.preprocess.raw_size)
        dims = len(size) if signal else None
        try:
            how = file_options(model.provenance, changed).to_dict()
            found = load_examples(source, dims=dims, in_channels=channels, **how)
        except (ValueError, OSError):
            raise error from None
        name = str(source) if isinstance(source, str | Path) else "the arrays"
        test = found.examples
        return Source(
            name, found.kind, found.dims, Classification(()), Examples([]), test, None, found.notes, None, test.channels
        )


def _preprocess(
    model: ModelParts, examples: Examples, targets: np.ndarray | None, source: str, mask: bool, notes: tuple[str, ...]
) -> ComparisonData:
    assert model.preprocess is not None
    batches = list(Inputs(examples, model.preprocess).loader(BATCH, workers=0))
    x = torch.cat([batch.x for batch in batches])
    masks = [torch.ones_like(b.x[:, 0], dtype=torch.bool) if b.mask is None else b.mask for b in batches]
    observed = torch.cat(masks)
    if mask:
        return ComparisonData(x, _hide_some(observed), targets, source, notes)
    complete = observed.flatten(1).all(1)
    if not complete.any():
        raise ValueError(f"no example of {source} is fully observed: export with --mask (mask=True)")
    if not complete.all():
        count = int((~complete).sum())
        notes += (f"{count} of {len(x)} examples are incomplete, which the file will refuse without --mask",)
    return ComparisonData(x[complete], None, None if targets is None else targets[complete.numpy()], source, notes)


def random_data(model: ModelParts, count: int, mask: bool) -> ComparisonData:
    """Standard normal inputs; with a mask, the last quarter of every other example is hidden."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *model.input_shape, generator=generator)
    size = model.input_shape[1:]
    observed = _hide_some(torch.ones(count, *size, dtype=torch.bool)) if mask else None
    return ComparisonData(x, observed, None, "random inputs, mean 0 and deviation 1 (real ones with --data)")


def _hide_some(observed: Tensor) -> Tensor:
    """Hide the last quarter of every other example, unless something is already hidden."""
    if observed.all():
        observed = observed.clone()
        observed[1::2, ..., -(observed.shape[-1] // 4) :] = False
    return observed


@dataclass(frozen=True)
class Comparison:
    """Differences from the model's outputs, or from its probabilities if the graph returns those."""

    examples: int  # number of examples
    batches: tuple[int, ...]  # batch sizes that were compared
    difference: float  # largest difference of a number; infinity if one is not finite
    spread: float  # standard deviation of the model's outputs of an example; of a single output over all examples
    agreement: float  # share of examples with the same largest output
    scores: tuple[float, float] | None  # headline score of the model and of the graph; None without targets

    @property
    def same(self) -> bool:
        """Whether the differences are within rounding."""
        return self.difference <= max(TOLERANCE * self.spread, 1e-6)


def compare(
    reference: Callable[[Tensor, Tensor | None], Tensor],
    runtime: Callable[[Tensor, Tensor | None], Tensor],
    data: ComparisonData,
    batches: tuple[int, ...],
    score: Callable[[Tensor], float] | None = None,
) -> Comparison:
    """Run both on the same examples: the runtime at every batch size, with all examples at the last one.

    `score` computes the headline score of outputs (n, outputs).
    """
    expected = torch.cat([reference(x, mask) for x, mask in data.batches(batches[-1], len(data.x))])
    largest = 0.0
    for size in batches:
        count = len(data.x) if size == batches[-1] else min(4 * size, len(data.x))
        found = torch.cat([runtime(x, mask) for x, mask in data.batches(size, count)])
        gap = (found - expected[:count]).abs().max().item() if found.shape == expected[:count].shape else torch.inf
        largest = max(largest, gap if gap == gap else torch.inf)
    centre = expected.mean(0 if expected.shape[1] == 1 else 1, keepdim=True)
    return Comparison(
        examples=len(data.x),
        batches=batches,
        difference=largest,
        spread=(expected - centre).square().mean().sqrt().item(),
        agreement=(expected.argmax(1) == found.argmax(1)).double().mean().item(),
        scores=None if score is None else (score(expected), score(found)),
    )
