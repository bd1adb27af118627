from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import PretrainingFlags, changed_arguments
from ndvit.cli.starting import start
from ndvit.config.names import Language
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
    language: Language = "en",
    resume: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
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
        language: Language of the report's words.
        resume: Continue the interrupted run in this folder; every other setting is the run's own.
        dry_run: Print the plan (data, network, steps, estimated time and memory) and stop.
        progress: Show progress bars.
        options: Fields of ReadingOptions, PretrainingOptions, Recipe and ViTConfig.
    """
    start("pretrain", source, resume, dry_run, changed_arguments(pretrain, locals()))
