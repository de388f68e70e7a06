from __future__ import annotations

import itertools
import math
import multiprocessing
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis_server import PASSWORD, RedisServer
from toys_online import ASKED, NAMES, SPEC, T0, VIEW, Row, frame, held, toys
from toys_online import settings as settings  # a fixture

from features.feast_layout import key_bytes
from features.feast_online import AtomicRegistryStore
from features.light_feast import feast
from features.store import OnlineFeatures, OnlineWriter, open_store, write_online
from perennial.errors import StateError
from perennial.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_a_microsecond_decides_which_row_is_newer(settings: Settings) -> None:
    writer, created, tick = OnlineWriter(SPEC, settings), T0 + timedelta(days=1), timedelta(microseconds=1)
    assert writer.write(VIEW, frame(("a", T0 + tick, created, 2.0, 2.5))) == 1
    assert (
        writer.write(VIEW, frame(("a", T0, created + timedelta(days=1), 1.0, 1.5), ("b", T0, created, 9.0, 9.5))) == 1
    )
    assert held(writer)["a"] == (T0 + tick, created, 2.0, 2.5)
    assert writer.write(VIEW, frame(("a", T0 + 2 * tick, created, 3.0, 3.5))) == 1
    assert held(writer) == {"a": (T0 + 2 * tick, created, 3.0, 3.5), "b": (T0, created, 9.0, 9.5)}


def test_a_correction_of_the_same_moment_goes_in_and_what_it_corrected_does_not_come_back(settings: Settings) -> None:
    writer, created, tick = OnlineWriter(SPEC, settings), T0 + timedelta(days=1), timedelta(microseconds=1)
    first, corrected = ("a", T0, created, 1.0, 1.0), ("a", T0, created + tick, 2.0, 2.0)
    assert [writer.write(VIEW, frame(row)) for row in (first, corrected, first)] == [1, 1, 0]
    assert held(writer)["a"] == corrected[1:]


def test_the_same_row_twice_changes_nothing_and_counts(settings: Settings) -> None:
    writer, row = OnlineWriter(SPEC, settings), ("a", T0, T0, 1.0, 2.0)
    assert [writer.write(VIEW, frame(row)) for _ in range(2)] == [1, 1]
    assert held(writer) == {"a": row[1:]}


def test_a_newer_row_without_any_value_takes_the_place_of_values(settings: Settings) -> None:
    writer = OnlineWriter(SPEC, settings)
    writer.write(VIEW, frame(("a", T0, T0, 1.0, 2.0), ("b", T0, T0, 1.0, 2.0)))
    writer.write(
        VIEW, frame(("a", T0 + timedelta(hours=1), T0, None, None), ("b", T0 + timedelta(hours=1), T0, None, 3.0))
    )
    assert {key: values[2:] for key, values in held(writer).items()} == {"a": (None, None), "b": (None, 3.0)}


def test_every_double_comes_back_as_it_was(settings: Settings) -> None:
    writer = OnlineWriter(SPEC, settings)
    numbers = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, 0.1]
    writer.write(VIEW, frame(*((f"k{i}", T0, T0, number, 1.0) for i, number in enumerate(numbers))))
    found = held(writer)
    assert [repr(found[f"k{i}"][2]) for i in range(len(numbers))] == [repr(number) for number in numbers]


def test_what_is_served_is_what_was_written(settings: Settings) -> None:
    at = T0 + timedelta(microseconds=123_457)
    write_online(SPEC, settings, VIEW, frame(("a", at, at, 1.0, 2.0), ("ü*[", at, at, None, 4.0)))
    asked = pl.DataFrame(
        {
            "toy": ["t1", "t2", "t3", "t4"],
            "event_timestamp": [at, at, at, at],
            "shop": ["ü*[", "a", "nobody", None],
            "price": [0.0] * 4,
            "sold": [True] * 4,
        },
        schema=ASKED.schema_,
    )
    served = OnlineFeatures(SPEC, settings).frame(asked)
    assert served.select(NAMES).rows() == [(None, 4.0), (1.0, 2.0), (None, None), (None, None)]


