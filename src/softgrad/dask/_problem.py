"""The sums that the solvers ask for, when the rows are blocks among Dask's workers.

The solver runs here; what it sees of the rows is `RowSums`, and every method is one pass of `_graph`.  A few rows come
here, once: those by which a preconditioner knows where the data lie and how far their probabilities have moved.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.dask._block import NamedDirection, Point, SharedModel
from softgrad.dask._graph import collect, each, let_go, literal, reduce
from softgrad.loss import softmax
from softgrad.regression.rows._problem import MOST_LEVELLED
from softgrad.regression.rows._row_sums import LossAtPoint, RowSums, levelled
from softgrad.regression.rows._sparse import HEAVY

Array = NDArray[Any]
Float = NDArray[np.float64]

__all__ = ["Remote", "Shape"]


class Shape:
    """What is known of X: as `Design`, with no row."""

    def __init__(
        self,
        lengths: Sequence[int],
        n_features: int,
        dtype: Any,
        *,
        sparse: bool,
        reach: float,
        column_reach: Float,
        shift: Float | None,
        scale: Float | None,
        stored: int,
    ) -> None:
        self.edges = np.concatenate([[0], np.cumsum(lengths)])  # of the blocks
        self.n_rows, self.n_features, self.dtype = int(self.edges[-1]), n_features, np.dtype(dtype)
        self.sparse, self.in_memory = sparse, True
        self._column_reach, self.shift, self.scale, self.stored = column_reach, shift, scale, stored
        self._reach = min(reach, float(np.sqrt((column_reach**2).sum())) * (1 + 1e-9))
        self.blocks: Sequence[Any] = ()
        self.sample: Any = None  # fetches rows, once
        self._top: Array | None = None

    def zeros(self, k: int) -> Array:
        """Zeros (K, P)."""
        return np.zeros((k, self.n_features))

    def reach(self) -> float:
        """Return an upper bound of the length of every row."""
        return self._reach

    def column_reach(self) -> Array:
        """Return an upper bound of the absolute values of each feature."""
        return self._column_reach

    def rows(self, index: Array, dtype: Any) -> Array:
        """Some dense rows."""
        return np.asarray(self.sample(index)[0], dtype=dtype)

    def heavy(self) -> tuple[Array, RemoteColumns]:
        """The features of sparse rows with the largest sums of squares, and these columns."""
        if self._top is None:
            squares = reduce("squares", "squares", self.blocks, size=8 * self.n_features)
            self._top = np.sort(np.argsort(-squares, kind="stable")[:HEAVY])
        return self._top, RemoteColumns(self, self._top)

    def fetch(self, method: str, index: Array, *arguments: Any) -> list[Any]:
        """What a method of each block answers for some of its rows, in ascending order."""
        parts = np.searchsorted(index, self.edges)
        wanted = [b for b in range(len(self.blocks)) if parts[b] < parts[b + 1]]
        inside = [index[parts[b] : parts[b + 1]] - self.edges[b] for b in wanted]
        blocks = [self.blocks[b] for b in wanted]
        alike = [[value] * len(blocks) for value in arguments]
        return collect(each(method, _ask, blocks, inside, *alike, shared=method))


class RemoteColumns:
    """Some columns of all rows, of which a few rows may be looked at here."""

    def __init__(self, design: Shape, top: Array) -> None:
        self.design, self.top = design, top
        self.shape = design.n_rows, len(top)

    def __getitem__(self, index: Array) -> Array:
        return np.concatenate(self.design.fetch("columns", index, self.top))


class Remote(RowSums):
    """Blocks of rows and what all of them know; the state is the name of the point that they look at."""

    def __init__(
        self, blocks: Sequence[Any], shape: Shape, model: SharedModel, class_mass: Float, *, offset: bool
    ) -> None:
        self.blocks, self.design, self.model = list(blocks), shape, model
        self.n_classes, self.fit_intercept, self.n_threads = model.n_classes, model.fit_intercept, model.n_threads
        self.class_mass, self.mass = class_mass, float(class_mass.sum())
        self.small = model.small
        self.dtype: Any = np.float64 if model.small else np.float32
        self.passes = 0.0
        self._offset_range: float | None = None if offset else 0.0
        self._target_sums: Float | None = None
        self._weight, self._bias = np.zeros((model.n_classes, shape.n_features)), np.zeros(model.n_classes)
        self._point: Any = None
        self._step: Any = None
        self._settled = False  # whether the point waits for its gradient
        self._shifts: tuple[Array, ...] = ()
        self._samples: list[tuple[Array, tuple[Array, Float, Array | None]]] = []
        shape.blocks, shape.sample = self.blocks, self._sample

    def release(self) -> None:
        """Let the workers forget the point, and here the blocks."""
        let_go([self._point, self._step])
        self.blocks, self._point, self._step, self._samples = [], None, None, []
        self.design.blocks, self.design.sample = (), None

    def _sum(self, name: str, method: str, *arguments: Any, step: Any = None, numbers: int = 1) -> Any:
        """A pass at the point; ``numbers``: how many a block returns."""
        kept = [self._point] if step is None else [self._point, step]
        return reduce(name, method, self.blocks, self._shifts, *arguments, kept=kept, size=8 * numbers)

    def _move(self, weight: Float, bias: Float, *, precise: bool, settled: bool) -> None:
        """Look at another point: it goes among the workers, and stays for all passes there."""
        let_go([self._point, self._step])
        self._shifts, self._step = (), None
        sent = np.ascontiguousarray(weight, np.float64 if precise else self.dtype)
        point = Point(uuid.uuid4().hex, sent, bias, precise, settled)
        self._point = literal(point, "weights")

    # --- at a point --------------------------------------------------------------------------------------------------

    def settle(self, weight: Float, bias: Float, *, precise: bool, known: bool, enough: float = 0.0) -> Float | None:  # noqa: ARG002
        """Store the scores of a point and level its intercepts; returns how far these moved.

        Scores are made of the weights each time, never moved along a direction: what they are does not depend on what
        a worker has seen.  Where they are not stored, each look at them makes them anew.
        """
        if not self.fit_intercept or self.n_classes > MOST_LEVELLED:
            return None
        stored = self.holds_scores
        self._move(weight, bias, precise=precise, settled=stored)
        self._settled = stored
        self.passes += 0.5 * stored
        dtype = np.float64 if precise else self.dtype

        def sums() -> Float:
            self.passes += 0.5 * (not stored)
            return np.asarray(self._sum("level", "level_sums", numbers=self.n_classes**2))

        def shift(by: Array) -> None:
            self._shifts = (*self._shifts, by)

        return levelled(sums, shift, self.class_mass, dtype, enough)

    def gradient(self, weight: Float, bias: Float, *, precise: bool = False, known: bool = False) -> LossAtPoint:
        """Loss and gradient at a point; ``known``: it is the one that was settled."""
        settled = known and self._settled  # solvers know no more than that they moved along the direction
        if not settled:
            self._move(weight, bias, precise=precise, settled=False)
        self.passes += 0.5 if settled else 1.0
        self._settled = False
        self._weight, self._bias = weight, bias
        loss, g, gb = self._sum("gradient", "sums", numbers=weight.size)
        return LossAtPoint.of(loss, g, gb, weight, bias, self.mass)

    def product(self, weight: Array, bias: Array) -> tuple[Float, Float]:
        """The Hessian of the loss at the point times a direction."""
        step = NamedDirection("", np.ascontiguousarray(weight, self.dtype), np.asarray(bias))
        self.passes += 1.0 if self.holds_scores else 1.5
        product, of_bias = self._sum("product", "product", step, numbers=weight.size)
        return product, of_bias

    def direction(self, weight: Array, bias: Array) -> float:
        """Take a direction's scores; returns the root of their mean square."""
        step = NamedDirection(uuid.uuid4().hex, np.ascontiguousarray(weight, self.dtype), np.asarray(bias))
        let_go([self._step])
        self._step = literal(step, "direction")
        self.passes += 0.5
        square = float(self._sum("direction", "direction", step=self._step))
        return float(np.sqrt(square / (self.design.n_rows * self.n_classes)))

    def line(self, step: float) -> float:
        """Σ a ℓ at a step along the direction."""
        if not self.holds_scores:
            self.passes += 1.0
        return float(self._sum("line", "line", float(step), step=self._step))

    def advance(self, step: float) -> None:
        """Nothing is stored here: the next gradient makes its scores of the weights."""

    # --- of the data -------------------------------------------------------------------------------------------------

    @property
    def offset_range(self) -> float:
        """The largest difference between two offsets of a row."""
        if self._offset_range is None:
            self._offset_range = float(reduce("offset", "offset_range", self.blocks, merge=max))
        return self._offset_range

    def target_sums(self) -> Float:
        """Σ a y xᵀ."""
        if self._target_sums is None:
            prior = np.maximum(self.class_mass / self.mass, 1e-300)
            self._target_sums = np.asarray(
                reduce("targets", "target_sums", self.blocks, prior, size=self._weight.nbytes)
            )
            self.passes += 0.5
        return self._target_sums

    # --- curvature ---------------------------------------------------------------------------------------------------

    @property
    def holds_scores(self) -> bool:
        """Whether workers store the scores of the point."""
        return self.model.arrays >= 2

    @property
    def holds_prob(self) -> bool:
        """Whether sums of its probabilities can be had: where they are not stored, a task makes them anew."""
        return True

    def _sample(self, index: Array) -> tuple[Array, Float, Array | None]:
        """Some dense rows with their curvature and offsets, fetched once."""
        for known, (x, curvature, offset) in self._samples:
            at = np.minimum(np.searchsorted(known, index), len(known) - 1)
            if np.array_equal(known[at], index):
                return x[at], curvature[at], None if offset is None else offset[at]
        found = self.design.fetch("rows", index)
        offsets = [offset for _, _, offset in found if offset is not None]
        sample = (
            np.concatenate([x for x, _, _ in found]),
            np.concatenate([curvature for _, curvature, _ in found]),
            np.concatenate(offsets) if offsets else None,
        )
        self._samples.append((np.asarray(index), sample))
        return sample

    def row_curvature(self, index: Array) -> Float:
        """a_i t_i of some rows."""
        return self._sample(index)[1]

    def probabilities(self, index: Array, x: Array | None = None) -> Array:  # noqa: ARG002
        """S of some rows at the point."""
        if self.design.sparse:
            shifts = self._shifts
            return np.concatenate(self.design.fetch("probabilities", index, self._point, shifts))
        rows, _, offset = self._sample(index)
        z = rows.astype(self.dtype, copy=False) @ self._weight.T.astype(self.dtype) + self._bias.astype(self.dtype)
        if offset is not None:
            z += offset.astype(self.dtype)
        return softmax(z, n_threads=1)

    def spread(self, index: Array | None = None) -> float:
        """Σ a t (1 − ‖S‖²) of some rows."""
        if index is None:
            return float(self._sum("spread", "spread"))
        prob = self.probabilities(index)
        left = np.maximum(1 - np.einsum("ij,ij->i", prob, prob).astype(np.float64), 1e-12)
        return float(left @ self.row_curvature(index))

    def class_curvature(self) -> Float:
        """Σ a t S (1 − S)."""
        if not self.holds_scores:
            self.passes += 0.5
        return np.asarray(self._sum("curvature", "class_curvature"))

    def hessian_diagonal(self) -> tuple[Float, Float]:
        """Σ a t S (1 − S) x², and the same without x."""
        self.passes += 0.5
        weight, bias = self._sum("diagonal", "hessian_diagonal", numbers=self._weight.size)
        return weight, bias

    def class_grams(
        self, center: Float, square: float, kappa: float, sample: float, *, even: bool, features: Any
    ) -> tuple[Array, Float]:
        """The Gram matrices of all classes, each block's share made where it lies."""
        top = None if features is None else features.top
        curvature = self.class_curvature()
        if not self.holds_scores:
            self.passes += 0.5
        grams, counts = self._sum(
            "grams", "class_grams", center, square, kappa, sample, even, curvature, top,
            numbers=self.n_classes * (len(center) + 1) ** 2 // 2,
        )  # fmt: skip
        return grams, counts

    def hessian(self, count: int | None = None) -> Float:
        """The whole Hessian, or one from about ``count`` rows."""
        width = self.design.n_features + int(self.fit_intercept)
        self.passes += self.n_classes * width / 4 * (1.0 if count is None else count / self.design.n_rows)
        return np.asarray(self._sum("hessian", "hessian", count, numbers=(self.n_classes * width) ** 2))


def _ask(block: Any, index: Array, *rest: Any) -> Any:
    """A method, named last, with its arguments: those of a point come first."""
    *arguments, method = rest
    if method == "probabilities":
        return block.probabilities(*arguments, index)
    return getattr(block, method)(index, *arguments)
