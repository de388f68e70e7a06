"""The rollout's stages on a real ledger and a real MLflow: who is started, who stays back, and what the aliases say after."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from features.lake import Lake
from flows import rollout
from flows.context import Context
from perennial.errors import UsageError
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from pipelines.spec import RolloutPolicy
from rollout.controller import release, rollback
from rollout.ledger import Entry, Ledger, Model
from training import registry

POLICY = RolloutPolicy(steps_pct=(10.0, 50.0), poll_s=0.05, max_step_s=0.2, lease_s=60.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Shop:
    """A pipeline with a name of its own, on a ledger of its own."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.name = context.spec.name
        self.uri = context.settings.mlflow_tracking_uri
        self._released = 0

    def register(self, tmp_path: Path, **tags: str) -> Model:
        """One more version in MLflow; the registry looks at a bundle's files and never inside the model."""
        folder = tmp_path / "bundles" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_text(folder.name)
        (folder / "bundle.json").write_text("{}")
        made = registry.register(self.uri, self.name, folder, {}, {}, tags, {})
        return Model(made.version, made.uri)

    def challenge(self, model: Model) -> None:
        registry.set_alias(self.uri, self.name, registry.CHALLENGER, model.version)

    def release(self, model: Model, policy: RolloutPolicy = POLICY) -> Entry:
        self._released += 1
        at = NOW + timedelta(hours=self._released)
        return release(self.context.ledger, self.name, model, policy, "a test's", None, at, by_hand=True)

    def promote(self, model: Model) -> Entry:
        return self.release(model, POLICY.model_copy(update={"steps_pct": ()}))

    def roll_back(self, reason: str) -> Entry:
        return rollback(self.context.ledger, self.name, reason, NOW + timedelta(days=1))

    def alias(self, name: str) -> str | None:
        found = registry.get(self.uri, self.name, name)
        return found.version if found else None

    def start(self, version: str | None = None) -> Entry | None:
        found = asyncio.run(rollout.start_canary.fn(self.name, None, version))
        assert found is None or isinstance(found, Entry)
        return found

    def settle(self, entry: Entry) -> None:
        asyncio.run(rollout.settle.fn(self.name, entry))


@pytest.fixture
def shop(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri=mlflow_server)
    spec = PIPELINE.model_copy(update={"name": f"shop_{uuid.uuid4().hex[:8]}", "rollout": POLICY})
    ledger = Ledger(settings.ledger_url)
    context = Context(settings, spec, Lake(settings, spec.name), ledger)
    monkeypatch.setattr(rollout, "open_context", {spec.name: context}.__getitem__)
    monkeypatch.setattr(rollout, "get_run_logger", lambda: logging.getLogger(rollout.__name__))
    yield Shop(context)
    ledger.close()


def test_without_champion_and_challenger_nothing_is_started(shop: Shop) -> None:
    assert shop.start() is None
    assert shop.context.ledger.history(shop.name) == []


def test_the_first_challenger_is_promoted_at_once(shop: Shop, tmp_path: Path) -> None:
    first = shop.register(tmp_path, gate="accepted")
    shop.challenge(first)
    entry = shop.start()
    assert entry is not None
    assert (entry.action, entry.champion, entry.challenger) == ("promote", first, None)
    assert entry.reason == "version 1 passed its gate"


def test_a_challenger_gets_the_smallest_share_and_is_started_once(shop: Shop, tmp_path: Path) -> None:
    first = shop.register(tmp_path)
    shop.promote(first)
    second = shop.register(tmp_path, **{"gate": "accepted", "gate.champion": first.version})
    shop.challenge(second)
    entry = shop.start()
    assert entry is not None
    assert (entry.action, entry.champion, entry.challenger, entry.share_pct) == ("start", first, second, 10.0)
    assert shop.start() == entry
    assert len(shop.context.ledger.history(shop.name)) == 2


def test_a_gate_that_did_not_accept_is_named_in_the_record(shop: Shop, tmp_path: Path) -> None:
    shop.promote(shop.register(tmp_path))
    shop.challenge(shop.register(tmp_path, gate="bypassed"))
    entry = shop.start()
    assert entry is not None
    assert (entry.action, entry.reason) == ("start", "its gate says 'bypassed'")


def test_a_version_asked_for_is_started_past_the_alias_and_the_gate(shop: Shop, tmp_path: Path) -> None:
    first, asked, waiting = (shop.register(tmp_path) for _ in range(3))
    shop.promote(first)
    shop.challenge(waiting)
    entry = shop.start(version=asked.version)
    assert entry is not None
    assert (entry.action, entry.challenger, entry.reason) == ("start", asked, "version 2 was released by hand")


