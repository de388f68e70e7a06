from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import CREATED, EVENT

from features.events import DEAD_LETTER_SCHEMA, Records, decode, encode, events_schema

GOOD = {
    "toy_id": "t1",
    "event_timestamp": "2026-02-28T23:30:00+01:00",
    "pieces": 3,
    "price": 2.5,
    "gift": True,
    "note": "with ribbon",
    "returned_at": None,
    "rating": 5,
}


def record(value: bytes | None, offset: int = 0, partition: int = 0) -> tuple[int, int, bytes | None, bytes | None]:
    return partition, offset, b"key", value


def changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def without(field: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != field}).encode()


def test_a_good_record_becomes_an_event_with_its_place_and_utc_times() -> None:
    decoded = decode(Records.of([(2, 17, None, json.dumps(GOOD).encode())]), EVENT, CREATED)
    assert decoded.dead_letters.is_empty()
    assert decoded.events.schema == events_schema(EVENT)
    assert decoded.events.row(0, named=True) == {
        "toy_id": "t1",
        "event_timestamp": datetime(2026, 2, 28, 22, 30, tzinfo=UTC),
        "pieces": 3,
        "price": 2.5,
        "gift": True,
        "note": "with ribbon",
        "returned_at": None,
        "rating": 5,
        "kafka_partition": 2,
        "kafka_offset": 17,
        "created_timestamp": CREATED,
        "extra": None,
    }