def test_a_value_lives_to_the_microsecond(settings: Settings) -> None:
    at, ttl = T0 + timedelta(microseconds=900_000), timedelta(seconds=VIEW.ttl_s)
    write_online(SPEC, settings, VIEW, frame(("a", at, at, 1.0, 2.0)))
    asked = pl.DataFrame(
        {
            "toy": ["t1", "t2"],
            "event_timestamp": [at + ttl, at + ttl + timedelta(microseconds=1)],
            "shop": ["a", "a"],
            "price": [0.0, 0.0],
            "sold": [True, True],
        },
        schema=ASKED.schema_,
    )
    assert OnlineFeatures(SPEC, settings).frame(asked)["shop_price_mean_1h"].to_list() == [1.0, None]


def test_feast_itself_reads_the_values_and_cannot_write_older_ones(settings: Settings) -> None:
    store = open_store(SPEC, settings)
    OnlineWriter(SPEC, settings).write(VIEW, frame(("a", T0, T0, 1.0, 2.0)))

    def push(at: datetime, mean: float) -> None:
        rows = frame(("a", at, T0, mean, mean), ("b", at, T0, mean, mean)).to_pandas()
        store.write_to_online_store("shop_prices", rows)

    push(T0 - timedelta(seconds=1), 7.0)
    asked = {"features": [f"shop_prices:{n}" for n in NAMES], "entity_rows": [{"shop": s} for s in ("a", "b", "c")]}
    assert store.get_online_features(**asked).to_dict() == {
        "shop": ["a", "b", "c"],
        "shop_price_mean_1h": [1.0, 7.0, None],
        "shop_price_last_1h": [2.0, 7.0, None],
    }
    push(T0 + timedelta(microseconds=1), 8.0)
    assert store.get_online_features(**asked).to_dict()["shop_price_mean_1h"] == [8.0, 8.0, None]


def test_a_feature_added_later_never_stands_beside_values_of_another_time(settings: Settings) -> None:
    old, new = toys(features=NAMES[:1]), toys()
    write_online(old, settings, old.views[0], frame(("a", T0, T0, 1.0), features=NAMES[:1]))
    assert write_online(new, settings, VIEW, frame(("a", T0 - timedelta(hours=1), T0, 5.0, 5.5))) == 0
    assert held(OnlineWriter(new, settings)) == {"a": (T0, T0, 1.0, None)}


def test_every_key_is_listed_and_nobody_elses(settings: Settings) -> None:
    many = [f"key*[?]\\{i}ü" for i in range(2_500)]
    other, longer, namesake = toys(view="other_view"), toys("my_toys"), toys("toy")
    for spec, keys in ((SPEC, many), (other, ["of another view"]), (longer, ["longer"]), (namesake, ["shorter"])):
        write_online(spec, settings, spec.views[0], frame(*((key, T0, T0, 1.0, 2.0) for key in keys)))
    assert held(OnlineWriter(SPEC, settings)).keys() == set(many)
    assert held(OnlineWriter(longer, settings)).keys() == {"longer"}


