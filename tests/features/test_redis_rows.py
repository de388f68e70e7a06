"""features/redis_rows.py against Feast itself, which writes to a real Redis and reads from it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis_server import PASSWORD, RedisServer
from toys_online import ASKED, SPEC, T0, VIEW, frame

from features.feast_layout import read_time, written_time
from features.light_feast import EntityKey, feast
from features.redis_rows import EPOCH, RedisRows
from features.store import FeastRows, open_store, write_online
from perennial.settings import Settings
from pipelines.spec import Aggregate, Feature, FeatureView, PipelineSpec

# isort: split
# After light_feast: whatever imports Feast first decides how.
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.Value_pb2 import DoubleList, Null, Value


def view(name: str, entity: str, *features: str) -> FeatureView:
    made = tuple(Aggregate(name=f, field="price", function="mean", window_s=3_600) for f in features)
    return FeatureView(name=name, entity=entity, topic=ASKED.topic, key=entity, aggregates=made, ttl_s=86_400)


# Two views share the hash of a shop, whose key begins as a toy's does not.
VIEWS = (
    view("shop_prices", "shop", "shop_price_mean_1h", "shop_price_last_1h"),
    view("shop_sales", "shop", "shop_sales_1h"),
    view("toy_prices", "toy", "toy_price_mean_1h"),
)
NAMES = [tuple(a.name for a in v.aggregates) for v in VIEWS]
MANY: PipelineSpec = SPEC.model_copy(
    update={
        "views": VIEWS,
        "features": tuple(Feature(name=n, kind="numeric") for n in ("price", *(n for some in NAMES for n in some))),
    }
)


class Both:
    """Feast with its own Redis store, nothing of it ours, and our reader of the same Redis."""

    def __init__(self, settings: Settings, server: RedisServer) -> None:
        self.client = server.client
        self.reader, self.guarded = RedisRows(MANY, settings), FeastRows(MANY, settings)
        self.store = open_store(MANY, settings)
        self.views = [self.store.get_feature_view(v.name) for v in VIEWS]
        where = f'127.0.0.1:{server.port},password="{PASSWORD}",db=2'
        self.config = feast.RepoConfig(
            project=MANY.name,
            provider="local",
            registry=str(settings.feast_dir / "another.db"),
            online_store={"type": "redis", "connection_string": where},
            entity_key_serialization_version=3,
        )
        self.own = get_online_store_from_config(self.config.online_store)

    def write(self, rows: dict[tuple[int, str], tuple[datetime, dict[str, Any]]]) -> None:
        self.client.flushdb()
        for (which, key), (at, values) in rows.items():
            self.own.online_write_batch(
                self.config, self.views[which], [(self.proto(which, key), values, at, None)], None
            )

    def proto(self, which: int, key: str) -> Any:
        return EntityKey(join_keys=[VIEWS[which].entity], entity_values=[Value(string_val=key)])

    def read(self, which: int, keys: list[str]) -> dict[str, tuple[datetime, dict[str, float]]]:
        """What Feast's own store reads, its numbers alone; of a key that is not there it tells 1970, and nothing else."""
        protos = [self.proto(which, key) for key in keys]
        answers = self.own.online_read(self.config, self.views[which], protos, list(NAMES[which])) if keys else []
        return {
            key: (at.astimezone(UTC), {n: v.double_val for n, v in values.items() if v.HasField("double_val")})
            for key, (at, values) in zip(keys, answers, strict=True)
            if at != EPOCH
        }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Both:
    settings = Settings(home=tmp_path_factory.mktemp("home"), online_store_url=redis_server.url)
    return Both(settings, redis_server)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
moments = st.integers(1, 4 * 10**15).map(lambda us: EPOCH + timedelta(microseconds=us))
numbers = st.floats().map(lambda x: Value(double_val=x))
nulls = st.just(Value())
# What a view of ours has never held; Feast's program could write it all the same.
others = st.one_of(
    st.just(Value(null_val=Null.NULL)),
    st.floats(width=32).map(lambda x: Value(float_val=x)),
    st.integers(-(2**63), 2**63 - 1).map(lambda x: Value(int64_val=x)),
    st.integers(-(2**31), 2**31 - 1).map(lambda x: Value(int32_val=x)),
    st.integers(0, 2**40).map(lambda x: Value(unix_timestamp_val=x)),
    st.booleans().map(lambda x: Value(bool_val=x)),
    texts.map(lambda x: Value(string_val=x)),
    st.binary(max_size=9).map(lambda x: Value(bytes_val=x)),
    st.lists(st.floats(), max_size=1).map(lambda x: Value(double_list_val=DoubleList(val=x))),
)


