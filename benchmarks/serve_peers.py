"""The same network, run by the same runtime, behind LitServe and BentoML, with their own batching.

Each peer gets the same content, which both take in base64 in JSON, decodes it in the same way and answers
probabilities. Its options are those of its documentation for dynamic batching: batches of at most 32, and a wait of
10 ms.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMON = """
import io, json, os
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from ndvit.model import load_model
from ndvit.inference.predict import check_ready
from ndvit.serving import ways

RUN, GRAPHS, PORT = os.environ["RUN"], os.environ["GRAPHS"], int(os.environ["PORT"])
WAY = os.environ["WAY"]  # what the service has chosen

def network():
    model = load_model(RUN)
    model.task = check_ready(model, 1, "cpu", lambda line: None)
    plain, mask = ways.plain_way(model), ways.needs_mask(model)
    if WAY == ways.PLAIN:
        return model, plain.compute
    format = ways.GRAPHS[WAY]
    run = ways.open_graph(format, Path(GRAPHS) / f"model{ways.ENDINGS[format]}")
    return model, ways._graph_way(model, WAY, run, mask, plain)

def read(model, body):
    if body[:2] == b"\\xff\\xd8":
        raw = Image.open(io.BytesIO(body)).convert("RGB")
    else:
        raw = np.array(json.loads(body)["inputs"][0], dtype=np.float32)
    return model.preprocess(raw)

def answer(model, row):
    best = np.argsort(row)[::-1][:5]
    return {"probabilities": {model.classes[i]: float(row[i]) for i in best}}
"""
LITSERVE = """
import base64
import litserve as ls

class API(ls.LitAPI):
    def setup(self, device):
        self.model, self.compute = network()
    def decode_request(self, request):  # LitServe has parsed the JSON already
        return read(self.model, base64.b64decode(request["body"]))
    def batch(self, inputs):
        return torch.stack(inputs)
    def predict(self, x):
        return self.compute(x, None).numpy()
    def unbatch(self, output):
        return list(output)
    def encode_response(self, output):
        return answer(self.model, output)

if __name__ == "__main__":
    server = ls.LitServer(API(max_batch_size=32, batch_timeout=0.01), accelerator="cpu", timeout=60)
    server.run(port=PORT, host="127.0.0.1", generate_client_file=False, log_level="warning")
"""
BENTO = """
import bentoml

@bentoml.service(traffic={"timeout": 60, "concurrency": 10000}, workers=1)
class Peer:
    def __init__(self):
        self.model, self.compute = network()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=60000)
    def predict(self, bodies: list[str]) -> list[dict]:
        import base64
        x = torch.stack([read(self.model, base64.b64decode(body)) for body in bodies])
        return [answer(self.model, row) for row in self.compute(x, None).numpy()]
"""


def peers(case: str, run: str, length: int) -> dict[str, Any]:
    """Results of ndvit and the peers under 1 and 64 clients."""
    import base64
    import json

    from serve import best_way, request_of, served, wrk

    from ndvit.model import load_model
    from ndvit.serving.ways import needs_mask

    request = request_of(case, length)
    encoded = base64.b64encode(request[2]).decode()
    as_json = {"content-type": "application/json"}
    found: dict[str, Any] = {}
    with served(run) as (address, _):
        wrk(address, request, 16, 3)
        way = best_way(address)
        found[f"ndvit ({way})"] = _measure(address, request)
    forms = {
        "LitServe": (LITSERVE, ("/predict", as_json, json.dumps({"body": encoded}).encode())),
        "BentoML": (BENTO, ("/predict", as_json, json.dumps({"bodies": [encoded]}).encode())),
    }
    with tempfile.TemporaryDirectory() as folder:
        graphs = Path(folder) / "graphs"
        graphs.mkdir()
        mask = str(int(needs_mask(load_model(run))))
        subprocess.run([sys.executable, "-m", "ndvit.serving.ways", run, str(graphs), mask], check=True)
        os.environ["WAY"] = way
        for name, (code, asked) in forms.items():
            try:
                found[name] = _peer(name, COMMON + code, asked, run, graphs, Path(folder))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                found[name] = f"does not run here: {str(error)[-200:]}"
    return found


def _measure(address: str, request: Any) -> dict[str, Any]:
    from serve import wrk

    return {"one": wrk(address, request, 1, 6), "64": wrk(address, request, 64, 15)}


def _peer(name: str, code: str, request: Any, run: str, graphs: Path, folder: Path) -> dict[str, Any]:
    from serve import wrk

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "peer.py").write_text(code)
    environment = {**os.environ, "RUN": run, "GRAPHS": str(graphs), "PORT": str(port), "BENTOML_DO_NOT_TRACK": "1"}
    command = [sys.executable, "peer.py"]
    if name == "BentoML":
        command = [sys.executable, "-m", "bentoml", "serve", "peer:Peer", "--port", str(port), "--host", "127.0.0.1"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(120):
                time.sleep(0.5)
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(re.sub(r"\s+", " ", log.read())[-300:])
                try:
                    answered = wrk(address, request, 1, 1)
                except (subprocess.SubprocessError, TypeError):
                    continue
                if answered["answered"] > 0:
                    break
            else:
                log.seek(0)
                raise RuntimeError(re.sub(r"\s+", " ", log.read())[-300:])
            wrk(address, request, 16, 3)
            return _measure(address, request)
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)
