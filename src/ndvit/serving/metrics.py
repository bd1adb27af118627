"""Counters of the service in the format of Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one service. Labels are names of models and routes, never content of requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of_model: dict[str, Any] = {"labelnames": ("model",), "registry": self.registry}
        self.requests = Counter(
            "ndvit_requests", "Requests by route and HTTP status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "ndvit_request_seconds",
            "Time from the request line to the end of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.handled = Gauge("ndvit_requests_in_process", "Requests that are handled now.", registry=self.registry)
        self.examples = Counter("ndvit_examples", "Examples that were answered.", **of_model)
        self.waiting = Gauge("ndvit_examples_waiting", "Examples that wait for the network.", **of_model)
        self.batch_examples = Histogram(
            "ndvit_batch_examples", "Examples that were computed together.", buckets=_EXAMPLES, **of_model
        )
        self.batch_seconds = Histogram("ndvit_batch_seconds", "Time of one batch.", buckets=_SECONDS, **of_model)
        self.loads = Counter(
            "ndvit_model_loads", "Times that a model was loaded.", ("model", "result"), registry=self.registry
        )

    def text(self) -> bytes:
        """All counters as text."""
        return generate_latest(self.registry)
