from __future__ import annotations

import time

import pytest
from fastapi.testclient import TestClient

from perennial.errors import StateError
from serving.app import MAX_EVENTS, create_app


@pytest.fixture
def app(settings, toy_spec, shelf, request_features, clock):
    return create_app(
        settings,
        specs={"toys": toy_spec},
        load=shelf.load,
        open_features=lambda spec, settings: request_features,
        now=clock,
        poll_s=0.02,
    )


@pytest.fixture
def client(app):
    with TestClient(app) as opened:
        yield opened


def wait_until(true, limit_s: float = 10.0) -> None:
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def ready(client, serve):
    """The service with champion 1 loaded."""
    serve("1")
    wait_until(lambda: client.get("/ready").status_code == 200)
    return client


def test_events_are_answered_in_order_with_key_score_and_version(ready, toy_event):
    response = ready.post("/v1/toys/score", json={"events": [toy_event("a"), toy_event("b", x=1e9), toy_event("c")]})
    assert response.status_code == 200
    assert response.json() == {
        "predictions": [
            {"key": "a", "score": 0.5, "version": "1"},
            {"key": "b", "score": 1.0, "version": "1"},
            {"key": "c", "score": 0.5, "version": "1"},
        ]
    }


def test_no_events_get_no_predictions(ready):
    assert ready.post("/v1/toys/score", json={"events": []}).json() == {"predictions": []}


def test_the_process_is_up_before_it_is_ready(client):
    assert client.get("/health").json() == {"status": "up"}
    response = client.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"detail": "no champion is loaded for any pipeline (toys); release one"}


def test_a_request_before_the_first_release_is_told_so(client, toy_event):
    response = client.post("/v1/toys/score", json={"events": [toy_event()]})
    assert response.status_code == 503
    assert "pipeline 'toys' has no champion to answer" in response.json()["detail"]
    assert client.get("/v1/toys/serving").status_code == 503


def test_a_champion_that_cannot_be_loaded_is_told_by_ready(client, serve):
    serve("absent")
    wait_until(lambda: "cannot be loaded" in client.get("/ready").json()["detail"])
    assert client.get("/ready").status_code == 503
    assert "model 'absent' cannot be loaded" in client.get("/v1/toys/serving").json()["problem"]


def test_an_unknown_pipeline_is_not_found(ready, toy_event):
    for response in (ready.post("/v1/cars/score", json={"events": [toy_event()]}), ready.get("/v1/cars/serving")):
        assert response.status_code == 404
        assert response.json() == {"detail": "unknown pipeline 'cars'; there is: toys"}


def test_a_missing_field_is_named(ready, toy_event):
    event = toy_event()
    del event["x"]
    response = ready.post("/v1/toys/score", json={"events": [event]})
    assert response.status_code == 422
    assert response.json() == {
        "detail": "event 0: field 'x' is missing or null; mend it, or see the fields of toys.asked.v1"
    }


def test_too_many_events_are_refused_with_the_limit(ready, toy_event):
    response = ready.post("/v1/toys/score", json={"events": [toy_event()] * (MAX_EVENTS + 1)})
    assert response.status_code == 422
    assert response.json() == {"detail": "10001 events in one request; send at most 10000 at a time"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"events": 3}', b'{"events": [1]}', b'{"rows": []}', b"\xff"])
def test_a_body_that_is_no_request_gets_a_sentence(ready, body):
    response = ready.post("/v1/toys/score", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert isinstance(response.json()["detail"], str)


def test_not_a_number_in_a_body_is_refused(ready, toy_event):
    body = (
        b'{"events": [{"toy_id": "a", "event_timestamp": "2026-01-01T00:00:00Z", "x": NaN, "count": 1, "sold": true}]}'
    )
    response = ready.post("/v1/toys/score", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "field 'x' is nan" in response.json()["detail"]


def test_who_serves_what_since_when_and_why(ready, serve, clock):
    serve("1", "2", 10.0)
    wait_until(lambda: ready.get("/v1/toys/serving").json()["challenger"])
    said = ready.get("/v1/toys/serving").json()
    assert said["champion"] == {"version": "1", "uri": "shelf://1", "share_pct": 90.0}
    assert said["challenger"] == {"version": "2", "uri": "shelf://2", "share_pct": 10.0}
    assert (said["sequence"], said["action"], said["reason"]) == (2, "start", "because")
    assert said["since"] == "2026-01-01T00:00:00+00:00"
    assert said["lease_until"] == "2026-01-01T00:00:20+00:00"
    assert said["lease_alive"] is True
    clock.advance(20)
    said = ready.get("/v1/toys/serving").json()
    assert (said["challenger"]["share_pct"], said["champion"]["share_pct"], said["lease_alive"]) == (0.0, 100.0, False)


def test_metrics_are_scraped_in_prometheus_text(ready, toy_event):
    ready.post("/v1/toys/score", json={"events": [toy_event()]})
    response = ready.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'perennial_requests_total{arm="champion",outcome="ok",pipeline="toys",version="1"} 1.0' in response.text


def test_observations_reach_the_ledger_by_themselves_and_the_last_ones_on_shutdown(
    app, serve, ledger, clock, toy_event
):
    with TestClient(app) as client:
        serve("1", "2", 100.0)
        wait_until(lambda: client.get("/ready").status_code == 200)
        client.post("/v1/toys/score", json={"events": [toy_event()]})
        wait_until(lambda: ledger.observations("toys", "2", 1).requests == 1)
        client.post("/v1/toys/score", json={"events": [toy_event()]})
    assert ledger.observations("toys", "2", 1).requests == 2


class NoFeatures:
    def frame(self, scored):
        raise ConnectionError("Connection refused")


def test_features_that_cannot_be_opened_hold_readiness_and_those_that_fail_are_told(
    settings, toy_spec, shelf, serve, clock, toy_event
):
    opened: list[object] = []

    def open_features(spec, settings):
        if not opened:
            raise StateError("no table features_x in the lake; run `perennial ingest`")
        return opened[0]

    app = create_app(
        settings, specs={"toys": toy_spec}, load=shelf.load, open_features=open_features, now=clock, poll_s=0.02
    )
    with TestClient(app) as client:
        serve("1")
        wait_until(lambda: "cannot be opened: no table features_x" in client.get("/ready").json()["detail"])
        response = client.post("/v1/toys/score", json={"events": [toy_event()]})
        assert response.status_code == 503
        assert "no table features_x" in response.json()["detail"]
        opened.append(NoFeatures())
        wait_until(lambda: client.get("/ready").status_code == 200)
        response = client.post("/v1/toys/score", json={"events": [toy_event()]})
        assert response.status_code == 503
        assert response.json() == {"detail": "the features of pipeline 'toys' cannot be read: Connection refused"}
