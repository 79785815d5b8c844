"""What DATA on the command line stands for: a file, a directory, a glob, ``-`` or the name of a built-in data set.

The result is a :class:`Source`: files of one format in the order of their names, or nothing but a name.
"""

from __future__ import annotations

import glob
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softgrad.cli.tables._output import is_stream
from softgrad.cli.terminal._messages import UserError, shown

BUILT_IN = ("digits", "iris", "wine", "breast_cancer")
FORMATS = {
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "feather": (".feather", ".arrow", ".ipc"),
    "npz": (".npz",),
    "npy": (".npy",),
    "svmlight": (".svmlight", ".svm", ".libsvm"),
}
STANDARD_INPUT = "standard input"
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_READERS = {"svmlight": (".gz", ".bz2")}  # what else than Arrow opens decompresses less
_MAGIC = ((b"PAR1", "parquet"), (b"ARROW1", "feather"), (b"\x93NUMPY", "npy"), (b"PK\x03\x04", "npz"))

__all__ = ["BUILT_IN", "Source", "extensions", "opened"]


@dataclass(frozen=True)
class Source:
    """Files of one format, or a built-in data set.

    Attributes
    ----------
    text : str
        As the user wrote it, for messages.
    format : str
        A key of ``FORMATS``, or "built-in".
    paths : list of Path
    root : Path or None
        The directory whose sub-directories may name columns (``year=2024``).
    delimiter : str
        Of text.
    labels : Path, optional
        The ``.npy`` file with the labels of the rows, where ``paths`` are such files, too.
    """

    text: str
    format: str
    paths: list[Path]
    root: Path | None = None
    delimiter: str = ","
    labels: Path | None = None

    @property
    def stem(self) -> str:
        """What an output is called if it has no name of its own."""
        if self.text == STANDARD_INPUT:
            return "model"
        if self.format == "built-in":
            return self.text
        path = self.root or self.paths[0]
        name = path.name
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        return Path(name).stem or "model"


def extensions() -> str:
    """The file names that can be read, for messages and help."""
    return ", ".join(ending for endings in FORMATS.values() for ending in endings)


@contextmanager
def opened(data: str, *, delimiter: str | None = None, data_format: str | None = None) -> Iterator[Source]:
    r"""The source that ``data`` names; standard input is kept in a temporary file as long as the block lasts.

    Parameters
    ----------
    data : str
    delimiter : str, optional
        Between the cells of text, instead of the comma (or the tab of ``.tsv``); ``\t`` is a tab.
    data_format : str, optional
        A key of ``FORMATS``, instead of what the name says.
    """
    if data_format is not None and data_format not in FORMATS:
        raise UserError(f"--format {data_format}: must be one of {', '.join(FORMATS)}")
    mark = None if delimiter is None else delimiter.replace("\\t", "\t")
    if mark is not None and len(mark.encode()) != 1:
        raise UserError(f"--delimiter {delimiter!r}: must be one character, such as ';' or '\\t'")
    if data == "-" or (is_stream(Path(data)) and not Path(data).is_char_device()):
        with _spooled(data) as path:
            kind = data_format or _format(Path(data)) or _sniffed(path)
            yield _source(data, kind, [path], None, mark)
        return
    if data in BUILT_IN and not Path(data).exists():
        yield Source(data, "built-in", [])
        return
    root, paths = _files(data, data_format)
    kinds = {data_format or _format(path) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{shown(data)}: its files are of several formats ({', '.join(sorted(map(str, kinds)))})")
    yield _source(data, str(kinds.pop()), paths, root, mark)


def _source(text: str, kind: str, paths: list[Path], root: Path | None, mark: str | None) -> Source:
    if mark is not None and kind not in ("csv", "tsv"):
        raise UserError(f"--delimiter: {shown(text)} is a {kind} file, which has none")
    text = STANDARD_INPUT if text == "-" else shown(text)
    return Source(text, kind, paths, root, mark or ("\t" if kind == "tsv" else ","))


def _files(data: str, data_format: str | None) -> tuple[Path | None, list[Path]]:
    path = Path(data)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p.relative_to(path)))
        if not found:
            raise UserError(f"{shown(data)}: the directory holds no file that can be read ({extensions()})")
        return path, found
    if path.exists():
        if not path.is_file():
            raise UserError(f"{shown(data)}: is not a file")
        if data_format is None and _format(path) is None:
            raise UserError(
                f"{shown(data)}: what the file holds is not known by its name; it must end in {extensions()} "
                f"(perhaps followed by {', '.join(COMPRESSED)}), or --format says it"
            )
        return None, [path]
    if glob.has_magic(data):
        found = sorted(Path(p) for p in glob.glob(data, recursive=True) if Path(p).is_file())  # noqa: PTH207
        found = [p for p in found if data_format is not None or _format(p) is not None]
        if found:
            return None, found
        raise UserError(f"{shown(data)}: no such files")
    raise UserError(f"{shown(data)}: no such file (built-in data are {', '.join(BUILT_IN)})")


def _is_data(path: Path) -> bool:
    """Whether a file of a directory is one of its tables: hidden ones, and marks such as ``_SUCCESS``, are not."""
    return _format(path) is not None and not any(part.startswith((".", "_")) for part in path.parts)


def _format(path: Path) -> str | None:
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings.pop() if endings and endings[-1] in COMPRESSED else None
    for kind, known in FORMATS.items():
        if endings and endings[-1] in known:
            able = _READERS.get(kind, COMPRESSED if kind in ("csv", "tsv") else ())
            return kind if packed is None or packed in able else None
    return None


@contextmanager
def _spooled(data: str) -> Iterator[Path]:
    """Standard input or a pipe as a file, for it is read more than once."""
    name = STANDARD_INPUT if data == "-" else shown(data)
    with tempfile.TemporaryDirectory(prefix="softgrad-") as folder:
        path = Path(folder, "input")
        try:
            with path.open("wb") as file, _stream(data) as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
        except OSError as error:
            raise UserError(f"cannot keep {name} in {folder}: {error.strerror or error}") from error
        if not path.stat().st_size:
            raise UserError(f"{name}: is empty")
        yield path


@contextmanager
def _stream(data: str) -> Iterator[Any]:
    if data != "-":
        with Path(data).open("rb") as file:
            yield file
        return
    if sys.stdin.isatty():
        print("softgrad: reading from the terminal; end with Ctrl-D", file=sys.stderr)
    yield getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())


def _sniffed(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), "csv")
