"""A slice of the classes through the kernels: this rank's statistics, all ranks' merged, its part of the gradient.

The kernels summarise ranges of columns, and make the gradient of a range of columns from the summary of the whole row:
a rank's slice is such a range.  Records of different ranks merge by log-sum-exp, as those of tiles do: the first
reduction finds the maximum, the kernels' own merge restates the records at it, and the second reduction adds them up.
Losses are then computed from the same sums on every rank, in float64, so that their bits are the same.

Labels become sparse targets, whose index −1 says that the label is another rank's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softgrad._core import backend
from softgrad._core.arrays import Array, LogitRows
from softgrad._core.backend import Storage
from softgrad._core.call import build_head
from softgrad._core.options import Options
from softgrad._core.schedule import run_gradient, run_statistics, statistics_dtype
from softgrad._core.targets import NO_TARGETS
from softgrad._core.weights import class_weights
from softgrad.torch._batch import row_weights_of, targets_of, weights_of
from softgrad.torch._parallel_group import Place, maximum, total

RECORD = statistics_dtype()


class Factors(NamedTuple):
    """What ``mean`` divides by, and whether it is taken over nothing."""

    ce: float
    z: float
    void: bool


class Slice:
    """What all tiles of rows share: targets, weights and options as the kernels want them."""

    def __init__(
        self, place: Place, options: Options, rows: LogitRows, tensors: tuple[Any, ...], n_threads: int
    ) -> None:
        target, values, weight, sample_weight = tensors
        self.place, self.options, self.storage, self.n_threads = place, options, rows.storage, n_threads
        self.n = len(rows.array)
        self.labelled = values is None and not target.is_floating_point()
        self.weighted = weight is not None
        a = row_weights_of(sample_weight)
        self.a = np.ones(self.n) if a is None else a
        if self.labelled:
            flat = target.reshape(-1)
            if options.ignore_index is not None:
                self.a = np.where(flat.numpy() == options.ignore_index, 0.0, self.a)
            target, values = target[..., None], torch.ones((), dtype=torch.float32).expand(*target.shape, 1)
        if values is not None:
            index = target.long() - place.offset
            target = torch.where((index >= 0) & (index < place.own) & (target >= 0), index, -1)
        self.empty = place.own == 0
        if not self.empty:
            self.targets = targets_of(target, values, rows)
            self.weights = class_weights(weights_of(weight), rows, "weight")
        # The kernels divide the smoothing among the columns they see, so what they are told of is ε' of those, and a
        # factor c beside it: c (1 − ε') = 1 − ε and c ε'/V_own = ε/V.
        self.share, self.factor = options.label_smoothing, 1.0
        if options.label_smoothing and not options.smooth_finite_only and not self.empty:
            own = options.label_smoothing * place.own / place.classes
            self.factor = 1 - options.label_smoothing + own
            self.share = own / self.factor
        self.told = replace(options, label_smoothing=self.share, ignore_index=None).record()

    def _head(self, logits: Array, lo: int, hi: int, upstream: Array | None = None) -> Any:
        a = self.a[lo:hi]
        if upstream is not None:
            a = np.where(a == 0, 0.0, a * upstream[lo:hi])
        part = self.targets
        part = part._replace(
            labels=None if part.labels is None else part.labels[lo:hi],
            values=None if part.values is None else part.values[lo:hi],
        )
        return build_head(logits, self.storage, part, self.told, self.weights, np.ascontiguousarray(a))

    def statistics(self, logits: Array, lo: int, hi: int) -> Array:
        """Records of the rows [lo, hi) over this rank's columns."""
        if self.empty:
            return self.nothing(hi - lo)
        n, cols = logits.shape
        outputs = backend.kernels().Outputs(n, cols, self.storage)
        return run_statistics(self._head(logits, lo, hi), outputs, n, cols, self.n_threads)

    def nothing(self, n: int) -> Array:
        records = np.zeros(n, RECORD)
        records["peak"], records["best"], records["argmax"] = self.masked, -np.inf, -1
        return records

    @property
    def sign(self) -> float:
        """Of the direction in which logits are large."""
        return -1.0 if self.options.logit_scale < 0 and self.options.softcap is None else 1.0

    @property
    def masked(self) -> float:
        """A peak where every column is masked."""
        return -self.sign * np.inf

    def merge(self, records: Array) -> None:
        """Merge the records of all ranks, in place: two reductions."""
        kind = np.float64 if self.storage is Storage.float64 else np.float32  # the type of the peaks
        peaks = torch.from_numpy((self.sign * records["peak"]).astype(kind))
        peak = self.sign * maximum(peaks, self.place.group).numpy().astype(np.float64)
        restated = self.nothing(len(records))
        restated["peak"] = peak
        if not self.empty and len(records):
            _any_head(self).merge(records, restated)
        fields = ["at_peak", "rest", "target_mass", "target_dot"]
        if self.options.label_smoothing:
            fields += ["smooth_mass", "smooth_dot"]
            if self.options.smooth_finite_only:
                fields.append("finite")
        packed = total(torch.from_numpy(np.stack([records[name] for name in fields])), (self.place.group,)).numpy()
        for name, values in zip(fields, packed, strict=True):
            records[name] = values
        records["peak"] = peak

    def factors(self, records: Array, row_groups: tuple[Any, ...]) -> Factors:
        """The mean's, from merged records."""
        if self.options.reduction != "mean":
            return Factors(1.0, 1.0, False)
        active = self.a != 0
        own = np.where(active, self.a * records["target_mass"], 0.0) if self.labelled and self.weighted else self.a
        sums = torch.tensor([own.sum(), self.a.sum(), float(active.sum())], dtype=torch.float64)
        by, count, kept = total(sums, row_groups).tolist()
        if kept == 0 or by == 0:
            return Factors(0.0, 0.0, True)
        return Factors(1 / by, 1 / count if count else float("nan") if self.options.z_loss else 0.0, False)

    def losses(self, records: Array, factors: Factors) -> Array:
        """Row losses, the mean's factors applied, from merged records: the same bits on every rank."""
        options = self.options
        epsilon = options.label_smoothing
        with np.errstate(all="ignore"):
            others = records["rest"] + (records["at_peak"] - 1)
            log_s = np.where(records["peak"] == self.masked, np.nan, np.log1p(others))
            mass, dot = records["target_mass"], records["target_dot"]
            if epsilon:
                share = epsilon / (records["finite"] if options.smooth_finite_only else self.place.classes)
                mass = (1 - epsilon) * mass + share * records["smooth_mass"]
                dot = ((1 - epsilon) * dot if epsilon != 1 else 0.0) + share * records["smooth_dot"]
            losses = factors.ce * self.a * (mass * log_s - dot)
            if options.z_loss:
                k = 1.0 if options.softcap else options.logit_scale / options.temperature
                losses += factors.z * options.z_loss * self.a * (records["peak"] * k + log_s) ** 2
        return np.where(self.a == 0, 0.0, losses)

    def gradient(
        self,
        logits: Array,
        records: Array,
        lo: int,
        hi: int,
        factors: Factors,
        upstream: Any,
        grad: Array,
        stream: bool,
    ) -> None:
        """Write this rank's columns of the gradient of the rows [lo, hi), into ``grad``, which may be the logits."""
        if factors.void or self.empty or hi == lo:
            grad[...] = 0
            return
        rows = self.options.reduction == "none"
        head = self._head(logits, lo, hi, upstream if rows else None)
        scale = 1.0 if rows else upstream
        head.set_factors(factors.ce * scale * self.factor, factors.z * scale)
        n, cols = logits.shape
        outputs = backend.kernels().Outputs(n, cols, self.storage, grad=grad, stream=stream)
        run_gradient(head, outputs, np.ascontiguousarray(records[lo:hi]), n, cols, self.n_threads)


def _any_head(one: Slice) -> Any:
    """A head for `merge`, which asks it for nothing but the scale of distances."""
    options = replace(one.options, ignore_index=None)
    kind = {Storage.float32: np.float32, Storage.float64: np.float64, Storage.float16: np.float16}
    return build_head(
        np.zeros((1, 1), kind.get(one.storage, np.uint16)), one.storage, NO_TARGETS, options.record(), None, None
    )


def summed(losses: Array, factors: Factors, row_groups: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    """The total of row losses over all rows."""
    with np.errstate(all="ignore"):
        found = torch.tensor(losses.sum(), dtype=torch.float64)
    found = total(found, row_groups)
    return torch.tensor(float("nan"), dtype=dtype) if factors.void else found.to(dtype)
