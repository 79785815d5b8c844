"""Compile csrc/ and the sources here with sanitizers into a folder: ``python build.py FOLDER COMPILER VARIANT…``.

The folder then holds ``run``, a program without Python (main.cpp), and ``extension.so``, the native module.

It takes a minute or two of one processor.  Of the processes that share the tests (pytest-xdist) one builds and the
others wait for it.
The baseline, which has every line of the kernels, gets both sanitizers; the wider variants, which are the same lines
for longer vectors, the address sanitizer.  Not `null`, `object-size`, `alignment` and `pointer-overflow`: they triple
the time, and the address sanitizer and the guard pages of harness.h see what they would see.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
PROGRAM = [HERE / "main.cpp", HERE / "layer.cpp"]
BINDING = [CSRC / name for name in ("bind.cpp", "bind_pool.cpp", "blas.cpp", "pool.cpp")]
ADDRESS = ["-fsanitize=address"]
BOTH = [
    "-fsanitize=address,shift,signed-integer-overflow,integer-divide-by-zero,bounds,float-cast-overflow,bool,enum",
    "-fno-sanitize-recover=all",
]
COMMON = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-Wno-psabi", f"-I{CSRC}"]
VARIANTS = {
    "baseline": BOTH,
    "avx2": [*ADDRESS, "-mavx2", "-mfma", "-mf16c"],
    "avx512": [*ADDRESS, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")), "-mavx2", "-mfma", "-mf16c"],
}  # CMakeLists.txt


def sources() -> list[Path]:
    """Everything that the program depends on."""
    return [*sorted(CSRC.glob("*")), *sorted(HERE.glob("*.h")), *PROGRAM, Path(__file__)]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for another process that builds here; the system ends the wait when that one ends, however it does."""
    with (folder / "lock").open("w") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path, compiler: str, variants: list[str]) -> int:
    """Compile and link; the products appear under their names when they are complete, the program last."""
    import nanobind

    define = ["-DSOFTGRAD_X86"] if len(variants) > 1 else []
    source_dir = Path(nanobind.source_dir())
    python = [f"-I{folder}" for folder in (sysconfig.get_path("include"), nanobind.include_dir())]
    python += [f"-I{source_dir.parent}/ext/robin_map/include", "-DNDEBUG", "-fno-strict-aliasing"]
    kernels = [(CSRC / f"kernels_{name}.cpp", VARIANTS[name]) for name in variants] + [(CSRC / "dispatch.cpp", BOTH)]
    units = [*kernels, *((source, BOTH) for source in PROGRAM), *((source, [*BOTH, *python]) for source in BINDING)]
    units.append((source_dir / "nb_combined.cpp", python))
    with alone(folder), tempfile.TemporaryDirectory(dir=folder) as scratch:
        if (folder / "run").exists():
            return 0
        objects = {source: f"{scratch}/{source.stem}.o" for source, _ in units}
        for source, flags in units:
            command = [compiler, *COMMON, *define, *flags, "-c", str(source), "-o", objects[source]]
            if code := subprocess.run(command, check=False).returncode:
                return code
        shared = [objects[source] for source, _ in kernels]
        whole = [*BINDING, source_dir / "nb_combined.cpp"]
        for name, parts, how in (("extension.so", whole, ["-shared", "-pthread", "-ldl"]), ("run", PROGRAM, [])):
            command = [compiler, *BOTH, *shared, *(objects[part] for part in parts), *how, "-o", f"{scratch}/{name}"]
            if code := subprocess.run(command, check=False).returncode:
                return code
            Path(scratch, name).rename(folder / name)
        return 0


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
