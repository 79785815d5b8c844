"""``softgrad export``: the file answers as the model does, or there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softgrad._version import __version__
from softgrad.cli.onnx import _file, _operators, _verify
from softgrad.cli.onnx._graph import Graph, tensor
from softgrad.cli.onnx._operators import convert, strings
from softgrad.cli.terminal._messages import UserError
from softgrad.sklearn import SoftmaxRegression

ODD_TEXT = (
    "alpha Beta GAMMA delta x yz don't e-mail 4_5 naïve NAÏVE straße STRASSE ſtop ΟΔΟΣ οδός Σίσυφος ΣΟΣ Σ İstanbul "
    "xİyz ıı II Ⅷ ǅungla ﬁne 東京 タワー ß² ٣٤ ёлка ЁЛКА 𝔘nicode 🙂 e\u0301cole ÉCOLE"
)
WORDS = ODD_TEXT.split()


def numeric(*, scale: bool = True) -> Pipeline:
    fill = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True)
    return Pipeline([*([("scale", StandardScaler())] if scale else []), ("fill", fill)])


def one_hot(least: int = 8) -> OneHotEncoder:
    return OneHotEncoder(min_frequency=least, handle_unknown="infrequent_if_exist")


def words(dtype: Any = np.float64, n: int = 2) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, n), dtype=dtype)


def fitted(parts: list[Any], table: pd.DataFrame, labels: Any, density: float = 0.0) -> Pipeline:
    prepare = ColumnTransformer(parts, verbose_feature_names_out=False, sparse_threshold=density)
    return Pipeline([("prepare", prepare), ("classify", SoftmaxRegression(n_threads=1))]).fit(table, labels)


def answers(path: Path, table: Any, result: _file.ExportResult) -> tuple[Any, Any]:
    """What the file says, asked as any user of onnxruntime would."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {}
    for i in session.get_inputs():
        if i.name == "x":
            feed["x"] = np.asarray(table, dtype={"tensor(float)": "f4", "tensor(double)": "f8"}[i.type])
        elif i.type == "tensor(string)":
            feed[i.name] = strings(table[i.name].tolist())
        else:
            held = [i.name] if i.name in table else [f"{i.name}[{j}]" for j in range(i.shape[1])]
            feed[i.name] = table[held].to_numpy({"tensor(float)": "f4", "tensor(double)": "f8"}[i.type])
    return tuple(session.run([t.name for t in result.outputs], feed))


