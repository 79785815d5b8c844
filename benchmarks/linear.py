"""The linear head: `softgrad.linear_cross_entropy_with_grad` against its matrix products alone, and against PyTorch.

The products alone are the floor: logits, ``G W`` and ``Gᵀ x`` into arrays that exist already, once over the whole
vocabulary and once by blocks of columns (that stay nearer), through NumPy's OpenBLAS, SciPy's, and PyTorch's library.
Run ``python benchmarks/linear.py --csv linear.csv``; see ``--help`` for doing less, and `harness` for what is measured.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import softgrad
from harness import STATES, Benchmark, Case, Prepared

# The shape is (N, D, V).
CASES = [
    Case("N2048 D512 V50257", (2048, 512, 50257), states=tuple(STATES)),
    Case("N8192 D64 V8000", (8192, 64, 8000)),
]
SMOKE = [Case("N96 D24 V3000", (96, 24, 3000), threads=(2,))]
COLUMNS = 4096
CHUNK = 512  # rows; PyTorch's own choice for the first case is 16, and three times slower


@dataclass
class Truth:
    """The loss, and the gradients in some rows of each."""

    loss: float
    x_rows: Any
    x_gradient: Any
    weight_rows: Any
    weight_gradient: Any


@dataclass
class Inputs:
    """The layer and the labels. Of a narrower storage type the numbers are rounded, and float32 all the same."""

    x: Any
    weight: Any
    labels: Any

    @functools.cached_property
    def truth(self) -> Truth:
        """What is right, worked out when it is asked for."""
        x, labels, (n, v) = self.x, self.labels, (len(self.x), len(self.weight))
        weight_rows = np.unique(np.concatenate([labels[:8], np.linspace(0, v - 1, 8).astype(np.int64)]))
        x_rows = np.unique(np.linspace(0, n - 1, 9).astype(np.int64))
        total, x_gradient, weight_gradient = 0.0, [], np.zeros((len(weight_rows), x.shape[1]))
        wide, step = self.weight.astype(np.float64), 128
        for start in range(0, n, step):
            part, own = x[start : start + step].astype(np.float64), labels[start : start + step]
            gradient = part @ wide.T
            top = gradient.max(axis=1, keepdims=True)
            gradient -= top
            target = np.take_along_axis(gradient, own[:, None], axis=1)
            np.exp(gradient, out=gradient)
            mass = gradient.sum(axis=1, keepdims=True)
            total += float((np.log(mass) - target).sum())
            gradient /= mass * n
            gradient[np.arange(len(own)), own] -= 1 / n
            weight_gradient += gradient[:, weight_rows].T @ part
            inside = x_rows[(x_rows >= start) & (x_rows < start + step)] - start
            x_gradient.append(gradient[inside] @ wide)
        return Truth(total / n, x_rows, np.concatenate(x_gradient), weight_rows, weight_gradient)


def make_inputs(case: Case) -> Inputs:
    n, d, v = case.shape
    generator = np.random.default_rng(7)
    x = generator.standard_normal((n, d), dtype=np.float32)
    weight = generator.standard_normal((v, d), dtype=np.float32)
    weight *= 2 / np.sqrt(d)
    labels = generator.integers(0, v, n)
    if case.dtype == "bfloat16":
        import ml_dtypes

        x, weight = (array.astype(ml_dtypes.bfloat16).astype(np.float32) for array in (x, weight))
    return Inputs(x, weight, labels)


def check(case: Case, inputs: Inputs, result: tuple[float, Any, Any] | None) -> str:
    """The loss, and some rows of both gradients, relative to the largest entry."""
    if result is None:  # the products alone
        return ""
    loss, x_gradient, weight_gradient = result
    truth, eps = inputs.truth, 2.0**-8 if case.dtype == "bfloat16" else 5e-6
    # PyTorch adds the losses of its chunks up in bfloat16: 1 or 2 % off, which is no reason not to time it.
    if not abs(loss - truth.loss) <= (8 if case.dtype == "bfloat16" else 2) * eps * abs(truth.loss):
        return f"loss {loss!r} instead of {truth.loss!r}"
    for name, mine, right in (
        ("x", None if x_gradient is None else x_gradient[truth.x_rows], truth.x_gradient),
        ("weight", None if weight_gradient is None else weight_gradient[truth.weight_rows], truth.weight_gradient),
    ):
        if mine is not None:
            error = float(np.max(np.abs(mine - right)) / np.max(np.abs(right)))
            if not error <= 4 * eps:
                return f"gradient by {name} off by {error:.3g} of its largest entry"
    return ""


# --- softgrad --------------------------------------------------------------------------------------------------------


def _softgrad(wanted: tuple[str, ...] = ("x", "weight"), **options: Any) -> Callable[[Case, Inputs, int], Prepared]:
    def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
        sizes = {"x": inputs.x.nbytes, "weight": inputs.weight.nbytes}

        def run() -> Any:
            return softgrad.linear_cross_entropy_with_grad(
                inputs.x, inputs.weight, inputs.labels, with_respect_to=wanted, n_threads=threads, **options
            )

        return Prepared(
            run,
            view=lambda pair: (float(pair[0]), pair[1].x, pair[1].weight),
            returned_bytes=sum(sizes[name] for name in wanted),
        )

    return prepare


def loss_alone(case: Case, inputs: Inputs, threads: int) -> Prepared:
    return Prepared(
        lambda: softgrad.linear_cross_entropy(inputs.x, inputs.weight, inputs.labels, n_threads=threads),
        view=lambda loss: (float(loss), None, None),
    )


# --- the products alone ----------------------------------------------------------------------------------------------


def _buffers(inputs: Inputs, columns: int) -> tuple[Any, Any, Any, Any]:
    n = len(inputs.x)
    return (
        np.ones((n, columns), np.float32),  # ones: zeros would not be in memory yet
        np.zeros_like(inputs.x),
        np.zeros_like(inputs.x),
        np.zeros_like(inputs.weight),
    )


def _blocks(vocabulary: int, columns: int) -> list[slice]:
    return [slice(start, min(start + columns, vocabulary)) for start in range(0, vocabulary, columns)]


def products(
    multiply: Callable[[Any, Any, Any], None], columns: int | None, wanted: tuple[str, ...] = ("x", "weight")
) -> Callable[..., Prepared]:
    """The products through ``multiply(a, b, out)``, with the logits standing in for their gradient."""

    def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
        vocabulary = len(inputs.weight)
        wide = min(columns or vocabulary, vocabulary)
        logits, x_part, x_gradient, weight_gradient = _buffers(inputs, wide)
        blocks = []
        for block in _blocks(vocabulary, wide):
            width = block.stop - block.start
            # A narrower last block gets a buffer of its own: a slice of the wide one would not be contiguous.
            tile = logits if width == wide else np.ones((len(inputs.x), width), np.float32)
            blocks.append((inputs.weight[block], tile, weight_gradient[block]))

        def run() -> None:
            for weight, tile, gradient in blocks:
                multiply(inputs.x, weight.T, tile)
                if "x" in wanted:
                    multiply(tile, weight, x_part)
                    if len(blocks) > 1:
                        np.add(x_gradient, x_part, out=x_gradient)
                if "weight" in wanted:
                    multiply(tile.T, inputs.x, gradient)

        return Prepared(run)

    return prepare


def numpy_multiply(a: Any, b: Any, out: Any) -> None:
    np.matmul(a, b, out=out)


def _scipy_multiply(a: Any, b: Any, out: Any) -> None:
    """``outᵀ = bᵀ aᵀ``: SciPy's interface is column-major, and takes a transposed array without a copy."""
    from scipy.linalg.blas import sgemm

    left, right = b.T, a.T
    flip_left, flip_right = not left.flags.f_contiguous, not right.flags.f_contiguous
    made = sgemm(
        1.0,
        left.T if flip_left else left,
        right.T if flip_right else right,
        trans_a=flip_left,
        trans_b=flip_right,
        c=out.T,
        overwrite_c=True,
    )
    assert np.shares_memory(made, out)


