"""Checkpoints of an unfinished training, and its interruption by Ctrl-C and by signals of clusters."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import json
import os
import re
import signal
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from ndvit.files import make_folder, replace_file
from ndvit.processes import any_of, is_first
from ndvit.weights.unfinished import METADATA


class Checkpoints(Checkpoint):
    """Keeps the newest checkpoint, `step=N.ckpt`: every few steps, and at the step where a signal ends the training.

    A checkpoint is written when everything of a step is done, including a validation that is due, so that a resumed run
    does not repeat it. (Lightning's ModelCheckpoint writes it before the validation, and again within the next step.)
    The signals are Ctrl-C (SIGINT), SIGTERM, and in a job of SLURM SIGUSR1. If one process receives a signal, all
    processes of the run stop at the same step. A second signal ends the process at once.

    Args:
        folder: where checkpoints are written; None writes none, and signals still end the training.
        every: optimizer steps between checkpoints.
        validates: optimizer steps between validations; 0 if there are none.
        metadata: what `model_metadata` returned, with which `load_model` reads a checkpoint.
    """

    def __init__(self, folder: Path | None, every: int, validates: int, metadata: Mapping[str, Any]) -> None:
        self.folder = folder
        self.every = every
        self.validates = validates
        self.metadata = json.dumps(metadata)
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The metadata of the model, for the checkpoint."""
        return {METADATA: self.metadata}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the context. Outside the main thread, where that is impossible, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            signals.append(signal.SIGUSR1)
        self._before = {one: signal.getsignal(one) for one in signals}
        self._listen()
        try:
            yield
        finally:
            for one, handler in self._before.items():
                signal.signal(one, handler)
            self._before = {}

    def _listen(self) -> None:
        for one in self._before:
            signal.signal(one, self._request)

    def _request(self, number: int, *_: Any) -> None:
        self.requested = True
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen again, in place of Lightning's handlers, which would end the process amid a step."""
        if not self.requested:
            self._listen()
        # Lightning asks the first process before each batch if it has received SIGTERM, for which a GPU must be idle;
        # here the processes agree at the end of each step, without a GPU.
        if hasattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"):
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """End a step, unless its gradients still accumulate or a validation follows."""
        validation_follows = bool(self.validates) and trainer.global_step % self.validates == 0
        if not trainer.fit_loop._should_accumulate() and not validation_follows:
            self._end_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """End a step with a validation."""
        self._end_step(trainer)

    def _end_step(self, trainer: pl.Trainer) -> None:
        if trainer.should_stop:  # early stopping: a run resumed from here would not stop
            return
        self.requested = any_of(self.requested)
        if self.folder is not None and (self.requested or trainer.global_step % self.every == 0):
            path = self.folder / f"step={trainer.global_step}.ckpt"
            save = partial(trainer.save_checkpoint, weights_only=False)
            if is_first():
                make_folder(self.folder)
                for logger in trainer.loggers:
                    logger.save()
                replace_file(path, save)
                for old in set(self.folder.glob("step=*.ckpt*")) - {path}:  # with what a killed process has left
                    old.unlink(missing_ok=True)
            else:
                save(path)  # a part of what the first process writes, and a barrier
        if self.requested:
            trainer.limit_val_batches = 0  # else Lightning would validate once more when it stops
            trainer.should_stop = True


def _do_nothing() -> None:
    """Stand in for a method."""


_STEP = re.compile(r"step=(\d+)")


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in a run folder, or None."""
    found = [path for path in (folder / "checkpoints").glob("step=*.ckpt") if _STEP.search(path.name)]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps done at a checkpoint, from its name."""
    match = _STEP.search(checkpoint.name)
    assert match is not None
    return int(match[1])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint, on the CPU.

    Raises:
        ValueError: for a damaged file, with the remedy. Each byte is compared with its checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch stores the CRC-32 of each tensor, and does not read it
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut off: remove it, and --resume starts from the beginning") from error
    return checkpoint


def count_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count the batches before a checkpoint as if each step had had this many forward passes.

    On another number of devices, the examples of a step are dealt in another number of parts.
    """
    loop = checkpoint["loops"]["fit_loop"]
    done = checkpoint["global_step"] * accumulate
    for part in ("total", "current"):
        progress = loop["epoch_loop.batch_progress"][part]
        # a checkpoint within the hook after a batch counts it as completed only later
        short = progress["ready"] - progress["completed"]
        loop["epoch_loop.batch_progress"][part] = {
            **progress,
            **{name: done for name in ("ready", "started", "processed")},
            "completed": done - short,
        }


def rename_legacy(checkpoint: dict[str, Any]) -> None:
    """Rename the tensors of a checkpoint of ndvit 0.1, where random convolutions were a part of the transformer."""
    states = [checkpoint[key] for key in ("state_dict", "current_model_state") if key in checkpoint]
    if not any(name.startswith("model.rocket.") for state in states for name in state):
        return
    best = [state["weights"] for name, state in checkpoint["callbacks"].items() if name.startswith("BestWeights")]
    for prefix, group in (("model.", states), ("", best)):
        for state in group:
            for name in list(state):
                if name.startswith(prefix):
                    rest = name.removeprefix(prefix)
                    inner = f"1.{rest.removeprefix('rocket.')}" if rest.startswith("rocket.") else f"0.{rest}"
                    state[f"{prefix}members.{inner}"] = state.pop(name)
