"""Splitting examples into two sets."""

import numpy as np

from ndvit.data.examples import Examples
from ndvit.tasks.base import Task


def hold_out(
    examples: Examples, task: Task, fraction: float, seed: int, where: str = "the data", *, both_sides: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random, each stratum of the task (such as a class) in the same proportion.

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
    held: list[int] = []
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        if len(members) < 2 and both_sides:
            raise ValueError(
                f"{where}: {task.stratum_name(int(stratum))} has a single example, and some must be held out: add "
                "examples, remove this one, or provide the held-out set yourself"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held += random.permutation(members)[:count].tolist()
    return np.setdiff1d(np.arange(len(strata)), held), np.sort(np.array(held, dtype=np.int64))
