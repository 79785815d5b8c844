"""Commands run in this process and as processes, and tables to run them on."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from softgrad.cli import main


class Answer:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """Standard output, which is one JSON document."""
        return json.loads(self.out)


Command = Callable[..., Answer]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, standard_input: bytes = b"") -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input)))
        code = main(list(arguments))
        return Answer(code, *capsys.readouterr())

    return run


def one_error(answer: Answer, message: str) -> None:
    """A command refused with one line, after which nothing came; the columns may have been shown before it."""
    assert answer.code == 2
    assert answer.out == ""
    *shown, last = answer.err.splitlines()
    assert last.startswith("softgrad: error: "), answer.err
    assert not any("softgrad:" in line for line in shown), answer.err
    assert re.search(message, last), last


def process(
    *arguments: str, standard_input: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a user does."""
    command = [sys.executable, "-m", "softgrad.cli", *arguments]
    environment = {**os.environ, "PYTHONWARNINGS": "", **environment}
    return subprocess.run(command, capture_output=True, input=standard_input, check=False, timeout=300, env=environment)


def description(path: str) -> dict[str, Any]:
    """What a model file says of itself."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("softgrad.json"))  # type: ignore[no-any-return]


def mixed(n: int = 600, seed: int = 0) -> pd.DataFrame:
    """A table with columns of every kind, of which each says something about the species."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    words = np.array(["good", "bad", "fine", "slow", "late", "quick"])
    odds = np.array([[4, 1, 2, 1, 1, 1], [1, 4, 1, 2, 1, 1], [1, 1, 1, 1, 1, 5]]) / 10
    days = pd.to_timedelta(rng.integers(0, 900, n) + 100 * y, unit="D")
    return pd.DataFrame(
        {
            "id": np.arange(1, n + 1),
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.normal(40 + 5 * y, 10).round(1)),
            "colour": np.where(rng.random(n) < 0.01, "mauve", np.array(["red", "green", "blue"])[
                (y + rng.integers(0, 2, n)) % 3]),
            "member": np.where(rng.random(n) < 0.3 + 0.2 * y, "true", "false"),
            "joined": (pd.Timestamp("2020-01-01") + days).strftime("%Y-%m-%d"),
            "note": [" ".join(rng.choice(words, 6, p=odds[k])) + f" x{rng.integers(0, 200)}" for k in y],
            "constant": 1,
            "species": np.array(["cat", "dog", "eel"])[y],
        }
    )  # fmt: skip
