"""10,000 hostile events between good ones, through the real broker into the real lake."""

from __future__ import annotations

import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastavro import parse_schema, schemaless_writer
from kafka import KafkaProducer

from features.broker import ensure_topics
from features.dead_letters import DEAD_LETTERS
from features.ingest import ingest_topics
from features.lake import Lake
from perennial.settings import Settings
from pipelines.spec import EventField, EventSpec

HOSTILE = 5_000  # on each of two topics
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
SCHEMA = parse_schema(
    {
        "type": "record",
        "name": "Sold",
        "fields": [
            {"name": "toy_id", "type": ["null", "string"]},
            {"name": "event_timestamp", "type": ["null", MICROS]},
            {"name": "pieces", "type": ["null", "long", "string"]},
            {"name": "price", "type": ["null", "double", "boolean"]},
            {"name": "gift", "type": ["null", "boolean", "bytes"]},
            {"name": "note", "type": ["null", "string", {"type": "array", "items": "string"}]},
        ],
    }
)
FIELDS = (
    EventField(name="toy_id", type="string"),
    EventField(name="event_timestamp", type="timestamp"),
    EventField(name="pieces", type="int"),
    EventField(name="price", type="float"),
    EventField(name="gift", type="bool"),
    EventField(name="note", type="string", nullable=True),
)
Kind = Callable[[random.Random], tuple[bytes | None, str]]
"""Draws an event, and the pattern of the reason for which it must be refused."""


def good(rng: random.Random) -> dict[str, Any]:
    return {
        "toy_id": f"t{rng.getrandbits(64)}",
        "event_timestamp": (NOW - timedelta(seconds=rng.randrange(86_400))),
        "pieces": rng.randrange(-5, 100),
        "price": rng.uniform(0, 100),
        "gift": rng.random() < 0.5,
        "note": rng.choice([None, "with ribbon", "Ünïcödé 🎁", ""]),
    }


def as_json(rng: random.Random, **fields: Any) -> bytes:
    return json.dumps({**good(rng), **fields}, default=datetime.isoformat).encode()


def as_avro(rng: random.Random, **fields: Any) -> bytes:
    stream = io.BytesIO()
    schemaless_writer(stream, SCHEMA, {**good(rng), **fields})
    return b"\0\0\0\0\x07" + stream.getvalue()


def raw_json(field: str, raw: Callable[[random.Random], bytes], reason: str) -> Kind:
    """An event with a field whose value is these bytes."""
    return lambda rng: (as_json(rng, **{field: "@@"}).replace(b'"@@"', raw(rng)), reason)


def wrong_type(rng: random.Random) -> tuple[bytes, str]:
    """Any field with a value of any type but its own."""
    wrong: dict[str, Sequence[Any]] = {
        "toy_id": (7, 1.5, True, [], {}, ["t"]),
        "event_timestamp": (1_772_000_000, 1.7e9, True, [], {}),
        "pieces": ("3", 3.0, True, [3], {}),
        "price": ("2.5", False, [2.5], {"eur": 2}),
        "gift": (0, 1.0, "true", [], {}),
        "note": (7, 2.5, True, ["x"], {"text": "x"}),
    }
    field = rng.choice(sorted(wrong))
    return as_json(rng, **{field: rng.choice(wrong[field])}), rf"^field '{field}' is .*, an? \w+, expected "


def missing(rng: random.Random) -> tuple[bytes, str]:
    field = rng.choice(["toy_id", "event_timestamp", "pieces", "price", "gift"])
    row = json.loads(as_json(rng))
    if rng.random() < 0.5:
        del row[field]
    else:
        row[field] = None
    return json.dumps(row).encode(), f"^field '{field}' is missing or null$"


def year(number: int, reason: str) -> Callable[[random.Random], tuple[datetime, str]]:
    def draw(rng: random.Random) -> tuple[datetime, str]:
        return datetime(number, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(86_400 * 300)), reason

    return draw


TIMES = {
    "the year 1970": year(1970, r"^field 'event_timestamp' is '1970-.*, \d+ days.* before 2000-01-01T00:00:00"),
    "the year 2999": year(2999, "^field 'event_timestamp' is '2999-.*, expected a time of 1970 to 2199$"),
    "many years ahead": year(2190, r"^field 'event_timestamp' is '2190-.*, \d+ days.* ahead of the clock \(20"),
}


def at(draw: Callable[[random.Random], tuple[datetime, str]], write: Callable[..., bytes]) -> Kind:
    def kind(rng: random.Random) -> tuple[bytes, str]:
        time, reason = draw(rng)
        return write(rng, event_timestamp=time), reason

    return kind


def cut(write: Callable[..., bytes], least: int, reason: str) -> Kind:
    def kind(rng: random.Random) -> tuple[bytes, str]:
        value = write(rng)
        return value[: rng.randrange(least, len(value) - 1)], reason

    return kind


