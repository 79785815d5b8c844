"""Cells of tables as people write them: marks of missing values, labels, long rows, names that meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_cases import Command, description, one_error

from softgrad.cli.model import _archive
from softgrad.cli.tables._cells import MISSING


def labelled(labels: list[str], n: int = 60, name: str = "t.csv") -> None:
    """Write a table with one informative number and these labels in turn."""
    rng = np.random.default_rng(0)
    x = np.arange(n) % len(labels) + rng.normal(0, 0.3, n)
    rows = [f"{value:.3f},{labels[i % len(labels)]}\n" for i, value in enumerate(x)]
    Path(name).write_text("a,y\n" + "".join(rows), encoding="utf-8")


def test_markers_of_missing_values_are_those_of_pandas() -> None:
    from pandas._libs.parsers import STR_NA_VALUES

    assert set(MISSING) >= set(STR_NA_VALUES) | {".", "?", "NAN"}


@pytest.mark.parametrize("marker", ["#N/A", "<NA>", ".", "NAN", "-nan"])
def test_a_column_of_numbers_with_many_gaps_stays_one(marker: str, cli: Command) -> None:
    rng = np.random.default_rng(0)
    gaps = rng.random(100) < 0.3
    rows = [f"{marker if gaps[i] else i % 2 + 0.1},{'pq'[i % 2]}\n" for i in range(100)]
    Path("t.csv").write_text("a,y\n" + "".join(rows), encoding="utf-8")
    (column,) = cli("fit", "t.csv", "-t", "y", "--json").json["columns"]
    assert (column["role"], column["missing"]) == ("numeric", gaps.sum())


@pytest.mark.parametrize("marker", ["NA", "NULL", "N/A", "nan", "<NA>"])
@pytest.mark.parametrize("known", [["1", "2"], ["true", "FALSE"], ["1.0", "2.0"]])
def test_a_marker_among_labels_that_are_no_text_is_missing(marker: str, known: list[str], cli: Command) -> None:
    labelled([*known, marker])
    one_error(cli("fit", "t.csv", "-t", "y"), rf"row 3 \(line 4\), column 'y': '{marker}' says that there is no value")


def test_a_marker_among_labels_of_text_is_a_label(cli: Command) -> None:
    labelled(["DE", "NA", "ZA"])
    assert cli("fit", "t.csv", "-t", "y", "--json").json["classes"] == ["DE", "NA", "ZA"]


def test_labels_are_stripped(cli: Command) -> None:
    labelled(["cat", " dog", "cat ", "dog"])
    assert cli("fit", "t.csv", "-t", "y", "--json").json["classes"] == ["cat", "dog"]
    pd.read_csv("t.csv").to_parquet("t.parquet")
    assert cli("fit", "t.parquet", "-t", "y", "--json").json["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["01", "02", "10"], ["10"]),
        (["1", "2", "unknown"], ["1", "2"]),
        (["TRUE", "FALSE", "maybe"], ["TRUE", "FALSE"]),
        (["1.0", "2.0"], ["1", "2"]),
    ],
)
def test_labels_have_the_type_of_the_model(train: list[str], test: list[str], cli: Command) -> None:
    labelled(train, name="train.csv")
    labelled(test, name="test.csv")
    fitted = cli("fit", "train.csv", "-t", "y", "-o", "m.skops", "--test", "test.csv", "--json")
    measured = cli("evaluate", "m.skops", "test.csv", "--json")
    assert (fitted.code, measured.code) == (0, 0), fitted.err + measured.err
    assert measured.json["accuracy"] == fitted.json["evaluations"]["test.csv"]["accuracy"]


def test_labels_of_another_format_have_the_type_of_the_model(cli: Command) -> None:
    labelled(["0", "1"])
    pd.read_csv("t.csv", dtype={"y": str}).to_parquet("text.parquet")
    pd.read_csv("t.csv").to_parquet("number.parquet")
    for trained, measured in [("text.parquet", "t.csv"), ("t.csv", "text.parquet"), ("text.parquet", "number.parquet")]:
        assert cli("fit", trained, "-t", "y", "-o", "m.skops").code == 0
        answer = cli("evaluate", "m.skops", measured, "--json")
        assert answer.code == 0, answer.err
        assert answer.json["accuracy"] > 0.8


def test_a_label_that_the_model_does_not_know_is_named(cli: Command) -> None:
    labelled(["01", "02"], name="train.csv")
    labelled(["01", "2"], name="test.csv")
    cli("fit", "train.csv", "-t", "y", "-o", "m.skops")
    one_error(cli("evaluate", "m.skops", "test.csv"), r"row 2 \(line 3\): '2' is not a class of the model")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["1", "2"], ["1", "2", "NA"], r"row 3 \(line 4\), column 'y': 'NA' is not a class .* classes are integers"),
        (["true", "false"], ["true", "x"], r"row 2 \(line 3\), column 'y': 'x' is not a class .* are true and false"),
        (["1.0", "2.0"], ["x"], r"row 1 \(line 2\), column 'y': 'x' is not a class .* classes are numbers"),
        (["1", "2"], ["2", "3"], r"row 2 \(line 3\): 3 is not a class of the model; it has '1', '2'"),
    ],
)
def test_a_label_of_another_type_is_named(train: list[str], test: list[str], message: str, cli: Command) -> None:
    labelled(train, name="train.csv")
    labelled(test, name="test.csv")
    cli("fit", "train.csv", "-t", "y", "-o", "m.skops")
    one_error(cli("evaluate", "m.skops", "test.csv"), message)


def test_a_row_of_weight_0_may_have_any_class(cli: Command) -> None:
    rows = [f"{i % 3 + 0.01 * (i % 7)},{int(i % 3 < 2)},{'pqr'[i % 3]}\n" for i in range(90)]
    Path("t.csv").write_text("a,w,y\n" + "".join(rows), encoding="utf-8")
    Path("known.csv").write_text("a,w,y\n" + "".join(r for r in rows if "r" not in r), encoding="utf-8")
    assert cli("fit", "t.csv", "-t", "y", "--weight", "w", "-o", "m.skops").code == 0
    found = [cli("evaluate", "m.skops", name, "--weight", "w", "--json") for name in ("t.csv", "known.csv")]
    assert found[0].json["accuracy"] == found[1].json["accuracy"] == 1
    assert found[0].json["log_loss"] == pytest.approx(found[1].json["log_loss"])
    one_error(cli("evaluate", "m.skops", "t.csv"), "'r' is not a class of the model")


@pytest.mark.parametrize("stray", ["", "oops"])
def test_a_cell_of_any_length(stray: str, cli: Command) -> None:
    """Cells beyond the csv module's limit, before a mistake whose line has to be found, and rows beyond a block."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(120):
        note = "word " * 30_000 if i == 50 else " ".join(rng.choice(["good", "late", "slow", "fine"], 6))
        lines.append(
            f"{stray if stray and i == 100 else i % 2 + 0.1},{note},{'x' * 9_000_000 if i == 60 else ''},k{i % 2}\n"
        )
    Path("t.csv").write_text("a,note,long,y\n" + "".join(lines), encoding="utf-8")
    answer = cli("fit", "t.csv", "-t", "y", "--features", "a", "note")
    if stray:
        one_error(answer, r"row 101 \(line 102\), column 'a': 'oops' is not a number")
    else:
        assert answer.code == 0, answer.err
        assert description("t.skops")["columns"][0]["name"] == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"a,b,y\n1,2,k\n1,2\n", r"row 2 \(line 3\) has 2 cells"), (b"a,b,y\n1,2,k\xe9\n", "is not UTF-8 text")],
)
def test_mistakes_in_standard_input_name_it(text: bytes, message: str, cli: Command) -> None:
    one_error(cli("fit", "-", "-t", "y", standard_input=text), f"error: standard input: {message}")


