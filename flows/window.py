"""The rows of a window, held to the contract."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import polars as pl
import polars.selectors as cs

from features.labels import PREDICTIONS, first_made, lazy_predictions
from features.lake import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Lake
from features.once import ROW, no_rows, without
from features.store import ENTITY_KEY
from flows.context import open_context
from flows.stage import stage
from perennial.wording import counted
from pipelines.spec import PipelineSpec
from serving.batch import MODEL_VERSION, PREDICTION_COLUMNS, SCORE, feature_columns
from validation.contract import FAILED, Met, ValidationResult, fingerprint, validate
from validation.quarantine import CONTRACT, quarantined


@stage()
def validate_window(pipeline: str, since: datetime, until: datetime) -> ValidationResult:
    """Judge the window's feature rows by the contract: those that were predicted from, and the quarantined ones.

    Rows that met this very contract when they were scored need no second look: they are counted, and only the others are
    read.
    """
    context = open_context(pipeline)
    lake, spec = context.lake, context.spec
    columns = feature_columns(spec) | PREDICTION_COLUMNS
    aside = quarantined(lake, since, until)
    if lake.exists(PREDICTIONS):
        again, met, scored = _predicted(lake, spec, since, until, aside.select(ROW) if aside.width else no_rows())
        if aside.width:
            aside = without(aside, scored)  # where another contract let it pass
    else:
        again, met = no_predictions(spec), None
    rows = pl.concat([again, aside.drop(FAILED, strict=False)], how="diagonal_relaxed")
    return _telling_of(aside.height, pipeline, validate(rows, spec.contract, pipeline, columns, met))


def _telling_of(aside: int, pipeline: str, found: ValidationResult) -> ValidationResult:
    """The result, whose sentence says how to see the rows of the window that are in quarantine, if there are."""
    if not aside:
        return found
    where = f"`perennial contract quarantine {pipeline}` lists what is in quarantine, {counted(aside, 'row')} of this window"
    return replace(found, verdict=replace(found.verdict, reason=f"{found.verdict.reason}; {where}"))


def _predicted(
    lake: Lake, spec: PipelineSpec, since: datetime, until: datetime, aside: pl.DataFrame
) -> tuple[pl.DataFrame, Met, pl.DataFrame]:
    """Predictions of [since, until) that must be judged; what is to be known of the others; which of `aside` have one."""
    stored = lake.columns(PREDICTIONS)
    named = {e.column for e in spec.contract}
    unique = sorted({e.column for e in spec.contract if e.kind == "unique"})
    is_met = pl.col(CONTRACT).eq_missing(fingerprint(spec.contract))
    with lake.answering():
        # One look at the table: what others commit from now on is in none of the answers.
        rows = lazy_predictions(lake, since, until)
        if CONTRACT not in stored:  # a table of an older version
            rows = rows.with_columns(pl.lit(None, pl.String).alias(CONTRACT))
        met = rows.filter(is_met).with_columns(pl.lit(None).alias(column) for column in sorted(named - stored))
        again, counts, values, scored = (
            asked.collect(engine="streaming")
            for asked in (
                rows.remove(is_met),
                # Who bears the mark was kept once (features/once.py), so no key need be looked at to count them.
                met.select(
                    pl.len(),
                    cs.by_name(named).null_count().name.prefix("null "),
                    (cs.by_name(named) & cs.float()).is_nan().sum().name.prefix("nan "),
                ),
                met.select(unique),
                rows.select(ROW).join(aside.lazy(), on=ROW, how="semi", nulls_equal=True),
            )
        )
    (count,) = counts.iter_rows(named=True)
    missing = {column: count[f"null {column}"] + count.get(f"nan {column}", 0) for column in named}
    return first_made(again), Met(count["len"], missing, values), scored


def no_predictions(spec: PipelineSpec) -> pl.DataFrame:
    """The predictions of a pipeline that has made none yet."""
    kinds = {"numeric": pl.Float64(), "categorical": pl.String()}
    return pl.DataFrame(
        schema={
            ENTITY_KEY: pl.String(),
            EVENT_TIMESTAMP: pl.Datetime("us", "UTC"),
            **{f.name: kinds[f.kind] for f in spec.features},
            SCORE: pl.Float64(),
            MODEL_VERSION: pl.String(),
            CONTRACT: pl.String(),
            CREATED_TIMESTAMP: pl.Datetime("us", "UTC"),
        }
    )