ANY_LITERAL = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e400", b"9" * 400, b"01", b".5", b"0x1F", b"undefined"]
JSON_KINDS: dict[str, Kind] = {
    "a value of another type": wrong_type,
    "a missing or null field": missing,
    "no number of JSON": raw_json("price", lambda rng: rng.choice(ANY_LITERAL), "^not JSON: "),
    "an integer of 64 bits and more": raw_json(
        "pieces", lambda rng: str(rng.randrange(2**63, 2**64)).encode(), r"^field 'pieces' is \d+, beyond 64 bits$"
    ),
    "an integer of 65 bits and more": raw_json(
        "pieces", lambda rng: str(rng.randrange(2**64, 2**70)).encode(), "^field 'pieces' is .*, a float, expected int$"
    ),
    "broken UTF-8": raw_json(
        "toy_id", lambda rng: b'"%s"' % rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82"]), "^not JSON: "
    ),
    "half a surrogate pair": raw_json("toy_id", lambda rng: rb'"\ud83%x"' % rng.randrange(8, 16), "^not JSON: "),
    "a control character": raw_json("toy_id", lambda rng: b'"a%cb"' % rng.randrange(32), "^not JSON: "),
    "a field 1,000 deep": raw_json(
        "note", lambda _: b"[" * 1_000 + b"]" * 1_000, "^field 'note' is .*, a list, expected string$"
    ),
    "an object 1,000 deep": raw_json(
        "pieces", lambda _: b'{"a":' * 1_000 + b"1" + b"}" * 1_000, "^field 'pieces' is .*, a dict, expected int$"
    ),
    "an unknown field 1,000 deep": lambda rng: (
        as_json(rng, unknown="@@").replace(b'"@@"', b"[" * 1_000 + b"]" * 1_000),
        "^its unknown fields cannot be kept as JSON: ",
    ),
    "a document 1,000 deep": lambda _: (b"[" * 1_000 + b"]" * 1_000, "^a JSON list, expected an object$"),
    "a document 100,000 deep": lambda _: (b"[" * 100_000 + b"]" * 100_000, "^not JSON: "),
    "half a document": cut(as_json, 1, "^not JSON: "),
    "two documents": lambda rng: (as_json(rng) + rng.choice([b"", b"\n", b" "]) + as_json(rng), "^not JSON: "),
    "a NUL after it": lambda rng: (as_json(rng) + b"\0", "^not JSON: "),
    "a byte order mark": lambda rng: (b"\xef\xbb\xbf" + as_json(rng), "^not JSON: "),
    "noise": lambda rng: (b"\xfe" + rng.randbytes(rng.randrange(200)), "^not JSON: "),
    "nothing": lambda rng: (rng.choice([b"", b" ", b"\n", b"\r\n\t"]), "^not JSON: "),
    "a tombstone": lambda _: (None, "tombstone"),
    "no object": lambda rng: (
        rng.choice([b"7", b'"t"', b"null", b"true", b"[]", b"[{}]"]),
        r"^a JSON \w+, expected an object$",
    ),
    "no time": lambda rng: (
        as_json(
            rng,
            event_timestamp=rng.choice(["", "yesterday", "2026-02-30T00:00:00Z", "2026-03-01T00:00:00", "1772000000"]),
        ),
        r"^field 'event_timestamp' is '.*, expected timestamp \(ISO 8601 with a zone\)$",
    ),
    **{what: at(draw, as_json) for what, draw in TIMES.items()},
}
AVRO_KINDS: dict[str, Kind] = {
    "an unknown schema": lambda rng: (
        b"\0" + rng.randrange(8, 2**32).to_bytes(4, "big") + as_avro(rng)[5:],
        r"^Avro schema \d+ is in no file of the event's avro_schemas, and no registry is set; set PERENNIAL_SCHEMA_REG",
    ),
    "half a record": cut(as_avro, 5, "^not a record of Avro schema 7: "),
    "half a frame": lambda rng: (as_avro(rng)[: rng.randrange(5)], "^not Confluent's framing of Avro"),
    "another magic byte": lambda rng: (
        bytes([rng.randrange(1, 256)]) + as_avro(rng)[1:],
        "^not Confluent's framing of Avro",
    ),
    "JSON": lambda rng: (as_json(rng), "^not Confluent's framing of Avro: it starts with b'{\"toy'"),
    "bytes left over": lambda rng: (
        as_avro(rng) + rng.randbytes(rng.randrange(1, 9)),
        r"schema 7: \d bytes? left over$",
    ),
    "broken UTF-8": lambda rng: (as_avro(rng, toy_id="@@").replace(b"@@", b"\xff\xfe"), "schema 7: UnicodeDecodeError"),
    "a tombstone": lambda _: (None, "tombstone"),
    "NaN or infinity": lambda rng: (
        as_avro(rng, price=rng.choice([float("nan"), float("inf"), float("-inf")])),
        "^field 'price' is (nan|inf|-inf), not a finite number$",
    ),
    "a null": lambda rng: (as_avro(rng, pieces=None), "^field 'pieces' is missing or null$"),
    "text for a number": lambda rng: (as_avro(rng, pieces="3"), "^field 'pieces' is '3', a str, expected int$"),
    "a bool for a float": lambda rng: (as_avro(rng, price=True), "^field 'price' is True, a bool, expected float$"),
    "bytes for a bool": lambda rng: (as_avro(rng, gift=b"1"), "^field 'gift' is b'1', a bytes, expected bool$"),
    "an array for text": lambda rng: (
        as_avro(rng, note=["x"] * 1_000),
        "^field 'note' is .*, a list, expected string$",
    ),
    "a time beyond all calendars": lambda rng: (
        as_avro(rng, event_timestamp=rng.choice([-1, 1]) * rng.randrange(2**61, 2**62)),
        "^not a record of Avro schema 7: OverflowError",
    ),
    **{what: at(draw, as_avro) for what, draw in TIMES.items()},
}
LARGE = (1 << 20) + 1, 2_000_000, 10 << 20


