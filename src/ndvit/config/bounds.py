"""Groups of options whose annotations state their bounds, and the one check that reads them."""

import difflib
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Gt, Le, Lt, MaxLen, MinLen, Predicate


@dataclass(frozen=True)
class Cap(Le):
    """A bound above every sensible value, which messages name only where it is exceeded.

    A header of a few bytes could otherwise describe a network that fills the memory, or a run that never ends.
    """


MOST = 10**9
LARGE = 10**6
Whole = Annotated[int, Ge(0), Cap(MOST)]
Count = Annotated[int, Ge(1), Cap(MOST)]
Seed = Annotated[int, Ge(0), Cap(2**63 - 1)]
BatchSize = Annotated[int, Ge(1), Cap(2**20)]
Members = Annotated[int, Ge(1), Cap(1000)]
NonNegative = Annotated[float, Ge(0), Cap(LARGE)]
Positive = Annotated[float, Gt(0), Cap(LARGE)]
Share = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
Counts = Annotated[tuple[Count, ...], MaxLen(64)]
Lengths = Annotated[tuple[Count, ...], MinLen(1), MaxLen(64)]

_hints = cache(partial(get_type_hints, include_extras=True))  # annotations of a class, with their bounds
_WORDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}  # by the operator of a bound
_BRIEF = 60  # letters of a value in a message


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of frozen dataclasses of options. Every field is checked against its annotation.

    A group of options is a subclass whose docstring is its title. A class of several groups inherits from all of them;
    the fields of the *last* base come first, as dataclasses collect them.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]
            object.__setattr__(self, name, checked(name, hint, getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of lists, numbers, strings and booleans, ready for JSON or YAML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; missing fields take their defaults.

        Raises:
            ValueError: for an unknown field, with the most similar known one, and for values out of bounds.
        """
        check_field_names(cls, values)
        return cls(**values)


def checked(name: str, hint: Any, value: Any) -> Any:
    """Check a value against an annotation and return it as a plain Python value.

    Numbers of numpy become Python's, lists become tuples, and where the annotation is `tuple[X, ...]`, a single value
    becomes a tuple of one. An annotation is int, float, bool, Literal, tuple, or a union of them, with bounds of
    `annotated_types` in `Annotated`.

    Raises:
        ValueError: for a value that the annotation excludes. Infinity and NaN are no numbers here.
    """
    value = tuple(map(_plain, value)) if isinstance(value, tuple | list) else _plain(value)
    kind, bounds = _split(hint)
    if get_origin(kind) is tuple and get_args(kind)[-1] is ...:
        value = value if isinstance(value, tuple) else (value,)
        if not value and any(isinstance(bound, MinLen) for bound in bounds):
            raise ValueError(f"{name} is empty: give at least one whole number")
        for bound in bounds:
            if isinstance(bound, MaxLen) and len(value) > bound.max_length:
                raise ValueError(f"{name} has {len(value):,} numbers, at most {bound.max_length} make sense")
        for element in value:
            checked(name, get_args(kind)[0], element)
    elif not _accepts(hint, value):
        expected = _expected(hint, value)
        raise ValueError(f"{name} must be {expected}{';' if ', ' in expected else ','} got {brief(value)}")
    return value


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 example, 2,000 examples.

    Args:
        number: how many there are.
        noun: the word for one of them.
        plural: the word for several, if it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def brief(value: Any) -> str:
    """A value as it is written in Python, shortened for a message."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # an integer of over 4,300 digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}..."


def check_field_names(cls: type[Any], names: Iterable[str]) -> None:
    """Raise a ValueError for a name that is no field of the dataclass `cls`, with the most similar field."""
    known = [f.name for f in fields(cls)]
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{cls.__name__} has no field {brief(name)}: {hint}")


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is most similar to `name`; None if there is none."""
    return next(iter(difflib.get_close_matches(str(name)[:_BRIEF], list(known), n=1)), None)


def _plain(value: Any) -> Any:
    """A scalar of numpy as a Python number, which JSON and YAML can hold; other values unchanged."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _accepts(hint: Any, value: Any) -> bool:
    kind, bounds = _split(hint)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        accepted = any(_accepts(member, value) for member in arguments)
    elif origin is Literal:
        accepted = isinstance(value, str) and value in arguments
    elif origin is tuple:
        length = len(value) if isinstance(value, tuple) else -1
        members = arguments[:1] * length if arguments[-1] is ... else arguments
        accepted = length == len(members) and all(map(_accepts, members, value))
    elif kind in (int, float):
        accepted = isinstance(value, int | kind) and not isinstance(value, bool) and -math.inf < value < math.inf
    else:
        accepted = isinstance(value, kind)
    return accepted and all(_holds(bound, value) for bound in bounds)


def _holds(bound: Any, value: Any) -> bool:
    if isinstance(bound, Predicate):
        return bool(bound.func(value))
    name, limit = _limit(bound)
    return name not in _WORDS or bool(getattr(operator, name)(value, limit))


def _limit(bound: Any) -> tuple[str, Any]:
    """The operator and the number of a bound: `Ge(ge=1)` has "ge" and 1."""
    name = "le" if isinstance(bound, Cap) else type(bound).__name__.lower()
    return name, getattr(bound, name, None)


def _expected(hint: Any, value: Any) -> str:
    """The values that an annotation allows, in words; `DocInfo` in its bounds replaces them."""
    kind, bounds = _split(hint)
    if written := [bound.documentation for bound in bounds if isinstance(bound, DocInfo)]:
        return str(written[0])
    if get_origin(kind) in (Union, UnionType):
        return _expected(next(member for member in get_args(kind) if member is not NoneType), value)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return "true or false"
    for bound in bounds:
        if isinstance(bound, Cap) and isinstance(value, int | float) and _limit(bound)[1] < value < math.inf:
            return f"at most {_limit(bound)[1]:,}"
    bounds = tuple(bound for bound in bounds if not isinstance(bound, Cap))
    if bounds == (Gt(0),):
        return "a positive number"
    limits = " and ".join(f"{_WORDS[name]} {limit:g}" for name, limit in map(_limit, bounds))
    return f"{'a whole number' if kind is int else 'a number'} {limits}".rstrip()
