"""One step's part of an ONNX graph, and the types of its tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

with warnings.catch_warnings():  # on import: protobuf's and NumPy's deprecations, which are theirs to mend
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    from onnx import TensorProto
    from skl2onnx.common import data_types

__all__ = ["Graph", "element", "tensor"]

_ELEMENTS = {
    "f4": (TensorProto.FLOAT, data_types.FloatTensorType),
    "f8": (TensorProto.DOUBLE, data_types.DoubleTensorType),
    "i8": (TensorProto.INT64, data_types.Int64TensorType),
    "b1": (TensorProto.BOOL, data_types.BooleanTensorType),
    "str": (TensorProto.STRING, data_types.StringTensorType),
}


class Graph:
    """One step's part of the graph, written a node at a time."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self._scope, self._operator, self._container = scope, operator, container

    def node(
        self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, take: int = 0, **attributes: Any
    ) -> str:
        """Add a node and return the name of its output number ``take`` of ``outputs``."""
        return self.nodes(kind, *inputs, domain=domain, outputs=outputs, **attributes)[take]

    def nodes(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        names = [self._scope.get_unique_variable_name(kind.lower()) for _ in range(outputs)]
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(kind, list(inputs), names, op_domain=domain, name=name, **attributes)
        return names

    def constant(self, values: Any, dtype: Any = None) -> str:
        """The name of a constant tensor; of a text if the values are str."""
        array = np.asarray(values, dtype=dtype)
        name = str(self._scope.get_unique_variable_name("constant"))
        content = [str(v).encode() for v in array.ravel()] if array.dtype.kind in "UOT" else array.ravel().tolist()
        self._container.add_initializer(name, element(array.dtype), list(array.shape), content)
        return name

    def cast(self, name: str, dtype: Any) -> str:
        """The tensor in another dtype."""
        return self.node("Cast", name, to=element(np.dtype(dtype)))

    def source(self, dtype: Any = None) -> str:
        """The step's input as one matrix, in a dtype if asked for: its columns may be inputs of their own."""
        names = [variable.full_name for variable in self._operator.inputs]
        if dtype is not None:
            names = [self.cast(name, dtype) for name in names]
        return names[0] if len(names) == 1 else self.node("Concat", *names, axis=1)

    def finish(self, *names: str) -> None:
        """Make these tensors the outputs of the step."""
        for name, variable in zip(names, self._operator.outputs, strict=True):
            self._container.add_node(
                "Identity", [name], [variable.full_name], name=self._scope.get_unique_operator_name("Identity")
            )


def element(dtype: np.dtype[Any]) -> int:
    """ONNX's number of an element type."""
    return int(_ELEMENTS[_key(dtype)][0])


def tensor(dtype: Any, columns: int | None) -> Any:
    """skl2onnx's type of a matrix of any number of rows; of a vector for None columns."""
    return _ELEMENTS[_key(np.dtype(dtype))][1]([None] if columns is None else [None, columns])


def _key(dtype: np.dtype[Any]) -> str:
    return "str" if dtype.kind in "UOT" else f"{dtype.kind}{dtype.itemsize}"
