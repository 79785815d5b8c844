"""The steps of a model as ONNX operators: what skl2onnx is given in place of converters that it lacks or has otherwise.

Each function takes a :class:`Graph` and the fitted step and leaves the step's output in the step's own dtype. skl2onnx
(1.20) has no softmax regression, drops ``add_indicator`` of an imputer, rounds its values to float32 and knows
infrequent categories only where each column is an input; text is in ``_onnx_text``. Only the end knows skl2onnx.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softgrad.cli.onnx._graph import Graph, tensor
from softgrad.cli.onnx._text import refuse_text, tfidf
from softgrad.cli.terminal._messages import UserError
from softgrad.sklearn import SoftmaxRegression

with warnings.catch_warnings():  # on import: protobuf's and NumPy's deprecations, which are theirs to mend
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    from onnx import ModelProto
    from skl2onnx import convert_sklearn, update_registered_converter

# 20 has the operators on strings that text needs (onnxruntime 1.17); numbers run on older runtimes, too.
_OPSET = {"": 17, "ai.onnx.ml": 3}
_OPSET_FOR_TEXT = {"": 20, "ai.onnx.ml": 3, "com.microsoft": 1}


# --- the steps -------------------------------------------------------------------------------------------------------


def scale(graph: Graph, step: StandardScaler) -> None:
    """``(x − mean) / scale``, in float64; NaN stays NaN."""
    x = graph.source(np.float64)
    if step.with_mean:
        x = graph.node("Sub", x, graph.constant(step.mean_, np.float64))
    if step.with_std:
        x = graph.node("Div", x, graph.constant(step.scale_, np.float64))
    graph.finish(x)


def fill(graph: Graph, step: SimpleImputer) -> None:
    """The statistic where a value is NaN, then a column of 0 and 1 for each feature that had missing values."""
    x = graph.source(np.float64)
    missing = graph.node("IsNaN", x)
    parts = [graph.node("Where", missing, graph.constant(step.statistics_, np.float64), x)]
    kept = _kept(step)
    if len(kept) < len(step.statistics_):
        parts = [graph.node("Gather", parts[0], graph.constant(kept), axis=1)]
    if step.add_indicator and len(step.indicator_.features_):
        flags = graph.node("Gather", missing, graph.constant(np.asarray(step.indicator_.features_, np.int64)), axis=1)
        parts.append(graph.cast(flags, np.float64))
    graph.finish(graph.node("Concat", *parts, axis=1) if len(parts) > 1 else parts[0])


def _kept(step: SimpleImputer) -> NDArray[np.int64]:
    """The features that it does not drop for having no values at all."""
    values = np.asarray(step.statistics_, dtype=np.float64)  # objects, for a constant
    return np.flatnonzero(np.isfinite(values) | step.keep_empty_features).astype(np.int64)


def one_hot(graph: Graph, step: OneHotEncoder) -> None:
    """Of each column: the category's number, or that of the rare ones, compared with 0, 1, …: no match, no one."""
    names = [variable.full_name for variable in graph._operator.inputs]
    x = names[0] if len(names) == 1 else graph.node("Concat", *names, axis=1)
    blocks = []
    for column, (keys, values, unseen, width) in enumerate(_codes(step)):
        chosen = graph.node("Gather", x, graph.constant(np.array([column])), axis=1)
        code = graph.node(
            "LabelEncoder", chosen, domain="ai.onnx.ml", keys_strings=keys, values_int64s=values, default_int64=unseen
        )
        blocks.append(graph.cast(graph.node("Equal", code, graph.constant(np.arange(width))), step.dtype))
    graph.finish(graph.node("Concat", *blocks, axis=1) if len(blocks) > 1 else blocks[0])


def _codes(step: OneHotEncoder) -> list[tuple[list[str], list[int], int, int]]:
    """Of each column: its categories, the output column of each, that of what was never seen (−1: none), the width."""
    found = []
    rare_ones = getattr(step, "infrequent_categories_", [None] * len(step.categories_))
    for categories, rare in zip(step.categories_, rare_ones, strict=True):
        rare = set() if rare is None else set(rare)
        common = [c for c in categories if c not in rare]
        place = {c: i for i, c in enumerate(common)}
        values = [place.get(c, len(common)) for c in categories]
        unseen = len(common) if rare and step.handle_unknown != "ignore" else -1
        found.append(([str(c) for c in categories], values, unseen, len(common) + bool(rare)))
    return found


def classify(graph: Graph, step: SoftmaxRegression) -> None:
    """The label of the largest logit, the first of equal ones, and the softmax of all."""
    dtype = step.coef_.dtype
    x = graph.source(dtype)
    coef, intercept = step.coef_, step.intercept_
    if len(step.classes_) == 2:  # the first of two classes has logit 0
        coef, intercept = np.vstack([np.zeros_like(coef), coef]), np.append(np.zeros_like(intercept), intercept)
    logits = graph.node("MatMul", x, graph.constant(np.ascontiguousarray(coef.T)))
    logits = graph.node("Add", logits, graph.constant(intercept))
    chosen = graph.node("ArgMax", logits, axis=1, keepdims=0, select_last_index=0)
    labels = graph.node("Gather", graph.constant(step.classes_, _label_dtype(step)), chosen, axis=0)
    probabilities = graph.cast(graph.node("Softmax", logits, axis=1), np.float32)
    graph.finish(labels, probabilities)


