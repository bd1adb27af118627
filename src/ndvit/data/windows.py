"""Windows of recordings: long signals are cut into examples of one length, and the recording is their group.

Nothing is copied: a window of an array in memory is a view, and one of a file is read when it is needed.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ndvit.config.bounds import counted
from ndvit.config.reading import FileOptions, ReadingOptions, Span, listed
from ndvit.data.examples import Examples, Place, Recording, Source
from ndvit.data.messages import listing
from ndvit.data.preprocess.base import LONG, MOST_RESAMPLED, USUAL
from ndvit.data.sources.files import Excerpt, Header, header_of, headers_of, mix_channels, read_example

_MOST_WINDOWS = 5_000_000


def cut(examples: Examples, reading: FileOptions, where: str, *, named: bool = False) -> tuple[Examples, list[str]]:
    """Cut recordings into windows, and choose and average their channels, as the options require.

    The windows of a recording are as many as fit at the distance `hop`. If some samples remain, one more window ends
    with the recording. A recording shorter than the window is one window.

    Args:
        examples: whole recordings or other arrays.
        reading: `window`, `hop`, `channels` and `mono`; the same examples are returned if none of them is set.
        where: name of the data in messages.
        named: whether the channels of examples in memory have names, by which they were chosen as they were read.

    Returns:
        The windows, whose groups are those of the recordings or else the recordings, and notes.

    Raises:
        ValueError: for pictures, seconds where a sample rate is missing, channels that are not there, or too many
            windows.
    """
    if reading.window is None and reading.hop is not None:
        raise ValueError(f"{where}: hop {reading.hop} is the distance of windows, and there are none: set window")
    if not len(examples):
        return examples, []
    chosen = listed(reading.channels) or None
    if chosen and examples.in_memory and (named or not all(name.isdecimal() for name in chosen)):
        chosen = None  # they were chosen by their names, here or in the training data
    if reading.window is None and not reading.mono and chosen is None:
        return examples, []
    if examples.streamed:
        raise ValueError(
            f"{where}: shards are read as they are: set window, mono and channels when they are written (ndvit shard "
            "SOURCE OUT --window ...)"
        )
    headers = [header_of(item) for item in examples.items]
    if headers[0].kind != "signal":
        option = "mono" if reading.mono else "channels" if chosen else f"window {reading.window}"
        raise ValueError(f"{where}: {option} is for signals, and these are pictures: leave it out")
    channels = None if chosen is None else _numbers(chosen, min(header.channels for header in headers), where)
    spans = None if reading.window is None else _spans(headers, examples.names, reading, where)
    items: list[Any] = []
    places: list[Place] = []
    origins: list[int] = []
    for i, (item, header, name) in enumerate(zip(examples.items, headers, _distinct(examples.names))):
        whole = (0, header.grid[-1])
        for start, stop in [whole] if spans is None else spans[i]:
            items.append(_part(item, header, start, stop, channels, reading.mono))
            places.append(Place(name, start, stop, header.rate))
            origins.append(i)
    targets, copies = (None if v is None else v[origins] for v in (examples.targets, examples.copies))
    read = None if examples.in_memory else read_example
    if spans is None:
        return Examples(items, targets, examples.names, read, copies, examples.groups, examples.weights), []
    groups = [place.recording for place in places] if examples.groups is None else examples.groups[origins]
    names = [place.name for place in places]
    weights = None if examples.weights is None else examples.weights[origins] / examples.weights[origins].mean()
    return Examples(items, targets, names, read, copies, groups, weights, places), _notes(spans, headers, reading)


def _numbers(chosen: Sequence[str], count: int, where: str) -> tuple[int, ...]:
    """The numbers of channels of recordings without names."""
    numbers = [int(name) for name in chosen if name.isdecimal()]
    if len(numbers) < len(chosen) or max(numbers) >= count:
        raise ValueError(
            f"{where}: channels {', '.join(chosen)} are not there; expected numbers from 0 to {count - 1}, because "
            "sound files and plain arrays have no names of channels"
        )
    return tuple(numbers)


def usual_window(examples: Examples) -> int | str | None:
    """The window for examples of which some are over twice as long as `usual_length`; None if there are none.

    It is their 95th percentile, in seconds if all have a sample rate.
    """
    headers = headers_of(examples.items)
    rates = {header.rate for header in headers}
    if not headers:
        return None
    lengths = [header.grid[-1] / (header.rate or 1) for header in headers]
    samples = [header.grid[-1] for header in headers]
    usual = float(np.percentile(lengths, USUAL))
    if max(samples) <= LONG or max(lengths) <= MOST_RESAMPLED * usual:
        return None
    return math.ceil(usual) if None in rates else f"{usual:.4g}s"


def cut_outliers(data: Source, reading: ReadingOptions) -> tuple[Source, ReadingOptions]:
    """Cut recordings into windows if a few are so long that they would decide the length of the input for all.

    Args:
        data: recordings, whose channels are chosen already.
        reading: how they were read; data with `window` or `resample_long` remain as they are.

    Returns:
        The data, and how they are read now.
    """
    if data.kind != "signal" or reading.window is not None or reading.resample_long:
        return data, reading
    if (window := usual_window(data.train)) is None:
        return data, reading
    notes = [
        f"some recordings are over twice as long as 95 % of them ({window}): all are cut into windows of this length; "
        "set window for another, or resample_long to resample them"
    ]
    made: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        part = getattr(data, split)
        if part is not None:
            made[split], found = cut(part, FileOptions(window=window), data.name)
            notes += [f"{split}: {note}" for note in found]
    return replace(data, notes=(*data.notes, *notes), **made), replace(reading, window=window)


def _spans(
    headers: Sequence[Header], names: Sequence[str], reading: FileOptions, where: str
) -> list[list[tuple[int, int]]]:
    """Start and stop of the windows of each recording."""
    window, hop = (None if length is None else Span.parse(length) for length in (reading.window, reading.hop))
    assert window is not None
    unknown = [name for name, header in zip(names, headers) if header.rate is None]
    in_seconds = [length for length in (window, hop) if length is not None and length.unit == "seconds"]
    if unknown and in_seconds:
        raise ValueError(
            f"{where}: a window or hop in seconds needs a sample rate, and {listing(unknown)} has none: write samples "
            "(--window 1024, window=1024) or a share of the recording (--window 25%)"
        )
    found, total = [], 0
    for header in headers:
        length = header.grid[-1]
        size = min(length, max(1, _samples(window, length, header.rate)))
        step = size if hop is None else max(1, _samples(hop, size, header.rate))
        total += max(1, (length - size) // step)
        if total > _MOST_WINDOWS:
            raise ValueError(
                f"{where}: more than {_MOST_WINDOWS:,} windows; use a longer --hop or --window (hop=, window=)"
            )
        found.append(list(_starts(length, size, step)))
    return found


def _samples(span: Span, whole: int, rate: float | None) -> int:
    factor = {"samples": 1.0, "seconds": rate or 1.0, "share": float(whole)}[span.unit]
    return round(span.value * factor)


def _starts(length: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length - size + 1, step):
        yield start, start + size
    last = (length - size) // step * step
    if last + size < length and step <= size:  # windows at longer distances leave samples out everywhere
        yield length - size, length


def _part(item: Any, header: Header, start: int, stop: int, channels: tuple[int, ...] | None, mono: bool) -> Any:
    """A part of an example: a view of what is in memory, and an `Excerpt` of a file."""
    if isinstance(item, Recording | np.ndarray):
        whole = item.values if isinstance(item, Recording) else item
        values = mix_channels(whole[..., start:stop], channels, mono)
        return item._replace(values=values) if isinstance(item, Recording) else values
    count = 1 if mono else header.channels if channels is None else len(channels)
    part = header._replace(channels=count, grid=(*header.grid[:-1], stop - start))
    return Excerpt(str(item), start, stop, channels, mono, part)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that occur several times."""
    counts, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if counts[name] == 1 else f"{name} ({seen[name]})")
    return result


def _notes(spans: Sequence[Sequence[tuple[int, int]]], headers: Sequence[Header], reading: FileOptions) -> list[str]:
    count = sum(map(len, spans))
    every = "" if reading.hop is None else f" every {reading.hop}"
    note = f"{counted(len(spans), 'recording')} cut into {counted(count, 'window')} of {reading.window}{every}"
    sizes = {stop - start for windows in spans for start, stop in windows}
    if len(sizes) == 1:
        note += f" ({counted(sizes.pop(), 'sample')})"
    window = Span.parse(reading.window or 1)
    short = [h for h in headers if window.unit != "share" and h.grid[-1] < _samples(window, h.grid[-1], h.rate)]
    if short:
        note += f"; {len(short):,} shorter, and a single window each"
    return [note]
