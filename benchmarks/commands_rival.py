"""What `softgrad fit TRAIN -t LABEL --test TEST --C auto` does, as one writes it with pandas and scikit-learn.

Unlike the command it is told what the columns are, in ``--numbers``, ``--categories``, ``--texts`` and ``--dates``. The
last line it prints is JSON.
"""

from __future__ import annotations

import argparse
import json
import warnings

import joblib
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

parser = argparse.ArgumentParser(description=__doc__)
for name in ("train", "test", "label", "model"):
    parser.add_argument(name)
for kind in ("numbers", "categories", "texts", "dates"):
    parser.add_argument(f"--{kind}", nargs="*", default=[])
parser.add_argument("--Cs", type=int, default=10)
options = parser.parse_args()


def table(path: str) -> pd.DataFrame:
    read = pd.read_csv(path, parse_dates=options.dates)
    for date in options.dates:
        read[date] = (read[date] - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return read.fillna(dict.fromkeys(options.texts, ""))


train, test = table(options.train), table(options.test)
numbers = [*options.numbers, *options.dates]
parts = []
if numbers:
    parts.append(("numbers", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), numbers))
if options.categories:
    parts.append(("categories", OneHotEncoder(handle_unknown="ignore"), options.categories))
parts += [(text, TfidfVectorizer(sublinear_tf=True, min_df=2), text) for text in options.texts]
search = LogisticRegressionCV(
    Cs=options.Cs, cv=5, scoring="neg_log_loss", l1_ratios=(0,), max_iter=1000, use_legacy_attributes=False
)
model = make_pipeline(ColumnTransformer(parts), search)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of folds that have not converged
    model.fit(train, train[options.label])
joblib.dump(model, options.model)
p = model.predict_proba(test)
labels = test[options.label]
print(json.dumps({
    "features": int(model[-1].n_features_in_),
    "C": float(model[-1].C_),
    "accuracy": accuracy_score(labels, model.classes_[p.argmax(axis=1)]),
    "log_loss": log_loss(labels, p, labels=model.classes_),
}))  # fmt: skip
