"""All rows of a feature view anew, from the events in the lake, after its definition was changed.

The rows are written to files that nobody reads yet; one commit puts them in the place of all that were there, together with
the Kafka positions up to which they were built. Killed before it, the old rows are whole.

The lake first, then online, the other way round than the stream. What a killed stream wrote online, the next run builds again
from the positions, so it may run ahead of the lake. Nobody goes on with a killed backfill: had it been online first, the store
would hold values that the lake does not, and that the stream, which still builds on the old rows, could not correct, because
those of a rebuild are newer than its own. Killed after the commit, online is behind the lake, as after the loss of a store:
`perennial features check` finds it, and `perennial features materialize`, or another backfill, mends it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl

from features import windows
from features.built import Built, read_built
from features.ingest import MAX_NEW_ROWS, new_features
from features.lake import EVENT_TIMESTAMP, Lake, LakeCommit
from features.materialize import materialize
from features.places import event_spans
from features.replacement import RowFile, missing, replace_rows, write_files
from features.store import OnlineWriter, view_table
from features.topic_stream import add_new_columns
from perennial.errors import ConflictError, StateError
from perennial.settings import Settings
from pipelines.spec import EventSpec, FeatureView, PipelineSpec

# A follower commits every few seconds, catching up with it takes a fraction of one.
COMMIT_TRIES = 20
# `perennial lake expire` takes files of an hour or more for those of a failed commit.
LOOK_AGAIN_AFTER_S = 1_800.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How finely the rows of a file are spread over its time.
POINTS = 20


@dataclass(frozen=True)
class Backfill:
    """What a backfill did to a view.

    Attributes:
        view: the view.
        rows_before: rows of its table before, those included that later ones had corrected.
        rows_after: rows after.
        online_keys: keys whose online value was written.
        removed_keys: keys that the lake no longer has, taken out of the online store.
        seconds: how long it took.
    """

    view: str
    rows_before: int
    rows_after: int
    online_keys: int
    removed_keys: int
    seconds: float


def backfill(settings: Settings, lake: Lake, spec: PipelineSpec, view: FeatureView) -> Backfill:
    """Build every row of a view anew and put them in the place of the old ones, in the lake and then online.

    Safe beside ingests and followers: what they commit meanwhile is built, too, before the rows are replaced; they get a
    conflict and go on from the new rows. Memory: a slice of time at once, MAX_NEW_ROWS events or, if it has more, as long as
    the longest window.

    Returns:
        What was done. It can be repeated.

    Raises:
        StateError: the lake holds no events of the view's topic yet, or files were deleted before they were committed.
        ConflictError: another backfill of the view came first, or ingests kept committing first; the rows in the lake are whole.
        UnreachableError: the lake or the online store does not answer. If it is the online store, the lake has the new rows.
    """
    began = time.monotonic()
    event, table = spec.event(view.topic), view_table(view)
    lake.existing(event.table)
    add_new_columns(lake, event)
    online = OnlineWriter(spec, settings)
    rows_before, known = lake.rows(table), read_built(lake, spec, view)
    reached = lake.offsets(event.table)
    files: list[RowFile] = []
    for since, until in slices(_spans(lake, event), MAX_NEW_ROWS, windows.lookback(view)):
        rows = rows_between(lake, view, event, reached, since, until)
        files += write_files(lake, table, known.anew().dated(rows))
    rows_after = _commit(lake, spec, view, known, files, reached, began).rows
    done = materialize(online, lake, view)
    return Backfill(view.name, rows_before, rows_after, done.written, done.removed, time.monotonic() - began)


def _commit(
    lake: Lake,
    spec: PipelineSpec,
    view: FeatureView,
    known: Built,
    files: list[RowFile],
    reached: Mapping[int, int],
    began: float,
) -> LakeCommit:
    """Replace the rows, once they have caught up with what others committed.

    Args:
        known: what the table said before; of another rebuild, these rows would not be the newest.
        files: the new rows.
        reached: Kafka positions up to which they were built.
        began: when the first of them may have been written, as of time.monotonic.
    """
    event, table, anew = spec.event(view.topic), view_table(view), known.anew()
    for tries_left in reversed(range(COMMIT_TRIES)):
        for rows, end in new_features(lake, view, event, reached, lake.offsets(event.table)):
            files += write_files(lake, table, anew.dated(rows))
            reached = {**reached, **end}
        # With every try: catching up takes time, too.
        if time.monotonic() - began > LOOK_AGAIN_AFTER_S and (gone := missing(lake, table, files)):
            raise StateError(
                f"{len(gone)} files of the backfill of {view.name} were deleted before it was done, such as {gone[0]}; nothing "
                "was replaced. Run it again, and `perennial lake expire` not meanwhile or with a longer --older-than"
            )
        try:
            return replace_rows(lake, table, files, reached, anew.words, known.still)
        except ConflictError:
            if not tries_left or read_built(lake, spec, view).rebuilds != known.rebuilds:
                raise
    raise AssertionError("unreachable")


def rows_between(
    lake: Lake,
    view: FeatureView,
    event: EventSpec,
    places: Mapping[int, int],
    since: datetime | None,
    until: datetime | None,
) -> pl.DataFrame:
    """A view's rows with event times in [since, until), built from the lake's events before the given Kafka positions.

    Args:
        since: None = from the first event.
        until: None = to the last one.
    """
    earliest = since - windows.lookback(view) if since else None
    events = lake.read_places(event.table, {}, places, windows.inputs(view, event), earliest, until)
    is_new = pl.col(EVENT_TIMESTAMP) >= since if since else pl.lit(value=True)
    return windows.build_features(events.with_columns(is_new.alias(windows.IS_NEW)), view, event)


def slices(
    spans: Sequence[tuple[datetime, datetime, int]], most: int, least: timedelta
) -> Iterator[tuple[datetime | None, datetime | None]]:
    """All of time, cut so that there are about `most` rows in each slice.

    No slice is shorter than `least`: to build it, as much is read before it, which would be read again and again.

    Args:
        spans: (first event time, last, rows) of each file, whose rows are taken to be spread evenly over its time.

    Returns:
        [since, until) of each slice; None is without an end.
    """
    points: list[tuple[datetime, float]] = []
    for first, last, rows in spans:
        parts = 1 + rows * POINTS // most
        points += [(first + (last - first) * part / parts, rows / parts) for part in range(parts)]
    points.sort()
    cuts: list[datetime] = []
    held = 0.0
    for at, weight in points:
        if held + weight > most and at - (cuts[-1] if cuts else points[0][0]) >= least:
            cuts.append(at)
            held = 0.0
        held += weight
    return pairwise([None, *cuts, None])


def _spans(lake: Lake, event: EventSpec) -> list[tuple[datetime, datetime, int]]:
    with lake.answering():
        found = event_spans(lake.existing(event.table))
    moments = {at: EPOCH + timedelta(microseconds=at) for first, last, _ in found for at in (first, last)}
    return [(moments[first], moments[last], rows) for first, last, rows in found]
