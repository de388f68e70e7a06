"""Values of Kafka records in Avro, framed as Confluent's clients do: a zero byte, the writer's schema id, the record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import polars as pl

from features.documents import Read, read_documents, unreadable
from perennial.errors import UnreachableError, UsageError
from perennial.web_addresses import user_of, without_user
from perennial.wording import counted
from pipelines.spec import EventSpec

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

FRAME_BYTES = 5  # https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/#wire-format
REGISTRY_TIMEOUT_S = 10.0
# No such subject, no such version, no such schema.
UNKNOWN = (40401, 40402, 40403)
MAX_FIELDS = 10_000
Schema = dict[str, Any]


class WriterSchemas:
    """Schemas that values were written with, by id: from files, else from a schema registry.

    An id means one schema for good, so each is read once. An id that is not known is asked for again.
    """

    def __init__(self, files: Mapping[int, Path], registry_url: str = "") -> None:
        self.files = files
        self.registry_url = without_user(registry_url).rstrip("/")
        self._user = user_of(registry_url)
        self._known: dict[int, Schema | str] = {}

    def find(self, ids: Iterable[int]) -> dict[int, Schema | str]:
        """The schemas of some ids.

        Returns:
            By id: the schema, parsed; or the sentence that says why nothing can be read with it.

        Raises:
            UnreachableError: the registry does not answer, or not as one.
            UsageError: a file cannot be read, or holds no schema.
        """
        import httpx

        wanted = set(ids)
        unknown: dict[int, str] = {}
        for number in wanted & self.files.keys() - self._known.keys():
            self._known[number] = _from_file(self.files[number], number)
        missing = wanted - self._known.keys()
        if missing and not self.registry_url:
            unknown = {
                number: f"Avro schema {number} is in no file of the event's avro_schemas, and no registry is set; "
                "set PERENNIAL_SCHEMA_REGISTRY_URL"
                for number in missing
            }
        elif missing:
            with httpx.Client(timeout=REGISTRY_TIMEOUT_S, follow_redirects=True, auth=self._user) as client:
                for number in sorted(missing):
                    try:
                        told = self._ask(client, f"schemas/ids/{number}", f"Avro schema {number}")
                        self._known[number] = _usable(told, list(self._referred(client, told, set())), number)
                    except _UnknownError as error:
                        unknown[number] = str(error)
        return {number: unknown[number] if number in unknown else self._known[number] for number in wanted}

    def _referred(self, client: httpx.Client, told: Mapping[str, Any], seen: set[tuple[str, int]]) -> Iterator[str]:
        """The schemas that one refers to, each after those that it refers to itself."""
        for reference in told.get("references") or ():
            subject, version = str(reference["subject"]), int(reference["version"])
            if (subject, version) not in seen:
                seen.add((subject, version))
                # What was deleted since is still what the schema means.
                path = f"subjects/{quote(subject, safe='')}/versions/{version}?deleted=true"
                found = self._ask(client, path, f"version {version} of {subject}, which an Avro schema refers to,")
                yield from self._referred(client, found, seen)
                yield str(found["schema"])

    def _ask(self, client: httpx.Client, path: str, what: str) -> dict[str, Any]:
        """The registry's answer, an object with the schema; _UnknownError if it has none."""
        import httpx

        try:
            response = client.get(f"{self.registry_url}/{path}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(
                f"no schema registry answers at {self.registry_url} ({type(error).__name__}); "
                "see whether it is up, or correct PERENNIAL_SCHEMA_REGISTRY_URL"
            ) from error
        try:
            told = response.json()
        except ValueError:
            told = None
        told = told if isinstance(told, dict) else {}
        if response.status_code == 404 and told.get("error_code") in UNKNOWN:
            raise _UnknownError(f"{what} is not known to the registry at {self.registry_url}")
        # Any other failure is the registry's or the address's: records must not be given up for it.
        if response.status_code != 200 or not isinstance(told.get("schema"), str):
            raise UnreachableError(
                f"{self.registry_url} answered {response.status_code} when asked for {path}, not as a schema registry does; "
                "see its log, or correct PERENNIAL_SCHEMA_REGISTRY_URL"
            )
        return told


class _UnknownError(LookupError):
    """The registry has no such schema yet."""


def _usable(told: Mapping[str, Any], referred: Sequence[str], number: int) -> Schema | str:
    """The schema of a registry's answer, or why nothing is read with it."""
    if told.get("schemaType", "AVRO") != "AVRO":
        return f"schema {number} is {told['schemaType']}, expected Avro"
    return _prepared(str(told["schema"]), number, referred)


def _from_file(path: Path, number: int) -> Schema:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"Avro schema {number}: {path} cannot be read ({error}); correct avro_schemas") from error
    schema = _prepared(text, number)
    if isinstance(schema, str):
        raise UsageError(f"{path}: {schema}; correct the file")
    return schema


def _prepared(text: str, number: int, referred: Sequence[str] = ()) -> Schema | str:
    """A record's schema, parsed; or why nothing is read with it. What it refers to comes before what refers to that."""
    from fastavro import parse_schema
    from fastavro.schema import SchemaParseException, UnknownType

    named: dict[str, Any] = {}
    try:
        *others, schema = (parse_schema(json.loads(one), named) for one in (*referred, text))
    except (ValueError, TypeError, LookupError, RecursionError, SchemaParseException, UnknownType) as error:
        return f"Avro schema {number} cannot be parsed: {error!r:.200}"
    if not isinstance(schema, dict) or schema["type"] not in ("record", "error"):
        return f"Avro schema {number} is no record's"
    held: dict[str, _Held] = {}
    try:
        for one in (*others, schema):
            _held_by(one, held, ())
    except UnsafeSchemaError as error:
        return f"Avro schema {number} is not read: {error}"
    return schema


