"""A pass over the blocks: one task a block, and a tree that adds up what they return, in the order of the blocks.

The tree's shape depends on the number of blocks alone, so the bits of a sum do not depend on who computed what.  A task
gets its block and its arguments, and nothing else: one that was lost with its worker is run again by Dask, with the
same result.  Arguments are a task of their own, so that they leave the client once and go from worker to worker.
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

from softgrad._threads import single_threaded_blas

FAN_IN = 8  # of the tree
LARGE_GRAPH = "distributed.admin.large-graph-warning-threshold"

__all__ = ["Literal", "add", "collect", "each", "keep", "literal", "reduce"]


class Literal:
    """A value that Dask hands over without looking into it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def literal(value: Any, name: str) -> Any:
    """A value that lives among the workers, kept for several passes; a worker that lost it is sent it again."""
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
        handed = [value.key if isinstance(value, Delayed) else Literal(value) for value in row]
        layer[key, number] = (_call, Literal(work), block.key, handed, common)
        others.append((key, number))
    graph = HighLevelGraph.from_collections(key, layer, dependencies=needed)
    return [Delayed(task, graph, layer=key) for task in others]


def keep(values: Sequence[Any]) -> list[Any]:
    """Compute, and leave the results where they were computed."""
    with _large():
        return list(persist(*values))


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
) -> Any:
    """``block.method(*kept, *arguments)`` of all blocks, merged, by default added up; ``kept`` are `literal`."""
    key = _key(name)
    common = f"{key}-arguments"
    layer: dict[Any, Any] = {common: (_itself, Literal(arguments))}
    level: list[Any] = []
    for number, block in enumerate(blocks):
        layer[key, number] = (_run, Literal(method), block.key, [value.key for value in kept], common)
        level.append((key, number))
    depth = 0
    while len(level) > 1:
        depth += 1
        tree = f"softgrad-{name}-sum-{key.rpartition('-')[2]}"
        above = []
        for number in range(0, len(level), FAN_IN):
            node = (tree, depth, number // FAN_IN)
            layer[node] = (_merge, Literal(merge or add), level[number : number + FAN_IN])
            above.append(node)
        level = above
    graph = HighLevelGraph.from_collections(key, layer, dependencies=[*blocks, *kept])
    return collect([Delayed(level[0], graph, layer=key)])[0]


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


def _key(name: str) -> str:
    return f"softgrad-{name}-{uuid.uuid4().hex}"


def _itself(literal: Literal) -> Any:
    return literal.value


def _call(work: Literal, block: Any, arguments: list[Any], shared: Any) -> Any:
    return work.value(block, *(value.value if isinstance(value, Literal) else value for value in arguments), shared)


def _run(method: Literal, block: Any, kept: list[Any], arguments: tuple[Any, ...]) -> Any:
    with single_threaded_blas():
        return getattr(block, method.value)(*kept, *arguments)


def _merge(merge: Literal, values: list[Any]) -> Any:
    return merge.value(values)
