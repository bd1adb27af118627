"""The parts of a network that are solved instead of descended: random convolutions, and a head on frozen features."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.inference.batches import Log, predict_features
from ndvit.inference.progress import ProgressLines
from ndvit.network import VisionTransformer
from ndvit.network.committee import random_convolutions
from ndvit.network.random_convolutions import RandomConvolutions
from ndvit.tasks.base import Task

MOST_EXAMPLES = 4096  # solving takes time cubic in their number, and with more the network is the better part anyway
_MOST_DRAWN_ON = 512  # examples that the biases are drawn from
_MOST_VALUES = 2**26  # values in them
_LONG = 2048  # examples on which solving takes more than a few seconds


def check_solvers(task: Task, recipe: Recipe, network: nn.Module) -> None:
    """Raise the ValueError of a task that cannot solve what a training solves: a head, or random convolutions."""
    if recipe.head == "solved" and type(task).solve_head is Task.solve_head:
        task.solve_head(np.empty((0, 0)), np.empty(0), recipe)
    if random_convolutions(network) is not None and type(task).solve_ridge is Task.solve_ridge:
        task.solve_ridge(torch.empty(0, 0), torch.empty(0), recipe, torch.empty(0))


def solve_random_convolutions(
    convolutions: RandomConvolutions, inputs: Inputs, task: Task, recipe: Recipe, log: Log | None = None
) -> dict[str, float]:
    """Draw the biases of the kernels and solve the linear head, on training examples without augmentation.

    Args:
        convolutions: changed in place.
        inputs: training examples; of more than 4,096, a stratified sample of that many is used, with more examples of
            classes with a larger weight.
        task: solves the head, see `Task.solve_ridge`.
        recipe: options of the loss, worker processes, and the seed of the sample and of the biases.
        log: receives lines about the progress of long work; None for none.

    Returns:
        What leaving one example out gave, see `Ridge.facts`.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    targets = inputs.targets
    assert targets is not None
    strata = task.strata(targets.numpy())
    weights = task.example_weights(recipe, targets, targets)
    sample = _sample(len(inputs), None if strata is None else torch.from_numpy(strata), weights, generator)
    device = convolutions.biases.device
    few = max(1, min(_MOST_DRAWN_ON, _MOST_VALUES // math.prod((inputs.preprocess.channels, *inputs.preprocess.size))))
    drawn_on = sample if len(sample) <= few else sample[torch.randperm(len(sample), generator=generator)[:few]]
    some = inputs.__getitems__(drawn_on.tolist())
    convolutions.draw(some.x.to(device), None if some.mask is None else some.mask.to(device), generator)
    lines = None
    if log is not None:
        lines = ProgressLines(log, "random convolutions: {done:,} of {total:,} examples", len(sample))
    rows = []  # the inputs are read a batch at a time, because long signals do not fit into memory all at once
    for batch in inputs.loader(64, recipe.workers, sample.tolist()):
        mask = None if batch.mask is None else batch.mask.to(device)
        rows.append(convolutions.features(batch.x.to(device), mask))
        if lines is not None:
            lines.update(sum(map(len, rows)))
    features = torch.cat(rows)
    convolutions.mean.copy_(features.mean(0))
    spread = features.std(0, correction=0)
    convolutions.scale.copy_(torch.where(spread > 1e-6, 1 / spread, 0))  # constant features are left out
    features = (features - convolutions.mean) * convolutions.scale
    if log is not None and len(sample) >= _LONG:
        log(f"random convolutions: solving the head on {len(sample):,} examples, which takes up to a minute")
    solution = task.solve_ridge(features, targets[sample].to(device), recipe, targets)
    convolutions.head.weight.copy_(solution.weight)
    convolutions.head.bias.copy_(solution.bias)
    return solution.facts


def _sample(count: int, strata: Tensor | None, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """Sorted indices of at most 4,096 examples: at least two of each stratum if it has them.

    Strata have shares in proportion to the sum of their examples' weights, or all of their examples if that is less.
    """
    order = torch.randperm(count, generator=generator)
    if count <= MOST_EXAMPLES:
        return order.sort().values
    if strata is None:
        return order[:MOST_EXAMPLES].sort().values
    priority = torch.empty(count, dtype=torch.float64)  # the place of an example within its stratum, as a share
    for stratum in strata.unique():
        places = (strata[order] == stratum).nonzero()[:, 0]
        rank = torch.arange(len(places), dtype=torch.float64)
        total = len(places) if weights is None else float(weights[order[places]].double().sum())
        priority[places] = torch.where(rank < 2, -1, rank / max(total, 1e-12))
    return order[priority.argsort(stable=True)[:MOST_EXAMPLES]].sort().values


def solve_head(
    network: VisionTransformer,
    task: Task,
    recipe: Recipe,
    train: Inputs,
    val: Inputs | None,
    progress: bool = True,
    log: Log | None = None,
) -> dict[str, float]:
    """Solve the head of a network in place, on features that are computed once, without augmentation.

    Both heads of a distilled network get their part of one solution. An auxiliary head over a stem, which is not used
    in evaluation, is left unchanged.

    Args:
        network: put into eval mode.
        task: solves the head, see `Task.solve_head`.
        recipe: options of the loss, batch size, device and seed.
        train: training examples.
        val: validation examples that the regularisation is chosen by; without them see `Task.solve_head`.
        progress: show a progress bar.
        log: receives lines about the progress of long work, if there is no progress bar.

    Returns:
        Loss and metrics on the training examples and, if there are some, the validation examples.

    Raises:
        ValueError: if the network has no head, or features are not finite.
    """
    if not network.config.num_classes:
        raise ValueError("the network has 0 classes, so there is no head to solve: create one with reset_head")
    parts: dict[str, tuple[np.ndarray, Tensor]] = {}
    for name, inputs in (("train", train), ("val", val)):
        if inputs is not None and inputs.targets is not None:
            features = predict_features(network, inputs, recipe.batch_size, recipe.device, progress, log)
            parts[name] = features, inputs.targets
    held = parts.get("val")
    features, targets = parts["train"]
    solution = task.solve_head(features, targets.numpy(), recipe, None if held is None else (held[0], held[1].numpy()))
    heads = [network.head, *([network.head_dist] if network.config.distilled else [])]
    with torch.no_grad():
        # A distilled network returns the mean of its heads, so each gets its part of the weights times their number.
        for head, weight in zip(heads, np.split(solution.weight * len(heads), len(heads), axis=1)):
            assert isinstance(head, nn.Linear)
            head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            head.bias.copy_(torch.from_numpy(solution.bias))
    criterion, row = task.criterion(recipe, targets), {}
    for name, (features, targets) in parts.items():
        outputs = torch.from_numpy(solution.outputs(features))
        metrics = criterion.batch_metrics(outputs, criterion.prepare(targets))
        row[f"{name}_loss"] = float(criterion.validation_loss(outputs, targets))
        row |= {f"{name}_{metric}": float(value) for metric, value in metrics.items()}
    return row
