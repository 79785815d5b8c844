"""What is installed and in use: for bug reports, and for ``softgrad info``."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from softgrad._core import backend
from softgrad._core.threads import default_threads
from softgrad._version import __version__


def info() -> dict[str, Any]:
    """Version, instruction set, threads, BLAS and, if the native kernels are not in use, why.

    Returns
    -------
    dict
        ``version``, ``instruction_set``, ``available`` (best first), ``fallback_reason`` (None with native kernels),
        ``n_threads``, ``blas`` (one entry for each library), ``numpy``, ``python``, ``machine``.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.info()["instruction_set"] in softgrad.info()["available"]
    True
    """
    from threadpoolctl import threadpool_info

    blas = [
        " ".join(str(library[key]) for key in ("internal_api", "version", "architecture") if library.get(key))
        for library in threadpool_info()
        if library.get("user_api") == "blas"
    ]
    return {
        "version": __version__,
        "instruction_set": backend.current(),
        "available": backend.available(),
        "fallback_reason": backend.fallback_reason if backend.current() == "numpy" else None,
        "n_threads": default_threads(),
        "blas": blas,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
