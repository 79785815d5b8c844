"""PyTorch's deprecated spelling of reductions."""

from __future__ import annotations

from torch.nn import _reduction


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that ``size_average`` and ``reduce`` name, with PyTorch's warning, or ``reduction``.

    As in `torch.nn.functional.cross_entropy`, each of them wins over ``reduction``, and None of one counts as True
    where the other is given.
    """
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)
