from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from features.backlog import read_backlog
from features.consumer import ahead
from perennial.errors import StateError, UnreachableError, UsageError
from perennial.settings import Settings


def readers() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [
        p for p in mine if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and "features.backlog" in p.cmdline()
    ]


@pytest.fixture
def topic(make_topic: Callable[[str, int], None], produce: Any, request: pytest.FixtureRequest) -> str:
    name = f"backlog.{request.node.name.lower()[:60]}.v1"
    make_topic(name, 2)
    values: Mapping[int, Iterable[bytes | None]] = {0: [b"%d" % i for i in range(50_001)], 1: [None, b"\xff"]}
    produce(name, values)
    return name


def test_another_process_reads_what_this_one_would(kafka_settings: Settings, topic: str) -> None:
    batches = list(read_backlog(kafka_settings, {topic: {0: 10}}))
    assert len(batches) > 2
    found: dict[int, list[tuple[int, bytes | None]]] = {0: [], 1: []}
    for batch in batches:
        for partition, offset, key, value in batch.records.rows():
            assert key == b"k"
            found[partition].append((offset, value))
    assert found == {0: [(i, b"%d" % i) for i in range(10, 50_001)], 1: [(0, None), (1, b"\xff")]}
    assert batches[-1].offsets == {0: 50_001, 1: 2}
    assert readers() == []


def test_its_errors_are_raised_here(kafka_settings: Settings, topic: str, free_port: int) -> None:
    with pytest.raises(StateError, match="lake has read up to 99999"):
        list(read_backlog(kafka_settings, {topic: {0: 99_999}}))
    nowhere = kafka_settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port}"})
    with pytest.raises(UnreachableError, match="no Kafka broker answers"):
        list(read_backlog(nowhere, {topic: {}}))
    wrong = kafka_settings.model_copy(update={"kafka_options": {"sasl_plain_passwort": "secret"}})
    with pytest.raises(UsageError, match="sasl_plain_passwort") as told:
        list(read_backlog(wrong, {topic: {}}))
    assert "secret" not in str(told.value)


def test_a_reader_that_is_killed_is_told_and_one_that_is_not_needed_ends(kafka_settings: Settings, topic: str) -> None:
    batches = read_backlog(kafka_settings, {topic: {}})
    next(batches)
    (reader,) = readers()
    reader.kill()
    with pytest.raises(UnreachableError, match="ended by itself"):
        list(batches)
    with contextlib.closing(ahead(read_backlog(kafka_settings, {topic: {}}))) as read:
        next(read)
        assert len(readers()) == 1
    assert readers() == []


CTRL_C = """
import os, pickle, signal, sys
from features.backlog import read_backlog
settings, topic = pickle.load(sys.stdin.buffer)
signal.signal(signal.SIGINT, lambda *_: None)
rows = 0
for batch in read_backlog(settings, {topic: {}}):
    os.killpg(0, signal.SIGINT)  # as a terminal does
    rows += len(batch.records)
print(rows)
"""


def test_what_ends_a_service_is_for_whoever_asked_too(kafka_settings: Settings, topic: str) -> None:
    rows = 0
    for batch in read_backlog(kafka_settings, {topic: {}}):
        for reader in readers():
            reader.terminate()  # as systemd does with every process of a unit
        rows += len(batch.records)
    assert rows == 50_003


def test_ctrl_c_is_for_whoever_asked_and_not_for_the_process_that_reads(kafka_settings: Settings, topic: str) -> None:
    asker = subprocess.run(
        [sys.executable, "-c", CTRL_C],
        input=pickle.dumps((kafka_settings, topic)),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        start_new_session=True,
        timeout=60,
    )
    assert asker.stdout.decode().strip() == "50003", asker.stderr.decode()
