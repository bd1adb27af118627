"""The documentation at /docs: Swagger UI from a package, without requests to anywhere else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from ndvit.serving import schemas

ABOUT = """Answers of trained Vision Transformers for signals and images.

* `POST /predict` and `POST /explain` take files (`curl -F files=@a.png`), one file as the body, or arrays in JSON.
* `/v2` is the [Open Inference Protocol](https://github.com/open-inference/open-inference-protocol), version 2.
* A service with a token needs the header `Authorization: Bearer TOKEN`.
"""
UPLOADS: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                "required": ["files"],
            }
        },
        "application/json": {
            "schema": schemas.ArrayInputs.model_json_schema(ref_template="#/components/schemas/{model}")
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
"""Bodies of /predict and /explain."""
INFER: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": schemas.InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        }
    },
}


def add_documentation(app: FastAPI) -> None:
    """Add /docs, and the schemas of bodies, which no route declares as its argument."""
    import fastapi_offline

    app.mount("/docs/static", StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title="ndvit",
            swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/static/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/static/favicon.png",
        )
        text = bytes(page.body).decode()
        inline = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        allowed = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in inline
        )
        policy = (
            f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(text, headers={"content-security-policy": policy})

    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        known = schema["components"]["schemas"]
        for body in (UPLOADS, INFER):
            inner = body["content"]["application/json"]["schema"]
            known |= inner.pop("$defs", {})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
