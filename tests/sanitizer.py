"""The build of the sanitized kernels, running while the other tests run."""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from softgrad._core import backend

SCRIPT = Path(__file__).resolve().parent / "sanitize" / "build.py"
NATIVE = tuple(name for name in backend.available() if name != "numpy")
REQUIRED = bool(NATIVE) or os.environ.get("SOFTGRAD_REQUIRE_NATIVE") == "1"


class Build:
    """A program that is kept, under a hash of its sources, from one run of the tests to the next."""

    def __init__(self, config: pytest.Config) -> None:
        script = runpy.run_path(str(SCRIPT))
        names = list(script["VARIANTS"]) if platform.machine().lower() in ("x86_64", "amd64") else ["baseline"]
        self.compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
        digest = hashlib.sha256(repr((self.compiler, names)).encode())
        for source in script["sources"]():
            digest.update(source.read_bytes())
        root = config.cache.mkdir("softgrad-sanitize") if config.cache else Path(os.environ.get("TMPDIR", "/tmp"))
        self.folder = root / digest.hexdigest()[:16]
        self.program = self.folder / "run"
        self.process: subprocess.Popen[str] | None = None
        if self.compiler and not self.program.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(self.folder), self.compiler, *names],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def wait(self) -> Path:
        """Return the program; fail if there is none."""
        assert self.compiler, "no C++ compiler: the sanitizer run needs the one that built the kernels"
        if self.process is not None:
            output = self.process.communicate(timeout=900)[0]
            assert self.process.returncode == 0, output[:3000]
            self.process = None
        return self.program

    def stop(self) -> None:
        """End a build that nobody waited for."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
