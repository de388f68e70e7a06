"""The typed contract of a pipeline: everything perennial knows about a model it keeps fresh.

A pipeline is a folder `pipelines/NAME/` whose `pipeline.py` holds `PIPELINE = PipelineSpec(...)`. Nothing outside that
folder knows its columns. Every model here is frozen and refuses unknown fields.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

import pipelines
from perennial.errors import UsageError
from pipelines.expectation import flaw

FieldType = Literal["string", "int", "float", "bool", "timestamp"]
Family = Literal["lightgbm", "pytorch"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]

OUR_COLUMNS = frozenset(
    {"kafka_partition", "kafka_offset", "created_timestamp", "extra", "late_s", "too_late", "is_duplicate"}
)

RESERVED_NAMES = OUR_COLUMNS | {
    "contract", "entity_key", "event_timestamp", "failed_expectation", "label", "label_timestamp", "model_version", "score",
}  # fmt: skip
"""Columns that stand beside a pipeline's features in the lake, in training sets and in predictions."""

POLARS_TYPES: Mapping[FieldType, pl.DataType] = {
    "string": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "timestamp": pl.Datetime("us", "UTC"),
}


class Spec(BaseModel):
    """Base of every part of a pipeline: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class EventField(Spec):
    """One field of an event."""

    name: Name
    type: FieldType
    nullable: bool = Field(False, description="Whether null is a valid value.")
    description: str = ""


class EventSpec(Spec):
    """One kind of event: a Kafka topic and the lake table it lands in."""

    topic: str = Field(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+\.v[0-9]+$", description="<domain>.<event>.v<version>")
    fields: tuple[EventField, ...]
    event_timestamp: Name = Field(description="The timestamp field that says when it happened (UTC).")
    event_id: tuple[Name, ...] = Field(
        description="Fields that together identify the event; a second one is a duplicate. An event that changes what an "
        "earlier one said, such as a status, is another event: the status belongs here, too."
    )
    partition_key: Name = Field(description="The field that keys the Kafka record: order holds within one key.")
    encoding: Literal["json", "avro"] = Field(
        "json", description="How values are written; avro has Confluent's framing."
    )
    avro_schemas: Mapping[int, Path] = Field(
        {}, description="Avro: files (.avsc) of writer schemas by id; other ids are asked of the schema registry."
    )
    lateness_s: int = Field(
        86_400,
        ge=0,
        description="How far an event may lag behind the newest one of its Kafka partition and still correct features; "
        "later ones are counted and kept in the lake. A change is for events that come after it.",
    )
    dedup_s: int = Field(
        86_400, ge=0, description="Two events with the same id at most this far apart in event time are one."
    )
    max_ahead_s: int = Field(300, ge=0, description="How far an event's time may be ahead of the clock that reads it.")
    not_before: AwareDatetime = Field(
        datetime(2000, 1, 1, tzinfo=UTC), description="Event times before it are mistakes, such as an epoch of zero."
    )

    @model_validator(mode="after")
    def _fields_exist(self) -> EventSpec:
        names = {f.name for f in self.fields}
        if taken := names & OUR_COLUMNS:
            raise ValueError(
                f"{self.topic}: fields {sorted(taken)} are columns that perennial adds; name them otherwise"
            )
        if self.event_timestamp != "event_timestamp":
            raise ValueError(
                f"{self.topic}: the event time is named {self.event_timestamp!r}; name it 'event_timestamp'"
            )
        for used in (self.event_timestamp, self.partition_key, *self.event_id):
            if used not in names:
                raise ValueError(f"{self.topic}: field {used!r} is not among its fields {sorted(names)}")
        return self

    @property
    def table(self) -> str:
        """The lake table of this topic: dots as underscores."""
        return self.topic.replace(".", "_")

    @property
    def schema_(self) -> dict[str, pl.DataType]:
        """Polars types by field name."""
        return {f.name: POLARS_TYPES[f.type] for f in self.fields}


class Aggregate(Spec):
    """One streamed feature: an event-time aggregation of one field within a window that ends at each event."""

    name: Name = Field(description="<entity>_<measure>_<aggregation>_<window>")
    field: Name = Field(description="The event field that is aggregated.")
    function: Literal["mean", "count", "last", "rate"] = Field(
        description="mean, count of non-null, last non-null, or rate: share of true values."
    )
    window_s: int = Field(gt=0, description="Length of the window in seconds: (t - window, t].")


class FeatureView(Spec):
    """Streamed features of one entity from one topic; compiled to a Feast entity, source and view."""

    name: Name
    entity: Name = Field(description="The entity's join key, as a column of the scored rows.")
    topic: str
    key: Name = Field(description="The event field that holds the entity's key.")
    aggregates: tuple[Aggregate, ...]
    ttl_s: int = Field(gt=0, description="Seconds after which a value no longer counts.")


class Feature(Spec):
    """One input of the model, in the order the model takes them."""

    name: Name
    kind: Literal["numeric", "categorical"]
    description: str = ""


class ScoredSpec(Spec):
    """Which event asks for a prediction."""

    topic: str
    key: Name = Field(description="The field that identifies the thing predicted; the label carries the same key.")


class LabelSpec(Spec):
    """What the truth is, and when it may come."""

    topic: str
    key: Name
    value: Callable[[pl.DataFrame], pl.Series] = Field(
        description="Label events -> boolean series, null where undefined."
    )
    horizon_s: int = Field(
        gt=0, description="Seconds after the scored event at which a label will never come any more."
    )


class Expectation(Spec):
    """One line of the data contract, compiled to a Great Expectations expectation.

    `matches` asks the whole value: `[A-Z]{3}` is met by three letters and nothing else, not even a line break after them.
    `unique` holds among the rows that are judged together: a batch that is scored, a training set, the window of `monitor`.
    A batch does not know the values of earlier ones.
    """

    column: Name
    kind: Literal["not_null", "between", "in_set", "matches", "unique"]
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    pattern: str | None = None
    mostly: float = Field(
        1.0, description="Share of rows that must meet it, above 0 and at most 1; a batch fails for more than chance."
    )

    @model_validator(mode="after")
    def _can_be_met(self) -> Expectation:
        if why := flaw(self):
            raise ValueError(f"{self.column}: {why}")
        return self


class ModelSpec(Spec):
    """Which model is fitted, and how."""

    family: Family = Field("lightgbm", description="LightGBM trees, or a small PyTorch network.")
    trees: int = Field(200, gt=0, description="LightGBM: number of trees.")
    leaves: int = Field(31, gt=1, description="LightGBM: leaves of a tree.")
    learning_rate: float = Field(0.05, gt=0, description="LightGBM: shrinkage.")
    min_rows_per_leaf: int = Field(50, gt=0, description="LightGBM: least rows of a leaf.")
    epochs: int = Field(4, gt=0, description="PyTorch: passes over the data.")
    hidden: int = Field(64, gt=0, description="PyTorch: width of the hidden layers.")
    seed: int = 7
    history_s: int | None = Field(
        None, description="How far back training data reaches, in seconds; None = everything."
    )


class DriftPolicy(Spec):
    """When a change of the data counts as drift."""

    window_s: int = Field(
        3 * 86_400,
        gt=0,
        description="Length of a window, in seconds: a number of whole days, or a part of one such as 6 hours.",
    )
    persistence: int = Field(
        2, ge=1, description="Windows in a row, each right before the next, that must all show a move."
    )
    seasonal: bool = Field(
        False,
        description="Whether a window is held against the same weekdays of the reference; for data with a weekly rhythm.",
    )
    reference_s: int = Field(
        56 * 86_400, gt=0, description="Length of the newest stretch of training data to compare with."
    )
    warn_at: float = Field(0.1, gt=0, description="PSI from which a feature is watched.")
    drift_at: float = Field(0.25, gt=0, description="PSI from which a feature has drifted.")
    share_warn_at: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Change of the share of rows without a value, or with a category never seen, from which it is watched.",
    )
    share_drift_at: float = Field(0.1, gt=0, le=1, description="The same, from which the feature has drifted.")
    matters_from: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of the champion's importance from which a feature can make the verdict FAIL; below it is watched. "
        "Where there are many features, half of an equal share is enough.",
    )
    false_alarms: float = Field(
        0.01, gt=0, lt=1, description="Share of judgements without any drift that may name a column all the same."
    )
    bins: int = Field(10, gt=1, description="Quantile bins of a numeric feature.")
    min_rows: int = Field(500, gt=0, description="Windows of fewer rows than this are INCONCLUSIVE.")

    @model_validator(mode="after")
    def _windows_are_of_whole_hours(self) -> DriftPolicy:
        day_s = 86_400
        if self.window_s % 3_600 or (day_s % self.window_s and self.window_s % day_s):
            raise ValueError(
                f"drift.window_s is {self.window_s}; make it a number of whole days (a multiple of {day_s}), or of hours "
                "that divide a day, such as 21600"
            )
        return self

    @model_validator(mode="after")
    def _drift_is_farther_than_a_warning(self) -> DriftPolicy:
        for warn, drift in (("warn_at", "drift_at"), ("share_warn_at", "share_drift_at")):
            if getattr(self, warn) > getattr(self, drift):
                raise ValueError(
                    f"drift.{warn} is {getattr(self, warn)}, above drift.{drift}, {getattr(self, drift)}; make it smaller"
                )
        return self

    @property
    def watched_s(self) -> int:
        """Length of all windows together, in seconds."""
        return self.window_s * self.persistence


class PerformancePolicy(Spec):
    """When the live model's quality counts as degraded."""

    window_s: int = Field(7 * 86_400, gt=0, description="Length of the window of labelled predictions, in seconds.")
    max_auc_drop: float = Field(
        0.05, gt=0, description="Drop of AUC below the champion's AUC at its gate that is FAIL."
    )
    min_rows: int = Field(500, gt=0, description="Fewer labelled rows than this are INCONCLUSIVE.")
    slices: tuple[Name, ...] = Field(
        (),
        description="Features that divide the rows, each by itself, into slices that are judged too: categories, quartiles.",
    )


