"""Start of the commands that write a run folder: a new run, the plan of one, or the rest of an interrupted one."""

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from ndvit.cli.printing import error_line, out

words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())
"""The words of the command line, which the processes of several devices get, too."""
_ON_RESUME = {"progress", "devices", "nodes", "strategy", "device_timeout"}


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
    from ndvit.training.devices import launch, missing_processes

    values = {name: value for name, value in arguments.items() if name not in ("source", "resume", "dry_run")}
    more: list[str] = []
    if resume is not None:
        if values.keys() - _ON_RESUME or source is not None or dry_run:
            raise ValueError(
                "--resume takes every setting from the run's config.yaml: give it alone, or with --devices, --nodes, "
                "--strategy and --device-timeout"
            )
        count = missing_processes(values, resume)
    else:
        if source is None:
            raise ValueError(f"no data to train on: give a SOURCE, for example: ndvit {command} gunpoint")
        if dry_run:
            if command == "pretrain":
                values.setdefault("objective", "contrastive")
            out(runs.describe_plan(source, **values))
            return
        count = missing_processes(values)
        if count and "output" not in values:  # all processes write into one folder
            more = ["--output", str(runs.next_folder(command, source, **values))]
    if count:
        if status := launch(count, [*words.get(), *more], error_line):
            sys.exit(status)
        return
    run = runs.resume(resume, log=out, **values) if resume else getattr(runs, command)(source, log=out, **values)
    if run.interrupted:
        sys.exit(130)