def rows(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Rows by (view, key), each with some of the view's features."""

    def row(which: int) -> st.SearchStrategy[Any]:
        held = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES[which], values))
        return st.tuples(st.tuples(st.just(which), texts), st.tuples(moments, held))

    return st.lists(st.sampled_from(range(len(VIEWS))).flatmap(row), max_size=8).map(dict)


@given(rows(numbers | nulls | others), st.lists(texts, max_size=3))
@example({(0, "a"): (T0, {NAMES[0][0]: Value(double_val=0.0)}), (1, "a"): (T0, {})}, ["b"])
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_feast_has_written_is_read_as_feast_reads_it(both: Both, written: Any, absent: list[str]) -> None:
    both.write(written)
    keys = sorted({key for _, key in written} | set(absent))
    found = both.reader.read([(v, keys) for v in VIEWS])
    # As text, in which NaN equals NaN and 0 is not -0.
    assert list(map(repr, found)) == [repr(both.read(which, keys)) for which in range(len(VIEWS))]
    # Feast with our store, which is how SQLite is served.
    assert repr(found) == repr(both.guarded.read([(v, keys) for v in VIEWS]))


@given(rows(numbers | nulls), st.lists(texts, max_size=3))
@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_answers_as_get_online_features_does(both: Both, written: Any, absent: list[str]) -> None:
    both.write(written)
    keys = sorted({key for _, key in written} | set(absent)) or [""]
    told = both.store.get_online_features(
        features=[f"{v.name}:{name}" for v, names in zip(VIEWS, NAMES, strict=True) for name in names],
        entity_rows=[{"shop": key, "toy": key} for key in keys],
    ).to_dict()
    found = both.reader.read([(v, keys) for v in VIEWS])
    for names, held in zip(NAMES, found, strict=True):
        for name in names:
            assert repr([held[key][1].get(name) if key in held else None for key in keys]) == repr(told[name]), name


@given(st.integers(-(10**16), 10**16))
@example(-1)
def test_a_time_comes_back_to_the_microsecond(at_us: int) -> None:
    assert read_time(written_time(at_us)) == at_us


def test_rows_of_another_project_and_of_another_view_are_not_read(
    both: Both, redis_server: RedisServer, tmp_path: Path
) -> None:
    both.client.flushdb()
    settings = Settings(home=tmp_path, online_store_url=redis_server.url)
    write_online(SPEC.model_copy(update={"name": "xtoys"}), settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    assert both.reader.read([(v, ["a", "xa"]) for v in VIEWS]) == [{}, {}, {}]
    write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    found = both.reader.read([(v, ["a", "xa"]) for v in VIEWS])
    assert found == [{"a": (T0, dict(zip(NAMES[0], (1.0, 2.0), strict=True)))}, {}, {}]


def test_all_views_and_keys_are_asked_for_in_one_round_trip(both: Both) -> None:
    def reads() -> int:
        return int(both.client.info("stats")["total_reads_processed"])

    both.reader.read([(VIEWS[0], ["a"])])  # connected
    before = reads()
    both.reader.read([(v, [f"k{i}" for i in range(20)]) for v in VIEWS])
    assert reads() - before <= 3  # one for the question about it, and one if the sixty come in two pieces


# What a request needs, in an interpreter that would say so if Feast were imported.
READS = """
import sys
for name in ("feast", "pyarrow", "pandas", "duckdb"):
    sys.modules[name] = None
import polars as pl
from toys_online import ASKED, SPEC, T0
from features.store import OnlineFeatures
from perennial.settings import settings
asked = pl.DataFrame([("t1", T0, "a", 1.0, True)], schema=ASKED.schema_, orient="row")
print(OnlineFeatures(SPEC, settings()).frame(asked).rows()[0][-2:])
"""


def test_requests_are_answered_where_feast_is_not_installed_and_nothing_is_written(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    settings, home = Settings(home=tmp_path / "writer", online_store_url=redis_server.url), tmp_path / "home"
    write_online(SPEC, settings, VIEW, frame(("a", T0, T0, 1.0, 2.0)))
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{here.parents[1]}{os.pathsep}{here}",
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_ONLINE_STORE_URL": redis_server.url,
    }
    ran = subprocess.run(
        [sys.executable, "-c", READS],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, "(1.0, 2.0)\n"), ran.stderr
    assert not home.exists()
