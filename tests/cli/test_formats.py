"""What ``fit`` and ``predict`` read: every format gives the same model, and what cannot be read says so in one line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from cli_cases import Command, description, mixed, one_error, process
from sklearn.datasets import dump_svmlight_file, load_digits, load_iris

from softgrad.cli.model import _archive


def coefficients(path: str) -> Any:
    return _archive.load(Path(path)).classifier.coef_


def write(kind: str, table: pd.DataFrame) -> str:
    """A table in a format; dates and truth values are such where the format has them."""
    typed = table.assign(joined=pd.to_datetime(table["joined"]), member=table["member"] == "true")
    name = f"d.{kind}"
    if kind == "csv":
        table.to_csv(name, index=False)
    elif kind == "csv.gz":
        with gzip.open(name, "wt") as file:
            table.to_csv(file, index=False)
    elif kind == "csv.zst":
        table.to_csv(name, index=False, compression=None)
        packed = pa.compress(Path(name).read_bytes(), codec="zstd", asbytes=True)
        Path(name).write_bytes(packed)
    elif kind == "tsv":
        table.to_csv(name, index=False, sep="\t")
    elif kind == "parquet":
        typed.to_parquet(name, index=False, row_group_size=97)
    elif kind in ("feather", "arrow"):
        pa.feather.write_feather(pa.Table.from_pandas(typed, preserve_index=False), name)
    elif kind == "pq":  # with a dictionary, and all in text
        pa.parquet.write_table(pa.Table.from_pandas(table.astype(str).replace("nan", "")), name)
    return name


@pytest.mark.parametrize("kind", ["csv.gz", "csv.zst", "tsv", "parquet", "feather", "arrow", "pq"])
def test_every_format_gives_the_same_model(kind: str, cli: Command) -> None:
    table = mixed(300)
    assert cli("fit", write("csv", table), "-t", "species", "-o", "a.skops").code == 0
    name = write(kind, table)
    answer = cli("fit", name, "-t", "species", "-o", "b.skops")
    assert answer.code == 0
    np.testing.assert_allclose(coefficients("b.skops"), coefficients("a.skops"), rtol=1e-6, atol=1e-8)
    assert cli("predict", "b.skops", name, "-o", "b.csv").code == 0
    assert cli("predict", "a.skops", "d.csv", "-o", "a.csv").code == 0
    a, b = (pa.csv.read_csv(f"{x}.csv").to_pandas() for x in "ab")
    assert (a["prediction"] == b["prediction"]).all()


def test_parts_of_a_table(cli: Command) -> None:
    """A directory, a glob and the whole give the same; a place is told in its own file."""
    table = mixed(300)
    table.to_csv("whole.csv", index=False)
    Path("parts/.hidden").mkdir(parents=True)
    table[:100].to_csv("parts/1.csv", index=False)
    table[100:].to_csv("parts/2.csv.gz", index=False)
    Path("parts/_SUCCESS").touch()
    Path("parts/notes.txt").write_text("not a table")
    Path("parts/.hidden/3.csv").write_text("not this one")
    for number, data in enumerate(["whole.csv", "parts", "parts/*.csv*"]):
        assert cli("fit", data, "-t", "species", "-o", f"{number}.skops").code == 0
    for number in (1, 2):
        # the sums of the scaling are added up in other parts
        np.testing.assert_allclose(coefficients(f"{number}.skops"), coefficients("0.skops"), rtol=1e-9, atol=1e-12)
    table = table.astype({"age": object})
    table.loc[150, "age"] = "forty"
    table[100:].to_csv("parts/2.csv.gz", index=False)
    one_error(
        cli("fit", "parts", "-t", "species"), r"parts/2\.csv\.gz: row 51 \(line 52\), column 'age': 'forty' is not"
    )
    table[100:].drop(columns="age").to_csv("parts/2.csv.gz", index=False)
    one_error(cli("fit", "parts", "-t", "species"), r"parts/2\.csv\.gz: no column 'age', which the first file has")


def test_folders_that_name_a_column(cli: Command) -> None:
    table = mixed(300)
    for colour, rows in table.groupby("colour"):
        Path(f"lake/colour={colour}").mkdir(parents=True)
        rows.drop(columns="colour").to_parquet(f"lake/colour={colour}/part.parquet", index=False)
    assert cli("fit", "lake", "-t", "species").code == 0
    roles = {column["name"]: column["role"] for column in description("lake.skops")["columns"]}
    assert roles["colour"] == "categorical"
    assert cli("predict", "lake.skops", "lake", "-o", "out.csv", "--id", "id").code == 0
    order = pd.concat([pd.read_parquet(path) for path in sorted(Path("lake").rglob("*.parquet"))])["id"]
    assert pa.csv.read_csv("out.csv")["id"].to_pylist() == order.tolist()  # the order of the rows is kept


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow", "npz"])
def test_standard_input(kind: str, cli: Command) -> None:
    if kind == "npz":
        x, y = load_iris(return_X_y=True)
        np.savez("d.npz", X=x, species=y)
        name = "d.npz"
    else:
        name = write(kind, mixed(200))
    answer = cli("fit", "-", "-t", "species", standard_input=Path(name).read_bytes())
    assert answer.code == 0, answer.err
    cli("fit", name, "-t", "species")
    np.testing.assert_array_equal(coefficients("model.skops"), coefficients("d.skops"))
    answer = cli("predict", "model.skops", "-", "-o", "-", standard_input=Path(name).read_bytes())
    assert answer.out.startswith("prediction,probability_")
    assert "predictions written" in answer.err  # data are alone on standard output


def test_a_pipe_from_command_to_command(cli: Command) -> None:
    rows = Path(write("csv", mixed(200))).read_bytes()
    assert process("fit", "-", "-t", "species", standard_input=rows).returncode == 0
    answer = process("predict", "model.skops", "-", "-o", "-", standard_input=rows)
    assert answer.returncode == 0, answer.stderr
    cli("predict", "model.skops", "d.csv", "-o", "out.csv")
    assert answer.stdout == Path("out.csv").read_bytes()
    assert b"predictions written" in answer.stderr


def test_empty_standard_input(cli: Command) -> None:
    answer = cli("fit", "-", "-t", "y", standard_input=b"")
    assert (answer.code, answer.err) == (2, "softgrad: error: standard input: is empty\n")


def test_arrays(cli: Command) -> None:
    """A matrix in an archive, as a list column, as columns: the same numbers."""
    x, y = load_digits(return_X_y=True)
    np.savez("a.npz", X=x, label=y, other=np.zeros(3))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 64)
    pa.parquet.write_table(pa.table({"x": lists, "label": y}), "b.parquet")
    pa.parquet.write_table(pa.table({"x": pa.array(x.tolist()), "label": y}), "c.parquet")  # lists of free length
    for name in ("a.npz", "b.parquet", "c.parquet"):
        assert cli("fit", name, "-t", "label", "--tol", "1e-11").code == 0
        np.testing.assert_array_equal(coefficients(f"{name[0]}.skops"), coefficients("a.skops"))
    cli("fit", "digits", "--tol", "1e-11")
    kept = [i for i in range(64) if x[:, i].any()]
    a = coefficients("a.skops")
    np.testing.assert_allclose(a[:, kept], coefficients("digits.skops"), rtol=1e-6, atol=1e-7)
    np.save("x.npy", x)
    assert cli("predict", "a.skops", "x.npy", "-o", "out.csv", "--no-probabilities").code == 0
    assert np.mean(pa.csv.read_csv("out.csv")["prediction"].to_numpy() == y) > 0.97


def test_features_and_labels_in_two_files(cli: Command) -> None:
    """Two files of features, and one of labels for all their rows."""
    x, y = load_digits(return_X_y=True)
    np.savez("a.npz", x=x, target=y)
    Path("x").mkdir()
    np.save("x/0.npy", x[:1000])
    np.save("x/1.npy", x[1000:])
    np.save("all.npy", x)
    np.save("y.npy", y)
    assert cli("fit", "a.npz", "-t", "target").code == 0
    for data, apart in (("all.npy", 0), ("x", 1e-8)):  # batches end with the files, and sums are of batches
        assert cli("fit", data, "-t", "y.npy", "-o", "m.skops").code == 0
        np.testing.assert_allclose(coefficients("m.skops"), coefficients("a.skops"), rtol=0, atol=apart)
    for data, target in (("a.npz", "target"), ("all.npy", "y.npy")):
        assert cli("evaluate", "a.skops", data, "-t", target, "--json").json["accuracy"] > 0.97
    np.save("names.npy", np.array(["even", "odd"])[y % 2])
    assert cli("fit", "all.npy", "-t", "names.npy", "-o", "names.skops").code == 0
    assert description("names.skops")["classes"] == ["even", "odd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "x.npy"), r"x\.npy: an \.npy file has features only; --target names the \.npy file with their labels"),
        (("fit", "x.npy", "-t", "y"), r"x\.npy: an \.npy file has features only"),
        (("fit", "x.npy", "-t", "nowhere.npy"), r"nowhere\.npy: no such file"),
        (("fit", "x.npy", "-t", "short.npy"), r"short\.npy: has 5 labels, but x\.npy has 6 rows"),
        (("fit", "x.npy", "-t", "x.npy"), r"x\.npy: has shape \(6, 2\); labels are a vector"),
        (("fit", "x.npy", "-t", "objects.npy"), r"objects\.npy: holds Python objects"),
        (("fit", "x.npy", "-t", "y.npy", "--test", "x.npy"), r"--test x\.npy: an \.npy file has features only"),
        (("evaluate", "m.skops", "x.npy"), r"x\.npy: an \.npy file has features only"),
    ],
)
def test_mistakes_with_labels_of_arrays(arguments: tuple[str, ...], message: str, cli: Command) -> None:
    np.save("x.npy", np.arange(12.0).reshape(6, 2))
    np.save("y.npy", np.arange(6) % 2)
    np.save("short.npy", np.zeros(5))
    np.save("objects.npy", np.array([None] * 6))
    assert cli("fit", "x.npy", "-t", "y.npy", "--split", "0", "-o", "m.skops").code == 0
    one_error(cli(*arguments), message)


def test_svmlight(cli: Command) -> None:
    x, y = load_digits(return_X_y=True)
    dump_svmlight_file(x[:1500], y[:1500], "a.svmlight")
    dump_svmlight_file(x[1500:], y[1500:], "b.svmlight", zero_based=True)
    answer = cli("fit", "a.svmlight", "--test", "b.svmlight", "--C", "0.01", "--json")
    assert answer.code == 0
    figures = answer.json["evaluations"]["b.svmlight"]
    assert figures["accuracy"] > 0.9
    assert cli("evaluate", "a.skops", "b.svmlight", "--json").json["log_loss"] == pytest.approx(figures["log_loss"])
    assert cli("predict", "a.skops", "b.svmlight", "-o", "out.csv").code == 0
    assert pa.csv.read_csv("out.csv").num_rows == len(x) - 1500
    one_error(cli("predict", "a.skops", "digits", "-o", "o.csv"), "was trained on svmlight rows, and reads no others")
    one_error(cli("fit", "a.svmlight", "--drop", "x"), "svmlight has no columns with names, such as 'x'")
    one_error(cli("fit", "a.svmlight", "-t", "y"), "rows begin with its own target")
    cli("fit", "iris")
    one_error(cli("predict", "iris.skops", "b.svmlight", "-o", "o.csv"), "is svmlight; the model reads the columns")
    Path("c.svmlight").write_text("1 2:x\n")
    one_error(cli("fit", "c.svmlight"), r"c\.svmlight: cannot be read as svmlight")


def test_other_delimiters(cli: Command) -> None:
    mixed(200).to_csv("d.csv", sep=";", index=False)
    one_error(cli("fit", "d.csv", "-t", "species"), r"seem to be separated by ';': say so with --delimiter ';'")
    assert cli("fit", "d.csv", "-t", "species", "--delimiter", ";").code == 0
    mixed(200).to_csv("d.dat", sep="\t", index=False)
    assert cli("fit", "d.dat", "-t", "species", "--format", "csv", "--delimiter", "\\t").code == 0
    assert cli("predict", "d.skops", "d.csv", "-o", "o.csv", "--delimiter", ";").code == 0
    one_error(cli("fit", "d.csv", "-t", "y", "--delimiter", "::"), "--delimiter '::': must be one character")
    one_error(cli("fit", "iris", "--format", "xlsx"), "--format xlsx: must be one of csv")


def test_a_locale_that_knows_no_unicode(cli: Command) -> None:
    table = mixed(200).rename(columns={"age": "Größe, é"})
    table["species"] = table["species"].replace("cat", "猫")
    table.to_csv("d.csv", index=False)
    answer = process("fit", "d.csv", "-t", "species", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert answer.returncode == 0, answer.stderr
    assert process("inspect", "d.skops", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").returncode == 0
    assert "猫" in description("d.skops")["classes"]


BROKEN: dict[str, tuple[str, str]] = {
    "truncated": ("d.parquet", r"d\.parquet: is not a Parquet file that can be read"),
    "a damaged page": ("e.parquet", r"e\.parquet: cannot be read"),
    "a cut archive": ("d.npz", r"d\.npz: cannot be read"),
    "pickled": ("p.npz", r"p\.npz: holds Python objects, which are not loaded"),
    "no matrix": ("v.npz", r"v\.npz: needs a matrix of features called x or X or features; it has 'y'"),
    "not compressed": ("z.csv.gz", r"z\.csv\.gz"),
    "cut compression": ("c.csv.gz", r"c\.csv\.gz"),
    "several formats": ("several", r"several: its files are of several formats \(csv, parquet\)"),
    "no files": ("*.nothing", r"\*\.nothing: no such files"),
    "an empty directory": ("empty", r"empty: the directory holds no file that can be read"),
    "two types": ("types", r"types/2\.parquet: column 'x' is string, but double in types/1\.parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_read(case: str, cli: Command) -> None:
    name, message = BROKEN[case]
    table = pa.table({"x": [1.0, 2.0] * 50_000, "y": ["a", "b"] * 50_000})
    pa.parquet.write_table(table, "whole.parquet", compression="none", use_dictionary=False)
    content = bytearray(Path("whole.parquet").read_bytes())
    Path("d.parquet").write_bytes(content[: len(content) // 2])
    content[4:64] = os.urandom(60)
    Path("e.parquet").write_bytes(content)
    np.savez("whole.npz", X=np.zeros((9, 2)), y=np.zeros(9))
    Path("d.npz").write_bytes(Path("whole.npz").read_bytes()[:200])
    np.savez("p.npz", X=np.zeros((9, 2)), y=np.array([{}] * 9, dtype=object))
    np.savez("v.npz", y=np.zeros(9))
    Path("z.csv.gz").write_text("x,y\n1,a\n")
    Path("c.csv.gz").write_bytes(gzip.compress(b"x,y\n" + os.urandom(9999))[:500])
    for folder in ("several", "empty", "types"):
        Path(folder).mkdir()
    Path("several/a.csv").touch()
    Path("several/b.parquet").touch()
    pa.parquet.write_table(table.slice(0, 9), "types/1.parquet")
    pa.parquet.write_table(pa.table({"x": ["u"] * 9, "y": ["a"] * 9}), "types/2.parquet")
    before = {str(path) for path in Path().rglob("*")}
    one_error(cli("fit", name, "-t", "y"), message)
    assert {str(path) for path in Path().rglob("*")} == before
