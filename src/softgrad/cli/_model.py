"""The model file: a skops archive of the pipeline with one more member, ``softgrad.json``, that says what it is.

The description is read, and judged, before any object of the archive is built; the archive itself is built only from
types that skops trusts (NumPy, SciPy, scikit-learn) and from our own estimator.
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn import __version__ as sklearn_version
from sklearn.pipeline import Pipeline

from softgrad import __version__
from softgrad.cli._messages import UserError, names, plain_warnings, shown
from softgrad.cli._output import replacing
from softgrad.sklearn import SoftmaxRegression

# Raised whenever a file of the old form can no longer be read, or one of the new form not by the old program.
FORMAT = 2
EXTENSIONS = (".skops",)
TRUSTED = ["softgrad.sklearn.SoftmaxRegression"]
_MEMBER = "softgrad.json"


@dataclass(frozen=True)
class Model:
    """A fitted pipeline that ends in a :class:`SoftmaxRegression`, and its description."""

    pipeline: Pipeline
    description: dict[str, Any]

    @property
    def feature_names(self) -> list[str]:
        """The columns it reads, in order."""
        return list(self.description["features"])

    @property
    def classes(self) -> list[Any]:
        """The labels it predicts, in the order of its probabilities."""
        labels: list[Any] = self.pipeline[-1].classes_.tolist()
        return labels


def save(path: Path, pipeline: Pipeline, **facts: Any) -> None:
    """Write a model file, whole or not at all."""
    description = {
        "format": FORMAT,
        "softgrad": __version__,
        "versions": {"scikit-learn": sklearn_version, "numpy": np.__version__, "python": platform.python_version()},
        "classes": pipeline[-1].classes_.tolist(),
        **facts,
    }
    archive = io.BytesIO(skops.io.dumps(pipeline, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(archive, "a", compression=zipfile.ZIP_DEFLATED) as members:
        members.writestr(_MEMBER, json.dumps(description, indent=2))
    with replacing(path) as file:
        file.write(archive.getbuffer())


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
    return Model(_pipeline(path, content, description), description)


def _description(path: Path, content: bytes) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            description = json.loads(members.read(_MEMBER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
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


def _pipeline(path: Path, content: bytes, description: dict[str, Any]) -> Pipeline:
    try:
        unknown = set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED)
        if unknown:
            raise UserError(f"{shown(path)}: refused: it holds types that are not trusted: {names(sorted(unknown))}")
        with plain_warnings():  # scikit-learn says here when another version of it wrote the model
            pipeline = skops.io.loads(content, trusted=TRUSTED)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes skops stumble over
        raise UserError(f"{shown(path)}: is a damaged model file ({type(error).__name__}: {error})") from error
    features = description.get("features")
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline[-1], SoftmaxRegression):
        raise UserError(f"{shown(path)}: does not hold a softgrad model but a {type(pipeline).__name__}")
    if not isinstance(features, list) or len(features) != getattr(pipeline[-1], "n_features_in_", None):
        raise UserError(f"{shown(path)}: is a damaged model file: its feature names do not fit its coefficients")
    return pipeline
