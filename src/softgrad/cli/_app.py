"""The commands and their options; each imports its work when it is called."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from softgrad.cli.commands._lists import gathered
from softgrad.cli.commands._options import Data, Delimiter, Format, Json, ModelFile, Threads
from softgrad.cli.terminal import _messages

app = typer.Typer(
    name="softgrad",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_command: list[str] = []  # the words of the command line, for the record of a fit

# Typer carries click inside it or beside it, by version: this is its exception for a command line it cannot read.
_UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    _command[:] = arguments
    for stream in (sys.stdout, sys.stderr):  # what is said in any locale holds a … or somebody's name
        if isinstance(stream, io.TextIOWrapper) and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(encoding="utf-8")
    with _whole_writes():
        return _run(arguments)


@contextmanager
def _whole_writes() -> Iterator[None]:
    """Buffer an unbuffered standard output (PYTHONUNBUFFERED): it may write a part of what it is given, and say so."""
    given = sys.stdout
    raw = getattr(given, "buffer", None)
    if not isinstance(raw, io.RawIOBase):
        yield
        return
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", write_through=True)
    try:
        yield
    finally:
        wrapped, sys.stdout = sys.stdout, given
        with suppress(OSError):  # which has been told
            wrapped.detach().detach()


def _run(arguments: list[str]) -> int:
    try:
        code = app(args=gathered(arguments) or ["--help"], prog_name="softgrad", standalone_mode=False)
        sys.stdout.flush()
    except _messages.UserError as error:
        _messages.error(error)
        return 2
    except _UsageProblem as error:
        _messages.error(f"{error.format_message()} (try softgrad --help)")
        return 2
    except BrokenPipeError:
        return _silence()
    except OSError as error:  # all other files are opened by functions that say which file it was
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
            raise
        _messages.error(f"cannot write to standard output: {error.strerror}")
        return _silence()
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    if code == 130:  # also what Typer makes of Ctrl-C
        print("softgrad: interrupted; no file is left half-written", file=sys.stderr)
    return int(code or 0)


def _silence() -> int:
    """The reader of our output has gone: say nothing more, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _version(wanted: bool) -> None:
    if wanted:
        from softgrad._version import __version__

        print(f"softgrad {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Softmax classifiers on fast CPU kernels: train one, use it."""


@app.command()
def fit(
    data: Data,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="The column that holds the labels; of an .npy file, the file with them."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model file; else DATA's name with .skops, here.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an .html page about the fit.")] = None,
    json: Json = False,
    target_proba: Annotated[
        list[str] | None, typer.Option(help="Columns of probabilities, one for each class, instead of --target.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="The column of the rows' weights; 0 leaves a row out.")] = None,
    features: Annotated[list[str] | None, typer.Option(help="Learn from these columns only.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Leave these columns out.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Read these columns as text: words, TF-IDF.")] = None,
    categorical: Annotated[list[str] | None, typer.Option(help="Read these columns as categories.")] = None,
    test: Annotated[str | None, typer.Option(help="Rows to measure with, instead of holding some of DATA out.")] = None,
    split: Annotated[
        float | None,
        typer.Option("--split", "--test-size", help="Part of the rows held out; 0 trains on all.  [default: 0.2]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, the folds and the bootstrap.")] = 0,
    C: Annotated[
        str,
        typer.Option(
            "--C",
            help="Weight of the data against the penalty: a number (inf: no penalty), several (0.1,1,10), a range "
            "(1e-3:1e3 or 1e-3:1e3:13), or auto; of several, the best in a cross-validation is taken.",
        ),
    ] = "1.0",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Divide the logits by a temperature fitted on held-out folds.")
    ] = False,
    label_smoothing: Annotated[float, typer.Option(help="Part of each target spread over all classes.")] = 0.0,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced, or weights such as spam=2,ham=1; 1 for classes not named.")
    ] = None,
    tol: Annotated[
        float, typer.Option(help="Stop at this certified relative gap between the objective and its optimum.")
    ] = 1e-6,
    max_iter: Annotated[int, typer.Option(help="Most iterations.")] = 1000,
    standardize: Annotated[bool, typer.Option(help="Give every number mean 0 and variance 1 first.")] = True,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory to work in, such as 1GB; rows that need more go to a temporary directory.  "
            "[default: half of the machine's]",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A Dask scheduler, tcp://…, whose workers read the files of DATA; local: one on this machine."
        ),
    ] = None,
    delimiter: Delimiter = None,
    data_format: Format = None,
) -> int:
    """Train a softmax classifier on a table, measure it on held-out rows and save it.

    \b
    softgrad fit digits
    softgrad fit train.csv --target species --C auto --calibrate --report report.html
    softgrad fit 'part-*.parquet' -t label --drop id name --test test.parquet --memory 2GB
    """
    from softgrad.cli.commands import _fit
    from softgrad.cli.features._load import Choice

    options = _fit.FitOptions(
        split=split,
        seed=seed,
        C=C,
        tol=tol,
        max_iter=max_iter,
        label_smoothing=label_smoothing,
        class_weight=class_weight,
        calibrate=calibrate,
        standardize=standardize,
        memory=memory,
        threads=threads,
        delimiter=delimiter,
        format=data_format,
        cluster=cluster,
    )
    choice = Choice(
        target=target,
        target_proba=tuple(target_proba or ()),
        weight=weight,
        features=tuple(features or ()),
        drop=tuple(drop or ()),
        text=tuple(text or ()),
        categorical=tuple(categorical or ()),
    )
    return _fit.fit(data, choice, options, test=test, output=output, report=report, json=json, command=list(_command))


