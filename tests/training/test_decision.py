from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spec import RetrainPolicy
from training.decision import ChampionHistory, decide
from validation.verdict import Status, Verdict

NOW = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = RetrainPolicy(
    cooldown_s=14 * 86_400, max_age_s=31 * 86_400, min_new_labels=2_000, holdout_s=7 * 86_400, cost_usd=0.05
)
HISTORY = ChampionHistory(
    trained_as_of=NOW - 20 * DAY, last_attempt=NOW - 20 * DAY, new_labels=5_000, rollout_in_flight=False
)
FINE = {"drift": Verdict(Status.PASS, "psi 0.01"), "performance": Verdict(Status.PASS, "auc 0.71")}
DRIFTED = {**FINE, "drift": Verdict(Status.FAIL, "psi 0.40 > 0.25")}
WORSE = {**FINE, "performance": Verdict(Status.FAIL, "auc fell by 0.08")}
BOTH = {**DRIFTED, **{"performance": WORSE["performance"]}}
UNCLEAR = {name: Verdict(Status.INCONCLUSIVE, "12 rows are fewer than 500") for name in FINE}
OLD = replace(HISTORY, trained_as_of=NOW - 31 * DAY)


@pytest.mark.parametrize(
    ("verdicts", "history", "retrain", "triggers", "said"),
    [
        (FINE, HISTORY, False, (), "no retrain: drift passed, performance passed, the champion is 20.0 d old"),
        (DRIFTED, HISTORY, True, ("drift",), "psi 0.40 > 0.25"),
        (WORSE, HISTORY, True, ("performance",), "auc fell by 0.08"),
        (FINE, OLD, True, ("age",), "the champion is 31.0 d old, at most 31.0 d"),
        (BOTH, OLD, True, ("drift", "performance", "age"), "5000 new labels"),
        (UNCLEAR, HISTORY, False, (), "drift is INCONCLUSIVE (12 rows are fewer than 500)"),
        (UNCLEAR, OLD, True, ("age",), "performance is INCONCLUSIVE"),
        ({}, HISTORY, False, (), "drift was not checked; performance was not checked"),
        (DRIFTED, replace(HISTORY, rollout_in_flight=True), False, ("drift",), "a rollout is in flight"),
        (
            DRIFTED,
            replace(HISTORY, last_attempt=NOW - 13 * DAY),
            False,
            ("drift",),
            "the last attempt was 13.0 d ago, cooldown 14.0 d, although drift failed (psi 0.40 > 0.25)",
        ),
        (DRIFTED, replace(HISTORY, last_attempt=NOW - 14 * DAY), True, ("drift",), "psi 0.40"),
        (DRIFTED, replace(HISTORY, last_attempt=None), True, ("drift",), "psi 0.40"),
        (DRIFTED, replace(HISTORY, new_labels=1_999), False, ("drift",), "1999 new labels are fewer than 2000"),
        (DRIFTED, replace(HISTORY, new_labels=2_000), True, ("drift",), "2000 new labels"),
        (
            {**FINE, "drift": Verdict(Status.ERROR, "the profile is gone")},
            HISTORY,
            False,
            (),
            "drift is ERROR (the profile is gone)",
        ),
        (
            {**FINE, "validation": Verdict(Status.FAIL, "30 % of rows")},
            HISTORY,
            False,
            (),
            "validation is FAIL (30 % of rows)",
        ),
        (FINE, replace(HISTORY, trained_as_of=None), True, ("no_champion",), "there is no champion"),
        (
            {**DRIFTED, "data": Verdict(Status.FAIL, "30 % of rows")},
            HISTORY,
            False,
            ("drift",),
            "the data fails its contract (30 % of rows): mend its source or the contract, or retrain by hand, although drift",
        ),
        (
            {**FINE, "data": Verdict(Status.ERROR, "no such column")},
            OLD,
            False,
            ("age",),
            "the data could not be judged (no such column): mend",
        ),
        (
            {**DRIFTED, "data": Verdict(Status.INCONCLUSIVE, "no rows")},
            HISTORY,
            True,
            ("drift",),
            "data is INCONCLUSIVE (no rows)",
        ),
        (
            DRIFTED,
            replace(HISTORY, last_unended=NOW - DAY / 24),
            False,
            ("drift",),
            "the attempt of 0.0 d ago did not end, and the next one waits 1.0 d; see its run, or retrain by hand",
        ),
        (DRIFTED, replace(HISTORY, last_unended=NOW - DAY), True, ("drift",), "psi 0.40"),
    ],
)
def test_a_decision_and_its_reason(
    verdicts: dict[str, Verdict], history: ChampionHistory, retrain: bool, triggers: tuple[str, ...], said: str
) -> None:
    decision = decide(verdicts, history, POLICY, NOW)
    assert decision.retrain is retrain
    assert decision.triggers == triggers
    assert said in decision.reason
    assert decision.reason.startswith("retrain: " if retrain else "no retrain: ")


