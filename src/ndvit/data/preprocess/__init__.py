"""Preprocessing: how raw examples become tensors. One kind a file, chosen here."""

from collections.abc import Sequence
from typing import Any

from ndvit.data.examples import Examples, Source
from ndvit.data.preprocess.base import Preprocess
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess

__all__ = ["Preprocess", "check_kind", "describe_resampling", "fit_preprocess", "preprocess_from_dict"]

_KINDS: dict[Any, Any] = {cls.kind: cls for cls in (SignalPreprocess, ImagePreprocess)}


def fit_preprocess(source: Source, size: int | Sequence[int] | None = None) -> Preprocess:
    """Compute the preprocessing of a source on its training examples; `size` as in `fit` of its kind."""
    made: Preprocess = _KINDS[source.kind].fit(source.train, size)
    return made


def preprocess_from_dict(d: dict[str, Any]) -> Preprocess:
    """Build the preprocessing that `to_dict` described.

    Raises:
        ValueError: for an unknown kind, missing or unknown fields, or invalid values.
    """
    fields = {k: v for k, v in d.items() if k != "kind"}
    if d.get("kind") not in _KINDS:
        raise ValueError(f"preprocessing of kind {d.get('kind')!r} is unknown; expected one of {', '.join(_KINDS)}")
    try:
        made: Preprocess = _KINDS[d["kind"]](**fields)
    except TypeError as error:  # a missing or unknown field, or one of the wrong type
        raise ValueError(f"invalid {d['kind']} preprocessing: {error}") from error
    return made


def check_kind(kind: str, preprocess: Preprocess, where: str) -> None:
    """Raise a ValueError if data are not of the kind that a model was trained on."""
    if kind != preprocess.kind:
        called = {"signal": "signals or other arrays of values", "image": "images"}
        raise ValueError(f"{where} holds {called[kind]}, and the model was trained on {called[preprocess.kind]}")


def describe_resampling(parts: Sequence[Examples], preprocess: Preprocess) -> str:
    """Describe how many examples are longer than the input of a model and lose resolution; "" for none."""
    longer = sum(not preprocess.fits(item) for part in parts for item in part.items)
    size, count = " x ".join(map(str, preprocess.size)), f"{longer:,} of {sum(map(len, parts)):,} examples"
    return f"{count} {'is' if longer == 1 else 'are'} longer than {size}, and resampled to it" if longer else ""
