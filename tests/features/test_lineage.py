from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from features.lineage import FeatureLineage, changes, declared, definition
from features.store import applied_lineage, open_store
from perennial.errors import StateError
from perennial.scaffold import init_pipeline
from perennial.settings import Settings
from pipelines.spec import Aggregate, PipelineSpec

OF = FeatureLineage(
    view="prices",
    feature="shop_price_mean_1h",
    entity="shop",
    topic="toys.sold.v1",
    key="shop_id",
    field="price",
    function="mean",
    window_s="3600",
    ttl_s="7200",
    code="0.1.0+aaaaaaaa",
)


def test_what_is_applied_tells_where_every_feature_comes_from(tmp_path: Path, spec: PipelineSpec) -> None:
    settings = Settings(home=tmp_path)
    open_store(spec, settings)
    applied = {(of.view, of.feature): of for of in applied_lineage(spec, settings)}
    assert applied.keys() == {(v.name, a.name) for v in spec.views for a in v.aggregates}
    for view in spec.views:
        for aggregate in view.aggregates:
            of = applied[view.name, aggregate.name]
            assert (of.topic, of.key, of.entity) == (view.topic, view.key, view.entity)
            assert (of.field, of.function) == (aggregate.field, aggregate.function)
            assert (of.window_s, of.ttl_s) == (str(aggregate.window_s), str(view.ttl_s))
            assert of.code.startswith("0.1.0+")
    assert changes(declared(spec), tuple(applied.values())) == []


def test_anybody_finds_the_lineage_as_tags_in_feasts_registry(tmp_path: Path, spec: PipelineSpec) -> None:
    view = spec.views[0]
    found = open_store(spec, Settings(home=tmp_path)).get_feature_view(view.name)
    assert found.tags["topic"] == view.topic
    assert set(found.tags["fields"].split(",")) == {a.field for a in view.aggregates}
    tags = {feature.name: feature.tags for feature in found.features}
    assert {name: t["window_s"] for name, t in tags.items()} == {a.name: str(a.window_s) for a in view.aggregates}
    assert all(t["code"] == found.tags["code"] for t in tags.values())


def test_a_changed_pipeline_is_told_until_it_is_applied(tmp_path: Path, spec: PipelineSpec) -> None:
    settings = Settings(home=tmp_path)
    open_store(spec, settings)
    view = spec.views[0]
    first = view.aggregates[0]
    longer = first.model_copy(update={"window_s": first.window_s * 2})
    more = Aggregate(name="a_new_one", field=first.field, function="count", window_s=60)
    changed = view.model_copy(update={"aggregates": (longer, *view.aggregates[1:], more), "ttl_s": 12_345})
    new = spec.model_copy(update={"views": (changed, *spec.views[1:])})
    told = changes(declared(new), applied_lineage(new, settings))
    assert f"{view.name}.{first.name}: window_s was {first.window_s}, the code says {first.window_s * 2}" in told
    assert f"{view.name}.{first.name}: ttl_s was {view.ttl_s}, the code says 12345" in told
    assert f"{view.name}.a_new_one is new in the code" in told
    open_store(new, settings)
    assert changes(declared(new), applied_lineage(new, settings)) == []
    assert f"{view.name}.a_new_one is no longer in the code" in changes(declared(spec), applied_lineage(spec, settings))


def test_another_code_version_is_told_once_however_many_features_it_made() -> None:
    other = replace(OF, feature="shop_price_last_1h", function="last")
    now = [replace(of, code="0.2.0+bbbbbbbb") for of in (OF, other)]
    assert changes(now, [OF, other]) == ["code 0.1.0+aaaaaaaa was applied, it is 0.2.0+bbbbbbbb now"]
    assert changes([OF, other], [OF, other]) == []


def test_the_fingerprint_of_a_definition_is_of_what_decides_the_values(spec: PipelineSpec) -> None:
    view = next(v for v in spec.views if len(v.aggregates) > 1)
    first, *others = view.aggregates

    def with_view(**changed: object) -> str:
        return definition(view.model_copy(update=changed))

    same = definition(view)
    assert with_view(ttl_s=7, aggregates=tuple(reversed(view.aggregates))) == same
    longer = first.model_copy(update={"window_s": first.window_s + 1})
    more = Aggregate(name="a_new_one", field=first.field, function="count", window_s=60)
    others_ = [
        with_view(aggregates=(longer, *others)),
        with_view(aggregates=(*view.aggregates, more)),
        with_view(aggregates=tuple(others)),
        with_view(key="another"),
    ]
    assert len({same, *others_}) == 5


OPEN_STORE = """
import sys
from pathlib import Path
from features.store import applied_lineage, open_store
from perennial.settings import Settings
from pipelines.spec import add_pipelines_dir, load_pipeline
folder, name = Path(sys.argv[1]), sys.argv[2]
add_pipelines_dir(folder / "pipelines")
spec, settings = load_pipeline(name), Settings(home=folder)
open_store(spec, settings)
print({of.code for of in applied_lineage(spec, settings)}.pop())
"""


def test_a_change_of_the_pipelines_code_is_another_version_and_is_applied(tmp_path: Path) -> None:
    init_pipeline("toys", tmp_path / "pipelines")

    def applied_code() -> str:
        command = [sys.executable, "-c", OPEN_STORE, str(tmp_path), "toys"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first = applied_code()
    definitions = (tmp_path / "feast" / "toys" / "applied.json").read_text()
    assert applied_code() == first
    with (tmp_path / "pipelines" / "toys" / "features.py").open("a") as code:
        code.write("\n# Another line.\n")
    second = applied_code()
    assert second.split("+")[0] == first.split("+")[0]
    assert second.split("+")[1] != first.split("+")[1]
    assert (tmp_path / "feast" / "toys" / "applied.json").read_text() != definitions


def test_before_anything_is_applied_the_next_step_is_told(tmp_path: Path, spec: PipelineSpec) -> None:
    with pytest.raises(StateError, match=f"run `perennial ingest {spec.name}` first"):
        applied_lineage(spec, Settings(home=tmp_path))
