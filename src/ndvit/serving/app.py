"""The HTTP interface: simple routes for files and JSON, the Open Inference Protocol, and the page."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import torch
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from ndvit import __version__
from ndvit.config.serving import ServingOptions
from ndvit.data.messages import printable
from ndvit.serving import answers, documentation, protocol, schemas
from ndvit.serving.errors import Busy, Invalid, NotReady, Refused, TooLarge
from ndvit.serving.examples import ExampleFiles
from ndvit.serving.gate import Gate
from ndvit.serving.metrics import Metrics
from ndvit.serving.models import Loaded, ServedModel
from ndvit.serving.page import add_page
from ndvit.serving.reading import Read, Upload, reading, uploads_of_json

T = TypeVar("T")
_EXPLAINING = 4  # requests for explanations at one time, of which one is computed
_NICE = 5  # that threads which read are behind the others
_LONG = 20_000  # numbers in an answer, from which on it is put together in a thread
_SHORT, _FEW = 2**15, 8  # bytes and examples that are read without a thread, as handing them over takes longer
_ENDINGS = {"image/jpeg": ".jpg", "audio/wav": ".wav", "audio/x-wav": ".wav", "text/csv": ".csv"}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text}
    for status, text in {
        401: "No token, or a wrong one.",
        404: "No such model.",
        413: "Above one of the limits.",
        422: "Data that cannot be used; the message says how to mend it.",
        429: "Too many requests; Retry-After has the seconds to wait.",
        503: "The model is not ready, or the time is over.",
    }.items()
}
Name = Annotated[str | None, Query(alias="model", description="Name of the model; by default the first one.")]
InPath = Annotated[str, Path(description="Name of a model.", max_length=200)]


class _Sent(NamedTuple):
    """What a request has sent: a function that decodes it, and whether it is JSON or a tensor of a few bytes."""

    uploads: Callable[[], list[Any]]
    short: bool = False


class Service:
    """The models of a service, and the threads that read and explain.

    Args:
        models: by name; the first one is the default and is loaded at the start.
        options: of the service.
        metrics: of the service.
    """

    def __init__(self, models: dict[str, ServedModel], options: ServingOptions, metrics: Metrics) -> None:
        self.models, self.options, self.metrics = models, options, metrics
        self.default = next(iter(models))
        self.ending = False
        self.end: Callable[[], None] = lambda: None  # set by the server, as the next one
        self.on_ready: Callable[[], None] = lambda: None
        self._readers = ThreadPoolExecutor(options.readers, "ndvit-read", initializer=_reader)
        self._explainer = ThreadPoolExecutor(1, "ndvit-explain")
        self._explaining = 0
        self.examples = {name: ExampleFiles(model) for name, model in models.items()}

    @property
    def ready(self) -> bool:
        """Whether the default model answers, and the service is not about to end."""
        return not self.ending and self.models[self.default].loaded is not None

    def model(self, name: str | None, version: str | None = None) -> ServedModel:
        """The model of this name.

        Raises:
            Refused: if there is none (404).
        """
        model = self.models.get(name or self.default)
        if model is None or (version is not None and version != _version(model.loaded)):
            wanted = printable(f"{name}{f', version {version}' if version is not None else ''}"[:100])
            raise Refused(404, f"there is no model {wanted}; this service has {', '.join(self.models)}")
        return model

    @asynccontextmanager
    async def use(self, name: str | None, version: str | None = None) -> AsyncIterator[Loaded]:
        """A model for one request. The default one is not waited for: it is being loaded since the start.

        Raises:
            Refused: if there is no such model, or it cannot answer yet.
        """
        model = self.model(name, version)
        if model.state == "loading" and model.name == self.default:
            raise NotReady(f"the model {model.name} is being loaded")
        async with model.use() as loaded:
            yield loaded

    async def load(self) -> None:
        """Load the default model; the service ends if it cannot be loaded."""
        try:
            async with self.models[self.default].use():
                self.on_ready()
        except NotReady:
            self.end()

    async def watch(self) -> None:
        """Look for new models in the run folders, again and again."""
        while True:
            await asyncio.sleep(self.options.reload)
            for name, model in self.models.items():
                if await model.reload():
                    self.examples[name] = ExampleFiles(model)

    async def read(self, work: Callable[[], T]) -> T:
        """Run work that reads data in one of the threads for it."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def explain(self, work: Callable[[], T]) -> T:
        """Run an explanation, one at a time.

        Raises:
            Busy: if others wait already.
        """
        if self._explaining >= _EXPLAINING:
            raise Busy("other explanations are being computed: try again later", 5)
        self._explaining += 1
        future = asyncio.get_running_loop().run_in_executor(self._explainer, work)
        future.add_done_callback(self._explained)  # not at the end of the request, which may give up earlier
        return await future

    def _explained(self, _: Any) -> None:
        self._explaining -= 1

    async def answer(self, loaded: Loaded, sent: _Sent, finish: Callable[[Read, np.ndarray], T]) -> T:
        """Read, compute and put together an answer; what may take long, in a thread for reading."""
        uploads = sent.uploads() if sent.short and loaded.quick else None
        if uploads is not None and not any(isinstance(one, Upload) for one in uploads) and len(uploads[0]) <= _FEW:
            read = _prepared(loaded, uploads, self.options)
            future = loaded.batcher.submit(*read.joined())
        else:
            with loaded.batcher.expected() as arrive:
                read = await self.read(lambda: _prepared(loaded, uploads or sent.uploads(), self.options))
                future = loaded.batcher.submit(*read.joined())
                arrive()
        outputs = (await future).numpy()
        self.metrics.examples.labels(loaded.batcher.name).inc(len(outputs))
        if outputs.size > _LONG:
            return await self.read(lambda: finish(read, outputs))
        return finish(read, outputs)

    async def close(self) -> None:
        """Compute what was accepted, and end the threads."""
        for model in self.models.values():
            await model.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._explainer.shutdown(wait=False, cancel_futures=True)


