"""A model behind HTTP: start a server, ask it, stop it.

`python examples/serving.py` trains a classifier in seconds, serves it on this machine, and sends it signals as JSON and
as a file. It needs `pip install 'ndvit[serve]'`.
"""

# %%
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
from aeon.datasets import load_gunpoint

import ndvit

# %% [markdown]
# ## A model

# %%
X, y = load_gunpoint(split="train")
run = ndvit.train((X, y), preset="fast", output="runs/gunpoint", force=True, progress=False, log=str)
print(f"accuracy {run.evaluation.accuracy:.1%} of {len(run.evaluation)}")

# %% [markdown]
# ## The server
#
# In a shell this is `ndvit serve runs/gunpoint --port 8000`. It listens on this machine only; a browser finds a page to
# try the model at its address.

# %%
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
address = f"http://127.0.0.1:{port}"
server = subprocess.Popen(
    [sys.executable, "-m", "ndvit.cli", "serve", "runs/gunpoint", "--port", str(port), "--no-optimize"],
    stderr=subprocess.DEVNULL,
)


def ask(path, body=None, kind="application/json"):
    """The answer of the server, from JSON."""
    request = urllib.request.Request(address + path, data=body, headers={"content-type": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
        return json.loads(text) if text else {}


for _ in range(120):  # until the model is loaded
    try:
        ask("/v2/health/ready")
        break
    except (urllib.error.URLError, ConnectionError):
        time.sleep(0.5)
print(json.dumps(ask("/models"), indent=1)[:600])

# %% [markdown]
# ## Signals as JSON
#
# `null` is a missing value.

# %%
X_new, y_new = load_gunpoint(split="test")
answer = ask("/predict", json.dumps({"inputs": X_new[:2].tolist()}).encode())
print(json.dumps(answer, indent=1)[:700])

# %% [markdown]
# ## A file as the body

# %%
np.save("signal.npy", X_new[0])
with open("signal.npy", "rb") as file:
    print(json.dumps(ask("/predict", file.read(), "application/octet-stream"))[:300])

# %% [markdown]
# ## What it refuses
#
# Wrong input is an error with a message, and no answer.

# %%
try:
    ask("/predict", json.dumps({"inputs": [[[0.0] * 4000]]}).encode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode()[:400])

# %% [markdown]
# ## The same answers as from Python

# %%
print(run.model.predict(X_new[:1])[0].text(), "  true:", y_new[0])
server.terminate()
server.wait(timeout=30)
print("stopped")

# %% [markdown]
# Limits, safety and measurements: [Serving](../docs/serving.md).
