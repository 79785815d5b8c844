"""The PyTorch layer: `softgrad.torch` against PyTorch and whatever else computes its losses on a CPU.

Loss and gradient of given logits, loss and gradients of a linear head (whole, with one side frozen, and the loss
alone), and what the smallest calls cost before there is any work in them. Run
``python benchmarks/torch_loss.py --csv torch_loss.csv``; see ``--help`` for doing less, and `harness` for what is
measured. `loss.py` and `linear.py` have the same cases without PyTorch's autograd around them.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import linear
import loss
from harness import Benchmark, Case, Prepared, UnavailableError

Prepare = Callable[[Case, Any, int], Prepared]
BOTH = ("x", "weight")
CHUNKS = (64, 128, 256, 512, 1024)  # rows, for the search of PyTorch's best
TOO_LONG = 30.0  # seconds; a call that takes longer by the look of its products is not made


def use(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    return torch


def compiled(function: Callable[..., Any], threads: int, **options: Any) -> Callable[..., Any]:
    import torch
    import torch._inductor.config

    torch._inductor.config.cpp.threads = threads  # a part of the key of its cache, which the number in force is not
    return torch.compile(function, dynamic=False, **options)


def warmed_up(prepared: Prepared) -> Prepared:
    """Compile now: a first call that compiles says nothing about the time and the memory of the others."""
    prepared.run()
    return prepared


def or_say_why(prepare: Prepare) -> Prepare:
    """A rival that may not run on a CPU at all: its error goes into the table."""

    def attempt(case: Case, inputs: Any, threads: int) -> Prepared:
        try:
            prepare(LINEAR_TINY, linear.make_inputs(LINEAR_TINY), threads).run()
        except (ImportError, UnavailableError):
            raise
        except Exception as error:
            raise UnavailableError(f"does not run: {harness.brief(error)}") from error
        return prepare(case, inputs, threads)

    return attempt


# --- logits in -------------------------------------------------------------------------------------------------------


def logits_and_labels(inputs: loss.Inputs) -> tuple[Any, Any]:
    import torch

    if inputs.logits.dtype == np.float32:
        logits = torch.from_numpy(inputs.logits)
    else:
        logits = torch.from_numpy(inputs.logits.view(np.uint16)).view(torch.bfloat16)
    return logits.detach(), torch.from_numpy(inputs.labels)


def view_loss_and_gradient(pair: tuple[Any, Any]) -> tuple[float, Any]:
    return float(pair[0].detach()), pair[1].float().numpy()


def backward(loss_of: Callable[[Any, Any], Any], inputs: loss.Inputs) -> Prepared:
    """``loss_of(logits, labels)`` and ``.backward()``, the logits a leaf whose ``.grad`` is None each time."""
    logits, labels = logits_and_labels(inputs)
    logits.requires_grad_()

    def run() -> Any:
        value = loss_of(logits, labels)
        value.backward()
        gradient, logits.grad = logits.grad, None
        return value, gradient

    return Prepared(run, view=view_loss_and_gradient, returned_bytes=inputs.logits.nbytes)


def softgrad_eager(case: Case, inputs: loss.Inputs, threads: int) -> Prepared:
    use(threads)
    from softgrad.torch import cross_entropy

    return backward(lambda logits, labels: cross_entropy(logits, labels, n_threads=threads), inputs)


def softgrad_compiled(case: Case, inputs: loss.Inputs, threads: int) -> Prepared:
    use(threads)
    from softgrad.torch import cross_entropy

    def loss_of(logits: Any, labels: Any) -> Any:
        return cross_entropy(logits, labels, n_threads=threads)

    return warmed_up(backward(compiled(loss_of, threads, fullgraph=True), inputs))


def softgrad_in_place(case: Case, inputs: loss.Inputs, threads: int) -> Prepared:
    """The logits come out of another function, as in a model, and are restored before each call."""
    torch = use(threads)
    from softgrad.torch import cross_entropy

    values, labels = logits_and_labels(inputs)
    handle = torch.zeros((), requires_grad=True)
    memory, arrived, made = torch.empty_like(values), [], []

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, _handle: Any) -> Any:
            memory.copy_(values)
            return torch.empty(0, dtype=values.dtype).set_(memory.untyped_storage(), 0, values.shape)

        @staticmethod
        def backward(_ctx: Any, gradient: Any) -> Any:
            arrived.append(gradient)
            return None

    def reset() -> None:
        made[:] = [Layer.apply(handle)]

    def run() -> Any:
        value = cross_entropy(made.pop(), labels, inplace=True, n_threads=threads)
        value.backward()
        return value, arrived.pop()

    return Prepared(run, reset, view_loss_and_gradient)


def torch_eager(case: Case, inputs: loss.Inputs, threads: int) -> Prepared:
    return backward(use(threads).nn.functional.cross_entropy, inputs)


def torch_compiled(case: Case, inputs: loss.Inputs, threads: int) -> Prepared:
    return warmed_up(backward(compiled(use(threads).nn.functional.cross_entropy, threads), inputs))


def empty_function(case: Case, inputs: loss.Inputs, threads: int) -> Prepared:
    """What any loss written as an ``autograd.Function`` in Python costs at least."""
    torch = use(threads)

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, _labels: Any) -> Any:
            ctx.save_for_backward(logits)
            return logits.new_empty(())

        @staticmethod
        def backward(ctx: Any, _gradient: Any) -> Any:
            (logits,) = ctx.saved_tensors
            return torch.empty_like(logits), None

    return dataclasses.replace(backward(Empty.apply, inputs), view=lambda _pair: None)


# --- a linear head ---------------------------------------------------------------------------------------------------


def layer_and_labels(case: Case, inputs: linear.Inputs, wanted: Sequence[str]) -> tuple[Any, Any, Any]:
    import torch

    dtype = getattr(torch, case.dtype)
    x, weight = (torch.from_numpy(array).to(dtype) for array in (inputs.x, inputs.weight))
    return x.requires_grad_("x" in wanted), weight.requires_grad_("weight" in wanted), torch.from_numpy(inputs.labels)


def head(
    case: Case, inputs: linear.Inputs, wanted: Sequence[str], loss_of: Callable[[Any, Any, Any], Any], note: str = ""
) -> Prepared:
    """``loss_of(x, weight, labels)``, and ``.backward()`` if anything is wanted, each ``.grad`` None before."""
    x, weight, labels = layer_and_labels(case, inputs, wanted)

    def run() -> Any:
        value = loss_of(x, weight, labels)
        if wanted:
            value.backward()
        gradients, x.grad, weight.grad = (x.grad, weight.grad), None, None
        return value, *gradients

    def view(three: tuple[Any, Any, Any]) -> tuple[float, Any, Any]:
        value, *gradients = three
        return float(value.detach()), *(None if g is None else g.float().numpy() for g in gradients)

    returned = sum(t.nbytes for name, t in (("x", x), ("weight", weight)) if name in wanted)
    return Prepared(run, view=view, returned_bytes=returned, note=note)


def refuse_if_endless(case: Case, inputs: linear.Inputs, threads: int, wanted: Sequence[str]) -> None:
    """PyTorch multiplies bfloat16 matrices at a hundredth of its speed where the CPU has no instruction for it."""
    torch = use(threads)
    if case.dtype != "bfloat16" or case is LINEAR_TINY:
        return
    x, weight, _ = layer_and_labels(case, inputs, ())
    rows = min(16, len(x))
    part = x[:rows]
    started = time.process_time()  # whatever else the machine is doing
    tile = torch.mm(part, weight.T)
    if "x" in wanted:
        torch.mm(tile, weight)
    if "weight" in wanted:
        torch.mm(tile.T, part)
    seconds = (time.process_time() - started) / threads * len(x) / rows
    if seconds > TOO_LONG:
        raise UnavailableError(f"not run: its bfloat16 products alone take {seconds:.0f} s, to judge by {rows} rows")


def head_softgrad(wanted: Sequence[str], *, compile_it: bool = False, **options: Any) -> Prepare:
    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        use(threads)
        from softgrad.torch import linear_cross_entropy

        def loss_of(x: Any, weight: Any, labels: Any) -> Any:
            return linear_cross_entropy(x, weight, labels, n_threads=threads, **options)

        if compile_it:
            return warmed_up(head(case, inputs, wanted, compiled(loss_of, threads, fullgraph=True)))
        return head(case, inputs, wanted, loss_of)

    return prepare


def head_torch(wanted: Sequence[str], *, compile_it: bool = False) -> Prepare:
    """Through the whole matrix of logits."""

    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        functional = use(threads).nn.functional
        refuse_if_endless(case, inputs, threads, wanted)

        def loss_of(x: Any, weight: Any, labels: Any) -> Any:
            return functional.cross_entropy(functional.linear(x, weight), labels)

        if compile_it:
            return warmed_up(head(case, inputs, wanted, compiled(loss_of, threads, fullgraph=True)))
        return head(case, inputs, wanted, loss_of)

    return prepare


def head_torch_chunked(wanted: Sequence[str], *, search: bool) -> Prepare:
    """`torch.nn.functional.linear_cross_entropy` by chunks of rows: as many as it chooses, or the best there are."""

    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        torch = use(threads)
        if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            raise UnavailableError(f"PyTorch {torch.__version__} does not have it")

        def by_chunks(size: int | None) -> Callable[[Any, Any, Any], Any]:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size)
            return lambda x, weight, labels: torch.nn.functional.linear_cross_entropy(
                x, weight, labels, options=options
            )

        x, weight, labels = layer_and_labels(case, inputs, wanted)
        if not search:
            adjusted = torch.nn.LinearCrossEntropyOptions()._adjust(len(x), x.shape[1], len(weight), x.dtype, x.device)
            return head(case, inputs, wanted, by_chunks(None), f"chunks of {adjusted.batch_chunk_size}")
        tried = {}
        for size in sorted({min(size, len(x)) for size in CHUNKS}, reverse=True):
            started, spent = time.perf_counter(), time.process_time()
            value = by_chunks(size)(x, weight, labels)
            if wanted:
                value.backward()
            x.grad = weight.grad = None
            tried[size] = min(time.perf_counter() - started, time.process_time() - spent)  # whoever else is busy
        best = min(tried, key=lambda size: tried[size])
        seconds = ", ".join(f"{size}: {tried[size]:.3g} s" for size in sorted(tried))
        return head(case, inputs, wanted, by_chunks(best), f"chunks of {best} ({seconds})")

    return prepare


def head_cut_cross_entropy(wanted: Sequence[str], implementation: str) -> Prepare:
    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        use(threads)
        from cut_cross_entropy import linear_cross_entropy

        refuse_if_endless(case, inputs, threads, wanted)
        return warmed_up(head(case, inputs, wanted, lambda *layer: linear_cross_entropy(*layer, impl=implementation)))

    return or_say_why(prepare)


def head_liger(wanted: Sequence[str]) -> Prepare:
    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        use(threads)
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        of = LigerFusedLinearCrossEntropyLoss()
        return head(case, inputs, wanted, lambda x, weight, labels: of(weight, x, labels))

    return or_say_why(prepare)


def head_liger_scaled(wanted: Sequence[str]) -> Prepare:
    """Liger's "scaled" loss has a composition of PyTorch's operations to fall back on, 512 rows at a time."""

    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        use(threads)
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Scaled

        refuse_if_endless(case, inputs, threads, wanted)
        return head(case, inputs, wanted, lambda x, weight, labels: Scaled.apply(x, weight, labels).mean())

    return or_say_why(prepare)


def products_torch(wanted: Sequence[str]) -> Prepare:
    """The products alone, into tensors that exist, in the case's type."""

    def prepare(case: Case, inputs: linear.Inputs, threads: int) -> Prepared:
        torch = use(threads)
        refuse_if_endless(case, inputs, threads, wanted)
        x, weight, _ = layer_and_labels(case, inputs, ())
        tile = torch.ones(len(x), len(weight), dtype=x.dtype)
        x_gradient, weight_gradient = torch.ones_like(x), torch.ones_like(weight)

        def run() -> None:
            torch.mm(x, weight.T, out=tile)
            if "x" in wanted:
                torch.mm(tile, weight, out=x_gradient)
            if "weight" in wanted:
                torch.mm(tile.T, x, out=weight_gradient)

        return Prepared(run)

    return prepare


