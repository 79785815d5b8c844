"""How ``fit`` trains: C chosen, calibrated, larger than memory, interrupted; the same seed gives the same bits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from cli_cases import Command, description, mixed, one_error
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softgrad import regression
from softgrad.cli.features import _matrix
from softgrad.cli.model import _archive, _train
from softgrad.cli.terminal._messages import UserError


def classifier(path: str) -> Any:
    return _archive.load(Path(path)).classifier


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", [1]), ("inf", [np.inf]), ("10,0.1,1", [0.1, 1, 10]), ("0.01:100", 10.0 ** np.arange(-2, 2.5, 0.5)),
        ("1e-3:1e3:3", [1e-3, 1, 1e3]), ("auto", np.geomspace(1e-4, 1e4, 10)),
    ],
)  # fmt: skip
def test_values_of_c(text: str, values: list[float]) -> None:
    np.testing.assert_allclose(_train.parse_c(text), values)


@pytest.mark.parametrize(
    "text", ["", "a", "1,", "0", "-1", "nan", "1:", "2:1", "0:1", "1:2:1", "1:2:2.5", "1:inf", "1:2:3:4"]
)
def test_values_of_c_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--C"):
        _train.parse_c(text)


def test_c_is_the_best_of_the_path(cli: Command) -> None:
    answer = cli("fit", "digits", "--C", "1e-3:1e3:7", "--json", "--tol", "1e-8")
    path = answer.json["path"]
    losses = [point["log_loss"] for point in path]
    assert answer.json["C"] == path[int(np.argmin(losses))]["C"]
    assert len(path) in range(4, 7)  # the rest, which would be worse, was not tried
    assert answer.json["gap"] <= 1e-8
    fitted = classifier("digits.skops")
    assert answer.json["C"] == fitted.C
    cli("fit", "digits", "--C", str(answer.json["C"]), "-o", "alone.skops", "--tol", "1e-8")
    assert fitted.objective_ == pytest.approx(classifier("alone.skops").objective_, rel=2e-8)
    np.testing.assert_array_equal(fitted.history_["iteration"], 1 + np.arange(len(fitted.history_)))
    assert (np.diff(fitted.history_["seconds"]) >= 0).all()


def test_a_temperature_is_fitted_on_rows_the_folds_had_not_seen(cli: Command) -> None:
    """A fit that is far too sure of itself becomes better, and its predictions stay what they were."""
    mixed(500).to_csv("d.csv", index=False)
    plain = cli("fit", "d.csv", "-t", "species", "--C", "1e4", "--json", "-o", "plain.skops").json
    calibrated = cli("fit", "d.csv", "-t", "species", "--C", "1e4", "--calibrate", "--json", "-o", "calm.skops").json
    tau = calibrated["temperature"]
    assert tau > 2
    a, b = (found["evaluations"]["held out"] for found in (plain, calibrated))
    assert b["log_loss"] < a["log_loss"] - 0.1
    assert b["calibration_error"] < a["calibration_error"]
    assert b["accuracy"] == pytest.approx(a["accuracy"])
    np.testing.assert_allclose(
        classifier("calm.skops").coef_ * tau, classifier("plain.skops").coef_, rtol=1e-3, atol=1e-3
    )
    assert description("calm.skops")["temperature"] == tau
    assert plain["temperature"] is None


@pytest.mark.parametrize("calibrate", [False, True])
def test_the_same_seed_gives_the_same_bits(calibrate: bool, cli: Command) -> None:
    mixed(300).to_csv("d.csv", index=False)
    extra = ["--C", "0.1,1", "--calibrate"] if calibrate else []
    for name, seed, threads in (("a", "3", "1"), ("b", "3", "2"), ("c", "4", "1")):
        assert (
            cli(
                "fit", "d.csv", "-t", "species", "--seed", seed, "--threads", threads, "-o", f"{name}.skops", *extra
            ).code
            == 0
        )
    a, b, c = (classifier(f"{name}.skops").coef_ for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert a.shape != c.shape or not np.array_equal(a, c)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_rows_larger_than_the_memory(kind: str, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On disk and in memory: the same optimum, and nothing is left behind."""
    table = mixed(9000).drop(columns="id" if kind == "sparse" else ["id", "note"])
    if kind == "dense":
        rng = np.random.default_rng(0)
        table = table.assign(**{f"x{i}": rng.normal(size=len(table)).round(3) for i in range(12)})
    table.to_parquet("d.parquet", index=False)
    monkeypatch.setenv("TMPDIR", str(Path("temporary").absolute()))
    Path("temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    options = ("fit", "d.parquet", "-t", "species", "--tol", "1e-9", "--json")
    inside = cli(*options, "-o", "memory.skops").json
    made: list[Any] = []
    append = _matrix.Matrix.append

    def spy(self: Any, block: Any) -> None:
        append(self, block)
        made.append(self.on_disk)

    monkeypatch.setattr(_matrix.Matrix, "append", spy)
    outside = cli(*options, "-o", "disk.skops", "--memory", "1MB")
    assert outside.code == 0
    assert any(made)
    assert outside.json["objective"] == pytest.approx(inside["objective"], rel=3e-9)
    for name, figure in inside["evaluations"]["held out"].items():
        if name in ("accuracy", "log_loss", "macro_f1"):
            assert outside.json["evaluations"]["held out"][name] == pytest.approx(figure, rel=1e-4)
    chosen = cli(*options[:-3], "--json", "--C", "0.1,10", "--calibrate", "--memory", "1MB")
    assert chosen.code == 0
    assert chosen.json["temperature"] > 0
    assert list(Path("temporary").iterdir()) == []


def test_a_disk_without_room(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    rng = np.random.default_rng(0)
    pd.DataFrame({f"x{i}": rng.normal(size=9000) for i in range(20)} | {"y": rng.integers(2, size=9000)}).to_parquet(
        "d.parquet"
    )
    monkeypatch.setattr(np, "ascontiguousarray", full)
    one_error(
        cli("fit", "d.parquet", "-t", "y", "--memory", "1MB"),
        "cannot keep the prepared rows in .* give them more --memory",
    )
    assert {str(path) for path in Path().iterdir()} == {"d.parquet"}


def test_memory_that_is_none(cli: Command) -> None:
    for text in ("much", "1", "1QB", "-1GB", "nan"):
        one_error(cli("fit", "iris", "--memory", text), "--memory .*: must be at least 1MB, such as 500MB or 2GB")


def test_a_file_to_measure_with(cli: Command) -> None:
    table = mixed(500)
    table[:400].to_csv("train.csv", index=False)
    table[400:].to_csv("test.csv", index=False)
    answer = cli("fit", "train.csv", "-t", "species", "--test", "test.csv", "--json")
    figures = answer.json["evaluations"]
    assert (figures["train"]["rows"], figures["test.csv"]["rows"]) == (400, 100)
    found = cli("evaluate", "train.skops", "test.csv", "--json").json
    for name in ("accuracy", "log_loss", "log_loss_interval", "calibration_error", "macro_f1", "confused"):
        assert found[name] == figures["test.csv"][name]
    one_error(cli("fit", "train.csv", "-t", "species", "--test", "test.csv", "--split", "0.1"), "--test and --split")
    table[400:].assign(species="fox").to_csv("fox.csv", index=False)
    one_error(
        cli("fit", "train.csv", "-t", "species", "--test", "fox.csv"),
        r"fox\.csv: row 1 \(line 2\): 'fox' is not a class",
    )
    one_error(
        cli("evaluate", "train.skops", "fox.csv"), r"fox\.csv: row 1 \(line 2\): 'fox' is not a class of the model"
    )


def test_class_weights(cli: Command) -> None:
    mixed(400).to_csv("d.csv", index=False)
    base = cli("fit", "d.csv", "-t", "species", "--json", "-o", "a.skops").json
    heavy = cli("fit", "d.csv", "-t", "species", "--class-weight", "eel=20", "--json", "-o", "b.skops").json

    def recall(found: Any) -> float:
        return next(c["recall"] for c in found["evaluations"]["held out"]["classes"] if c["class"] == "eel")  # type: ignore[no-any-return]

    assert recall(heavy) > recall(base)
    assert classifier("b.skops").class_weight == {"cat": 1.0, "dog": 1.0, "eel": 20.0}
    assert cli("fit", "d.csv", "-t", "species", "--class-weight", "balanced").code == 0
    one_error(
        cli("fit", "d.csv", "-t", "species", "--class-weight", "fox=2"),
        "give balanced, or CLASS=WEIGHT .* 'cat', 'dog', 'eel'",
    )
    one_error(cli("fit", "d.csv", "-t", "species", "--class-weight", "eel=0"), "weights must be positive")
    one_error(cli("fit", "d.csv", "-t", "species", "--class-weight", "eel=much"), "'much' is not a number")


@pytest.mark.parametrize("after", [1, 30, 60])
def test_an_interrupt_during_the_search(after: int, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best C so far is kept; before there is one, the fit that was running."""
    heard = 0

    def listen(self: Any, tol: float, max_iter: int) -> Any:
        def hear(*_: Any) -> None:
            nonlocal heard
            heard += 1
            if heard == after:
                raise KeyboardInterrupt

        return hear

    monkeypatch.setattr("softgrad.cli.terminal._progress.Stages.listen", listen)
    answer = cli("fit", "digits", "--C", "1e-3:1e3", "--json", "--calibrate")
    assert answer.code == 130
    assert answer.json["interrupted"] is True
    assert "interrupted: digits.skops is the model so far, at most" in answer.err
    assert cli("evaluate", "digits.skops", "digits").code == 0
    assert description("digits.skops")["interrupted"] is True
    tried = answer.json["path"]
    assert (tried is None) == (after == 1)
    if tried is not None:
        assert answer.json["C"] in [point["C"] for point in tried]


def test_a_search_says_what_it_had() -> None:
    """The interruption of a search holds the values of C that were done."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)), rng.integers(3, size=200)
    folds = [(np.arange(100), np.arange(100, 200)), (np.arange(100, 200), np.arange(100))]
    scored: list[float] = []

    def score(logits: Any, rows: Any) -> float:
        scored.append(0.0)
        return 0.0

    def hear(_: Any) -> None:
        if len(scored) == 4:
            raise KeyboardInterrupt

    with pytest.raises(regression.FitInterrupted) as caught:
        regression.cross_validate_path(x, y, [0.1, 1.0, 10.0], folds, n_classes=3, score=score, callback=hear)
    found = caught.value.validation
    assert found.path.Cs.tolist() == [0.1, 1.0]
    assert found.scores.shape == (2, 2)
    whole = regression.cross_validate_path(x, y, [0.1, 1.0], folds, n_classes=3, score=score, keep_folds=False)
    np.testing.assert_array_equal(whole.path.coefs, found.path.coefs)
    assert whole.fold_coefs.shape[:2] == (0, 0)
    early = regression.cross_validate_path(
        x, y, [0.1, 1.0, 10.0, 100.0], folds, n_classes=3, score=score, early_stop=1, whole_path=False
    )
    assert early.path.Cs.tolist() == [0.1, 1.0]


def test_a_mixed_table_is_fitted_as_well_as_by_scikit_learn(cli: Command) -> None:
    """The same split, LogisticRegressionCV in the pipeline that a careful person would write."""
    table = mixed(1200, seed=5)
    train, test = table[:900], table[900:]
    train.to_csv("train.csv", index=False)
    test.to_csv("test.csv", index=False)
    ours = cli("fit", "train.csv", "-t", "species", "--test", "test.csv", "--C", "auto", "--json").json["evaluations"][
        "test.csv"
    ]
    number = make_pipeline(StandardScaler(), SimpleImputer(add_indicator=True))
    columns = ColumnTransformer(
        [("n", number, ["age", "days"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["colour", "member"]),
         ("t", TfidfVectorizer(sublinear_tf=True, min_df=2), "note")]
    )  # fmt: skip
    search = LogisticRegressionCV(
        Cs=10, cv=5, scoring="neg_log_loss", max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False
    )
    pipeline = make_pipeline(columns, search)

    def features(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(days=(pd.to_datetime(rows["joined"]) - pd.Timestamp(0)).dt.days)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.fit(features(train), train["species"])
    p = pipeline.predict_proba(features(test))
    assert ours["log_loss"] <= log_loss(test["species"], p, labels=pipeline.classes_) + 0.01
    assert ours["accuracy"] >= (pipeline.predict(features(test)) == test["species"]).mean() - 0.015


def test_counts_of_a_parquet_row_group_do_not_matter(cli: Command) -> None:
    table = pa.Table.from_pandas(mixed(400), preserve_index=False)
    for name, rows in (("a", 400), ("b", 31)):
        pa.parquet.write_table(table, f"{name}.parquet", row_group_size=rows)
        cli("fit", f"{name}.parquet", "-t", "species")
    np.testing.assert_allclose(classifier("a.skops").coef_, classifier("b.skops").coef_, rtol=1e-7, atol=1e-9)
