"""A sample of rows by how much each of them matters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

__all__ = ["draw"]


def draw(weight: Array, count: int) -> tuple[Array, Array]:
    """About ``count`` rows with probabilities min(1, c w), and the weights that make their sums unbiased.

    Systematic and without chance: the k-th row is where the sum of the probabilities passes k + ½.
    """
    reached = np.cumsum(weight, dtype=np.float64)
    total = float(reached[-1])
    if count >= len(weight) or total <= 0:
        return np.arange(len(weight)), weight
    if count >= np.count_nonzero(weight):
        index = np.flatnonzero(weight)
        return index, weight[index]
    c = count / total
    if c * float(weight.max()) > 1:
        for _ in range(4):  # rows that are certain leave more draws to the others
            certain = weight[weight * c >= 1]
            left, room = total - float(certain.sum(dtype=np.float64)), count - len(certain)
            if left <= 1e-9 * total or room <= 0:
                break
            c = room / left
        reached = np.cumsum(np.minimum(weight, 1 / c), dtype=np.float64)
    index = np.searchsorted(reached, (np.arange(round(c * float(reached[-1]))) + 0.5) / c)
    index = np.unique(np.minimum(index, len(weight) - 1))
    return index, np.maximum(weight[index], 1 / c)
