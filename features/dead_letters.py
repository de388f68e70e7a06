"""Records that are not valid events: kept in the lake and on their topic's `.dlq`, each with its reason, to be sent again.

A letter is open until it was replayed. Which ones were is a table of its own, written after the broker acknowledged them:
killed in between, a replay sends them once more, and the id of an event makes the two count as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from features.avro import WriterSchemas
from features.broker import ensure_topics
from features.consumer import open_consumer
from features.events import DEAD_LETTER_SCHEMA, decode
from features.lake import APPEND_TRIES, CREATED_TIMESTAMP, Lake, rows_of
from features.places import OFFSET, PARTITION
from features.producer import open_producer, send_again, send_dead_letters
from features.records import Records
from perennial.errors import ConflictError, UsageError
from perennial.settings import Settings
from perennial.wording import counted
from pipelines.spec import PipelineSpec

DEAD_LETTERS = "dead_letters"
REPLAYED = "dead_letters_replayed"
PLACE = ("topic", PARTITION, OFFSET)
REPLAYED_AT = "replayed_at"
# Whose values are held at once; a larger letter is by itself.
REPLAY_LETTERS, REPLAY_BYTES = 1_000, 64 << 20


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
    known = lake.offsets(DEAD_LETTERS)
    if lake.exists(DEAD_LETTERS):
        # Some of them are there already if an earlier run was killed before its positions were committed.
        reach = letters.group_by(PARTITION).agg(first=pl.col(OFFSET).min(), end=pl.col(OFFSET).max() + 1)
        first, end = (dict(reach.select(PARTITION, name).iter_rows()) for name in ("first", "end"))
        letters = letters.join(lake.read_places(DEAD_LETTERS, first, end, PLACE), on=PLACE, how="anti")
    if not letters.height:
        return
    ensure_topics(settings, {f"{topic}.dlq" for topic in letters.get_column("topic").unique()})
    with open_producer(settings) as producer:
        send_dead_letters(producer, letters.iter_rows(named=True))
    kept = {0: known.get(0, 0) + letters.height}
    lake.append(DEAD_LETTERS, letters, kept, partition_by=None, read_from=known)


@dataclass(frozen=True)
class Letters:
    """The dead letters of a pipeline.

    Attributes:
        open: those that were not replayed, newest first: `DEAD_LETTER_SCHEMA` without key and value.
        replayed: how many were.
    """

    open: pl.DataFrame
    replayed: int


def find_letters(lake: Lake, spec: PipelineSpec, topic: str | None = None) -> Letters:
    """The dead letters of a pipeline or of one of its topics, without their bytes.

    Raises:
        UsageError: the pipeline has no such topic, nor any dead letter of it.
    """
    columns = tuple(name for name in DEAD_LETTER_SCHEMA if name not in ("key", "value"))
    if lake.exists(DEAD_LETTERS):
        # Two ingests at once may both have kept a letter.
        letters = lake.read(DEAD_LETTERS, columns=columns).select(columns).unique(PLACE)
    else:
        letters = pl.DataFrame(schema={name: DEAD_LETTER_SCHEMA[name] for name in columns})
    known = sorted({*(event.topic for event in spec.events), *letters.get_column("topic").unique()})
    if topic is not None:
        if topic not in known:
            raise UsageError(f"{spec.name} has no topic {topic!r}; there is: {', '.join(known)}")
        letters = letters.filter(pl.col("topic") == topic)
    waiting = letters
    if lake.exists(REPLAYED):
        waiting = letters.join(lake.read(REPLAYED, columns=PLACE), on=PLACE, how="anti")
    newest_first = waiting.sort(CREATED_TIMESTAMP, "topic", OFFSET, PARTITION, descending=[True, False, True, False])
    return Letters(newest_first, letters.height - waiting.height)


def reason_kind() -> pl.Expr:
    """What kind of reason a `reason` is: the values and numbers in it left out."""
    wanted = r"(an? [A-Za-z]+, expected .*|expected .*|[^,]* before [^,]*, the earliest that can be|[^,]* ahead of .*)$"
    without_value = pl.col("reason").str.replace(rf"(?s)^(field '[^']*' is ).*?, {wanted}", "$1…, $2")
    return without_value.str.replace_all(r"(^|[ (])[0-9](?:[0-9.,:T+-]*[0-9])?", "${1}#").alias("kind")


def read_whole(lake: Lake, letters: pl.DataFrame) -> pl.DataFrame:
    """Dead letters with their bytes, in the same order: `DEAD_LETTER_SCHEMA`.

    Args:
        lake: the pipeline's lake.
        letters: the `PLACE` of each; what is read is held at once.
    """
    found = [pl.DataFrame(schema=DEAD_LETTER_SCHEMA)]
    for stored in _stored(lake, letters):
        with lake.answering():
            found.append(stored.select(list(DEAD_LETTER_SCHEMA)).collect())
    rows = pl.concat(found, how="vertical_relaxed").cast(pl.Schema(DEAD_LETTER_SCHEMA)).unique(PLACE)
    return letters.select(PLACE).join(rows, on=PLACE, how="inner", maintain_order="left")


def _some_at_once(lake: Lake, letters: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The letters in order, at most REPLAY_LETTERS and about REPLAY_BYTES of them at a time."""
    size = pl.col("value").bin.size().fill_null(0).cast(pl.Int64)
    for some in letters.iter_slices(REPLAY_LETTERS):
        with lake.answering():
            sizes = [rows.select(*PLACE, size=size).collect(engine="streaming") for rows in _stored(lake, some)]
        known = some.select(PLACE).join(pl.concat(sizes).unique(PLACE), on=PLACE, how="left", maintain_order="left")
        before = known.get_column("size").fill_null(0).cum_sum().shift(1, fill_value=0)
        yield from (part for _, part in some.group_by((before // REPLAY_BYTES).rename("part"), maintain_order=True))


def _stored(lake: Lake, letters: pl.DataFrame) -> Iterator[pl.LazyFrame]:
    """The lake's rows of letters, by topic and partition."""
    target = lake.existing(DEAD_LETTERS)
    for (topic, partition), some in letters.group_by("topic", PARTITION):
        offsets = some.get_column(OFFSET).sort().to_list()
        at, offset = pl.col(PARTITION), pl.col(OFFSET)
        wanted = (pl.col("topic") == topic, at == partition, offset.is_in(offsets))
        within = (offset >= offsets[0], offset <= offsets[-1])  # lets files be passed over
        yield rows_of(target).filter(*wanted, *within)


@dataclass(frozen=True)
class Replay:
    """What became of some open letters.

    Attributes:
        sent: `PLACE` of those that are on their topic again.
        stay: `PLACE` of those that are not valid events today either, with the `reason` now.
    """

    sent: pl.DataFrame
    stay: pl.DataFrame


def replay_letters(
    settings: Settings, lake: Lake, spec: PipelineSpec, topic: str | None, now: datetime
) -> Iterator[Replay]:
    """Produce the open letters that are valid events today to their own topic and partition again, oldest place first.

    They come back by the next ingest like any event; one that is older by now than the lateness its topic allows is kept,
    but corrects no feature. Of two replays at once the second to commit ends: what both sent by then, at most
    `REPLAY_LETTERS` letters, came twice and counts once.

    Args:
        settings: where the broker is.
        lake: the pipeline's lake.
        spec: the pipeline as it is today.
        topic: only letters of it; None = of all.
        now: the clock that event times are held against, UTC.

    Returns:
        Some letters at a time, after they were acknowledged and remembered.

    Raises:
        ConflictError: another replay is at work.
        UnreachableError: the broker or the schema registry does not answer.
        UsageError: there is no such topic.
    """
    # Before the letters are read: whatever another replay does from then on is noticed.
    done: Mapping[int, int] = lake.offsets(REPLAYED)
    letters = find_letters(lake, spec, topic).open.sort(PLACE)
    if not letters.height:
        return
    with open_consumer(settings) as consumer:
        partitions = {name: set(consumer.partitions_for_topic(name) or ()) for name in letters["topic"].unique()}
    schemas = {
        event.topic: WriterSchemas(event.avro_schemas, settings.schema_registry_url)
        for event in spec.events
        if event.encoding == "avro"
    }
    with open_producer(settings) as producer:
        for some in _some_at_once(lake, letters):
            whole = read_whole(lake, some)
            valid, stay = [whole.clear()], [pl.DataFrame(schema=_STAY)]
            for (name,), of_topic in whole.group_by("topic", maintain_order=True):
                valid_now, refused = _judge(of_topic, str(name), spec, schemas, partitions[str(name)], now)
                valid.append(valid_now)
                stay.append(refused)
            ready = pl.concat(valid)
            too_large = send_again(producer, ready.iter_rows(named=True))
            reasons = pl.Series("reason", [too_large.get(row) for row in range(ready.height)], dtype=pl.String)
            told = ready.select(PLACE).with_columns(reasons)
            sent = told.filter(pl.col("reason").is_null()).select(PLACE)
            if sent.height:
                rows = sent.with_columns(pl.lit(now).cast(pl.Datetime("us", "UTC")).alias(REPLAYED_AT))
                # Not a position in Kafka, but it tells in the same way whether another writer was here.
                reached = {0: done.get(0, 0) + sent.height}
                try:
                    done = lake.append(REPLAYED, rows, reached, partition_by=None, read_from=done).offsets
                except ConflictError as error:
                    raise ConflictError(
                        f"another replay of {spec.name} is at work; what both sent ({counted(sent.height, 'letter')} at "
                        "most) counts once. Let that one end"
                    ) from error
            yield Replay(sent, pl.concat([*stay, told.drop_nulls("reason")]))


_STAY = {**{name: DEAD_LETTER_SCHEMA[name] for name in PLACE}, "reason": pl.String()}


def _judge(
    letters: pl.DataFrame,
    topic: str,
    spec: PipelineSpec,
    schemas: dict[str, WriterSchemas],
    partitions: set[int],
    now: datetime,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Letters of a topic that can be sent, and those that cannot with the reason."""
    gone = ~pl.col(PARTITION).is_in(list(partitions))
    why = pl.format("the broker has no partition {} of this topic", PARTITION)
    if topic not in {event.topic for event in spec.events}:
        gone, why = pl.lit(value=True), pl.lit("the pipeline has no such topic any more")
    lost = letters.filter(gone).select(*PLACE, why.alias("reason"))
    left = letters.filter(~gone)
    if not left.height:
        return left, lost
    columns = (left.get_column(name).to_list() for name in (PARTITION, OFFSET, "key", "value"))
    decoded = decode(Records.of_columns(*columns), spec.event(topic), now, now, schemas.get(topic))
    valid = left.join(
        decoded.events.select(PARTITION, OFFSET), on=(PARTITION, OFFSET), how="semi", maintain_order="left"
    )
    return valid, pl.concat([lost, decoded.dead_letters.select(*PLACE, "reason")])
