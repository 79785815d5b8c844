"""Rows that try a model in its corners, and where an ONNX copy of it differs.

Given rows seldom have a missing value in every column, a category that was never seen, or a capital Σ; so rows are made
from what the steps have learnt (means, categories, words), the same ones each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

_MADE = 48
_GIVEN = 500
_ODD_TEXTS = (
    "", " ", "\n\t", "…", "a b c", "İİ xİİ", "\u00c9COLE e\u0301cole", "Straße STRASSE", "ΟΔΟΣ ΣΟΣ", "東京タワー",
    "👩‍👩‍👧 emoji_42", "x" * 300, "ǅ ﬁne Ⅷ ²³ 4_5", "word\u200dword",
)  # fmt: skip


@dataclass(frozen=True)
class ModelColumn:
    """What is known of a column: its steps, and, if it is a number, about where its values lie."""

    name: str
    kind: str  # "number", "category" or "text"
    steps: tuple[tuple[str, Any], ...]
    place: int  # in what those steps are given

    def step(self, kind: type) -> Any:
        """The step of that type, or None."""
        return next((step for _, step in self.steps if isinstance(step, kind)), None)


def columns_of(pipeline: Pipeline, names: list[str]) -> dict[str, ModelColumn]:
    """The columns that the pipeline reads, in the order of ``names``."""
    found: dict[str, ModelColumn] = {}
    for _, step, columns in parts_of(pipeline, names):
        steps = tuple(steps_of(step))
        for place, name in enumerate(columns):
            kinds = {OneHotEncoder: "category", TfidfVectorizer: "text"}
            kind = next((kinds[type(s)] for _, s in steps if type(s) in kinds), "number")
            found[name] = ModelColumn(name, kind, steps, place)
    return {name: found[name] for name in names if name in found}


def parts_of(pipeline: Pipeline, names: list[str]) -> Iterator[tuple[str, Any, list[str]]]:
    """Name, transformer and column names of each part of the preparation."""
    head = pipeline.steps[0][1]
    if not isinstance(head, ColumnTransformer):
        yield "", Pipeline(pipeline.steps[:-1]) if len(pipeline.steps) > 1 else "passthrough", names
        return
    for part, step, columns in head.transformers_:
        if isinstance(step, str) and step == "drop":
            continue
        chosen = [columns] if isinstance(columns, str) else list(columns)
        if chosen:
            yield part, step, [c if isinstance(c, str) else names[c] for c in chosen]


def steps_of(step: Any) -> list[tuple[str, Any]]:
    """The steps of a pipeline, or the one step there is, without those that pass their input through."""
    steps = step.steps if isinstance(step, Pipeline) else [("", step)]
    return [(name, s) for name, s in steps if not (s is None or isinstance(s, str))]


# --- rows ------------------------------------------------------------------------------------------------------------


def some_of(sample: Any) -> Any:
    """At most some hundred rows of the sample, evenly spaced."""
    rows = np.unique(np.linspace(0, max(0, len(sample) - 1), min(len(sample), _GIVEN)).astype(np.intp))
    return sample.iloc[rows] if hasattr(sample, "iloc") else sample[rows]


def made_matrix(pipeline: Pipeline, sample: NDArray[Any]) -> NDArray[np.float64]:
    """Rows for a model of a plain matrix: no missing values, which it would refuse."""
    scaler = next((s for _, s in pipeline.steps if isinstance(s, StandardScaler)), None)
    rng = np.random.default_rng(0)
    columns = [_numbers(rng, scaler, j, sample[:, j]) for j in range(sample.shape[1])]
    return np.stack(columns, axis=1).astype(sample.dtype)


def made_frame(columns: Mapping[str, ModelColumn], sample: Any) -> Any:
    """Rows for a model of a table, in a table of the sample's type."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for number, (name, column) in enumerate(columns.items()):
        given = sample[name] if len(sample) else []
        if column.kind == "text":
            made[name] = _texts(rng, column.step(TfidfVectorizer))
        elif column.kind == "category":
            made[name] = _categories(column.step(OneHotEncoder), column.place, number)
        else:
            values = _numbers(rng, column.step(StandardScaler), column.place, given)
            if column.step(SimpleImputer) is not None:
                values[[number % _MADE, -1]] = np.nan
                values[rng.random(_MADE) < 0.1] = np.nan
            made[name] = values
    for name in sample.columns:  # what the model does not read
        made.setdefault(name, [""] * _MADE)
    return type(sample)({name: made[name] for name in sample.columns})


def _numbers(rng: np.random.Generator, scaler: StandardScaler | None, j: int, given: Any) -> NDArray[np.float64]:
    values = np.asarray(given, dtype=np.float64)
    values = values[np.isfinite(values)]
    centre, spread = (values.mean(), values.std()) if len(values) else (0.0, 1.0)
    if scaler is not None and scaler.mean_ is not None:
        centre = scaler.mean_[j]
    if scaler is not None and scaler.scale_ is not None:
        spread = scaler.scale_[j]
    return np.asarray(centre + 2 * spread * rng.standard_normal(_MADE))


def _categories(encoder: OneHotEncoder, j: int, number: int) -> list[str]:
    known = encoder.categories_[j].tolist()
    values = [known[(i * (number + 1)) % len(known)] for i in range(_MADE)]
    values[number % _MADE] = "a level that no row had ⚑"
    values[-1 - number % _MADE] = ""
    return values


def _texts(rng: np.random.Generator, vectorizer: TfidfVectorizer) -> list[str]:
    words = sorted(vectorizer.vocabulary_)
    made = list(_ODD_TEXTS)
    forms: list[Callable[[str], str]] = [str, str.upper, str.title, str.capitalize]
    while len(made) < _MADE:
        chosen = [words[i] for i in rng.integers(0, len(words), 1 + len(made) % 12)]
        text = (", ", " ", "\n", " x. ")[len(made) % 4].join(chosen)
        made.append(forms[len(made) % 3 if len(made) % 2 else 0](text) + ("!" if len(made) % 5 else ""))
    return made
