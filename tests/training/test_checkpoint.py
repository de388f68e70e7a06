from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import bucket as bucket  # a fixture

from perennial.errors import StateError, UsageError
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, Progress, fingerprint, write_atomically


def test_the_newest_progress_is_what_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "deep" / "er", "abc")
    assert checkpoint.load() is None
    checkpoint.save(Progress(1, b"one"))
    checkpoint.save(Progress(2, b"two\nlines\x00"))
    assert checkpoint.load() == Progress(2, b"two\nlines\x00")
    assert [p.name for p in checkpoint.directory.iterdir()] == [CHECKPOINT_FILE]


def test_in_s3_the_newest_progress_comes_back_to_another_machine(bucket: str) -> None:
    place = f"{bucket}/checkpoints/flights-20260101T000000-pytorch"
    assert Checkpoint(place, "abc").load() is None
    Checkpoint(place, "abc").save(Progress(1, b"one"))
    Checkpoint(place, "abc").save(Progress(2, b"two\nlines\x00"))
    assert Checkpoint(place, "abc").load() == Progress(2, b"two\nlines\x00")
    assert Checkpoint(place, "abd").load() is None
    with pytest.raises(UsageError, match="S3 refuses s3://no-such-bucket"):
        Checkpoint("s3://no-such-bucket/a", "abc").save(Progress(1, b"one"))


def test_the_progress_of_another_fit_is_ignored(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "abc").save(Progress(1, b"one"))
    assert Checkpoint(tmp_path, "abd").load() is None


@pytest.mark.parametrize("length", [0, 1, 40, 150, -1])
def test_a_damaged_file_is_ignored(tmp_path: Path, length: int) -> None:
    checkpoint = Checkpoint(tmp_path, "abc")
    checkpoint.save(Progress(1, b"state" * 20))
    whole = (tmp_path / CHECKPOINT_FILE).read_bytes()
    (tmp_path / CHECKPOINT_FILE).write_bytes(whole[:length])
    assert checkpoint.load() is None


def test_what_cannot_be_written_is_told_and_leaves_the_old(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"old")
    with pytest.raises(StateError, match="cannot be written"):
        write_atomically(blocked / "below", b"new")
    assert blocked.read_bytes() == b"old"


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_fingerprints_are_equal_for_equal_contents_only(one: list[bytes], other: list[bytes]) -> None:
    assert (fingerprint({"a": 1}, *one) == fingerprint({"a": 1}, *other)) == (one == other)
    assert fingerprint({"a": 1}, *one) != fingerprint({"a": 2}, *one)
