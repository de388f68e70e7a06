"""Predictions -> contract -> drift -> performance -> does a retrain pay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter

import polars as pl
from prefect import flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

from features.labels import LABEL, PREDICTIONS, Outcomes, outcomes
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from features.store import ENTITY_KEY
from flows.alert import AlertSummary, alert_targets, send_alerts
from flows.context import announce, champion, moment, open_context
from flows.data_docs import document
from flows.drift import DriftCheck, check_drift, some_rows
from flows.report import record_metrics, tell_labels, write_report
from flows.stage import attempt, judged, stage
from flows.window import no_predictions, validate_window
from perennial.errors import StageError, UsageError
from pipelines.spec import PipelineSpec
from rollout.ledger import Model
from serving.batch import MODEL_VERSION, SCORE
from serving.predictor import BUNDLE_FILE, read_bundle_file
from training.decision import RetrainDecision, decide, undecided
from training.history import champion_history
from validation.alerts import Finding, findings_of, unjudged
from validation.calibration import Calibration
from validation.drift import DriftVerdict
from validation.estimate import (
    EstimateCheck,
    PerformanceEstimate,
    check_estimate,
    estimate_performance,
    with_estimate,
)
from validation.log import KeptReport, last_report, last_statuses, record_verdicts, unjudged_since
from validation.metrics import DayScatter
from validation.performance import PerformanceVerdict, measure_performance
from validation.performance_table import performance_markdown
from validation.report import MAX_ROWS, drift_table_markdown, escaped, narrow_table
from validation.slices import SliceReference
from validation.verdict import Status, Verdict

MEASURED = (ENTITY_KEY, EVENT_TIMESTAMP, SCORE, MODEL_VERSION, CREATED_TIMESTAMP)
EVENTS = {
    "data": "perennial.data.invalid",
    "drift": "perennial.drift.detected",
    "performance": "perennial.performance.degraded",
}


@dataclass(frozen=True)
class MonitorSummary:
    """What one monitoring run found and decided.

    Attributes:
        verdicts: of the checks "data", "drift" and "performance".
        decision: whether a retrain pays.
        alerts: checks that FAIL or ended in an ERROR, which is news: they ended better the last time.
        labels: what became of the labels of the performance window's predictions, of every version: `labelled_rows`,
            `waiting_rows`, `expired_rows`, `late_labels`.
        report: address of the drift report; None when nothing has moved, or none could be written.
        told: what people were told, in a sentence.
    """

    verdicts: dict[str, Verdict]
    decision: RetrainDecision
    alerts: tuple[str, ...]
    labels: Mapping[str, int]
    report: str | None = None
    told: str = ""


@dataclass(frozen=True)
class Measured:
    """How good the champion was, and how many labels that is known from.

    Attributes:
        performance: measured on its predictions whose label has come.
        labels: as `MonitorSummary.labels`.
        estimate: how good it probably is on those that wait for theirs.
        check: how good the estimate would have been where the label has come.
    """

    performance: PerformanceVerdict
    labels: Mapping[str, int]
    estimate: PerformanceEstimate | None = None
    check: EstimateCheck | None = None


@stage()
def find_drift(pipeline: str, model: Model, until: datetime) -> DriftCheck:
    """Compare the profiles of the last windows with the champion's reference."""
    context = open_context(pipeline)
    return check_drift(context, model, until, context.spec.drift, moment(None))


@stage()
def measure(pipeline: str, as_of: datetime, model: Model) -> Measured:
    """Compare the champion's predictions whose outcome is known with it, and count the labels of all predictions."""
    context = open_context(pipeline)
    policy = context.spec.performance
    since = as_of - timedelta(seconds=policy.window_s)
    bundle = json.loads(read_bundle_file(model.uri, BUNDLE_FILE))
    at_gate = bundle.get("holdout", {})
    expected, described = at_gate.get("auc"), bundle.get("calibration")
    slices = [SliceReference.from_dict(one) for one in at_gate.get("slices", ())]
    if context.lake.exists(PREDICTIONS):
        dividing = sorted({s.feature for s in slices} & context.lake.columns(PREDICTIONS) - set(MEASURED))
        found = outcomes(context.lake, context.spec, since, as_of, (*MEASURED, *dividing))
    else:
        nothing = no_predictions(context.spec).with_columns(pl.lit(None, dtype=pl.Boolean).alias(LABEL))
        found = Outcomes(nothing, labelled_rows=0, waiting_rows=0, expired_rows=0, late_labels=0)
    # Part of the window may have been scored by an earlier champion, which this one's AUC at its gate does not describe.
    own = found.frame.filter(pl.col(MODEL_VERSION) == model.version)
    scatter = DayScatter(**at_gate["auc_day_scatter"]) if at_gate.get("auc_day_scatter") else None
    performance = measure_performance(own, expected, policy, slices, scatter)
    calibration = Calibration.from_dict(described) if described else None
    may_come = pl.col(EVENT_TIMESTAMP) + timedelta(seconds=context.spec.label.horizon_s) >= as_of
    estimate = estimate_performance(own.filter(pl.col(LABEL).is_null() & may_come), calibration, expected, policy)
    check = check_estimate(own, calibration, policy)
    return Measured(with_estimate(performance, estimate, check), found.counts, estimate, check)


