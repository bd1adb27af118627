"""Near copies: examples that differ by compression, resizing, gain or a little noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_COMPARED = 60_000  # examples among which near copies are searched
_FARTHEST = 0.1  # distance of two coarse pictures of near copies: a correlation of 0.995
_CLOSER = 8.0  # times that near copies are closer than neighbours usually are in the same data
_BLOCK = 1024  # rows of distances in memory
_MOST_EACH = 20  # near copies of one example that are listed


class Pair(NamedTuple):
    """Two near copies, by their indices, and the distance of their coarse pictures."""

    first: int
    second: int
    distance: float


def near_copies(coarse: np.ndarray, alike: np.ndarray) -> list[Pair]:
    """Find near copies, the closest first.

    They are closer to each other than a fixed distance, and also than an eighth of the usual distance of an example to
    its nearest neighbour: in data whose examples are all alike, such as single heartbeats, likeness means nothing.

    Args:
        coarse: (n, values) coarse pictures with a length of 1, or of 0 for constant examples, which are not compared.
        alike: (n, k) integers; examples that share one in the same column are not compared, such as exact copies and
            windows of one recording.
    """
    rows = np.flatnonzero(coarse.any(axis=1))
    if len(rows) < 2:
        return []
    chosen, alike = coarse[rows], alike[rows]
    nearest = np.concatenate(
        [_likeness(chosen, alike, slice(start, start + _BLOCK)).max(axis=1) for start in range(0, len(rows), _BLOCK)]
    )
    comparable = nearest > -1
    if not comparable.any():
        return []
    distances = np.sqrt(np.clip(2 - 2 * nearest, 0, None))
    limit = min(_FARTHEST, float(np.median(distances[comparable])) / _CLOSER)
    close = np.flatnonzero(comparable & (distances < limit))
    found: dict[tuple[int, int], float] = {}
    for i in close:
        row = np.linalg.norm(chosen - chosen[i], axis=1)  # more exact for small distances than by the correlation
        row[_likeness(chosen, alike, slice(i, i + 1))[0] <= -1] = np.inf
        for j in np.argsort(row, kind="stable")[:_MOST_EACH]:
            if row[j] < limit:
                found[int(min(i, j)), int(max(i, j))] = float(row[j])
    pairs = [Pair(int(rows[i]), int(rows[j]), distance) for (i, j), distance in found.items()]
    return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))


def connected(digests: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """(n,) integers that examples share which are exact copies (equal `digests`), or near copies over any number of
    pairs.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(digests.max(initial=-1)) + 1
    edges = np.array([(digests[pair.first], digests[pair.second]) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(size, size))
    components: np.ndarray = connected_components(graph, directed=False)[1]
    return components[digests]


def _likeness(coarse: np.ndarray, alike: np.ndarray, which: slice) -> np.ndarray:
    """(rows, n) correlations of some rows with all; -1 with those that are not compared."""
    values = coarse[which] @ coarse.T
    same = (alike[which, None, :] == alike[None, :, :]).any(axis=2)
    values[same] = -1
    values[np.arange(len(values)), np.arange(which.start, which.start + len(values))] = -1
    return values