def _label_dtype(step: SoftmaxRegression) -> Any:
    kind = step.classes_.dtype.kind
    return {"i": np.int64, "u": np.int64, "b": np.bool_, "f": np.float64}.get(kind, np.object_)


# --- what each step accepts, and how wide its output is --------------------------------------------------------------


def refuse_step(where: str, step: Any) -> None:
    """One line for a step that ONNX cannot express, before anything is converted."""

    def demand(sound: bool, what: str) -> None:
        if not sound:
            raise UserError(f"step {where} cannot be exported to ONNX: {what}")

    kind = type(step).__name__
    if "Hash" in kind:
        demand(False, f"{kind} hashes words, for which ONNX has no operator: fit the model with TF-IDF instead")
    if isinstance(step, TfidfVectorizer):
        refuse_text(step, demand)
    elif isinstance(step, SimpleImputer):
        missing = step.missing_values
        demand(
            isinstance(missing, float) and np.isnan(missing), f"missing_values is {missing!r}: only NaN can be filled"
        )
        numbers = not any(isinstance(value, str) for value in step.statistics_)
        demand(numbers, "it fills text columns: give them to OneHotEncoder, for which '' is a category like any other")
        demand(
            not step.add_indicator or step.indicator_.features_ is not None,
            "its indicator is not fitted: fit the model again",
        )
    elif isinstance(step, OneHotEncoder):
        demand(step.drop is None, f"drop is {step.drop!r}: fit it with drop=None")
        demand(
            step.handle_unknown in ("ignore", "infrequent_if_exist"),
            f"handle_unknown is {step.handle_unknown!r}, which ONNX cannot express: fit it with 'infrequent_if_exist'",
        )
        texts = all(isinstance(c, str) for categories in step.categories_ for c in categories)
        demand(texts, "its categories are not all text: fit it on columns of str")
    elif isinstance(step, SoftmaxRegression):
        kinds, labels = step.classes_.dtype.kind, step.classes_.tolist()
        demand(kinds in "iubf" or all(isinstance(c, str) for c in labels), f"its labels are {labels[:3]}: use one type")
        demand(kinds != "u" or max(labels) < 2**63, f"its label {max(labels)!r} is no int64")


def _width(step: Any, columns: int) -> int:
    if isinstance(step, SimpleImputer):
        return len(_kept(step)) + (len(step.indicator_.features_) if step.add_indicator else 0)
    if isinstance(step, OneHotEncoder):
        return sum(width for *_, width in _codes(step))
    if isinstance(step, TfidfVectorizer):
        return len(step.vocabulary_)
    return columns


def _out_dtype(step: Any) -> Any:
    return step.dtype if isinstance(step, OneHotEncoder | TfidfVectorizer) else np.float64


# --- skl2onnx --------------------------------------------------------------------------------------------------------


def _shape(operator: Any) -> None:
    step = operator.raw_operator
    columns = sum(variable.type.shape[1] for variable in operator.inputs)
    operator.outputs[0].type = tensor(_out_dtype(step), _width(step, columns))


def _converter(build: Callable[[Graph, Any], None]) -> Callable[[Any, Any, Any], None]:
    return lambda scope, operator, container: build(Graph(scope, operator, container), operator.raw_operator)


def _classifier_parser(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:  # noqa: ARG001
    operator = scope.declare_local_operator("SoftgradSoftmaxRegression", model)
    operator.inputs = inputs
    for name, kind in (
        ("label", tensor(_label_dtype(model), None)),
        ("probabilities", tensor("f4", len(model.classes_))),
    ):
        operator.outputs.append(scope.declare_local_variable(name, kind))
    return operator.outputs


_BUILD: dict[type, Callable[[Graph, Any], None]] = {
    StandardScaler: scale, SimpleImputer: fill, OneHotEncoder: one_hot, TfidfVectorizer: tfidf,
}  # fmt: skip

update_registered_converter(
    SoftmaxRegression,
    "SoftgradSoftmaxRegression",
    lambda _: None,  # the parser has said the types of the outputs
    _converter(classify),
    parser=_classifier_parser,
)


def convert(model: Any, inputs: Sequence[tuple[str, Any]], *, text: bool) -> ModelProto:
    """A fitted model as an ONNX model; the same bytes each time.

    Parameters
    ----------
    model : Pipeline, ColumnTransformer or transformer
        What :func:`refuse_step` lets pass.
    inputs : sequence of (str, type)
        Names and types (:func:`tensor`) of the inputs, which are its columns from left to right.
    text : bool
        Whether it reads words, which needs a recent ONNX.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # skl2onnx's use of onnx and NumPy
        converted: ModelProto = convert_sklearn(
            model,
            name="softgrad",  # or else a random one
            initial_types=list(inputs),
            target_opset=dict(_OPSET_FOR_TEXT if text else _OPSET),
            custom_conversion_functions={kind: _converter(build) for kind, build in _BUILD.items()},
            custom_shape_calculators=dict.fromkeys(_BUILD, _shape),
        )
    return converted


def strings(values: Sequence[Any]) -> NDArray[Any]:
    """A column of text as onnxruntime wants it."""
    return np.array([str(v) for v in values], dtype=object).reshape(-1, 1)
