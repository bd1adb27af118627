"""Tiny runs for tests: a network of a few thousand weights, data of a few numbers, and what runs are compared by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ndvit.cli import commands as cli
from ndvit.training.run import Run, resume, train
from ndvit.weights.file import MODEL_FILE

TINY: dict[str, Any] = {"model": "vit_pico", "embed_dim": 16, "depth": 2, "num_heads": 2}
QUIET: dict[str, Any] = {"progress": False, "say": lambda line: None}


def toy(n=40, shape=(2, 16), classes=2, shift=0.5):
    """Noise (n, *shape) whose mean tells the class, and labels."""
    labels = np.arange(n) % classes
    noise = np.random.default_rng(0).normal(size=(n, *shape))
    return (noise + shift * labels.reshape(-1, *[1] * len(shape))).astype(np.float32), labels


def run_tiny(source, output: Path, **options: Any) -> Run:
    return train(source, output=output, **{**TINY, **QUIET, **options})


def resume_quietly(folder: Path, source=None) -> Run:
    return resume(folder, source=source, **QUIET)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / MODEL_FILE)


def same_result(one: Path, other: Path) -> bool:
    """Whether two runs left the same weights, bit for bit, and the same rows of metrics."""
    a, b = tensors(one), tensors(other)
    weights = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return weights and (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def command(*arguments: Any) -> int:
    """Run a command in this process and return its exit status."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code or 0  # type: ignore[return-value]


def flags(options: dict[str, Any]) -> list[str]:
    """Options as flags of the command line."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
