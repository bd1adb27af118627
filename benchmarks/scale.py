"""Check training on several devices, by processes on this CPU that gloo connects: equality, faults, overhead, model.

`python benchmarks/scale.py equality` compares 2 and 4 processes with one; `kills` ends processes at random moments and
compares the resumed runs with an unbroken one; `faults` fills the disk and stalls a process; `elastic` continues a run
of 4 processes on 2; `overhead` times one process with DDP and without; `throughput` compares 1, 2 and 4 processes with
the model of docs/scale.md; `paper` prints that model for GPUs. Every command prints a table of Markdown.
"""

import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App

app = App(help=__doc__)
HERE = Path(__file__).resolve()
TINY = ["--model", "vit_pico", "--embed-dim", "16", "--depth", "2", "--num-heads", "2"]
SIGNAL = ["--preset", "signal", "--model", "signal_tiny", "--depth", "1", "--stem-width", "8"]
SIGNAL += ["--rocket-features", "400"]
SGD = ["--optimizer", "sgd", "--learning-rate", "0.05"]
HELD = ["--val-fraction", "0.25", "--val-every", "3"]
NETWORKS = {"ViT": TINY, "signal network": SIGNAL}
RECORD, ACT, TURN = "SCALE_RECORD", "SCALE_ACT", "SCALE_TURN"
STEPS_A_TURN = 4


# ---------------------------------------------------------------- the program of an instrumented process


