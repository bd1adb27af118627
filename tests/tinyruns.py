"""Tiny runs for tests: a network of a few thousand weights, data of a few numbers, and comparisons of results."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ndvit.cli import main
from ndvit.config.reading import ReadingOptions, take_reading_options
from ndvit.training import presets
from ndvit.training.fit import Trained, fit
from ndvit.training.plan import Request, plan
from ndvit.training.run import Run, resume, train
from ndvit.weights.file import MODEL_FILE

TINY: dict[str, Any] = {"model": "vit_pico", "embed_dim": 16, "depth": 2, "num_heads": 2}
QUIET: dict[str, Any] = {"progress": False, "log": lambda line: None}
UNSPLIT = ReadingOptions(test_fraction=0)


def make_fast_quick(monkeypatch):
    """Preset fast with 168 of 10,000 random convolutions, and with fewer steps for signals that are too short."""
    monkeypatch.setattr("ndvit.config.solved.DEFAULT_FEATURES", 168)
    monkeypatch.setattr(presets, "_SHORTEST", replace(presets._SHORTEST, recipe={"steps": 40, "learning_rate": 2e-2}))


def toy(n=40, shape=(2, 16), classes=2, shift=0.5):
    """Noise (n, *shape) whose mean tells the class, and labels."""
    labels = np.arange(n) % classes
    noise = np.random.default_rng(0).normal(size=(n, *shape))
    return (noise + shift * labels.reshape(-1, *[1] * len(shape))).astype(np.float32), labels


def run_tiny(source, output: Path, **options: Any) -> Run:
    """A whole run with its folder and report, which takes ten times as long as `fit_tiny`."""
    return train(source, output=output, **{**TINY, **QUIET, **options})


def fit_tiny(source, folder: Path | None = None, *, resume: bool = False, **options: Any) -> Trained:
    """Plan and training alone, without a test and a report; trained `weights` have a network of their own."""
    options = {"progress": False, "source": source, **({} if "weights" in options else TINY), **options}
    names = {field.name for field in fields(Request)}
    request = {name: options.pop(name) for name in names & options.keys()}
    reading, options = take_reading_options(options)
    return fit(plan(Request(**request, reading=reading, options=options)), folder, resume=resume, **QUIET)


def resume_quietly(folder: Path, source=None) -> Run:
    return resume(folder, source=source, **QUIET)


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a run folder, of a network, or of anything with a `model`, by name."""
    if isinstance(model, Path):
        return load_file(model / MODEL_FILE)
    network = model if isinstance(model, nn.Module) else model.model.network
    return network.state_dict()


def different(one: Any, other: Any, tolerance: float = 0.0) -> set[str]:
    """Names of the tensors in which two models differ, by default in any bit."""
    a, b = tensors(one), tensors(other)
    shared = {name for name in a if name in b and a[name].shape == b[name].shape}
    close = {name for name in shared if torch.allclose(a[name], b[name], rtol=0, atol=tolerance)}
    return (a.keys() | b.keys()) - close


def same_result(one: Path, other: Path) -> bool:
    """Whether two runs left the same weights, bit for bit, and the same rows of metrics."""
    return not different(one, other) and (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def command(*arguments: Any) -> int:
    """Run a command in this process and return its exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0  # type: ignore[return-value]


def flags(options: dict[str, Any]) -> list[str]:
    """Options as flags of the command line."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