@stage()
def decide_retrain(pipeline: str, verdicts: dict[str, Verdict], as_of: datetime) -> RetrainDecision:
    """Does a retrain pay now."""
    context = open_context(pipeline)
    history = champion_history(context.lake, context.ledger, context.spec, as_of)
    return decide(verdicts, history, context.spec.retrain, as_of)


@stage()
def find_news(pipeline: str, verdicts: dict[str, Verdict]) -> tuple[str, ...]:
    """Which checks FAIL or ended in an ERROR, and ended better the last time."""
    before = last_statuses(open_context(pipeline).lake)
    return tuple(
        check
        for check, verdict in verdicts.items()
        if verdict.status > max(Status[before.get(check, Status.PASS.name)], Status.INCONCLUSIVE)
    )


@stage()
def find_silent(pipeline: str, verdicts: dict[str, Verdict], as_of: datetime) -> tuple[Finding, ...]:
    """Checks that have had too little to go on for longer than their windows are."""
    context = open_context(pipeline)
    spec = context.spec
    windows_s = dict.fromkeys(("data", "drift"), spec.drift.watched_s)
    windows_s["performance"] = spec.performance.window_s + spec.label.horizon_s
    patience = {check: timedelta(seconds=seconds) for check, seconds in windows_s.items()}
    return unjudged(verdicts, unjudged_since(context.lake), patience, as_of)


@stage()
def keep_verdicts(pipeline: str, verdicts: dict[str, Verdict], report: KeptReport | None, as_of: datetime) -> None:
    """Keep what was found; from then on it is no news."""
    record_verdicts(open_context(pipeline).lake, verdicts, as_of, moment(None), report)


@stage()
def read_last_report(pipeline: str) -> KeptReport | None:
    """The report that the run before drew, if it found something moved."""
    return last_report(open_context(pipeline).lake)


@stage()
def read_rows(pipeline: str, model: Model, check: DriftCheck) -> pl.DataFrame:
    """Rows of the newest window, for pictures."""
    return some_rows(open_context(pipeline), model, check, MAX_ROWS)


@flow(name="monitor", flow_run_name="monitor {pipeline}")
async def monitor(pipeline: str = "flights", as_of: datetime | None = None) -> MonitorSummary:
    """Is the data fit, has it moved, is the model still good, does a retrain pay, and who has to know.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The run's clock in UTC; none = now. The windows end with the last whole hour before it.

    Raises:
        UsageError: there is no champion.
        StageError: a check could not run. It is raised last, when people know and what the others found is kept.
    """
    context, now = open_context(pipeline), moment(as_of)
    model = champion(context)
    if model is None:
        raise UsageError(f"{pipeline} has no champion to monitor yet; run `perennial retrain {pipeline}` first")
    since = now - timedelta(seconds=context.spec.drift.watched_s)
    batch, data = await judged(validate_window(pipeline, since, now), attrgetter("verdict"))
    check, moved = await judged(find_drift(pipeline, model, now), attrgetter("drift.verdict"))
    measured, performance = await judged(measure(pipeline, now, model), attrgetter("performance.verdict"))
    verdicts = {"data": data, "drift": moved, "performance": performance}
    drift = check.drift if check else DriftVerdict(moved, ())
    # What kept a check from running may keep the labels from being counted.
    decided = await attempt("deciding whether a retrain pays", decide_retrain(pipeline, verdicts, now))
    decision = decided or undecided(context.spec.retrain)
    news = await find_news(pipeline, verdicts)
    report = docs = None
    if check:
        report = await attempt("the drift report", show_drift(pipeline, context.spec, check, model, now))
    if batch and not batch.verdict.passed:
        docs = await attempt("the page of Data Docs", document(pipeline, batch, "monitor", now))
    links = {"drift": report.link if report else None, "data": docs}
    metrics = record_metrics(pipeline, drift, verdicts, model, now)
    for warning in await attempt("keeping the metrics", metrics) or ():
        get_run_logger().warning(warning)
    await attempt("showing it in Prefect", publish(pipeline, verdicts, check, measured, decision, links))
    for name in news:
        get_run_logger().warning("%s: %s", EVENTS[name], verdicts[name].reason)
        about = {**verdicts[name].as_dict(), "decision": decision.reason, "report": links.get(name)}
        announce(EVENTS[name], pipeline, {"as_of": now.isoformat(), **about})
    if decision.retrain:
        announce("perennial.retrain.needed", pipeline, {"as_of": now.isoformat(), "reason": decision.reason})
    known = {name: link for name, link in links.items() if link}
    silent = await attempt("looking for checks that stay silent", find_silent(pipeline, verdicts, now))
    findings = (*findings_of(verdicts, drift, began(drift), known), *(silent or ()))
    told = await attempt("telling people", tell(pipeline, findings, verdicts, decision.summary, now))
    # Last: killed before, the next run finds the same news once more. An alert may come twice, but is never left out.
    await keep_verdicts(pipeline, verdicts, report, now)
    if batch is None or check is None or measured is None or decided is None:
        raise StageError(what_failed(verdicts, decision))
    sent = "; ".join((told.told, *told.warnings)) if told else "they could not be sent"
    return MonitorSummary(verdicts, decision, news, measured.labels, report.link if report else None, sent)


