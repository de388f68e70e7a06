"""AWS as a role sees it that may not do everything: what it may goes on to moto."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

DENIED_BY_S3 = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
)
DENIED = b'{"__type": "AccessDeniedException", "Message": "not authorized to perform this"}'


@contextmanager
def refusing(moto: str, what: str) -> Iterator[str]:
    """Its address.

    Args:
        moto: address of the account behind it.
        what: a method of HTTP, or an action such as AWSGlue.GetDatabases.
    """
    there = urlsplit(moto)
    assert there.hostname

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Quietly."""

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                """Trailers."""
            return b"".join(parts)

        def _answer(self) -> None:
            body = self._body()
            action = self.headers.get("X-Amz-Target")
            denied = (400, "application/x-amz-json-1.1", DENIED) if action else (403, "application/xml", DENIED_BY_S3)
            status, kind, told = denied
            headers: dict[str, str] = {}
            if what not in (self.command, action):
                upstream = HTTPConnection(str(there.hostname), there.port, timeout=20)
                asked = {
                    k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "content-length")
                }
                upstream.request(self.command, self.path, body, {**asked, "Content-Length": str(len(body))})
                answer = upstream.getresponse()
                status, told, headers = answer.status, answer.read(), dict(answer.getheaders())
                kind = headers.get("Content-Type", kind)
                upstream.close()
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "content-type", "connection", "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Type", kind)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(told))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(told)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815 - names of http.server

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
