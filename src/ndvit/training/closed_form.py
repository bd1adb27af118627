"""The parts of a network that are solved instead of descended: networks of fixed features, and heads on frozen ones."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ndvit.config.bounds import counted
from ndvit.config.recipe import Recipe
from ndvit.data.loading import Inputs
from ndvit.inference.batches import Log, predict_features, predict_outputs
from ndvit.inference.progress import ProgressLines, duration
from ndvit.network import VisionTransformer
from ndvit.network.committee import output_committees, solved_networks, transformers
from ndvit.network.encoder_features import EncoderFeatures
from ndvit.network.level_features import LevelFeatures
from ndvit.network.solved import SolvedNetwork
from ndvit.tasks.base import Ridge, Task

ENCODER_WEIGHT = 1 / 3
"""Usual weight of the encoder in its mean with random convolutions."""
MOST_EXAMPLES = 4096  # solving takes time cubic in their number, and with more the network is the better part anyway
_MOST_DRAWN_ON = 512  # examples that the biases are drawn from
_MOST_VALUES = 2**26  # values in them
_SHARES = [i / 20 for i in range(21)]  # of a member in a mean
_PRIOR = 10.0  # how strongly the usual weight is preferred, in nats: see `best_share`
_TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0)
_FINE = tuple(2 ** (i / 16) for i in range(-64, 65))  # steps of 4 %, for networks that usually do not count
_BATCH, _BATCH_VALUES = 64, 2**16  # examples whose features are computed together, and values in them
_MUCH = 2e9  # features times values of all examples from which on a line says that they are computed
_WORTH_A_LINE = 10.0  # seconds of the features of all examples from which on a line says so
_LONG = 2048  # examples on which solving takes more than a few seconds


class _Head(NamedTuple):
    """Standardisation of features and the head on them."""

    mean: Tensor
    scale: Tensor
    ridge: Ridge


class Solved(NamedTuple):
    """What `solve_networks` found for a network: the encoded targets of the examples, their weights, and the solution.

    The weights (n,) are those of the examples in the loss; None if all count equally.
    """

    targets: Tensor
    weights: Tensor | None
    ridge: Ridge


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of n examples that heads are solved on.

    Attributes:
        task: has the solver and the losses.
        recipe: options of the loss.
        population: encoded targets of all training examples, of which these may be a sample.
        targets: (n, ...) encoded targets.
        groups: (n,) integers; examples of a group are left out together. None if each is its own.
        weights: (n,) weights of the examples, without those of their classes; None if all are equal.
    """

    task: Task
    recipe: Recipe
    population: Tensor
    targets: Tensor
    groups: Tensor | None
    weights: Tensor | None

    @property
    def loss_weights(self) -> Tensor | None:
        """Weights (n,) in the loss: those of the classes times those of the examples; None if all count equally."""
        by_class = self.task.example_weights(self.recipe, self.targets.cpu(), self.population)
        if by_class is None:
            return self.weights
        by_class = by_class.to(self.targets.device)
        return by_class if self.weights is None else by_class * self.weights

    def solve(self, features: Tensor) -> Ridge:
        """The solution for features (n, F)."""
        return self.task.solve_ridge(features, self.targets, self.recipe, self.population, self.groups, self.weights)

    def repeated(self, times: int) -> "_Known":
        """The examples as often as this, one copy after the other; an example is left out together with its copies."""
        own = torch.arange(len(self.targets), device=self.targets.device)
        targets, groups = (
            torch.cat([one] * times) for one in (self.targets, own if self.groups is None else self.groups)
        )
        weights = None if self.weights is None else torch.cat([self.weights] * times)
        return replace(self, targets=targets, groups=groups, weights=weights)

    def loss(self, outputs: Tensor) -> float:
        """The mean loss of outputs (n, outputs)."""
        return _mean_loss(self.task, outputs, self.targets, self.loss_weights)

    def judged(self, ridge: Ridge) -> dict[str, float]:
        """Facts of a solution, whose loss and accuracy are those of its own outputs for examples left out."""
        facts = ridge.facts | {"examples": float(len(self.targets))}
        shows = ridge.left_out.ne(0).any(1)  # of examples that show nothing when they are left out, all outputs are 0
        if "loss" not in facts or not shows.any():
            return facts
        outputs, targets, weights = ridge.left_out[shows], self.targets[shows], self.loss_weights
        weights = None if weights is None else weights[shows]
        facts["loss"] = _mean_loss(self.task, outputs, targets, weights)
        if "accuracy" in facts:
            facts["accuracy"] = _mean((outputs.argmax(1) == targets).double(), weights)
        return facts


