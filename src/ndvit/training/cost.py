"""Seconds and memory that a training will need, estimated from a few steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.inference.batches import pick_device
from ndvit.model import Model
from ndvit.network import VisionTransformer
from ndvit.network.checkpointing import is_checkpointing
from ndvit.network.committee import first_transformer
from ndvit.network.fast import only_read_tokens
from ndvit.training.adapters import only_trainable
from ndvit.training.isolation import isolated
from ndvit.training.optim import build_optimizer, pick_precision

_MOST_BYTES = 2**29  # activations of a measured batch; larger batches are extrapolated
_FEW = 8  # examples whose reading is measured
_STEPS = 3  # steps that are measured, after one that is not; the quickest counts, because other programs disturb


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a training, without validation, test and report.

    Attributes:
        seconds: seconds of all steps; if the head is solved, of computing the features.
        step_seconds: seconds of one optimizer step; 0 if the head is solved.
        bytes: memory of weights, gradients, optimizer state and the activations of a batch.
        device: where it was measured.
    """

    seconds: float
    step_seconds: float
    bytes: int
    device: str

    def facts(self) -> dict[str, str]:
        """Time and memory in words."""
        step = f"{self.step_seconds:.2g} s per step" if self.step_seconds else "one pass over the examples"
        mebibytes = max(1, self.bytes / 2**20)
        memory = f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"
        return {
            "time": f"{_duration(self.seconds)} on this {self.device}, {step}; validation and test not included",
            "memory": f"about {memory} for weights, gradients, optimizer state and activations of a batch",
        }


def estimate_cost(model: Model, recipe: Recipe, train: Inputs, steps: int) -> Cost:
    """Measure the reading of a few examples, and a few steps of a copy of the network on random inputs.

    Args:
        model: an untrained or trained model, which is left unchanged.
        recipe: optimizer, batch size, accumulation, precision and device.
        train: training examples.
        steps: optimizer steps of the training; 0 if its head is solved.
    """
    device = pick_device(recipe.device)
    pretrained = model.load_report is not None
    network = copy.deepcopy(first_transformer(model.network)).to(device).train(steps > 0)
    network.grad_checkpointing = recipe.grad_checkpointing
    config = network.config
    with isolated(), only_read_tokens(network), only_trainable(network, recipe):
        optimizer = build_optimizer(network, recipe, pretrained)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad) if steps else 0
        # In float32: each weight; a gradient and two moments of each trained one.
        weights = 4 * sum(p.numel() for p in network.parameters()) + 12 * trained

        def step(examples: int) -> None:
            x = torch.randn(examples, config.in_channels, *config.input_size, device=device)
            with torch.autocast(device, torch.bfloat16, enabled=pick_precision(recipe).startswith("bf16")):
                output = network(x)
            if steps:
                loss: Tensor = sum(part.float().sum() for part in (output if isinstance(output, tuple) else (output,)))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if device != "cpu":
                torch.accelerator.synchronize()

        per_example = _activation_bytes(network, step)
        if not steps:  # without gradients, the activations of one block are in memory at a time
            per_example /= max(1, config.depth)
        examples = max(2, min(recipe.batch_size, int(_MOST_BYTES // max(per_example, 1))))
        with torch.set_grad_enabled(steps > 0):
            step(examples)
            computing = min(_seconds(step, examples) for _ in range(_STEPS)) / examples
    reading, workers = _reading_seconds(train, recipe)
    seconds = max(computing, reading / workers) if workers else computing + reading  # per example
    memory = weights + int(per_example * recipe.batch_size)
    if not steps:
        return Cost(seconds * len(train), 0.0, memory, device)
    step_seconds = seconds * recipe.batch_size * recipe.accumulate
    return Cost(step_seconds * steps, step_seconds, memory, device)


def _activation_bytes(network: VisionTransformer, step: Callable[[int], None]) -> float:
    """Bytes that autograd keeps for the backward pass of one example, without the weights."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}  # by storage, because several operations keep the same tensor

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    few = 2  # BatchNorm needs two examples
    plain = is_checkpointing.set(True)  # without the hooks of `fast`, which would hide tensors from these
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            step(few)
    finally:
        is_checkpointing.reset(plain)
    return sum(kept.values()) / few


def _reading_seconds(train: Inputs, recipe: Recipe) -> tuple[float, int]:
    """Seconds to read and augment one example, and the number of worker processes; 0 for streamed data."""
    stream = train.stream(recipe.batch_size, 1, recipe.seed, 0, recipe.workers, recipe.repeats)
    if train.examples.streamed:
        return 0.0, stream.num_workers
    batches: Any = stream.batch_sampler
    indices = next(iter(batches))[:_FEW]
    return _seconds(train.__getitems__, indices) / len(indices), stream.num_workers


def _seconds(function: Callable[[Any], object], argument: Any) -> float:
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than 1 s"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
