"""What users of scikit-learn and aeon give as X and y: every layout checked, and brought to arrays of float32."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ndvit.data.sources.arrays import warn_of_rounding

NUMBERS: Mapping[str, Any] = {"dtype": np.float32, "ensure_all_finite": "allow-nan"}
"""What `check_array` and its kin are to see to: float32, in which NaN is a missing value and infinity is refused."""


@np.errstate(over="ignore", invalid="ignore")  # what float32 cannot hold becomes infinite, and is refused
def check_examples(X: Any, check_table: Callable[[Any], np.ndarray]) -> np.ndarray | list[Any]:
    """Check examples in any layout.

    Args:
        X: (n, time) or (n, channels, *grid), an array or what makes one; a DataFrame of rows of numbers; a list of
            arrays (time,) or (channels, *grid) of any length, or of PIL images.
        check_table: what checks an X of two axes, as scikit-learn's `check_array` with `NUMBERS` does.

    Returns:
        An array of float32 where X is one or is written down as one, else a list of arrays or of PIL images.

    Raises:
        ValueError: anything that is no examples, or an example without any observed value.
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
            raise ValueError(f"X mixes pictures and arrays: X[{pictures.index(False)}] is no picture")
        table = _written_down(rows)
        if table is None:
            arrays = [_example(row, i) for i, row in enumerate(rows)]
            shape_of(arrays)
            return arrays
        X = table
    elif not hasattr(X, "toarray") and not hasattr(X, "ndim"):  # sparse matrices are left to be refused
        X = np.asarray(X)
    values = check_array(X, allow_nd=True, input_name="X", **NUMBERS) if getattr(X, "ndim", 2) > 2 else check_table(X)
    warn_of_rounding(np.asarray(X), values, "X")
    if values.size == 0:
        raise ValueError(f"X has shape {values.shape}: its examples hold no values")
    empty = np.isnan(values).reshape(len(values), -1).all(axis=1)
    if empty.any():
        raise ValueError(f"X[{empty.argmax()}] has no observed value, all are NaN (missing): leave it out")
    return _writeable(values)


@np.errstate(invalid="ignore")  # of NaN, which is refused
def check_labels(y: Any) -> np.ndarray:
    """Return labels as an array (n,), or raise a ValueError where they are no classes."""
    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    return y


def shape_of(examples: Sequence[np.ndarray] | np.ndarray) -> tuple[int, int]:
    """Return channels and axes of examples (time,) or (channels, *grid); a ValueError if they are not those of all."""
    shapes = [(len(x), x.ndim - 1) if x.ndim > 1 else (1, 1) for x in examples]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"X[{i}] is of {in_words(shape)}, X[0] of {in_words(shapes[0])}: all must have the same")
    return shapes[0]


def in_words(shape: tuple[int, int]) -> str:
    """Say what `shape_of` returned."""
    return f"{shape[0]} channel{'s' * (shape[0] > 1)} and {shape[1]} ax{'e' if shape[1] > 1 else 'i'}s"


def _check_frame(X: Any) -> None:
    """Refuse DataFrames that are not a row of numbers for each example."""
    nested = X.ndim == 2 and len(X) and any(np.ndim(value) for value in X.iloc[0])
    if nested or X.index.nlevels > 1:
        raise ValueError(
            "X is a DataFrame that is nested or has several rows an example; expected one row of numbers for each. "
            'aeon.utils.conversion.convert_collection(X, "np-list") makes arrays of it'
        )


def _written_down(rows: list[Any]) -> np.ndarray | None:
    """The array that nested lists of numbers write down; None for a list of arrays, or where lengths differ."""
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
    return _writeable(values)


def _writeable(values: np.ndarray) -> np.ndarray:
    """The values in memory that may be written to: torch warns of any other."""
    return values if values.flags.writeable else values.copy()
