"""What monitoring shows and keeps over time: the drift report, metrics in MLflow, gauges in Prometheus.

Nothing here may end a monitoring run: what cannot be shown or kept is told in a sentence.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from flows.context import open_context
from flows.stage import stage
from perennial.errors import PerennialError, StateError, told
from rollout.ledger import Model
from serving.predictor import read_bundle_file
from training.checkpoint import write_atomically
from training.monitoring_run import attach, log_monitoring, metric_name, open_monitoring_run
from validation.drift import DriftVerdict
from validation.drift_page import EVIDENTLY_FILE, PAGE_FILE, PageFacts, drift_page, plotted
from validation.gauges import MonitorState, report_monitoring
from validation.profile import SCORE
from validation.reference_sample import REFERENCE_SAMPLE_FILE, read_reference_sample
from validation.report import write_drift_report
from validation.verdict import Verdict

LOG = logging.getLogger(__name__)
KEPT_REPORTS = 50
FOLDER = "%Y%m%dT%H%M%SZ"
FOLDER_PATTERN = re.compile(r"\d{8}T\d{6}Z")
PERFORMANCE_METRICS = ("auc", "auc_low", "auc_high", "log_loss", "brier", "positive_rate", "labelled_rows")


@dataclass(frozen=True)
class ReportLinks:
    """Where a drift report is.

    Attributes:
        path: the local page; None when it could not be written.
        mlflow: address of the report in MLflow's pages; None when it is not there.
        note: a sentence on what is missing; empty when nothing is.
    """

    path: Path | None
    mlflow: str | None
    note: str = ""

    @property
    def link(self) -> str | None:
        """What an alert links to: MLflow's page, or else the local one."""
        return self.mlflow or (self.path.as_uri() if self.path else None)


@dataclass(frozen=True)
class InMlflow:
    """Where a folder of pages is in MLflow.

    Attributes:
        link: address of the folder in MLflow's pages; None when it is not there.
        why_not: a sentence; empty when it is there.
    """

    link: str | None
    why_not: str = ""


def put_into_mlflow(tracking_uri: str, pipeline: str, version: str, folder: Path, path: str) -> InMlflow:
    """Attach the files of a folder to the champion's monitoring run. Never raises: what is shown here is on disk already.

    Args:
        tracking_uri: http(s) address of the MLflow server.
        pipeline: name of the pipeline.
        version: the champion's.
        folder: files, and no folders among them.
        path: where below the run's artifacts.
    """
    try:
        run = open_monitoring_run(tracking_uri, pipeline, version)
        return InMlflow(attach(tracking_uri, run, folder, path))
    except PerennialError as error:
        return InMlflow(None, _ended(error.what))
    except Exception as error:  # of whatever library the artifact store is reached by
        LOG.warning("%s could not be attached", path, exc_info=True)
        return InMlflow(None, f"it ended in {type(error).__name__}: {_ended(str(error)[:200])}")


