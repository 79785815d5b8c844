"""The whole Hessian of the loss, of all rows or of those that add most to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.rows._design import Design, Slot
from softgrad.regression.rows._sample import draw
from softgrad.regression.rows._sparse import is_sparse

Array = NDArray[Any]
Float = NDArray[np.float64]

BLOCK_NUMBERS = 1 << 17  # of the products of probabilities and features at a time

__all__ = ["add_rows", "collect", "sampled_hessian", "sizes"]


def sizes(design: Design) -> Array:
    """The squares of each row's features, each by its mean, and one: how much a row adds beside its probabilities."""
    tiles = [design.rows(np.arange(lo, hi), np.float32) for lo, hi in design.edges(design.n_rows)]
    mean = np.sum([np.einsum("ij,ij->j", x, x, dtype=np.float64) for x in tiles], axis=0) / design.n_rows
    share = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0).astype(np.float32)
    return np.asarray(np.concatenate([(x * x) @ share for x in tiles]) / design.n_features + 1)


def sampled_hessian(
    design: Design, prob: Array, curvature: Float | None, size: Array, count: int, width: int
) -> tuple[Float, int]:
    """The Hessian from about ``count`` rows, drawn by how much each adds; and how many rows were drawn."""
    k = prob.shape[1]
    adds = np.maximum(1 - np.einsum("ij,ij->i", prob, prob), 1e-12) * size
    index, weight = draw(adds if curvature is None else adds * curvature, count)
    slot = Slot(design, k)
    add_rows(slot, design.rows(index, np.float64), prob[index], weight / adds[index], width)
    return collect([slot], k, width), len(index)


def add_rows(slot: Slot, x: Any, prob: Array, h: Array | None, width: int) -> None:
    """Add −Σ (S_i ⊗ x_i)(S_i ⊗ x_i)ᵀ of some rows, and the diagonal blocks Σ S_ik (1 − S_ik) x_i x_iᵀ.

    1 − S_ik is the sum of the other probabilities: of rows that are told, the difference would have no digit.
    """
    k = prob.shape[1]
    others = 1 - np.eye(k)
    if slot.hessian is None or slot.grams is None:
        slot.hessian, slot.grams = np.zeros((k * width, k * width)), np.zeros((width, k * width))
    step = max(16, BLOCK_NUMBERS // (k * width))
    for lo in range(0, x.shape[0], step):
        part = slice(lo, min(lo + step, x.shape[0]))
        rows = part.stop - part.start
        wide = slot.scratch("wide", rows, width, np.float64)
        wide[:, : x.shape[1]] = x[part].toarray() if is_sparse(x) else x[part]
        wide[:, x.shape[1] :] = 1
        if h is not None:
            wide *= np.sqrt(h[part])[:, None]
        outer = slot.scratch("outer", rows, k * width, np.float64)
        each = outer.reshape(rows, k, width)
        wide_prob = prob[part].astype(np.float64)
        np.multiply(wide_prob[:, :, None], wide[:, None, :], out=each)
        slot.hessian -= np.matmul(outer.T, outer)
        each *= (wide_prob @ others)[:, :, None]
        slot.grams += np.matmul(wide.T, outer)


def collect(slots: list[Slot], k: int, width: int) -> Float:
    """Sum the slots, which are emptied, into the Hessian: parameters (W_k, b_k) class by class, in float64."""
    total, grams = np.zeros((k * width, k * width)), np.zeros((width, k * width))
    for slot in slots:
        if slot.hessian is not None and slot.grams is not None:
            total += slot.hessian
            grams += slot.grams
            slot.hessian = slot.grams = None
    for j in range(k):
        block = slice(j * width, (j + 1) * width)
        total[block, block] = grams[:, block]
    return total
