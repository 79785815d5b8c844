"""Every block of README.md does what the page says: Python runs, and so do softgrad's own commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from softgrad.cli import main

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[pytest.param]:
    """The blocks in one language, named by the line they begin at."""
    text = README.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        if match[1] == language:
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[2], id=f"line {line}"))
    return found


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_runs_and_prints_what_it_says(block: str, tmp_path: Path) -> None:
    """A comment ``# → text`` after a print is what it prints; each block stands alone and in a fresh process."""
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 0, outcome.stderr
    said = re.findall(r"# → (.*)$", block, re.MULTILINE)
    assert outcome.stdout.split("\n")[:-1] == said


def commands() -> list[str]:
    """All ``$ softgrad …`` lines, in order: later ones use the files of earlier ones."""
    lines = "".join(block.values[0] for block in blocks("console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ softgrad ")]


def test_commands_run_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {command.split()[1] for command in commands()} == {
        "explain", "fit", "predict", "evaluate", "inspect", "export", "data", "info",
    }  # fmt: skip
    for command in commands():
        assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "predicted.csv").exists()


def test_the_two_commands_that_the_continuous_integration_runs_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    assert "pip install '.[cli]' && softgrad fit digits" in text
    assert "pip install -c requirements/constraints.txt '.[test]' && pytest" in text


def test_every_public_function_and_option_is_on_the_page() -> None:
    import inspect

    import softgrad

    text = README.read_text(encoding="utf-8")
    names = {name for name in softgrad.__all__ if not name.startswith("_")}
    for name in sorted(names):
        member = getattr(softgrad, name)
        if inspect.isfunction(member):
            names |= {p.name for p in inspect.signature(member).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert {name for name in names if f"`{name}`" not in text and f"`{name}=`" not in text} == set()