def what_failed(verdicts: Mapping[str, Verdict], decision: RetrainDecision) -> str:
    """Why a run ends as failed, in a sentence."""
    broken = [f"{name} ({v.reason})" for name, v in verdicts.items() if v.status is Status.ERROR]
    checks = f"could not be checked: {'; '.join(broken)}; " if broken else ""
    return f"{checks}{decision.summary}; what else was found is told and kept"


async def tell(
    pipeline: str, findings: Sequence[Finding], verdicts: Mapping[str, Verdict], decision: str, now: datetime
) -> AlertSummary:
    """Send what is due."""
    urls = await alert_targets(open_context(pipeline).settings)
    return await send_alerts(pipeline, urls, findings, verdicts, decision, now)


async def show_drift(
    pipeline: str, spec: PipelineSpec, check: DriftCheck, model: Model, now: datetime
) -> KeptReport | None:
    """The report of what has moved; None if nothing has.

    The last one will do while it shows the same champion and all of the columns, is no older than the alerts' cooldown,
    and is where everybody can see it.
    """
    moved = frozenset(f.feature for f in (*check.drift.drifted, *check.drift.watched))
    if not moved:
        return None
    before = await read_last_report(pipeline)
    if before and moved <= before.moved and before.version == model.version and not before.link.startswith("file:"):
        age_s = (now - before.drawn).total_seconds()
        if 0 <= age_s < spec.alerts.cooldown_s:
            return before
    rows = await read_rows(pipeline, model, check)
    links = await write_report(pipeline, check.drift, rows, model, now)
    if links.note:
        get_run_logger().warning(links.note)
    return KeptReport(moved, links.link, model.version, now) if links.link else None


def began(drift: DriftVerdict) -> dict[str, datetime]:
    """When what has moved began to, as far as the windows reach back."""
    moved = drift.drifted or drift.watched
    times = [f.since for f in moved if f.since]
    return {"drift": min(times)} if times else {}


async def publish(
    pipeline: str,
    verdicts: Mapping[str, Verdict],
    check: DriftCheck | None,
    measured: Measured | None,
    decision: RetrainDecision,
    links: Mapping[str, str | None],
) -> None:
    """What a person sees in the Prefect UI: a summary, and the columns and slices, worst first."""
    labels = "They could not be counted."
    if measured:
        labels = tell_labels(measured.labels, open_context(pipeline).spec.label.horizon_s)
    get_run_logger().info(labels)
    when = f", {check.since:%Y-%m-%d %H:%M} to {check.until:%Y-%m-%d %H:%M} UTC" if check else ""
    lines = [f"# {pipeline}{when}", ""]
    lines += [
        f"- **{name}: {verdict.status.name}**. {escaped(verdict.reason)}"
        + (f" ([look]({links[name]}))" if links.get(name) else "")
        for name, verdict in verdicts.items()
    ]
    lines += ["", f"**Decision.** {escaped(decision.reason)}", "", f"**Labels.** {labels}", ""]
    if check:
        lines += [drift_table_markdown(check.drift), ""]
    if measured:
        lines += [performance_markdown(measured.performance, measured.estimate, measured.check)]
    key = pipeline.replace("_", "-")
    await acreate_markdown_artifact(
        "\n".join(lines), key=f"monitor-{key}", description=f"What monitoring found in {pipeline}"
    )
    if check and (table := narrow_table(check.drift)):
        await acreate_table_artifact(table, key=f"drift-{key}", description=f"How far each column of {pipeline} moved")
