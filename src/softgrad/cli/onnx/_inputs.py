"""The inputs of an ONNX file: which columns each holds, and whether float32 is enough for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from softgrad.cli.onnx import _check as check

_FLOAT32_LOSS = 4e-6  # of the logits, by reading inputs in float32


@dataclass(frozen=True)
class Input:
    """An input of the graph and the columns of the table that it holds."""

    name: str
    dtype: str  # as _onnx_operators.tensor takes it
    columns: tuple[Any, ...]


def ordered(sample: Any, columns: Iterable[str]) -> Any:
    """The columns that are read, with those of one list side by side."""
    first: dict[str, int] = {}
    for number, name in enumerate(columns):
        first.setdefault(_list_name(name) or name, number)
    return sample[sorted(columns, key=lambda name: first[_list_name(name) or name])]


def _list_name(column: str) -> str | None:
    found = re.fullmatch(r"(.+)\[\d+\]", column)
    return found[1] if found else None


def choose(pipeline: Pipeline, tables: list[Any], columns: Mapping[str, check.ModelColumn]) -> list[Input]:
    """The inputs, in the order of the columns: text, float, and double where float32 would move a logit."""
    if not columns:
        groups: dict[str, tuple[Any, ...]] = {"x": tuple(range(tables[-1].shape[1]))}
    else:
        groups = _groups(pipeline, [str(name) for name in tables[-1].columns])
    numbers = {n: c for n, c in groups.items() if not columns or columns[c[0]].kind == "number"}
    double = _need_double(pipeline, tables, numbers)
    kinds = {name: ("f8" if name in double else "f4") if name in numbers else "str" for name in groups}
    return [Input(name, kinds[name], held) for name, held in groups.items()]


def _groups(pipeline: Pipeline, names: list[str]) -> dict[str, tuple[Any, ...]]:
    """One group a column, but one for the elements of a list if each part reads them as they lie, first to last."""
    lists: dict[str, list[str]] = {}
    for name in names:
        if base := _list_name(name):
            lists.setdefault(base, []).append(name)
    read = [columns for _, _, columns in check.parts_of(pipeline, names)]
    whole = set()
    for base, held in lists.items():
        ordered = len(held) > 1 and held == [f"{base}[{i}]" for i in range(len(held))]
        together = all(
            held[0] not in columns or columns[(at := columns.index(held[0])) : at + len(held)] == held
            for columns in read
        )
        if (
            ordered
            and together
            and base not in names
            and not any(set(held) & set(columns) and held[0] not in columns for columns in read)
        ):
            whole.add(base)
    groups: dict[str, tuple[Any, ...]] = {}
    for name in names:
        base = _list_name(name)
        if base in whole:
            groups[base] = tuple(lists[base])
        else:
            groups[name] = (name,)
    return groups


def _need_double(pipeline: Pipeline, tables: list[Any], numbers: Mapping[str, tuple[Any, ...]]) -> set[str]:
    """The inputs whose values, rounded to float32, would move the logits: the worst ones, until the others do not."""
    before = [_logits(pipeline, table) for table in tables]

    def moved(names: Iterable[str], rows: int | None = None) -> float:
        held = [column for name in names for column in numbers[name]]
        after = (_logits(pipeline, rounded(table[:rows], held)) for table in tables)
        away = [np.abs(a - b[:rows]).max() for a, b in zip(after, before, strict=True)]
        return float(np.max(np.nan_to_num(away, nan=np.inf)))

    if moved(numbers) <= _FLOAT32_LOSS:
        return set()
    each = sorted(((moved([name], 64), name) for name in numbers), reverse=True)
    while each and sum(loss for loss, _ in each) > _FLOAT32_LOSS:
        each.pop(0)
    return set(numbers) - {name for _, name in each}


def _logits(pipeline: Pipeline, table: Any) -> NDArray[Any]:
    return np.asarray(pipeline.decision_function(table), dtype=np.float64)


def rounded(table: Any, columns: list[Any]) -> Any:
    """The table with some columns as float32 holds them."""
    with np.errstate(over="ignore"):
        if not columns:
            return table
        if not hasattr(table, "columns"):
            return table.astype(np.float32).astype(table.dtype)
        return table.assign(**{name: table[name].to_numpy(np.float32).astype(np.float64) for name in columns})


def fed(held: Input, table: Any) -> NDArray[Any]:
    if held.dtype == "str":
        from softgrad.cli.onnx._operators import strings

        return strings(table[held.columns[0]].tolist())
    values = table[list(held.columns)].to_numpy() if hasattr(table, "columns") else table
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=held.dtype)
