from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.errors import StageError, StateError
from rollout.ledger import Ledger
from serving.metrics import Metrics
from serving.router import Router, key_pct

KEYS = [f"toy-{i}" for i in range(2_000)]
FRAME = pl.DataFrame({"x": np.linspace(-1, 1, len(KEYS))})


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def router(ledger, shelf, metrics, clock):
    return Router(ledger, ["toys"], shelf.load, metrics, clock)


def sigmoid(x: np.ndarray, bias: float = 0.0) -> np.ndarray:
    return 1 / (1 + np.exp(-(x + bias)))


def test_before_the_first_release_nothing_can_be_answered(router):
    router.refresh()
    with pytest.raises(StateError, match="pipeline 'toys' has no champion"):
        router.score("toys", KEYS, FRAME)


def test_a_champion_alone_answers_every_key(router, serve):
    serve("1")
    router.refresh()
    answers = router.score("toys", KEYS, FRAME)
    assert set(answers.versions) == {"1"}
    np.testing.assert_allclose(answers.scores, sigmoid(FRAME["x"].to_numpy()))


def test_a_champion_alone_leaves_no_observations(router, serve, ledger, clock):
    serve("1")
    router.refresh()
    router.score("toys", KEYS, FRAME)
    router.flush()
    assert ledger.observations("toys", "1", 1).requests == 0


@pytest.mark.parametrize("share_pct", [10.0, 50.0])
def test_the_share_of_keys_is_that_of_the_ledger_within_sampling_error(router, serve, share_pct):
    serve("1", "2", share_pct)
    router.refresh()
    answers = router.score("toys", KEYS, FRAME)
    share = share_pct / 100
    canary = np.array(answers.versions) == "2"
    assert abs(canary.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(KEYS))
    x = FRAME["x"].to_numpy()
    np.testing.assert_allclose(answers.scores, np.where(canary, sigmoid(x, 0.1), sigmoid(x)))


def test_the_whole_share_is_every_key(router, serve):
    serve("1", "2", 100.0)
    router.refresh()
    assert set(router.score("toys", KEYS, FRAME).versions) == {"2"}


def test_a_key_stays_in_the_canary_as_its_share_grows_and_on_every_replica(router, serve, ledger, shelf, clock):
    serve("1", "2", 10.0)
    router.refresh()
    few = {k for k, v in zip(KEYS, router.score("toys", KEYS, FRAME).versions, strict=True) if v == "2"}
    serve("1", "2", 50.0)
    other = Router(ledger, ["toys"], shelf.load, Metrics(), clock)
    other.refresh()
    many = {k for k, v in zip(KEYS, other.score("toys", KEYS, FRAME).versions, strict=True) if v == "2"}
    assert few
    assert few < many


def test_another_challenger_gets_other_keys():
    first, second = ({k for k in KEYS if key_pct(version, k) < 10} for version in ("2", "3"))
    # Independent samples of 10 % share 1 % of the keys: 20 of 2000, with a standard deviation of 4.5.
    assert len(first & second) < 45


@given(st.text(max_size=20), st.one_of(st.integers(), st.text(max_size=20), st.none()))
def test_a_key_lies_between_0_and_100(version, key):
    if isinstance(key, str) and not key.isprintable():
        key = repr(key)
    assert 0 <= key_pct(repr(version), key) < 100


@pytest.mark.parametrize(("version", "key", "pct"), [("7", "UA1545", 25.69977361003561), ("8", 42, 25.127410125646254)])
def test_a_key_lies_where_it_lay_in_every_process_before(version, key, pct):
    assert key_pct(version, key) == pct


def test_a_lease_that_ran_out_gives_everything_back_to_the_champion(router, serve, ledger, clock):
    serve("1", "2", 50.0)
    router.refresh()
    clock.advance(19.9)
    assert set(router.score("toys", KEYS, FRAME).versions) == {"1", "2"}
    clock.advance(0.1)
    assert set(router.score("toys", KEYS, FRAME).versions) == {"1"}
    ledger.renew_lease("toys", clock.time.replace(minute=5))
    router.refresh()
    assert set(router.score("toys", KEYS, FRAME).versions) == {"1", "2"}


@pytest.mark.parametrize(("bad", "invalid"), [("raises", 0), ("nan", 1), ("above", 1), ("short", 0), ("absent", 0)])
def test_whatever_a_challenger_does_the_champion_answers_and_an_error_is_kept(
    router, serve, ledger, clock, bad, invalid
):
    serve("1", bad, 50.0)
    router.refresh()
    answers = router.score("toys", KEYS, FRAME)
    assert set(answers.versions) == {"1"}
    np.testing.assert_allclose(answers.scores, sigmoid(FRAME["x"].to_numpy()))
    router.flush()
    seen = ledger.observations("toys", bad, 1)
    assert seen.requests == sum(key_pct(bad, key) < 50 for key in KEYS) > 0
    assert (seen.errors, seen.invalid) == (seen.requests, invalid * seen.requests)
    assert ledger.observations("toys", "1", 1).errors == 0


