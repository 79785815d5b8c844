"""The model file: a skops archive of the pipeline with one more member, ``softgrad.json``, that says what it is.

The description is read, and judged, before any object of the archive is built; the archive itself is built only from
the types that ``_skops.TRUSTED`` names, and refused if their settings are not those of softgrad (`_model_check`).
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import __version__ as sklearn_version
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from softgrad._version import __version__
from softgrad.cli.features._frame import Ingredient, ingredients_of
from softgrad.cli.features._names import origins_of
from softgrad.cli.model._check import unexpected_setting
from softgrad.cli.model._skops import TRUSTED, skops_io
from softgrad.cli.model._train import Fitted
from softgrad.cli.tables._output import replacing
from softgrad.cli.terminal._messages import UserError, names, plain_warnings, shown
from softgrad.sklearn import SoftmaxRegression

# Raised whenever a file of the old form can no longer be read, or one of the new form not by the old program.
FORMAT = 3
EXTENSIONS = (".skops",)
_MEMBER = "softgrad.json"
LARGEST_RATIO = 50  # of a file's unpacked size to its own: coefficients hardly compress
LARGEST_UNCHECKED = 256 << 20  # bytes, below which any ratio will do

__all__ = ["EXTENSIONS", "FORMAT", "Model", "classifier_of", "load", "save", "symmetric_weights", "versions"]


@dataclass(frozen=True)
class Model:
    """A fitted pipeline that ends in a :class:`SoftmaxRegression`, and its description.

    Attributes
    ----------
    pipeline : Pipeline
    ingredients : list of Ingredient
        The columns it reads; none if its rows are sparse ones of numbered features.
    description : dict
    content : bytes
        The whole file.
    """

    pipeline: Pipeline
    ingredients: list[Ingredient]
    description: dict[str, Any]
    content: bytes

    @property
    def classifier(self) -> SoftmaxRegression:
        """The last step."""
        last: SoftmaxRegression = self.pipeline[-1]
        return last

    @property
    def transformer(self) -> ColumnTransformer | None:
        """The step before, if there is one."""
        return self.pipeline[0] if len(self.pipeline) > 1 else None

    @property
    def classes(self) -> list[Any]:
        """The labels it predicts, in the order of its probabilities."""
        labels: list[Any] = self.classifier.classes_.tolist()
        return labels

    @property
    def columns(self) -> list[str]:
        """The names of the columns it reads."""
        return [item.name for item in self.ingredients]


def versions() -> dict[str, str]:
    """What decides the result, besides the data and the options."""
    from scipy import __version__ as scipy_version

    return {
        "softgrad": __version__, "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy_version,
        "scikit-learn": sklearn_version,
    }  # fmt: skip


def classifier_of(fitted: Fitted, classes: Any, dtype: Any, parameters: dict[str, Any]) -> SoftmaxRegression:
    """A fit as the estimator that scikit-learn's users know."""
    classifier = SoftmaxRegression(C=fitted.C, **parameters)
    classifier.classes_ = classes
    classifier.coef_, classifier.intercept_ = fitted.coef.astype(dtype), fitted.intercept.astype(dtype)
    classifier.n_features_in_ = fitted.coef.shape[1]
    classifier._columns = None
    classifier.n_iter_ = np.array([fitted.n_iter], dtype=np.int32)
    classifier.n_passes_ = float(fitted.n_passes)
    classifier.objective_, classifier.gap_ = float(fitted.objective), float(fitted.gap)
    classifier.history_ = history_of(fitted)
    return classifier


def symmetric_weights(classifier: SoftmaxRegression) -> tuple[Any, Any]:
    """Weights and intercepts with one row a class; of two classes, of opposite sign."""
    coef, intercept = (np.asarray(values, dtype=np.float64) for values in (classifier.coef_, classifier.intercept_))
    if len(coef) > 1:
        return coef, intercept
    return np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2


def history_of(fitted: Fitted) -> Any:
    """The iterations as the estimator keeps them."""
    kinds = [
        ("iteration", np.int64),
        *((name, np.float64) for name in ("objective", "gap", "passes", "seconds", "step")),
    ]
    return np.array([tuple(row) for row in fitted.history], dtype=kinds)


