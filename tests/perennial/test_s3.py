"""Objects in S3, against moto's server."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import bucket as bucket  # a fixture
from s3_server import point_at

from perennial.errors import StateError, UnreachableError, UsageError
from perennial.ports import free_ports
from perennial.s3 import _client, read_object, write_object
from serving.predictor import load_predictor, read_bundle_file
from training.mlflow_rest import copy_folder


def test_what_was_written_is_read_and_can_be_replaced(bucket: str, tmp_path: Path) -> None:
    for content in (b"\x00first", b"second"):
        (tmp_path / "file").write_bytes(content)
        write_object(tmp_path / "file", f"{bucket}/a b/c%20d/file")
        assert read_object(f"{bucket}/a b/c%20d/file") == content


def test_letters_that_mean_something_in_web_addresses_are_letters_of_a_key(bucket: str) -> None:
    from perennial.s3 import write_bytes

    write_bytes(b"one", f"{bucket}/run#1/file?a")
    write_bytes(b"other", f"{bucket}/run")
    assert read_object(f"{bucket}/run#1/file?a") == b"one"
    assert read_object(f"{bucket}/run") == b"other"


def test_a_bundle_that_the_registry_copies_is_the_one_that_the_service_reads(bucket: str, tmp_path: Path) -> None:
    files = {"bundle.json": b"{}", "model.onnx": b"\x01\x02", "reference_profile.json": b'{"rows": 1}'}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for target in (f"{bucket}/mlflow/1/bundle", f"{bucket}/mlflow/2/bundle/"):
        copy_folder(tmp_path, target)
        assert {name: read_bundle_file(target, name) for name in files} == files


def test_a_bundle_that_is_not_there_is_told(bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_object(f"{bucket}/gone")
    with pytest.raises(StateError, match=r"no bundle\.json in the model bundle s3://artifacts/gone"):
        load_predictor(f"{bucket}/gone")


def test_a_bucket_that_is_not_there_is_told(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"S3 refuses s3://nobodys/file \(NoSuchBucket\)"):
        read_object("s3://nobodys/file")
    with pytest.raises(UsageError, match=r"S3 refuses s3://nobodys/file \(NoSuchBucket\)"):
        write_object(tmp_path / "file", "s3://nobodys/file")


def test_a_store_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_at(f"http://127.0.0.1:{free_ports().scoring}", monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError, match="S3 does not answer for s3://artifacts/file"):
        read_object("s3://artifacts/file")
    with pytest.raises(UnreachableError, match="S3 does not answer for s3://artifacts/file"):
        write_object(tmp_path / "file", "s3://artifacts/file")
    _client.cache_clear()