def test_feature_names_are_unique(cli: Command) -> None:
    """A number named as a word of a text, words of two texts, and levels a=b_c and a_b=c."""
    rng = np.random.default_rng(0)
    n = 200
    words = np.array(["good", "bad", "age", "fine", "slow", "late"])
    table = pd.DataFrame({
        "age": rng.normal(30, 5, n),
        "title": [" ".join(rng.choice(words, 5)) for _ in range(n)],
        "body": [" ".join(rng.choice(words, 9)) for _ in range(n)],
        "a": rng.choice(["b_c", "d"], n),
        "a_b": rng.choice(["c", "e"], n),
        "y": np.where(np.arange(n) % 2, "p", "q"),
    })  # fmt: skip
    table.to_csv("t.csv", index=False)
    answer = cli("fit", "t.csv", "-t", "y", "--text", "title", "body", "--report", "r.html", "-o", "m.skops")
    assert answer.code == 0, answer.err
    assert cli("inspect", "m.skops", "--json", "--top", "30").code == 0
    model = _archive.load(Path("m.skops"))
    assert model.transformer is not None
    from softgrad.cli.features._names import names_of, origins_of

    names = names_of(model.transformer, origins_of(model.transformer, model.ingredients))
    assert len(set(names)) == len(names) == model.classifier.n_features_in_
    assert {"age: age", "title: age", "body: age", "a: a_b_c", "a_b: a_b_c"} <= set(names)
    assert len(model.transformer.get_feature_names_out()) == len(names)


def test_svmlight_counts_from_the_number_that_training_saw(cli: Command) -> None:
    train = [f"{i % 2} {'0:1 ' if i % 5 == 0 else ''}{1 + i % 2}:{1 + 0.01 * i:.2f}\n" for i in range(60)]
    Path("train.svm").write_text("".join(train), encoding="utf-8")
    for name, zero in (("without.svm", ""), ("with.svm", "0:0 ")):
        Path(name).write_text("".join(f"{i % 2} {zero}{1 + i % 2}:1.5\n" for i in range(10)), encoding="utf-8")
    cli("fit", "train.svm", "-o", "m.skops")
    assert [cli("evaluate", "m.skops", f"{name}.svm", "--json").json["accuracy"] for name in ("with", "without")] == [
        1,
        1,
    ]
    Path("parts").mkdir()
    Path("parts/a.svm").write_text("".join(train), encoding="utf-8")
    Path("parts/b.svm").write_text(Path("without.svm").read_text(encoding="utf-8"), encoding="utf-8")
    assert cli("fit", "parts", "-o", "p.skops", "--json").json["evaluations"]["train"]["accuracy"] == 1
    Path("one.svm").write_text("".join(f"{i % 2} {1 + i % 2}:1\n" for i in range(20)), encoding="utf-8")
    cli("fit", "one.svm", "-o", "one.skops")
    one_error(
        cli("evaluate", "one.skops", "with.svm"), "names a feature 0, but the model was trained on features counted"
    )


def test_a_model_that_does_not_say_its_base_is_refused(cli: Command) -> None:
    import json
    import zipfile

    Path("t.svm").write_text("".join(f"{i % 2} {1 + i % 2}:1\n" for i in range(20)), encoding="utf-8")
    cli("fit", "t.svm", "-o", "m.skops")
    with zipfile.ZipFile("m.skops") as old, zipfile.ZipFile("n.skops", "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member == "softgrad.json":
                facts = json.loads(content)
                assert facts.pop("first_feature") == 1
                content = json.dumps(facts).encode()
            new.writestr(member, content)
    one_error(cli("evaluate", "n.skops", "t.svm"), "does not say whether svmlight features count from 0 or 1")
