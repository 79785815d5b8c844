"""What columns are taken for, what is made of them, and what the user can say about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from cli_cases import Answer, Command, description, mixed, one_error
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softgrad.cli.features import _columns
from softgrad.cli.features._frame import Ingredient, frame
from softgrad.cli.features._prepare import Preparation
from softgrad.cli.model import _archive
from softgrad.cli.tables import _reader
from softgrad.cli.tables._sources import opened


def roles(answer: Answer) -> dict[str, str]:
    return {column["name"]: column["role"] for column in answer.json["columns"]}


def test_a_mixed_table(cli: Command) -> None:
    mixed().to_csv("d.csv", index=False)
    answer = cli("fit", "d.csv", "-t", "species", "--json")
    assert roles(answer) == {
        "id": "left out", "age": "numeric", "colour": "categorical", "member": "boolean", "joined": "date",
        "note": "text", "constant": "left out",
    }  # fmt: skip
    columns = {column["name"]: column for column in answer.json["columns"]}
    assert columns["age"]["features"] == 2  # the number, and whether it is missing
    assert columns["age"]["missing"] > 30
    assert columns["joined"]["features"] == 7
    assert columns["id"]["note"] == "counts the rows"
    assert columns["constant"]["note"] == "constant: 1"
    assert sum(column["features"] for column in columns.values()) == answer.json["features"]
    assert re.search(r"note +text .* 7 words each", answer.err)  # and told before the training
    assert answer.json["evaluations"]["held out"]["accuracy"] > 0.75


def test_the_features_are_those_of_scikit_learn(cli: Command) -> None:
    """Statistics that are gathered batch by batch make the transformer that fitting all rows at once makes."""
    table = mixed(1500)
    data = table[["age", "colour", "note"]].assign(
        size=np.arange(1500.0) % 7, blank=np.where(np.arange(1500) % 50, 1.5, np.nan)
    )
    preparation = Preparation(
        [Ingredient("age", "numeric"), Ingredient("size", "numeric"), Ingredient("blank", "numeric"),
         Ingredient("colour", "categorical"), Ingredient("note", "text")], 1500, standardize=True,
    )  # fmt: skip
    for first in range(0, 1500, 400):
        preparation.add(data[first : first + 400])
    ours = preparation.transformer()
    numeric = Pipeline(
        [("scale", StandardScaler()),
         ("fill", SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True))]
    )  # fmt: skip
    theirs = ColumnTransformer(
        [("numeric", numeric, ["age", "size", "blank"]),
         ("categorical", OneHotEncoder(min_frequency=10, handle_unknown="infrequent_if_exist"), ["colour"]),
         ("text note", TfidfVectorizer(sublinear_tf=True, min_df=2), "note")],
        sparse_threshold=1.0, verbose_feature_names_out=False,
    ).fit(data)  # fmt: skip
    assert ours.get_feature_names_out().tolist() == theirs.get_feature_names_out().tolist()
    strange = data.assign(colour="nobody saw it", note="new words", age=np.nan)[:3]
    for rows in (data, strange):
        difference = ours.transform(rows) - theirs.transform(rows)
        assert abs(difference).max() < 1e-12


@pytest.mark.parametrize(
    ("cells", "role"),
    [
        (["1", "2.5", "-3e4", " 7 ", "NA", "?", "null", ""], "numeric"),
        (["true", "FALSE", "", "True"], "boolean"),
        (["2024-02-29", "2023-12-31 17:30", "1969-07-20T20:17:40", ""], "date"),
        (["2024-02-30", "2024-02-29"], "categorical"),  # a day that there is not
        (["a", "b", "", "b"], "categorical"),
        (["007", "012"], "numeric"),
        (["0x1", "1_000"], "categorical"),
        (["yes", "no"], "categorical"),
        (["3", "3"], "left out"),
        (["same", "same"], "left out"),
        (["", "NA"], "left out"),
    ],
)
def test_roles_by_all_cells(cells: list[str], role: str, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    pa.csv.write_csv(pa.table({"x": cells * 3, "z": ["1"] * 3 * len(cells)}), path)
    with opened(str(path)) as source:
        (column,), _ = _columns.roles(_reader.Reader(source), ["x"], {})
    assert (column.role, column.missing) == (role, 3 * sum(c.strip() in ("", "NA", "?", "null") for c in cells))


def test_what_a_column_is_may_show_late(tmp_path: Path) -> None:
    """Numbers for several blocks, and then none: the texts of all rows are counted."""
    rows = 700_000
    path = tmp_path / "d.csv"
    path.write_text("x,y\n" + "1,u\n" * rows + "a,u\n" * rows)
    with opened(str(path)) as source:
        reader = _reader.Reader(source)
        assert len(list(reader.batches(["x"]))) > 1
        (column,), _ = _columns.roles(reader, ["x"], {})
    assert (column.role, column.distinct, column.note) == ("categorical", 2, "'1' 700000, 'a' 700000")


def test_names_and_identifiers_are_left_out(cli: Command) -> None:
    table = mixed(300).assign(name=[f"person{i}" for i in range(300)], uuid=[f"{i:032x}z" for i in range(300)])
    table.to_csv("d.csv", index=False)
    answer = cli("fit", "d.csv", "-t", "species", "--json")
    assert roles(answer)["name"] == roles(answer)["uuid"] == "left out"
    assert "300 different texts in 300 rows: a name or an identifier" in answer.err
    kept = cli("fit", "d.csv", "-t", "species", "--json", "--categorical", "name", "id", "--text", "colour")
    assert {roles(kept)[name] for name in ("name", "id")} == {"categorical"}
    assert roles(kept)["colour"] == "text"
    one_error(cli("fit", "d.csv", "-t", "species", "--text", "uuid"), r"column 'uuid': no word is in 2 rows or more")


def test_columns_that_the_user_names(cli: Command) -> None:
    mixed(300).to_csv("d.csv", index=False)
    only = cli("fit", "d.csv", "-t", "species", "--features", "age", "colour", "--json")
    assert list(roles(only)) == ["age", "colour"]
    without = cli("fit", "d.csv", "-t", "species", "--drop", "note", "id", "--json")
    assert list(roles(without)) == ["age", "colour", "member", "joined", "constant"]
    for words, message in {
        ("--drop", "nothing"): r"--drop: no column 'nothing'; it has",
        ("--features", "species"): r"--features species: is the target or the weight",
        ("--text", "note", "--categorical", "note"): r"--text and --categorical both name 'note'",
        ("--drop", "age", "colour", "member", "joined", "note", "id", "constant"): "every column is dropped",
        (
            "--features",
            "constant",
            "id",
        ): r"no column is left to learn from \('constant': constant: 1; 'id': counts the r",
        ("--weight", "note"): r"row 1 \(line 2\), column 'note': '.*' is not a number",
        ("--target-proba", "age"): "--target and --target-proba",
    }.items():
        one_error(cli("fit", "d.csv", "-t", "species", *words), message)


def test_weights_are_repetition(cli: Command) -> None:
    table = mixed(240).drop(columns=["note", "id"])
    counts = np.random.default_rng(1).integers(0, 4, len(table))
    table.assign(times=counts).to_csv("weighted.csv", index=False)
    table.loc[table.index.repeat(counts)].to_csv("repeated.csv", index=False)
    arguments = ("-t", "species", "--split", "0", "--no-standardize", "--tol", "1e-12", "--drop", "colour", "joined")
    a = cli("fit", "weighted.csv", *arguments, "--weight", "times", "--json").json
    b = cli("fit", "repeated.csv", *arguments, "--json").json
    assert a["evaluations"]["train"]["log_loss"] == pytest.approx(b["evaluations"]["train"]["log_loss"], rel=1e-3)
    assert a["evaluations"]["train"]["rows"] == (counts > 0).sum()  # weight 0 is absent
    ours, theirs = (_archive.load(Path(f"{name}.skops")).classifier for name in ("weighted", "repeated"))
    assert ours.objective_ == pytest.approx(theirs.objective_, rel=2e-2)
    table.assign(times=-1).to_csv("negative.csv", index=False)
    one_error(cli("fit", "negative.csv", "-t", "species", "--weight", "times"), r"column 'times': -1 is negative")


def test_soft_labels(cli: Command) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    columns = {f"x{i}": x[:, i] for i in range(3)} | {f"class {k}": p[:, k] for k in range(3)}
    pd.DataFrame(columns).to_csv("d.csv", index=False)
    wanted = ("--target-proba", "class 0", "class 1", "class 2")
    answer = cli("fit", "d.csv", *wanted, "--json", "--C", "10", "--calibrate")
    assert answer.code == 0
    assert answer.json["classes"] == ["class 0", "class 1", "class 2"]
    entropy = float(-(p * np.log(p)).sum(axis=1).mean())  # no log-loss is less
    assert entropy - 0.05 < answer.json["evaluations"]["held out"]["log_loss"] < entropy + 0.1
    again = cli("evaluate", "d.skops", "d.csv", "--json").json
    assert entropy <= again["log_loss"] < entropy + 0.02
    pd.DataFrame(columns | {"class 1": 2.0}).to_csv("e.csv", index=False)
    one_error(cli("fit", "e.csv", *wanted), r"row 1 \(line 2\): the probabilities of --target-proba sum to 2\.")
    one_error(cli("fit", "d.csv", "--target-proba", "class 0"), "one column for each class, at least two")


TARGETS: dict[str, tuple[list[Any], str]] = {
    "texts": (
        [f"some text {i}" for i in range(60)],
        r"'y' looks like free text or names: 60 distinct texts in 60 rows",
    ),
    "quantities": ([i / 7 for i in range(60)], r"row 2 \(line 3\), column 'y': the target looks continuous: 0\.14"),
    "one class": (["a"] * 60, r"holds one class only, 'a'"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_are_none(case: str, cli: Command) -> None:
    values, message = TARGETS[case]
    pd.DataFrame({"x": np.arange(60) % 9, "y": values}).to_csv("d.csv", index=False)
    one_error(cli("fit", "d.csv", "-t", "y"), message)


def test_ten_thousand_classes(cli: Command) -> None:
    """With rows enough they are classes like others, and nothing is of the size of their square."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10_000), 3)
    pa.parquet.write_table(
        pa.table({"a": rng.normal(size=30_000), "b": labels % 7 * 1.0, "y": pa.array(labels).cast(pa.string())}),
        "d.parquet",
    )
    one_error(cli("fit", "d.parquet", "-t", "y", "--max-iter", "1"), r"--split 0\.2 of 30000 rows holds out 6000")
    pa.parquet.write_table(pa.table({"a": rng.normal(size=15_000), "y": [str(i) for i in range(15_000)]}), "e.parquet")
    one_error(cli("fit", "e.parquet", "-t", "y"), r"looks like free text or names: 15000 distinct texts in 15000 rows")


