"""What every request passes: access, limits, time, counters, one line of log, and safe headers on the answer."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndvit.config.serving import LOOPBACK, ServingOptions
from ndvit.serving.errors import Busy, Refused, TooLarge
from ndvit.serving.metrics import Metrics

LOG = logging.getLogger("ndvit.serving")
OPEN = ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready")
"""Addresses that need no token: the page asks for it."""
OPEN_FOLDERS = ("/static/", "/docs/")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-store",
    "content-security-policy": PAGE_POLICY,
}
_GONE = 499  # in logs and counters: the client closed the connection


class Gate:
    """An ASGI application around another one.

    Args:
        app: answers the requests that pass.
        options: of the service.
        metrics: of the service.
        ending: whether the service is about to end, so that each answer is the last one of its connection.
    """

    def __init__(
        self, app: ASGIApp, options: ServingOptions, metrics: Metrics, ending: Callable[[], bool] = lambda: False
    ) -> None:
        self._app, self._options, self._metrics, self._ending = app, options, metrics, ending
        self._handled = self._busy = 0
        self._logged = -1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, receive, send, self._options.max_bytes, self._ending)
        work = scope["method"] == "POST"
        started = time.perf_counter()
        self._handled += work
        self._metrics.handled.set(self._handled)
        try:
            self._check(scope, work)
            async with asyncio.timeout(self._options.timeout):
                await self._app(scope, request.receive, request.send)
        except Refused as refusal:
            await request.refuse(refusal)
        except TimeoutError:
            status, what = (503, "the answer") if request.complete else (408, "the request")
            await request.refuse(Refused(status, f"{what} took longer than {self._options.timeout:g} s", 10))
        except (ClientDisconnect, OSError):
            request.status = _GONE
        except Exception as error:
            self._log_fault(error)
            await request.refuse(Refused(500, "an error in the service; its log has the place"))
        finally:
            self._handled -= work
            self._metrics.handled.set(self._handled)
            self._record(scope, request, time.perf_counter() - started)

    def _check(self, scope: Scope, work: bool) -> None:
        """Refuse a request by its headers, before its body is read."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        options, path = self._options, scope["path"]
        if options.local and _host(host) not in (*LOOPBACK, *options.hosts):
            raise Refused(421, "this service answers on the loopback address only: name this host with --hosts")
        origin = headers.get(b"origin")
        if work and origin is not None and origin not in options.cors and urlsplit(origin).netloc != host:
            raise Refused(403, "scripts of other pages may not use this service: allow their origin with --cors")
        if options.token and path not in OPEN and not path.startswith(OPEN_FOLDERS) and scope["method"] != "OPTIONS":
            sent = headers.get(b"authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(sent.encode(), options.token.encode()):
                raise Unauthorized()
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length[:20]) > options.max_bytes:
            raise _too_long(options.max_bytes)
        if work and self._handled > options.requests:
            raise Busy(f"{options.requests:,} requests are handled already: try again later", 1)

    def _log_fault(self, error: Exception) -> None:
        """Log the place of an error, without its message, which may have content of the request."""
        place = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)][-6:]
        LOG.error("internal error", extra={"facts": {"type": type(error).__name__, "place": place}})

    def _record(self, scope: Scope, request: _Request, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(request.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        facts = {"method": scope["method"], "route": route, "status": request.status, "ms": round(1e3 * seconds, 1)}
        facts |= {"bytes": request.received, **scope.get("state", {}).get("facts", {})}
        if request.status == 429:  # a line for each would be most of the work under overload
            self._busy += 1
            if (now := time.monotonic()) < self._logged + 1:
                return
            facts, self._busy, self._logged = facts | {"since_last": self._busy}, 0, now
        quiet = route.startswith(("/v2/health", "/static", "/metrics"))
        LOG.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"facts": facts})


class Unauthorized(Refused):
    """A request without the token."""

    def __init__(self) -> None:
        super().__init__(401, 'this service needs its token: send the header "Authorization: Bearer TOKEN"')

    @property
    def headers(self) -> dict[str, str]:
        """How to send the token."""
        return {"WWW-Authenticate": "Bearer"}


class _Request:
    """Counts the bytes of a request, and adds headers to its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int, ending: Callable[[], bool]) -> None:
        self._scope, self._receive, self._send, self._most, self._ending = scope, receive, send, most, ending
        self.received, self.status, self.complete, self.begun = 0, 0, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            if self.received > self._most:
                raise _too_long(self._most)
            self.complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            present = {name for name, _ in message["headers"]}
            added = [
                (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in present
            ]
            if self._ending() and b"connection" not in present:
                added.append((b"connection", b"close"))
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)

    async def refuse(self, refusal: Refused) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.begun:
            return
        body = json.dumps({"error": refusal.message}, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        if refusal.status in (408, 413) and not self.complete:
            headers["connection"] = "close"  # instead of reading the rest of a body that nobody needs
        start: dict[str, Any] = {"type": "http.response.start", "status": refusal.status}
        await self.send({**start, "headers": _encoded(headers.items())})
        await self.send({"type": "http.response.body", "body": body})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


def _host(header: str) -> str:
    """The name or address in a Host header, without its port."""
    host = header.rpartition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    return host.lower()


def _too_long(most: int) -> TooLarge:
    return TooLarge(f"the request has more than {most:,} bytes: send fewer or smaller files")
