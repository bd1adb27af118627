"""X and y in the layouts of scikit-learn and aeon: checked, and converted to arrays of float32."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ndvit.data.sources.arrays import warn_of_rounding

NUMBERS: Mapping[str, Any] = {"dtype": np.float32, "ensure_all_finite": "allow-nan"}
"""Options of `check_array` and similar functions: float32, NaN is a missing value, infinity is refused."""


@np.errstate(over="ignore", invalid="ignore")  # values too large for float32 become infinite, and are refused
def check_examples(X: Any, check_table: Callable[[Any], np.ndarray]) -> np.ndarray | list[Any]:
    """Check examples in any layout.

    Args:
        X: (n, time) or (n, channels, *grid), an array or nested lists; a DataFrame of rows of numbers; a list of arrays
            (time,) or (channels, *grid) of any length, or of PIL images.
        check_table: checks an X of two axes, such as scikit-learn's `check_array` with `NUMBERS`.

    Returns:
        An array of float32 if X is an array or nested lists, otherwise a list of arrays or of PIL images.

    Raises:
        ValueError: for other types, and for an example without an observed value.
    """
    if hasattr(X, "iloc") and X.ndim == 1:  # a Series of arrays
        X = list(X)
    if hasattr(X, "iloc"):
        _check_frame(X)
    elif isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
        rows = list(X)
        if not rows:
            raise ValueError("X is empty: 0 sample(s), and at least one is needed")
        pictures = [isinstance(row, Image.Image) for row in rows]
        if all(pictures):
            return rows
        if any(pictures):
            raise ValueError(f"X mixes pictures and arrays: X[{pictures.index(False)}] is not a picture")
        table = _as_table(rows)
        if table is None:
            arrays = [_example(row, i) for i, row in enumerate(rows)]
            shape_of(arrays)
            return arrays
        X = table
    elif not hasattr(X, "toarray") and not hasattr(X, "ndim"):  # `check_table` refuses sparse matrices
        X = np.asarray(X)
    values = check_array(X, allow_nd=True, input_name="X", **NUMBERS) if getattr(X, "ndim", 2) > 2 else check_table(X)
    warn_of_rounding(np.asarray(X), values, "X")
    if values.size == 0:
        raise ValueError(f"X has shape {values.shape}: its examples have no values")
    empty = np.isnan(values).reshape(len(values), -1).all(axis=1)
    if empty.any():
        raise ValueError(f"X[{empty.argmax()}] has no observed value, all are NaN (missing): leave it out")
    return np.require(values, requirements="W")  # torch warns of memory that is not writeable


@np.errstate(invalid="ignore")  # NaN is refused
def check_labels(y: Any) -> np.ndarray:
    """Return labels as an array (n,); raise a ValueError if they are not classes."""
    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    return y


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


def _check_frame(X: Any) -> None:
    """Raise a ValueError for a DataFrame without exactly one row of numbers for each example."""
    nested = X.ndim == 2 and len(X) and any(np.ndim(value) for value in X.iloc[0])
    if nested or X.index.nlevels > 1:
        raise ValueError(
            "X is a DataFrame that is nested or has several rows for an example; expected one row of numbers for each. "
            'aeon.utils.conversion.convert_collection(X, "np-list") converts it to arrays'
        )


def _as_table(rows: list[Any]) -> np.ndarray | None:
    """The array of nested lists of numbers; None for a list of arrays, or for different lengths."""
    if any(hasattr(row, "__array__") and np.ndim(row) for row in rows):
        return None
    try:
        return np.asarray(rows)
    except ValueError:
        return None


def _example(row: Any, i: int) -> np.ndarray:
    """One array of a list, (time,) or (channels, *grid), as float32."""
    any_size = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "ensure_min_features": 0}
    values = check_array(np.asarray(row), input_name=f"X[{i}]", **any_size, **NUMBERS)
    if values.ndim == 0:
        raise ValueError(f"X[{i}] is a single number; expected (time,) or (channels, time, ...)")
    if values.size == 0 or np.isnan(values).all():
        raise ValueError(f"X[{i}] of shape {values.shape} has no observed value: leave it out")
    warn_of_rounding(np.asarray(row)[None], values[None], f"X[{i}]")
    return np.require(values, requirements="W")
