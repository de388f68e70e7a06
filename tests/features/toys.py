"""An event that has a field of every type."""

from __future__ import annotations

from datetime import UTC, datetime

from pipelines.spec import EventField, EventSpec

CREATED = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVENT = EventSpec(
    topic="toys.sold.v1",
    fields=(
        EventField(name="toy_id", type="string"),
        EventField(name="event_timestamp", type="timestamp"),
        EventField(name="pieces", type="int"),
        EventField(name="price", type="float"),
        EventField(name="gift", type="bool"),
        EventField(name="note", type="string", nullable=True),
        EventField(name="returned_at", type="timestamp", nullable=True),
        EventField(name="rating", type="int", nullable=True),
    ),
    event_timestamp="event_timestamp",
    event_id=("toy_id",),
    partition_key="toy_id",
)
