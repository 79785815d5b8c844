"""Fixtures of the PyTorch front-end's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from softgrad.torch import _rows


@pytest.fixture(params=["small", "large"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small batches take a shorter way through the extension; the other way is wanted as well."""
    if request.param == "large":
        monkeypatch.setattr(_rows, "SMALL_BYTES", 0)
    return str(request.param)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compile anew, and leave nothing compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
