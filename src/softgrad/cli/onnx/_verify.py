"""Whether an ONNX file answers as the model does and, if not, which step is at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from softgrad._core.threads import default_threads
from softgrad.cli.onnx import _check as check
from softgrad.cli.onnx._inputs import Input, fed, rounded
from softgrad.cli.terminal._messages import one_line

TOLERANCE = 1e-5  # of the probabilities
_BATCH = 64  # rows at a time: words become a dense matrix


def run(content: bytes, inputs: list[Input], table: Any) -> list[NDArray[Any]]:
    """The outputs of a model for a table."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception
    options.intra_op_num_threads = default_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    parts = [
        session.run(None, {i.name: fed(i, table[start : start + _BATCH]) for i in inputs if i.name in wanted})
        for start in range(0, len(table), _BATCH)
    ]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def judge(pipeline: Pipeline, content: bytes, inputs: list[Input], tables: list[Any]) -> tuple[float, bool, str]:
    """What :func:`compare` finds, and what is wrong with it in words, or ""."""
    try:
        worst, same = compare(pipeline, content, inputs, tables)
    except Exception as error:  # onnxruntime's have no common type
        return np.inf, False, f"onnxruntime fails: {one_line(error):.200}"
    if not worst <= TOLERANCE:
        return worst, same, f"its probabilities differ by {worst:.1e}"
    return worst, same, "" if same else "its labels differ"


def compare(pipeline: Pipeline, content: bytes, inputs: list[Input], tables: list[Any]) -> tuple[float, bool]:
    """The largest difference of a probability, and whether all labels are equal but those of classes equally likely."""
    worst, same = 0.0, True
    for table in tables:
        labels, probabilities = run(content, inputs, table)
        expected = pipeline.predict_proba(table)
        difference = np.abs(expected - probabilities)
        worst = max(worst, float(difference.max()) if np.isfinite(difference).all() else np.inf)
        top = np.sort(expected, axis=1)[:, -2:]
        clear = top[:, 1] - top[:, 0] > 2 * TOLERANCE
        same &= bool(np.all((labels == pipeline.predict(table)) | ~clear))
    return worst, same


def difference(
    pipeline: Pipeline, inputs: list[Input], tables: list[Any], columns: Mapping[str, check.ModelColumn]
) -> str:
    """Which step is at fault: each is converted and run alone."""
    from softgrad.cli.onnx._graph import tensor
    from softgrad.cli.onnx._operators import convert

    names = [str(name) for name in tables[-1].columns] if columns else []
    types = {column: i.dtype for i in inputs for column in i.columns}
    tables = [rounded(table, [column for column, dtype in types.items() if dtype == "f4"]) for table in tables]
    for part, step, held in check.parts_of(pipeline, names if columns else []):
        if isinstance(step, str):
            continue
        for table in tables:
            found = _step_difference(step, held, table, types, bool(columns))
            if found:
                return f"step {part!r}{found}" if part else f"step{found}"
    if len(pipeline.steps) > 1:
        tables = [pipeline[:-1].transform(table) for table in tables]
    tables = [table.toarray() if hasattr(table, "toarray") else np.asarray(table) for table in tables]
    matrix = [Input("x", "f8", tuple(range(tables[0].shape[1])))]
    last = Pipeline(pipeline.steps[-1:])
    _, _, wrong = judge(
        last, convert(last, [("x", tensor("f8", tables[0].shape[1]))], text=False).SerializeToString(), matrix, tables
    )
    if wrong:
        return f"step {pipeline.steps[-1][0]!r} alone does so, too: {wrong}"
    return "each step alone agrees, so it is the digits that are lost between them"


def _step_difference(step: Any, held: list[str], table: Any, types: Mapping[Any, str], named: bool) -> str | None:
    """The first of the steps within a part that differs, and at which of its features."""
    from softgrad.cli.onnx._graph import tensor
    from softgrad.cli.onnx._operators import convert

    inner = check.steps_of(step)
    for end in range(1, len(inner) + 1):
        own, last = inner[end - 1]
        prefix = Pipeline([(name or "step", s) for name, s in inner[:end]])
        kind = type(last).__name__
        label = f", {own!r} ({kind})" if own else f" ({kind})"
        text = any("Vectorizer" in type(s).__name__ for _, s in inner)
        if named:
            inputs = [Input(f"c{i}", types[name], (name,)) for i, name in enumerate(held)]
        else:
            inputs = [Input("x", "f8", tuple(range(table.shape[1])))]
        expected = prefix.transform(table[held[0]] if text else table[held] if named else table)
        expected = expected.toarray() if hasattr(expected, "toarray") else np.asarray(expected)
        try:
            model = convert(prefix, [(i.name, tensor(i.dtype, len(i.columns))) for i in inputs], text=text)
            (given,) = run(model.SerializeToString(), inputs, table)
        except Exception as error:
            return f"{label} fails: {one_line(error):.200}"
        if given.shape != expected.shape:
            return f"{label} gives {given.shape[1]} features instead of {expected.shape[1]}"
        away = np.abs(given - expected) > 1e-6 * np.maximum(1, np.abs(expected))
        away |= np.isnan(given) != np.isnan(expected)
        if away.any():
            row, feature = np.argwhere(away)[0]
            name = _feature_name(prefix, held, feature)
            return f"{label} differs at {name}: {given[row, feature]:.6g} instead of {expected[row, feature]:.6g}"
    return None


def _feature_name(step: Pipeline, inputs: list[str], feature: int) -> str:
    try:
        return repr(str(step.get_feature_names_out(inputs or None)[feature]))
    except (AttributeError, ValueError):  # a step of another kind, or one that was fitted on a matrix without names
        return f"feature {feature}"
