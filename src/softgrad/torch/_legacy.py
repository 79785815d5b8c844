"""PyTorch's deprecated ways of asking for a reduction."""

from __future__ import annotations

from torch.nn import _reduction


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that ``size_average`` and ``reduce`` ask for, with PyTorch's warning, or ``reduction``."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)
