"""Measure prediction, training, memory and start-up, compared with other libraries.

`python benchmarks/speed.py` measures each case in its own process. All parties take turns, together with a matrix
product that is the upper bound of the machine. With `--run RUN --data FOLDER` it also measures the effect of token
merging and 8-bit integers on a trained model. It writes performance.json, performance.md and performance.png. An
interrupted benchmark continues where it stopped.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cyclopts import App
from image_results import git_commit
from speed_report import write_report
from speed_work import RESULTS, Case, Row, read_rows, write_rows

from ndvit.network.fast import linear_by_convolution

app = App(help=__doc__)
CASE = Path(__file__).resolve().parent / "speed_case.py"
CODE = ("speed.py", "speed_case.py", "speed_parties.py", "speed_work.py")
SIZES = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
EAGER = ("timm", "ours", "transformers", "torchvision", "vit-pytorch")
EXACT = (
    "timm",
    "ours",
    *(f"{library}, {way}" for way in ("torch.compile", "ONNX Runtime", "OpenVINO") for library in ("timm", "ours")),
    "ours, ndvit.compile",
)
TRAINING = (*EAGER, "timm, torch.compile", "ours, torch.compile")
BY_MKL = ("timm", "ours", "ours, by MKL")
MERGED = ("timm", "ours", "ours, 8 merged", "ours, 13 merged", "ours, 16 merged")
SIGNAL: dict[str, Any] = {"input_size": (4096,), "patch_size": 16, "in_channels": 12, "num_classes": 10}
"""Twelve leads of an electrocardiogram, 8 s at 512 Hz, in 256 patches."""
OURS: dict[str, Any] = {
    "input_size": (512,),
    "patch_size": 4,
    "stem_strides": (2, 2),
    "in_channels": 1,
    "num_classes": 10,
    "stem_head": False,
}
"""The network that `train` chooses for signals of 512 samples, with one head and without random convolutions."""
SIGNALS = ("vit-pytorch", "ours", "ours, torch.compile", "ours, ONNX Runtime", "ours, OpenVINO", "ours, ndvit.compile")
DROPS = {"drop_path_rate": 0.2, "patch_drop_rate": 0.25}
FINE_TUNED_MERGED = (2, 4, 8, 13, 16, 18, 20)
NARROW = ("timm", "ours", "ours, int8 OpenVINO", "ours, int8 ONNX Runtime", "ours, bfloat16 OpenVINO")
ROUGH = ("timm", "timm, float32", *EAGER[1:], "timm, OpenVINO", "ours, OpenVINO")
IMPORTS = {
    "import torch": "import torch",
    "import ndvit": "import ndvit",
    "ndvit.create_model": "from ndvit import create_model",
    "ndvit.load_model": "from ndvit import load_model",
    "ndvit --help": "",
    "import timm": "import ndvit._torchvision, timm",
    "transformers' ViT": "import ndvit._torchvision; from transformers import ViTForImageClassification",
}
WIDE = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX"}
PACKAGES = ("torch", "timm", "transformers", "torchvision", "vit-pytorch", "onnxruntime", "openvino", "nncf")


def cases_of(trained: list[str], data: str, networks: tuple[str, ...], batches: tuple[int, ...]) -> Iterator[Case]:
    """All cases on a CPU. `on_gpu` selects from them for a GPU."""
    signal = tuple(SIGNAL.items())
    pictures = [(network, batch) for network in networks for batch in batches]
    for network, batch in pictures:
        yield Case("forward", network, batch, EAGER)
    for network, batch in pictures:
        if batch <= 8:
            yield Case("exact", network, batch, EXACT)
    step = min(8, max(batches))
    if linear_by_convolution():  # on other CPUs ours uses MKL
        for network in networks:
            yield Case("by MKL", network, step, BY_MKL)
        for network in networks[:2]:
            yield Case("training by MKL", network, step, BY_MKL, "training")
    for table, arguments, parties in (("training", {}, TRAINING), ("dropping", DROPS, ("timm", "ours"))):
        pairs = tuple(arguments.items())
        for network in networks[:2]:
            yield Case(table, network, step, parties, "training", pairs)
            for party in parties:
                yield Case(f"memory of {table}", network, step, (party,), "memory", pairs)
    for network, batch in pictures:
        if batch <= 8:
            yield Case("bfloat16", network, batch, ROUGH, precision="bfloat16")
    for network in networks[:2]:
        yield Case("training in bfloat16", network, step, ROUGH[:-2], "training", precision="bfloat16")
    for network in networks:
        yield Case("merging", network, step, MERGED)
    for network in ("vit_tiny", "vit_small")[: len(networks)]:
        for batch in (batch for batch in batches if batch <= 8):
            yield Case("signals", network, batch, SIGNALS, arguments=signal)
        yield Case("training on signals", network, step, ("vit-pytorch", "ours"), "training", signal)
    yield Case(
        "training of signal_small", "signal_small", 32, ("ours", "ours, torch.compile"), "training", tuple(OURS.items())
    )
    for model in trained:
        for batch in (1, 8):
            yield Case("int8", name_of(Path(model)), batch, NARROW, run=model, data=data)
        merged = tuple(f"ours, {count} merged" for count in FINE_TUNED_MERGED)
        if Path(model).is_dir():
            yield Case(
                "merging a trained model", name_of(Path(model)), 8, ("timm", "ours", *merged), run=model, data=data
            )


def name_of(model: Path) -> str:
    """The name of a trained model in the rows: its folder, or its file without the suffix."""
    return model.name if model.is_dir() else model.stem


def on_gpu(case: Case) -> Iterator[Case]:
    """The cases for a GPU: eager and compiled, in float32 and bfloat16. Cases for CPUs only give none."""
    kept = tuple(p for p in case.parties if p.partition(", ")[2] in ("", "torch.compile") or "merged" in p)
    if (
        case.kind == "memory"
        or case.table in ("int8", "by MKL", "training by MKL")
        or case.precision != "float32"
        or len(kept) < 2
    ):
        return
    for precision in ("float32", "bfloat16"):
        yield replace(case, parties=kept, device="cuda", precision=precision)


def in_process(case: Case, timeout: float | None = None) -> dict[str, Any]:
    """Measure a case in its own process, which is ended after `timeout` seconds.

    Raises:
        RuntimeError: with the last line of its errors, or the newest that says that the memory was too small.
        subprocess.TimeoutExpired: if it did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "case.json", Path(folder) / "result.json"
        job.write_text(json.dumps(asdict(case)), encoding="utf-8")
        words = [sys.executable, str(CASE), str(job), str(result)]
        done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=timeout)
        if done.returncode:
            lines = [line for line in reversed(done.stderr.splitlines()) if line.strip()]
            cause = next((line for line in lines if "out of memory" in line), next(iter(lines), ""))
            raise RuntimeError(cause or f"the process ended with status {done.returncode}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def start_up(case: Case) -> dict[str, Any]:
    """Measure the start-up time of programs, which take turns."""
    script = str(Path(sys.executable).with_name("ndvit"))
    times: dict[str, list[float]] = {party: [] for party in case.parties}
    for count in range(case.rounds + 1):
        for party in case.parties:
            words = [sys.executable, "-c", IMPORTS[party]] if IMPORTS[party] else [script, "--help"]
            start = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            if count:  # in the first round, files are not in the cache of the system
                times[party].append(time.perf_counter() - start)
    base = times[case.parties[0]]
    rows = {}
    for party, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        ratio = statistics.median(s / b for b, s in zip(base, seconds, strict=True))
        rows[party] = {"ms": 1e3 * middle, "low": 1e3 * low, "high": 1e3 * high, "rounds": len(seconds), "ratio": ratio}
    return {"rows": rows}


def rows_of(case: Case, found: dict[str, Any], commit: str, command: str) -> list[Row]:
    """Rows from the result of a case, with machine and versions."""
    empty = {"ms": 0, "low": 0, "high": 0, "rounds": 0, "ratio": 0, "share": 0, "difference": -1, "more": {}}
    rows = []
    for party, values in found["rows"].items():
        more = {**values.get("more", {}), **({"ceiling": found["ceiling"]} if "ceiling" in found else {})}
        rows.append(
            Row(
                table=case.table,
                network=case.network,
                batch=case.batch,
                party=party,
                device=case.device,
                precision=case.precision,
                threads=case.threads,
                cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
                machine=machine(case.device),
                software=software(),
                commit=commit,
                command=command,
                **{**empty, **rounded(values), "more": more},
            )
        )
    return rows


def machine(device: str) -> str:
    """The name of the device; for a CPU also its vector extensions, because CPUs with equal names differ in them."""
    if device == "cuda":
        import torch

        name: str = torch.cuda.get_device_name()
        return name
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = fields.get("flags", "").split()
    wide = [word for flag, word in WIDE.items() if flag in flags]
    return fields.get("model name", platform.processor()) + (f" ({', '.join(wide)})" if wide else "")


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Round numbers to six significant digits."""
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in values.items()}


def software() -> str:
    """Names and versions of the installed packages that are measured."""
    return ", ".join(f"{name} {found_version(name)}" for name in PACKAGES if found_version(name))


def found_version(name: str) -> str:
    """The version of an installed package; empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def measure_all(cases: list[Case], path: Path, commit: str, command: str, fresh: bool) -> list[str]:
    """Measure the cases that are not in the results, and return the failures."""

    def key(case: Case) -> tuple[str, str, int, str, str]:
        return case.table, case.network, case.batch, case.device, case.precision

    def is_measured(case: Case, rows: list[Row]) -> bool:
        same = (commit, case.threads, machine(case.device), software())
        parties = {
            row.party
            for row in rows
            if row.case == key(case) and (row.commit, row.threads, row.machine, row.software) == same
        }
        return parties >= set(case.parties)

    path.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    todo = [case for case in cases if fresh or not is_measured(case, read_rows(path))]
    print(f"{len(todo)} cases to measure", flush=True)
    for number, case in enumerate(todo, 1):
        print(f"{number}/{len(todo)}  {case.table}  {case.network}  batch {case.batch}  {case.precision}", flush=True)
        try:
            found = start_up(case) if case.kind == "start-up" else in_process(case)
        except Exception as error:  # an error must not stop the other cases
            failed.append(f"{case.table} {case.network} batch {case.batch}: {error}")
            print(f"  failed: {error}", flush=True)
            continue
        new = rows_of(case, found, commit, command)
        parties = {row.party for row in new}
        rows = [row for row in read_rows(path) if row.case != key(case) or row.party not in parties]
        write_rows(path, rows + new)
        for row in new:
            times = f"{row.ms:9.1f} ms  ratio {row.ratio:5.2f}  of the ceiling {row.share:4.2f}"
            print(f"  {row.party:<24} {times}  {row.more}", flush=True)
    return failed


@app.default
def main(
    *,
    only: str = "",
    run: tuple[Path, ...] = (),
    data: Path | None = None,
    networks: str = ",".join(SIZES),
    batches: str = "1,8,32",
    seconds: float = 60,
    rounds: int = 31,
    device: str = "cpu",
    threads: int | None = None,
    out: Path = Path("docs"),
    fresh: bool = False,
    report: bool = False,
) -> None:
    """Measure all tables and write the report.

    Args:
        only: comma-separated tables to measure: forward, exact, training, dropping, merging, signals, int8, start-up
            and so on; by default all tables.
        run: trained models for the tables int8 and merging: run folders, and files of weights (int8 only).
        data: the images that the runs were trained on.
        networks: comma-separated names of networks for images.
        batches: comma-separated batch sizes.
        seconds: time for the rounds of a case; at least five rounds are measured.
        rounds: largest number of rounds of a case.
        device: cpu or cuda.
        threads: threads of torch and of the runtimes; by default the number of cores.
        out: folder for performance.json, .md and .png.
        fresh: repeat cases that were measured with this commit.
        report: only write the report.
    """
    failed: list[str] = []
    if not report:
        if bool(run) != (data is not None) or not all(path.exists() for path in (*run, *([data] if data else []))):
            runs = ", ".join(map(str, run)) or None
            raise SystemExit(f"--run {runs}, --data {data}: expected existing paths for both, or neither of them")
        if len({name_of(path) for path in run}) < len(run):
            raise SystemExit(
                f"--run {', '.join(map(str, run))}: models must have different names, as names identify rows"
            )
        if device not in ("cpu", "cuda") or rounds < 2:
            raise SystemExit(f"device must be cpu or cuda, and rounds at least 2; got {device}, {rounds}")
        sizes = tuple(int(batch) for batch in batches.split(","))
        names = tuple(networks.split(","))
        cases = list(cases_of([str(path) for path in run], str(data or ""), names, sizes))
        cases.append(Case("start-up", "", 0, tuple(IMPORTS), "start-up", rounds=9))
        if device == "cuda":
            cases = [made for case in cases if case.kind != "start-up" for made in on_gpu(case)]
        tables = list(dict.fromkeys(case.table for case in cases))
        wanted = [name.strip() for name in only.split(",") if name.strip()] or tables
        if unknown := [name for name in wanted if name not in tables]:
            raise SystemExit(f"unknown table {', '.join(unknown)}: known are {', '.join(tables)}")
        count = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        cases = [
            replace(case, threads=count, seconds=seconds, rounds=min(rounds, case.rounds))
            for case in cases
            if case.table in wanted
        ]
        command = (
            "python benchmarks/speed.py" + "".join(f" --run {path.name}" for path in run) + " --data FOLDER" * bool(run)
        )
        usual = {"networks": ",".join(SIZES), "batches": "1,8,32", "seconds": 60, "rounds": 31, "device": "cpu"}
        settings = {"networks": networks, "batches": batches, "seconds": seconds, "rounds": rounds, "device": device}
        command += "".join(f" --{name} {value}" for name, value in settings.items() if value != usual[name])
        failed = measure_all(cases, out / RESULTS, git_commit(CODE), command, fresh)
        if failed:
            print(f"{len(failed)} cases failed and are not in the report:", *failed, sep="\n  ", file=sys.stderr)
    print(f"written: {write_report(out)}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    app()
