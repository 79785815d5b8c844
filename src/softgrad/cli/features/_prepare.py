"""The features of a typed table: scikit-learn's transformers, fitted batch by batch on the training rows.

What is made is an ordinary fitted ``ColumnTransformer``.  Each transformer gets the statistics that it would have got
from all rows at once: sums for the scaling, counts of levels for the one-hot columns, documents for the terms.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softgrad.cli.features._frame import Ingredient
from softgrad.cli.features._names import plain_names
from softgrad.cli.terminal._messages import UserError

if TYPE_CHECKING:
    import pandas as pd

RARE = 10  # a level of fewer rows joins the rare ones; of fewer than 1,000 rows, one in a hundred
TERMS = 1 << 18  # of a column of text, the most frequent
LONGEST = 64  # letters of a word
WIDE = 2000  # one-hot columns from which on the matrix is sparse

__all__ = ["Preparation", "is_sparse"]


class Preparation:
    """Statistics of the training rows.

    Parameters
    ----------
    ingredients : list of Ingredient
        The columns.
    n_rows : int
        How many rows will be added.
    standardize : bool
        Whether numbers get mean 0 and variance 1.
    """

    def __init__(self, ingredients: list[Ingredient], n_rows: int, standardize: bool) -> None:
        self.numbers = [part for item in ingredients if item.is_number for part in item.parts]
        self.categories = [item.name for item in ingredients if item.role == "categorical"]
        self.texts = [item.name for item in ingredients if item.role == "text"]
        self.n_rows, self.standardize = n_rows, standardize
        self.rare = max(2, min(RARE, n_rows // 100))
        self.scaler = StandardScaler()
        self.gaps = np.zeros(len(self.numbers), dtype=bool)
        self.levels: dict[str, Counter[str]] = {name: Counter() for name in self.categories}
        self.analyze = TfidfVectorizer().build_analyzer()
        self.terms: dict[str, Counter[str]] = {name: Counter() for name in self.texts}
        self.first: pd.DataFrame | None = None

    def add(self, table: pd.DataFrame) -> None:
        """Some training rows."""
        if not len(table):
            return
        if self.first is None:
            self.first = table.iloc[:1].copy()
        if self.numbers:
            numbers = table[self.numbers]
            values = numbers.to_numpy()
            self.gaps |= np.isnan(values).any(axis=0)
            with np.errstate(over="ignore", invalid="ignore"):
                self.scaler.partial_fit(numbers)
            self._refuse_overflow(values)
        for name, counter in self.levels.items():
            counter.update(table[name].tolist())
        for name, counter in self.terms.items():
            for document in table[name]:
                counter.update(set(self.analyze(document)))

    def _refuse_overflow(self, values: NDArray[np.floating[Any]]) -> None:
        """Features whose squares are no float64 can be neither scaled nor fitted."""
        bad = np.flatnonzero(~np.isfinite(self.scaler.var_) & (self.scaler.n_samples_seen_ > 0))
        if bad.size:
            most = np.nanmax(np.abs(values[:, bad[0]]))
            raise UserError(
                f"column {self.numbers[bad[0]]!r} holds values up to {most:.3g}, too large to compute with: scale it"
            )

    def transformer(self) -> ColumnTransformer:
        """The fitted transformer of all columns."""
        assert self.first is not None
        sparse = bool(self.texts) or sum(map(len, self.levels.values())) > WIDE
        parts: list[tuple[str, Any, Any]] = []
        if self.numbers:
            parts.append(("numeric", self._numeric(), self.numbers))
        if self.categories:
            parts.append(("categorical", self._categorical(sparse), self.categories))
        parts += [(f"text {name}", self._text(name), name) for name in self.texts]
        frozen = [(name, FrozenEstimator(part), columns) for name, part, columns in parts]
        names = plain_names(parts)
        transformer = ColumnTransformer(
            frozen, sparse_threshold=1.0 if sparse else 0.0, verbose_feature_names_out=len(set(names)) < len(names)
        ).fit(self.first)
        # What was frozen is fitted: without its shell, the result is what fitting all rows at once makes.
        transformer.transformers = parts
        transformer.transformers_ = [(name, getattr(part, "estimator", part), columns)
                                     for name, part, columns in transformer.transformers_]  # fmt: skip
        return transformer

    def _numeric(self) -> Pipeline:
        import pandas as pd

        seen = np.broadcast_to(self.scaler.n_samples_seen_, self.gaps.shape)
        empty = seen == 0  # in the training rows, though not in all
        self.scaler.mean_[empty], self.scaler.var_[empty], self.scaler.scale_[empty] = 0.0, 1.0, 1.0
        fill: dict[str, Any] = {"strategy": "constant", "fill_value": 0.0} if self.standardize else {"strategy": "mean"}
        middle = np.zeros(len(self.gaps)) if self.standardize else self.scaler.mean_
        imputer = SimpleImputer(add_indicator=True, keep_empty_features=True, **fill)
        rows = np.stack([middle, np.where(self.gaps, np.nan, middle)])
        if self.standardize:
            return Pipeline([("scale", self.scaler), ("fill", imputer.fit(rows))])
        # It is the step that gets the columns, and scikit-learn warns if it does not know their names.
        return Pipeline([("fill", imputer.fit(pd.DataFrame(rows, columns=self.numbers)))])

    def _categorical(self, sparse: bool) -> OneHotEncoder:
        """The encoder counts no further than ``min_frequency``, so few copies of each level say it all."""
        columns = []
        for name in self.categories:
            counts = sorted(self.levels[name].items(), key=lambda item: (-item[1], item[0]))
            columns.append([level for level, count in counts for _ in range(min(count, self.rare))])
        longest = max(map(len, columns))
        filled = [cells + cells[:1] * (longest - len(cells)) for cells in columns]  # with a column's commonest level
        encoder = OneHotEncoder(
            min_frequency=self.rare, handle_unknown="infrequent_if_exist", sparse_output=sparse, dtype=np.float64
        )
        import pandas as pd

        encoder.fit(pd.DataFrame(dict(zip(self.categories, filled, strict=True)), dtype=object))
        return encoder

    def _text(self, name: str) -> TfidfVectorizer:
        counter = self.terms[name]
        fewest = 2 if self.n_rows >= 100 else 1
        kept = [(term, count) for term, count in counter.items() if count >= fewest and len(term) <= LONGEST]
        if not kept:
            raise UserError(
                f"column {name!r}: no word is in {fewest} rows or more, so nothing can be learnt from it as text: "
                f"leave it out with --drop {name}"
            )
        if len(kept) > TERMS:
            kept = sorted(kept, key=lambda item: (-item[1], item[0]))[:TERMS]
        kept.sort()
        # As an array, which a model file holds as such; of a dictionary it would describe every word with 500 bytes.
        terms = np.array([term for term, _ in kept])
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=fewest, vocabulary=terms)
        frequency = np.array([count for _, count in kept], dtype=np.float64)
        vectorizer.get_feature_names_out()  # sets what it derives from the vocabulary
        vectorizer.idf_ = np.log((1 + self.n_rows) / (1 + frequency)) + 1  # scikit-learn's smooth_idf
        return vectorizer


def is_sparse(transformer: ColumnTransformer) -> bool:
    """Whether what it makes is sparse."""
    return bool(transformer.sparse_output_)
