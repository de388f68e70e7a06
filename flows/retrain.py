"""Should we -> training set -> fit -> compare with the champion -> register -> challenger."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from prefect import flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact

from features.labels import LABEL
from features.lake import EVENT_TIMESTAMP
from flows.context import announce, champion, due, moment, open_context, predictor
from flows.drift import reference_files
from flows.stage import stage
from perennial.errors import UsageError
from pipelines.spec import Family
from rollout.ledger import Model
from serving.batch import SCORE
from training import registry
from training.dataset import TrainingSet, all_rows, build_training_set, meeting_contract
from training.decision import hindrance
from training.export import export
from training.fit import Candidate, fit
from training.gate import GateResult, compare, evaluate, render_markdown
from training.history import Retrain, champion_history, record_begin, record_retrain, trained_as_of
from training.importance import importance
from training.registry import ModelVersion
from training.unseen import unseen_scores
from validation.calibration import calibrate
from validation.metrics import auc_scatter, days_of
from validation.profile import build_reference
from validation.reference_sample import REFERENCE_SAMPLE_FILE, write_reference_sample
from validation.slices import freeze_slices
from validation.verdict import Status

PARITY_ROWS = 2_000
DECISIONS = {Status.PASS: "accepted", Status.FAIL: "rejected"}


@dataclass(frozen=True)
class RetrainSummary:
    """What became of a retrain.

    Attributes:
        decision: "accepted", "rejected", "held", or "skipped" when it did not run.
        reason: the gate's sentence, or why it did not run.
        gate: the comparison; None when it did not run.
        version: the candidate's version in the registry; None when it did not run.
    """

    decision: str
    reason: str
    gate: GateResult | None
    version: str | None


@stage()
def check_again(pipeline: str, as_of: datetime) -> str | None:
    """What speaks against a retrain now, if anything: the event that asked for it may have come twice, or late."""
    context = open_context(pipeline)
    history = champion_history(context.lake, context.ledger, context.spec, as_of)
    return hindrance(history, context.spec.retrain, as_of) if history.trained_as_of else None


@stage()
def begin(pipeline: str, as_of: datetime, reason: str, family: Family) -> None:
    """Keep that this retrain begins, unless its comparison would be unfair."""
    context = open_context(pipeline)
    refuse_hindsight(pipeline, champion(context), as_of)
    record_begin(context.lake, as_of, reason, family, moment(None))


def refuse_hindsight(pipeline: str, model: Model | None, as_of: datetime) -> None:
    """Refuse to compare on rows that the champion may have learned from; those of its own moment it has not.

    Raises:
        UsageError: the champion was trained as of a later moment.
    """
    trained = trained_as_of(model.uri) if model else None
    if model and trained and trained > as_of:
        raise UsageError(
            f"{pipeline} cannot be retrained as of {as_of:%Y-%m-%d %H:%M} UTC: its champion, version {model.version}, was "
            f"trained as of {trained:%Y-%m-%d %H:%M} UTC and knows the rows they would be compared on; "
            "choose an --as-of that is not before the champion's"
        )


@stage()
def assemble(pipeline: str, as_of: datetime) -> TrainingSet:
    """Every labelled row known at that moment that meets the contract, pinned to lake snapshots."""
    context = open_context(pipeline)
    built = build_training_set(context.spec, context.settings, context.lake, as_of)
    return meeting_contract(built, context.spec)


@stage()
def train(pipeline: str, training_set: TrainingSet, family: Family) -> Candidate:
    """Fit the candidate; a fit that was killed goes on from its checkpoint."""
    context = open_context(pipeline)
    model = context.spec.model.model_copy(update={"family": family})
    return fit(training_set, model, model.seed, progress_dir(pipeline, training_set.as_of, family))


@stage()
def write_bundle(pipeline: str, training_set: TrainingSet, candidate: Candidate) -> Path:
    """Export the candidate with what monitoring will hold it to."""
    spec = open_context(pipeline).spec
    rows = pl.concat([training_set.train, training_set.holdout])
    # What the model will be asked is what was asked lately, whether a label came or not.
    asked = all_rows(training_set)
    recent = asked.filter(pl.col(EVENT_TIMESTAMP) >= training_set.as_of - timedelta(seconds=spec.drift.reference_s))
    model = spec.model.model_copy(update={"family": candidate.family})
    progress = progress_dir(pipeline, training_set.as_of, candidate.family)
    scored = recent.with_columns(pl.Series(SCORE, unseen_scores(candidate, training_set, recent, model, progress)))
    reference = build_reference(scored, spec.features, spec.drift, timestamp_column=EVENT_TIMESTAMP)
    held = training_set.holdout
    scores, labels = candidate.predict(held), held.get_column(LABEL).to_numpy()
    days = days_of(held.get_column(EVENT_TIMESTAMP))
    dividing = [f for f in spec.features if f.name in spec.performance.slices]
    slices = freeze_slices(held, scores, labels, days, dividing)
    scatter = auc_scatter(scores, labels, days)
    calibration = calibrate(scores, labels, days)
    kept = [*(f.name for f in spec.features), SCORE]
    sample = write_reference_sample(scored, kept, candidate.seed)
    metadata = {
        "holdout": {
            **{k: v for k, v in evaluate(scores, labels).items() if math.isfinite(v)},
            "auc_day_scatter": asdict(scatter) if scatter else None,
            "slices": [s.as_dict() for s in slices],
        },
        "calibration": calibration.as_dict() if calibration else None,
        "importance": importance(candidate),
        "snapshots": dict(training_set.snapshots),
        # A retrain of the same moment makes the same bundle, so that a repeated run finds the version it made before.
        "created": training_set.as_of.isoformat(),
    }
    return export(
        candidate,
        work_dir(pipeline, training_set.as_of, candidate.family) / "bundle",
        rows.sample(min(PARITY_ROWS, rows.height), seed=candidate.seed),
        metadata,
        {**reference_files(reference), REFERENCE_SAMPLE_FILE: sample},
    )


@stage()
def compare_models(pipeline: str, training_set: TrainingSet, bundle: Path, model: Model | None) -> GateResult:
    """Champion and candidate on the same newest rows, which neither has learned from."""
    # Again: another champion may have been promoted while this candidate was fitted.
    refuse_hindsight(pipeline, model, training_set.as_of)
    spec = open_context(pipeline).spec
    labels = training_set.holdout.get_column(LABEL).to_numpy()
    candidate = evaluate(predictor(str(bundle)).predict(training_set.holdout), labels)
    incumbent = evaluate(predictor(model.uri).predict(training_set.holdout), labels) if model else None
    return compare(incumbent, candidate, spec.gate)


@stage()
def register(
    pipeline: str,
    training_set: TrainingSet,
    bundle: Path,
    candidate: Candidate,
    gate: GateResult,
    model: Model | None,
    reason: str,
) -> ModelVersion:
    """Keep the candidate in MLflow with its metrics and where its data came from; the better one becomes challenger."""
    context = open_context(pipeline)
    outcome = DECISIONS.get(gate.verdict.status, "held")
    version = registry.register(
        context.settings.mlflow_tracking_uri,
        pipeline,
        bundle,
        params={"family": candidate.family, "seed": candidate.seed, "training_rows": candidate.training_rows},
        metrics={
            **{f"candidate_{row.metric}": row.candidate for row in gate.rows},
            **{f"champion_{row.metric}": row.champion for row in gate.rows if math.isfinite(row.champion)},
        },
        tags={
            "as_of": training_set.as_of.isoformat(),
            "reason": reason,
            registry.GATE: outcome,
            **({registry.COMPARED_WITH: model.version} if model else {}),
        },
        lineage={f"snapshot.{table}": snapshot for table, snapshot in training_set.snapshots.items()},
    )
    if outcome == "accepted":
        registry.set_alias(context.settings.mlflow_tracking_uri, pipeline, registry.CHALLENGER, version.version)
    return version


@flow(name="retrain", flow_run_name="retrain {pipeline}")
async def retrain(
    pipeline: str = "flights",
    as_of: datetime | None = None,
    family: Family | None = None,
    reason: str = "by hand",
    force: bool = True,
) -> RetrainSummary:
    """Fit a candidate and hold it against the champion.

    Args:
        pipeline: Name of the pipeline, a folder below `pipelines/`.
        as_of: The moment as which history is read, UTC; none = when the run is due. Not before that of the champion.
        family: The model family; none = the pipeline's own.
        reason: Why, for the record.
        force: Retrain even during the cooldown, a rollout, or with few new labels. Off for retrains that monitoring asks for.
    """
    context, now = open_context(pipeline), due(as_of)
    if not force and (hindered := await check_again(pipeline, now)):
        get_run_logger().info("no retrain: %s", hindered)
        return RetrainSummary("skipped", hindered, None, None)
    family = family or context.spec.model.family
    await begin(pipeline, now, reason, family)
    training_set = await assemble(pipeline, now)
    candidate = await train(pipeline, training_set, family)
    bundle = await write_bundle(pipeline, training_set, candidate)
    incumbent = champion(context)
    gate = await compare_models(pipeline, training_set, bundle, incumbent)
    version = await register(pipeline, training_set, bundle, candidate, gate, incumbent, reason)
    outcome = DECISIONS.get(gate.verdict.status, "held")
    auc = next((row for row in gate.rows if row.metric == "auc"), None)
    record_retrain(
        context.lake,
        Retrain(
            as_of=now,
            reason=reason,
            family=candidate.family,
            decision=outcome,
            gate_reason=gate.verdict.reason,
            champion_auc=auc.champion if auc else math.nan,
            candidate_auc=auc.candidate if auc else math.nan,
            version=version.version,
        ),
        moment(None),
    )
    await acreate_markdown_artifact(
        f"# {pipeline} version {version.version}: {outcome}\n\n{reason}\n\n{render_markdown(gate)}",
        key=f"gate-{pipeline.replace('_', '-')}",
        description=f"Candidate {version.version} of {pipeline} against the champion",
    )
    shutil.rmtree(work_dir(pipeline, now, candidate.family), ignore_errors=True)
    if outcome == "accepted":
        announce("perennial.candidate.accepted", pipeline, {"as_of": now.isoformat(), "version": version.version})
    else:
        get_run_logger().warning("version %s is %s: %s", version.version, outcome, gate.verdict.reason)
    return RetrainSummary(outcome, gate.verdict.reason, gate, version.version)


def progress_dir(pipeline: str, as_of: datetime, family: str) -> str:
    """Where the fits of that retrain keep how far they are: in S3 if the machine may go while they run."""
    local = work_dir(pipeline, as_of, family)
    kept = open_context(pipeline).settings.checkpoints
    return f"{kept.rstrip('/')}/{local.name}" if kept else str(local / "checkpoint")


def work_dir(pipeline: str, as_of: datetime, family: str) -> Path:
    """Where a retrain of that moment keeps its progress until it is registered."""
    return open_context(pipeline).settings.root / "retrain" / f"{pipeline}-{as_of:%Y%m%dT%H%M%S}-{family}"
