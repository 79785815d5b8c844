"""Logits in, loss and gradient out: `softgrad.cross_entropy_with_grad` against everything that can do it on a CPU.

Run ``python benchmarks/loss.py --csv loss.csv``; see ``--help`` for doing less, and `harness` for what is measured.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import softgrad
import softgrad.reference
from harness import STATES, Benchmark, Case, Prepared, UnavailableError

STATE_NAMES = tuple(STATES)
SHAPES = [(2048, 32768), (512, 131072), (8192, 1000), (65536, 10)]
CASES = [Case(f"{n}x{v}", (n, v), dtype, states=STATE_NAMES) for dtype in ("float32", "bfloat16") for n, v in SHAPES]
SMOKE = [Case("64x300", (64, 300), "float32", (2,)), Case("3x40000", (3, 40000), "bfloat16", (2,))]


@dataclass
class Inputs:
    """The logits in the case's type (a NumPy array), the labels, and what is right, worked out when it is asked for."""

    logits: Any
    labels: Any

    @functools.cached_property
    def loss(self) -> float:
        rows, columns = self.logits.shape
        total, step = 0.0, max(1, (1 << 22) // columns)
        for start in range(0, rows, step):
            block = self.logits[start : start + step].astype(np.float64)
            own = np.take_along_axis(block, self.labels[start : start + step, None], axis=1)[:, 0]
            top = block.max(axis=1)
            block -= top[:, None]
            total += float((np.log(np.exp(block, out=block).sum(axis=1)) + top - own).sum())
        return total / rows

    @functools.cached_property
    def sampled(self) -> Any:
        """The rows of which the gradient is checked."""
        return np.unique(np.linspace(0, len(self.labels) - 1, 9).astype(np.int64))

    @functools.cached_property
    def gradient(self) -> Any:
        logits, labels = self.logits[self.sampled], self.labels[self.sampled]
        summed = softgrad.reference.cross_entropy_with_grad(logits, labels, reduction="sum")[1]
        return summed / len(self.labels)


def make_inputs(case: Case) -> Inputs:
    rows, columns = case.shape
    generator = np.random.default_rng(7)
    logits = generator.standard_normal((rows, columns), dtype=np.float32)
    logits *= 3
    if case.dtype == "bfloat16":
        import ml_dtypes

        logits = logits.astype(ml_dtypes.bfloat16)
    labels = generator.integers(0, columns, rows)
    return Inputs(logits, labels)


def check(case: Case, inputs: Inputs, result: tuple[float, Any] | None) -> str:
    """The loss, and nine rows of the gradient, to what the type's precision leaves room for."""
    if result is None:  # the copy of the logits
        return ""
    loss, gradient = result
    eps = 2.0**-8 if case.dtype == "bfloat16" else 2.0**-20
    if not abs(loss - inputs.loss) <= 4 * eps * abs(inputs.loss):
        return f"loss {loss!r} instead of {inputs.loss!r}"
    if gradient is None:
        return ""
    mine = np.asarray(gradient[inputs.sampled], dtype=np.float64)
    error = float(np.max(np.abs(mine - inputs.gradient))) * case.shape[0]
    return "" if error <= 4 * eps else f"gradient off by {error:.3g}/N"


# --- softgrad --------------------------------------------------------------------------------------------------------


def with_out(case: Case, inputs: Inputs, threads: int) -> Prepared:
    out = np.zeros_like(inputs.logits)
    return Prepared(lambda: softgrad.cross_entropy_with_grad(inputs.logits, inputs.labels, out=out, n_threads=threads))


def in_place(case: Case, inputs: Inputs, threads: int) -> Prepared:
    logits = inputs.logits.copy()
    return Prepared(
        lambda: softgrad.cross_entropy_with_grad(logits, inputs.labels, out=logits, n_threads=threads),
        reset=lambda: np.copyto(logits, inputs.logits),
    )


def fresh(case: Case, inputs: Inputs, threads: int) -> Prepared:
    return Prepared(
        lambda: softgrad.cross_entropy_with_grad(inputs.logits, inputs.labels, n_threads=threads),
        returned_bytes=inputs.logits.nbytes,
    )


def loss_alone(case: Case, inputs: Inputs, threads: int) -> Prepared:
    return Prepared(
        lambda: softgrad.cross_entropy(inputs.logits, inputs.labels, n_threads=threads),
        view=lambda loss: (loss, None),
    )


def copy(case: Case, inputs: Inputs, threads: int) -> Prepared:
    """The floor: each thread copies its part of the logits."""
    out = np.zeros_like(inputs.logits)
    edges = np.linspace(0, len(out), threads + 1).astype(int)
    # Their bits: a type that NumPy does not know natively would be copied one element after another.
    source, target = (array.view(f"u{array.itemsize}") for array in (inputs.logits, out))
    parts = [(target[a:b], source[a:b]) for a, b in itertools.pairwise(edges)]
    pool = ThreadPoolExecutor(max(1, threads - 1))

    def run() -> None:
        waiting = [pool.submit(np.copyto, *part) for part in parts[1:]]
        np.copyto(*parts[0])
        for future in waiting:
            future.result()

    return Prepared(run)


# --- rivals ----------------------------------------------------------------------------------------------------------


def _torch_inputs(inputs: Inputs) -> tuple[Any, Any]:
    import torch

    if inputs.logits.dtype == np.float32:
        logits = torch.from_numpy(inputs.logits)
    else:
        logits = torch.from_numpy(inputs.logits.view(np.uint16)).view(torch.bfloat16)
    return logits.detach().requires_grad_(), torch.from_numpy(inputs.labels)


def _torch(inputs: Inputs, threads: int, loss_of: Any) -> Prepared:
    import torch

    torch.set_num_threads(threads)
    logits, labels = _torch_inputs(inputs)

    def run() -> Any:
        loss = loss_of(logits, labels)
        return loss, torch.autograd.grad(loss, logits)[0]

    return Prepared(
        run,
        view=lambda pair: (float(pair[0].detach()), pair[1].float().numpy()),
        returned_bytes=inputs.logits.nbytes,
    )


def torch_eager(case: Case, inputs: Inputs, threads: int) -> Prepared:
    import torch

    return _torch(inputs, threads, torch.nn.functional.cross_entropy)


def torch_compiled(case: Case, inputs: Inputs, threads: int) -> Prepared:
    import torch

    return _torch(inputs, threads, torch.compile(torch.nn.functional.cross_entropy, dynamic=False))


def scipy_numpy(case: Case, inputs: Inputs, threads: int) -> Prepared:
    from scipy.special import log_softmax

    if case.dtype != "float32":
        raise UnavailableError(f"does not take {case.dtype}")
    rows = np.arange(len(inputs.labels))

    def run() -> Any:
        log_prob = log_softmax(inputs.logits, axis=1)
        loss = -log_prob[rows, inputs.labels].mean(dtype=np.float64)
        gradient = np.exp(log_prob, out=log_prob)
        gradient[rows, inputs.labels] -= 1
        gradient /= len(rows)
        return float(loss), gradient

    return Prepared(run, returned_bytes=inputs.logits.nbytes)


def sklearn_private(case: Case, inputs: Inputs, threads: int) -> Prepared:
    from sklearn._loss.loss import HalfMultinomialLoss

    if case.dtype != "float32":
        raise UnavailableError(f"does not take {case.dtype}")
    rows, columns = case.shape
    rival = HalfMultinomialLoss(n_classes=columns)
    labels = inputs.labels.astype(np.float32)
    weight = np.full(rows, 1 / rows, dtype=np.float32)  # the mean's share, or its gradient would be the sum's
    loss_out, gradient_out = np.ones(rows, np.float32), np.ones((rows, columns), np.float32)  # in memory already

    def run() -> Any:
        rival.loss_gradient(labels, inputs.logits, weight, loss_out, gradient_out, n_threads=threads)
        return float(loss_out.sum(dtype=np.float64)), gradient_out

    return Prepared(run)


def jax_optax(case: Case, inputs: Inputs, threads: int) -> Prepared:
    import jax
    import optax

    def mean_loss(logits: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    both = jax.jit(jax.value_and_grad(mean_loss))
    logits, labels = jax.device_put(inputs.logits), jax.device_put(inputs.labels.astype(np.int32))
    return Prepared(
        lambda: jax.block_until_ready(both(logits, labels)),
        view=lambda pair: (float(pair[0]), np.asarray(pair[1])),
        returned_bytes=inputs.logits.nbytes,
    )


BENCHMARK = Benchmark(
    name="loss",
    cases=CASES,
    smoke_cases=SMOKE,
    rivals={
        "softgrad out=": with_out,
        "softgrad in place": in_place,
        "softgrad fresh": fresh,
        "softgrad loss alone": loss_alone,
        "copy of the logits": copy,
        "torch": torch_eager,
        "torch.compile": torch_compiled,
        "scipy + numpy": scipy_numpy,
        "sklearn private": sklearn_private,
        "jax + optax": jax_optax,
    },
    make_inputs=make_inputs,
    check=check,
    baselines=("softgrad out=", "softgrad fresh"),
    tiny=Case("tiny", (8, 16)),
    slow=frozenset({"torch.compile"}),
)

if __name__ == "__main__":
    harness.main(BENCHMARK)
