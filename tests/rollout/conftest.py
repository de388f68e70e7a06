from __future__ import annotations

import uuid

import pytest
from postgres import postgres as postgres  # a fixture

from rollout.ledger import Ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request, tmp_path):
    """A ledger on each kind of database. Pipelines of other tests may be in it: take a name of your own."""
    below = f"sqlite:///{tmp_path / 'below' / 'ledger.db'}"
    opened = Ledger(below if request.param == "sqlite" else request.getfixturevalue("postgres"))
    yield opened
    opened.close()


@pytest.fixture
def pipeline():
    """A pipeline name that no other test has."""
    return f"flights_{uuid.uuid4().hex[:8]}"
