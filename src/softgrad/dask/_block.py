"""A block of rows where it lies, as the tasks see it.

What a method returns depends on the block and its arguments alone.  Scores are kept from one task to the next, with the
name of the point that they are of; a task that finds others, or none because the block was made anew on another worker
or came back from disk, computes them again by the same steps, to the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.rows._class_grams import Whole, class_grams
from softgrad.regression.rows._design import Design, Slot
from softgrad.regression.rows._problem import Problem
from softgrad.regression.rows._sparse import is_sparse

Array = NDArray[Any]
Float = NDArray[np.float64]

__all__ = ["Block", "NamedDirection", "Point", "SharedModel"]


@dataclass(frozen=True)
class SharedModel:
    """What all blocks have to know of the problem.

    ``arrays`` of shape (N, K) are kept: 0, 2 or 3; ``shift`` (P,) is subtracted from dense rows, ``scale`` (P,)
    multiplies what is left.
    """

    n_rows: int
    n_classes: int
    class_weight: Float | None
    label_smoothing: float
    fit_intercept: bool
    small: bool
    arrays: int
    n_threads: int
    shift: Float | None = None
    scale: Float | None = None


@dataclass(frozen=True)
class Point:
    """A point by name; ``settled``: scores are stored, and intercepts levelled, before the gradient."""

    name: str
    weight: Float
    bias: Float
    precise: bool
    settled: bool


@dataclass(frozen=True)
class NamedDirection:
    """A direction by name."""

    name: str
    weight: Array
    bias: Array


class Block:
    """Rows with their targets, weights and offsets, checked elsewhere."""

    def __init__(self, x: Any, targets: Array, weight: Float | None, offset: Array | None, model: SharedModel) -> None:
        if is_sparse(x) and model.small:
            x = x.toarray()  # as in memory
        self.__setstate__((x, targets, weight, offset, model))

    def __getstate__(self) -> Any:
        return self._data

    def __setstate__(self, data: Any) -> None:
        *arrays, model = data
        self._data = (*(_aligned(part) for part in arrays), model)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._made: Problem | None = None
        self._held: Array | None = None
        self._state: tuple[str, int, bool] | None = None  # the point, how often it was shifted, whether it is judged
        self._along = ""

    def __sizeof__(self) -> int:
        """Bytes of what the block holds once it is in use: Dask spills by them."""
        x, targets, weight, offset, model = self._data
        size = sum(part.nbytes for part in (targets, weight, offset) if part is not None) + 8 * len(targets)
        scores = len(targets) * model.n_classes * (8 if model.small else 4)
        if is_sparse(x):
            rows = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
            size += 2 * rows + scores  # by rows and by features, and what waits for the latter
        else:
            size += x.nbytes + (x.nbytes // 2 if x.dtype == np.float64 else 0)
        return object.__sizeof__(self) + size + model.arrays * scores

    @property
    def problem(self) -> Problem:
        """The block as a problem of its own."""
        if self._made is None:
            x, targets, weight, offset, model = self._data
            pair = 2 * len(targets) * model.n_classes * (8 if model.small else 4)
            self._made = Problem(
                Design(x, model.n_classes, model.shift, model.scale), targets, model.n_classes, sample_weight=weight,
                class_weight=model.class_weight, label_smoothing=model.label_smoothing, offset=offset,
                fit_intercept=model.fit_intercept, max_memory=model.arrays * pair // 2, n_threads=model.n_threads,
                small=model.small,
            )  # fmt: skip
            self._rest()
        return self._made

    def _rest(self) -> None:
        """Drop what is made anew for each task: a worker has many blocks."""
        problem = self.problem
        problem.slots = []
        problem.point = problem.step_to = (np.zeros((0, 0)), np.zeros(0))

    # --- at a point --------------------------------------------------------------------------------------------------

    def level_sums(self, point: Point, shifts: tuple[Array, ...]) -> Float:
        """Σ h S and Σ h S Sᵀ, with intercepts moved by the shifts."""
        with self._lock:
            held = self._passing(point, shifts) if self.problem.scores is None else self._store(point, shifts)
            total = self.problem.level_sums(held)
            self._rest()
            return total

    def sums(self, point: Point, shifts: tuple[Array, ...]) -> tuple[float, Float, Float]:
        """Σ a ℓ and its gradient."""
        with self._lock:
            found = self._judge(point, shifts)
            self._rest()
            return found

    def _store(self, point: Point, shifts: tuple[Array, ...]) -> Array:
        problem = self.problem
        name, done, judged = self._state or ("", 0, True)
        if self._held is None or name != point.name or judged or done > len(shifts):
            self._held, done = problem.store(point.weight, point.bias, precise=point.precise, known=False), 0
            self._along = ""  # scores in float64 lie in its memory
        assert self._held is not None
        for by in shifts[done:]:
            problem.shift(self._held, by)
        self._state = (point.name, len(shifts), False)
        return self._held

    def _passing(self, point: Point, shifts: tuple[Array, ...]) -> Array:
        """The scores of a point, for this task alone."""
        problem = self.problem
        dtype = np.float64 if point.precise else problem.dtype
        bias = point.bias + sum((by.astype(np.float64) for by in shifts), np.zeros(problem.n_classes))
        at, held = (
            problem.layer.parameters(point.weight, bias, dtype),
            np.empty((len(problem.losses), len(bias)), dtype),
        )

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            problem.layer.scores(slot, x, at, held[lo:hi])
            if problem.offset is not None:
                held[lo:hi] += problem.offset[lo:hi]

        problem.walk(work, dtype, stored=True)
        return held

    def _judge(self, point: Point, shifts: tuple[Array, ...]) -> tuple[float, Float, Float]:
        if point.settled:
            self._store(point, shifts)
        found = self.problem.sums(point.weight, point.bias, precise=point.precise, known=point.settled)
        self._held, self._along = None, ""
        self._state = (point.name, len(shifts), True)
        return found

    def _look(self, point: Point, shifts: tuple[Array, ...], step: NamedDirection | None = None) -> Problem:
        """The problem as it is after the gradient at a point, and with the scores of a direction."""
        problem = self.problem
        if problem.scores is None:
            problem.point = problem.layer.parameters(point.weight, point.bias, problem.dtype)
            if step is not None:
                problem.step_to = problem.layer.parameters(step.weight, step.bias, problem.dtype)
            return problem
        if self._state != (point.name, len(shifts), True):
            self._judge(point, shifts)
        if step is not None and self._along != step.name:
            problem.direction(step.weight, step.bias)
            self._along = step.name
        return problem

    def product(self, point: Point, shifts: tuple[Array, ...], step: NamedDirection) -> tuple[Float, Float]:
        """A Hessian product."""
        with self._lock:
            found = self._look(point, shifts).product(step.weight, step.bias)
            self._rest()
            return found

    def direction(self, point: Point, step: NamedDirection, shifts: tuple[Array, ...]) -> float:
        """Σ v² of a direction's scores."""
        with self._lock:
            problem = self._look(point, shifts)
            size = problem.direction(step.weight, step.bias)
            self._along = step.name
            self._rest()
            return size**2 * problem.design.n_rows * problem.n_classes

    def line(self, point: Point, step: NamedDirection, shifts: tuple[Array, ...], length: float) -> float:
        """Σ a ℓ at a step along a direction."""
        with self._lock:
            loss = self._look(point, shifts, step).line(length)
            self._rest()
            return loss

    # --- curvature at a point ----------------------------------------------------------------------------------------

    @contextmanager
    def _with_prob(self, point: Point, shifts: tuple[Array, ...]) -> Iterator[Problem]:
        """The problem with its probabilities: for as long as this lasts, if it does not keep them."""
        problem = self._look(point, shifts)
        kept = problem.prob is not None
        if not kept:
            prob = np.empty((problem.design.n_rows, problem.n_classes), problem.dtype)

            def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
                prob[lo:hi] = problem.prob_of(slot, x, lo, hi)

            problem.walk(work, problem.dtype)
            problem.prob = prob
        try:
            yield problem
        finally:
            if not kept:
                problem.prob = None
            self._rest()

    def spread(self, point: Point, shifts: tuple[Array, ...]) -> float:
        """Σ h (1 − ‖S‖²)."""
        with self._lock, self._with_prob(point, shifts) as problem:
            return problem.spread()

    def class_curvature(self, point: Point, shifts: tuple[Array, ...]) -> Float:
        """Σ h S (1 − S)."""
        with self._lock, self._with_prob(point, shifts) as problem:
            return problem.class_curvature()

    def probabilities(self, point: Point, shifts: tuple[Array, ...], index: Array) -> Array:
        """S of some rows."""
        with self._lock, self._with_prob(point, shifts) as problem:
            return problem.probabilities(index)

    def hessian_diagonal(self, point: Point, shifts: tuple[Array, ...]) -> tuple[Float, Float]:
        """Its two sums."""
        with self._lock:
            weight, bias = self._look(point, shifts).hessian_diagonal()
            self._rest()
            return weight.astype(np.float64), np.asarray(bias, dtype=np.float64)

    def class_grams(
        self, point: Point, shifts: tuple[Array, ...], center: Float, square: float, kappa: float, sample: float,
        even: bool, curvature: Float, top: Array | None,
    ) -> tuple[Array, Float]:  # fmt: skip
        """The block's share of the Gram matrices, and the rows drawn; ``top``: of these columns of sparse rows."""
        with self._lock, self._with_prob(point, shifts) as problem:
            whole = Whole(self._data[-1].n_rows, curvature)
            columns = None if top is None else self.columns(np.arange(problem.design.n_rows), top)
            assert problem.prob is not None
            return class_grams(
                problem, problem.prob, problem.curvature, center, square, kappa, sample, even=even, features=columns,
                whole=whole,
            )  # fmt: skip

    def hessian(self, point: Point, shifts: tuple[Array, ...], count: int | None) -> Float:
        """The whole Hessian, or the block's share of one from about ``count`` rows."""
        with self._lock, self._with_prob(point, shifts) as problem:
            if count is not None:
                count = max(1, round(count * problem.design.n_rows / self._data[-1].n_rows))
            return problem.hessian(count)

    # --- of the data -------------------------------------------------------------------------------------------------

    def target_sums(self, prior: Float) -> Float:
        """Σ a y xᵀ."""
        with self._lock:
            found = self.problem.target_sums_by(prior)
            self._rest()
            return found

    def offset_range(self) -> float:
        """The largest difference between two offsets of a row."""
        return self.problem.offset_range

    def squares(self) -> Float:
        """Σ x² of each feature of sparse rows."""
        x = self.problem.design.x
        return np.bincount(x.indices, x.data.astype(np.float64) ** 2, x.shape[1]).astype(np.float64)

    def columns(self, index: Array, top: Array) -> Array:
        """Some columns of some sparse rows, dense in float32."""
        return np.asarray(self.problem.design.x[index][:, top].toarray(), dtype=np.float32)

    def rows(self, index: Array) -> tuple[Array, Float, Array | None]:
        """Some rows, their curvature and their offsets."""
        problem = self.problem
        x = problem.design.rows(index, problem.design.dtype)
        return x, problem.row_curvature(index), None if problem.offset is None else problem.offset[index]


def _aligned(values: Any) -> Any:
    """The same where the kernels can read it: what comes from another process or from disk lies anywhere."""
    if is_sparse(values):
        values.data, values.indices, values.indptr = (
            np.require(part, requirements="A") for part in (values.data, values.indices, values.indptr)
        )
        return values
    return None if values is None else np.require(values, requirements="A")
