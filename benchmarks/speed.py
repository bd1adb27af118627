"""How fast networks answer and learn, what memory they take, and how soon a program is there: ours and its peers.

`python benchmarks/speed.py` measures each case in a process of its own, all parties turn by turn, beside a matrix
product that tells what the machine can do; with `--run RUN --data FOLDER` also what merging tokens and 8-bit integers
do to a trained model. It writes performance.json, performance.md and performance.png. A bench that was interrupted goes
on where it stopped.
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

from ndvit.network.fast import MKL_LAGS

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
    "rocket_features": 0,
    "stem_head": False,
}
"""What `train` makes of signals of 512 samples, with one head; random convolutions take no part in a step."""
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
    """All that is measured on a CPU; on a GPU, what `on_gpu` leaves of it."""
    signal = tuple(SIGNAL.items())
    pictures = [(network, batch) for network in networks for batch in batches]
    for network, batch in pictures:
        yield Case("forward", network, batch, EAGER)
    for network, batch in pictures:
        if batch <= 8:
            yield Case("exact", network, batch, EXACT)
    step = min(8, max(batches))
    if MKL_LAGS:  # elsewhere ours is by MKL
        for network in networks:
            yield Case("by MKL", network, step, BY_MKL)
        for network in networks[:2]:
            yield Case("training by MKL", network, step, BY_MKL, "training")
    for table, arguments, parties in (("training", {}, TRAINING), ("dropping", DROPS, ("timm", "ours"))):
        given = tuple(arguments.items())
        for network in networks[:2]:
            yield Case(table, network, step, parties, "training", given)
            for party in parties:
                yield Case(f"memory of {table}", network, step, (party,), "memory", given)
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
    """What the rows call a trained model: its folder, or its file without the ending."""
    return model.name if model.is_dir() else model.stem


def on_gpu(case: Case) -> Iterator[Case]:
    """A case as a GPU has it: eager and compiled, in float32 and bfloat16; none for what is of CPUs."""
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


def in_process(case: Case) -> dict[str, Any]:
    """Measure it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "case.json", Path(folder) / "result.json"
        job.write_text(json.dumps(asdict(case)), encoding="utf-8")
        done = subprocess.run([sys.executable, str(CASE), str(job), str(result)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise RuntimeError("".join(last) or f"its process ended with status {done.returncode}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def start_up(case: Case) -> dict[str, Any]:
    """Programs from nothing until they are there, turn by turn."""
    script = str(Path(sys.executable).with_name("ndvit"))
    times: dict[str, list[float]] = {party: [] for party in case.parties}
    for count in range(case.rounds + 1):
        for party in case.parties:
            words = [sys.executable, "-c", IMPORTS[party]] if IMPORTS[party] else [script, "--help"]
            start = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            if count:  # the first reads files that were not in memory
                times[party].append(time.perf_counter() - start)
    base = times[case.parties[0]]
    rows = {}
    for party, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        ratio = statistics.median(s / b for b, s in zip(base, seconds, strict=True))
        rows[party] = {"ms": 1e3 * middle, "low": 1e3 * low, "high": 1e3 * high, "rounds": len(seconds), "ratio": ratio}
    return {"rows": rows}


def rows_of(case: Case, found: dict[str, Any], commit: str, command: str) -> list[Row]:
    """What a case's process found, with what there is to know of it."""
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
    """The name of what computes, and of a CPU the widest that it computes in, as neighbours of a name differ."""
    if device == "cuda":
        import torch

        name: str = torch.cuda.get_device_name()
        return name
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    told = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = told.get("flags", "").split()
    wide = [word for flag, word in WIDE.items() if flag in flags]
    return told.get("model name", platform.processor()) + (f" ({', '.join(wide)})" if wide else "")


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers to six digits."""
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in values.items()}


def software() -> str:
    """What is installed of the packages that are measured, with versions."""
    return ", ".join(f"{name} {found_version(name)}" for name in PACKAGES if found_version(name))


def found_version(name: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def work_off(cases: list[Case], path: Path, commit: str, command: str, fresh: bool) -> list[str]:
    """Measure what is not there yet, and tell what failed."""

    def key(case: Case) -> tuple[str, str, int, str, str]:
        return case.table, case.network, case.batch, case.device, case.precision

    def there(case: Case, rows: list[Row]) -> bool:
        same = (commit, case.threads, machine(case.device), software())
        parties = {
            row.party
            for row in rows
            if row.case == key(case) and (row.commit, row.threads, row.machine, row.software) == same
        }
        return parties >= set(case.parties)

    path.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    todo = [case for case in cases if fresh or not there(case, read_rows(path))]
    print(f"{len(todo)} cases to measure", flush=True)
    for number, case in enumerate(todo, 1):
        print(f"{number}/{len(todo)}  {case.table}  {case.network}  batch {case.batch}  {case.precision}", flush=True)
        try:
            found = start_up(case) if case.kind == "start-up" else in_process(case)
        except Exception as error:  # the others are minutes of work
            failed.append(f"{case.table} {case.network} batch {case.batch}: {error}")
            print(f"  failed: {error}", flush=True)
            continue
        new = rows_of(case, found, commit, command)
        parties = {row.party for row in new}
        rows = [row for row in read_rows(path) if row.case != key(case) or row.party not in parties]
        write_rows(path, rows + new)
        for row in new:
            told = f"{row.ms:9.1f} ms  ratio {row.ratio:5.2f}  of the ceiling {row.share:4.2f}"
            print(f"  {row.party:<24} {told}  {row.more}", flush=True)
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
    """Measure all tables, and write the report.

    Args:
        only: tables to measure, with commas between them: forward, exact, training, dropping, merging, signals, int8,
            start-up and so on; all of them by default.
        run: trained models, for int8: runs, whose accuracy with merged tokens is measured, too, and files of weights.
        data: the pictures that the runs were trained on.
        networks: names of networks for pictures, with commas between them.
        batches: batch sizes, with commas between them.
        seconds: time for the rounds of a case, of which there are five at least.
        rounds: the most rounds of a case.
        device: cpu or cuda.
        threads: of torch and of the runtimes; by default as many as there are cores.
        out: folder for performance.json, .md and .png.
        fresh: measure again what was measured with this commit.
        report: only write the report anew.
    """
    failed: list[str] = []
    if not report:
        if bool(run) != (data is not None) or not all(path.exists() for path in (*run, *([data] if data else []))):
            given = ", ".join(map(str, run)) or None
            raise SystemExit(f"--run {given}, --data {data}: give both, trained models and their pictures, or neither")
        if len({name_of(path) for path in run}) < len(run):
            raise SystemExit(f"--run {', '.join(map(str, run))}: rows know a model by its name, so names must differ")
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
            raise SystemExit(f"there is no table {', '.join(unknown)}: there are {', '.join(tables)}")
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
        given = {"networks": networks, "batches": batches, "seconds": seconds, "rounds": rounds, "device": device}
        command += "".join(f" --{name} {value}" for name, value in given.items() if value != usual[name])
        failed = work_off(cases, out / RESULTS, git_commit(CODE), command, fresh)
        if failed:
            print(f"{len(failed)} cases failed and are not in the report:", *failed, sep="\n  ", file=sys.stderr)
    print(f"written: {write_report(out)}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    app()
