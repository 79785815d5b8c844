"""Model files from somebody else: a pipeline is used only with the settings that softgrad writes."""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import skops.io
from cli_cases import Command, mixed, one_error
from sklearn.linear_model import LogisticRegression

from softgrad.cli import main
from softgrad.cli.model import _archive


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with every kind of step."""
    folder = tmp_path_factory.mktemp("model")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mixed(300).to_csv("d.csv", index=False)
        assert main(["fit", "d.csv", "-t", "species", "--text", "note"]) == 0
    return folder


def forged(honest: Path, change: Callable[[Any], Any]) -> None:
    """``d.skops`` with the pipeline changed, and ``d.csv``."""
    pipeline = _archive.load(honest / "d.skops").pipeline
    pipeline = change(pipeline) or pipeline
    Path("d.skops").write_bytes(skops.io.dumps(pipeline))
    with zipfile.ZipFile(honest / "d.skops") as old, zipfile.ZipFile("d.skops", "a") as new:
        new.writestr("softgrad.json", old.read("softgrad.json"))
    shutil.copy(honest / "d.csv", "d.csv")


def step(pipeline: Any, kind: str) -> Any:
    """The first step of a kind."""
    found = [part for _, part, _ in pipeline[0].transformers_]
    found += [inner for part in found if hasattr(part, "steps") for _, inner in part.steps]
    return next(part for part in [pipeline, pipeline[0], pipeline[-1], *found] if type(part).__name__ == kind)


def test_an_honest_model_is_read(honest: Path, cli: Command) -> None:
    forged(honest, lambda pipeline: None)
    assert cli("predict", "d.skops", "d.csv", "-o", "o.csv").code == 0
    assert len(pd.read_csv("o.csv")) == 300


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("TfidfVectorizer", "input", "filename"),
        ("TfidfVectorizer", "token_pattern", "(a+)+$"),
        ("TfidfVectorizer", "ngram_range", (1, 1000)),
        ("TfidfVectorizer", "analyzer", "char_wb"),
        ("TfidfVectorizer", "min_df", 0.5),
        ("TfidfVectorizer", "build_analyzer", "a string for a method"),
        ("ColumnTransformer", "n_jobs", 64),
        ("ColumnTransformer", "remainder", "passthrough"),
        ("ColumnTransformer", "transform", 1),
        ("Pipeline", "memory", "/tmp/somewhere"),
        ("OneHotEncoder", "min_frequency", -1),
        ("OneHotEncoder", "drop", "first"),
        ("StandardScaler", "copy", False),
        ("SimpleImputer", "fill_value", 1e300),
        ("SoftmaxRegression", "n_threads", 10**12),
        ("SoftmaxRegression", "verbose", 1),
        ("SoftmaxRegression", "predict_proba", 1),
    ],
)
def test_settings_that_softgrad_does_not_write(honest: Path, cli: Command, kind: str, name: str, value: Any) -> None:
    forged(honest, lambda pipeline: setattr(step(pipeline, kind), name, value))
    for command in (
        ("predict", "d.skops", "d.csv", "-o", "o.csv"),
        ("inspect", "d.skops"),
        ("evaluate", "d.skops", "d.csv"),
    ):
        one_error(cli(*command), rf"d\.skops: refused: it holds {kind}\({name}=")
    assert not Path("o.csv").exists()


def test_files_that_cells_name_are_not_opened(honest: Path, cli: Command) -> None:
    secret = Path("secret.txt")
    secret.write_text("word " * 10)
    forged(honest, lambda pipeline: setattr(step(pipeline, "TfidfVectorizer"), "input", "filename"))
    table = pd.read_csv("d.csv").head(3)
    table["note"] = str(secret.absolute())
    table.to_csv("three.csv", index=False)
    one_error(cli("predict", "d.skops", "three.csv", "-o", "o.csv"), "input='filename'")


def test_steps_that_softgrad_does_not_write(honest: Path, cli: Command) -> None:
    """Types that skops itself trusts are refused, too."""

    def hide(pipeline: Any) -> None:
        pipeline[0].hidden_ = LogisticRegression()

    forged(honest, hide)
    one_error(cli("inspect", "d.skops"), r"d\.skops: refused: it holds .*LogisticRegression")


def member(content: bytes, **options: Any) -> None:
    """``d.skops`` with one member as its description."""
    with zipfile.ZipFile("d.skops", "w") as archive:
        archive.writestr("softgrad.json", content, **options)


def encrypted() -> None:
    member(b"{}")
    content = bytearray(Path("d.skops").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag, in both headers
        content[content.index(signature) + offset] |= 1
    Path("d.skops").write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encrypted, "is not a model written by softgrad fit"),
        (lambda: member(b"[" * 10**6), "is not a model written by softgrad fit"),
        (lambda: member(b"\xff\xfe"), "is not a model written by softgrad fit"),
        (lambda: member(b"[1, 2]"), "its description has no format number"),
        (lambda: member(b'{"format": "3"}'), "its description has no format number"),
        (lambda: member(b'{"format": 3, "columns": 7}'), "is a damaged model file"),
        (lambda: member(bytes(300 << 20), compress_type=zipfile.ZIP_DEFLATED), "would unpack to 314,572,800"),
    ],
    ids=["encrypted", "deep", "no text", "a list", "a string", "no columns", "a bomb"],
)
def test_archives_that_are_no_models(make: Callable[[], None], message: str, cli: Command) -> None:
    make()
    one_error(cli("inspect", "d.skops"), message)
