"""What `softgrad.check_gradient` needs of PyTorch: tensors like the user's, and gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from softgrad._core.arrays import Array


class TorchBridge:
    """Between the user's PyTorch functions and float64; NumPy's twin is in ``softgrad._checker.inputs``."""

    def __init__(self, logits: torch.Tensor, targets: Any) -> None:
        if not logits.is_floating_point():
            raise TypeError(f"logits are a tensor of {logits.dtype}; autograd needs floating-point logits")
        self.like, self.dtype = logits, str(logits.dtype).removeprefix("torch.")
        self.logits = logits.detach().cpu().to(torch.float64).numpy()
        self.soft_dtype: torch.dtype | None = None
        self.targets: Any = None
        self.label_dtype = torch.int64
        if isinstance(targets, tuple):
            self.targets = targets
        elif targets is not None:
            targets = targets if isinstance(targets, torch.Tensor) else torch.as_tensor(np.asarray(targets))
            if targets.is_floating_point():
                self.soft_dtype = targets.dtype
                self.targets = targets.detach().cpu().to(torch.float64).numpy()
            else:
                self.label_dtype = targets.dtype
                self.targets = targets.cpu().numpy()

    @property
    def soft_name(self) -> str | None:
        """The dtype of the soft targets."""
        return None if self.soft_dtype is None else str(self.soft_dtype).removeprefix("torch.")

    def make(self, o: Array, y: Array, follow: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh tensors for a user's function; ``follow`` for autograd."""
        shape = self.like.shape
        logits = torch.tensor(o, dtype=self.like.dtype, device=self.like.device).reshape(shape)
        kind = self.soft_dtype if y.ndim == 2 else self.label_dtype
        targets = torch.tensor(y, dtype=kind, device=self.like.device)
        targets = targets.reshape(shape if y.ndim == 2 else shape[:-1])
        return logits.requires_grad_(follow), targets

    def hold(self, o: Array) -> Array:
        """What the dtype holds of these numbers."""
        return np.asarray(torch.tensor(o).to(self.like.dtype).to(torch.float64).numpy())

    def hold_soft(self, y: Array) -> Array:
        """What the dtype of the soft targets holds."""
        return np.asarray(torch.tensor(y).to(self.soft_dtype).to(torch.float64).numpy())

    @staticmethod
    def numbers(result: Any) -> Array:
        """A result as float64."""
        if isinstance(result, torch.Tensor):
            return np.asarray(result.detach().cpu().to(torch.float64).numpy())
        return np.asarray(np.asarray(result).astype(np.float64))

    @staticmethod
    def loss(
        function: Callable[..., Any], logits: torch.Tensor, targets: Any, upstream: float
    ) -> tuple[Any, Any, bool]:
        """The value, its gradient (the function's own, or autograd's times ``upstream``), and whether it is its own."""
        with torch.enable_grad():
            result = function(logits, targets)
            if isinstance(result, tuple) and len(result) == 2:
                return (*result, True)
            if not logits.requires_grad or not isinstance(result, torch.Tensor) or not result.requires_grad:
                return result, None, False
            factor = torch.full_like(result, upstream)
            (gradient,) = torch.autograd.grad(result, logits, factor, allow_unused=True)
        return result, gradient, False