def check_solvers(task: Task, recipe: Recipe, network: nn.Module) -> None:
    """Raise the ValueError of a task that cannot solve what a training solves: a head, or random convolutions."""
    if recipe.head == "solved" and transformers(network) and type(task).solve_head is Task.solve_head:
        task.solve_head(np.empty((0, 0)), np.empty(0), recipe)
    if solved_networks(network) and type(task).solve_ridge is Task.solve_ridge:
        task.solve_ridge(torch.empty(0, 0), torch.empty(0), recipe, torch.empty(0))


def solve_networks(
    networks: Sequence[SolvedNetwork],
    inputs: Inputs,
    task: Task,
    recipe: Recipe,
    log: Log | None = None,
    progress: bool = False,
) -> list[Solved]:
    """Draw what is random about the features of networks, and solve their heads, in place.

    Args:
        networks: changed in place.
        inputs: training examples, without augmentation; of more than 4,096, a stratified sample of that many is used,
            with more examples of classes with a larger weight. With `recipe.speeds`, up to 4,096 examples and copies
            of them at other speeds are used, if leaving out an example with its copies shows that the copies help.
        task: solves the heads, see `Task.solve_ridge`.
        recipe: options of the loss, worker processes, and the seed of the sample and of what is drawn.
        log: receives lines about long work: how long it will take, and without a progress bar how far it is; None for
            none.
        progress: show a progress bar if the work takes more than two seconds.
    """
    from tqdm import tqdm

    targets = inputs.targets
    assert targets is not None
    if not networks:
        return []
    strata = task.strata(targets.numpy())
    shares = task.example_weights(recipe, targets, targets)
    generator = torch.Generator().manual_seed(recipe.seed)
    sample = _sample(len(inputs), None if strata is None else torch.from_numpy(strata), shares, generator)
    if log is not None and len(sample) * sum(one.num_features * math.prod(one.shape) for one in networks) > _MUCH:
        made_of = " + ".join(f"{one.num_features:,}" for one in networks)
        values = f"{math.prod(networks[0].shape):,} values"
        log(f"computing {made_of} features of {counted(len(sample), 'example')} of {values}")
        sys.stdout.flush()
    device = networks[0].mean.device
    few = max(1, min(_MOST_DRAWN_ON, _MOST_VALUES // math.prod(networks[0].shape)))
    drawn_on = sample if len(sample) <= few else sample[torch.randperm(len(sample), generator=generator)[:few]]
    some = inputs.__getitems__(drawn_on.tolist())
    for network in networks:
        network.draw(some.x.to(device), None if some.mask is None else some.mask.to(device), generator)
    speeds = [speed for speed in recipe.speeds or () if speed != 1]
    if len(sample) * (1 + len(speeds)) > MOST_EXAMPLES:
        if log is not None:
            most = f"at most {MOST_EXAMPLES // (1 + len(speeds)):,} have copies at other speeds"
            log(f"{counted(len(sample), 'sound')} of the training are read at their own speed only: {most}")
        speeds = []
    read = [inputs, *(Inputs(inputs.examples.at_speed(speed), inputs.preprocess) for speed in speeds)]
    rows: list[list[Tensor]] = [[] for _ in networks]
    began, total, done = time.perf_counter(), len(sample) * len(read), 0
    lines = ProgressLines(
        _ignore if log is None or progress else log, "features: {done:,} of {total:,} examples", total
    )
    # The inputs are read a batch at a time, because long signals do not fit into memory all at once.
    size = max(1, min(_BATCH, _BATCH_VALUES // math.prod(networks[0].shape)))
    with tqdm(total=total, desc="features", delay=2, leave=False, disable=not progress) as bar:
        for batch in chain.from_iterable(one.loader(size, recipe.workers, sample.tolist()) for one in read):
            x, mask = batch.x.to(device), None if batch.mask is None else batch.mask.to(device)
            for network, made in zip(networks, rows):
                made.append(network.features(x, mask))
            bar.update(len(x))
            expected = (time.perf_counter() - began) / (done + len(x)) * total
            if log is not None and not done and len(x) < total and expected > _WORTH_A_LINE:
                log(f"the features of {counted(total, 'example')} take {duration(expected)}")
                sys.stdout.flush()
            done += len(x)
            lines.update(done)
    if log is not None and len(sample) >= _LONG:
        heads = f"{len(networks)} heads" if len(networks) > 1 else "the head"
        log(f"solving {heads} on {len(sample):,} examples, which takes up to a minute{' each' * (len(networks) > 1)}")
        sys.stdout.flush()
    groups, weights = (
        None if each is None else torch.from_numpy(each[sample.numpy()]).to(device)
        for each in (_group_numbers(inputs), inputs.examples.weights)
    )
    known = _Known(task, recipe, targets, targets[sample].to(device), groups, weights)
    solved = []
    for network, features in zip(networks, map(torch.cat, rows)):
        best = _head(features[: len(sample)], known, network.parts)
        if speeds:
            more = _head(features, known, network.parts)
            losses = [known.loss(one.ridge.left_out) for one in (best, more)]
            best = min((best, more), key=lambda one: losses[one is more])
            if log is not None:
                at = " and ".join(f"{speed:g}" for speed in speeds)
                helps = "helps" if best is more else "does not help, and is not done"
                change = f"loss {losses[0]:.4g} -> {losses[1]:.4g}"
                log(f"{type(network).__name__}: reading sounds also at {at} of their speed {helps}: {change}")
        network.mean.copy_(best.mean)
        network.scale.copy_(best.scale)
        network.head.weight.copy_(best.ridge.weight)
        network.head.bias.copy_(best.ridge.bias)
        solved.append(Solved(known.targets, known.loss_weights, best.ridge))
    return solved


def _ignore(line: str) -> None:
    """Print nothing."""


def _group_numbers(inputs: Inputs) -> np.ndarray | None:
    """(n,) integers of the groups of examples; None without groups."""
    groups = inputs.examples.groups
    return None if groups is None else np.unique(groups, return_inverse=True)[1]


def _head(features: Tensor, known: _Known, parts: Sequence[Tensor]) -> _Head:
    """Solve the head of features (n copies, F), of which the first n are those of the examples themselves.

    It is the solution of all features, or the mean of the solutions of each part of them, if that has a lower loss for
    examples that are left out. An example is left out together with its copies, and only its own outputs (n, outputs)
    are those left out.
    """
    count, mean, spread = len(known.targets), features.mean(0), features.std(0, correction=0)
    scale = torch.where(spread > 1e-6, 1 / spread, 0)  # constant features are left out
    features, copies = (features - mean) * scale, len(features) // count
    all_known = known.repeated(copies) if copies > 1 else known
    best = all_known.solve(features)
    best = best._replace(left_out=best.left_out[:count])
    if copies > 1:
        best = best._replace(facts=known.judged(best))
    if len(parts) > 1 and len(features) < _LONG:  # of so many, each solution takes up to a minute
        places = [part.to(features.device) for part in parts]
        split = _mean_ridge(places, [all_known.solve(features[:, part]) for part in places])
        split = split._replace(left_out=split.left_out[:count])
        split = split._replace(facts=known.judged(split))
        best = min((best, split), key=lambda one: known.loss(one.left_out))
    return _Head(mean, scale, best)


def _mean_ridge(parts: Sequence[Tensor], solutions: Sequence[Ridge]) -> Ridge:
    """The mean of solutions for parts of the features, as one solution; its facts are those of the first."""
    first = solutions[0]
    weight = first.weight.new_zeros(len(first.bias), sum(map(len, parts)))
    for part, one in zip(parts, solutions):
        weight[:, part] = one.weight / len(parts)
    bias, left_out = (torch.stack(values).mean(0) for values in zip(*((one.bias, one.left_out) for one in solutions)))
    return Ridge(weight, bias, first.facts, left_out)


def _mean_loss(task: Task, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> float:
    return _mean(task.losses(outputs, targets), weights)


def _mean(values: Tensor, weights: Tensor | None) -> float:
    """The mean of values (n,), with weights (n,) or None; 0 if all weights are 0."""
    if weights is None:
        return float(values.mean())
    return float((values * weights).sum() / weights.sum().clamp(min=1e-12))


def usual_shares(networks: Sequence[SolvedNetwork], encoder_weight: float = ENCODER_WEIGHT) -> list[float]:
    """Shares of solved networks in their mean, before evidence moves them.

    Level and spread have none, because they count only where evidence shows that they help.
    """
    others = [one for one in networks if not isinstance(one, LevelFeatures)]
    if len(others) < 2:
        return [1.0 if one is (others or networks)[0] else 0.0 for one in networks]
    by_kind = [(LevelFeatures, 0.0), (EncoderFeatures, encoder_weight), (SolvedNetwork, 1 - encoder_weight)]
    return [next(share for kind, share in by_kind if isinstance(one, kind)) for one in networks]


def solve_beside(
    network: nn.Module,
    inputs: Inputs,
    task: Task,
    recipe: Recipe,
    weigh: bool,
    encoder_weight: float = ENCODER_WEIGHT,
    log: Log | None = None,
    progress: bool = False,
) -> list[Solved]:
    """Solve the networks of fixed features in a network, as `solve_networks`, and weigh them.

    The outputs of leaving one example or group out decide how much each counts in its mean with those before it, see
    `best_share`. Without `weigh`, random convolutions and encoder have their usual shares. The sum of the weights of
    all solved networks does not change.
    """
    networks = solved_networks(network)
    solved = solve_networks(networks, inputs, task, recipe, log, progress)
    committees = output_committees(network)
    if not committees or len(solved) < 2 or type(task).losses is Task.losses:
        return solved
    committee, targets, weights = committees[0], solved[0].targets, solved[0].weights
    usual = usual_shares(networks, encoder_weight)
    shares, mean = [1.0], solved[0].ridge.left_out
    for i, one in enumerate(solved[1:], 1):
        left_out, levels = one.ridge.left_out, isinstance(networks[i], LevelFeatures)
        share = usual[i] / sum(usual[: i + 1])
        if weigh or levels:
            share, _ = best_share(left_out, mean, targets, task, weights, share, improves=levels)
        shares = [*((1 - share) * before for before in shares), share]
        mean = torch.lerp(mean, left_out, share)
    places = [list(committee.members).index(one) for one in networks]
    together, by_member = sum(committee.weights[place] for place in places), list(committee.weights)
    for place, share in zip(places, shares):
        by_member[place] = together * share
    committee.weights = tuple(by_member)
    return solved


def left_out_outputs(network: nn.Module, solved: Sequence[Solved]) -> Tensor:
    """Outputs (n, outputs) for each training example of a network of solved ones, solved without it."""
    committees = output_committees(network)
    weights = committees[0].weights if committees else (1.0,)
    return torch.stack([weight * one.ridge.left_out for weight, one in zip(weights, solved, strict=True)]).sum(0)


def weigh_networks(
    network: nn.Module, val: Inputs, task: Task, recipe: Recipe, train: Inputs, log: Log | None = None
) -> None:
    """Set how much the trained network of each committee counts beside its solved ones, by validation examples.

    The weight that the committee has is the usual one, see `best_share`.
    """
    assert val.targets is not None
    assert train.targets is not None
    weights = task.example_weights(recipe, val.targets, train.targets)
    for committee in output_committees(network):
        is_solved = torch.tensor([isinstance(member, SolvedNetwork) for member in committee.members])
        if is_solved.all() or not is_solved.any():
            continue
        outputs = torch.stack(
            [predict_outputs(one, val, recipe.batch_size, recipe.device) for one in committee.members]
        )
        usual = float(torch.tensor(committee.weights)[~is_solved].sum())
        beside, trained = (_within(torch.tensor(committee.weights), side) for side in (is_solved, ~is_solved))
        one, other = (torch.tensordot(shares, outputs, 1) for shares in (trained, beside))
        share, losses = best_share(one, other, val.targets, task, weights, usual)
        committee.weights = tuple(torch.lerp(beside, trained, share).tolist())
        if log is not None:
            on, change = f"on {len(val.targets):,} validation examples", f"{losses[0.0]:.4g} -> {losses[share]:.4g}"
            counts = f"has {100 * share:.0f} % of the answer (usually {100 * usual:.0f} %): {on} loss {change}"
            log(f"the trained network {counts if share else f'is left out: {on} it improves nothing'}")


def _within(weights: Tensor, chosen: Tensor) -> Tensor:
    """The weights of the chosen members among themselves, 0 for the others; equal if they have none."""
    weights = weights * chosen
    return weights / weights.sum() if weights.sum() else chosen / chosen.sum()


def best_share(
    one: Tensor,
    beside: Tensor,
    targets: Tensor,
    task: Task,
    weights: Tensor | None,
    usual: float,
    improves: bool = False,
) -> tuple[float, dict[float, float]]:
    """The weight of outputs in their mean with others that outputs for unknown examples support.

    A few examples can say little, so the usual weight is a prior: the result has the least sum of log losses, at the
    best temperature, and of 10 (weight - usual)^2. Losses without a temperature are taken as squared errors of Gaussian
    noise: half of their ratio to the least mean loss is such a log loss.

    Args:
        one: outputs (n, outputs) that get the weight.
        beside: outputs (n, outputs) that get the rest.
        targets: (n, ...) encoded targets.
        task: has the losses.
        weights: (n,) weights of the examples in the loss.
        usual: the usual weight.
        improves: whether a weight above 0 must also lower the loss without a temperature.

    Returns:
        The weight, and the mean loss for each weight that was tried.
    """
    temperatures: Sequence[float] = _TEMPERATURES if task.has_temperature else (1.0,)
    if improves and task.has_temperature:  # a coarse choice would leave a gain to what only lowers the confidence
        temperatures = _FINE

    def loss(share: float, temperatures: Sequence[float] = temperatures) -> float:
        outputs = torch.lerp(beside, one, share)
        return min(_mean_loss(task, outputs / temperature, targets, weights) for temperature in temperatures)

    found = {share: loss(share) for share in sorted({*_SHARES, usual})}
    unit = 1.0 if task.has_temperature else max(2 * min(found.values()), 1e-12)
    kept = [share for share in found if not improves or not share or loss(share, (1.0,)) < loss(0.0, (1.0,))]
    return min(kept, key=lambda share: len(targets) * found[share] / unit + _PRIOR * (share - usual) ** 2), found


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
    if log is not None and len(features) >= _LONG:
        log(f"solving the head on {len(features):,} examples")
        sys.stdout.flush()
    validated = None if held is None else (held[0], held[1].numpy())
    solution = task.solve_head(
        features, targets.numpy(), recipe, validated, train.examples.weights, _group_numbers(train)
    )
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