def test_a_version_that_mlflow_does_not_have_is_named(shop: Shop, tmp_path: Path) -> None:
    before = shop.promote(shop.register(tmp_path))
    with pytest.raises(UsageError, match=r"has no version '77' in MLflow; `perennial retrain"):
        shop.start(version="77")
    assert shop.context.ledger.state(shop.name) == before


def test_a_challenger_held_against_a_champion_that_serves_no_more_is_not_started(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    shop.promote(first)
    now_serves = shop.promote(second)
    late = shop.register(tmp_path, **{"gate": "accepted", "gate.champion": first.version})
    shop.challenge(late)
    assert shop.start() == now_serves
    assert "version 3 was compared with version 1, but version 2 serves now" in caplog.text
    by_hand = shop.start(version=late.version)
    assert by_hand is not None
    assert (by_hand.action, by_hand.challenger) == ("start", late)


def test_a_version_that_was_rolled_back_stays_back_until_a_person_asks_for_it(shop: Shop, tmp_path: Path) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    shop.promote(first)
    shop.release(second)
    back = shop.roll_back("it was slow")
    shop.challenge(second)
    assert shop.start() == back
    again = shop.start(version=second.version)
    assert again is not None
    assert (again.action, again.challenger, again.sequence) == ("start", second, back.sequence + 1)


def test_the_champions_alias_follows_the_ledger_and_the_promoted_challenger_loses_its_own(
    shop: Shop, tmp_path: Path
) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    shop.settle(shop.promote(first))
    assert (shop.alias("champion"), shop.alias("challenger")) == ("1", None)
    shop.challenge(second)
    shop.settle(shop.promote(second))
    assert (shop.alias("champion"), shop.alias("challenger")) == ("2", None)


def test_a_challenger_that_was_rolled_back_loses_its_alias(shop: Shop, tmp_path: Path) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    shop.promote(first)
    shop.challenge(second)
    shop.release(second)
    shop.settle(shop.roll_back("it was slow"))
    assert (shop.alias("champion"), shop.alias("challenger")) == ("1", None)


def test_a_challenger_that_came_meanwhile_keeps_its_alias(shop: Shop, tmp_path: Path) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    entry = shop.promote(first)
    shop.challenge(second)
    shop.settle(entry)
    assert (shop.alias("champion"), shop.alias("challenger")) == ("1", "2")


def test_a_challenger_whose_gate_is_outdated_loses_its_alias(shop: Shop, tmp_path: Path) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    late = shop.register(tmp_path, **{"gate.champion": first.version})
    shop.promote(first)
    shop.challenge(late)
    shop.settle(shop.promote(second))
    assert (shop.alias("champion"), shop.alias("challenger")) == ("2", None)


def test_a_canary_without_traffic_is_rolled_back_by_its_judge(shop: Shop, tmp_path: Path) -> None:
    first, second = shop.register(tmp_path), shop.register(tmp_path)
    shop.promote(first)
    shop.challenge(second)
    shop.start()
    ended = asyncio.run(rollout.judge_canary.fn(shop.name))
    assert (ended.action, ended.champion, ended.challenger) == ("rollback", first, None)
    assert ended == shop.context.ledger.state(shop.name)


def test_the_judge_ends_at_once_when_its_run_is_cancelled_and_leaves_the_canary_to_the_next(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient = POLICY.model_copy(update={"poll_s": 30.0, "max_step_s": 20.0})
    context = Context(
        shop.context.settings,
        shop.context.spec.model_copy(update={"rollout": patient}),
        shop.context.lake,
        shop.context.ledger,
    )
    shop.promote(shop.register(tmp_path))
    shop.challenge(shop.register(tmp_path))
    started = shop.start()
    caplog.set_level(logging.INFO, rollout.__name__)

    async def cancel_while_it_waits() -> None:
        judging = asyncio.create_task(rollout.judge_canary.fn(shop.name))
        # Its first words come before it renews the lease and judges; then it waits 30 s for the next look.
        while "to the challenger" not in caplog.text:
            await asyncio.sleep(0.01)
        judging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await judging

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "open_context", lambda _: context)
        began = time.monotonic()
        # Leaving the loop waits for the judge's thread, as the end of a run's process does.
        asyncio.run(cancel_while_it_waits())
    assert time.monotonic() - began < 10
    assert shop.context.ledger.state(shop.name) == started
