"""Streams at scale: the speed and the memory of shards by HTTP, how well they are shuffled, and a million predictions.

    python benchmarks/scale_streams.py order
    python benchmarks/scale_streams.py speed --seconds 60
    python benchmarks/scale_streams.py predict --examples 1000000 --kills 2

`speed` trains on 100 GB of shards that do not exist: a server makes each chunk when it is requested. The same
network then trains on shards on the disk, and on a folder of files; the time of a step is compared. `predict` kills
the command by SIGKILL and repeats it until the output is there. Each prints JSON.
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
from ndvit.data.sources.remote import cache_folder

SAMPLES, PER_CHUNK, CONTENTS = 10_240, 200, 8  # of the examples of `speed`: 40 kB each, 8 MB in a chunk
CACHE = "200MB"
BATCH = 32
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
    """Proportional set size of a process and its children, in MB: shared pages count once."""
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
        if line.startswith("Pss:"):
            total += int(line.split()[1]) / 1000
    return total


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


def steps(source, seconds, cache):
    """Train for a time; return steps a second, and the memory (MB) after each tenth of the time."""
    import torch

    from ndvit.training.plan import Request, plan

    began = time.perf_counter()
    reading = ReadingOptions(test_fraction=0, cache_size=cache)
    options = {"steps": 100_000, "batch_size": BATCH, "workers": 1, "head": "trained", **NETWORK}
    planned = plan(Request(source=source, reading=reading, options=options, model="vit_pico", progress=False))
    inputs, _ = planned.inputs()
    network = planned.first.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    ready = time.perf_counter() - began
    times, memories, losses = [], [], []
    stream = iter(inputs.stream(BATCH, 10**6, 0, 0, 1))
    batch = next(stream)
    start = last = time.perf_counter()
    while time.perf_counter() - start < seconds:
        loss = torch.nn.functional.cross_entropy(network(batch.x, batch.mask), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        batch = next(stream)
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if now - start > seconds * (len(memories) + 1) / 10:
            memories.append(round(memory(os.getpid())))
    return {
        "examples": len(inputs),
        "seconds before the first step": round(ready, 1),
        "steps": len(times),
        "examples a second": round(BATCH * len(times) / sum(times), 1),
        "median step (ms)": round(1000 * float(np.median(times)), 1),
        "memory (MB)": memories,
    }


def one_case(options):
    """One of the cases of `speed` in a process of its own."""
    found = steps(options.source, options.seconds, CACHE)
    cached = sum(path.stat().st_size for path in cache_folder().glob("*")) if cache_folder().exists() else 0
    return found | {"cache (MB)": round(cached / 1e6, 1)}


def speed(options):
    """Train on 100 GB by HTTP, on shards on the disk, and on files."""
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
        results = {}
        for turn in range(options.turns):
            for case, source in (("by HTTP", address), ("shards", folder), ("files", home / "files")):
                words = [sys.executable, __file__, "case", str(source), "--seconds", str(options.seconds)]
                found = json.loads(subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE).stdout)
                results.setdefault(case, []).append(found)
                print(case, turn, found, file=sys.stderr)
        sent = Endless.served.value
        server.kill()
    best = {case: max(one["examples a second"] for one in found) for case, found in results.items()}
    return {
        "gigabytes": options.gigabytes,
        "served (MB)": round(sent / 1e6),
        "by HTTP to shards": round(best["by HTTP"] / best["shards"], 3),
        "by HTTP to files": round(best["by HTTP"] / best["files"], 3),
        "cases": results,
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
    add.add_argument("--seconds", type=float, default=60)
    add.add_argument("--gigabytes", type=float, default=100)
    add.add_argument("--turns", type=int, default=1)
    add.set_defaults(run=speed)
    add = commands.add_parser("case")
    add.add_argument("source")
    add.add_argument("--seconds", type=float, default=60)
    add.set_defaults(run=one_case)
    add = commands.add_parser("predict")
    add.add_argument("--examples", type=int, default=1_000_000)
    add.add_argument("--kills", type=int, default=2)
    add.add_argument("--devices", type=int, default=1)
    add.add_argument("--folder", default=None)
    add.set_defaults(run=predict)
    options = parser.parse_args()
    print(json.dumps(options.run(options), indent=1))


if __name__ == "__main__":
    main()
