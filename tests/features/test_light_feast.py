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