def products_numpy(wanted: tuple[str, ...], columns: int | None = None) -> Prepare:
    """In float32 whatever the case's type is: NumPy has no product of narrower ones."""
    return linear.products(linear.numpy_multiply, columns, wanted)


# --- the cases -------------------------------------------------------------------------------------------------------

SHIPPED, HUGE = ("as shipped",), ("as shipped", "huge pages")
ALL_STATES = tuple(harness.STATES)
DTYPES = ("float32", "bfloat16")
LOGITS = [((2048, 32768), ALL_STATES), ((512, 131072), HUGE), ((1024, 50257), HUGE), ((8192, 1000), ALL_STATES)]
SMALL = [(1, 10), (16, 100), (64, 1000)]
LINEAR_TINY = Case("tiny", (8, 4, 16))
PACKAGES = ("cut-cross-entropy", "liger-kernel", "triton")
COMPILED = frozenset({"softgrad, compiled", "torch.compile", "torch.compile of it", "cut-cross-entropy torch_compile"})


def logits_case(shape: tuple[int, int], dtype: str, **options: Any) -> Case:
    return Case(f"{shape[0]}x{shape[1]}", shape, dtype, **options)


def head_case(shape: tuple[int, int, int], dtype: str, **options: Any) -> Case:
    n, d, v = shape
    return Case(f"N{n} D{d} V{v}", shape, dtype, **options)


