import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import ReadingFlags
from ndvit.cli.printing import out, remark
from ndvit.config.names import Language


def check(
    source: str,
    *,
    labels: Annotated[bool, Parameter(negative=())] = False,
    run: str | None = None,
    task: str = "classification",
    folds: int = 5,
    preset: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    output: Path | None = None,
    force: bool = False,
    language: Language = "en",
    progress: bool = True,
    options: Annotated[ReadingFlags | None, Parameter(name="*")] = None,
) -> None:
    """Check data before a training, or their labels by models, and write a page.

    The exit status is 0 if nothing was found, 1 if something is suspicious, and 2 if the data cannot be read.

    Args:
        source: Data as for train.
        labels: Look for label errors: a cross-validation answers every example by a model that was trained without it.
        run: Look for label errors by the answers of an earlier run or cross-validation (a folder), or of a model.
        task: What the labels mean, as for train.
        folds: Folds of the cross-validation.
        preset: Preset of its trainings. [default: fast for signals, linear_probe for images with --weights, else
            small_data]
        weights: Trained weights that these start from, as for train.
        seed: Seed of the folds and the trainings.
        output: Folder of the page (check.html), the findings (check.json) and the suspected labels (suspects.csv).
            [default: a new one under runs/]
        force: Replace the files of an earlier check.
        language: Language of the page's words.
        progress: Show progress bars.
        options: Fields of ReadingOptions.
    """
    from ndvit.checking.check import check as run_check

    found = run_check(
        source,
        labels=labels,
        run=run,
        task=task,
        folds=folds,
        preset=preset,
        weights=weights,
        seed=seed,
        output=output,
        force=force,
        language=language,
        progress=progress,
        log=remark,
        **(options or {}),
    )
    for line in found.lines():
        out(line)
    if found.status:
        sys.exit(found.status)
