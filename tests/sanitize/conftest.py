"""Fixture of the sanitized kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from sanitizer import build


@pytest.fixture(scope="session")
def program(pytestconfig: pytest.Config) -> Path:
    """The program that runs the kernels under the sanitizers, compiled unless the sources are as before."""
    return build(pytestconfig)
