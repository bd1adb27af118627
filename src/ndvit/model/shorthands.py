"""The methods of `Model` as functions of a file, a run or a published name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ndvit.evaluation.base import Evaluation
from ndvit.inference import embed as _embed
from ndvit.inference.embed import Embeddings
from ndvit.model.loading import load_features, load_model
from ndvit.model.model import Model
from ndvit.tasks.base import Prediction

if TYPE_CHECKING:
    from ndvit.exporting.bundle import BundleReport
    from ndvit.exporting.export import ExportReport


def compile(model: Model | nn.Module | str | Path, **options: Any) -> Model:
    """The model run in the fastest way on this machine that gives the same answers, found by measuring.

    See `ndvit.exporting.compiling.fastest` for the options and errors.

    Example:
        >>> import ndvit
        >>> network = ndvit.create_model("vit_pico", input_size=(64,), patch_size=8, in_channels=1, num_classes=3)
        >>> fast = ndvit.compile(ndvit.Model(network), batch_size=2, ways=("onnxruntime",), rounds=1, log=str)
        >>> fast.config.num_classes
        3
    """
    from ndvit.exporting.compiling import fastest

    model = _open(model)
    return model.with_network(fastest(model, **options))


def predict(model: Model | str | Path, *inputs: Any, ema: bool | None = None, **options: Any) -> list[Prediction]:
    """`load_model(model, ema=ema).predict(*inputs, **options)`.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> run = ndvit.train((X, y), preset="fast", output="runs/predict", progress=False, log=str)
        >>> ndvit.predict("runs/predict", X[:1])[0].label
        'low'
    """
    return _open(model, ema).predict(*inputs, **options)


def predict_to(model: Model | str | Path, *inputs: Any, ema: bool | None = None, **options: Any) -> int:
    """`load_model(model, ema=ema).predict_to(*inputs, **options)`."""
    return _open(model, ema).predict_to(*inputs, **options)


def evaluate(model: Model | str | Path, source: Any, *, ema: bool | None = None, **options: Any) -> Evaluation:
    """`load_model(model, ema=ema).evaluate(source, **options)`.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> run = ndvit.train((X, y), preset="fast", output="runs/evaluate", progress=False, log=str)
        >>> ndvit.evaluate("runs/evaluate", (X, y), progress=False, log=str).accuracy > 0.9
        True
    """
    return _open(model, ema).evaluate(source, **options)


def embed(model: Model | str | Path, source: Any, *, ema: bool | None = None, **options: Any) -> Embeddings:
    """`load_model(model, ema=ema).embed(source, **options)`; an output that cannot be written is refused first.

    A head that ndvit cannot compute does not matter.

    Example:
        >>> import numpy as np
        >>> import ndvit
        >>> y = np.repeat(["low", "high"], 20)
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 32)) + (y == "high")[:, None, None]
        >>> run = ndvit.train((X, y), preset="fast", output="runs/embed", progress=False, log=str)
        >>> ndvit.embed("runs/embed", X, progress=False).vectors.shape[0]
        40
    """
    if options.get("output") is not None:
        _embed.check_output(Path(options["output"]), options.get("force", False))
    opened = load_features(model, ema=ema) if isinstance(model, str | Path) else _open(model, ema)
    return opened.embed(source, **options)


def export(
    model: Model | str | Path, path: str | Path | None = None, *, ema: bool | None = None, **options: Any
) -> ExportReport:
    """`load_model(model, ema=ema).export(path, **options)`; without a path, the file is written beside the weights.

    Example:
        >>> import ndvit
        >>> network = ndvit.create_model("vit_pico", input_size=(64,), patch_size=8, in_channels=1, num_classes=3)
        >>> report = ndvit.export(ndvit.Model(network), "model.onnx")  # compared with the model before it is kept
        >>> ndvit.load_model("model.onnx").config.num_classes
        3
    """
    return _open(model, ema).export(path, **options)


def export_bundle(
    model: Model | str | Path, folder: str | Path, *, ema: bool | None = None, **options: Any
) -> BundleReport:
    """`load_model(model, ema=ema).export_bundle(folder, **options)`."""
    return _open(model, ema).export_bundle(folder, **options)


def _open(source: Model | nn.Module | str | Path, ema: bool | None = None) -> Model:
    if not isinstance(source, Model | nn.Module):
        return load_model(source, ema=ema)
    if ema is not None:
        raise ValueError(f"ema={ema} chooses among the weights of a file, and this model is in memory: leave it out")
    return source if isinstance(source, Model) else Model(source)
