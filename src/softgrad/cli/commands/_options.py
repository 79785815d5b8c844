"""Options that several commands share, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Data", "Delimiter", "Format", "Json", "ModelFile", "Threads"]

Data = Annotated[
    str,
    typer.Argument(
        help="A file (.csv, .tsv, .parquet, .feather, .npz, .npy, .svmlight; text may be .gz), a directory or a quoted "
        "glob of such files, - for standard input, or digits, iris, wine or breast_cancer."
    ),
]
Delimiter = Annotated[
    str | None, typer.Option(help="Between the cells of text, instead of a comma: ';' or '\\t'.", show_default=False)
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="What DATA holds, where its name does not say it: csv, tsv, parquet, feather, npz, npy, svmlight.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ModelFile = Annotated[Path, typer.Argument(help="A model file that softgrad fit wrote.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the kernels; else all cores.")]
