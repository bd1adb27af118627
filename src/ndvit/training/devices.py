"""The devices of a training: which processes take part, how they are started, and how a step is dealt to them."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ndvit import processes
from ndvit.config.recipe import Recipe
from ndvit.inference.batches import pick_device
from ndvit.processes import Started
from ndvit.training.settings import CONFIG_FILE, read_config

if TYPE_CHECKING:
    from torch import nn

DEVICE_OPTIONS = ("devices", "nodes", "strategy", "device_timeout")
"""Options that a resumed run may change."""


_RESUME = "continue the run from its newest checkpoint with --resume"


def settle_devices(options: Mapping[str, Any], device: str) -> tuple[Started | None, dict[str, Any]]:
    """Decide how many devices train, by the options and by what torchrun or SLURM has started.

    Args:
        options: fields of `Recipe`; "devices" and "nodes" are replaced by what was decided.
        device: "cpu", "cuda" or "mps".

    Returns:
        This process among those that were started, None if it trains alone or the others are to be started; and the
        options, in which "devices" is a number if there are several.

    Raises:
        ValueError: if the options and what was started differ, or if there are not so many devices.
    """
    own = {name: options[name] for name in DEVICE_OPTIONS if options.get(name) is not None}
    wanted = Recipe(**own)  # refuses values out of bounds
    rest = {name: value for name, value in options.items() if name not in ("devices", "nodes")}
    alone = wanted.devices == 1 and wanted.replicas == 1 and wanted.strategy == "auto"
    place = None if alone else processes.started()
    if place is not None:
        count = place.devices if wanted.devices in (None, "auto") else wanted.devices
        if (count, wanted.nodes or place.nodes) != (place.devices, place.nodes):
            raise ValueError(
                f"devices={count} and nodes={wanted.nodes or place.nodes} were set, but {place.by} has started "
                f"{place.devices} processes on each of {place.nodes} nodes: leave both out, or start as many"
            )
    else:
        available = _available(device)
        count = 1 if wanted.devices is None else available if wanted.devices == "auto" else wanted.devices
        if (wanted.nodes or 1) > 1:
            raise ValueError(
                f"nodes={wanted.nodes}: torchrun or srun starts the command on every node, such as torchrun --nnodes "
                f"{wanted.nodes} --nproc-per-node {count} ... -m ndvit.cli train ...; see docs/scale.md"
            )
        if device != "cpu" and int(count) > available:
            raise ValueError(f"devices={count}, and there are {available} here: set --devices {available}, or auto")
    if device == "mps" and int(count) > 1:
        raise ValueError(f"devices={count}: there is one GPU of Apple; leave devices out, or set --device cpu")
    if int(count) > 1 or (place is not None and place.nodes > 1):
        rest["devices"] = count
        if place is not None and place.nodes > 1:
            rest["nodes"] = place.nodes
        return place, rest
    return (place if wanted.strategy != "auto" else None), rest


def _available(device: str) -> int:
    """Devices of this kind here; a CPU counts as one, of which any number of processes can use parts."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def device_of(options: Mapping[str, Any]) -> str:
    """The device that options of a training name or leave open: "cpu", "cuda" or "mps".

    Raises:
        ValueError: if it does not exist.
    """
    return pick_device(Recipe(device=options.get("device", "auto")).device)


def missing_processes(options: Mapping[str, Any], resumed: Path | None = None) -> int:
    """The number of processes that a training needs and nobody has started; 0 if this process can begin.

    Args:
        options: options of the training; of a run that is resumed, those that replace its own.
        resumed: folder of that run.
    """
    if resumed is not None and (resumed / CONFIG_FILE).is_file():
        options = resumed_devices(read_config(resumed / CONFIG_FILE), options)
    place, settled = settle_devices(options, device_of(options))
    return int(settled.get("devices", 1)) if needs_others(place, settled) else 0


