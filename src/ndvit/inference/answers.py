"""Answers for examples with targets as a table, for files that users open with other programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ndvit.data.examples import Examples
from ndvit.tasks.base import Task


def answer_rows(
    task: Task,
    answers: np.ndarray,
    examples: Examples,
    *,
    targets: np.ndarray | None = None,
    grouped: bool = True,
) -> list[list[Any]]:
    """A header, and for each example its name, target, group if there are groups, and answer.

    Args:
        task: meaning of targets and answers.
        answers: (n, outputs) activated outputs.
        examples: n examples with encoded targets.
        targets: (n, ...) these targets, encoded by `task`; None are those of the examples.
        grouped: write the groups, if there are any.
    """
    targets = examples.targets if targets is None else targets
    assert targets is not None
    predictions = task.predictions(answers, [str(name) for name in examples.names])
    grouped = grouped and examples.groups is not None
    groups = examples.groups if examples.groups is not None else [""] * len(examples)
    rows: list[list[Any]] = []
    for prediction, target, group in zip(predictions, task.decode(targets), groups, strict=True):
        (_, name), *answer = prediction.row()
        if not rows:
            rows.append(["name", "true", *(["group"] if grouped else []), *(column for column, _ in answer)])
        true = "; ".join(map(str, target)) if isinstance(target, list | tuple) else target
        rows.append([name, true, *([str(group)] if grouped else []), *(value for _, value in answer)])
    return rows