HOSTILE = {
    "a tombstone": (None, "tombstone"),
    "nothing at all": (b"", "not JSON"),
    "not JSON": (b"{toy_id: t1}", "not JSON"),
    "half a record": (changed()[:-10], "not JSON"),
    "broken UTF-8": (changed(toy_id="@").replace(b"@", b"\xff\xfe"), "not JSON"),
    "a lone surrogate": (changed(toy_id="@").replace(b"@", rb"\ud800"), "not JSON"),
    "a NaN literal": (changed(price=math.nan), "not JSON"),
    "an infinity literal": (changed(price=math.inf), "not JSON"),
    "a number beyond a double": (changed(price=0.5).replace(b"0.5", b"1e999"), "not JSON"),
    "an array": (b"[1, 2]", "list"),
    "a string": (b'"t1"', "str"),
    "a number": (b"7", "int"),
    "null": (b"null", "NoneType"),
    "JSON a million brackets deep": (b"[" * 1_000_000, "not JSON"),
    "a missing id": (without("toy_id"), "'toy_id' is missing or null"),
    "a missing time": (without("event_timestamp"), "'event_timestamp' is missing or null"),
    "a null where none may be": (changed(price=None), "'price' is missing or null"),
    "a number for a string": (changed(toy_id=12), r"'toy_id' is 12, an int, expected string"),
    "an object for a string": (changed(note={"a": 1}), r"'note' is \{'a':\ 1\}, a dict, expected string"),
    "a string for a number": (changed(price="2.5"), r"'price' is '2\.5', a str, expected float"),
    "a bool for a float": (changed(price=True), r"'price' is True, a bool, expected float"),
    "a bool for an int": (changed(pieces=True), r"'pieces' is True, a bool, expected int"),
    "a float for an int": (changed(pieces=3.0), r"'pieces' is 3\.0, a float, expected int"),
    "an int for a bool": (changed(gift=1), r"'gift' is 1, an int, expected bool"),
    "an array for a number": (changed(rating=[5]), r"'rating' is \[5\], a list, expected int"),
    "an int of 65 bits": (changed(pieces=2**63), "beyond 64 bits"),
    "an int of 300 digits": (changed(pieces=10**300), r"'pieces' is 1e\+300, a float, expected int"),
    "an int of 400 digits": (changed(price=10**400), "not JSON"),
    "an int of 64 bits without a sign": (changed(rating=2**64 - 1), "'rating' is 18446744073709551615, beyond 64 bits"),
    "a value of a mebibyte and a byte": (
        changed(note="x").ljust(2**20 + 1),
        "1,048,577 bytes, more than the 1,048,576",
    ),
    "two objects": (changed() + changed(), "not JSON"),
    "two objects on two lines": (changed() + b"\n" + changed(), "not JSON"),
    "nothing but spaces": (b"   ", "not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + changed(), "not JSON"),
    "a NUL at the end": (changed() + b"\0", "not JSON"),
    "a NUL in between": (changed() + b"\0" + changed(), "not JSON"),
    "a text over two lines": (changed(note="@").replace(b"@", b"a\nb"), "not JSON"),
    "an unknown field too deep to keep": (
        changed()[:-1] + b', "x": ' + b"[" * 300 + b"]" * 300 + b"}",
        "unknown fields",
    ),
    "a declared field 1,000 deep": (
        changed(note="@").replace(b'"@"', b"[" * 1_000 + b"]" * 1_000),
        "'note' is .* a list",
    ),
    "a time without seconds' zone": (changed(event_timestamp="2026-02-28T23:30:00+"), "ISO 8601"),
    "a leap second": (changed(event_timestamp="2026-02-28T23:59:60Z"), "ISO 8601"),
    "a week date": (changed(event_timestamp="2026-W09-1T00:00:00Z"), "ISO 8601"),
    "an epoch of zero": (
        changed(event_timestamp="1970-01-01T00:00:00Z"),
        "10957 days, 0:00:00 before 2000-01-01T00:00:00",
    ),
    "a time in the year 2999": (
        changed(event_timestamp="2999-01-01T00:00:00Z"),
        "'2999-01-01T00:00:00Z', expected a time of 1970",
    ),
    "a clock a day ahead": (
        changed(event_timestamp="2026-03-02T12:00:00Z"),
        r"1 day, 0:00:00 ahead of the clock \(2026-03-01T12:00:00\+00:00\), at most 300 s is allowed",
    ),
    "a clock 301 s ahead": (changed(event_timestamp="2026-03-01T12:05:01Z"), "0:05:01 ahead of the clock"),
    "another time in the year 2999": (changed(returned_at="2999-01-01T00:00:00Z"), "'returned_at' is .* 1970 to 2199"),
    "a naive time": (changed(event_timestamp="2026-02-28T23:30:00"), "a time with a zone|ISO 8601"),
    "a date": (changed(event_timestamp="2026-02-28"), "ISO 8601"),
    "a time that is none": (changed(event_timestamp="2026-02-30T00:00:00Z"), "ISO 8601"),
    "seconds for a time": (
        changed(event_timestamp=1_772_000_000),
        "'event_timestamp' is 1772000000, an int, expected timestamp",
    ),
    "a novel for a time": (changed(event_timestamp="x" * 500_000), "ISO 8601"),
    "a broken optional time": (changed(returned_at="yesterday"), "'returned_at' is 'yesterday'"),
    "a time before the common era": (changed(event_timestamp="-0044-03-15T12:00:00Z"), "event_timestamp"),
    "a time in the year 0": (changed(event_timestamp="0000-01-01T00:00:00Z"), "event_timestamp"),
    "a time in the year 1": (changed(event_timestamp="0001-01-01T00:00:00Z"), "event_timestamp"),
    "a time in the year 262,000": (changed(event_timestamp="+262000-01-01T00:00:00Z"), "event_timestamp"),
    "a time in the year 9999": (changed(event_timestamp="9999-12-31T23:59:59Z"), "event_timestamp"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_event_becomes_a_dead_letter_and_its_neighbours_survive(what: str) -> None:
    value, reason = HOSTILE[what]
    batch = [record(changed(toy_id="before"), 4), record(value, 5), record(changed(toy_id="after"), 6)]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    assert decoded.events["toy_id"].to_list() == ["before", "after"]
    assert decoded.dead_letters.schema == DEAD_LETTER_SCHEMA
    letter = decoded.dead_letters.row(0, named=True)
    assert (letter["topic"], letter["kafka_offset"], letter["key"], letter["value"]) == (EVENT.topic, 5, b"key", value)
    assert pl.Series([letter["reason"]]).str.contains(reason).all(), letter["reason"]
    assert len(letter["reason"]) < 300


def test_numbers_whose_sum_would_be_no_number_are_refused() -> None:
    batch = [record(changed(price=1.1e150)), record(changed(price=-1.7e308), 1), record(changed(price=1e150), 2)]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    assert decoded.events["kafka_offset"].to_list() == [2]
    assert decoded.dead_letters["reason"].str.contains("^field 'price' is .*, beyond 1e\\+150").all()


def test_the_widest_numbers_and_a_missing_nullable_field_are_no_reason_to_refuse() -> None:
    batch = [
        record(changed(pieces=2**63 - 1, price=7)),
        record(changed(pieces=-(2**63), price=-1e150), 1),
        record(without("note"), 2),
    ]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    assert decoded.dead_letters.is_empty()
    assert decoded.events["pieces"].to_list() == [2**63 - 1, -(2**63), 3]
    assert decoded.events["price"].to_list() == [7.0, -1e150, 2.5]
    assert decoded.events["note"].to_list() == ["with ribbon", "with ribbon", None]


def test_a_batch_of_nothing_but_dead_letters_keeps_the_columns_of_events() -> None:
    decoded = decode(Records.of([record(None)]), EVENT, CREATED)
    assert decoded.events.is_empty()
    assert decoded.events.schema == events_schema(EVENT)


def test_no_records_are_no_events() -> None:
    decoded = decode(Records.of([]), EVENT, CREATED)
    assert decoded.events.schema == events_schema(EVENT)
    assert decoded.dead_letters.schema == DEAD_LETTER_SCHEMA


def exactly(frame: pl.DataFrame) -> str:
    """As text: 0.0 equals -0.0, but is not it."""
    return repr(frame.rows())


def test_a_field_that_identifies_the_event_is_never_null() -> None:
    event = EVENT.model_copy(update={"event_id": ("toy_id", "rating")})
    decoded = decode(Records.of([record(changed(rating=None)), record(without("rating"), 1)]), event, CREATED)
    assert decoded.dead_letters["reason"].to_list() == ["field 'rating' is missing or null"] * 2


def test_a_time_is_held_against_the_clock_and_the_first_time_of_its_topic() -> None:
    event = EVENT.model_copy(update={"max_ahead_s": 60, "not_before": datetime(2020, 1, 1, tzinfo=UTC)})
    now = datetime(2026, 6, 1, tzinfo=UTC)
    times = [
        "2019-12-31T23:59:59.999999Z",
        "2020-01-01T00:00:00Z",
        "2026-06-01T00:01:00Z",
        "2026-06-01T00:01:00.000001Z",
    ]
    batch = Records.of(record(changed(event_timestamp=at), i) for i, at in enumerate(times))
    assert decode(batch, event, CREATED, now).events["kafka_offset"].to_list() == [1, 2]
    # Without a clock it is the time of taking in, three months before.
    assert decode(batch, event, CREATED).events["kafka_offset"].to_list() == [1]


def test_fields_that_the_spec_does_not_name_are_kept_aside() -> None:
    batch = [
        record(changed(extra={"a": [1, None]}, gate="B", kafka_offset=9)),
        record(changed(), 1),
        record(changed(gate=None), 2),
        record(changed(gate="C", pieces="x"), 3),
    ]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    assert decoded.events.select("kafka_offset", "extra").rows() == [
        (0, '{"extra":{"a":[1,null]},"gate":"B","kafka_offset":9}'),
        (1, None),
        (2, '{"gate":null}'),
    ]
    assert decoded.dead_letters["kafka_offset"].to_list() == [3]


def test_integers_of_any_width_in_unknown_fields_are_kept_as_they_were_written() -> None:
    wide = [2**64, -(2**63) - 1, 10**30, -(10**300), 2**64 - 1, -(2**63)]
    values = [changed(gate={"a": [n, 0.1, "é", "1" * 30]}, pieces=5) for n in wide]
    values += [changed(gate=2**64, pieces=10**30), changed(pieces=10**30)]
    decoded = decode(Records.of(record(value, i) for i, value in enumerate(values)), EVENT, CREATED)
    expected = [
        json.dumps({"gate": {"a": [n, 0.1, "é", "1" * 30]}}, separators=(",", ":"), ensure_ascii=False) for n in wide
    ]
    assert decoded.events["extra"].to_list() == expected
    # A declared field is what it was: its number is read as a float.
    assert (
        decoded.dead_letters["reason"].str.contains("'pieces' is 1e\\+30, a float, expected int").to_list()
        == [True] * 2
    )


def test_reasons_stay_short_and_name_the_first_field_that_does_not_fit() -> None:
    value = changed(pieces=["x" * 100_000] * 9, price="y" * 100_000)
    reason = decode(Records.of([record(value)]), EVENT, CREATED).dead_letters["reason"][0]
    assert reason.startswith("field 'pieces' is ['xxxxx")
    assert len(reason) < 200


def test_a_bad_record_among_thousands_of_good_ones_costs_none_of_them_a_value() -> None:
    """More than one chunk, and the bad ones in the middle of the second and the third."""
    n = 10_000
    values = [changed(toy_id=f"t{i}", pieces=i, price=i / 7) for i in range(n)]
    values[5_000], values[9_000] = b"{", changed(event_timestamp="2999-01-01T00:00:00Z")
    decoded = decode(Records.of(record(value, i) for i, value in enumerate(values)), EVENT, CREATED)
    kept = [i for i in range(n) if i not in (5_000, 9_000)]
    assert decoded.events["kafka_offset"].to_list() == kept
    assert decoded.events["toy_id"].to_list() == [f"t{i}" for i in kept]
    assert decoded.events["price"].to_list() == [i / 7 for i in kept]
    assert decoded.dead_letters["kafka_offset"].to_list() == [5_000, 9_000]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
records = (
    st.none()
    | st.binary(max_size=20)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(sorted(GOOD)), json_values).map(lambda fields: changed(**fields))
    | st.datetimes().map(lambda at: changed(event_timestamp=at.isoformat() + "Z"))
    | st.just(changed())
)
# As text, where readers of JSON differ: numbers, escapes, encodings, times, and what stands between two objects.
NUMBERS = b"""-0 -0.0 1e-999 2e-324 1e999 1.7976931348623159e308 9223372036854775807 9223372036854775808
    18446744073709551615 18446744073709551616 -9223372036854775808 -9223372036854775809 9007199254740993 1.0 1e2 01 +1 1.
    .5 NaN -NaN Infinity -Infinity Inf nan null true "1" [] {} 0x10 1_0 2.2250738585072011e-308 -""".split()
STRINGS = [
    *rb'"\u0000" "\ud800" "\udc00" "\ud83d\ude00" "\ud83d\u0041" "\x" "\u00g9" "\/" "\uffff"'.split(),
    *(b'"%s"' % raw for raw in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82", b"\xf0\x9f\x98\x80")),
    *(b'"%s"' % raw for raw in (b"\0", b"\n", b"\t", b"\x1f", b"\x7f", b"}\n{", b"\xef\xbb\xbf", b"}{")),
    b"7",
    b"null",
]
TIMES = [
    b'"2026-02-%s"' % rest.encode()
    for rest in """28T23:30:00+01:00|30T00:00:00Z|28T24:00:00Z|28T23:59:60Z|28 23:30:00Z|28t23:30:00z|28T23:30Z|28T23Z
28T23:30:00.1Z|28T23:30:00.1234567Z|28T23:30:00.123456789Z|28T23:30:00.1234567890Z|28T23:30:00,5Z|28T23:30:00-0000
28T23:30:00+01|28T23:30:00+24:00|28T23:30:00+23:59|28T23:30:00+00:00:30|28T23:30:00|28|28T23:30:00Z\\n""".replace(
        "\n", "|"
    ).split("|")
] + [
    b'"%s"' % whole
    for whole in (
        b"0000-01-01T00:00:00Z",
        b"9999-12-31T23:59:59-23:59",
        b"20260228T233000Z",
        b"1999-12-31T23:59:59.999999Z",
        b"2000-01-01T00:00:00Z",
        b"2026-03-01T12:05:00Z",
        b"2026-03-01T12:05:00.000001Z",
        "٢026-01-01T00:00:00Z".encode(),
    )
]
BETWEEN = [b"", b" ", b"\n", b"\r", b"\0", b",", b"\xef\xbb\xbf", b"\x0b", b"/**/", b"{}", b"{}{}", b"[]", b"}", b"{"]
FRAGMENTS = {"toy_id": STRINGS, "note": STRINGS, "event_timestamp": TIMES, "returned_at": TIMES}


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """An object with about one odd value, key, or repetition, as text."""
    parts = {name: json.dumps(value).encode() for name, value in GOOD.items()}
    odd = draw(st.sampled_from(sorted(GOOD)))
    parts[odd] = draw(st.sampled_from(FRAGMENTS.get(odd, NUMBERS)) | st.sampled_from(NUMBERS + STRINGS + TIMES))
    pairs = [b'"%s":%s' % (name.encode(), value) for name, value in parts.items()]
    pairs += draw(st.sampled_from([[], [], [], pairs[:1], [b'"note":null'], [b'"toy_id\\u0000":1'], [b'"x":1']]))
    return b"{%s}" % b",".join(draw(st.permutations(pairs)))


texts_of_objects = st.builds(
    lambda before, one, between, other, after: before + one + between + other + after,
    st.sampled_from(BETWEEN),
    objects(),
    st.sampled_from(BETWEEN),
    st.just(b"") | st.just(changed()),
    st.sampled_from(BETWEEN),
)


@given(st.lists(records | objects() | texts_of_objects, max_size=6))
@settings(max_examples=200)
@example([changed(price=10**400), changed()])
@example([changed() + changed(), changed() + b"\0}", changed(), changed()])
@example([changed(price=0.5).replace(b"0.5", b"-0"), changed()])
@example([b"{}{}", b" ", changed()])
def test_every_record_comes_out_exactly_once(values: list[bytes | None]) -> None:
    batch = [record(value, offset, offset % 3) for offset, value in enumerate(values)]
    decoded = decode(Records.of(batch), EVENT, CREATED)
    came_out = decoded.events["kafka_offset"].to_list() + decoded.dead_letters["kafka_offset"].to_list()
    assert sorted(came_out) == list(range(len(values)))
    for offset, value in enumerate(values):
        if value == changed():
            assert offset in decoded.events["kafka_offset"]
    assert decoded.dead_letters["reason"].is_not_null().all()
    # Out of their places they become what they became together: neighbours have no say in it.
    alone = [decode(Records.of([one]), EVENT, CREATED) for one in batch]
    among_bad = decode(Records.of([*batch, record(b"{", len(batch))]), EVENT, CREATED)
    apart = pl.concat([decoded.events.clear(), *(one.events for one in alone)])
    letters = pl.concat([decoded.dead_letters.clear(), *(one.dead_letters for one in alone)])
    assert exactly(apart) == exactly(decoded.events) == exactly(among_bad.events)
    assert exactly(letters) == exactly(decoded.dead_letters) == exactly(among_bad.dead_letters.head(-1))
    required = [f.name for f in EVENT.fields if not f.nullable]
    assert decoded.events.select(pl.col(required).is_null().any()).sum_horizontal().sum() == 0
    # Python's own clock must be able to hold them: everything downstream computes with them.
    assert all(at.tzinfo is not None for at in decoded.events["event_timestamp"].to_list())


texts = st.text(st.characters(codec="utf-8"), max_size=8)
times = st.datetimes(datetime(1970, 1, 1), datetime(2199, 12, 31, 23, 59, 59, 999_999), timezones=st.just(UTC))  # noqa: DTZ001
event_times = st.datetimes(datetime(2000, 1, 1), datetime(2026, 3, 1, 12, 5), timezones=st.just(UTC))  # noqa: DTZ001
rows = st.fixed_dictionaries(
    {
        "toy_id": texts,
        "event_timestamp": event_times,
        "pieces": st.integers(-(2**63), 2**63 - 1),
        "price": st.floats(-1e150, 1e150),
        "gift": st.booleans(),
        "note": st.none() | texts,
        "returned_at": st.none() | times,
        "rating": st.none() | st.integers(0, 5),
    }
)


@given(st.lists(rows, max_size=5))
def test_what_was_encoded_is_decoded_to_the_same(drawn: list[dict[str, object]]) -> None:
    events = pl.DataFrame(drawn, schema=EVENT.schema_)
    decoded = decode(Records.of(record(value, i) for i, value in enumerate(encode(events, EVENT))), EVENT, CREATED)
    assert decoded.dead_letters.is_empty()
    assert decoded.events.select(events.columns).equals(events)
