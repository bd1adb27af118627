import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import ValidationOptions, changed_arguments
from ndvit.cli.printing import out
from ndvit.config.names import Language


def crossvalidate(
    source: str | None = None,
    *,
    folds: int = 5,
    repeats: int = 1,
    refit: Annotated[bool, Parameter(negative=())] = False,
    output: Path | None = None,
    force: bool = False,
    language: Language = "en",
    resume: Path | None = None,
    progress: bool = True,
    options: Annotated[ValidationOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train and test on the folds of a source, and write one report.

    Every example is answered by a model that was trained without it, and without its group where there are groups.

    Args:
        source: Data as for train; a test set of its own is left out.
        folds: Number of folds.
        repeats: How many times the data are divided, with the seeds seed, seed + 1, ...
        refit: Train a model on all examples in the end; its file keeps the out-of-fold results.
        output: The folder. [default: a new one under runs/]
        force: Replace an existing run folder.
        language: Language of the report's words.
        resume: Continue the interrupted cross-validation in this folder; every other setting is its own.
        progress: Show progress bars.
        options: Task, preset, network and weights; fields of ReadingOptions, Recipe, ViTConfig and SolvedOptions.
    """
    values = changed_arguments(crossvalidate, locals())
    from ndvit.training import crossvalidation

    if resume is not None:
        if values.keys() - {"resume", "progress"}:
            raise ValueError("--resume takes every setting from the folder's config.yaml: give it alone")
        result = crossvalidation.resume_cross_validation(resume, progress=progress, log=out)
    else:
        if source is None:
            raise ValueError("no data to train on: give a SOURCE, for example: ndvit crossvalidate gunpoint")
        values.pop("source")
        result = crossvalidation.cross_validate(source, log=out, **values)
    if result.interrupted:
        sys.exit(130)
