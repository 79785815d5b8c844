"""The whole Hessian of the loss, of all rows or of those that add most to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression._design import Design, Slot
from softgrad.regression._sample import draw

if TYPE_CHECKING:
    from softgrad.regression._problem import Problem

Array = NDArray[Any]
Float = NDArray[np.float64]

BLOCK_NUMBERS = 1 << 17  # of the products of probabilities and features at a time

__all__ = ["hessian", "sampled_hessian", "sizes"]


def hessian(problem: Problem) -> Float:
    """The Hessian of the loss at the stored point, dense: parameters (W_k, b_k) class by class, in float64."""
    k, width = problem.n_classes, problem.design.n_features + int(problem.fit_intercept)

    def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
        if slot.hessian is None:
            _empty(slot, k, width)
        h = None if problem.curvature is None else problem.curvature[lo:hi]
        _add(slot, x, problem.prob_of(slot, x, lo, hi), h, width)

    for slot in problem.slots:
        slot.hessian = slot.grams = None
    slots = problem.walk(work, problem.dtype)
    problem.passes += k * width / 4  # in products with the rows, what the multiplications are worth
    return _whole(slots, k, width)


def sizes(design: Design) -> Array:
    """The squares of each row's features, each by its mean, and one: how much a row adds beside its probabilities."""
    tiles = [design.rows(np.arange(lo, hi), np.float32) for lo, hi in design.edges(design.n_rows)]
    mean = np.sum([np.einsum("ij,ij->j", x, x, dtype=np.float64) for x in tiles], axis=0) / design.n_rows
    share = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0).astype(np.float32)
    return np.asarray(np.concatenate([(x * x) @ share for x in tiles]) / design.n_features + 1)


def sampled_hessian(problem: Problem, size: Array, count: int) -> Float:
    """The same from about ``count`` rows, drawn by how much each adds."""
    design, k, width = problem.design, problem.n_classes, problem.design.n_features + int(problem.fit_intercept)
    assert problem.prob is not None
    adds = np.maximum(1 - np.einsum("ij,ij->i", problem.prob, problem.prob), 1e-12) * size
    index, weight = draw(adds if problem.curvature is None else adds * problem.curvature, count)
    slot = _empty(Slot(design, k), k, width)
    _add(slot, design.rows(index, np.float64), problem.prob[index], weight / adds[index], width)
    problem.passes += k * width / 4 * len(index) / design.n_rows
    return _whole([slot], k, width)


def _empty(slot: Slot, k: int, width: int) -> Slot:
    slot.hessian, slot.grams = np.zeros((k * width, k * width)), np.zeros((width, k * width))
    return slot


def _add(slot: Slot, x: Array, prob: Array, h: Array | None, width: int) -> None:
    """−Σ (S_i ⊗ x_i)(S_i ⊗ x_i)ᵀ of some rows, and the Gram matrices Σ S_ik x_i x_iᵀ of the diagonal blocks."""
    k = prob.shape[1]
    step = max(16, BLOCK_NUMBERS // (k * width))
    for lo in range(0, len(x), step):
        part = slice(lo, min(lo + step, len(x)))
        rows = part.stop - part.start
        wide = slot.scratch("wide", rows, width, np.float64)
        wide[:, : x.shape[1]] = x[part]
        wide[:, x.shape[1] :] = 1
        if h is not None:
            wide *= np.sqrt(h[part])[:, None]
        outer = slot.scratch("outer", rows, k * width, np.float64)
        np.multiply(prob[part].astype(np.float64)[:, :, None], wide[:, None, :], out=outer.reshape(rows, k, width))
        slot.hessian -= np.matmul(outer.T, outer)
        slot.grams += np.matmul(wide.T, outer)


def _whole(slots: list[Slot], k: int, width: int) -> Float:
    total, grams = np.zeros((k * width, k * width)), np.zeros((width, k * width))
    for slot in slots:
        if slot.hessian is not None:
            total += slot.hessian
            grams += slot.grams
            slot.hessian = slot.grams = None
    for j in range(k):
        block = slice(j * width, (j + 1) * width)
        total[block, block] += grams[:, block]
    return total
