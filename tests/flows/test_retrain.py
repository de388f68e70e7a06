"""What a retrain refuses, and what it keeps."""

from __future__ import annotations

import asyncio
import logging
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.lake import Lake
from flows import retrain
from perennial.errors import StageError, UsageError
from perennial.settings import Settings
from perennial.template.pipeline import PIPELINE
from rollout.ledger import Ledger, Model
from serving.predictor import load_predictor
from training.dataset import TrainingSet
from training.fit import fit
from training.gate import compare
from training.history import champion_history, retrains
from training.registry import ModelVersion
from validation.reference_sample import REFERENCE_SAMPLE_FILE, read_reference_sample

NOW = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CHAMPION = Model("4", "file:///bundle")
COMPARE, ASSEMBLE, WRITE_BUNDLE = retrain.compare_models.fn, retrain.assemble.fn, retrain.write_bundle.fn


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake, a champion trained as of NOW, and a gate that looks at the Brier score only."""
    found = Lake(Settings(home=tmp_path), "shop")
    context = SimpleNamespace(lake=found, spec=PIPELINE, settings=Settings(home=tmp_path))
    brier = PIPELINE.gate.model_copy(
        update={
            "tolerances": (PIPELINE.gate.tolerances[0].model_copy(update={"metric": "brier", "direction": "lower"}),)
        }
    )
    gate = compare({"brier": 0.2, "rows": 2_000.0}, {"brier": 0.1, "rows": 2_000.0}, brier)

    def answer(value: Any) -> Any:
        async def stage(*_: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return stage

    for name, value in {
        "open_context": lambda _: context,
        "champion": lambda _: CHAMPION,
        "trained_as_of": lambda _: NOW,
        "get_run_logger": lambda: logging.getLogger(__name__),
        "begin": retrain.begin.fn,
        "assemble": answer(None),
        "train": answer(SimpleNamespace(family="lightgbm")),
        "write_bundle": answer(tmp_path),
        "compare_models": answer(gate),
        "register": answer(ModelVersion("5", "file:///5", "run")),
        "acreate_markdown_artifact": lambda *_, **__: asyncio.sleep(0),
        "announce": lambda *_: None,
    }.items():
        monkeypatch.setattr(retrain, name, value)
    return found


def run(as_of: datetime, **options: Any) -> retrain.RetrainSummary:
    found = asyncio.run(retrain.retrain.fn("shop", as_of, **options))
    assert isinstance(found, retrain.RetrainSummary)
    return found


def test_a_bundle_brings_rows_of_its_reference_which_scoring_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, height = np.random.default_rng(1), 400
    rows = pl.DataFrame(
        {
            **{
                f.name: rng.normal(size=height) if f.kind == "numeric" else rng.choice(["a", "b"], height)
                for f in PIPELINE.features
            },
            "event_timestamp": [NOW - timedelta(hours=1 + i / 100) for i in range(height)],
            "entity_key": [f"o{i}" for i in range(height)],
            "label": rng.random(height) < 0.3,
        }
    )
    before = NOW - timedelta(seconds=PIPELINE.drift.reference_s + 1)
    too_old = rows.head(50).with_columns(event_timestamp=pl.lit(before).cast(rows.schema["event_timestamp"]))
    known = TrainingSet(
        "shop",
        NOW,
        PIPELINE.features,
        pl.concat([too_old, rows.head(300)]),
        rows.slice(300, 80),
        {},
        unlabelled=rows.tail(20).with_columns(label=pl.lit(None, pl.Boolean)),
    )
    few = PIPELINE.model.model_copy(update={"trees": 5})
    candidate = fit(known, few, 1, tmp_path / "checkpoint")
    context = SimpleNamespace(spec=PIPELINE, settings=Settings(home=tmp_path))
    monkeypatch.setattr(retrain, "open_context", lambda _: context)
    bundle = asyncio.run(WRITE_BUNDLE("shop", known, candidate))
    sample = read_reference_sample((bundle / REFERENCE_SAMPLE_FILE).read_bytes())
    assert sample.columns == [*(f.name for f in PIPELINE.features), "score"]
    scored = rows.with_columns(pl.Series("score", candidate.predict(rows))).select(sample.columns)
    # Labelled or not, without what is too old; rows that the model learned from have another score here.
    assert sorted(map(str, sample.drop("score").rows())) == sorted(map(str, scored.drop("score").rows()))
    assert set(map(str, scored.tail(100).rows())) <= set(map(str, sample.rows()))
    (bundle / REFERENCE_SAMPLE_FILE).unlink()
    assert load_predictor(bundle.as_uri()).predict(rows).shape == (height,)


def test_a_gate_without_an_auc_is_kept_as_nan(lake: Lake) -> None:
    assert run(NOW + DAY).decision == "accepted"
    (kept,) = retrains(lake)
    assert (kept.version, kept.decision) == ("5", "accepted")
    assert math.isnan(kept.champion_auc)
    assert math.isnan(kept.candidate_auc)


def test_a_moment_before_the_champions_is_refused_with_both_and_the_mend(lake: Lake) -> None:
    with pytest.raises(UsageError, match=r"as of 2024-04-30 00:00 UTC.*version 4.*2024-05-01 00:00 UTC.*--as-of"):
        run(NOW - DAY)
    assert not lake.exists("retrains")


def test_a_champion_promoted_meanwhile_is_no_exception(lake: Lake) -> None:
    with pytest.raises(UsageError, match="version 4"):
        asyncio.run(COMPARE("shop", SimpleNamespace(as_of=NOW - DAY), Path(), CHAMPION))


def test_the_champions_own_moment_can_be_repeated(lake: Lake) -> None:
    assert run(NOW).version == run(NOW).version == "5"


def test_a_retrain_that_fails_is_remembered(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(retrain, "train", fails)
    with pytest.raises(OSError, match="disk"):
        run(NOW + DAY)
    assert retrains(lake) == []
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert champion_history(lake, ledger, PIPELINE, NOW + 2 * DAY).last_unended == NOW + DAY


def test_history_that_breaks_the_contract_stops_the_retrain(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = {f.name: 1.0 if f.kind == "numeric" else "hat" for f in PIPELINE.features}
    rows = pl.DataFrame({"entity_key": ["o1", "o2"], "event_timestamp": NOW, "label": True, **fine}).with_columns(
        product=pl.Series(["sofa", "sofa"])
    )
    built = TrainingSet("shop", NOW, PIPELINE.features, rows.clear(), rows, {})
    monkeypatch.setattr(retrain, "build_training_set", lambda *_: built)
    monkeypatch.setattr(retrain, "assemble", ASSEMBLE)
    with pytest.raises(StageError, match=r"product in .* fails in 2 of 2 rows"):
        run(NOW + DAY)
    assert retrains(lake) == []
