"""Problems shared by the tests of the solvers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets
from sklearn.preprocessing import StandardScaler
from written import SOLVERS

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "glmnet.json").read_text())
EVERY_SOLVER = pytest.mark.parametrize("solver", SOLVERS)


@cache
def problem(name: str) -> tuple[Any, Any, int]:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    x.flags.writeable = False
    return x, y, len(np.unique(y))


def random_problem(n_classes: int, n: int = 40, p: int = 3, seed: int = 0) -> tuple[Any, Any, Any]:
    """Features of unequal scales and means, labels that they explain in part, and weights."""
    random = np.random.default_rng([seed, n_classes, n, p])
    x = random.normal(size=(n, p)) * random.uniform(0.3, 3.0, size=p) + random.normal(size=p)
    drawn = (x @ random.normal(size=(p, n_classes)) / p + random.gumbel(size=(n, n_classes))).argmax(axis=1)
    labels = np.where(np.arange(n) < n_classes, np.arange(n) % n_classes, drawn)
    return x, labels, random.uniform(0.2, 3.0, size=n)


@cache
def golden_problems() -> dict[str, tuple[tuple[Any, Any, int], dict[str, Any]]]:
    """The problems of ``golden/glmnet.R``, by the same formulas."""

    def weights(n: int) -> Any:
        return 0.5 + (7 * np.arange(n)) % 5 / 2

    def offsets(n: int, k: int) -> Any:
        i, j = np.arange(n)[:, None], np.arange(k)
        return ((3 * i + 5 * j) % 7 - 3) / 4

    x = np.array([[-4, -3, -2, -1, 0, 1, 2, 3, 4], [0, 0, 1, 0, 1, 1, 1, 0, 0]], dtype=np.float64).T
    iris, species = datasets.load_iris(return_X_y=True)
    i, j = np.arange(len(iris))[:, None], np.arange(3)
    proportions = 0.6 * np.eye(3)[species] + (1 + (i + 2 * j) % 4) / 10
    wine, cancer = problem("wine"), problem("breast_cancer")
    return {
        "nine_rows_binomial": ((x, np.array([0, 0, 0, 1, 1, 1, 1, 1, 1]), 2), {}),
        "nine_rows_multinomial": ((x, np.repeat(np.arange(3), 3), 3), {}),
        "iris": ((iris, species, 3), {}),
        "iris_no_intercept": ((iris, species, 3), {"fit_intercept": False}),
        "iris_proportions": ((iris, proportions, 3), {"sample_weight": weights(len(iris))}),
        "wine_weights": (wine, {"sample_weight": weights(len(wine[0]))}),
        "wine_offset": (wine, {"offset": offsets(len(wine[0]), 3)}),
        "cancer": (cancer, {}),
        "cancer_weights_offset": (
            cancer,
            {"sample_weight": weights(len(cancer[0])), "offset": offsets(len(cancer[0]), 1)[:, 0]},
        ),
    }