class RetrainPolicy(Spec):
    """When a retrain pays."""

    cooldown_s: int = Field(14 * 86_400, ge=0, description="Least time between two retrains, in seconds.")
    max_age_s: int = Field(
        31 * 86_400, gt=0, description="Age of the champion at which it is retrained anyway, in seconds."
    )
    min_new_labels: int = Field(
        2_000, ge=0, description="Labels since the champion's training without which it cannot pay."
    )
    holdout_s: int = Field(
        7 * 86_400, gt=0, description="The newest stretch kept from training to compare on, in seconds."
    )
    cost_usd: float = Field(0.05, ge=0, description="What one retrain costs, for the record of the decision.")


class Tolerance(Spec):
    """How much worse than the champion a candidate may be in one metric and still pass."""

    metric: Literal["auc", "log_loss", "brier"]
    direction: Literal["higher", "lower"]
    absolute: float = Field(ge=0)
    relative: float = Field(0.0, ge=0)


class GatePolicy(Spec):
    """What a candidate must show before it may serve."""

    tolerances: tuple[Tolerance, ...] = (
        Tolerance(metric="auc", direction="higher", absolute=0.002),
        Tolerance(metric="log_loss", direction="lower", absolute=0.005),
    )
    min_rows: int = Field(1_000, gt=0, description="Fewer holdout rows than this are INCONCLUSIVE.")
    min_auc: float = Field(0.55, ge=0, le=1, description="Floor for the very first champion, which has nobody to beat.")


