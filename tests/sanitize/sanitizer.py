"""The program that runs the kernels under the sanitizers."""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from softgrad._core import backend

SCRIPT = Path(__file__).resolve().with_name("build.py")
NATIVE = tuple(name for name in backend.available() if name != "numpy")
REQUIRED = bool(NATIVE) or os.environ.get("SOFTGRAD_REQUIRE_NATIVE") == "1"


def compiler() -> str:
    """Return the C++ compiler; fail without one."""
    found = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    assert found, "no C++ compiler: the sanitizer run needs the one that built the kernels"
    return found


def build(config: pytest.Config) -> Path:
    """Compile the program and the extension beside it, or find them in pytest's cache under a hash of their sources."""
    script = runpy.run_path(str(SCRIPT))
    names = list(script["VARIANTS"]) if platform.machine().lower() in ("x86_64", "amd64") else ["baseline"]
    digest = hashlib.sha256(repr((compiler(), names, sys.version)).encode())
    for source in script["sources"]():
        digest.update(source.read_bytes())
    cache = getattr(config, "cache", None)  # absent with `-p no:cacheprovider`
    root = cache.mkdir("softgrad-sanitize") if cache else Path(tempfile.gettempdir(), "softgrad-sanitize")
    folder = root / digest.hexdigest()[:16]
    program = folder / "run"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), compiler(), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout[:3000]
    return program