def _prepared(loaded: Loaded, uploads: list[Any], options: ServingOptions) -> Read:
    with reading(loaded.model, uploads, options) as read:
        if not read.inputs:
            raise answers.unusable(read)
        return read


def create_app(service: Service) -> Gate:
    """The application of a service."""
    options = service.options

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.load())]
        if options.reload:
            tasks.append(asyncio.create_task(service.watch()))
        yield
        for task in tasks:
            task.cancel()
        await service.close()

    app = FastAPI(
        title="ndvit",
        version=__version__,
        description=documentation.ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        root_path=options.root_path,
        responses=_PROBLEMS,
    )
    if options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    _add_errors(app)
    _add_simple_routes(app, service)
    _add_protocol(app, service)
    documentation.add_documentation(app)
    add_page(app)
    return Gate(app, options, service.metrics, lambda: service.ending)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        faults = {"faults": error.faults} if error.faults else {}
        return JSONResponse({"error": error.message, **faults}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)[:500]}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:  # which is then raised again, and logged by the gate
        return JSONResponse({"error": "an error in the service; its log has the place"}, 500)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return JSONResponse({"error": found[:500]}, 422)


def _add_simple_routes(app: FastAPI, service: Service) -> None:
    body = {"requestBody": documentation.UPLOADS}

    @app.post("/predict", response_model=schemas.Answers, openapi_extra=body, tags=["simple"])
    async def predict(
        request: Request,
        model: Name = None,
        per_window: Annotated[bool, Query(description="The answer for each window of a recording.")] = False,
        top: Annotated[int | None, Query(ge=1, description="Only so many probabilities, the highest first.")] = None,
    ) -> Response:
        """Answer files (multipart, or one as the body) or arrays (JSON)."""
        async with service.use(model) as loaded:
            sent = await _sent(request, service.options)

            def finish(read: Read, outputs: np.ndarray) -> bytes:
                found = answers.predictions(loaded.task, read, outputs, per_window=per_window, top=top)
                return answers.body(loaded, read, predictions=found)

            content = await service.answer(loaded, sent, finish)
            return Response(content, media_type="application/json")

    @app.post("/explain", response_model=schemas.Explanations, openapi_extra=body, tags=["simple"])
    async def explain(
        request: Request,
        model: Name = None,
        target: Annotated[
            str | None, Query(description="Output to explain: its index or name.", max_length=500)
        ] = None,
        method: Annotated[str | None, Query(description="As of `ndvit explain --method`.", max_length=50)] = None,
    ) -> Response:
        """Relevance of the parts of examples for an answer; by default for the most probable class."""
        async with service.use(model) as loaded:
            sent = await _sent(request, service.options)
            return Response(
                await service.explain(
                    lambda: answers.explained(loaded, sent.uploads(), service.options, target, method)
                ),
                media_type="application/json",
            )

    @app.get("/models", response_model=list[schemas.ModelFacts], tags=["simple"])
    async def models() -> Response:
        """The models of this service, the default one first."""
        return JSONResponse([answers.facts(one) for one in service.models.values()])

    @app.get("/examples", tags=["simple"])
    async def examples(model: Name = None) -> Response:
        """Some test examples of a model, with their targets; none if its data are not on this machine."""
        found = service.examples[service.model(model).name]
        async with service.use(model) as loaded:
            return JSONResponse(await service.explain(lambda: found.listed(loaded)))

    @app.get("/examples/{number}", tags=["simple"], response_class=Response)
    async def example(number: Annotated[int, Path(ge=0)], model: Name = None) -> Response:
        """The file of a test example."""
        found = service.examples[service.model(model).name].content(number)
        if found is None:
            raise Refused(404, f"there is no test example {number}")
        return Response(found, media_type="application/octet-stream")

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Counters in the format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_protocol(app: FastAPI, service: Service) -> None:
    tags: list[Any] = ["Open Inference Protocol"]

    @app.get("/v2", tags=tags)
    async def server() -> Response:
        """Name, version and extensions of the server."""
        return JSONResponse({"name": "ndvit", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live", tags=tags)
    async def live() -> Response:
        """Whether the process answers."""
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", tags=tags)
    async def ready() -> Response:
        """Whether the default model answers."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2/models/{name}", tags=tags)
    @app.get("/v2/models/{name}/versions/{version}", tags=tags)
    async def metadata(name: InPath, version: str | None = None) -> Response:
        """Inputs and outputs of a model, which is loaded for it."""
        async with service.use(name, version) as loaded:
            return JSONResponse(protocol.metadata(name, [str(loaded.version)], loaded.model))

    @app.get("/v2/models/{name}/ready", tags=tags)
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=tags)
    async def model_ready(name: InPath, version: str | None = None) -> Response:
        """Whether a model answers. One that is loaded at its first request is ready, too."""
        state = service.model(name, version).state
        good = state in ("ready", "unloaded") and not service.ending
        return JSONResponse({"name": name, "ready": good}, 200 if good else 503)

    @app.post(
        "/v2/models/{name}/infer",
        tags=tags,
        response_model=schemas.InferAnswer,
        openapi_extra={"requestBody": documentation.INFER},
    )
    @app.post("/v2/models/{name}/versions/{version}/infer", tags=tags, response_model=schemas.InferAnswer)
    async def infer(request: Request, name: InPath, version: str | None = None) -> Response:
        """Answer a tensor: raw examples, or the content of files as BYTES."""
        async with service.use(name, version) as loaded:
            body, header = await request.body(), request.headers.get(protocol.HEADER)
            parsed: list[protocol.Infer] = []

            def uploads() -> list[Any]:
                parsed.append(protocol.Infer(body, header, loaded.model, service.options))
                return parsed[0].uploads

            def finish(read: Read, outputs: np.ndarray) -> tuple[bytes, dict[str, str]]:
                if read.faults:
                    raise answers.unusable(read)
                found = answers.predictions(loaded.task, read, outputs)
                answer = {"model_name": name, "model_version": str(loaded.version)}
                answer |= {"id": parsed[0].id} if parsed[0].id else {}
                return protocol.encode(answer, protocol.outputs_of(found), parsed[0])

            content, headers = await service.answer(loaded, _Sent(uploads, len(body) <= _SHORT), finish)
            return Response(content, headers=headers)


async def _sent(request: Request, options: ServingOptions) -> _Sent:
    """Files of a form, JSON, or one file as the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            async with request.form(max_files=options.max_files, max_fields=options.max_files) as form:
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                contents = [Upload(file.filename or "", await file.read()) for file in files]
        except HTTPException as error:
            if "Too many" not in str(error.detail):
                raise
            raise TooLarge(f"at most {options.max_files:,} files are accepted in one request: send parts") from None
        return _Sent(lambda: contents)
    body = await request.body()
    if kind in ("", "application/json", "application/x-www-form-urlencoded"):  # the last is the default of curl -d
        if kind == "application/x-www-form-urlencoded" and not body.lstrip().startswith(b"{"):
            raise Invalid("the body is a form without files: send multipart/form-data (curl -F files=@a.png), or JSON")
        return _Sent(lambda: uploads_of_json(body, options), len(body) <= _SHORT)
    name = request.query_params.get("name") or f"body{_ENDINGS.get(kind, '')}"
    return _Sent(lambda: [Upload(name, body)])


def _version(loaded: Loaded | None) -> str | None:
    return None if loaded is None else str(loaded.version)


def _reader() -> None:
    """Read in one thread, and behind the network: operations on one example are slower in several threads."""
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # torch sets the number of each thread at its first use
    threadpool_limits(1, "openmp")  # of this thread; torch.set_num_threads would set that of the network, too
    if sys.platform == "linux":  # where each thread has a priority of its own
        with suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, 0) + _NICE
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(nice, 19))
