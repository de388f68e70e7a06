"""The flights pipeline: real flights out of New York, LightGBM by default."""

from __future__ import annotations

from pipelines.flights.contract import CONTRACT
from pipelines.flights.events import ARRIVED, DEPARTED, LABEL, SCHEDULED, WEATHER, replay
from pipelines.flights.features import FEATURES, VIEWS, schedule_features
from pipelines.spec import ModelSpec, PipelineSpec, ScoredSpec

PIPELINE = PipelineSpec(
    name="flights",
    description="Will this flight arrive more than 15 minutes late?",
    events=(SCHEDULED, DEPARTED, ARRIVED, WEATHER),
    scored=ScoredSpec(topic=SCHEDULED.topic, key="flight_id"),
    label=LABEL,
    views=VIEWS,
    request_features=schedule_features,
    features=FEATURES,
    contract=CONTRACT,
    model=ModelSpec(family="lightgbm", trees=200, leaves=31, learning_rate=0.05),
    replay=replay,
)