def agrees(path: Path, model: Pipeline, table: Any, result: _file.ExportResult) -> None:
    labels, probabilities = answers(path, table, result)
    np.testing.assert_allclose(probabilities, model.predict_proba(table), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(labels, model.predict(table))
    assert result.bytes == path.stat().st_size
    onnx.checker.check_model(onnx.load(path))


def mixed(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = {
        "label": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(40, 10, rows)),  # a column may have that name, too
        "size (cm²)/a": np.where(rng.random(rows) < 0.2, np.nan, rng.random(rows)),
        "id": 1e11 + rng.integers(0, 1000, rows).astype(float),
        "flag": (rng.random(rows) < 0.5).astype(float),
        "when.year": rng.integers(1990, 2024, rows).astype(float),
        "colour": rng.choice(["red", "blue", "", "rare", "rarer"], rows, p=[0.5, 0.35, 0.1, 0.03, 0.02]),
        "town": rng.choice(["Århus", "東京"], rows),
        "embedding[0]": rng.random(rows),
        "embedding[1]": rng.random(rows),
        "text": [" ".join(rng.choice(WORDS, rng.integers(0, 9))) for _ in range(rows)],
        "title": [", ".join(rng.choice(WORDS, rng.integers(0, 4))) for _ in range(rows)],
    }
    return pd.DataFrame(table)


NUMBERS = ["label", "size (cm²)/a", "id", "flag", "when.year", "embedding[0]", "embedding[1]"]


@pytest.fixture(scope="module")
def mixed_model() -> tuple[Pipeline, pd.DataFrame]:
    table = mixed(200)
    labels = np.where(table["label"].isna(), "οδός", np.where(table["colour"] == "red", "rot", "ander's"))
    parts = [
        ("numeric", numeric(), NUMBERS),
        ("categorical", one_hot(), ["colour", "town"]),
        ("text text", words(), "text"),
        ("text title", words(np.float32, 1), "title"),
    ]
    return fitted(parts, table, labels, 1.0), table


def test_a_table_of_everything(mixed_model: tuple[Pipeline, pd.DataFrame], tmp_path: Path) -> None:
    model, table = mixed_model
    description = {"columns": ["a", "b"], "metrics": {"accuracy": 0.5}}
    result = _file.export(model, table, tmp_path / "m.onnx", description=description)
    assert result.labels_equal
    assert result.largest_difference <= 1e-5
    assert result.rows_checked > len(table)
    types = {i.name: (i.type, i.shape) for i in result.inputs}
    assert types["id"] == ("double", (None, 1))  # float32 would take all that tells these numbers apart
    assert types["size (cm²)/a"] == ("float", (None, 1))
    assert types["embedding"] == ("float", (None, 2))
    assert types["text"] == types["colour"] == ("string", (None, 1))
    assert len(types) == len(NUMBERS) - 1 + 4
    assert [(o.name, o.type, o.shape) for o in result.outputs] == [
        ("label_", "string", (None,)),
        ("probabilities", "float", (None, 3)),
    ]

    fresh = mixed(400, seed=1)
    fresh.loc[:50, "colour"] = "never seen"
    fresh.loc[:3, NUMBERS] = np.nan
    agrees(tmp_path / "m.onnx", model, fresh, result)
    agrees(tmp_path / "m.onnx", model, fresh[5:6], result)

    props = {
        p.key: json.loads(p.value) if p.key != "softgrad" else p.value
        for p in onnx.load(tmp_path / "m.onnx").metadata_props
    }
    assert props == {"softgrad": __version__, "classes": ["ander's", "rot", "οδός"]} | description


def test_the_same_bytes_each_time_and_without_rows(mixed_model: tuple[Pipeline, pd.DataFrame], tmp_path: Path) -> None:
    model, table = mixed_model
    _file.export(model, table, tmp_path / "a.onnx")
    result = _file.export(model, table[:0], tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert result.rows_checked == 48


@pytest.mark.parametrize("scale", [True, False])
def test_digits_as_a_matrix(scale: bool, tmp_path: Path) -> None:
    X, y = load_digits(return_X_y=True)
    steps = [("scale", StandardScaler())] if scale else []
    model = Pipeline([*steps, ("classify", SoftmaxRegression(C=0.01, n_threads=1))]).fit(X[::4], y[::4])
    result = _file.export(model, X[:1000], tmp_path / "digits.onnx")
    assert [(i.name, i.type, i.shape) for i in result.inputs] == [("x", "float", (None, 64))]
    assert [(o.name, o.type) for o in result.outputs] == [("label", "int64"), ("probabilities", "float")]
    assert result.opset <= 17
    agrees(tmp_path / "digits.onnx", model, X, result)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (np.array([False, True]), "bool"),
        (np.array([-5, 7]), "int64"),
        (np.array([1.0, 2.0]), "double"),
        (np.array(["a", "b"]), "string"),
    ],
)
def test_two_classes_of_every_type(labels: Any, kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"p[0]": rng.random(80), "p[1]": rng.random(80), "q": rng.random(80)})
    y = labels[(table["q"] + table["p[0]"] + 0.3 * rng.random(80) > 1).to_numpy().astype(int)]
    model = fitted([("numeric", StandardScaler(), list(table))], table, y)
    result = _file.export(model, table, tmp_path / "m.onnx")
    assert [i.name for i in result.inputs] == ["p", "q"]
    assert result.outputs[0].type == kind
    agrees(tmp_path / "m.onnx", model, table, result)


