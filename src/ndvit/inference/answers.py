"""Answers for examples with targets as a table, for files that users open with other programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ndvit.data.examples import Examples
from ndvit.tasks.base import Task


def answer_rows(task: Task, answers: np.ndarray, examples: Examples) -> list[list[Any]]:
    """A header, and for each example its name, target, group if there are groups, and answer.

    Args:
        task: meaning of targets and answers.
        answers: (n, outputs) activated outputs.
        examples: n examples with encoded targets.
    """
    assert examples.targets is not None
    predictions = task.predictions(answers, [str(name) for name in examples.names])
    grouped = examples.groups is not None
    groups = examples.groups if examples.groups is not None else [""] * len(examples)
    rows: list[list[Any]] = []
    for prediction, target, group in zip(predictions, task.decode(examples.targets), groups, strict=True):
        (_, name), *answer = prediction.row()
        if not rows:
            rows.append(["name", "true", *(["group"] if grouped else []), *(column for column, _ in answer)])
        true = "; ".join(map(str, target)) if isinstance(target, list | tuple) else target
        rows.append([name, true, *([str(group)] if grouped else []), *(value for _, value in answer)])
    return rows