def test_definitions_are_applied_again_when_the_store_is_another_or_its_file_is_gone(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    redis_server.client.flushall()
    local, shared = Settings(home=tmp_path), Settings(home=tmp_path, online_store_url=redis_server.url)
    rows = frame(("a", T0, T0, 1.0, 2.0))
    for each in (local, shared, local):
        assert write_online(SPEC, each, VIEW, rows) == 1
    for file in (local.feast_dir / SPEC.name).glob("online.db*"):
        file.unlink()
    assert write_online(SPEC, local, VIEW, rows) == 1
    assert held(OnlineWriter(SPEC, local)).keys() == {"a"}


def hammer(settings: Settings, rows: list[Row], seed: int, barrier: Any) -> None:
    shuffled = random.Random(seed)
    shuffled.shuffle(rows)
    writer = OnlineWriter(SPEC, settings)
    barrier.wait(60)
    start = 0
    while start < len(rows):
        size = shuffled.choice((1, 3, 20, 100))
        writer.write(VIEW, frame(*rows[start : start + size]))
        start += size


@pytest.fixture(scope="module")
def forks() -> Iterator[Any]:
    """Processes that start at once, so that both write at the same time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["feast", "features.feast_online", "features.feast_redis", __name__])
    sys.path.insert(0, str(Path(__file__).parent))
    yield context
    sys.path.remove(str(Path(__file__).parent))


def test_two_processes_that_write_the_same_keys_in_any_order_end_with_the_newest_of_all(
    settings: Settings, forks: Any
) -> None:
    """No two rows of a key have the same times, and both values of a row are the same: a mixed row would show."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    times = [T0 + timedelta(microseconds=us) for us in (0, 1, 2, 999_999, 1_000_000, 1_000_001, 60_000_000)]
    rows: list[Row] = []
    for key, (number, (at, created)) in itertools.product(range(12), enumerate(itertools.product(times, times))):
        rows.append((f"k{key}", at, created, float(number), float(number)))
    newest = {key: max((r for r in rows if r[0] == key), key=lambda r: r[1:3])[1:] for key, *_ in rows}
    chosen.shuffle(rows)
    # One has the newest row of half of the keys, the other of the rest, and each a share of all others.
    barrier = forks.Barrier(2)
    open_store(SPEC, settings)
    writers = [
        forks.Process(target=hammer, args=(settings, rows[i::2], chosen.randrange(10**6), barrier)) for i in (0, 1)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0, 0]
    assert held(OnlineWriter(SPEC, settings)) == newest


moments = st.integers(-3, 3).map(lambda us: T0 + timedelta(microseconds=us)) | st.integers(
    -(2 * 10**15), 3 * 10**16
).map(lambda us: EPOCH + timedelta(microseconds=us))
writes = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), moments, moments.filter(lambda at: at > EPOCH), *[st.none() | st.floats()] * 2
        ),
        max_size=5,
    ),
    max_size=6,
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> list[OnlineWriter]:
    homes = [tmp_path_factory.mktemp(name) for name in ("sqlite", "redis")]
    urls = ["", redis_server.url]
    return [OnlineWriter(SPEC, Settings(home=h, online_store_url=u)) for h, u in zip(homes, urls, strict=True)]


unused = itertools.count()


@given(writes)
@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_writes_both_stores_hold_the_newest_row(both: list[OnlineWriter], batches: list[list[Row]]) -> None:
    run = next(unused)
    expected: dict[str, Row] = {}
    for row in itertools.chain(*batches):
        key = f"{run}-{row[0]}"
        if key not in expected or row[1:3] >= expected[key][1:3]:
            expected[key] = (key, *row[1:])
    for batch in batches:
        renamed = frame(*((f"{run}-{key}", *rest) for key, *rest in batch))
        counts = [writer.write(VIEW, renamed) for writer in both]
        assert counts[0] == counts[1]
    wanted = sorted(expected)
    for writer in both:
        found = writer.read(VIEW, wanted).sort("shop")
        assert repr(found.rows()) == repr(frame(*(expected[key] for key in wanted)).rows())


def test_keys_are_written_as_feast_writes_them() -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = ["", "a", "N14228", "ü" * 100, "x" * 300]
    asked = [EntityKey(join_keys=["shop"], entity_values=[Value(string_val=key)]) for key in keys]
    assert key_bytes("shop", keys) == [serialize_entity_key(key, 3) for key in asked]