@stage()
def write_report(
    pipeline: str,
    drift: DriftVerdict,
    rows: pl.DataFrame,
    model: Model,
    as_of: datetime,
) -> ReportLinks:
    """Draw the report below PERENNIAL_HOME/reports/PIPELINE and attach it to the champion's monitoring run in MLflow.

    A report of the same moment takes the place of the one before.

    Args:
        pipeline: name of the pipeline.
        drift: what drift detection found.
        rows: the window's rows, with features and score.
        model: the champion.
        as_of: the run's clock, UTC.
    """
    settings = open_context(pipeline).settings
    reports = settings.root / "reports" / pipeline
    folder = reports / as_of.strftime(FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = _draw_evidently(drift, rows, model, folder / EVIDENTLY_FILE)
        notes = (missing,) if missing else ()
        facts = PageFacts(pipeline, model.version, as_of, not missing, notes)
        # Last: a folder with this page is whole.
        write_atomically(folder / PAGE_FILE, drift_page(drift, facts).encode())
        forget_old_reports(reports, keep=folder)
    except (OSError, StateError) as error:
        why = error.what if isinstance(error, StateError) else told(error)
        return ReportLinks(None, None, f"there is no drift report: {why}")
    path = f"drift/{folder.name}"
    shared = put_into_mlflow(settings.mlflow_tracking_uri, pipeline, model.version, folder, path)
    if shared.link is None:
        notes = (*notes, f"The report is not in MLflow: {shared.why_not}")
        return ReportLinks(folder / PAGE_FILE, None, " ".join(notes))
    return ReportLinks(folder / PAGE_FILE, f"{shared.link}/{PAGE_FILE}", " ".join(notes))


def _draw_evidently(drift: DriftVerdict, rows: pl.DataFrame, model: Model, path: Path) -> str:
    """Write Evidently's page; why there is none, in a sentence, or nothing when there is one."""
    path.unlink(missing_ok=True)
    if not drift.drifted and not drift.watched:
        return "Nothing moved, so Evidently drew nothing."
    try:
        sample = read_reference_sample(read_bundle_file(model.uri, REFERENCE_SAMPLE_FILE))
    except PerennialError as error:
        return (
            f"Evidently's page is not here, since version {model.version} came without rows of its reference "
            f"({error.what.rstrip('.')}); the next retrain keeps some."
        )
    first = [*(f.feature for f in plotted(drift)), SCORE]
    try:
        write_drift_report(sample, rows, path, columns=[*first, *(f.feature for f in drift.features)], back=PAGE_FILE)
    except PerennialError as error:
        return f"Evidently's page is not here: {_ended(error.what)}"
    except Exception as error:  # whatever a drawing library raises, what moved must be told
        LOG.warning("Evidently could not draw its page", exc_info=True)
        return f"Evidently's page is not here: it ended in {type(error).__name__}: {_ended(str(error)[:200])}"
    return ""


def _ended(sentence: str) -> str:
    return f"{sentence.rstrip('. ')}."


def forget_old_reports(reports: Path, keep: Path) -> None:
    """Remove all but the newest reports of a pipeline, and the one just written; nothing that is not a report."""
    found = sorted((f for f in reports.iterdir() if FOLDER_PATTERN.fullmatch(f.name)), reverse=True)
    for folder in found[KEPT_REPORTS:]:
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)  # another monitor may be at the same


def tell_labels(counts: Mapping[str, int], horizon_s: int) -> str:
    """What became of the labels, in a sentence; `counts` as `MonitorSummary.labels`."""
    told = (
        f"{counts['labelled_rows']} predictions have their label, {counts['waiting_rows']} wait for it, of "
        f"{counts['expired_rows']} none came within {timedelta(seconds=horizon_s)}"
    )
    if not counts["late_labels"]:
        return told
    return f"{told}; {counts['late_labels']} labels came later than that and do not count: is the horizon too short?"


@stage()
def record_metrics(
    pipeline: str, drift: DriftVerdict, verdicts: dict[str, Verdict], model: Model, as_of: datetime
) -> tuple[str, ...]:
    """Keep what a run found: a point in each of MLflow's charts, and Prometheus' gauges.

    Args:
        pipeline: name of the pipeline.
        drift: what drift detection found.
        verdicts: of the checks "data", "drift" and "performance".
        model: the champion.
        as_of: the run's clock, UTC.

    Returns:
        What went wrong, in sentences.
    """
    settings = open_context(pipeline).settings
    found = verdicts["performance"].measurements if "performance" in verdicts else {}
    performance = {name: found[name] for name in PERFORMANCE_METRICS if name in found}
    wrong = report_monitoring(settings, MonitorState(pipeline, as_of, drift, verdicts, performance))
    try:
        metrics = monitoring_metrics(drift, verdicts, performance)
        log_monitoring(settings.mlflow_tracking_uri, pipeline, model.version, as_of, metrics)
    except PerennialError as error:
        return (*wrong, f"metrics of the run are not in MLflow: {error.what}")
    return wrong


def monitoring_metrics(
    drift: DriftVerdict, verdicts: Mapping[str, Verdict], performance: Mapping[str, float]
) -> dict[str, float]:
    """What MLflow charts of one run, by name; what is not known is left out."""
    told_of = {metric_name("psi", f.feature): f.psi for f in drift.features if f.feature != SCORE}
    told_of |= {metric_name("missing_rate", f.feature): f.missing_rate_current for f in drift.features}
    told_of |= {
        "score_psi": next((f.psi for f in drift.features if f.feature == SCORE), math.nan),
        "drifted_features": float(len(drift.drifted)),
        "watched_features": float(len(drift.watched)),
        **performance,
        **{f"status/{check}": float(verdict.status) for check, verdict in verdicts.items()},
    }
    return {name: value for name, value in told_of.items() if math.isfinite(value)}
