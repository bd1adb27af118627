"""Run a trained network over many examples, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ndvit.data.loading import Inputs
from ndvit.network.committee import transformers
from ndvit.network.fast import only_read_tokens
from ndvit.parts import ModelParts
from ndvit.tasks.base import Task


def pick_device(device: str) -> str:
    """The device of this name, or for "auto" the best available one.

    Raises:
        ValueError: if the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [name for name, present in available.items() if present]
    if device != "auto" and device not in found:
        raise ValueError(f"device {device} is not available: use auto or {' or '.join(found)}")
    return found[0] if device == "auto" else device


def predict_answers(
    model: ModelParts,
    inputs: Inputs,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = False,
    task: Task | None = None,
) -> np.ndarray:
    """Answers (n, outputs) of every example in order, float32; for classification, the probabilities.

    They are the activation of the task (by default the model's) of the outputs divided by the model's temperature.
    """
    task = task or model.task
    assert task is not None
    outputs = predict_outputs(model.network, inputs, batch_size, device, progress)
    return task.activate(outputs / model.temperature).numpy()


def predict_outputs(
    network: nn.Module, inputs: Inputs, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> Tensor:
    """Raw outputs (n, outputs) of every example in order, float32 on the CPU. The network is put into eval mode."""
    network = _on_device(network, device)
    with only_read_tokens(network):
        return _over_batches(network, inputs, batch_size, progress, "predicting")


def predict_features(
    network: nn.Module, inputs: Inputs, batch_size: int = 64, device: str = "auto", progress: bool = False
) -> np.ndarray:
    """What the head reads, (n, width) float32, of every example in order. The network is put into eval mode.

    The inputs of both heads of a distilled network are concatenated, and so are those of the members of a committee.
    Random convolutions have no such features and are left out.
    """
    network = _on_device(network, device)
    with only_read_tokens(network):
        rows = [_over_batches(one.features, inputs, batch_size, progress, "features") for one in transformers(network)]
    return torch.cat(rows, dim=1).numpy()


def _on_device(network: nn.Module, device: str) -> nn.Module:
    return network.to(pick_device(device)).eval()


def _over_batches(
    function: Callable[[Tensor, Tensor | None], Tensor], inputs: Inputs, batch_size: int, progress: bool, title: str
) -> Tensor:
    """Apply a function of (x, mask) to all examples; the result is on the CPU."""
    from tqdm import tqdm

    owner = function if isinstance(function, nn.Module) else function.__self__  # type: ignore[attr-defined]
    device = next((p.device for p in owner.parameters()), torch.device("cpu"))
    rows = []
    with torch.inference_mode():
        loader = inputs.loader(batch_size)
        for batch in tqdm(loader, desc=title, leave=False, disable=not progress or len(loader) < 10):
            mask = None if batch.mask is None else batch.mask.to(device)
            rows.append(function(batch.x.to(device), mask).float().cpu())
        if not rows:  # the width of the result is that of one example of zeros
            x = torch.zeros(1, inputs.preprocess.channels, *inputs.preprocess.size, device=device)
            return function(x, None).float().cpu()[:0]
    return torch.cat(rows)
