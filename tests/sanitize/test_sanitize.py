"""The kernels under the address and undefined-behaviour sanitizers: compiled without Python, and run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sanitizer import NATIVE, REQUIRED

pytestmark = [
    pytest.mark.exhaustive,  # compiles for minutes
    pytest.mark.skipif(
        not REQUIRED, reason="installed without native kernels, hence without a compiler: there is nothing to sanitize"
    ),
]


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1:handle_segv=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment.pop("LD_PRELOAD", None)
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_all_kernels_run_clean(program: Path) -> None:
    done = run(program)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    counts = {name: (int(head), int(layer)) for name, head, layer in map(str.split, done.stdout.splitlines())}
    assert tuple(counts) == NATIVE or not NATIVE  # every variant that this machine runs
    assert all(head > 2000 and layer > 10_000 for head, layer in counts.values())


@pytest.mark.parametrize("where", [(), ("guarded",)], ids=["heap", "guard page"])
@pytest.mark.parametrize("kernel", ["rows", "scores", "back", "curvature", "sparse"])
@pytest.mark.parametrize("name", NATIVE or ("baseline",))
def test_one_element_too_many_is_noticed(name: str, kernel: str, where: tuple[str, ...], program: Path) -> None:
    done = run(program, "overrun", name, kernel, *where)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
