"""One row of ten logits: what a call costs before there is any work in it.

Run ``python benchmarks/small.py --csv small.csv``; see ``--help`` for doing less, and `harness` for what is measured.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

from collections.abc import Callable
from typing import Any

import numpy as np

import softgrad
import softgrad.reference
from harness import Benchmark, Case, Prepared

CASES = [Case("1x10", (10,), dtype, (1,)) for dtype in ("float32", "float64")]
CASES += [Case("32x10", (32, 10), "float32", (1,)), Case("1x1000", (1000,), "float32", (1,))]
LABEL = 3


def make_inputs(case: Case) -> Any:
    return np.random.default_rng(7).standard_normal(case.shape).astype(case.dtype)


def check(case: Case, logits: Any, result: tuple[str, Any]) -> str:
    """Against the float64 reference: ``result`` is what was computed and its value."""
    kind, value = result
    if kind == "log_softmax":
        right = softgrad.reference.log_softmax(logits)
    elif kind == "softmax":
        right = softgrad.reference.softmax(logits)
    else:
        right = softgrad.reference.cross_entropy_with_grad(logits, _labels(logits))[1]
        value = value[1]
    error = float(np.max(np.abs(np.asarray(value, dtype=np.float64) - right)))
    return "" if error < 2e-6 else f"off by {error:.3g}"


def _labels(logits: Any) -> Any:
    return np.full(logits.shape[:-1], LABEL)


def _of(kind: str, function: Callable[[Any], Any]) -> Callable[[Case, Any, int], Prepared]:
    """A rival that is a function of the logits alone."""

    def prepare(case: Case, logits: Any, threads: int) -> Prepared:
        return Prepared(lambda: function(logits), view=lambda value: (kind, value))

    return prepare


def with_grad(case: Case, logits: Any, threads: int) -> Prepared:
    labels = _labels(logits)
    return Prepared(
        lambda: softgrad.cross_entropy_with_grad(logits, labels), view=lambda value: ("cross_entropy_with_grad", value)
    )


def with_grad_and_out(case: Case, logits: Any, threads: int) -> Prepared:
    labels, out = _labels(logits), np.empty_like(logits)
    return Prepared(
        lambda: softgrad.cross_entropy_with_grad(logits, labels, out=out),
        view=lambda value: ("cross_entropy_with_grad", value),
    )


def scipy_log_softmax(case: Case, logits: Any, threads: int) -> Prepared:
    from scipy.special import log_softmax

    return Prepared(lambda: log_softmax(logits, axis=-1), view=lambda value: ("log_softmax", value))


def scipy_softmax(case: Case, logits: Any, threads: int) -> Prepared:
    from scipy.special import softmax

    return Prepared(lambda: softmax(logits, axis=-1), view=lambda value: ("softmax", value))


def _by_hand(logits: Any) -> Any:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def torch_log_softmax(case: Case, logits: Any, threads: int) -> Prepared:
    import torch

    torch.set_num_threads(threads)
    tensor = torch.from_numpy(logits)
    return Prepared(lambda: torch.log_softmax(tensor, -1), view=lambda value: ("log_softmax", value.numpy()))


def torch_with_grad(case: Case, logits: Any, threads: int) -> Prepared:
    import torch

    torch.set_num_threads(threads)
    tensor, labels = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(_labels(logits))

    def run() -> Any:
        loss = torch.nn.functional.cross_entropy(tensor, labels)
        return loss, torch.autograd.grad(loss, tensor)[0]

    return Prepared(run, view=lambda pair: ("cross_entropy_with_grad", (None, pair[1].numpy())))


BENCHMARK = Benchmark(
    name="small",
    cases=CASES,
    smoke_cases=CASES[:1],
    rivals={
        "softgrad.log_softmax": _of("log_softmax", lambda logits: softgrad.log_softmax(logits)),
        "softgrad.softmax": _of("softmax", lambda logits: softgrad.softmax(logits)),
        "softgrad.cross_entropy_with_grad": with_grad,
        "softgrad.cross_entropy_with_grad out=": with_grad_and_out,
        "scipy.special.log_softmax": scipy_log_softmax,
        "scipy.special.softmax": scipy_softmax,
        "three lines of numpy": _of("log_softmax", _by_hand),
        "torch.log_softmax": torch_log_softmax,
        "torch cross_entropy + gradient": torch_with_grad,
    },
    make_inputs=make_inputs,
    check=check,
    baselines=("softgrad.log_softmax", "softgrad.cross_entropy_with_grad"),
    tiny=CASES[0],
)

if __name__ == "__main__":
    harness.main(BENCHMARK)
