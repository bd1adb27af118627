"""Seconds and memory that a training will need: foreseen from the shapes alone, or measured in a few steps."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.data.messages import Doubt
from ndvit.inference.batches import pick_device
from ndvit.inference.progress import duration
from ndvit.model import Model
from ndvit.network import VisionTransformer, count_cost
from ndvit.network.checkpointing import is_checkpointing
from ndvit.network.committee import first_transformer, solved_networks, transformers
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.fast import only_read_tokens
from ndvit.network.random_convolutions import KERNELS, RandomConvolutions
from ndvit.tasks.base import Objective
from ndvit.training.adapters import only_trainable
from ndvit.training.closed_form import MOST_EXAMPLES
from ndvit.training.isolation import isolated
from ndvit.training.optim import build_optimizer, pick_precision

_MOST_BYTES = 2**29  # activations of a measured batch; larger batches are extrapolated
_FEW = 8  # examples whose reading is measured
_LARGE_BATCH, _LARGE_RUN = 2**31, 2e13  # bytes, and operations, in a crude estimate, from which on it is worth a look
_OF_STEM = 2000  # numbers that a convolutional stem keeps for an input value; it computes 600 times as many operations
_OF_FEATURE = 50  # operations that take as long as one sample of one feature of the random convolutions
_EFFICIENCY, _OF_LIGHT = 0.5, 0.2  # speed relative to one large product of matrices: of transformers, of light stems
_LONG = 24 * 3600  # seconds of training from which on a warning is worth it
_LONG_IF_HUGE = 600  # likewise, for examples of so many values along their axes that fewer would usually do
_HUGE = 2**18
_TOO_SLOW = 2.0  # seconds of a batch that are not measured any more
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
            "time": f"{duration(self.seconds)} on this {self.device}, {step}; validation and test not included",
            "memory": f"about {memory} for weights, gradients, optimizer state and activations of a batch",
        }


@dataclass(frozen=True)
class Foreseen:
    """Needs of a training that follow from the shapes alone; nothing was computed.

    Attributes:
        bytes: weights, gradients and optimizer state, and the activations of a batch that autograd keeps: a lower
            bound of the memory.
        operations: floating-point operations of one example: forward, and backward if there are steps.
        once: operations of one training example before the first step: those of the solved networks.
        efficiency: usual speed relative to one large product of matrices.
    """

    bytes: int
    operations: int
    once: int
    efficiency: float

    def seconds(self, device: str, seen: int, examples: int) -> float:
        """Seconds of a training: of all steps, which see so many examples, and of what is computed before them."""
        total = self.operations * seen + self.once * min(examples, MOST_EXAMPLES)
        return total / (self.efficiency * _speed(device)) if total > _LARGE_RUN else 0.0


def foresee_needs(model: Model, recipe: Recipe, steps: int) -> Foreseen:
    """Run a copy of the network on the meta device, which computes and allocates nothing.

    Args:
        model: an untrained or trained model, which is left unchanged.
        recipe: batch size, trained parts, gradient checkpointing.
        steps: optimizer steps; 0 if the head is solved.
    """
    solved = _foresee_solved(model)
    if not transformers(model.network):
        return solved
    config = first_transformer(model.network).config
    with torch.device("meta"):
        network = VisionTransformer(config).train(steps > 0)
    network.grad_checkpointing = recipe.grad_checkpointing
    with only_read_tokens(network), only_trainable(network, recipe):
        total = sum(p.numel() for p in network.parameters())
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad) if steps else 0

        per_example = _activation_bytes(network) / (1 if steps else max(1, config.depth))
        per_example /= 1 if pick_precision(recipe).startswith("32") else 2
    shards = recipe.replicas if recipe.strategy == "fsdp" else 1
    weights = (4 * total + 12 * trained) // shards
    return Foreseen(
        bytes=max(solved.bytes, weights + int(per_example * recipe.batch_size)),
        operations=2 * count_cost(config)[1] * (3 if steps else 1),
        once=solved.once,
        efficiency=_EFFICIENCY if config.stem == "none" else _OF_LIGHT,
    )


def _foresee_solved(model: Model) -> Foreseen:
    """Needs of the solved networks alone."""
    needed = once = 0
    for network in solved_networks(model.network):
        needed += 4 * sum(t.numel() for t in network.state_dict().values())
        if isinstance(network, RandomConvolutions):
            once += _OF_FEATURE * network.num_features * network.length
            needed = max(needed, 3 * 4 * KERNELS * network.channels * network.length)  # see `draw`
        elif isinstance(network, EncoderFeatures):
            once += network.num_views * 2 * count_cost(network.encoder.config)[1]
    return Foreseen(bytes=needed, operations=0, once=once, efficiency=_OF_LIGHT)


def foresee(model: Model, recipe: Recipe, examples: int, steps: int, members: int = 1) -> list[str]:
    """Check that a training can fit into memory and end within a day, or ten minutes if its examples are huge.

    Small trainings are not looked at.

    Args:
        model: the first member.
        recipe: how it is trained.
        examples: number of training examples.
        steps: optimizer steps; 0 if the head is solved.
        members: networks that are trained one after the other.

    Returns:
        A `Doubt` if the training would need most of the memory, or more than that time.

    Raises:
        ValueError: if a single step needs more memory than the device has.
    """
    if not transformers(model.network):
        return []
    config = model.config
    seen = steps * recipe.accumulate * recipe.batch_size or examples
    tokens, values = config.num_patches, config.in_channels * math.prod(config.input_size)
    of_stem = values * (1 if config.stem == "none" else _OF_STEM)
    parameters = sum(p.numel() for p in first_transformer(model.network).parameters())
    batch_bytes = 4 * recipe.batch_size * (20 * tokens * config.embed_dim * config.depth + of_stem)
    operations = 6 * tokens * (parameters + 2 * tokens * config.embed_dim * config.depth) + 600 * of_stem
    if batch_bytes < _LARGE_BATCH and members * seen * operations < _LARGE_RUN:
        return []
    device, needs = pick_device(recipe.device), foresee_needs(model, recipe, steps)
    memory, notes = _memory(device), list[str]()
    shape = (
        f"{config.in_channels} x {' x '.join(map(str, config.input_size))} values as {config.num_patches:,} tokens of "
        f"{' x '.join(map(str, config.token_size))}, {recipe.batch_size:,} examples in a batch"
    )
    smaller = (
        f"a smaller input, such as --input-size {' '.join(str(max(1, n // 8)) for n in config.input_size)} "
        "(input_size=; recordings then have a lower sample rate), larger patches (--patch-size, patch_size=)"
    )
    raw = config.input_size if model.preprocess is None else model.preprocess.raw_size
    if len(raw) == 1:
        smaller = f"{_advised_window(model, raw[0], needs.bytes, recipe)}, {smaller}"
    if needs.bytes > 0.8 * memory:
        note = (
            f"a training step needs at least {_size(needs.bytes)} of memory, and this {device} has {_size(memory)}: "
            f"{shape}. Use {smaller}, a smaller --batch-size (batch_size=), or --grad-checkpointing"
        )
        if needs.bytes > memory:
            raise ValueError(note)
        notes.append(Doubt(note))
    seconds = members * needs.seconds(device, seen, examples)
    if seconds > (_LONG if math.prod(config.input_size) < _HUGE else _LONG_IF_HUGE):
        length = f"the {steps * members:,} steps would take" if steps else "computing the features would take"
        length = f"the random convolutions and {length}" if needs.once else length
        notes.append(
            Doubt(
                f"{length} {duration(seconds)} on this {device}: {shape}, {needs.operations / 1e9:.3g} GFLOP an "
                f"example. Use {smaller}, or fewer --steps (steps=)"
            )
        )
    return notes


def _advised_window(model: Model, length: int, step: int, recipe: Recipe) -> str:
    """Advice to cut recordings of this length into windows of an eighth, with the memory that a step then needs."""
    window = 2 ** max(4, math.floor(math.log2(length / 8)))
    weights = 16 * sum(p.numel() for p in model.network.parameters())
    memory = weights + max(0, step - weights) * window / length
    rate = getattr(model.preprocess, "sample_rate", None)
    written = f"{window}" if rate is None else f"{window / rate:.2g}s"
    return (
        f"windows, such as --window {written} (window=; the mean of {math.ceil(length / window)} windows is the "
        f"answer of such a recording, and a step of {recipe.batch_size:,} windows needs about {_size(memory)})"
    )


class _FusedAttention(TorchFunctionMode):
    """Lets attention keep what the fused kernels keep: the meta device would count their matrix of scores as kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not kwargs.get("dropout_p"):
            mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args[:3], 0.0, False, attn_mask=mask, scale=scale)[0]
        return func(*args, **kwargs)


