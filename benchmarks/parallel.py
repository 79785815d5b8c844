"""The vocabulary over processes: two ranks of V/2 against one process of V, and against PyTorch's `loss_parallel`.

Forward and backward pass, float32, labels. Ranks have a thread each, and one process has as many threads as there are
ranks. A round times every rival once, between barriers, in an order drawn anew; while one process computes, the other
ranks sleep. Ratios are medians over the rounds, as in `harness`. The bytes are what one rank hands to its collectives.
Run ``python benchmarks/parallel.py --csv parallel.csv``.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

# (N, V) of logits, or (N, V, D) of a head.
CASES = {"logits N1024 V50257": (1024, 50257), "head N1024 V50257 D512": (1024, 50257, 512)}
SMOKE = {"logits N32 V600": (32, 600), "head N32 V600 D8": (32, 600, 8)}
BASELINE = "softgrad, ranks"
Result = tuple[Tensor, list[Tensor]]


class Inputs:
    """What every rank makes, and its slices of it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        n, v, *depth = shape
        g = torch.Generator().manual_seed(0)
        self.labels = torch.randint(v, (n,), generator=g)
        if depth:
            self.whole = [
                torch.randn(n, depth[0], generator=g),
                torch.randn(v, depth[0], generator=g) / depth[0] ** 0.5,
            ]
        else:
            self.whole = [torch.randn(n, v, generator=g)]
        self.axis = 0 if depth else 1
        self.own = [*self.whole[:-1], self.mine(self.whole[-1])]

    def mine(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(dist.get_world_size(), self.axis)[dist.get_rank()].clone()


def leaves(tensors: list[Any]) -> list[Any]:
    return [t.detach().requires_grad_() for t in tensors]


def rivals(inputs: Inputs, head: bool) -> dict[str, Callable[[], Result | None]]:
    """What is timed, by name; None where this rank has nothing to do."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import loss_parallel

    from softgrad import torch as single
    from softgrad.torch import parallel

    ranks, labels = dist.get_world_size(), inputs.labels
    mesh = init_device_mesh("cpu", (ranks,))
    shards = [distribute_tensor(t, mesh, [Replicate()]) for t in inputs.whole[:-1]]
    shards.append(distribute_tensor(inputs.whole[-1], mesh, [Shard(inputs.axis)]))
    enough = 8 * len(labels) * len(inputs.whole[-1])

    def run(tensors: list[Any], threads: int, loss_of: Callable[..., Tensor], **options: Any) -> Result:
        torch.set_num_threads(threads)
        followed = leaves(tensors)
        loss = loss_of(*followed, labels, **options)
        loss.backward()
        return loss.detach(), [t.grad for t in followed]

    def alone() -> Result | None:
        function = single.linear_cross_entropy if head else single.cross_entropy
        return run(inputs.whole, ranks, function, n_threads=ranks) if dist.get_rank() == 0 else None

    def theirs() -> Result:
        with loss_parallel():
            if head:
                return run(shards, 1, lambda x, w, y: functional.cross_entropy(functional.linear(x, w), y))
            return run(shards, 1, functional.cross_entropy)

    ours = parallel.vocab_parallel_linear_cross_entropy if head else parallel.vocab_parallel_cross_entropy
    found: dict[str, Callable[[], Result | None]] = {
        BASELINE: lambda: run(inputs.own, 1, ours, n_threads=1),
        "softgrad, one process": alone,
        "loss_parallel": theirs,
    }
    if head:
        found["softgrad, ranks, logits kept"] = lambda: run(inputs.own, 1, ours, n_threads=1, max_memory=enough)
    return found


def wrong(result: Result | None, inputs: Inputs, expected: Result) -> str:
    """What differs from PyTorch's result on the whole."""
    if result is None:
        return ""
    loss, gradients = result
    whole = [getattr(t, "full_tensor", lambda t=t: t)() for t in (loss, *gradients)]
    for actual, right in zip(whole, (expected[0], *expected[1]), strict=True):
        right = right if actual.shape == right.shape else inputs.mine(right)
        if not torch.allclose(actual, right, rtol=1e-4, atol=1e-4 * float(right.abs().max())):
            return "a result is not PyTorch's"
    return ""


def sent(call: Callable[[], Any]) -> int | None:
    """Bytes that this rank hands to `all_reduce` and `all_gather`; None where it calls others."""
    total, kept = [0], (dist.all_reduce, dist.all_gather)

    def counting(function: Any, place: int) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            total[0] += args[place].nbytes
            return function(*args, **options)

        return counted

    dist.all_reduce, dist.all_gather = counting(kept[0], 0), counting(kept[1], 1)
    try:
        call()
    finally:
        dist.all_reduce, dist.all_gather = kept
    return total[0] or None


def child(order: dict[str, Any]) -> None:
    """One rank: every rival of a case."""
    dist.init_process_group("gloo")
    shape = tuple(order["shape"])
    inputs = Inputs(shape)
    ready = rivals(inputs, len(shape) == 3)
    whole = leaves(inputs.whole)
    loss = functional.cross_entropy(functional.linear(*whole) if len(shape) == 3 else whole[0], inputs.labels)
    loss.backward()
    expected = loss.detach(), [t.grad for t in whole]
    rows = {name: {"rival": name, "note": wrong(call(), inputs, expected), "bytes": sent(call)}
            for name, call in ready.items()}  # fmt: skip
    del whole, loss, expected
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for i in range(order["rounds"]):
        for name in random.Random(i).sample(list(ready), len(ready)):
            dist.barrier()
            start = time.perf_counter()
            result = ready[name]()
            dist.barrier()
            taken[name].append(time.perf_counter() - start)
            del result
    if dist.get_rank() == 0:
        for name, row in rows.items():
            ratios = sorted(mine / base for mine, base in zip(taken[name], taken[BASELINE], strict=True))
            row |= {"rounds": len(ratios), "wall_ms": 1e3 * statistics.median(taken[name])}
            row |= {"wall_ms_min": 1e3 * min(taken[name]), f"ratio to {BASELINE}": statistics.median(ratios)}
            row |= {"quartiles": f"{ratios[len(ratios) // 4]:.3g} to {ratios[3 * len(ratios) // 4]:.3g}"}
            harness.report(order, row | {"load": harness.load_average()})
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # A thread of gloo that asks for the interpreter while it shuts down aborts the process (PyTorch 2.13).


def launch(order: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.jsonl"
        answer.touch()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
        command += ["--child", json.dumps(order | {"answer": str(answer)})]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SOFTGRAD_NUM_THREADS": str(ranks)}
        subprocess.run(command, env=environment, check=True)
        return [json.loads(line) for line in answer.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description="The vocabulary-parallel losses of softgrad.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and few rounds: does it run, is it right?")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--processes", type=int, default=2, help="ranks (default 2)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of a case (default 9)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    about, table = harness.machine(("softgrad", "numpy", "torch")), []
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    for name, shape in (SMOKE if options.smoke else CASES).items():
        if options.only not in name:
            continue
        rows = launch({"shape": shape, "rounds": 2 if options.smoke else options.rounds}, options.processes)
        print(f"\n{name}, {options.processes} ranks\n{'':30}{'wall ms':>9}{'min':>9}{'÷ ranks':>9}{'bytes':>12}")
        for row in rows:
            ratio, size = row[f"ratio to {BASELINE}"], row["bytes"] or "–"
            times = f"{row['wall_ms']:>9.4g}{row['wall_ms_min']:>9.4g}"
            print(f"{row['rival']:30}{times}{ratio:>9.3g}{size:>12}  {row['note']}".rstrip())
            table.append({"benchmark": "parallel", "case": name, "processes": options.processes, **row, **about})
        if options.csv:
            harness.write(options.csv, table, about)
    if any(row["note"] for row in table):
        raise SystemExit("a rival or softgrad gave a wrong result: see the notes")


if __name__ == "__main__":
    main()
