"""Measure `ndvit serve` on the loopback: load by wrk, answers checked by a client of its own, and odd requests.

`python benchmarks/serve.py PART --weights FILE.safetensors --signal RUN`: the parts are offline, load, reload, sigterm,
fuzz, peers, and bars (load, offline and sigterm in six minutes). Each adds its results to `--output`, and `report`
prints the table of docs/serving.md. wrk is a package of Debian.
"""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter
from PIL import Image

HERE = Path(__file__).resolve().parent
Part = Literal["bars", "offline", "load", "reload", "sigterm", "fuzz", "peers", "report"]
CASES = ("deit_tiny 224", "signal")
BATCHES = (1, 4, 8, 16, 32, 64)
LUA = """wrk.method = "POST"
done = function(summary, latency, requests)
  local errors = summary.errors
  local line = {summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    latency.max, errors.status, errors.read + errors.write + errors.connect, errors.timeout}
  io.write("JSON " .. table.concat(line, " ") .. "\\n")
end
"""
app = App(help=__doc__)


def picture(seed: int = 0, side: int = 256) -> bytes:
    """A photograph-like JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def series(length: int, seed: int = 0) -> np.ndarray:
    """A random walk (1, length)."""
    return np.random.default_rng(seed).normal(size=(1, length)).cumsum(axis=1).astype(np.float32)


def request_of(case: str, length: int, seed: int = 0) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of a request for one example."""
    if case == CASES[0]:
        return "/predict?top=5", {"content-type": "image/jpeg"}, picture(seed)
    return (
        "/predict",
        {"content-type": "application/json"},
        json.dumps({"inputs": [series(length, seed).tolist()]}).encode(),
    )


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A service that is ready and runs its fastest way; its address and process."""
    import httpx

    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "ndvit.cli", "serve", *arguments, "--port", "0"]
        process = subprocess.Popen(command, stderr=log, text=True)
        address = ""
        for _ in range(3000):
            if process.poll() is not None:
                break
            log.seek(0)
            if found := re.search(r"http://127.0.0.1:\d+", log.read()):
                address = found[0]
                models = httpx.get(f"{address}/models").json()
                if models[0]["state"] == "ready" and not models[0]["searching"]:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError("the service did not become ready")
        try:
            yield address, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def wrk(url: str, request: tuple[str, dict[str, str], bytes], clients: int, seconds: int) -> dict[str, Any]:
    """Requests per second, latencies in seconds, and errors."""
    path, headers, body = request
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "body").write_bytes(body)
        lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
        script = Path(folder) / "post.lua"
        script.write_text("\n".join([f'wrk.body = io.open("{folder}/body", "rb"):read("*a")', *lines, LUA]))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", str(script), url + path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = [float(v) for v in re.search(r"^JSON (.*)$", text, re.MULTILINE)[1].split()]  # type: ignore[index]
    count, duration, _, p50, p99, worst, refused, broken, late = values
    return {
        "per_second": (count - refused) / (duration / 1e6),
        "p50": p50 / 1e6,
        "p99": p99 / 1e6,
        "max": worst / 1e6,
        "answered": count - refused,
        "refused": refused,
        "broken": broken + late,
    }


def memory(process: int) -> int:
    """Resident bytes of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]


def best_way(address: str) -> str:
    import httpx

    return httpx.get(f"{address}/models").json()[0]["runtime"]


# --------------------------------------------------------------------------- parts


