from __future__ import annotations

import pytest

from pipelines.spec import Family, ModelSpec
from training.dataset import TrainingSet
from training.fit import fit
from training.importance import importance


def test_what_the_label_was_made_from_is_used_most_and_shares_add_up(training_set: TrainingSet) -> None:
    candidate = fit(training_set, ModelSpec(family="lightgbm", trees=40), 7, None)
    found = importance(candidate)
    assert found is not None
    assert set(found) == {f.name for f in training_set.features}
    assert sum(found.values()) == pytest.approx(1.0)
    # conftest.shop_rows: the shop decides, the price helps, colour and returning say nothing.
    assert max(found, key=lambda name: found[name]) == "shop"
    assert found["price"] > found["colour"] + found["returning"]


def test_a_network_tells_nothing(training_set: TrainingSet) -> None:
    family: Family = "pytorch"
    assert importance(fit(training_set, ModelSpec(family=family, epochs=1), 7, None)) is None
