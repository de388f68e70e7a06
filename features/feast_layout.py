"""How Feast writes keys, values and times: the bytes in its online stores, for those who do without importing Feast.

Layout of Feast 0.67: entity keys as in its infra/key_encoding_utils.py (version 3), hash fields as in
infra/online_stores/helpers.py and redis.py, values as in protos/feast/types/Value.proto. Feast itself is asked whether
this is right in tests/features/test_redis_rows.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import mmh3
from google.protobuf.timestamp_pb2 import Timestamp

KEY_VERSION = 3
# Feast's ValueType.STRING.
TEXT = 2
COUNT = struct.Struct("<I")
NUMBER = struct.Struct("<d")
# What is before the eight bytes of a double in a Value: field 5 (double_val), of eight bytes.
DOUBLE = bytes([5 << 3 | 1])


def key_prefix(join_key: str) -> bytes:
    """What the serialised entity keys of one join key begin with; the value's type and length follow."""
    return COUNT.pack(1) + COUNT.pack(TEXT) + _sized(join_key)


def key_bytes(join_key: str, keys: Iterable[str]) -> list[bytes]:
    """Serialised entity keys of one text key each."""
    head = key_prefix(join_key) + COUNT.pack(TEXT)
    return [head + _sized(key) for key in keys]


def hash_field(view: str, feature: str) -> bytes:
    """The field of a key's hash in Redis that has a feature's value."""
    return COUNT.pack(mmh3.hash(f"{view}:{feature}", signed=False))


def time_fields(view: str) -> tuple[str, str]:
    """The fields of a view's event time, as Feast names it, and of its created time, which Feast does not have."""
    return f"_ts:{view}", f"_created:{view}"


def number(value: bytes | None) -> float | None:
    """The double in a serialised Value; None if it is empty, of another type, or not there."""
    if not value or len(value) != len(DOUBLE) + NUMBER.size or not value.startswith(DOUBLE):
        return None
    found: float = NUMBER.unpack_from(value, len(DOUBLE))[0]
    return found


def written_time(at_us: int) -> bytes:
    """A serialised Timestamp of microseconds since 1970."""
    seconds, micro = divmod(at_us, 1_000_000)
    written: bytes = Timestamp(seconds=seconds, nanos=micro * 1_000).SerializeToString()
    return written


def read_time(written: bytes) -> int:
    """Microseconds since 1970 of a serialised Timestamp."""
    moment = Timestamp.FromString(written)
    return int(moment.seconds * 1_000_000 + moment.nanos // 1_000)


def _sized(text: str) -> bytes:
    encoded = text.encode()
    return COUNT.pack(len(encoded)) + encoded
