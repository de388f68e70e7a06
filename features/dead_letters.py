"""Records that are not valid events: kept in the lake and on their topic's `.dlq`, each with its reason."""

from __future__ import annotations

import polars as pl

from features.broker import ensure_topics
from features.lake import APPEND_TRIES, Lake
from features.producer import open_producer, send_dead_letters
from perennial.errors import ConflictError
from perennial.settings import Settings

DEAD_LETTERS = "dead_letters"
PLACE = ("topic", "kafka_partition", "kafka_offset")


def keep_dead_letters(settings: Settings, lake: Lake, letters: pl.DataFrame) -> None:
    """Keep dead letters in the lake, each once, and on their topic's `.dlq`, each at least once.

    Raises:
        ConflictError: other ingests kept theirs in between, again and again.
    """
    for tries_left in reversed(range(APPEND_TRIES)):
        try:
            _keep(settings, lake, letters)
        except ConflictError:
            if not tries_left:
                raise
        else:
            return


def _keep(settings: Settings, lake: Lake, letters: pl.DataFrame) -> None:
    if not letters.height:
        return
    # The table's one position counts its letters: who kept some since this look is noticed, and theirs may be the same.
    counted = lake.offsets(DEAD_LETTERS)
    if lake.exists(DEAD_LETTERS):
        # Some of them are there already if an earlier run was killed before its positions were committed.
        reach = letters.group_by("kafka_partition").agg(
            first=pl.col("kafka_offset").min(), end=pl.col("kafka_offset").max() + 1
        )
        first, end = (dict(reach.select("kafka_partition", name).iter_rows()) for name in ("first", "end"))
        letters = letters.join(lake.read_places(DEAD_LETTERS, first, end, PLACE), on=PLACE, how="anti")
    if not letters.height:
        return
    ensure_topics(settings, {f"{topic}.dlq" for topic in letters.get_column("topic").unique()})
    with open_producer(settings) as producer:
        send_dead_letters(producer, letters.iter_rows(named=True))
    kept = {0: counted.get(0, 0) + letters.height}
    lake.append(DEAD_LETTERS, letters, kept, partition_by=None, read_from=counted)