def test_canary_rows_are_scored_by_both_and_their_difference_is_kept(router, serve, ledger, clock):
    serve("1", "2", 50.0)
    router.refresh()
    answers = router.score("toys", KEYS, FRAME)
    router.flush()
    seen = ledger.observations("toys", "2", 1)
    canary = np.array(answers.versions) == "2"
    x = FRAME["x"].to_numpy()[canary]
    assert (seen.requests, seen.pairs, seen.calls) == (canary.sum(), canary.sum(), 1)
    assert seen.mean_disagreement == pytest.approx(np.mean(sigmoid(x, 0.1) - sigmoid(x)))
    assert seen.mean_score == pytest.approx(np.mean(sigmoid(x, 0.1)))
    assert ledger.observations("toys", "1", 1).requests == len(KEYS)


def test_requests_count_for_the_entry_they_were_answered_under(router, serve, ledger, clock):
    serve("1", "2", 10.0)
    router.refresh()
    router.score("toys", KEYS, FRAME)
    clock.advance(1)
    serve("1", "2", 50.0)
    router.score("toys", KEYS[:1], FRAME[:1])  # this replica does not know the new entry yet
    router.refresh()
    clock.advance(1)
    router.score("toys", KEYS[:7], FRAME[:7])
    router.flush()
    step = ledger.state("toys")
    assert step is not None
    assert ledger.observations("toys", "1", step.sequence).requests == 7


def test_a_champion_that_fails_is_an_error_told_in_a_sentence(router, serve):
    serve("raises")
    router.refresh()
    with pytest.raises(StageError, match="model 'raises' of pipeline 'toys' gave no usable score for 2000 of 2000"):
        router.score("toys", KEYS, FRAME)


def test_a_challenger_stands_in_for_a_champion_that_fails(router, serve):
    serve("raises", "2", 100.0)
    router.refresh()
    assert set(router.score("toys", KEYS, FRAME).versions) == {"2"}


def test_models_are_loaded_once_and_a_promoted_challenger_is_not_loaded_again(router, serve, shelf):
    serve("1", "2", 10.0)
    router.refresh()
    router.refresh()
    serve("2")
    router.refresh()
    assert shelf.loads == ["shelf://1", "shelf://2"]
    assert set(router.score("toys", KEYS, FRAME).versions) == {"2"}


def test_a_challenger_that_could_not_be_loaded_is_tried_again(router, serve, shelf):
    model = shelf.models.pop("shelf://2")
    serve("1", "2", 50.0)
    router.refresh()
    assert "model '2' cannot be loaded" in router.routes["toys"].problem
    shelf.models["shelf://2"] = model
    router.refresh()
    assert router.routes["toys"].problem == ""
    assert set(router.score("toys", KEYS, FRAME).versions) == {"1", "2"}


def test_a_new_champion_that_cannot_be_loaded_leaves_the_old_one_answering(router, serve):
    serve("1")
    router.refresh()
    serve("absent")
    router.refresh()
    assert set(router.score("toys", KEYS, FRAME).versions) == {"1"}
    assert "model 'absent' cannot be loaded" in router.routes["toys"].problem


def test_a_ledger_that_is_gone_leaves_the_last_state_and_loses_no_observation(
    router, serve, settings, ledger, clock, metrics
):
    serve("1", "2", 50.0)
    router.refresh()
    ledger.close()
    database = Path(settings.root) / "ledger.db"
    away = database.rename(database.with_suffix(".away"))
    database.mkdir()  # what cannot be opened as a database
    try:
        router.refresh()
        for _ in range(3):
            assert set(router.score("toys", KEYS, FRAME).versions) == {"1", "2"}
            router.flush()
        assert b"perennial_ledger_failures_total 4.0" in metrics.render()  # one reading, three flushes
        clock.advance(20)  # nobody can renew the lease either
        assert set(router.score("toys", KEYS, FRAME).versions) == {"1"}
    finally:
        database.rmdir()
        away.rename(database)
    router.flush()
    router.flush()
    assert ledger.observations("toys", "1", 1).requests == 4 * len(KEYS)


def test_a_restarted_process_goes_on_where_the_ledger_stands(router, serve, settings, shelf, clock):
    serve("1", "2", 50.0)
    router.refresh()
    before = router.score("toys", KEYS, FRAME)
    again = Router(Ledger(settings.ledger_url), ["toys"], shelf.load, Metrics(), clock)
    again.refresh()
    assert again.score("toys", KEYS, FRAME).versions == before.versions


def test_metrics_count_rows_by_version_arm_and_outcome(router, serve, metrics, clock):
    metrics.watch(router, clock)
    serve("1", "nan", 50.0)
    router.refresh()
    router.score("toys", KEYS, FRAME)
    canary = sum(key_pct("nan", key) < 50 for key in KEYS)
    clock.advance(3)
    text = metrics.render().decode()
    labels = 'pipeline="toys",version="{}"'
    assert f'perennial_requests_total{{arm="champion",outcome="ok",{labels.format(1)}}} 2000.0' in text
    assert f'perennial_requests_total{{arm="challenger",outcome="invalid",{labels.format("nan")}}} {canary}.0' in text
    assert 'perennial_share_pct{arm="challenger",pipeline="toys",version="nan"} 50.0' in text
    assert 'perennial_share_pct{arm="champion",pipeline="toys",version="1"} 50.0' in text
    assert 'perennial_ledger_age_seconds{pipeline="toys"} 3.0' in text
    assert f'perennial_predict_seconds_count{{arm="champion",{labels.format(1)}}} 1.0' in text