LOSS = Benchmark(
    name="torch.cross_entropy",
    cases=[logits_case(shape, dtype, states=states) for dtype in DTYPES for shape, states in LOGITS],
    smoke_cases=[logits_case((64, 300), "float32", threads=(2,)), logits_case((3, 40000), "bfloat16", threads=(2,))],
    rivals={
        "softgrad": softgrad_eager,
        "softgrad inplace": softgrad_in_place,
        "softgrad, compiled": softgrad_compiled,
        "torch": torch_eager,
        "torch.compile": torch_compiled,
        "softgrad of NumPy arrays": loss.fresh,
        "copy of the logits": loss.copy,
    },
    make_inputs=loss.make_inputs,
    check=loss.check,
    baselines=("softgrad", "softgrad inplace", "softgrad, compiled"),
    tiny=Case("tiny", (8, 16)),
    slow=COMPILED,
    peak_threads=2,
)

CALLS = Benchmark(
    name="torch.cross_entropy, small",
    cases=[logits_case(shape, dtype, threads=(1,)) for dtype in DTYPES for shape in SMALL],
    smoke_cases=[logits_case((1, 10), "float32", threads=(1,))],
    rivals={
        "softgrad": softgrad_eager,
        "softgrad, compiled": softgrad_compiled,
        "torch": torch_eager,
        "torch.compile": torch_compiled,
        "empty autograd.Function": empty_function,
        "softgrad of NumPy arrays": loss.fresh,
    },
    make_inputs=loss.make_inputs,
    check=loss.check,
    baselines=("torch", "softgrad", "empty autograd.Function"),
    tiny=Case("tiny", (8, 16)),
    slow=COMPILED,
)


