"""The processes of a run that trains on several devices, one process a device, by torch.distributed.

Every process runs the same program. They agree where the program says so, and the process of rank 0 writes the files.
A program of one process has rank 0, and all functions here return at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SUPERVISED = "NDVIT_SUPERVISED"
"""Environment variable of processes that `ndvit` itself has started, which prints why one of them has died."""
LOST = 75
"""Exit status of a process that ends because another one has ended, which says why."""
_INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which a user works at a prompt


@dataclass(frozen=True)
class Started:
    """The processes that torchrun or SLURM has started for one program.

    Attributes:
        by: "torchrun" or "SLURM".
        rank: number of this process among all of them.
        local_rank: number of this process on its machine.
        size: number of processes.
        nodes: number of machines.
    """

    by: str
    rank: int
    local_rank: int
    size: int
    nodes: int

    @property
    def devices(self) -> int:
        """Processes on a machine."""
        return self.size // self.nodes


def started() -> Started | None:
    """The processes of this program, from the environment; None for a program that was started alone.

    Raises:
        ValueError: for a job of SLURM with several tasks whose number on each node is not set.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        size = int(env["WORLD_SIZE"])
        nodes = size // int(env.get("LOCAL_WORLD_SIZE", size))
        return Started("torchrun", int(env["RANK"]), int(env["LOCAL_RANK"]), size, nodes)
    tasks = int(env.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        nodes = int(env.get("SLURM_NNODES", "1"))
        if tasks % nodes or int(env.get("SLURM_NTASKS_PER_NODE", tasks // nodes)) != tasks // nodes:
            raise ValueError(
                f"SLURM has started {tasks} tasks on {nodes} nodes: every node needs as many, one for each device; set "
                "--nodes and --ntasks-per-node of the job"
            )
        return Started("SLURM", int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), tasks, nodes)
    return None


def was_restarted() -> bool:
    """Whether torchrun or SLURM has started this command again, after a process or a machine has failed."""
    return any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _joined() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process among those that have joined; 0 for one process."""
    from torch import distributed

    return distributed.get_rank() if _joined() else 0


def size() -> int:
    """Number of processes that have joined; 1 without others."""
    from torch import distributed

    return distributed.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this process writes the files: the process of rank 0, or a single process."""
    return rank() == 0


@contextmanager
def joined(place: Started | None, device: str, timeout: float) -> Iterator[None]:
    """Join the other processes inside the context.

    Args:
        place: this process among the others; None joins no others.
        device: "cpu" or "cuda", what each process trains on.
        timeout: seconds after which a process that waits for the others gives up with an error.
    """
    if place is None or _joined():
        yield
        return
    import torch
    from torch import distributed

    if place.by == "SLURM":
        _name_master(place)
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    # gloo beside NCCL: decisions of the processes, which are no work for a GPU, do not wait for it
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, rank=place.rank, world_size=place.size, timeout=timedelta(seconds=timeout))
    yield
    distributed.destroy_process_group()  # not after an error: it would wait for what the others do not do any more


def _name_master(place: Started) -> None:
    """Set the address that torch.distributed meets at, from SLURM's list of nodes and number of the job."""
    import ndvit._torchvision  # noqa: F401  (lightning imports torchvision)

    # isort: split
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    environment = SLURMEnvironment(auto_requeue=False)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)


@contextmanager
def first_on_node(place: Started | None) -> Iterator[None]:
    """Run the context in the first process of each machine, then in its others, which find what it has downloaded."""
    from torch import distributed

    waits = _joined() and place is not None and place.local_rank > 0
    if waits:
        distributed.barrier()
    yield
    if _joined() and not waits:
        distributed.barrier()


def broadcast(value: T) -> T:
    """The value of the first process, in all processes. Tensors in it are on the CPU."""
    if size() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if size() == 1:
        return flag
    import torch
    from torch import distributed

    value = torch.tensor([float(flag)])
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return bool(value.item())


def mean_of(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without gradients."""
    if size() == 1:
        return values
    from torch import distributed

    total = values.detach().clone()
    distributed.all_reduce(total)
    return total / size()


def dealt(count: int, parts: int, part: int) -> range:
    """The numbers of `count` in a row that belong to one of `parts`, whose lengths differ by one at most."""
    least, more = divmod(count, parts)
    first = part * least + min(part, more)
    return range(first, first + least + (part < more))


def gathered_rows(rows: Tensor, count: int) -> Tensor:
    """The rows of all processes one after the other, (count, ...), of which each process has those that `dealt` gives.

    The result is on the device of `rows`, in all processes, and has no gradients.
    """
    if size() == 1:
        return rows
    from torch import distributed

    lengths = [len(dealt(count, size(), i)) for i in range(size())]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [padded.new_empty(padded.shape) for _ in lengths]
    distributed.all_gather(parts, padded)
    import torch

    return torch.cat([part[:length] for part, length in zip(parts, lengths)])


def fetched_rows(rows: Tensor, wanted: Tensor) -> Tensor:
    """Rows of a batch that the processes share, each of which has equally many of it, in their order.

    A process receives the rows that it wants and no others, so the traffic does not grow with the processes.

    Args:
        rows: (B, ...), those of this process.
        wanted: (B * processes,) which row each row of the batch wants, the same in all processes.

    Returns:
        (B, ...), the wanted rows of this process.
    """
    if size() == 1:
        return rows[wanted]
    import torch
    from torch import distributed

    here, length = rank(), len(rows)
    owner = (wanted // length).view(size(), length)  # (process, row): who has what it wants
    wishes = [(wanted.view(size(), length)[i][owner[i] == here] - here * length) for i in range(size())]
    sent = rows.reshape(length, -1).contiguous().view(torch.uint8)[torch.cat(wishes)]  # bytes serve every type
    counts = torch.bincount(owner[here], minlength=size()).tolist()
    received = sent.new_empty(length, sent.shape[1])
    distributed.all_to_all_single(received, sent, counts, [len(one) for one in wishes])
    place = torch.argsort(owner[here], stable=True)  # rows arrive by process, and within it in the order of the wishes
    found = torch.empty_like(received)
    found[place] = received
    return found.view(rows.dtype).view(rows.shape)


def gathered_with_gradients(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all processes, (B * processes, ...); gradients flow back to the process that they come from."""
    if size() == 1:
        return rows
    import torch
    from torch import distributed

    class Gather(torch.autograd.Function):
        """Concatenation over the processes, whose gradient is the sum of those of all processes."""

        @staticmethod
        def forward(ctx: Any, own: Tensor) -> Tensor:
            parts = [torch.empty_like(own) for _ in range(size())]
            distributed.all_gather(parts, own)
            return torch.cat(parts)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            total = gradient.contiguous().clone()
            distributed.all_reduce(total)
            return total.chunk(size())[rank()]

    gathered: Tensor = Gather.apply(rows.contiguous())
    return gathered


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process has ended or does not answer."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def check_divides(examples: int, processes: int) -> None:
    """Raise a ValueError unless the examples of an optimizer step can be dealt to so many processes in equal parts."""
    if examples % processes:
        fitting = [n for n in range(1, examples + 1) if examples % n == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(math.log(n / processes)))[:4])
        raise ValueError(
            f"a step of this run has {examples:,} examples, which cannot be dealt to {processes} devices in equal "
            f"parts: use a number of devices that divides it, such as {', '.join(map(str, near))}"
        )
