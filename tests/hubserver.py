"""A hub for tests: enough of the Hugging Face hub's paths for the real client, served from this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c" * 40
REFUSALS = {  # status and X-Error-Code of refusals, by which the client recognises them
    "missing": (401, "RepoNotFound"),  # the hub answers strangers in this way for private repositories, too
    "private": (404, "RepoNotFound"),
    "stranger": (401, ""),
    "gated": (403, "GatedRepo"),
    "broken": (500, ""),
}


class HubServer:
    """Repositories in memory: `repos[name][file]` is bytes.

    Attributes:
        lfs: files above this many bytes are kept as git LFS does, by their sha256.
        refused: repository -> a key of `REFUSALS`.
        cut: file -> bytes after which the connection is closed, in every answer.
        swapped: file -> other bytes that are sent in place of the true ones.
        requests: (method, path, headers) of every request.
        commits: pushed commits, dicts with header and files.
        created: bodies of the requests to create repositories.
        broken_uploads: whether storing a large file fails.
    """

    lfs = 100

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.plain: dict[str, bytes] = {}  # files outside of any repository, as other hosts have them
        self.refused: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        self.swapped: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.commits: list[dict[str, Any]] = []
        self.broken_uploads = False
        self.created: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.running = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def requested(self, part: str) -> list[tuple[str, str, dict[str, str]]]:
        """The requests whose path has this part."""
        return [request for request in self.requests if part in request[1]]

    def stop(self) -> None:
        """Go away; the port then refuses connections."""
        if self.running:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self.running = False


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._read()

    def do_HEAD(self) -> None:
        self._read()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _read(self) -> None:
        hub, parts = self.server_hub, self._start()
        if parts[0] == "plain":
            return self._send_file(parts[-1], hub.plain.get(parts[-1]), {})
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        if repo in hub.refused and not (hub.refused[repo] == "gated" and parts[0] == "api"):
            return self._refuse(*REFUSALS[hub.refused[repo]])
        if repo not in hub.repos:
            return self._refuse(*REFUSALS["missing"])
        if len(rest) > 1 and rest[0] in ("resolve", "revision") and rest[1] not in ("main", COMMIT, "v1"):
            return self._refuse(404, "RevisionNotFound")
        if parts[0] == "api":
            siblings = [{"rfilename": name} for name in hub.repos[repo]]
            return self._send({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
        name = "/".join(rest[2:])
        content = hub.repos[repo].get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if len(content) > hub.lfs:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self._send_file(name, hub.swapped.get(name, content), headers)

    def _send_file(self, name: str, content: bytes | None, headers: dict[str, str]) -> None:
        if content is None:
            return self._refuse(404, "")
        begin, status = 0, 200
        if wanted := self.headers.get("Range"):
            begin, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers = {**headers, "Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content) - begin)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            end = self.server_hub.cut.get(name, len(content))
            self.wfile.write(content[begin:end])
            self.close_connection = end < len(content)

    def _write(self) -> None:
        hub, parts = self.server_hub, self._start()
        body = self._body()
        if parts[:2] == ["upload", "lfs"]:
            if hub.broken_uploads:
                return self._refuse(500, "")
            hub.uploads[hashlib.sha256(body).hexdigest()] = body
            return self._send({})
        if not self.headers.get("Authorization"):
            return self._refuse(401, "")
        if parts[-1] == "validate-yaml":
            wrong = (
                [{"message": '"license" must be one of [...]'}]
                if "license: no such" in json.loads(body)["content"]
                else []
            )
            return self._send({"warnings": [], "errors": wrong}, 400 if wrong else 200)
        if parts == ["api", "repos", "create"]:
            options = json.loads(body)
            repo = f"{options.get('organization') or 'me'}/{options['name']}"
            if repo in hub.refused:
                return self._refuse(*REFUSALS[hub.refused[repo]])
            hub.created.append(options)
            if repo in hub.repos:
                return self._send({"error": "You already created this model repo", "url": f"{hub.url}/{repo}"}, 409)
            hub.repos[repo] = {}
            return self._send({"url": f"{hub.url}/{repo}", "name": repo})
        if "preupload" in parts:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith("s") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            return self._send({"files": modes})
        if parts[-2:] == ["objects", "batch"]:
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/upload/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._send({"transfer": "basic", "objects": objects})
        assert "commit" in parts, parts
        repo, files, header = "/".join(parts[2:4]), {}, {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.uploads[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        hub.commits.append({"repo": repo, "header": header, "files": files})
        hub.repos[repo] |= files
        self._send({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}"})

    def _start(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        return path.strip("/").split("/")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refuse(self, status: int, code: str) -> None:
        self._send({"error": "no"}, status, {"X-Error-Code": code} if code else {})

    def _send(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def connect(monkeypatch: pytest.MonkeyPatch, hub: HubServer, home: Any) -> None:
    """Point the client of this process at a server, with an empty cache and nobody's token."""
    import torch
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    close_session()  # its connections belong to the server of another test
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_CACHE": str(home / "hf" / "hub"),
        "HF_TOKEN_PATH": str(home / "hf" / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    torch_home = str(home / "torch")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: torch_home)