def test_without_a_champion_nothing_stands_in_the_way() -> None:
    history = ChampionHistory(trained_as_of=None, last_attempt=NOW, new_labels=0, rollout_in_flight=True)
    decision = decide({}, history, POLICY, NOW)
    assert decision.retrain
    assert decision.staleness_s is None
    assert not decision.enough_data


def test_nothing_is_learned_from_data_that_fails_even_without_a_champion() -> None:
    history = ChampionHistory(trained_as_of=None, last_attempt=None, new_labels=9_000, rollout_in_flight=False)
    decision = decide({"data": Verdict(Status.FAIL, "30 % of rows")}, history, POLICY, NOW)
    assert not decision.retrain
    assert decision.reason.count("30 % of rows") == 1


def test_the_first_hindrance_is_the_one_told() -> None:
    history = replace(HISTORY, rollout_in_flight=True, last_attempt=NOW, new_labels=0)
    assert decide(DRIFTED, history, POLICY, NOW).reason.startswith("no retrain: a rollout is in flight")
    waiting = decide(DRIFTED, replace(history, rollout_in_flight=False), POLICY, NOW)
    assert waiting.reason.startswith("no retrain: the last attempt was 0.0 d ago")


def test_the_record_has_cost_staleness_and_data() -> None:
    decision = decide(FINE, HISTORY, POLICY, NOW)
    assert decision.cost_usd == 0.05
    assert decision.staleness_s == 20 * 86_400
    assert decision.new_labels == 5_000
    assert decision.enough_data


verdict = st.builds(Verdict, st.sampled_from(Status), st.just("because"))
moment = st.one_of(st.none(), st.integers(0, 100 * 86_400).map(lambda s: NOW - timedelta(seconds=s)))
histories = st.builds(ChampionHistory, moment, moment, st.integers(0, 10_000), st.booleans())


@given(st.dictionaries(st.sampled_from(["data", "drift", "performance", "validation"]), verdict), histories)
def test_a_retrain_always_has_a_trigger_and_never_a_hindrance(
    verdicts: dict[str, Verdict], history: ChampionHistory
) -> None:
    decision = decide(verdicts, history, POLICY, NOW)
    if decision.retrain:
        assert decision.triggers
        assert "data" not in verdicts or verdicts["data"].status < Status.ERROR
    if decision.retrain and history.trained_as_of is not None:
        assert not history.rollout_in_flight
        assert history.new_labels >= 2_000
        assert history.last_attempt is None or NOW - history.last_attempt >= 14 * DAY
    for name in ("drift", "performance"):
        assert (name in decision.triggers) == (name in verdicts and verdicts[name].status is Status.FAIL)


@pytest.mark.parametrize(
    ("verdicts", "history", "summary"),
    [
        (FINE, HISTORY, "no retrain: no check asks for one"),
        (BOTH, OLD, "retrain, because of drift and performance and age"),
        (FINE, replace(HISTORY, trained_as_of=None), "retrain: there is no champion; 5000 labels"),
        (
            DRIFTED,
            replace(HISTORY, last_attempt=NOW - 13 * DAY),
            "no retrain: the last attempt was 13.0 d ago, cooldown 14.0 d",
        ),
        # What it fails stands above it in the alert.
        (
            {**DRIFTED, "data": Verdict(Status.FAIL, "30 % of rows")},
            HISTORY,
            "no retrain: the data fails its contract: mend its source or the contract, or retrain by hand",
        ),
    ],
)
def test_an_alert_tells_the_decision_in_a_few_words(
    verdicts: dict[str, Verdict], history: ChampionHistory, summary: str
) -> None:
    assert decide(verdicts, history, POLICY, NOW).summary == summary


def test_during_the_cooldown_it_is_told_what_became_of_the_candidate() -> None:
    waits = "version 7, which it made, is held"
    history = replace(HISTORY, last_attempt=NOW - 2 * DAY, candidate=waits)
    found = decide(DRIFTED, history, POLICY, NOW)
    assert not found.retrain
    assert f"the last attempt was 2.0 d ago, cooldown 14.0 d; {waits}" in found.summary
    assert waits not in decide(DRIFTED, replace(HISTORY, candidate=waits), POLICY, NOW).reason
