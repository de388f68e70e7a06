"""What a person sees of dead letters."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from new_pipeline import spec as spec  # a fixture
from rich.console import Console

from features.broker import ensure_topics
from features.dead_letters import DEAD_LETTERS
from features.events import DEAD_LETTER_SCHEMA
from features.lake import Lake
from perennial.dead_letter_commands import MOST_KINDS, beginning, kinds_table, printable
from perennial.settings import Settings
from pipelines.spec import PipelineSpec

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def perennial(home: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "COLUMNS": "80",
        "HOME": str(home),
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_PIPELINES_DIR": str(home / "pipelines"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **more,
    }
    whole = [sys.executable, "-m", "perennial.cli", "dead-letters", *command]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)


def keep(lake: Lake, topic: str, letters: list[tuple[bytes | None, str]]) -> None:
    rows = [(topic, 0, n, NOW + timedelta(seconds=n), None, v, why) for n, (v, why) in enumerate(letters)]
    lake.append(DEAD_LETTERS, pl.DataFrame(rows, schema=DEAD_LETTER_SCHEMA, orient="row"), partition_by=None)


def test_the_newest_letters_are_shown_safely_and_their_kinds_first_when_there_are_more(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    none = perennial(tmp_path, "list", spec.name)
    assert (none.returncode, none.stdout) == (0, f"{spec.name}: 0 open dead letters, 0 replayed.\n")
    topic = spec.scored.topic
    lake = Lake(Settings(home=tmp_path), spec.name)
    bad = [(b"{", f"not JSON: unexpected end of data: line 1 column {n} (char {n})") for n in range(2, 9)]
    keep(lake, topic, [*bad, (None, "no value"), (b"\x1b[2Jgone\xff" + b"x" * 5_000, "field 'a' is '\x1b[2J', a str")])
    few = perennial(tmp_path, "list", spec.name, "--limit", "2")
    assert few.returncode == 0, few.stderr
    assert "\x1b" not in few.stdout
    assert few.stdout.startswith(f"{spec.name}: 9 open dead letters, 0 replayed.\n")
    summary, _, shown = few.stdout.partition("The newest 2:\n")
    assert "char #" in summary
    counts = [line.rstrip("│ ").split()[-1] for line in summary.splitlines() if line.startswith("│")]
    assert [count for count in counts if count.isdigit()] == ["7", "1", "1"]
    first, reason, value, *second = shown.splitlines()
    assert first == f"{topic} 0@8, taken in 2026-03-01 12:00:08"
    assert reason == r"  field 'a' is '\x1b[2J', a str"
    assert value.startswith(r"  b'\x1b[2Jgone\xffxxxx")
    assert value.endswith("... (5,009 bytes)")
    assert len(value) == 80
    assert second[0] == f"{topic} 0@7, taken in 2026-03-01 12:00:07"
    every = perennial(tmp_path, "list", spec.name, "--topic", topic)
    assert "char #" not in every.stdout
    assert every.stdout.count("taken in") == 9
    wrong = perennial(tmp_path, "list", spec.name, "--topic", "x.y.v1")
    assert wrong.returncode == 2
    assert f"has no topic 'x.y.v1'; there is: {min(e.topic for e in spec.events)}" in wrong.stderr


def test_a_replay_says_what_was_sent_and_what_is_still_not_valid(
    tmp_path: Path, spec: PipelineSpec, broker: Any, free_port: int
) -> None:
    settings = Settings(home=tmp_path, kafka_bootstrap_servers=broker.address)
    event = spec.scored
    ensure_topics(settings, [event.topic])
    at_broker = {"PERENNIAL_KAFKA_BOOTSTRAP_SERVERS": broker.address}
    nothing = perennial(tmp_path, "replay", spec.name, **at_broker)
    assert (nothing.returncode, nothing.stdout) == (0, f"{spec.name} has no open dead letter.\n")
    good = b'{"order_id": "o", "event_timestamp": "2026-03-01T12:00:00Z", "customer_id": "c", "product": "hat", "price_eur": 1.0}'
    keep(Lake(settings, spec.name), event.topic, [(b"{", "then"), (good, "then")])
    away = perennial(tmp_path, "replay", spec.name, PERENNIAL_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port}")
    assert away.returncode == 2
    assert "no Kafka broker answers" in away.stderr
    done = perennial(tmp_path, "replay", spec.name, **at_broker)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 sent again, 1 not valid\n")
    assert "not valid today either" in done.stdout
    assert "not JSON" in done.stdout
    assert f"`perennial ingest {spec.name}` takes in what was sent again." in done.stdout
    left = perennial(tmp_path, "list", spec.name)
    assert left.stdout.startswith(f"{spec.name}: 1 open dead letter, 1 replayed.\n")


@pytest.mark.parametrize("width", [80, 120])
def test_a_value_is_cut_to_the_terminal_and_says_how_long_it_is(width: int) -> None:
    assert beginning(b'{"a": 1}', width) == "b'{\"a\": 1}'"
    assert beginning(b"", width) == "b''"
    assert beginning(None, width) == "no value (a tombstone)"
    cut = beginning(b"\x00" * 1_000_000, width)
    assert len(cut) == width
    assert cut.endswith("... (1,000,000 bytes)")
    assert beginning(b"ab", 3).endswith("... (2 bytes)")


def test_what_a_terminal_would_act_on_is_written_as_an_escape() -> None:
    assert printable("ä \x1b]0;title\x07\n\u202e\x9b") == "ä \\x1b]0;title\\x07\\n\\u202e\\x9b"


def test_the_most_frequent_kinds_are_shown_and_the_others_counted() -> None:
    reasons = [f"kind {'abcdefghijklmnopqrstuvwxyz'[n]}" for n in range(MOST_KINDS + 3) for _ in range(n + 1)]
    letters = pl.DataFrame({"topic": "shop.order_placed.v1", "reason": reasons})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(kinds_table(letters))
    text = console.export_text()
    assert text.index("kind w") < text.index("kind v")
    assert "kind c " not in text
    assert "and 3 more kinds, 6 letters" in text