def head_benchmark(
    what: str, wanted: tuple[str, ...], cases: Sequence[Case], smoke_cases: Sequence[Case], *, others: bool
) -> Benchmark:
    rivals: dict[str, Prepare] = {
        "softgrad": head_softgrad(wanted),
        "torch": head_torch(wanted),
        "torch.compile of it": head_torch(wanted, compile_it=True),
        "torch by chunks, auto": head_torch_chunked(wanted, search=False),
        "torch by chunks, best": head_torch_chunked(wanted, search=True),
        "products: torch": products_torch(wanted),
        "products: numpy float32": products_numpy(wanted),
    }
    if others:
        rivals |= {
            "softgrad, compiled": head_softgrad(wanted, compile_it=True),
            "products: numpy float32, by columns": products_numpy(wanted, linear.COLUMNS),
            "cut-cross-entropy torch_compile": head_cut_cross_entropy(wanted, "torch_compile"),
            "cut-cross-entropy cce": head_cut_cross_entropy(wanted, "cce"),
            "liger": head_liger(wanted),
            "liger scaled": head_liger_scaled(wanted),
        }
    return Benchmark(
        name=f"torch.linear_cross_entropy{what}",
        cases=cases,
        smoke_cases=smoke_cases,
        rivals=rivals,
        make_inputs=linear.make_inputs,
        check=linear.check,
        baselines=("softgrad", "products: torch", "products: numpy float32"),
        tiny=LINEAR_TINY,
        slow=COMPILED | {"torch by chunks, auto", "cut-cross-entropy cce", "liger", "liger scaled"},
        packages=PACKAGES,
        patience=10.0,
        peak_threads=2,
    )


GPT, MIDDLE, FEW = (2048, 512, 50257), (512, 256, 32000), (64, 24, 1000)
HEADS = [
    head_benchmark(
        "",
        BOTH,
        [head_case(GPT, dtype) for dtype in DTYPES]
        + [head_case(MIDDLE, "float32", states=HUGE), head_case(MIDDLE, "bfloat16")],
        [head_case(FEW, dtype, threads=(2,)) for dtype in DTYPES],
        others=True,
    )
]
HEADS += [
    head_benchmark(
        what,
        wanted,
        [head_case(MIDDLE, dtype) for dtype in DTYPES],
        [],
        others=False,
    )
    for what, wanted in ((", input frozen", ("weight",)), (", weight frozen", ("x",)), (", loss alone", ()))
]

if __name__ == "__main__":
    harness.main(LOSS, CALLS, *HEADS)
