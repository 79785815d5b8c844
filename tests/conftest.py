"""Shared fixtures: every instruction set this machine runs, and Hypothesis without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cases import INSTRUCTION_SETS
from hypothesis import HealthCheck, settings

from softgrad._core import backend

settings.register_profile(
    "softgrad",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("softgrad")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once for each compiled variant that this processor runs, and once for the NumPy fallback."""
    with backend.use(request.param):
        yield request.param
