"""X and y in the layouts of scikit-learn and aeon: checked, and converted to arrays of float32."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ndvit.data.messages import Doubt, warn_of_doubts
from ndvit.data.sources.arrays import labels_are_missing, missing_labels, raw_targets, warn_of_rounding
from ndvit.data.sources.containers import one_column, read_container
from ndvit.tasks.class_names import check_classes, literal_names
from ndvit.tasks.classification import Classification

NUMBERS: Mapping[str, Any] = {"dtype": np.float32, "ensure_all_finite": "allow-nan"}
"""Options of `check_array` and similar functions: float32, NaN is a missing value, infinity is refused."""


class Checked(NamedTuple):
    """Examples that scikit-learn's checks have passed, and the names of their columns or channels.

    Attributes:
        examples: an array of float32, or a list of arrays or of PIL images.
        names: names of the channels; None if the container has none, or for a table.
        table: whether the examples are a table (n, time) whose columns must be those of `fit`.
    """

    examples: np.ndarray | list[Any]
    names: tuple[str, ...] | None
    table: bool


@np.errstate(over="ignore", invalid="ignore")  # values too large for float32 become infinite, and are refused
def check_examples(X: Any) -> Checked:
    """Check examples in any layout, see `read_container`.

    Raises:
        ValueError: for other types, and for an example without an observed value.
    """
    found, names, doubts = read_container(X)
    warn_of_doubts(doubts)
    if isinstance(found, list):
        if not found:
            raise ValueError("X is empty: 0 sample(s), and at least one is needed")
        if isinstance(found[0], Image.Image):
            return Checked(found, None, False)
        arrays = [_example(row, i) for i, row in enumerate(found)]
        shape_of(arrays)
        return Checked(arrays, names, False)
    values = check_array(found, allow_nd=found.ndim > 2, input_name="X", **NUMBERS)
    warn_of_rounding(found, values, "X")
    if values.size == 0:
        raise ValueError(f"X has shape {values.shape}: its examples have no values")
    empty = np.isnan(values).reshape(len(values), -1).all(axis=1)
    if empty.any():
        raise ValueError(f"X[{empty.argmax()}] has no observed value, all are NaN (missing): leave it out")
    values = np.require(values, requirements="W")  # torch warns of memory that is not writeable
    return Checked(values, None if values.ndim == 2 else names, values.ndim == 2)


def indicators(y: Any) -> tuple[np.ndarray, tuple[str, ...] | None] | None:
    """A matrix of labels (n, labels) of 0 and 1, and the names of its columns if it has them; None for other targets.

    Raises:
        ValueError: for several targets that are no matrix of 0 and 1.
    """
    raw = raw_targets(y.toarray() if hasattr(y, "toarray") else y, "y")
    if not raw or not isinstance(raw[0], dict | tuple):
        return None
    named = isinstance(raw[0], dict)
    rows = [tuple(row.values()) if isinstance(row, dict) else row for row in raw]
    if any(not isinstance(row, tuple) or len(row) != len(rows[0]) for row in rows) or any(
        value not in (0, 1) for row in rows for value in row
    ):
        raise ValueError(
            f"Unknown label type: y has {len(rows[0])} columns, and of several labels a matrix of 0 and 1 is expected; "
            "pass one column with one label for each example, y[NAME] or y[:, 0], or numbers to a ViTRegressor"
        )
    dtype = getattr(y, "dtype", None)
    kept = dtype if isinstance(dtype, np.dtype) and dtype.kind in "biuf" else np.dtype(np.int64)
    return np.array(rows).astype(kept), tuple(raw[0]) if named else None


@np.errstate(invalid="ignore")  # NaN is refused
def check_labels(y: Any, literal: bool = False) -> np.ndarray:
    """Return labels as an array (n,).

    Args:
        y: labels in any container.
        literal: whether every label is the name of a class, also NA or 1.5.

    Raises:
        ValueError: if labels are missing, or are not classes.
    """
    raw = raw_targets(y, "y")
    raw = literal_names(raw) if literal else raw
    if missing := missing_labels(raw):
        how = "X and y of the others"
        raise labels_are_missing("y", [f"y[{i}]" for i in range(len(raw))], raw, missing, how)
    try:
        check_classes(raw, "y")
    except ValueError as error:
        raise ValueError(f"Unknown label type: {error}") from error  # words that scikit-learn's checks expect
    warn_of_doubts(map(Doubt, Classification.doubts({"y": raw})))
    labels = column_or_1d(np.asarray(one_column(y, "y")), warn=True)
    if labels.dtype == object and not any(isinstance(value, str) for value in raw):  # nullable numbers of pandas
        labels = np.array(labels.tolist())
    if not literal:
        check_classification_targets(labels)
    return labels


def shape_of(examples: Sequence[np.ndarray] | np.ndarray) -> tuple[int, int]:
    """Return channels and axes of examples (time,) or (channels, *grid); raise a ValueError if they differ."""
    shapes = [(len(x), x.ndim - 1) if x.ndim > 1 else (1, 1) for x in examples]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"X[{i}] has {describe_shape(shape)}, X[0] has {describe_shape(shapes[0])}: all must have the same"
            )
    return shapes[0]


def describe_shape(shape: tuple[int, int]) -> str:
    """Describe channels and axes, as `shape_of` returns them."""
    return f"{shape[0]} channel{'s' * (shape[0] > 1)} and {shape[1]} ax{'e' if shape[1] > 1 else 'i'}s"


def _example(row: np.ndarray, i: int) -> np.ndarray:
    """One array of a list, (time,) or (channels, *grid), as float32."""
    any_size = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "ensure_min_features": 0}
    values = check_array(row, input_name=f"X[{i}]", **any_size, **NUMBERS)
    if values.ndim == 0:
        raise ValueError(f"X[{i}] is a single number; expected (time,) or (channels, time, ...)")
    if values.size == 0 or np.isnan(values).all():
        raise ValueError(f"X[{i}] of shape {values.shape} has no observed value: leave it out")
    warn_of_rounding(row[None], values[None], f"X[{i}]")
    return np.require(values, requirements="W")
