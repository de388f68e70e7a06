from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from pipelines.spec import GatePolicy, Tolerance
from training.gate import compare, evaluate, render_markdown
from validation.verdict import Status

POLICY = GatePolicy(
    tolerances=(
        Tolerance(metric="auc", direction="higher", absolute=0.002),
        Tolerance(metric="log_loss", direction="lower", absolute=0.005, relative=0.1),
    ),
    min_rows=100,
    min_auc=0.55,
)
CHAMPION = {"auc": 0.72, "log_loss": 0.5, "brier": 0.15, "rows": 1_000.0, "positive_rate": 0.2}

# Few distinct scores, so that ties are common.
scored = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(scored)
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 20 for score, _ in pairs])
    labels = np.array([label for _, label in pairs])
    measured = evaluate(scores, labels)
    assert measured["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert measured["brier"] == pytest.approx(brier_score_loss(labels, scores), abs=1e-12)
    inside = np.clip(scores, 1e-15, 1 - 1e-15)
    assert measured["log_loss"] == pytest.approx(log_loss(labels, inside), rel=1e-9)
    assert measured["rows"] == len(pairs)
    assert measured["positive_rate"] == labels.mean()


def test_auc_counts_a_tie_as_half() -> None:
    # Pairs (positive, negative): 0.5 > 0.2, 0.5 = 0.5, 0.9 > 0.2, 0.9 > 0.5: 3.5 of 4.
    assert evaluate(np.array([0.5, 0.9, 0.2, 0.5]), np.array([True, True, False, False]))["auc"] == 3.5 / 4


def test_what_is_undefined_is_nan() -> None:
    nothing = evaluate(np.array([]), np.array([], dtype=bool))
    assert nothing["rows"] == 0
    assert all(math.isnan(nothing[name]) for name in ("auc", "log_loss", "brier", "positive_rate"))
    one_kind = evaluate(np.array([0.2, 0.4]), np.array([True, True]))
    assert math.isnan(one_kind["auc"])
    assert one_kind["log_loss"] == pytest.approx(-(math.log(0.2) + math.log(0.4)) / 2)
    unscored = evaluate(np.array([0.2, math.nan]), np.array([True, False]))
    assert all(math.isnan(unscored[name]) for name in ("auc", "log_loss", "brier"))


def test_scores_and_labels_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 scores came with 1 labels"):
        evaluate(np.array([0.1, 0.2]), np.array([True]))


@pytest.mark.parametrize(
    ("auc", "loss", "status"),
    [
        (0.75, 0.45, Status.PASS),
        (0.72, 0.50, Status.PASS),
        (0.7185, 0.5, Status.PASS),  # worse by 0.0015, allowed 0.002
        (0.7175, 0.5, Status.FAIL),  # worse by 0.0025
        (0.75, 0.54, Status.PASS),  # worse by 0.04, allowed 0.1 * 0.5 = 0.05, more than the absolute 0.005
        (0.75, 0.56, Status.FAIL),
    ],
)
def test_a_candidate_may_be_worse_by_the_tolerance_only(auc: float, loss: float, status: Status) -> None:
    result = compare(CHAMPION, {**CHAMPION, "auc": auc, "log_loss": loss}, POLICY)
    assert result.verdict.status is status
    assert [row.metric for row in result.rows] == ["auc", "log_loss"]
    assert result.rows[0].regression == pytest.approx(0.72 - auc)
    assert result.rows[1].regression == pytest.approx(loss - 0.5)
    assert result.rows[1].tolerance == pytest.approx(0.05)


def test_the_reason_has_the_numbers_that_decided() -> None:
    result = compare(CHAMPION, {**CHAMPION, "auc": 0.70}, POLICY)
    assert result.verdict.reason == "auc 0.7200 -> 0.7000: worse by 0.0200 > tolerance 0.0020"
    assert result.verdict.measurements["auc_regression"] == pytest.approx(0.02)


@pytest.mark.parametrize("side", ["champion", "candidate"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("metric", ["auc", "log_loss", "rows"])
def test_what_was_not_measured_never_passes(side: str, value: float | None, metric: str) -> None:
    broken = {k: v for k, v in {**CHAMPION, metric: value}.items() if v is not None}
    sides = {"champion": CHAMPION, "candidate": CHAMPION, side: broken}
    result = compare(sides["champion"], sides["candidate"], POLICY)
    assert result.verdict.status is Status.INCONCLUSIVE


def test_a_failed_metric_outweighs_one_that_was_not_measured() -> None:
    assert compare(CHAMPION, {**CHAMPION, "auc": 0.6, "log_loss": math.nan}, POLICY).verdict.status is Status.FAIL


def test_too_few_rows_are_inconclusive() -> None:
    few = {**CHAMPION, "rows": 99.0}
    result = compare(few, few, POLICY)
    assert result.verdict.status is Status.INCONCLUSIVE
    assert result.verdict.reason == "99 holdout rows are fewer than 100"


def test_models_measured_on_different_rows_are_not_compared() -> None:
    result = compare({**CHAMPION, "rows": 900.0}, CHAMPION, POLICY)
    assert result.verdict.status is Status.INCONCLUSIVE
    assert "champion on 900, candidate on 1000" in result.verdict.reason


def test_a_gate_without_tolerances_is_inconclusive() -> None:
    assert compare(CHAMPION, CHAMPION, GatePolicy(tolerances=(), min_rows=1)).verdict.status is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    ("auc", "rows", "status"),
    [
        (0.56, 1_000.0, Status.PASS),
        (0.55, 1_000.0, Status.PASS),
        (0.54, 1_000.0, Status.FAIL),
        (math.nan, 1_000.0, Status.INCONCLUSIVE),
        (0.56, 99.0, Status.INCONCLUSIVE),
    ],
)
def test_the_first_champion_must_reach_the_floor(auc: float, rows: float, status: Status) -> None:
    assert compare(None, {**CHAMPION, "auc": auc, "rows": rows}, POLICY).verdict.status is status


metrics = st.fixed_dictionaries(
    {
        "auc": st.one_of(st.floats(0, 1), st.just(math.nan)),
        "log_loss": st.one_of(st.floats(0, 5), st.just(math.nan)),
        "rows": st.sampled_from([50.0, 1_000.0]),
    }
)


@given(metrics, metrics)
def test_a_pass_means_that_every_metric_is_known_and_within_its_tolerance(
    champion: dict[str, float], candidate: dict[str, float]
) -> None:
    if compare(champion, candidate, POLICY).verdict.passed:
        assert champion["auc"] - candidate["auc"] <= 0.002
        assert candidate["log_loss"] - champion["log_loss"] <= max(0.005, 0.1 * champion["log_loss"])
        assert champion["rows"] == candidate["rows"] == 1_000.0


@given(metrics)
def test_a_champion_that_is_measured_never_fails_against_itself(champion: dict[str, float]) -> None:
    assert compare(champion, champion, POLICY).verdict.status is not Status.FAIL


def test_the_table_has_a_line_a_metric() -> None:
    text = render_markdown(compare(CHAMPION, {**CHAMPION, "auc": 0.70, "log_loss": math.nan}, POLICY))
    assert text.startswith("**FAIL**: auc 0.7200 -> 0.7000")
    assert "| auc | 0.7200 | 0.7000 | +0.0200 | 0.0020 | FAIL |" in text
    assert "| log_loss | 0.5000 | - | - | - | INCONCLUSIVE |" in text
