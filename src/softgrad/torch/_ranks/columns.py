"""The part of the logits that one rank holds: a slice of the classes, of rows that others may have more of.

A slice is a range of columns, as a tile in memory is one, and its records merge as those of tiles do:
the first reduction finds the maximum of each row, the kernels' own merge restates the records at it,
and records with the same peak add up in the second reduction.  What follows is computed from equal
numbers on every rank, so its bits are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core.arrays import Array
from softgrad._core.backend import Storage
from softgrad._core.schedule import statistics_dtype
from softgrad.torch._formulas import Columns, RowOptions
from softgrad.torch._ranks.group import ALONE, Later, Place, Sum, Vary, maximum, total


class RankColumns(Columns):
    """`Columns` of a rank's place among the classes and of the groups that hold other rows."""

    def __init__(self, place: Place, row_groups: tuple[Any, ...], *, sums_inputs: bool = False) -> None:
        self.group, self.row_groups = place.group, row_groups
        self.whole = place.group is ALONE
        self.first, self.classes, self.widest = place.offset, place.classes, max(place.sizes)
        self.sums_inputs = sums_inputs and not self.whole

    def maximum(self, tensor: Tensor) -> Tensor:
        """Return the largest over the slices of the classes."""
        return maximum(tensor, self.group)

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the slices of the classes."""
        return tensor if self.whole else Sum.apply(tensor, (self.group,))

    def vary(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is equal on all slices, for use with this one."""
        return tensor if self.whole else Vary.apply(tensor, (self.group,))

    def total_of_rows(self, tensor: Tensor) -> Tensor:
        """Return the sum over the parts that hold other rows."""
        return Sum.apply(tensor, self.row_groups) if self.row_groups else tensor

    def vary_by_rows(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is equal on the parts that hold other rows, for use with these rows."""
        return Vary.apply(tensor, self.row_groups) if self.row_groups else tensor

    def merge(self, head: Any, records: Array, storage: Any, options: RowOptions, unit_mass: bool) -> None:
        """Merge the kernels' records of all slices, in place; ``unit_mass``: each target has a mass of 1."""
        sign = -1.0 if options.softcap is None and options.logit_scale < 0 else 1.0  # of the largest logits
        kind = np.float64 if storage is Storage.float64 else np.float32
        peaks = maximum(torch.from_numpy((sign * records["peak"]).astype(kind)), self.group)
        common = np.zeros(len(records), statistics_dtype())
        common["peak"], common["best"], common["argmax"] = sign * peaks.numpy().astype(np.float64), -np.inf, -1
        head.merge(records, common)
        fields = ["at_peak", "rest", "target_dot"]
        if unit_mass:
            records["target_mass"] = 1.0
        else:
            fields.append("target_mass")
        if options.label_smoothing:
            fields += ["smooth_mass", "smooth_dot"] + ["finite"] * options.smooth_finite_only
        sums = total(torch.from_numpy(np.stack([records[name] for name in fields])), (self.group,)).numpy()
        for name, column in zip(fields, sums, strict=True):
            records[name] = column
        records["peak"] = common["peak"]

    def adding(self) -> Later:
        """Return sums over the slices that end later."""
        return Later(self.group)
