"""The command line: the main job from end to end, and one clear line for every mistake."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import skops.io
from cli_cases import Command, description, one_error, process
from sklearn import datasets
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline

import softgrad
from softgrad._core import backend
from softgrad.cli import main
from softgrad.cli.model import _archive
from softgrad.sklearn import SoftmaxRegression


def table(path: str) -> pa.Table:
    return pa.csv.read_csv(path) if path.endswith(".csv") else pa.parquet.read_table(path)


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


# --- the main job ----------------------------------------------------------------------------------------------------


def test_digits_from_fit_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first words of the README, as processes: train, then predict."""
    monkeypatch.chdir(tmp_path)
    fitted = process("fit", "digits")
    assert fitted.returncode == 0
    said = fitted.stdout.decode()
    assert re.search(r"pixel_0_1 … pixel_7_7 \(61\) +numeric", fitted.stderr.decode())  # what the columns are taken for
    assert "model saved as digits.skops" in said
    assert "\x1b" not in said  # no colour when piped
    held_out = description("digits.skops")["metrics"]["held out"]
    assert held_out["rows"] == 360
    assert held_out["accuracy"] >= 0.95
    assert held_out["log_loss"] < 0.2
    figures = [f"{held_out[name]:.4f}" for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")]
    assert re.search("held out +360 +" + " +".join(figures), said)

    assert main(["data", "digits", "-o", "digits.csv"]) == 0
    predicted = process("predict", "digits.skops", "digits.csv", "-o", "out.parquet")
    assert (predicted.returncode, predicted.stderr) == (0, b"")
    out = table("out.parquet")
    assert out.column_names == ["prediction", *(f"probability_{digit}" for digit in range(10))]
    x, y = datasets.load_digits(return_X_y=True)
    assert np.mean(out["prediction"].to_numpy() == y) > 0.97
    probabilities = np.column_stack([out[name].to_numpy() for name in out.column_names[1:]])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    pipeline = _archive.load(Path("digits.skops")).pipeline
    frame = pd.DataFrame(x, columns=datasets.load_digits().feature_names)
    np.testing.assert_allclose(probabilities, pipeline.predict_proba(frame), rtol=1e-12)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_other_built_in_data(name: str, cli: Command) -> None:
    assert cli("fit", name).code == 0
    assert description(f"{name}.skops")["metrics"]["held out"]["accuracy"] > 0.9
    assert cli("data", name, "-o", f"{name}.parquet").code == 0
    assert cli("predict", f"{name}.skops", f"{name}.parquet", "-o", "out.csv").code == 0
    truth, predicted = table(f"{name}.parquet")["target"].to_pylist(), table("out.csv")["prediction"].to_pylist()
    assert np.mean([a == b for a, b in zip(truth, predicted, strict=True)]) > 0.95


def test_a_file_gives_what_the_built_in_data_gives(cli: Command) -> None:
    """CSV, Parquet and built-in: the same rows, the same split, the same model."""
    for extension in ("csv", "parquet"):
        cli("data", "wine", "-o", f"from_{extension}.{extension}")
        assert cli("fit", f"from_{extension}.{extension}", "--target", "target").code == 0
    cli("fit", "wine")
    models = [_archive.load(Path(f"{name}.skops")) for name in ("wine", "from_csv", "from_parquet")]
    for model in models[1:]:
        np.testing.assert_array_equal(model.pipeline[-1].coef_, models[0].pipeline[-1].coef_)
        assert model.columns == models[0].columns
        assert model.classes == ["class_0", "class_1", "class_2"]


def test_training_calls_the_native_kernel(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    native, heads, layers = backend._native, [], []
    assert native is not None

    def head(*arguments: Any) -> Any:
        heads.append(native.Head(*arguments))
        return heads[-1]

    def linear(*arguments: Any) -> Any:  # only training makes one
        layers.append(native.Linear(*arguments))
        return layers[-1]

    spy = SimpleNamespace(**{**vars(native), "Head": head, "Linear": linear})

    with backend.use(backend.available()[0]):
        monkeypatch.setattr(backend, "kernels", lambda: spy)
        answer = cli("fit", "iris")
    iterations = int(re.search(r"(\d+) iterations", answer.out)[1])  # type: ignore[index]
    assert iterations >= 3
    assert layers
    assert heads
    assert {type(made).__module__ for made in (*heads, *layers)} == {"softgrad._native"}


def test_options_reach_the_model(cli: Command) -> None:
    options = ["--split", "0.4", "--seed", "7", "--C", "0.25", "--tol", "1e-8", "--max-iter", "50"]
    options += ["--label-smoothing", "0.1"]
    assert cli("fit", "iris", *options, "--no-standardize", "--threads", "1", "-o", "m.skops").code == 0
    pipeline = _archive.load(Path("m.skops")).pipeline
    classifier = pipeline[-1]
    assert list(pipeline[0].named_transformers_["numeric"].named_steps) == ["fill"]  # no scaler
    expected = SoftmaxRegression(C=0.25, tol=1e-8, max_iter=50, label_smoothing=0.1, n_threads=1)
    assert classifier.get_params() == expected.get_params()
    assert description("m.skops")["metrics"]["held out"]["rows"] == 60
    cli("fit", "iris", *options[:2], "--seed", "8", *options[4:], "--no-standardize", "-o", "other.skops")
    assert not np.array_equal(_archive.load(Path("other.skops")).pipeline[-1].coef_, classifier.coef_)


def test_nothing_held_out(cli: Command) -> None:
    answer = cli("fit", "iris", "--split", "0")
    assert answer.code == 0
    assert "held out" not in answer.out
    assert description("iris.skops")["metrics"]["train"]["rows"] == 150


def test_the_split_keeps_the_proportions(cli: Command) -> None:
    from softgrad.cli.features._load import stratified

    labels = np.repeat(["rare", "common"], [10, 90])
    train, held_out = stratified(labels, 0.2, 3, "x", "y")
    assert (labels[held_out] == "rare").sum() == 2
    assert len(held_out) == 20
    assert sorted([*train, *held_out]) == list(range(100))


def test_stopping_early_is_a_warning_not_an_error(cli: Command) -> None:
    answer = cli("fit", "digits", "--max-iter", "2")
    assert answer.code == 0
    assert answer.err.splitlines()[-1].startswith("softgrad: warning: the fit has not converged")
    assert answer.err.count("softgrad:") == 1


@pytest.mark.parametrize(
    ("cells", "labels", "kind"),
    [
        (["3", "-1"], [3, -1], pa.int64()),
        (["True", "false"], [True, False], pa.bool_()),
        (["yes", "no"], ["yes", "no"], pa.string()),
        (["007", "7"], ["007", "7"], pa.string()),
        (["1.0", "2.0"], [1.0, 2.0], pa.float64()),
        (['"a, b"', '"c""d"'], ["a, b", 'c"d'], pa.string()),
    ],
)
def test_predictions_keep_the_type_of_the_labels(cells: list[str], labels: list[Any], kind: Any, cli: Command) -> None:
    rows = [f"{i % 2 * 10 + i / 100},{cells[i % 2]}" for i in range(20)]
    Path("d.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    assert cli("fit", "d.csv", "-t", "y").code == 0
    assert cli("predict", "d.skops", "d.csv", "-o", "out.parquet").code == 0
    out = table("out.parquet")
    assert out.schema.field("prediction").type == kind
    assert out["prediction"].to_pylist() == [labels[i % 2] for i in range(20)]
    assert cli("predict", "d.skops", "d.csv", "-o", "out.csv").code == 0
    assert table("out.csv").column_names == out.column_names
    np.testing.assert_array_equal(table("out.csv").column(1).to_numpy(), out.column(1).to_numpy())


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.bool_(), pa.large_string(), "dictionary"])
def test_parquet_labels_of_any_kind(kind: Any, cli: Command) -> None:
    labels = pa.array([i % 2 for i in range(20)], pa.int8())
    labels = labels.cast(pa.string()).dictionary_encode() if kind == "dictionary" else labels.cast(kind)
    features = pa.array([i % 2 * 3.0 for i in range(20)], pa.float32())
    pa.parquet.write_table(pa.table({"a.b": features, "y": labels, "flag": features.cast(pa.bool_())}), "d.parquet")
    assert cli("fit", "d.parquet", "-t", "y").code == 0
    assert cli("predict", "d.skops", "d.parquet", "-o", "out.parquet").code == 0
    assert table("out.parquet")["prediction"].to_pylist() == labels.to_pylist()


def test_predict_takes_columns_by_name_and_leaves_the_others_alone(cli: Command) -> None:
    cli("fit", "iris")
    cli("data", "iris", "-o", "iris.csv")
    cli("predict", "iris.skops", "iris.csv", "-o", "straight.csv")
    shuffled = table("iris.csv").select([3, 0, 2, 1]).append_column("note", pa.array(["?"] * 150))
    pa.csv.write_csv(shuffled, "shuffled.csv")
    assert cli("predict", "iris.skops", "shuffled.csv", "-o", "again.csv").code == 0
    assert Path("again.csv").read_text() == Path("straight.csv").read_text()


def test_the_row_index_that_pandas_stores_is_no_feature(cli: Command) -> None:
    columns = {"x": [0.0, 1.0] * 10, "y": ["a", "b"] * 10, "__index_level_0__": list(range(20))}
    pa.parquet.write_table(pa.table(columns), "d.parquet")
    assert cli("fit", "d.parquet", "-t", "y").code == 0
    assert [column["name"] for column in description("d.skops")["columns"]] == ["x"]


def test_cells_as_people_write_them(cli: Command) -> None:
    """A byte-order mark, CRLF, blank lines, spaces, quotes, exponents, signs, booleans."""
    rows = ['"1", 2e0 ,true,u', "+3,.5,FALSE,v"] * 8
    Path("d.CSV").write_bytes(("\ufeffa,b,c,y\r\n" + "\r\n\r\n".join(rows) + "\r\n").encode())
    done = cli("fit", "d.CSV", "-t", "y", "--no-standardize")
    assert done.code == 0
    assert "warning" not in done.err
    model = _archive.load(Path("d.skops"))
    assert model.columns == ["a", "b", "c"]
    assert [item.role for item in model.ingredients] == ["numeric", "numeric", "boolean"]
    assert description("d.skops")["metrics"]["train"]["accuracy"] == 1.0


# --- mistakes --------------------------------------------------------------------------------------------------------

GOOD = "a,b,y\n" + "1,2,u\n3,4,v\n" * 10
BAD_DATA = {
    "not a number": (GOOD + "\n5,six,v\n", r"d\.csv: row 21 \(line 23\), column 'b': 'six' is not a number"),
    "after a line break in quotes": (
        GOOD + '1,2,"u\nu"\n3,4x,v\n',
        r"row 22 \(line 24\), column 'b': '4x' is not a number, but 21 of the column's 22 cells are",
    ),
    "infinity": (GOOD + "1,-inf,u\n", r"row 21 \(line 22\), column 'b': -inf is not a finite number"),
    "no label": (GOOD + "1,2,\n", r"row 21 \(line 22\), column 'y': the cell is empty; a row needs its class"),
    "one class": ("a,y\n1,u\n2,u\n", r"column 'y' holds one class only, 'u'"),
    "a class of one row": (GOOD + "1,2,w\n", r"class 'w' of column 'y' has a single row, .* --split 0"),
    "broken numbers as target": ("a,y\n1,0.5\n2,1.5\n", r"row 1 \(line 2\), column 'y': the target looks continuous"),
    "many numbers as target": (
        "a,y\n" + "".join(f"{i % 7},{i}\n" for i in range(60)),
        r"'y' looks continuous: 60 distinct numbers in 60 rows",
    ),
    "twice the same name": ("a,a,y\n1,2,u\n", r"the header names column 'a' more than once"),
    "no name": (",b,y\n0,1,u\n", r"column 1 of the header has no name"),
    "header only": ("a,b,y\n", r"d\.csv: has a header but no rows"),
    "empty file": ("", r"d\.csv: the file is empty"),
    "only blank lines": ("\n\n", r"d\.csv: the file is empty"),
    "no target column": ("a,b\n1,2\n", r"no column 'y'; it has 'a', 'b'"),
    "semicolons": ("a;y\n1;u\n", r"no column 'y'; it has 'a;y'; .* separated by ';': say so with --delimiter ';'"),
    "no header": ("1,2\n3,4\n", r"d\.csv: the first line holds numbers \(1, 2, …\): it needs a header line"),
    "only the target": ("y\nu\nv\n", r"has no column but the target 'y'"),
    "short row": (GOOD + "1,2\n", r"row 21 \(line 22\) has 2 cells, the header has 3"),
    "long row": (GOOD + "1,2,u,9\n", r"row 21 \(line 22\) has 4 cells, the header has 3"),
    "another encoding": (GOOD + "1,2,\xe9\n", r"d\.csv: is not UTF-8 text"),
    "too few rows": ("a,y\n1,u\n2,u\n3,v\n4,v\n5,w\n6,w\n", r"--split 0\.2 of 6 rows holds out 2"),
    "overflow": ("a,y\n" + "1e308,u\n-1e308,v\n" * 10, r"column 'a' holds values up to 1e\+308, .* scale it"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case: str, cli: Command) -> None:
    content, message = BAD_DATA[case]
    Path("d.csv").write_bytes(content.encode("latin-1"))
    one_error(cli("fit", "d.csv", "--target", "y"), message)
    assert files() == {"d.csv"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": pa.array([1.0, 2.0, np.inf])}, r"d\.parquet: row 3, column 'x': inf is not a finite number"),
        ({"x": pa.array([None] * 3)}, r"no column is left to learn from \('x': every cell is empty\)"),
        ({"x": pa.array([{"a": 1}] * 3)}, r"column 'x' holds struct<.*> values, .* --drop x"),
        (
            {"x": pa.array([[1.0], [1.0, 2.0], [3.0], [4.0]])},
            r"row 2, column 'x': the list has 2 numbers, others have 1",
        ),
        ({"y": pa.array(["a", None, "b"])}, r"row 2, column 'y': the cell is empty"),
        ({"y": pa.array([0.0, 1.0, np.nan])}, r"row 3, column 'y': nan is not a class"),
        ({"y": pa.array([0, 0, 0], pa.timestamp("s"))}, r"column 'y' holds timestamp\[.*\] values: a target holds"),
    ],
)
def test_bad_parquet(columns: dict[str, Any], message: str, cli: Command) -> None:
    good = {"x": pa.array([1.0, 2.0, 3.0, 4.0]), "y": pa.array(["a", "b", "a", "b"])}
    n_rows = min(len(column) for column in columns.values())
    pa.parquet.write_table(pa.table({name: c[:n_rows] for name, c in (good | columns).items()}), "d.parquet")
    one_error(cli("fit", "d.parquet", "-t", "y", "--split", "0"), message)
    assert files() == {"d.parquet"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere.csv", "-t", "y"], r"nowhere\.csv: no such file"),
        (["fit", "directory.csv", "-t", "y", "-o", "x.skops"], r"directory\.csv: the directory holds no file"),
        (["fit", "notes.txt", "-t", "y"], r"notes\.txt: what the file holds is not known by its name"),
        (["fit", "junk.parquet", "-t", "y"], r"junk\.parquet: is not a Parquet file"),
        (["fit", "d.csv"], r"say which column holds the labels with --target; it has 'a', 'b', 'y'"),
        (["fit", "d.csv", "-t", "Y"], r"no column 'Y'; it has"),
        (["fit", "digits", "-t", "target"], r"digits is built in and has its own target"),
        (["fit", "d.csv", "-t", "y", "-o", "m.pkl"], r"-o m\.pkl: the file name must end in \.skops"),
        (["fit", "d.csv", "-t", "y", "-o", "no/m.skops"], r"-o no/m\.skops: there is no directory no"),
        (["fit", "d.csv", "-t", "y", "-o", "directory.skops"], r"-o directory\.skops: is a directory"),
        (["fit", "iris", "--split", "1"], r"--split must be in \[0, 1\)"),
        (["fit", "iris", "--test-size", "nan"], r"--split must be in \[0, 1\)"),
        (["fit", "iris", "--split", "0.01"], r"holds out 2 and trains on 148"),
        (["fit", "iris", "--C", "0"], r"--C must be positive .*, not 0"),
        (["fit", "iris", "--C", "much"], r"--C"),
        (["fit", "iris", "--tol", "0"], r"--tol must be positive, not 0"),
        (["fit", "iris", "--max-iter", "0"], r"--max-iter must be"),
        (["fit", "iris", "--label-smoothing", "-0.1"], r"--label-smoothing must be in \[0, 1\], not -0\.1"),
        (["fit", "iris", "--seed", "-1"], r"--seed must be"),
        (["fit", "iris", "--threads", "0"], r"--threads must be"),
        (["fit", "iris", "--frobnicate"], r"No such option: --frobnicate"),
        (["fit"], r"Missing argument"),
        (["frobnicate"], r"No such command 'frobnicate'"),
        (["data", "mnist", "-o", "m.csv"], r"mnist: there is no such built-in data set"),
        (["data", "iris", "-o", "iris.xlsx"], r"must end in \.csv or \.parquet"),
        (["predict", "m.skops", "nowhere.csv", "-o", "o.csv"], r"nowhere\.csv: no such file"),
        (["predict", "nowhere.skops", "d.csv", "-o", "o.csv"], r"nowhere\.skops: no such file"),
        (["predict", "m.skops", "d.csv", "-o", "o.txt"], r"-o o\.txt: the file name must end in \.csv or \.parquet"),
        (["predict", "m.skops", "d.csv", "-o", "no/o.csv"], r"-o no/o\.csv: there is no directory no"),
        (["predict", "m.skops", "d.csv", "-o", "./d.csv"], r"is read by this command"),
        (["predict", "m.skops", "d.csv"], r"Missing option '--output'"),
        (["predict", "m.skops", "lacks.csv", "-o", "o.csv"], r"lacks\.csv: no column 'b'; it has 'a', 'bb'"),
        (["predict", "m.skops", "bad.csv", "-o", "o.csv"], r"bad\.csv: row 2 \(line 3\), column 'b': 'x' is not a n"),
        (["predict", "m.skops", "huge.csv", "-o", "o.csv"], r"huge\.csv: row 1 \(line 2\): .* overflow"),
        (["predict", "d.csv", "d.csv", "-o", "o.csv"], r"d\.csv: is not a model written by softgrad fit"),
        (["predict", "m.skops", "digits", "-o", "o.csv"], r"digits: no columns 'a', 'b'; it has"),
    ],
)
def test_mistakes(arguments: list[str], message: str, cli: Command) -> None:
    Path("d.csv").write_text(GOOD)
    Path("lacks.csv").write_text("a,bb\n1,2\n")
    Path("bad.csv").write_text("a,b\n1,2\n1,x\n")
    Path("huge.csv").write_text("a,b\n1e308,1e308\n")
    for name in ("notes.txt", "junk.parquet"):
        Path(name).write_text("hello")
    for name in ("directory.csv", "directory.skops"):
        Path(name).mkdir()
    assert cli("fit", "d.csv", "-t", "y", "-o", "m.skops").code == 0
    before = files()
    one_error(cli(*arguments), message)
    assert files() == before


