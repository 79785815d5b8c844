"""What is public, what an import costs, and what the extension is made of."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import softgrad
from softgrad import reference
from softgrad._core import backend

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "GradientReport",
    "LinearGradients",
    "PredictionStats",
    "__version__",
    "check_gradient",
    "cross_entropy",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "explain",
    "info",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "logsumexp",
    "prediction_stats",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(softgrad, name))]
MODULES = ("softgrad.loss", "softgrad.linear", "softgrad.reference", "softgrad.torch", "softgrad.torch.parallel")
FRAMEWORKS = (
    "torch",
    "sklearn",
    "scipy",
    "dask",
    "jinja2",
    "markupsafe",
    "matplotlib",
    "pandas",
    "polars",
    "pyarrow",
    "rich",
    "typer",
    "sympy",
    "joblib",
    "numba",
    "jax",
    "onnx",
    "onnxruntime",
    "skl2onnx",
)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after the statement."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before), sep='\\n')"
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SOFTGRAD_", "PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=keep, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


# --- names -----------------------------------------------------------------------------------------------------------


def test_public_list() -> None:
    assert softgrad.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    for name in PUBLIC:
        assert hasattr(softgrad, name)


def test_nothing_else_is_public() -> None:
    """What does not begin with an underscore is in the list or is a documented module."""
    modules = {p.stem for p in Path(softgrad.__file__).parent.iterdir() if p.suffix == ".py" or p.is_dir()}
    for name, value in vars(softgrad).items():
        if not name.startswith("_") and name not in PUBLIC:
            assert inspect.ismodule(value), name
            assert name in modules, name


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("check_gradient", "explain", "info")])
def test_reference_has_a_twin_with_the_same_options(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (softgrad, reference))
    assert name in reference.__all__
    scheduling = {"out", "stats", "n_threads", "max_memory", "with_respect_to"}
    open_ = any(p.kind is p.VAR_KEYWORD for p in theirs.values())
    for option in ours.values():
        if option.name in scheduling:
            continue
        if option.name in theirs:
            twin = theirs[option.name]
            assert twin.kind == option.kind, option.name
            assert twin.default == option.default, option.name
        else:
            assert open_, f"reference.{name} lacks {option.name}"
            assert option.name in inspect.signature(reference._problem).parameters, option.name
            assert inspect.signature(reference._problem).parameters[option.name].default == option.default


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert softgrad.__version__ == version("softgrad")
    assert f'version = "{softgrad.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_info() -> None:
    found = softgrad.info()
    assert found["version"] == softgrad.__version__
    assert found["instruction_set"] == found["available"][0]
    assert found["available"][-1] == "numpy"
    assert found["fallback_reason"] is None or found["instruction_set"] == "numpy"
    with backend.use("numpy"):
        assert softgrad.info()["instruction_set"] == "numpy"


def test_native_kernels_are_in_use_where_they_must_be() -> None:
    if os.environ.get("SOFTGRAD_REQUIRE_NATIVE") == "1":
        assert backend.available()[0] != "numpy", softgrad.info()["fallback_reason"]


# --- imports ---------------------------------------------------------------------------------------------------------


def test_import_loads_no_framework() -> None:
    loaded = loaded_by("import softgrad")
    assert {"softgrad", "numpy"} <= loaded
    assert not loaded & set(FRAMEWORKS)
    assert "threadpoolctl" not in loaded, "looked for at the first product, not at the import"


@pytest.mark.parametrize("name", ["scipy", "sklearn"])
def test_that_test_can_fail(name: str) -> None:
    assert name in loaded_by(f"import softgrad, {name}") & set(FRAMEWORKS)


def test_import_beyond_numpy_is_a_handful_of_modules() -> None:
    """A few milliseconds: counted in modules, which do not depend on the machine's mood."""
    code = "import sys, numpy; n = set(sys.modules); import softgrad; print(len(set(sys.modules) - n))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 60, done.stderr


# --- documentation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_the_sections(name: str) -> None:
    text = inspect.getdoc(getattr(softgrad, name))
    assert text
    sections = re.findall(r"^(\w+)\n-{3,}$", text, re.MULTILINE)
    assert "Examples" in sections
    assert "Returns" in sections
    assert "{options}" not in text
    if name != "info":
        assert (
            sections.index("Parameters")
            < sections.index("Returns")
            < sections.index("Raises")
            < sections.index("Examples")
        )
        for parameter in inspect.signature(getattr(softgrad, name)).parameters:
            assert re.search(rf"^{parameter} : ", text, re.MULTILINE), f"{parameter} is not described"
        described = set(re.findall(r"^(\w+) : ", text.split("Returns\n---")[0], re.MULTILINE))
        assert described == set(inspect.signature(getattr(softgrad, name)).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name: str) -> None:
    function = getattr(softgrad, name)
    examples = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert examples
    assert examples[0].examples
    for example in examples:
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
        assert result.attempted > 0
        assert result.failed == 0