class UnsafeSchemaError(ValueError):
    """A few bytes in this schema can hold a document without bounds."""


@dataclass(frozen=True)
class _Held:
    """What every value of a schema is.

    Attributes:
        bytes: whether it takes at least one byte.
        fields: how many it has at most, those of records within it included; of an array or a map, with one item.
    """

    bytes: bool
    fields: int = 0


def _held_by(schema: Any, named: dict[str, _Held], within: tuple[str, ...]) -> _Held:
    """What the values of a schema hold; a type with a name is looked at once, however often it is used.

    Args:
        schema: or a part of one, as fastavro parsed it.
        named: what is known already, by name; more is put into it.
        within: names of the records around it.

    Raises:
        UnsafeSchemaError: a type holds itself, so that a value can be nested as deep as it is long, which ends the process;
            or an array's items may take no bytes, so that nine bytes hold 2^63 of them; or a record has too many fields
            within fields, of which n records that each hold the next one twice make 2^n.
    """
    if isinstance(schema, list):
        choices = [_held_by(choice, named, within) for choice in schema]
        return _Held(True, max((choice.fields for choice in choices), default=0))  # a byte for the number of the choice
    if isinstance(schema, str):
        if schema in within:
            raise UnsafeSchemaError(f"its type {schema!r} holds itself")
        return named.get(schema, _Held(schema != "null"))
    kind, name = schema["type"], schema.get("name", "")
    if kind in ("record", "error"):
        held = [_held_by(field["type"], named, (*within, name)) for field in schema["fields"]]
        fields = sum(1 + one.fields for one in held)
        if fields > MAX_FIELDS:
            raise UnsafeSchemaError(
                f"with the records within it, its type {name!r} has more than {MAX_FIELDS:,} fields"
            )
        named[name] = _Held(any(one.bytes for one in held), fields)
        return named[name]
    if kind in ("array", "map"):
        item = _held_by(schema["items" if kind == "array" else "values"], named, within)
        if kind == "array" and not item.bytes:
            raise UnsafeSchemaError("the items of an array take no bytes")
        return _Held(True, item.fields)
    if kind == "fixed":
        named[name] = _Held(schema["size"] > 0)
        return named[name]
    if kind == "enum":
        return _Held(True)
    return _held_by(kind, named, within)


def read_avro(framed_values: pa.Array[Any], event: EventSpec, now: datetime, schemas: WriterSchemas) -> Read:
    """Read records in Avro, each by the schema it was written with.

    Args:
        framed_values: n values of records, bytes or null, some thousands at most.
        event: what they should be. A field that the writer lacks is null, one that the event lacks is kept in `extra`.
        now: the clock that event times are held against, UTC.
        schemas: of the writers.

    Returns:
        Every value once: as a row, or refused with a reason.

    Raises:
        UnreachableError: the schema registry does not answer.
        UsageError: a file of a schema cannot be read.
    """
    values = framed_values.to_pylist()
    refused = {place: reason for place, value in enumerate(values) if (reason := _unframed(value))}
    framed = {
        place: int.from_bytes(value[1:FRAME_BYTES])
        for place, value in enumerate(values)
        if value and place not in refused
    }
    known = schemas.find(framed.values())
    places, documents = [], []
    for place, number in framed.items():
        schema = known[number]
        document = schema if isinstance(schema, str) else _document(values[place] or b"", schema, number)
        if isinstance(document, str):
            refused[place] = document
        else:
            places.append(place)
            documents.append(document)
    return read_documents(documents, places, refused, event, now)


def _unframed(value: bytes | None) -> str | None:
    if (reason := unreadable(value)) is not None or value is None:
        return reason
    if len(value) < FRAME_BYTES or value[0] != 0:
        return f"not Confluent's framing of Avro: it starts with {value[:FRAME_BYTES]!r}, expected a zero byte and a schema id"
    return None


def _document(value: bytes, schema: Schema, number: int) -> dict[str, Any] | str:
    """The record that a framed value holds, or why it holds none."""
    from fastavro import schemaless_reader
    from fastavro.read import SchemaResolutionError

    stream = io.BytesIO(value)
    stream.seek(FRAME_BYTES)
    try:
        document = schemaless_reader(stream, schema, None)
    except (EOFError, ValueError, LookupError, ArithmeticError, TypeError, SchemaResolutionError) as error:
        return f"not a record of Avro schema {number}: {type(error).__name__} {error!s:.100}"
    if left := len(value) - stream.tell():
        return f"not a record of Avro schema {number}: {counted(left, 'byte')} left over"
    return document if isinstance(document, dict) else f"Avro schema {number} is no record's"


def encode_avro(events: pl.DataFrame, event: EventSpec) -> list[bytes]:
    """Events as framed Avro, in order, by the event's file of the highest id.

    Raises:
        UsageError: the event has no file of a schema, or the events do not fit it.
    """
    from fastavro import schemaless_writer

    if not event.avro_schemas:
        raise UsageError(f"{event.topic} has no avro_schemas to write with; name a file by its id")
    number = max(event.avro_schemas)
    schema = _from_file(event.avro_schemas[number], number)
    written = []
    for row in events.select(list(event.schema_)).iter_rows(named=True):
        stream = io.BytesIO()
        stream.write(b"\0" + number.to_bytes(FRAME_BYTES - 1))
        try:
            schemaless_writer(stream, schema, row)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            raise UsageError(
                f"{event.topic}: an event does not fit {event.avro_schemas[number]} ({error!s:.100}); correct one of them"
            ) from error
        written.append(stream.getvalue())
    return written
