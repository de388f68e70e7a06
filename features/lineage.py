"""Where a feature comes from: which topic, field, key, function, window and code version. Kept as Feast tags."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from features import windows
from pipelines.spec import FeatureView, PipelineSpec

UNKNOWN = "?"


@dataclass(frozen=True)
class FeatureLineage:
    """Where one feature comes from; all as text, as Feast keeps tags.

    Attributes:
        view: the feature view.
        feature: the feature.
        entity: the join key it is looked up by.
        topic: the Kafka topic of its events.
        key: the event field that holds the entity's key.
        field: the event field that is aggregated.
        function: how it is aggregated.
        window_s: length of the window in event time, in seconds.
        ttl_s: how long a value counts, in seconds.
        code: version of the code that computes it.
    """

    view: str
    feature: str
    entity: str
    topic: str
    key: str
    field: str
    function: str
    window_s: str
    ttl_s: str
    code: str


NAMES = ("view", "feature")
# To be raised when features/windows.py gives other values of the same events, so that people are told to backfill.
ROWS_VERSION = 1
VIEW_TAGS = ("entity", "topic", "key", "ttl_s", "code")


def declared(spec: PipelineSpec) -> tuple[FeatureLineage, ...]:
    """The lineage of every streamed feature of a pipeline, as its code says now."""
    return tuple(of for view in spec.views for of in of_view(spec, view))


def of_view(spec: PipelineSpec, view: FeatureView) -> tuple[FeatureLineage, ...]:
    """The lineage of a view's features."""
    code = code_version(spec.name)
    return tuple(
        FeatureLineage(
            view=view.name,
            feature=a.name,
            entity=view.entity,
            topic=view.topic,
            key=view.key,
            field=a.field,
            function=a.function,
            window_s=str(a.window_s),
            ttl_s=str(view.ttl_s),
            code=code,
        )
        for a in view.aggregates
    )


def tags(of: FeatureLineage) -> dict[str, str]:
    """A feature's tags in Feast."""
    return {name: value for name, value in asdict(of).items() if name not in NAMES}


def view_tags(spec: PipelineSpec, view: FeatureView) -> dict[str, str]:
    """A view's tags in Feast: what its features have in common, and which fields they read."""
    of_all = of_view(spec, view)
    common = {name: value for name, value in tags(of_all[0]).items() if name in VIEW_TAGS} if of_all else {}
    return {**common, "fields": ",".join(sorted({of.field for of in of_all}))}


def from_tags(view: str, feature: str, written: Mapping[str, str]) -> FeatureLineage:
    """A feature's lineage as its tags tell it; what they do not tell is `?`."""
    told = {f.name: written.get(f.name, UNKNOWN) for f in fields(FeatureLineage) if f.name not in NAMES}
    return FeatureLineage(view=view, feature=feature, **told)


def changes(now: Sequence[FeatureLineage], applied: Sequence[FeatureLineage]) -> list[str]:
    """What the code says now and the registry does not, and the other way round: a sentence each, in the code's order."""
    known = {(of.view, of.feature): of for of in applied}
    wanted = {(of.view, of.feature): of for of in now}
    told: list[str] = []
    for place, of in wanted.items():
        name = ".".join(place)
        was = known.get(place)
        if was is None:
            told.append(f"{name} is new in the code")
            continue
        differ = [f for f in tags(of) if f != "code" and getattr(of, f) != getattr(was, f)]
        told += [f"{name}: {f} was {getattr(was, f)}, the code says {getattr(of, f)}" for f in differ]
    told += [f"{'.'.join(place)} is no longer in the code" for place in known if place not in wanted]
    codes = {of.code for place, of in known.items() if place in wanted}
    told += [f"code {code} was applied, it is {of.code} now" for of in now[:1] for code in sorted(codes - {of.code})]
    return told


def definition(view: FeatureView) -> str:
    """A fingerprint of what decides the values of a view's rows.

    Not `code_version`, which a comment changes, and not how long a value counts, which is decided when it is read. Nor the
    topic's lateness, event id and horizon of copies: they decide which of the coming events count, and no backfill decides
    that anew.
    """
    told = [
        ROWS_VERSION,
        (view.entity, view.topic, view.key),
        sorted((a.name, a.field, a.function, a.window_s) for a in view.aggregates),
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


@lru_cache(maxsize=32)
def code_version(pipeline: str) -> str:
    """Perennial's version and a short hash of the code that computes a pipeline's features.

    Read once a process: its files may change while it runs, the code that it runs does not.
    """
    digest = hashlib.sha256()
    for name, path in _sources(pipeline):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"{version('perennial')}+{digest.hexdigest()[:8]}"


def _sources(pipeline: str) -> list[tuple[str, Path]]:
    own = [("features/windows.py", Path(windows.__file__))]
    found = importlib.util.find_spec(f"pipelines.{pipeline}")
    for folder in (found.submodule_search_locations or ()) if found else ():
        own += [(str(path.relative_to(folder)), path) for path in sorted(Path(folder).rglob("*.py"))]
    return own
