"""A pass over the blocks: one task a block, and a tree that adds up what they return, in the order of the blocks.

The tree's shape depends on the number of blocks alone, so the bits of a sum do not depend on who computed what.  A task
gets its block and its arguments, and nothing else: one that was lost with its worker is run again by Dask, with the
same result.  Large arguments are a task of their own, which leaves the client once and goes from worker to worker, and
large results meet on the way; small ones travel with the tasks, which saves the time of two messages.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from dask import config
from dask.base import compute, persist
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from softgrad._core.blas import single_threaded_blas

FAN_IN = 8  # of the tree
FEW_BYTES = 16 << 10  # of arguments that go with each task
SMALL_RESULTS = 1 << 20  # bytes, of all blocks together, that are added up here
LARGE_GRAPH = "distributed.admin.large-graph-warning-threshold"

__all__ = ["Literal", "add", "collect", "each", "keep", "let_go", "literal", "reduce"]


class Literal:
    """A value that Dask hands over without looking into it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def literal(value: Any, name: str) -> Any:
    """A value that lives among the workers, kept for several passes; a worker that lost it is sent it again."""
    if _bytes(value) <= FEW_BYTES:
        return Literal(value)
    key = _key(name)
    with _large():
        return persist(Delayed(key, HighLevelGraph.from_collections(key, {key: (_itself, Literal(value))})))[0]


def each(name: str, work: Callable[..., Any], blocks: Sequence[Any], *arguments: Any, shared: Any = None) -> list[Any]:
    """``work(block, i-th of each of the arguments, shared)`` for every block, not yet computed.

    Blocks and arguments may be Dask's or not; ``shared`` goes to all.
    """
    key = _key(name)
    common = f"{key}-shared"
    layer: dict[Any, Any] = {common: (_itself, Literal(shared))}
    needed, others = list(blocks), []
    for number, block in enumerate(blocks):
        row = [values[number] for values in arguments]
        needed += [value for value in row if isinstance(value, Delayed)]
        handed = [
            value.key if isinstance(value, Delayed) else value if isinstance(value, Literal) else Literal(value)
            for value in row
        ]
        layer[key, number] = (_call, Literal(work), block.key, handed, common)
        others.append((key, number))
    graph = HighLevelGraph.from_collections(key, layer, dependencies=needed)
    return [Delayed(task, graph, layer=key) for task in others]


def keep(values: Sequence[Any]) -> list[Any]:
    """Compute, and leave the results where they were computed."""
    with _large():
        return list(persist(*values))


def let_go(values: Sequence[Any]) -> None:
    """Let the workers forget what was kept: now, not when a garbage collector comes by."""
    for value in values:
        held: Any = dict(value.dask).get(value.key) if isinstance(value, Delayed) else None
        if hasattr(held, "release"):
            held.release()


def collect(values: Sequence[Any]) -> list[Any]:
    """Compute, and bring the results here."""
    with _large():
        return list(compute(*values))


def reduce(
    name: str,
    method: str,
    blocks: Sequence[Any],
    *arguments: Any,
    kept: Sequence[Any] = (),
    merge: Callable[[Sequence[Any]], Any] | None = None,
    size: int = 8,
) -> Any:
    """``block.method(*kept, *arguments)`` of all blocks, merged, by default added up.

    ``kept`` are `literal`; ``size``: bytes of what a block returns.
    """
    key, merge = _key(name), merge or add
    shared: Any = Literal(arguments)
    layer: dict[Any, Any] = {}
    if _bytes(arguments) > FEW_BYTES:
        layer[f"{key}-arguments"], shared = (_itself, shared), f"{key}-arguments"
    handed = [value.key if isinstance(value, Delayed) else value for value in kept]
    level: list[Any] = [(key, number) for number in range(len(blocks))]
    for task, block in zip(level, blocks, strict=True):
        layer[task] = (_run, Literal(method), block.key, handed, shared)
    here = size * len(blocks) <= SMALL_RESULTS
    depth = 0
    while len(level) > 1 and not here:
        depth += 1
        tree = f"softgrad-{name}-sum-{key.rpartition('-')[2]}"
        above = []
        for number in range(0, len(level), FAN_IN):
            node = (tree, depth, number // FAN_IN)
            layer[node] = (_merge, Literal(merge), level[number : number + FAN_IN])
            above.append(node)
        level = above
    needed = [*blocks, *(value for value in kept if isinstance(value, Delayed))]
    graph = HighLevelGraph.from_collections(key, layer, dependencies=needed)
    found = collect([Delayed(task, graph, layer=key) for task in level])
    while len(found) > 1:
        found = [merge(found[number : number + FAN_IN]) for number in range(0, len(found), FAN_IN)]
    return _own(found[0])


def _own(value: Any) -> Any:
    """A result as it would be if it were made here: writable, and where NumPy puts its arrays."""
    if isinstance(value, tuple):
        return tuple(_own(part) for part in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def add(values: Sequence[Any]) -> Any:
    """Σ of numbers, arrays or tuples of these, in their order."""
    first = values[0]
    if isinstance(first, tuple):
        return tuple(add([value[i] for value in values]) for i in range(len(first)))
    if not isinstance(first, np.ndarray):
        return sum(values[1:], start=first)
    total = first.copy()  # what another task returned is not ours to change
    for value in values[1:]:
        total += value
    return total


def _large() -> Any:
    """Large weights are no mistake; where distributed is not in use, its configuration is not there to be changed."""
    return config.set({LARGE_GRAPH: "1 GB"}) if "distributed" in sys.modules else nullcontext()


def _bytes(value: Any) -> int:
    """Of the arrays of an argument."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    parts = value if isinstance(value, tuple) else vars(value).values() if hasattr(value, "__dict__") else ()
    return sum(_bytes(part) for part in parts)


def _key(name: str) -> str:
    return f"softgrad-{name}-{uuid.uuid4().hex}"


def _itself(literal: Literal) -> Any:
    return literal.value


def _call(work: Literal, block: Any, arguments: list[Any], shared: Any) -> Any:
    return work.value(block, *(_value(one) for one in arguments), shared)


def _value(handed: Any) -> Any:
    return handed.value if isinstance(handed, Literal) else handed


def _run(method: Literal, block: Any, kept: list[Any], arguments: Any) -> Any:
    with single_threaded_blas():
        return getattr(block, method.value)(*(_value(one) for one in kept), *_value(arguments))


def _merge(merge: Literal, values: list[Any]) -> Any:
    return merge.value(values)