def _scipy_products(columns: int | None) -> Callable[..., Prepared]:
    def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
        import scipy.linalg.blas  # noqa: F401  (named as missing before anything is timed)

        return products(_scipy_multiply, columns)(case, inputs, threads)

    return prepare


def _torch_products(columns: int | None) -> Callable[..., Prepared]:
    def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
        import torch

        torch.set_num_threads(threads)

        def multiply(a: Any, b: Any, out: Any) -> None:
            torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))

        return products(multiply, columns)(case, inputs, threads)

    return prepare


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def _torch(inputs: Inputs, threads: int, loss_of: Callable[[Any, Any, Any], Any]) -> Prepared:
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(inputs.x).requires_grad_()
    weight = torch.from_numpy(inputs.weight).requires_grad_()
    labels = torch.from_numpy(inputs.labels)

    def run() -> Any:
        loss = loss_of(x, weight, labels)
        return (loss, *torch.autograd.grad(loss, (x, weight)))

    return Prepared(
        run,
        view=lambda three: (float(three[0].detach()), three[1].numpy(), three[2].numpy()),
        returned_bytes=inputs.x.nbytes + inputs.weight.nbytes,
    )


def torch_unfused(case: Case, inputs: Inputs, threads: int) -> Prepared:
    from torch.nn.functional import cross_entropy, linear

    return _torch(inputs, threads, lambda x, weight, labels: cross_entropy(linear(x, weight), labels))


def torch_chunked(case: Case, inputs: Inputs, threads: int) -> Prepared:
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy

    options = LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    return _torch(inputs, threads, lambda x, weight, labels: linear_cross_entropy(x, weight, labels, options=options))


def jax_optax(case: Case, inputs: Inputs, threads: int) -> Prepared:
    import jax
    import optax

    def mean_loss(x: Any, weight: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(x @ weight.T, labels).mean()

    both = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1)))
    arrays = [jax.device_put(array) for array in (inputs.x, inputs.weight, inputs.labels.astype(np.int32))]
    return Prepared(
        lambda: jax.block_until_ready(both(*arrays)),
        view=lambda pair: (float(pair[0]), np.asarray(pair[1][0]), np.asarray(pair[1][1])),
        returned_bytes=inputs.x.nbytes + inputs.weight.nbytes,
    )


BENCHMARK = Benchmark(
    name="linear",
    cases=CASES,
    smoke_cases=SMOKE,
    rivals={
        "softgrad": _softgrad(),
        "softgrad max_memory=256 MB": _softgrad(max_memory=256 * 2**20),
        "softgrad, weight frozen": _softgrad(("x",)),
        "softgrad loss alone": loss_alone,
        "products: numpy": products(numpy_multiply, None),
        "products: numpy, by columns": products(numpy_multiply, COLUMNS),
        "products: scipy": _scipy_products(None),
        "products: scipy, by columns": _scipy_products(COLUMNS),
        "products: torch": _torch_products(None),
        "products: torch, by columns": _torch_products(COLUMNS),
        "torch": torch_unfused,
        f"torch, chunks of {CHUNK}": torch_chunked,
        "jax + optax": jax_optax,
    },
    make_inputs=make_inputs,
    check=check,
    baselines=("softgrad",),
    tiny=Case("tiny", (8, 4, 16)),
)

if __name__ == "__main__":
    harness.main(BENCHMARK)
