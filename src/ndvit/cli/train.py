import sys
from inspect import signature
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import TrainingOptions
from ndvit.cli.printing import out


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
    resume: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    test_fraction: float = 0.2,
    skip_bad: bool = False,
    literal_labels: bool = False,
    drop_copies: bool = False,
    progress: bool = True,
    options: Annotated[TrainingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a model on a source, and write a run folder with the model and a report.

    Args:
        source: A built-in set (digits, gunpoint, ...), ucr:NAME, hf:owner/name (images of the hub), a folder with one
            folder per class, a .csv of paths and labels, or a .ts, .tsv, .npz or .npy file.
        task: What the model learns; classification is the only task so far.
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
        resume: Continue the interrupted run in this folder; every other setting is the run's own.
        dry_run: Print the plan (data, split, network, steps, estimated time and memory) and stop.
        test_fraction: Share held out for testing where the source has no test set.
        skip_bad: Leave unreadable files, and examples without a label, out instead of stopping.
        literal_labels: Take every label as the name of a class, also NA, null and the like (otherwise missing labels)
            and numbers with fractions (otherwise refused as continuous).
        drop_copies: Leave out exact copies: of test examples in the training set, and all with conflicting labels.
        progress: Show progress bars.
        options: Fields of Recipe, ViTConfig and SolvedOptions.
    """
    arguments = dict(locals())
    changed = {name for name, value in arguments.items() if value != signature(train).parameters[name].default}
    from ndvit.training import run as runs

    if resume is not None:
        if changed - {"resume", "progress"}:
            raise ValueError("--resume takes every setting from the run's config.yaml: give it alone")
        run = runs.resume(resume, progress=progress, log=out)
    else:
        if source is None:
            raise ValueError("no data to train on: give a SOURCE, for example: ndvit train gunpoint")
        values = {name: arguments[name] for name in arguments if name not in ("source", "resume", "dry_run", "options")}
        values |= options or {}
        if dry_run:
            out(runs.describe_plan(source, **values))
            return
        run = runs.train(source, log=out, **values)
    if run.interrupted:
        sys.exit(130)
