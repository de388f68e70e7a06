from __future__ import annotations

import subprocess
import sys

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


def test_feast_does_not_change_where_metrics_are_kept() -> None:
    show = "import os, features.light_feast; from prometheus_client import values; "
    show += "print(values.ValueClass.__name__, os.environ.get('PROMETHEUS_MULTIPROC_DIR'))"
    ran = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-2:] == ["MutexValue", "None"]
