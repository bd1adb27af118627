"""Splitting examples: a held-out set, and the folds of a cross-validation."""

import warnings

import numpy as np

from ndvit.data.examples import Examples
from ndvit.data.messages import listing
from ndvit.tasks.base import Task


def hold_out(
    examples: Examples, task: Task, fraction: float, seed: int, where: str = "the data", *, both_sides: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Split examples at random, each stratum of the task (such as a class) in the same proportion.

    Examples of the same group stay on one side, see `_hold_out_groups`. Without groups, those that share a number in
    `examples.copies` do, so that the held-out set has no copies of the others; a stratum of nothing but copies is
    divided all the same. Without copies, `copies` changes nothing.

    Args:
        examples: examples with targets.
        task: defines the strata; at least one example of each is kept and one is held out, as far as groups allow.
        fraction: share of each stratum to hold out.
        seed: seed of the random choice.
        where: name of the data in the message.
        both_sides: whether a stratum with a single example is an error; otherwise this example is kept.

    Returns:
        The sorted indices of the examples to keep, and of those held out.

    Raises:
        ValueError: for a stratum with a single example, or groups of which none can be held out.
    """
    assert examples.targets is not None
    strata = _strata(examples, task)
    if examples.groups is not None:
        held = _hold_out_groups(examples, task, strata, fraction, seed, where)
        return np.flatnonzero(~held), np.flatnonzero(held)
    random = np.random.default_rng(seed)
    copies = np.arange(len(examples)) if examples.copies is None else examples.copies
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
        chosen = _divide(copies[order], count, sides)
        if count and (chosen.all() or not chosen.any()):  # nothing but copies, which was reported when they were found
            chosen = np.arange(len(order)) < count
        held[order] = chosen
    return np.flatnonzero(~held), np.flatnonzero(held)


def folds(examples: Examples, task: Task, count: int, seed: int, where: str = "the data") -> list[np.ndarray]:
    """Divide examples into the folds of a cross-validation, stratified as far as groups allow.

    Args:
        examples: examples with targets; those of a group, and exact copies, are in one fold.
        task: defines the strata.
        count: number of folds.
        seed: seed of the random choice.
        where: name of the data in messages.

    Returns:
        The sorted indices of each fold.

    Raises:
        ValueError: for more folds than groups or examples, and for a stratum with a single example.
    """
    strata = _strata(examples, task)
    units = joined_units(examples)
    number = len(np.unique(units))
    if count > number:
        what = "examples" if examples.groups is None else "groups"
        raise ValueError(f"{where}: {count} folds need at least as many {what}, there are {number}: use fewer folds")
    values, counts = np.unique(strata, return_counts=True)
    if single := [task.stratum_name(int(stratum)) for stratum in values[counts == 1]]:
        raise ValueError(
            f"{where}: a single example of {listing(single)}, which cannot be trained on and tested on: add examples, "
            "or remove it"
        )
    return [np.sort(fold) for fold in _group_folds(strata, units, count, seed)]


def joined_units(examples: Examples) -> np.ndarray:
    """(n,) integers that examples share which no split may separate: those of a group, and exact copies."""
    if examples.groups is None:
        return np.arange(len(examples)) if examples.copies is None else np.asarray(examples.copies)
    groups = np.unique(examples.groups, return_inverse=True)[1]
    if examples.copies is None:
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    copies = np.unique(examples.copies, return_inverse=True)[1] + groups.max() + 1
    size = int(copies.max()) + 1
    edges = coo_array((np.ones(len(groups), dtype=np.int8), (groups, copies)), shape=(size, size))
    labels: np.ndarray = connected_components(edges, directed=False)[1]
    return labels[groups]


def _strata(examples: Examples, task: Task) -> np.ndarray:
    assert examples.targets is not None
    strata = task.strata(examples.targets)
    return np.zeros(len(examples), dtype=np.int64) if strata is None else strata


def _hold_out_groups(
    examples: Examples, task: Task, strata: np.ndarray, fraction: float, seed: int, where: str
) -> np.ndarray:
    """(n,) whether examples are held out, whole groups only: the fold with the share closest to `fraction`, or to half.

    Groups with all examples of a stratum are kept, because it could not be learned without them.
    """
    units, (values, strata) = joined_units(examples), np.unique(strata, return_inverse=True)
    names, inverse = np.unique(units, return_inverse=True)
    present = np.zeros((len(names), len(values)), dtype=bool)
    present[inverse, strata] = True
    only = present.sum(0) == 1
    pinned = np.asarray(present[:, only].any(1))
    free = ~pinned[inverse]
    if len(names) - pinned.sum() < 1 or len(names) < 2:
        lone = listing([task.stratum_name(int(stratum)) for stratum in values[only]])
        reason = f"each has all examples of one class ({lone})" if len(names) > 1 else "there is a single one"
        raise ValueError(
            f"{where}: no group can be held out, because {reason}: group by something else, or provide the held-out "
            "set yourself"
        )
    most = int(len(names) - pinned.sum())
    target = fraction * len(units)
    best, closest = np.zeros(len(units), dtype=bool), np.inf
    for fold in _group_folds(strata[free], units[free], min(most, max(2, round(1 / fraction))), seed):
        chosen = np.flatnonzero(free)[fold]
        keeps_all = len(np.unique(strata[np.delete(np.arange(len(units)), chosen)])) == len(np.unique(strata))
        distance = abs(len(chosen) - target) + (0 if keeps_all else len(units))
        if distance < closest and len(chosen) < len(units):
            best, closest = np.isin(np.arange(len(units)), chosen), distance
    if closest >= len(units):
        raise ValueError(
            f"{where}: however groups are held out, a class remains that is in none of the others: group by something "
            "else, or provide the held-out set yourself"
        )
    return best


def _group_folds(strata: np.ndarray, units: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Indices of the folds of whole units, stratified as far as these allow; a single fold has everything."""
    if count == 1:
        return [np.arange(len(units))]
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    alone = len(np.unique(units)) == len(units)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # strata with fewer examples than folds are absent from some
        warnings.simplefilter("ignore", UserWarning)
        try:
            return [held for _, held in splitter.split(np.zeros(len(units)), strata, units)]
        except ValueError:  # every stratum has fewer examples than folds
            from sklearn.model_selection import GroupKFold

            found = GroupKFold(count, shuffle=True, random_state=seed).split(np.zeros(len(units)), groups=units)
            return [held for _, held in found]


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
