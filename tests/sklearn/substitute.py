"""A plugin of pytest: softgrad's logistic regressions in the place of scikit-learn's, for scikit-learn's own tests.

Each test is recorded in the file that the environment variable SUBSTITUTE_RECORD names: its outcome and its identifier.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sklearn.linear_model
from sklearn.linear_model import _logistic

from softgrad.sklearn import LogisticRegression, LogisticRegressionCV

for _module in (sklearn.linear_model, _logistic):
    _module.LogisticRegression, _module.LogisticRegressionCV = LogisticRegression, LogisticRegressionCV


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome == "failed":
        with Path(os.environ["SUBSTITUTE_RECORD"]).open("a", encoding="utf-8") as record:
            record.write(f"{report.outcome} {report.nodeid.rpartition('::')[2]}\n")
