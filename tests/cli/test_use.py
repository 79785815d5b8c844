"""A model in use: predictions, what it goes by, an ONNX file, a cluster; and the manners of all commands."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from cli_cases import Command, description, mixed, one_error, process

from softgrad.cli.commands._lists import gathered
from softgrad.cli.model import _archive


@pytest.fixture
def fitted(cli: Command) -> pd.DataFrame:
    """``d.csv`` and ``d.skops``."""
    table = mixed(300)
    table.to_csv("d.csv", index=False)
    assert cli("fit", "d.csv", "-t", "species").code == 0
    return table


def test_the_most_probable_classes(fitted: pd.DataFrame, cli: Command) -> None:
    assert cli("predict", "d.skops", "d.csv", "-o", "all.parquet", "--id", "id", "note").code == 0
    assert cli("predict", "d.skops", "d.csv", "-o", "top.parquet", "--top-k", "9", "--id", "id").code == 0
    assert cli("predict", "d.skops", "d.csv", "-o", "bare.csv", "--no-probabilities").code == 0
    whole, top = (pa.parquet.read_table(f"{name}.parquet").to_pandas() for name in ("all", "top"))
    assert whole.columns[:2].tolist() == ["id", "note"]
    assert whole["id"].tolist() == fitted["id"].astype(str).tolist()  # as it stands in the file
    assert top.columns.tolist() == [
        "id", "prediction", "probability", "prediction_2", "probability_2", "prediction_3", "probability_3",
    ]  # fmt: skip
    p = whole[[f"probability_{label}" for label in ("cat", "dog", "eel")]].to_numpy()
    np.testing.assert_array_equal(
        top[["probability", "probability_2", "probability_3"]].to_numpy(), -np.sort(-p, axis=1)
    )
    assert (top["prediction"] == whole["prediction"]).all()
    assert pa.csv.read_csv("bare.csv").column_names == ["prediction"]
    one_error(cli("predict", "d.skops", "d.csv", "-o", "o.csv", "--top-k", "0"), "--top-k must be at least 1, not 0")
    one_error(cli("predict", "d.skops", "d.csv", "-o", "o.csv", "--id", "nobody"), "--id: no column 'nobody'; it has")


def test_predictions_are_those_of_the_pipeline(fitted: pd.DataFrame, cli: Command) -> None:
    """The file holds a scikit-learn pipeline that somebody else can use, too."""
    cli("predict", "d.skops", "d.csv", "-o", "out.csv")
    script = """
