"""Bounds of a cross-validation."""

from typing import Annotated

from annotated_types import Ge

from ndvit.config.bounds import Cap

Folds = Annotated[int, Ge(2), Cap(1000)]
Repeats = Annotated[int, Ge(1), Cap(1000)]
