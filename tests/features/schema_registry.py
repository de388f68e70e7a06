from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import httpx
import pytest


class Registry:
    """Confluent's documented REST API over schemas that were really registered, for none can be installed here.

    POST /subjects/{subject}/versions stores a schema and answers its id; GET /schemas/ids/{id} answers it, or 404 with
    error 40403; GET /subjects/{subject}/versions/{version} answers it, or 404 with error 40401 or 40402. It can be told
    to fail, and counts what it was asked.
    """

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.fails: tuple[int, bytes] | None = None
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = next((n for n, s in registry.schemas.items() if s == told), None)
                number = known or 100_000 + len(registry.schemas)
                registry.schemas[number] = told
                registry.subjects.setdefault(unquote(self.path.split("/")[2]), []).append(number)
                self.answer(200, json.dumps({"id": number}).encode())

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                _, kind, name, *version = self.path.partition("?")[0].split("/")
                if registry.fails:
                    self.answer(*registry.fails)
                elif kind == "schemas":
                    self.tell(registry.schemas.get(int(version[0])), 40403)
                elif numbers := registry.subjects.get(unquote(name)):
                    at = int(version[1]) - 1
                    self.tell(registry.schemas[numbers[at]] if at < len(numbers) else None, 40402)
                else:
                    self.tell(None, 40401)

            def tell(self, schema: dict[str, Any] | None, error_code: int) -> None:
                if schema:
                    self.answer(200, json.dumps(schema).encode())
                else:
                    self.answer(404, json.dumps({"error_code": error_code, "message": "not found"}).encode())

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def register(self, subject: str, schema: Any, **more: Any) -> int:
        body = {"schema": json.dumps(schema), **more}
        return int(httpx.post(f"{self.url}/subjects/{subject}/versions", json=body).raise_for_status().json()["id"])

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    running = Registry()
    yield running
    running.stop()
