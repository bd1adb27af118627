from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import TrainingOptions, changed_arguments
from ndvit.cli.starting import start
from ndvit.config.names import Language


def train(
    source: str | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    write_split: Path | None = None,
    language: Language = "en",
    resume: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    progress: bool = True,
    options: Annotated[TrainingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a model on a source, and write a run folder with the model and a report.

    Args:
        source: A built-in set (digits, gunpoint, ...), ucr:NAME, hf:owner/name (images of the hub), a folder with one
            folder per class, a .csv of paths and labels, a table of values (.csv, .parquet, .arff), or a .ts, .tsv,
            .npz, .npy, .mat or .h5 file.
        output: The run folder. [default: a new one under runs/]
        force: Replace an existing run folder.
        write_split: A .csv to write the split of each example to, also with --dry-run, for runs with a split file.
        language: Language of the report's words.
        resume: Continue the interrupted run in this folder; every other setting is the run's own.
        dry_run: Print the plan (data, split, network, steps, estimated time and memory) and stop.
        progress: Show progress bars.
        options: Task, preset, network and weights; fields of ReadingOptions, Recipe, ViTConfig and SolvedOptions.
    """
    start("train", source, resume, dry_run, changed_arguments(train, locals()))
