"""Streams at scale: the speed and the memory of shards by HTTP, how well they are shuffled, and a million predictions.

    python benchmarks/scale_streams.py order
    python benchmarks/scale_streams.py speed --seconds 60
    python benchmarks/scale_streams.py predict --examples 1000000 --kills 2

`speed` trains on 100 GB of shards that do not exist: a server makes each chunk when it is requested. The same
network trains on shards on the disk, and on a folder of files; the three take turns of a few seconds. `steady` measures
the memory of `ndvit train` on these 100 GB for half an hour. `predict` kills the command by SIGKILL and repeats it
until the output is there. Each prints JSON.
"""

import argparse
import http.server
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from ndvit.config.reading import ReadingOptions
from ndvit.data.sharding import shard

SAMPLES, PER_CHUNK, CONTENTS = 10_240, 200, 8  # of the examples of `speed`: 40 kB each, 8 MB in a chunk
CACHE = "200MB"
BATCH = 32
FREE = 3  # steps at the beginning of a turn that are not counted: their batches were read before it
NETWORK = {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 64}


def noise(count, samples, seed=0):
    """Signals of two classes, of two frequencies."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    t = np.arange(samples) / samples
    x = np.sin(2 * np.pi * (8 + 8 * y[:, None]) * t + rng.uniform(0, 6, (count, 1))) + rng.normal(
        0, 1, (count, samples)
    )
    return x[:, None].astype(np.float32), y


def memory(pid):
    """Memory of a process and its children in MB: pages that they share count once, and those of files not at all.

    The share of the libraries that is counted for a process would change when another program begins or ends.
    """
    try:
        return _memory(pid)
    except OSError:  # it has ended meanwhile
        return 0.0


def _memory(pid):
    total = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            total += memory(int(child))
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
            total += int(line.split()[1]) / 1000
    return total


def cpu_seconds(pid):
    """CPU time of a process and its children that run; unlike wall time, other programs hardly change it."""
    total = sum(
        cpu_seconds(int(child))
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    )
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return total + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------ order


def order(options):
    """Compare the order of a pass with a full permutation, for three sizes of chunks."""
    from ndvit.data.sources.streams import shuffled, window

    results = []
    n, batch = options.examples, 64
    for rows in (64, 200, 2000):
        blocks = np.arange(n) // rows
        found = []
        for kind in ("shards", "permutation"):
            random_ = np.random.default_rng(0)
            passes = [
                shuffled(blocks, batch, p * n, random_) if kind == "shards" else random_.permutation(n) for p in (0, 1)
            ]
            place = np.empty((2, n))
            for p in (0, 1):
                place[p, passes[p]] = np.arange(n)
            near = np.abs(place[0][:-1] - place[0][1:])  # how far neighbours in the shards are apart in a pass
            batches = passes[0][: n // batch * batch].reshape(-1, batch)
            found.append(
                {
                    "order": kind,
                    "rank correlation with the shards": round(float(np.corrcoef(place[0], np.arange(n))[0, 1]), 4),
                    "rank correlation of two passes": round(float(np.corrcoef(*place)[0, 1]), 4),
                    "median distance of neighbours, share of a pass": round(float(np.median(near)) / n, 4),
                    "chunks in a batch": round(float(np.mean([len(np.unique(blocks[b])) for b in batches])), 1),
                }
            )
        results.append({"examples in a chunk": rows, "chunks mixed in each lane": window(rows), "found": found})
    return results


# ------------------------------------------------------------------------------------------------ speed


class Endless(http.server.BaseHTTPRequestHandler):
    """Serves the manifest and the table of shards, and one of a few contents for each chunk."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict] = {}
    contents: ClassVar[list] = []
    served = multiprocessing.Value("q", 0)

    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.lstrip("/")
        data = self.files.get(name)
        if data is None:
            number = int(name.rpartition("-")[2].removesuffix(".bin"))
            data = self.contents[number % len(self.contents)]
            with self.served.get_lock():
                self.served.value += len(data)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def repeated(folder, count, renamed):
    """The manifest and the table of shards with the chunks of a folder again and again; each example has its name."""
    from ndvit.data.sources.shards import Table, Texts

    manifest = json.loads((folder / "ndvit.json").read_text())
    train = manifest["splits"]["train"]
    own = train["chunks"]
    small = Table.unpack((folder / "train/examples.npz").read_bytes(), train["examples"])
    starts = np.cumsum([0, *(chunk[3] for chunk in own)])
    rows = np.concatenate([np.arange(starts[i % len(own)], starts[i % len(own) + 1]) for i in range(count)])
    width = len(str(len(rows)))
    text = np.frombuffer("".join(f"{i:0{width}}" for i in range(len(rows))).encode(), dtype=np.uint8)
    names = Texts(text, np.arange(1, len(rows) + 1) * width)
    table = Table(small.targets[rows], names, small.channels[rows], small.grids[rows], small.rates[rows]).pack()
    chunks = [[f"chunk-0-{i}.bin" if renamed else own[i % len(own)][0], *own[i % len(own)][1:]] for i in range(count)]
    train |= {"examples": len(rows), "table": ["examples.npz", len(table), zlib.crc32(table)], "chunks": chunks}
    return json.dumps(manifest).encode(), table


