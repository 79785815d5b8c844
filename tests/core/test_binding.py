"""Wrong arguments of the native module: no call reads or writes outside its arrays (tests/core/garbage.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cases import INSTRUCTION_SETS

from softgrad._core import backend

SCRIPT = Path(__file__).resolve().with_name("garbage.py")
pytestmark = pytest.mark.skipif(INSTRUCTION_SETS == ("numpy",), reason="installed without native kernels")


def run(*arguments: str) -> str:
    native = backend.native()
    assert native is not None
    command = [sys.executable, "-W", "ignore::RuntimeWarning", str(SCRIPT), str(native.__file__), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_garbage_is_refused_or_harmless(seed: int) -> None:
    counts = {(name, what): int(n) for name, what, n in map(str.split, run("garbage", str(seed), "400").splitlines())}
    assert len(counts) > 40
    assert min(counts.values()) > 60  # each function both computed and refused often


def test_what_another_thread_changes_is_harmless() -> None:
    assert int(run("race", "6").split()[1]) > 100
