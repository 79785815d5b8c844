"""The user's functions as the checker asks them: what they return, what they do to their arguments, what they raise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from softgrad._checker.inputs import CheckInput, NumPyBridge
from softgrad._core.arrays import Array

# What `math` says of log(0): an answer that is not finite, as NumPy's would be.
NO_NUMBER = ("math domain", "positive input")


class Broken(Exception):  # noqa: N818 - a finding, not an error
    """A law that fails before there is a number to compare."""

    def __init__(self, law: str, detail: str) -> None:
        super().__init__(detail)
        self.law = law


class Functions:
    """The user's functions, asked once for each input."""

    def __init__(self, bridge: Any, given: dict[str, Any], reduction: str) -> None:
        self.bridge, self.given = bridge, given
        self.shape: tuple[int, ...] = bridge.logits.shape
        self.outer = self.shape[:-1] if reduction == "none" else ()
        self.by_row = reduction == "none"
        self.follow = not isinstance(bridge, NumPyBridge) and given["gradient"] is None
        self.autograd = False
        self.known: dict[str, dict[str, Array]] = {}

    def answers(self, case: CheckInput) -> dict[str, Array]:
        """Every quantity there is for this input, as float64, by rows."""
        if case.name not in self.known:
            self.known[case.name] = dict(self._ask(case))
        return self.known[case.name]

    def _ask(self, case: CheckInput) -> Iterator[tuple[str, Array]]:
        n, classes = case.o.shape
        if self.given["softmax"] is not None:
            result = self._call("softmax", case)
            yield "softmax", self._number("softmax", result, self.shape, case).reshape(n, classes)
        if self.given["loss"] is not None:
            yield from self.loss(case).items()
        if self.given["gradient"] is not None:
            result = self._call("gradient", case)
            yield "gradient", self._number("gradient", result, self.shape, case).reshape(n, classes)
        if self.given["jacobian"] is not None:
            square = (*self.shape, classes)
            result = self._call("jacobian", case)
            yield "Jacobian", self._number("jacobian", result, square, case).reshape(n, classes, classes)

    def loss(self, case: CheckInput, upstream: float = 1.0) -> dict[str, Array]:
        """Value and gradient; a graph that is cut is a finding where autograd should give the gradient."""
        value, gradient, own = self._call("loss", case, upstream)
        found = {"value": self._number("loss", value, self.outer, case).reshape(-1 if self.by_row else ())}
        if own and self.given["gradient"] is not None:
            raise TypeError("loss returns its own gradient and gradient= is given: check one after the other")
        if gradient is not None:
            name = "the gradient that loss returns" if own else "the gradient of autograd"
            found["gradient"] = self._number(name, gradient, self.shape, case).reshape(case.o.shape)
            self.autograd = not own
        elif own:
            raise Broken("shape", "loss returned None as its gradient")
        elif self.follow and np.isfinite(found["value"]).all():
            raise Broken("no gradient", f"for autograd the value of loss does not depend on the logits, on {case.name}")
        return found

    def _call(self, role: str, case: CheckInput, upstream: float = 1.0) -> Any:
        function = self.given[role]
        arguments = self.bridge.make(case.o, case.y, role == "loss" and self.follow)
        before = [np.array(self.bridge.numbers(part)) for part in arguments]
        try:
            with np.errstate(all="ignore"):
                if role == "loss":
                    result = self.bridge.loss(function, *arguments, upstream)
                else:
                    result = function(*arguments) if role == "gradient" else function(arguments[0])
        except Exception as error:
            text = str(error)
            if "a leaf Variable that requires grad" in text:
                raise Broken("changes its input", f"{role} writes to its logits, on {case.name}") from error
            if not isinstance(error, ArithmeticError) and not any(words in text for words in NO_NUMBER):
                where = f"{case.name} (shape {self.shape}, {self.bridge.dtype})"
                raise RuntimeError(f"{role} raised {type(error).__name__} on {where}: {text}") from error
            result = (np.nan, None, False) if role == "loss" else np.nan
        for name, part, old in zip(("logits", "targets"), arguments, before, strict=True):
            if not np.array_equal(self.bridge.numbers(part), old, equal_nan=True):
                raise Broken("changes its input", f"{role} changes the {name} that it is given, on {case.name}")
        return result

    def _number(self, name: str, result: Any, shape: tuple[int, ...], case: CheckInput) -> Array:
        if result is None:
            raise Broken("shape", f"{name} returned None (a forgotten return?)")
        try:
            found: Array = self.bridge.numbers(result)
        except (TypeError, ValueError):
            raise Broken("shape", f"{name} returned a {type(result).__name__}, which is no array of numbers") from None
        if np.shape(result) == () and bool(np.isnan(found).all()):
            return np.full(shape, np.nan)  # there is no number, whatever the shape
        if found.shape != shape and not (found.size == 1 and int(np.prod(shape)) == 1):
            hint = "" if name != "loss" else f" for reduction={'none' if self.by_row else 'mean or sum'}"
            raise Broken("shape", f"{name} has shape {found.shape}, expected {shape}{hint}, on {case.name}")
        return found
