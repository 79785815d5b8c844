"""Shared fixtures: every instruction set this machine runs, and Hypothesis without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

# The processes that share the tests (pytest-xdist) fill the cores: threads of a BLAS or of OpenMP would only contend.
# The libraries read the variables when they are loaded, which the imports below do.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import pytest
from cases import EACH_INSTRUCTION_SET
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


@pytest.fixture(params=EACH_INSTRUCTION_SET)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once for each compiled variant that this processor runs, and once for the NumPy fallback."""
    with backend.use(request.param):
        yield request.param