def test_dates_go_round(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("when\n1970-01-01\n2024-07-01 12:00\n\n2023-12-31 23:59:59\n".replace("\n\n", '\n""\n'))
    with opened(str(path)) as source:
        reader = _reader.Reader(source)
        batch = next(iter(reader.batches(["when"])))
        table = frame(reader, batch, [Ingredient("when", "date")])
    days = table["when.days"].tolist()
    assert days[:2] == [0.0, 19905.5]
    assert np.isnan(table.iloc[2]).all()
    assert table["when.year.cos"][3] == pytest.approx(1, abs=1e-3)  # the year's end meets its beginning
    assert table["when.day.cos"][1] == pytest.approx(-1)  # noon
    angle = np.arctan2(table["when.week.sin"], table["when.week.cos"]) / (2 * np.pi) * 7 % 7
    assert angle[0] == pytest.approx(3)  # a Thursday, three days after Monday's beginning


def test_names_that_would_meet(cli: Command) -> None:
    pa.parquet.write_table(
        pa.table({"x": pa.array([[1.0, 2.0], [3.0, 4.0]] * 10), "x[0]": [1.0, 2.0] * 10, "y": ["a", "b"] * 10}),
        "d.parquet",
    )
    one_error(cli("fit", "d.parquet", "-t", "y"), r"columns 'x' and 'x\[0\]' would both become 'x\[0\]': rename one")


def test_levels_that_nobody_saw(cli: Command) -> None:
    table = mixed(400)
    table.to_csv("d.csv", index=False)
    cli("fit", "d.csv", "-t", "species")
    table.assign(colour=np.where(np.arange(400) < 3, "puce", table["colour"])).to_csv("new.csv", index=False)
    answer = cli("predict", "d.skops", "new.csv", "-o", "out.csv")
    assert answer.code == 0
    assert "warning: column 'colour': 3 rows have levels that the training data did not have ('puce')" in answer.err
    table.astype({"age": object}).assign(age="old").to_csv("new.csv", index=False)
    one_error(
        cli("predict", "d.skops", "new.csv", "-o", "o.csv"), r"row 1 \(line 2\), column 'age': 'old' is not a number"
    )
    table.assign(joined="yesterday").to_csv("new.csv", index=False)
    one_error(
        cli("predict", "d.skops", "new.csv", "-o", "o.csv"), r"column 'joined': 'yesterday' is not a date such as 2024"
    )
    assert not Path("o.csv").exists()
    assert description("d.skops")["columns"][0] == {"name": "age", "role": "numeric", "width": 0}
