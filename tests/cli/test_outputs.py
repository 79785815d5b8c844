"""Where results go: nothing that was read is replaced, and no row is lost without a word."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_cases import Command, one_error, process

COMMAND = [sys.executable, "-m", "softgrad.cli"]


@pytest.fixture
def model(cli: Command) -> None:
    """A table and a model of it in the current directory."""
    rows = "".join(f"{i % 7},{i * i % 11},{'pq'[i % 7 > 3]}\n" for i in range(4000))
    Path("t.csv").write_text("a,b,y\n" + rows, encoding="utf-8")
    assert cli("fit", "t.csv", "-t", "y", "-o", "m.skops").code == 0


@pytest.mark.usefixtures("model")
def test_predictions_replace_neither_the_data_nor_the_model(cli: Command) -> None:
    Path("m.skops").rename("m.csv")
    for name in ("m.csv", "t.csv"):
        before = Path(name).read_bytes()
        one_error(cli("predict", "m.csv", "t.csv", "-o", name), f"-o {name}: is read by this command")
        assert Path(name).read_bytes() == before


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "words", [("predict", "m.skops", "t.csv", "-o", "-"), ("evaluate", "m.skops", "t.csv"), ("info",)]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_is_full(words: tuple[str, ...], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, check=False, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "softgrad: error: cannot write to standard output: No space left on device"
    ), done.stderr


@pytest.mark.usefixtures("model")
def test_no_row_is_lost_where_output_is_unbuffered() -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, 32 << 10))

    with Path("out.csv").open("wb") as out:
        done = subprocess.run(
            [*COMMAND, "predict", "m.skops", "t.csv", "-o", "-"], stdout=out, stderr=subprocess.PIPE, check=False,
            text=True, preexec_fn=limit, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write to standard output: File too large" in done.stderr
    whole = process("predict", "m.skops", "t.csv", "-o", "-", PYTHONUNBUFFERED="1")
    assert (whole.returncode, whole.stdout.count(b"\n")) == (0, 4001)


@pytest.mark.usefixtures("model")
def test_pipes_as_output_and_as_input(cli: Command) -> None:
    assert cli("predict", "m.skops", "t.csv", "-o", "plain.csv").code == 0
    os.mkfifo("pipe.csv")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(Path("pipe.csv").read_bytes()))
    reader.start()
    assert cli("predict", "m.skops", "t.csv", "-o", "pipe.csv").code == 0
    reader.join(60)
    assert found == [Path("plain.csv").read_bytes()]
    assert stat.S_ISFIFO(Path("pipe.csv").stat().st_mode)
    writer = threading.Thread(target=lambda: Path("pipe.csv").write_bytes(Path("t.csv").read_bytes()))
    writer.start()
    assert cli("predict", "m.skops", "pipe.csv", "-o", "from.csv").code == 0
    writer.join(60)
    assert Path("from.csv").read_bytes() == Path("plain.csv").read_bytes()
    done = process(
        "predict", "m.skops", "/dev/stdin", "--format", "csv", "-o", "stdin.csv",
        standard_input=Path("t.csv").read_bytes(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path("stdin.csv").read_bytes() == Path("plain.csv").read_bytes()
