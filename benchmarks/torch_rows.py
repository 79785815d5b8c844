"""The row primitive in PyTorch: by-products and learnt options, forward and backward, against PyTorch's formulas.

Run ``python benchmarks/torch_rows.py --csv torch_rows.csv``; see ``--help`` for doing less, and
`harness` for what is measured.  "softgrad, plain loss" is the loss of the same logits without options:
what a by-product or a learnt option costs beyond it.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import softgrad.torch
from harness import Benchmark, Case, Prepared

HEADS = ((512, 256, 32768), (1024, 512, 50257))
LOGITS = ((512, 5000), (2048, 32768))
LEARNT = {"temperature": 0.7, "logit_scale": 1.3, "softcap": 30.0, "z_loss": 0.01}


class Inputs(NamedTuple):
    """Leaves and labels of a case, and the gradients by its leaves in float64."""

    leaves: dict[str, Tensor]
    labels: Tensor
    right: dict[str, Tensor]


def task(case: Case) -> str:
    """What is computed, the first words of the case's name."""
    return case.name.rpartition(" ")[0]


def make_inputs(case: Case) -> Inputs:
    torch.manual_seed(0)
    n, *depth, classes = case.shape
    leaves: dict[str, Tensor] = {}
    if depth:
        leaves |= {"x": torch.randn(n, *depth), "weight": torch.randn(classes, *depth) * depth[0] ** -0.5}
    else:
        leaves["logits"] = torch.randn(n, classes)
    option = task(case).removeprefix("learnt ")
    if option in LEARNT:
        leaves[option] = torch.tensor(LEARNT[option])
    elif option != task(case):
        leaves[option] = torch.rand(classes if option == "class weights" else n) + 0.5
    labels = torch.randint(classes, (n,))
    wide = {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(formula(task(case), wide, labels), list(wide.values()))
    right = dict(zip(wide, gradients, strict=True))
    return Inputs({name: leaf.requires_grad_() for name, leaf in leaves.items()}, labels, right)


def check(case: Case, inputs: Inputs, gradients: dict[str, Tensor]) -> str:
    for name, right in inputs.right.items():
        if name in gradients:
            error = float((gradients[name].double() - right).abs().max() / right.abs().max())
            if error > 1e-4:
                return f"the gradient by {name} is off by {error:.3g}"
    return ""


def formula(what: str, leaves: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The value in PyTorch's operations."""
    o = leaves["logits"] if "logits" in leaves else leaves["x"] @ leaves["weight"].T
    if what.endswith("statistics"):
        log_p = functional.log_softmax(o, -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return log_p.gather(1, labels[:, None]).mean() + 0.1 * entropy.mean()
    if what == "learnt z_loss":
        return functional.cross_entropy(o, labels) + leaves["z_loss"] * (torch.logsumexp(o, 1) ** 2).mean()
    if what in ("learnt class weights", "learnt sample weights"):
        a = leaves["class weights"][labels] if "class weights" in leaves else leaves["sample weights"]
        return (functional.cross_entropy(o, labels, reduction="none") * a).sum() / a.sum()
    if "softcap" in leaves:
        o = leaves["softcap"] * torch.tanh(o / leaves["softcap"])
    return functional.cross_entropy(o * leaves.get("logit_scale", 1.0) / leaves.get("temperature", 1.0), labels)


def softgrad_value(what: str, leaves: dict[str, Tensor], labels: Tensor, threads: int) -> Tensor:
    """The value by `softgrad.torch`."""
    if what.endswith("statistics"):
        if "logits" in leaves:
            stats = softgrad.torch.prediction_stats(leaves["logits"], labels, n_threads=threads)
        else:
            stats = softgrad.torch.linear_prediction_stats(*leaves.values(), labels, n_threads=threads)
        return stats.log_prob.mean() + 0.1 * stats.entropy.mean()
    names = {"class weights": "weight", "sample weights": "sample_weight"}
    options: dict[str, Any] = {names.get(n, n): leaf for n, leaf in leaves.items() if n != "logits"}
    return softgrad.torch.cross_entropy(leaves["logits"], labels, n_threads=threads, **options)


def rival(
    value: Callable[[str, dict[str, Tensor], Tensor, int], Tensor], *, checked: bool = True
) -> Callable[[Case, Inputs, int], Prepared]:
    """A rival that computes ``value`` and its gradients; an unchecked one computes another value than the case's."""

    def prepare(case: Case, inputs: Inputs, threads: int) -> Prepared:
        torch.set_num_threads(threads)
        leaves = inputs.leaves

        def run() -> dict[str, Tensor]:
            found = torch.autograd.grad(
                value(task(case), leaves, inputs.labels, threads), list(leaves.values()), allow_unused=True
            )
            return {name: g for name, g in zip(leaves, found, strict=True) if g is not None and checked}

        return Prepared(run, returned_bytes=sum(leaf.nbytes for leaf in leaves.values()))

    return prepare


def plain_loss(what: str, leaves: dict[str, Tensor], labels: Tensor, threads: int) -> Tensor:
    if "logits" in leaves:
        return softgrad.torch.cross_entropy(leaves["logits"], labels, n_threads=threads)
    return softgrad.torch.linear_cross_entropy(leaves["x"], leaves["weight"], labels, n_threads=threads)


def names(what: str, shape: tuple[int, ...], **options: Any) -> Case:
    return Case(f"{what} {'x'.join(map(str, shape))}", shape, **options)


TASKS = ["statistics", *(f"learnt {name}" for name in (*LEARNT, "class weights", "sample weights"))]
BENCHMARK = Benchmark(
    name="torch.rows",
    cases=[names("statistics", shape) for shape in HEADS] + [names(what, s) for what in TASKS for s in LOGITS],
    smoke_cases=[names("statistics", (24, 8, 300), threads=(1,)), names("learnt softcap", (24, 300), threads=(1,))],
    rivals={
        "softgrad": rival(softgrad_value),
        "torch": rival(lambda what, leaves, labels, _: formula(what, leaves, labels)),
        "softgrad, plain loss": rival(plain_loss, checked=False),
    },
    make_inputs=make_inputs,
    check=check,
    baselines=("softgrad", "softgrad, plain loss"),
    tiny=names("statistics", (8, 16)),
)

if __name__ == "__main__":
    harness.main(BENCHMARK)
