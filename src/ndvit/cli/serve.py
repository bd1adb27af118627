from typing import Annotated

from cyclopts import Parameter

from ndvit.cli.options import ServingFlags
from ndvit.cli.printing import remark
from ndvit.config.recipe import Device


def serve(
    runs: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    device: Device = "auto",
    options: Annotated[ServingFlags | None, Parameter(name="*")] = None,
) -> None:
    """Answer over HTTP: a page to try a model, routes for files and JSON, and the Open Inference Protocol.

    The page is at /, the documentation of the interface at /docs. Needs `pip install 'ndvit[serve]'`.

    Args:
        runs: Run folders, weights as `info` takes them, or .onnx or .xml files that `export` wrote. The first one is
            the default; the others are loaded at their first request. NAME=PATH names one in addresses.
        device: Where the networks compute.
        options: Address, limits and load.
    """
    try:
        from ndvit.serving import server
    except ImportError as error:
        raise ValueError(f"serve needs FastAPI and uvicorn ({error}): pip install 'ndvit[serve]'") from None
    server.serve(runs, options or {}, device=device, log=remark)