def save(path: Path, pipeline: Pipeline, ingredients: list[Ingredient], **facts: Any) -> None:
    """Write a model file, whole or not at all."""
    description = {
        "format": FORMAT,
        "softgrad": __version__,
        "versions": versions(),
        "classes": pipeline[-1].classes_.tolist(),
        "columns": [item.described() for item in ingredients],
        **facts,
    }
    with _without_vocabularies(pipeline):
        archive = io.BytesIO(skops_io().dumps(pipeline, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(archive, "a", compression=zipfile.ZIP_DEFLATED) as members:
        members.writestr(_MEMBER, json.dumps(description, indent=2))
    with replacing(path) as file:
        file.write(archive.getbuffer())


@contextmanager
def _without_vocabularies(pipeline: Pipeline) -> Iterator[None]:
    """The dictionaries of words taken away, which scikit-learn makes again of their arrays."""
    held = [(step, vars(step).pop("vocabulary_")) for step in _text_steps(pipeline)]
    try:
        yield
    finally:
        for step, vocabulary in held:
            step.vocabulary_ = vocabulary


def _text_steps(pipeline: Pipeline) -> list[Any]:
    return [step for name, step, _ in getattr(pipeline[0], "transformers_", []) if name.startswith("text ")]


def load(path: Path) -> Model:
    """Read a model file, or say in one line why not."""
    if not path.exists():
        raise UserError(f"{shown(path)}: no such file")
    if not path.is_file():
        raise UserError(f"{shown(path)}: is not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    description = _description(path, content)
    pipeline = _pipeline(path, content)
    return Model(pipeline, _ingredients(path, pipeline, description), description, content)


def _description(path: Path, content: bytes) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            unpacked = sum(member.file_size for member in members.infolist())
            if unpacked > max(LARGEST_RATIO * len(content), LARGEST_UNCHECKED):
                raise UserError(
                    f"{shown(path)}: refused: its {len(content):,} bytes would unpack to {unpacked:,}; softgrad fit "
                    "writes no such file"
                )
            description = json.loads(members.read(_MEMBER))
    # An encrypted member and deep JSON are RuntimeErrors, an odd compression is not implemented.
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{shown(path)}: is not a model written by softgrad fit") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise UserError(f"{shown(path)}: is not a model written by softgrad fit: its description has no format number")
    if description["format"] != FORMAT:
        writer = description.get("softgrad", "an unknown version")
        raise UserError(
            f"{shown(path)}: is a model of format {description['format']}, written by softgrad {writer}; "
            f"softgrad {__version__} reads format {FORMAT}: fit it again, or use softgrad {writer}"
        )
    return description


def _pipeline(path: Path, content: bytes) -> Pipeline:
    try:
        unknown = set(skops_io().get_untrusted_types(data=content)) - set(TRUSTED)
        if unknown:
            raise UserError(f"{shown(path)}: refused: it holds types that are not trusted: {names(sorted(unknown))}")
        with plain_warnings():  # scikit-learn says here when another version of it wrote the model
            pipeline = skops_io().loads(content, trusted=TRUSTED)
        unexpected = unexpected_setting(pipeline)
        if unexpected is not None:
            raise UserError(f"{shown(path)}: refused: it holds {unexpected}, which softgrad fit does not write")
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes skops stumble over
        raise UserError(f"{shown(path)}: is a damaged model file ({type(error).__name__}: {error})") from error
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline[-1], SoftmaxRegression):
        raise UserError(f"{shown(path)}: does not hold a softgrad model but a {type(pipeline).__name__}")
    return pipeline


def _ingredients(path: Path, pipeline: Pipeline, description: dict[str, Any]) -> list[Ingredient]:
    """The columns, if they are those of the pipeline."""
    damaged = f"{shown(path)}: is a damaged model file: its columns do not fit its coefficients"
    classifier, described = pipeline[-1], description.get("columns")
    width = getattr(classifier, "n_features_in_", None)
    if not hasattr(classifier, "coef_") or classifier.coef_.shape[1:] != (width,):
        raise UserError(damaged)
    if len(pipeline) == 1 and described == []:
        return []
    try:
        found = ingredients_of(described)
        for step in _text_steps(pipeline):
            step.get_feature_names_out()  # makes the dictionary of words
        parts = [part for item in found for part in item.parts]
        fits = (
            len(pipeline) == 2
            and isinstance(pipeline[0], ColumnTransformer)
            and sorted(pipeline[0].feature_names_in_) == sorted(parts)
            and len(origins_of(pipeline[0], found)) == width
        )
    except (ValueError, AttributeError) as error:
        raise UserError(damaged) from error
    if not fits:
        raise UserError(damaged)
    return found
