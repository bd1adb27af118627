"""Start of the commands that write a run folder: a new run, the plan of one, or the rest of an interrupted one."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ndvit.cli.printing import out


def start(
    command: Literal["train", "pretrain"],
    source: str | None,
    resume: Path | None,
    dry_run: bool,
    arguments: Mapping[str, Any],
) -> None:
    """Start a run, and exit with the status 130 if Ctrl-C has interrupted it.

    Args:
        command: the function of `ndvit.training.run`.
        source: what to train on.
        resume: folder of the run to continue.
        dry_run: print the plan and stop.
        arguments: those that the user has set.

    Raises:
        ValueError: without a source, or with arguments beside a run to continue.
    """
    from ndvit.training import run as runs

    values = {name: value for name, value in arguments.items() if name not in ("source", "resume", "dry_run")}
    if resume is not None:
        if values.keys() - {"progress"} or source is not None or dry_run:
            raise ValueError("--resume takes every setting from the run's config.yaml: give it alone")
        run = runs.resume(resume, log=out, **values)
    else:
        if source is None:
            raise ValueError(f"no data to train on: give a SOURCE, for example: ndvit {command} gunpoint")
        if dry_run:
            if command == "pretrain":
                values.setdefault("objective", "contrastive")
            out(runs.describe_plan(source, **values))
            return
        run = getattr(runs, command)(source, log=out, **values)
    if run.interrupted:
        sys.exit(130)
