"""Splitting examples into two sets."""

import numpy as np

from ndvit.data.examples import Examples
from ndvit.tasks.base import Task


def hold_out(
    examples: Examples, task: Task, fraction: float, seed: int, where: str = "the data", *, both_sides: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random, each stratum of the task (such as a class) in the same proportion.

    Examples that share a number in `examples.copies` stay on one side, so that the held-out set has no copies of the
    others; a stratum of nothing but copies is divided all the same. Without copies, `copies` changes nothing.

    Args:
        examples: examples with targets.
        task: defines the strata; at least one example of each is kept and one is held out.
        fraction: share of each stratum to hold out.
        seed: seed of the random choice.
        where: name of the data in the message.
        both_sides: whether a stratum with a single example is an error; otherwise this example is kept.

    Returns:
        The sorted indices of the examples to keep, and of those held out.

    Raises:
        ValueError: for a stratum with a single example.
    """
    assert examples.targets is not None
    random = np.random.default_rng(seed)
    strata = task.strata(examples.targets)
    strata = np.zeros(len(examples), dtype=np.int64) if strata is None else strata
    groups = np.arange(len(examples)) if examples.copies is None else examples.copies
    sides: dict[int, bool] = {}
    held = np.zeros(len(examples), dtype=bool)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        if len(members) < 2 and both_sides:
            raise ValueError(
                f"{where}: {task.stratum_name(int(stratum))} has a single example, and some must be held out: add "
                "examples, remove this one, or provide the held-out set yourself"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        order = random.permutation(members)
        chosen = _divide(groups[order], count, sides)
        if count and (chosen.all() or not chosen.any()):  # nothing but copies, which was reported when they were found
            chosen = np.arange(len(order)) < count
        held[order] = chosen
    return np.flatnonzero(~held), np.flatnonzero(held)


def _divide(groups: np.ndarray, count: int, sides: dict[int, bool]) -> np.ndarray:
    """Hold out about `count` examples, whole groups of copies only; the first ones, if none of them is a copy.

    Args:
        groups: (n,) group of each example, in random order.
        count: number of examples to hold out.
        sides: whether a group is held out; the groups that it lacks are added.

    Returns:
        (n,) whether each example is held out.
    """
    names, sizes = np.unique(groups, return_counts=True)
    size = dict(zip(names.tolist(), sizes.tolist()))
    free = [group for group in dict.fromkeys(groups.tolist()) if group not in sides]
    held = sum(size[group] for group in size if sides.get(group))
    for group in free:  # groups that are larger than the rest of `count` are kept
        sides[group] = held + size[group] <= count
        held += size[group] * sides[group]
    if count and not held and len(free) > 1:
        sides[min(free, key=size.__getitem__)] = True
    return np.array([sides[group] for group in groups.tolist()], dtype=bool)
