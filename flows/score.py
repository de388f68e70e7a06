"""Scored events -> features as they were known -> the contract -> the champion -> predictions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

import polars as pl
from prefect import flow, get_run_logger

from features.store import historical
from flows.alert import alert_targets, lasting, send_alerts
from flows.context import announce, champion, moment, open_context, predictor
from flows.data_docs import document
from flows.stage import attempt, stage
from perennial.errors import StageError
from perennial.wording import counted
from rollout.ledger import Model
from serving import batch
from validation.alerts import Case, Finding, Severity
from validation.contract import ValidationResult, fingerprint, validate
from validation.quarantine import keep_aside
from validation.verdict import Status, Verdict

SCORING = "scoring"
"""The check of its own under which people are told: the monitor's "data" looks at what was scored, and may well pass."""


@dataclass(frozen=True)
class ScoreSummary:
    """What one scoring run did.

    Attributes:
        scored_rows: predictions made.
        version: by which version; None = there is no champion yet.
        quarantined_rows: rows that failed the contract in a batch that passed, and were kept aside instead.
    """

    scored_rows: int
    version: str | None
    quarantined_rows: int = 0


@stage()
def find_unscored(pipeline: str, as_of: datetime) -> pl.DataFrame:
    """Scored events that have no prediction yet."""
    context = open_context(pipeline)
    return batch.unscored(context.lake, context.spec, as_of)


@stage()
def build_features(pipeline: str, events: pl.DataFrame) -> pl.DataFrame:
    """The events' features as they were known at each."""
    context = open_context(pipeline)
    return historical(context.spec, context.settings, events, {})


@stage()
def validate_batch(pipeline: str, rows: pl.DataFrame) -> ValidationResult:
    """Judge the feature rows by the contract, before they are scored."""
    spec = open_context(pipeline).spec
    return validate(rows, spec.contract, pipeline, batch.feature_columns(spec))


@stage()
def quarantine(pipeline: str, judged: ValidationResult, as_of: datetime) -> int:
    """Keep the rows that failed their contract aside; they are not looked at again until it changes."""
    context = open_context(pipeline)
    return keep_aside(context.lake, judged.quarantined, fingerprint(context.spec.contract), as_of)


@stage()
def predict(pipeline: str, rows: pl.DataFrame, model: Model, as_of: datetime) -> int:
    """Score the rows with the champion and keep the predictions with their features."""
    context = open_context(pipeline)
    predictions = batch.score(context.spec, rows, predictor(model.uri), model.version, as_of)
    return batch.keep_predictions(context.lake, predictions)


@flow(name="score", flow_run_name="score {pipeline}")
async def score(pipeline: str = "flights", as_of: datetime | None = None) -> ScoreSummary:
    """Score the events that came in since the last run, unless they break the pipeline's contract.

    Events older than the label's horizon are left alone: a prediction could no longer serve anybody.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The run's clock in UTC; none = now. Later events are left for a later run.
    """
    now = moment(as_of)
    model = champion(open_context(pipeline))
    if model is None:
        get_run_logger().warning(
            "nothing was scored: %s has no champion yet; run `perennial retrain %s`", pipeline, pipeline
        )
        return ScoreSummary(0, None)
    events = await find_unscored(pipeline, now)
    if not events.height:
        return ScoreSummary(0, model.version)
    judged = await validate_batch(pipeline, await build_features(pipeline, events))
    if judged.verdict.status >= Status.ERROR:
        await stop(pipeline, judged, now)
    aside = await quarantine(pipeline, judged, now)
    if aside or not judged.verdict.passed:
        listed = f" (`perennial contract quarantine {pipeline}` lists them)" if aside else ""
        get_run_logger().warning("%s; quarantined: %s%s", judged.verdict.reason, counted(aside, "row"), listed)
    scored = await predict(pipeline, judged.valid, model, now)
    await attempt("telling that scoring goes on", tell_recovery(pipeline, scored, now))
    return ScoreSummary(scored, model.version, aside)


async def stop(pipeline: str, judged: ValidationResult, now: datetime) -> NoReturn:
    """Tell that a batch breaks its contract, put its bad rows aside, and end the run.

    Raises:
        StageError: always.
    """
    rows = judged.valid.height + judged.quarantined.height
    what = f"none of {counted(rows, 'row')} was scored: {judged.verdict.reason}"
    aside = judged.verdict.status is Status.FAIL and not judged.misfits
    if aside:
        mend = (
            f"The {counted(judged.quarantined.height, 'row')} that failed go to quarantine "
            f"(`perennial contract quarantine {pipeline}` lists them), the next run scores the others"
        )
    else:
        # The rows may be fine: it is the code, or the check, that is not. Nothing is quarantined, and all of them wait.
        mend = "All rows wait: mend the pipeline's features or its contract"
    link = await attempt("the page of Data Docs", document(pipeline, judged, "score", now))
    # Before the quarantine: killed in between, the next run finds the same batch and tells once more. Afterwards it would
    # find good rows only.
    announce("perennial.data.invalid", pipeline, {"as_of": now.isoformat(), **judged.verdict.as_dict(), "report": link})
    case: Case = "wrong" if aside else "columns" if judged.misfits else "broken"
    finding = Finding(SCORING, Severity.CRITICAL, what, link=link, case=case)
    await attempt("the alert", tell(pipeline, (finding,), {SCORING: judged.verdict}, mend, now))
    if aside:
        await quarantine(pipeline, judged, now)
    raise StageError(f"{what}. {mend}" + (f". See {link}" if link else ""))


async def tell(
    pipeline: str, findings: tuple[Finding, ...], verdicts: dict[str, Verdict], decision: str, now: datetime
) -> None:
    """Send what is due."""
    urls = await alert_targets(open_context(pipeline).settings)
    await send_alerts(pipeline, urls, findings, verdicts, decision, now)


async def tell_recovery(pipeline: str, scored: int, now: datetime) -> None:
    """Tell those who know that scoring had stopped that it goes on."""
    if SCORING in await lasting(pipeline):
        verdict = Verdict(Status.PASS, f"{counted(scored, 'row')} met the contract and were scored")
        await tell(pipeline, (), {SCORING: verdict}, "", now)