@pytest.mark.parametrize("name", ["PredictionStats", "LinearGradients"])
def test_named_tuples_describe_their_fields(name: str) -> None:
    kind: Any = getattr(softgrad, name)
    text = inspect.getdoc(kind)
    assert text
    for field in kind._fields:
        assert re.search(rf"^{field} : ", text, re.MULTILINE), field


@pytest.mark.parametrize("name", MODULES)
def test_module_lists_agree(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert sorted(module.__all__) == module.__all__
    for public in module.__all__:
        assert hasattr(module, public)


# --- the package -----------------------------------------------------------------------------------------------------


def package_files() -> dict[str, Path]:
    """Installed files of the package by name: the editable sources and what the build put beside them."""
    from importlib.metadata import files

    found = {p.name: p for p in Path(softgrad.__file__).parent.iterdir()}
    for entry in files("softgrad") or []:
        if entry.parts[0] == "softgrad" and len(entry.parts) == 2:
            found.setdefault(entry.name, Path(str(entry.locate())))
    return found


def test_typed_marker_is_installed() -> None:
    assert "py.typed" in package_files()


def extension() -> Path:
    native = sys.modules.get("softgrad._native")
    if native is None or native.__file__ is None:
        pytest.skip("installed without native kernels")
    return Path(native.__file__)


def test_stub_agrees_with_the_extension() -> None:
    path = extension()
    stub = package_files().get("_native.pyi", path.with_name("_native.pyi"))
    tree = ast.parse(stub.read_text())
    native = sys.modules["softgrad._native"]
    declared: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            declared.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared.add(node.target.id)
    assert declared == {n for n in vars(native) if not n.startswith("__")}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
            members = vars(getattr(native, node.name)).items()
            real = {n for n, v in members if callable(v) or isinstance(v, property)}
            assert {n for n in methods if not n.startswith("_")} == {n for n in real if not n.startswith("_")}


def test_extension_needs_no_openmp_and_no_blas() -> None:
    path = extension()
    content = path.read_bytes()
    for symbol in (b"GOMP_", b"__kmpc", b"libgomp", b"libomp", b"libiomp", b"libopenblas", b"libmkl"):
        assert symbol not in content, symbol
    if shutil.which("readelf"):
        dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"NEEDED.*\[(.*?)\]", dynamic)
        assert needed, "read nothing"
        allowed = ("libc.so", "libm.so", "libstdc++.so", "libgcc_s.so", "libpthread.so", "libdl.so", "ld-linux")
        assert all(name.startswith(allowed) for name in needed), needed


def test_extension_is_small_and_stripped() -> None:
    path = extension()
    if path.suffix == ".so" and shutil.which("readelf"):
        sections = subprocess.run(["readelf", "-S", str(path)], capture_output=True, text=True, check=True).stdout
        assert ".text" in sections
        assert ".debug_info" not in sections


# --- the sources -----------------------------------------------------------------------------------------------------

SOURCES = sorted((ROOT / "csrc").glob("*"))


def without_comments(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


BINDINGS = ["bind.cpp", "bind_pool.cpp", "blas.cpp", "gil.h", "pool.cpp", "pool.h"]


def test_the_bindings_and_the_pool_alone_know_python() -> None:
    assert len(SOURCES) >= 5
    knowing = [p.name for p in SOURCES if re.search(r"nanobind|Python\.h|Py_", without_comments(p))]
    assert knowing == BINDINGS


def test_kernels_have_no_threads_no_allocation_and_no_openmp() -> None:
    for path in SOURCES:
        if path.name in (*BINDINGS, "blas.h"):
            continue
        text = without_comments(path)
        for word in (
            "std::thread",
            "pthread",
            "#pragma omp",
            "omp.h",
            "malloc",
            "std::vector",
            "march=native",
            "std::string",
        ):
            assert word not in text, f"{path.name}: {word}"
        assert not re.search(r"\bnew\b", text), path.name


def test_build_asks_for_no_openmp_and_no_native_tuning() -> None:
    text = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert "add_variant" in text
    for word in ("OpenMP", "fopenmp", "march=native", "ffast-math", "FetchContent", "ExternalProject"):
        assert word not in text


def test_native_module_is_hardened() -> None:
    """Stack protection, and relocations that are resolved at load and read-only from then on."""
    native = backend.native()
    if native is None or not sys.platform.startswith("linux"):
        return
    data = Path(native.__file__).read_bytes()
    assert b"__stack_chk_fail" in data
    start, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, start + i * size) for i in range(count)]
    assert any(kind == 0x6474E552 for kind, *_ in headers), "no PT_GNU_RELRO"
    offset, length = next((h[2], h[5]) for h in headers if h[0] == 2)  # PT_DYNAMIC
    flags = dict(struct.iter_unpack("<QQ", data[offset : offset + length]))
    assert flags.get(0x1E, 0) & 8, "no BIND_NOW"