class Stranger(TransformerMixin, BaseEstimator):
    """A step that no one trusts."""

    def fit(self, *_: Any) -> Stranger:
        return self

    def transform(self, X: Any) -> Any:
        return X


def altered(change: Callable[[dict[str, Any]], None], source: str = "m.skops") -> bytes:
    """A model file with another description."""
    out = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "softgrad.json":
                facts = json.loads(content)
                change(facts)
                content = json.dumps(facts).encode()
            new.writestr(name, content)
    return out.getvalue()


def described(thing: Any) -> bytes:
    """Anything as a skops file with a good description."""
    out = io.BytesIO(skops.io.dumps(thing))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("softgrad.json", json.dumps({"format": _archive.FORMAT, "columns": []}))
    return out.getvalue()


def test_models_that_are_none(cli: Command) -> None:
    Path("d.csv").write_text(GOOD)
    cli("fit", "d.csv", "-t", "y", "-o", "m.skops")
    whole = Path("m.skops").read_bytes()
    fitted = _archive.load(Path("m.skops")).pipeline
    cases = {
        r"format 9, written by softgrad 9\.1; softgrad .* reads format 3": altered(
            lambda facts: facts.update(format=9, softgrad="9.1")
        ),
        r"no format number": altered(lambda facts: facts.pop("format")),
        r"its columns do not fit": altered(lambda facts: facts["columns"].pop()),
        r"damaged model file: its columns": altered(lambda facts: facts.update(columns="a, b")),
        r"is not a model written by softgrad fit$": whole[: len(whole) // 2],
        r"is not a model written by .*fit$": skops.io.dumps(SoftmaxRegression()),
        r"refused: .* not trusted: '[\w.]*Stranger'": described(Pipeline([("x", Stranger()), ("y", fitted[-1])])),
        r"does not hold a softgrad model but a SoftmaxRegression": described(fitted[-1]),
        r"is a damaged model file": re.sub(rb'"__class__": "Pipeline"', b'"__class__": "Pipe"    ', altered(dict)),
    }
    for message, content in cases.items():
        Path("x.skops").write_bytes(content)
        before = files()
        one_error(cli("predict", "x.skops", "d.csv", "-o", "o.csv"), message)
        assert files() == before


# --- whole files or none ---------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cli("fit", "iris")
    cli("data", "iris", "-o", "iris.csv")
    Path("o.csv").write_text("precious")
    model, before = Path("iris.skops").read_bytes(), files()
    monkeypatch.setattr(os, "fsync", full)
    one_error(cli("fit", "iris", "--C", "9"), r"cannot write iris\.skops: No space left on device")
    one_error(cli("predict", "iris.skops", "iris.csv", "-o", "o.csv"), r"cannot write o\.csv: No space left")
    assert (Path("iris.skops").read_bytes(), Path("o.csv").read_text(), files()) == (model, "precious", before)


def test_a_forbidden_directory_is_found_before_the_work(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    monkeypatch.setattr(SoftmaxRegression, "fit", lambda *_, **__: pytest.fail("the work began"))
    one_error(cli("fit", "iris"), r"cannot write iris\.skops: Permission denied")


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
def test_an_interrupt_while_writing_leaves_nothing(moment: str, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    place: Any = os if moment == "fsync" else Path
    before = getattr(place, moment)

    def interrupt(first: Any, *rest: Any, **options: Any) -> Any:
        if moment == "open":  # the file is there already
            before(first, *rest, **options).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(place, moment, interrupt)
    answer = cli("fit", "iris")
    assert (answer.code, answer.out, files()) == (130, "", set())
    assert answer.err.endswith("softgrad: interrupted; no file is left half-written\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_during_a_fit(cli: Command) -> None:
    """On a pseudo-terminal, which also shows that the progress moves: interrupt once the iterations run."""
    import pty

    random = np.random.default_rng(0)
    # Noise in 200 classes, almost unpenalised: a fit of minutes, of which an iteration is a moment.
    x = 2.0 ** (np.arange(256) % 12) * random.normal(size=(8_000, 256))
    cells = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 256)
    pa.parquet.write_table(pa.table({"x": cells, "y": random.integers(200, size=8_000)}), "d.parquet")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "softgrad.cli", "fit", "d.parquet", "-t", "y", "--C", "1e6", "--no-standardize"]
    command += ["--max-iter", "100000"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        try:
            while block := os.read(ours, 4096):
                seen.extend(block)
        except OSError:  # the terminal is gone with the child
            pass

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 120
    while not re.search(rb"iteration [1-9]", seen) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out = child.communicate(timeout=120)[0]
    reader.join()
    os.close(ours)
    assert child.returncode == 130
    assert b"objective" in seen
    assert seen.rstrip().endswith(b"softgrad: interrupted; no file is left half-written")
    assert b"Traceback" not in seen
    assert b"d.skops is the model so far" in seen
    assert b"held out" in out
    assert files() == {"d.parquet", "d.skops"}
    assert description("d.skops")["interrupted"] is True
    assert cli("predict", "d.skops", "d.parquet", "-o", "out.csv", "--top-k", "1").code == 0


def test_permissions_and_links_of_the_output(cli: Command) -> None:
    mask = os.umask(0o027)
    try:
        cli("data", "iris", "-o", "new.csv")
    finally:
        os.umask(mask)
    assert Path("new.csv").stat().st_mode & 0o777 == 0o640
    Path("real.csv").touch(0o600)
    Path("link.csv").symlink_to("real.csv")
    cli("data", "iris", "-o", "link.csv")
    assert Path("link.csv").is_symlink()
    assert Path("real.csv").stat().st_mode & 0o777 == 0o600
    assert Path("real.csv").read_text() == Path("new.csv").read_text()


# --- the rest --------------------------------------------------------------------------------------------------------


def test_version_help_and_info(cli: Command) -> None:
    assert cli("--version").out == f"softgrad {softgrad.__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        answer = cli(*arguments)
        assert answer.code == 0
        assert {"fit", "predict", "data", "info"} <= set(answer.out.split())
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in cli("info").out.splitlines())
    assert facts["version"] == softgrad.__version__
    assert facts["instruction set"] == softgrad.info()["instruction_set"]
    assert facts["n threads"] == str(softgrad.info()["n_threads"])
    assert facts["blas"]
    assert facts["fallback"].startswith("none")


def test_info_says_why_it_falls_back() -> None:
    answer = process("info", SOFTGRAD_INSTRUCTION_SET="numpy")
    assert re.search(r"instruction set +numpy\n", answer.stdout.decode())
    assert re.search(r"fallback +SOFTGRAD_INSTRUCTION_SET=numpy", answer.stdout.decode())


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from softgrad.cli import main; main(['--help']); "
        "print('loaded', [m for m in ('pyarrow', 'scipy', 'skops', 'sklearn', 'torch') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("missing", ["typer", "rich", "skops", "pyarrow", "dask"])
def test_without_the_extra(missing: str, tmp_path: Path) -> None:
    command = ["data", "iris", "-o", "i.csv"] if missing == "pyarrow" else ["fit", "iris"]
    if missing == "dask":
        (tmp_path / "d.csv").write_text("x,y\n1,a\n2,b\n")
        command = ["fit", "d.csv", "-t", "y", "--cluster", "local"]
    script = f"import sys; sys.modules[{missing!r}] = None; from softgrad.cli import main; sys.exit(main({command}))"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert answer.returncode == 2
    extra = "dask" if missing == "dask" else "cli"
    message = f"the command line needs {missing}, which is not installed: pip install 'softgrad[{extra}]'"
    assert answer.stderr == f"softgrad: error: {message}\n"
    assert list(tmp_path.glob("*.skops")) == []


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        command = [sys.executable, "-m", "softgrad.cli", "info"]
        answer = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=60)
    assert answer.stderr == b""
