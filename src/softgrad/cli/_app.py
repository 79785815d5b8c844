"""The commands and their options; each imports its work when it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from softgrad.cli import _messages

app = typer.Typer(
    name="softgrad",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer carries click inside it or beside it, by version: this is its exception for a command line it cannot read.
_UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        if arguments[:1] == ["explain"]:
            from softgrad.cli._explain import gathered

            arguments = gathered(arguments)
        code = app(args=arguments or ["--help"], prog_name="softgrad", standalone_mode=False)
        sys.stdout.flush()
    except _messages.UserError as error:
        _messages.error(error)
        return 2
    except _UsageProblem as error:
        _messages.error(f"{error.format_message()} (try softgrad --help)")
        return 2
    except BrokenPipeError:
        return _silence()
    except typer.Abort:
        code = 130
    if code == 130:  # what Typer makes of Ctrl-C
        print("softgrad: interrupted; no file is left half-written", file=sys.stderr)
    return int(code or 0)


def _silence() -> int:
    """The reader of our output has gone: say nothing more, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _version(wanted: bool) -> None:
    if wanted:
        from softgrad import __version__

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
    data: Annotated[str, typer.Argument(help="A .csv or .parquet file, or digits, iris, wine or breast_cancer.")],
    target: Annotated[str | None, typer.Option("--target", "-t", help="The column that holds the labels.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model file; else DATA's name with .skops, here.")
    ] = None,
    test_size: Annotated[float, typer.Option(help="Part of the rows held out; 0 trains on all.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    C: Annotated[float, typer.Option("--C", help="Weight of the data against the penalty; inf: none.")] = 1.0,
    tol: Annotated[
        float, typer.Option(help="Stop at this certified relative gap between the objective and its optimum.")
    ] = 1e-6,
    max_iter: Annotated[int, typer.Option(help="Most iterations.")] = 1000,
    label_smoothing: Annotated[float, typer.Option(help="Part of each target spread over all classes.")] = 0.0,
    standardize: Annotated[bool, typer.Option(help="Give every feature mean 0 and variance 1 first.")] = True,
    threads: Annotated[int | None, typer.Option(help="Threads of the kernels; else all cores.")] = None,
) -> None:
    """Train a softmax classifier, measure it on held-out rows and save it.

    Try: softgrad fit digits
    """
    from softgrad.cli import _fit

    options = _fit.FitOptions(
        test_size=test_size,
        seed=seed,
        C=C,
        tol=tol,
        max_iter=max_iter,
        label_smoothing=label_smoothing,
        standardize=standardize,
        threads=threads,
    )
    _fit.fit(data, target, options, output)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model file that softgrad fit wrote.")],
    data: Annotated[Path, typer.Argument(help="A .csv or .parquet file with the model's feature columns.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write, .csv or .parquet.")],
) -> None:
    """Write the predicted label of each row and the probability of each class."""
    from softgrad.cli import _predict

    _predict.predict(model, data, output)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="digits, iris, wine or breast_cancer.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write, .csv or .parquet.")],
) -> None:
    """Write a built-in data set as a table, to try the other commands on."""
    from softgrad.cli import _data

    rows = _data.export(name, output)
    print(f"{rows} rows of {name} written to {_messages.shown(output)}; the label column is {_data.TARGET!r}")


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
) -> int:
    """Derive the gradient S − y with your numbers, each step executed and checked.

    Try: softgrad explain --logits 2.0 1.0 0.1 --target 0
    """
    from softgrad.cli import _explain

    options = {"label_smoothing": label_smoothing, "temperature": temperature, "lang": lang}
    return _explain.show(logits or ["2.0", "1.0", "0.1"], target or ["0"], options, html, open_page)


def _torch_facts() -> dict[str, Any]:
    """PyTorch's version and who multiplies for its linear head here, where PyTorch is installed."""
    from importlib.metadata import version
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return {}
    from softgrad.torch import products

    return {"torch": version("torch"), "torch products": [f"{k}: {v}" for k, v in products(measure=True).items()]}


@app.command()
def info() -> None:
    """Print version, instruction set, threads, BLAS, and any fallback with its reason."""
    import softgrad

    facts = softgrad.info() | _torch_facts()
    if not facts["fallback_reason"]:
        facts["fallback_reason"] = "none: the native kernels are in use"
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        label = "fallback" if name == "fallback_reason" else name.replace("_", " ")
        print(f"{label:16} {_messages.one_line(text)}")
