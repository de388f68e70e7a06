"""The live requests of the demo, against a server that answers, refuses and is gone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from perennial.template.pipeline import PIPELINE
from perennial.traffic import Traffic, day_requests, told


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = json.dumps({"predictions": [{"version": "7", "score": 0.5}]}).encode()
        self.send_response(200 if json.loads(body)["events"] else 422)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(url: str, bodies: list[bytes], until: int) -> Traffic:
    traffic = Traffic(url)
    traffic.wanted.put((bodies, 500.0))
    sending = threading.Thread(target=traffic.send, args=("/v1/shop/score",))
    sending.start()
    limit = time.monotonic() + 20
    while sum(traffic.answers.values()) < until and time.monotonic() < limit:
        time.sleep(0.01)
    traffic.stopped.set()
    sending.join(10)
    assert not sending.is_alive()
    return traffic


def test_a_day_has_one_request_for_each_event_that_is_scored() -> None:
    day = datetime(2024, 1, 9, tzinfo=UTC)
    bodies = day_requests(PIPELINE, day)
    asked = PIPELINE.replay(day, datetime(2024, 1, 10, tzinfo=UTC))[PIPELINE.scored.topic]
    assert len(bodies) == asked.height > 0
    keys = [json.loads(body)["events"][0][PIPELINE.scored.key] for body in bodies]
    assert keys == asked[PIPELINE.scored.key].to_list()


def test_answers_are_counted_by_status_and_predictions_by_version(address: str) -> None:
    report = ask(address, [b'{"events": [1]}', b'{"events": []}'], until=20).report()
    assert set(report["answers"]) == {"200", "422"}
    assert report["requests"] == sum(report["answers"].values()) >= 20
    assert report["versions"] == {"7": report["answers"]["200"]}
    assert 0 < report["p50_ms"] <= report["p99_ms"]


def test_the_closing_sentence_tells_answers_and_predictions() -> None:
    report = {
        "requests": 1_205,
        "answers": {"422": 1, "200": 1_203, "ReadTimeout": 1},
        "versions": {"7": 1_202, "8": 1},
        "p50_ms": 2.34,
        "p99_ms": 10.06,
    }
    assert told(report) == (
        "1,205 requests: 1,203 answered 200, 1 answered 422, 1 ReadTimeout; "
        "1,202 predictions by version 7, 1 prediction by version 8; P50 2.3 ms, P99 10.1 ms"
    )


def test_a_service_that_is_gone_is_counted_and_not_timed() -> None:
    report = ask("http://127.0.0.1:1", [b"{}"], until=3).report()
    assert told(report) == f"{report['requests']} requests: {report['requests']} ConnectError"
    assert told(Traffic("http://127.0.0.1:1").report()) == "No request was sent."
    assert set(report["answers"]) == {"ConnectError"}
    assert report["versions"] == {}
    assert report["p50_ms"] is None
