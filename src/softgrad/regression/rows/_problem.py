"""The penalised loss of softmax regression over tiles of rows: every sum over the rows that a solver needs.

    F(W, b) = C f(W, b),   f = Σ_i a_i ℓ_i(W x_i + b + offset_i) + ½ κ ‖W‖²,   κ = 1 / C

with ℓ(z) = t·lse(z) − Σ_j y_j z_j, y the effective target w∘((1−ε) y + ε/K) and t its sum (softgrad.reference).  Two
classes are two rows W₁ = −W₀ with κ = 2 / C: their difference w = W₁ − W₀ is the binomial model, penalty ½‖w‖².

Passes over X: `gradient` one (scores and back), `product` one (a Hessian product), `direction` half, `line` none.
Precision: float32 tiles; float64 when asked (`precise`), and for little data.  Sums over rows in float64.
Scores, probabilities and the scores of a direction are stored where they fit the memory, else made again tile by tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad._core import backend
from softgrad._core.backend import KernelOptions, Storage, TargetKind
from softgrad._core.threads import run_blocks
from softgrad.regression.rows._class_grams import class_grams
from softgrad.regression.rows._design import Design, Slot, reduce_slots
from softgrad.regression.rows._hessian import add_rows, collect, sampled_hessian, sizes
from softgrad.regression.rows._layer import NarrowLayer
from softgrad.regression.rows._row_sums import LossAtPoint, RowSums, levelled
from softgrad.regression.rows._sparse import is_sparse

Array = NDArray[Any]
Float = NDArray[np.float64]

SMALL = 2_000_000  # multiplications of half a pass
MOST_LEVELLED = 256  # classes
STORED = 32 << 20  # bytes beyond two (N, K) arrays that a fit may keep without being asked
MOST_STORED = 4 << 30  # bytes in all: a hundred thousand classes would ask for more than there is

__all__ = ["LossAtPoint", "Problem"]


def storage_of(scores: Array) -> Any:
    """Return how the kernels call the type of scores."""
    return Storage.float64 if scores.dtype == np.float64 else Storage.float32


class Problem(RowSums):
    """Data, targets and weights, checked elsewhere; the state is the point whose scores are stored."""

    def __init__(
        self,
        design: Design,
        targets: Array,
        n_classes: int,
        *,
        sample_weight: Float | None,
        class_weight: Float | None,
        label_smoothing: float,
        offset: Array | None,
        fit_intercept: bool,
        max_memory: int | None,
        n_threads: int,
        small: bool | None = None,
    ) -> None:
        self.design, self.targets, self.n_classes, self.n_threads = design, targets, n_classes, n_threads
        self.row_weight = sample_weight
        self.class_weight, self.smoothing = class_weight, label_smoothing
        self.offset, self.fit_intercept = offset, fit_intercept
        n, k = design.n_rows, n_classes
        w = np.ones(k) if class_weight is None else class_weight
        a = np.ones(n) if sample_weight is None else sample_weight
        even = label_smoothing * w / k
        if targets.ndim == 1:
            counts = np.bincount(targets, weights=sample_weight, minlength=k).astype(np.float64)
            mass = (1 - label_smoothing) * w[targets] + even.sum()
            self.class_mass = (1 - label_smoothing) * w * counts + even * a.sum()
        else:
            mass = (1 - label_smoothing) * (targets @ w) + even.sum()
            self.class_mass = (1 - label_smoothing) * w * (a @ targets) + even * a.sum()
        curvature = a * mass  # the Hessian's row weights a_i t_i
        self.curvature = None if np.all(curvature == 1) else curvature
        self.mass = float(curvature.sum())
        self.passes = 0.0
        self.losses = np.empty(n)
        # Little data are computed in float64 throughout.
        self.small = design.n_rows * design.n_features * k <= SMALL if small is None else small
        self.dtype: Any = np.float64 if self.small else np.float32
        self.slots: list[Slot] = []
        pair = 2 * n * k * np.dtype(self.dtype).itemsize
        budget = min(pair + STORED, MOST_STORED) if max_memory is None else max_memory
        both = np.empty((2, n, k), self.dtype) if pair <= budget else None
        self.scores: Array | None = None if both is None else both[0]
        self.along: Array | None = None if both is None else both[1]
        # Scores in float64 take the memory of both for as long as a gradient needs them.
        self.wide = None if both is None or self.small else both.reshape(-1).view(np.float64).reshape(n, k)
        self.prob = np.empty((n, k), self.dtype) if 3 * pair // 2 <= budget else None
        self.layer = NarrowLayer(design, k)
        self.point = self.layer.parameters(np.zeros((k, design.n_features)), np.zeros(k), self.dtype)
        self.step_to = self.point
        self._target_sums: Float | None = None
        self._sizes: Array | None = None

    # --- tiles -------------------------------------------------------------------------------------------------------

    def walk(self, work: Any, dtype: Any, *, stored: bool = False) -> list[Slot]:
        self.slots = self.design.walk(work, dtype, self.n_threads, self.slots, stored=stored and self.layer.native)
        return self.slots

    def _product(self, slot: Slot, name: str, x: Any, parameters: tuple[Array, Array]) -> Array:
        """``x Wᵀ + b`` of a tile."""
        z = slot.scratch(name, x.shape[0], self.n_classes, parameters[1].dtype)
        return self.layer.scores(slot, x, parameters, z)

    def _scores_of(self, slot: Slot, x: Any, lo: int, hi: int, point: tuple[Array, Array]) -> Array:
        z = self._product(slot, "scores", x, point)
        if self.offset is not None:
            z += self.offset[lo:hi]
        return z

    def head(self, z: Array, lo: int, hi: int) -> Any:
        """The kernels' view of a tile of scores with its targets."""
        targets = self.targets[lo:hi]
        if targets.ndim == 1:
            record = backend.kernels().Targets(TargetKind.labels, targets)
        else:
            record = backend.kernels().Targets(TargetKind.dense, None, targets, Storage.float64)
        weight = None if self.class_weight is None else self.class_weight.astype(z.dtype)
        a = None if self.row_weight is None else self.row_weight[lo:hi]
        return backend.kernels().Head(z, storage_of(z), record, KernelOptions(self.smoothing), weight, a)

    def _loss(self, z: Array, lo: int, hi: int, *, grad: bool, losses: bool = True) -> None:
        """Row losses of a tile of scores, and the gradient over them."""
        rows = len(z)
        to = self.losses[lo:hi] if losses else None
        outputs = backend.kernels().Outputs(rows, self.n_classes, storage_of(z), to, grad=z if grad else None)
        self.head(z, lo, hi).rows(outputs, 0, rows)

    def _softmax(self, z: Array, out: Array) -> Array:
        none = backend.kernels().Targets(TargetKind.none)
        backend.kernels().Head(z, storage_of(z), none, KernelOptions()).distribution(False, out, 0, len(z))
        return out

    def prob_of(self, slot: Slot, x: Any, lo: int, hi: int) -> Array:
        if self.prob is not None:
            return self.prob[lo:hi]
        z = self.scores[lo:hi] if self.scores is not None else self._scores_of(slot, x, lo, hi, self.point)
        return self._softmax(z, slot.scratch("prob", len(z), self.n_classes, z.dtype))

    # --- what solvers call -------------------------------------------------------------------------------------------

    def gradient(self, weight: Float, bias: Float, *, precise: bool = False, known: bool = False) -> LossAtPoint:
        """Loss and gradient at a point, which becomes the stored one; ``known``: its scores are stored already."""
        loss, g, gb = self.sums(weight, bias, precise=precise, known=known)
        return LossAtPoint.of(loss, g, gb, weight, bias, self.mass)

    def sums(self, weight: Float, bias: Float, *, precise: bool, known: bool) -> tuple[float, Float, Float]:
        """Σ a ℓ and its gradient, as `gradient`."""
        dtype = np.float64 if precise else self.dtype
        at = self.layer.parameters(weight, bias, dtype)
        self.point = self.layer.parameters(weight, bias, self.dtype)
        same = np.dtype(dtype) == np.dtype(self.dtype)
        held = self.scores if same else self.wide
        known = known and held is not None
        fused = self.layer.native and self.offset is None

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            kept = None if held is None else held[lo:hi]
            prob = self.prob[lo:hi] if self.prob is not None and same else None
            if fused:
                z = slot.scratch("scores", hi - lo, self.n_classes, dtype) if kept is None else kept
                self.layer.gradient(slot, x, at, self.head(z, lo, hi), z, self.losses[lo:hi], prob, known)
                return
            if known and kept is not None:
                z = slot.scratch("scores", hi - lo, self.n_classes, dtype)
                z[...] = kept
            else:
                z = self._scores_of(slot, x, lo, hi, at)
                if kept is not None:
                    kept[...] = z
            if prob is not None:
                self._softmax(z, prob)
            self._loss(z, lo, hi, grad=True)
            slot.add(x, z, np.float64, lo)

        slots = self.walk(work, dtype, stored=fused)
        if not same:
            self._narrow()
        self.passes += 0.5 if known else 1.0
        g, gb = reduce_slots(slots, self.design, self.n_threads)
        return float(self.losses.sum()), g, gb

    def _narrow(self) -> None:
        """Scores in float32 again, from those in float64 in the same memory: first rows first."""
        if self.wide is None or self.scores is None:
            return
        step = max(1, (1 << 18) // self.n_classes)
        for lo in range(0, len(self.scores), step):
            part = slice(lo, lo + step)
            self.scores[part] = self.wide[part].copy()
            if self.prob is not None:
                self._softmax(self.scores[part], self.prob[part])

    def settle(self, weight: Float, bias: Float, *, precise: bool, known: bool, enough: float = 0.0) -> Float | None:
        """Store the scores of a point (unless ``known``) and level its intercepts; returns how far these moved."""
        held = self.store(weight, bias, precise=precise, known=known)
        if held is None:
            return None
        return levelled(
            lambda: self.level_sums(held), lambda by: self.shift(held, by), self.class_mass, held.dtype, enough
        )

    def store(self, weight: Float, bias: Float, *, precise: bool, known: bool) -> Array | None:
        """Store the scores of a point (unless ``known``), where intercepts can be levelled with them."""
        same = not precise or self.small
        held = self.scores if same else self.wide
        if held is None or not self.fit_intercept or self.n_classes > MOST_LEVELLED:
            return None
        if not weight.any():
            held[...] = bias
            if self.offset is not None:
                held += self.offset
        elif precise or not known:
            at = self.layer.parameters(weight, bias, held.dtype)

            def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
                if self.layer.native:
                    self.layer.scores(slot, x, at, held[lo:hi])
                    if self.offset is not None:
                        held[lo:hi] += self.offset[lo:hi]
                else:
                    held[lo:hi] = self._scores_of(slot, x, lo, hi, at)

            self.walk(work, held.dtype, stored=True)
            self.passes += 0.5
        return held

    def product(self, weight: Array, bias: Array) -> tuple[Float, Float]:
        """The Hessian of the loss at the stored point times a direction."""
        d = self.layer.parameters(weight, bias, self.dtype, rough=True)
        curvature = backend.kernels().curvature

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            prob = self.prob_of(slot, x, lo, hi)
            weight = None if self.curvature is None else self.curvature[lo:hi]
            if self.layer.native:
                self.layer.curvature(slot, x, d, prob, weight)
                return
            v = self._product(slot, "along", x, d)
            curvature(prob, weight, v)
            slot.add(x, v, self.dtype, lo, rough=True)

        slots = self.walk(work, self.dtype)
        self.passes += 1.0 if self.scores is not None or self.prob is not None else 1.5
        return reduce_slots(slots, self.design, self.n_threads)

    def direction(self, weight: Array, bias: Array) -> float:
        """Take a direction's scores; returns the root of their mean square: what a step does to most rows."""
        self.step_to = self.layer.parameters(weight, bias, self.dtype)

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            to = slot.scratch("along", hi - lo, self.n_classes, self.dtype) if self.along is None else self.along[lo:hi]
            v = self.layer.scores(slot, x, self.step_to, to)
            slot.scalars[0] += float(np.vdot(v, v))

        slots = self.walk(work, self.dtype)
        self.passes += 0.5
        return float(np.sqrt(sum(float(slot.scalars[0]) for slot in slots) / (self.design.n_rows * self.n_classes)))

    def line(self, step: float) -> float:
        """Σ a ℓ at a step along the direction."""

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            if self.scores is not None and self.along is not None:
                z = np.multiply(
                    self.along[lo:hi], self.dtype(step), out=slot.scratch("scores", hi - lo, self.n_classes, self.dtype)
                )
                z += self.scores[lo:hi]
            else:
                z = self._scores_of(slot, x, lo, hi, self.point)
                z += self.dtype(step) * self._product(slot, "along", x, self.step_to)
            self._loss(z, lo, hi, grad=False)

        if self.scores is not None:
            self._without_rows(work)
        else:
            self.walk(work, self.dtype)
            self.passes += 1.0
        return float(self.losses.sum())

    def advance(self, step: float) -> None:
        """Move the stored scores by a step along the direction."""
        if self.scores is None or self.along is None:
            return
        scores, along = self.scores, self.along

        def work(slot: Slot, lo: int, hi: int, _: Any) -> None:
            scratch = slot.scratch("along", hi - lo, self.n_classes, self.dtype)
            scores[lo:hi] += np.multiply(along[lo:hi], self.dtype(step), out=scratch)

        self._without_rows(work)

    def level_sums(self, scores: Array) -> Float:
        """Σ_i h_i S_i, and below it Σ_i h_i S_i S_iᵀ, of stored scores: (K + 1, K)."""
        k, dtype = self.n_classes, scores.dtype

        def sums(slot: Slot, lo: int, hi: int, _: Any) -> None:
            s = self._softmax(scores[lo:hi], slot.scratch("prob", hi - lo, k, dtype))
            h = np.ones(hi - lo) if self.curvature is None else self.curvature[lo:hi]
            slot.level[0] += h @ s
            weighted = s if self.curvature is None else h.astype(dtype)[:, None] * s
            slot.level[1:] += weighted.T @ s

        self._without_rows(sums)
        return np.asarray(np.sum([slot.level for slot in self.slots], axis=0))

    def shift(self, scores: Array, by: Array) -> None:
        """Add to the stored scores of all rows."""

        def move(_: Slot, lo: int, hi: int, __: Any) -> None:
            scores[lo:hi] += by

        self._without_rows(move)

    def _without_rows(self, work: Any) -> None:
        """Walk stored (N, K) arrays: X is not read."""
        rows = self.design.n_rows
        count = max(1, -(-rows * self.n_classes * 4 // (1 << 18)))
        groups = min(count, 16)
        while len(self.slots) < groups:
            self.slots.append(Slot(self.design, self.n_classes))
        for slot in self.slots:
            slot.level = np.zeros((self.n_classes + 1, self.n_classes)) if self.n_classes <= MOST_LEVELLED else None

        def group(j: int) -> None:
            for i in range(count * j // groups, count * (j + 1) // groups):
                work(self.slots[j], rows * i // count, rows * (i + 1) // count, None)

        run_blocks(group, groups, self.n_threads)

    @property
    def offset_range(self) -> float:
        """The largest difference between two offsets of a row; 0 without offsets."""
        if self.offset is None:
            return 0.0
        return float((self.offset.max(axis=1) - self.offset.min(axis=1)).max(initial=0.0))

    def target_sums(self) -> Float:
        """Σ_i a_i y_i x_iᵀ (K, P): from the gradient where no row is told from another."""
        if self._target_sums is None:
            self._target_sums = self.target_sums_by(np.maximum(self.class_mass / self.mass, 1e-300))
        return self._target_sums

    def target_sums_from(self, gradient: Float, prior: Float, x: Float) -> None:
        """Keep `target_sums`, from the gradient at a point where S is the same for all rows, and these rows."""
        mass = np.ones(len(x)) if self.curvature is None else self.curvature
        self._target_sums = np.outer(prior, mass @ x) - gradient

    def target_sums_by(self, prior: Float) -> Float:
        """The same by the gradient at some S that is the same for all rows."""
        k, logs = self.n_classes, np.log(prior)
        self.slots = []
        fused = self.layer.native
        at = self.layer.parameters(np.zeros((k, self.design.n_features)), np.zeros(k), np.float64)

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            z = slot.scratch("scores64", hi - lo, k, np.float64)
            z[...] = logs
            if fused:
                losses = slot.scratch("losses", hi - lo, 1, np.float64)[:, 0]
                self.layer.gradient(slot, x, at, self.head(z, lo, hi), z, losses, None, True)
            else:
                self._loss(z, lo, hi, grad=True, losses=False)
                slot.add(x, z.astype(x.dtype, copy=False), np.float64)
            if not self.design.sparse and x.dtype != np.float64:
                wide = slot.scratch("x64", x.shape[0], x.shape[1], np.float64)
                wide[...] = x
                x = wide
            sums = (np.ones(hi - lo) if self.curvature is None else self.curvature[lo:hi]) @ x
            slot.mean = sums if slot.mean is None else slot.mean + sums

        slots = self.walk(work, np.float64, stored=fused)  # part of a bound that is claimed in float64
        g, _ = reduce_slots(slots, self.design)
        mean = np.sum([slot.mean for slot in slots if slot.mean is not None], axis=0)
        self.slots = []
        self.passes += 0.5
        return np.outer(prior, mean) - g

    def gram(self) -> Float:
        """Return Σ x xᵀ over the rows that count, with a 1 for the intercept."""
        p, width = self.design.n_features, self.design.n_features + int(self.fit_intercept)

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            wide = slot.scratch("wide", hi - lo, width, np.float64)
            wide[:, :p], wide[:, p:] = x.toarray() if is_sparse(x) else x, 1
            if self.curvature is not None:
                wide[self.curvature[lo:hi] == 0] = 0
            part = wide.T @ wide
            slot.mean = part if slot.mean is None else slot.mean + part

        for slot in self.slots:
            slot.mean = None
        slots = self.walk(work, np.float64)
        total = np.sum([slot.mean for slot in slots if slot.mean is not None], axis=0)
        for slot in slots:
            slot.mean = None
        return np.asarray(total)

    def hessian_diagonal(self) -> tuple[Float, Float]:
        """Σ_i a_i t_i S_ik (1 − S_ik) x_ij² (K, P), and the same without x (K,)."""

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            s = self.prob_of(slot, x, lo, hi)
            v = s * (1 - s)
            if self.curvature is not None:
                v *= self.curvature[lo:hi, None]
            if self.design.turns:
                slot.add(x, v, np.float64, lo)
                return
            if self.design.sparse:
                square = x.power(2)
            else:
                square = x * x
            slot.add(square, v, np.float64)

        if self.design.turns and self.curvature is None and self.even():
            s = self.probabilities(np.zeros(1, np.intp))[0].astype(np.float64)
            return np.outer(self.design.turned().squares, s * (1 - s)).T, self.design.n_rows * s * (1 - s)
        slots = self.walk(work, self.dtype)
        self.passes += 0.5
        if self.design.turns:
            total = np.sum([slot.bias for slot in slots if slot.bias is not None], axis=0)
            return self.design.turned().back(self.n_threads, square=True), np.asarray(total)
        return reduce_slots(slots, self.design)

    @property
    def holds_scores(self) -> bool:
        """Whether the scores of the stored point are stored."""
        return self.scores is not None

    @property
    def holds_prob(self) -> bool:
        """Whether its probabilities are stored."""
        return self.prob is not None

    def row_curvature(self, index: Array) -> Float:
        """a_i t_i of some rows."""
        return np.ones(len(index)) if self.curvature is None else self.curvature[index]

    def class_curvature(self) -> Float:
        """Σ_i a_i t_i S_ik (1 − S_ik) (K,)."""
        prob = self.prob
        assert prob is not None
        h = np.ones(len(prob), prob.dtype) if self.curvature is None else self.curvature.astype(prob.dtype)
        return np.asarray(h @ (prob * (1 - prob)), dtype=np.float64)

    def class_grams(
        self, center: Float, square: float, kappa: float, sample: float, *, even: bool, features: Any
    ) -> tuple[Array, Float]:
        """The Gram matrices of `_class_blocks`, and the rows drawn for each class."""
        assert self.prob is not None
        return class_grams(self, self.prob, self.curvature, center, square, kappa, sample, even=even, features=features)

    def hessian(self, count: int | None = None) -> Float:
        """The whole Hessian, dense; ``count``: of about so many rows."""
        k, width = self.n_classes, self.design.n_features + int(self.fit_intercept)
        worth = k * width / 4  # in products with the rows, what the multiplications are worth
        if count is not None:
            assert self.prob is not None
            if self._sizes is None:
                self._sizes = sizes(self.design)
            whole, rows = sampled_hessian(self.design, self.prob, self.curvature, self._sizes, count, width)
            self.passes += worth * rows / self.design.n_rows
            return whole

        def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
            h = None if self.curvature is None else self.curvature[lo:hi]
            add_rows(slot, x, self.prob_of(slot, x, lo, hi), h, width)

        for slot in self.slots:
            slot.hessian = slot.grams = None
        slots = self.walk(work, self.dtype)
        self.passes += worth
        return collect(slots, k, width)

    def even(self) -> bool:
        """Whether stored probabilities are the same in all rows: they are at the start."""
        return self.prob is not None and not np.ptp(self.prob, axis=0).any()

    def probabilities(self, index: Array, x: Array | None = None) -> Array:
        """S of some rows at the stored point; their features are needed where nothing is stored."""
        if self.prob is not None:
            return np.asarray(self.prob[index])
        if self.scores is not None:
            z = np.asarray(self.scores[index])
        else:
            assert x is not None
            k = self.n_classes
            z = x @ self.point[0][:, :k] + self.point[1][:k]
            if self.offset is not None:
                z += self.offset[index]
        return self._softmax(z, z)

    def spread(self, index: Array | None = None) -> float:
        """Σ_i a_i t_i (1 − ‖S_i‖²) of some rows at the stored point: how much curvature there is."""
        prob = (
            self.prob
            if index is None and self.prob is not None
            else self.probabilities(np.arange(len(self.losses)) if index is None else index)
        )
        left = np.maximum(1 - np.einsum("ij,ij->i", prob, prob).astype(np.float64), 1e-12)
        if self.curvature is None:
            return float(left.sum())
        return float(left @ (self.curvature if index is None else self.curvature[index]))