@pytest.fixture
def settings(broker: Any, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", kafka_bootstrap_servers=broker.address)


def event_of(encoding: str, files: dict[int, Path]) -> EventSpec:
    return EventSpec(
        topic=f"toys.hostile_{encoding}_{uuid4().hex[:8]}.v1",
        fields=FIELDS,
        event_timestamp="event_timestamp",
        event_id=("toy_id",),
        partition_key="toy_id",
        encoding=encoding,
        avro_schemas=files,
    )


@pytest.mark.parametrize("encoding", ["json", "avro"])
def test_every_hostile_event_is_a_dead_letter_with_its_reason_and_every_good_one_is_taken_in(
    encoding: str, settings: Settings, broker: Any, tmp_path: Path
) -> None:
    seed = int(os.environ.get("PERENNIAL_TEST_SEED", random.randrange(2**32)))
    print(f"PERENNIAL_TEST_SEED={seed}")
    rng = random.Random(seed)
    (tmp_path / "sold.avsc").write_text(json.dumps(SCHEMA))
    kinds, write = (JSON_KINDS, as_json) if encoding == "json" else (AVRO_KINDS, as_avro)
    names = sorted(kinds)
    drawn = [(name, *kinds[name](rng)) for name in (names[i % len(names)] for i in range(HOSTILE - len(LARGE)))]
    drawn += [
        (f"{n} bytes", write(rng, note="x" * n), r"^the value has [\d,]+ bytes, more than the 1,048,576") for n in LARGE
    ]
    rows = [good(rng) for _ in range(HOSTILE)]
    records: list[tuple[int | None, bytes | None]] = [(i, value) for i, (_, value, _) in enumerate(drawn)]
    records += [(None, write(rng, **row)) for row in rows]
    rng.shuffle(records)

    event = event_of(encoding, {7: tmp_path / "sold.avsc"} if encoding == "avro" else {})
    ensure_topics(settings, [event.topic])
    # Compressed: the broker's limit of a mebibyte is on what travels, so ten times as much reaches a reader.
    producer = KafkaProducer(
        bootstrap_servers=broker.address, acks="all", linger_ms=5, max_request_size=32 << 20, compression_type="lz4"
    )
    sent = [(i, producer.send(event.topic, key=b"k", value=value)) for i, value in records]
    producer.flush()
    offsets = {future.get(10).offset: i for i, future in sent if i is not None}
    producer.close()

    lake = Lake(settings, f"hostile_{encoding}")
    taken = ingest_topics(settings, lake, [event], NOW)[0]
    assert (taken.ingested, taken.dead_lettered) == (HOSTILE, HOSTILE)
    letters = lake.read(DEAD_LETTERS)
    assert sorted(letters["kafka_offset"]) == sorted(offsets)
    wrong: Counter[tuple[str, str]] = Counter()
    for offset, value, reason in letters.select("kafka_offset", "value", "reason").iter_rows():
        name, produced, pattern = drawn[offsets[offset]]
        assert value == produced, name
        if not re.search(pattern, reason) or len(reason) > 300:
            wrong[name, reason] += 1
    assert not wrong, f"seed {seed}"
    # The stored rows, field by field, are the ones that were drawn.
    stored = lake.read(event.table).select(list(event.schema_)).sort("toy_id").to_dicts()
    assert stored == sorted(rows, key=lambda row: row["toy_id"])
