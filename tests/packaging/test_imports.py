"""The order of the rooms, frameworks in their rooms, no import circle, unique names; and the drawing of the imports."""

from __future__ import annotations

import ast
from collections import defaultdict

import pytest
from rooms import DRAWING, INNER_ROOMS, ROOMS, ROOT, arrows, circles, drawing, inside, outside, room_of, sources

MODULES = sources(ROOT / "src" / "softgrad")
EDGES = inside(MODULES)

# Known exceptions, each to be removed together with its cause: rooms with circles inside them, classes of one name.
KNOWN_CIRCLES: set[str] = set()
KNOWN_DUPLICATES: set[str] = {"Options"}
# One estimator, in memory and on a cluster.
PUBLIC_TWINS = {"SoftmaxRegression"}


def above(edges: dict[str, set[str]]) -> list[str]:
    """Imports of a module in a room further up."""
    order = list(ROOMS)
    return [
        f"{a} imports {b}"
        for a, found in sorted(edges.items())
        for b in sorted(found)
        if order.index(room_of(b)) > order.index(room_of(a))
    ]


def above_inside(edges: dict[str, set[str]]) -> list[str]:
    """Imports of a module in a package further up within its room."""
    found = []
    for room, order in INNER_ROOMS.items():
        level = {f"{room}.{name}": i for i, name in enumerate(order)}
        place = {m: level.get(".".join(m.split(".")[:3]), len(order)) for m in edges if m.startswith(f"{room}.")}
        found += [f"{a} imports {b}" for a in place for b in sorted(edges[a]) if place.get(b, 0) > place[a]]
    return sorted(found)


def strangers(modules: dict[str, str]) -> list[str]:
    """Imports of a package outside the room of its name."""
    allowed = {module: ROOMS[room_of(module)][1] for module in modules}
    return [f"{m} imports {p}" for m, text in modules.items() for p in sorted(outside(text) - allowed[m])]


def duplicates(modules: dict[str, str]) -> dict[str, list[str]]:
    """Classes of the same name, with their modules."""
    places = defaultdict(list)
    for module, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    return {name: found for name, found in places.items() if len(found) > 1}


def namesakes(modules: dict[str, str]) -> list[str]:
    """Modules with the name of a function or class that they or their package have: one hides the other."""
    found = []
    for module, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            names: set[str] = set()
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == module.rpartition(".")[2]:
                names = {module}
            elif isinstance(node, ast.ImportFrom):
                names = {
                    f"{module}.{a.asname or a.name}" for a in node.names if f"{node.module}.{a.name}" not in modules
                }
            found += sorted(names & modules.keys())
    return found


def test_no_room_imports_from_a_room_above() -> None:
    assert above(EDGES) == []
    assert above_inside(EDGES) == []


def test_frameworks_are_imported_in_their_rooms_only() -> None:
    assert strangers(MODULES) == []


def test_the_imports_have_no_circle() -> None:
    found = circles(EDGES)
    assert [circle for circle in found if {*map(room_of, circle)} - KNOWN_CIRCLES] == []
    assert {room_of(module) for circle in found for module in circle} == KNOWN_CIRCLES


def test_nothing_imports_the_package_itself() -> None:
    assert [module for module, found in EDGES.items() if "softgrad" in found] == []


def test_classes_have_names_of_their_own() -> None:
    assert duplicates(MODULES).keys() == KNOWN_DUPLICATES | PUBLIC_TWINS


def test_no_module_has_the_name_of_what_it_exports() -> None:
    assert namesakes(MODULES) == []


def test_the_drawing_is_of_these_imports() -> None:
    """`python tests/packaging/rooms.py` draws it anew."""
    assert DRAWING.read_text(encoding="utf-8") == drawing(arrows(EDGES))
    assert f"({DRAWING.name})" in (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


# --- the tests above can fail ----------------------------------------------------------------------------------------

WRONG = {
    "softgrad": "from softgrad.loss import f",
    "softgrad.loss": "def g():\n    from softgrad.cli._x import C",
    "softgrad.cli": "from softgrad.cli._x import run",
    "softgrad.cli.run": "import torch, numpy, os",
    "softgrad.cli._x": "if TYPE_CHECKING:\n    from softgrad.cli import _y\nclass C: ...",
    "softgrad.cli._y": "from importlib import import_module\nimport_module('softgrad.cli._x')\nclass C: ...",
    "softgrad.cli.tables._z": "from softgrad.cli.report._page import write",
    "softgrad.cli.report._page": "from softgrad.cli.tables import _z",
    "softgrad.torch": "import sklearn.linear_model, torch.nn",
    "softgrad.torch.fit": "def fit(): ...",
    "softgrad.dask": "from softgrad import torch, __version__",
}


def test_mistakes_are_found() -> None:
    edges = inside(WRONG)
    assert above(edges) == ["softgrad.dask imports softgrad", "softgrad.loss imports softgrad.cli._x"]
    assert above_inside(edges) == ["softgrad.cli.tables._z imports softgrad.cli.report._page"]
    assert strangers(WRONG) == ["softgrad.cli.run imports torch", "softgrad.torch imports sklearn"]
    between = ["softgrad.cli.report._page", "softgrad.cli.tables._z"]
    assert circles(edges) == [["softgrad.cli._x", "softgrad.cli._y"], between]
    assert [module for module, found in edges.items() if "softgrad" in found] == ["softgrad.dask"]
    assert duplicates(WRONG) == {"C": ["softgrad.cli._x", "softgrad.cli._y"]}
    assert namesakes(WRONG) == ["softgrad.cli.run", "softgrad.torch.fit"]
    assert drawing(arrows(edges)) != drawing(arrows(EDGES))


def test_a_longer_circle_is_found_once() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}
    assert circles(edges) == [["a", "b", "c"], ["e"]]


def test_a_module_needs_a_room() -> None:
    with pytest.raises(AssertionError, match=r"softgrad\.cellar is in no room"):
        room_of("softgrad.cellar")
