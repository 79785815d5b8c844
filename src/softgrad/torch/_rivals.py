"""PyTorch's own way of doing what softgrad does, for ``softgrad bench``: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional

__all__ = ["cross_entropy", "linear_cross_entropy", "n_threads"]

Call = Callable[[], tuple[Any, ...]]


@contextmanager
def n_threads(wanted: int) -> Iterator[None]:
    """Let PyTorch use so many threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> Call:
    """The mean loss and its gradient by the logits; PyTorch cannot be told where to put that."""
    leaf, targets = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels)

    def run() -> tuple[Any, ...]:
        loss = functional.cross_entropy(leaf, targets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.item(), gradient.numpy()

    return run


def linear_cross_entropy(x: NDArray[Any], weight: NDArray[Any], labels: NDArray[Any]) -> Call:
    """The mean loss of ``x @ weight.T`` and its gradients by both."""
    leaves = torch.from_numpy(x).requires_grad_(), torch.from_numpy(weight).requires_grad_()
    targets = torch.from_numpy(labels)

    def run() -> tuple[Any, ...]:
        loss = functional.cross_entropy(functional.linear(*leaves), targets)
        by_x, by_weight = torch.autograd.grad(loss, leaves)
        return loss.item(), by_x.numpy(), by_weight.numpy()

    return run