def feasts_own(settings: Settings, online: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Feast's own store of the same values: (store, its configuration, the view)."""
    from feast.infra.online_stores.helpers import get_online_store_from_config

    folder = settings.feast_dir / SPEC.name
    config = feast.RepoConfig(
        project=SPEC.name,
        provider="local",
        registry=str(folder / "another.db"),
        online_store=online,
        entity_key_serialization_version=3,
    )
    view = open_store(SPEC, settings).get_feature_view(VIEW.name)
    return get_online_store_from_config(config.online_store), config, view


def feast_row(key: str, at: datetime, *values: float) -> tuple[Any, dict[str, Any], datetime, datetime]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    proto = EntityKey(join_keys=["shop"], entity_values=[Value(string_val=key)])
    return proto, {n: Value(double_val=v) for n, v in zip(NAMES, values, strict=True)}, at, at


def test_feasts_own_redis_store_reads_and_writes_the_same_hashes(tmp_path: Path, redis_server: RedisServer) -> None:
    redis_server.client.flushall()
    settings = Settings(home=tmp_path, online_store_url=redis_server.url)
    writer = OnlineWriter(SPEC, settings)
    where = f'127.0.0.1:{redis_server.port},password="{PASSWORD}",db=2'
    own, config, view = feasts_own(settings, {"type": "redis", "connection_string": where})
    at = T0 + timedelta(microseconds=250_000)
    own.online_write_batch(config, view, [feast_row("a", at, 1.0, 2.0)], None)
    assert held(writer) == {"a": (at, None, 1.0, 2.0)}
    assert writer.write(VIEW, frame(("a", at - timedelta(microseconds=1), T0, 9.0, 9.0))) == 0
    assert writer.write(VIEW, frame(("a", at, T0, 3.0, 4.0))) == 1
    (found,) = own.online_read(config, view, [feast_row("a", at, 0.0, 0.0)[0]], list(NAMES))
    assert found[0] == at
    assert [found[1][name].double_val for name in NAMES] == [3.0, 4.0]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_file_that_feasts_own_sqlite_store_wrote_is_taken_over(
    tmp_path: Path, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        settings = Settings(home=tmp_path)
        folder = settings.feast_dir / SPEC.name
        path = folder / "online.db"
        own, config, view = feasts_own(settings, {"type": "sqlite", "path": str(path)})
        for file in folder.glob("online.db*"):
            file.unlink()
        own.update(config, [], [view], [], [], True)
        own.online_write_batch(config, view, [feast_row("a", T0, 1.0, 2.0), feast_row("b", T0, 3.0, 4.0)], None)
        own._conn.close()
        (folder / "applied.json").write_text("of an older version")
        assert write_online(SPEC, settings, VIEW, frame(("a", T0 - timedelta(seconds=1), T0, 9.0, 9.0))) == 0
        assert write_online(SPEC, settings, VIEW, frame(("b", T0, T0, 5.0, 6.0))) == 1
        assert held(OnlineWriter(SPEC, settings)) == {"a": (T0, T0, 1.0, 2.0), "b": (T0, T0, 5.0, 6.0)}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_request_does_not_wait_for_a_writer_and_a_second_writer_does(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    slow = sqlite3.connect(settings.feast_dir / SPEC.name / "online.db", isolation_level=None, check_same_thread=False)
    slow.execute("BEGIN IMMEDIATE")
    slow.execute('DELETE FROM "toys.shop_prices"')
    assert OnlineWriter(SPEC, settings).read(VIEW, ["a"]).height == 1
    second = threading.Thread(target=write_online, args=(SPEC, settings, VIEW, frame(("b", T0, T0, 3.0, 4.0))))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    slow.execute("COMMIT")
    second.join(30)
    assert held(OnlineWriter(SPEC, settings)).keys() == {"b"}


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    path = settings.feast_dir / SPEC.name / "online.db"
    for file in path.parent.glob("online.db*"):
        file.unlink()
    path.write_text("no database" * 1_000)
    with pytest.raises(StateError, match=r"online store at .*online\.db cannot be used"):
        write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))


def test_a_registry_that_could_not_be_written_whole_is_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    store = open_store(SPEC, settings)
    path = settings.feast_dir / SPEC.name / "registry.db"
    before = path.read_bytes()

    class Cut(BaseException):
        pass

    def cut(*_: Any) -> None:
        raise Cut

    registry = store.registry._registry_store
    assert isinstance(registry, AtomicRegistryStore)
    with monkeypatch.context() as patch:
        patch.setattr("feast.infra.registry.file.os.fsync", cut)
        with pytest.raises(Cut):
            registry.update_registry_proto(registry.get_registry_proto())
    assert path.read_bytes() == before
