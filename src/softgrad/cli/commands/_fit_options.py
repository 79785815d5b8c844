"""The options of ``softgrad fit`` that decide how it trains, and what they may be."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from softgrad.cli.terminal._messages import UserError

__all__ = ["FitOptions"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class FitOptions:
    """The options of the command, under their names."""

    split: float | None
    seed: int
    C: str
    tol: float
    max_iter: int
    label_smoothing: float
    class_weight: str | None
    calibrate: bool
    standardize: bool
    memory: str | None
    threads: int | None
    delimiter: str | None
    format: str | None
    cluster: str | None

    def check(self) -> None:
        """One line for an option that cannot be."""

        def demand(option: str, value: float | None, sound: bool, wanted: str) -> None:
            if not sound:
                raise UserError(f"{option} must be {wanted}, not {value}")

        part = 0.0 if self.split is None else self.split
        demand("--split", self.split, 0 <= part < 1, "in [0, 1): a part of the rows, or 0 for none")
        demand("--seed", self.seed, 0 <= self.seed < 2**32, "an integer in [0, 2^32)")
        demand("--tol", self.tol, 0 < self.tol < math.inf, "positive")
        demand("--max-iter", self.max_iter, 1 <= self.max_iter < 2**31, "an integer of at least 1")
        demand("--label-smoothing", self.label_smoothing, 0 <= self.label_smoothing <= 1, "in [0, 1]")
        demand("--threads", self.threads, self.threads is None or self.threads >= 1, "an integer of at least 1")

    @property
    def memory_bytes(self) -> int:
        """``--memory`` in bytes; half of the machine's if it is not given."""
        if self.memory is None:
            try:
                return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            except (AttributeError, ValueError, OSError):
                return 4 << 30
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([a-zA-Z]*)\s*", self.memory)
        try:
            amount = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
        except (KeyError, ValueError):
            amount = 0.0
        if not 1e6 <= amount < 1e18:
            raise UserError(f"--memory {self.memory}: must be at least 1MB, such as 500MB or 2GB")
        return int(amount)
