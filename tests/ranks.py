"""What the processes of test_devices.py do: `ranks.py FOLDER COUNT JOB,JOB,... COUNT JOB,...`.

For each number of processes, so many are forked, which saves their imports. Each job runs in all of them, and what it
returns is written as FOLDER/COUNT/JOB.RANK.pt.
"""

import os
import signal
import socket
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup

from ndvit import processes
from ndvit.data.loading import Inputs
from ndvit.evaluation import figures
from ndvit.inference.batches import predict_outputs
from ndvit.training import descent  # noqa: F401  (imported before the processes are forked)
from ndvit.training.module import TrainingModule
from ndvit.training.run import resume, train
from tinyruns import QUIET, TINY, fit_tiny, toy

SOURCE = toy(72)
# Momentum alone: Adam makes whole steps of gradients that are nothing but rounding.
DESCENT = {"steps": 20, "optimizer": "sgd", "learning_rate": 0.05, "val_fraction": 0.25, "val_every": 7}
VIT = DESCENT | {
    "mixup": 0.4,
    "cutmix": 1.0,
    "mix_prob": 0.9,
    "crop": 0.7,
    "warp": 0.5,
    "flip": 0.5,
    "erase": 0.3,
    "noise": 0.1,
    "scale": 0.1,
    "channel_drop": 0.3,
    "drop_path_rate": 0.3,
    "ema_decay": 0.5,
}
SIGNAL = DESCENT | {
    "model": "signal_tiny",
    "preset": "signal",
    "depth": 1,
    "stem_width": 8,
    "rocket_features": 400,
}
CONTRASTIVE = {"task": "contrastive", "steps": 8, "optimizer": "sgd", "learning_rate": 0.05}
MASKED = CONTRASTIVE | {"task": "masked"}
STOPPED = 9  # batch in which the last process receives SIGTERM
KILLED = 5  # batch in which the last process receives SIGKILL


def with_gaps():
    """Signals of which a few have missing values: not every process has a mask in every batch."""
    x, y = toy(72)
    x[[3, 20, 41, 60], :, 5:9] = np.nan
    return x, y


def result(options, batch, source=SOURCE, folder=None, **more):
    """Weights and metrics of a training with `batch` examples in a step of all processes."""
    size = processes.size()
    devices = {} if size == 1 else {"devices": size}
    trained = fit_tiny(source, folder, batch_size=batch // size, **devices, **options, **more)
    return {"state": dict(trained.model.network.state_dict()), "history": trained.fit.history}


def vit(home):
    return result(VIT, 16, folder=home / "vit")


def gaps(home):
    return result(VIT, 16, with_gaps())


def signals(home):
    return result(SIGNAL, 16)


def contrastive(home):
    return result(CONTRASTIVE, 16)


def masked(home):
    return result(MASKED, 16)


def sharded(home):
    return result(VIT | {"ema_decay": None}, 16, strategy="fsdp")


@contextmanager
def signalled(number, at):
    """Inside the context, the last process sends itself a signal in a training step."""
    step = TrainingModule.training_step

    def stopping(self, batch, batch_idx):
        if batch_idx == at and processes.rank() == processes.size() - 1:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    TrainingModule.training_step = stopping
    yield
    TrainingModule.training_step = step


def killed(home):
    """A run whose last process is killed; the others notice that, and end as the command does."""
    run, options = home.parent / "killed", TINY | VIT | {"batch_size": 8, "devices": processes.size()}
    with signalled(signal.SIGKILL, KILLED):
        try:
            train(home.parent / "toy.npz", output=run, **options, **QUIET)
        except Exception as error:
            if processes.is_loss(error):
                os._exit(processes.LOST)
            raise


def stopped(home):
    """A run that ends by a signal to the last process, and its continuation."""
    with signalled(signal.SIGTERM, STOPPED):
        result(VIT, 16, folder=home / "stopped")
    if processes.is_first():
        (home / "copy" / "checkpoints").mkdir(parents=True)
        for path in (home / "stopped" / "checkpoints").iterdir():
            (home / "copy" / "checkpoints" / path.name).write_bytes(path.read_bytes())
    processes.any_of(False)
    return result(VIT, 16, folder=home / "stopped", resume=True)


def predicted(home):
    """Outputs for eleven examples by one process, and by all together."""
    trained = fit_tiny(SOURCE, steps=1, devices=processes.size())
    data = Inputs(_examples(11), trained.model.preprocess)
    return {
        "alone": predict_outputs(trained.model.network, data, 4),
        "together": predict_outputs(trained.model.network, data, 4, shared=True),
    }


def _examples(count):
    from ndvit.data.examples import Examples

    return Examples(list(SOURCE[0][:count]))


def fetched(home):
    """Rows of a batch of four a process, in a random order of the whole batch, of several types."""
    total = 4 * processes.size()
    order = torch.randperm(total, generator=torch.Generator().manual_seed(5))
    own = slice(4 * processes.rank(), 4 * processes.rank() + 4)
    whole = [torch.arange(total * 6.0).view(total, 2, 3), torch.arange(total) % 3 == 0, torch.arange(total)]
    found = [processes.fetched_rows(rows[own], order) for rows in whole]
    return {"right": [torch.equal(rows, one[order][own]) for rows, one in zip(found, whole)]}


def resumed(home):
    """The run of `killed`, continued."""
    figures.draw = lambda *arguments, **panels: Markup("<svg></svg>")
    return {"state": dict(resume(home.parent / "killed", **QUIET).model.network.state_dict()), "history": []}


def run_rank(rank, count, port, home, jobs):
    """Do the jobs as one of several processes, as torchrun would start it."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with processes.joined(processes.started(), "cpu", 60):
        for job in jobs:
            torch.save(globals()[job](home), home / f"{job}.{rank}.pt")


def run_ranks(count, home, jobs):
    """Fork the processes, and wait for them; one that fails ends the others, unless it is killed on purpose."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            try:
                run_rank(rank, count, port, home, jobs)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    if jobs == ["killed"]:
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [*[processes.LOST] * (count - 1), -signal.SIGKILL], codes
        children = []
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    home, *groups = sys.argv[1:]
    for count, jobs in zip(groups[::2], groups[1::2]):
        (Path(home) / count).mkdir(exist_ok=True)
        run_ranks(int(count), Path(home) / count, jobs.split(","))


if __name__ == "__main__":
    main()