class RolloutPolicy(Spec):
    """How a challenger takes over the traffic, and what stops it."""

    steps_pct: tuple[float, ...] = Field(
        (10.0, 50.0), description="Shares of the traffic, in percent, before promotion."
    )
    min_requests: int = Field(100, gt=0, description="Canary requests a step needs; fewer are INCONCLUSIVE and hold.")
    max_step_s: float = Field(
        120.0, gt=0, description="Seconds a step may stay inconclusive, or its champion unwell, before a rollback."
    )
    poll_s: float = Field(1.0, gt=0, description="Seconds between two judgements.")
    lease_s: float = Field(
        20.0, gt=0, description="Seconds without a renewal after which routers return to the champion."
    )
    max_error_rate_increase: float = Field(
        0.02, ge=0, description="Canary error rate above the baseline's that is FAIL."
    )
    max_latency_ratio: float = Field(2.0, gt=1, description="Canary P99 latency over the baseline's that is FAIL.")
    max_disagreement: float = Field(
        0.15, gt=0, description="Mean absolute difference of the two models' scores on the same requests that is FAIL."
    )


class AlertPolicy(Spec):
    """When people are told again."""

    cooldown_s: int = Field(
        86_400,
        gt=0,
        description="Seconds in which what lasts is not told again, and of what comes and goes no second recovery is told.",
    )