@app.command()
def predict(
    model: ModelFile,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write: .csv, .parquet, or - for CSV here.")],
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Columns of DATA to keep beside the predictions.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the so many most probable classes of each row.")] = None,
    probabilities: Annotated[bool, typer.Option(help="Write probabilities beside the labels.")] = True,
    delimiter: Delimiter = None,
    data_format: Format = None,
) -> None:
    """Write the predicted label of each row and the probability of each class, in the order of the rows.

    \b
    softgrad predict iris.skops new.csv -o predicted.csv
    softgrad predict model.skops new.parquet -o top.parquet --id customer --top-k 3
    """
    from softgrad.cli.commands import _predict

    _predict.predict(
        model, data, output, ids=ids or [], top_k=top_k, probabilities=probabilities, delimiter=delimiter,
        data_format=data_format,
    )  # fmt: skip


@app.command()
def evaluate(
    model: ModelFile,
    data: Data,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="The column of the labels, if not that of the training; of an .npy file, the file with them.",
        ),
    ] = None,
    weight: Annotated[str | None, typer.Option(help="The column of the rows' weights.")] = None,
    json: Json = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    delimiter: Delimiter = None,
    data_format: Format = None,
) -> None:
    """Measure a model on labelled rows.

    \b
    softgrad evaluate iris.skops new.csv
    """
    from softgrad.cli.commands import _evaluate

    _evaluate.evaluate(
        model, data, target=target, weight=weight, json=json, seed=seed, delimiter=delimiter, data_format=data_format
    )


@app.command()
def inspect(
    model: ModelFile,
    top: Annotated[int, typer.Option(min=0, help="Features that are shown for each class.")] = 5,
    json: Json = False,
) -> None:
    """Print what a model reads, how it was made, how good it is and what it goes by.

    \b
    softgrad inspect iris.skops
    """
    from softgrad.cli.commands import _inspect

    _inspect.inspect(model, top=top, json=json)


@app.command()
def export(
    model: ModelFile,
    onnx: Annotated[Path, typer.Option("--onnx", help="The .onnx file to write.")],
    data: Annotated[
        str | None, typer.Option(help="Rows to try the file on, besides the odd ones that are made up.")
    ] = None,
    json: Json = False,
    delimiter: Delimiter = None,
    data_format: Format = None,
) -> None:
    """Write a model, from the columns of a table to the probabilities, as an ONNX file that was tried in onnxruntime.

    \b
    softgrad export iris.skops --onnx iris.onnx --data iris.csv
    """
    from softgrad.cli.commands import _export

    _export.export(model, onnx, data=data, json=json, delimiter=delimiter, data_format=data_format)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="digits, iris, wine or breast_cancer.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write, .csv or .parquet.")],
) -> None:
    """Write a built-in data set as a table, to try the other commands on.

    \b
    softgrad data iris -o iris.csv
    """
    from softgrad.cli.commands import _data
    from softgrad.cli.tables import _arrays

    rows = _data.export(name, output)
    print(f"{rows} rows of {name} written to {_messages.shown(output)}; the label column is {_arrays.TARGET!r}")


@app.command()
def explain(
    logits: Annotated[
        list[str] | None, typer.Option("--logits", help="One row of 2 to 10 numbers, such as --logits 2.0 1.0 0.1.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="The class, from 0, or one part for each class.")
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="Part of the target spread over all classes.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="The logits are divided by it.")] = 1.0,
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    html: Annotated[Path | None, typer.Option(help="Write the derivation as one page to play with.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open that page in the browser.")] = False,
    json: Json = False,
) -> int:
    """Derive the gradient S − y with your numbers, each step executed and checked.

    \b
    softgrad explain --logits 2.0 1.0 0.1 --target 0
    """
    from softgrad.cli.commands import _explain

    options = {"label_smoothing": label_smoothing, "temperature": temperature, "lang": lang}
    return _explain.show(logits or ["2.0", "1.0", "0.1"], target or ["0"], options, html, open_page, json)


def _torch_facts() -> dict[str, Any]:
    """PyTorch's version and who multiplies for its linear head here, where PyTorch is installed."""
    from importlib.metadata import version
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return {}
    from softgrad.torch import products

    return {"torch": version("torch"), "torch products": [f"{k}: {v}" for k, v in products(measure=True).items()]}


@app.command()
def info(json: Json = False) -> None:
    """Print version, instruction set, threads, BLAS, and any fallback with its reason."""
    from softgrad import _info

    facts = _info.info() | _torch_facts()
    if json:
        from softgrad.cli.terminal._show import print_json

        print_json(facts)
        return
    if not facts["fallback_reason"]:
        facts["fallback_reason"] = "none: the native kernels are in use"
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        label = "fallback" if name == "fallback_reason" else name.replace("_", " ")
        print(f"{label:16} {_messages.one_line(text)}")
