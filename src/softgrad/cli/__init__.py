"""The command line: ``softgrad fit``, ``evaluate``, ``predict``, ``inspect`` and the others.

Everything heavy is imported by the command that needs it, so that ``softgrad --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = {
    "jinja2", "joblib", "markupsafe", "matplotlib", "pandas", "pyarrow", "rich", "scipy", "sklearn", "skops", "typer",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 the user's mistake, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``softgrad``; those of the process if not given.

    Returns
    -------
    int
    """
    try:
        from softgrad.cli._app import run

        return run(sys.argv[1:] if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = "dask" if missing in ("dask", "distributed") else "cli"
        if missing not in _EXTRA and extra == "cli":
            raise
        print(
            f"softgrad: error: the command line needs {missing}, which is not installed: "
            f"pip install 'softgrad[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("softgrad: interrupted", file=sys.stderr)
        return 130
