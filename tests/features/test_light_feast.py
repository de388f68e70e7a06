from __future__ import annotations

import os
import subprocess
import sys

import pytest

AFTERWARDS = """
import sys
import typeguard
before = typeguard.typechecked
import features.light_feast
assert not [name for name in sys.modules if name.split(".")[0] == "torch"]
assert typeguard.typechecked is before
import torch
assert torch.ones(2).sum() == 2
"""
WITH_TORCH = """
import torch
import features.light_feast
import sys
assert sys.modules["torch"] is torch
"""


def in_a_new_process(code: str) -> None:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_torch_and_typeguard_are_as_before_once_feast_is_there() -> None:
    in_a_new_process(AFTERWARDS)


def test_torch_that_was_there_before_stays() -> None:
    in_a_new_process(WITH_TORCH)


# Those that Feast imports by their paths, in whatever process has Feast's configuration.
@pytest.mark.parametrize("module", ["light_feast", "feast_lake", "feast_online", "feast_redis"])
def test_feast_does_not_change_where_metrics_are_kept_nor_bring_torch(module: str) -> None:
    show = f"import os, sys, features.{module}; from prometheus_client import values; "
    show += "print(values.ValueClass.__name__, os.environ.get('PROMETHEUS_MULTIPROC_DIR'), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, env=no_folder())
    assert ran.stdout.split()[-3:] == ["MutexValue", "None", "False"]


def no_folder() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
