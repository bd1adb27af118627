"""Words of pages in other languages than English: one table, `words.csv`, with a column for each language.

Code and templates write English. `translated` looks a text up in the language of the page that is being written, so
that a text which the table lacks stays English. Names, such as those of classes, are never looked up.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from ndvit.config.bounds import counted
from ndvit.config.names import Language

TAGS = {"en": "en", "zh": "zh-Hans"}
"""The `lang` of a page in each language."""
_language: ContextVar[str] = ContextVar("language", default="en")
_FEWEST_LETTERS = 7  # of a pattern: "{low} to {high}" would fit many lines
_FIELD = re.compile(r"\{(\w*)[^{}]*\}")


def check_language(name: str) -> None:
    """Raise a ValueError for an unknown language."""
    if name not in get_args(Language):
        raise ValueError(f"language must be one of {', '.join(get_args(Language))}, got {name!r}")


@contextmanager
def language(name: str) -> Iterator[None]:
    """Write pages in this language meanwhile.

    Raises:
        ValueError: for an unknown language.
    """
    check_language(name)
    token = _language.set(name)
    try:
        yield
    finally:
        _language.reset(token)


def current_language() -> str:
    """The language of the page that is being written."""
    return _language.get()


def translated(english: str, **values: Any) -> str:
    """A text in the language of the page.

    Args:
        english: the text in English; places for values are written {name}, as in `str.format`.
        **values: these values.
    """
    text = table(_language.get()).get(english, english)
    return text.format(**values) if values else text


def amount(number: int, noun: str) -> str:
    """A number with an English noun in the language of the page: 1 example, 2 examples."""
    if _language.get() == "en":
        return counted(number, noun)
    return translated(f"{{n}} {noun}s", n=f"{number:,}")


def several(noun: str) -> str:
    """The plural of an English noun in a sentence in the language of the page; a heading of counts may have another."""
    return table(_language.get()).get(f"{noun}s in a sentence", f"{noun}s")


def translated_line(line: str) -> str:
    """A finished English line in the language of the page: one of the table whose places for values may have any text.

    It serves lines that rooms write which know no pages, such as facts of a plan; other lines stay as they are.
    """
    known = table(_language.get())
    if line in known:
        return known[line]
    for pattern, text in _patterns(_language.get()):
        if found := pattern.fullmatch(line):
            return text.format(**found.groupdict())
    return line


@cache
def table(name: str) -> dict[str, str]:
    """The texts of a language by the English ones; empty for English."""
    if name == "en":
        return {}
    with files("ndvit.evaluation").joinpath("words.csv").open(encoding="utf-8") as file:
        return {row["en"]: row[name] for row in csv.DictReader(file) if row[name]}


@cache
def _patterns(name: str) -> list[tuple[re.Pattern[str], str]]:
    """The texts with places for values as patterns, those with the most letters first, and without the shortest."""
    found = [(english, text) for english, text in table(name).items() if _FIELD.search(english)]
    found = [pair for pair in found if _letters(pair[0]) >= _FEWEST_LETTERS]
    found.sort(key=lambda pair: -_letters(pair[0]))
    return [(_pattern(english), _FIELD.sub(r"{\1}", text)) for english, text in found]


def _letters(english: str) -> int:
    return sum(letter.isalpha() for letter in _FIELD.sub("", english))


def _pattern(english: str) -> re.Pattern[str]:
    parts = _FIELD.split(english)  # text, name, text, name, ..., text
    written = [re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+?)" for i, part in enumerate(parts)]
    return re.compile("".join(written), re.DOTALL)