def work(*words: str) -> None:
    """Run `ndvit` with these words, record what is trained on, and do what the environment says at some moment.

    SCALE_RECORD is a folder for one file a process, with a line for each batch: time, CPU time and examples. SCALE_ACT
    is signal:moment:number:rank, where the moment is training, validation or checkpoint. SCALE_TURN names two pipes,
    OWN and OTHER, of two programs that take turns after every few steps: it waits for a byte in the first, and then
    writes one to the second. A line without examples is the end of a turn.
    """
    from ndvit.cli import main
    from ndvit.data.loading import Inputs
    from ndvit.training.callbacks import checkpoints
    from ndvit.training.module import TrainingModule

    rank = os.environ.get("RANK", "0")
    kind, moment, number, who = (os.environ.get(ACT) or "-:-:-:-").split(":")
    seen = {"training": 0, "validation": 0, "checkpoint": 0}

    def at(place: str) -> None:
        if (place, str(seen[place]), rank) == (moment, number, who):
            os.kill(os.getpid(), getattr(signal, kind))
        seen[place] += 1

    def instrumented(place: str, function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            at(place)
            return function(*arguments, **more)

        return call

    TrainingModule.training_step = instrumented("training", TrainingModule.training_step)  # type: ignore[method-assign]
    TrainingModule.validation_step = instrumented(  # type: ignore[method-assign]
        "validation", TrainingModule.validation_step
    )
    checkpoints.replace_file = instrumented("checkpoint", checkpoints.replace_file)
    if folder := os.environ.get(RECORD):
        file = open(Path(folder) / f"{rank}.jsonl", "a", buffering=1)  # noqa: SIM115 (until the process ends)
        stream = Inputs.stream
        pipes = [os.open(path, os.O_RDWR) for path in os.environ.get(TURN, "").split()]

        def recorded(self: Inputs, *arguments: Any) -> Any:
            loader = stream(self, *arguments)
            if len(arguments) < 7:  # of the plan, which measures reading
                return loader
            order = loader.batch_sampler.__class__.__iter__

            def batches(sampler: Any) -> Iterator[Any]:
                for i, batch in enumerate(order(sampler)):
                    if pipes and i % STEPS_A_TURN == 0:
                        if i:
                            file.write(json.dumps([time.perf_counter(), time.process_time()]) + "\n")
                            os.write(pipes[1], b".")
                        os.read(pipes[0], 1)
                    plain = [i[0] if isinstance(i, tuple) else i for i in batch]
                    file.write(json.dumps([time.perf_counter(), time.process_time(), plain]) + "\n")
                    yield batch

            loader.batch_sampler.__class__.__iter__ = batches
            return loader

        Inputs.stream = recorded  # type: ignore[method-assign]
    try:
        main(list(words))
    finally:
        for path in os.environ.get(TURN, "").split()[1:]:
            os.write(os.open(path, os.O_RDWR), b".")


# ------------------------------------------------------------------------------------------- small helpers


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with toy.npz, 96 signals of two channels in two classes."""
    with tempfile.TemporaryDirectory() as name:
        labels = np.arange(96) % 2
        noise = np.random.default_rng(0).normal(size=(96, 2, 32))
        np.savez(Path(name) / "toy.npz", X=(noise + labels[:, None, None] / 2).astype(np.float32), y=labels)
        yield Path(name)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def ndvit(home: Path, *words: Any, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "ndvit.cli", *map(str, words)]
    done = subprocess.run(program, cwd=home, env=environment(**more), capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


def instrumented(home: Path, count: int, *words: Any, **more: str) -> subprocess.CompletedProcess[str]:
    """`work` in so many processes of torchrun, or in one without it."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count else []
    program = [sys.executable, *start, str(HERE), "work", *map(str, words)]
    return subprocess.run(program, cwd=home, env=environment(**more), capture_output=True, text=True)


def train(output: str, batch: int, count: int, steps: int, *more: str) -> list[str]:
    devices = [] if count == 1 else ["--devices", str(count)]
    words = ["train", "toy.npz", "--output", output, "--no-progress", "--batch-size", str(batch), "--steps", str(steps)]
    return [*words, *devices, *more]


def tensors(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "model.safetensors")


def difference(one: Path, other: Path, without_key_bias: bool = False) -> float:
    """The largest difference of two models in a weight.

    The bias of the keys changes no output, so its gradient is rounding, of which Adam makes whole steps.
    """
    a, b = tensors(one), tensors(other)
    found = 0.0
    for name in a:
        change = (a[name].float() - b[name].float()).abs()
        if without_key_bias and name.endswith("qkv.bias"):
            change = change.view(3, -1)[[0, 2]]
        found = max(found, float(change.max())) if change.numel() else found
    return found


def same(one: Path, other: Path) -> bool:
    return difference(one, other) == 0 and (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def table(head: list[str], rows: Iterable[list[Any]]) -> None:
    """Print a table, each row as soon as it is there."""
    for row in itertools.chain((head, ["---"] * len(head)), rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


# ------------------------------------------------------------------------------------------------ commands


@app.command
def equality(
    networks: tuple[str, ...] = tuple(NETWORKS), optimizers: tuple[str, ...] = ("sgd", "adamw"), steps: int = 20
) -> None:
    """Compare 2 and 4 processes with one that has their whole batch, with default augmentation and dropout."""

    def rows() -> Iterator[list[Any]]:
        with folder() as home:
            for name, optimizer in itertools.product(networks, optimizers):
                words = [*NETWORKS[name], *HELD, *(SGD if optimizer == "sgd" else ["--optimizer", optimizer])]
                start = f"{name.split()[0]}-{optimizer}"
                ndvit(home, *train(f"{start}-1", 16, 1, steps, *words))
                for count, more in ((2, []), (4, []), (2, ["--strategy", "fsdp"])):
                    if more and name != "ViT":
                        continue
                    output = f"{start}-{count}{len(more)}"
                    ndvit(home, *train(output, 16 // count, count, steps, *words, *more))
                    change = difference(home / f"{start}-1", home / output, without_key_bias=optimizer != "sgd")
                    yield [name, optimizer, f"{count}{' fsdp' if more else ''}", f"{change:.1e}"]

    table(["network", "optimizer", "processes", "largest difference of a weight"], rows())


@app.command
def kills(count: int = 20, seed: int = 0, devices: int = 2, steps: int = 30) -> None:
    """End a random process at a random moment (training, validation, checkpoint) by SIGKILL, and resume."""
    draw = random.Random(seed)
    more = [*TINY, *HELD, "--ema-decay", "0.8", "--drop-path-rate", "0.2"]

    def rows() -> Iterator[list[Any]]:
        with folder() as home:
            ndvit(home, *train("whole", 8, devices, steps, *more))
            for i in range(count):
                moment = draw.choice(["training"] * 3 + ["validation", "checkpoint"])
                # the first process alone writes; a step has one batch; every third has a validation and a checkpoint
                rank = 0 if moment == "checkpoint" else draw.randrange(devices)
                number = draw.randrange(1, steps if moment == "training" else steps // 3)
                words = train(f"run{i}", 8, 1, steps, *more)
                done = instrumented(home, devices, *words, **{ACT: f"SIGKILL:{moment}:{number}:{rank}"})
                broken = done.returncode != 0 and not (home / f"run{i}" / "model.safetensors").exists()
                resumed = ndvit(home, "train", "--resume", f"run{i}", "--no-progress", check=False)
                equal = resumed.returncode == 0 and same(home / f"run{i}", home / "whole")
                yield [i + 1, moment, number, rank, broken, equal]
                shutil.rmtree(home / f"run{i}")

    table(["kill", "moment", "number", "rank", "run ended", "resumed to the same bits"], rows())


@app.command
def elastic(steps: int = 24, at: int = 9) -> None:
    """Stop 4 processes by a signal, continue on 2, and count the examples of every pass."""
    with folder() as home:
        ndvit(home, *train("whole", 4, 4, steps, *TINY, *HELD))
        records = home / "records"
        for name in ("4", "2"):
            (records / name).mkdir(parents=True)
        words = train("run", 4, 1, steps, *TINY, *HELD)
        instrumented(home, 4, *words, **{ACT: f"SIGTERM:training:{at}:2", RECORD: str(records / "4")})
        done = instrumented(home, 2, "train", "--resume", "run", "--no-progress", **{RECORD: str(records / "2")})
        assert done.returncode == 0, done.stderr
        steps_done = at + 1
        seen: list[int] = []
        for name, count, parts, first, last in (("4", 4, 1, 0, steps_done), ("2", 2, 2, steps_done, steps)):
            files = [(records / name / f"{i}.jsonl").read_text().splitlines() for i in range(count)]
            for batch in range((last - first) * parts):
                for lines in files:
                    seen += json.loads(lines[batch])[2]
        examples = max(seen) + 1
        passes = [sorted(seen[i : i + examples]) for i in range(0, len(seen) - examples + 1, examples)]
        once = sum(one == list(range(examples)) for one in passes)

        def losses(run: str) -> list[float]:
            lines = (home / run / "metrics.csv").read_text().splitlines()[1:]
            return [float(line.split(",")[1]) for line in lines]

        whole, run = losses("whole"), losses("run")
        table(
            ["passes", "each example once", "loss of the last 10 steps, unbroken on 4", "stopped on 4, continued on 2"],
            [[len(passes), once, f"{statistics.mean(whole[-10:]):.3f}", f"{statistics.mean(run[-10:]):.3f}"]],
        )


@app.command
def faults(devices: int = 2) -> None:
    """Fill the disk of the first process, and stall another one; each ends with one message."""
    table(["fault", "status", "time", "message"], _faults(devices))


def _faults(devices: int) -> Iterator[list[Any]]:
    with folder() as home:
        disk = home / "disk"
        disk.mkdir()
        full = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=180k", "tmpfs", str(disk)], capture_output=True)
        if full.returncode == 0:
            try:
                start = time.perf_counter()
                done = ndvit(home, *train("disk/run", 8, devices, 60, *TINY, *HELD), check=False)
                yield ["disk full", done.returncode, f"{time.perf_counter() - start:.0f} s", done.stderr.strip()]
                subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
                resumed = ndvit(home, "train", "--resume", "disk/run", "--no-progress", check=False)
                ndvit(home, *train("whole", 8, devices, 60, *TINY, *HELD))
                equal = resumed.returncode == 0 and same(disk / "run", home / "whole")
                yield ["resumed with space", resumed.returncode, "", f"{resumed.stderr.strip()} equal: {equal}"]
            finally:
                subprocess.run(["umount", str(disk)], check=True)
        start = time.perf_counter()
        words = train("stalled", 8, 1, 30, *TINY, *HELD, "--device-timeout", "10")
        done = instrumented(home, devices, *words, **{ACT: "SIGSTOP:training:7:1"}, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5")
        ours = [line for line in done.stderr.splitlines() if line.startswith("ndvit")]
        yield ["a process that stalls", done.returncode, f"{time.perf_counter() - start:.0f} s", " ".join(ours)]
        resumed = ndvit(home, "train", "--resume", "stalled", "--no-progress", check=False)
        yield ["resumed", resumed.returncode, "", resumed.stderr.strip()]


def step_times(
    home: Path, run: str, counts: Sequence[int], *more: Sequence[str], turns: bool = False, steps: int = 60
) -> list[np.ndarray]:
    """Seconds, and seconds of CPU time, of the steps (n, 2) of runs at the same time.

    Args:
        home: folder with the data.
        run: name of the runs.
        counts: processes of each run; 0 is one without torchrun.
        more: options of each run.
        turns: let two runs of one process take turns, so that each has the machine for itself.
        steps: steps of each run, of which the first twelve are not counted.
    """
    started = []
    pipes = [home / f"{run}-{name}" for name in "ab"] if turns else []
    for path in pipes:
        os.mkfifo(path)
    for i, (count, options) in enumerate(zip(counts, more, strict=True)):
        records = home / f"times-{run}-{i}"
        records.mkdir()
        start = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", "0"] if count else []
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"] if count else []
        words = train(f"{run}-{i}", 32, 1, steps, "--val-fraction", "0", "--val-every", str(steps), *options)
        program = [sys.executable, *start, str(HERE), "work", *words]
        own = {RECORD: str(records)} | ({TURN: f"{pipes[i]} {pipes[1 - i]}"} if turns else {})
        started.append(
            subprocess.Popen(
                program,
                cwd=home,
                env=environment(**own),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    if turns:
        opened = os.open(pipes[0], os.O_RDWR)
        os.write(opened, b".")
    for one in started:
        errors = one.communicate()[1]
        assert one.returncode == 0, errors
    if turns:
        os.close(opened)
    found = []
    for i in range(len(started)):
        times: list[np.ndarray] = []
        for file in (home / f"times-{run}-{i}").iterdir():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            pairs = [(np.array(line[:2]), np.array(after[:2])) for line, after in itertools.pairwise(lines) if line[2:]]
            times += [after - before for before, after in pairs][12:]
        found.append(np.array(times))
    return found


NETWORK_OF_TIMES = ["--model", "vit_nano", "--input-size", "256", "--patch-size", "4"]


@app.command
def overhead(repeats: int = 5) -> None:
    """Time the steps of one process without DDP and of one with it, which take turns after every four steps.

    CPU time is compared, too: other programs on the machine hardly change it.
    """

    def rows() -> Iterator[list[Any]]:
        ratios = []
        with folder() as home:
            for i in range(repeats):
                ddp = [*NETWORK_OF_TIMES, "--strategy", "ddp"]
                order = [(0, NETWORK_OF_TIMES), (1, ddp)][:: -1 if i % 2 else 1]  # which of them is first
                found = step_times(home, f"turns{i}", [one[0] for one in order], *[one[1] for one in order], turns=True)
                none, with_ddp = (np.median(times, 0) for times in found[:: -1 if i % 2 else 1])
                ratios.append(with_ddp / none)
                cells = [f"{1e3 * value:.1f} ms" for value in (none[0], with_ddp[0], none[1], with_ddp[1])]
                yield [i + 1, len(found[0]), *cells, *(f"{100 * (ratio - 1):+.1f} %" for ratio in ratios[-1])]
        yield ["median", *[""] * 5, *(f"{100 * (ratio - 1):+.1f} %" for ratio in np.median(ratios, 0))]

    head = ["pair of processes", "steps of each", "without DDP", "with DDP", "CPU time without", "CPU time with"]
    table([*head, "overhead", "overhead in CPU time"], rows())


@app.command
def reduce(size: int) -> None:
    """Time an all-reduce of this many bytes in the processes of torchrun."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    values = torch.zeros(size // 4)
    times = []
    for _ in range(20):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(values)
        times.append(time.perf_counter() - start)
    if distributed.get_rank() == 0:
        print(statistics.median(times))
    distributed.destroy_process_group()


@app.command
def throughput(steps: int = 40, counts: tuple[int, ...] = (1, 2, 4)) -> None:
    """Compare the steps of several processes with the model: computing, waiting for the slowest, and the all-reduce.

    Computing is that of as many processes beside each other without DDP; the slowest is the longest of their steps with
    the same number.
    """
    from ndvit import create_model

    network = create_model("vit_nano", input_size=256, patch_size=4, in_channels=2, num_classes=2)
    size = 4 * sum(p.numel() for p in network.parameters())

    def rows() -> Iterator[list[Any]]:
        with folder() as home:
            for count in counts:
                own = [NETWORK_OF_TIMES] * count
                alone = np.stack(
                    [one[:, 0] for one in step_times(home, f"alone{count}", [0] * count, *own, steps=steps)]
                )
                computing, slowest = float(np.median(alone)), float(np.median(alone.max(0)))
                measured, reducing = computing, 0.0
                if count > 1:
                    (found,) = step_times(home, f"ddp{count}", [count], NETWORK_OF_TIMES, steps=steps)
                    measured = float(np.median(found[:, 0]))
                    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), str(HERE)]
                    words += ["reduce", str(size)]
                    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
                    reducing = float(done.stdout.split()[-1])
                model = slowest + reducing
                cells = [f"{1e3 * seconds:.0f} ms" for seconds in (computing, slowest, reducing, model, measured)]
                yield [count, *cells, f"{100 * (measured / model - 1):+.0f} %", f"{32 * count / measured:.0f}"]

    print(f"{size / 2**20:.1f} MiB of gradients, 32 examples a process\n", flush=True)
    head = ["processes", "computing", "of the slowest", "all-reduce", "model", "measured", "difference", "examples/s"]
    table(head, rows())


# ---------------------------------------------------------------------------------------- the model, for GPUs

PEAK = 989e12  # bf16 operations per second of an H100 SXM, dense
SHARE = 0.40  # of the peak that a transformer reaches
NODE = 8
INSIDE, BETWEEN = 360e9, 42e9  # bytes per second and GPU of a ring, by NVLink and by 400 Gb/s a GPU
HIDDEN = 0.9  # share of the backward pass behind which communication can hide
EXPOSED = 0.03  # share of the communication that follows the backward pass in any case
SPREAD = 0.01  # standard deviation of the time of a step between GPUs, all of which wait for the slowest
MODELS = {  # tokens of 16 or 14 pixels at 224: width, depth, width of the MLP, tokens
    "ViT-B/16": (768, 12, 3072, 197),
    "ViT-L/16": (1024, 24, 4096, 197),
    "ViT-H/14": (1280, 32, 5120, 257),
    "ViT-g/14": (1408, 40, 6144, 257),
}
PICTURES_A_CORE = 130  # pictures of 500 x 375 that a core decodes and crops per second


def needs(width: int, depth: int, hidden: int, tokens: int) -> tuple[float, float]:
    """Parameters, and operations of a forward pass of a picture."""
    weights = depth * (4 * width * width + 2 * width * hidden)
    attention = depth * 2 * tokens * tokens * width
    return weights + tokens * width + 768 * width, 2 * (weights * tokens + attention)


def modelled(name: str, gpus: int, strategy: str, batch: int) -> tuple[float, float]:
    """Pictures per second of all GPUs, and the share of what as many single GPUs would do."""
    parameters, operations = needs(*MODELS[name])
    compute = 3 * batch * operations / (PEAK * SHARE)
    rate = INSIDE if gpus <= NODE else BETWEEN
    # float32 gradients: an all-reduce moves them twice; FSDP2 gathers float32 weights twice and reduces once
    moved = (2 if strategy == "ddp" else 3) * 4 * parameters * (gpus - 1) / gpus
    communication = moved / rate
    room = HIDDEN * compute * (2 / 3 if strategy == "ddp" else 1)
    slowest = 1 + SPREAD * math.sqrt(2 * math.log(gpus))
    step = compute * slowest + max(0.0, communication - room) + EXPOSED * communication
    return gpus * batch / step, compute / step


@app.command
def paper(batch: int = 128) -> None:
    """Print what the model foresees for H100s."""
    rows = []
    for name, shape in MODELS.items():
        parameters, operations = needs(*shape)
        cells = [name, f"{parameters / 1e6:.0f} M", f"{operations / 1e9:.0f}", f"{16 * parameters / 2**30:.1f} GiB"]
        for strategy in ("ddp", "fsdp"):
            for gpus in (8, 64, 1024):
                speed, share = modelled(name, gpus, strategy, batch)
                cells.append(f"{speed:,.0f} ({100 * share:.0f} %)")
        cores = modelled(name, NODE, "ddp", batch)[0] / PICTURES_A_CORE
        rows.append([*cells, f"{cores:.0f}"])
    head = ["network", "parameters", "GFLOP forward", "weights, gradients, moments"]
    head += [f"{strategy} {gpus:,}" for strategy in ("ddp", "fsdp") for gpus in (8, 64, 1024)]
    table([*head, "cores a node that read"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:  # its words are no flags of this program
        work(*sys.argv[2:])
    else:
        app()