import pandas as pd, skops.io
pipeline = skops.io.load("d.skops", trusted=["numpy.dtype", "softgrad.sklearn.SoftmaxRegression"])
table = pd.read_csv("d.csv")
table["member"] = table["member"] * 1.0
days = pd.to_datetime(table.pop("joined"))
from softgrad.cli.features._frame import _date_parts
import numpy as np
parts = _date_parts(days.to_numpy().astype("datetime64[us]"))
names = [n for n in pipeline[0].feature_names_in_ if n.startswith("joined.")]
table[names] = parts
print(pipeline.predict_proba(table)[:, 1].tolist())
"""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    np.testing.assert_allclose(
        json.loads(answer.stdout), pa.csv.read_csv("out.csv")["probability_dog"].to_numpy(), rtol=1e-9
    )


def test_inspect(fitted: pd.DataFrame, cli: Command) -> None:
    answer = cli("inspect", "d.skops")
    assert answer.code == 0
    for line in (
        r"target +species",
        r"classes +3: cat, dog, eel",
        r"held out +60 rows, accuracy 0\.",
        r"command +softgrad fit d\.csv -t species",
    ):
        assert re.search(line, answer.out), line
    assert re.search(r"eel .*quick \+", answer.out)
    found = cli("inspect", "d.skops", "--json", "--top", "3").json
    coef = _archive.load(Path("d.skops")).classifier.coef_
    names = _archive.load(Path("d.skops")).pipeline[0].get_feature_names_out()
    for k, row in enumerate(found["weights"]):
        assert [f["feature"] for f in row["for"]] == names[np.argsort(-coef[k], kind="stable")[:3]].tolist()
    assert sum(column["features"] for column in found["columns"]) == found["n_features"] == coef.shape[1]


def test_export_and_what_it_says(fitted: pd.DataFrame, cli: Command) -> None:
    answer = cli("export", "d.skops", "--onnx", "d.onnx", "--data", "d.csv")
    assert answer.code == 0
    assert "input   age  float [rows, 1]" in answer.out
    assert re.search(r"tried on \d+ rows in onnxruntime: labels equal", answer.out)
    import onnxruntime

    session = onnxruntime.InferenceSession("d.onnx", providers=["CPUExecutionProvider"])
    assert "note" in {given.name for given in session.get_inputs()}
    found = cli("export", "d.skops", "--onnx", "e.onnx", "--json").json
    assert found["largest_difference"] < 1e-5
    one_error(cli("export", "d.skops", "--onnx", "d.txt"), r"--onnx d\.txt: the file name must end in \.onnx")
    one_error(cli("export", "d.csv", "--onnx", "f.onnx"), r"d\.csv: is not a model written by softgrad fit")


def test_on_a_cluster_of_this_machine(cli: Command) -> None:
    """The same optimum as in one process, from files that the workers read."""
    table = mixed(600)
    for number in range(3):
        table[number * 200 : number * 200 + 200].to_parquet(f"part-{number}.parquet", index=False)
    arguments = ("fit", "part-*.parquet", "-t", "species", "--json", "--tol", "1e-10")
    here = cli(*arguments, "-o", "here.skops").json
    there = cli(*arguments, "-o", "there.skops", "--cluster", "local").json
    assert there["objective"] == pytest.approx(here["objective"], rel=1e-9)
    held = [found["evaluations"]["held out"]["log_loss"] for found in (here, there)]
    assert held[0] == pytest.approx(held[1], rel=1e-4)
    for words, message in {
        ("--cluster", "somewhere"): "give local, or the address of a scheduler such as tcp://host:8786",
        ("--cluster", "local", "--C", "auto"): "several values of --C needs a cross-validation",
        ("--cluster", "tcp://localhost:1", "--threads", "2"): "--threads 2: the workers of --cluster tcp://localhost:1",
        ("--cluster", "local", "--calibrate"): "--calibrate needs a cross-validation",
    }.items():
        one_error(cli(*arguments, *words), message)
    one_error(cli("fit", "iris", "--cluster", "local"), "iris is not made of tables in files")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    one_error(cli(*arguments, "--cluster", f"tcp://127.0.0.1:{port}"), "cannot be reached")


# --- manners ---------------------------------------------------------------------------------------------------------

COMMANDS = ["fit", "predict", "evaluate", "inspect", "export", "data", "explain", "info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, cli: Command) -> None:
    answer = cli(command, "--help")
    assert answer.code == 0
    assert re.search(rf"^ +softgrad {command}\b", answer.out, re.MULTILINE) or command == "info"


@pytest.mark.parametrize("command", ["fit", "evaluate", "inspect", "export", "info"])
def test_whatever_prints_a_table_prints_json(command: str, cli: Command) -> None:
    assert "--json" in cli(command, "--help").out


def test_completion(cli: Command) -> None:
    for shell in ("bash", "zsh", "fish"):
        script = process("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
        assert b"_SOFTGRAD_COMPLETE" in script
    answer = process(_SOFTGRAD_COMPLETE="complete_bash", COMP_WORDS="softgrad ev", COMP_CWORD="1")
    assert answer.stdout.split() == [b"evaluate"]


def test_no_colour_where_nobody_asked(fitted: pd.DataFrame) -> None:
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": ""}):
        answer = process("evaluate", "d.skops", "d.csv", **environment)
        assert answer.returncode == 0
        assert b"\x1b" not in answer.stdout + answer.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("colour", [True, False])
def test_colour_on_a_terminal(colour: bool, fitted: pd.DataFrame) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {
        "TERM": "xterm-256color"
    }
    command = [sys.executable, "-m", "softgrad.cli", "inspect", "d.skops"]
    child = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=environment | ({} if colour else {"NO_COLOR": "1"})
    )
    os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 4096):
            seen += block
    except OSError:  # the child has gone
        pass
    os.close(ours)
    assert child.wait() == 0
    assert (b"\x1b[2m" in seen) or not colour
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", seen) or colour


def test_lists_end_where_options_begin() -> None:
    words = ["fit", "d.csv", "--drop", "a", "b,c", "-t", "y", "--text", "n", "--C", "1"]
    assert gathered(words) == ["fit", "d.csv", "--drop=a", "--drop=b,c", "-t", "y", "--text=n", "--C", "1"]
    assert gathered(["predict", "m", "d", "--id"]) == ["predict", "m", "d", "--id"]
    assert gathered(["evaluate", "--drop", "a", "b"]) == ["evaluate", "--drop", "a", "b"]
    assert gathered(["explain", "--logits", "1,-2", "-3e1"]) == [
        "explain",
        "--logits=1",
        "--logits=-2",
        "--logits=-3e1",
    ]


def test_a_report_beside_the_model(fitted: pd.DataFrame, cli: Command) -> None:
    answer = cli("fit", "d.csv", "-t", "species", "--report", "r.html", "--C", "0.1,1", "--calibrate")
    assert answer.code == 0
    page = Path("r.html").read_text()
    for text in ("species", "softgrad fit d.csv -t species", "colour_red", "log-loss"):
        assert text in page
    figures = description("d.skops")["metrics"]["held out"]
    assert f"{100 * figures['accuracy']:.1f}" in page
    one_error(
        cli("fit", "d.csv", "-t", "species", "--report", "r.pdf"), r"--report r\.pdf: the file name must end in \.html"
    )


def test_a_directory_that_cannot_be_written(
    fitted: pd.DataFrame, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    before = {str(path) for path in Path().iterdir()}
    for words in (
        ("fit", "d.csv", "-t", "species", "-o", "x.skops"), ("predict", "d.skops", "d.csv", "-o", "x.csv"),
        ("export", "d.skops", "--onnx", "x.onnx"), ("fit", "d.csv", "-t", "species", "--report", "x.html"),
    ):  # fmt: skip
        one_error(cli(*words), r"cannot write x\.\w+: Permission denied")
    assert {str(path) for path in Path().iterdir()} == before
