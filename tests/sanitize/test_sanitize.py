"""The kernels and the native module under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sanitizer import NATIVE, REQUIRED, compiler

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


@pytest.mark.parametrize("arguments", [("garbage", "3", "400"), ("race", "6")], ids=["garbage", "race"])
def test_the_native_module_runs_clean(program: Path, arguments: tuple[str, ...]) -> None:
    """Wrong arguments, and arrays that other threads change, in a process that preloads the sanitizer."""
    libraries = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    script = Path(__file__).resolve().parents[1] / "core" / "garbage.py"
    command = [sys.executable, "-W", "ignore::RuntimeWarning", str(script), str(program.with_name("extension.so"))]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout[-1000:], done.stderr[-4000:])
    assert len(done.stdout.splitlines()) > (40 if arguments[0] == "garbage" else 0)
