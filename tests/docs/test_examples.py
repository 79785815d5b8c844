"""The examples run, at a small size, and what they print is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(EXAMPLES / script), "--smoke", *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers that the groups of the pattern match, of its one match."""
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern!r} matches {len(found)} times in:\n{text}"
    groups = found[0] if isinstance(found[0], tuple) else (found[0],)
    return [float(group) for group in groups]


@pytest.mark.exhaustive
def test_gpt(tmp_path: Path) -> None:
    picture = tmp_path / "gpt.png"
    text = run("gpt.py", "--plot", str(picture))
    rows = {
        loss: numbers(rf"(?m)^{re.escape(loss)} +(\S+) +(\S+) +(\S+) +(\S+) → (\S+)$", text)
        for loss in ("linear+torch", "torch-linear", "softgrad")
    }
    for _, peak, in_training, first, last in rows.values():
        assert 0 < in_training < peak
        assert abs(first - 10.82) < 0.3  # log of 50,257 classes
        assert last < first
    assert rows["softgrad"][2] < rows["linear+torch"][2]
    apart, allowed = numbers(r"the curves differ by (\S+) of the loss at most; (\S+) is allowed", text)
    assert apart <= allowed <= 1e-4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_soft_labels() -> None:
    text = run("soft_labels.py")
    pattern = r" +held-out accuracy (\S+)  log-loss (\S+)  last loss"
    rows = [numbers(f"(?m)^{name}{pattern}", text) for name in ("softgrad", "torch")]
    for accuracy, log_loss in rows:
        assert accuracy > 0.8
        assert log_loss < 0.8
    apart, allowed = numbers(r"the curves differ by (\S+) at most; (\S+) is allowed", text)
    assert apart <= allowed <= 1e-3


@pytest.mark.exhaustive
def test_transformers() -> None:
    text = run("transformers_causal_lm.py")
    plain, patched = (
        numbers(rf"(?m)^{run} .* \((\d+) in training\)  loss (\S+) → (\S+)$", text) for run in ("plain", "patched")
    )
    assert patched[0] < plain[0]
    assert patched[2] < patched[1]
    apart, allowed = numbers(r"the losses differ by (\S+) of their value at most; (\S+) is allowed", text)
    assert apart <= allowed <= 1e-4
    assert "generated, with and without the patch: 'The statement is" in text


@pytest.mark.exhaustive
def test_parallel_gpt() -> None:
    text = run("parallel_gpt.py")
    rows = [numbers(rf"(?m)^ +{processes} +(\d+) +(\S+)   (\S+) → (\S+)$", text) for processes in (1, 2, 4)]
    assert [row[0] for row in rows] == [50257, 25129, 12565]
    for _, _, first, last in rows:
        assert abs(first - 10.82) < 0.3  # log of 50,257 classes
        assert last < first
    apart, allowed = numbers(r"the curves differ by (\S+) of the loss at most; (\S+) is allowed", text)
    assert apart <= allowed <= 1e-4


def test_no_example_is_forgotten() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"common.py"}
    assert scripts == {"gpt.py", "parallel_gpt.py", "soft_labels.py", "transformers_causal_lm.py"}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(name in listed for name in scripts)
