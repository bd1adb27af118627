"""Checkpoints of an unfinished training, and its interruption by Ctrl-C."""

import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

# isort: split
import json
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
from ndvit.weights.unfinished import METADATA


class Checkpoints(Checkpoint):
    """Keeps the newest checkpoint, `step=N.ckpt`: every few steps, and at the step where Ctrl-C ends the training.

    A checkpoint is written when everything of a step is done, including a validation that is due, so that a resumed run
    does not repeat it. (Lightning's ModelCheckpoint writes it before the validation, and again within the next step.)
    A second Ctrl-C ends the process at once.

    Args:
        folder: where checkpoints are written; None writes none, and Ctrl-C still ends the training.
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

    def state_dict(self) -> dict[str, Any]:
        """The metadata of the model, for the checkpoint."""
        return {METADATA: self.metadata}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch SIGINT inside the context. Outside the main thread, where that is impossible, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def request(*_: Any) -> None:
            self.requested = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

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
        if self.folder is not None and (self.requested or trainer.global_step % self.every == 0):
            path = self.folder / f"step={trainer.global_step}.ckpt"
            make_folder(self.folder)
            for logger in trainer.loggers:
                logger.save()
            replace_file(path, partial(trainer.save_checkpoint, weights_only=False))
            for old in set(self.folder.glob("step=*.ckpt*")) - {path}:  # with what a killed process has left
                old.unlink(missing_ok=True)
        if self.requested:
            trainer.limit_val_batches = 0  # else Lightning would validate once more when it stops
            trainer.should_stop = True


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
