import sys
from inspect import signature
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import PretrainingFlags
from ndvit.cli.printing import out
from ndvit.config.pretraining import Objective


def pretrain(
    source: str | None = None,
    *,
    objective: Objective | None = None,
    model: str | None = None,
    weights: str | None = None,
    ema: bool | None = None,
    output: Path | None = None,
    force: bool = False,
    resume: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    skip_bad: bool = False,
    literal_labels: bool = False,
    drop_copies: bool = False,
    progress: bool = True,
    options: Annotated[PretrainingFlags | None, Parameter(name="*")] = None,
) -> None:
    """Train an encoder on data without using labels, and write a run folder for `ndvit train --weights`.

    Args:
        source: Data as for train; also a folder of files without class folders. Labels are used by probes only, which
            score the features while the training runs. Validation and test sets are not read.
        objective: contrastive (views of one example have similar features), or masked (patches are predicted from
            others). [default: contrastive]
        model: A name that `ndvit models` lists. [default: signal_small for signals, compact_small for everything else]
        weights: Trained weights to continue from, as for train.
        ema: Of several copies of a network in a file of weights, the averaged one, or the other one.
        output: The run folder. [default: a new one under runs/]
        force: Replace an existing run folder.
        resume: Continue the interrupted run in this folder; every other setting is the run's own.
        dry_run: Print the plan (data, network, steps, estimated time and memory) and stop.
        skip_bad: Leave unreadable files out instead of stopping.
        literal_labels: Take every label as the name of a class, also NA, null and the like (otherwise missing labels).
        drop_copies: Leave out exact copies of examples.
        progress: Show progress bars.
        options: Fields of PretrainingOptions, Recipe and ViTConfig.
    """
    arguments = dict(locals())
    changed = {name for name, value in arguments.items() if value != signature(pretrain).parameters[name].default}
    from ndvit.training import run as runs

    if resume is not None:
        if changed - {"resume", "progress"}:
            raise ValueError("--resume takes every setting from the run's config.yaml: give it alone")
        run = runs.resume(resume, progress=progress, log=out)
    else:
        if source is None:
            raise ValueError("no data to train on: give a SOURCE, for example: ndvit pretrain gunpoint")
        values = {name: arguments[name] for name in arguments if name not in ("source", "resume", "dry_run", "options")}
        values |= options or {}
        if dry_run:
            values["objective"] = objective or "contrastive"
            out(runs.describe_plan(source, **values))
            return
        run = runs.pretrain(source, log=out, **values)
    if run.interrupted:
        sys.exit(130)
