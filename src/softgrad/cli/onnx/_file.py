"""``softgrad export``: a fitted model as one ONNX file, which is tried before it is written.

The whole pipeline becomes the graph, from the columns as they are in the table to ``label`` and ``probabilities``. Its
answers are compared with the model's own, in onnxruntime, on given and made rows; a file that disagrees is not written.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from softgrad._version import __version__
from softgrad.cli.onnx import _check as check
from softgrad.cli.onnx._inputs import Input, choose, ordered
from softgrad.cli.onnx._verify import difference, judge
from softgrad.cli.tables._output import replacing
from softgrad.cli.terminal._messages import UserError, one_line

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Tensor:
    """An input or output of the file: a shape of ``(None, 3)`` has any number of rows."""

    name: str
    type: str  # "float", "double", "string", "int64" or "bool"
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how well it agrees with the model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    opset: int
    bytes: int
    rows_checked: int
    largest_difference: float
    labels_equal: bool


def export(
    pipeline: Pipeline, sample: Any, path: Path, *, description: Mapping[str, Any] | None = None
) -> ExportResult:
    """Write a model as an ONNX file that gives its labels and probabilities.

    Parameters
    ----------
    pipeline : Pipeline
        A fitted pipeline that ends in a :class:`softgrad.sklearn.SoftmaxRegression`: of a table, with a
        ColumnTransformer of scalers, imputers, one-hot encoders and TF-IDF; or of a matrix of numbers.
    sample : pandas.DataFrame or array (n_rows, n_features)
        Rows as the pipeline was fitted on, or none of them: a table without rows still says the columns.
    path : Path
        The file. It appears, or is replaced, only if its answers agree.
    description : mapping, optional
        What else the file shall say of itself, as ``metadata_props`` in JSON beside ``softgrad``, ``classes`` and
        ``columns``.

    Returns
    -------
    ExportResult

    Raises
    ------
    UserError
        For a missing package, a step that ONNX cannot express, and an answer that differs by more than 1e-5.

    Notes
    -----
    A table has one input a column, of shape (None, 1): text, and float or, where float32 would lose digits that matter,
    double; NaN and "" are missing values. The columns "name[0]", "name[1]", … are one input "name". A matrix is the
    input "x". An output that has the name of a column gets an underscore.
    """
    require()
    _refuse(pipeline)
    frame = hasattr(sample, "columns")
    if frame:
        columns = check.columns_of(pipeline, [str(name) for name in sample.columns])
        used = ordered(sample, columns) if isinstance(pipeline.steps[0][1], ColumnTransformer) else sample
        made = check.made_frame(columns, used)
    else:
        columns, used = {}, np.asarray(sample)
        made = check.made_matrix(pipeline, used)
    tables = [table for table in (check.some_of(used), made) if len(table)]
    inputs = choose(pipeline, tables, columns)
    model = _described(_convert(pipeline, inputs, used, columns), pipeline, list(columns), description)
    content = model.SerializeToString(deterministic=True)

    worst, labels_equal, wrong = judge(pipeline, content, inputs, tables)
    if wrong:
        where = difference(pipeline, inputs, tables, columns)
        raise UserError(f"the ONNX file would not answer as the model does: {wrong}; {where}; nothing is written")
    with replacing(path) as file:
        file.write(content)
    return ExportResult(
        inputs=_tensors(model.graph.input),
        outputs=_tensors(model.graph.output),
        opset=next(item.version for item in model.opset_import if not item.domain),
        bytes=len(content),
        rows_checked=sum(map(len, tables)),
        largest_difference=worst,
        labels_equal=labels_equal,
    )


def require() -> None:
    """One line where the packages of the extra are not there."""
    for name in ("onnx", "skl2onnx", "onnxruntime"):
        if find_spec(name) is None:
            raise UserError(f"the export needs {name}, which is not installed: pip install 'softgrad[onnx]'")


def _refuse(pipeline: Pipeline) -> None:
    from softgrad.cli.onnx._operators import refuse_step

    for name, step in check.steps_of(pipeline):
        if not isinstance(step, ColumnTransformer):
            refuse_step(repr(name), step)
            continue
        for part, inner, _ in step.transformers_:
            for own, leaf in check.steps_of(inner):
                refuse_step(repr(part) + (f", {own!r}" if own else ""), leaf)


# --- the file --------------------------------------------------------------------------------------------------------


def _convert(
    pipeline: Pipeline, inputs: list[Input], sample: Any, columns: Mapping[str, check.ModelColumn]
) -> ModelProto:
    from softgrad.cli.onnx._graph import tensor
    from softgrad.cli.onnx._operators import convert

    types = [(f"input{n}", tensor(i.dtype, len(i.columns))) for n, i in enumerate(inputs)]
    text = any(column.kind == "text" for column in columns.values())
    if columns:
        pipeline = _by_number(pipeline, [str(name) for name in sample.columns])
    try:
        model = convert(pipeline, types, text=text)
    except Exception as error:  # what skl2onnx and onnx raise for a step of another kind has no common type
        raise UserError(
            f"the model cannot be exported to ONNX: {type(error).__name__}: {one_line(error):.300}"
        ) from error
    _name(model, inputs)
    return model


def _by_number(pipeline: Pipeline, names: list[str]) -> Pipeline:
    """The same pipeline, whose column transformer knows its columns by their numbers: an input may hold several."""
    head = pipeline.steps[0][1]
    if not isinstance(head, ColumnTransformer):
        return pipeline
    numbered = copy.copy(head)
    numbered.transformers_ = [
        (part, step, [names.index(name) for name in columns]) for part, step, columns in check.parts_of(pipeline, names)
    ]
    return Pipeline([(pipeline.steps[0][0], numbered), *pipeline.steps[1:]])


def _name(model: ModelProto, inputs: list[Input]) -> None:
    """Give the inputs the names of their columns, whatever characters they hold, and the outputs theirs.

    skl2onnx makes other names of them. No name within the graph may then be one of theirs; so those all get a
    beginning. An output that has the name of a column gets an underscore.
    """
    taken = [i.name for i in inputs]
    outputs = []
    for wanted in ("label", "probabilities"):
        while wanted in taken:
            wanted += "_"
        outputs.append(wanted)
        taken.append(wanted)
    beginning = "step."
    while any(name.startswith(beginning) for name in taken):
        beginning = f"_{beginning}"
    names = {f"input{i}": held.name for i, held in enumerate(inputs)}
    names |= dict(zip([value.name for value in model.graph.output], outputs, strict=True))
    _rename(model.graph, names, beginning)


def _rename(graph: Any, names: Mapping[str, str], beginning: str) -> None:
    def new(name: str) -> str:
        return names.get(name, f"{beginning}{name}") if name else name

    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new(value.name)
    del graph.value_info[:]
    for node in graph.node:
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names, beginning)


def _described(
    model: ModelProto, pipeline: Pipeline, columns: list[str], description: Mapping[str, Any] | None
) -> ModelProto:
    from onnx import helper

    facts = {"classes": pipeline[-1].classes_.tolist(), "columns": columns} | dict(description or {})
    props = {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in facts.items()}
    helper.set_model_props(model, dict(sorted((props | {"softgrad": __version__}).items())))
    return model


def _tensors(values: Iterable[Any]) -> tuple[Tensor, ...]:
    from onnx import TensorProto

    return tuple(
        Tensor(
            value.name,
            TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
            tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
