from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from pyiceberg.table.update import update_table_metadata

from features import transaction
from features.lake import Lake
from features.transaction import OneCopyTransaction
from perennial.settings import Settings


@pytest.fixture
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    lake = Lake(Settings(home=tmp_path_factory.mktemp("home")), "shop")
    lake.append("orders", pl.DataFrame({"event_timestamp": [datetime(2024, 1, 1, tzinfo=UTC)], "n": [1]}))
    return lake.existing("orders")


def test_metadata_is_worked_out_anew_only_when_something_was_staged(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def counting(base: Any, updates: Any) -> Any:
        counted.append(len(updates))
        return update_table_metadata(base, updates)

    monkeypatch.setattr(transaction, "update_table_metadata", counting)
    staged = OneCopyTransaction(table)
    assert staged.table_metadata is staged.table_metadata
    staged.set_properties(owner="us")
    assert staged.table_metadata.properties["owner"] == "us"
    assert counted == [0, 1]
    # Nothing of it is in the table before the commit, and all of it after.
    assert "owner" not in table.metadata.properties
    staged.commit_transaction()
    assert table.metadata.properties["owner"] == "us"


def test_after_the_table_moved_on_its_new_metadata_is_seen(table: Any) -> None:
    staged = OneCopyTransaction(table)
    before = staged.table_metadata.current_snapshot()
    table.append(table.scan().to_arrow())
    after = staged.table_metadata.current_snapshot()
    assert before is not None
    assert after is not None
    assert after.snapshot_id == table.current_snapshot().snapshot_id != before.snapshot_id
