"""Options of reading data and of dividing them into training, validation and test sets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import DocInfo, Ge, Lt, Predicate

from ndvit.config.bounds import MOST, Options, brief

_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|ms|%)?\s*")


class Span(NamedTuple):
    """A length along the time axis: a number of samples, of seconds, or a share (0 to 1) of something."""

    value: float
    unit: Literal["samples", "seconds", "share"]

    @classmethod
    def parse(cls, written: int | str) -> "Span":
        """Read 1024 (samples), 2s, 250ms or 50%.

        Raises:
            ValueError: for any other text, a length of 0, and a share above 100 %.
        """
        found = _SPAN.fullmatch(str(written)[:40])
        if found is None or isinstance(written, bool):
            raise ValueError(
                f"{brief(written)} is no length; write samples (1024), seconds (2s, 250ms) or a share (50%)"
            )
        number, unit = float(found[1]), found[2]
        if not unit and not number.is_integer():
            raise ValueError(f"{brief(written)} is no whole number of samples; seconds are written {found[1]}s")
        if not 0 < number <= (100 if unit == "%" else MOST):
            raise ValueError(
                f"{brief(written)} is out of bounds; expected above 0 and at most 100% or {MOST:,} samples"
            )
        match unit:
            case "%":
                return cls(number / 100, "share")
            case None:
                return cls(number, "samples")
            case _:
                return cls(number / (1000 if unit == "ms" else 1), "seconds")


def _is_span(value: int | str | None) -> bool:
    try:
        return value is None or bool(Span.parse(value))
    except ValueError:
        return False


Length = Annotated[
    str | int | None,
    Predicate(_is_span),
    DocInfo("samples (1024), seconds (2s, 250ms) or a share (50%)"),
]
"""A length along the time axis, which `Span.parse` reads."""

CACHE_SIZE = "10GB"
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]?)B?\s*", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def byte_count(written: int | str) -> int:
    """Read a number of bytes, such as 500MB or 20GB.

    Raises:
        ValueError: for any other text.
    """
    found = _SIZE.fullmatch(str(written)[:40])
    if found is None or isinstance(written, bool):
        raise ValueError(f"{brief(written)} is no number of bytes; write 500MB or 20GB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _is_size(value: int | str | None) -> bool:
    try:
        return value is None or byte_count(value) >= 0
    except ValueError:
        return False


Size = Annotated[str | int | None, Predicate(_is_size), DocInfo("a number of bytes (500MB, 20GB)")]
"""A number of bytes, which `byte_count` reads."""

Names = str | tuple[str, ...] | None
"""Names of columns or arrays: one, or several with commas between."""


@dataclass(frozen=True, kw_only=True)
class FileOptions(Options):
    """Data: files."""

    skip_bad: bool = False
    """Leave unreadable files, and examples without a label, out instead of stopping."""
    window: Length = None
    """Cut each recording into windows of this length: samples (1024), seconds where the sample rate is known (2s,
    250ms), or a share of the recording (50%). The windows of a recording stay on one side of every split, and its
    answer is the mean of theirs."""
    hop: Length = None
    """Distance between the starts of two windows: samples, seconds, or a share of the window. The default is the window
    itself, so that windows do not overlap."""
    mono: bool = False
    """Average the channels of each recording or array, or of those that are chosen."""
    resample_long: bool = False
    """Resample signals that are more than twice as long as those of the training to the network's length. By default
    they are refused, because they would be played too fast."""
    label: Names = None
    """Column or array of the labels, or several with commas between, each of which is a target. Columns may be patterns
    with *, or numbers if a table has no names. path:PATTERN takes the first name in braces from each file's path, as in
    path:{digit}_{speaker}_{take}."""
    id: Names = None
    """Column that tells the examples of a long table apart (a row for each moment), or several with commas between."""
    time: str | None = None
    """Column or array of times. Irregular times are interpolated onto a regular grid."""
    channels: Names = None
    """Columns of values, with commas between: names, or patterns with *. By default all numbers without other roles.
    Of sound files and plain arrays, numbers of channels, counted from 0."""
    array: Names = None
    """Arrays in .npz, .mat or .h5 files that are the channels, with commas between: names, or words in them, such as DE
    for X118_DE_time."""
    cache_size: Size = None
    """Space on the disk for the newest chunks of remote shards, such as 500MB. The default is 10GB."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions(Options):
    """Data: labels and splits."""

    test_fraction: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of the examples held out for testing where the source has no test set."""
    group_by: str | None = None
    """Keep the examples of a group, such as a patient or a machine, on one side of every split. A column of a list,
    table or frame, an array of an .npz or a dict, or path:PATTERN, which takes a part of each file's path: the first
    name in braces, as in path:{speaker}_{take} or path:{subject}/*/*."""
    sample_weight: str | None = None
    """Column or array with the weight of each training example, a number of at least 0: a weight of 2 does what a
    second copy does. Networks trained by steps draw examples in proportion to their weights; what is solved in closed
    form weighs their errors. Validation and test count every example once."""
    split_file: str | None = None
    """A .csv with the columns name and split (train, val or test) of every example, such as the split.csv that each run
    leaves in its folder. It replaces the splits of the source."""
    label_file: str | None = None
    """A .csv with the columns name and label, such as the suspects.csv that `ndvit check --labels` writes. Its labels
    replace those of the source, and an example whose label in it is empty is left out."""
    drop_suspected: bool = False
    """Do not train on the examples that label_file has with the label of the source. They remain in validation and test
    sets."""
    literal_labels: bool = False
    """Take every label as the name of a class, also NA, null and the like (otherwise missing labels) and numbers with
    fractions (otherwise refused as continuous). Names of folders are always taken so."""
    drop_copies: bool = False
    """Leave out exact copies: of test examples in the other sets, and all with conflicting labels. By default they are
    only reported."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(SplitOptions, FileOptions):
    """How a source is read and split."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the source that are read beside inputs, targets and split."""
        groups = () if self.group_by is None or self.group_by.startswith(PATH) else (self.group_by,)
        return groups if self.sample_weight is None else (*groups, self.sample_weight)

    def set_options(self) -> dict[str, Any]:
        """The options that are not None, as plain values."""
        return {name: value for name, value in self.to_dict().items() if value is not None}


PATH = "path:"
"""Beginning of `group_by` where groups are parts of the files' paths."""


def listed(names: Names) -> tuple[str, ...]:
    """Names as a tuple: of a text, those between its commas."""
    found = names.split(",") if isinstance(names, str) else names or ()
    return tuple(name.strip() for name in found if name.strip())


def take_reading_options(options: Mapping[str, Any]) -> tuple[ReadingOptions, dict[str, Any]]:
    """Split options into those of reading and all others.

    Raises:
        ValueError: for a value out of bounds.
    """
    own = {f.name for f in fields(ReadingOptions)}
    return (
        ReadingOptions(**{name: value for name, value in options.items() if name in own}),
        {name: value for name, value in options.items() if name not in own},
    )


def stored_reading(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the training in the provenance of a model file, of any version.

    Raises:
        ValueError: if they are damaged.
    """
    stored = facts.get("reading")
    if stored is None:  # of earlier versions, which had three
        stored = {name: facts[name] for name in ("test_fraction", "literal_labels", "drop_copies") if name in facts}
    if not isinstance(stored, Mapping):
        raise ValueError(f"the provenance has {brief(stored)} as reading, expected an object of options")
    return ReadingOptions.from_dict(stored).set_options()


def file_options(facts: Mapping[str, Any], changed: Mapping[str, Any]) -> FileOptions:
    """How a trained model reads new files: as in its training, with the options of a call in their place.

    Raises:
        ValueError: for an unknown option, or a value out of bounds.
    """
    own = {f.name for f in fields(FileOptions)} - {"skip_bad"}
    kept = {name: value for name, value in stored_reading(facts).items() if name in own}
    return FileOptions.from_dict({**kept, **changed})
