"""Every block of code in the documentation does what its page says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts and not p.name.startswith("derivation-")]


def blocks(path: Path, language: str) -> list[str]:
    return [match[2] for match in BLOCK.finditer(path.read_text(encoding="utf-8")) if match[1] == language]


def named(language: str) -> list[Path]:
    return [path for path in PAGES if blocks(path, language)]


def test_there_are_pages_with_code() -> None:
    assert len(named("python")) >= 5
    known = {"python", "console", "csv", "text"}
    for path in PAGES:
        found = {match[1] for match in BLOCK.finditer(path.read_text(encoding="utf-8"))}
        assert found <= known, path  # a block in another language would not be run


@pytest.mark.parametrize("path", named("python"), ids=lambda p: p.stem)
def test_python_of_a_page_runs_and_prints_what_it_says(path: Path, tmp_path: Path) -> None:
    """All blocks of a page are one script; a comment ``# → text`` after a print is what it prints."""
    script = "\n".join(blocks(path, "python"))
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split("\n")[:-1] == re.findall(r"# → (.*)$", script, re.MULTILINE)


def commands(path: Path) -> list[str]:
    lines = "".join(blocks(path, "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ softgrad ")]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_commands_of_a_page_run_in_order(path: Path, tmp_path: Path) -> None:
    for command in commands(path):
        words = [sys.executable, "-m", "softgrad.cli", *shlex.split(command)[1:]]
        outcome = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert outcome.returncode == 0, f"{command}: {outcome.stderr}"