@pytest.mark.parametrize(
    "read",
    [["p[1]", "q", "p[0]"], ["p[1]", "q"], ["q", "p[0]"]],
)
def test_elements_that_are_not_read_as_they_lie_are_inputs_of_their_own(read: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((60, 3)), columns=["p[0]", "p[1]", "q"])
    model = fitted([("numeric", numeric(), read)], table, (table["p[1]"] > 0.5).to_numpy())
    result = _file.export(model, table, tmp_path / "m.onnx")
    assert sorted(i.name for i in result.inputs) == sorted(read)
    agrees(tmp_path / "m.onnx", model, table, result)


def test_twenty_classes_of_odd_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 20
    table = pd.DataFrame({"t": [" ".join([*rng.choice(WORDS, 4), *[WORDS[k] * 2] * 3]) for k in y]})
    model = fitted([("text t", words(np.float32), "t")], table, y, 1.0)
    assert model[-1].coef_.dtype == np.float32
    result = _file.export(model, table, tmp_path / "m.onnx")
    agrees(tmp_path / "m.onnx", model, table, result)
    assert result.opset == 20


@pytest.mark.parametrize(
    "options",
    [{}, {"lowercase": False}, {"ngram_range": (1, 3), "sublinear_tf": True}, {"ngram_range": (2, 2), "norm": "l1"},
     {"binary": True, "norm": None}, {"use_idf": False, "dtype": np.float32}],
    ids=str,
)  # fmt: skip
def test_words_are_scikit_learns(options: dict[str, Any]) -> None:
    """Texts of letters that are hard to lower-case or to part, against the vectoriser itself."""
    rng = np.random.default_rng(1)
    letters = np.array([*"aAiIİıσςΣΟοßẞéÉ_4²Ⅷǅ東ё\u0301 \n\t.-'’,🙂\u200d"])
    texts = ["".join(rng.choice(letters, rng.integers(0, 25))) for _ in range(800)]
    texts = [t for t in texts if not sigma_is_told_by_what_follows(t)]
    assert len(texts) > 400
    step = TfidfVectorizer(**options).fit(texts[::2])
    model = convert(step, [("t", tensor("U1", 1))], text=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"t": strings(texts)})
    np.testing.assert_allclose(given, step.transform(texts).toarray(), atol=1e-6, rtol=0)
    assert given.any(axis=1).mean() > 0.2
    (nothing,) = session.run(None, {"t": strings(["", "."])})
    assert nothing.shape == (2, len(step.vocabulary_))
    assert not nothing.any()


def sigma_is_told_by_what_follows(text: str) -> bool:
    """Where Python looks beyond the word to lower-case a capital Σ; the export does not."""
    seen_alone = [word.lower() for word in re.findall(r"\w\w+", text)]
    as_a_whole = re.findall(r"\w\w+", text.lower())
    return "Σ" in text and (seen_alone != as_a_whole or re.search(r"Σ[\d_²Ⅷ東]", text) is not None)


