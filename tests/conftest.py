"""Shared fixtures: every instruction set this machine runs, and Hypothesis without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from browser import artefacts, chromium, opened  # noqa: F401 - fixtures
from cases import INSTRUCTION_SETS
from cli_cases import cli  # noqa: F401 - a fixture
from hypothesis import HealthCheck, settings
from sanitizer import REQUIRED, Build

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


_build = pytest.StashKey[Build]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile the sanitized kernels beside the tests, if their test is among those that run."""
    wanted = any(item.path.name == "test_sanitize.py" for item in session.items)
    if wanted and REQUIRED and not session.config.option.collectonly:
        session.config.stash[_build] = Build(session.config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave no compiler behind."""
    if _build in session.config.stash:
        session.config.stash[_build].stop()


@pytest.fixture(scope="session")
def sanitizer_build(pytestconfig: pytest.Config) -> Build:
    """The build that `pytest_collection_finish` began."""
    return pytestconfig.stash[_build]
