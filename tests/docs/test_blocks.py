"""Every block of code in the documentation does what its page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    p for p in sorted(DOCS.rglob("*.md")) if not p.name.startswith(("derivation-", "_")) and "_build" not in p.parts
]

# Preamble of a page's script: it runs a line of a console block, and compares.  A command that needs no shell runs in
# the script's process, with Python's own filters of warnings: to start one costs seconds.
CONSOLE = r"""
def _shell(command):
    import subprocess

    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    return done.returncode, done.stdout


def _here(command):
    import contextlib, io, shlex, sys, warnings
    from softgrad.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    sys.argv = shlex.split(command.replace("\\\n", " "))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        code = main(sys.argv[1:])
    return code, out.buffer.getvalue().decode()


def _run(command, said):
    import re

    code, printed = (_shell if set("|<>&;$") & set(command) else _here)(command)
    found = " ".join(printed.split())
    number = r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
    parts = re.split(number, " ".join(said.split()))
    for i, part in enumerate(parts):
        parts[i] = number if i % 2 else ".*".join(re.escape(text) for text in part.split("…"))
    numbers = re.findall(number, said)
    match = re.search("".join(parts), found)
    assert match, f"{command}\nprinted\n{printed}\nand not\n{said}"
    for told, now in zip(numbers, match.groups()):
        close = abs(float(told) - float(now)) <= 0.02 + 0.1 * float(told)
        assert close or "e" in told, f"{command}\nprinted\n{printed}\nwith {now} instead of {told}"
    return code


"""


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and content of each block."""
    return [(match[1], match[2]) for match in BLOCK.finditer(path.read_text(encoding="utf-8"))]


def runs(block: str) -> list[tuple[str, str]]:
    """The lines ``$ softgrad …`` of a console block, which may be continued after ``\\``, and what follows each."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        command, said = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        found.append((command, said))
    return [(command, said) for command, said in found if command.startswith("softgrad ") or command == "echo $?"]


def script(path: Path) -> str:
    """All blocks of a page as one script: Python as it is, commands run as they are and their output compared."""
    lines = [CONSOLE]
    if any(language == "python" and "import skops.io" in block for language, block in blocks(path)):
        lines.append("import skops.io")  # before a command does, without the list of trusted types (`cli._skops`)
    for language, block in blocks(path):
        if language == "python":
            lines.append(block)
        elif language == "console":
            commands = runs(block)
            for place, (command, said) in enumerate(commands):
                if command == "echo $?":
                    lines.append(f"assert _code == {int(said)}, _code")
                    continue
                lines.append(f"_code = _run({command!r}, {said!r})")
                if commands[place + 1 : place + 2] != [] and commands[place + 1][0] == "echo $?":
                    continue
                lines.append(f"assert _code == 0, ({command!r}, _code)")
    return "\n".join(lines)


def test_there_are_pages_with_code() -> None:
    languages = [{language for language, _ in blocks(path)} for path in PAGES]
    assert sum("python" in found for found in languages) >= 5
    assert sum(bool(runs(block)) for path in PAGES for language, block in blocks(path) if language == "console") >= 5
    for path, found in zip(PAGES, languages, strict=True):
        assert found <= {"python", "console", "csv", "text"}, path  # a block in another language would not be run


def test_commands_are_found_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    block = "```console\n$ pip install it\n$ softgrad no\nsoftgrad: …such…\n$ echo $?\n2\n```\n"
    for told, code in ((block, 0), (block.replace("\n2\n", "\n3\n"), 1), (block.replace("such", "none"), 1)):
        page.write_text(told, encoding="utf-8")
        assert run(page, tmp_path).returncode == code


def run(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in a directory, with the commands that are installed beside this Python.

    A command prints what the page says: word for word but for spaces, ``…`` for anything, numbers about as large.
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script(path)], cwd=folder, capture_output=True, text=True, timeout=600,
        env=environment,
    )  # fmt: skip


@pytest.mark.parametrize("path", [p for p in PAGES if script(p) != CONSOLE], ids=lambda p: p.stem)
def test_a_page_runs_and_prints_what_it_says(path: Path, tmp_path: Path) -> None:
    """All blocks of a page are one script; a comment ``# → text`` after a print is what it prints."""
    outcome = run(path, tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    told = "\n".join(block for language, block in blocks(path) if language == "python")
    assert outcome.stdout.split("\n")[:-1] == re.findall(r"# → (.*)$", told, re.MULTILINE)
