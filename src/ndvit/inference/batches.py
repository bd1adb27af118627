"""Run a trained network over many examples, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndvit import processes
from ndvit.data.loading import Inputs
from ndvit.inference.progress import ProgressLines
from ndvit.network.committee import solved_networks, transformers
from ndvit.network.fast import only_read_tokens
from ndvit.parts import ModelParts
from ndvit.tasks.base import Task

Log = Callable[[str], Any]


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
    log: Log | None = None,
    shared: bool = False,
) -> np.ndarray:
    """Answers (n, outputs) of every example in order, float32; for classification, the probabilities.

    They are the activation of the task (by default the model's) of the outputs divided by the model's temperature.
    With `progress` there is a progress bar; without, `log` receives lines about the progress of long work. With
    `shared`, all processes of the run call this, each computes a part, and all get the whole.

    Raises:
        ValueError: for an answer that is not finite, with the name of its example.
    """
    outputs = predict_outputs(model.network, inputs, batch_size, device, progress, log, shared)
    answers = to_answers(model, outputs, task)
    check_finite(answers, inputs.examples.names, "the answer")
    return answers.numpy()


def answer_tensors(
    model: ModelParts, x: Tensor, mask: Tensor | None, batch_size: int = 64, device: str = "auto"
) -> Tensor:
    """Answers (n, outputs) as in `predict_answers`, of inputs of the network; on the device that computes them.

    Raises:
        ValueError: for answers that are not finite.
    """
    task, network = model.task, on_device(model.network, device)
    assert task is not None
    place = model.device
    with torch.no_grad(), only_read_tokens(network):
        rows = [
            network(part.to(place), None if mask is None else mask[start : start + batch_size].to(place)).float()
            for start, part in zip(range(0, max(len(x), 1), batch_size), x.split(batch_size))
        ]
    answers = to_answers(model, torch.cat(rows), task)
    check_finite(answers, [f"x[{i}]" for i in range(len(x))], "the answer")
    return answers


def to_answers(model: ModelParts, outputs: Tensor, task: Task | None = None) -> Tensor:
    """Answers of raw outputs (n, outputs) of the model's network: the one place where probabilities come from."""
    task = task or model.task
    assert task is not None
    return task.activate(outputs / model.temperature)


def predict_outputs(
    network: nn.Module,
    inputs: Inputs,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = False,
    log: Log | None = None,
    shared: bool = False,
) -> Tensor:
    """Raw outputs (n, outputs) of every example in order, float32 on the CPU. The network is put into eval mode.

    With `shared`, all processes of the run call this, each computes a part, and all get the whole.
    """
    network = on_device(network, device)
    with only_read_tokens(network):
        return _over_batches(network, inputs, batch_size, progress, "predicting", log, shared)


def predict_features(
    network: nn.Module,
    inputs: Inputs,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = False,
    log: Log | None = None,
) -> np.ndarray:
    """What the head reads, (n, width) float32, of every example in order. The network is put into eval mode.

    The inputs of both heads of a distilled network are concatenated, and so are those of the members of a committee.
    Members whose features are fixed count only if no other network was trained.

    Raises:
        ValueError: for features that are not finite, with the name of their example.
    """
    network = on_device(network, device)
    with only_read_tokens(network):
        readers: Sequence[Any] = transformers(network) or solved_networks(network)
        functions = [one.features for one in readers]
        rows = [_over_batches(one, inputs, batch_size, progress, "features", log) for one in functions]
    features = torch.cat(rows, dim=1)
    check_finite(features, inputs.examples.names, "the embedding")
    return features.numpy()


def check_finite(rows: Tensor, names: Sequence[str], what: str) -> None:
    """Raise a ValueError with the name of the first example whose row is not finite."""
    bad = (~rows.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        name, others = names[bad[0]], f" (and of {len(bad) - 1:,} others)" * (len(bad) > 1)
        raise ValueError(
            f"{what} for {name}{others} is NaN or infinite: its values are too large for the network, or the weights "
            "or the preprocessing of the model are damaged. Look at the example, then at the model with `ndvit info`"
        )


def on_device(network: nn.Module, device: str) -> nn.Module:
    """The network on a device, in eval mode."""
    place = pick_device(device)
    # Looking is cheaper than moving and switching, which take as long as a tenth of a small network's prediction.
    if any(tensor.device.type != place for tensor in chain(network.parameters(), network.buffers())):
        network.to(place)
    if any(module.training for module in network.modules()):
        network.eval()
    return network


def _over_batches(
    function: Callable[[Tensor, Tensor | None], Tensor],
    inputs: Inputs,
    batch_size: int,
    progress: bool,
    title: str,
    log: Log | None,
    shared: bool = False,
) -> Tensor:
    """Apply a function of (x, mask) to all examples; the result is on the CPU. See `predict_outputs` for `shared`."""
    from tqdm import tqdm

    owner = function if isinstance(function, nn.Module) else function.__self__  # type: ignore[attr-defined]
    device = next((p.device for p in owner.parameters()), torch.device("cpu"))
    rows = []
    lines, total = None, len(inputs)
    parts, part = (processes.size(), processes.rank()) if shared else (1, 0)
    own = processes.dealt(total, parts, part)
    if log is not None and not progress:
        lines = ProgressLines(log, title + ": {done:,} of {total:,} examples", total)
    with torch.inference_mode():
        loader = inputs.loader(batch_size, chosen=own)
        for batch in tqdm(loader, desc=title, leave=False, disable=not progress or len(loader) < 10):
            mask = None if batch.mask is None else batch.mask.to(device)
            rows.append(function(batch.x.to(device), mask).float().cpu())
            if lines is not None:
                lines.update(min(total, parts * batch_size * len(rows)))
        if not rows:  # the width of the result is that of one example of zeros
            x = torch.zeros(1, inputs.preprocess.channels, *inputs.preprocess.size, device=device)
            rows.append(function(x, None).float().cpu()[:0])
    found = torch.cat(rows)
    return processes.gathered_rows(found, total) if parts > 1 else found