class PipelineSpec(Spec):
    """A model kept fresh."""

    name: Name
    description: str
    events: tuple[EventSpec, ...]
    scored: ScoredSpec
    label: LabelSpec
    views: tuple[FeatureView, ...] = Field(description="Streamed features, looked up by entity key.")
    request_features: Callable[[pl.DataFrame], pl.DataFrame] = Field(
        description="Scored events -> one column per feature that the event itself tells; same rows, same order."
    )
    features: tuple[Feature, ...] = Field(description="The model's inputs, in order.")
    contract: tuple[Expectation, ...]
    model: ModelSpec = ModelSpec()
    drift: DriftPolicy = DriftPolicy()
    performance: PerformancePolicy = PerformancePolicy()
    retrain: RetrainPolicy = RetrainPolicy()
    gate: GatePolicy = GatePolicy()
    rollout: RolloutPolicy = RolloutPolicy()
    alerts: AlertPolicy = AlertPolicy()
    replay: Callable[[datetime, datetime], Mapping[str, pl.DataFrame]] = Field(
        description="[start, end) in UTC -> historical events by topic, each in its event's schema, sorted by event time."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> PipelineSpec:
        topics = {e.topic for e in self.events}
        for used in (self.scored.topic, self.label.topic, *(v.topic for v in self.views)):
            if used not in topics:
                raise ValueError(f"{self.name}: topic {used!r} is not among its events {sorted(topics)}")
        for topic, names in (
            (self.scored.topic, {self.scored.key, *(v.entity for v in self.views)}),
            (self.label.topic, {self.label.key}),
            *((v.topic, {v.key, *(a.field for a in v.aggregates)}) for v in self.views),
        ):
            missing = names - set(self.event(topic).schema_)
            if missing:
                raise ValueError(f"{self.name}: {topic} has no field {sorted(missing)}")
        for view in self.views:
            types = {f.name: f.type for f in self.event(view.topic).fields}
            for a in view.aggregates:
                if a.function != "count" and types[a.field] not in ("int", "float", "bool"):
                    raise ValueError(
                        f"{self.name}: {a.name} is the {a.function} of {a.field!r}, a {types[a.field]}; of those there is "
                        "only a count"
                    )
        known = [f.name for f in self.features]
        if taken := sorted(set(known) & RESERVED_NAMES):
            raise ValueError(
                f"{self.name}: features {taken} have names of columns that perennial keeps beside them; name them otherwise"
            )
        if len(set(known)) != len(known):
            raise ValueError(f"{self.name}: a feature is named twice in {known}")
        if unknown := sorted(set(self.performance.slices) - set(known)):
            raise ValueError(f"{self.name}: slices {unknown} are not among its features {known}")
        return self

    def event(self, topic: str) -> EventSpec:
        """The event spec of a topic; KeyError if the pipeline has none."""
        for event in self.events:
            if event.topic == topic:
                return event
        raise KeyError(topic)

    @property
    def feature_names(self) -> list[str]:
        """The model's inputs, in order."""
        return [f.name for f in self.features]


def pipeline_names() -> Iterator[str]:
    """Names of every pipeline folder there is, sorted."""
    for module in sorted(pkgutil.iter_modules(pipelines.__path__), key=lambda m: m.name):
        if module.ispkg and importlib.util.find_spec(f"pipelines.{module.name}.pipeline"):
            yield module.name


def add_pipelines_dir(directory: Path) -> None:
    """Let the folders below `directory` be pipelines too."""
    if str(directory) not in pipelines.__path__:
        pipelines.__path__.append(str(directory))
        importlib.invalidate_caches()


def load_pipeline(name: str) -> PipelineSpec:
    """The pipeline of that name.

    Raises:
        UsageError: there is no such folder, it holds no PIPELINE, or its code says something that cannot be.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name not in set(pipeline_names()):
        known = ", ".join(pipeline_names()) or "none"
        raise UsageError(f"unknown pipeline {name!r}; there is: {known}. `perennial init NAME` makes a new one.")
    try:
        module: Any = importlib.import_module(f"pipelines.{name}.pipeline")
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}".removeprefix(": ").replace("Value error, ", "")
            for wrong in error.errors()
        )
        raise UsageError(f"{_line_in(name, error)}: {told}; correct it") from error
    except SyntaxError as error:
        raise UsageError(f"{error.filename}:{error.lineno}: {error.msg}; correct it") from error
    spec = getattr(module, "PIPELINE", None)
    if not isinstance(spec, PipelineSpec):
        raise UsageError(
            f"pipelines/{name}/pipeline.py holds no PIPELINE = PipelineSpec(...), found {type(spec).__name__}"
        )
    return spec


def _line_in(name: str, error: Exception) -> str:
    """The pipeline's file and line from which an error came."""
    folder = importlib.import_module(f"pipelines.{name}").__path__
    own = [f for f in traceback.extract_tb(error.__traceback__) if str(Path(f.filename).parent) in folder]
    return f"pipelines/{name}/{Path(own[-1].filename).name}:{own[-1].lineno}" if own else f"pipelines/{name}"
