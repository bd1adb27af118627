"""Preprocessing: how raw examples become tensors. One kind a file, chosen here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ndvit.config.recipe import Resize
from ndvit.data.examples import Examples, Source
from ndvit.data.messages import Doubt, warn_of_doubts
from ndvit.data.preprocess.base import Preprocess, short
from ndvit.data.preprocess.images import ImagePreprocess, picture_sizes
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.data.preprocess.spectrograms import SpectrogramPreprocess
from ndvit.data.sources.files import headers_of

__all__ = [
    "Preprocess",
    "check_kind",
    "describe_fit",
    "describe_resampling",
    "find_unfit",
    "fit_preprocess",
    "preprocess_from_dict",
    "warn_if_unlike_training",
]

_LOOK = 16  # examples that are compared with the training data
_CUT, _CUT_MUCH = (
    0.2,
    0.4,
)  # share of the area from which on a note, and a warning, is worth it; 4:3 to a square is 0.25
_KINDS: dict[Any, Any] = {"signal": SignalPreprocess, "image": ImagePreprocess, "spectrogram": SpectrogramPreprocess}


def fit_preprocess(source: Source, size: int | Sequence[int] | None = None, resize: Resize | None = None) -> Preprocess:
    """Compute the preprocessing of a source on its training examples; `size` and `resize` as in `fit` of its kind.

    Raises:
        ValueError: for training examples without content, or `resize` for anything but pictures.
    """
    if source.kind == "image":
        return ImagePreprocess.fit(source.train, size, resize)
    if resize is not None:
        raise ValueError(f"resize={resize!r} is for pictures, and {source.name} holds arrays of values: leave it out")
    if source.spectrogram is not None:
        return SpectrogramPreprocess.fit(source.train, source.spectrogram, size)
    return SignalPreprocess.fit(source.train, size)


def preprocess_from_dict(d: dict[str, Any]) -> Preprocess:
    """Build the preprocessing that `to_dict` described.

    Raises:
        ValueError: for an unknown kind, missing or unknown fields, or invalid values.
    """
    if not isinstance(d, Mapping) or not isinstance(d.get("kind"), str) or d["kind"] not in _KINDS:
        kind = d.get("kind") if isinstance(d, Mapping) else d
        raise ValueError(f"preprocessing of kind {short(kind)} is unknown; expected one of {', '.join(_KINDS)}")
    fields = {str(k)[:40]: v for k, v in d.items() if k != "kind"}
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
    """Describe how many examples are longer than the input of a model and lose resolution; "" for none.

    Raises:
        ValueError: for examples so long that resampling would change what they are.
    """
    if preprocess.kind == "image":  # pictures of any size are resized
        return ""
    longer = 0
    for part in parts:
        headers = headers_of(part.items)
        faults = {one: preprocess.too_long(one) for one in set(headers)}  # most examples share their shape
        long = [
            (part.names[i], fault)
            for i, one in enumerate(headers)
            if (fault := faults[one]) and (preprocess.headers_decide or (fault := preprocess.too_long(part[i])))
        ]
        if long:
            more = f" (and {len(long) - 1:,} more of {len(part):,} examples)" if len(long) > 1 else ""
            raise ValueError(f"{long[0][0]}{more} {long[0][1]}")
        fits = {one: preprocess.fits(one) for one in set(headers)}
        longer += sum(not fits[one] for one in headers)
    size, count = " x ".join(map(str, preprocess.raw_size)), f"{longer:,} of {sum(map(len, parts)):,} examples"
    return f"{count} {'is' if longer == 1 else 'are'} longer than {size}, and resampled to it" if longer else ""


def find_unfit(examples: Examples, preprocess: Preprocess) -> dict[int, str]:
    """The examples that cannot be inputs by their headers, or are too long by themselves, by index, and why."""
    if preprocess.kind == "image":  # pictures of any size are resized
        return {}
    headers = headers_of(examples.items)
    faults = {one: preprocess.misfit(one) for one in set(headers)}
    found = {i: fault for i, one in enumerate(headers) if (fault := faults[one])}
    if not preprocess.headers_decide:
        for i in list(found):
            try:
                fault = preprocess.misfit(examples[i])
            except (ValueError, OSError):  # it cannot be read: the fault of its header stays
                continue
            if fault is None:
                del found[i]
            else:
                found[i] = fault
    return {i: f"{examples.names[i]}: {fault}" for i, fault in found.items()}


def describe_fit(source: Source, preprocess: Preprocess) -> list[str]:
    """Describe what a preprocessing loses of the training examples: channels without content, cut parts of pictures."""
    notes: list[str] = []
    if unused := preprocess.unused_channels:
        some = ", ".join(map(str, unused[:20])) + (", ..." if len(unused) > 20 else "")
        notes.append(
            Doubt(
                f"channel{'s' * (len(unused) > 1)} {some} of {preprocess.channels} (counted from 0) "
                f"{'are' if len(unused) > 1 else 'is'} constant or never observed in the training set: the network "
                "does not use such a channel, whatever new examples have there"
            )
        )
    if isinstance(preprocess, ImagePreprocess) and not source.train.streamed:
        notes += _describe_cut(source, preprocess)
    return notes


def _describe_cut(source: Source, preprocess: ImagePreprocess) -> list[str]:
    sizes = picture_sizes(source.train)
    lost = float(np.median([preprocess.lost(*size) for size in sizes]))
    if lost < _CUT:
        return []
    height, width = (round(float(side)) for side in np.median(sizes, axis=0))
    note = (
        f"half of the pictures lose at least {lost:.0%} of their area, because {width} x {height} pixels (the median) "
        f"are cropped to the aspect of {preprocess.size[1]} x {preprocess.size[0]}: --resize pad (resize='pad') keeps "
        "everything and pads, --resize squash keeps everything and changes the aspect"
    )
    return [Doubt(note) if lost >= _CUT_MUCH else note]


def warn_if_unlike_training(parts: Sequence[Examples], preprocess: Preprocess) -> None:
    """Raise a `DataWarning` for each way in which some of the examples differ much from the training data.

    At most 16 examples of each part are read, none of a stream.
    """
    if preprocess.kind == "signal" and not preprocess.unused_channels:
        return
    some = [part[i] for part in parts if not part.streamed for i in part.sample(_LOOK)]
    warn_of_doubts([Doubt(doubt) for doubt in preprocess.unlike_training(some)])
