from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.labels import LABEL
from flows import retrain
from perennial.settings import Settings
from pipelines.spec import Expectation, PipelineSpec
from serving.predictor import load_predictor
from training.checkpoint import Checkpoint
from training.dataset import TrainingSet
from training.fit import Candidate, fit
from training.gate import compare, evaluate
from validation.calibration import Calibration
from validation.contract import validate
from validation.drift import DriftVerdict, detect_drift
from validation.estimate import check_estimate
from validation.metrics import MIN_DAYS
from validation.performance import measure_performance
from validation.profile import ReferenceProfile, build_reference, profile
from validation.slices import SliceReference
from validation.verdict import Status
from validation.windows import Window

NEVER_SEEN = "\N{SNOWMAN} never seen"


@pytest.fixture(scope="session")
def rows(training_set: TrainingSet) -> pl.DataFrame:
    """Every feature row of the sample."""
    return pl.concat([training_set.train, training_set.holdout])


@pytest.fixture(scope="session")
def halves(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same rows, dealt to two piles: nothing but chance tells them apart."""
    dealt = rows.sample(fraction=1.0, shuffle=True, seed=1)
    return dealt.head(rows.height // 2), dealt.tail(rows.height // 2)


@pytest.fixture(scope="session")
def small(spec: PipelineSpec) -> PipelineSpec:
    """The pipeline with as much model as a few days can bear."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"trees": 60, "leaves": 7, "epochs": 3})})


@pytest.fixture(scope="session")
def candidate(small: PipelineSpec, training_set: TrainingSet) -> Candidate:
    return fit(training_set, small.model, small.model.seed, None)


def measured(candidate: Candidate, training_set: TrainingSet) -> Any:
    holdout = training_set.holdout
    return evaluate(candidate.predict(holdout), holdout.get_column(LABEL).to_numpy())


def drift_of(current: pl.DataFrame, reference: ReferenceProfile, spec: PipelineSpec) -> DriftVerdict:
    """By rows: piles dealt at random have no days to tell apart."""
    return detect_drift(reference, [Window.of_rows(profile(current, reference))], spec.drift)


def test_nothing_but_chance_is_no_drift(spec: PipelineSpec, halves: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    reference = build_reference(halves[0], spec.features, spec.drift, extra=())
    found = drift_of(halves[1], reference, spec)
    # A feature that never has a value here can be told neither way; every other one must pass.
    void = {f.feature for f in found.features if halves[1][f.feature].null_count() == halves[1].height}
    told = {f.feature: f.status for f in found.features if f.feature not in void}
    assert set(told.values()) == {Status.PASS}, found.verdict.reason
    if not void:
        assert found.verdict.status is Status.PASS, found.verdict.reason


def test_a_shift_of_any_one_feature_is_drift(spec: PipelineSpec, halves: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    reference = build_reference(halves[0], spec.features, spec.drift, extra=())
    for feature in spec.features:
        column = halves[1][feature.name]
        if feature.kind == "categorical":
            shifted = halves[1].with_columns(pl.lit(NEVER_SEEN).alias(feature.name))
        else:
            largest = max((abs(v) for v in column.drop_nulls().cast(pl.Float64)), default=0.0)
            shifted = halves[1].with_columns((pl.lit(10.0 * largest + 1.0)).alias(feature.name))
        found = drift_of(shifted, reference, spec)
        assert found.verdict.status is Status.FAIL, feature.name
        assert [f.feature for f in found.drifted] == [feature.name]


def test_too_few_rows_are_inconclusive_in_every_check(
    spec: PipelineSpec, rows: pl.DataFrame, training_set: TrainingSet, candidate: Candidate
) -> None:
    reference = build_reference(rows, spec.features, spec.drift, extra=())
    scored = rows.with_columns(score=pl.lit(0.5))
    nothing = replace(training_set, holdout=training_set.holdout.clear())
    first = measured(candidate, training_set)
    for verdict in (
        drift_of(rows.clear(), reference, spec).verdict,
        drift_of(rows.head(spec.drift.min_rows - 1), reference, spec).verdict,
        validate(rows.clear(), spec.contract, "rows").verdict,
        measure_performance(scored.clear(), 0.7, spec.performance).verdict,
        measure_performance(scored.head(spec.performance.min_rows - 1), 0.7, spec.performance).verdict,
        compare(first, measured(candidate, nothing), spec.gate).verdict,
        compare(None, measured(candidate, nothing), spec.gate).verdict,
    ):
        assert verdict.status is Status.INCONCLUSIVE, verdict


def test_real_rows_meet_the_contract(spec: PipelineSpec, rows: pl.DataFrame) -> None:
    assert spec.contract, "a pipeline without a contract lets anything pass"
    result = validate(rows, spec.contract, spec.name)
    assert result.verdict.status is Status.PASS, result.verdict.reason
    assert result.valid.height > 0.98 * rows.height


def broken(rows: pl.DataFrame, expectation: Expectation) -> pl.DataFrame:
    """Rows of which none meets the expectation."""
    column, dtype = expectation.column, rows.schema[expectation.column]
    match expectation.kind:
        case "not_null":
            value = pl.lit(None, dtype=dtype)
        case "unique":
            value = pl.lit(rows[column].drop_nulls()[0], dtype=dtype)
        case "between":
            outside = expectation.maximum + 1 if expectation.maximum is not None else (expectation.minimum or 0) - 1
            value = pl.lit(outside, dtype=dtype)
        case _:
            value = pl.lit(NEVER_SEEN, dtype=dtype)
    return rows.with_columns(value.alias(column))


def test_rows_that_break_a_line_of_the_contract_are_stopped(spec: PipelineSpec, rows: pl.DataFrame) -> None:
    some = rows.head(200)
    for expectation in spec.contract:
        result = validate(broken(some, expectation), (expectation,), spec.name)
        assert result.verdict.status is Status.FAIL, expectation
        assert expectation.column in result.verdict.reason
        assert result.valid.height == 0
    missing = validate(some.drop(spec.contract[0].column), spec.contract, spec.name)
    assert missing.verdict.status is Status.FAIL


def test_a_model_can_learn_the_label(spec: PipelineSpec, training_set: TrainingSet, candidate: Candidate) -> None:
    result = compare(None, measured(candidate, training_set), spec.gate)
    assert result.verdict.status is Status.PASS, result.verdict.reason


def test_a_worse_candidate_is_stopped_and_an_equal_one_is_not(
    small: PipelineSpec, training_set: TrainingSet, candidate: Candidate
) -> None:
    flipped = replace(training_set, train=training_set.train.with_columns(~pl.col(LABEL)))
    worse = fit(flipped, small.model, small.model.seed, None)
    champion = measured(candidate, training_set)
    stopped = compare(champion, measured(worse, training_set), small.gate)
    assert stopped.verdict.status is Status.FAIL, stopped.verdict.reason
    assert compare(champion, champion, small.gate).verdict.status is Status.PASS


class Killed(BaseException):
    """What nothing catches, like a kill."""


def test_a_resumed_fit_equals_an_uninterrupted_one(
    small: PipelineSpec,
    training_set: TrainingSet,
    candidate: Candidate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = Checkpoint.save

    def save_and_die(self: Checkpoint, progress: Any) -> None:
        save(self, progress)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            fit(training_set, small.model, small.model.seed, tmp_path)
    resumed = fit(training_set, small.model, small.model.seed, tmp_path)
    np.testing.assert_array_equal(resumed.predict(training_set.holdout), candidate.predict(training_set.holdout))


def test_a_bundle_holds_what_monitoring_needs_of_slices_and_calibration(
    small: PipelineSpec,
    training_set: TrainingSet,
    candidate: Candidate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    firsts = {f.kind: f.name for f in reversed(small.features)}
    policy = small.performance.model_copy(update={"slices": tuple(firsts.values()), "min_rows": 500})
    context = SimpleNamespace(spec=small.model_copy(update={"performance": policy}), settings=Settings(home=tmp_path))
    monkeypatch.setattr(retrain, "open_context", lambda _: context)
    bundle = asyncio.run(retrain.write_bundle.fn(small.name, training_set, candidate))
    described = json.loads((bundle / "bundle.json").read_text())
    references = [SliceReference.from_dict(one) for one in described["holdout"]["slices"]]
    assert {r.feature for r in references} == set(firsts.values())
    calibration = Calibration.from_dict(described["calibration"])
    # Held to itself, the model is as good as expected, on every slice and by the estimate.
    own = training_set.holdout.with_columns(score=load_predictor(str(bundle)).predict(training_set.holdout))
    found = measure_performance(own, described["holdout"]["auc"], policy, references)
    assert found.verdict.status is Status.PASS, found.verdict.reason
    assert found.auc == pytest.approx(described["holdout"]["auc"], abs=1e-6)
    for feature in firsts.values():
        assert sum(s.rows for s in found.slices if s.feature == feature) == own.height
    assert {s.status for s in found.slices} <= {Status.PASS, Status.INCONCLUSIVE}
    # A holdout of few days cannot tell how much days differ, and so nothing about its slices.
    days_enough = own.get_column("event_timestamp").dt.date().n_unique() >= MIN_DAYS
    assert any(s.status is Status.PASS for s in found.slices) == days_enough
    assert check_estimate(own, calibration, policy).verdict.status is Status.PASS
