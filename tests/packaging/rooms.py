"""The rooms of the package, their order, and the imports between its modules; run it to draw them in docs/imports.svg.

An import counts wherever it stands: at the top of a module, in a function, for annotations only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRAWING = ROOT / "docs" / "imports.svg"

# From the bottom: the top-level names of a room's modules, and the packages that it may import beside NumPy.
# A room imports from the rooms before it only; "softgrad" is the package's own __init__, which nothing imports.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "version": ({"_version"}, set()),
    "reference": ({"reference"}, set()),
    "core": ({"_core"}, {"ml_dtypes", "threadpoolctl"}),
    "loss, linear": ({"loss", "linear"}, set()),
    "info": ({"_info"}, {"threadpoolctl"}),
    "regression": ({"regression"}, {"pyarrow", "scipy"}),
    "torch": ({"torch"}, {"threadpoolctl", "torch", "transformers"}),
    "checker": ({"_checker"}, set()),
    "derivation": ({"derivation"}, {"sympy"}),
    "sklearn": ({"sklearn"}, {"matplotlib", "scipy", "sklearn"}),
    "dask": ({"dask"}, {"dask", "distributed", "sklearn"}),
    "cli": (
        {"cli"},
        {
            "jinja2", "markupsafe", "matplotlib", "onnx", "onnxruntime", "pandas", "psutil", "pyarrow", "rich", "scipy",
            "skl2onnx", "sklearn", "skops", "typer",
        },
    ),
    "softgrad": ({""}, set()),
}  # fmt: skip
# Packages within a room, from the bottom; modules beside them may import them all.
INNER_ROOMS: dict[str, tuple[str, ...]] = {
    "softgrad.regression": ("rows", "certificates", "preconditioners", "solvers"),
    "softgrad.cli": ("terminal", "tables", "features", "model", "report", "onnx", "commands"),
}


def sources(package: Path) -> dict[str, str]:
    """The text of every module of a package, by the module's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def room_of(module: str) -> str:
    """The room of a module of softgrad."""
    first = (*module.split("."), "")[1]
    found = next((room for room, (names, _) in ROOMS.items() if first in names), None)
    assert found, f"{module} is in no room: add it to ROOMS in {__file__}, at its place in the order"
    return found


def imported(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What a module imports: the module that a statement names, and the names that it takes from it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports within the package are absolute"
            yield str(node.module), tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((str(name.value), ()) for name in node.args[:1] if isinstance(name, ast.Constant))


def inside(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    top = min(modules, key=len)
    edges: dict[str, set[str]] = {}
    for module, text in modules.items():
        edges[module] = set()
        for base, names in imported(text):
            if base.split(".")[0] == top:
                taken = [f"{base}.{name}" if f"{base}.{name}" in modules else base for name in names] or [base]
                edges[module].update(name for name in taken if name in modules)
    return edges


def outside(text: str) -> set[str]:
    """The packages that a module imports, other than softgrad, NumPy and the standard library."""
    tops = {base.split(".")[0] for base, _ in imported(text)}
    return tops - set(sys.stdlib_module_names) - {"softgrad", "numpy"}


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches every other one: none, if the imports have no circle."""
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        ahead = list(edges[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead.extend(edges.get(module, ()))
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in edges if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def arrows(edges: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    pairs = {(room_of(a), room_of(b)) for a, found in edges.items() for b in found}
    return {(a, b) for a, b in pairs if a != b}


def drawing(pairs: set[tuple[str, str]]) -> str:
    """The rooms, one above another, and an arrow for each pair, as SVG: every arrow points down."""
    order = list(reversed(ROOMS))
    row, left, wide, high = 44, 20, 150, 28
    tip = 'id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    size = f'viewBox="0 0 480 {row * len(order) + 16}" font-family="sans-serif" font-size="14"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape('; '.join(f'{a} imports {b}' for a, b in sorted(pairs)))}</title>",
        f'<marker {tip}><path d="M0 0 8 4 0 8z" fill="#444"/></marker>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    # Arrows leave a room below its middle, the longest first, and arrive above it.
    for a, b in sorted(pairs, key=lambda pair: (order.index(pair[0]), -order.index(pair[1]))):
        leaving = sorted((order.index(y) for x, y in pairs if x == a), reverse=True)
        arriving = sorted((order.index(x) for x, y in pairs if y == b), reverse=True)
        start = row * order.index(a) + 8 + high / 2 + 12 * (leaving.index(order.index(b)) + 0.5) / len(leaving)
        end = row * order.index(b) + 8 + high / 2 - 12 * (arriving.index(order.index(a)) + 0.5) / len(arriving)
        x = left + wide
        bulge = x + 30 * (order.index(b) - order.index(a)) ** 0.9
        lines.append(
            f'<path d="M{x} {start:.1f}C{bulge:.1f} {start:.1f} {bulge:.1f} {end:.1f} {x + 2} {end:.1f}" fill="none"'
            f' stroke="hsl({137 * order.index(a) % 360} 80% 40%)" marker-end="url(#tip)"/>'
        )
    for i, room in enumerate(order):
        y = row * i + 8
        lines.append(
            f'<rect x="{left}" y="{y}" width="{wide}" height="{high}" rx="5" fill="#fef3c7" stroke="#92400e"/>'
        )
        lines.append(f'<text x="{left + wide / 2:g}" y="{y + 19}" text-anchor="middle">{escape(room)}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    DRAWING.write_text(drawing(arrows(inside(sources(ROOT / "src" / "softgrad")))), encoding="utf-8")
