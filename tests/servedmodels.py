"""Models for tests of the service: random weights, which answer as well as trained ones, and a client of a service."""

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from starlette.testclient import TestClient

import ndvit
from ndvit.config.serving import ServingOptions
from ndvit.data.preprocess.images import ImagePreprocess
from ndvit.data.preprocess.signals import SignalPreprocess
from ndvit.serving.server import make_service
from ndvit.tasks import Classification, Multilabel, Regression

TASKS: dict[str, Any] = {
    "pictures": Classification(("cat", "dog", "fox")),
    "signals": Classification(("rest", "run")),
    "labels": Multilabel(("rain", "wind", "hail")),
    "numbers": Regression(("age", "mass"), mean=(30.0, 70.0), std=(9.0, 12.0), margins=(5.0, 7.0)),
    "windows": Classification(("a", "b")),
}


def save_served(name: str, folder: Path, seed: int = 0) -> Path:
    """A run folder with a model of the kind `name`; `windows` reads recordings of 100 Hz, the others two channels."""
    torch.manual_seed(seed)
    task, pictures = TASKS[name], name == "pictures"
    channels, size = (3, (8, 8)) if pictures else (1 if name == "windows" else 2, (16,))
    network = ndvit.create_model(
        "vit_pico",
        embed_dim=16,
        depth=2,
        num_heads=2,
        input_size=size,
        in_channels=channels,
        patch_size=4,
        num_classes=task.num_outputs,
    )
    with torch.no_grad():
        for parameter in network.parameters():  # a new head is zero and answers the same to everything
            parameter.add_(0.3 * torch.randn_like(parameter))
    kind = ImagePreprocess if pictures else SignalPreprocess
    more = {"sample_rate": 100.0} if name == "windows" else {}
    preprocess = kind(size, (0.4,) * channels, (0.3,) * channels, **more)
    facts = {"reading": {"window": "160ms"}} if name == "windows" else {}
    folder.mkdir(parents=True, exist_ok=True)
    ndvit.Model(network, task, preprocess, provenance=facts).save(folder / "model.safetensors")
    return folder


@contextmanager
def serving(*runs: Path | str, **options: Any):
    """A client of a service in this process, whose default model is ready; `client.service` is the service."""
    service, app = make_service(
        [str(run) for run in runs], ServingOptions(**{"optimize": False, "reload": 0, **options})
    )
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=True) as client:
        client.service = service
        for _ in range(1000):
            if service.models[service.default].state in ("ready", "failed"):
                break
            time.sleep(0.01)
        yield client