def endless(folder, gigabytes):
    """A server, in a process of its own, of shards with the chunks of a folder repeated up to a size; its address."""
    own = json.loads((folder / "ndvit.json").read_text())["splits"]["train"]["chunks"]
    contents = [(folder / "train" / name).read_bytes() for name, *_ in own]
    manifest, table = repeated(folder, round(gigabytes * 1e9 / len(contents[0])), renamed=True)
    test = folder / "test"
    files = {f"test/{path.name}": path.read_bytes() for path in test.iterdir()} if test.exists() else {}
    Endless.files = {"ndvit.json": manifest, "train/examples.npz": table, **files}
    Endless.contents = contents
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    return f"http://127.0.0.1:{server.server_port}", process


def one_case(options):
    """One of the cases of `speed` in a process of its own: one turn for each line that it receives."""
    import torch

    from ndvit.training.plan import Request, plan

    began = time.perf_counter()
    reading = ReadingOptions(test_fraction=0, cache_size=CACHE)
    settings = {"steps": 100_000, "batch_size": BATCH, "workers": 1, "head": "trained", **NETWORK}
    planned = plan(Request(source=options.source, reading=reading, options=settings, model="vit_pico", progress=False))
    inputs, _ = planned.inputs()
    network = planned.first.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loader = inputs.stream(BATCH, 10**6, 0, 0, 1)
    stream = iter(loader)
    batch = next(stream)
    print(json.dumps({"examples": len(inputs), "start (s)": round(time.perf_counter() - began, 1)}), flush=True)
    for _ in sys.stdin:
        steps, waited, start = -FREE, 0.0, time.perf_counter()
        while steps < 1 or time.perf_counter() - start < options.turn:
            if not options.reading:
                loss = torch.nn.functional.cross_entropy(network(batch.x, batch.mask), batch.targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            batch = next(stream)
            steps, waited = steps + 1, waited + loader.waited
            if steps == 0:
                waited, start, used = 0.0, time.perf_counter(), cpu_seconds(os.getpid())
        seconds = time.perf_counter() - start
        found = {
            "examples a second": round(BATCH * steps / seconds, 1),
            "CPU time an example (ms)": round(1000 * (cpu_seconds(os.getpid()) - used) / (BATCH * steps), 2),
            "share of waiting": round(waited / seconds, 3),
            "memory (MB)": round(memory(os.getpid())),
        }
        print(json.dumps(found), flush=True)


def speed(options):
    """Train on 100 GB by HTTP, on shards on the disk, and on files, in turns."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        x, y = noise(PER_CHUNK * CONTENTS, SAMPLES)
        quiet = {"progress": False, "log": lambda line: None}
        folder = shard((x, y), home / "shards", test_fraction=0, chunk_size=PER_CHUNK * (4 * SAMPLES + 100), **quiet)
        for label in (0, 1):
            (home / "files" / str(label)).mkdir(parents=True)
        for i, (values, label) in enumerate(zip(x, y)):
            np.save(home / "files" / str(label) / f"{i}.npy", values)
        address, server = endless(folder, options.gigabytes)
        environment = os.environ | {"NDVIT_CACHE": str(home / "cache")}
        running, results, starts = {}, {}, {}
        for case, source in (("by HTTP", address), ("shards", folder), ("files", home / "files")):
            words = [sys.executable, __file__, "case", str(source), "--turn", str(options.turn)]
            words += ["--reading"] if options.reading else []
            running[case] = subprocess.Popen(
                words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            starts[case] = json.loads(running[case].stdout.readline())
        names = list(running)
        for turn in range(max(1, round(options.seconds / options.turn))):
            for case in names[turn % 3 :] + names[: turn % 3]:
                print("go", file=running[case].stdin, flush=True)
                found = json.loads(running[case].stdout.readline())
                results.setdefault(case, []).append(found)
                print(turn, case, found, file=sys.stderr, flush=True)
        for process in running.values():
            process.stdin.close()
            process.wait()
        sent = Endless.served.value
        server.kill()
        cached = sum(path.stat().st_size for path in (home / "cache/shards").glob("*"))
    rates = {case: np.array([one["examples a second"] for one in found]) for case, found in results.items()}
    costs = {case: np.array([one["CPU time an example (ms)"] for one in found]) for case, found in results.items()}

    def quartiles(values):
        return [round(float(np.percentile(values, q)), 3) for q in (25, 50, 75)]

    return {
        "gigabytes": options.gigabytes,
        "served (MB)": round(sent / 1e6),
        "cache (MB)": round(cached / 1e6, 1),
        "turns of each": len(rates["files"]),
        "seconds of a turn": options.turn,
        "start": starts,
        "examples a second (quartiles)": {case: quartiles(found) for case, found in rates.items()},
        "CPU time an example (ms, quartiles)": {case: quartiles(found) for case, found in costs.items()},
        "by HTTP to shards (quartiles)": quartiles(rates["by HTTP"] / rates["shards"]),
        "by HTTP to files (quartiles)": quartiles(rates["by HTTP"] / rates["files"]),
        "turns": results,
    }


def steady(options):
    """Run `ndvit train` on 100 GB by HTTP for a time, and measure its memory every ten seconds."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        x, y = noise(PER_CHUNK * (CONTENTS + 1), SAMPLES)
        quiet = {"progress": False, "log": lambda line: None}
        more = {"test_fraction": 1 / (CONTENTS + 1), "chunk_size": PER_CHUNK * (4 * SAMPLES + 100)}
        folder = shard((x, y), home / "shards", **more, **quiet)
        address, server = endless(folder, options.gigabytes)
        network = [word for key, value in NETWORK.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        words = [sys.executable, "-m", "ndvit.cli", "train", address, "--output", str(home / "run"), "--no-progress"]
        words += ["--cache-size", CACHE, "--model", "vit_pico", *network, "--workers", "1"]
        words += ["--val-fraction", "0", "--steps", "20000", "--batch-size", str(BATCH)]
        process = subprocess.Popen(words, env=os.environ | {"NDVIT_CACHE": str(home / "cache")})
        began, samples = time.monotonic(), []
        while process.poll() is None and time.monotonic() - began < options.seconds:
            time.sleep(10)
            samples.append((round(time.monotonic() - began), round(memory(process.pid), 1)))
            if options.record:
                options.record.write_text(json.dumps(samples))
        cached = sum(path.stat().st_size for path in (home / "cache/shards").glob("*"))
        process.send_signal(signal.SIGINT)  # it finishes its step and writes a checkpoint
        status = process.wait()
        server.kill()
        time_, used = np.array([one for one in samples if one[0] >= options.warm_up], dtype=float).T
        slope, _ = np.polyfit(time_ / 60, used, 1)
        checkpoints = [path.stem for path in (home / "run/checkpoints").iterdir()]
        return {
            "seconds": samples[-1][0],
            "status": status,
            "served (MB)": round(Endless.served.value / 1e6),
            "cache (MB)": round(cached / 1e6, 1),
            "checkpoints": checkpoints,
            "samples after the warm-up": len(used),
            "memory (MB): least, median, most": [float(np.percentile(used, q)) for q in (0, 50, 100)],
            "slope (MB a minute)": round(float(slope), 3),
            "medians of ten parts (MB)": [round(float(np.median(part)), 1) for part in np.array_split(used, 10)],
            "before (MB)": [one for one in samples if one[0] < options.warm_up],
        }


# ---------------------------------------------------------------------------------------------- predict


def predict(options):
    """Predict a million signals into a .parquet; kill the command by SIGKILL, and repeat it."""
    import pandas

    import ndvit

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        home = Path(name)
        x, y = noise(200, 32)
        tiny = {"model": "vit_pico", "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
        run = ndvit.train((x, y), output=home / "run", steps=20, progress=False, log=lambda line: None, **tiny)
        few, _ = noise(10_000, 32, seed=1)
        shard(few, home / "shards", labels=False, chunk_size="400kB", progress=False, log=lambda line: None)
        own = json.loads((home / "shards/ndvit.json").read_text())["splits"]["train"]["chunks"]
        manifest, table = repeated(home / "shards", options.examples * len(own) // 10_000, renamed=False)
        (home / "shards/ndvit.json").write_bytes(manifest)
        (home / "shards/train/examples.npz").write_bytes(table)
        words = [sys.executable, "-m", "ndvit.cli", "predict", str(run.folder), str(home / "shards"), "--no-progress"]
        words += ["--output", str(home / "out.parquet"), "--batch-size", "512", "--devices", str(options.devices)]
        parts, starts, memories = home / "out.parquet.parts", [], []
        for attempt in range(options.kills + 1):
            began, seen = time.perf_counter(), []
            process = subprocess.Popen(words, start_new_session=True)
            signal.signal(signal.SIGTERM, lambda *_, pid=process.pid: (os.killpg(pid, signal.SIGKILL), sys.exit(1)))
            before = len(list(parts.glob("part-*"))) if parts.exists() else 0
            goal = before + round(options.examples / 8192 / (options.kills + 1) * random.uniform(0.7, 1.1))
            while process.poll() is None:
                time.sleep(0.5)
                written = len(list(parts.glob("part-*"))) if parts.exists() else 0
                if process.poll() is None and written > before:
                    seen.append(round(memory(process.pid)))
                if attempt < options.kills and written >= goal:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            starts.append({"seconds": round(time.perf_counter() - began, 1), "parts before": before})
            memories.append([seen[round(i * (len(seen) - 1) / 5)] for i in range(6)] if seen else [])
        table = pandas.read_parquet(home / "out.parquet")
        names = table["name"]
        return {
            "examples": options.examples,
            "devices": options.devices,
            "starts": starts,
            "memory (MB)": memories,
            "rows": len(table),
            "different names": int(names.nunique()),
            "file (MB)": round((home / "out.parquet").stat().st_size / 1e6, 1),
            "parts left": parts.exists(),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("order")
    add.add_argument("--examples", type=int, default=200_000)
    add.set_defaults(run=order)
    add = commands.add_parser("speed")
    add.add_argument("--seconds", type=float, default=60, help="of each of the three")
    add.add_argument("--gigabytes", type=float, default=100)
    add.add_argument("--turn", type=float, default=6, help="seconds that each trains before the next does")
    add.add_argument("--reading", action="store_true", help="only read, and train nothing")
    add.set_defaults(run=speed)
    add = commands.add_parser("case")
    add.add_argument("source")
    add.add_argument("--turn", type=float, default=6)
    add.add_argument("--reading", action="store_true")
    add.set_defaults(run=one_case)
    add = commands.add_parser("steady")
    add.add_argument("--seconds", type=float, default=1800)
    add.add_argument("--warm-up", type=float, default=180)
    add.add_argument("--gigabytes", type=float, default=100)
    add.add_argument("--record", type=Path, help="JSON of all samples, written after each")
    add.set_defaults(run=steady)
    add = commands.add_parser("predict")
    add.add_argument("--examples", type=int, default=1_000_000)
    add.add_argument("--kills", type=int, default=2)
    add.add_argument("--devices", type=int, default=1)
    add.add_argument("--folder", default=None)
    add.set_defaults(run=predict)
    options = parser.parse_args()
    if found := options.run(options):
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
