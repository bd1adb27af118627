from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import TrainingOptions, changed_arguments
from ndvit.cli.starting import start
from ndvit.config.names import Language


def train(
    source: str | None = None,
    *,
    task: str = "classification",
    preset: str = "auto",
    model: str | None = None,
    weights: str | None = None,
    ema: bool | None = None,
    members: int = 1,
    teacher: str | None = None,
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
        task: What the model learns: classification, multilabel (several labels for each example), or regression (one or
            several numbers).
        preset: A network and a recipe that belong together; `ndvit presets` lists them. auto is signal for signals,
            finetune for images with --weights, small_data for images without. Flags override the preset's values.
        model: A name that `ndvit models` lists; vit_SIZE, signal_SIZE and compact_SIZE take dimensions and patch from
            the data. [default: the preset's, or the network of the weights]
        weights: Trained weights to start from: a file, a run folder, a name that `ndvit weights` lists, or
            hf:owner/name. FILE#PREFIX is the network under this prefix of a file with several.
        ema: Of several copies of a network in a file of weights, the averaged one (a teacher, a moving average), or the
            other one. [default: what the program that wrote the file evaluates]
        members: Networks in an ensemble, trained one after the other from the seeds seed, seed + 1, ...
        teacher: Teacher for distillation: minirocket, multirocket, an earlier run, or weights as above.
        output: The run folder. [default: a new one under runs/]
        force: Replace an existing run folder.
        write_split: A .csv to write the split of each example to, also with --dry-run, for runs with a split file.
        language: Language of the report's words.
        resume: Continue the interrupted run in this folder; every other setting is the run's own.
        dry_run: Print the plan (data, split, network, steps, estimated time and memory) and stop.
        progress: Show progress bars.
        options: Fields of ReadingOptions, Recipe, ViTConfig and SolvedOptions.
    """
    start("train", source, resume, dry_run, changed_arguments(train, locals()))
