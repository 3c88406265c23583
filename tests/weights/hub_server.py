"""A stand-in of the Hugging Face hub on this machine: as much of its HTTP interface as a push and a download use."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_stand_in"


class Repository:
    """Files of one repository, and who sees it."""

    def __init__(self, private: bool) -> None:
        self.private, self.files = private, {".gitattributes": b""}

    def info(self, name: str) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in self.files]
        return {
            "id": name,
            "modelId": name,
            "sha": self.sha(),
            "private": self.private,
            "siblings": siblings,
            "tags": [],
        }

    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@contextmanager
def hub_server() -> Generator[tuple[str, dict[str, Repository]]]:
    """Its address, and its repositories by name."""
    repositories: dict[str, Repository] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is said."""

        def answer(self, body: Any, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self) -> None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                name = "/".join(parts[2:4])
                if name not in repositories:
                    return self.refuse()
                if parts[4:5] == ["tree"]:
                    files = repositories[name].files.items()
                    return self.answer(
                        [{"type": "file", "path": path, "size": len(data), "oid": ""} for path, data in files]
                    )
                return self.answer(repositories[name].info(name))
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            if name not in repositories or path not in repositories[name].files:
                return self.refuse()
            data, sha = repositories[name].files[path], repositories[name].sha()
            return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts == ["api", "validate-yaml"]:
                return self.answer({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if parts == ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'anna'}/{asked['name']}"
                if name in repositories:
                    return self.answer({"error": "You already created this model repo", "url": f"/{name}"}, 409)
                repositories[name] = Repository(
                    "private" in (asked.get("visibility"), "private" * bool(asked.get("private")))
                )
                return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
            repository = repositories["/".join(parts[2:4])]
            if parts[4] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            assert parts[4] == "commit", self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            sha = repository.sha()
            return self.answer(
                {
                    "success": True,
                    "commitOid": sha,
                    "commitUrl": f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}/commit/{sha}",
                }
            )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