def _memory(device: str) -> int:
    """Bytes of memory of a device; of the CPU, what this process may use of it."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 2**63
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of containers
        with suppress(OSError, ValueError):  # without a limit, the text is max, or there is no such file
            total = min(total, int(Path(limit).read_text()))
    return total


def _speed(device: str) -> float:
    """Floating-point operations per second of a product of matrices, which takes some hundredths of a second."""
    a = torch.ones(1024, 1024, device=device)

    def multiply(times: int) -> None:
        for _ in range(times):
            a @ a
        if device != "cpu":
            torch.accelerator.synchronize()

    multiply(1)
    return 2 * 1024**3 / min(_seconds(multiply, 1) for _ in range(3))


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"


def estimate_cost(model: Model, recipe: Recipe, train: Inputs, steps: int, objective: Objective | None = None) -> Cost:
    """Measure the reading of a few examples, and a few steps of a copy of the network on random inputs.

    Steps that would take long are not measured: their time follows from the number of operations.

    Args:
        model: an untrained or trained model, which is left unchanged.
        recipe: optimizer, batch size, accumulation, precision and device.
        train: training examples.
        steps: optimizer steps of the training; 0 if its head is solved.
        objective: what is trained beside the network of a task without targets.
    """
    device = pick_device(recipe.device)
    if not transformers(model.network):
        needs = foresee_needs(model, recipe, steps)
        return Cost(needs.once * min(len(train), MOST_EXAMPLES) / _speed(device), 0.0, needs.bytes, device)
    pretrained = model.load_report is not None
    network = copy.deepcopy(first_transformer(model.network)).to(device).train(steps > 0)
    network.grad_checkpointing = recipe.grad_checkpointing
    config = network.config
    read = only_read_tokens(network) if objective is None else nullcontext()
    with isolated(), read, only_trainable(network, recipe):
        optimizer = build_optimizer(network, recipe, pretrained, objective)
        objective = None if objective is None else objective.to(device)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad) if steps else 0
        # In float32: each weight; a gradient and two moments of each trained one.
        weights = 4 * sum(p.numel() for p in network.parameters()) + 12 * trained

        def step(examples: int) -> None:
            x = torch.randn(examples, config.in_channels, *config.input_size, device=device)
            with torch.autocast(device, torch.bfloat16, enabled=pick_precision(recipe).startswith("bf16")):
                output = network(x) if objective is None else objective(network, x, None)[0]
            if steps:
                loss: Tensor = sum(part.float().sum() for part in (output if isinstance(output, tuple) else (output,)))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if device != "cpu":
                torch.accelerator.synchronize()

        needs = foresee_needs(model, recipe, steps)
        per_example = (needs.bytes - weights) / recipe.batch_size
        examples = max(2, min(recipe.batch_size, int(_MOST_BYTES // max(per_example, 1))))
        examples += examples % 2 if objective is not None else 0  # whole pairs
        computing = needs.operations / (needs.efficiency * _speed(device))
        if computing * examples < _TOO_SLOW:
            with torch.set_grad_enabled(steps > 0):
                step(examples)
                computing = min(_seconds(step, examples) for _ in range(_STEPS)) / examples
    reading, workers = _reading_seconds(train, recipe)
    seconds = max(computing, reading / workers) if workers else computing + reading  # per example
    if not steps:
        return Cost(seconds * len(train), 0.0, needs.bytes, device)
    before = needs.seconds(device, 0, len(train))
    step_seconds = seconds * recipe.batch_size * recipe.accumulate
    return Cost(step_seconds * steps + before, step_seconds, needs.bytes, device)


def _activation_bytes(network: VisionTransformer) -> float:
    """Bytes that autograd keeps for the backward pass of one example, without the weights, of a network on meta."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # by identity, because several operations keep the same tensor

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its identity is not used again
        return tensor

    few = 2  # BatchNorm needs two examples
    x = torch.empty(few, network.config.in_channels, *network.config.input_size, device="meta")
    plain = is_checkpointing.set(True)  # without the hooks of `fast`, which would hide tensors from these
    try:
        with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(x)
    finally:
        is_checkpointing.reset(plain)
    return sum(storage.nbytes() for storage in kept.values()) / few


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
