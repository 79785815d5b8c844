"""``softgrad explain``: what it prints and writes, and the one line for what it cannot explain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import Command

from softgrad import reference
from softgrad.cli import main
from softgrad.derivation._languages import TEXTS, WORDS
from softgrad.derivation._substitute import number_text


def process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "softgrad.cli", "explain", *words],
        capture_output=True, encoding="utf-8", timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_step_with_the_numbers(lang: str, cli: Command) -> None:
    words = ("--logits", "2.0", "1.0", "0.1", "--target", "0", "--label-smoothing", "0.1", "--lang", lang)
    done = cli("explain", *words)
    assert (done.code, done.err) == (0, "")
    for number, (title, _) in enumerate(TEXTS[lang].values(), 1):
        assert f"\n{number}. {title}\n" in done.out
    for line in ("S₀ = exp(2) / (exp(2) + exp(1) + exp(0.1)) = 0.659", "∂L/∂o₀ = 0.659 − 0.9333 = −0.2743"):
        assert line in done.out
    assert "0.2247" in done.out  # the Jacobian's first entry
    assert WORDS[lang]["summary"].format(checks=153, wrong=0) in done.out
    assert done.out.count("✓") == 153  # each with its error
    assert "✗" not in done.out
    assert "\x1b" not in done.out  # no colour when piped
    assert "`" not in done.out


@pytest.mark.parametrize(
    "words",
    [
        ("--logits", "2.0", "-1.5", "0.1", "--target", "1"),
        ("--logits", "2.0,-1.5,0.1", "--target=1"),
        ("--logits=2.0", "--logits=-1.5", "--logits=0.1", "--target", "1"),
        ("--target", "1", "--temperature", "1", "--logits", "2.0", "−1.5", "0.1"),
        ("--logits", "2.0", "-1.5", "0.1", "--target", "0", "1", "0"),
    ],
)
def test_ways_to_write_numbers(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *words]) == 0
    S = reference.softmax([2.0, -1.5, 0.1])[1]
    assert f"∂L/∂o₁ = {number_text(S)} − 1 = {number_text(S - 1)}" in capsys.readouterr().out


def test_masked_and_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert "153" in capsys.readouterr().out
    assert main(["explain", "--logits", "2.0", "-inf", "0.1", "--target", "0"]) == 0
    assert "−∞" in capsys.readouterr().out


def test_a_terminal_gets_colours_and_a_locale_that_lacks_the_letters_is_no_crash() -> None:
    ascii_only = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    for environment, coloured in (({"PYTHONIOENCODING": "latin-1"}, True), (ascii_only, False)):
        done = process(**environment, FORCE_COLOR="1")
        assert done.returncode == 0
        assert ("\x1b[3" in done.stdout) == coloured
        assert "∂S₀/∂o₁" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--logits", "2.0", "apple", "--target", "0"), "--logits: number 1 is 'apple', not a number"),
        (("--logits", "2.0", "1.0", "--target", "7"), "target is 7, outside [0, 2)"),
        (("--logits", "2.0", "1.0", "--target", "-1"), "target is -1, outside [0, 2)"),
        (("--logits", "2.0", "1.0", "--target", "0.5"), "--target is 0.5; a class is a whole number"),
        (("--logits", "2.0", "1.0", "--target", "-0.5", "1.5"), "target[0] is -0.5"),
        (("--logits", "2.0", "--target", "0"), "logits have 1 class"),
        (("--logits", "nan", "1", "--target", "0"), "logits[0] is nan"),
        (("--lang", "fr"), "lang is 'fr'"),
        (("--temperature", "0"), "temperature is 0"),
        (("--temperature", "warm"), "--temperature"),
        (("--label-smoothing", "2"), "label_smoothing is 2"),
        (("--frobnicate",), "frobnicate"),
        (("--logits",), "--logits"),
        (("--target", "--logits", "1", "2"), "--target"),
        (("--logits", "1,2,,3"), "--logits: number 2 is ''"),
        (("--logits", "", "--target", "0"), "--logits: number 0 is ''"),
        (("--html", "page.txt"), "--html page.txt: the file name must end in .html or .htm"),
        (("--html", "page.html", "--json"), "--json prints what --html or --open make a page of"),
        (("--html", "nowhere/page.html"), "there is no directory nowhere"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, cli: Command) -> None:
    done = cli("explain", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("softgrad: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert list(Path().iterdir()) == []


def test_page(cli: Command) -> None:
    words = ("--logits", "3", "-inf", "1", "--target", "2", "--temperature", "2", "--lang", "zh", "--html", "page.html")
    done = cli("explain", *words)
    assert done.code == 0, done.err
    assert done.out == "the derivation as a page: page.html\n"
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert '<html lang="zh' in page
    assert [path.name for path in Path().iterdir()] == ["page.html"]


def test_open_without_a_browser_says_where_the_page_is(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = process("--open", "--html", str(page), BROWSER="/bin/false", DISPLAY="")
    assert done.returncode == 0
    assert "page.html" in done.stdout
    assert page.exists()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--logits", "2.0", "-inf", "0.1", "--target", "0", "--label-smoothing", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    S = reference.softmax([2.0, -np.inf, 0.1])
    assert said["logits"] == [2.0, "-inf", 0.1]
    np.testing.assert_allclose(said["probabilities"], S)
    np.testing.assert_allclose(said["gradient"], S - [1, 0, 0])
    np.testing.assert_allclose(said["jacobian"], reference.softmax_jacobian([2.0, -np.inf, 0.1]))
    assert [step["title"] for step in said["steps"]] == [title for title, _ in TEXTS["en"].values()]
    checks = [check for step in said["steps"] for check in step["checks"]]
    assert (len(checks), said["wrong"]) == (said["checks"], 0)
    assert {"how", "what", "error", "ok"} == set(checks[0])
    assert all(any(step[part] for step in said["steps"]) for part in ("tables", "facts"))


def test_a_check_that_fails_is_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "softmax", lambda *_, **__: np.array([0.5, 0.3, 0.2]))
    assert main(["explain"]) == 1
    assert WORDS["en"]["wrong"] in capsys.readouterr().out
    assert main(["explain", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["wrong"] == sum(check["ok"] is False for step in said["steps"] for check in step["checks"]) > 0