def offline(case: str, run: str, length: int, name: str | None = None) -> dict[str, Any]:
    """A runtime without a service: seconds by batch size, of the network and with reading; None takes the fastest.

    `network` and `whole` are one batch at a time in all threads, as `ndvit predict` computes; `streams` are examples a
    second with several batches at one time, as the service computes.
    """
    import torch

    from ndvit.config.serving import ServingOptions
    from ndvit.serving import reading, ways
    from ndvit.serving.models import load_model

    model = load_model(run)
    model.task = ways_task(model)
    mask = ways.needs_mask(model)
    with tempfile.TemporaryDirectory() as folder:
        ways._write(run, Path(folder), mask)
        for other, format in ways.GRAPHS.items():
            if name not in (None, other):
                (Path(folder) / f"model{ways.ENDINGS[format]}").unlink(missing_ok=True)
        plain = ways.plain_way(model)
        way = ways.choose(model, plain, Path(folder), mask, 32) or plain
        compute = one_at_a_time(model, way, Path(folder), mask)
    x = torch.cat([ways.random_data(model, 64, mask=False).x])
    rows: dict[str, Any] = {"way": way.name, "network": {}, "whole": {}, "streams": {}}
    _, _, body = request_of(case, length)
    options = ServingOptions()

    def read(count: int) -> torch.Tensor:
        if case == CASES[0]:
            uploads: list[Any] = [reading.Upload(f"{i}.jpg", body) for i in range(count)]
        else:
            uploads = [[series(length, i) for i in range(count)]]
        with reading.reading(model, uploads, options) as found:
            return found.joined()[0]

    with ThreadPoolExecutor(way.streams) as pool:
        for size in BATCHES:
            for kind in ("network", "whole"):
                times = []
                for _ in range(max(4, 40 // size)):
                    before = time.perf_counter()
                    compute(read(size) if kind == "whole" else x[:size], None)
                    times.append(time.perf_counter() - before)
                rows[kind][str(size)] = statistics.median(times[1:])
            count = way.streams * max(4, 80 // size)
            before = time.perf_counter()
            list(pool.map(lambda _, size=size: way.compute(x[:size], None), range(count)))
            rows["streams"][str(size)] = count * size / (time.perf_counter() - before)
    return rows


def one_at_a_time(model: Any, way: Any, folder: Path, mask: bool) -> Any:
    """The network of a way in all threads, for a program that does nothing else meanwhile."""
    from ndvit.serving import ways

    if way.name == ways.PLAIN:
        return way.compute
    format = ways.GRAPHS[way.name]
    run = ways.open_graph(format, folder / f"model{ways.ENDINGS[format]}")
    return ways._graph_way(model, way.name, run, mask, way)


def ways_task(model: Any) -> Any:
    """The task of a model, which is that of ImageNet for published weights."""
    from ndvit.inference.predict import check_ready

    return check_ready(model, 1, "cpu", lambda line: None)


def load(case: str, run: str, length: int, seconds: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """One client, 64 clients, and 640 that do not wait after a refusal: ten times as many."""
    with served(run, *flags) as (address, process):
        request = request_of(case, length)
        wrk(address, request, 32, 4)
        found = {"way": best_way(address), "one": wrk(address, request, 1, 8), "64": wrk(address, request, 64, 15)}
        path, headers, body = protocol_request(case, length)
        path = path.replace("NAME", best_name(address))
        found["64 protocol"] = wrk(address, (path, headers, body), 64, 10)
        found["batches"] = batches(address)
        return found | {"overload": overload(address, request, process, seconds)} if seconds else found


def batches(address: str) -> float:
    """Mean number of examples in a batch."""
    import httpx

    text = httpx.get(f"{address}/metrics").text
    found = {k: float(v) for k, v in re.findall(r"^ndvit_batch_examples_(sum|count)\{.*?\} (\S+)$", text, re.MULTILINE)}
    return found["sum"] / found["count"]


def best_name(address: str) -> str:
    import httpx

    return httpx.get(f"{address}/models").json()[0]["name"]


def protocol_request(case: str, length: int) -> tuple[str, dict[str, str], bytes]:
    """A request of the Open Inference Protocol with binary data."""
    if case == CASES[0]:
        array = np.asarray(Image.open(io.BytesIO(picture(side=224))))[None]
        tensor = {"datatype": "UINT8"}
    else:
        array = series(length)[None]
        tensor = {"datatype": "FP32"}
    tensor |= {"name": "input", "shape": list(array.shape), "parameters": {"binary_data_size": array.nbytes}}  # type: ignore[dict-item]
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return "/v2/models/NAME/infer", headers, head + array.tobytes()


def overload(address: str, request: Any, process: subprocess.Popen[str], seconds: int) -> dict[str, Any]:
    """Answers, refusals and memory while 640 clients ask."""
    sizes, result = [memory(process.pid)], dict[str, Any]()
    worker = threading.Thread(target=lambda: result.update(wrk(address, request, 640, seconds)))
    worker.start()
    while worker.is_alive():
        sizes.append(memory(process.pid))
        time.sleep(1)
    after = wrk(address, request, 1, 3)
    quarter = max(1, len(sizes) // 4)
    return result | {
        "memory_first_quarter": max(sizes[:quarter]),
        "memory_last_quarter": max(sizes[-quarter:]),
        "alive": process.poll() is None,
        "after": after["p50"],
    }


async def _ask(address: str, request: Any, check: Any, stop: asyncio.Event, counts: Counter, clients: int) -> None:
    import aiohttp

    path, headers, body = request
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one() -> None:
            while not stop.is_set():
                sent = False
                try:
                    async with session.post(address + path, data=body, headers=headers) as answer:
                        sent = True
                        text = await answer.read()
                        counts[f"status {answer.status}"] += 1
                        if answer.status == 200:
                            counts["right" if check(json.loads(text)) else "wrong"] += 1
                except aiohttp.ClientConnectorError:
                    counts["connection refused"] += 1
                    return
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    counts["closed within an answer" if sent else "closed before an answer"] += 1
                    return
                except aiohttp.ClientPayloadError:
                    counts["closed within an answer"] += 1
                    return

        await asyncio.gather(*(one() for _ in range(clients)))


def _scores(answer: dict[str, Any]) -> dict[str, float]:
    return answer["predictions"][0]["probabilities"]


def reload(run: Path, length: int, seconds: int = 20) -> dict[str, Any]:
    """A new model every two seconds under load: each answer is that of the version that it names."""
    import ndvit

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        models = [ndvit.load_model(run), ndvit.load_model(run)]
        models[1].temperature = models[0].temperature * 2
        expected = [np.asarray(one.predict_proba(series(length)[None]))[0] for one in models]

        def check(answer: dict[str, Any]) -> bool:
            found = list(_scores(answer).values())
            return bool(np.abs(found - expected[(int(answer["version"]) - 1) % 2]).max() < 1e-5)

        async def drive(address: str) -> Counter:
            counts: Counter = Counter()
            stop = asyncio.Event()
            asked = asyncio.create_task(_ask(address, request_of(CASES[1], length), check, stop, counts, 32))
            for i in range(seconds // 4):
                await asyncio.sleep(4)
                await asyncio.to_thread(models[(i + 1) % 2].save, copy / "model.safetensors")
            await asyncio.sleep(2)
            stop.set()
            await asked
            return counts

        with served(str(copy), "--reload", "0.5", "--no-optimize") as (address, _):
            counts = asyncio.run(drive(address))
            import httpx

            return dict(counts) | {"versions": int(httpx.get(f"{address}/models").json()[0]["version"])}


def sigterm(run: Path, length: int) -> dict[str, Any]:
    """SIGTERM under load: requests that were accepted are answered, and rightly."""
    import ndvit

    expected = np.asarray(ndvit.load_model(run).predict_proba(series(length)[None]))[0]

    def check(answer: dict[str, Any]) -> bool:
        return bool(np.abs(list(_scores(answer).values()) - expected).max() < 1e-5)

    async def drive(address: str, process: subprocess.Popen[str]) -> Counter:
        counts: Counter = Counter()
        asked = asyncio.create_task(_ask(address, request_of(CASES[1], length), check, asyncio.Event(), counts, 64))
        await asyncio.sleep(4)
        process.send_signal(signal.SIGTERM)
        await asked
        return counts

    total: Counter = Counter()
    for _ in range(2):
        with served(str(run), "--no-optimize") as (address, process):
            total += asyncio.run(drive(address, process))
            process.wait(60)
    return dict(total)


def fuzz(runs: list[str], count: int = 10_000) -> dict[str, Any]:
    """Odd requests: statuses, the slowest, and answers that show the inside of the service."""
    import aiohttp
    from serve_fuzz import requests

    counts: Counter = Counter()
    slowest = 0.0

    async def drive(address: str, names: list[str]) -> None:
        nonlocal slowest
        waiting = requests(count, names)

        async def worker(session: aiohttp.ClientSession) -> None:
            nonlocal slowest
            for path, headers, body in waiting:
                before = time.perf_counter()
                async with session.post(address + path, data=body, headers=headers, timeout=60) as answer:  # type: ignore[arg-type]
                    text = await answer.text(errors="replace")
                slowest = max(slowest, time.perf_counter() - before)
                counts[str(answer.status)] += 1
                if answer.status >= 500:
                    counts["server errors"] += 1
                    print(answer.status, path, text[:300], body[:200])
                counts["inside shown"] += "Traceback" in text or "/tmp" in text or "site-packages" in text

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(worker(session) for _ in range(8)))

    with served(*runs, "--no-optimize") as (address, process):
        import httpx

        names = [one["name"] for one in httpx.get(f"{address}/models").json()]
        asyncio.run(drive(address, names))
        return dict(counts) | {"slowest": slowest, "alive": process.poll() is None}


@app.default
def main(
    part: Part,
    *,
    weights: Path | None = None,
    signal_run: Annotated[Path | None, Parameter(name="--signal")] = None,
    pictures: Path | None = None,
    case: Literal["deit_tiny 224", "signal", "all"] = "all",
    seconds: int = 60,
    count: int = 10_000,
    flags: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    output: Path = Path("serving.json"),
) -> None:
    """Measure one part and add it to the results.

    Args:
        part: What to measure.
        weights: DeiT-Tiny.
        signal_run: A run of a signal network, for one channel.
        pictures: A run of a small network for pictures, for the odd requests.
        case: Only one of the models.
        seconds: Length of the overload.
        count: Number of odd requests.
        flags: More flags of `ndvit serve`.
        output: JSON of all results.
    """
    results = json.loads(output.read_text()) if output.is_file() else {}
    if part == "report":
        from serve_report import table

        print(table(results))
        return
    assert signal_run is not None
    import ndvit

    length = ndvit.load_model(signal_run).preprocess.raw_size[0]
    runs = {CASES[0]: str(weights), CASES[1]: str(signal_run)}
    chosen = [name for name in CASES if case in ("all", name)]
    if part == "bars":
        for name in chosen:
            results.setdefault("load", {})[name] = load(name, runs[name], length, seconds if name == CASES[0] else 0)
            way = results["load"][name]["way"]
            results.setdefault("offline", {})[name] = offline(name, runs[name], length, way)
            output.write_text(json.dumps(results, indent=1))
        results["sigterm"] = sigterm(signal_run, length)
    elif part in ("offline", "load", "peers"):
        for name in chosen:
            if part == "peers":
                from serve_peers import peers

                found = peers(name, runs[name], length)
            elif part == "load":
                found = load(name, runs[name], length, seconds, flags.split())
            else:
                found = offline(name, runs[name], length)
            results.setdefault(part, {})[name] = found
            print(part, name, json.dumps(found, indent=1))
    elif part in ("reload", "sigterm"):
        results[part] = {"reload": reload, "sigterm": sigterm}[part](signal_run, length)
        print(part, results[part])
    else:
        results[part] = fuzz([str(signal_run), *([str(pictures)] if pictures else [])], count)
        print(part, results[part])
    results["threads"] = os.environ.get("OMP_NUM_THREADS", "")
    output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    app()
