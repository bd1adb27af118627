"""Run the service: logs, signals, and the HTTP server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import uvicorn

from ndvit.config.recipe import Device
from ndvit.config.serving import TOKEN, ServingOptions
from ndvit.data.messages import listing
from ndvit.serving.app import Service, create_app
from ndvit.serving.gate import Gate
from ndvit.serving.metrics import Metrics
from ndvit.serving.models import ServedModel, named_runs
from ndvit.serving.reading import route_warnings

_BACKLOG = 2048  # connections that wait to be accepted
_LAST_REQUESTS = 0.5  # seconds in which open connections are still read before the end


class JsonLines(logging.Formatter):
    """One JSON object for each line: time, level, event, and the facts of a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{when}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        line |= {"event": record.getMessage(), **getattr(record, "facts", {})}
        if record.exc_info and record.exc_info[0] is not None:
            line["type"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=False)


def make_service(runs: Sequence[str], options: ServingOptions, device: Device = "auto") -> tuple[Service, Gate]:
    """A service and its application.

    Raises:
        FileNotFoundError: if there is no model at a path.
        ValueError: for names of models that are no part of an address, or equal.
    """
    metrics = Metrics()
    models = {name: ServedModel(name, path, options, metrics, device) for name, path in named_runs(runs).items()}
    for model in models.values():
        model.check_exists()
    service = Service(models, options, metrics)
    return service, create_app(service)


def serve(
    runs: Sequence[str],
    values: Mapping[str, Any],
    *,
    device: Device = "auto",
    log: Callable[[str], Any] = print,
) -> None:
    """Serve models until the process receives a signal to end; what was accepted is finished first.

    Args:
        runs: run folders or anything that `load_model` reads, perhaps as NAME=PATH.
        values: fields of `ServingOptions` that are not the defaults.
        device: where the networks compute.
        log: receives the line with the address.

    Raises:
        FileNotFoundError: if there is no model at a path.
        ValueError: for wrong options, or a service for other machines without a token.
    """
    options = ServingOptions.from_dict({"token": os.environ.get(TOKEN) or None, **values})
    service, app = make_service(runs, options, device)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("ndvit.serving", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = ([handler] if name != "uvicorn.error" else []), name == "uvicorn.error"
        logger.setLevel(logging.INFO if name == "ndvit.serving" else logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # faults of forms are answered
    route_warnings()
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        backlog=_BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(options.timeout) + 5,
        root_path=options.root_path,
        proxy_headers=False,
    )
    server = _Server(config, service, log)
    if not options.local and not options.token:
        log("warning: every machine that reaches this one may use the service: set a token (NDVIT_TOKEN)")
    service.end, service.on_ready = server.end, server.on_ready
    server.run()
    if fault := service.models[service.default].fault:
        raise ValueError(fault)


class _Server(uvicorn.Server):
    """Prints its address and when it is ready, and stops being ready as soon as a signal to end arrives."""

    def __init__(self, config: uvicorn.Config, service: Service, log: Callable[[str], Any]) -> None:
        super().__init__(config)
        self._service, self._log = service, log
        self._addresses: list[str] = []

    def end(self) -> None:
        """Ask the server to end."""
        self.should_exit = True

    def on_ready(self) -> None:
        """Print that the default model answers, once there is an address."""
        if not (self._addresses and self._service.ready):
            return
        others = [name for name in self._service.models if name != self._service.default]
        more = f"; {listing(others, 10)} at the first request" if others else ""
        self._log(f"ready: {self._service.default} answers at {' and '.join(self._addresses)}{more}")

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                self._addresses.append(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        for address in self._addresses:
            self._log(f"{address} (documentation at /docs)")
        self.on_ready()  # a small model may have been loaded before

    async def shutdown(self, sockets: Any = None) -> None:
        """Accept no connections any more, answer what arrives on the open ones, which then close, and end."""
        self._service.ending = True
        for server in self.servers:
            server.close()
        if self.server_state.connections:  # a request may be on its way on one that is idle now
            await asyncio.sleep(_LAST_REQUESTS)
        await super().shutdown(sockets)