def test_values_that_float32_cannot_hold_are_double(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"t": 1.7e9 + rng.random(90), "u": rng.random(90)})
    model = fitted([("numeric", numeric(), ["t", "u"])], table, (table["t"] > 1.7e9 + 0.5).to_numpy())
    result = _file.export(model, table, tmp_path / "m.onnx")
    assert {i.name: i.type for i in result.inputs} == {"t": "double", "u": "float"}
    agrees(tmp_path / "m.onnx", model, table, result)
    plain = Pipeline([("scale", StandardScaler()), ("classify", SoftmaxRegression())]).fit(
        table.to_numpy(), table["t"] > 1.7e9 + 0.5
    )
    assert _file.export(plain, table.to_numpy(), tmp_path / "x.onnx").inputs[0].type == "double"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "column", "said"),
    [
        (
            HashingVectorizer(n_features=64),
            "text",
            "step 'p' cannot be exported to ONNX: HashingVectorizer hashes words",
        ),
        (TfidfVectorizer(token_pattern=r"\w+"), "text", r"token_pattern is '\\w+'"),
        (TfidfVectorizer(analyzer="char"), "text", "analyzer is 'char'"),
        (TfidfVectorizer(strip_accents="unicode"), "text", "strip_accents is 'unicode'"),
        (TfidfVectorizer(stop_words="english"), "text", "stop_words is 'english'"),
        (OneHotEncoder(drop="first"), ["colour"], "drop is 'first'"),
        (OneHotEncoder(handle_unknown="error"), ["colour"], "handle_unknown is 'error'"),
        (OneHotEncoder(handle_unknown="ignore"), ["flag"], "not all text"),
        (Pipeline([("f", SimpleImputer(missing_values=0.0))]), ["flag"], "step 'p', 'f' cannot be exported"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_step_that_onnx_cannot_express(part: Any, column: Any, said: str, tmp_path: Path) -> None:
    table = mixed(60)
    model = fitted([("p", part, column)], table, table["town"].to_numpy(), 1.0)
    with pytest.raises(UserError) as refused:
        _file.export(model, table, tmp_path / "m.onnx")
    assert said in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = np.eye(4), np.array([0, 1, 0, 1])
    model = Pipeline([("classify", SoftmaxRegression())]).fit(X, y)
    monkeypatch.setattr(_file, "find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(UserError, match=r"onnxruntime, which is not installed: pip install 'softgrad\[onnx\]'"):
        _file.export(model, X, tmp_path / "m.onnx")


def test_a_failed_verification_writes_nothing_and_names_the_step(
    mixed_model: tuple[Pipeline, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, table = mixed_model
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older file")

    def fill_with_one(graph: Graph, step: SimpleImputer) -> None:
        wrong = SimpleImputer(strategy="constant", fill_value=1.0, add_indicator=True).fit(np.zeros((1, 7)))
        wrong.indicator_ = step.indicator_
        _operators.fill(graph, wrong)

    monkeypatch.setitem(_operators._BUILD, SimpleImputer, fill_with_one)
    with pytest.raises(UserError) as failed:
        _file.export(model, table[:30], path)
    assert "step 'numeric', 'fill' (SimpleImputer) differs at 'label': 1 instead of 0" in str(failed.value)
    assert path.read_bytes() == b"an older file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [StandardScaler, OneHotEncoder, TfidfVectorizer])
def test_the_step_at_fault_is_found(
    kind: type, mixed_model: tuple[Pipeline, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, table = mixed_model
    right = _operators._BUILD[kind]

    class Halved(Graph):
        def finish(self, *names: str) -> None:
            dtype = np.float32 if getattr(self._operator.raw_operator, "dtype", None) == np.float32 else np.float64
            super().finish(self.node("Mul", names[0], self.constant(0.5, dtype)))

    monkeypatch.setitem(
        _operators._BUILD,
        kind,
        lambda graph, step: right(Halved(graph._scope, graph._operator, graph._container), step),
    )
    with pytest.raises(UserError, match=rf"step '[^']+'(, 'scale')? \({kind.__name__}\) differs at '"):
        _file.export(model, table[:30], tmp_path / "m.onnx")


def test_a_classifier_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = load_digits(return_X_y=True)
    model = Pipeline([("scale", StandardScaler()), ("classify", SoftmaxRegression(C=0.01))]).fit(X[:300], y[:300])
    own = _verify.run

    def run(*given: Any) -> list[Any]:
        outputs = own(*given)
        return [*outputs[:-1], outputs[-1][:, ::-1]] if len(outputs) == 2 else outputs

    monkeypatch.setattr(_verify, "run", run)
    with pytest.raises(UserError, match=r"differ by .*; step 'classify' alone does so, too: .*; nothing is written"):
        _file.export(model, X[:20], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
