"""Sources in memory whose labels are inside: tables of pandas, polars and pyarrow, and data sets of xarray."""

from collections.abc import Sequence
from typing import Any

from ndvit.config.bounds import counted
from ndvit.data.examples import Part
from ndvit.data.sources.arrays import as_part, read_examples
from ndvit.data.sources.columns import LABELS, Roles, columns_of, fits, is_frame, named, word
from ndvit.data.sources.containers import is_xarray
from ndvit.data.sources.layouts import is_long, parts_of
from ndvit.data.sources.layouts import read_examples as read_table
from ndvit.data.sources.named_arrays import match, targets


def has_labels_inside(source: Any) -> bool:
    """Whether an object is a table, or a data set of xarray."""
    return is_frame(source) or is_xarray(source)


def read_labelled(source: Any, roles: Roles, *, with_targets: bool) -> tuple[dict[str, Part], list[str]]:
    """Return the parts of a table, wide or long, or of a data set of xarray, and notes.

    Raises:
        ValueError: for an object without examples, or columns of several possible meanings.
    """
    if is_frame(source):
        read = read_table(columns_of(source, "X"), roles, with_targets=with_targets)
        return parts_of(read), read.notes
    return _read_xarray(source, roles, with_targets)


def read_unlabelled(x: Any, roles: Roles, channels: int) -> tuple[Part, list[str]]:
    """Return examples in memory without targets, and notes.

    A table is wide, as `read_container` reads it, unless it is long or columns are named.

    Args:
        x: any container.
        roles: what the user names.
        channels: channels of the model that reads them; 0 without a model.
    """
    if is_frame(x) and not (hasattr(x, "iloc") and x.columns.nlevels > 1):
        columns = columns_of(x, "X")
        if roles.id or roles.time or roles.channels or is_long(columns, roles):
            read = read_table(columns, roles, with_targets=False, channels=channels)
            return Part(read.items, None, read.names, channels=read.channels), read.notes
    return read_examples(x)


def _read_xarray(x: Any, roles: Roles, with_targets: bool) -> tuple[dict[str, Part], list[str]]:
    """Variables and coordinates of one dimension may be labels and further columns; the others are channels."""
    names = [str(name) for name in (*getattr(x, "data_vars", ()), *x.coords) if x[name].ndim == 1]
    names = [name for name in names if name not in x.dims or name in (*roles.label, *roles.columns)]
    labels = [match(name, names, "X", "--label") for name in roles.label if with_targets or fits(name, names)]
    labels = labels or [name for name in names if word(name) in (*LABELS, "y") and with_targets][:1]
    beside = {name: match(name, names, "X", "--group-by") for name in roles.columns if fits(name, names)}
    found = [targets(x[name].values) for name in labels]
    y = None if not found else found[0] if len(found) == 1 else [dict(zip(labels, row)) for row in zip(*found)]
    values = _without(x, [*labels, *beside.values()])
    if roles.channels:
        values = values[[match(name, list(map(str, values.data_vars)), "X", "--channels") for name in roles.channels]]
    part = as_part(values, None, "X")
    if y is not None and len(y) != len(part.items):
        raise ValueError(f"X: {counted(len(part.items), 'example')} but {counted(len(y), 'target')} in {named(labels)}")
    part = part._replace(targets=y, columns={name: targets(x[key].values) for name, key in beside.items()})
    listed = f"; label: {named(labels)}" if labels else ""
    return {"train": part}, [f"examples of the shape {part.items[0].shape if part.items else ()}{listed}"]


def _without(x: Any, names: Sequence[str]) -> Any:
    """The object without these variables; of a data set, the variables with most dimensions."""
    x = x.drop_vars([name for name in names if name not in x.dims])
    if not hasattr(x, "data_vars"):
        return x
    most = max((variable.ndim for variable in x.data_vars.values()), default=0)
    return x[[name for name, variable in x.data_vars.items() if variable.ndim == most]]
