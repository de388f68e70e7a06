"""The pipeline as a whole: what is scored, what the truth is, what the model sees, which model it is.

Every policy (drift, performance, retrain, gate, rollout) has defaults; pipelines/spec.py describes each with its unit.
"""

from __future__ import annotations

from pipelines.spec import ModelSpec, PipelineSpec, ScoredSpec

from .contract import CONTRACT
from .events import LABEL, PLACED, SETTLED, VIEWED, replay
from .features import FEATURES, VIEWS, order_features

PIPELINE = PipelineSpec(
    name="pipeline_name",
    description="Will this order be sent back?",
    events=(PLACED, VIEWED, SETTLED),
    # Each of these events asks for a prediction. The key joins it with its label.
    scored=ScoredSpec(topic=PLACED.topic, key="order_id"),
    label=LABEL,
    views=VIEWS,
    request_features=order_features,
    features=FEATURES,
    contract=CONTRACT,
    model=ModelSpec(family="lightgbm", trees=100, leaves=15, learning_rate=0.05),
    replay=replay,
)