def resumed_devices(settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The device options with which a run is resumed: those that were set now, or what has been started, or its own."""
    own = {name: settings[name] for name in (*DEVICE_OPTIONS, "device") if settings.get(name) is not None}
    if processes.started() is not None or "devices" in options or "nodes" in options:
        own = {name: value for name, value in own.items() if name not in ("devices", "nodes")}
    return own | {name: value for name, value in options.items() if name in DEVICE_OPTIONS}


def needs_others(place: Started | None, options: Mapping[str, Any]) -> bool:
    """Whether a training needs processes that nobody has started."""
    return place is None and ("devices" in options or options.get("strategy", "auto") != "auto")


def refuse_without_others(options: Mapping[str, Any]) -> None:
    """Raise the ValueError of a training that needs other processes in a program that was started alone."""
    count = options.get("devices") or 1
    raise ValueError(
        f"devices={count} needs {count} processes: use the command line (ndvit train ... --devices {count}), or start "
        f"this program with torchrun --nproc-per-node {count} PROGRAM.py, and leave devices out"
    )


class Dealing(NamedTuple):
    """How the examples of an optimizer step are dealt to processes.

    Attributes:
        batch_size: examples in one forward pass of each process.
        accumulate: forward passes of each process in a step.
    """

    batch_size: int
    accumulate: int


def deal(recipe: Recipe, among: int, unit: int = 1) -> Dealing:
    """Deal the examples of a step of a run to processes, of which there may be other numbers than in its beginning.

    A forward pass has at most as many examples as in the recipe, so that it needs no more memory.

    Args:
        recipe: decides how many examples a step has.
        among: number of processes.
        unit: examples that stay together.

    Raises:
        ValueError: if that is impossible, with numbers of processes for which it is possible.
    """
    processes.check_divides(recipe.step_examples // unit, among)
    each = recipe.step_examples // among
    for accumulate in itertools.count(math.ceil(each / recipe.batch_size)):
        if each % accumulate == 0 and each // accumulate % unit == 0:
            return Dealing(each // accumulate, accumulate)
    raise AssertionError


def share_solved(network: nn.Module) -> None:
    """Copy what the first process has solved to the networks of the others: heads, features, and weights of members."""
    if processes.size() == 1:
        return
    from ndvit.network.committee import output_committees, solved_networks

    solved, committees = solved_networks(network), output_committees(network)
    if not solved:
        return
    states = [{name: tensor.cpu() for name, tensor in one.state_dict().items()} for one in solved]
    states, weights = processes.broadcast((states, [one.weights for one in committees]))
    for one, state in zip(solved, states, strict=True):
        one.load_state_dict(state)
    for committee, values in zip(committees, weights, strict=True):
        committee.weights = values


def launch(count: int, arguments: Sequence[str], complain: Callable[[str], Any], remedy: str = _RESUME) -> int:
    """Run this command in several processes, and wait for their end; torch's elastic agent supervises them.

    Args:
        count: number of processes.
        arguments: words of the command line after `ndvit`.
        complain: receives a message if a process has died without one.
        remedy: how to continue, for that message.

    Returns:
        The exit status: 0, that of the process that failed first, or 130 after Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the agent's account of signals and of processes that have failed
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ[processes.SUPERVISED] = "1"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SECONDS_TO_STOP))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ndvit.cli", *arguments)
    except SignalException as stop:
        return 130 if stop.sigval == signal.SIGINT else 128 + int(stop.sigval)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in sorted(failed.failures.items())}
        if own := [code for code in codes.values() if code > 0 and code != processes.LOST]:
            return max(own)  # this process has printed why
        # the agent itself ends the others by SIGTERM
        killed = sorted((code == -signal.SIGTERM, rank) for rank, code in codes.items() if code < 0)
        what = _account(killed[0][1], codes[killed[0][1]]) if killed else _STALLED
        complain(f"{what}, and all were stopped: {remedy}")
        return 2
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _account(rank: int, code: int) -> str:
    """A sentence on a process that was killed."""
    name = signal.Signals(-code).name
    cause = " (the system kills processes so if the memory is full)" if name == "SIGKILL" else ""
    return f"the process of device {rank} was ended by {name}{cause}"


_STALLED = "a process of this run did not answer within --device-timeout"
_SECONDS_TO_STOP = 180  # for the step and the checkpoint that a signal waits for
